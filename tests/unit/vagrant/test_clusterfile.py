"""`provisioner init --from-vagrant`: the file that it writes, and what it says. The machines' answers are of a drill's."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provisioner import init, patience
from provisioner.cli import app
from provisioner.errors import BadInput, ExitCode
from provisioner.lab import keys
from provisioner.load import load, parse
from provisioner.ssh.known_hosts import HostKey, KnownHosts
from provisioner.vagrant import clusterfile, guests
from provisioner.vagrant.guests import read_answer
from provisioner.vagrant.plan import Guest, plan
from provisioner.vagrant.tool import Access
from provisioner.workspace import Workspace

from .conftest import Script
from .texts import ANSWER_LIBVIRT, ANSWER_VIRTUALBOX, LIBVIRT, STATUS, VIRTUALBOX

TOP = Path(__file__).parents[3]
KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIB0Dm4XXmdQjJzfPYoKZsCXKqJ6ZCvWfY4sTmT8XqQ0K")
PRIVATE = {"cp-1": "192.168.56.11", "worker-1": "192.168.56.101"}


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines say what they said once: no SSH here."""

    def ask(accesses: Sequence[Access]) -> tuple[dict[str, Guest], dict[str, HostKey]]:
        told = {}
        for access in accesses:
            local = access.host == "127.0.0.1"
            text = (ANSWER_VIRTUALBOX if local else ANSWER_LIBVIRT).replace(
                "ADDRESS", PRIVATE[access.name] if local else access.host
            )
            told[access.name] = read_answer(access.name, text, access.keys[0])
        return told, {access.name: KEY for access in accesses}

    monkeypatch.setattr(guests, "ask", ask)
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    patience.factor.cache_clear()


def keyed(text: str, project: Path) -> str:
    """The text with the keys of a project that has them."""
    for old in ("/srv/demo", "/home/me/my clusters"):
        text = text.replace(old, str(project))
    for name in ("cp-1", "worker-1"):
        for provider in ("libvirt", "virtualbox"):
            keys.ensure(project / f".vagrant/machines/{name}/{provider}/private_key", name)
    return text


def run(*args: str) -> tuple[int, str]:
    """The command's exit code, and all that it prints."""
    done = CliRunner().invoke(app, ["init", "--from-vagrant", *args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_libvirt(project: Path, vagrant: Script) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(LIBVIRT, project))
    code, said = run()
    assert code == ExitCode.OK
    cluster = load(project / "cluster.yaml")
    assert [(node.name, node.address, node.cluster_address) for node in cluster.nodes] == [
        ("cp-1", "192.168.121.165", None),
        ("worker-1", "192.168.121.73", None),
    ]
    assert cluster.ssh.user == "vagrant"
    assert cluster.nodes[0].ssh_key == ".vagrant/machines/cp-1/libvirt/private_key"
    assert cluster.etcd.election_timeout == 5000
    assert cluster.components.kube_scheduler.flags["leader-elect-lease-duration"] == "60s"
    assert "worker-1: 192.168.121.73, SSH at 192.168.121.73 as vagrant; worker" in said
    assert "next: `provisioner apply`" in said
    assert "export PROVISIONER_PATIENCE=10" in said


def test_virtualbox(project: Path, vagrant: Script) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(VIRTUALBOX, project))
    code, said = run("inventories/demo")
    assert code == ExitCode.OK
    cluster = load(project / "inventories/demo/cluster.yaml")
    assert [(node.address, node.ssh_port, str(node.ip)) for node in cluster.nodes] == [
        ("127.0.0.1", 2222, "192.168.56.11"),
        ("127.0.0.1", 2200, "192.168.56.101"),
    ]
    assert cluster.nodes[0].ssh_key == "../../.vagrant/machines/cp-1/virtualbox/private_key"
    assert cluster.etcd.election_timeout == 1000
    assert "cp-1: 192.168.56.11, SSH at 127.0.0.1 port 2222 as vagrant; control-plane, etcd" in said
    assert "next: `provisioner apply --cluster inventories/demo/cluster.yaml`" in said
    assert "emulated" not in said


def test_outside_of_the_project_keys_are_named_in_full(project: Path, vagrant: Script, tmp_path: Path) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(LIBVIRT, project))
    assert run(str(tmp_path / "elsewhere"))[0] == ExitCode.OK
    key = load(tmp_path / "elsewhere" / "cluster.yaml").nodes[0].ssh_key
    assert key == str(project / ".vagrant/machines/cp-1/libvirt/private_key")


