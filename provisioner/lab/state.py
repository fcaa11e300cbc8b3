"""The labs of this host: one directory each under the state root, written before anything is made, so that `down` always finds it.

The root is ``/var/lib/provisioner/lab``, or ``$PROVISIONER_LAB_DIR``. Locks are advisory file locks, which the kernel drops with
their holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from provisioner.errors import BadInput, LabError
from provisioner.lab import network
from provisioner.lab.spec import POOL, Lab, Shape, check_name, free_network
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import write_atomic

STATE = "state.json"
LOCK_SECONDS = 600


def root() -> Path:
    """The state root."""
    return Path(os.environ.get("PROVISIONER_LAB_DIR") or "/var/lib/provisioner/lab")


def home(name: str) -> Path:
    """Directory of one lab.

    Raises:
        BadInput: the name is no DNS label (and might lead out of the root).
    """
    check_name(name)
    return root() / name


def find(name: str) -> Lab | None:
    """The lab of that name, or None.

    Raises:
        LabError: its state file cannot be read.
    """
    directory = home(name)
    try:
        return Lab.from_json((directory / STATE).read_text(), directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(
            f"{directory / STATE}: {error}",
            hint="restore the file, or bring the lab down with the version of provisioner that made it",
        ) from error


def names() -> tuple[str, ...]:
    """Names of the labs of this host, sorted."""
    return tuple(sorted(path.parent.name for path in root().glob(f"*/{STATE}")))


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def acquire() -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the holder before may have removed the file that was opened here: then this lock guards nothing
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        raise NotYet("another `provisioner lab` command is at work")

    handle = wait_until(what, acquire, seconds=LOCK_SECONDS, every=0.1)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """One command at a time per lab.

    Raises:
        WaitTimeout: another command held it for ten minutes.
    """
    check_name(name)
    with _locked(root() / f".{name}.lock", f"lab {name} to be free"):
        yield


def allocate(name: str, shape: Shape, directory: Path, image: Path, *, wanted: IPv4Network | None = None) -> Lab:
    """Give a new lab its network and write its state; no two labs get the same one.

    Args:
        wanted: the only network that will do, because a cluster.yaml names addresses in it.

    Raises:
        BadInput: no network is free, or not the wanted one.
    """
    pool = (wanted,) if wanted else tuple(POOL.subnets(new_prefix=24))
    with _locked(root() / ".networks.lock", "the list of networks to be free"):
        lab = Lab(
            name=name,
            shape=shape,
            network=free_network(_taken(), network.host_networks(), pool),
            home=home(name),
            directory=directory,
            image=image,
        )
        save(lab)
        return lab


def _taken() -> tuple[IPv4Network, ...]:
    """Networks of all labs. An unreadable state stops the allocation: its network could be given twice."""
    found = [find(name) for name in names()]
    return tuple(lab.network for lab in found if lab is not None)


def save(lab: Lab, *, cluster_sha256: str | None = None) -> Lab:
    """Write the state file, atomically."""
    changed = lab if cluster_sha256 is None else replace(lab, cluster_sha256=cluster_sha256)
    write_atomic(lab.home / STATE, changed.to_json())
    return changed


def forget(lab: Lab) -> None:
    """Delete the lab's files, the state last: a `down` that is cut short can be repeated."""
    if lab.home.parent != root() or lab.home.name != lab.name:
        raise BadInput(
            f"{lab.home}: not below {root()}, left alone", hint="set PROVISIONER_LAB_DIR to what it was when the lab was made"
        )
    if not lab.home.exists():
        return
    for path in lab.home.iterdir():
        if path.name != STATE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (lab.home / STATE).unlink(missing_ok=True)
    lab.home.rmdir()


def clear_remains(name: str) -> None:
    """Delete what a crash left of a lab's directory before its state was written or after it was deleted."""
    if not (home(name) / STATE).exists():
        shutil.rmtree(home(name), ignore_errors=True)


def release(action: Callable[[], None]) -> None:
    """Run an action if no lab is left on this host, while none can be made."""
    with _locked(root() / ".networks.lock", "the list of networks to be free"):
        if not names():
            action()
