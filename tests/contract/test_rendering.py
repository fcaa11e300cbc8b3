"""Every template of every role renders under StrictUndefined, for every kind of machine and every setting that templates see."""

from __future__ import annotations

import configparser
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace

import jinja2
import pytest
import yaml

from provisioner.backup import on_machine
from provisioner.config import Cluster
from provisioner.desired import File, HostState, load_host, save_host
from provisioner.pki import Pki
from provisioner.render import ROLES, HostContext, Image, render_host, roles_of
from provisioner.render.context import RegistryFiles
from provisioner.render.templates import render, template_of, templates_of

MakeCluster = Callable[..., Cluster]
MakeHost = Callable[..., HostContext]

KINDS = ("cp-etcd", "cp", "etcd", "worker", "every-role")
NETWORKS = {
    "vxlan": {"backend": "vxlan"},
    "host-gw": {"backend": "host-gw"},
    "none": {"plugin": "none"},
}
MIRRORS = {
    "containerd": {"registryMirrors": [{"registry": "docker.io", "endpoints": ["https://m1.example", "https://m2.example"]}]}
}
REGISTRIES = {
    "containerd": {
        **MIRRORS["containerd"],
        "registries": [{"registry": "r.example:5000", "credentials": "login", "ca": "ca.crt", "tls": "verify"}],
    }
}
LOGINS = RegistryFiles({"r.example:5000": b"a certificate\n"}, {"r.example:5000": ("robot", "hunter2")})
HTTP_PROXY = {
    "httpProxy": {"http": "http://proxy.example:3128", "https": "http://proxy.example:3128", "noProxy": ["intra.example"]}
}
TRAITS: tuple[dict[str, object], ...] = (
    {},
    {"cgroup": 1, "can_lower_oom": False, "container": True, "swap": True, "resolv_conf": "/run/systemd/resolve/resolv.conf"},
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("proxy_mode", ["nftables", "iptables"])
def test_every_machine_renders_with_every_setting(
    make_cluster: MakeCluster, make_host: MakeHost, kind: str, network: str, proxy_mode: str
) -> None:
    for traits, mirrors, proxy, bootstrap in itertools.product(TRAITS, ({}, MIRRORS), ({}, HTTP_PROXY), (None, b"kubeconfig")):
        cluster = make_cluster(network={**NETWORKS[network], "proxyMode": proxy_mode}, **mirrors, **proxy)
        host = make_host(kind, cluster, traits=traits, bootstrap_kubeconfig=bootstrap)
        state = render_host(host)
        _check_well_formed(state)
        roles = {role.name for role in roles_of(host)}
        assert ("network" in roles) == (network != "none" and kind != "etcd")
        assert ("etcd" in roles) == (kind in ("cp-etcd", "etcd", "every-role"))
        assert ("kubelet" in roles) == (kind != "etcd")
        text = {file.path: file.content.decode() for file in state.files}
        if "containerd" in roles:
            assert ("/etc/containerd/certs.d/docker.io/hosts.toml" in text) == bool(mirrors)
            assert ("HTTPS_PROXY=http://proxy.example:3128" in text["/etc/systemd/system/containerd.service"]) == bool(proxy)
            assert f"SystemdCgroup = {'false' if traits else 'true'}" in text["/etc/containerd/config.toml"]
        if "kubelet" in roles:
            settings = yaml.safe_load(text["/etc/kubernetes/kubelet/config.yaml"])
            assert settings.get("failCgroupV1") == (False if traits else None)
            assert yaml.safe_load(text["/etc/kubernetes/kube-proxy/config.yaml"])["mode"] == proxy_mode
            token = next((file for file in state.files if file.path.endswith("bootstrap.kubeconfig")), None)
            assert (token is not None) == bool(bootstrap)
            assert token is None or (token.secret and token.mode == 0o600)
            # a token that is no longer needed is taken away
            assert any(path.endswith("bootstrap.kubeconfig") for _, path in state.absent) == (not bootstrap)


def _check_well_formed(state: HostState) -> None:
    """What can be said of any machine's files: each parses in its own format, and nothing stands twice."""
    paths = [file.path for file in state.files] + [item.path for item in state.artifacts]
    assert len(paths) == len(set(paths))
    for file in state.files:
        text = file.content.decode()
        assert text.endswith("\n") or file.secret, file.path
        assert not re.search(r"\{[{%]", text), file.path
        # (the audit policy has a level of that name)
        assert not re.search(r"=None\b|(?<!level): None\b", text), f"{file.path}: a value that is not set was rendered"
        if file.role == "certificates":
            continue
        if file.path.endswith((".yaml", ".yml")):
            assert isinstance(yaml.safe_load(text), dict), file.path
        elif file.path.endswith(".json"):
            assert isinstance(json.loads(text), dict), file.path
        elif file.path.endswith(".timer"):
            assert "\nWantedBy=multi-user.target\n" in text, file.path
        elif file.path.endswith(".service"):
            # what a timer starts is neither enabled nor restarted
            assert (file.path.replace(".service", ".timer") in paths) != ("[Install]" in text)
            if "[Install]" in text:
                _check_unit_file(file)
        elif text.startswith("#!"):
            assert file.mode == 0o755, file.path


def _check_unit_file(file: File) -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None, allow_no_value=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys are case-sensitive
    unit.read_string(re.sub(r" \\\n\s*", " ", file.content.decode()))
    assert unit.get("Unit", "Description"), file.path
    # a unit that systemd gives up on would have to be started by hand after a long outage
    assert unit.get("Unit", "StartLimitIntervalSec") == "0", file.path
    assert unit.get("Service", "ExecStart"), file.path
    assert unit.get("Install", "WantedBy") == "multi-user.target", file.path
    assert re.search(r"(PROVISIONER_HASH=|echo )[0-9a-f]{32}\b", file.content.decode()), file.path


def test_a_variable_that_is_not_computed_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="etcd_birth"):
        render(template_of("etcd", "/etc/etcd/birth.env"), {})


