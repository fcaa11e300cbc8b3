"""What the page says in words: figures, checks, certificates, versions, as values the template writes out. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.certs.model import Found, Row, State
from provisioner.errors import BadInput
from provisioner.pages.model import Page, Pod
from provisioner.pages.shapes import Tone
from provisioner.report import Outcome, Report
from provisioner.timeline import Run
from provisioner.upgrade.skew import NODE_SKEW, Version
from provisioner.words import ago

# Days; below it a certificate is a matter for today.
SOON = 30
TEN_YEARS = 3650.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures at the top."""

    label: str
    value: str
    note: str
    tone: Tone
    target: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """All certificates of one name. ``share`` of the bar, 0 to 1, on a scale of powers up to ten years."""

    name: str
    places: int
    least: float | None
    most: float | None
    share: float
    tone: Tone
    note: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A component: what shall run, and what runs where."""

    component: str
    expected: str
    running: tuple[tuple[str, tuple[str, ...]], ...]
    unknown: tuple[tuple[str, str], ...]
    tone: Tone
    note: str


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """A phase of the run, for those who read the timeline as a table."""

    name: str
    at: float
    seconds: float | None
    state: str
    share: float
    tone: Tone
    error: str


def figures(page: Page) -> tuple[Figure, ...]:
    """The top of the page."""
    status, cluster = page.status, page.cluster
    reached = sum(machine.reachable for machine in status.machines)
    servers = sum(server.ready for server in status.apiservers)
    voters = [one for one in status.etcd.members if not one.learner and one.listed is not False]
    healthy = sum(one.healthy for one in voters)
    expected = [node for node in status.nodes if node.expected]
    ready = sum(bool(node.ready) for node in expected)
    quorum = {None: "no member answers", False: "no quorum", True: f"leader {status.etcd.leader or 'not known'}"}[
        status.etcd.quorum
    ]
    return (
        Figure("Machines", f"{reached}/{len(status.machines)}", "answer over SSH", _of(reached, len(status.machines)), "machines"),
        Figure(
            "API servers",
            f"{servers}/{len(cluster.control_planes)}",
            "ready",
            _of(servers, len(cluster.control_planes)),
            "architecture",
        ),
        Figure(
            "etcd members",
            f"{healthy}/{len(voters)}",
            quorum,
            Tone.BAD if not status.etcd.quorum else _of(healthy, len(voters)),
            "etcd",
        ),
        Figure("Nodes", f"{ready}/{len(cluster.kubernetes_nodes)}", "Ready", _of(ready, len(cluster.kubernetes_nodes)), "machines")
        if status.nodes
        else Figure("Nodes", "?", status.api_error or "not known", Tone.UNKNOWN, "machines"),
        _pods_figure(page),
        _checks_figure(page),
        _certificates_figure(page),
        _backups_figure(page),
    )


def _of(some: int, all_of_them: int) -> Tone:
    return Tone.OK if some == all_of_them else Tone.BAD if not some else Tone.WARN


def _pods_figure(page: Page) -> Figure:
    if page.pods is None:
        return Figure("Pods", "?", page.pods_error or "not known", Tone.UNKNOWN, "pods")
    alive = [pod for pod in page.pods if not pod.done]
    waiting = sum(not pod.ready for pod in alive)
    return Figure(
        "Pods", str(len(alive)), f"{waiting} not ready" if waiting else "all ready", Tone.WARN if waiting else Tone.OK, "pods"
    )


def _checks_figure(page: Page) -> Figure:
    report = page.report
    if report is None:
        return Figure("Checks", "none", "verify has not run yet", Tone.UNKNOWN, "checks")
    passed = report.count(Outcome.PASSED)
    tone = Tone.BAD if not report.passed else Tone.WARN if stale(page) else Tone.OK
    age = (page.made - report.started).total_seconds() - report.seconds
    return Figure(
        "Checks",
        f"{passed}/{len(report.results)}",
        f"passed, {'those named' if report.only else f'level {report.level}'}, {_before(age)} ago",
        tone,
        "checks",
    )


def _certificates_figure(page: Page) -> Figure:
    found = page.certificates
    if found is None or not found.rows:
        return Figure("Certificates", "?", page.certificates_error or "not known", Tone.UNKNOWN, "certificates")
    days = [left for row in found.rows if (left := row.days_left(found.now)) is not None]
    least = f"{math.floor(min(days))} d" if days else "?"
    if found.wrong:
        return Figure("Certificates", least, f"to the first end; {len(found.wrong)} need care", Tone.BAD, "certificates")
    ending = found.ending(SOON)
    tone = Tone.WARN if ending or found.silent else Tone.OK
    return Figure(
        "Certificates", least, "to the first one's end" + (", of those known" if found.silent else ""), tone, "certificates"
    )


def _backups_figure(page: Page) -> Figure:
    last = page.status.last_backup
    if page.cluster.backups.schedule is None:
        return Figure("Backups", "none", "cluster.yaml has no schedule", Tone.UNKNOWN)
    if last is None:
        return Figure("Backups", "none", "none went all the way yet", Tone.WARN)
    return Figure("Backups", ago(last.age or 0.0), f"since the last good one, on {last.node}", Tone.OK)


# --- checks --------------------------------------------------------------------------------------------------------

OUTCOMES = {Outcome.PASSED: (Tone.OK, "passed"), Outcome.FAILED: (Tone.BAD, "failed"), Outcome.BLOCKED: (Tone.UNKNOWN, "not tried")}


def longest(report: Report | None) -> float:
    """Seconds of the slowest check."""
    return max((result.seconds for result in report.results), default=0.0) if report else 0.0


def stale(page: Page) -> str:
    """Why the last verify may not tell how the cluster is now; "" where it may."""
    report, run = page.report, page.run
    if report is None:
        return ""
    age = (page.made - report.started).total_seconds() - report.seconds
    if run is not None and run.began + run.seconds > report.started.timestamp() + report.seconds + 5:
        return f"older than the last run of `{run.command}`"
    if report.passed and page.status.problems:
        return f"{_before(age)} older than the problems above"
    return f"{ago(age)} old" if age >= 3600 else ""


def _before(seconds: float) -> str:
    return f"{max(0, round(seconds))} s" if seconds < 120 else ago(seconds)


# --- certificates --------------------------------------------------------------------------------------------------


def kinds(found: Found | None) -> tuple[Kind, ...]:
    """Certificates by name, the one that ends first before the others."""
    if found is None:
        return ()
    grouped: dict[str, list[Row]] = {}
    for row in found.rows:
        grouped.setdefault(row.name, []).append(row)
    return tuple(
        sorted(
            (_kind(name, rows, found) for name, rows in grouped.items()),
            key=lambda one: (one.tone is not Tone.BAD, one.least or 0, one.name),
        )
    )


def _kind(name: str, rows: Sequence[Row], found: Found) -> Kind:
    days = [left for row in rows if (left := row.days_left(found.now)) is not None]
    wrong = [row for row in rows if row.state.is_wrong]
    due = any(row.state is State.DUE for row in rows)
    least, most = (min(days), max(days)) if days else (None, None)
    note = ", ".join(sorted({row.state.value for row in wrong}))
    tone = Tone.BAD if wrong else Tone.WARN if due or (least is not None and least < SOON) else Tone.OK
    share = 0.0 if least is None else min(1.0, math.log1p(max(0.0, least)) / math.log1p(TEN_YEARS))
    return Kind(name, len(rows), least, most, round(share, 3), tone, note or ("due: the next apply renews it" if due else ""))


def tone_of(row: Row) -> Tone:
    """Of one certificate."""
    return Tone.BAD if row.state.is_wrong else Tone.WARN if row.state is State.DUE else Tone.OK


# --- versions ------------------------------------------------------------------------------------------------------


def versions(page: Page) -> tuple[VersionRow, ...]:
    """A row for each component that any machine carries."""
    names = list(dict.fromkeys(name for one in page.versions for name in one.components))
    names += [name for name in page.expected if name not in names]
    return tuple(_version_row(page, name) for name in names)


def _version_row(page: Page, name: str) -> VersionRow:
    running: dict[str, list[str]] = {}
    unknown: list[tuple[str, str]] = []
    for one in page.versions:
        if one.error and _carries(page, one.machine, name):
            unknown.append((one.machine, one.error))
        elif version := one.components.get(name):
            running.setdefault(version, []).append(one.machine)
        elif name in one.errors:
            unknown.append((one.machine, one.errors[name]))
    expected = page.expected.get(name, "")
    others = [version for version in running if expected and _plain(version) != _plain(expected)]
    if others:
        tone, note = Tone.WARN, "not what goes with cluster.yaml"
    elif len(running) > 1:
        tone, note = Tone.WARN, "versions differ"
    else:
        tone, note = (Tone.UNKNOWN, "") if unknown or not running else (Tone.OK, "")
    ordered = tuple(sorted(((version, tuple(machines)) for version, machines in running.items()), key=lambda one: -len(one[1])))
    return VersionRow(name, expected, ordered, tuple(unknown), tone, note)


def _carries(page: Page, machine: str, name: str) -> bool:
    """Whether a machine that does not answer is one that should run it."""
    from provisioner.components import components_of  # noqa: PLC0415 - it reads every role

    return any(component.name == name for component in components_of(page.cluster, page.cluster.node(machine)))


def _plain(version: str) -> str:
    return version.removeprefix("v").partition("+")[0]


def skew(page: Page) -> tuple[Tone, str]:
    """Kubelets against API servers, by the version skew policy."""
    servers, kubelets = _parsed(page, "kube-apiserver"), _parsed(page, "kubelet")
    if not servers or not kubelets:
        return Tone.UNKNOWN, "skew between kubelets and API servers: not known"
    newest, oldest = max(servers), min(servers)
    if max(kubelets) > oldest:
        return Tone.BAD, f"a kubelet ({max(kubelets)}) is newer than an API server ({oldest}), which Kubernetes does not support"
    behind = newest.minor - min(kubelets).minor
    if behind > NODE_SKEW:
        return Tone.BAD, f"a kubelet is {behind} minor versions behind; at most {NODE_SKEW} are supported"
    if newest == oldest == min(kubelets):
        return Tone.OK, "API servers and kubelets that answer are of one version: no skew"
    return Tone.WARN, f"API servers {oldest} to {newest}, kubelets {min(kubelets)} to {max(kubelets)}: within the skew policy"


def _parsed(page: Page, component: str) -> list[Version]:
    found = []
    for one in page.versions:
        try:
            found.append(Version.of(one.components.get(component, "")))
        except (ValueError, BadInput):
            continue
    return found


# --- the run -------------------------------------------------------------------------------------------------------


def phases(run: Run) -> tuple[PhaseRow, ...]:
    """The timeline as a table."""
    longest_one = max((phase.seconds or 0.0 for phase in run.phases), default=0.0) or 1.0
    return tuple(
        PhaseRow(
            phase.name,
            phase.began - run.began,
            phase.seconds,
            phase.state,
            round((phase.seconds or 0.0) / longest_one, 3),
            Tone.OK if phase.state == "done" else Tone.BAD,
            phase.error,
        )
        for phase in run.phases
    )


def slowest(run: Run, number: int = 8) -> tuple[tuple[str, str, float, str], ...]:
    """The tasks that took longest on any host: role and task, host, seconds, how it ended."""
    found: dict[tuple[str, str], tuple[str, str, float, str]] = {}
    for task in run.tasks:
        key = (task.role, task.task)
        if task.status != "skipped" and (key not in found or found[key][2] < task.seconds):
            found[key] = (f"{task.role}: {task.task}" if task.role else task.task, task.host, task.seconds, task.status)
    return tuple(sorted(found.values(), key=lambda one: -one[2])[:number])


def tasks_of(run: Run) -> tuple[tuple[str, int, int, int, int], ...]:
    """For each host: tasks executed, changed, skipped, failed."""
    hosts = sorted({task.host for task in run.tasks})
    rows = []
    for host in hosts:
        own = [task for task in run.tasks if task.host == host]
        skipped = sum(task.status == "skipped" for task in own)
        rows.append(
            (host, len(own) - skipped, sum(task.status == "changed" for task in own), skipped, sum(task.failed for task in own))
        )
    return tuple(rows)


# --- pods ----------------------------------------------------------------------------------------------------------


def pods_by_node(page: Page) -> tuple[tuple[str, tuple[Pod, ...]], ...]:
    """Pods that have not ended, by node in cluster.yaml's order; those without a node last."""
    alive = [pod for pod in page.pods or () if not pod.done]
    nodes = [node.name for node in page.cluster.kubernetes_nodes]
    rest = sorted({pod.node for pod in alive} - set(nodes))
    return tuple((name, tuple(sorted((pod for pod in alive if pod.node == name), key=_order))) for name in (*nodes, *rest))


def _order(pod: Pod) -> tuple[bool, str, str]:
    return pod.ready, pod.namespace, pod.name


def verdict(page: Page) -> tuple[Tone, str]:
    """The one sentence at the top."""
    problems = len(page.status.problems)
    failed = 0 if page.report is None else len(page.report.results) - page.report.count(Outcome.PASSED)
    wrong = len(page.certificates.wrong) if page.certificates else 0
    parts = [
        *([f"{problems} problem{'s' * (problems > 1)}"] if problems else []),
        *([f"{failed} check{'s' * (failed > 1)} of the last verify not passed"] if failed else []),
        *([f"{wrong} certificate{'s' * (wrong > 1)} need{'s' * (wrong == 1)} care"] if wrong else []),
    ]
    if parts:
        return Tone.BAD, "; ".join(parts)
    if page.report is None:
        return Tone.WARN, "No problem is seen, and nothing is proved: verify has not run"
    if page.report.only:
        return Tone.WARN, f"No problem; of all checks these alone were tried, and passed: {', '.join(page.report.only)}"
    return Tone.OK, f"No problem; all {len(page.report.results)} checks of the last verify passed"
