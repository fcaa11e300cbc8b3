"""The matrix of `verify`'s pod-to-pod check: from every node to every other one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.pages.shapes import Mark, Path, Picture, Rect, Shape, Words, short
from provisioner.report import Pairs

LETTERS = 16


def matrix(names: Sequence[str], pairs: Pairs | None) -> Picture:
    """A square for each way: rows send, columns receive. One path holds all the squares of a kind, so that large ones stay small.

    Args:
        names: the nodes of cluster.yaml.
        pairs: what was tried; None where nothing was. Nodes that are not in it were not tried.
    """
    count = len(names)
    cell = max(9.0, min(30.0, round(620 / max(count, 1), 1)))
    size = min(12.0, cell - 1)
    longest = min(LETTERS, max((len(name) for name in names), default=1))
    gutter = round(longest * size * 0.62 + 14)
    side = count * cell
    tried = set(pairs.nodes) if pairs else set()
    failed = {(one, two): why for one, two, why in pairs.failed} if pairs else {}
    alone = len(tried) == 1
    kinds: dict[str, list[str]] = {"ok": [], "self": [], "unknown": []}
    shapes: list[Shape] = []
    for row, source in enumerate(names):
        for column, target in enumerate(names):
            x, y = gutter + column * cell, gutter + row * cell
            if (source, target) in failed:
                title = f"{source} to {target}: {failed[source, target]}"
                shapes += [
                    Rect(x + 1, y + 1, cell - 2, cell - 2, "cell bad", title, 2),
                    Mark(x + cell / 2, y + cell / 2, "cross", cell * 0.6),
                ]
                continue
            kind = "self" if source == target and not alone else "ok" if {source, target} <= tried else "unknown"
            kinds[kind].append(f"M{x + 1:g} {y + 1:g}h{cell - 2:g}v{cell - 2:g}h-{cell - 2:g}z")
    for kind, squares in kinds.items():
        if squares:
            shapes.insert(0, Path("".join(squares), f"cell {kind}"))
    bad_rows = {one for one, _ in failed}
    bad_columns = {two for _, two in failed}
    for index, name in enumerate(names):
        middle = gutter + index * cell + cell / 2
        unknown = "" if name in tried else " faint"
        css = f"label{unknown}"
        shapes.append(
            Words(gutter - 6, middle + size * 0.35, short(name, LETTERS), css + (" t-bad" if name in bad_rows else ""), "end")
        )
        shapes.append(
            Words(
                middle + size * 0.35,
                gutter - 6,
                short(name, LETTERS),
                css + (" t-bad" if name in bad_columns else ""),
                "start",
                -90,
            )
        )
    tested = len(tried) * (len(tried) - 1) or len(tried)
    desc = f"Of {tested} ways that were tried, {len(failed)} failed." if pairs else "Nothing was tried."
    css = "matrix" if count <= 12 else "matrix large"
    return Picture(
        "pairs",
        "Ways between the nodes' pods: rows send, columns receive",
        desc,
        gutter + side + 2,
        gutter + side + 2,
        tuple(shapes),
        css,
    )
