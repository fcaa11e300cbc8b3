"""Medians, ratios and tables out of the raw figures. Pure: a document in, values or text out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

TITLES = {"kubeadm": "kubeadm", "toolkit": "provisioner, bare machines", "toolkit-placed": "provisioner, files in place"}
# what is measured: name -> (title, where in a run)
MEASURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "api": ("the API answers", ("milestones", "api_s")),
    "ready": ("all nodes Ready", ("milestones", "all_ready_s")),
    # a sum: kubeadm proves nothing by itself, and the toolkit's own proof comes between its two terms
    "alone": ("all nodes Ready, plus the time of the common checks", ()),
    "commands": ("the tool's own commands done", ("milestones", "commands_done_s")),
    "verified": ("verified by the common checks after them", ("verified_s",)),
    "checks": ("time of the common checks", ("checks_s",)),
    "machines_cpu": ("CPU seconds of the five machines", ("machines_cpu_s",)),
    "controller_cpu": ("CPU seconds of the controller", ("controller_cpu_s",)),
}


def contenders(document: Document) -> tuple[str, ...]:
    """Who took part, in the order of ``TITLES``."""
    present = {run["contender"] for run in document["runs"]}
    return tuple(name for name in TITLES if name in present)


def values(document: Document, contender: str, measure: str) -> tuple[float, ...]:
    """One measure of a contender's runs that did not fail, in their order."""
    found: list[float] = []
    for run in document["runs"]:
        if run["contender"] != contender or run["error"]:
            continue
        if measure == "alone":
            found.append(float(run["milestones"]["all_ready_s"]) + float(run["checks_s"]))
            continue
        value: Any = run
        for key in MEASURES[measure][1]:
            value = value[key]
        if value is not None:
            found.append(float(value))
    return tuple(found)


def failures(document: Document, contender: str) -> int:
    """How many of a contender's runs failed."""
    return sum(1 for run in document["runs"] if run["contender"] == contender and run["error"])


def ratio(document: Document, contender: str, measure: str, to: str = "kubeadm") -> float | None:
    """Median of ``to`` over the contender's: 2.0 is twice as fast; None where one of them has no value."""
    mine, other = values(document, contender, measure), values(document, to, measure)
    if not mine or not other or not statistics.median(mine):
        return None
    return statistics.median(other) / statistics.median(mine)


def cell(found: Sequence[float]) -> str:
    """Median, least and greatest."""
    if not found:
        return "none"
    return f"**{statistics.median(found):.1f}** ({min(found):.1f} to {max(found):.1f})"


def race_table(document: Document) -> str:
    """The table of the race, in Markdown."""
    present = contenders(document)
    others = [name for name in present if name != "kubeadm"] if "kubeadm" in present else []
    head = ["seconds from booted machines: median (least to greatest)", *(TITLES[name] for name in present)]
    head += [f"kubeadm / {TITLES[name]}" for name in others]
    rows = []
    for measure, (title, _) in MEASURES.items():
        ratios = [ratio(document, name, measure) for name in others]
        shown = [f"{value:.2f}" if value is not None else "" for value in ratios]
        rows.append([title, *(cell(values(document, name, measure)) for name in present), *shown])
    counts = [f"{len(values(document, name, 'verified'))}; {failures(document, name)}" for name in present]
    rows.append(["runs that went through; that failed", *counts, *("" for _ in others)])
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SCALE_PANELS: Mapping[str, str] = {"wall_s": "wall time, s", "cpu_s": "CPU, s", "memory_mib": "memory, MiB"}


def scale_points(document: Document, measure: str) -> dict[int, list[float]]:
    """One measure of ``plan``: machines -> its runs."""
    found: dict[int, list[float]] = {}
    for run in document["runs"]:
        found.setdefault(int(run["machines"]), []).append(float(run[measure]))
    return found


def scale_table(document: Document) -> str:
    """What the controller spends, in Markdown."""
    points = {measure: scale_points(document, measure) for measure in SCALE_PANELS}
    rows = [[str(count), *(cell(points[measure][count]) for measure in SCALE_PANELS)] for count in sorted(points["wall_s"])]
    return table(["machines", *SCALE_PANELS.values()], rows)


_FIGURES: Mapping[str, str] = {
    "apply_s": "`apply` on bare machines, its verification included",
    "second_apply_s": "`apply` again, nothing to do",
    "add_worker_s": "`node add` of a worker, until it is proved",
    "remove_worker_s": "`node remove`: drained, out of the cluster, wiped",
    "snapshot_s": "`etcd snapshot`",
    "restore_s": "`etcd restore`, its verification included",
}


def figures_table(document: Document) -> str:
    """Times and tasks of a day's commands, in Markdown."""
    runs = document["runs"]
    rows = [[title, cell([float(run[name]) for run in runs])] for name, title in _FIGURES.items()]
    if upgrade := document["upgrade"]:
        rows.append([f"`upgrade` under load ({upgrade['drill']}; one run, `{upgrade['file']}`)", f"**{upgrade['seconds']:.1f}**"])
    text = table(["seconds: median (least to greatest)", f"{len(runs)} run{'s' * (len(runs) != 1)}"], rows)
    return f"{text}\n\n{tasks_table(runs[-1])}"


def tasks_table(run: Mapping[str, Any]) -> str:
    """Ansible tasks per kind of machine, in Markdown."""
    commands = {"apply": "`apply` on bare machines", "second_apply": "`apply` again", "add_worker": "`node add`: the new machine"}
    rows = []
    for name, title in commands.items():
        for host, counts in sorted(run[f"{name}_tasks"].items()):
            if host in ("cp-1", "worker-1", "added"):
                numbers = [str(counts.get(key, 0)) for key in ("executed", "changed", "skipped")]
                rows.append([title, host, *numbers])
    return table(["Ansible tasks", "machine", "executed", "changed", "skipped"], rows)


TABLES: Mapping[str, Callable[[Document], str]] = {"race": race_table, "scale": scale_table, "figures": figures_table}


def provenance(document: Document, file: str) -> str:
    """Where and when figures were measured, in one line."""
    machine = document["machine"]
    loads = [run["load_before"] for run in document["runs"]]
    load = f"{min(loads):.1f} to {max(loads):.1f}"
    return (
        f"Measured {document['time'][:10]} at {document['code']}, {machine['cpus']} cores, {machine['memory_mib']} MiB, "
        f"kernel {machine['kernel']}; load average before a run {load}. Raw figures: `bench/results/{file}`."
    )
