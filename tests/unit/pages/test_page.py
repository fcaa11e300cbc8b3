from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from provisioner.pages import Page, render, tables
from provisioner.pages.architecture import ways_of_pods
from provisioner.pages.gather import pod_of
from provisioner.pages.shapes import Tone

Make = Callable[..., Page]


class Outline(HTMLParser):
    """Headings, tags that are opened and not closed, and every attribute that could fetch something."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "href" and (value or "").startswith("#"):
                self.links.append((value or "")[1:])
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"{tag} {name}: the policy refuses it"
            assert name != "style", f"{tag}: the policy refuses it"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open, tag
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    "state", [{}, {"dead": ("cp-1",)}, {"planes": 1, "workers": 0}, {"workers": 47, "failed": (("cp-1", "cp-2", "no answer"),)}]
)
def test_it_is_one_well_formed_file_that_fetches_nothing(make_page: Make, state: dict[str, object]) -> None:
    text = render(make_page(**state))
    outline = Outline(text)
    assert outline.open == []
    assert outline.fetched == []
    assert outline.headings[0] == 1
    assert set(outline.headings[1:]) == {2}
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.links) <= set(outline.ids)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_same_value_gives_the_same_page(make_page: Make) -> None:
    assert render(make_page()) == render(make_page())


def test_a_whole_cluster(make_page: Make) -> None:
    page = make_page()
    assert tables.verdict(page)[0] is Tone.OK
    assert {figure.tone for figure in tables.figures(page) if figure.label != "Backups"} == {Tone.OK}
    text = render(page)
    assert re.search(r"20 of 20 ways between nodes worked at \d{4}-\d\d-\d\d 06:55 UTC", text)
    assert 'id="problems"' not in text


def test_a_node_that_came_after_the_verify_is_not_proved(make_page: Make) -> None:
    page, before = make_page(), make_page(workers=1)
    assert ways_of_pods(page)[0] is Tone.OK
    tone, words = ways_of_pods(replace(page, report=before.report))
    assert tone is Tone.UNKNOWN
    assert words.endswith("UTC, before worker-2 came")


def test_a_run_that_changed_nothing_is_not_called_one_that_did(make_page: Make) -> None:
    page = make_page()
    assert ">The last run that changed something<" in render(page)
    assert page.run is not None
    idle = replace(page.run, phases=tuple(phase for phase in page.run.phases if phase.name == "preflight"))
    assert ">The last run<" in render(replace(page, run=idle))


def test_a_dead_control_plane_is_said_wherever_it_matters(make_page: Make) -> None:
    page = make_page(dead=("cp-1",))
    tone, words = tables.verdict(page)
    assert tone is Tone.BAD
    assert words.startswith("2 problems; 2 checks")
    text = render(page)
    for said in (
        "cannot be reached: connection refused",
        "10.0.0.1 does not answer",
        "etcd: quorum, 2 of 3 members, leader cp-2",
        "Those on <b>cp-1</b> are not known",
        "not tried: probe-pods did not pass",
        "could not be tried by the last verify",
        "no skew",
    ):
        assert said in text, said
    row = next(one for one in tables.versions(page) if one.component == "kube-apiserver")
    assert row.running == (("1.36.3", ("cp-2", "cp-3")),)
    assert row.unknown == (("cp-1", "its machine cannot be reached"),)


def test_a_proof_from_before_is_said_to_be_one(make_page: Make) -> None:
    whole, dead = make_page(), make_page(dead=("cp-1",))
    page = replace(dead, report=whole.report)
    assert tables.stale(page) == "4 min older than the problems above"
    assert next(figure for figure in tables.figures(page) if figure.label == "Checks").tone is Tone.WARN
    assert "but now cp-1 does not answer" in render(page)
    assert whole.run is not None
    later = replace(whole, run=replace(whole.run, began=whole.made.timestamp()))
    assert tables.stale(later) == "older than the last run of `apply`"


def test_nothing_known_is_said_not_left_out(make_page: Make) -> None:
    page = make_page()
    status = replace(page.status, nodes=(), leases=(), proxies=(), api_error="no control plane can be reached", apiservers=())
    bare = replace(
        page,
        status=status,
        certificates=None,
        certificates_error="no keys",
        report=None,
        run=None,
        pods=None,
        pods_error="no API",
        versions=(),
    )
    text = render(bare)
    for said in (
        "verify has not run yet",
        "nothing is proved",
        "No run is on record",
        "Not known: no keys",
        "Not known: no API",
        "Not known: no control plane can be reached",
        "skew between kubelets and API servers: not known",
        "not tried yet",
    ):
        assert said in text, said
    document = bare.to_json()
    assert (document["verify"], document["run"], document["pods"], document["podsError"]) == (None, None, None, "no API")


ATTACK = "\"'><script>alert(1)</script>&{{7*7}}\x1b[31m\u202eevil"


def test_words_of_nodes_are_escaped(make_page: Make) -> None:
    from_conftest = make_page.__globals__["attacked"]
    text = render(from_conftest(ATTACK))
    assert "<script" not in text
    assert "{{7*7}}" in text, "shown as it is, not computed"
    assert "49" not in re.findall(r"&amp;(\d+)", text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 50
    assert Outline(text).open == []


def test_json_is_json_and_says_the_same(make_page: Make) -> None:
    document = json.loads(json.dumps(make_page(dead=("worker-1",)).to_json()))
    assert document["format"] == 1
    assert document["status"]["healthy"] is False
    assert document["certificates"]["silent"] == [
        {"machine": "worker-1", "reason": "connection refused: no SSH server listens there"}
    ]
    assert document["versions"]["machines"][3]["error"] == "its machine cannot be reached"
    assert {phase["name"] for phase in document["run"]["phases"]} >= {"machines", "etcd", "nodes"}
    assert len(document["pods"]) == 15


def test_skew_and_versions_that_differ(make_page: Make) -> None:
    page = make_page()

    def with_version(machine: str, component: str, version: str) -> Page:
        machines = tuple(
            replace(one, components={**one.components, component: version}) if one.machine == machine else one
            for one in page.versions
        )
        return replace(page, versions=machines)

    assert tables.skew(page)[0] is Tone.OK
    assert tables.skew(with_version("worker-1", "kubelet", "1.35.4"))[0] is Tone.WARN
    assert tables.skew(with_version("worker-1", "kubelet", "1.37.0"))[0] is Tone.BAD
    assert tables.skew(with_version("worker-1", "kubelet", "1.32.0"))[0] is Tone.BAD
    row = next(one for one in tables.versions(with_version("cp-2", "etcd", "3.6.13")) if one.component == "etcd")
    assert (row.tone, row.running) == (Tone.WARN, (("3.6.14", ("cp-1", "cp-3")), ("3.6.13", ("cp-2",))))


def test_a_pod_out_of_the_apis_object() -> None:
    pod = pod_of(
        {
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"nodeName": "n"},
            "status": {
                "phase": "Pending",
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
                "containerStatuses": [{"restartCount": 3, "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
            },
        }
    )
    assert (pod.ready, pod.reason, pod.restarts, pod.node) == (False, "ImagePullBackOff", 3, "n")
    assert pod_of({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}}).done
