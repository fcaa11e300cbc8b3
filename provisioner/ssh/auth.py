"""Private keys and authentication: which keys are offered to a machine, and what is said when none of them is taken."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from provisioner.ssh.errors import SshError, Trouble

# ssh(1) offers these when no key is named; DSA is gone from both programs.
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def expand(name: str, base: Path) -> Path:
    """A key's file name as cluster.yaml may spell it: `~` is the user's home, a relative one starts at cluster.yaml."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # `~nobody-of-that-name` stays as it is, and is reported as missing
        path = path.expanduser()
    return path if path.is_absolute() else base / path


@dataclass(frozen=True, slots=True)
class Offer:
    """One key to try, and how to name it in a message."""

    label: str
    key: paramiko.PKey


class KeyRing:
    """Private keys by file, each read once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[Path, paramiko.PKey | SshError] = {}

    def load(self, path: Path) -> paramiko.PKey:
        """The private key in a file.

        Raises:
            SshError: it is missing, unreadable, open to other users, encrypted, or no private key.
        """
        with self._lock:
            if path not in self._loaded:
                try:
                    self._loaded[path] = _read_key(path)
                except SshError as error:
                    self._loaded[path] = error
            found = self._loaded[path]
        if isinstance(found, SshError):
            # a fresh exception: one raised again and again, by several threads, would grow its traceback each time
            raise SshError(found.trouble, found.message, hint=found.hint)
        return found

    @contextlib.contextmanager
    def offers(self, path: Path | None) -> Iterator[tuple[Offer, ...]]:
        """The keys to try, in order: the named file (or its twin in the agent), else the agent's keys and ~/.ssh/id_*.

        The agent's connection lives as long as the context: its keys sign through it.

        Raises:
            SshError: the named file cannot be used and the agent does not hold its key either.
        """
        agent = paramiko.Agent()
        try:
            held = tuple(Offer(f"agent key {key.comment or key.get_name()}", key) for key in agent.get_keys())
            if path is None:
                yield (*held, *self._default_offers())
            else:
                yield (self._named_offer(path, held),)
        finally:
            agent.close()

    def _named_offer(self, path: Path, held: tuple[Offer, ...]) -> Offer:
        try:
            return Offer(str(path), self.load(path))
        except SshError:
            # an encrypted key may be unlocked in the agent; its public half beside it says which one it is
            public = _public_blob(path)
            for offer in held:
                if public and offer.key.get_base64() == public:
                    return offer
            raise

    def _default_offers(self) -> Iterator[Offer]:
        for name in DEFAULT_KEYS:
            path = Path.home() / ".ssh" / name
            # a key that cannot be used is passed over here, as ssh(1) does: nobody named it
            with contextlib.suppress(SshError):
                yield Offer(f"~/.ssh/{name}", self.load(path))


def authenticate(transport: paramiko.Transport, user: str, offers: tuple[Offer, ...], *, who: str) -> None:
    """Log in with the first key the server takes.

    Args:
        who: begins every message: "worker-1 (10.0.0.4)".

    Raises:
        SshError: it takes none of them, or wants more than a key.
    """
    if not offers:
        raise SshError(
            Trouble.AUTHENTICATION,
            f"{who}: no private key to log in with as {user}",
            hint="set `ssh.key` in cluster.yaml, or load a key into an SSH agent (`ssh-add`), or make one (`ssh-keygen`)",
        )
    tried: list[str] = []
    for offer in offers:
        tried.append(f"tried {offer.label} ({offer.key.fingerprint})")
        try:
            remaining = transport.auth_publickey(user, offer.key)
        except paramiko.BadAuthenticationType as error:
            raise SshError(
                Trouble.AUTHENTICATION,
                f"{who}: the machine takes no keys from {user}, only: {', '.join(error.allowed_types) or 'nothing'}",
                hint="allow PubkeyAuthentication in the machine's sshd_config",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not transport.is_active():
                tried.append(f"the machine then closed the connection ({error})")
                break
            continue
        if not remaining:
            return
        raise SshError(
            Trouble.AUTHENTICATION,
            f"{who}: the machine took the key of {user} but wants more: {', '.join(remaining)}",
            hint="let this user in with a key alone (AuthenticationMethods of sshd_config)",
        )
    raise SshError(
        Trouble.AUTHENTICATION,
        f"{who}: permission denied: the machine takes none of the keys offered for {user}",
        hint=f"add the public key to ~{user}/.ssh/authorized_keys there (`ssh-copy-id`), or correct `ssh.user` and `ssh.key`",
        details=tuple(tried),
    )


def _read_key(path: Path) -> paramiko.PKey:
    try:
        status = path.stat()
    except OSError as error:
        raise SshError(
            Trouble.KEY_FILE,
            f"{path}: this private key cannot be read: {error.strerror}",
            hint="correct `ssh.key` in cluster.yaml: `~` and paths relative to cluster.yaml are allowed",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise SshError(Trouble.KEY_FILE, f"{path}: no regular file, so no private key", hint="correct `ssh.key` in cluster.yaml")
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        # ssh(1), and so Ansible, refuses such a key: say so at once
        raise SshError(
            Trouble.KEY_FILE,
            f"{path}: this private key is open to other users (mode {status.st_mode & 0o777:04o})",
            hint=f"`chmod 600 {path}`",
        )
    try:
        return paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError) as error:
        # cryptography says "password was not given but private key is encrypted" with a TypeError
        raise SshError(
            Trouble.KEY_FILE,
            f"{path}: this private key is encrypted",
            hint=f"unlock it in an SSH agent (`ssh-add {path}`), or use a key without a passphrase",
        ) from error
    except OSError as error:
        raise SshError(
            Trouble.KEY_FILE, f"{path}: this private key cannot be read: {error.strerror}", hint="let this user read it"
        ) from error
    except (ValueError, paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm) as error:
        # the cause is not printed: a parser's message may quote what it read
        raise SshError(
            Trouble.KEY_FILE,
            f"{path}: not a private key of a kind SSH uses (Ed25519, ECDSA, RSA)",
            hint="name the private key, not its `.pub`; `ssh-keygen -t ed25519` makes one",
        ) from error


def _public_blob(path: Path) -> str:
    with contextlib.suppress(OSError, IndexError, UnicodeDecodeError):
        return Path(f"{path}.pub").read_text(encoding="utf-8").split()[1]
    return ""
