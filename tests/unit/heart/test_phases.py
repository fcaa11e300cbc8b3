"""The phases: who runs when, what a failure says, and which kubelets must join."""

from __future__ import annotations

import datetime as dt
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from provisioner import phases, pki, plays, runner, steps
from provisioner.cluster_api import ClusterApiError
from provisioner.config import Cluster
from provisioner.errors import ApplyError, BadInput, ProvisionerError
from provisioner.events import Failure, Tally, TaskStep
from provisioner.phases import Phase
from provisioner.pki import CaName
from provisioner.plan import CLUSTER, Change, Plan
from provisioner.session import Session

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


# -- which kubelets must join ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, pki.Pki, pki.Pki]:
    """A cluster, its PKI, and another cluster's."""
    cluster = Cluster.model_validate(
        {
            "name": "test",
            "nodes": [
                {"name": "cp-1", "address": "10.77.0.11", "roles": ["control-plane", "etcd"]},
                {"name": "etcd-1", "address": "10.77.0.13", "roles": ["etcd"]},
                {"name": "worker-1", "address": "10.77.0.21", "roles": ["worker"]},
            ],
        }
    )
    own, other = (pki.ensure(cluster, tmp_path_factory.mktemp("pki") / "pki", now=NOW) for _ in range(2))
    return cluster, own, other


def client_certificate(made: pki.Pki, name: str, *, until: dt.datetime, key: Any = None) -> str:
    """What the controller manager signs for a kubelet."""
    ca = made.cas[CaName.CLUSTER]
    signer = serialization.load_pem_private_key(ca.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.parsed.subject)
        .public_key((key or ec.generate_private_key(ec.SECP256R1())).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 30 * DAY)
        .not_valid_after(until)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def joining(session: Session, own: pki.Pki, worker: str | None) -> list[str]:
    good = client_certificate(own, "system:node:cp-1", until=NOW + DAY)
    actual: dict[str, Any] = {
        "cp-1": {"kubelet_certificate": good},
        "etcd-1": {"kubelet_certificate": None},
        "worker-1": {"kubelet_certificate": worker},
    }
    return steps._joining(replace(session, pki=own), actual)


def test_a_kubelet_with_a_good_certificate_needs_no_token(made: tuple[Cluster, pki.Pki, pki.Pki], session: Session) -> None:
    cluster, own, other = made
    here = replace(session, cluster=cluster)
    good = client_certificate(own, "system:node:worker-1", until=NOW + DAY)
    assert joining(here, own, good) == []
    # kubelets of other versions may hold other kinds of keys
    assert joining(here, own, client_certificate(own, "system:node:worker-1", until=NOW + DAY, key=_rsa_key())) == []
    # an etcd-only machine runs no kubelet, and so is never among them
    assert joining(here, own, None) == ["worker-1"]
    assert joining(here, own, client_certificate(own, "system:node:worker-1", until=NOW - DAY)) == ["worker-1"]
    assert joining(here, own, client_certificate(own, "system:node:worker-2", until=NOW + DAY)) == ["worker-1"]
    assert joining(here, own, client_certificate(own, "system:node:worker-11", until=NOW + DAY)) == ["worker-1"]
    # the same name and issuer, another CA's signature: a machine that kept its disk when the cluster was made anew
    assert joining(here, own, client_certificate(other, "system:node:worker-1", until=NOW + DAY)) == ["worker-1"]


def test_a_kubelet_that_keeps_the_cas_to_itself_joins_again_when_these_are_replaced(
    made: tuple[Cluster, pki.Pki, pki.Pki], session: Session
) -> None:
    cluster, own, _ = made
    good = client_certificate(own, "system:node:worker-1", until=NOW + DAY)
    under_way = replace(own, rotation=pki.Rotation("a", pki.Stage.TRUST, (CaName.CLUSTER,), NOW))
    for authority, keys, joins in (
        ("", own, False),
        ("", under_way, True),
        ("/etc/kubernetes/pki/ca.crt", under_way, False),
        (None, under_way, False),
    ):
        actual = {"worker-1": {"kubelet_certificate": good, "kubelet_authority": authority}}
        assert bool(steps._joining(replace(session, cluster=cluster, pki=keys), actual)) is joins


