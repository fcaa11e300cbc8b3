"""From the value to one HTML file: everything escaped, nothing fetched, no script."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from provisioner import __version__
from provisioner.certs.model import by_days
from provisioner.pages import tables
from provisioner.pages.architecture import architecture, facts_of, ways_of_pods
from provisioner.pages.gantt import colour, gantt, spans_of, stages_in
from provisioner.pages.model import Page
from provisioner.pages.pairs import matrix
from provisioner.pages.shapes import Mark, Rect, Tone
from provisioner.pages.shapes import Path as Line
from provisioner.report import printable

TEMPLATES = Path(__file__).parent / "templates"
# Characters that turn the direction of what follows: a node's words could show something else than they are.
_TURNS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def render(page: Page) -> str:
    """The whole document."""
    run = page.run
    pods = None if page.report is None else next((one for one in page.report.results if one.id == "pod-to-pod"), None)
    css = _css()
    order = stages_in(run, spans_of(run, page.stages)) if run else ()
    names = [node.name for node in page.cluster.kubernetes_nodes]
    tried = set(pods.pairs.nodes) if pods and pods.pairs else set()
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            css=Markup(css),  # noqa: S704 - our own file
            digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
            version=__version__,
            verdict=tables.verdict(page),
            figures=tables.figures(page),
            map=architecture(page),
            pods_check=pods,
            matrix=matrix([*names, *sorted(tried - set(names))], pods.pairs if pods else None),
            timeline=gantt(run, page.stages, [node.name for node in page.cluster.nodes]) if run and run.phases else None,
            legend=[(name.replace("_", " "), colour(name, order)) for name in order],
            certificates=by_days(page.certificates.rows, page.certificates.now) if page.certificates else (),
            tables=tables,
            ways=ways_of_pods(page),
            unwell=[one for one in page.status.machines if facts_of(page, page.cluster.node(one.name)).tone is not Tone.OK],
            Tone=Tone,
        )
    )
    return "\n".join(line for line in (line.rstrip() for line in text.splitlines()) if line) + "\n"


@cache
def _css() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8").strip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters |= {"number": _number, "seconds": _seconds, "moment": _moment, "days": _days, "plural": _plural}
    environment.tests |= {"rect": _is(Rect), "line": _is(Line), "mark": _is(Mark)}
    return environment


def _is(kind: type) -> Any:  # what Jinja takes for a test
    return lambda value: isinstance(value, kind)


def _clean(value: Any) -> Any:
    """Words that come from nodes without control characters, and without what turns the direction of text."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _TURNS.sub("\N{REPLACEMENT CHARACTER}", printable(value))
    return value


def _number(value: float) -> str:
    """A place in a picture: at most one decimal."""
    return f"{round(value, 1):g}"


def _seconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {value % 60:.0f} s"


def _moment(value: dt.datetime | float) -> str:
    moment = value if isinstance(value, dt.datetime) else dt.datetime.fromtimestamp(value, dt.UTC)
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _days(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0f}" if abs(value) >= 1 else f"{value:.2f}"


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
