"""The run's timeline: its phases, and what each host did when. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from provisioner.pages.shapes import Mark, Path, Picture, Rect, Shape, Words, short
from provisioner.timeline import PhaseTime, Run, Task

WIDTH = 1120.0
GUTTER = 128.0
LANE = 24.0
HOST = 20.0
# Hosts that are drawn; of more, those that failed and those that were busy longest.
MOST = 60
COLOURS = 12


@dataclass(frozen=True, slots=True)
class Span:
    """What a host did in one play, without a gap worth showing."""

    host: str
    stage: str
    play: str
    began: float
    ended: float
    changed: int
    failed: tuple[str, ...]


def spans_of(run: Run, stages: Mapping[str, str]) -> tuple[Span, ...]:
    """The tasks of each host, those of one play together; skipped ones are nothing that was done."""
    grouped: dict[tuple[str, str, str], list[Task]] = {}
    for task in run.tasks:
        if task.status != "skipped":
            grouped.setdefault((task.host, stages.get(task.play, task.play), task.play), []).append(task)
    spans = []
    for (host, stage, play), tasks in grouped.items():
        part: list[Task] = []
        for task in sorted(tasks, key=lambda one: one.began):
            # the same play once more, later in the run (an upgrade's waves)
            if part and task.began - max(one.began + one.seconds for one in part) > 2:
                spans.append(_span(host, stage, play, part, run.began))
                part = []
            part.append(task)
        spans.append(_span(host, stage, play, part, run.began))
    return tuple(sorted(spans, key=lambda one: (one.began, one.host)))


def _span(host: str, stage: str, play: str, tasks: Sequence[Task], origin: float) -> Span:
    return Span(
        host,
        stage,
        play,
        tasks[0].began - origin,
        max(task.began + task.seconds for task in tasks) - origin,
        sum(task.status == "changed" for task in tasks),
        tuple(f"{task.task}: {task.status}" for task in tasks if task.failed),
    )


def stages_in(run: Run, spans: Sequence[Span]) -> tuple[str, ...]:
    """Phases and playbooks by their names, in the order in which they began: the n-th has the n-th colour."""
    begun = [(phase.began - run.began, phase.name) for phase in run.phases] + [(span.began, span.stage) for span in spans]
    return tuple(dict.fromkeys(name for _, name in sorted(begun)))


def colour(stage: str, order: Sequence[str]) -> str:
    """Its class."""
    return f"p{order.index(stage) % COLOURS}"


def gantt(run: Run, stages: Mapping[str, str], hosts: Sequence[str]) -> Picture:
    """The picture.

    Args:
        run: what was recorded.
        stages: play of a playbook to the playbook.
        hosts: machines in the order in which they are shown; others that the run knew come behind them.
    """
    spans = spans_of(run, stages)
    order = stages_in(run, spans)
    busy: dict[str, float] = {}
    for span in spans:
        busy[span.host] = busy.get(span.host, 0) + span.ended - span.began + (1e6 if span.failed else 0)
    shown = [host for host in hosts if host in busy] + sorted(host for host in busy if host not in hosts)
    if len(shown) > MOST:
        most = set(sorted(shown, key=lambda host: -busy[host])[:MOST])
        shown = [host for host in shown if host in most]
    length = max(run.seconds, 0.1)
    scale = (WIDTH - GUTTER - 12) / length
    lanes = _lanes(run)
    height = 26 + len(lanes) * LANE + 8 + len(shown) * HOST + 6
    shapes: list[Shape] = [*_axis(length, scale, height)]
    y = 26.0
    for index, lane in enumerate(lanes):
        if index == 0:
            shapes.append(Words(GUTTER - 10, y + 15, "phases", "label strong", "end"))
        for phase in lane:
            shapes += _phase(run, phase, order, scale, y)
        y += LANE
    y += 8
    for host in shown:
        shapes.append(Words(GUTTER - 10, y + 13, short(host, 17), "label", "end"))
        shapes.append(Path(f"M{GUTTER:g} {y + HOST - 0.5:g}H{WIDTH - 12:g}", "rule"))
        for span in (one for one in spans if one.host == host):
            shapes += _bar(span, order, scale, y)
        y += HOST
    hidden = len(busy) - len(shown)
    desc = f"{run.command}, {run.seconds:.0f} s, {len(run.phases)} phases on {len(busy)} machines." + (
        f" {hidden} more machines are not drawn." if hidden else ""
    )
    return Picture("timeline", f"Timeline of {run.command}", desc, WIDTH, height, tuple(shapes), "wide")


def _lanes(run: Run) -> list[list[PhaseTime]]:
    """Phases that ran beside each other, below each other."""
    lanes: list[list[PhaseTime]] = []
    for phase in run.phases:
        end_of = [_end(run, lane[-1]) for lane in lanes]
        free = next((index for index, end in enumerate(end_of) if end <= phase.began + 0.02), None)
        if free is None:
            lanes.append([phase])
        else:
            lanes[free].append(phase)
    return lanes


def _end(run: Run, phase: PhaseTime) -> float:
    return run.began + run.seconds if phase.seconds is None else phase.began + phase.seconds


def _phase(run: Run, phase: PhaseTime, order: Sequence[str], scale: float, y: float) -> Iterator[Shape]:
    x = GUTTER + (phase.began - run.began) * scale
    width = max(2.0, (_end(run, phase) - phase.began) * scale)
    took = f"{phase.seconds:.1f} s" if phase.seconds is not None else "its end is not on record"
    title = f"{phase.name}: {took}" + (f", {phase.state}: {phase.error}" if phase.state != "done" else "")
    bad = "" if phase.state == "done" else " bad"
    yield Rect(x, y + 2, width - 1, LANE - 4, f"bar {colour(phase.name, order)}{bad}", title, 3)
    if phase.state != "done":
        yield Mark(x + min(width / 2, 12), y + LANE / 2, "cross", 10)
    name = phase.name.replace("_", " ")
    if width > 7 * len(name) + 12:
        yield Words(x + width / 2, y + 16, name, "inside", "middle")


def _bar(span: Span, order: Sequence[str], scale: float, y: float) -> Iterator[Shape]:
    x, width = GUTTER + span.began * scale, max(2.0, (span.ended - span.began) * scale)
    what = "; ".join(span.failed) or (f"{span.changed} tasks changed something" if span.changed else "nothing to change")
    title = f"{span.host}: {span.play}: {span.ended - span.began:.1f} s from {span.began:.1f} s on; {what}"
    css = f"bar {colour(span.stage, order)}" + (" bad" if span.failed else "" if span.changed else " idle")
    yield Rect(x, y + 4, width - 0.6, HOST - 8, css, title, 2)
    if span.failed:
        yield Mark(x + width / 2, y + HOST / 2, "cross", 10)


def _axis(length: float, scale: float, height: float) -> Iterator[Shape]:
    rough = length / 8
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    for index in range(int(length / step) + 1):
        x = GUTTER + index * step * scale
        yield Path(f"M{x:g} 20V{height - 6:g}", "grid")
        yield Words(x, 14, f"{index * step:g} s", "soft", "middle" if index else "start")
