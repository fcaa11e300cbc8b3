"""Reading what Vagrant prints, and saying what to do where it does not run or knows of no machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.errors import BadInput, ExitCode, ProvisionerError
from provisioner.vagrant import tool
from provisioner.vagrant.tool import Access, accesses_of, states_of

from .conftest import Script
from .texts import LIBVIRT, REMOTE, STATUS, VIRTUALBOX, WELL_KNOWN


def test_libvirt() -> None:
    key = Path("/srv/demo/.vagrant/machines/cp-1/libvirt/private_key")
    first, second = accesses_of(LIBVIRT)
    assert first == Access("cp-1", "192.168.121.165", 22, "vagrant", (key,))
    assert (second.name, second.host) == ("worker-1", "192.168.121.73")


def test_virtualbox_behind_forwarded_ports_with_a_blank_in_the_path() -> None:
    first, second = accesses_of(VIRTUALBOX)
    assert (first.host, first.port, second.host, second.port) == ("127.0.0.1", 2222, "127.0.0.1", 2200)
    assert first.keys == (Path("/home/me/my clusters/.vagrant/machines/cp-1/virtualbox/private_key"),)


def test_several_well_known_keys() -> None:
    (only,) = accesses_of(WELL_KNOWN)
    assert [key.name for key in only.keys] == ["vagrant.key.ed25519", "vagrant.key.rsa"]


def test_a_machine_on_another_host_is_refused() -> None:
    with pytest.raises(ProvisionerError, match=r"cp-1: .*hypervisor\.example\.org") as caught:
        accesses_of(REMOTE)
    assert "ssh.bastion" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Host a\n  User u\n  Port 22\n  IdentityFile /k\n", "no address, user or port"),
        ("Host a\n  HostName h\n  User u\n  Port none\n  IdentityFile /k\n", "no address, user or port"),
        ("Host a\n  HostName h\n  User u\n  Port 22\n", "without a key"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProvisionerError, match=message) as caught:
        accesses_of(text)
    assert caught.value.hint


def test_states() -> None:
    assert states_of(STATUS.format(cp="running", worker="not_created")) == {"cp-1": "running", "worker-1": "not_created"}
    assert states_of("") == {}


class TestRunning:
    """Which machines there are."""

    def test_those_never_made_are_left_out(self, project: Path, vagrant: Script) -> None:
        vagrant(status=STATUS.format(cp="running", worker="not_created"))
        assert tool.running(project) == (["cp-1"], ["worker-1"])

    def test_none_made(self, project: Path, vagrant: Script) -> None:
        vagrant(status=STATUS.format(cp="not_created", worker="not_created"))
        with pytest.raises(BadInput, match="none of the Vagrantfile's machines has been made") as caught:
            tool.running(project)
        assert "`vagrant up`" in caught.value.hint

    @pytest.mark.parametrize("state", ["shutoff", "poweroff", "saved"])
    def test_some_stopped(self, project: Path, vagrant: Script, state: str) -> None:
        vagrant(status=STATUS.format(cp="running", worker=state))
        with pytest.raises(BadInput, match=rf"not running: worker-1 \({state}\)") as caught:
            tool.running(project)
        assert "`vagrant up worker-1`" in caught.value.hint

    def test_not_installed(self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BadInput, match="vagrant is not installed") as caught:
            tool.running(project)
        assert caught.value.exit_code is ExitCode.BAD_INPUT
        assert "apt-get install vagrant" in caught.value.hint

    def test_it_fails(self, project: Path, vagrant: Script) -> None:
        vagrant(code=1, complaint="The provider for this Vagrant-managed machine is reporting that it is not usable")
        with pytest.raises(ProvisionerError, match=r"`vagrant status --machine-readable` failed with exit code 1") as caught:
            tool.running(project)
        assert "not usable" in caught.value.details[0]

    def test_it_hangs(self, project: Path, vagrant: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        vagrant()
        (tmp_path / "bin" / "vagrant").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
        monkeypatch.setattr(tool, "SECONDS", 0.2)
        with pytest.raises(ProvisionerError, match=r"did not end within 0\.2 s"):
            tool.running(project)


def test_only_the_running_are_asked_for(project: Path, vagrant: Script, tmp_path: Path) -> None:
    vagrant(ssh_config=LIBVIRT)
    assert [access.name for access in tool.accesses(project, ["cp-1"])] == ["cp-1"]
    assert (tmp_path / "calls").read_text() == f"{project} ssh-config cp-1\n"
    with pytest.raises(ProvisionerError, match="says nothing of cp-9"):
        tool.accesses(project, ["cp-9"])


class TestHome:
    """Which Vagrantfile is meant."""

    def test_above_the_target(self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert tool.home_of(project / "inventories" / "not-made-yet") == project

    def test_else_here(self, project: Path, tmp_path: Path) -> None:
        assert tool.home_of(tmp_path / "elsewhere") == project

    def test_vagrants_own_variables(self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "Machines").write_text("")
        monkeypatch.setenv("VAGRANT_CWD", str(tmp_path / "other"))
        with pytest.raises(BadInput, match="no Vagrantfile"):
            tool.home_of(project)
        monkeypatch.setenv("VAGRANT_VAGRANTFILE", "Machines")
        assert tool.home_of(project) == tmp_path / "other"

    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("VAGRANT_CWD", raising=False)
        with pytest.raises(BadInput, match="there is no Vagrantfile") as caught:
            tool.home_of(tmp_path)
        assert "VAGRANT_CWD" in caught.value.hint
