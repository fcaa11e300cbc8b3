"""The user's kubeconfig as a file: which one it is, the lock that kubectl takes, the copy, the replacement."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import BadInput
from provisioner.kubeconfig_merge import Result
from provisioner.wait import wait_until
from provisioner.workspace import write_atomic


@dataclass(frozen=True, slots=True)
class Changed:
    """What was done to a file. ``backup`` is the copy of the former content, where one was made."""

    path: Path
    result: Result
    backup: Path | None = None


def default_path() -> Path:
    """The first file of $KUBECONFIG, else ~/.kube/config: where kubectl would write."""
    named = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return Path(named[0]) if named else Path.home() / ".kube" / "config"


def change(path: Path, edit: Callable[[str], Result], *, seconds: float) -> Changed:
    """Change a kubeconfig under kubectl's lock, atomically, 0600; a copy is kept where something that is not ours changes.

    Args:
        path: the file; need not exist.
        edit: from its content ("" where there is none) to the new one.
        seconds: how long another writer is waited for.

    Raises:
        BadInput: the file cannot be read, or ``edit`` refuses it; it is as it was.
        WaitTimeout: somebody else holds the lock.
    """
    # a link stays a link: dotfiles are often links into a repository
    real = path.resolve()
    with locked(path, seconds=seconds):
        before = _text(path)
        try:
            result = edit(before or "")
        except BadInput as error:
            raise BadInput(f"{path}: {error.message}", hint=error.hint, details=error.details) from None
        if not result.changed or (before is None and not result.names):
            _close(real)
            return Changed(path, result)
        backup = None
        if before is not None and result.foreign:
            backup = path.with_name(f"{path.name}.before-provisioner-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%f}")
            write_atomic(backup, before)
        owner = real.stat() if before is not None else None
        write_atomic(real, result.text)
        if owner is not None and os.geteuid() == 0 and owner.st_uid != 0:
            os.chown(real, owner.st_uid, owner.st_gid)  # through sudo it is still the user's
        return Changed(path, result, backup)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float) -> Iterator[None]:
    """client-go's lock: FILE.lock, made by whoever writes and removed afterwards (k8s.io/client-go/tools/clientcmd/config.go).

    Raises:
        WaitTimeout: it is there all the time.
    """
    lock = path.with_name(f"{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = wait_until(
        f"{path}: another program is writing it",
        lambda: os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600),
        seconds=seconds,
        every=0.1,
        retry_on=(FileExistsError,),
        hint=f"if none is (a killed kubectl leaves its lock behind), remove {lock}",
    )
    try:
        yield
    finally:
        os.close(handle)
        lock.unlink(missing_ok=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: no text", hint="name a kubeconfig with --kubeconfig") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", hint="name a kubeconfig with --kubeconfig") from None


def _close(path: Path) -> None:
    """It holds a key of ours: nobody else is to read it."""
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
