"""`provisioner node add | remove | replace`: cluster.yaml edited, and the cluster made so."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.choices import Role
from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, console, open_cluster, rewrite
from provisioner.cli.run import DeadlineOption, converge, open_session, report
from provisioner.errors import BadInput, ProvisionerError
from provisioner.leaver import DRAIN_SECONDS, Removal
from provisioner.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from provisioner.config import Cluster, Node
    from provisioner.lifecycle.nodes import Edited


@dataclass(frozen=True, slots=True)
class _Request:
    """One run of these commands.

    Args:
        read: cluster.yaml as it was read.
        edited: as it shall be written once the answer is yes; None to leave it.
        cluster: what the run makes so.
        scope: see ``Session``.
        quiet: say nothing at the end, for another run follows.
    """

    command: str
    workspace: Workspace
    read: str
    edited: Edited | None
    cluster: Cluster
    yes: bool
    as_json: bool
    deadline: float | None
    removal: Removal = field(default_factory=Removal)
    scope: frozenset[str] | None = None
    quiet: bool = False

    def about(self, *nodes: Node) -> _Request:
        """The same run about these nodes."""
        from provisioner import registry  # noqa: PLC0415
        from provisioner.lifecycle.nodes import scope_of  # noqa: PLC0415

        # a role that was taken out of cluster.yaml is on the machine still
        known = registry.read(self.workspace)
        return replace(self, scope=scope_of((*nodes, *(known[node.name] for node in nodes if node.name in known))))

    def write(self) -> None:
        """Put the edited cluster.yaml in its place.

        Raises:
            BadInput: somebody else has edited it meanwhile.
        """
        if self.edited is not None:
            rewrite(self.workspace.cluster_file, read=self.read, text=self.edited.text)


app = typer.Typer(
    help="Add, remove or replace one machine of a cluster. Editing cluster.yaml and `provisioner apply` do the same.",
    no_args_is_help=True,
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete.nodes, help="Name of the node in cluster.yaml.", show_default=False)
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Where its SSH answers: an IP address or a DNS name.", show_default=False)
]
ClusterAddressOption = Annotated[
    str | None, typer.Option("--cluster-address", help="The address that the cluster uses; default: --address.", show_default=False)
]
UnreachableOption = Annotated[
    bool,
    typer.Option(
        "--unreachable",
        help="The machine is gone for good: take it out of the cluster without moving its pods. Never for one that may still run.",
    ),
]
DrainOption = Annotated[
    float, typer.Option("--drain-timeout", metavar="SECONDS", min=1, help="Deadline for its pods to move, budgets respected.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Evict also pods that no controller makes anew: they are lost.")]
SkipVerifyOption = Annotated[bool, typer.Option("--skip-verify", help="Do not prove the machine at the end.")]


@app.command()
def add(  # noqa: PLR0917 - options, each given by name on the command line
    name: NameArgument,
    address: AddressOption = None,
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="May be given several times. Default: worker.", show_default=False)
    ] = None,
    cluster_address: ClusterAddressOption = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Label of the Node; may be given several times.")
    ] = None,
    ssh_user: Annotated[str | None, typer.Option("--ssh-user", help="Overrides ssh.user for it.", show_default=False)] = None,
    ssh_port: Annotated[int | None, typer.Option("--ssh-port", help="Overrides ssh.port for it.", show_default=False)] = None,
    ssh_key: Annotated[str | None, typer.Option("--ssh-key", help="Overrides ssh.key for it.", show_default=False)] = None,
    cluster: ClusterOption = None,
    yes: YesOption = False,
    skip_verify: SkipVerifyOption = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Add a machine: written into cluster.yaml, then made so. A node that is in cluster.yaml already is made so.

    A worker is added by connecting to it and to one control plane, and to no other machine.
    """
    from provisioner.lifecycle import nodes  # noqa: PLC0415 - keeps `--help` quick

    loaded, workspace = open_cluster(cluster)
    text = workspace.cluster_file.read_text()
    given = {
        "address": address,
        "clusterAddress": cluster_address,
        "roles": [str(one) for one in role or ()],
        "labels": _labels(label or ()),
        "sshUser": ssh_user,
        "sshPort": ssh_port,
        "sshKey": ssh_key,
    }
    if name in {node.name for node in loaded.nodes}:
        if any(given.values()):
            raise BadInput(
                f"{name} is in {workspace.cluster_file} already",
                hint=f"`provisioner node add {name}` alone brings it to what is written there; edit it there",
            )
        edited = None
    elif address is None:
        raise BadInput(
            f"{name} is not in {workspace.cluster_file}, and no address is given",
            hint=f"`provisioner node add {name} --address ADDRESS [--role worker]`",
        )
    else:
        fields = {"name": name, **given, "roles": given["roles"] or [str(Role.WORKER)]}
        edited = nodes.add(text, workspace.cluster_file, fields)
    _run(
        _Request(
            "node add", workspace, text, edited, edited.cluster if edited else loaded, yes=yes, as_json=as_json, deadline=deadline
        ).about((edited.cluster if edited else loaded).node(name)),
        skip_verify=skip_verify,
    )


