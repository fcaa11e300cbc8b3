"""Running `vagrant`, and reading what it prints: which machines there are, and how SSH reaches them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import BadInput, ProvisionerError
from provisioner.patience import stretch

# Vagrant takes a few seconds to start, and asks its provider about every machine.
SECONDS = 120
RUNNING = "running"
# What providers call a machine that has been defined and is not there; libvirt and VirtualBox say the first.
ABSENT = frozenset({"not_created", "not created"})


@dataclass(frozen=True, slots=True)
class Access:
    """How one machine is reached.

    Attributes:
        name: Vagrant's name of the machine.
        host: as seen from here: 127.0.0.1 where the provider forwards a port.
        keys: private key files, in Vagrant's order; absolute.
    """

    name: str
    host: str
    port: int
    user: str
    keys: tuple[Path, ...]


def home_of(directory: Path) -> Path:
    """The directory of the Vagrantfile that is meant: VAGRANT_CWD's, else above ``directory``, else above the current one.

    Args:
        directory: where cluster.yaml is to be; need not exist.

    Raises:
        BadInput: there is none.
    """
    chosen = os.environ.get("VAGRANT_CWD")
    starts = [Path(chosen)] if chosen else [directory.absolute(), Path.cwd()]
    names = (os.environ.get("VAGRANT_VAGRANTFILE") or "Vagrantfile", "vagrantfile")
    for start in starts:
        for place in (start, *start.parents):
            if any((place / name).is_file() for name in names):
                return place
    raise BadInput(
        f"there is no Vagrantfile in {' or '.join(str(start) for start in starts)}, nor above",
        hint="go to the directory of the Vagrantfile, or set VAGRANT_CWD to it",
    )


def running(home: Path) -> tuple[list[str], list[str]]:
    """The machines that run, and those that were never made, by Vagrant's names and in its order.

    Raises:
        BadInput: Vagrant is not installed, none runs, or some are stopped.
        ProvisionerError: Vagrant failed.
    """
    states = states_of(_vagrant(home, ["status", "--machine-readable"]))
    made = [name for name, state in states.items() if state not in ABSENT]
    up = [name for name in made if states[name] == RUNNING]
    if not made:
        raise BadInput(f"{home}: none of the Vagrantfile's machines has been made", hint="`vagrant up` makes them")
    if len(up) < len(made):
        stopped = [name for name in made if name not in up]
        raise BadInput(
            "not running: " + ", ".join(f"{name} ({states[name]})" for name in stopped),
            hint=f"`vagrant up {shlex.join(stopped)}` starts, `vagrant destroy {shlex.join(stopped)}` removes",
        )
    return up, [name for name in states if name not in made]


def accesses(home: Path, names: Sequence[str]) -> list[Access]:
    """How these machines are reached.

    Raises:
        ProvisionerError: Vagrant failed, or said what cannot be followed.
    """
    found = {access.name: access for access in accesses_of(_vagrant(home, ["ssh-config", *names]))}
    if missing := [name for name in names if name not in found]:
        raise ProvisionerError(f"`vagrant ssh-config` says nothing of {', '.join(missing)}", hint="see what `vagrant status` says")
    return [found[name] for name in names]


def states_of(text: str) -> dict[str, str]:
    """Each machine's state, out of `vagrant status --machine-readable`: lines of ``time,machine,kind,data…``."""
    states: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) >= 4 and fields[1] and fields[2] == "state":
            states[fields[1]] = fields[3]
    return states


def accesses_of(text: str) -> list[Access]:
    """The machines of `vagrant ssh-config`, which prints a ssh_config(5).

    Raises:
        ProvisionerError: a machine is reached by way of a command, or lacks what every machine has.
    """
    blocks: list[tuple[str, dict[str, list[str]]]] = []
    for line in text.splitlines():
        # of ssh_config's quoting Vagrant uses double quotes alone, around names with blanks
        key, _, rest = line.strip().partition(" ")
        value = rest.strip().removeprefix('"').removesuffix('"')
        if key == "Host":
            blocks.append((value, {}))
        elif key and not key.startswith("#") and blocks:
            blocks[-1][1].setdefault(key.lower(), []).append(value)
    return [_access(name, options) for name, options in blocks]


def _access(name: str, options: Mapping[str, Sequence[str]]) -> Access:
    for way in ("proxycommand", "proxyjump"):
        if options.get(way, ["none"])[0] != "none":
            raise ProvisionerError(
                f"{name}: Vagrant reaches it by way of another machine ({options[way][0]})",
                hint="write cluster.yaml by hand, with that machine as `ssh.bastion`: `provisioner init` makes a template",
            )
    try:
        host, user, port = options["hostname"][0], options["user"][0], int(options.get("port", ["22"])[0])
    except (KeyError, ValueError):
        raise ProvisionerError(
            f"{name}: `vagrant ssh-config` gives no address, user or port for it",
            hint="only machines that `vagrant ssh` reaches with a key can be used",
        ) from None
    keys = tuple(Path(key).expanduser() for key in options.get("identityfile", ()))
    if not keys:
        raise ProvisionerError(
            f"{name}: Vagrant logs in without a key",
            hint="set `config.ssh.insert_key = true` in the Vagrantfile, and `vagrant reload`",
        )
    return Access(name, host, port, user, keys)


def _vagrant(home: Path, arguments: Sequence[str]) -> str:
    program = shutil.which("vagrant")
    if program is None:
        raise BadInput(
            "vagrant is not installed, or not on PATH",
            hint="install it with a provider (Debian: `apt-get install vagrant vagrant-libvirt`), then `vagrant up`",
        )
    shown = f"vagrant {shlex.join(arguments)}"
    environment = {**os.environ, "VAGRANT_CWD": str(home), "VAGRANT_NO_COLOR": "1", "VAGRANT_CHECKPOINT_DISABLE": "1"}
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=stretch(SECONDS),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProvisionerError(
            f"`{shown}` did not end within {error.timeout:g} s", hint="see whether `vagrant status` does, and its provider answers"
        ) from None
    except OSError as error:
        raise ProvisionerError(f"{program}: cannot be run: {error.strerror}", hint="see whether `vagrant status` works") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ProvisionerError(
            f"`{shown}` failed with exit code {done.returncode}",
            hint=f"run it in {home}, and mend what it says",
            details=tuple(said[-10:]),
        )
    return done.stdout
