"""Encryption of a backup with age (https://age-encryption.org/v1), so that `age -d` opens it anywhere.

A backup holds every key of a cluster: it is encrypted for recipients (age's or SSH's public keys) or with a passphrase, and left
plain only where that was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyrage

from provisioner.backup import archive
from provisioner.backup.archive import BackupError, Opened
from provisioner.backup.recipient import recipient
from provisioner.errors import BadInput
from provisioner.workspace import private_directory

_MAGIC = b"age-encryption.org/v1\n"
_SCRYPT = b"-> scrypt "
# The library takes what is encrypted with a passphrase as a whole, in memory.
PASSPHRASE_BYTES = 1 << 30
_SHORTEST = 12


@dataclass(frozen=True, slots=True)
class Key:
    """How a backup is encrypted: for recipients, or with a passphrase; with neither it is plain."""

    recipients: tuple[str, ...] = ()
    passphrase: str = field(default="", repr=False)

    @property
    def seals(self) -> bool:
        """Whether it encrypts at all."""
        return bool(self.recipients or self.passphrase)


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens a backup: files with age's identities or SSH's private keys, and a passphrase."""

    identities: tuple[Path, ...] = ()
    passphrase: str = field(default="", repr=False)


def check(key: Key) -> None:
    """Refuse what could not encrypt anything, before there is anything to encrypt.

    Raises:
        BadInput: a recipient is none; the passphrase is too short.
    """
    for text in key.recipients:
        recipient(text)
    if key.passphrase and len(key.passphrase) < _SHORTEST:
        raise BadInput(
            f"the passphrase has {len(key.passphrase)} characters, and opens every key of the cluster: it needs {_SHORTEST}",
            hint="take some words at random; or `--recipient` with the public key of `age-keygen` or of SSH",
        )


def is_sealed(path: Path) -> bool:
    """Whether a file is one of age's."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def wants_passphrase(path: Path) -> bool:
    """Whether an encrypted file is opened by a passphrase; else by an identity."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC) + len(_SCRYPT)).endswith(_SCRYPT)


def seal(source: Path, target: Path, key: Key) -> None:
    """Encrypt a file (0600). ``target`` must not exist.

    Raises:
        BadInput: as :func:`check`; or the file is too large for a passphrase.
    """
    check(key)
    if not key.recipients and source.stat().st_size > PASSPHRASE_BYTES:
        raise BadInput(
            f"the backup has {source.stat().st_size >> 20} MiB, and with a passphrase no more than {PASSPHRASE_BYTES >> 20} can be "
            "encrypted",
            hint="encrypt it for a public key: `--recipient`",
        )
    target.touch(mode=0o600, exist_ok=False)
    if key.recipients:
        pyrage.encrypt_file(str(source), str(target), [recipient(text) for text in key.recipients])
    else:
        target.write_bytes(pyrage.passphrase.encrypt(source.read_bytes(), key.passphrase))


def unseal(source: Path, target: Path, secret: Secret) -> None:
    """Decrypt a file (0600). ``target`` must not exist.

    Raises:
        BadInput: an identity file cannot be read.
        BackupError: the secret does not open it, or it is damaged.
    """
    target.touch(mode=0o600, exist_ok=False)
    try:
        if wants_passphrase(source):
            target.write_bytes(pyrage.passphrase.decrypt(source.read_bytes(), secret.passphrase))
        else:
            pyrage.decrypt_file(str(source), str(target), identities(secret.identities))
    except (pyrage.DecryptError, OSError) as error:
        # the library reports a damaged stream as an error of input and output
        raise BackupError(
            f"{source}: cannot be decrypted: {error}; nothing was changed",
            hint="a wrong key or passphrase, or a file that is truncated or was changed",
        ) from None


@contextlib.contextmanager
def opened(
    file: Path, secret: Secret, *, parent: Path, prefix: str, ca: bytes | None, former: Mapping[str, str] | None = None
) -> Iterator[tuple[Opened, Path]]:
    """A backup's files for the time of the block, found whole; and the private directory below ``parent`` that holds them.

    Args:
        ca, former: as for :func:`archive.read`.

    Raises:
        BadInput, BackupError: as :func:`unseal` and :func:`archive.read`.
    """
    with private_directory(parent, prefix) as directory:
        plain = file
        if is_sealed(file):
            plain = directory / "archive"
            unseal(file, plain, secret)
        (directory / "files").mkdir(mode=0o700)
        yield archive.read(plain, directory / "files", ca=ca, who=str(file), former=former), directory


def identities(paths: Sequence[Path]) -> list[Any]:
    """The private keys in files: SSH's, or age's with a line for each.

    Raises:
        BadInput: a file cannot be read, or holds no such key.
    """
    found: list[Any] = []
    for path in paths:
        try:
            raw = path.read_bytes()
            if b"-----BEGIN " in raw:
                found.append(pyrage.ssh.Identity.from_buffer(raw))
                continue
            lines = [line.strip() for line in raw.decode().splitlines() if line.strip() and not line.startswith("#")]
            found += [pyrage.x25519.Identity.from_str(line) for line in lines]
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}", hint="name the file with the private key: `--identity FILE`") from None
        except (pyrage.IdentityError, UnicodeDecodeError):
            raise BadInput(
                f"{path}: no private key of age or SSH is in it",
                hint="a key of SSH must have no passphrase of its own; age's begins with AGE-SECRET-KEY-1",
            ) from None
    return found