def test_a_machine_alone_and_one_never_made(project: Path, vagrant: Script) -> None:
    vagrant(status=STATUS.format(cp="running", worker="not_created"), ssh_config=keyed(LIBVIRT, project))
    code, said = run()
    assert code == ExitCode.OK
    assert "note: not made by Vagrant, and left out: worker-1" in said
    cluster = load(project / "cluster.yaml")
    assert [role.value for role in cluster.nodes[0].roles] == ["control-plane", "etcd", "worker"]
    # what all have in common stands once
    assert (cluster.ssh.key, cluster.nodes[0].ssh_key) == (".vagrant/machines/cp-1/libvirt/private_key", None)


def test_an_existing_file_stays_and_nobody_is_asked(project: Path, vagrant: Script, tmp_path: Path) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(LIBVIRT, project))
    (project / "cluster.yaml").write_text("mine\n")
    with pytest.raises(BadInput, match="exists"):
        run()
    assert not (tmp_path / "calls").exists()
    assert run("--force")[0] == ExitCode.OK
    assert load(project / "cluster.yaml").name == "vagrant"


def test_machines_made_anew_get_their_host_keys_renewed(project: Path, vagrant: Script) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(LIBVIRT, project))
    known = KnownHosts(Workspace.of(project / "cluster.yaml", "vagrant").known_hosts)
    other = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIOther")
    known.record("192.168.121.165", 22, other)
    known.record("192.168.121.99", 22, other)
    code, said = run()
    assert code == ExitCode.OK
    assert "new host keys are on record: 192.168.121.165" in said
    assert known.keys_of("192.168.121.165", 22) == (KEY,)
    assert known.keys_of("192.168.121.99", 22) == (other,)
    # one that is unknown is recorded by the first connection, as ever
    assert known.keys_of("192.168.121.73", 22) == ()


def test_what_a_rule_refuses_is_said_before_anything_is_written(
    project: Path, vagrant: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    vagrant(status=STATUS.format(cp="running", worker="running"), ssh_config=keyed(LIBVIRT, project))
    (project / ".vagrant/machines/cp-1/libvirt/private_key").unlink()
    with pytest.raises(BadInput, match="do not make a valid cluster"):
        run()
    assert not (project / "cluster.yaml").exists()


def test_control_plane_without_vagrant(project: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--control-plane", "cp-1"])
    assert isinstance(done.exception, BadInput)
    assert not (project / "cluster.yaml").exists()


def test_the_shipped_example_says_what_the_command_finds(project: Path) -> None:
    """inventories/vagrant: VirtualBox with the Vagrantfile's default numbers."""
    vagrantfile = (TOP / "Vagrantfile").read_text()
    counts = {kind: int(count) for kind, count in re.findall(r'"(cp|worker)" => %w\[\w+ (\d+)\]', vagrantfile)}
    (network,) = re.findall(r'^PRIVATE = "([\d.]+)"', vagrantfile, re.MULTILINE)
    ((plane, worker),) = re.findall(r'start_with\?\("cp-"\) \? (\d+) : (\d+)\)', vagrantfile)
    bases = {"cp": int(plane), "worker": int(worker)}
    names = {f"{kind}-{n}": f"{network}.{bases[kind] + n}" for kind, count in counts.items() for n in range(1, count + 1)}
    accesses = [
        Access(name, "127.0.0.1", port, "vagrant", (project / f".vagrant/machines/{name}/virtualbox/private_key",))
        for name, port in zip(names, (2222, 2200, 2201, 2202, 2203), strict=True)
    ]
    told = {
        access.name: read_answer(access.name, ANSWER_VIRTUALBOX.replace("ADDRESS", names[access.name]), access.keys[0])
        for access in accesses
    }
    made = plan(accesses, told)
    text = init.render_content(clusterfile.content_of(made, project, project / "inventories" / "vagrant"))
    # in a tree of its own, where the keys are
    shutil.copytree(TOP / "inventories" / "vagrant", project / "inventories" / "vagrant")
    for access in accesses:
        keys.ensure(access.keys[0], access.name)
    example = project / "inventories" / "vagrant" / "cluster.yaml"
    written = parse(text, example).cluster
    assert written is not None
    assert load(example) == written
