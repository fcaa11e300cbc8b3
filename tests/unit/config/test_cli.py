"""`init`, `validate` and `schema` through the real command line: what they print where, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner import cli, schema
from provisioner.errors import ExitCode

GOOD = "name: demo\nnodes:\n  - {name: a, address: 192.168.56.11, roles: [control-plane, etcd, worker]}\n"


class Command:
    """Runs the command line in this process."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.chdir(self.directory)
        self.monkeypatch.setattr("sys.argv", ["provisioner", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def write(self, text: str) -> None:
        """Write cluster.yaml in the working directory."""
        (self.directory / "cluster.yaml").write_text(text)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in a directory of its own."""
    return Command(tmp_path, monkeypatch, capsys)


def test_init_then_validate(run: Command) -> None:
    assert run("init")[0] == ExitCode.OK
    code, out, err = run("validate")
    assert (code, err) == (ExitCode.OK, "")
    assert "OK: cluster demo, Kubernetes 1.36.3, 1 control plane, 1 etcd member, 1 Kubernetes node" in out
    code, out, err = run("init")
    assert code == ExitCode.BAD_INPUT
    assert "--force" in err
    assert run("init", "--force", "--preset", "ha")[0] == ExitCode.OK
    assert "3 control planes, 3 etcd members, 5 Kubernetes nodes" in run("validate")[1]
    assert run("init", "elsewhere/deep")[0] == ExitCode.OK
    assert run("validate", "--cluster", "elsewhere/deep")[0] == ExitCode.OK


def test_an_unknown_preset(run: Command) -> None:
    code, _, err = run("init", "--preset", "huge")
    assert code == ExitCode.BAD_INPUT
    assert "huge" in err
    assert not (run.directory / "cluster.yaml").exists()


def test_validate_prints_every_problem(run: Command) -> None:
    run.write(GOOD + "adress: 1\nnetwork: {vxlanPort: 6443}\nkubernetes: {version: 9.9.9}\n")
    code, out, err = run("validate")
    assert code == ExitCode.BAD_INPUT
    assert out == ""
    assert "cluster.yaml: 2 problems; nothing was changed" in err
    assert "cluster.yaml:4: adress: unknown key; known here: apiVersion" in err
    assert "cluster.yaml:5: warning: network.vxlanPort: 6443 is the port of kube-apiserver" in err
    assert 'cluster.yaml:6: kubernetes.version: "9.9.9" is not in versions.yml, which knows' in err
    assert "remedy:" in err
    assert "Traceback" not in err


def test_validate_as_json(run: Command) -> None:
    run.write(GOOD + "network: {vxlanPort: 6443, nodePrefix: 2}\n")
    code, out, err = run("validate", "--json")
    assert (code, err) == (ExitCode.BAD_INPUT, "")
    document = json.loads(out)
    assert document == {
        "file": "cluster.yaml",
        "valid": False,
        "problems": [
            {
                "path": "network.vxlanPort",
                "line": 4,
                "column": 22,
                "severity": "warning",
                "message": "6443 is the port of kube-apiserver (TCP); choose another",
            },
            {"path": "network.nodePrefix", "line": 4, "column": 40, "severity": "error", "message": "must be at least 16, not 2"},
        ],
    }
    run.write(GOOD)
    code, out, _ = run("validate", "--json")
    assert (code, json.loads(out)) == (ExitCode.OK, {"file": "cluster.yaml", "valid": True, "problems": []})


def test_warnings_are_shown_and_refuse_nothing(run: Command) -> None:
    run.write(GOOD + "network: {vxlanPort: 6443}\n")
    code, out, err = run("validate")
    assert code == ExitCode.OK
    assert "OK" in out
    assert "cluster.yaml:4: warning: network.vxlanPort" in err


def test_without_a_file(run: Command) -> None:
    code, _, err = run("validate")
    assert code == ExitCode.BAD_INPUT
    assert "no cluster.yaml" in err
    code, _, err = run("validate", "--cluster", "none.yaml")
    assert code == ExitCode.BAD_INPUT
    assert "no such file" in err
    code, out, _ = run("validate", "--json", "--cluster", "none.yaml")
    assert code == ExitCode.BAD_INPUT
    assert "no such file" in json.loads(out)["problems"][0]["message"]


def test_text_that_looks_like_markup_is_printed_as_it_is(run: Command) -> None:
    run.write(GOOD + '"[bold]x[/bold]": 1\n')
    _, _, err = run("validate")
    assert '["[bold]x[/bold]"]: unknown key' in err


def test_schema(run: Command) -> None:
    code, out, err = run("schema")
    assert (code, err) == (ExitCode.OK, "")
    assert json.loads(out) == schema.json_schema()
    code, out, _ = run("schema", "--markdown")
    assert code == ExitCode.OK
    assert out == schema.reference()
