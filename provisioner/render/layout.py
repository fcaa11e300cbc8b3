"""What each role puts on a machine, as data: files, units and artifacts, and on which machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from provisioner.backup import on_machine
from provisioner.config import Cluster, Node, Role
from provisioner.render import control_plane, machine
from provisioner.render.context import HostContext


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """A file rendered from the role's template of the same path."""

    path: str
    mode: int = 0o644
    owner: str = "root"
    once: bool = False


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """A unit and what it depends on.

    ``reads`` are path prefixes of files that it takes in at its start, ``binaries`` artifacts that it runs;
    ``reload_on`` files that it takes in by a reload; ``passing`` files that it takes in at its start where they are there, and
    which are no part of its hash, for they go again. A timer has its service, which it starts, as a file beside it.
    """

    name: str
    reads: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    reload_on: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """The unit with the process: itself, or what it starts at its time."""
        return self.name.replace(".timer", ".service")

    @property
    def is_timer(self) -> bool:
        """Whether it has no process, and reads nothing but its own file."""
        return self.name.endswith(".timer")


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One Ansible role, as the driver sees it.

    ``scripts`` are further files, whose content is a module of ours that stands alone: (path on the machine, module). A role that
    is ``withdrawn`` goes from machines that do not carry it any more.
    """

    name: str
    applies: Callable[[Cluster, Node], bool]
    variables: Callable[[HostContext], dict[str, object]]
    files: tuple[TemplateFile, ...] = ()
    units: tuple[UnitSpec, ...] = ()
    binaries: tuple[str, ...] = ()
    scripts: tuple[tuple[str, ModuleType], ...] = ()
    withdrawn: bool = False


def _always(_cluster: Cluster, _node: Node) -> bool:
    return True


def _on_etcd(_cluster: Cluster, node: Node) -> bool:
    return node.has(Role.ETCD)


def _on_control_plane(_cluster: Cluster, node: Node) -> bool:
    return node.has(Role.CONTROL_PLANE)


def _on_node(_cluster: Cluster, node: Node) -> bool:
    return node.is_kubernetes_node


def _backed_up(cluster: Cluster, node: Node) -> bool:
    return node.has(Role.ETCD) and cluster.backups.schedule is not None


def _with_flannel(cluster: Cluster, node: Node) -> bool:
    return node.is_kubernetes_node and cluster.network.plugin == "flannel"


def _with_vip(cluster: Cluster, node: Node) -> bool:
    endpoint = cluster.control_plane_endpoint
    return node.has(Role.CONTROL_PLANE) and endpoint is not None and endpoint.vip is not None


def _none(_host: HostContext) -> dict[str, object]:
    return {}


UNITS = "/etc/systemd/system"
BINARIES, PLUGINS = "/usr/local/bin", "/opt/cni/bin"
LIB = "/usr/local/lib/provisioner"
# Programs that others may have in a version of their own: they lie where nobody finds them by chance.
_OURS_ALONE = ("age",)


def binary_path(name: str) -> str:
    """Where a role's binary lies, by its name in the lock."""
    if name in _OURS_ALONE:
        return f"{LIB}/{name}"
    return f"{PLUGINS}/{name.removeprefix('cni/')}" if name.startswith("cni/") else f"{BINARIES}/{name}"


