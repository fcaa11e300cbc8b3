"""What one machine is asked: the journals of our units, the files we placed that are no secret, and how the machine is."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from cryptography import x509

from provisioner.components import Component, components_of
from provisioner.config import Cluster, Node
from provisioner.desired import load_host
from provisioner.errors import ProvisionerError
from provisioner.facts import look
from provisioner.journal_reader import Question as JournalQuestion
from provisioner.journal_reader import parse, refusal
from provisioner.render.layout import ROLES
from provisioner.ssh import Completed, Connections
from provisioner.support.model import Files, Question
from provisioner.workspace import Workspace

# Of each journal, and of each other answer.
LINES = 5000
BYTES = 2 << 20
# Of all the files of a machine together.
FILES_BYTES = 8 << 20
# Seconds.
QUICK = 15.0
SLOW = 40.0


@dataclass(frozen=True, slots=True)
class Command:
    """A command whose output is an answer; ``codes`` besides 0 that are no failure."""

    path: str
    what: str
    line: str
    codes: tuple[int, ...] = ()


def commands(units: tuple[str, ...], *, kubernetes: bool) -> Iterator[Command]:
    """What is run on a machine; changes nothing there."""
    names = shlex.join(units)
    # a unit that is down is what a bundle is for: 3, and 4 for one that is not there
    yield Command("systemctl-status.txt", "systemctl status", f"systemctl status --no-pager --full --lines=0 {names}", (3, 4))
    yield Command("systemctl-cat.txt", "unit files", f"systemctl cat --no-pager {names}", (1,))
    yield Command("systemctl-failed.txt", "failed units", "systemctl list-units --no-pager --failed")
    yield Command("kernel.log", "the kernel's log", f"journalctl --no-pager --dmesg --lines={LINES // 5}", (1,))
    yield Command("ip-address.txt", "addresses", "ip -details address show")
    yield Command("ip-route.txt", "routes", "ip route show table all")
    yield Command("ip-neighbour.txt", "neighbours", "ip neighbour show; bridge fdb show 2>/dev/null || :")
    yield Command("sockets.txt", "listening sockets", "ss --listening --tcp --udp --numeric --processes")
    yield Command("nft.txt", "packet filter", "nft --terse list ruleset")
    yield Command("mounts.txt", "mounts", "cat /proc/self/mounts")
    yield Command("df.txt", "disks", "df --human-readable --print-type; echo; df --inodes", (1,))
    yield Command("memory.txt", "memory", "free --mebi; echo; cat /proc/pressure/* 2>/dev/null || :")
    yield Command("uname.txt", "kernel and system", "uname --all; uptime; cat /etc/os-release")
    yield Command("versions.txt", "versions of running binaries", _versions(units))
    if kubernetes:
        yield Command("crictl-pods.txt", "pods of containerd", "/usr/local/bin/crictl pods")
        yield Command("crictl-ps.txt", "containers of containerd", "/usr/local/bin/crictl ps --all")
        yield Command("crictl-images.txt", "images of containerd", "/usr/local/bin/crictl images --digests")


def _versions(units: tuple[str, ...]) -> str:
    """What runs, not what lies on the disk: asked of the processes' own executables."""
    return (
        f"for unit in {shlex.join(units)}; do "
        'pid=$(systemctl show --property=MainPID --value "$unit"); '
        'if [ "${pid:-0}" = 0 ]; then echo "$unit: no process"; continue; fi; '
        'echo "$unit: $(readlink "/proc/$pid/exe"): '
        '$(timeout 10 "/proc/$pid/exe" --version 2>&1 | head -n 3 | tr "\\n" " ")"; done'
    )


def questions(cluster: Cluster, workspace: Workspace, connections: Connections, node: Node, *, since: str) -> Iterator[Question]:
    """Everything that one machine is asked."""
    carried = components_of(cluster, node)
    for component in carried:
        yield Question(f"{node.name}: journal of {component.name}", SLOW, partial(_journal, connections, node, component, since))
    for command in commands(tuple(one.unit for one in carried), kubernetes=node.is_kubernetes_node):
        yield Question(f"{node.name}: {command.what}", QUICK, partial(_run, connections, node, command))
    paths = placed(cluster, workspace, node)
    yield Question(f"{node.name}: configuration files", QUICK, partial(_read, connections, node, paths))
    yield Question(f"{node.name}: facts", SLOW, lambda _seconds: _facts(cluster, connections, node))


