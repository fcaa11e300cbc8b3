"""`provisioner lab`: local machines to build clusters on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from provisioner.cli import complete
from provisioner.cli.common import JsonOption, YesOption, console, output, print_json
from provisioner.errors import BadInput, LabError
from provisioner.terminal import wide

app = typer.Typer(help="Local machines (systemd-nspawn, Debian 12) to build clusters on.", no_args_is_help=True)

NameOption = Annotated[
    str | None,
    typer.Option("--name", "-n", autocompletion=complete.labs, help="The lab; default: the only one there is.", show_default=False),
]


@contextmanager
def telling(text: str) -> Iterator[Callable[[object], None]]:
    """What happens, a line each; and while the last of it goes on, for how long."""
    from provisioner.display import waiting  # noqa: PLC0415 - keeps `--help` quick

    with waiting(console, text) as say:

        def tell(line: object) -> None:
            console.print(str(line), markup=False)
            say(str(line))

        yield tell


def _only(name: str | None) -> str:
    """The lab that is meant when none is named."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    if name is not None:
        return name
    names = lab.names()
    if len(names) == 1:
        return names[0]
    if names:
        raise BadInput(f"there is more than one lab: {', '.join(names)}", hint=f"name one: `--name {names[0]}`")
    raise BadInput("there is no lab", hint="`provisioner lab up` makes one")


@app.command()
def up(
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the lab and of the cluster.")] = "lab",
    control_planes: Annotated[int, typer.Option("--control-planes", help="Machines with an apiserver.")] = 1,
    workers: Annotated[int, typer.Option("--workers", help="Machines for pods; 0: the control planes take them.")] = 2,
    etcd_only: Annotated[int, typer.Option("--etcd-only", help="Machines with an etcd member and nothing else.")] = 0,
    stacked: Annotated[bool, typer.Option("--stacked/--external-etcd", help="Whether control planes hold etcd members.")] = True,
    spares: Annotated[int, typer.Option("--spares", help="Machines beside the cluster, to be added to it later.")] = 0,
) -> None:
    """Boot machines and write ./workspace/NAME/cluster.yaml for them. Run again, it boots what is stopped."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    with telling(f"lab {name}") as tell:
        path = lab.up(name, control_planes, workers, etcd_only, stacked=stacked, spares=spares, progress=tell)
    output.print(os.path.relpath(path))


@app.command()
def down(
    name: NameOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lab of this host.")] = False,
    keep_workspace: Annotated[bool, typer.Option("--keep-workspace", help="Leave the directory with cluster.yaml.")] = False,
    yes: YesOption = False,
) -> None:
    """Destroy machines, their disks and their network. Also clears what a crash left; harmless when there is nothing."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    if everything and name is not None:
        raise BadInput("--all and --name exclude each other", hint="leave one of them out")
    names = lab.names() if everything or name is None else (name,)
    if not everything and name is None and len(names) > 1:
        _only(None)
    found = [lab.get(one) for one in names if one in lab.names()]
    for one in found:
        console.print(f"lab {one.name}: {len(one.machines)} machines and their disks ({', '.join(m.name for m in one.machines)})")
        if not keep_workspace:
            console.print(f"  and {lab.doomed(one)}")
    if found and not yes:
        typer.confirm("Destroy?", abort=True, err=True)
    with telling("taking down") as tell:
        gone = [one for one in names if lab.down(one, keep_workspace=keep_workspace, progress=tell)]
    if not gone:
        console.print(f"no lab {name}" if name else "no lab")


@app.command("load-image")
def load_image(
    archives: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What `docker save` or `podman save` wrote.")],
    name: NameOption = None,
) -> None:
    """Put container images on every machine of a lab that runs pods: they have no way out to a registry."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    with telling("loading images") as tell:
        lab.load_images(_only(name), archives, progress=tell)


@app.command()
def status(name: NameOption = None, as_json: JsonOption = False) -> None:
    """What every machine does: running, SSH, memory. Without --name: of every lab."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    found = [lab.status(one) for one in ((name,) if name else lab.names())]
    if as_json:
        print_json({"labs": [one.to_json() for one in found]})
        return
    if not found:
        console.print("no lab")
    for one in found:
        table = Table("machine", "roles", "address", "state", "ssh", "memory", title=f"lab {one.name} ({one.cluster_file})")
        for machine in one.machines:
            memory = "" if machine.memory is None else f"{machine.memory / 2**20:.0f} MiB"
            ssh = "answers" if machine.ssh else "link cut" if machine.running and not machine.link else "-"
            table.add_row(machine.name, ",".join(machine.roles) or "spare", machine.address, machine.state, ssh, memory)
        wide().print(table)


# what follows the machine's name is the command's own, options included
@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    machine: Annotated[str, typer.Argument(autocompletion=complete.lab_machines, help="The machine, e.g. cp-1.")],
    command: Annotated[list[str] | None, typer.Argument(help="What to run; default: a login shell.")] = None,
    name: NameOption = None,
) -> None:
    """Log in to a machine with OpenSSH, the lab's key and its known host keys."""
    from provisioner import lab  # noqa: PLC0415 - keeps `--help` and completion quick

    argv = lab.ssh_command(_only(name), machine, command or ())
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except FileNotFoundError:
        raise LabError("ssh: command not found", hint="install an OpenSSH client") from None
