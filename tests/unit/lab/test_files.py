"""What the lab writes: cluster.yaml, keys, apt sources, mount options, cgroup paths."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import yaml

from provisioner.config import Cluster, Role
from provisioner.errors import BadInput, LabError
from provisioner.lab import apt, cgroups, clusterfile, commands, image, keys, nspawn
from provisioner.lab.spec import Lab, Shape

NETWORK = IPv4Network("10.77.9.0/24")


def a_lab(shape: Shape, directory: Path) -> Lab:
    return Lab(name="dev", shape=shape, network=NETWORK, home=directory, directory=directory, image=directory)


@pytest.mark.parametrize("shape", [Shape(), Shape(3, 2), Shape(1, 0), Shape(2, 2, 3, stacked=False), Shape(1, 1, spares=2)])
def test_cluster_yaml_is_a_cluster(shape: Shape, tmp_path: Path) -> None:
    lab = a_lab(shape, tmp_path)
    cluster = Cluster.model_validate(yaml.safe_load(clusterfile.render(lab, "id_ed25519")))
    assert cluster.name == "dev"
    assert cluster.ssh.key == "id_ed25519"
    assert cluster.ssh.host_keys == "strict"
    assert [(node.name, node.ip, node.roles) for node in cluster.nodes] == [
        (machine.name, machine.address, machine.roles) for machine in lab.machines if machine.roles
    ]
    assert len(cluster.nodes_with(Role.ETCD)) % 2 == 1


def test_a_kept_cluster_yaml_names_its_network(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        clusterfile.render(a_lab(Shape(3, 2, spares=1), tmp_path), "id_ed25519") + "\nnetwork: {podCidr: 10.9.0.0/16}\n"
    )
    assert clusterfile.network_of(path, "dev", Shape(3, 2, spares=1)) == NETWORK


@pytest.mark.parametrize(
    ("name", "shape", "change"),
    [
        ("other", Shape(3, 2), ("", "")),
        ("dev", Shape(1, 2), ("", "")),
        ("dev", Shape(3, 2), ("10.77.9.", "192.168.1.")),
        ("dev", Shape(3, 2), ("10.77.9.12", "10.77.9.99")),
        ("dev", Shape(3, 2), ("nodes:", "machines:")),
        ("dev", Shape(3, 2), ("nodes:", "nodes: [")),
        ("dev", Shape(3, 2), ("address: 10.77.9.11", "address: cp-1.example.org")),
    ],
)
def test_a_cluster_yaml_of_other_machines_is_refused(tmp_path: Path, name: str, shape: Shape, change: tuple[str, str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(clusterfile.render(a_lab(Shape(3, 2), tmp_path), "id_ed25519").replace(*change))
    with pytest.raises(BadInput, match=r"is not the cluster\.yaml of a lab"):
        clusterfile.network_of(path, name, shape)


def test_keys_are_made_once_private_and_openssh_reads_them(tmp_path: Path) -> None:
    private = tmp_path / "keys" / "id_ed25519"
    line = keys.ensure(private, "lab-dev")
    assert keys.ensure(private, "lab-dev") == line
    assert private.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True).stdout
    assert shown.split()[:2] == line.split()[:2]


def test_known_hosts_finds_the_machine(tmp_path: Path) -> None:
    line = keys.ensure(tmp_path / "key", "cp-1")
    (tmp_path / "known_hosts").write_text(keys.known_hosts_line("10.77.9.11", line))
    found = subprocess.run(
        ["ssh-keygen", "-F", "10.77.9.11", "-f", tmp_path / "known_hosts"], capture_output=True, text=True, check=True
    ).stdout
    assert line.split()[1] in found


DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.example.org/debian
Suites: bookworm bookworm-updates
# another
Components: main contrib
Signed-By: /usr/share/keyrings/other.gpg

Types: deb
URIs: http://mirror.example.org/security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
Enabled: no
URIs: http://off.example.org/
Suites: bookworm-backports
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/etc/apt/keyrings/vendor.gpg] http://vendor.example.org/apt bookworm stable
deb-src http://source.example.org/debian bookworm main
#deb http://commented.example.org/debian bookworm main
deb http://old.example.org/debian trixie main
"""


