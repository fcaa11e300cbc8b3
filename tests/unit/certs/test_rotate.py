"""The passes of `certs rotate-ca`: their order, what stops them, and that each goes on where it was."""

from __future__ import annotations

import datetime as dt
import io
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from provisioner import cli, members, pki
from provisioner.artifacts import load_lock
from provisioner.certs import published, rotate, workloads
from provisioner.certs.model import Found, Row, State
from provisioner.certs.rotate import Wishes
from provisioner.certs.workloads import Survey, Workload
from provisioner.cli.rotate_ca import Authority, Pass, _plan
from provisioner.config import Cluster
from provisioner.display import Display
from provisioner.errors import ApplyError, BadInput, PreflightUnfit, ProvisionerError
from provisioner.leaver import Leaver
from provisioner.pki import CaName, Rotation, Stage
from provisioner.pki import rotation as rotations
from provisioner.plan import Change, Plan
from provisioner.session import Session
from provisioner.ssh import Connections
from provisioner.workspace import Workspace

NOW = dt.datetime.now(dt.UTC)
ALL = tuple(CaName)
CLUSTER = """\
apiVersion: provisioner/v1
name: test
nodes:
  - {name: cp-1, address: 192.0.2.1, roles: [control-plane, etcd]}
  - {name: worker-1, address: 192.0.2.2, roles: [worker]}
"""


@pytest.fixture
def cluster() -> Cluster:
    nodes = [
        {"name": "cp-1", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]},
        {"name": "worker-1", "address": "192.0.2.2", "roles": ["worker"]},
    ]
    return Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": nodes})


@pytest.fixture
def session(cluster: Cluster, tmp_path: Path) -> Session:
    """A session of a cluster that was built; nothing is connected."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    workspace = Workspace.of(tmp_path / "cluster.yaml", "test")
    workspace.create()
    pki.ensure(cluster, workspace.pki, now=NOW)
    display = Display(Console(file=io.StringIO(), width=200, soft_wrap=True))
    return Session(cluster, workspace, Connections(cluster, workspace), load_lock(), display, tmp_path / "log", str(tmp_path))


class World:
    """Stands in for machines and the API: what was done, and what is wrong with them."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session = session
        self.done: list[str] = []
        self.nodes = ["cp-1", "worker-1"]
        self.strangers: tuple[str, ...] = ()
        self.aside: dict[str, ProvisionerError] = {}
        self.changes: tuple[Change, ...] = ()
        self.leaving: tuple[Leaver, ...] = ()
        self.rows: tuple[Row, ...] = ()
        self.silent: tuple[tuple[str, str], ...] = ()
        self.pods = Survey({}, {})
        self.fail_in: Stage | None = None
        monkeypatch.setattr(Session, "api", lambda _self: nullcontext(self))
        monkeypatch.setattr(members, "listing", lambda _session: ())
        monkeypatch.setattr(members, "strangers", lambda _session, _listed: self.strangers)
        monkeypatch.setattr(rotate, "look", self.look)
        monkeypatch.setattr(rotate, "look_at_certificates", self.certificates)
        monkeypatch.setattr(published, "bring_about", lambda _api, keys: self.done.append(f"objects of {keys.rotation.stage}"))
        monkeypatch.setattr(published, "since", lambda _api: {})
        monkeypatch.setattr(workloads, "survey", lambda *_: self.pods)
        monkeypatch.setattr(workloads, "restart", self.restart)

    def restart(self, *_: object) -> tuple[Workload, ...]:
        self.done.append("restart")
        return ()

    def items(self, _path: str) -> list[dict[str, Any]]:
        return [{"metadata": {"name": name}} for name in self.nodes]

    def _seen(self, session: Session) -> Session:
        keys = pki.ensure(session.cluster, session.workspace.pki, now=dt.datetime.now(dt.UTC))
        return replace(session, pki=keys, set_aside=self.aside, plan=Plan(self.changes), leaving=self.leaving)

    def look(self, session: Session) -> Session:
        self.done.append("look")
        return self._seen(session)

    def converge(self, session: Session) -> tuple[Session, bool]:
        seen = self._seen(session)
        rotation = seen.the_pki().rotation
        assert rotation
        assert session.pki is None, "each pass begins with a fresh look"
        self.done.append(rotation.stage.value)
        if rotation.stage is self.fail_in:
            raise ApplyError("cp-1: Run etcd: not healthy", hint="apply")
        return replace(seen, plan=Plan()), True

    def certificates(self, *_: object, **__: object) -> Found:
        self.done.append("certificates")
        return Found(self.rows, self.silent, NOW)

    def run(self, wishes: Wishes | None = None, cas: tuple[CaName, ...] = ALL) -> rotate.Done:
        self.done.clear()
        return rotate.run(self.session, cas, wishes or Wishes(), self.converge)

    @property
    def stage(self) -> Stage | None:
        found = rotations.read(self.session.workspace.pki)
        return found.stage if found else None


