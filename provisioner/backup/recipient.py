"""The public keys that backups are encrypted for."""

from __future__ import annotations

from typing import Any

import pyrage

from provisioner.errors import BadInput


def recipient(text: str) -> Any:
    """A public key of age or SSH, as the library takes it.

    Raises:
        BadInput: it is none.
    """
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text)
    except pyrage.RecipientError:
        raise BadInput(
            f"{text[:40]!r} is no public key of age (age1…), nor one of SSH (ssh-ed25519, ssh-rsa)",
            hint="`age-keygen -o key.txt` makes a pair and prints the public key",
        ) from None
