"""A rotation of CAs as a stage in the stored PKI: who signs, who is believed, and what the cluster is known by."""

from __future__ import annotations

import base64
import datetime as dt
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provisioner.config import Cluster
from provisioner.pki import CaName, Pki, PkiError, Stage, adopt, bundle_for, cluster_id, ensure, read, store
from provisioner.pki import rotation as rotations

ALL = tuple(CaName)
LATER = dt.timedelta(hours=1)


@pytest.fixture
def rotated(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> Callable[[Stage | None], Pki]:
    """The PKI of a cluster whose CAs are all being replaced, at a stage; at the end with None."""

    def at(stage: Stage | None) -> Pki:
        assert pki.rotation is None
        rotations.begin(cluster, root, ALL, now=now + LATER)
        made = ensure(cluster, root, now=now + LATER)
        while made.rotation and made.rotation.stage is not stage:
            if made.rotation.stage.following:
                rotations.advance(root)
            else:
                rotations.finish(root)
            made = ensure(cluster, root, now=now + LATER)
        return made

    return at


def bundle(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_in_the_first_stage_all_trust_both_and_nothing_is_issued(pki: Pki, rotated: Callable[[Stage | None], Pki]) -> None:
    made = rotated(Stage.TRUST)
    assert made.issued == ()
    assert made.leaves == pki.leaves
    for name in CaName:
        assert made.cas[name] == pki.cas[name], "the old one signs"
        old, new = bundle(made.trust(name))
        assert old == pki.cas[name].parsed
        assert new == made.others[name].parsed
        assert old.subject != new.subject, "who looks at a certificate sees which has signed it"
        assert old.public_key() != new.public_key()


def test_in_the_second_every_certificate_is_of_the_new(pki: Pki, rotated: Callable[[Stage | None], Pki]) -> None:
    made = rotated(Stage.REISSUE)
    assert {one.reason for one in made.issued} == {"signed by the CA that is being replaced"}
    assert {(one.node, one.name) for one in made.issued} == set(made.leaves)
    for name in CaName:
        assert made.others[name] == pki.cas[name]
        assert bundle(made.trust(name)) == [made.others[name].parsed, made.cas[name].parsed], "the same as before"
    for key, leaf in made.leaves.items():
        certificate = x509.load_pem_x509_certificate(leaf.certificate)
        assert any(ca.has_signed(certificate) for ca in made.cas.values()), key
        assert not any(ca.has_signed(certificate) for ca in made.others.values()), key


def test_in_the_third_the_old_is_not_trusted_and_at_the_end_it_is_gone(
    pki: Pki, root: Path, rotated: Callable[[Stage | None], Pki]
) -> None:
    dropping = rotated(Stage.DROP)
    assert dropping.issued == ()
    assert {name: bundle(dropping.trust(name)) for name in CaName} == {name: [dropping.cas[name].parsed] for name in CaName}
    rotations.finish(root)
    done = read(root, now=pki.cas[CaName.CLUSTER].not_before + 2 * LATER)
    assert (done.cas, done.rotation, done.others) == (dropping.cas, None, {})
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    for name in CaName:
        assert pki.cas[name].key not in kept, "nobody needs the old key any more"
    assert not (root / "next").exists()


def test_each_stage_is_reached_by_doing_nothing_but_apply_again(cluster: Cluster, root: Path, now: dt.datetime, pki: Pki) -> None:
    """A second run has nothing to do: `apply` between two passes, `certs renew` as well."""
    assert pki.issued
    rotations.begin(cluster, root, ALL, now=now)
    for _ in Stage:
        ensure(cluster, root, now=now)
        assert ensure(cluster, root, now=now).issued == ()
        found = rotations.read(root)
        assert found
        assert ensure(cluster, root, now=now).notices == (found.notice,), "every command that issues says so"
        if found.stage.following:
            rotations.advance(root)
    with pytest.raises(RuntimeError, match="no stage follows"):
        rotations.advance(root)


def test_one_ca_alone(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    rotations.begin(cluster, root, [CaName.ETCD], now=now)
    rotations.advance(root)
    made = ensure(cluster, root, now=now)
    assert {one.name for one in made.issued} == {"etcd-server", "etcd-peer", "kube-apiserver-etcd-client", "driver-etcd-client"}
    assert made.cas[CaName.CLUSTER] == pki.cas[CaName.CLUSTER]
    assert list(made.others) == [CaName.ETCD]
    rotations.advance(root)
    rotations.finish(root)
    assert rotations.former(root) == {pki.cas[CaName.ETCD].fingerprint: ""}, "backups are of the cluster's CA"
    assert ensure(cluster, root, now=now).issued == ()


@pytest.mark.parametrize("stage", [*Stage, None])
def test_the_cluster_stays_the_same(pki: Pki, root: Path, rotated: Callable[[Stage | None], Pki], stage: Stage | None) -> None:
    made = rotated(stage)
    assert cluster_id(made) == cluster_id(pki) == rotations.identity(root)
    assert cluster_id(read(root, now=pki.cas[CaName.CLUSTER].not_before + 2 * LATER)) == cluster_id(pki)
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_second_rotation_keeps_the_first_name_too(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    for _ in range(2):
        rotations.begin(cluster, root, ALL, now=now)
        rotations.advance(root)
        ensure(cluster, root, now=now)
        rotations.advance(root)
        rotations.finish(root)
    assert cluster_id(ensure(cluster, root, now=now)) == cluster_id(pki)
    assert len({name.partition("/")[0] for name in rotations.former(root)}) == 6


def test_backups_are_known_under_every_ca_of_the_cluster(pki: Pki, root: Path, rotated: Callable[[Stage | None], Pki]) -> None:
    made = rotated(Stage.REISSUE)
    fingerprint = made.cas[CaName.CLUSTER].fingerprint
    assert set(rotations.backup_keys(root)) == {store.former_name(fingerprint, number) for number in store.BACKUPS}, "to come"
    assert rotations.former(root) == {}
    rotations.advance(root)
    rotations.finish(root)
    old = pki.cas[CaName.CLUSTER]
    kept = {store.former_name(old.fingerprint, number): store.backup_key(old.key, number).hex() for number in store.BACKUPS}
    assert {name: key for name, key in rotations.backup_keys(root).items() if key} == kept, "gone"


# -- what machines get -------------------------------------------------------------------------------------------------------------


def test_what_machines_get_at_each_stage(cluster: Cluster, pki: Pki, rotated: Callable[[Stage | None], Pki]) -> None:
    made = rotated(Stage.TRUST)
    files = {file.path: file.content for file in bundle_for(cluster, made, cluster.node("cp-1"))}
    for path, name in (
        ("/etc/kubernetes/pki/ca.crt", CaName.CLUSTER),
        ("/etc/etcd/pki/ca.crt", CaName.ETCD),
        ("/etc/kubernetes/kube-apiserver/etcd-ca.crt", CaName.ETCD),
        ("/etc/kubernetes/kube-apiserver/front-proxy-ca.crt", CaName.FRONT_PROXY),
    ):
        assert files[path] == made.trust(name)
    # the controller-manager takes exactly one, and its key
    assert files["/etc/kubernetes/kube-controller-manager/ca.crt"] == pki.cas[CaName.CLUSTER].certificate
    assert files["/etc/kubernetes/kube-controller-manager/ca.key"] == pki.cas[CaName.CLUSTER].key
    for path in files:
        if path.endswith("kubeconfig"):
            authority = yaml.safe_load(files[path])["clusters"][0]["cluster"]["certificate-authority-data"]
            assert base64.b64decode(authority) == made.trust(CaName.CLUSTER), path


def test_the_signing_ca_is_the_new_one_from_the_second_stage_on(cluster: Cluster, rotated: Callable[[Stage | None], Pki]) -> None:
    made = rotated(Stage.REISSUE)
    files = {file.path: file.content for file in bundle_for(cluster, made, cluster.node("cp-1"))}
    directory = "/etc/kubernetes/kube-controller-manager"
    [signer] = bundle(files[f"{directory}/ca.crt"])
    assert signer == made.cas[CaName.CLUSTER].parsed
    key = load_pem_private_key(files[f"{directory}/ca.key"], None)
    assert key.public_key() == signer.public_key()
    for node in cluster.nodes:
        for file in bundle_for(cluster, made, node):
            for ca in made.others.values():
                assert ca.key not in file.content, "the old key leaves every machine"


# -- killed, damaged ---------------------------------------------------------------------------------------------------------------


def test_a_beginning_that_was_killed_is_none(
    cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rotations, "_record", kill)
        with pytest.raises(KeyboardInterrupt):
            rotations.begin(cluster, root, ALL, now=now)
    found = ensure(cluster, root, now=now)
    assert (found.rotation, found.cas, found.issued) == (None, pki.cas, ())
    rotations.begin(cluster, root, ALL, now=now)
    assert ensure(cluster, root, now=now).rotation
    with pytest.raises(RuntimeError, match="under way"):
        rotations.begin(cluster, root, ALL, now=now)


@pytest.mark.parametrize("writes", [1, 2])
def test_an_end_that_was_killed_is_taken_up(
    root: Path, pki: Pki, rotated: Callable[[Stage | None], Pki], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """After what is known of the old CA was written, and after the new CAs were put in their places."""
    dropping = rotated(Stage.DROP)
    count = iter(range(writes, -1, -1))
    write = store.write

    def failing(files: object) -> None:
        write(files)  # type: ignore[arg-type]  # as it is called
        if next(count) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            rotations.finish(root)
    now = pki.cas[CaName.CLUSTER].not_before + 2 * LATER
    assert read(root, now=now).cas == dropping.cas, "the stage still decides"
    rotations.finish(root)
    assert read(root, now=now).cas == dropping.cas
    prints = {name.partition("/")[0] for name in rotations.former(root)}
    assert prints == {ca.fingerprint for ca in pki.cas.values()}


def test_the_end_needs_the_third_stage(root: Path, rotated: Callable[[Stage | None], Pki]) -> None:
    rotated(Stage.REISSUE)
    with pytest.raises(RuntimeError, match="not dropped"):
        rotations.finish(root)


@pytest.mark.parametrize("text", ["", "{}", '{"stage": "other"}', "[]"])
def test_a_damaged_record_stops_everything(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, text: str) -> None:
    assert pki.rotation is None
    (root / "rotation.json").write_text(text)
    with pytest.raises(PkiError, match=r"rotation\.json: cannot be read") as error:
        ensure(cluster, root, now=now)
    assert "backup" in error.value.hint


def test_a_new_ca_that_is_lost_stops_everything(
    cluster: Cluster, root: Path, now: dt.datetime, rotated: Callable[[Stage | None], Pki]
) -> None:
    rotated(Stage.TRUST)
    (root / "next" / "etcd-ca.pem").unlink()
    with pytest.raises(PkiError, match=r"next/etcd-ca\.pem"):
        ensure(cluster, root, now=now + LATER)


def test_certificates_of_a_third_ca_are_still_refused(
    cluster: Cluster, root: Path, tmp_path: Path, now: dt.datetime, rotated: Callable[[Stage | None], Pki]
) -> None:
    rotated(Stage.REISSUE)
    ensure(cluster, tmp_path / "other", now=now)
    (root / "next" / "etcd-ca.pem").write_bytes((tmp_path / "other" / "etcd-ca.pem").read_bytes())
    with pytest.raises(PkiError, match="signed none of the"):
        ensure(cluster, root, now=now + LATER)


def test_a_look_in_a_copy_is_taken_over(
    cluster: Cluster, root: Path, tmp_path: Path, now: dt.datetime, rotated: Callable[[Stage | None], Pki]
) -> None:
    rotated(Stage.TRUST)
    rotations.advance(root)
    shutil.copytree(root, tmp_path / "copy")
    looked = ensure(cluster, tmp_path / "copy", now=now + LATER)
    adopt(tmp_path / "copy", root)
    assert ensure(cluster, root, now=now + LATER).issued == ()
    assert ensure(cluster, root, now=now + LATER).leaves == looked.leaves
    assert json.loads((root / "rotation.json").read_text())["stage"] == "reissue"
