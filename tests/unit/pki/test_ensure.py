"""Reuse after verification: what is kept, what is issued anew, and for which reason."""

from __future__ import annotations

import base64
import datetime as dt
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.pki import MAX_NODE_NAME, CaName, Leaf, Lifetimes, Pki, PkiError, cluster_id, ensure, read
from provisioner.pki.issue import issue, new_ca, new_key, private_pem
from provisioner.pki.specs import SERVER, Request, requests_for
from provisioner.pki.store import encode_leaves, read_leaves

DAY = dt.timedelta(days=1)


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def reasons(pki: Pki) -> dict[tuple[str | None, str], str]:
    return {(issued.node, issued.name): issued.reason for issued in pki.issued}


def leaves_of(pki: Pki, node: str | None) -> dict[str, Leaf]:
    return {name: leaf for (owner, name), leaf in pki.leaves.items() if owner == node}


def store_leaves(root: Path, node: str, leaves: dict[str, Leaf]) -> None:
    (root / "nodes" / f"{node}.pem").write_bytes(encode_leaves(tuple(leaves.values())))


def test_a_first_run_makes_every_certificate(pki: Pki, root: Path) -> None:
    control_plane, etcd, node = 8, 2, 3
    expected = 3 * control_plane + 4 * etcd + 5 * node + 3
    assert len(pki.leaves) == expected
    assert set(reasons(pki).values()) == {"new"}
    assert len(pki.issued) == expected
    assert set(snapshot(root)) == {
        "cluster-ca.pem",
        "controller.pem",
        "encryption.key",
        "etcd-ca.pem",
        "front-proxy-ca.pem",
        "service-account.pem",
        *(f"nodes/{name}.pem" for name in ("cp-1", "cp-2", "cp-3", "etcd-1", "w-1", "w-2")),
    }


