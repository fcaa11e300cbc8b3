"""The command line as users meet it: clear words, the documented exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.cli.common import find_cluster_file
from provisioner.errors import (
    ApplyError,
    ArtifactError,
    BadInput,
    ExitCode,
    Interrupted,
    LabError,
    PreflightUnfit,
    ProvisionerError,
    VerifyFailed,
    WaitTimeout,
)

PROVISIONER = Path(sys.executable).parent / "provisioner"
CLUSTER = """\
apiVersion: provisioner/v1
name: test
nodes:
  - {name: cp-1, address: 10.77.0.11, roles: [control-plane, etcd, worker]}
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The real command in a directory of its own, without a terminal."""

    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PROVISIONER_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "COLUMNS": "200", **environ}
        env.pop("PROVISIONER_DEBUG", None)
        return subprocess.run(
            [str(PROVISIONER), *args], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return run


def test_exit_codes_are_the_documented_ones() -> None:
    found = {error("message").exit_code for error in (ProvisionerError, ApplyError, ArtifactError, LabError, WaitTimeout)}
    assert found == {ExitCode.FAILURE} == {1}
    assert (BadInput("").exit_code, PreflightUnfit("").exit_code, VerifyFailed("").exit_code) == (3, 4, 5)
    assert (ExitCode.OK, ExitCode.PLAN_HAS_CHANGES, Interrupted("").exit_code) == (0, 2, 130)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("plan", "--bogus"), "No such option: --bogus"),
        (("plann",), "No such command 'plann'. Did you mean 'plan'?"),
        (("apply", "extra"), "unexpected extra argument"),
        (("up", "--control-planes", "0"), "--control-planes"),
        (("up", "--control-planes", "many"), "--control-planes"),
        (("up", "--workers", "-1"), "--workers"),
        (("verify", "--level", "some"), "--level"),
        (("ssh",), "NODE"),
        (("plan", "--cluster"), "--cluster"),
        (("artifacts", "fetch", "--arch", "mips"), "amd64"),
    ],
)
def test_a_wrong_command_line_is_bad_input(cli: Cli, args: tuple[str, ...], said: str) -> None:
    done = cli(*args)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert said.lower() in done.stderr.lower()
    assert "error: " in done.stderr
    assert "--help` shows" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["plan", "kubeconfig"])
def test_every_command_says_that_there_is_no_cluster(cli: Cli, command: str) -> None:
    done = cli(command)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert "no cluster.yaml" in done.stderr
    assert "provisioner init" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["plan", "apply", "preflight", "verify", "kubeconfig", "validate"])
def test_every_command_says_that_a_file_is_missing(cli: Cli, command: str) -> None:
    done = cli(command, *(["no/such/file"] if command == "validate" else ["--cluster", "no/such/file"]))
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert "no/such/file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cluster.yaml"),
        ("nodes: [", "cluster.yaml:"),
        ("\x00", "cluster.yaml"),
        (CLUSTER.replace("address", "adress"), "did you mean"),
        (CLUSTER.replace("etcd, ", ""), "etcd"),
        (CLUSTER + "manifests: [missing.yaml]\n", "missing.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_wrong_cluster_file_is_bad_input_and_makes_nothing(cli: Cli, tmp_path: Path, text: str, said: str, command: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    done = cli(command)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("option", ["--only", "--from"])
def test_an_unknown_phase_is_refused_before_anything_is_looked_at(cli: Cli, tmp_path: Path, option: str) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    done = cli("apply", option, "etdc", "--yes")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "there is no phase 'etdc'" in done.stderr
    assert "machines, members, etcd, control_plane" in done.stderr
    assert "Look at the machines" not in done.stderr
    assert not (tmp_path / "workspace").exists()


def test_a_workspace_of_another_version_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    root = tmp_path / "workspace" / "test"
    root.mkdir(parents=True)
    (root / "layout").write_text("7\n")
    before = sorted(tmp_path.rglob("*"))
    for command in ("plan", "apply", "verify"):
        done = cli(command)
        assert done.returncode == ExitCode.BAD_INPUT, done.stderr
        assert "this workspace has layout 7, this version reads layout 1" in done.stderr
        assert "remedy: " in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_kubeconfig_that_is_not_there_yet_is_said_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    done = cli("kubeconfig")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "there is none yet" in done.stderr
    assert "provisioner apply" in done.stderr
    (tmp_path / "workspace" / "test").mkdir(parents=True)
    (tmp_path / "workspace" / "test" / "admin.kubeconfig").write_text("kind: Config [x]\n")
    done = cli("kubeconfig")
    assert (done.returncode, done.stdout) == (ExitCode.OK, "kind: Config [x]\n")


def test_a_workspace_that_cannot_be_written_is_no_internal_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "workspace").write_text("a file where a directory should be")
    done = cli("plan")
    assert done.returncode in (ExitCode.FAILURE, ExitCode.BAD_INPUT)
    assert "internal error" not in done.stderr, done.stderr
    assert str(tmp_path / "workspace") in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("provisioner ")
    for args in ((), ("apply",)):
        done = cli(*args, "--help")
        assert done.returncode == ExitCode.OK
        assert "Usage" in done.stdout
    bare = cli()
    assert bare.returncode == ExitCode.BAD_INPUT
    assert "Usage" in bare.stdout + bare.stderr
    assert "error" not in bare.stderr


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {PROVISIONER} schema | head -c 10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert len(done.stdout) == 10


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("nodes: [")
    assert "Traceback" in cli("--debug", "plan").stderr


def test_an_internal_error_asks_for_a_report(tmp_path: Path) -> None:
    """Whatever breaks in a command, the user is told what and how to report it."""
    code = """
import sys
from provisioner import cli
from provisioner.cli import cluster
def broken(_): raise ZeroDivisionError("division [by] zero")
cluster.open_cluster = broken
sys.argv = ["provisioner", "plan"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILURE
    assert "internal error: ZeroDivisionError: division [by] zero" in done.stderr
    assert "provisioner --debug" in done.stderr
    assert "Traceback" not in done.stderr


# -- which cluster.yaml is meant -----------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CLUSTER)
    return path


def test_the_given_one_is_taken(here: Path) -> None:
    given = make(here / "elsewhere" / "cluster.yaml")
    make(here / "cluster.yaml")
    assert find_cluster_file(given) == given
    assert find_cluster_file(given.parent) == given
    other = make(here / "other.yaml")
    assert find_cluster_file(other) == other


def test_else_the_one_in_this_directory(here: Path) -> None:
    make(here / "workspace" / "lab" / "cluster.yaml")
    make(here / "cluster.yaml")
    assert find_cluster_file(None) == Path("cluster.yaml")


def test_else_the_only_workspace(here: Path) -> None:
    make(here / "workspace" / "lab" / "cluster.yaml")
    (here / "workspace" / "empty").mkdir()
    assert find_cluster_file(None) == Path("workspace/lab/cluster.yaml")


def test_two_workspaces_are_one_too_many(here: Path) -> None:
    for name in ("one", "two"):
        make(here / "workspace" / name / "cluster.yaml")
    with pytest.raises(BadInput, match="more than one workspace here: one, two") as refused:
        find_cluster_file(None)
    assert "--cluster workspace/one" in refused.value.hint


def test_a_directory_without_one_is_refused(here: Path) -> None:
    with pytest.raises(BadInput, match=r"cluster\.yaml: no such file"):
        find_cluster_file(here)


def test_json_is_one_document(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    done = cli("artifacts", "list", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    assert {row["source"] for row in json.loads(done.stdout)} == {"-"}
