"""Which units a machine has by which names, and what journalctl is asked and answers."""

from __future__ import annotations

import datetime as dt
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.components import COMPONENTS, choose, components_of
from provisioner.config import Cluster
from provisioner.errors import BadInput, ProvisionerError
from provisioner.journal_reader import Entry, Question, check_priority, ordered, parse, refusal, since
from provisioner.render.layout import ROLES

CLUSTER = Cluster.model_validate(
    {
        "name": "t",
        "nodes": [
            {"name": "cp-1", "address": "10.0.0.1", "roles": ["control-plane", "etcd"]},
            {"name": "etcd-1", "address": "10.0.0.2", "roles": ["etcd"]},
            {"name": "worker-1", "address": "10.0.0.3", "roles": ["worker"]},
        ],
    }
)


def units(node: str, *words: str) -> list[str]:
    return [component.unit for component in choose(CLUSTER, CLUSTER.node(node), words)]


def test_every_unit_of_every_role_has_a_name_of_its_own() -> None:
    assert [component.unit for component in COMPONENTS] == [unit.service for role in ROLES for unit in role.units]
    names = [name for component in COMPONENTS for name in component.names]
    assert len(names) == len(set(names))
    for name in ("etcd", "kube-apiserver", "kube-proxy", "containerd", "flanneld", "network", "api-proxy", "vip", "images"):
        assert name in names


def test_a_machine_has_what_its_roles_carry() -> None:
    assert [component.name for component in components_of(CLUSTER, CLUSTER.node("etcd-1"))] == ["etcd"]
    worker = [component.name for component in components_of(CLUSTER, CLUSTER.node("worker-1"))]
    assert worker == ["containerd", "images", "api-proxy", "kubelet", "kube-proxy", "flanneld"]
    assert "vip" not in [component.name for component in components_of(CLUSTER, CLUSTER.node("cp-1"))]


def test_names_and_aliases() -> None:
    assert units("cp-1", "network", "kubelet.service", "provisioner-images", "flanneld") == [
        "flanneld.service",
        "kubelet.service",
        "provisioner-images.service",
    ]


def test_an_unknown_component() -> None:
    with pytest.raises(BadInput, match='no component "kublet"; did you mean "kubelet"') as caught:
        units("etcd-1", "kublet")
    assert caught.value.hint == "etcd-1 carries etcd"


def test_a_component_that_is_elsewhere_or_nowhere() -> None:
    with pytest.raises(BadInput, match="worker-1 does not carry etcd") as caught:
        units("worker-1", "etcd")
    assert caught.value.hint == "etcd is on cp-1, etcd-1"
    with pytest.raises(BadInput) as caught:
        units("cp-1", "vip")
    assert caught.value.hint == "no machine of this cluster carries vip"


@given(st.text(min_size=1), st.text(min_size=1))
def test_what_a_user_types_stays_one_word(grep: str, when: str) -> None:
    words = shlex.split(Question(("etcd.service",), since=when, grep=grep, follow=True).command())
    assert f"--grep={grep}" in words
    assert words[-3:-1] == [f"--since={since(when)}", f"--grep={grep}"]
    assert len(words) == len(shlex.split(Question(("etcd.service",), since="x", grep="y", follow=True).command()))


@pytest.mark.parametrize(
    ("text", "asked"), [("24h", "-24h"), ("1h 30min", "-1h 30min"), ("yesterday", "yesterday"), ("2030-05-17", "2030-05-17")]
)
def test_since(text: str, asked: str) -> None:
    assert since(text) == asked


@pytest.mark.parametrize("text", ["", "err", "3", "warning..err"])
def test_priorities(text: str) -> None:
    check_priority(text)


@pytest.mark.parametrize("text", ["error", "8", "err..", "err;x"])
def test_no_priority(text: str) -> None:
    with pytest.raises(BadInput, match="is no priority"):
        check_priority(text)


def line(**fields: object) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": "1900000000123456", **fields})


def test_entries() -> None:
    lines = [
        "Welcome to this machine",
        line(MESSAGE="two", _SYSTEMD_UNIT="etcd.service", _PID="7", PRIORITY="3"),
        line(MESSAGE=[104, 105, 255], _SYSTEMD_UNIT="init.scope", UNIT="etcd.service"),
        line(MESSAGE=None),
        '{"MESSAGE": "no time"}',
    ]
    first, second, third = parse(lines)
    moment = dt.datetime(2030, 3, 17, 17, 46, 40, 123456, tzinfo=dt.UTC)
    assert first == Entry(moment, "etcd.service", "two", "err", 7)
    assert (second.unit, second.message, second.priority) == ("etcd.service", "hi\ufffd", "info")
    assert third.message == ""
    assert first.text() == "2030-03-17T17:46:40.123Z etcd[7]: two"
    assert first.to_json()["time"] == "2030-03-17T17:46:40.123456+00:00"


def test_a_message_cannot_steer_the_terminal() -> None:
    entry = Entry(dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "x.service", "a\x1b[2Jb\nc")
    assert entry.text() == "2030-01-01T00:00:00.000Z x: a\\x1b[2Jb\\nc"


def test_oldest_first() -> None:
    one, two = (Entry(dt.datetime(2030, 1, day, tzinfo=dt.UTC), "x", "m") for day in (1, 2))
    assert ordered([two, one]) == [one, two]


@pytest.mark.parametrize(
    ("complaint", "question", "kind", "says"),
    [
        ("Failed to parse timestamp: x", Question((), since="x"), BadInput, '--since "x" is no time'),
        ('Bad pattern "(": missing )', Question((), grep="("), BadInput, '--grep "\\(" is no regular expression'),
        ("Compiled without pattern matching support", Question((), grep="a"), ProvisionerError, "without pattern"),
        ("Failed to open: No space", Question(()), ProvisionerError, "journalctl failed: Failed to open"),
        ("", Question(()), ProvisionerError, "it gave no reason"),
    ],
)
def test_why_journalctl_refused(complaint: str, question: Question, kind: type[Exception], says: str) -> None:
    error = refusal("cp-1", complaint, question)
    assert type(error) is kind
    with pytest.raises(kind, match=says):
        raise error
    assert error.hint
