"""No secret where somebody may read it: not in the inventory, not in variables, not in what Python prints of a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner import inventory
from provisioner.config import Cluster
from provisioner.desired import File
from provisioner.kubeconfig import bootstrap
from provisioner.pki import Pki, new_bootstrap_token
from provisioner.render import HostContext, render_host
from provisioner.workspace import Workspace

MakeCluster = Callable[..., Cluster]
MakeHost = Callable[..., HostContext]

KINDS = ("cp-etcd", "cp", "etcd", "worker", "every-role")


@pytest.fixture
def hosts(make_host: MakeHost, real_bundles: Mapping[str, tuple[File, ...]]) -> dict[str, HostContext]:
    """Every machine with its real keys, and a token for those that must join."""
    contexts = {}
    for kind in KINDS:
        token = new_bootstrap_token()
        kubeconfig = bootstrap(server="https://127.0.0.1:16443", ca="/x/ca.crt", cluster="contract", token=token.text)
        contexts[kind] = make_host(
            kind, certificates=real_bundles[kind], bootstrap_kubeconfig=None if kind == "etcd" else kubeconfig
        )
    return contexts


def secrets_of(files: tuple[File, ...]) -> set[str]:
    """Long enough lines of every secret file: a key's base64, a kubeconfig's data, a token."""
    found: set[str] = set()
    for file in files:
        if not file.secret:
            continue
        text = file.content.decode()
        if "PRIVATE KEY" in text:
            found |= {line for line in text.splitlines() if re.fullmatch(r"[A-Za-z0-9+/=]{20,}", line)}
        found |= set(re.findall(r"(?:client-key-data|token|secret): (\S+)", text))
        found |= set(re.findall(r'"mac": "(\w+)"', text))
    return found


def test_the_look_for_secrets_finds_some(hosts: dict[str, HostContext]) -> None:
    counts = {kind: len(secrets_of(render_host(host).files)) for kind, host in hosts.items()}
    assert counts["worker"] >= 3
    assert counts["etcd"] >= 4
    assert counts["every-role"] > counts["worker"]


def test_no_secret_is_in_the_inventory(make_cluster: MakeCluster, hosts: dict[str, HostContext], tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").touch()
    workspace = Workspace.of(tmp_path / "cluster.yaml", "contract")
    states = {kind: render_host(host) for kind, host in hosts.items()}
    path = inventory.write(make_cluster(), workspace, states, dict.fromkeys(KINDS, "/usr/bin/python3"))
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    for state in states.values():
        assert not [secret for secret in secrets_of(state.files) if secret in text]
        assert not [secret for secret in secrets_of(state.files) if secret in repr(state.variables)]
    assert "PRIVATE KEY" not in text


def test_every_file_with_a_key_is_marked_secret_and_is_its_owners_alone(hosts: dict[str, HostContext]) -> None:
    for host in hosts.values():
        for file in render_host(host).files:
            holds_key = b"PRIVATE KEY" in file.content or re.search(
                rb'client-key-data|token: |secret: \S{20}|"mac": "\w{64}"', file.content
            )
            assert bool(holds_key) == file.secret, file.path
            assert file.mode == 0o600 or not file.secret, file.path


def test_nothing_secret_is_in_a_file_that_plan_may_show(hosts: dict[str, HostContext]) -> None:
    for host in hosts.values():
        files = render_host(host).files
        shown = "".join(file.content.decode() for file in files if not file.secret)
        assert not [secret for secret in secrets_of(files) if secret in shown]


def test_printing_a_value_shows_no_secret(hosts: dict[str, HostContext], real_pki: Pki) -> None:
    for host in hosts.values():
        state = render_host(host)
        printed = repr(host) + repr(state) + repr(replace(host, bootstrap_kubeconfig=b"token: abcdef.0123456789abcdef"))
        for file in state.files:
            printed += repr(file)
        assert not [secret for secret in secrets_of(state.files) if secret in printed]
        for known in ("cluster_id='{}'", "'base_cluster_id': '{}'", "'clusterId': '{}'", "contract-{}"):
            printed = printed.replace(known.format("0123456789abcdef"), "")
        assert "0123456789abcdef" not in printed
    assert "PRIVATE" not in repr(real_pki)
    assert real_pki.encryption_key not in repr(real_pki)
    token = new_bootstrap_token()
    assert token.secret not in repr(token)


def test_a_ca_key_is_on_control_planes_alone(hosts: dict[str, HostContext], real_pki: Pki) -> None:
    for kind, host in hosts.items():
        state = render_host(host)
        for name, authority in real_pki.cas.items():
            holders = [file.path for file in state.files if authority.key.strip() in file.content]
            allowed = (
                ["/etc/kubernetes/kube-controller-manager/ca.key"]
                if name == "cluster" and kind in ("cp-etcd", "cp", "every-role")
                else []
            )
            assert holders == allowed, f"{kind}: key of the CA {name}"
