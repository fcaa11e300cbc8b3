"""The cluster's own objects, the user's, and the values on the way to a machine: inventory, traits, playbooks."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner import inventory, objects, pki, runner, steps
from provisioner.config import Cluster
from provisioner.desired import HostState
from provisioner.errors import BadInput
from provisioner.facts import HostFacts
from provisioner.pki import new_bootstrap_token
from provisioner.plan import Change, Plan
from provisioner.render import ROLES
from provisioner.session import Session, traits_of
from provisioner.share import PLAYBOOKS
from provisioner.topology import dns_service_ip
from provisioner.workspace import Workspace

MakeCluster = Callable[..., Cluster]
IMAGE = "registry.example/coredns:v1"


def named(found: tuple[objects.Object, ...]) -> dict[str, objects.Object]:
    return {objects.describe(obj): obj for obj in found}


# -- the cluster's own ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["flannel", "none"])
def test_own_objects_are_whole_and_named_once(make_cluster: MakeCluster, plugin: str) -> None:
    found = objects.cluster_objects(make_cluster(network={"plugin": plugin}), coredns_image=IMAGE)
    assert len(named(found)) == len(found)
    for obj in found:
        assert obj["apiVersion"]
        assert obj["metadata"]["name"]
        if obj["kind"].endswith("RoleBinding"):
            assert obj["roleRef"]["name"]
    assert any("flannel" in name for name in named(found)) == (plugin == "flannel")


def test_a_role_is_bound_only_if_it_exists_here_or_in_kubernetes(make_cluster: MakeCluster) -> None:
    found = objects.cluster_objects(make_cluster(), coredns_image=IMAGE)
    own = {obj["metadata"]["name"] for obj in found if obj["kind"] in ("ClusterRole", "Role")}
    for obj in found:
        if obj["kind"] in ("ClusterRoleBinding", "RoleBinding"):
            name = obj["roleRef"]["name"]
            assert name in own or name == "cluster-admin" or name.startswith("system:"), name
    bound = {
        subject["name"]: obj["roleRef"]["name"]
        for obj in found
        if obj["kind"] == "ClusterRoleBinding"
        for subject in obj["subjects"]
        if subject["kind"] == "Group"
    }
    assert bound[objects.BOOTSTRAP_GROUP] in (
        "system:node-bootstrapper",
        *own,
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_coredns_runs_everywhere_and_is_found(make_cluster: MakeCluster, workers: int) -> None:
    cluster = make_cluster(network={"serviceCidr": "10.50.0.0/20", "dnsDomain": "k8s.example"})
    if not workers:
        cluster = cluster.model_copy(update={"nodes": cluster.nodes[:1]})
    found = named(objects.cluster_objects(cluster, coredns_image=IMAGE))
    deployment = found["Deployment kube-system/coredns"]
    assert deployment["spec"]["replicas"] == (2 if workers else 1)
    pod = deployment["spec"]["template"]["spec"]
    # a cluster of tainted control planes must have DNS too
    assert {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    service = found["Service kube-system/kube-dns"]
    assert service["spec"]["clusterIP"] == str(dns_service_ip(cluster)) == "10.50.0.10"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert "kubernetes k8s.example in-addr.arpa" in found["ConfigMap kube-system/coredns"]["data"]["Corefile"]


def test_labels_are_of_every_node_and_no_etcd_machine(make_cluster: MakeCluster) -> None:
    found = {obj["metadata"]["name"]: obj["metadata"]["labels"] for obj in objects.node_labels(make_cluster())}
    assert set(found) == {"cp-1", "cp-2", "worker-1"}
    assert found["cp-1"] == {"node-role.kubernetes.io/control-plane": ""}
    assert found["worker-1"] == {"node-role.kubernetes.io/worker": ""}


def test_a_bootstrap_token_is_one_nodes_and_ends(cluster: Cluster) -> None:
    token, now = new_bootstrap_token(), dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
    secret = objects.bootstrap_secret(token, cluster.node("worker-1"), now)
    data = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert secret["type"] == "bootstrap.kubernetes.io/token"
    assert secret["metadata"] == {"name": f"bootstrap-token-{token.id}", "namespace": "kube-system"}
    assert f"{data['token-id']}.{data['token-secret']}" == token.text
    assert data["expiration"] == "2030-01-01T13:00:00Z"
    assert "worker-1" in data["description"]
    assert data["usage-bootstrap-authentication"] == "true"
    assert "usage-bootstrap-signing" not in data
    assert data["auth-extra-groups"].startswith("system:bootstrappers:")


def test_a_manifest_for_an_object_of_ours_takes_its_place(session: Session, make_cluster: MakeCluster) -> None:
    theirs = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"a": "b"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "local-path-storage", "labels": {"theirs": "yes"}}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "else", "namespace": "default"}},
    ]
    (session.workspace.cluster_file.parent / "theirs.yaml").write_text(yaml.safe_dump_all(theirs))
    addons = {"localPath": True}
    session = replace(
        session,
        cluster=make_cluster(addons=addons, manifests=["theirs.yaml"]),
        pki=pki.ensure(session.cluster, session.workspace.pki, now=dt.datetime.now(dt.UTC)),
    )
    desired = steps._desired_objects(session)
    names = [objects.describe(obj) for obj in desired]
    assert len(names) == len(set(names)), "each is applied once"
    assert [obj for obj in desired if obj in theirs] == theirs
    # what is in their Namespace comes after it
    assert names.index("Namespace local-path-storage") < names.index("ServiceAccount local-path-storage/local-path-provisioner")
    # a run about one machine puts nothing of ours in their place
    alone = [objects.describe(obj) for obj in steps._desired_objects(replace(session, scope=frozenset({"worker-1"})))]
    assert "ConfigMap kube-system/coredns" not in alone
    assert "Deployment kube-system/coredns" in alone


# -- the user's ----------------------------------------------------------------------------------------------------------------

CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n"


def test_manifests_are_read_in_order(make_cluster: MakeCluster, tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "20.yml").write_text(CONFIG_MAP % "third")
    (directory / "10.yaml").write_text("---\n" + CONFIG_MAP % "first" + "---\n" + CONFIG_MAP % "second" + "---\n")
    (directory / "README.md").write_text("no manifest")
    (tmp_path / "last.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fourth"}}')
    found = objects.user_objects(make_cluster(manifests=["manifests", "last.json"]), tmp_path)
    assert [obj["metadata"]["name"] for obj in found] == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind: [", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        ("just text", "without apiVersion, kind and metadata.name"),
        ("- a\n- list\n", "without apiVersion, kind and metadata.name"),
        ("apiVersion: v1\nkind: Pod\n", "without apiVersion, kind and metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "without"),
        ("apiVersion: v1\nkind: Pod\nmetadata: text\n", "without"),
        ("apiVersion: v1\nkind: 7\nmetadata: {name: x}\n", "without"),
        ("!!python/object:os.system {}\n", "cannot be read as YAML"),
        (None, "cannot be read as YAML"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    make_cluster: MakeCluster, tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match=r"bad\.yaml") as refused:
        objects.user_objects(make_cluster(manifests=["bad.yaml"]), tmp_path)
    assert message in refused.value.message
    assert refused.value.hint


def test_a_list_is_what_is_in_it(make_cluster: MakeCluster, tmp_path: Path) -> None:
    items = [yaml.safe_load(CONFIG_MAP % name) for name in ("one", "two")]
    (tmp_path / "list.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    found = objects.user_objects(make_cluster(manifests=["list.json"]), tmp_path)
    assert [obj["metadata"]["name"] for obj in found] == ["one", "two"]


def test_json_in_a_directory_is_read_as_validate_reads_it(make_cluster: MakeCluster, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "a.json").write_text(json.dumps(yaml.safe_load(CONFIG_MAP % "from-json")))
    (found,) = objects.user_objects(make_cluster(manifests=["manifests"]), tmp_path)
    assert found["metadata"]["name"] == "from-json"


# -- inventory -----------------------------------------------------------------------------------------------------------------


def states_of(cluster: Cluster, **packages: list[str]) -> dict[str, HostState]:
    return {
        node.name: HostState(node.name, variables={"base_packages": packages.get(node.name.replace("-", "_"), [])})
        for node in cluster.nodes
    }


def test_the_inventory_says_how_to_reach_whom(make_cluster: MakeCluster, workspace: Workspace) -> None:
    cluster = make_cluster(ssh={"user": "admin", "port": 2222, "key": "id_lab"})
    states = states_of(cluster)
    del states["worker-1"]
    path = inventory.write(cluster, workspace, states, dict.fromkeys(states, "/usr/bin/python3.11"))
    found = json.loads(path.read_text())["all"]
    assert set(found["hosts"]) == {"cp-1", "cp-2", "etcd-1"}
    host = found["hosts"]["cp-1"]
    assert host["ansible_host"] == "10.77.0.11"
    assert host["ansible_user"] == "admin"
    assert host["ansible_become"] is True
    assert host["ansible_python_interpreter"] == "/usr/bin/python3.11"
    assert host["rendered_dir"] == str(workspace.rendered)
    assert str(workspace.known_hosts) in host["ansible_ssh_common_args"]
    assert found["children"]["role_worker"]["hosts"] == {}, "who is not in this run is in no group"
    assert set(found["children"]["role_control_plane"]["hosts"]) == {"cp-1", "cp-2"}
    assert set(found["children"]["role_etcd"]["hosts"]) == {"cp-1", "cp-2", "etcd-1"}


def test_root_needs_no_sudo_unless_a_machine_has_another_user(make_cluster: MakeCluster, workspace: Workspace) -> None:
    cluster = make_cluster()
    other = cluster.model_copy(update={"nodes": (cluster.nodes[0], cluster.nodes[1].model_copy(update={"ssh_user": "debian"}))})
    path = inventory.write(other, workspace, states_of(other), dict.fromkeys(("cp-1", "cp-2"), "python3"))
    hosts = json.loads(path.read_text())["all"]["hosts"]
    assert (hosts["cp-1"]["ansible_user"], hosts["cp-1"]["ansible_become"]) == ("root", False)
    assert (hosts["cp-2"]["ansible_user"], hosts["cp-2"]["ansible_become"]) == ("debian", True)


def test_a_group_holds_just_the_machines_that_differ(make_cluster: MakeCluster, workspace: Workspace) -> None:
    cluster = make_cluster()
    states = states_of(cluster, worker_1=["haproxy"])
    interpreters = dict.fromkeys(states, "python3")
    plan = Plan((Change("cp-2", "etcd", "file", "/etc/x", "create"), Change("worker-1", "base", "package", "haproxy", "install")))
    children = json.loads(inventory.write(cluster, workspace, states, interpreters, plan).read_text())["all"]["children"]
    members = {name: sorted(group["hosts"]) for name, group in children.items()}
    assert {name: found for name, found in members.items() if found and not name.startswith("role_")} == {
        "differs_etcd": ["cp-2"],
        "differs_base": ["worker-1"],
        "lacks_packages": ["worker-1"],
    }
    assert {f"differs_{role.name}" for role in ROLES} <= set(members)
    without = json.loads(inventory.write(cluster, workspace, states, interpreters).read_text())["all"]["children"]
    assert not any(group["hosts"] for name, group in without.items() if not name.startswith("role_"))


def test_equal_input_gives_an_equal_inventory(make_cluster: MakeCluster, workspace: Workspace) -> None:
    cluster = make_cluster()
    texts = {
        inventory.write(cluster, workspace, states_of(cluster), dict.fromkeys(states_of(cluster), "python3")).read_text()
        for _ in range(2)
    }
    assert len(texts) == 1


# -- facts to traits -----------------------------------------------------------------------------------------------------------


def facts(**fields: Any) -> HostFacts:
    values: dict[str, Any] = {
        **dict.fromkeys(("os_id", "os_version", "os_name", "kernel", "hostname", "machine_id", "product_uuid", "selinux"), ""),
        **dict.fromkeys(("os_like", "cgroup_controllers", "resolv_nameservers", "leftovers"), ()),
        **{name: {} for name in ("disks", "listening", "listening_udp", "interfaces", "mtus", "macs", "kernel_features", "units")},
        **dict.fromkeys(("time_sync", "default_route", "ip_forward", "apparmor", "ufw"), False),
        "name": "cp-1",
        "arch": "amd64",
        "cgroup": 2,
        "cpus": 2,
        "memory_mib": 4096,
        "swap_mib": 0,
        "clock_skew_s": 0.0,
        "cluster_interface": "eth0",
        "resolv_conf": "/etc/resolv.conf",
        "container": "",
        "can_lower_oom": True,
        "systemd": 252,
        "python": "/usr/bin/python3",
        "python_version": "3.11.2",
        "uid": 0,
        "commands": {},
        "packages_missing": (),
        "marker": None,
    }
    return HostFacts(**{**values, **fields})


def test_what_was_detected_is_what_is_configured_for() -> None:
    plain = traits_of(facts())
    assert (plain.cgroup, plain.can_lower_oom, plain.container, plain.swap) == (2, True, False, False)
    other = traits_of(
        facts(
            cgroup=1,
            can_lower_oom=False,
            container="systemd-nspawn",
            swap_mib=512,
            resolv_conf="/run/systemd/resolve/resolv.conf",
            packages_missing=("haproxy",),
        )
    )
    assert (other.cgroup, other.can_lower_oom, other.container, other.swap) == (1, False, True, True)
    assert other.resolv_conf == "/run/systemd/resolve/resolv.conf"
    assert other.packages_missing == ("haproxy",)


# -- the runner ----------------------------------------------------------------------------------------------------------------


def test_plays_of_a_playbook_are_its_plays_in_order() -> None:
    for path in PLAYBOOKS.glob("*.yml"):
        names = [play["name"] for play in yaml.safe_load(path.read_text())]
        assert list(runner.plays_of(path.stem)) == names
    assert runner.plays_of("etcd")[0] == "Run the etcd members"


def test_control_sockets_are_private_short_and_gone_afterwards() -> None:
    with runner.control_sockets() as name:
        directory = Path(name)
        assert directory.stat().st_mode & 0o777 == 0o700
        # %r@%h:%p-hash of OpenSSH must fit in 107 characters
        assert len(name) < 50
    assert not directory.exists()


def test_no_link_to_control_sockets_is_left_by_a_run_that_failed(tmp_path: Path) -> None:
    link = tmp_path / "sockets"
    with contextlib.suppress(ValueError), runner.control_sockets(link) as name:
        assert str(link.readlink()) == name
        raise ValueError
    assert not link.is_symlink()


def test_a_session_without_keys_says_so(session: Session) -> None:
    with pytest.raises(RuntimeError, match="pki"):
        session.the_pki()
    assert session.nodes == session.cluster.nodes
    assert replace(session, sockets="x").sockets == "x"


def test_help_is_quick_to_import() -> None:
    """`--help` and completion import neither Ansible nor the official client."""
    code = (
        "import sys, provisioner.cli; print([name for name in ('ansible_runner', 'kubernetes', 'paramiko') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_down_comes_up_before_what_runs_is_restarted(make_cluster: MakeCluster, workspace: Workspace) -> None:
    """Ansible goes through a group in the order of the inventory: a stopped member first, or the next restart takes the quorum."""
    cluster = make_cluster()
    states = states_of(cluster)
    plan = Plan(
        (
            Change("cp-1", "etcd", "unit", "etcd.service", "restart (runs an older configuration)"),
            Change("cp-2", "etcd", "unit", "etcd.service", "restart (runs an older configuration)"),
            Change("etcd-1", "etcd", "unit", "etcd.service", "start (is inactive/dead)"),
        )
    )
    etcd = inventory.Etcd(waiting=frozenset(["cp-2"]), joins="cp-2")
    path = inventory.write(cluster, workspace, states, dict.fromkeys(states, "python3"), plan, etcd=etcd)
    listed = [sys.executable, "-m", "ansible", "adhoc", "-i", str(path), "--list-hosts"]
    for group, expected in (("differs_etcd", ["etcd-1", "cp-1"]), ("joins_etcd", ["cp-2"])):
        done = subprocess.run([*listed, group], capture_output=True, text=True, check=True)
        assert done.stdout.split()[2:] == expected, done.stdout