def test_a_second_run_changes_no_file_and_returns_the_same(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    before = snapshot(root)
    again = ensure(cluster, root, now=now + DAY)
    assert snapshot(root) == before
    assert again.issued == ()
    assert again == replace(pki, issued=())


def test_modes_on_disk(pki: Pki, root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_modes_do_not_hang_on_the_umask(cluster: Cluster, root: Path, now: dt.datetime) -> None:
    old = os.umask(0)
    try:
        pki = ensure(cluster, root, now=now)
    finally:
        os.umask(old)
    test_modes_on_disk(pki, root)


def test_open_permissions_are_closed_and_told(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    (root / "cluster-ca.pem").chmod(0o644)
    (root / "nodes" / "w-1.pem").chmod(0o640)
    (root / "nodes").chmod(0o755)
    again = ensure(cluster, root, now=now)
    assert len(again.notices) == 2
    assert all("now 0600" in notice for notice in again.notices)
    test_modes_on_disk(again, root)
    assert ensure(cluster, root, now=now).notices == ()


def test_a_new_node_gets_its_own_and_touches_no_other(make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime) -> None:
    ensure(make_cluster(), root, now=now)
    before = snapshot(root)
    grown = ensure(make_cluster(nodes={"w-9": ("10.77.0.99", ("worker",))}), root, now=now)
    assert reasons(grown) == {("w-9", name): "new" for name in ("kubelet-serving", "kube-proxy", "flannel")}
    assert {path: found for path, found in snapshot(root).items() if path != "nodes/w-9.pem"} == before


def test_a_removed_node_keeps_its_file(make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime) -> None:
    ensure(make_cluster(nodes={"w-9": ("10.77.0.99", ("worker",))}), root, now=now)
    before = snapshot(root)
    assert ensure(make_cluster(), root, now=now).issued == ()
    assert snapshot(root) == before


def test_a_further_name_re_issues_the_apiservers_certificates_alone(
    make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime
) -> None:
    first = ensure(make_cluster(extraSans=["b.example.org", "a.example.org"]), root, now=now)
    assert ensure(make_cluster(extraSans=["a.example.org", "B.example.org"]), root, now=now).issued == ()
    second = ensure(make_cluster(extraSans=["a.example.org", "c.example.org"]), root, now=now)
    expected = {(node, "kube-apiserver"): "other names or addresses" for node in ("cp-1", "cp-2", "cp-3")}
    assert reasons(second) == expected
    assert {key for key, leaf in second.leaves.items() if leaf != first.leaves[key]} == set(expected)


def test_another_address_re_issues_the_servers_of_that_node_alone(
    make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime
) -> None:
    ensure(make_cluster(), root, now=now)
    moved = ensure(make_cluster(nodes={"w-2": ("10.77.0.200", ("worker", "etcd"))}), root, now=now)
    assert reasons(moved) == {("w-2", name): "other names or addresses" for name in ("etcd-server", "etcd-peer", "kubelet-serving")}


def test_a_role_that_went_takes_its_keys_from_the_controller(
    make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime
) -> None:
    ensure(make_cluster(), root, now=now)
    shrunk = ensure(make_cluster(nodes={"w-2": ("10.77.0.22", ("worker",))}), root, now=now)
    assert shrunk.issued == ()
    assert set(read_leaves(root, "w-2")) == {"kubelet-serving", "kube-proxy", "flannel"} == set(leaves_of(shrunk, "w-2"))


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (dt.timedelta(days=274), None),
        (dt.timedelta(days=276), "expires on 2031-05-17"),
        (dt.timedelta(days=366), "expired on 2031-05-17"),
        (dt.timedelta(minutes=-4), None),
    ],
)
def test_renewal_by_date(
    cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, *, after: dt.timedelta, reason: str | None
) -> None:
    later = ensure(cluster, root, now=now + after)
    assert set(reasons(later).values()) == ({reason} if reason else set())
    assert len(later.issued) in {0, len(pki.leaves)}
    assert cluster_id(later) == cluster_id(pki)
    if reason:
        assert all(leaf.not_after > now + after + 364 * DAY for leaf in later.leaves.values())
        assert not {leaf.key for leaf in later.leaves.values()} & {leaf.key for leaf in pki.leaves.values()}


def test_a_certificate_of_the_future_is_issued_anew(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    ahead = leaves_of(pki, "w-1")
    request = next(request for request in requests_for(cluster, cluster.node("w-1")) if request.name == "kube-proxy")
    ahead["kube-proxy"] = issue(request, pki.cas[CaName.CLUSTER], now=now + DAY, lifetimes=Lifetimes())
    store_leaves(root, "w-1", ahead)
    assert reasons(ensure(cluster, root, now=now)) == {("w-1", "kube-proxy"): "not valid before 2030-05-18 12:25 UTC"}


def test_renewal_on_request(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    forced = ensure(cluster, root, now=now + DAY, lifetimes=Lifetimes(renew_before=1000 * DAY))
    assert len(forced.issued) == len(pki.leaves)
    assert ensure(cluster, root, now=now + DAY).issued == ()


def test_no_certificate_outlives_its_ca_nor_is_it_renewed_in_vain(cluster: Cluster, root: Path, now: dt.datetime) -> None:
    short = Lifetimes(ca=100 * DAY)
    pki = ensure(cluster, root, now=now, lifetimes=short)
    ends = {leaf.not_after for leaf in pki.leaves.values()}
    assert ends == {ca.not_after for ca in pki.cas.values()}
    late = ensure(cluster, root, now=now + 50 * DAY, lifetimes=short)
    assert late.issued == ()
    assert len(late.notices) == 3
    assert "the etcd CA expires on 2030-08-25" in " ".join(late.notices)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda request: replace(request, common_name="system:kube-proxy:w-2"), "another subject"),
        (lambda request: replace(request, organisations=("system:masters",)), "another subject"),
        (lambda request: replace(request, usages=(SERVER,)), "other usages"),
        (lambda request: replace(request, sans=(x509.DNSName("w-1"),)), "other names or addresses"),
    ],
)
def test_a_certificate_that_says_something_else_is_issued_anew(
    cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, *, change: Callable[[Request], Request], reason: str
) -> None:
    leaves = leaves_of(pki, "w-1")
    request = next(request for request in requests_for(cluster, cluster.node("w-1")) if request.name == "kube-proxy")
    leaves["kube-proxy"] = issue(change(request), pki.cas[CaName.CLUSTER], now=now, lifetimes=Lifetimes())
    store_leaves(root, "w-1", leaves)
    again = ensure(cluster, root, now=now)
    assert reasons(again) == {("w-1", "kube-proxy"): reason}
    assert ensure(cluster, root, now=now).issued == ()


