"""What a run touches: the machines of its scope, their keys, their host keys; and a look, which touches nothing."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner import phases, pki, quarantine
from provisioner.cli.common import open_cluster
from provisioner.config import Cluster
from provisioner.errors import BadInput, ProvisionerError
from provisioner.session import Session, adopt, write_kubeconfigs
from provisioner.ssh.known_hosts import HostKey, KnownHosts
from provisioner.workspace import Workspace

NOW = dt.datetime(2030, 5, 17, 12, tzinfo=dt.UTC)
Snapshot = dict[str, tuple[int, int, bytes]]


def snapshot(root: Path) -> Snapshot:
    """Every file and directory below one, with mode, time of the last change, and content."""
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.stat().st_mode),
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }


# -- which machines ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "aside", "names"),
    [
        (None, (), ["cp-1", "cp-2", "etcd-1", "worker-1"]),
        (None, ("worker-1", "cp-2"), ["cp-1", "etcd-1"]),
        ({"worker-1"}, (), ["worker-1"]),
        # in cluster.yaml's order
        ({"worker-1", "cp-1"}, (), ["cp-1", "worker-1"]),
        ({"worker-1", "cp-1"}, ("cp-1",), ["worker-1"]),
        # a machine that leaves is in the scope and not in cluster.yaml
        ({"worker-7"}, (), []),
        (set(), (), []),
    ],
)
def test_a_run_is_about_the_machines_of_its_scope_that_are_not_set_aside(
    session: Session, scope: set[str] | None, aside: tuple[str, ...], names: list[str]
) -> None:
    session = replace(
        session,
        scope=None if scope is None else frozenset(scope),
        set_aside={name: ProvisionerError(f"{name}: down") for name in aside},
    )
    assert [node.name for node in session.nodes] == names


def test_a_scope_concerns_also_machines_that_are_set_aside_or_leave(session: Session) -> None:
    about = replace(session, scope=frozenset({"worker-1", "worker-7"}), set_aside={"worker-1": ProvisionerError("down")})
    assert [name for name in ("cp-1", "worker-1", "worker-7") if about.concerns(name)] == ["worker-1", "worker-7"]
    assert session.concerns("worker-7")
    assert not replace(session, scope=frozenset()).concerns("cp-1")


def test_phases_of_machines_that_leave_are_chosen_with_what_they_need() -> None:
    def names(**options: str) -> list[str]:
        return [phase.name for phase in phases.choose(**options)]  # type: ignore[arg-type]  # one of the two options by name

    assert names(only="drain") == ["drain"]
    assert names(only="leave") == ["drain", "leave"]
    assert names(start="drain") == ["drain", "leave", "verify"]
    # nothing of what comes before `drain` is needed for it
    assert names(start="leave") == ["drain", "leave", "verify"]
    every = list(phases.names())
    assert every.index("settle") < every.index("drain") < every.index("leave") < every.index("verify")
    assert every.index("members") < every.index("etcd")


def test_most_runs_go_without_the_phases_of_machines_that_leave(session: Session) -> None:
    optional = {phase.name for phase in phases.CHANGE if phase.wanted is not None}
    assert optional == {"packages", "members", "drain", "leave"}
    assert not [phase.name for phase in phases.CHANGE if phase.wanted is not None and phase.wanted(session)]


# -- keys --------------------------------------------------------------------------------------------------------------------------


def test_keys_are_issued_for_the_machines_of_the_run_alone(cluster: Cluster, workspace: Workspace) -> None:
    worker = cluster.node("worker-1")
    made = pki.ensure(cluster, workspace.pki, now=NOW, nodes=[worker])
    assert [path.name for path in (workspace.pki / "nodes").iterdir()] == ["worker-1.pem"]
    # the controller's own come with them, for the API is asked in every run
    assert made.leaf("admin")
    assert pki.bundle_for(cluster, made, worker)
    before = snapshot(workspace.pki)
    pki.ensure(cluster, workspace.pki, now=NOW, nodes=[worker])
    pki.ensure(cluster, workspace.pki, now=NOW, nodes=[])
    assert snapshot(workspace.pki) == before


def test_keys_of_other_machines_stay_as_they_are_even_where_they_are_due(cluster: Cluster, workspace: Workspace) -> None:
    pki.ensure(cluster, workspace.pki, now=NOW)
    before = snapshot(workspace.pki)
    always = pki.Lifetimes(renew_before=pki.Lifetimes().leaf + dt.timedelta(days=1))
    pki.ensure(cluster, workspace.pki, now=NOW, nodes=[cluster.node("worker-1")], lifetimes=always)
    after = snapshot(workspace.pki)
    changed = {name for name in before if before[name][2] != after[name][2]}
    assert changed == {"nodes/worker-1.pem", "controller.pem"}
    assert {name: after[name] for name in before if name.startswith("nodes/") and "worker-1" not in name} == {
        name: before[name] for name in before if name.startswith("nodes/") and "worker-1" not in name
    }
    assert before.keys() == after.keys()


def test_keys_of_a_machine_that_has_left_are_dropped_and_no_others(cluster: Cluster, workspace: Workspace) -> None:
    pki.drop(workspace.pki, "worker-1")
    assert not workspace.pki.exists()
    made = pki.ensure(cluster, workspace.pki, now=NOW)
    before = snapshot(workspace.pki)
    for _ in range(2):
        pki.drop(workspace.pki, "worker-1")
        pki.drop(workspace.pki, "worker")
    after = snapshot(workspace.pki)
    assert before.keys() - after.keys() == {"nodes/worker-1.pem"}
    assert {name: after[name][2] for name in after} == {name: before[name][2] for name in after}
    # joined anew it gets other keys, of the same authorities
    again = pki.ensure(cluster, workspace.pki, now=NOW)
    old, new = (pki.bundle_for(cluster, one, cluster.node("worker-1")) for one in (made, again))
    assert [file.path for file in old] == [file.path for file in new]
    assert [file.content for file in old] != [file.content for file in new]
    assert again.cas == made.cas


# -- host keys ---------------------------------------------------------------------------------------------------------------------

KEY = f"ssh-ed25519 {base64.b64encode(b'a key').decode()}"
OTHER = f"ssh-rsa {base64.b64encode(b'another').decode()}"


def hashed(name: str) -> str:
    """A name as HashKnownHosts writes it."""
    salt = b"s" * 20
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


FORGOTTEN = [
    f"10.77.0.21 {KEY}",
    f"10.77.0.21 {OTHER} with a comment",
    f"  10.77.0.21   {KEY}",
    f"{hashed('10.77.0.21')} {KEY}",
]
KEPT = [
    "# 10.77.0.21 is the worker",
    "",
    f"#10.77.0.21 {KEY}",
    f"10.77.0.2 {KEY}",
    f"10.77.0.211 {KEY}",
    f"[10.77.0.21]:2222 {KEY}",
    f"{hashed('[10.77.0.21]:2222')} {KEY}",
    f"{hashed('10.77.0.22')} {KEY}",
    # shared with other machines
    f"10.77.0.21,worker.example.org {KEY}",
    f"{hashed('10.77.0.21')},{hashed('10.77.0.22')} {KEY}",
    f"10.77.0.* {KEY}",
    f"@revoked 10.77.0.21 {KEY}",
    f"@cert-authority 10.77.0.21 {KEY}",
    "10.77.0.21",
    "10.77.0.21 broken",
    f"|1|broken {KEY}",
    f"10.77.0.22 {OTHER}",
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_machines_host_keys_are_forgotten_and_all_else_stays(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "known_hosts"
    lines = [*KEPT[:6], *FORGOTTEN[:2], *KEPT[6:], *FORGOTTEN[2:]]
    path.write_bytes("".join(line + newline for line in lines).encode())
    KnownHosts(path).forget("10.77.0.21", 22)
    assert path.read_bytes() == (newline.join(KEPT) + newline).encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat()
    KnownHosts(path).forget("10.77.0.21", 22)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns), (
        "nothing to forget, nothing written"
    )


def test_host_keys_are_forgotten_by_port_and_whatever_the_case(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    rest = f"worker.example.org {KEY}\n[worker.example.org]:2223 {KEY}\n"
    path.write_text(f"[Worker.Example.org]:2222 {KEY}\n{rest}{hashed('[worker.example.org]:2222')} {KEY}\n")
    KnownHosts(path).forget("WORKER.example.org", 2222)
    assert path.read_text() == rest


def test_of_a_machine_that_was_never_seen_there_is_nothing_to_forget(tmp_path: Path) -> None:
    path = tmp_path / "new" / "known_hosts"
    KnownHosts(path).forget("10.77.0.21", 22)
    assert not path.exists()


def test_comments_in_any_encoding_are_kept_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    comment = b"# M\xfcnchen\n10.77.0.22 " + KEY.encode() + b" caf\xe9 \xc3\xa9 \xe2\x80\xa8\n"
    path.write_bytes(comment + f"10.77.0.21 {KEY}\n".encode())
    KnownHosts(path).forget("10.77.0.21", 22)
    assert path.read_bytes() == comment
    KnownHosts(path).record("10.77.0.23", 22, HostKey(*KEY.split()))
    assert path.read_bytes() == comment + f"10.77.0.23 {KEY}\n".encode()


# -- a look that touches nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_a_look_leaves_the_workspace_as_it_was(cluster: Cluster, workspace: Workspace, used: bool, fails: bool) -> None:
    workspace.create()
    if used:
        # of an older cluster: the look has something to issue, and the kubeconfigs to write anew
        older = cluster.model_copy(update={"nodes": cluster.nodes[1:]})
        write_kubeconfigs(older, workspace, pki.ensure(older, workspace.pki, now=NOW))
        (workspace.rendered).mkdir()
        (workspace.rendered / "cp-1.aside").write_text("{}")
    before = snapshot(workspace.root)
    places = []

    def look() -> None:
        with workspace.untouched() as copy:
            places.append(copy.pki.parent)
            assert stat.S_IMODE(places[0].stat().st_mode) == 0o700
            made = pki.ensure(cluster, copy.pki, now=NOW)
            write_kubeconfigs(cluster, copy, made)
            assert copy.was_used is used, "whether there is a cluster does not change by looking"
            copy.rendered.mkdir(exist_ok=True)
            quarantine.begin(copy.rendered)
            assert len(list((copy.pki / "nodes").iterdir())) == len(cluster.nodes)
            assert copy.kubeconfig.exists()
            assert copy.break_glass.exists()
            if used:
                assert (copy.pki / "cluster-ca.pem").read_bytes() == (workspace.pki / "cluster-ca.pem").read_bytes()
            if fails:
                raise ProvisionerError("a look that failed")

    if fails:
        with pytest.raises(ProvisionerError, match="a look that failed"):
            look()
    else:
        look()
    assert snapshot(workspace.root) == before
    assert not places[0].exists()
    assert workspace.was_used is used


@pytest.mark.parametrize("used", [False, True])
def test_what_a_look_has_made_is_taken_over(session: Session, cluster: Cluster, workspace: Workspace, used: bool) -> None:
    """Once the answer is yes: with what was there, and nothing of it written that has not changed."""
    workspace.create()
    if used:
        older = cluster.model_copy(update={"nodes": cluster.nodes[1:]})
        write_kubeconfigs(older, workspace, pki.ensure(older, workspace.pki, now=NOW))
        workspace.rendered.mkdir()
        (workspace.rendered / "cp-1.aside").write_text("{}")
    before = snapshot(workspace.root)
    with workspace.untouched() as copy:
        made = pki.ensure(cluster, copy.pki, now=NOW)
        copy.rendered.mkdir()
        (copy.rendered / "cp-2.json").write_text("state")
        adopted = adopt(replace(session, workspace=copy, pki=made), workspace)
    assert adopted.workspace == workspace
    assert pki.ensure(cluster, workspace.pki, now=NOW).issued == (), "all of it is there"
    assert workspace.kubeconfig.exists()
    assert workspace.break_glass.exists()
    assert [path.name for path in workspace.rendered.iterdir()] == ["cp-2.json"], "nobody is set aside for the last run"
    after = snapshot(workspace.root)
    for path in ("pki/cluster-ca.pem", "pki/service-account.pem", "pki/encryption.key", "pki/nodes/cp-2.pem"):
        assert (path in before) is used
        assert not used or after[path] == before[path]


def test_what_a_look_needs_of_the_workspace_is_the_workspaces_own(workspace: Workspace) -> None:
    with workspace.untouched() as copy:
        for name in ("known_hosts", "journal", "logs", "ansible", "sockets", "cluster_file", "root"):
            assert getattr(copy, name) == getattr(workspace, name)
        for name in ("pki", "kubeconfig", "break_glass", "rendered", "inventory"):
            assert getattr(copy, name) != getattr(workspace, name)
            assert getattr(copy, name).is_relative_to(copy.scratch)


# -- cluster.yaml of a cluster that is there --------------------------------------------------------------------------------------

TWO_MEMBERS = """\
apiVersion: provisioner/v1
name: test
nodes:
  - {name: cp-1, address: 10.77.0.11, roles: [control-plane, etcd, worker]}
  - {name: cp-2, address: 10.77.0.12, roles: [control-plane, etcd]}