def test_every_template_is_rendered_by_some_machine(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    rendered: set[str] = set()
    for kind in KINDS:
        host = make_host(kind, make_cluster(**REGISTRIES), registries=LOGINS)
        rendered |= {f"{file.role}{file.path}" for file in render_host(host).files}
    listed = {f"{role.name}{file.path}" for role in ROLES for file in role.files}
    assert listed <= rendered
    assert "containerd/etc/containerd/certs.d/docker.io/hosts.toml" in rendered
    assert "kubelet/etc/kubernetes/kubelet/credential-provider.yaml" in rendered
    assert all(templates_of(role.name) or not role.files for role in ROLES)


# -- a file that something names is there, and a secret that nothing names is not ---------------------------------------------

# Made by the programs themselves, or by the operating system.
_MADE_ELSEWHERE = (
    *("/etc/cni/net.d", "/etc/resolv.conf", "/etc/os-release", "/etc/ssl", "/usr/local/lib/provisioner\n", "/usr/local/share"),
    *("/etc/containerd/certs.d", "/etc/systemd", "/var/lib/provisioner/backups"),
)
_PATHS = re.compile(r"(?:/etc|/usr/local|/opt/cni|/var/lib/provisioner)/[\w./@-]*[\w]")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_is_named_exists(make_host: MakeHost, kind: str) -> None:
    state = render_host(make_host(kind, bootstrap_kubeconfig=b"kubeconfig"))
    there = {file.path for file in state.files} | {item.path for item in state.artifacts}
    directories = {path.rsplit("/", count)[0] for path in there for count in range(1, path.count("/"))}
    missing = {
        f"{file.path} names {path}"
        for file in state.files
        if not file.secret and file.role != "certificates"
        for path in _PATHS.findall(file.content.decode())
        if path not in there | directories and not path.startswith(_MADE_ELSEWHERE)
    }
    assert not missing


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_or_certificate_lies_where_nothing_reads_it(make_host: MakeHost, kind: str) -> None:
    state = render_host(make_host(kind))
    text = "\n".join(file.content.decode() for file in state.files if file.role != "certificates")
    unread = [file.path for file in state.files if file.role == "certificates" and file.path not in text]
    assert not unread


# -- the hash that decides about restarts ------------------------------------------------------------------------------------


def _hashes(host: HostContext) -> dict[str, str]:
    return {unit.name: unit.hash for unit in render_host(host).units}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_input_gives_equal_bytes(make_host: MakeHost, kind: str) -> None:
    assert render_host(make_host(kind)) == render_host(make_host(kind))


def test_a_changed_flag_changes_that_unit_alone(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    cluster = make_cluster(components={"kubeScheduler": {"flags": {"v": 4}}})
    assert _changed(_hashes(make_host("every-role")), _hashes(make_host("every-role", cluster))) == {"kube-scheduler.service"}


def test_a_changed_binary_changes_the_units_that_run_it(make_host: MakeHost) -> None:
    host = make_host("every-role")
    for name, unit in {"etcd": "etcd.service", "kubelet": "kubelet.service", "containerd": "containerd.service"}.items():
        other = replace(host, artifacts={**host.artifacts, name: replace(host.artifacts[name], sha256="f" * 64)})
        assert _changed(_hashes(host), _hashes(other)) == {unit}


def test_a_binary_of_every_service_is_in_its_hash(make_host: MakeHost) -> None:
    """What ExecStart runs from the cache belongs to the unit's hash, or an upgrade would leave the old process running."""
    host = make_host("every-role")
    before = _hashes(host)
    for file in render_host(host).files:
        if not file.path.endswith(".service"):
            continue
        found = re.search(r"^ExecStart=/usr/local/bin/([\w-]+)", file.content.decode(), re.MULTILINE)
        if found:
            name = found[1]
            other = replace(host, artifacts={**host.artifacts, name: replace(host.artifacts[name], sha256="f" * 64)})
            assert file.path.rsplit("/", 1)[-1] in _changed(before, _hashes(other)), name


def test_a_file_that_a_unit_reads_changes_its_hash(make_host: MakeHost) -> None:
    """Every certificate and configuration file restarts the unit that names it, unless the unit takes it in by a reload."""
    host = make_host("every-role")
    state = render_host(host)
    reloaded = {path for unit in state.units for path in unit.reload_on}
    before = _hashes(host)
    for certificate in host.certificates:
        if certificate.path == on_machine.KEY:
            # read at each of its starts by what a timer starts
            continue
        changed = tuple(
            replace(file, content=b"renewed\n") if file.path == certificate.path else file for file in host.certificates
        )
        restarted = _changed(before, _hashes(replace(host, certificates=changed)))
        assert restarted or certificate.path in reloaded, f"nothing restarts when {certificate.path} changes"
        readers = {
            file.path.rsplit("/", 1)[-1]
            for file in state.files
            if file.path.endswith(".service") and f"={certificate.path}" in file.content.decode()
        }
        assert readers <= restarted, certificate.path


def test_the_values_of_a_members_birth_are_no_part_of_the_hash(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    cluster = make_cluster()
    grown = cluster.model_copy(
        update={"nodes": (*cluster.nodes, cluster.nodes[2].model_copy(update={"name": "etcd-new", "address": "10.77.0.99"}))}
    )
    host = make_host("etcd")
    other = replace(host, cluster=grown)
    birth = "/etc/etcd/birth.env"
    contents = [{file.path: file for file in render_host(one).files}[birth] for one in (host, other)]
    assert contents[0].content != contents[1].content
    assert contents[0].once
    assert _hashes(host)["etcd.service"] == _hashes(other)["etcd.service"]


def _vip(host: HostContext) -> tuple[str, HostState]:
    state = render_host(host)
    return next(file.content.decode() for file in state.files if file.path == "/etc/provisioner/vip.conf"), state


def test_control_planes_that_come_and_go_are_taken_in_by_a_reload(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    """Of the virtual address' peers and of the proxies' servers: a restart would move the one and cut the others."""
    cluster = make_cluster()
    fewer = cluster.model_copy(update={"nodes": tuple(node for node in cluster.nodes if node.name != "every-role")})
    (before, was), (after, now) = _vip(make_host("cp", cluster)), _vip(make_host("cp", fewer))
    assert "10.77.0.15" in before
    assert "10.77.0.15" not in after
    hashes = [{unit.name: unit.hash for unit in state.units} for state in (was, now)]
    units = ("provisioner-vip.service", "provisioner-api-proxy.service")
    assert [hashes[0][unit] for unit in units] == [hashes[1][unit] for unit in units]
    reloads = {unit.name: unit.reload_on for unit in now.units}
    assert "/etc/provisioner/vip.conf" in reloads["provisioner-vip.service"]
    assert "/etc/provisioner/api-proxy.cfg" in reloads["provisioner-api-proxy.service"]


def test_proxies_lead_to_control_planes_that_leave_as_long_as_they_are_told_to(
    make_cluster: MakeCluster, make_host: MakeHost
) -> None:
    cluster = make_cluster()
    fewer = cluster.model_copy(update={"nodes": tuple(node for node in cluster.nodes if node.name != "every-role")})
    config = "/etc/provisioner/api-proxy.cfg"

    def rendered(host: HostContext) -> tuple[bytes, HostState]:
        state = render_host(host)
        return next(file.content for file in state.files if file.path == config), state

    leaving = (cluster.node("every-role"),)
    (without, was), (with_them, now) = (
        rendered(make_host("worker", fewer)),
        rendered(make_host("worker", fewer, leaving_planes=leaving)),
    )
    assert b"10.77.0.15:6443" not in without
    assert with_them.count(b"10.77.0.15:6443") == rendered(make_host("worker", cluster))[0].count(b"10.77.0.15:6443") > 0
    differing = {file.path for file, other in zip(was.files, now.files, strict=True) if file != other}
    assert differing == {config}, "and nothing else on the machine follows them"


def test_the_virtual_address_is_the_control_planes_alone(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    assert {kind for kind in KINDS if "vip" in {role.name for role in roles_of(make_host(kind))}} == {"cp-etcd", "cp", "every-role"}
    for endpoint in (None, {"host": "api.example"}):
        cluster = make_cluster(controlPlaneEndpoint=endpoint)
        assert not any("vip" in {role.name for role in roles_of(make_host(kind, cluster))} for kind in KINDS)
    text, _ = _vip(make_host("cp"))
    assert "10.77.0.100/32 dev eth0" in text
    assert "unicast_src_ip 10.77.0.12" in text
    peers = re.search(r"unicast_peer \{\s*(.*?)\s*\}", text, re.DOTALL)
    assert peers
    assert peers[1].split() == ["10.77.0.11", "10.77.0.15"]
    named = make_cluster(controlPlaneEndpoint={"host": "10.77.0.100", "vip": {"interface": "bond0", "virtualRouterId": 7}})
    text, _ = _vip(make_host("cp", named))
    assert "interface bond0" in text
    assert "dev bond0" in text
    assert "virtual_router_id 7\n" in text
    # keepalived knows no unicast without peers
    alone = named.model_copy(update={"nodes": tuple(node for node in named.nodes if node.name not in ("cp-etcd", "every-role"))})
    text, _ = _vip(make_host("cp", alone))
    assert "unicast" not in text


def test_without_a_schedule_nothing_of_it_is_left(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    cluster = make_cluster(backups={})
    scheduled = {file.path for file in render_host(make_host("etcd")).files} | {"/usr/local/lib/provisioner/age"}
    host = make_host("etcd", cluster)
    host = replace(host, certificates=tuple(file for file in host.certificates if file.path != on_machine.KEY))
    state = render_host(host)
    gone = {path for _, path in state.absent}
    left = scheduled - {file.path for file in state.files}
    assert len(left) == 6
    assert left <= gone
    assert not [path for path in gone if path in {item.path for item in state.artifacts}]
    assert "age" not in {item.path.rpartition("/")[2] for item in state.artifacts}
    assert "etcd_backup" not in {role.name for role in roles_of(make_host("worker"))}, "it is the members' alone"


def test_a_new_image_runs_the_import_again(make_host: MakeHost) -> None:
    host = make_host("worker")
    image = "images/coredns.tar"
    other = replace(
        host,
        artifacts={**host.artifacts, image: replace(host.artifacts[image], sha256="f" * 64)},
        images={**host.images, "coredns": Image(image, "registry.example/coredns:2")},
    )
    assert _changed(_hashes(host), _hashes(other)) == {"provisioner-images.service"}


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


# -- what is saved for the action plugins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_is_read_back_equal(
    make_host: MakeHost,
    real_bundles: Mapping[str, tuple[File, ...]],
    real_pki: Pki,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
) -> None:
    directory = tmp_path_factory.mktemp("rendered")
    state = render_host(replace(make_host(kind), certificates=real_bundles[kind]))
    save_host(directory, state)
    saved = directory / f"{kind}.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    again = load_host(directory, kind)
    assert (again.files, again.artifacts, again.units, again.absent) == (state.files, state.artifacts, state.units, state.absent)
    assert (again.sysctls, again.modules, again.users) == (state.sysctls, state.modules, state.users)
    assert json.dumps(again.variables, sort_keys=True) == json.dumps(state.variables, sort_keys=True)


def test_a_kubelet_that_is_given_a_token_is_restarted_and_forgets_what_it_was(make_host: MakeHost) -> None:
    """Its hash stays, for the token goes again: nothing is left to do afterwards."""
    plain, joins = render_host(make_host("worker")), render_host(make_host("worker", bootstrap_kubeconfig=b"token"))
    path = "/etc/kubernetes/kubelet/bootstrap.kubeconfig"
    before, after = (next(unit for unit in state.units if unit.name == "kubelet.service") for state in (plain, joins))
    assert before.hash == after.hash
    assert path not in before.reads
    assert path in after.reads, "a token that is younger than the process is a reason to restart it"
    assert plain.variables["kubelet_forget"] == []
    assert joins.variables["kubelet_forget"] == ["/var/lib/kubelet/kubeconfig", "/var/lib/kubelet/pki/kubelet-client-current.pem"]


# -- private registries --------------------------------------------------------------------------------------------------------


def test_a_registry_with_credentials_is_known_to_the_kubelet_and_its_password_to_one_file(
    make_cluster: MakeCluster, make_host: MakeHost
) -> None:
    state = render_host(make_host("worker", make_cluster(**REGISTRIES), registries=LOGINS))
    files = {file.path: file for file in state.files}
    (holder,) = (file for file in state.files if b"hunter2" in file.content)
    assert (holder.path, holder.mode, holder.owner) == ("/etc/kubernetes/kubelet/registry-logins.json", 0o600, "root")
    assert holder.secret
    assert "hunter2" not in json.dumps(state.variables)
    config = yaml.safe_load(files["/etc/kubernetes/kubelet/credential-provider.yaml"].content)
    (provider,) = config["providers"]
    assert provider["matchImages"] == ["r.example:5000"]
    program = f"/usr/local/lib/provisioner/credential-providers/{provider['name']}"
    assert files[program].mode == 0o755
    unit = files["/etc/systemd/system/kubelet.service"].content.decode()
    assert f"--image-credential-provider-bin-dir={program.rpartition('/')[0]}" in unit
    assert "--image-credential-provider-config=/etc/kubernetes/kubelet/credential-provider.yaml" in unit
    hosts = tomllib.loads(files["/etc/containerd/certs.d/r.example:5000/hosts.toml"].content.decode())
    assert hosts == {"server": "https://r.example:5000", "ca": "/etc/containerd/certs.d/r.example:5000/provisioner-ca.crt"}
    assert files[hosts["ca"]].content == b"a certificate\n"


def test_another_password_restarts_nothing(make_cluster: MakeCluster, make_host: MakeHost) -> None:
    cluster = make_cluster(**REGISTRIES)
    other = RegistryFiles(LOGINS.cas, {"r.example:5000": ("robot", "another")})
    one, two = (render_host(make_host("worker", cluster, registries=files)) for files in (LOGINS, other))
    assert one.units == two.units
    assert one.files != two.files
