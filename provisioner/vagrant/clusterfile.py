"""From Vagrant's machines to cluster.yaml: everything in order, and the file's content."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner import init
from provisioner.errors import BadInput
from provisioner.load import parse, refusal
from provisioner.ssh.known_hosts import HostKey, KnownHosts
from provisioner.vagrant import guests, tool
from provisioner.vagrant.plan import Plan, plan
from provisioner.workspace import Workspace

CLUSTER = "vagrant"


@dataclass(frozen=True, slots=True)
class Found:
    """What `init --from-vagrant` has learnt.

    Attributes:
        home: the directory of the Vagrantfile.
        text: of cluster.yaml.
        host_keys: by address and port.
        absent: machines of the Vagrantfile's that were never made.
    """

    home: Path
    plan: Plan
    text: str
    host_keys: Mapping[tuple[str, int], HostKey]
    absent: tuple[str, ...]


def find(directory: Path, *, control_planes: Sequence[str] = ()) -> Found:
    """Ask Vagrant, then its machines.

    Args:
        directory: where cluster.yaml is to be; file names in it are relative to this one where that is shorter.
        control_planes: machines that shall be control planes, where names do not tell.

    Raises:
        BadInput: no Vagrantfile, no Vagrant, no machine that runs, no roles, no shared network.
        ProvisionerError: Vagrant or a machine fails.
    """
    home = tool.home_of(directory)
    names, absent = tool.running(home)
    accesses = tool.accesses(home, names)
    told, keys = guests.ask(accesses)
    made = plan(accesses, told, control_planes=control_planes)
    text = init.render_content(content_of(made, home, directory))
    # what Vagrant's machines are called or where they are may be what a rule refuses: say so before anything is written. With keys
    # named in full: a relative name leads nowhere from a directory that is not there yet
    loaded = parse(init.render_content(content_of(made, home, Path("/"))), directory / init.FILE_NAME)
    if loaded.cluster is None:
        problem = refusal(loaded)
        raise BadInput("Vagrant's machines do not make a valid cluster", hint="change the Vagrantfile", details=problem.details)
    host_keys = {(access.host, access.port): keys[access.name] for access in accesses}
    return Found(home, made, text, host_keys, tuple(absent))


def content_of(made: Plan, home: Path, directory: Path) -> init.Content:
    """The values of cluster.yaml: what all machines have in common once, under `ssh`."""
    keys = [key_name(machine.key, home, directory) for machine in made.machines]
    users, ports = [machine.user for machine in made.machines], [machine.port for machine in made.machines]
    # the first one's user, where they differ: a user there must be
    user, port, key = users[0], ports[0] if len(set(ports)) == 1 else 0, init.common(keys)
    machines = tuple(
        init.Machine(
            name=machine.name,
            address=machine.host,
            roles=tuple(role.value for role in machine.roles),
            cluster_address=str(machine.cluster_address or ""),
            ssh_port=0 if machine.port == (port or 22) else machine.port,
            ssh_user="" if machine.user == user else machine.user,
            ssh_key="" if key else name,
        )
        for machine, name in zip(made.machines, keys, strict=True)
    )
    return init.Content(
        machines,
        init.Login(user, 0 if port == 22 else port, key),
        name=CLUSTER,
        emulated=made.emulated,
        origin="Written by `provisioner init --from-vagrant`: the machines of a Vagrantfile. With --force it is written anew.",
    )


def key_name(key: Path, home: Path, directory: Path) -> str:
    """How cluster.yaml names a key: relative where both are below the Vagrantfile's directory, which may be moved; else in full."""
    top, here = home.resolve(), directory.resolve()
    if key.is_relative_to(home) and (here == top or here.is_relative_to(top)):
        return os.path.relpath(top / key.relative_to(home), here)
    return str(key)


def renew_host_keys(found: Found, cluster_file: Path) -> tuple[str, ...]:
    """Where the workspace knows another host key of a machine, put Vagrant's machine in its place: it was made anew.

    Returns:
        the addresses that this happened to.
    """
    known = KnownHosts(Workspace.of(cluster_file, CLUSTER).known_hosts)
    renewed = []
    for (host, port), key in found.host_keys.items():
        on_record = known.keys_of(host, port)
        if on_record and key not in on_record:
            known.forget(host, port)
            known.record(host, port, key)
            renewed.append(host if port == 22 else f"{host}:{port}")
    return tuple(renewed)
