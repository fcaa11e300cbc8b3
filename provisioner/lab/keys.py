"""SSH keys of a lab. Login key and host keys are made before the first boot, so nothing is trusted on first use."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provisioner.workspace import write_atomic


def ensure(private: Path, comment: str) -> str:
    """Make an Ed25519 key pair in OpenSSH's format where there is none; the public line is returned.

    Args:
        private: file of the private key (0600); the public one is beside it with ``.pub``.
        comment: the public line's last word.
    """
    public = private.with_name(private.name + ".pub")
    if private.exists() and public.exists():
        return public.read_text().strip()
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    # the public half first: a crash between the two makes a new pair the next time
    write_atomic(public, f"{line} {comment}\n", mode=0o644)
    write_atomic(private, secret, mode=0o600)
    return f"{line} {comment}"


def known_hosts_line(address: str, public: str) -> str:
    """A machine's line of known_hosts."""
    kind, key = public.split()[:2]
    return f"{address} {kind} {key}\n"
