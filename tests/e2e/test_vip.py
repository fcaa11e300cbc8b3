"""The virtual address of the API moves when its holder dies, loses its apiserver, or loses its peers; and is held exactly once."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner.errors import ProvisionerError
from provisioner.tls_client import client_context
from provisioner.topology import APISERVER_PORT
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

# Generous: the machine that runs the tests may be slow and busy. What it takes is printed.
SECONDS = 60.0
PLANES = ("cp-1", "cp-2", "cp-3")
UNIT = "provisioner-vip.service"


@dataclass
class Caller:
    """A user of the address: a fresh connection every 50 ms, one second for each answer."""

    address: str
    tls: ssl.SSLContext
    answers: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def ask(self, path: str = "/livez") -> bytes:
        """One request.

        Raises:
            OSError, http.client.HTTPException: no answer; AssertionError: a wrong one.
        """
        connection = http.client.HTTPSConnection(self.address, APISERVER_PORT, timeout=1, context=self.tls)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, body
        return body

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask all the time, and note when there was an answer."""

        def loop() -> None:
            while not self._over.wait(0.05):
                with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                    self.ask()
                    self.answers.append(time.monotonic())

        thread = threading.Thread(target=loop)
        self._over.clear()
        self.answers.clear()
        thread.start()
        try:
            wait_until("the address answers", self.answered, seconds=SECONDS, every=0.05)
            yield
        finally:
            self._over.set()
            thread.join()

    def answered(self, since: float = 0.0) -> None:
        """Whether there was an answer after that moment of the monotonic clock; for ``wait_until``."""
        if not self.answers or self.answers[-1] < since:
            raise NotYet("no answer")

    @property
    def gap(self) -> float:
        """The longest time without an answer, in seconds."""
        return max((after - before for before, after in zip(self.answers, self.answers[1:], strict=False)), default=0.0)