def test_what_a_token_takes_the_place_of_is_in_the_plan() -> None:
    def gone(actual: dict[str, Any]) -> list[tuple[str, str]]:
        return [(change.what, change.action) for change in steps._forgotten("worker-1", actual)]

    action = "remove (it joins anew)"
    kubeconfig, certificate = "/var/lib/kubelet/kubeconfig", "/var/lib/kubelet/pki/kubelet-client-current.pem"
    assert gone({"kubelet_certificate": "PEM", "kubelet_authority": ""}) == [(kubeconfig, action), (certificate, action)]
    assert gone({"kubelet_certificate": "PEM", "kubelet_authority": None}) == [(certificate, action)]
    assert gone({"kubelet_certificate": None}) == [], "a new machine has none"


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize("damage", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_kubelet_with_a_damaged_certificate_joins_again(
    made: tuple[Cluster, pki.Pki, pki.Pki], session: Session, damage: str
) -> None:
    cluster, own, _ = made
    assert joining(replace(session, cluster=cluster), own, damage) == ["worker-1"]


# -- the order of things -----------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for Ansible: notes which playbooks are run together, and walks through their plays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.failures: list[Failure] = []
        self.fail_in = ""
        self.before_play: Callable[[str], None] = lambda name: None
        monkeypatch.setattr(phases, "play", self.play)

    def play(self, session: Session, playbooks: tuple[str, ...], *, on_step: Callable[[TaskStep], None] | None = None) -> Tally:
        self.done.append("+".join(playbooks))
        tally = Tally(on_step or (lambda step: None))
        for playbook in playbooks:
            for name in runner.plays_of(playbook):
                self.before_play(name)
                tally.on_step(TaskStep(name, "role", "task"))
                tally.on_step(TaskStep(name, "role", "task", "cp-1", "ok"))
            if playbook == self.fail_in:
                tally.failures += self.failures
                return tally
        return tally

    def python(self, name: str, *, fail: Exception | None = None, **fields: Any) -> Phase:
        def run(session: Session) -> Session:
            self.done.append(name)
            if fail:
                raise fail
            return session

        return Phase(name, f"Title of {name}", run, **fields)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def run(session: Session, *todo: Phase) -> Session:
    """Run phases as `apply` does once its plan has found some work on a machine."""
    session = replace(session, plan=Plan((Change("cp-1", "etcd", "unit", "etcd.service", "start"),)))
    session.display.plan([(phase.name, phase.title) for phase in todo])
    return phases.run(session, todo)


def test_neighbouring_playbooks_run_in_one_go(session: Session, recorder: Recorder, printed: io.StringIO) -> None:
    a, b = recorder.python("a"), recorder.python("b")
    run(session, a, Phase("machines", "Prepare"), Phase("etcd", "Run etcd"), b, Phase("nodes", "Run the nodes"))
    assert recorder.done == ["a", "machines+etcd", "b", "nodes"]
    lines = [line.split("] ")[1] for line in printed.getvalue().splitlines()]
    assert [line.split(" ok (")[0] for line in lines] == [
        "Title of a …",
        "Title of a",
        "Prepare …",
        "Prepare",
        "Run etcd …",
        "Run etcd",
        "Title of b …",
        "Title of b",
        "Run the nodes …",
        "Run the nodes",
    ]


def test_a_value_goes_from_phase_to_phase(session: Session, recorder: Recorder) -> None:
    first = Phase("first", "First", lambda found: replace(found, cache={"amd64": {}}))
    seen: list[Mapping[str, Any]] = []

    def look(found: Session) -> Session:
        seen.append(found.cache)
        return found

    result = run(session, first, Phase("machines", "Prepare"), Phase("second", "Second", look))
    assert seen == [{"amd64": {}}]
    assert result.cache == {"amd64": {}}
    assert session.cache == {}


def test_a_companion_runs_beside_its_playbook(session: Session, recorder: Recorder) -> None:
    """It begins when its playbook does, not earlier, and the playbook does not wait for it."""
    began, may_end = threading.Event(), threading.Event()

    def companion(found: Session) -> Session:
        began.set()
        assert may_end.wait(60)
        recorder.done.append("companion")
        return found

    order: list[tuple[str, bool]] = []

    def before(name: str) -> None:
        order.append((name, began.wait(60) if name == "Run kube-proxy" else began.is_set()))
        if name == runner.plays_of("nodes")[-1]:
            may_end.set()

    recorder.before_play = before
    todo = (Phase("etcd", "Run etcd"), Phase("objects", "Apply", companion, alongside="nodes"), Phase("nodes", "Run the nodes"))
    run(session, *todo)
    assert recorder.done == ["etcd+nodes", "companion"]
    assert order[0] == ("Run the etcd members", False)
    assert dict(order)["Run the kubelets"] is False
    assert dict(order)["Run kube-proxy"] is True


def test_without_work_on_a_machine_ansible_is_not_started(session: Session, recorder: Recorder, printed: io.StringIO) -> None:
    """The cluster's own objects are applied all the same: their differences are no machine's."""
    todo = (recorder.python("objects", alongside="nodes"), Phase("nodes", "Run the nodes"), recorder.python("settle"))
    session.display.plan([(phase.name, phase.title) for phase in todo])
    phases.run(replace(session, plan=Plan((Change(CLUSTER, "objects", "object", "Service dns", "create"),))), todo)
    assert recorder.done == ["objects", "settle"]
    assert "Run the nodes nothing to do" in printed.getvalue()


def test_a_companions_error_is_the_runs_error(session: Session, recorder: Recorder, printed: io.StringIO) -> None:
    failing = recorder.python("objects", fail=ProvisionerError("the API refuses"), alongside="nodes")
    with pytest.raises(ProvisionerError, match="the API refuses"):
        run(session, failing, Phase("nodes", "Run the nodes"), recorder.python("settle"))
    assert "settle" not in recorder.done
    assert "Title of objects FAILED" in printed.getvalue()


def test_the_cause_of_a_failure_is_told_first(session: Session, recorder: Recorder) -> None:
    """Kubelets cannot join when the objects that let them could not be applied: the objects are what to look at."""
    recorder.fail_in, recorder.failures = "nodes", [Failure("worker-1", "Run the kubelet", "kubelet", "no certificate")]
    failing = recorder.python("objects", fail=ProvisionerError("the API refuses"), alongside="nodes")
    with pytest.raises(ProvisionerError, match="the API refuses"):
        run(session, failing, Phase("nodes", "Run the nodes"), recorder.python("settle"))
    fine = recorder.python("objects", alongside="nodes")
    with pytest.raises(ApplyError, match="worker-1"):
        run(session, fine, Phase("nodes", "Run the nodes"), recorder.python("settle"))
    assert "settle" not in recorder.done


def test_a_failed_phase_stops_the_run_and_is_on_record(session: Session, recorder: Recorder, printed: io.StringIO) -> None:
    with pytest.raises(ProvisionerError, match="no disk"):
        run(session, recorder.python("a", fail=ProvisionerError("no disk")), recorder.python("b"))
    assert recorder.done == ["a"]
    assert "Title of a FAILED" in printed.getvalue()
    records = [json.loads(line) for line in session.workspace.journal.read_text().splitlines()]
    assert [(record["phase"], record["state"]) for record in records] == [("a", "started"), ("a", "failed")]
    assert records[1]["error"] == "no disk"


def test_a_failure_says_host_task_reason_journal_and_how_to_go_on(session: Session, recorder: Recorder) -> None:
    recorder.fail_in = "etcd"
    recorder.failures = [
        Failure(
            "cp-1", "Wait until healthy", "etcd", "not healthy within 120 s\nmore", "etcd.service", ("first line", "last line")
        ),
        Failure("cp-2", "", "", "Failed to connect", unreachable=True),
    ]
    with pytest.raises(ApplyError) as failed:
        run(session, Phase("etcd", "Run etcd"), Phase("nodes", "Run the nodes"))
    error = failed.value
    assert error.message == "cp-1: Wait until healthy: not healthy within 120 s"
    text = "\n".join(error.details)
    assert "cp-1: etcd : Wait until healthy: not healthy within 120 s\nmore" in text
    assert "last lines of etcd.service on cp-1:\n    first line\n    last line" in text
    assert "does not answer: Failed to connect" in text
    assert str(session.log) in text
    assert f"provisioner apply --cluster {session.workspace.cluster_file}" in error.hint


# -- what is given to Ansible ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [False, True])
def test_restarts_are_serial_where_the_service_runs(session: Session, monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    """A new cluster's members start together, for one alone has no quorum; members of a running one restart one by one."""
    given: dict[str, Any] = {}

    def capture(playbooks: tuple[str, ...], **options: Any) -> Tally:
        given.update(options, playbooks=playbooks)
        tally = Tally(lambda step: None)
        tally.counts["cp-1"] = Counter(executed=3, changed=1)
        tally.seconds[("play", "task")] = 1.234
        return tally

    monkeypatch.setattr(runner, "play", capture)
    units = {unit: {"active": active} for unit in ("etcd.service", "kube-apiserver.service", "kubelet.service")}
    actual: dict[str, dict[str, object]] = {"cp-1": {"units": {}}, "cp-2": {"units": units}, "etcd-1": {"units": units}}
    plays.play(replace(session, actual=actual), ("etcd",))
    batch = 1 if active else "100%"
    batches = {"etcd_batch": batch, "kube_apiserver_batch": batch, "node_batch": batch}
    assert given["variables"] == {**batches, "node_gate": active, "aside_limit": 1}
    record = json.loads(session.workspace.journal.read_text().splitlines()[-1])
    assert record["event"] == "playbooks"
    assert record["counts"] == {"cp-1": {"executed": 3, "changed": 1}}
    assert record["seconds"] == {"play | task": 1.23}


def test_founding_members_start_together_also_after_a_first_run_was_cut_short(session: Session) -> None:
    units = {"etcd.service": {"active": True}}
    assert plays.pace(replace(session, actual={"cp-1": {"units": units}}))["etcd_batch"] == "100%"
    assert plays.pace(replace(session, actual={"cp-1": {"units": units}, "cp-2": {"units": units}}))["etcd_batch"] == 1


def test_every_phase_has_a_name_of_its_own_and_a_title() -> None:
    every = (*phases.LOOK, *phases.CHANGE)
    assert len({phase.name for phase in every}) == len(every)
    assert all(phase.title[0].isupper() for phase in every)
    assert phases.names() == tuple(phase.name for phase in phases.CHANGE)
    # looking changes nothing on a machine: no playbook among those phases
    assert all(phase.run is not None for phase in phases.LOOK)


def test_a_phase_is_chosen_with_what_it_needs() -> None:
    def chosen(**options: Any) -> list[str]:
        return [phase.name for phase in phases.choose(**options)]

    assert chosen() == list(phases.names())
    assert chosen(skip_verify=True) == list(phases.names())[:-1]
    assert chosen(only="etcd") == ["etcd"]
    # artifacts go in bundles, and kubelets join with tokens
    assert chosen(only="machines") == ["packages", "bundles", "machines"]
    assert chosen(only="nodes") == ["objects", "nodes"]
    assert chosen(start="control_plane") == ["control_plane", "objects", "nodes", "settle", "drain", "leave", "verify"]
    assert chosen(start="nodes", skip_verify=True) == ["objects", "nodes", "settle", "drain", "leave"]
    # nothing is taken away from under pods
    assert chosen(only="leave") == ["drain", "leave"]
    for wrong in ({"only": "etdc"}, {"start": ""}):
        with pytest.raises(BadInput, match="there is no phase"):
            phases.choose(**wrong)  # type: ignore[arg-type]  # one of the two options by name


def test_objects_alone_start_no_ansible(session: Session, recorder: Recorder) -> None:
    run(session, recorder.python("objects", alongside="nodes"))
    assert recorder.done == ["objects"]


def test_a_silent_api_is_passed_over_only_where_the_run_may_bring_it_back() -> None:
    silent, refused = ClusterApiError("no control plane answers"), ClusterApiError("forbidden", status=403)
    etcd = Change("cp-1", "etcd", "unit", "etcd.service", "start (is inactive/dead)")
    other = Change("cp-1", "kubelet", "unit", "kubelet.service", "start (is inactive/dead)")
    assert steps._may_serve_again(silent, [other, etcd])
    assert steps._may_serve_again(ClusterApiError("etcdserver: request timed out", status=500), [etcd])
    assert not steps._may_serve_again(silent, [other])
    assert not steps._may_serve_again(refused, [etcd])
