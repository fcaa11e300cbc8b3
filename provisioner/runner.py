"""The only import of ansible_runner: runs playbooks, hands every event on, stops cleanly on Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from provisioner.errors import STOPPED, ApplyError, Interrupted
from provisioner.events import Tally, TaskStep
from provisioner.patience import stretch
from provisioner.share import ANSIBLE_CFG, PLAYBOOKS

MAX_FORKS = 50
# Ansible's own default for a connection, in seconds
CONNECT_SECONDS = 10
# AES-GCM first: several times as fast as OpenSSH's default on processors with AES instructions, and as good.
SSH_ARGS = "-o ControlMaster=auto -o ControlPersist=30s -o Compression=no -o Ciphers=^aes128-gcm@openssh.com"


def plays_of(playbook: str) -> tuple[str, ...]:
    """Names of the plays in a playbook, by which events tell where they are from."""
    return tuple(play["name"] for play in yaml.safe_load((PLAYBOOKS / f"{playbook}.yml").read_text()))


@contextmanager
def control_sockets(record: Path | None = None) -> Iterator[str]:
    """A directory for SSH's control sockets: short, for socket paths may have 107 characters, private, and of one run.

    Args:
        record: a link to it, for whoever comes after a run that was killed.
    """
    with tempfile.TemporaryDirectory(prefix="pv-", ignore_cleanup_errors=True) as directory:
        if record:
            record.unlink(missing_ok=True)
            record.symlink_to(directory)
        try:
            yield directory
        finally:
            if record:
                record.unlink(missing_ok=True)


def play(
    playbooks: Sequence[str],
    *,
    inventory: Path,
    variables: Mapping[str, object],
    log: Path,
    sockets: str,
    hosts: int,
    on_step: Callable[[TaskStep], None],
    check: bool = False,
) -> Tally:
    """Run playbooks, one after the other, in one Ansible process.

    Args:
        playbooks: stems of files in playbooks/.
        inventory: the inventory file.
        variables: extra variables; never written to disk by the runner's own cache.
        log: directory of this run's log (0700).
        sockets: directory for SSH's control sockets.
        hosts: number of hosts, for the number of forks.
        on_step: told of each task's start, and of its end on each host.
        check: Ansible's check mode.

    Raises:
        Interrupted: Ctrl-C; Ansible was stopped, and every host is in a state that the next apply takes up.
        ApplyError: Ansible itself could not run.
    """
    import ansible_runner  # noqa: PLC0415 - half a second that only a run of plays should pay

    log.mkdir(parents=True, exist_ok=True, mode=0o700)
    tally = Tally(on_step)
    with _interruptible() as interrupted:
        result: Any = ansible_runner.run(
            private_data_dir=str(log),
            artifact_dir=str(log / "ansible"),
            ident="-".join(playbooks),
            playbook=[{"name": f"Phase {name}", "import_playbook": str(PLAYBOOKS / f"{name}.yml")} for name in playbooks],
            inventory=str(inventory),
            extravars=dict(variables),
            envvars=_environment(log, sockets),
            forks=min(max(hosts, 1), MAX_FORKS),
            cmdline="--check" if check else None,
            event_handler=tally.take,
            cancel_callback=interrupted.is_set,
            settings={"suppress_env_files": True, "pexpect_timeout": 1, "idle_timeout": 0, "job_timeout": 0},
            suppress_env_files=True,
            quiet=True,
        )
    # the runner keeps the whole environment of this process there; that may hold what belongs in no log
    (log / "ansible" / "-".join(playbooks) / "command").unlink(missing_ok=True)
    if interrupted.is_set():
        # how it goes on is known by whoever runs this
        raise Interrupted(STOPPED)
    if result.status not in ("successful", "failed") or (result.status == "failed" and not tally.failures):
        output = (log / "ansible" / "-".join(playbooks) / "stdout").read_text(errors="replace").splitlines()
        raise ApplyError(
            f"Ansible ended with {result.status} (exit code {result.rc})", details=tuple(output[-15:]), hint=f"see {log}"
        )
    return tally


def _environment(log: Path, sockets: str) -> dict[str, str]:
    # ansible-playbook of this very installation, also where its directory is not on PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        "PATH": path,
        "ANSIBLE_CONFIG": str(ANSIBLE_CFG),
        "ANSIBLE_HOME": str(log.parent.parent / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(log / "tmp"),
        # ansible-runner switches this off unless it is told; the machines' keys are on record, and are checked
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
        "ANSIBLE_SSH_ARGS": SSH_ARGS,
        "ANSIBLE_TIMEOUT": str(math.ceil(stretch(CONNECT_SECONDS))),
    }


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the runner polls; a second one does what it always did."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: FrameType | None) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
