"""The examples for CI are what the services take, what this project can do, and the same in both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner.artifacts import load_lock
from provisioner.lab.host import TOOLS

ROOT = Path(__file__).parents[3]
CI = ROOT / "examples/ci"


def read(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text())


def github() -> dict[str, str]:
    """The shell steps by their names."""
    return {step["name"]: step["run"] for step in read("github.yml")["jobs"]["smoke"]["steps"] if "run" in step}


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("github.yml", "vendor.github-workflows"),
        ("gitlab.yml", "vendor.gitlab-ci"),
        ("action/action.yml", "vendor.github-actions"),
    ],
)
def test_they_fit_the_services_own_schemas(name: str, schema: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", schema]
    done = subprocess.run([*command, str(CI / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        (CI / name).read_text().replace("runs-on:", "runs-in:").replace("script:", "script: 1 #").replace("using:", "use:")
    )
    assert subprocess.run([*command, str(wrong)], capture_output=True, check=False).returncode == 1, "the schema refuses nothing"


def test_both_services_run_the_same_commands() -> None:
    job = read("gitlab.yml")["smoke"]
    steps = github()
    assert job["script"] == [steps[name] for name in ("Packages", "Install", "Build", "Test")]
    removal = steps["Remove"].splitlines()
    assert [line for line in job["after_script"] if "results" not in line] == removal[:2]


def test_the_packages_are_those_that_a_lab_and_a_build_need() -> None:
    makefile = re.search(r"^PACKAGES := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile
    # the runners' images have these
    there = {"python3", "ca-certificates", "procps", "util-linux", "\\"}
    wanted = set(makefile[1].split()) - there
    (action,) = [step["run"] for step in read("action/action.yml")["runs"]["steps"] if "apt-get" in step["run"]]
    for script in (github()["Packages"], action):
        assert set(script.partition("--no-install-recommends ")[2].split()) == wanted
    assert set(TOOLS.values()) <= wanted | there


def test_every_script_is_good_shell() -> None:
    scripts = [*github().values(), *(step["run"] for step in read("action/action.yml")["runs"]["steps"])]
    scripts += [line for part in ("script", "after_script") for line in read("gitlab.yml")["smoke"][part]]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "${{" not in script, "what an expression holds would be run as code"


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs/tutorials/ci.md").read_text()
    for script in (github()["Install"], github()["Build"], github()["Test"], github()["Remove"].splitlines()[0]):
        assert script in page


def test_the_smoke_test_takes_an_image_that_lab_machines_have() -> None:
    lock = load_lock()
    manifests = (ROOT / "examples/smoke-test/manifests/web.yaml").read_text()
    images = set(re.findall(r"image: (\S+)", manifests))
    assert images == {lock.image("agnhost", lock.kubernetes_versions[0])}


def test_the_cache_is_keyed_by_the_version_it_holds() -> None:
    version = load_lock().kubernetes_versions[0]
    assert version in (CI / "github.yml").read_text()
    assert version in (CI / "gitlab.yml").read_text()
