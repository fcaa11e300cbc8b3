"""`apply` is killed at random moments of all kinds of work; the next `apply` converges, and nothing of the killed run is left.

The rounds share a lab and run in their order; each begins with the cluster that the one before has left converged. A round is a
scenario (work for `apply`), a moment in it, and a blow; all three by the seed. Five rounds differ in scenario and in blow; those of
the short form are three: a cluster is built, grows from one control plane to three, and shrinks to one again.

``KILLS=full`` is the long form, 30 rounds (`make drill-kills`). ``KILLS_SEED`` chooses other rounds, ``KILLS_ROUNDS`` how many,
``KILLS_OUT`` names a file for the figures.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner import objects, pki
from provisioner.etcd_api import EtcdApi
from tests.e2e.kills import cluster, controller, machines
from tests.e2e.kills.blows import BLOWS
from tests.e2e.kills.record import Record, Round
from tests.e2e.kills.scenarios import LENGTH, LENGTHS, SCENARIOS
from tests.e2e.kills.site import SHAPE, Layout, Site

pytestmark = pytest.mark.e2e

Real = Any  # tests/e2e/conftest.py's

FULL = os.environ.get("KILLS") == "full"
SEED = int(os.environ.get("KILLS_SEED", "75" if FULL else "117"))
ROUNDS = int(os.environ.get("KILLS_ROUNDS", "30" if FULL else "3"))


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """The rounds' figures, printed and written at the end."""
    found = Record(SEED)
    yield found
    # past pytest's capture: the figures are what a run is for, also where everything passes
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print(f"\n{found.text()}", flush=True)


@pytest.fixture(scope="module")
def site(bare_lab: Callable[..., contextlib.AbstractContextManager[Real]]) -> Iterator[Site]:
    """One control plane, one worker and three spare machines, with nothing on them."""
    with bare_lab(*SHAPE) as real, tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as temporary:
        made = Site(real, Path(temporary))
        made.write(Layout())
        machines.remember(made)
        try:
            yield made
        finally:
            made.kill_all()


class Choice:
    """What a round does, by seed, number and history: scenarios and blows that were seldom come first."""

    def __init__(self, site: Site, record: Record, number: int) -> None:
        self.chance = random.Random(f"{SEED}-{number}")  # noqa: S311 - repeatable, not secret
        scenarios = Counter(one.scenario for one in record.rounds)
        blows = Counter(one.blow.split(":")[0] for one in record.rounds)
        fitting = [name for name, one in SCENARIOS.items() if one.fits(site.layout)]
        self.scenario = "build" if number == 1 else self._seldom(fitting, scenarios)
        self.blow = self._seldom(list(BLOWS), blows)
        scenario = SCENARIOS[self.scenario]
        if self.chance.random() < 0.25:
            self.phase, self.delay = "", self.chance.uniform(0.5, scenario.seconds)
        else:
            self.phase = self.chance.choice(scenario.phases)
            self.delay = self.chance.uniform(0, LENGTHS.get(self.phase, LENGTH))

    def _seldom(self, names: list[str], counts: Counter[str]) -> str:
        least = min(counts[name] for name in names)
        return self.chance.choice([name for name in names if counts[name] == least])

    def __str__(self) -> str:
        return f"{self.phase} + {self.delay:.1f} s" if self.phase else f"after {self.delay:.1f} s"


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_the_next_apply_converges(site: Site, record: Record, number: int) -> None:
    if number > 1:
        assert site.first, "the first round has failed: there is no cluster"
    choice = Choice(site, record, number)
    began = time.monotonic()
    SCENARIOS[choice.scenario].make(site, choice.chance)
    with site.applying() as driver:
        moment = driver.reach(choice.phase, choice.delay)
        struck = BLOWS[choice.blow](site, driver, choice.chance)
        fallen = time.monotonic()
        about = f"seed {SEED}, round {number}: {choice.scenario}, {choice}, in {moment.phase or 'no phase'}: {struck.what}"
        print(f"{about}: exit {struck.code}, alive still: {list(struck.left)}\n{driver.output}")
    wrong = [] if struck.code in struck.codes else [f"exit code {struck.code}, not one of {struck.codes}"]
    wrong += [f"exit code {struck.code}, though nothing had happened to it"] if moment.missed and struck.code else []
    wrong += ["a traceback"] if "Traceback" in driver.output else []
    if struck.attempts > 1:
        site.all_on()
        fallen = time.monotonic()
    attempts, complaint = converge(site, struck.attempts)
    converged = time.monotonic() - fallen
    wrong += [complaint] if complaint else violations(site)
    record.rounds.append(
        Round(
            number=number,
            scenario=choice.scenario,
            at=str(choice),
            phase=moment.phase,
            blow=f"{choice.blow}: {struck.what}",
            missed=moment.missed,
            code=struck.code,
            left=struck.left,
            attempts=attempts,
            converged=round(converged, 1),
            seconds=round(time.monotonic() - began, 1),
            wrong=tuple(wrong),
        )
    )
    # after each round: a run of half an hour may be stopped
    if out := os.environ.get("KILLS_OUT"):
        record.write(Path(out))
    assert not wrong, f"{about}:\n" + "\n".join(f"- {line}" for line in wrong)


