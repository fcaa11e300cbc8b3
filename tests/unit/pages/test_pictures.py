from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from provisioner.pages import Page
from provisioner.pages.architecture import architecture, facts_of
from provisioner.pages.gantt import MOST, gantt, spans_of
from provisioner.pages.pairs import matrix
from provisioner.pages.shapes import Path, Picture, Rect, Tone, Words, short
from provisioner.report import Pairs
from provisioner.status.model import Vip

Make = Callable[..., Page]


def words(picture: Picture) -> list[str]:
    return [shape.text for shape in picture.shapes if isinstance(shape, Words)]


@pytest.mark.parametrize(("planes", "workers"), [(1, 0), (1, 2), (3, 2), (5, 10), (3, 47), (7, 3)])
def test_boxes_stay_inside_and_do_not_overlap(make_page: Make, planes: int, workers: int) -> None:
    picture = architecture(make_page(planes, workers))
    boxes = [shape for shape in picture.shapes if isinstance(shape, Rect)]
    assert len([box for box in boxes if "box" in box.css and "entrance" not in box.css]) == planes + workers
    for box in boxes:
        assert box.x >= 0
        assert box.x + box.width <= picture.width
        assert box.y + box.height <= picture.height
    for index, one in enumerate(boxes):
        for two in boxes[index + 1 :]:
            apart = (
                one.x + one.width <= two.x
                or two.x + two.width <= one.x
                or one.y + one.height <= two.y
                or two.y + two.height <= one.y
            )
            assert apart, (one, two)


def test_what_is_dead_is_bad_and_what_works_around_it_is_well(make_page: Make) -> None:
    page = make_page(dead=("cp-1",))
    tones = {node.name: facts_of(page, node).tone for node in page.cluster.nodes}
    assert tones == {"cp-1": Tone.BAD, "cp-2": Tone.OK, "cp-3": Tone.OK, "worker-1": Tone.OK, "worker-2": Tone.OK}
    picture = architecture(page)
    assert "0/4" in words(picture)
    assert "Not well: cp-1 (10.0.0.1 does not answer)" in picture.desc


def test_the_virtual_address_and_its_holder(make_page: Make) -> None:
    page = make_page()
    held = replace(page, status=replace(page.status, vip=Vip("10.0.0.99", ("cp-2",))))
    assert "users, kubectl: virtual address 10.0.0.99" in words(architecture(held))
    assert words(architecture(held)).count("holds the address") == 1
    lost = replace(page, status=replace(page.status, vip=Vip("10.0.0.99", ())))
    assert "held by no machine that answers" in words(architecture(lost))


def squares(picture: Picture, kind: str) -> int:
    return sum(shape.d.count("M") for shape in picture.shapes if isinstance(shape, Path) and shape.css == f"cell {kind}")


def test_the_matrix_counts_every_way_once() -> None:
    names = ("a", "b", "c", "d")
    picture = matrix(names, Pairs(("a", "b", "c"), (("a", "b", "no <answer>"),)))
    bad = [shape for shape in picture.shapes if isinstance(shape, Rect)]
    assert [shape.title for shape in bad] == ["a to b: no <answer>"]
    assert (squares(picture, "ok"), squares(picture, "self"), squares(picture, "unknown")) == (5, 4, 6)
    assert squares(matrix(names, None), "unknown") == 12
    assert squares(matrix(("a",), Pairs(("a",))), "ok") == 1, "alone it was tried with itself"
    assert len(matrix([f"n{number}" for number in range(50)], None).shapes) < 150


def test_the_timeline_has_every_host_and_what_failed(make_page: Make) -> None:
    page = make_page()
    assert page.run is not None
    tasks = tuple(
        replace(task, status="failed") if task.host == "cp-2" and task.role == "etcd" else task for task in page.run.tasks
    )
    run = replace(page.run, tasks=tasks)
    picture = gantt(run, page.stages, [node.name for node in page.cluster.nodes])
    assert {"cp-1", "cp-2", "cp-3", "worker-1", "worker-2"} <= set(words(picture))
    bad = [shape for shape in picture.shapes if isinstance(shape, Rect) and shape.css.endswith(" bad")]
    assert [shape.title.split(";")[1].strip() for shape in bad] == ["Place etcd: failed"]
    assert max(shape.x + shape.width for shape in picture.shapes if isinstance(shape, Rect)) <= picture.width
    spans = spans_of(run, page.stages)
    assert {span.stage for span in spans} == {"machines", "etcd", "nodes"}


def test_a_very_large_run_shows_the_hosts_that_matter(make_page: Make) -> None:
    page = make_page(3, 97)
    assert page.run is not None
    tasks = tuple(replace(task, status="failed") if task.host == "worker-97" else task for task in page.run.tasks)
    picture = gantt(replace(page.run, tasks=tasks), page.stages, [node.name for node in page.cluster.nodes])
    assert "worker-97" in words(picture)
    assert f"{100 - MOST} more machines are not drawn." in picture.desc


@pytest.mark.parametrize(
    ("text", "most", "expected"), [("abc", 3, "abc"), ("worker-with-a-long-name-17", 9, "work…e-17"), ("abcd", 1, "…")]
)
def test_long_names_keep_both_ends(text: str, most: int, expected: str) -> None:
    assert short(text, most) == expected
    assert len(short(text, most)) <= most
