"""Rules about flag overrides and the free-form fields of kubelet and kube-proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from provisioner.config import Cluster, FlagValue
from provisioner.pki.issue import Lifetimes
from provisioner.problems import Path, Problem, did_you_mean, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.owned import COMMON_FIELDS, FIELDS, FLAGS
from provisioner.rules.rule import Context
from provisioner.rules.upstream import same_minor, upstream

_FLAG_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
# Flags are words of a systemd unit's ExecStart=, where each of these has a meaning.
_SPECIAL = re.compile(r"[\s\"'\\%$]")
# kube-proxy reads these beside --config, and no others.
_KUBE_PROXY_BESIDE_CONFIG = re.compile(r"v|vmodule|log.*")
# What one can reserve: https://kubernetes.io/docs/tasks/administer-cluster/reserve-compute-resources/
_RESERVABLE = ("cpu", "memory", "ephemeral-storage", "pid")
_LEAST_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True)
class _Given:
    component: str
    path: Path
    flags: Mapping[str, FlagValue]


def _flags_of(cluster: Cluster) -> tuple[_Given, ...]:
    components = cluster.components
    return (
        _Given("etcd", ("etcd", "flags"), cluster.etcd.flags),
        _Given("kube-apiserver", ("components", "kubeApiserver", "flags"), components.kube_apiserver.flags),
        _Given(
            "kube-controller-manager", ("components", "kubeControllerManager", "flags"), components.kube_controller_manager.flags
        ),
        _Given("kube-scheduler", ("components", "kubeScheduler", "flags"), components.kube_scheduler.flags),
        _Given("flannel", ("components", "flannel", "flags"), components.flannel.flags),
        _Given("kubelet", ("kubelet", "flags"), cluster.kubelet.flags),
        _Given("kube-proxy", ("kubeProxy", "flags"), cluster.kube_proxy.flags),
    )


@dataclass(frozen=True, slots=True)
class _Config:
    kind: str
    path: Path
    fields: Mapping[str, object]
    for_all: bool = True


def _configs_of(cluster: Cluster) -> Iterator[_Config]:
    yield _Config("KubeletConfiguration", ("kubelet", "config"), cluster.kubelet.config)
    yield _Config("KubeProxyConfiguration", ("kubeProxy", "config"), cluster.kube_proxy.config)
    for index, node in enumerate(cluster.nodes):
        yield _Config("KubeletConfiguration", ("nodes", index, "kubelet"), node.kubelet, for_all=False)


def flag_names(context: Context) -> Iterator[Problem]:
    """Flags are known to their component, which exits at once when one is not; without leading dashes, with hyphens inside."""
    names = upstream()
    for given in _flags_of(context.cluster):
        known = names.flags[given.component]
        sure = given.component in {"etcd", "flannel"} or same_minor(names.kubernetes, context.cluster.kubernetes.version)
        for name in given.flags:
            if name in known or name in FLAGS[given.component]:
                continue
            path = (*given.path, name)
            bare = name.strip("- ").partition("=")[0].replace("_", "-")
            if bare in known or not _FLAG_NAME.fullmatch(name):
                form = "a flag is given without dashes before it, with hyphens inside, and its value behind the colon"
                yield error(path, f"unknown flag; did you mean {quoted(bare)}?" if bare in known else form)
            elif meant := did_you_mean(name, known):
                yield Problem(path, f"unknown flag of {given.component}{meant}", "error" if sure else "warning")
            else:
                yield warning(
                    path, f"not among the flags that {given.component} {'lists' if sure else names.kubernetes + ' lists'}"
                )


def flags_not_owned(context: Context) -> Iterator[Problem]:
    """No flag is overridden that other parts rely on (see below)."""
    for given in _flags_of(context.cluster):
        for name in given.flags:
            reason = FLAGS[given.component].get(name)
            if reason:
                yield error((*given.path, name), f"cannot be overridden: {reason}")


def flag_values(context: Context) -> Iterator[Problem]:
    """A flag's value has no spaces, quotes, backslashes, `%` or `$`: a systemd unit would not pass them on as they are."""
    for given in _flags_of(context.cluster):
        for name, value in given.flags.items():
            text = str(value)
            special = _SPECIAL.search(text)
            if special or not text.isprintable():
                what = quoted(special[0]) if special else "a control character"
                yield error((*given.path, name), f"the value holds {what}, which a systemd unit would not pass on as it is")


def admission_plugins(context: Context) -> Iterator[Problem]:
    """NodeRestriction stays among the admission plugins: without it every kubelet could change every other node."""
    flags = context.cluster.components.kube_apiserver.flags
    path = ("components", "kubeApiserver", "flags")
    needed = "NodeRestriction"
    enabled = flags.get("enable-admission-plugins")
    if enabled is not None and needed not in str(enabled).split(","):
        yield error((*path, "enable-admission-plugins"), f"must keep {needed}: write {quoted(f'{needed},{enabled}'.rstrip(','))}")
    if needed in str(flags.get("disable-admission-plugins", "")).split(","):
        yield error((*path, "disable-admission-plugins"), f"{needed} keeps each kubelet to its own node; it cannot be switched off")


def controllers_complete(context: Context) -> Iterator[Problem]:
    """The controllers that let nodes join stay switched on."""
    value = context.cluster.components.kube_controller_manager.flags.get("controllers")
    if value is None:
        return
    path = ("components", "kubeControllerManager", "flags", "controllers")
    chosen = str(value).split(",")
    needed = {
        "csrsigning": "certificatesigningrequest-signing-controller",
        "csrapproving": "certificatesigningrequest-approving-controller",
        "nodeipam": "node-ipam-controller",
    }
    for old, new in needed.items():
        if f"-{old}" in chosen or f"-{new}" in chosen or not {"*", old, new} & set(chosen):
            yield error(path, f"must keep {new}: nodes could not join without it")
    if not {"tokencleaner", "token-cleaner-controller"} & set(chosen):
        yield warning(path, "without tokencleaner, bootstrap tokens that ran out stay as Secrets")


