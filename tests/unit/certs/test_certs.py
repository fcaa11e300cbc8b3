"""What is said of a certificate, where certificates are expected, and what a machine tells of them."""

from __future__ import annotations

import base64
import datetime as dt
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from provisioner import pki as pkis
from provisioner.certs import node_script
from provisioner.certs.look import Judge
from provisioner.certs.model import Found, Row, State, by_days
from provisioner.certs.places import KUBELET_CLIENT, Place, places_on
from provisioner.config import Cluster
from provisioner.pki import CERTIFICATES, CaName, Lifetimes, Pki
from provisioner.pki import rotation as rotations
from provisioner.pki.bundle import SHARED

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    nodes = [
        {"name": "cp", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]},
        {"name": "w", "address": "192.0.2.2", "roles": ["worker"]},
    ]
    return Cluster.model_validate({"name": "c", "nodes": nodes})


@pytest.fixture(scope="module")
def keys(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return pkis.ensure(cluster, tmp_path_factory.mktemp("pki"), now=NOW)


SERVING = Place("kubelet-serving", "/x/serving.crt", CaName.CLUSTER)


def state(keys: Pki, place: Place = SERVING, *, at: dt.datetime = NOW, file: bytes | None = None) -> State:
    leaf = keys.leaf("kubelet-serving", "w")
    return Judge(keys, at, Lifetimes()).judge("w", place, leaf.certificate, file=file).state


def test_a_certificate_in_its_time(keys: Pki) -> None:
    window = Lifetimes().renew_before
    end = NOW + Lifetimes().leaf
    assert state(keys) is State.OK
    assert state(keys, at=end - window - DAY) is State.OK
    assert state(keys, at=end - window + DAY) is State.DUE
    assert state(keys, at=end + DAY) is State.EXPIRED
    assert state(keys, at=NOW - DAY) is State.EARLY
    assert not State.DUE.is_wrong
    assert State.EXPIRED.is_wrong


def test_of_another_ca_and_of_the_wrong_one(keys: Pki, cluster: Cluster, tmp_path: Path) -> None:
    other = pkis.ensure(cluster, tmp_path, now=NOW)
    assert state(other) is State.OK
    assert Judge(keys, NOW, Lifetimes()).judge("w", SERVING, other.leaf("kubelet-serving", "w").certificate).state is State.FOREIGN
    etcd = Place("etcd-server", "/x", CaName.ETCD)
    assert state(keys, etcd) is State.FOREIGN, "the cluster's CA does not sign for etcd"


def test_what_is_served_is_compared_with_its_file(keys: Pki) -> None:
    served = Place("kubelet-serving", "/x/serving.crt", CaName.CLUSTER, address=("127.0.0.1", 10250))
    assert served.where == "served on 127.0.0.1:10250"
    assert state(keys, served, file=keys.leaf("kubelet-serving", "w").certificate) is State.OK
    assert state(keys, served, file=keys.leaf("kubelet-serving", "cp").certificate) is State.OUTDATED
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert state(keys, served, file=broken) is State.OUTDATED


def test_a_ca_is_spoken_of_a_year_before_its_end(keys: Pki) -> None:
    place = Place("cluster-ca", "/x/ca.crt", CaName.CLUSTER)
    ca = keys.cas[CaName.CLUSTER].certificate
    assert Judge(keys, NOW, Lifetimes()).judge("w", place, ca).state is State.OK
    assert Judge(keys, NOW + Lifetimes().ca - 300 * DAY, Lifetimes()).judge("w", place, ca).state is State.DUE


def test_both_cas_of_a_rotation_and_what_is_of_the_old_one(cluster: Cluster, tmp_path: Path) -> None:
    before = pkis.ensure(cluster, tmp_path, now=NOW)
    rotations.begin(cluster, tmp_path, tuple(CaName), now=NOW)
    trusting = pkis.ensure(cluster, tmp_path, now=NOW)
    place, signer = Place("cluster-ca", "/x/ca.crt", CaName.CLUSTER), Place("cluster-ca", "/y", CaName.CLUSTER, signer=True)
    old, both = before.trust(CaName.CLUSTER), trusting.trust(CaName.CLUSTER)

    def said(keys: Pki, pem: bytes, place: Place = place) -> dict[str, str]:
        return {row.name: row.state.value for row in Judge(keys, NOW, Lifetimes()).authorities("w", place, pem)}

    assert said(before, old) == {"cluster-ca": "ok"}
    assert said(trusting, both) == {"cluster-ca": "ok", "cluster-ca (new)": "ok"}
    assert said(trusting, old) == {"cluster-ca": "ok", "cluster-ca (new)": "missing"}
    assert said(trusting, old, signer) == {"cluster-ca": "ok"}
    leaf = before.leaf("kubelet-serving", "w").certificate
    assert Judge(trusting, NOW, Lifetimes()).judge("w", SERVING, leaf).state is State.OK
    rotations.advance(tmp_path)
    issuing = pkis.ensure(cluster, tmp_path, now=NOW)
    assert said(issuing, both) == {"cluster-ca": "ok", "cluster-ca (old)": "ok"}
    assert said(issuing, old, signer) == {"cluster-ca": "missing", "cluster-ca (old)": "of the CA that is replaced"}
    assert Judge(issuing, NOW, Lifetimes()).judge("w", SERVING, leaf).state is State.OLD
    assert State.OLD.is_wrong
    rotations.advance(tmp_path)
    dropping = pkis.ensure(cluster, tmp_path, now=NOW)
    assert said(dropping, both) == {"cluster-ca": "ok", "cluster-ca (old)": "of the CA that is replaced"}
    assert said(dropping, dropping.trust(CaName.CLUSTER)) == {"cluster-ca": "ok"}
    stranger = dropping.trust(CaName.ETCD)
    assert said(dropping, stranger) == {"cluster-ca": "missing", "cluster-ca (unknown)": "of another CA"}


def test_nonsense_is_missing_with_the_reason(keys: Pki) -> None:
    row = Judge(keys, NOW, Lifetimes()).judge("w", SERVING, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert row.state is State.MISSING
    assert "no certificate" in row.problem
    assert row.days_left(NOW) is None


def test_every_certificate_of_the_table_is_looked_at_on_every_machine_that_holds_it(cluster: Cluster) -> None:
    for node in cluster.nodes:
        places = places_on(cluster, node)
        files = {place.name for place in places if place.address is None}
        held = {spec.name for spec in CERTIFICATES if spec.place and spec.holder.includes(cluster, node)}
        assert files == held | {"kubelet-client"} | {
            f"{one.ca}-ca" for one in SHARED if one.ca and one.holder.includes(cluster, node)
        }
    plane, worker = (places_on(cluster, node) for node in cluster.nodes)
    assert {place.name for place in plane if place.address} == {
        *("etcd-server", "etcd-peer", "kube-apiserver", "kube-apiserver-loopback", "kubelet-serving"),
        *("kube-controller-manager-serving", "kube-scheduler-serving"),
    }
    assert [place.name for place in worker if place.address] == ["kubelet-serving"]
    assert ("192.0.2.1", 2380) in {place.address for place in plane}, "peers are served on the cluster's network alone"
    assert KUBELET_CLIENT in {place.path for place in worker}
    assert {shared.ca for shared in SHARED if shared.path.endswith("ca.crt")} == set(CaName), "each file of a CA says which"


def test_what_is_wrong_comes_first() -> None:
    def row(name: str, state: State, days: int | None) -> Row:
        return Row("w", name, "/x", state, not_after=None if days is None else NOW + days * DAY)

    rows = [row("a", State.OK, 300), row("b", State.DUE, 20), row("c", State.MISSING, None), row("d", State.EXPIRED, -3)]
    assert [one.name for one in by_days(rows, NOW)] == ["c", "d", "b", "a"]
    found = Found(tuple(rows), (), NOW)
    assert [one.name for one in found.wrong] == ["c", "d"]
    assert [one.name for one in found.ending(30)] == ["b", "d"]
    assert found.ending(1000)[0].to_json(NOW)["daysLeft"] == 300


# -- on the machine ------------------------------------------------------------------------------------------------------------


def ask(path: Path | str = "", *, kubeconfig: bool = False, address: list[Any] | None = None, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = node_script.answer(
        {"path": str(path), "kubeconfig": kubeconfig, "address": address, "serverName": name}
    )
    return found


def test_no_key_is_told(keys: Pki, tmp_path: Path) -> None:
    leaf = keys.leaf("kubelet-serving", "w")
    both = tmp_path / "both.pem"
    both.write_bytes(leaf.key + leaf.certificate)
    answer = ask(both)
    assert leaf.certificate.decode().strip() == answer["pem"]
    assert "PRIVATE" not in json.dumps(answer)
    config = tmp_path / "kubeconfig"
    encoded = base64.b64encode(leaf.certificate).decode()
    secret = base64.b64encode(leaf.key).decode()
    config.write_text(f"users:\n- user:\n    client-certificate-data: {encoded}\n    client-key-data: {secret}\n")
    assert ask(config, kubeconfig=True) == {"base64": [encoded]}


def test_what_is_not_there_has_its_reason(tmp_path: Path) -> None:
    assert ask(tmp_path / "missing")["error"] == "No such file or directory"
    (tmp_path / "empty").touch()
    assert ask(tmp_path / "empty") == {"pem": ""}
    assert ask(address=["127.0.0.1", 1])["error"] == "Connection refused"


@pytest.fixture
def served(keys: Pki, tmp_path: Path) -> Iterator[int]:
    """A TLS server that wants a certificate of its client, as etcd does."""
    leaf = keys.leaf("kubelet-serving", "w")
    (tmp_path / "pair").write_bytes(leaf.certificate + leaf.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=keys.cas[CaName.CLUSTER].certificate.decode())

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(self.request, server_side=True).recv(1)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_server_shows_its_certificate_also_to_who_has_none(keys: Pki, served: int) -> None:
    assert ask(address=["127.0.0.1", served])["pem"].strip() == keys.leaf("kubelet-serving", "w").certificate.decode().strip()