@dataclass
class Vip:
    """The cluster under test and its virtual address."""

    real: Any
    address: str

    def caller(self) -> Caller:
        """The administrator, as the kubeconfig has it."""
        config = yaml.safe_load(self.real.workspace.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        assert cluster["server"] == f"https://{self.address}:{APISERVER_PORT}"
        ca, certificate, key = (
            base64.b64decode(data)
            for data in (cluster["certificate-authority-data"], user["client-certificate-data"], user["client-key-data"])
        )
        return Caller(self.address, client_context(ca, certificate, key))

    def holders(self, planes: tuple[str, ...] = PLANES) -> list[str]:
        return [name for name in planes if f" {self.address}/" in self.real.run(name, "ip -4 -oneline address show")]

    def one_holder(self, *, of: tuple[str, ...] = PLANES) -> str:
        """Wait until exactly one of these machines holds the address."""

        def look() -> str:
            try:
                found = self.holders(of)
            except (ProvisionerError, AssertionError) as error:
                raise NotYet(str(error)) from None
            if len(found) != 1:
                raise NotYet(f"held by {found}")
            return found[0]

        return wait_until(f"{self.address} is held once", look, seconds=SECONDS, every=0.1)

    def verify(self) -> tuple[int, str]:
        done = self.real.cli("verify", "--only", "virtual-address", "--json")
        (check,) = json.loads(done.stdout)["checks"]
        return done.returncode, "\n".join([check["evidence"], *check["failures"]])

    def ready(self, plane: str) -> None:
        """Wait until keepalived finds a machine's apiserver in order."""

        def look() -> None:
            if self.real.connections.run(self.real.cluster.node(plane), "/etc/provisioner/vip-health", timeout=10).code:
                raise NotYet("unhealthy")

        wait_until(f"{plane} is healthy", look, seconds=SECONDS, every=0.2)
        # keepalived asks every second, and believes the second answer
        time.sleep(3)


@pytest.fixture(scope="module")
def vip(bare_lab: Callable[..., AbstractContextManager[Any]]) -> Iterator[Vip]:
    with bare_lab("--control-planes", "3", "--workers", "1") as real:
        network = IPv4Network(f"{real.cluster.nodes[0].ip}/24", strict=False)
        address = str(network[100])
        file: Path = real.workspace.cluster_file
        file.write_text(f"{file.read_text()}\ncontrolPlaneEndpoint:\n  host: {address}\n  vip: {{}}\n")
        # ends with `verify`, which looks at the address too
        done = real.cli("apply", "--yes")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield Vip(real, address)


def test_users_reach_the_api_by_an_address_that_one_machine_holds(vip: Vip) -> None:
    holder = vip.one_holder()
    nodes = json.loads(vip.caller().ask("/api/v1/nodes"))["items"]
    assert len(nodes) == 4
    code, evidence = vip.verify()
    assert code == 0
    assert f"held by {holder}" in evidence
    assert "from 4 machines" in evidence
    assert vip.real.plan() == []
    for plane in PLANES:
        log = vip.real.run(plane, f"journalctl --unit {UNIT} --no-pager --output cat")
        assert "VRRP_Script(apiserver) succeeded" in log, "its health is asked, and good"
        assert "keepalived" not in vip.real.run(plane, "nft list tables")
    assert not vip.real.run("worker-1", f"systemctl list-unit-files --no-legend {UNIT}", check=False).strip()


def test_a_second_holder_is_found_and_named(vip: Vip) -> None:
    holder = vip.one_holder()
    other = next(name for name in PLANES if name != holder)
    vip.real.run(other, f"ip address add {vip.address}/32 dev eth0")
    try:
        code, seen = vip.verify()
        assert code == 5
        assert all(name in seen for name in (holder, other)), seen
    finally:
        vip.real.run(other, f"ip address delete {vip.address}/32 dev eth0")
    assert vip.one_holder() == holder


def test_it_moves_when_its_holder_vanishes(vip: Vip) -> None:
    holder = vip.one_holder()
    others = tuple(name for name in PLANES if name != holder)
    machine, caller = vip.real.machine(holder), vip.caller()
    with caller.asking():
        cut = time.monotonic()
        machine.cut_link()
        machine.power_off()
        # an answer that began a second after the cut came from elsewhere
        wait_until("it answers again", lambda: caller.answered(cut + 1.0), seconds=SECONDS, every=0.05)
        heir = vip.one_holder(of=others)
    print(f"{holder} cut off and killed: no answer for {caller.gap:.2f} s; {heir} has the address")
    machine.start()
    vip.ready(holder)
    assert vip.one_holder() == heir, "who returns takes nothing back"


def test_it_moves_before_a_stopping_apiserver_is_gone(vip: Vip) -> None:
    holder = vip.one_holder()
    caller = vip.caller()
    try:
        with caller.asking():
            vip.real.run(holder, "systemctl stop kube-apiserver")
            heir = vip.one_holder(of=tuple(name for name in PLANES if name != holder))
            now = time.monotonic()
            wait_until("it answers", lambda: caller.answered(now), seconds=SECONDS, every=0.05)
        print(f"apiserver of {holder} stopped: no answer for {caller.gap:.2f} s; {heir} has the address")
        assert vip.one_holder() == heir
    finally:
        vip.real.run(holder, "systemctl start kube-apiserver")
    vip.ready(holder)
    assert vip.one_holder() == heir


def test_two_holders_that_hear_each_other_again_are_one(vip: Vip) -> None:
    """A network that lets everything but VRRP through: both sides think they are alone."""
    holder = vip.one_holder()
    deaf = "".join(
        f"table ip deaf {{\n chain {hook} {{\n type filter hook {hook} priority -300;\n ip protocol vrrp drop;\n }}\n}}\n"
        for hook in ("input", "output")
    )
    vip.real.run(holder, "nft -f -", stdin=deaf.encode())
    try:

        def two() -> None:
            if len(found := vip.holders()) != 2:
                raise NotYet(f"held by {found}")

        wait_until("there are two holders", two, seconds=SECONDS, every=0.1)
    finally:
        vip.real.run(holder, "nft delete table ip deaf")
    caller = vip.caller()
    with caller.asking():
        vip.one_holder()
        now = time.monotonic()
        wait_until("it answers", lambda: caller.answered(now), seconds=SECONDS, every=0.05)
    assert vip.verify()[0] == 0


def test_a_reload_moves_nothing(vip: Vip) -> None:
    """That is how peers come and go; the contract tests show that a changed list of them asks for a reload."""
    holder = vip.one_holder()
    caller = vip.caller()
    with caller.asking():
        vip.real.run(holder, f"systemctl reload {UNIT} && sleep 2")
        now = time.monotonic()
        wait_until("it answers", lambda: caller.answered(now), seconds=SECONDS, every=0.05)
    print(f"reload on {holder}: no answer for {caller.gap:.2f} s")
    assert vip.one_holder() == holder
    # a file with an error is refused, and the holder goes on
    vip.real.run(holder, "cp /etc/provisioner/vip.conf /run/vip.conf && echo 'vrrp_instance api {' >> /etc/provisioner/vip.conf")
    try:
        vip.real.run(holder, f"systemctl reload {UNIT}", check=False)
        assert vip.one_holder() == holder
        assert vip.real.run(holder, f"systemctl is-active {UNIT}").strip() == "active"
    finally:
        vip.real.run(holder, "cat /run/vip.conf > /etc/provisioner/vip.conf")
