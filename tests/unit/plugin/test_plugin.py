"""The pytest plugin without a cluster: loaded in every run, it costs nothing, clashes with nothing, and refuses in clear words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.lab import state
from provisioner.pytest_plugin import OPTIONS
from provisioner.testing import site
from provisioner.testing.process import Process
from provisioner.testing.settings import Settings, of_config
from provisioner.testing.site import Record, Site, Unavailable

# What a run of pytest that asks for no cluster must never load.
HEAVY = ("kubernetes", "ansible", "ansible_runner", "paramiko", "pydantic", "typer", "rich", "yaml", "jinja2", "provisioner.lab")
USES = "def test_it(cluster):\n    assert cluster\n"


@pytest.fixture(autouse=True)
def _labs_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROVISIONER_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setenv("PROVISIONER_CACHE", str(tmp_path / "cache"))


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """pytest as a process of its own, with the plugin as its entry point brings it."""
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *args)


def test_a_run_without_a_cluster_loads_next_to_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import sys

        def test_nothing_heavy_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("provisioner")
            # testinfra is a plugin, too, and is not ours
            assert [name for name in {HEAVY!r} if name in sys.modules] == []
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_the_plugin_is_imported_in_milliseconds() -> None:
    code = (
        "import sys, time, pytest; before = set(sys.modules); began = time.perf_counter();"
        "import provisioner.pytest_plugin, provisioner.testing.settings;"
        "print(time.perf_counter() - began, len(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    # the fastest of three, with room for a busy machine; 8 ms where this was written
    assert min(float(seconds) for seconds, _ in runs) < 0.2
    assert int(runs[0][1]) < 25, "modules that the plugin brings besides pytest's own"


def test_the_fixtures_and_options_are_there(pytester: pytest.Pytester) -> None:
    shown = run(pytester, "--fixtures").stdout.str()
    for name in ("cluster", "provisioner_cluster", "namespace", "provisioner_namespace"):
        assert f"\n{name}" in shown
    text = run(pytester, "--help").stdout.str()
    for option, setting, _, _ in OPTIONS:
        assert option in text
        assert setting in text


def test_a_project_keeps_its_own_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef cluster():\n    return 'mine'\n")
    pytester.makepyfile("def test_it(cluster):\n    assert cluster == 'mine'\n")
    run(pytester).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--cluster-control-planes", "0"), "--cluster-control-planes: '0' is not a number of machines, 1 or more"),
        (("--cluster-workers", "many"), "--cluster-workers: 'many' is not a number of machines, 0 or more"),
        (("--cluster-workers=-1",), "'-1' is not a number"),
        (("--cluster-lab", "../up"), "--cluster-lab: '../up' is not a name"),
        (("--cluster-lab", ""), "--cluster-lab: '' is not a name"),
        (("--cluster-kubernetes", "latest"), "--cluster-kubernetes: 'latest' is not a version"),
        (("--cluster-kubeconfig", "none"), "none: no such file; `provisioner up --kubeconfig"),
        (("--cluster-keep", "--cluster-kubeconfig", "there"), "is never taken down"),
        (("-c", "wrong.ini"), "setting cluster_workers of"),
    ],
)
def test_wrong_options_are_usage_errors_at_once(pytester: pytest.Pytester, args: tuple[str, ...], said: str) -> None:
    pytester.makepyfile("def test_it():\n    pass\n")
    pytester.makefile(".ini", wrong="[pytest]\ncluster_workers = few\n")
    (pytester.path / "there").touch()
    done = run(pytester, *args)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr.str()
    assert "Traceback" not in done.stderr.str()


def test_options_win_over_the_configuration_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncluster_workers = 3\ncluster_control_planes = 3\ncluster_kubernetes = 1.35.4\n")
    found = of_config(pytester.parseconfigure("--cluster-workers", "0"))
    assert found == Settings(found.lab, control_planes=3, workers=0, kubernetes="1.35.4")
    assert str(found) == "3 control planes"


def test_a_project_has_a_lab_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")
    first = of_config(pytester.parseconfigure()).lab
    assert first == of_config(pytester.parseconfigure("-q")).lab
    other = pytester.mkdir("other")
    (other / "pytest.ini").write_text("[pytest]\n")
    assert of_config(pytester.parseconfigure("-c", str(other / "pytest.ini"))).lab != first
    assert str(Settings("x")) == "1 control plane and 1 worker"


def test_who_is_not_root_is_told_what_to_do(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest("import os\n\nos.geteuid = lambda: 1000\n")
    pytester.makepyfile(USES)
    done = run(pytester)
    done.assert_outcomes(errors=1)
    assert "takes root on Linux" in done.stdout.str()
    assert "--cluster-kubeconfig FILE" in done.stdout.str()
    assert "provisioner/testing" not in done.stdout.str(), "a message, and no traceback"


@pytest.mark.skipif(os.geteuid() != 0, reason="root")
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_machine_that_cannot_run_labs_is_named_once_and_nothing_is_left(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """The real command refuses; every test that asks for the cluster fails with its words, and it is asked once."""
    monkeypatch.setenv("PATH", str(tmp_path / "no-tools"))
    pytester.makepyfile(USES + "\ndef test_again(cluster):\n    pass\n\ndef test_without():\n    pass\n")
    done = run(pytester, *workers)
    done.assert_outcomes(passed=1, errors=2)
    text = done.stdout.str()
    assert "lab machines cannot run here: " in text
    assert "install " in text
    assert "systemd-container" in text
    assert "is removed" in text
    home = tmp_path / "labs" / ".pytest"
    assert [path.name for path in home.iterdir() if not path.name.endswith(".lock")] == []


def test_a_cluster_that_is_in_use_is_not_shared_with_another_run(tmp_path: Path) -> None:
    """The other run is this process' parent, which lives."""
    other = Process.of(os.getppid())
    assert other
    home = tmp_path / "labs" / ".pytest" / "busy"
    home.mkdir(parents=True)
    here = Site("busy")
    here._write(Record(other.to_text(), keep=False, kubeconfig="/somewhere"))
    with pytest.raises(Unavailable, match=f"in use by another run of pytest .process {other.number}.*--cluster-lab NAME"):
        here.take(Settings("busy"), Process.current(), print)
    here.release(Process.current(), print)
    assert here.record(), "not ours to release"


