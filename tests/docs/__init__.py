"""Code blocks of README.md, CONTRIBUTING.md and docs/: ``blocks`` finds them, ``commands`` says which test runs which command."""
