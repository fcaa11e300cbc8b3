"""tests/conftest.py in CI: a skipped test, or a run without clusters, is a failure. Tried with real runs of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
INI = "[pytest]\ntestpaths = tests\naddopts = -p no:cacheprovider --import-mode=importlib\nmarkers =\n    e2e: real clusters\n"
CLUSTER = "import pytest\n\n@pytest.mark.e2e\ndef test_cluster():\n    pass\n"


def run(directory: Path, files: dict[str, str], *arguments: str, ci: str = "true", conftest: str = "") -> tuple[int, str]:
    """Exit code and output of pytest over these files of tests/."""
    (directory / "tests").mkdir()
    (directory / "pytest.ini").write_text(INI)
    for name, text in {"conftest.py": conftest or CONFTEST.read_text(), **files}.items():
        (directory / "tests" / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {
        "CI": ci,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--color=no", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def collected(half: str) -> set[str]:
    """The end-to-end tests of a half, as pytest names them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--color=no", "-o", "testpaths=tests/e2e"],
        cwd=CONFTEST.parents[1],
        env={**os.environ, "E2E_HALF": half},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return {line for line in done.stdout.splitlines() if "::" in line} if done.returncode == 0 else set()


def test_two_halves_are_all_end_to_end_tests() -> None:
    whole, shared, own = (collected(half) for half in ("", "shared", "own"))
    assert shared | own == whole
    assert not shared & own
    assert min(len(shared), len(own)) > len(whole) / 4, "they are to take about as long"
    assert collected("left") == set(), "no such half"


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def test_a_run_with_a_cluster_and_without_skips_passes(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_e2e.py": CLUSTER})
    assert (code, "1 passed in" in last_line(output)) == (0, True), output


SKIPS = {
    "test_body.py": "def test_more():\n    pytest.skip('no root')\n",
    "test_mark.py": "@pytest.mark.skipif(True, reason='no root')\ndef test_more():\n    pass\n",
    "test_fixture.py": "@pytest.fixture\ndef lab():\n    pytest.skip('no root')\n\ndef test_more(lab):\n    pass\n",
    "test_module.py": "pytest.skip('no root', allow_module_level=True)\n",
}


@pytest.mark.parametrize(("ci", "expected"), [("true", 4), ("", 0)], ids=["in CI", "at home"])
def test_an_unexpected_skip_fails_in_ci_only(tmp_path: Path, ci: str, expected: int) -> None:
    files = {name: f"import pytest\n\n{text}" for name, text in SKIPS.items()}
    code, output = run(tmp_path, {"test_e2e.py": CLUSTER, **files}, "--continue-on-collection-errors", ci=ci)
    assert bool(code) == bool(expected), output
    assert sum(line.startswith(("FAILED", "ERROR")) for line in output.splitlines()) == expected, output
    assert output.count("unexpected skip in CI: no root") >= expected, output


def test_an_expected_skip_passes_in_ci(tmp_path: Path) -> None:
    text = CONFTEST.read_text().replace("EXPECTED_SKIPS: tuple[str, ...] = ()", 'EXPECTED_SKIPS: tuple[str, ...] = (r"^drill: ",)')
    assert '"^drill: "' in text, "the list of expected skips is written in another way now"
    files = {"test_e2e.py": CLUSTER, "test_more.py": "import pytest\n\ndef test_more():\n    pytest.skip('drill: long')\n"}
    code, output = run(tmp_path, files, conftest=text)
    assert (code, "1 passed, 1 skipped in" in last_line(output)) == (0, True), output


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    failing = "import pytest\n\n@pytest.mark.xfail(reason='known')\ndef test_more():\n    assert False\n"
    code, output = run(tmp_path, {"test_e2e.py": CLUSTER, "test_more.py": failing})
    assert (code, "1 passed, 1 xfailed in" in last_line(output)) == (0, True), output


def test_a_whole_run_without_clusters_fails_in_ci(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_more.py": "def test_more():\n    pass\n"})
    assert code == 1, output
    assert "in CI at least one end-to-end test must pass, and none has" in output
    assert "1 passed, 1 error in" in last_line(output)


def test_an_end_to_end_test_that_only_fails_as_expected_is_not_enough(tmp_path: Path) -> None:
    failing = CLUSTER.replace("@pytest.mark.e2e", "@pytest.mark.e2e\n@pytest.mark.xfail(run=False)")
    code, output = run(tmp_path, {"test_e2e.py": failing})
    assert (code, "in CI every end-to-end test must run" in output) == (1, True), output


def test_a_part_of_the_suite_needs_no_cluster(tmp_path: Path) -> None:
    files = {"test_more.py": "def test_more():\n    pass\n", "test_e2e.py": CLUSTER}
    code, output = run(tmp_path, files, "tests/test_more.py")
    assert code == 0, output
