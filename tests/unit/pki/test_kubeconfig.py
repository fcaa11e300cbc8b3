"""Kubeconfigs: read back by a YAML parser and by the official client."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from kubernetes.config import load_kube_config

from provisioner import kubeconfig
from provisioner.pki import CaName, Pki, new_bootstrap_token


@pytest.fixture
def content(pki: Pki) -> bytes:
    admin = pki.leaf("admin")
    return kubeconfig.render(
        server="https://k8s.example.org:6443",
        ca=pki.cas[CaName.CLUSTER].certificate,
        cluster="test",
        user=admin.common_name,
        certificate=admin.certificate,
        key=admin.key,
    )


def test_document(pki: Pki, content: bytes) -> None:
    admin = pki.leaf("admin")
    assert yaml.safe_load(content) == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": "https://k8s.example.org:6443",
                    "certificate-authority-data": base64.b64encode(pki.cas[CaName.CLUSTER].certificate).decode(),
                },
            }
        ],
        "users": [
            {
                "name": "provisioner-admin",
                "user": {
                    "client-certificate-data": base64.b64encode(admin.certificate).decode(),
                    "client-key-data": base64.b64encode(admin.key).decode(),
                },
            }
        ],
        "contexts": [{"name": "provisioner-admin@test", "context": {"cluster": "test", "user": "provisioner-admin"}}],
        "current-context": "provisioner-admin@test",
    }


def test_the_bytes_are_those_of_either_emitter_of_pyyaml(content: bytes) -> None:
    document = yaml.safe_load(content)
    plain = yaml.dump(document, Dumper=yaml.SafeDumper, sort_keys=False, default_flow_style=False, width=1 << 20)
    assert plain.encode() == content
    assert all(len(line) > 2 and not line.endswith(" ") for line in plain.splitlines())


def test_the_official_client_takes_it(pki: Pki, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "admin.kubeconfig"
    file.write_bytes(content)
    configuration = client.Configuration()
    load: Callable[..., None] = load_kube_config
    load(str(file), client_configuration=configuration)
    assert configuration.host == "https://k8s.example.org:6443"
    assert configuration.verify_ssl
    files = (configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert)
    expected = (pki.leaf("admin").certificate, pki.leaf("admin").key, pki.cas[CaName.CLUSTER].certificate)
    assert tuple(Path(str(file)).read_bytes() for file in files) == expected


def test_a_context_of_ones_own() -> None:
    document = yaml.safe_load(
        kubeconfig.render(server="https://x", ca=b"c", cluster="test", user="u", certificate=b"a", key=b"k", context="mine")
    )
    assert document["current-context"] == document["contexts"][0]["name"] == "mine"


def test_bootstrap() -> None:
    token = new_bootstrap_token()
    text = kubeconfig.bootstrap(server="https://127.0.0.1:16443", ca="/x/ca.crt", cluster="test", token=token.text)
    document = yaml.safe_load(text)
    assert document["users"] == [{"name": "kubelet-bootstrap", "user": {"token": token.text}}]
    # a file, which is replaced with its CA, and no certificate, which the kubelet would keep for ever
    assert document["clusters"][0]["cluster"]["certificate-authority"] == "/x/ca.crt"


def test_the_bytes_are_these() -> None:
    token = "abcdef." + "0123456789abcdef"
    found = kubeconfig.bootstrap(server="https://127.0.0.1:16443", ca="/x/ca.crt", cluster="test", token=token)
    assert (
        found.decode()
        == """\
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    certificate-authority: /x/ca.crt
    server: https://127.0.0.1:16443
users:
- name: kubelet-bootstrap
  user:
    token: abcdef.0123456789abcdef
contexts:
- name: kubelet-bootstrap@test
  context:
    cluster: test
    user: kubelet-bootstrap
current-context: kubelet-bootstrap@test
"""
    )


@pytest.mark.parametrize("token", ["123456.0123456789012345", "1e3456.1234567890123456", "0x1234.0000000000000000"])
def test_tokens_that_look_like_numbers_stay_text(token: str) -> None:
    document = yaml.safe_load(kubeconfig.bootstrap(server="https://x", ca="/x/ca.crt", cluster="test", token=token))
    assert document["users"][0]["user"]["token"] == token


def test_every_way_to_the_api_has_a_context() -> None:
    content = kubeconfig.render(
        server="https://10.0.0.12:6443",
        ca=b"c",
        cluster="test",
        user="admin",
        certificate=b"a",
        key=b"k",
        others={"cp-1": "https://10.0.0.11:6443", "cp-2": "https://10.0.0.12:6443"},
    )
    document = yaml.safe_load(content)
    servers = {cluster["name"]: cluster["cluster"]["server"] for cluster in document["clusters"]}
    contexts = {context["name"]: servers[context["context"]["cluster"]] for context in document["contexts"]}
    assert contexts == {
        "admin@test": "https://10.0.0.12:6443",
        "admin@test-cp-1": "https://10.0.0.11:6443",
        "admin@test-cp-2": "https://10.0.0.12:6443",
    }
    assert document["current-context"] == "admin@test"
    assert kubeconfig.server_of(content) == "https://10.0.0.12:6443"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"clusters: []", b"clusters: [{name: x}]", b"a: [", b"\xff"])
def test_what_is_no_kubeconfig_leads_nowhere(content: bytes) -> None:
    assert kubeconfig.server_of(content) == ""
