"""Whom containerd asks and believes; what the kubelet is told of a registry; files that are refused without being repeated."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provisioner import registries
from provisioner.config import Cluster
from provisioner.registries import Unusable
from provisioner.render import registry_login
from provisioner.render.trust import Source, sources_of
from provisioner.support.secrets import registry_words
from provisioner.workspace import Workspace

SECRET = "hunter2, and more"  # noqa: S105 - of nobody


def cluster(**containerd: Any) -> Cluster:
    """The smallest one, with settings of containerd."""
    node = {"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd", "worker"]}
    return Cluster.model_validate({"name": "c", "nodes": [node], "containerd": containerd})


def test_a_mirror_that_is_a_registry_of_the_list_is_spoken_to_as_that_one_is() -> None:
    found = sources_of(
        cluster(
            registries=[
                {"registry": "r.example:5000", "ca": "ca.crt"},
                {"registry": "plain.example", "tls": "none"},
                {"registry": "any.example", "tls": "skip-verify"},
            ],
            registryMirrors=[
                {"registry": "docker.io", "endpoints": ["https://r.example:5000", "https://m.example", "http://plain.example"]},
                {"registry": "_default", "endpoints": ["https://any.example"]},
            ],
        )
    )
    ca = "/etc/containerd/certs.d/r.example:5000/provisioner-ca.crt"
    assert found["docker.io"] == (
        # the API of Docker Hub is not at docker.io
        Source("https://registry-1.docker.io"),
        (Source("https://r.example:5000", ca), Source("https://m.example"), Source("http://plain.example")),
    )
    # containerd puts in the image's own registry
    assert found["_default"] == (Source(""), (Source("https://any.example", skip_verify=True),))
    assert found["r.example:5000"] == (Source("https://r.example:5000", ca), ())
    assert found["plain.example"] == (Source("http://plain.example"), ())
    assert found["any.example"] == (Source("https://any.example", skip_verify=True), ())


@pytest.mark.parametrize(
    ("image", "known"),
    [
        ("r.example:5000/team/app:1", True),
        ("r.example/team/app:1", False),
        ("r.example:50000/a", False),
        ("docker.io/library/a", False),
    ],
)
def test_a_login_is_given_for_its_own_registry_alone(image: str, known: bool) -> None:
    logins = {"r.example:5000": {"username": "robot", "password": SECRET}}
    request = {"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": image}
    answer = registry_login.answer(request, logins)
    assert answer["auth"] == (logins if known else {})
    assert (answer["apiVersion"], answer["kind"], answer["cacheDuration"]) == (
        request["apiVersion"],
        "CredentialProviderResponse",
        "0s",
    )


def test_the_program_reads_its_file_and_answers_on_standard_output(tmp_path: Path) -> None:
    (tmp_path / "logins.json").write_text(json.dumps({"r.example": {"username": "robot", "password": SECRET}}))
    program = Path(str(registry_login.__file__)).read_text().replace(registry_login.LOGINS, str(tmp_path / "logins.json"))
    (tmp_path / "provider").write_text(program)
    request = json.dumps({"apiVersion": "v1", "image": "r.example/a:1"})
    command = [sys.executable, "-I", str(tmp_path / "provider")]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["auth"]["r.example"]["password"] == SECRET


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (f"username: robot\npassword: '{SECRET}'\n", 0o640, "chmod 600"),
        (f"username: robot\npassword: '{SECRET}'\nmore: x\n", 0o600, "two lines"),
        (f"{SECRET}", 0o600, "two lines"),
        ("username: robot\npassword: 12345678\n", 0o600, "quotes"),
        (f"username: ''\npassword: '{SECRET}'\n", 0o600, "no text"),
        (f"{{: {SECRET} [", 0o600, "two lines"),
        # what YAML makes of these is no error of its own
        (f"username: 2024-99-99\npassword: '{SECRET}'\n", 0o600, "two lines"),
        ("[" * 5000, 0o600, "two lines"),
        (f'username: robot\npassword: "{SECRET}\\ud800"\n', 0o600, "surrogate"),
    ],
)
def test_a_file_that_is_refused_is_not_repeated(tmp_path: Path, content: str, mode: int, says: str) -> None:
    path = tmp_path / "login"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(Unusable) as refused:
        registries.read_login(path)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["nowhere", "a\0b"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    for read in (registries.read_login, registries.read_ca):
        with pytest.raises(Unusable, match="cannot be read"):
            read(tmp_path / name)


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "login"
    path.write_text(json.dumps({"username": "robot", "password": SECRET}))
    path.chmod(0o600)
    assert registries.read_login(path) == ("robot", SECRET)


def test_of_a_ca_file_the_certificates_are_taken_alone(tmp_path: Path) -> None:
    pem = (Path(__file__).parents[1] / "config" / "ca.crt").read_bytes()
    path = tmp_path / "ca.crt"
    path.write_bytes("# Prüfstelle\n".encode("latin-1") + pem + "# außerdem\n".encode() + pem)
    found = registries.read_ca(path)
    assert found.isascii()
    assert found == pem * 2


def test_a_support_bundle_is_searched_for_the_passwords(tmp_path: Path) -> None:
    (tmp_path / "login").write_text(json.dumps({"username": "robot", "password": SECRET}))
    (tmp_path / "login").chmod(0o600)
    known = cluster(
        registries=[{"registry": "r.example", "credentials": "login"}, {"registry": "gone.example", "credentials": "gone"}]
    )
    words = list(registry_words(known, Workspace(tmp_path, tmp_path / "cluster.yaml")))
    assert words == [SECRET, base64.b64encode(f"robot:{SECRET}".encode()).decode()]
