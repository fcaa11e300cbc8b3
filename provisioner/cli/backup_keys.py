"""Options by which the commands about backups are told how a file is encrypted, and how it is opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.errors import BadInput
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.backup.seal import Key, Secret

PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="Its first line is the passphrase; `-`: standard input.", show_default=False
    ),
]
RecipientOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recipient",
        metavar="KEY",
        help="Encrypt for this public key, of age (age1…) or SSH; may be given again.",
        show_default=False,
    ),
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Do not encrypt: the file holds every key of the cluster.")]
IdentityOption = Annotated[
    list[Path] | None,
    typer.Option("--identity", "-i", metavar="FILE", help="Private key, of age or SSH; may be given again.", show_default=False),
]


def require_built(workspace: Workspace) -> None:
    """Refuse a workspace without keys.

    Raises:
        BadInput: no cluster was built from there.
    """
    if not workspace.was_used:
        raise BadInput(
            f"{workspace.root}: this workspace has no keys: no cluster was built from here",
            hint="name the right workspace with --cluster; a lost one comes back by `provisioner workspace import`",
        )


def refuse_existing(path: Path) -> None:
    """Look at the place before the work is done for it.

    Raises:
        BadInput: something is there, or its directory is not.
    """
    if path.exists() or path.is_symlink():
        raise BadInput(f"{path}: there is such a file already", hint="name another one with --output, or move it away")
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent}: no such directory", hint="make it first, or name another file with --output")


def key_of(recipients: list[str], passphrase_file: Path | None, *, plain: bool) -> Key:
    """How a file shall be encrypted; asks for a passphrase where nothing is said.

    Raises:
        BadInput: it cannot encrypt anything, or there is nobody to ask.
    """
    from provisioner.backup import seal  # noqa: PLC0415

    if sum((bool(recipients), passphrase_file is not None, plain)) > 1:
        raise BadInput("--recipient, --passphrase-file and --plain exclude each other", hint="give one of them")
    if plain:
        return seal.Key()
    key = seal.Key(tuple(recipients)) if recipients else seal.Key(passphrase=_passphrase(passphrase_file, twice=True))
    seal.check(key)
    return key


def secret_of(file: Path, identities: list[Path], passphrase_file: Path | None) -> Secret:
    """What opens a file; asks for a passphrase where that is what it wants.

    Raises:
        BadInput: the file or a key cannot be read, or there is nobody to ask.
    """
    from provisioner.backup import seal  # noqa: PLC0415

    try:
        sealed = seal.is_sealed(file)
        by_passphrase = sealed and seal.wants_passphrase(file)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}", hint="`provisioner etcd list` shows the backups of this workspace") from None
    if by_passphrase:
        return seal.Secret(passphrase=_passphrase(passphrase_file, twice=False))
    if sealed and not identities:
        raise BadInput(f"{file}: encrypted for a public key", hint="name the file with its private key: `--identity FILE`")
    seal.identities(identities)
    return seal.Secret(identities=tuple(identities))


def _passphrase(file: Path | None, *, twice: bool) -> str:
    """From a file, or asked for; never from the command line, where everybody on this machine could read it."""
    if file is not None:
        try:
            text = sys.stdin.readline() if str(file) == "-" else file.read_text().partition("\n")[0]
        except OSError as error:
            raise BadInput(f"{file}: {error.strerror}", hint="name a file whose first line is the passphrase") from None
        if not text.strip():
            raise BadInput(f"{file}: its first line is empty", hint="put the passphrase there")
        return text.rstrip("\n")
    if not sys.stdin.isatty():
        raise BadInput(
            "nobody to ask for a passphrase; nothing was done",
            hint="give `--passphrase-file FILE`, or keys: `--recipient` to back up, `--identity` to restore",
        )
    return str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=twice, err=True))