def scheduler_config(context: Context) -> Iterator[Problem]:
    """Warning where kube-scheduler is given a file of its own, which makes it ignore flags of ours."""
    path = ("components", "kubeScheduler", "flags", "config")
    if "config" in context.cluster.components.kube_scheduler.flags:
        yield warning(
            path,
            "kube-scheduler then ignores --kubeconfig and --leader-elect: the file, which you place on every control plane, must "
            "set clientConnection.kubeconfig to /etc/kubernetes/kube-scheduler/kubeconfig",
        )


def kube_proxy_flags_count(context: Context) -> Iterator[Problem]:
    """kube-proxy's settings are in kubeProxy.config: beside it, kube-proxy ignores nearly every flag in silence."""
    for name in context.cluster.kube_proxy.flags:
        if (
            name in upstream().flags["kube-proxy"]
            and name not in FLAGS["kube-proxy"]
            and not _KUBE_PROXY_BESIDE_CONFIG.fullmatch(name)
        ):
            yield error(
                ("kubeProxy", "flags", name), "has no effect, for kube-proxy reads a file: set the field in `kubeProxy.config`"
            )


def config_fields(context: Context) -> Iterator[Problem]:
    """Fields of kubelet and kube-proxy exist, hold the right kind of value, and are not relied on elsewhere (see below)."""
    names = upstream()
    sure = same_minor(names.kubernetes, context.cluster.kubernetes.version)
    for config in _configs_of(context.cluster):
        known = names.fields[config.kind]
        for name, value in config.fields.items():
            path = (*config.path, name)
            if reason := _reason(config, name):
                yield error(path, f"cannot be overridden: {reason}")
            elif name not in known:
                yield Problem(
                    path, f"no field of {config.kind} {names.kubernetes}{did_you_mean(name, known)}", "error" if sure else "warning"
                )
            elif value is not None and _kind(value) != known[name]:
                yield error(path, f"must be a {known[name]}, not {_article(_kind(value))}".replace("be a text", "be text"))


def _reason(config: _Config, name: str) -> str:
    return FIELDS[config.kind].get(name) or (COMMON_FIELDS.get(name, "") if config.for_all else "")


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return "list"
    return "mapping" if isinstance(value, dict) else "text"


def _article(kind: str) -> str:
    return kind if kind == "text" else f"a {kind}"


def reserved_resources(context: Context) -> Iterator[Problem]:
    """Reserved resources are cpu, memory, ephemeral-storage and pid, with quantities that kubelet can read."""
    kubelet = context.cluster.kubelet
    for key, reserved in (("systemReserved", kubelet.system_reserved), ("kubeReserved", kubelet.kube_reserved)):
        for resource, text in reserved.items():
            path = ("kubelet", key, resource)
            amount = syntax.quantity(text)
            if resource not in _RESERVABLE:
                meant = did_you_mean(resource, _RESERVABLE)
                yield error(path, f"unknown resource{meant or '; known: ' + ', '.join(_RESERVABLE)}")
            elif amount is None:
                yield error(path, f"{quoted(text)} is no quantity, such as 100m, 512Mi or 1Gi")
            elif resource in {"memory", "ephemeral-storage"} and 0 < amount < _LEAST_MEMORY:
                meant = f"; did you mean {quoted(text.rstrip('m') + 'Mi')}?" if text.rstrip("m").isdecimal() else ""
                yield error(path, f"{quoted(text)} is less than 1Mi{meant}")
            elif resource == "pid" and amount != int(amount):
                yield error(path, f"{quoted(text)} is no whole number of processes")


def etcd_timing(context: Context) -> Iterator[Problem]:
    """electionTimeout is at least five heartbeatIntervals, below which etcd refuses to start."""
    etcd = context.cluster.etcd
    if etcd.election_timeout < 5 * etcd.heartbeat_interval:
        yield error(
            ("etcd", "electionTimeout"),
            f"{etcd.election_timeout} ms is less than five heartbeats of {etcd.heartbeat_interval} ms, which etcd refuses; "
            f"ten are usual: {min(10 * etcd.heartbeat_interval, 50_000)}",
        )


def certificate_lifetimes(context: Context) -> Iterator[Problem]:
    """A certificate is not due from its first moment on, and outlives no CA."""
    lifetimes = Lifetimes.of(context.cluster)
    if lifetimes.renew_before >= lifetimes.leaf:
        given = context.cluster.certificates
        yield error(
            ("certificates", "renewBefore"),
            f"{given.renew_before} is no less than the validity of {given.validity}: "
            "every apply would issue every certificate anew",
        )
    if lifetimes.leaf > lifetimes.ca:
        yield error(("certificates", "validity"), f"longer than CAs, which are valid for {lifetimes.ca.days}d")


def etcd_quota(context: Context) -> Iterator[Problem]:
    """Warning where quotaBackendBytes is above the 8 GiB that upstream suggests."""
    # https://etcd.io/docs/v3.6/dev-guide/limit/#storage-size-limit
    quota = context.cluster.etcd.quota_backend_bytes
    if quota > 8 << 30:
        yield warning(("etcd", "quotaBackendBytes"), f"{quota} bytes: upstream suggests at most 8 GiB ({8 << 30})")
