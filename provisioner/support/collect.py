"""Ask everything at a time, redact every answer, note what is missing."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from provisioner import __version__, pki, preflight
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.facts import HostFacts
from provisioner.redact import MARK, redact, redact_document
from provisioner.ssh import Connections, parallel
from provisioner.status import CONNECT_SECONDS
from provisioner.status import look as look_at_status
from provisioner.support import cluster as in_cluster
from provisioner.support import controller, machine
from provisioner.support.model import Collected, Files, Missing, Question
from provisioner.support.secrets import credentials
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki

FORMAT = 1
PACKAGES = ("ansible-core", "ansible-runner", "kubernetes", "paramiko", "cryptography")
THREADS = 32
STATUS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for. ``nodes`` are the machines to look at; ``deadline`` in seconds, for everything."""

    nodes: tuple[Node, ...]
    since: str
    deadline: float


def collect(cluster: Cluster, workspace: Workspace, options: Options) -> Collected:
    """Everything there is to know; whatever does not answer is in ``missing``. Changes nothing on a machine."""
    begin = time.monotonic()
    text = workspace.cluster_file.read_text(errors="replace")
    files: dict[str, str] = {"cluster.yaml": _clean(cluster, text)}
    missing: list[Missing] = []
    keys = _pki(workspace, missing)
    with (
        Connections(cluster, workspace, seconds=CONNECT_SECONDS) as connections,
        _api(cluster, workspace, connections, keys) as api,
    ):
        met = parallel(options.nodes, connections.connect)
        for name, result in met.items():
            if isinstance(result, ProvisionerError):
                missing.append(Missing(f"{name}: everything on the machine", _reason(result)))
        reached = [node for node in options.nodes if not isinstance(met[node.name], ProvisionerError)]
        questions = list(controller.questions(workspace))
        for node in reached:
            questions += machine.questions(cluster, workspace, connections, node, since=options.since)
        if keys is not None and api is not None:
            questions += in_cluster.api_questions(cluster, api)
            questions += [
                question
                for question in in_cluster.etcd_questions(cluster, workspace, connections, keys)
                if question.what.partition(":")[0] in {node.name for node in reached}
            ]
            questions.append(Question("status", STATUS_SECONDS, lambda _: _status(cluster, workspace, connections, keys)))
        answers = ask(questions, options.deadline - (time.monotonic() - begin), missing)
    for found in answers:
        files |= {path: _clean(cluster, text) for path, text in found.items()}
    files |= _preflight(cluster, workspace, files)
    manifest = {
        "format": FORMAT,
        "cluster": cluster.name,
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
        "since": options.since,
        "machines": [node.name for node in options.nodes],
        "versions": versions(),
        "collected": [{"path": path, "bytes": len(text.encode())} for path, text in sorted(files.items())],
        "missing": [redact_document(item.to_json()) for item in missing],
    }
    files["manifest.json"] = json.dumps(manifest, indent=2)
    return Collected(files, tuple(missing), manifest)


def versions() -> dict[str, str]:
    """Of this program and of what it stands on."""
    found = {"provisioner": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _pki(workspace: Workspace, missing: list[Missing]) -> Pki | None:
    try:
        return pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    except ProvisionerError as error:
        missing.append(Missing("API, etcd and status", _reason(error)))
        return None


@contextlib.contextmanager
def _api(cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki | None) -> Iterator[Future[ClusterApi] | None]:
    """The API's client, made while the machines are connected to: its import takes a second."""
    if keys is None:
        yield None
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        made = pool.submit(ClusterApi, cluster, workspace, connections, keys)
        try:
            yield made
        finally:
            with contextlib.suppress(Exception):
                made.result().close()


def ask(questions: list[Question], seconds: float, missing: list[Missing]) -> list[Files]:
    """Ask all, each within its own time and all within theirs."""
    end = time.monotonic() + max(1.0, seconds)
    answers: list[Files] = []
    pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="support")
    try:
        asked = {pool.submit(_one, question, end): question for question in questions}
        left = set(asked)
        while left and (now := time.monotonic()) < end:
            done, left = wait(left, timeout=end - now, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    answers.append(future.result())
                except ProvisionerError as error:
                    missing.append(Missing(asked[future].what, _reason(error)))
                except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
                    # an answer that nobody has foreseen is a gap in the bundle, and no reason to have none
                    missing.append(Missing(asked[future].what, f"{type(error).__name__}: {error}"))
        missing.extend(Missing(asked[future].what, "not answered within the deadline of the bundle") for future in left)
    finally:
        # those that still wait end when their connections are closed
        pool.shutdown(wait=False, cancel_futures=True)
    return answers


def _one(question: Question, end: float) -> Files:
    left = end - time.monotonic()
    if left < 1:
        raise ProvisionerError("not asked: the deadline of the bundle had passed")
    return question.ask(min(question.seconds, left))


def _status(cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki) -> Files:
    return {"status.json": json.dumps(look_at_status(cluster, workspace, connections, keys).to_json(), indent=2, default=str)}


def _preflight(cluster: Cluster, workspace: Workspace, files: Files) -> dict[str, str]:
    """What preflight thinks of the machines that have told their facts."""
    facts = {}
    for node in cluster.nodes:
        if text := files.get(f"machines/{node.name}/facts.json"):
            with contextlib.suppress(ProvisionerError, ValueError):
                facts[node.name] = HostFacts.from_json(json.loads(text))
    if not facts:
        return {}
    problems = preflight.check(cluster, facts, {}, cluster_id=preflight.cluster_id_of(workspace))
    return {"preflight.json": json.dumps(redact_document([problem.to_json() for problem in problems]), indent=2)}


def _clean(cluster: Cluster, text: str) -> str:
    for word in credentials(cluster):
        text = text.replace(word, MARK)
    return redact(text)


def _reason(error: ProvisionerError) -> str:
    return "; ".join(redact(line) for line in (error.message, *error.details))
