"""The host keys of one cluster's machines, in the file OpenSSH reads too (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import fnmatch
import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import ProvisionerError
from provisioner.workspace import write_atomic


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key as known_hosts spells it: algorithm and base64 of the key blob."""

    kind: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        try:
            digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        except (binascii.Error, ValueError):
            return "(unreadable key)"
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def name_of(host: str, port: int) -> str:
    """The name under which OpenSSH files a machine: lower case, with the port only where it is not 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """One known_hosts file. Lines of other machines, comments and markers are kept as they are."""

    path: Path

    def keys_of(self, host: str, port: int) -> tuple[HostKey, ...]:
        """The keys on record for a machine, in the file's order; revoked ones and certificate authorities are left out.

        Raises:
            ProvisionerError: the file cannot be read.
        """
        name = name_of(host, port)
        return tuple(key for patterns, key in self._entries() if _matches(name, patterns))

    def record(self, host: str, port: int, key: HostKey) -> None:
        """Add a machine's key. Safe against other threads and processes doing the same, and against a crash.

        Raises:
            ProvisionerError: the file cannot be written.
        """
        line = f"{name_of(host, port)} {key.kind} {key.blob}\n"
        try:
            with self._locked():
                if key in self.keys_of(host, port):
                    return
                content = self._read()
                if content and not content.endswith("\n"):
                    content += "\n"
                self._write(content + line)
        except OSError as error:
            raise ProvisionerError(
                f"{self.path}: the host key of {host} cannot be recorded: {error.strerror or error}",
                hint="make the workspace's directory writable for this user, with room on its disk",
            ) from error

    def forget(self, host: str, port: int) -> None:
        """Drop a machine's keys: lines that name it and no other machine.

        Raises:
            ProvisionerError: the file cannot be written.
        """
        name = name_of(host, port)
        try:
            with self._locked():
                lines = self._read().split("\n")
                kept = [line for line in lines if not _names_only(line, name)]
                if kept != lines:
                    self._write("\n".join(kept))
        except OSError as error:
            raise ProvisionerError(
                f"{self.path}: the host key of {host} cannot be dropped: {error.strerror or error}",
                hint="make the workspace's directory writable for this user",
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # The directory is what is locked: write_atomic replaces the file itself, and a lock file would be litter.
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> str:
        # byte by byte as it is: comments may be in any encoding, and lines end in any way
        try:
            return self.path.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def _write(self, content: str) -> None:
        write_atomic(self.path, content.encode("utf-8", "surrogateescape"))

    def _entries(self) -> Iterator[tuple[list[str], HostKey]]:
        try:
            content = self._read()
        except OSError as error:
            raise ProvisionerError(
                f"{self.path}: cannot be read: {error.strerror or error}", hint="make it a file this user may read"
            ) from error
        for line in content.split("\n"):
            fields = line.split()
            if len(fields) >= 3 and not fields[0].startswith(("#", "@")):
                yield fields[0].split(","), HostKey(fields[1], fields[2])


def _names_only(line: str, name: str) -> bool:
    fields = line.split()
    if len(fields) < 3 or fields[0].startswith(("#", "@")):
        return False
    return fields[0].lower() == name or (fields[0].startswith("|1|") and _matches_hashed(name, fields[0]))


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether one line's host patterns name this machine; a negated pattern that matches settles it."""
    found = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if _matches(name, [pattern[1:]]):
                return False
        elif pattern.startswith("|1|"):
            found = found or _matches_hashed(name, pattern)
        else:
            # brackets are literal in known_hosts ("[host]:port"), a character class to fnmatch
            found = found or fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))
    return found


def _matches_hashed(name: str, pattern: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in pattern.removeprefix("|1|").split("|"))
    except (binascii.Error, ValueError):
        return False
    # HMAC-SHA1 is the format's own choice (HashKnownHosts of ssh_config(5)): it hides names, it authenticates nothing
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