@pytest.fixture
def world(session: Session, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(session, monkeypatch)


def proof(stage: str, *more: str) -> list[str]:
    return [stage, "look", f"objects of {stage}", *more, "certificates"]


def test_three_passes_each_proved_before_the_next(world: World) -> None:
    before = pki.read(world.session.workspace.pki, now=NOW)
    done = world.run()
    assert world.done == [*proof("trust", "restart"), *proof("reissue"), *proof("drop")]
    assert (done.rotation, done.passes, world.stage) == (None, tuple(Stage), None)
    after = pki.read(world.session.workspace.pki, now=dt.datetime.now(dt.UTC))
    assert done.fingerprints == {name: (before.cas[name].fingerprint, after.cas[name].fingerprint) for name in CaName}
    assert pki.cluster_id(after) == pki.cluster_id(before)


def test_etcds_ca_alone_touches_no_object_and_no_pod(world: World) -> None:
    world.run(cas=(CaName.ETCD,))
    assert world.done == [step for stage in Stage for step in (stage.value, "look", "certificates")]
    world.run(cas=(CaName.FRONT_PROXY,))
    assert "restart" not in world.done
    assert "objects of trust" in world.done, "extension API servers believe it"


def test_one_may_stop_after_a_pass_and_go_on(world: World) -> None:
    done = world.run(Wishes(stop_after=Stage.TRUST))
    assert done.rotation
    assert (done.passes, world.stage) == ((Stage.TRUST,), Stage.TRUST)
    again = world.run(Wishes(stop_after=Stage.REISSUE))
    assert again.passes == (Stage.TRUST, Stage.REISSUE), "a pass that is through is proved again before the next"
    assert again.fingerprints == done.fingerprints
    assert world.run().passes == (Stage.REISSUE, Stage.DROP)
    assert world.stage is None


@pytest.mark.parametrize("stage", Stage)
def test_a_pass_that_fails_is_taken_up(world: World, stage: Stage) -> None:
    world.fail_in = stage
    with pytest.raises(ApplyError, match="Run etcd") as error:
        world.run()
    assert "certs rotate-ca` goes on" in error.value.hint
    assert world.stage is stage
    world.fail_in = None
    assert world.run().passes[0] is stage
    assert world.stage is None


def break_aside(world: World) -> None:
    world.aside = {"worker-1": ProvisionerError("worker-1: no route to host")}


def break_leaving(world: World) -> None:
    world.leaving = (Leaver.of(world.session.cluster.node("worker-1"), None, None),)


def break_plan(world: World) -> None:
    world.changes = (Change("worker-1", "kubelet", "unit", "kubelet.service", "restart"),)


def break_node(world: World) -> None:
    world.nodes.append("stranger")


def break_member(world: World) -> None:
    world.strangers = ("stranger",)


def break_silent(world: World) -> None:
    world.silent = (("worker-1", "connection refused"),)


def break_served(world: World) -> None:
    world.rows = (Row("worker-1", "kubelet-serving", "served on 127.0.0.1:10250", State.OUTDATED),)


Break = Callable[[World], None]
BREAKS = {
    break_aside: "worker-1: not in this pass, and locked out by the next one",
    break_leaving: "worker-1: not in this pass",
    break_plan: "not through: 1 differences are left",
    break_node: "not through everywhere",
    break_member: "not through everywhere",
    break_silent: "worker-1: not through pass trust, and locked out by the next one",
    break_served: "worker-1: not through pass trust",
}


@pytest.mark.parametrize(("broken", "said"), BREAKS.items())
def test_nobody_is_locked_out(world: World, broken: Break, said: str) -> None:
    """Whoever has missed a pass holds up the next one, by name and with the remedy; once that is mended, it goes on."""
    broken(world)
    with pytest.raises(ApplyError, match=said) as error:
        world.run()
    assert world.stage is Stage.TRUST
    assert "certs rotate-ca` goes on" in error.value.hint
    assert any("worker-1" in line or "stranger" in line for line in (error.value.message, *error.value.details))
    world.nodes, world.strangers, world.leaving = ["cp-1", "worker-1"], (), ()
    world.aside, world.changes, world.rows, world.silent = {}, (), (), ()
    assert world.run().rotation is None


@pytest.mark.parametrize("broken", [break_aside, break_leaving, break_plan, break_node, break_member])
def test_it_begins_with_no_other_cluster_than_a_whole_one(world: World, broken: Break) -> None:
    rotate.require_fit(world.look(world.session))
    broken(world)
    with pytest.raises(PreflightUnfit, match="nothing was changed") as error:
        rotate.require_fit(world.look(world.session))
    assert "`provisioner apply` first" in error.value.hint
    assert any("worker-1" in line or "stranger" in line for line in error.value.details)
    assert world.stage is None


WEB = Workload("Deployment", "x", "web")


def test_pods_that_nobody_restarts_hold_it_up(world: World) -> None:
    world.pods = Survey({}, {"x/alone": "no controller makes it anew"})
    with pytest.raises(ApplyError, match="1 pods have read the old CA") as error:
        world.run()
    assert error.value.details == ("x/alone: no controller makes it anew",)
    assert "--leave-pods" in error.value.hint
    assert world.stage is Stage.TRUST
    done = world.run(Wishes(leave_pods=True))
    assert done.left == ("x/alone",)
    assert done.rotation is None


def test_without_restart_it_waits_for_the_user(world: World) -> None:
    world.pods = Survey({WEB: ("x/web-1",)}, {})
    with pytest.raises(ApplyError, match="1 pods have read the old CA"):
        world.run(Wishes(restart=False))
    assert "restart" not in world.done
    world.pods = Survey({}, {})
    assert world.run(Wishes(restart=False)).rotation is None


def test_others_than_those_under_way_are_refused() -> None:
    under_way = Rotation("a", Stage.REISSUE, (CaName.ETCD,), NOW)
    assert rotate.choose(None, ()) == ALL
    assert rotate.choose(None, (CaName.FRONT_PROXY, CaName.CLUSTER)) == (CaName.CLUSTER, CaName.FRONT_PROXY)
    assert rotate.choose(under_way, ()) == rotate.choose(under_way, (CaName.ETCD,)) == (CaName.ETCD,)
    with pytest.raises(BadInput, match="the etcd CA is being replaced"):
        rotate.choose(under_way, (CaName.CLUSTER,))
    rotate.refuse_nothing_left(under_way, Stage.REISSUE)
    with pytest.raises(BadInput, match="pass trust is through"):
        rotate.refuse_nothing_left(under_way, Stage.TRUST)


def test_it_says_what_it_will_do_and_to_whom(cluster: Cluster) -> None:
    text = "\n".join(_plan(cluster, ALL, Survey({WEB: ("x/web-1",)}, {"x/alone": "no controller"}), restart=True))
    for part in ("three rolling passes over 2 machines", "1 workload restarted", "Deployment x/web", "x/alone", "kubeconfigs"):
        assert part in text
    assert "NOT restarted" in "\n".join(_plan(cluster, ALL, Survey({WEB: ()}, {}), restart=False))
    assert "pods" not in "\n".join(_plan(cluster, (CaName.ETCD,), Survey({}, {}), restart=True))


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_its_choices_are_those_of_the_pki() -> None:
    assert [one.value for one in Authority] == [one.value for one in CaName]
    assert [one.value for one in Pass] == [one.value for one in Stage][:-1]


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def command(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(world.session.workspace.cluster_file.parent)
    monkeypatch.setenv("COLUMNS", "200")

    def main(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["provisioner", "certs", "rotate-ca", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return main


def test_nothing_is_changed_where_nobody_is_asked(world: World, command: Run) -> None:
    code, text = command()
    assert code == 3
    assert "three rolling passes" in text
    assert "nobody to ask; nothing was changed" in text
    assert world.stage is None
    assert not list(world.session.workspace.pki.glob("next"))


def test_a_cluster_that_is_not_whole_is_refused(world: World, command: Run) -> None:
    world.aside = {"worker-1": ProvisionerError("worker-1: no route to host")}
    code, text = command("--yes")
    assert code == 4
    assert "worker-1: no route to host" in text
    assert world.stage is None


def test_where_no_cluster_was_built(world: World, command: Run) -> None:
    (world.session.workspace.pki / "cluster-ca.pem").unlink()
    code, text = command("--yes")
    assert code == 3
    assert "no cluster was built" in text


def test_a_rotation_under_way_is_spoken_of(world: World, command: Run) -> None:
    rotations.begin(world.session.cluster, world.session.workspace.pki, ALL, now=NOW)
    code, text = command("--only", "etcd", "--yes")
    assert code == 3
    assert "it is of no other CAs" in text
    code, text = command()
    assert code == 3
    assert "from pass trust on" in text
    assert world.stage is Stage.TRUST
