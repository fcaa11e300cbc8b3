"""How each component is built from its Go modules: a table, and nothing that acts.

A build has one main module of our own that requires one upstream release; minimal version selection then takes the very versions
upstream names. Its go.mod and go.sum are kept in ``gomod/`` so that every build checks every module against the same sums.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patch:
    """Parts of a module left out of a copy of it: directories, and the lines that hold one of the texts, per file."""

    drop_directories: tuple[str, ...]
    drop_lines: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """A container image with one binary in it (``/NAME``).

    ``applets`` are programs in ``/bin`` besides, a shell say: all of them the one static busybox of Debian's ``busybox-static``.
    """

    binary: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...] = ()
    user: str = ""
    directories: tuple[tuple[str, int], ...] = ()
    ports: tuple[str, ...] = ()
    applets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One component.

    ``modules`` are required at the component's version (``built_from`` in the lock overrides it). ``packages`` maps each output
    to the main package it is built from. ``variables`` are set at link time; ``{version}``, ``{major}`` and ``{minor}`` are
    the module's. ``staging`` maps the modules that upstream replaces by directories to their releases (Kubernetes).
    """

    modules: tuple[str, ...]
    packages: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()
    cgo_libraries: tuple[str, ...] = ()
    staging: bool = False
    patch: Patch | None = None
    image: ImageSpec | None = None
    # built with the C compiler alone: path inside the module, and the flags
    c_source: str = ""
    c_flags: tuple[str, ...] = ()

    @property
    def needs_c(self) -> bool:
        """Whether a C compiler and a static C library take part, whose versions then show in the bytes."""
        return bool(self.cgo_libraries or self.c_source)

    @property
    def needs_busybox(self) -> bool:
        """Whether the distribution's busybox goes into the image, whose version then shows in the bytes."""
        return self.image is not None and bool(self.image.applets)


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_KUBERNETES_VERSION = tuple(
    (f"{package}.{name}", value)
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in (("gitVersion", "v{version}"), ("gitMajor", "{major}"), ("gitMinor", "{minor}"), ("gitTreeState", "clean"))
)
_CNI = {
    "main": ("bridge", "loopback", "ptp"),
    "ipam": ("host-local",),
    "meta": ("bandwidth", "firewall", "portmap", "tuning"),
}

RECIPES: dict[str, Recipe] = {
    "kubernetes": Recipe(
        modules=("k8s.io/kubernetes",),
        packages=tuple((name, f"k8s.io/kubernetes/cmd/{name}") for name in _KUBERNETES),
        variables=_KUBERNETES_VERSION,
        staging=True,
    ),
    "etcd": Recipe(
        modules=("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdutl/v3"),
        packages=(
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
            ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        ),
    ),
    "containerd": Recipe(
        modules=("github.com/containerd/containerd/v2",),
        packages=tuple(
            (name, f"github.com/containerd/containerd/v2/cmd/{name}") for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        variables=(("github.com/containerd/containerd/v2/version.Version", "v{version}"),),
    ),
    "runc": Recipe(
        modules=("github.com/opencontainers/runc",),
        packages=(("runc", "github.com/opencontainers/runc"),),
        variables=(("main.version", "{version}"),),
        tags=("seccomp",),
        cgo_libraries=("seccomp",),
    ),
    "cni-plugins": Recipe(
        modules=("github.com/containernetworking/plugins",),
        packages=tuple(
            (f"cni/{name}", f"github.com/containernetworking/plugins/plugins/{kind}/{name}")
            for kind, names in _CNI.items()
            for name in names
        ),
        variables=(("github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion", "v{version}"),),
    ),
    "crictl": Recipe(
        modules=("sigs.k8s.io/cri-tools",),
        packages=(("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),),
        variables=(("sigs.k8s.io/cri-tools/pkg/version.Version", "v{version}"),),
    ),
    "flannel": Recipe(
        modules=("github.com/flannel-io/flannel",),
        packages=(("flanneld", "github.com/flannel-io/flannel"),),
        variables=(("github.com/flannel-io/flannel/pkg/version.Version", "v{version}"),),
        # the udp backend needs cgo; the Tencent one's SDK is not served by every module proxy. Neither is used here.
        patch=Patch(
            drop_directories=("pkg/backend/tencentvpc", "pkg/backend/udp"),
            drop_lines=(("main.go", ("backend/tencentvpc", 'backend/udp"')), ("go.mod", ("tencentcloud",))),
        ),
    ),
    "coredns": Recipe(
        modules=("github.com/coredns/coredns",),
        packages=(("images/coredns.tar", "github.com/coredns/coredns"),),
        image=ImageSpec(binary="coredns", entrypoint=("/coredns",), user="65532:65532", ports=("53/tcp", "53/udp")),
    ),
    "metrics-server": Recipe(
        modules=("sigs.k8s.io/metrics-server",),
        packages=(("images/metrics-server.tar", "sigs.k8s.io/metrics-server/cmd/metrics-server"),),
        variables=(("k8s.io/client-go/pkg/version.gitVersion", "v{version}"),),
        image=ImageSpec(binary="metrics-server", entrypoint=("/metrics-server",), user="65534", ports=("10250/tcp",)),
    ),
    "local-path-provisioner": Recipe(
        modules=("github.com/rancher/local-path-provisioner",),
        packages=(("images/local-path-provisioner.tar", "github.com/rancher/local-path-provisioner"),),
        variables=(("main.VERSION", "v{version}"),),
        # as the official image, which is Alpine's: its helper pods make and delete directories with a shell
        image=ImageSpec(
            binary="local-path-provisioner",
            entrypoint=(),
            command=("local-path-provisioner",),
            applets=("sh", "mkdir", "rm", "chmod"),
        ),
    ),
    "age": Recipe(
        modules=("filippo.io/age",),
        packages=(("age", "filippo.io/age/cmd/age"),),
        variables=(("main.Version", "v{version}"),),
    ),
    "agnhost": Recipe(
        modules=("k8s.io/kubernetes",),
        packages=(("images/agnhost.tar", "k8s.io/kubernetes/test/images/agnhost"),),
        variables=_KUBERNETES_VERSION,
        staging=True,
        image=ImageSpec(
            binary="agnhost",
            entrypoint=("/agnhost",),
            command=("pause",),
            directories=(("tmp", 0o1777), ("uploads", 0o755)),
            ports=("80/tcp", "8080/tcp", "8081/tcp", "9376/tcp", "5000/tcp"),
        ),
    ),
    "pause": Recipe(
        modules=("k8s.io/kubernetes",),
        packages=(("images/pause.tar", ""),),
        c_source="build/pause/linux/pause.c",
        c_flags=("-Os", "-Wall", "-static", "-s", "-DVERSION=v{component_version}"),
        image=ImageSpec(binary="pause", entrypoint=("/pause",), user="65535:65535"),
    ),
}
