"""From Kubernetes 1.35.4 to 1.36.3 under load: writers through a node's own proxy, and a client of a Service with two pods.

The short form, CI's: `upgrade` is killed in the midst of a drained machine, goes on, meets a machine on which the new kubelet
cannot start, puts that one back, and comes to its end once the machine is mended. ``UPGRADE=full`` (`make drill-upgrade`) is one
undisturbed run, measured against its bar; ``UPGRADE_OUT`` names a file for the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import IO, Any

import pytest

from provisioner.artifacts.lock import load_lock
from provisioner.upgrade.pin import pinned
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills import figures, kit
from tests.e2e.drills.figures import Bar, Event, Window
from tests.e2e.drills.kit import PATIENCE, Kit
from tests.e2e.drills.record import Record, kept

pytestmark = pytest.mark.e2e

Real = Any  # tests/e2e/conftest.py's

FULL = os.environ.get("UPGRADE") == "full"
SEED = int(os.environ.get("UPGRADE_SEED", "6"))
OLD, NEW = "1.35.4", "1.36.3"
WRITER, BROKEN = "worker-1", "worker-2"
# Go through the upgrade too; not in the measured run.
ADDONS = "\naddons: {metricsServer: true, localPath: true}\n"
# Seconds of the whole command; asserted with a factor of three, for the machine that runs this may be slow.
BAR = 240.0
# A kubelet that does not start where it is the new one: as one that meets a kernel it cannot do with.
DROP_IN = "/etc/systemd/system/kubelet.service.d/10-test.conf"
REFUSES = f"[Service]\nExecStartPre=/bin/sh -c '! /usr/local/bin/kubelet --version | grep -q v{NEW}'\n"


class Site(Kit):
    """A kit whose Service is a Deployment of two pods with a budget, which end as a web server should: late, and answering."""

    def deploy(self) -> None:
        image = load_lock().image("agnhost", OLD)
        labels = {"matchLabels": {"app": "workers"}}
        container = {
            "name": "web",
            "image": image,
            # the endpoint is gone from every node's rules before the server is
            "args": ["netexec", f"--http-port={kit.HTTP_PORT}", "--delay-shutdown=5"],
            "readinessProbe": {"httpGet": {"path": "/hostname", "port": kit.HTTP_PORT}, "periodSeconds": 1},
        }
        spec = {"terminationGracePeriodSeconds": 30, "automountServiceAccountToken": False, "containers": [container]}
        template = {"metadata": {"labels": {"app": "workers"}}, "spec": spec}
        self.api.apply(
            self.object("apps/v1", "Deployment", "workers", spec={"replicas": 2, "selector": labels, "template": template})
        )
        self.api.apply(self.object("policy/v1", "PodDisruptionBudget", "workers", spec={"minAvailable": 1, "selector": labels}))
        ports = [{"port": 80, "targetPort": kit.HTTP_PORT}]
        self.api.apply(self.object("v1", "Service", "workers", spec={"selector": {"app": "workers"}, "ports": ports}))

        def ready() -> None:
            status = (self.api.get(self.object("apps/v1", "Deployment", "workers")) or {}).get("status") or {}
            if status.get("readyReplicas") != 2:
                raise NotYet(str(status))

        wait_until("two pods", ready, seconds=PATIENCE)

    def node(self, name: str) -> dict[str, Any]:
        """A Node as the API has it."""
        return dict(self.api.request("GET", f"/api/v1/nodes/{name}").json())

    def kubelets(self) -> dict[str, str]:
        """Every kubelet's version."""
        nodes = self.api.items("/api/v1/nodes")
        return {node["metadata"]["name"]: node["status"]["nodeInfo"]["kubeletVersion"].removeprefix("v") for node in nodes}


@pytest.fixture(scope="module")
def old(bare_lab: Callable[..., contextlib.AbstractContextManager[Real]]) -> Iterator[Real]:
    """Three control planes and two workers with the older version."""
    with bare_lab("--control-planes", "3", "--workers", "2") as real:
        path = real.workspace.cluster_file
        path.write_text(pinned(path.read_text(), OLD) + ("" if FULL else ADDONS))
        built = real.cli("apply", "--yes", "--skip-verify")
        assert built.returncode == 0, f"{built.stdout}\n{built.stderr}"
        yield real


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """The figures, printed and written at the end."""
    with kept(Record(SEED, FULL), request.config, "UPGRADE_OUT") as found:
        yield found


def test_what_is_refused_changes_nothing(old: Real) -> None:
    with old.edited(lambda text: pinned(text, NEW)):
        for command in (("apply", "--yes"), ("plan",), ("node", "remove", "worker-2", "--yes"), ("certs", "renew", "--yes")):
            done = old.cli(*command)
            assert done.returncode == 3, done.stderr
            assert f"cluster.yaml says Kubernetes v{NEW}, and v{OLD} is the API server of cp-1" in done.stderr
            assert "`provisioner upgrade`" in done.stderr
    unknown = old.cli("upgrade", "--to", "1.99.0", "--yes", "--plain")
    assert unknown.returncode == 3
    assert "1.99.0" in unknown.stderr
    without_key = old.cli("upgrade", "--to", NEW, "--yes")
    assert without_key.returncode == 3
    assert "`--passphrase-file FILE`" in without_key.stderr
    unasked = old.cli("upgrade", "--to", NEW, "--plain")
    assert unasked.returncode == 3
    assert "nobody to ask" in unasked.stderr
    planned = old.cli("upgrade", "--to", NEW, "--plan", "--json")
    assert planned.returncode == 2, planned.stderr
    document = json.loads(planned.stdout)
    assert document["hops"] == [NEW]
    assert document["waves"] == [["cp-1"], ["cp-2"], ["cp-3"], ["worker-1"], ["worker-2"]]
    assert set(document["running"]["kubelets"].values()) == {OLD}
    same = old.cli("upgrade")
    assert same.returncode == 0, same.stderr
    assert "nothing to do" in same.stderr
    assert OLD in old.workspace.cluster_file.read_text()
    assert old.plan() == []


