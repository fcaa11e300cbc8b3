"""The pictures of docs/race.md as SVG, and the page's tables: both out of the raw figures, so that nobody types one.

    python -m bench.compare.plots [--race FILE] [--scale FILE] [--figures FILE] [--page FILE]

Every run is a mark of its own, and the median a line. SVG written here and by no library: it carries colours for light and dark
screens, needs no font, and is the same bytes for the same figures, which a test uses. Colours are after Okabe and Ito's palette,
and each contender has a shape besides.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.compare import summary
from provisioner.workspace import write_atomic

ROOT = Path(__file__).parents[2]
RESULTS, PAGE, ASSETS = ROOT / "bench/results", ROOT / "docs/race.md", ROOT / "docs/assets"
WIDTH, LEFT, RIGHT = 760, 222, 56
ROW, GROUP_GAP, TOP, BOTTOM = 26, 40, 62, 44

STYLE = """\
.back{fill:#fff}.grid{stroke:#d8dde3}.text{fill:#1b2733}.soft{fill:#4d5b6a}
.c0{fill:#d55e00;stroke:#d55e00}.c1{fill:#0072b2;stroke:#0072b2}.c2{fill:#007a5a;stroke:#007a5a}
.mark{fill-opacity:.55;stroke-width:1.2}.median{stroke-width:3}.line{fill:none;stroke-width:2}
text{font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:13px}.title{font-size:15px;font-weight:600}
@media (prefers-color-scheme: dark){.back{fill:#161b22}.grid{stroke:#3a4450}.text{fill:#e8edf2}.soft{fill:#aab6c2}
.c0{fill:#ff9a4d;stroke:#ff9a4d}.c1{fill:#6cbcf0;stroke:#6cbcf0}.c2{fill:#3fd0a4;stroke:#3fd0a4}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a strip plot: a contender's values of one measure."""

    label: str
    series: int
    values: tuple[float, ...]


def strip_plot(title: str, unit: str, groups: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Marks on a common axis that begins at 0, in groups."""
    top_value = max((value for _, rows in groups for row in rows for value in row.values), default=1.0)
    ticks = nice_ticks(top_value)
    span = ticks[-1]
    height = TOP + sum(GROUP_GAP + ROW * len(rows) for _, rows in groups) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / span

    parts = [text(20, 30, title, "title text")]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}"/>')
        parts.append(text(x(tick), height - BOTTOM + 20, f"{tick:g}", "soft", anchor="middle"))
    parts.append(text(WIDTH - RIGHT, height - 6, unit, "soft", anchor="end"))
    y = float(TOP)
    for name, rows in groups:
        y += 18
        parts.append(text(20, y, name, "text"))
        y += GROUP_GAP - 18
        for row in rows:
            middle = y + ROW / 2 - 8
            parts.append(text(LEFT - 12, middle + 4, row.label, "soft", anchor="end"))
            # a little apart, in the order of the runs: equal values stay visible
            for number, value in enumerate(row.values):
                shift = (number - (len(row.values) - 1) / 2) * 2.4
                parts.append(mark(row.series, x(value), middle + shift))
            if row.values:
                median = statistics.median(row.values)
                ends = f'x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{middle - 11:.1f}" y2="{middle + 11:.1f}"'
                parts.append(f'<line class="median c{row.series}" {ends}/>')
                parts.append(text(x(max(row.values)) + 12, middle + 4, f"{median:.1f}", "text"))
            y += ROW
    return document(height, title, parts)


def line_plots(title: str, panels: Sequence[tuple[str, Mapping[int, Sequence[float]]]], axis: str) -> str:
    """Small plots beside each other: every run a mark, medians joined by a line; both axes begin at 0."""
    height, gap = 300, 58
    width = (WIDTH - 40 - gap * len(panels)) / len(panels)
    parts = [text(20, 30, title, "title text")]
    for number, (name, points) in enumerate(panels):
        left, top, bottom = 20 + gap + number * (width + gap) - 10, 84.0, height - 58.0
        ticks = nice_ticks(max((value for found in points.values() for value in found), default=1.0))
        most = max(points, default=1)
        parts.append(text(left - 30, 64, name, "text"))
        for tick in ticks:
            y = bottom - (bottom - top) * tick / ticks[-1]
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(text(left - 6, y + 4, f"{tick:g}", "soft", anchor="end"))
        line: list[str] = []
        for count, found in sorted(points.items()):
            x = left + width * count / most
            parts.append(text(x, bottom + 18, str(count), "soft", anchor="middle"))
            heights = [bottom - (bottom - top) * value / ticks[-1] for value in found]
            parts += [mark(1, x, y) for y in heights]
            line.append(f"{x:.1f},{statistics.median(heights):.1f}")
        parts.append(f'<polyline class="line c1" style="fill:none" points="{" ".join(line)}"/>')
        parts.append(text(left + width / 2, height - 16, axis, "soft", anchor="middle"))
    return document(height, title, parts)


def mark(series: int, x: float, y: float) -> str:
    """One run: a circle, a square or a diamond."""
    classes = f'class="mark c{series}"'
    if series == 0:
        return f'<circle {classes} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if series == 1:
        return f'<rect {classes} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path {classes} d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5-5.5 5.5-5.5-5.5z"/>'


def text(x: float, y: float, words: str, classes: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def document(height: float, title: str, parts: Sequence[str]) -> str:
    """The SVG around the parts."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(title, quote=True)}">'
    )
    back = f'<rect class="back" width="{WIDTH}" height="{height:.0f}" rx="8"/>'
    return "\n".join((head, f"<style>{STYLE}</style>", back, *parts, "</svg>", ""))


def nice_ticks(top: float) -> list[float]:
    """From 0 to beyond ``top``, four to six steps of 1, 2 or 5 times a power of ten."""
    raw = max(top, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    count = math.ceil(top / step - 1e-9) or 1
    return [round(step * number, 10) for number in range(count + 1)]


def race_picture(raw: summary.Document) -> str:
    """When all nodes are Ready, and when the checks have passed: without and with the tool's own proof."""
    present = summary.contenders(raw)
    groups = []
    for measure in ("ready", "alone", "verified"):
        rows = [
            Row(
                summary.TITLES[name],
                list(summary.TITLES).index(name),
                summary.values(raw, name, measure),
            )
            for name in present
        ]
        groups.append((summary.MEASURES[measure][0], rows))
    shape = raw["shape"]
    title = (
        f"{shape['control_planes']} control planes and {shape['workers']} workers, from booted machines: each run, and the median"
    )
    return strip_plot(title, "seconds", groups)


def scale_picture(raw: summary.Document) -> str:
    """What `plan` costs the controller."""
    panels = [(title, summary.scale_points(raw, measure)) for measure, title in summary.SCALE_PANELS.items()]
    return line_plots("provisioner plan against bare machines: each run, and the medians", panels, "machines")


def fill(page: str, name: str, content: str) -> str:
    """The page with new content between its markers.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name}: written by `make race-plots` -->", f"<!-- end of {name} -->"
    head, found, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page lacks {begin} … {end}")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def newest(kind: str) -> Path | None:
    """The newest raw figures of a kind: ``race``, ``scale`` or ``figures``."""
    found = sorted(RESULTS.glob(f"{kind}-*.json"))
    return found[-1] if found else None


def render(page: str, sources: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """The page with its tables, and the pictures by name.

    Args:
        page: its text.
        sources: ``race``, ``scale``, ``figures`` -> file of raw figures; what is missing stays as it is.
    """
    pictures: dict[str, str] = {}
    raw: dict[str, Any] = {kind: json.loads(path.read_text()) for kind, path in sources.items()}
    for kind, found in raw.items():
        page = fill(page, kind, f"{summary.TABLES[kind](found)}\n\n{summary.provenance(found, sources[kind].name)}")
    if "race" in raw:
        pictures["race-times.svg"] = race_picture(raw["race"])
    if "scale" in raw:
        pictures["race-scale.svg"] = scale_picture(raw["scale"])
    return page, pictures


def main() -> None:
    """Write pictures and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for kind in summary.TABLES:
        parser.add_argument(f"--{kind}", type=Path, default=newest(kind), help="raw figures; default: the newest")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    sources = {kind: getattr(options, kind) for kind in summary.TABLES if getattr(options, kind)}
    page, pictures = render(options.page.read_text(), sources)
    write_atomic(options.page, page, mode=0o644)
    ASSETS.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_atomic(ASSETS / name, picture, mode=0o644)
    print(
        f"{options.page.name} and {', '.join(pictures) or 'no picture'}: from {', '.join(path.name for path in sources.values())}"
    )


if __name__ == "__main__":
    main()