def test_a_builder_whose_process_was_killed_is_stopped_before_another_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a worker of pytest-xdist is killed and another takes its place, under the same owner."""
    mine, here = Process.current(), Site("lab")
    monkeypatch.setattr(site, "_provisioner", lambda *_: ("false",))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as orphan:
        try:
            builder = Process.of(orphan.pid)
            assert builder
            here._write(Record(mine.to_text(), keep=True, builder=builder.to_text()))
            with pytest.raises(Unavailable, match="could not be built"):
                here.take(Settings("lab", keep=True), mine, print)
            assert not builder.alive
        finally:
            orphan.kill()


def test_a_relative_place_of_labs_is_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROVISIONER_LAB_DIR", "labs")
    assert site.labs() == Site("lab").home.parent.parent == tmp_path / "labs"
    # of a process that runs elsewhere
    assert site._environment()["PROVISIONER_LAB_DIR"] == str(tmp_path / "labs")


def test_a_lab_of_the_users_own_is_never_removed(tmp_path: Path) -> None:
    home = tmp_path / "labs" / "lab"
    home.mkdir(parents=True)
    (home / "state.json").write_text('{"directory": "/root/workspace/lab"}')
    mine = Process.current()
    here = Site("lab")
    here._write(Record(mine.to_text(), keep=False, error="lab exists and belongs to /root/workspace/lab"))
    here.release(mine, print)
    assert (home / "state.json").exists()
    assert not here.home.exists()


def test_where_labs_are_is_what_the_lab_itself_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.labs() == state.root()
    monkeypatch.delenv("PROVISIONER_LAB_DIR")
    assert site.labs() == state.root()


def test_a_process_is_known_by_its_start() -> None:
    mine = Process.current()
    assert mine.alive
    assert Process.from_text(mine.to_text()) == mine
    assert not Process(mine.number, mine.started + 1).alive
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        found = Process.of(child.pid)
        assert found
        found.stop(seconds=0)
        child.wait(timeout=10)
        assert not found.alive
        found.wait()
