"""`provisioner logs`: the journal of our units on a machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, console, find_node, open_cluster, print_json
from provisioner.errors import ExitCode, ProvisionerError

if TYPE_CHECKING:
    from provisioner.config import Cluster, Node
    from provisioner.journal_reader import Entry, Question
    from provisioner.workspace import Workspace

# Seconds for a whole look at one journal, where --deadline does not say otherwise.
SECONDS = 60.0


class Form(StrEnum):
    """How entries are printed."""

    SHORT = "short"
    JSON = "json"


def logs(  # noqa: PLR0917 - typer calls it by names
    node: Annotated[
        str,
        typer.Argument(metavar="NODE", autocompletion=complete.nodes, help="Name of the node in cluster.yaml.", show_default=False),
    ],
    component: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMPONENT...]",
            autocompletion=complete.components,
            help="e.g. etcd, kubelet; default: all that the node carries.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1_000_000, help="The newest so many.")] = 100,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="2h, yesterday, '2030-05-17 12:30'.", show_default=False)
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on, until Ctrl-C.")] = False,
    grep: Annotated[
        str,
        typer.Option("--grep", metavar="REGEX", help="Only what matches this Perl regular expression.", show_default=False),
    ] = "",
    priority: Annotated[
        str,
        typer.Option("--priority", "-p", metavar="LEVEL", help="Only this level and worse: err, warning.", show_default=False),
    ] = "",
    form: Annotated[Form, typer.Option("--output", "-o", help="How to print entries.")] = Form.SHORT,
    as_json: JsonOption = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline", metavar="SECONDS", min=1, help="Give up then (60 s); with --follow: end then.", show_default=False
        ),
    ] = None,
) -> None:
    """The journal of the cluster's components on a machine, oldest line first. For pods there is kubectl.

    With --json one document, with --json and --follow one object a line.
    """
    from provisioner.components import choose  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner.journal_reader import Question, check_priority  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    machine = find_node(loaded, workspace, node)
    chosen = choose(loaded, machine, component or ())
    check_priority(priority)
    question = Question(tuple(one.unit for one in chosen), lines, since, grep, priority, follow)
    as_json = as_json or form is Form.JSON
    if follow:
        _follow(loaded, workspace, machine, question, as_json=as_json, deadline=deadline)
        return
    entries = _read(loaded, workspace, machine, question, deadline or SECONDS)
    if as_json:
        components = [one.name for one in chosen]
        print_json({"node": machine.name, "components": components, "entries": [entry.to_json() for entry in entries]})
        return
    for entry in entries:
        sys.stdout.write(entry.text() + "\n")
    if not entries:
        console.print(f"no such lines in {machine.name}'s journal of {', '.join(one.name for one in chosen)}")


def _read(cluster: Cluster, workspace: Workspace, node: Node, question: Question, seconds: float) -> Sequence[Entry]:
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.journal_reader import ordered, parse, refusal  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    with Connections(cluster, workspace) as connections, waiting(console, f"reading {node.name}'s journal"):
        done = connections.run(node, question.command(), timeout=seconds)
    # with --grep, 1 without a word means that nothing matched
    if done.code != 0 and not (question.grep and done.code == 1 and not done.complaint):
        raise refusal(node.name, done.complaint, question)
    return ordered(parse(done.stdout.splitlines()))


def _follow(
    cluster: Cluster, workspace: Workspace, node: Node, question: Question, *, as_json: bool, deadline: float | None
) -> None:
    """Print entries as they come. ssh(1) carries them: it ends with this process, and journalctl there with it."""
    from provisioner.cli.machines import ssh_words  # noqa: PLC0415
    from provisioner.journal_reader import parse, refusal  # noqa: PLC0415
    from provisioner.ssh.target import target_of  # noqa: PLC0415

    remote = question.command()
    if target_of(cluster, workspace, node).user != "root":
        remote = f"sudo -n -- {remote}"
    words = ["-T", *ssh_words(cluster, workspace, node)[1:], remote]
    show: Callable[[Entry], str] = (lambda entry: json.dumps(entry.to_json())) if as_json else (lambda entry: entry.text())
    expired = threading.Event()
    complaints: list[bytes] = []
    try:
        process = subprocess.Popen(
            ["ssh", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ProvisionerError(
            f"ssh cannot be run: {error.strerror}", hint="install the OpenSSH client (`apt-get install openssh-client`)"
        ) from error

    def expire() -> None:
        expired.set()
        process.terminate()

    clock = threading.Timer(deadline or 0, expire)
    clock.daemon = True
    assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - both are pipes, see above
    stderr = process.stderr
    reader = threading.Thread(target=lambda: complaints.append(stderr.read()), daemon=True)
    reader.start()
    try:
        if deadline:
            clock.start()
        for entry in parse(process.stdout):
            sys.stdout.write(show(entry) + "\n")
            sys.stdout.flush()
        code = process.wait()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        clock.cancel()
        process.terminate()
        process.wait()
    if expired.is_set():
        return
    reader.join()
    complaint = b"".join(complaints).decode(errors="replace").strip()
    if code == 255:  # ssh's own, whatever became of the command
        raise ProvisionerError(
            f"{node.name}: the connection ended: {complaint or 'without a word'}", hint="`provisioner status` says what is wrong"
        )
    raise refusal(node.name, complaint, question)
