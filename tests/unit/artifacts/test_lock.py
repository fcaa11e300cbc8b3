"""versions.yml and the values made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from provisioner.artifacts import Lock, everything, load_lock, wanted_for
from provisioner.artifacts.lock import ARCHITECTURES, default_path, parse_lock
from provisioner.artifacts.recipes import RECIPES
from provisioner.artifacts.relock import rows
from provisioner.config import Cluster, Role
from provisioner.errors import BadInput


@pytest.fixture(scope="module")
def shipped() -> Lock:
    return load_lock()


def cluster(**keys: object) -> Cluster:
    nodes = [{"name": "a", "address": "10.77.0.1", "roles": ["control-plane", "etcd"]}]
    return Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": nodes, **keys})


def names(*roles: Role, **keys: object) -> set[str]:
    return {want.name for want in wanted_for(cluster(**keys), load_lock(), arch="amd64", roles=roles)}


def test_the_shipped_lock_has_the_versions_of_this_release(shipped: Lock) -> None:
    assert shipped.kubernetes_versions == ("1.36.3", "1.35.4")
    assert shipped.version_of("kubernetes", "1.35.4") == "1.35.4"
    assert shipped.version_of("etcd", "1.36.3") == "3.6.14"
    assert shipped.image("pause", "1.36.3") == "registry.k8s.io/pause:3.10.2"
    assert shipped.go.version == "1.26.8"


def test_every_file_of_every_release_has_a_source_on_amd64(shipped: Lock) -> None:
    for kubernetes in shipped.kubernetes_versions:
        for want in everything(shipped, kubernetes, "amd64"):
            built = shipped.release(want.component, want.version).modules[want.name]["amd64"]
            assert built is not None, want


# No module proxy serves the modules of these: they come from a registry or a mirror alone.
NEVER_BUILT = {"headlamp"}


def test_every_sum_is_of_a_file_that_something_makes_or_serves(shipped: Lock) -> None:
    for row in rows(shipped):
        if row.source == "modules":
            assert row.file in dict(RECIPES[row.component].packages), row
    for component, about in shipped.components.items():
        made = set() if component in NEVER_BUILT else {name for name, _ in RECIPES[component].packages}
        for version, release in about.versions.items():
            assert set(release.modules) == made, (component, version)
            for file, sums in (*release.official.items(), *release.modules.items()):
                assert set(sums) <= set(ARCHITECTURES), (component, version, file)


def test_what_a_release_serves_is_what_a_build_makes(shipped: Lock) -> None:
    assert shipped.components.keys() - RECIPES.keys() == NEVER_BUILT
    for component, about in shipped.components.items():
        if component in NEVER_BUILT:
            assert about.image
            continue
        served = {name for key, file in about.files.items() for name in (file.members or (key,))}
        if about.image:
            served = {f"images/{component}.tar"}
        assert served == {name for name, _ in RECIPES[component].packages}, component


def test_published_sums_are_the_published_ones(shipped: Lock) -> None:
    """A few, typed from where they are published, so that an edit by accident shows."""
    kubernetes = shipped.release("kubernetes", "1.36.3").official
    assert kubernetes["kubelet"]["amd64"] == "sha256:46707a53209f826ad0f0d62371ac69cd00e78fd9a8176cf5f6f87f18f7f8b718"
    assert kubernetes["kubectl"]["arm64"] == "sha256:3d86f24401c41ae5a46ac50eef8865fe891d3647d324a0836f6c63757a126e62"
    runc = shipped.release("runc", "1.4.3").official["runc"]
    assert runc["arm64"] == "sha256:633301e2e32f8a5ad54031aab4901eb00308bec677dd15faa2751e8f9dab5ca4"


def test_no_two_files_share_a_sum_of_a_build(shipped: Lock) -> None:
    sums = [row.sum for row in rows(shipped) if row.source == "modules" and row.sum]
    assert len(sums) == len(set(sums))


def test_an_addons_image_is_wanted_where_the_addon_is_on_and_some_machine_runs_pods(shipped: Lock) -> None:
    nodes = [{"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd", "worker"]}]
    images = {f"images/{name}.tar" for name in ("metrics-server", "local-path-provisioner", "headlamp")}

    def wanted(role: Role, **addons: bool) -> set[str]:
        cluster = Cluster.model_validate({"name": "c", "nodes": nodes, "addons": addons})
        return images & {want.name for want in wanted_for(cluster, shipped, arch="amd64", roles=[role])}

    assert wanted(Role.WORKER) == set()
    assert wanted(Role.WORKER, metricsServer=True) == {"images/metrics-server.tar"}
    assert wanted(Role.CONTROL_PLANE, metricsServer=True, localPath=True, headlamp=True) == images
    assert wanted(Role.ETCD, metricsServer=True, localPath=True, headlamp=True) == set()


def test_roles_decide_what_is_wanted() -> None:
    etcd = {"etcd", "etcdctl", "etcdutl"}
    assert names(Role.ETCD) == etcd
    worker = names(Role.WORKER)
    assert {"kubelet", "kube-proxy", "containerd", "runc", "flanneld", "cni/bridge", "images/pause.tar"} <= worker
    assert not worker & {*etcd, "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    control_plane = names(Role.CONTROL_PLANE)
    assert control_plane - worker == {"kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    assert names(Role.CONTROL_PLANE, Role.ETCD, Role.WORKER) == control_plane | etcd
    assert worker - names(Role.WORKER, network={"plugin": "none"}) == {"flanneld"}
    assert names() == set()


def test_an_unknown_kubernetes_version_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"Kubernetes 1\.99\.0 is not in versions\.yml") as error:
        names(Role.WORKER, kubernetes={"version": "1.99.0"})
    assert "1.36.3, 1.35.4" in error.value.hint


BROKEN: dict[str, tuple[str, str]] = {
    "no yaml": ("a: [", "not YAML"),
    "no mapping": ("- a", "not a lock"),
    "empty": ("", "not a lock"),
    "unknown key": ("REST\nextra: 1", "extra: Extra inputs"),
    "bad sum": ("sha256:abc", "components.runc.versions.1.4.3.official.runc.amd64"),
    "md5": ("md5:" + "0" * 32, "components.runc.versions.1.4.3.official.runc.amd64"),
    "http": ("http://", "components.runc.files.runc.url"),
    "no component": ("nothere: 1.0.0", "no component nothere"),
    "no version": ("runc: 9.9.9", "component runc has no version 9.9.9"),
    "undescribed": ("other: {amd64: null}", "not described: other"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_lock_is_told_in_words(fault: str, tmp_path: Path) -> None:
    wrong, said = BROKEN[fault]
    path = tmp_path / "versions.yml"
    path.write_text(_text(fault, wrong))
    with pytest.raises(BadInput) as error:
        load_lock(path)
    told = "\n".join((error.value.message, *error.value.details))
    assert said in told
    assert str(path) in told


def _text(fault: str, wrong: str) -> str:
    if fault in {"no yaml", "no mapping", "empty"}:
        return wrong
    zeros = "sha256:" + "0" * 64
    return f"""
version: 1
go: {{version: 1.26.8, toolchain: {{amd64: {zeros}, arm64: {zeros}}}}}
releases: {{1.36.3: {{{wrong if fault in {"no component", "no version"} else "runc: 1.4.3"}}}}}
components:
  kubernetes: {{versions: {{1.36.3: {{}}}}}}
  runc:
    files: {{runc: {{url: "{wrong if fault == "http" else "https://"}example.com/runc"}}}}
    versions:
      1.4.3:
        official:
          runc: {{amd64: {wrong if fault in {"bad sum", "md5"} else "null"}}}
          {wrong if fault == "undescribed" else ""}
{wrong.removeprefix("REST") if fault == "unknown key" else ""}
"""


def test_a_lock_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.yml: cannot be read"):
        load_lock(tmp_path / "gone.yml")
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"bytes\.yml: cannot be read"):
        load_lock(tmp_path / "bytes.yml")


def test_the_shipped_file_and_what_is_read_agree(shipped: Lock) -> None:
    text = default_path().read_text()
    assert parse_lock(text, name="x") == shipped
    assert list(yaml.safe_load(text)["releases"]) == list(shipped.kubernetes_versions)
