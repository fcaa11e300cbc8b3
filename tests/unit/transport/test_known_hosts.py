"""The cluster's own known_hosts: what is found in it, what is added, and the arguments that give it to OpenSSH."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stat
import threading
from pathlib import Path

import pytest

from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.ssh import openssh_args
from provisioner.ssh.auth import expand
from provisioner.ssh.known_hosts import HostKey, KnownHosts, name_of
from provisioner.workspace import Workspace

KEY = HostKey("ssh-ed25519", base64.b64encode(b"a key").decode())
OTHER = HostKey("ssh-rsa", base64.b64encode(b"another").decode())


def hosts(tmp_path: Path, content: str = "") -> KnownHosts:
    path = tmp_path / "w" / "known_hosts"
    if content:
        path.parent.mkdir()
        path.write_text(content)
    return KnownHosts(path)


def test_names_are_openssh_s() -> None:
    assert name_of("Host.Example", 22) == "host.example"
    assert name_of("10.0.0.1", 2222) == "[10.0.0.1]:2222"


def test_an_absent_file_knows_nobody(tmp_path: Path) -> None:
    assert hosts(tmp_path).keys_of("a", 22) == ()


def test_recorded_keys_are_found_again_and_kept_private(tmp_path: Path) -> None:
    known = hosts(tmp_path)
    known.record("A", 22, KEY)
    known.record("a", 2222, OTHER)
    known.record("a", 22, KEY)
    assert known.keys_of("a", 22) == (KEY,)
    assert known.keys_of("a", 2222) == (OTHER,)
    assert known.path.read_text() == f"a {KEY.kind} {KEY.blob}\n[a]:2222 {OTHER.kind} {OTHER.blob}\n"
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600
    assert [entry.name for entry in known.path.parent.iterdir()] == ["known_hosts"]


def test_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    before = f"# mine\n@cert-authority *.example ssh-rsa AAAA\n\nb,c {OTHER.kind} {OTHER.blob} comment\nbroken\nlast ssh-rsa BBBB"
    known = hosts(tmp_path, before)
    known.record("a", 22, KEY)
    assert known.path.read_text() == f"{before}\na {KEY.kind} {KEY.blob}\n"
    assert known.keys_of("c", 22) == (OTHER,)


@pytest.mark.parametrize(
    ("patterns", "port", "found"),
    [
        ("10.0.0.*", 22, True),
        ("10.0.0.?", 22, True),
        ("10.0.1.*", 22, False),
        ("*,!10.0.0.7", 22, False),
        ("!10.0.0.8,10.0.0.*", 22, True),
        ("[10.0.0.7]:2222", 2222, True),
        ("[10.0.0.7]:2222", 22, False),
        ("[10.0.0.*]:2222", 2222, True),
        ("10.0.0.7", 2222, False),
    ],
)
def test_host_patterns(tmp_path: Path, patterns: str, port: int, found: bool) -> None:
    known = hosts(tmp_path, f"{patterns} {KEY.kind} {KEY.blob}\n")
    assert known.keys_of("10.0.0.7", port) == ((KEY,) if found else ())


def test_hashed_names(tmp_path: Path) -> None:
    salt = b"s" * 20
    digest = hmac.new(salt, b"[a.example]:2222", hashlib.sha1).digest()
    name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    known = hosts(tmp_path, f"{name} {KEY.kind} {KEY.blob}\n|1|broken {KEY.kind} {KEY.blob}\n")
    assert known.keys_of("A.example", 2222) == (KEY,)
    assert known.keys_of("a.example", 22) == ()


def test_a_revoked_key_is_not_on_record(tmp_path: Path) -> None:
    assert hosts(tmp_path, f"@revoked a {KEY.kind} {KEY.blob}\n").keys_of("a", 22) == ()


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    known = hosts(tmp_path)
    threads = [threading.Thread(target=known.record, args=(f"host-{number}", 22, KEY)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.split()[0] for line in known.path.read_text().splitlines()) == sorted(
        f"host-{number}" for number in range(40)
    )


def test_fingerprints_are_those_of_ssh_keygen() -> None:
    digest = base64.b64encode(hashlib.sha256(b"a key").digest()).decode().rstrip("=")
    assert KEY.fingerprint == f"SHA256:{digest}"
    assert HostKey("ssh-rsa", "not base64!").fingerprint == "(unreadable key)"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file where the directory should be")
    with pytest.raises(ProvisionerError, match="cannot be recorded"):
        KnownHosts(tmp_path / "w" / "known_hosts").record("a", 22, KEY)
    (tmp_path / "known_hosts").mkdir()
    with pytest.raises(ProvisionerError, match="cannot be read"):
        KnownHosts(tmp_path / "known_hosts").keys_of("a", 22)


def test_key_names_of_cluster_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("id", tmp_path) == tmp_path / "id"
    assert expand("../id", tmp_path) == tmp_path / ".." / "id"
    assert expand("~/.ssh/id", tmp_path) == Path("/home/me/.ssh/id")
    assert expand("/etc/id", tmp_path) == Path("/etc/id")
    assert expand("~no-such-user-here/id", tmp_path) == tmp_path / "~no-such-user-here/id"


def test_openssh_arguments() -> None:
    cluster = Cluster.model_validate(
        {
            "name": "t",
            "ssh": {"user": "admin", "key": "keys/id", "bastion": {"host": "b.example", "port": 2200, "user": "jump"}},
            "nodes": [
                {"name": "a", "address": "10.0.0.1", "roles": ["worker"]},
                {"name": "b", "address": "10.0.0.2", "roles": ["worker"], "sshPort": 2222, "sshUser": "me", "sshKey": "/k"},
            ],
        }
    )
    workspace = Workspace(root=Path("/w"), cluster_file=Path("/c/cluster.yaml"))
    a, b = (openssh_args(cluster, workspace, node) for node in cluster.nodes)
    assert a[:2] == ("-F", "none")
    assert {"Port=22", "User=admin", 'IdentityFile="/c/keys/id"', "IdentitiesOnly=yes", "StrictHostKeyChecking=yes"} <= set(a)
    assert 'UserKnownHostsFile="/w/known_hosts"' in a
    assert {"Port=2222", "User=me", 'IdentityFile="/k"'} <= set(b)
    proxy = a[-1]
    assert proxy.startswith("ProxyCommand=ssh -F none ")
    assert "Port=2200" in proxy
    assert "User=jump" in proxy
    assert proxy.endswith(" -W '[%h]:%p' -- b.example")
    plain = cluster.model_copy(update={"ssh": cluster.ssh.model_copy(update={"bastion": None, "key": None})})
    assert not any(word.startswith(("ProxyCommand", "Identit")) for word in openssh_args(plain, workspace, plain.nodes[0]))