ROLES: tuple[RoleSpec, ...] = (
    RoleSpec(
        "base",
        _always,
        machine.base,
        files=(
            TemplateFile("/etc/provisioner/cluster.json"),
            TemplateFile("/etc/sysusers.d/provisioner.conf"),
            TemplateFile("/etc/sysctl.d/90-provisioner.conf"),
            TemplateFile("/etc/modules-load.d/provisioner.conf"),
        ),
    ),
    RoleSpec("artifacts", _always, machine.artifacts),
    RoleSpec("certificates", _always, _none),
    RoleSpec(
        "containerd",
        _on_node,
        machine.containerd,
        files=(
            TemplateFile("/etc/containerd/config.toml"),
            TemplateFile("/etc/crictl.yaml"),
            TemplateFile(f"{LIB}/import-images", mode=0o755),
            TemplateFile(f"{UNITS}/containerd.service"),
            TemplateFile(f"{UNITS}/provisioner-images.service"),
        ),
        units=(
            UnitSpec("containerd.service", reads=("/etc/containerd/config.toml",), binaries=("containerd",)),
            UnitSpec("provisioner-images.service", reads=(f"{LIB}/import-images",)),
        ),
        binaries=("containerd", "containerd-shim-runc-v2", "ctr", "runc", "crictl"),
    ),
    RoleSpec(
        "api_proxy",
        _on_node,
        machine.api_proxy,
        files=(TemplateFile("/etc/provisioner/api-proxy.cfg"), TemplateFile(f"{UNITS}/provisioner-api-proxy.service")),
        units=(
            UnitSpec("provisioner-api-proxy.service", reload_on=("/etc/provisioner/api-proxy.cfg", "/etc/kubernetes/pki/ca.crt")),
        ),
    ),
    RoleSpec(
        "etcd",
        _on_etcd,
        control_plane.etcd,
        files=(TemplateFile("/etc/etcd/birth.env", once=True), TemplateFile(f"{UNITS}/etcd.service")),
        units=(UnitSpec("etcd.service", reads=("/etc/etcd/pki/",), binaries=("etcd",)),),
        binaries=("etcd", "etcdctl", "etcdutl"),
    ),
    RoleSpec(
        "etcd_backup",
        _backed_up,
        control_plane.etcd_backup,
        files=(
            TemplateFile("/etc/provisioner/etcd-backup.json", mode=0o600),
            TemplateFile(f"{UNITS}/provisioner-etcd-backup.service"),
            TemplateFile(f"{UNITS}/provisioner-etcd-backup.timer"),
        ),
        units=(UnitSpec("provisioner-etcd-backup.timer"),),
        binaries=("age",),
        scripts=((f"{LIB}/etcd-backup", on_machine),),
        # what nobody wants any more must not go on filling disks
        withdrawn=True,
    ),
    RoleSpec(
        "kube_apiserver",
        _on_control_plane,
        control_plane.kube_apiserver,
        files=(
            TemplateFile("/etc/kubernetes/kube-apiserver/admission.yaml"),
            TemplateFile("/etc/kubernetes/kube-apiserver/audit-policy.yaml"),
            TemplateFile("/etc/kubernetes/kube-apiserver/authentication.yaml"),
            TemplateFile(f"{UNITS}/kube-apiserver.service"),
        ),
        units=(
            UnitSpec(
                "kube-apiserver.service",
                reads=("/etc/kubernetes/kube-apiserver/", "/etc/kubernetes/pki/ca.crt"),
                binaries=("kube-apiserver",),
            ),
        ),
        binaries=("kube-apiserver", "kubectl"),
    ),
    RoleSpec(
        "vip",
        _with_vip,
        control_plane.vip,
        files=(
            TemplateFile("/etc/provisioner/vip.conf"),
            # not below /usr/local, which is writable for a group on Debian: keepalived runs no such script as root
            TemplateFile("/etc/provisioner/vip-health", mode=0o755),
            TemplateFile(f"{UNITS}/provisioner-vip.service"),
        ),
        # a restart of the holder would move the address; peers come and go by reload
        units=(UnitSpec("provisioner-vip.service", reload_on=("/etc/provisioner/vip.conf",)),),
        # a machine that went on holding the address would answer in place of whoever has it now
        withdrawn=True,
    ),
    RoleSpec(
        "kube_controller_manager",
        _on_control_plane,
        control_plane.kube_controller_manager,
        files=(TemplateFile(f"{UNITS}/kube-controller-manager.service"),),
        units=(
            UnitSpec(
                "kube-controller-manager.service",
                reads=("/etc/kubernetes/kube-controller-manager/", "/etc/kubernetes/pki/ca.crt"),
                binaries=("kube-controller-manager",),
            ),
        ),
        binaries=("kube-controller-manager",),
    ),
    RoleSpec(
        "kube_scheduler",
        _on_control_plane,
        control_plane.kube_scheduler,
        files=(TemplateFile(f"{UNITS}/kube-scheduler.service"),),
        units=(
            UnitSpec(
                "kube-scheduler.service",
                reads=("/etc/kubernetes/kube-scheduler/", "/etc/kubernetes/pki/ca.crt"),
                binaries=("kube-scheduler",),
            ),
        ),
        binaries=("kube-scheduler",),
    ),
    RoleSpec(
        "kubelet",
        _on_node,
        machine.kubelet,
        files=(TemplateFile("/etc/kubernetes/kubelet/config.yaml"), TemplateFile(f"{UNITS}/kubelet.service")),
        units=(
            UnitSpec(
                "kubelet.service",
                reads=(
                    "/etc/kubernetes/kubelet/config.yaml",
                    # where images need a login; the logins themselves are read anew each time
                    "/etc/kubernetes/kubelet/credential-provider.yaml",
                    "/etc/kubernetes/kubelet/serving",
                    "/etc/kubernetes/pki/ca.crt",
                ),
                binaries=("kubelet",),
                # a kubelet that runs has read its token when it was started
                passing=("/etc/kubernetes/kubelet/bootstrap.kubeconfig",),
            ),
        ),
        binaries=("kubelet",),
    ),
    RoleSpec(
        "kube_proxy",
        _on_node,
        machine.kube_proxy,
        files=(TemplateFile("/etc/kubernetes/kube-proxy/config.yaml"), TemplateFile(f"{UNITS}/kube-proxy.service")),
        units=(UnitSpec("kube-proxy.service", reads=("/etc/kubernetes/kube-proxy/",), binaries=("kube-proxy",)),),
        binaries=("kube-proxy",),
    ),
    RoleSpec(
        "network",
        _with_flannel,
        machine.network,
        files=(
            TemplateFile("/etc/kubernetes/flannel/net-conf.json"),
            TemplateFile(f"{LIB}/write-cni-config", mode=0o755),
            TemplateFile(f"{UNITS}/flanneld.service"),
        ),
        units=(
            UnitSpec("flanneld.service", reads=("/etc/kubernetes/flannel/", f"{LIB}/write-cni-config"), binaries=("flanneld",)),
        ),
        binaries=("flanneld", "cni/bridge", "cni/host-local", "cni/loopback", "cni/portmap"),
    ),
)