def placed(cluster: Cluster, workspace: Workspace, node: Node) -> tuple[str, ...]:
    """Files of the desired state that are no secret: as last rendered, else those that the node's roles always have."""
    try:
        state = load_host(workspace.rendered, node.name)
    except (OSError, ValueError, KeyError, TypeError):
        return tuple(file.path for role in ROLES if role.applies(cluster, node) for file in role.files)
    secret = {file.path for file in state.files if file.secret}
    return tuple(dict.fromkeys(file.path for file in state.files if file.path not in secret))


def _journal(connections: Connections, node: Node, component: Component, since: str, seconds: float) -> Files:
    question = JournalQuestion((component.unit,), lines=LINES, since=since)
    done = connections.run(node, f"{question.command()} | head -c {4 * BYTES}", timeout=seconds)
    if done.complaint and not done.stdout:
        raise refusal(node.name, done.complaint, question)
    lines = [entry.text() for entry in parse(done.stdout.splitlines())]
    return {f"machines/{node.name}/journal/{component.name}.log": _end("\n".join(lines))}


def _run(connections: Connections, node: Node, command: Command, seconds: float) -> Files:
    # PIPESTATUS is bash's: the exit code goes another way round the pipe
    line = f"export LC_ALL=C; {{ {{ {{ {command.line}; }} 2>&1; echo $? >&3; }} | head -c {BYTES}; }} 3>&2"
    done = connections.run(node, line, timeout=seconds)
    code = done.complaint.splitlines()[-1:] or ["?"]
    if code[0] not in {"0", *(str(other) for other in command.codes)}:
        said = " ".join(done.text.split())[:200]
        raise ProvisionerError(f"exit code {code[0]}: {said}")
    return {f"machines/{node.name}/{command.path}": done.text}


def _read(connections: Connections, node: Node, paths: tuple[str, ...], seconds: float) -> Files:
    names = "".join(f"{path.lstrip('/')}\0" for path in paths)
    done = connections.run(
        node,
        f"tar --create --file=- --directory=/ --ignore-failed-read --null --files-from=- | head -c {FILES_BYTES}",
        stdin=names.encode(),
        timeout=seconds,
    )
    return unpacked(node, paths, done)


def unpacked(node: Node, paths: tuple[str, ...], done: Completed) -> Files:
    """Files out of the tar that a machine sent; of certificates only what they say."""
    asked = {path.lstrip("/") for path in paths}
    files: dict[str, str] = {}
    certificates: dict[str, object] = {}
    odd: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            for member in archive:
                # what lies there under our name but is a link, say, may lead to anything
                if member.name not in asked or not member.isreg():
                    odd.append(f"{member.name}: no regular file")
                    continue
                raw = archive.extractfile(member)
                text = raw.read().decode(errors="replace") if raw else ""
                asked.discard(member.name)
                if "-----BEGIN CERTIFICATE-----" in text:
                    certificates[f"/{member.name}"] = described(text)
                else:
                    files[f"machines/{node.name}/files/{PurePosixPath(member.name)}"] = text
    except (tarfile.TarError, EOFError) as error:
        odd.append(f"the archive that the machine sent broke off: {error}")
    if not files and not certificates:
        raise ProvisionerError(done.complaint[-300:] or "; ".join(odd) or "it sent nothing")
    return {
        **files,
        f"machines/{node.name}/certificates.json": json.dumps(certificates, indent=2),
        f"machines/{node.name}/files.txt": "\n".join(
            [*(f"/{name}: not there" for name in sorted(asked)), *odd, f"{len(files) + len(certificates)} files are there"]
        ),
    }


def described(text: str) -> object:
    """What the certificates of a PEM file say."""
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        return [
            {
                "subject": certificate.subject.rfc4514_string(),
                "issuer": certificate.issuer.rfc4514_string(),
                "serial": f"{certificate.serial_number:x}",
                "notBefore": certificate.not_valid_before_utc.isoformat(),
                "notAfter": certificate.not_valid_after_utc.isoformat(),
                "names": _names(certificate),
            }
            for certificate in found
        ]
    except ValueError as error:
        return f"no certificate: {error}"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in extension.value]


def _facts(cluster: Cluster, connections: Connections, node: Node) -> Files:
    return {f"machines/{node.name}/facts.json": json.dumps(look(cluster, node, connections).to_json(), indent=2, default=str)}


def _end(text: str) -> str:
    """The last part of a text that is too long."""
    return text if len(text) <= BYTES else "(cut off)\n" + text[-BYTES:].partition("\n")[2]
