"""What a reset looks for is everything that is ever placed: no file, unit, binary or user of any machine is missing from it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from provisioner.config import Cluster
from provisioner.desired import HostState
from provisioner.render import ROLES, HostContext, render_host
from provisioner.render.footprint import everything, footprint_of, questions
from provisioner.render.machine import IMAGE_DIR
from provisioner.share import ROLES as ROLE_FILES

MakeCluster = Callable[..., Cluster]
MakeHost = Callable[..., HostContext]

KINDS = ("cp-etcd", "cp", "etcd", "worker", "every-role")


@pytest.fixture(scope="module", params=KINDS)
def state(request: pytest.FixtureRequest, make_host: MakeHost, make_cluster: MakeCluster) -> HostState:
    """A machine of each kind, with a mirror and a token besides."""
    mirrors = [{"registry": "docker.io", "endpoints": ["https://mirror.example"]}]
    kubeconfig = None if request.param == "etcd" else b"kubeconfig"
    cluster = make_cluster(containerd={"registryMirrors": mirrors})
    return render_host(make_host(request.param, cluster, bootstrap_kubeconfig=kubeconfig))


def test_every_file_of_every_machine_is_in_it(state: HostState) -> None:
    parts = everything().parts
    files = {path for part in parts for path in part.files}
    data = tuple(f"{path}/" for part in parts for path in part.data)
    placed = [*(file.path for file in state.files), *(item.path for item in state.artifacts), *(path for _, path in state.absent)]
    assert len(placed) > 15
    assert [path for path in placed if path not in files and not path.startswith(data)] == []


def test_every_unit_user_parameter_and_module_is_in_it(state: HostState) -> None:
    whole = everything()
    assert {unit.name for unit in state.units} <= {name for part in whole.parts for name in part.units}
    assert set(state.users) <= set(whole.users)
    assert dict(state.sysctls).items() <= whole.sysctls.items()
    assert set(state.modules) <= set(whole.modules)


def test_every_directory_above_a_file_is_in_it(state: HostState) -> None:
    known = set(everything().directories) | {path for part in everything().parts for path in part.data}
    for file in state.files:
        directory = file.path.rpartition("/")[0]
        assert directory in known or directory.startswith("/etc/containerd/certs.d/"), file.path


def test_the_parts_are_the_roles() -> None:
    whole = everything()
    assert [part.role for part in whole.parts] == [role.name for role in ROLES]
    assert f"{IMAGE_DIR}/".startswith(tuple(f"{path}/" for path in whole.parts[0].data))
    files = [path for part in whole.parts for path in part.files]
    assert len(files) == len(set(files)), "a file is one part's: where that is somebody else's, so is the file"


def test_directories_come_after_what_is_in_them() -> None:
    directories = everything().directories
    for number, path in enumerate(directories):
        assert not [other for other in directories[number + 1 :] if other.startswith(path + "/")], path


def test_nothing_of_the_system_is_taken_for_a_data_directory() -> None:
    """Data directories go with all that is in them: each must be a directory that is made for us alone."""
    for part in everything().parts:
        for path in part.data:
            assert path.count("/") >= 2
            assert path not in everything().directories, f"{path} holds files of other parts"


def test_mounts_are_a_parts_and_not_whatever_is_mounted_there() -> None:
    whole = everything()
    patterns = [pattern for part in whole.parts for pattern in part.mounts]
    made = (
        "/var/lib/kubelet/pods/1/volumes/kubernetes.io~projected/token",
        "/var/lib/kubelet/plugins/kubernetes.io/csi/driver/1/globalmount",
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/1/rootfs",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/1/shm",
        "/var/lib/containerd/tmpmounts/containerd-mount1",
    )
    own = ("/var/lib/kubelet/pods", "/var/lib/kubelet/mine", "/run/containerd/mine", "/var/lib/containerd/io.containerd.content.v1")
    for point in made:
        assert any(re.fullmatch(pattern, point) for pattern in patterns), point
        assert point.startswith(tuple(f"{path}/" for path in whole.mounts))
    for point in own:
        assert not any(re.fullmatch(pattern, point) for pattern in patterns), point
    assert set(whole.pods) <= {part.role for part in whole.parts if part.mounts}


def test_the_networks_name_is_that_of_its_configuration() -> None:
    text = (ROLE_FILES / "network/templates/usr/local/lib/provisioner/write-cni-config.j2").read_text()
    assert f'"name": "{everything().cni_network}",' in text


def test_what_depends_on_the_cluster(make_cluster: MakeCluster) -> None:
    found = footprint_of(make_cluster())
    assert found.pod_cidr == "10.244.0.0/16"
    assert found.addresses == ("10.77.0.100",)
    assert footprint_of(make_cluster(controlPlaneEndpoint=None)).addresses == ()


def test_a_machine_is_asked_for_all_of_it_before_the_first_change(state: HostState) -> None:
    asked = questions("0123456789abcdef")
    assert state.before == asked
    whole = everything()
    files = asked["files"]
    assert isinstance(files, list)
    assert {path for part in whole.parts for path in part.files} <= set(files)
    assert asked["sysctls"] == list(whole.sysctls)
    assert asked["chains"] == list(whole.chains)
