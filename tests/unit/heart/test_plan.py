"""``plan.difference``: nothing where nothing differs, and exactly what differs where something does."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner.desired import Artifact, File, HostState, Unit
from provisioner.plan import CLUSTER, Change, Plan, difference

Describe = Callable[[HostState], dict[str, Any]]

CONFIG = File("etcd", "/etc/etcd/config", b"a: 1\nb: 2\n", owner="etcd", group="etcd")
KEY = File("certificates", "/etc/etcd/pki/server.key", b"-----SECRET-----\n", mode=0o600, secret=True)
BIRTH = File("etcd", "/etc/etcd/birth.env", b"ETCD_INITIAL=1\n", once=True)
BINARY = Artifact("artifacts", "/usr/local/bin/etcd", "b" * 64, 1000, "/cache/etcd")
STATE = HostState(
    host="cp-1",
    files=(CONFIG, KEY, BIRTH),
    artifacts=(BINARY,),
    units=(Unit("etcd", "etcd.service", "1" * 32, ("/etc/etcd/reloaded",), ("/etc/etcd/pki/server.key", "/usr/local/bin/etcd")),),
    absent=(("kubelet", "/etc/kubernetes/kubelet/bootstrap.kubeconfig"),),
    sysctls=(("net.ipv4.ip_forward", "1"),),
    modules=("overlay",),
    users=("etcd",),
    variables={"base_packages": []},
)


def found(actual: dict[str, Any], state: HostState = STATE) -> list[tuple[str, str, str, str]]:
    return [(change.role, change.kind, change.what, change.action) for change in difference(state, actual)]


def test_nothing_where_nothing_differs(actual_of: Describe) -> None:
    assert difference(STATE, actual_of(STATE)) == ()


def test_an_empty_machine_lacks_everything() -> None:
    empty = {
        "files": dict.fromkeys([CONFIG.path, KEY.path, BIRTH.path, BINARY.path]),
        "absent": [],
        "swept": [],
        "units": {
            "etcd.service": {
                "loaded": False,
                "active": False,
                "state": "inactive/dead",
                "enabled": False,
                "daemon_reload": False,
                "hash": "",
                "stale": False,
                "outdated": False,
            }
        },
        "sysctls": {"net.ipv4.ip_forward": "0"},
        "modules": [],
        "users": [],
    }
    state = replace(STATE, variables={"base_packages": ["haproxy"]})
    assert found(empty, state) == [
        ("etcd", "file", CONFIG.path, "create"),
        ("certificates", "file", KEY.path, "create"),
        ("etcd", "file", BIRTH.path, "create"),
        ("artifacts", "artifact", BINARY.path, "create"),
        ("etcd", "unit", "etcd.service", "start"),
        ("base", "sysctl", "net.ipv4.ip_forward", "set to 1 (is 0)"),
        ("base", "user", "etcd", "create"),
        ("base", "package", "haproxy", "install"),
    ]


def test_a_changed_file_is_shown_as_a_diff(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["files"][CONFIG.path] |= {"sha256": "0" * 64, "content": "a: 1\nb: 3\n"}
    (change,) = difference(STATE, actual)
    assert (change.host, change.role, change.kind, change.what) == ("cp-1", "etcd", "file", CONFIG.path)
    assert change.action == "change content"
    assert "-b: 3\n+b: 2\n" in change.diff
    assert change.diff.startswith(f"--- {CONFIG.path}")


def test_a_secret_is_never_shown(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["files"][KEY.path] |= {"sha256": "0" * 64, "content": "-----OLD SECRET-----\n"}
    change, _ = difference(STATE, actual)
    assert change.diff == ""
    assert "SECRET" not in repr(change)


def test_mode_and_owner_are_told(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["files"][KEY.path] |= {"mode": 0o644, "owner": "nobody"}
    assert found(actual) == [("certificates", "file", KEY.path, "change mode 0644 -> 0600, owner nobody:root -> root:root")]


def test_a_directory_or_link_in_a_files_place_is_a_change(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["files"][CONFIG.path] |= {"type": "other"}
    assert found(actual) == [("etcd", "file", CONFIG.path, "change content")]


@pytest.mark.parametrize("edit", [{"sha256": "0" * 64}, {"mode": 0o600}, {"owner": "nobody"}])
def test_a_file_of_a_members_birth_is_left_alone(actual_of: Describe, edit: dict[str, object]) -> None:
    actual = actual_of(STATE)
    actual["files"][BIRTH.path] |= edit
    assert found(actual) == []
    actual["files"][BIRTH.path] = None
    assert found(actual) == [("etcd", "file", BIRTH.path, "create")]


def test_a_wrong_binary_is_sent_again(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["files"][BINARY.path] |= {"sha256": "0" * 64}
    # what runs the old one would otherwise be told by the plan after this one
    restart = ("etcd", "unit", "etcd.service", f"restart (takes in {BINARY.path})")
    assert found(actual) == [("artifacts", "artifact", BINARY.path, "change content"), restart]


def test_an_edit_of_what_a_unit_reads_is_told_with_the_restart_it_needs(actual_of: Describe) -> None:
    """Whoever edited it may have restarted the unit by hand: its hash says nothing about that."""
    actual = actual_of(STATE)
    actual["files"][KEY.path] |= {"sha256": "0" * 64}
    restart = ("etcd", "unit", "etcd.service", f"restart (takes in {KEY.path})")
    assert found(actual) == [("certificates", "file", KEY.path, "change content"), restart]
    state = replace(STATE, units=(replace(STATE.units[0], reads=(), reload_on=(KEY.path,)),))
    assert found(actual, state)[1:] == [("etcd", "unit", "etcd.service", "reload")]


def test_what_must_not_be_there_is_removed(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["absent"] = ["/etc/kubernetes/kubelet/bootstrap.kubeconfig"]
    assert found(actual) == [("kubelet", "file", "/etc/kubernetes/kubelet/bootstrap.kubeconfig", "remove")]


def test_what_is_left_over_of_ours_is_removed_once(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    left = "/etc/containerd/certs.d/old.example/hosts.toml"
    actual["swept"] = [left, KEY.path]
    patterns = (
        ("containerd", "/etc/containerd/certs.d/*/hosts.toml"),
        ("containerd", "/etc/containerd/certs.d/*/provisioner-ca.crt"),
    )
    assert found(actual, replace(STATE, swept=patterns)) == [("containerd", "file", left, "remove")]


@pytest.mark.parametrize(
    ("edit", "action"),
    [
        ({"loaded": False, "active": False}, "start"),
        ({"active": False, "state": "failed/failed"}, "start (is failed/failed)"),
        ({"active": False, "state": "inactive/dead", "hash": ""}, "start (is inactive/dead)"),
        ({"hash": "2" * 32}, "restart (runs an older configuration)"),
        ({"hash": ""}, "restart (runs an older configuration)"),
        ({"hash": "2" * 32, "stale": True, "enabled": False}, "restart (runs an older configuration)"),
        ({"outdated": True}, "restart (a file that it reads was written after its start)"),
        ({"outdated": True, "active": False, "state": "failed/failed"}, "start (is failed/failed)"),
        ({"stale": True}, "reload"),
        ({"enabled": False}, "enable"),
        ({"daemon_reload": True}, "reload systemd"),
    ],
)
def test_a_unit_is_judged_by_what_runs(actual_of: Describe, edit: dict[str, object], action: str) -> None:
    actual = actual_of(STATE)
    actual["units"]["etcd.service"] |= edit
    assert found(actual) == [("etcd", "unit", "etcd.service", action)]


def test_a_unit_that_nobody_has_seen_is_started(actual_of: Describe) -> None:
    actual = actual_of(STATE)
    actual["units"] = {}
    assert found(actual) == [("etcd", "unit", "etcd.service", "start")]


def test_a_plan_knows_its_hosts_and_roles() -> None:
    plan = Plan(
        (
            Change("cp-1", "etcd", "file", "/etc/a", "create"),
            Change("cp-2", "etcd", "unit", "etcd.service", "restart"),
            Change("cp-2", "kubelet", "file", "/etc/b", "create", "diff"),
            Change(CLUSTER, "objects", "object", "Service dns", "create"),
        )
    )
    assert plan
    assert not Plan()
    assert plan.hosts_of("etcd") == {"cp-1", "cp-2"}
    assert plan.hosts_of("kubelet") == {"cp-2"}
    assert plan.hosts_of("network") == frozenset()
    assert [change.what for change in plan.of_host("cp-2")] == ["etcd.service", "/etc/b"]
    changes = plan.to_json()["changes"]
    assert isinstance(changes, list)
    assert changes[2] == {"host": "cp-2", "role": "kubelet", "kind": "file", "what": "/etc/b", "action": "create", "diff": "diff"}


# -- any state, any one edit ---------------------------------------------------------------------------------------------------

names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
files = st.builds(
    File,
    role=names,
    path=names.map("/etc/{}".format),
    content=st.text(max_size=30).map(str.encode),
    mode=st.sampled_from([0o600, 0o644, 0o755]),
    owner=names,
    group=names,
    secret=st.booleans(),
    once=st.booleans(),
)
binaries = st.builds(
    Artifact,
    role=st.just("artifacts"),
    path=names.map("/usr/local/bin/{}".format),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 1 << 40),
    source=names,
)
units = st.builds(Unit, role=names, name=names.map("{}.service".format), hash=st.text("0123456789abcdef", min_size=32, max_size=32))
states = st.builds(
    HostState,
    host=names,
    files=st.lists(files, max_size=5, unique_by=lambda file: file.path).map(tuple),
    artifacts=st.lists(binaries, max_size=3, unique_by=lambda item: item.path).map(tuple),
    units=st.lists(units, max_size=3, unique_by=lambda unit: unit.name).map(tuple),
    sysctls=st.dictionaries(names, names, max_size=3).map(lambda found: tuple(sorted(found.items()))),
    users=st.lists(names, max_size=3, unique=True).map(tuple),
    variables=st.just({"base_packages": []}),
)
FIXTURE_IS_PURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@FIXTURE_IS_PURE
@given(state=states)
def test_any_state_equals_itself(actual_of: Describe, state: HostState) -> None:
    assert difference(state, actual_of(state)) == ()


@FIXTURE_IS_PURE
@given(state=states, data=st.data())
def test_any_one_edit_is_the_one_change(actual_of: Describe, state: HostState, data: st.DataObject) -> None:
    actual = actual_of(state)
    before = copy.deepcopy(actual)
    repairable = [file.path for file in state.files if not file.once] + [item.path for item in state.artifacts]
    edits: list[tuple[str, str]] = [("file", path) for path in repairable]
    edits += [("gone", path) for path in (*repairable, *(file.path for file in state.files if file.once))]
    edits += [("unit", unit.name) for unit in state.units] + [("sysctl", name) for name, _ in state.sysctls]
    edits += [("user", name) for name in state.users]
    if not edits:
        return
    kind, what = data.draw(st.sampled_from(edits))
    if kind == "file":
        key, value = data.draw(
            st.sampled_from([("sha256", "x"), ("mode", 0o4711), ("owner", "-"), ("group", "-"), ("type", "other")])
        )
        actual["files"][what][key] = value
    elif kind == "gone":
        actual["files"][what] = None
    elif kind == "unit":
        key, value = data.draw(
            st.sampled_from(
                [("hash", "x"), ("active", False), ("enabled", False), ("stale", True), ("outdated", True), ("loaded", False)]
            )
        )
        actual["units"][what][key] = value
    elif kind == "sysctl":
        actual["sysctls"][what] = None
    else:
        actual["users"].remove(what)
    (change,) = difference(state, actual)
    assert change.what == what
    assert change.host == state.host
    assert change.action
    # pure: neither side was touched
    assert difference(state, before) == ()
