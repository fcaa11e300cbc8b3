"""The version skew policy: which way leads from one version to another, and what is refused before anything is touched."""

from __future__ import annotations

import pytest

from provisioner.errors import BadInput
from provisioner.upgrade.skew import Hop, Running, Version, hops

RELEASES = {
    "1.37.0": "3.7.1",
    "1.36.3": "3.6.14",
    "1.36.1": "3.6.14",
    "1.35.4": "3.6.8",
    "1.34.9": "3.6.8",
    "1.34.2": "3.5.27",
}


def v(text: str) -> Version:
    return Version.of(text)


def running(apiservers: str, kubelets: str = "", etcd: str = "3.6.8") -> Running:
    servers = {f"cp-{number}": v(text) for number, text in enumerate(apiservers.split(), 1)}
    nodes = {f"node-{number}": v(text) for number, text in enumerate((kubelets or apiservers).split(), 1)}
    return Running(servers, nodes, {"cp-1": v(etcd)})


def way(now: Running, target: str) -> list[str]:
    return [str(hop.target) for hop in hops(now, v(target), RELEASES)]


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.36.3", (1, 36, 3)), ("v1.36.3", (1, 36, 3)), ("v1.36.3+k3s1", (1, 36, 3)), ("v1.37.0-rc.1", (1, 37, 0))],
)
def test_a_version_is_read(text: str, version: tuple[int, int, int]) -> None:
    assert tuple(v(text)) == version


@pytest.mark.parametrize("text", ["", "1.36", "latest", "1.36.x", "1.2.3.4"])
def test_what_is_no_version_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever word Python has for it
        Version.of(text)


@pytest.mark.parametrize(
    ("apiservers", "kubelets", "target", "expected"),
    [
        ("1.36.3", "1.36.3", "1.36.3", []),
        ("1.35.4", "1.35.4", "1.36.3", ["1.36.3"]),
        ("1.36.1", "1.36.1", "1.36.3", ["1.36.3"]),
        # the newest patch of each minor version between
        ("1.34.2", "1.34.2", "1.36.1", ["1.35.4", "1.36.1"]),
        # cut short: between API servers, between kubelets
        ("1.36.3 1.35.4 1.35.4", "1.35.4", "1.36.3", ["1.36.3"]),
        ("1.36.3 1.36.3", "1.36.3 1.35.4", "1.36.3", ["1.36.3"]),
        # a control plane that was away while the others' kubelets went on: its own upgrade is the cure
        ("1.36.3 1.35.4", "1.36.3 1.35.4", "1.36.3", ["1.36.3"]),
        # cut short on the first hop, behind the API servers: it is finished first
        ("1.35.4", "1.34.2", "1.36.1", ["1.35.4", "1.36.1"]),
        # kubelets may be three minor versions behind
        ("1.36.3", "1.34.2", "1.36.3", ["1.36.3"]),
        # cut short on the first of two hops: that one is finished before the second
        ("1.35.4 1.34.2", "1.34.2", "1.36.1", ["1.35.4", "1.36.1"]),
    ],
)
def test_the_way_goes_one_minor_version_at_a_time(apiservers: str, kubelets: str, target: str, expected: list[str]) -> None:
    assert way(running(apiservers, kubelets), target) == expected


def test_etcd_goes_along_one_minor_version_at_a_time() -> None:
    assert way(running("1.36.3", etcd="3.6.14"), "1.37.0") == ["1.37.0"]
    with pytest.raises(BadInput) as refused:
        way(running("1.36.3", etcd="3.5.27"), "1.37.0")
    assert "etcd goes one minor version at a time" in refused.value.message


def test_an_older_patch_is_a_way_back() -> None:
    assert hops(running("1.36.3", etcd="3.6.14"), v("1.36.1"), RELEASES) == (Hop(v("1.36.1"), back=True),)
    # cut short
    assert hops(running("1.36.3", "1.36.3 1.36.1", etcd="3.6.14"), v("1.36.1"), RELEASES) == (Hop(v("1.36.1"), back=True),)
    assert hops(running("1.36.3 1.36.1", "1.36.1", etcd="3.6.14"), v("1.36.1"), RELEASES) == (Hop(v("1.36.1"), back=True),)


@pytest.mark.parametrize(
    ("now", "target", "said"),
    [
        (running("1.36.3"), "1.35.4", "there is no way back to 1.35.4"),
        (running("1.35.4"), "1.40.0", "1.40.0 is not in versions.yml"),
        (running("1.34.9"), "1.34.2", "its storage is never taken back"),
        (running("1.36.3 1.34.2"), "1.36.3", "more than one minor version apart"),
        (running("1.35.4", "1.37.0"), "1.36.3", "never newer than 1.36.3"),
        (running("1.37.0", "1.33.1", etcd="3.7.1"), "1.37.0", "may be 3 minor versions older"),
        (running("1.32.1", etcd="3.5.27"), "1.34.2", "versions.yml has no 1.33"),
    ],
)
def test_what_the_policy_forbids_is_refused_with_the_reason(now: Running, target: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        hops(now, v(target), RELEASES)
    assert said in refused.value.message
    assert refused.value.hint
