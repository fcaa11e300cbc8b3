"""Care of etcd against three real members with the real certificates: full databases, defragmentation, a member that is down.

Only the SSH forwards are not there: the members listen on this machine itself.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from provisioner import artifacts
from provisioner import pki as pki_module
from provisioner.artifacts.wants import wants_of
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import EtcdApi, EtcdError
from provisioner.lifecycle import etcd
from provisioner.pki import CaName, Pki
from provisioner.status import etcd as etcd_status
from provisioner.wait import wait_until
from provisioner.workspace import Workspace

NAMES = ("m-1", "m-2", "m-3")
MIB = 1 << 20
QUOTA = 16 * MIB
PATIENCE = 120.0
BLOB = 400_000


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(number)]


@dataclass
class Members:
    """Three etcd processes. Stands for the SSH connections too: a forward to a member is its port on this machine."""

    binary: Path
    directory: Path
    cluster: Cluster
    pki: Pki
    quota: int = QUOTA
    ports: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def forward(self, node: Node, port: int, host: str = "127.0.0.1") -> Any:
        assert (port, host) == (2379, "127.0.0.1")
        return contextlib.nullcontext(SimpleNamespace(port=self.ports[node.name][0], error=""))

    @contextlib.contextmanager
    def apis(self) -> Iterator[tuple[EtcdApi, ...]]:
        connections: Any = self
        with etcd.opened(self.cluster, Workspace(self.directory / "w", self.directory / "x"), connections, self.pki) as found:
            yield found

    def start(self, name: str) -> None:
        home = self.directory / name
        home.mkdir(exist_ok=True)
        (home / "ca.crt").write_bytes(self.pki.cas[CaName.ETCD].certificate)
        for kind in ("server", "peer"):
            leaf = self.pki.leaf(f"etcd-{kind}", name)
            (home / f"{kind}.crt").write_bytes(leaf.certificate)
            (home / f"{kind}.key").write_bytes(leaf.key)
        client, peer, metrics = self.ports[name]
        flags = {
            "name": name,
            "data-dir": home / "data",
            "listen-client-urls": f"https://127.0.0.1:{client}",
            "advertise-client-urls": f"https://127.0.0.1:{client}",
            "listen-peer-urls": f"https://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"https://127.0.0.1:{peer}",
            "listen-metrics-urls": f"http://127.0.0.1:{metrics}",
            "initial-cluster": ",".join(f"{one}=https://127.0.0.1:{self.ports[one][1]}" for one in NAMES),
            "client-cert-auth": "true",
            "trusted-ca-file": home / "ca.crt",
            "cert-file": home / "server.crt",
            "key-file": home / "server.key",
            "peer-client-cert-auth": "true",
            "peer-trusted-ca-file": home / "ca.crt",
            "peer-cert-file": home / "peer.crt",
            "peer-key-file": home / "peer.key",
            "quota-backend-bytes": self.quota,
            # the test is not about this machine's disk
            "unsafe-no-fsync": "true",
            "election-timeout": 5000,
            "heartbeat-interval": 500,
        }
        with (home / "log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(self.binary), *(f"--{flag}={value}" for flag, value in flags.items())], stdout=log, stderr=log
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def whole(self) -> None:
        with self.apis() as apis:
            wait_until(
                "every member sees the leader", lambda: etcd.require_whole(apis), seconds=PATIENCE, retry_on=(ProvisionerError,)
            )


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    directory = tmp_path_factory.mktemp("etcd")
    (directory / "w").mkdir(mode=0o700)
    nodes = [{"name": name, "address": f"192.0.2.{number}", "roles": ["etcd"]} for number, name in enumerate(NAMES, 1)]
    nodes.append({"name": "cp-1", "address": "192.0.2.9", "roles": ["control-plane"]})
    cluster = Cluster.model_validate({"name": "c", "nodes": nodes})
    pki = pki_module.ensure(cluster, directory / "pki", now=dt.datetime.now(dt.UTC))
    lock = artifacts.load_lock()
    arch: Literal["amd64", "arm64"] = "arm64" if os.uname().machine == "aarch64" else "amd64"
    file = artifacts.ensure(
        wants_of(lock, cluster.kubernetes.version, arch, [("etcd", ("etcd",))]), lock, sources=cluster.artifacts.sources
    )["etcd"]
    binary = directory / "etcd-binary"
    shutil.copyfile(file.path, binary)
    binary.chmod(0o755)
    ports = free_ports(9)
    made = Members(binary, directory, cluster, pki, ports=dict(zip(NAMES, zip(*[iter(ports)] * 3, strict=True), strict=True)))
    try:
        for name in NAMES:
            made.start(name)
        made.whole()
        yield made
    finally:
        for name in list(made.processes):
            made.stop(name)


def put(api: EtcdApi, key: str, value: bytes) -> None:
    api.call("/v3/kv/put", {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()})


def fill(api: EtcdApi, key: str, times: int = 200) -> int:
    """Write until etcd refuses; how many writes were acknowledged. ``{}`` in the key makes each one another key."""
    for number in range(times):
        try:
            put(api, key.format(number), os.urandom(BLOB))
        except EtcdError as error:
            if "database space exceeded" not in error.message:
                raise
            return number
    raise AssertionError("etcd took more than its quota")


def fill_and_cure(apis: tuple[EtcdApi, ...]) -> None:
    """Pages half full are given back at first, so that it takes some rounds until nothing but data is left."""
    for turn in range(10):
        fill(apis[0], f"live-{turn}-{{}}")
        etcd.cure(apis, QUOTA, lambda _: None)


def alarms(members: Members) -> list[str]:
    with members.apis() as apis:
        views: dict[str, Any] = {api.node.name: etcd_status.View(api.status(), api.members()) for api in apis}
    found = etcd_status.assemble(members.cluster, views)
    assert found.quorum is True
    return sorted({alarm for member in found.members for alarm in member.alarms})


def test_history_that_fills_the_quota_is_cured(members: Members) -> None:
    said: list[str] = []
    with members.apis() as apis:
        assert etcd.cure(apis, QUOTA, said.append) == etcd.Cured()
        assert said == []
        put(apis[0], "kept", b"precious")
        acknowledged = fill(apis[0], "overwritten")
        assert acknowledged > 10
        assert alarms(members) == ["NOSPACE"]
        leader = etcd.order(etcd.statuses(apis))[-1]
        done = etcd.cure(apis, QUOTA, said.append)
        print("\n".join(said))
        assert {alarm for _, alarm in done.alarms} == {"NOSPACE"}
        assert [one.member for one in done.defragmented][-1] == leader
        assert all(one.before > QUOTA * 0.9 and one.after < QUOTA / 4 for one in done.defragmented), done
        assert alarms(members) == []
        put(apis[0], "after", b"written")
        assert (apis[1].read("kept"), apis[2].read("after")) == (b"precious", b"written")
        assert etcd.order(etcd.statuses(apis))[-1] != leader, "it handed the leadership on"


def test_live_data_that_fills_the_quota_is_said_to_be_that(members: Members) -> None:
    with members.apis() as apis:
        with pytest.raises(EtcdError, match="live data fills it") as caught:
            fill_and_cure(apis)
        assert "`etcd.quotaBackendBytes`" in caught.value.hint
        assert alarms(members) == ["NOSPACE"], "lowered, it would be back at the next write"
    # a larger quota, one member at a time, as `apply` rolls it out
    members.quota = 64 * MIB
    for name in NAMES:
        members.stop(name)
        members.start(name)
        members.whole()
    with members.apis() as apis:
        assert alarms(members) == ["NOSPACE"], "it does not go by itself"
        etcd.cure(apis, QUOTA, lambda _: None)
        put(apis[0], "after", b"again")
        assert alarms(members) == []
        assert apis[1].read("kept") == b"precious"


def test_defragmentation_gives_room_back_and_loses_nothing(members: Members) -> None:
    with members.apis() as apis:
        apis[0].call(
            "/v3/kv/deleterange", {"key": base64.b64encode(b"live-").decode(), "range_end": base64.b64encode(b"live.").decode()}
        )
        revision = max(status.revision for status in etcd.statuses(apis).values())
        assert apis[0].compact(revision, timeout=60)
        assert not apis[0].compact(revision, timeout=60), "forgotten already"
        said: list[str] = []
        done = etcd.defragment(apis, said.append)
        print("\n".join(said))
        assert sum(one.before - one.after for one in done) > 20 * MIB
        assert len({api.hash_kv(revision).hash for api in apis}) == 1
        assert apis[2].read("kept") == b"precious"


def test_nothing_is_touched_while_a_member_is_down(members: Members) -> None:
    members.stop("m-3")
    try:
        with members.apis() as apis:
            for care in (lambda: etcd.defragment(apis, print), lambda: etcd.cure(apis, QUOTA, print)):
                with pytest.raises(EtcdError, match="etcd is not whole: m-3 is down"):
                    care()
    finally:
        members.start("m-3")
        members.whole()