def test_a_key_of_another_certificate(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    leaves = leaves_of(pki, "w-1")
    leaves["flannel"] = replace(leaves["flannel"], key=leaves["kube-proxy"].key)
    store_leaves(root, "w-1", leaves)
    assert reasons(ensure(cluster, root, now=now)) == {("w-1", "flannel"): "does not belong to its key"}


def test_a_key_on_another_curve(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    leaves = leaves_of(pki, "w-1")
    leaves["flannel"] = replace(leaves["flannel"], key=private_pem(ec.generate_private_key(ec.SECP384R1())))
    store_leaves(root, "w-1", leaves)
    assert reasons(ensure(cluster, root, now=now)) == {("w-1", "flannel"): "damaged"}


def test_one_certificate_of_another_ca_is_issued_anew(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    stranger = new_ca(CaName.CLUSTER, "test", now=now, lifetimes=Lifetimes())
    leaves = leaves_of(pki, "w-1")
    request = next(request for request in requests_for(cluster, cluster.node("w-1")) if request.name == "flannel")
    leaves["flannel"] = issue(request, stranger, now=now, lifetimes=Lifetimes())
    store_leaves(root, "w-1", leaves)
    assert reasons(ensure(cluster, root, now=now)) == {("w-1", "flannel"): "signed by another CA"}


def test_a_forged_signature_under_the_right_issuer(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    """Everything says this CA, but another key signed."""
    forger = replace(pki.cas[CaName.CLUSTER], signer=new_key())
    leaves = leaves_of(pki, "w-1")
    request = next(request for request in requests_for(cluster, cluster.node("w-1")) if request.name == "flannel")
    leaves["flannel"] = issue(request, forger, now=now, lifetimes=Lifetimes())
    store_leaves(root, "w-1", leaves)
    assert reasons(ensure(cluster, root, now=now)) == {("w-1", "flannel"): "its signature is wrong"}


def test_an_exchanged_ca_is_refused(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    stranger = new_ca(CaName.ETCD, "test", now=now, lifetimes=Lifetimes())
    (root / "etcd-ca.pem").write_bytes(stranger.certificate + stranger.key)
    before = snapshot(root)
    with pytest.raises(PkiError, match=r"etcd-ca\.pem: this CA signed none of the 12 certificates") as raised:
        ensure(cluster, root, now=now)
    assert "restore it from a backup" in raised.value.hint
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["cluster-ca.pem", "etcd-ca.pem", "front-proxy-ca.pem", "service-account.pem", "encryption.key"])
def test_a_lost_root_is_never_made_anew(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, name: str) -> None:
    (root / name).unlink()
    before = snapshot(root)
    with pytest.raises(PkiError, match=f"{name} lost, while 7 files of certificates are there") as raised:
        ensure(cluster, root, now=now)
    assert "backup" in raised.value.hint
    assert snapshot(root) == before
    # Also where the only certificates left are those of a node that cluster.yaml does not know any more.
    for path in [root / "controller.pem", *(root / "nodes").glob("[!w]*.pem"), root / "nodes" / "w-2.pem"]:
        path.unlink()
    (root / "nodes" / "w-1.pem").rename(root / "nodes" / "gone.pem")
    with pytest.raises(PkiError, match=f"{name} lost, while 1 files of certificates are there"):
        ensure(cluster, root, now=now)


@pytest.mark.parametrize("name", ["cluster-ca.pem", "etcd-ca.pem", "front-proxy-ca.pem", "service-account.pem", "encryption.key"])
@pytest.mark.parametrize("content", [b"", b"rubbish\n", b"\xff\x00" * 50, "half", "mangled"])
def test_a_damaged_root_is_an_error_without_its_content(
    cluster: Cluster, pki: Pki, root: Path, now: dt.datetime, *, name: str, content: bytes | str
) -> None:
    path = root / name
    whole = path.read_bytes()
    if content == "half":
        content = whole[: len(whole) // 2]
    elif content == "mangled":
        content = whole[:-80] + b"AAAAAAAA" + whole[-72:] if name != "encryption.key" else b"AAAA" + whole
    assert isinstance(content, bytes)
    path.write_bytes(content)
    before = snapshot(root)
    with pytest.raises(PkiError, match=name) as raised:
        ensure(cluster, root, now=now)
    assert "backup" in raised.value.hint
    told = raised.value.message + raised.value.hint
    assert not any(line in told for line in whole.decode().splitlines() if not line.startswith("-"))
    assert snapshot(root) == before


def test_a_ca_file_with_the_key_of_another(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    (root / "cluster-ca.pem").write_bytes(pki.cas[CaName.CLUSTER].certificate + pki.cas[CaName.ETCD].key)
    with pytest.raises(PkiError, match="does not belong to its key"):
        ensure(cluster, root, now=now)


def test_a_leaf_in_the_place_of_a_ca(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    leaf = pki.leaf("admin")
    (root / "cluster-ca.pem").write_bytes(leaf.certificate + leaf.key)
    with pytest.raises(PkiError, match="cannot be read, or is not that of a CA"):
        ensure(cluster, root, now=now)


def test_a_self_signed_server_certificate_in_the_place_of_a_ca(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    key = new_key()
    name = pki.cas[CaName.CLUSTER].parsed.subject
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(5).not_valid_before(now).not_valid_after(now + DAY)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    usage = pki.cas[CaName.CLUSTER].parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    (root / "cluster-ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM) + private_pem(key))
    with pytest.raises(PkiError, match="is not that of a CA"):
        ensure(cluster, root, now=now)


def test_a_ca_outside_its_dates(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    before = snapshot(root)
    with pytest.raises(PkiError, match=r"the cluster CA expired on 2040-05-14, and this machine's clock says") as raised:
        ensure(cluster, root, now=now + 3651 * DAY)
    assert "Extending a CA" in raised.value.hint
    with pytest.raises(PkiError, match=r"is not valid before 2030-05-17 12:25 UTC") as raised:
        ensure(cluster, root, now=now - DAY)
    assert "clock" in raised.value.hint
    assert snapshot(root) == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command on this machine")
def test_a_ca_is_extended_as_the_documentation_says(cluster: Cluster, root: Path) -> None:
    """The very commands of docs/reference/pki.md, on a CA that has expired."""
    long_ago = dt.datetime.now(dt.UTC) - 4000 * DAY
    old = ensure(cluster, root, now=long_ago)
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(PkiError, match="expired"):
        ensure(cluster, root, now=now)
    page = (Path(__file__).parents[3] / "docs" / "reference" / "pki.md").read_text()
    commands = page.split("## Extending a CA")[1].split("```sh\n")[1].split("```")[0]
    for name in ("cluster", "etcd", "front-proxy"):
        script = commands.replace("cluster-ca", f"{name}-ca")
        subprocess.run(["sh", "-euc", script], cwd=root, check=True, capture_output=True, timeout=60)
    new = ensure(cluster, root, now=now + dt.timedelta(seconds=1))
    assert cluster_id(new) == cluster_id(old)
    assert {ca.key for ca in new.cas.values()} == {ca.key for ca in old.cas.values()}
    assert all(ca.not_after > now + 3600 * DAY for ca in new.cas.values())
    assert set(reasons(new).values()) == {f"expired on {long_ago + 365 * DAY:%Y-%m-%d}"}
    assert new.notices == ()
    test_modes_on_disk(new, root)


def test_secrets_stay_out_of_representations(cluster: Cluster, pki: Pki) -> None:
    shown = repr(pki) + repr(list(pki.leaves.values())) + str(pki.cas) + repr(pki.service_account)
    assert "PRIVATE" not in shown
    assert pki.encryption_key not in shown
    for key in (*(leaf.key for leaf in pki.leaves.values()), *(ca.key for ca in pki.cas.values())):
        assert key.decode().splitlines()[1] not in shown


def test_the_encryption_key_is_32_bytes_and_stays(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    assert len(base64.b64decode(pki.encryption_key)) == 32
    assert ensure(cluster, root, now=now).encryption_key == pki.encryption_key


def test_two_clusters_share_nothing(cluster: Cluster, pki: Pki, tmp_path: Path, now: dt.datetime) -> None:
    other = ensure(cluster, tmp_path / "other", now=now)
    assert cluster_id(other) != cluster_id(pki)
    assert other.encryption_key != pki.encryption_key
    assert other.service_account.public != pki.service_account.public


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"extraSans": ["10.0.0.300"]}, "'10.0.0.300' is neither an IP address nor a DNS name"),
        ({"extraSans": ["fe80::1%eth0"]}, "an address with a zone"),
        ({"extraSans": [""]}, "'' is neither"),
        ({"extraSans": ["http://api"]}, "'http://api' is neither"),
        ({"extraSans": ["bücher.example"]}, "is neither"),
        ({"controlPlaneEndpoint": {"host": "a..b"}}, r"'a\.\.b' is neither"),
        ({"nodes": {"x" * (MAX_NODE_NAME + 1): ("10.77.0.99", ("worker",))}}, f"more than {MAX_NODE_NAME}"),
        ({"nodes": {"kubernetes": ("10.77.0.99", ("worker",))}}, "pass for an apiserver's"),
        ({"nodes": {"localhost": ("10.77.0.99", ("worker",))}}, "pass for an apiserver's"),
        ({"nodes": {"w-9": ("w-9.example.org", ("worker",))}}, r"node w-9: .*w-9\.example\.org"),
    ],
)
def test_names_that_cannot_stand_in_a_certificate(
    make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        ensure(make_cluster(**keys), root, now=now)
    assert not root.exists()


def test_the_longest_name_fits(make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime) -> None:
    name = "x" * MAX_NODE_NAME
    pki = ensure(make_cluster(nodes={name: ("10.77.0.99", ("worker",))}), root, now=now)
    assert max(len(leaf.common_name) for leaf in pki.leaves.values()) == 64


def test_a_directory_that_cannot_be_used(cluster: Cluster, tmp_path: Path, now: dt.datetime) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PkiError, match="file") as raised:
        ensure(cluster, tmp_path / "file" / "pki", now=now)
    assert "must be able to write" in raised.value.hint


def test_reading_writes_nothing_and_gives_what_the_controller_needs(pki: Pki, root: Path, now: dt.datetime) -> None:
    before = snapshot(root)
    found = read(root, now=now)
    assert snapshot(root) == before
    assert (found.cas, found.service_account, found.encryption_key) == (pki.cas, pki.service_account, pki.encryption_key)
    assert {node for node, _ in found.leaves} == {None}
    assert {name: leaf for (_, name), leaf in found.leaves.items()} == leaves_of(pki, None)


def test_reading_replaces_what_has_expired_in_memory_alone(pki: Pki, root: Path, now: dt.datetime) -> None:
    before = snapshot(root)
    later = now + dt.timedelta(days=800)
    found = read(root, now=later)
    assert found.leaf("admin").not_after > later
    assert found.leaf("admin") != pki.leaf("admin")
    assert snapshot(root) == before


def test_reading_what_was_never_made(root: Path, now: dt.datetime) -> None:
    with pytest.raises(BadInput, match="no cluster was built from here"):
        read(root, now=now)
    assert not root.exists()