def converge(site: Site, attempts: int) -> tuple[int, str]:
    """`apply` until it ends with 0; returns how many it took, and the last one's complaint."""
    for attempt in range(1, attempts + 1):
        done = site.cli("apply", "--yes", "--skip-verify")
        if done.returncode == 0:
            return attempt, ""
        print(done.stderr)
    return attempts, f"`apply` ended with {done.returncode} {attempts} times: {done.stderr[-3000:]}"


def violations(site: Site) -> list[str]:
    """All that does not hold, the plan first."""
    if not site.first:
        cluster.remember(site)
    planned = site.cli("plan", "--json")
    wrong = (
        []
        if planned.returncode == 0
        else [f"plan ended with {planned.returncode}: {planned.stdout[-3000:]} {planned.stderr[-2000:]}"]
    )
    if not wrong:
        document = json.loads(planned.stdout)
        wrong += [f"plan has {change}" for change in document["changes"]]
        wrong += [f"plan sets aside {one}" for one in document["setAside"]]
    return [*wrong, *cluster.violations(site), *machines.violations(site), *controller.violations(site)]


# What the invariants are for, done on purpose; after it the cluster is of no use to anybody.
DAMAGE = """
set -e
touch /etc/kubernetes/.provisioner-half /etc/kubernetes/kubelet/bootstrap.kubeconfig
mkdir -p /dev/shm/ansible-tmp-1 && touch /dev/shm/ansible-tmp-1/provisioner.bundle
cp /usr/local/bin/flanneld /usr/local/bin/copy && mv /usr/local/bin/copy /usr/local/bin/flanneld
mkdir -p /run/systemd/system/kube-proxy.service.d
printf '[Service]\\nEnvironment=PROVISIONER_HASH=older\\n' >/run/systemd/system/kube-proxy.service.d/older.conf
systemctl daemon-reload && systemctl restart kube-proxy && systemctl stop provisioner-api-proxy
"""


def test_each_invariant_can_fail(site: Site) -> None:
    assert site.first, "the first round has failed: there is no cluster"
    with site.api() as (now, connections, issued, api):
        done = connections.run(now.node("worker-1"), DAMAGE, timeout=60)
        assert done.code == 0, done.stderr
        api.create(objects.bootstrap_secret(pki.new_bootstrap_token(), now.node("worker-1"), dt.datetime.now(dt.UTC)))
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "provisioner-verify-1"}})
        api.delete({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}})
        labels = {"node-role.kubernetes.io/etcd-of-others": ""}
        api.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "worker-1", "labels": labels},
                "spec": {"unschedulable": True},
            }
        )
        with EtcdApi(now.etcd_members[0], site.real.workspace, connections, issued) as etcd:
            etcd.add_learner("https://192.0.2.1:2380")
    of_cluster = "\n".join(cluster.violations(site, seconds=1))
    for text in (
        "https://192.0.2.1:2380",
        "Node worker-1 is cordoned",
        "etcd-of-others",
        "Namespace provisioner-verify-1 is new",
        "Service kube-system/kube-dns was ",
        "a bootstrap token is left",
    ):
        assert text in of_cluster, text
    outside = site.gone[:1]
    with site.connected() as (whole, connections):
        for name in outside:
            connections.run(whole.node(name), "mkdir -p /etc/kubernetes && touch /etc/kubernetes/left", timeout=60)
    of_machines = "\n".join(machines.violations(site))
    for text in (
        "worker-1: kube-proxy.service runs ['older'], on disk is",
        "worker-1: provisioner-api-proxy.service is inactive",
        "flanneld.service runs /usr/local/bin/flanneld (deleted)",
        "left behind: /etc/kubernetes/.provisioner-half",
        "bootstrap.kubeconfig",
        "left behind: /dev/shm/ansible-tmp-1",
        *(f"{name}, which is not in cluster.yaml: files: new: /etc/kubernetes/left" for name in outside),
    ):
        assert text in of_machines, f"{text}\n{of_machines}"
    root = site.real.workspace.root
    for path in (root / ".client-abcdefgh", root / "rendered" / ".cp-1.json.abcdefgh", root / "bundles", site.temporary / "pv-1"):
        path.mkdir()
    (root / "pki" / "nodes" / "other.pem").touch()
    with subprocess.Popen(["sleep", "60"], env={"TMPDIR": str(site.temporary)}) as process:
        try:
            of_controller = "\n".join(controller.violations(site))
        finally:
            process.kill()
    for text in (".client-abcdefgh", ".cp-1.json.abcdefgh", "bundles", "pv-1", "pki/nodes has", "a process is left"):
        assert text in of_controller, text
