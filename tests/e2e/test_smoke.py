"""Other projects' tests on a cluster of ours: the pytest plugin, and the steps of the CI examples, as their users meet them.

Everything runs from the wheel, installed away from the checkout, on copies of the example project.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from provisioner import lab
from provisioner.artifacts import Arch, ensure, everything, load_lock
from provisioner.errors import LabError
from provisioner.lab import host, state
from provisioner.testing.process import Process
from provisioner.testing.site import Site

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/smoke-test"
SECONDS = 900.0

# A test whose pod can never run: what is shown of it?
BROKEN = """
def test_no_such_image(cluster, namespace):
    container = {"name": "web", "image": "registry.invalid/none:1", "imagePullPolicy": "Never"}
    cluster.core.create_namespaced_pod(namespace, {"metadata": {"name": "lost"}, "spec": {"containers": [container]}})
    cluster.kubectl("wait", "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull", "pod/lost",
                    "--namespace", namespace, "--timeout=60s")
    assert False, "on purpose"
"""
# An image of the user's own: here the one that the cluster has anyhow, for what counts is that containerd takes the archive.
LOADED = """
import os
from pathlib import Path

def test_an_image_is_loaded(cluster):
    cluster.load_image(Path(os.environ["ARCHIVE"]))
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment as `Install` of the examples makes it; the packages that ours depends on are those of this run."""
    try:
        host.check()
    except LabError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    directory = tmp_path_factory.mktemp("smoke")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=ROOT, check=True)
    (wheel,) = directory.glob("*.whl")
    made = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    uv = Path(sys.executable).with_name("uv")
    install = [
        str(uv),
        "pip",
        "install",
        "--offline",
        "--no-deps",
        "--no-index",
        "--python",
        str(made / "bin/python"),
        f"{wheel}[pytest]",
    ]
    subprocess.run(install, check=True)
    (site,) = made.glob("lib/python*/site-packages")
    # Ansible is started as a program, which an installation has beside its Python
    for program in Path(sys.executable).parent.glob("ansible*"):
        (made / "bin" / program.name).symlink_to(program)
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return made


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A copy of the example project, with a lab of its own that is gone at the end."""
    directory = tmp_path / "project"
    shutil.copytree(EXAMPLE, directory)
    yield directory
    name = lab_of(directory)
    if name in lab.names():
        lab.down(name)
    shutil.rmtree(Site(name).home, ignore_errors=True)


def lab_of(project: Path) -> str:
    """The lab's name that the tests give."""
    name = project / "lab-name"
    if not name.exists():
        name.write_text(f"smoke-{uuid.uuid4().hex[:8]}")
    return name.read_text()


def environment(**extra: str) -> dict[str, str]:
    """This run's, without what would let the checkout shine through."""
    hidden = ("PYTHON", "PYTEST_", "PROVISIONER_DEBUG", "KUBECONFIG")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(hidden)}, **extra}


def archive() -> Path:
    """Of the image `pause`, for this machine's architecture."""
    arch: Arch = "arm64" if platform.machine() == "aarch64" else "amd64"
    lock = load_lock()
    wants = [want for want in everything(lock, lock.kubernetes_versions[0], arch) if want.name == "images/pause.tar"]
    return ensure(wants, lock, sources=("release", "modules"))["images/pause.tar"].path


