"""<TAB> offers what is there, quickly and without a word about what is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner import choices

COMMAND = Path(sys.executable).parent / "provisioner"
# Slow to import; completion and --help do without, whatever the clock of a busy machine says. pydantic itself is not among
# them: typer (0.29) imports it as soon as a value is to be converted; our models on top of it are what takes its time.
HEAVY = {
    "kubernetes",
    "ansible_runner",
    "ansible",
    "paramiko",
    "cryptography",
    "jinja2",
    "urllib3",
    "testinfra",
    "provisioner.config",
}
CLUSTER = """\
nodes:
  - {name: cp-1, address: 10.77.0.11, roles: [control-plane, etcd]}
  - {name: w-1, address: 10.77.0.21, roles: [worker]}
  - {name: w-2, adress: 10.77.0.22}
"""

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """The words that bash would show, out of the script that bash has loaded."""
    script = tmp_path / "completion.bash"
    environ = {**os.environ, "_PROVISIONER_COMPLETE": "source_bash"}
    shown = subprocess.run([str(COMMAND)], env=environ, capture_output=True, text=True, check=True)
    script.write_text(shown.stdout)

    def words(line: str, **more: str) -> list[str]:
        code = (
            f"source {script}; COMP_WORDS=({line}); [[ $LINE == *' ' ]] && COMP_WORDS+=(''); "
            "COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); _provisioner_completion provisioner; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        env = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "LINE": line, **more}
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr == ""
        return done.stdout.split()

    return words


def test_names_are_of_the_cluster_at_hand(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    other = tmp_path / "other"
    other.mkdir()
    (other / "cluster.yaml").write_text(CLUSTER.replace("w-", "x-"))
    assert complete("provisioner ssh ") == ["cp-1", "w-1", "w-2"]
    assert complete("provisioner logs w") == ["w-1", "w-2"]
    assert complete("provisioner node remove w-1 ") == ["cp-1", "w-2"]
    assert complete("provisioner reset --cluster other x") == ["x-1", "x-2"]
    assert complete("provisioner logs cp-1 kube-s") == ["kube-scheduler"]


def test_what_cannot_be_read_offers_nothing(complete: Complete, tmp_path: Path) -> None:
    assert complete("provisioner ssh ") == []
    (tmp_path / "cluster.yaml").write_bytes(b"nodes: [\xff")
    assert complete("provisioner ssh ") == []
    assert complete("provisioner ssh --cluster /nowhere ") == []


def test_the_home_of_nobody_offers_nothing(complete: Complete) -> None:
    assert complete("provisioner status --cluster ~nobody-has-this-name/") == []


def test_words_of_the_program(complete: Complete, tmp_path: Path) -> None:
    assert complete("provisioner apply --only con") == ["control_plane"]
    assert complete("provisioner verify --only dns,log") == ["dns,logs"]
    assert "1.36.3" in complete("provisioner upgrade --to ")
    assert complete("provisioner artifacts lock kub") == ["kubernetes"]
    (tmp_path / "labs" / "mine").mkdir(parents=True)
    (tmp_path / "labs" / "mine" / "state.json").write_text(json.dumps({"machines": [{"name": "cp-1"}]}))
    assert complete("provisioner lab ssh ", PROVISIONER_LAB_DIR=str(tmp_path / "labs")) == ["cp-1"]


def test_the_lists_are_those_of_the_program() -> None:
    from provisioner import phases  # noqa: PLC0415
    from provisioner.components import COMPONENTS  # noqa: PLC0415
    from provisioner.verify import CHECKS  # noqa: PLC0415

    assert phases.names() == choices.PHASES
    assert sorted({name for one in COMPONENTS for name in one.names}) == sorted(choices.COMPONENTS)
    assert tuple(check.id for check in CHECKS) == choices.CHECKS


@pytest.mark.parametrize(
    "words",
    ["--help", "node remove --help", "artifacts fetch --help", "verify --help", "lab up --help", "report --help", "graph --help"],
)
def test_help_does_not_wait_for_heavy_imports(words: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['provisioner', *{words.split()!r}]\n"
        "from provisioner.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\nMODULES', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_completion_does_not_wait_for_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    env = {**os.environ, "COMP_WORDS": "provisioner ssh ", "COMP_CWORD": "2", "_PROVISIONER_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(COMMAND)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["cp-1", "w-1", "w-2"]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "yaml" in loaded
    assert loaded & HEAVY == set()


def test_it_is_installed_for_each_shell(tmp_path: Path) -> None:
    """Typer asks which shell it runs in; told, it writes where that shell looks."""
    for shell, place in (("bash", ".bash_completions/provisioner.sh"), ("fish", ".config/fish/completions/provisioner.fish")):
        if not shutil.which(shell):
            continue
        done = subprocess.run(
            [shell, "-c", f"{COMMAND} --install-completion; true"],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (tmp_path / place).is_file(), done.stderr


def test_it_is_shown_for_each_shell(tmp_path: Path) -> None:
    for shell, word in (("bash", "complete -o"), ("fish", "complete --command")):
        if not shutil.which(shell):
            continue
        done = subprocess.run(
            [shell, "-c", f"{COMMAND} --show-completion; true"],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert word in done.stdout, done.stderr
    # fish makes directories of its own at any start
    assert [path for path in tmp_path.rglob("*") if "provisioner" in path.name] == []