def test_under_load(old: Real, record: Record) -> None:
    with Site.of(old) as site:
        assert isinstance(site, Site)
        site.deploy()
        with site.load(WRITER) as load:
            load.wait_for_acknowledgements(20)
            began = kit.now()
            seconds = undisturbed(old) if FULL else disturbed(old, site)
            ended = kit.now()
            load.wait_for_acknowledgements(20)
            events = load.stop()
        assert set(site.kubelets().values()) == {NEW}
        assert not any(site.node(node.name)["spec"].get("unschedulable") for node in old.cluster.kubernetes_nodes)
        judge(site, record, events, Window(began, ended), seconds)
    assert NEW in old.workspace.cluster_file.read_text()
    assert old.plan() == []
    done = old.cli("verify", "--json")
    assert done.returncode == 0, done.stdout
    passed = {check["id"] for check in json.loads(done.stdout)["checks"] if check["outcome"] == "passed"}
    assert FULL or {"metrics", "storage"} <= passed
    again = old.cli("upgrade")
    assert again.returncode == 0, again.stderr


def judge(site: Kit, record: Record, events: list[Event], window: Window, seconds: float) -> None:
    """No acknowledged write is lost, and no request to the Service has failed."""
    lost, polls = site.lost(events), figures.polls(events, window)
    gap = max(figures.longest_gap(figures.acknowledgements(events, client), window) for client in figures.CLIENTS)
    bar = Bar("seconds", round(seconds, 1), BAR)
    record.add(
        f"{OLD} -> {NEW}, 3 + 2" + ("" if FULL else ", killed once, one machine put back"),
        [bar] if FULL else [],
        seconds=round(seconds, 1),
        lost=lost,
        service=asdict(polls),
        longest_time_without_a_write=round(gap, 2),
        writes={client: asdict(figures.writes(events, client, window)) for client in figures.CLIENTS},
        errors=figures.errors(events),
    )
    assert not lost
    assert polls.failed == 0, [event for event in events if event["kind"] == "poll" and event["error"]]
    assert gap < 30, "ten times the bar of 3 s, for the machine that runs this may be slow"
    assert not FULL or seconds < 3 * BAR


def undisturbed(real: Real) -> float:
    """One run from beginning to end; its seconds."""
    began = time.monotonic()
    done = real.cli("upgrade", "--to", NEW, "--yes", "--plain")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(done.stderr)
    return time.monotonic() - began


def disturbed(real: Real, site: Site) -> float:
    """Killed while a machine is drained or changed; stopped by a machine that fails; then to its end. The seconds of all three."""
    began = time.monotonic()
    chance = random.Random(SEED)  # noqa: S311 - a seeded choice, no secret
    place = chance.choice(["cp-2", "cp-3", "worker-1"])
    with real.started("upgrade", "--to", NEW, "--yes", "--plain") as process:
        read_until(process, f"{NEW}: {place} …")
        time.sleep(chance.uniform(0.0, 6.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert OLD in site.kubelets().values(), "killed before its end"
    with broken(real):
        failed = real.cli("upgrade", "--yes", "--no-backup")
        assert failed.returncode == 1, f"{failed.stdout}\n{failed.stderr}"
        assert f"{BROKEN} runs {OLD} again" in failed.stderr
        assert "`provisioner upgrade` goes on" in failed.stderr
        node = site.node(BROKEN)
        assert site.kubelets() == {**dict.fromkeys(site.kubelets(), NEW), BROKEN: OLD}
        assert not node["spec"].get("unschedulable"), "it serves again"
        assert {item["status"] for item in node["status"]["conditions"] if item["type"] == "Ready"} == {"True"}
    done = real.cli("upgrade", "--yes", "--no-backup", "--json")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert [name for name in json.loads(done.stdout)["seconds"] if name.startswith(f"{NEW} worker")] == [f"{NEW} {BROKEN}"]
    return time.monotonic() - began


@contextlib.contextmanager
def broken(real: Real) -> Iterator[None]:
    """A machine on which the new kubelet does not start."""
    real.run(BROKEN, f"mkdir -p $(dirname {DROP_IN}); cat >{DROP_IN}; systemctl daemon-reload", stdin=REFUSES.encode())
    try:
        yield
    finally:
        real.run(BROKEN, f"rm -r $(dirname {DROP_IN}); systemctl daemon-reload")


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read a command's progress until a line holds a text."""
    stream: IO[str] | None = process.stderr
    assert stream
    seen = []
    for line in stream:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"no {text!r} in: {''.join(seen)}")