@app.command()
def remove(  # noqa: PLR0917
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", autocompletion=complete.nodes, help="Names of the nodes.", show_default=False)
    ],
    cluster: ClusterOption = None,
    unreachable: UnreachableOption = False,
    drain_timeout: DrainOption = DRAIN_SECONDS,
    force: ForceOption = False,
    yes: YesOption = False,
    skip_verify: SkipVerifyOption = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Remove machines: drained, taken off etcd's member list, out of every proxy, their Nodes deleted; then wiped and forgotten.

    The machine is wiped as by `provisioner reset`: its etcd data and containers are gone afterwards.
    """
    from provisioner import registry  # noqa: PLC0415
    from provisioner.lifecycle import nodes  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    names = list(dict.fromkeys(names))
    here = {node.name: node for node in loaded.nodes}
    known = registry.read(workspace)
    for name in names:
        if name not in here and name not in known:
            known[name] = nodes.from_the_cluster(name, loaded, workspace, known, given_up=unreachable)
    written = [name for name in names if name in here]
    text = workspace.cluster_file.read_text()
    edited = nodes.remove(text, workspace.cluster_file, written) if written else None
    gone = tuple(here.get(name) or known[name] for name in names)
    removal = nodes.removal(workspace, gone, drain_timeout, unreachable=unreachable, force=force)
    request = _Request(
        "node remove",
        workspace,
        text,
        edited,
        edited.cluster if edited else loaded,
        removal=removal,
        yes=yes,
        as_json=as_json,
        deadline=deadline,
    )
    _run(request.about(*gone), skip_verify=skip_verify)


@app.command("replace")
def replace_node(  # noqa: PLR0917
    name: NameArgument,
    address: AddressOption = None,
    new_name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NEW",
            help="Another name for the new machine: it joins before the old one leaves. Without, the old one leaves first.",
            show_default=False,
        ),
    ] = None,
    cluster_address: ClusterAddressOption = None,
    cluster: ClusterOption = None,
    unreachable: UnreachableOption = False,
    drain_timeout: DrainOption = DRAIN_SECONDS,
    force: ForceOption = False,
    yes: YesOption = False,
    skip_verify: SkipVerifyOption = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Replace a machine, the first control plane as any other: by one at another address, or by the same one made anew."""
    from provisioner import registry  # noqa: PLC0415
    from provisioner.lifecycle import nodes  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    if name not in {node.name for node in loaded.nodes}:
        raise nodes.unknown(name, loaded)
    new_name = None if new_name == name else new_name
    if new_name and not address:
        raise BadInput("a machine with another name has an address of its own", hint="add `--address ADDRESS`")
    old = loaded.node(name)
    changes = {
        key: value
        for key, value in {"name": new_name, "address": address, "clusterAddress": cluster_address}.items()
        if value is not None
    }
    path = workspace.cluster_file
    if address and old.cluster_address and not cluster_address:
        raise BadInput(
            f"{name} has a cluster address of its own, {old.cluster_address}", hint="add `--cluster-address` of the new machine"
        )
    text = path.read_text()
    edited = nodes.change(text, path, name, changes) if changes else None
    removal = nodes.removal(workspace, (old,), drain_timeout, unreachable=unreachable, force=force)
    after = _Request(
        "node replace", workspace, text, edited, edited.cluster if edited else loaded, yes=yes, as_json=as_json, deadline=deadline
    )
    new = after.cluster.node(new_name or name)
    if new_name:
        _run(replace(after, removal=removal).about(old, new), skip_verify=skip_verify)
        return
    # one name for two machines: the old one is out of the cluster before the new one comes in
    before = replace(after, cluster=nodes.without(loaded, name), edited=None, removal=removal, quiet=True)
    if address:
        nodes.require_fit(after.cluster, workspace, new)
    console.print(f"first {name} at {old.address} leaves, then {name} at {new.address} joins", markup=False)
    write_atomic(workspace.replacing, f"provisioner {shlex.join(sys.argv[1:])}\n")
    try:
        _run(before.about(old), skip_verify=True)
    except ProvisionerError:
        # the old machine is part of the cluster still, as cluster.yaml says
        if name in registry.read(workspace):
            workspace.replacing.unlink()
        raise
    after.write()
    # from here on `apply` does what is left
    workspace.replacing.unlink()
    _run(replace(after, edited=None).about(new), skip_verify=skip_verify)


def _run(request: _Request, *, skip_verify: bool) -> None:
    from provisioner import phases, steps  # noqa: PLC0415

    if not request.workspace.was_used:
        raise BadInput(
            f"{request.workspace.root}: no cluster was built from here yet",
            hint="write the machine into cluster.yaml; `provisioner apply` builds the cluster",
        )
    chosen = phases.choose(skip_verify=skip_verify)
    with open_session(request.cluster, request.workspace, request.command, deadline=request.deadline) as fresh:
        session = replace(fresh, scope=request.scope, removal=request.removal)
        done, changed = converge(session, chosen, yes=request.yes, before=request.write, quiet=request.as_json)
        if request.quiet:
            steps.refuse_incomplete(done)
        else:
            report(done, changed=changed, as_json=request.as_json)


def _labels(given: Iterable[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise BadInput(f"--label {text!r} is not KEY=VALUE", hint="e.g. `--label example.com/rack=a`")
        labels[key] = value
    return labels
