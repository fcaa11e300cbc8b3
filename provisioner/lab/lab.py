"""Labs come and go: up and down, idempotent both, whatever state an earlier run or a crash left."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic

from provisioner.errors import BadInput, Interrupted, LabError, ProvisionerError
from provisioner.lab import cgroups, clusterfile, host, image, keys, network, nspawn, state
from provisioner.lab.spec import Lab, Machine, Shape, check_name
from provisioner.workspace import Workspace, write_atomic

Progress = Callable[[str], None]

# 5 machines take a few seconds; 100 on a busy two-core host take minutes
BOOT_SECONDS = 300.0
THREADS = 16
LOGIN_KEY = "id_ed25519"
LIMITS_RECORD = ".limits.json"


def silent(_: str) -> None:
    """Progress nobody asked for."""


def names() -> tuple[str, ...]:
    """The labs of this host."""
    return state.names()


def get(name: str) -> Lab:
    """The lab of that name.

    Raises:
        BadInput: there is none.
    """
    check_name(name)
    lab = state.find(name)
    if lab is None:
        known = ", ".join(state.names())
        raise BadInput(f"there is no lab {name!r}", hint=f"there is: {known}" if known else "`provisioner lab up` makes one")
    return lab


def up(
    name: str,
    control_planes: int = 1,
    workers: int = 2,
    etcd_only: int = 0,
    *,
    stacked: bool = True,
    spares: int = 0,
    directory: Path | None = None,
    kubernetes: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Make what is missing of a lab and wait until SSH answers on every machine. A second call with the same numbers boots what is
    stopped and leaves the rest alone.

    Args:
        name: a DNS label; the cluster's name as well.
        control_planes: machines with an apiserver, and with an etcd member where ``stacked``.
        workers: machines for pods; with none, the control planes are workers too.
        etcd_only: machines with nothing but an etcd member.
        stacked: whether control planes hold etcd members.
        spares: machines beside the cluster, in known_hosts but not in cluster.yaml, to be added to it later.
        directory: where cluster.yaml, the SSH key and known_hosts go; default ``./workspace/NAME``.
        kubernetes: the version that a new cluster.yaml names; one that is there stays as it is.
        progress: is told what happens, a line at a time.

    Returns:
        The path of cluster.yaml.

    Raises:
        BadInput: numbers that make no cluster, or a lab of that name with other numbers or another directory.
        LabError: the host cannot run it, or a machine does not come up.
        Interrupted: Ctrl-C.
    """
    check_name(name)
    shape = Shape(control_planes, workers, etcd_only, stacked, spares)
    shape.check()
    host.check()
    groups = cgroups.detect()
    place = (directory or Path("workspace") / name).absolute()
    try:
        with state.lock(name):
            lab = _matching(name, shape, place) or _allocate(name, shape, place, progress)
            host.raise_limits(state.root() / LIMITS_RECORD)
            _boot(_prepare(lab, kubernetes), groups, progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"lab {name}: interrupted",
            hint=f"run the command again to go on, or `provisioner lab down --name {name}` to remove what is there",
        ) from None
    return place / clusterfile.NAME


def _boot(lab: Lab, groups: cgroups.Cgroups, progress: Progress) -> None:
    """Start what does not run and wait for SSH everywhere."""
    started = monotonic()
    network.create_switch(lab)
    stopped = [one for one in lab.machines if not nspawn.running(lab, one, groups)]
    if stopped:
        progress(f"lab {lab.name}: booting {len(stopped)} machine{'s' * (len(stopped) != 1)}")
    cancelled = Event()

    def boot(one: Machine) -> None:
        if one in stopped:
            nspawn.start(lab, one, groups)
        nspawn.wait_for_ssh(lab, one, groups, seconds=BOOT_SECONDS, cancelled=cancelled)

    each(lab.machines, boot, cancelled)
    progress(f"lab {lab.name}: SSH answers on {len(lab.machines)} machines after {monotonic() - started:.1f} s")


def _matching(name: str, shape: Shape, place: Path) -> Lab | None:
    lab = state.find(name)
    if lab is None:
        return None
    if lab.shape != shape:
        raise BadInput(
            f"lab {name} exists with {lab.shape}; asked for {shape}",
            hint=f"use another --name, or `provisioner lab down --name {name}` first",
        )
    if lab.directory != place:
        raise BadInput(
            f"lab {name} exists and belongs to {lab.directory}, not to {place}",
            hint=f"run the command where that directory is ./workspace/{name}, use another --name, or bring the lab down first",
        )
    return lab


def _allocate(name: str, shape: Shape, place: Path, progress: Progress) -> Lab:
    cluster_file = place / clusterfile.NAME
    wanted = clusterfile.network_of(cluster_file, name, shape) if cluster_file.exists() else None
    if not image.path().is_dir():
        progress("making the machines' base image, once (about half a minute)")
    lab = state.allocate(name, shape, place, image.ensure(), wanted=wanted)
    progress(f"lab {name}: {shape}, network {lab.network}")
    return lab