def test_the_hosts_own_sources_are_taken_and_other_vendors_are_not(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(ONE_LINE)
    text = apt.sources_for("bookworm", tmp_path)
    stanzas = [dict(line.split(": ", 1) for line in stanza.splitlines()) for stanza in text.strip().split("\n\n")]
    assert [(stanza["Suites"], stanza["URIs"], stanza["Components"]) for stanza in stanzas] == [
        ("bookworm", "http://mirror.example.org/debian", "main"),
        ("bookworm-updates", "http://mirror.example.org/debian", "main"),
        ("bookworm-security", "http://mirror.example.org/security", "main"),
    ]
    assert stanzas[0]["Signed-By"] == "/usr/share/keyrings/other.gpg"
    assert stanzas[2]["Signed-By"] == str(apt.KEYRING)


def test_one_line_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "deb [signed-by=/k.gpg] http://m.example.org/debian bookworm main non-free-firmware # why\n"
    )
    assert apt.sources_for("bookworm", tmp_path) == (
        "Types: deb\nURIs: http://m.example.org/debian\nSuites: bookworm\nComponents: main\nSigned-By: /k.gpg\n"
    )


@pytest.mark.parametrize("text", ["", ONE_LINE, "deb http://m.example.org/debian bookworm-updates main\n"])
def test_a_host_of_another_release_leaves_the_choice_to_mmdebstrap(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list").write_text(text)
    assert apt.sources_for("bookworm", tmp_path) == ""


def test_the_recipe_decides_where_the_tree_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROVISIONER_CACHE", str(tmp_path))
    before = image.path()
    assert before.parent == tmp_path / "lab-images"
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "vim-tiny"))
    assert image.path() != before
    monkeypatch.delenv("PROVISIONER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert image.path().parent == tmp_path / "xdg/provisioner/lab-images"


def test_the_tree_becomes_a_machine(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    for directory in (wants, tmp_path / "etc/ssh", tmp_path / "etc/apt/sources.list.d", tmp_path / "var/lib/apt/lists/partial"):
        directory.mkdir(parents=True)
    # as packages enable their units: a link that dangles when seen from outside
    (wants / "haproxy.service").symlink_to("/lib/systemd/system/haproxy.service")
    (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    (tmp_path / "etc/ssh/ssh_host_rsa_key").touch()
    (tmp_path / "etc/apt/sources.list.d/0000lab.sources").touch()
    image.configure(tmp_path)
    image.configure(tmp_path)
    assert [path.name for path in wants.iterdir()] == ["ssh.service"]
    assert not list(tmp_path.glob("etc/ssh/ssh_host_*"))
    assert not list(tmp_path.glob("etc/apt/sources.list.d/*"))
    assert (tmp_path / "etc/systemd/system/systemd-udevd.service").readlink() == Path("/dev/null")
    assert (tmp_path / "etc/systemd/system/sysinit.target.wants/lab-cgroup.service").is_symlink()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_mount_options_are_escaped() -> None:
    assert nspawn.escape(Path("/a,b:c\\d")) == r"/a\,b\:c\\d"


HYBRID = """\
20 1 0:19 / /sys/fs/cgroup rw - tmpfs tmpfs rw
21 20 0:20 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
22 20 0:20 / /sys/fs/cgroup/cpu-again rw - cgroup cgroup rw,cpu,cpuacct
23 20 0:21 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,name=systemd
24 20 0:22 / /sys/fs/cgroup/unified rw shared:6 master:1 - cgroup2 cgroup2 rw
"""
UNIFIED = "30 20 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_every_hierarchy_counts_once(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(HYBRID)
    found = cgroups.detect(mountinfo)
    assert found.version == 1
    assert [path.name for path in found.hierarchies] == ["cpu,cpuacct", "systemd", "unified"]
    assert found.wrap("plab.a.cp-1", ["true"]) == ["true"]
    mountinfo.write_text(UNIFIED)
    assert cgroups.detect(mountinfo).version == 2
    mountinfo.write_text("")
    with pytest.raises(LabError, match="no cgroup file system"):
        cgroups.detect(mountinfo)


def test_under_systemd_a_machine_is_a_delegated_scope() -> None:
    groups = cgroups.Cgroups(version=2, hierarchies=(Path("/sys/fs/cgroup"),), scopes=True)
    assert groups.directories("plab.a.cp-1") == (Path("/sys/fs/cgroup/system.slice/plab.a.cp-1.scope"),)
    command = groups.wrap("plab.a.cp-1", ["true"])
    assert command[0] == "systemd-run"
    assert {"--scope", "--unit=plab.a.cp-1", "--property=Delegate=yes"} <= set(command)
    assert command[-2:] == ["--", "true"]


def test_a_failed_tool_says_what_it_said() -> None:
    assert commands.run(["cat"], stdin="in") == "in"
    with pytest.raises(LabError, match="exit code 2") as caught:
        commands.run(["ls", "/no/such/directory"])
    assert "No such file" in caught.value.details[0]
    assert commands.run(["false"], check=False) == ""
    with pytest.raises(LabError, match="command not found"):
        commands.run(["no-such-tool-here"])
    with pytest.raises(LabError, match=r"within 0\.1 s"):
        commands.run(["sleep", "30"], timeout=0.1)