def start(venv: Path, project: Path, *args: str) -> subprocess.Popen[str]:
    """The example's tests, in a process group of their own."""
    command = [str(venv / "bin/python"), "-m", "pytest", "-v", "-W", "error", "--cluster-lab", lab_of(project), *args]
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment(ARCHIVE=str(archive())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_example_runs_on_a_cluster_that_two_workers_share(venv: Path, project: Path) -> None:
    """Built once, shown where a test fails, and gone; all of it by the fixture."""
    (project / "tests/test_broken.py").write_text(BROKEN + LOADED)
    with start(venv, project, "-n", "2", "--junitxml", "results.xml") as process:
        output, _ = process.communicate(timeout=SECONDS)
    print(output)
    assert process.returncode == 1, output
    assert "1 failed, 4 passed" in output
    suite = ElementTree.parse(project / "results.xml").getroot()  # noqa: S314 - pytest's own
    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == ["test_no_such_image"]
    shown = output[output.index("- Kubernetes cluster -") :]
    assert "cp-1: Ready" in shown
    assert "lost: Pending, 0/1 ready, 0 restarts, on cp-1, web: ErrImageNeverPull" in shown
    assert "pod lost: ErrImageNeverPull" in shown
    assert f"{lab_of(project)} is removed" in output
    assert lab_of(project) not in lab.names()
    assert not Site(lab_of(project)).home.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_stopped_while_it_builds_leaves_nothing(venv: Path, project: Path, number: signal.Signals) -> None:
    """Ctrl-C: the run itself tidies up. SIGKILL: whoever it has left behind does."""
    name = lab_of(project)
    with start(venv, project) as process:
        try:
            wait_for("the lab", lambda: any(state.home(name).glob("machines/*/console.log")), SECONDS)
            record = Site(name).record()
            assert record
            process.send_signal(number)
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 2), output
    if number == signal.SIGKILL:
        wait_for("the lab's end", lambda: not Site(name).home.exists(), 120)
    assert name not in lab.names()
    assert not Site(name).home.exists()
    assert not Process.from_text(record.builder).alive, "`provisioner up` has gone on by itself"


def wait_for(what: str, reached: Any, seconds: float) -> None:
    """Wait for something outside this process."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def test_the_steps_of_the_github_example(venv: Path, tmp_path: Path) -> None:
    """Build, Test, and Remove as they are written; Packages and Install are what `venv` and the machine are already."""
    job = yaml.safe_load((ROOT / "examples/ci/github.yml").read_text())["jobs"]["smoke"]
    steps = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert list(steps) == ["Packages", "Install", "Build", "Test", "Evidence", "Remove"]
    directory = tmp_path / "checkout"
    shutil.copytree(EXAMPLE, directory)
    (directory / ".venv").symlink_to(venv)
    (directory / ".cache").mkdir()
    name = f"smoke-{uuid.uuid4().hex[:8]}"
    cache = os.environ.get("PROVISIONER_CACHE") or str(Path.home() / ".cache/provisioner")
    given = {"P": str(directory / ".venv/bin"), "PROVISIONER_CACHE": cache}
    done = {}
    try:
        for step in ("Build", "Test", "Evidence"):
            script = (
                steps[step].replace("up --workers", f"up --name {name} --workers").replace("workspace/lab", f"workspace/{name}")
            )
            done[step] = bash(script, directory, given)
            assert done[step].returncode == 0, f"{step}: {done[step].stdout}\n{done[step].stderr}"
            if step == "Build":
                # not a line of the example: the command for images that it has no need of
                loaded = bash(f'"$P/provisioner" lab load-image --name {name} {archive()}', directory, given)
                assert loaded.returncode == 0, loaded.stderr
    finally:
        removed = bash(steps["Remove"].replace("--name lab", f"--name {name}"), directory, given)
    assert removed.returncode == 0, removed.stderr
    assert name not in lab.names()
    assert "3 passed" in done["Test"].stdout
    assert (directory / "kubeconfig").stat().st_mode & 0o777 == 0o600
    for file in ("tests.xml", "cluster.xml"):
        suite = ElementTree.parse(directory / "results" / file).getroot()  # noqa: S314 - written a moment ago
        assert list(suite.iter("testcase"))
        assert list(suite.iter("failure")) == []
    assert (directory / "results/support.tar.gz").stat().st_size > 10_000


def bash(script: str, directory: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A step as GitHub's runner runs it."""
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=directory,
        env=environment(**given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(f"{script.splitlines()[0][:100]}: exit {done.returncode} after {time.monotonic() - began:.1f} s\n{done.stderr[-2000:]}")
    return done
