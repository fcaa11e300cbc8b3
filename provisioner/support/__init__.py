"""`provisioner support-bundle`: everything that helps to understand a cluster, in one file, without its secrets.

- ``model``: a question with a deadline, and what came of all of them;
- ``machine``, ``cluster``, ``controller``: the questions;
- ``collect``: asks them all at a time; every answer goes through ``redact``;
- ``secrets``: what must not be in the file, whatever ``redact`` thinks;
- ``archive``: writes the file, looks through it once more, and only then puts it in place.
"""

from provisioner.support.archive import place
from provisioner.support.collect import Options
from provisioner.support.model import Collected, Missing
from provisioner.support.secrets import Needles, of_workspace

__all__ = ["Collected", "Missing", "Needles", "Options", "of_workspace", "place"]