"""


def test_two_members_are_doubtful_in_a_cluster_that_is_there_and_refused_in_a_new_one(
    workspace: Workspace, make_cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace.cluster_file
    path.write_text(TWO_MEMBERS)
    with pytest.raises(BadInput) as refused:
        open_cluster(path)
    assert "2 etcd members" in "\n".join(refused.value.details)
    # a workspace alone is no cluster
    workspace.create()
    with pytest.raises(BadInput):
        open_cluster(path)
    capsys.readouterr()
    pki.ensure(make_cluster(), workspace.pki, now=NOW, nodes=[])
    found, opened = open_cluster(path)
    assert [node.name for node in found.etcd_members] == ["cp-1", "cp-2"]
    assert opened == workspace
    told = capsys.readouterr().err
    assert told.count("2 etcd members") == 1
    assert "warning" in told


def test_a_file_that_is_wrong_otherwise_is_refused_in_a_cluster_that_is_there(workspace: Workspace, cluster: Cluster) -> None:
    pki.ensure(cluster, workspace.pki, now=NOW, nodes=[])
    workspace.cluster_file.write_text(TWO_MEMBERS.replace("10.77.0.12", "10.77.0.11"))
    with pytest.raises(BadInput) as refused:
        open_cluster(workspace.cluster_file)
    assert "10.77.0.11" in "\n".join(refused.value.details)
