"""State files, locks, and the allocation of networks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisioner.errors import BadInput, LabError
from provisioner.lab import host, state
from provisioner.lab.spec import POOL, Shape


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROVISIONER_LAB_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("provisioner.lab.network.host_networks", tuple)
    return tmp_path / "state"


def test_labs_get_networks_of_their_own_and_give_them_back(root: Path, tmp_path: Path) -> None:
    first, second = (state.allocate(name, Shape(), tmp_path / name, tmp_path) for name in ("one", "two"))
    assert first.network != second.network
    assert state.names() == ("one", "two")
    assert state.find("two") == second
    state.forget(first)
    assert state.names() == ("two",)
    assert state.allocate("three", Shape(), tmp_path, tmp_path).network == first.network
    assert not (root / "one").exists()


def test_a_wanted_network_is_given_or_refused(root: Path, tmp_path: Path) -> None:
    wanted = tuple(POOL.subnets(new_prefix=24))[200]
    assert state.allocate("one", Shape(), tmp_path, tmp_path, wanted=wanted).network == wanted
    with pytest.raises(BadInput, match="in use"):
        state.allocate("two", Shape(), tmp_path, tmp_path, wanted=wanted)
    assert state.names() == ("one",)
    assert (root / "one/state.json").stat().st_mode & 0o777 == 0o600


def _allocate(number: int) -> str:
    return str(state.allocate(f"lab-{number}", Shape(), Path("/nowhere"), Path("/nowhere")).network)


@pytest.mark.usefixtures("root")
def test_allocations_at_once_do_not_share_a_network() -> None:
    with ThreadPoolExecutor(8) as pool:
        networks = set(pool.map(_allocate, range(24)))
    assert len(networks) == 24


@pytest.mark.usefixtures("root")
def test_there_is_no_lab_where_none_was_made() -> None:
    assert state.find("dev") is None
    assert state.names() == ()


def test_an_unreadable_state_is_an_error_and_stops_allocations(root: Path, tmp_path: Path) -> None:
    (root / "bad").mkdir(parents=True)
    (root / "bad/state.json").write_text("{")
    with pytest.raises(LabError, match=r"bad/state\.json"):
        state.find("bad")
    with pytest.raises(LabError, match=r"bad/state\.json"):
        state.allocate("good", Shape(), tmp_path, tmp_path)
    assert not (root / "good").exists()


def test_what_a_crash_left_without_state_is_cleared(root: Path) -> None:
    (root / "half/machines/cp-1").mkdir(parents=True)
    (root / "half/.state.json.abc").write_text("{")
    state.clear_remains("half")
    assert not (root / "half").exists()


def test_the_lock_excludes_and_leaves_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.3)
    with state.lock("dev"):
        # another open file description, as another process has it
        with pytest.raises(Exception, match="lab dev to be free"), state.lock("dev"):
            pytest.fail("two holders")
        with state.lock("other"):
            pass
    with state.lock("dev"):
        pass
    assert list(root.iterdir()) == []


def test_limits_are_raised_where_lower_and_given_back(tmp_path: Path) -> None:
    inotify = tmp_path / "fs/inotify"
    inotify.mkdir(parents=True)
    instances, watches = inotify / "max_user_instances", inotify / "max_user_watches"
    instances.write_text("128\n")
    watches.write_text("99999999\n")
    record = tmp_path / "record"
    host.raise_limits(record, tmp_path)
    assert int(instances.read_text()) == host.LIMITS["fs/inotify/max_user_instances"]
    assert watches.read_text() == "99999999\n"
    host.raise_limits(record, tmp_path)
    assert json.loads(record.read_text()) == {"fs/inotify/max_user_instances": "128"}
    host.restore_limits(record, tmp_path)
    assert (instances.read_text(), watches.read_text()) == ("128", "99999999\n")
    assert not record.exists()


def test_a_limit_changed_by_someone_else_stays(tmp_path: Path) -> None:
    (tmp_path / "fs/inotify").mkdir(parents=True)
    for name in host.LIMITS:
        (tmp_path / name).write_text("128")
    host.raise_limits(tmp_path / "record", tmp_path)
    (tmp_path / "fs/inotify/max_user_instances").write_text("5000")
    host.restore_limits(tmp_path / "record", tmp_path)
    assert (tmp_path / "fs/inotify/max_user_instances").read_text() == "5000"
    assert (tmp_path / "fs/inotify/max_user_watches").read_text() == "128"


def test_a_host_without_the_tools_is_told_what_to_install_and_where_else_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="systemd-nspawn, mmdebstrap") as caught:
        host.check()
    for word in ("apt-get install", "systemd-container", "Vagrant", "real machines"):
        assert word in caught.value.hint


def test_users_other_than_root_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="not root") as caught:
        host.check()
    assert "sudo" in caught.value.hint
    with pytest.raises(LabError, match="belong to root"):
        host.check_root()


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(LabError, match="need Linux, this is Darwin") as caught:
        host.check()
    assert "Vagrant" in caught.value.hint