def _prepare(lab: Lab, kubernetes: str | None = None) -> Lab:
    """Write the machines' disks and the workspace; what is there already stays as it is."""
    login = keys.ensure(lab.home / LOGIN_KEY, f"lab-{lab.name}")
    try:
        hosts = {one.name: nspawn.prepare(lab, one, login) for one in lab.machines}
    except OSError as error:
        raise LabError(f"cannot write the machines' disks: {error}", hint=f"check the file system of {lab.home}") from error
    lab.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for suffix in ("", ".pub"):
        source = lab.home / (LOGIN_KEY + suffix)
        write_atomic(lab.directory / source.name, source.read_bytes(), mode=0o644 if suffix else 0o600)
    cluster_file = lab.directory / clusterfile.NAME
    known_hosts = Workspace.of(cluster_file, lab.name).known_hosts
    write_atomic(known_hosts, "".join(keys.known_hosts_line(str(one.address), hosts[one.name]) for one in lab.machines))
    if not cluster_file.exists():
        text = clusterfile.render(lab, LOGIN_KEY, kubernetes)
        lab = state.save(lab, cluster_sha256=hashlib.sha256(text.encode()).hexdigest())
        write_atomic(cluster_file, text, mode=0o644)
    return lab


def each(machines: Sequence[Machine], function: Callable[[Machine], None], cancelled: Event) -> None:
    """Run a function for every machine in threads; when some fail, one error names them all.

    Args:
        cancelled: set when this thread is interrupted, so that the others' waits end and none outlives the call.
    """
    pool = ThreadPoolExecutor(max_workers=THREADS)
    try:
        futures = [pool.submit(function, one) for one in machines]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
    except BaseException:
        cancelled.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    for error in errors:
        if len(errors) == 1 or not isinstance(error, ProvisionerError):
            raise error
    if errors:
        failures = [error for error in errors if isinstance(error, ProvisionerError)]
        details = tuple(line for error in failures for line in (error.message, *(f"  {line}" for line in error.details)))
        raise LabError(f"{len(failures)} machines failed", hint=failures[0].hint, details=details)


def down(name: str, *, keep_workspace: bool = False, progress: Progress = silent) -> bool:
    """Take a lab away with all it made on this host, whatever state a crash left it in.

    The workspace directory goes too, unless its cluster.yaml was edited or is another's: then only the key and known_hosts go.

    Args:
        name: the lab.
        keep_workspace: leave the directory with cluster.yaml alone.
        progress: is told what happens.

    Returns:
        Whether there was such a lab.

    Raises:
        WaitTimeout: a process does not die.
    """
    check_name(name)
    host.check_root()
    groups = cgroups.detect()
    with state.lock(name):
        lab = state.find(name)
        if lab is None:
            state.clear_remains(name)
            return False
        progress(f"lab {name}: stopping {len(lab.machines)} machines")
        each(lab.machines, lambda one: nspawn.stop(lab, one, groups), Event())
        network.delete_switch(lab)
        if not keep_workspace:
            _forget_workspace(lab)
        state.forget(lab)
    state.release(lambda: host.restore_limits(state.root() / LIMITS_RECORD))
    progress(f"lab {name}: gone")
    return True


def _forget_workspace(lab: Lab) -> None:
    if _is_standard(lab) and not edited(lab):
        shutil.rmtree(lab.directory, ignore_errors=True)
        return
    for path in _made_files(lab):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        lab.directory.rmdir()


def _is_standard(lab: Lab) -> bool:
    """Whether the directory is ``workspace/NAME``, which holds nothing but this cluster's files."""
    return lab.directory.name == lab.name and lab.directory.parent.name == "workspace"


def _made_files(lab: Lab) -> tuple[Path, ...]:
    """What `up` wrote into the workspace and nobody changed."""
    cluster_file = lab.directory / clusterfile.NAME
    known_hosts = Workspace.of(cluster_file, lab.name).known_hosts
    keys_made = (lab.directory / LOGIN_KEY, lab.directory / f"{LOGIN_KEY}.pub", known_hosts)
    return keys_made if edited(lab) else (*keys_made, cluster_file)


def edited(lab: Lab) -> bool:
    """Whether the lab's cluster.yaml is no longer the one that `up` wrote."""
    path = lab.directory / clusterfile.NAME
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != lab.cluster_sha256


def doomed(lab: Lab) -> str:
    """What `down` deletes of the lab's workspace, for the question before it."""
    if _is_standard(lab) and not edited(lab):
        return f"{lab.directory} with all in it"
    return ", ".join(str(path) for path in _made_files(lab))
