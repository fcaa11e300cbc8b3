"""Bad input gets a clear error and exit code, and changes nothing: not on the machine, and not on the controller.

One bare machine; each case has a workspace of its own, so that none sees what another has left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from provisioner.artifacts.cache import default_directory
from provisioner.workspace import Workspace

pytestmark = pytest.mark.e2e

Real = Any  # what `real_lab` of tests/e2e/conftest.py gives

# Everything that a run could have touched: names, sizes, modes, owners and times; and the units that systemd knows.
LOOK = """
find /etc /usr/local /opt /root /var/lib/provisioner /var/lib/etcd /var/lib/kubelet /run/provisioner -xdev \
  -printf '%p %y %s %m %u:%g %T@ %C@\\n' 2>/dev/null | sort
systemctl list-unit-files --no-pager --no-legend
cut -d: -f1 /etc/passwd
sysctl -n net.ipv4.ip_forward
"""


@pytest.fixture(scope="module")
def bare(bare_lab: Callable[..., Any]) -> Iterator[Real]:
    """One machine, with nothing on it."""
    with bare_lab("--control-planes", "1", "--workers", "0") as real:
        yield real


class Case:
    """A workspace of its own for the machine, and the command in it."""

    def __init__(self, bare: Real, directory: Path) -> None:
        self.bare = bare
        self.directory = directory
        self.root = directory / "workspace" / bare.name
        self.root.mkdir(parents=True, mode=0o700)
        for name in ("cluster.yaml", "id_ed25519", "known_hosts"):
            shutil.copy2(bare.workspace.root / name, self.root / name)
        self.cluster_file = self.root / "cluster.yaml"

    def edit(self, change: Callable[[str], str]) -> None:
        before = self.cluster_file.read_text()
        after = change(before)
        assert after != before
        self.cluster_file.write_text(after)

    def refused(self, code: int, *said: str, command: tuple[str, ...] = ("apply", "--yes"), environ: Mapping[str, str] = {}) -> str:
        """Run a command that must be refused with that exit code and these words, leaving the machine as it was."""
        before = self.bare.run("cp-1", LOOK)
        done = self.bare.command(self.directory, *command, **environ)
        text: str = done.stderr
        assert done.returncode == code, text
        for words in ("error: ", "remedy: ", *said):
            assert words in text, f"{words!r} is not in:\n{text}"
        for words in ("Traceback", "internal error"):
            assert words not in text, text
        assert self.bare.run("cp-1", LOOK) == before
        assert "Prepare the machines" not in text
        return text


@pytest.fixture
def case(bare: Real, tmp_path: Path) -> Case:
    return Case(bare, tmp_path)


# -- the machine ------------------------------------------------------------------------------------------------------------------


def test_a_control_plane_that_is_not_there(case: Case) -> None:
    """Of a new cluster; a worker would be set aside (test_nodes.py)."""
    nobody = str(next(iter(case.bare.cluster.nodes)).ip).rsplit(".", 1)[0] + ".200"
    case.edit(lambda text: f"{text}\n  - {{name: cp-9, address: {nobody}, roles: [control-plane]}}\n")
    with (case.root / "known_hosts").open("a") as known:
        known.write(f"{nobody} {(case.root / 'known_hosts').read_text().split(' ', 1)[1]}")
    case.refused(4, "1 problem on cp-9; nothing was changed", nobody, "cp-9: ")


def test_a_key_that_the_machine_does_not_know(case: Case) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(case.root / "other")], check=True)
    case.edit(lambda text: text.replace("key: id_ed25519", "key: other"))
    text = case.refused(4, "cp-1: ", "nothing was changed")
    assert "key" in text
    assert str(case.root / "other") in text or "other" in text


def test_a_key_file_that_is_missing(case: Case) -> None:
    case.edit(lambda text: text.replace("key: id_ed25519", "key: missing"))
    case.refused(3, "cluster.yaml:8: ssh.key: ", str(case.root / "missing"), "no such file", "nothing was changed")


def test_a_machine_with_another_host_key(case: Case) -> None:
    """Somebody else answers at that address, or the machine was made anew: never silently taken."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(case.directory / "host")], check=True)
    host, _, _ = (case.root / "known_hosts").read_text().split(" ", 2)
    (case.root / "known_hosts").write_text(f"{host} {(case.directory / 'host.pub').read_text()}")
    case.refused(4, "cp-1: ", "host key", "nothing was changed")


def test_a_user_who_may_not_use_sudo(case: Case) -> None:
    public = (case.bare.workspace.root / "id_ed25519.pub").read_text()
    make = "useradd --create-home --shell /bin/bash ops && install -d -o ops -g ops -m 700 /home/ops/.ssh"
    case.bare.run("cp-1", f"{make} && cat >/home/ops/.ssh/authorized_keys && chown ops: /home/ops/.ssh/*", stdin=public.encode())
    try:
        case.edit(lambda text: text.replace("user: root", "user: ops"))
        text = case.refused(4, "cp-1: ", "sudo", "nothing was changed")
        assert "NOPASSWD" in text
    finally:
        case.bare.run("cp-1", "userdel --remove ops")


def test_too_little_disk(case: Case) -> None:
    case.bare.run("cp-1", "mkdir -p /var/lib/etcd; mount -t tmpfs -o size=16m tmpfs /var/lib/etcd")
    try:
        case.refused(4, "cp-1: ", "/var/lib/etcd", "MiB free", "are needed", "nothing was changed")
    finally:
        case.bare.run("cp-1", "umount /var/lib/etcd")


def test_a_machine_of_another_cluster(case: Case) -> None:
    marker = json.dumps({"cluster": "other", "id": "0123456789abcdef"})
    case.bare.run("cp-1", "mkdir -p /etc/provisioner && cat > /etc/provisioner/cluster.json", stdin=marker.encode())
    try:
        case.refused(4, "cp-1: ", "another cluster", "other", "0123456789abcdef", "nothing was changed")
    finally:
        case.bare.run("cp-1", "rm -r /etc/provisioner")


# -- artifacts --------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cache_of_links(directory: Path) -> Iterator[Path]:
    """The real cache, as links to its files: what a test does to it, it does to the links."""
    real = default_directory()
    for path in (real / "blobs").rglob("*"):
        if path.is_file():
            link = directory / path.relative_to(real)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    for name in ("index", "derived"):
        if (real / name).is_dir():
            shutil.copytree(real / name, directory / name)
    sums = {path.name: path.stat().st_mtime_ns for path in (real / "blobs").rglob("*") if path.is_file()}
    yield directory
    after = {path.name: path.stat().st_mtime_ns for path in (real / "blobs").rglob("*") if path.is_file()}
    assert after == sums, "the real cache is not to be touched"


def test_a_damaged_artifact(case: Case, tmp_path: Path) -> None:
    """Bytes that are not the locked ones are never used; where they cannot be had again, the run ends."""
    case.edit(lambda text: text + "artifacts: {sources: [modules]}\n")
    with cache_of_links(tmp_path / "cache") as cache:
        # nothing can be built anew: there is no way to any Go proxy
        cut_off = {
            "PROVISIONER_CACHE": str(cache),
            "GOPROXY": "http://127.0.0.1:9",
            "GOMODCACHE": str(tmp_path / "modules"),
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        listed = case.bare.command(case.directory, "artifacts", "list", "--json", **cut_off)
        kubelet = next(row for row in json.loads(listed.stdout) if row["name"] == "kubelet")
        damaged = Path(kubelet["path"])
        assert damaged.is_symlink()
        size = damaged.stat().st_size
        damaged.unlink()
        damaged.write_bytes(b"\x7fELF" + bytes(16))
        os.truncate(damaged, size)
        case.refused(1, "kubelet", "modules: ", environ=cut_off)
        assert not damaged.exists(), "a damaged file is not kept"


def test_a_full_disk_under_the_cache(case: Case, tmp_path: Path) -> None:
    cache, mirror = tmp_path / "cache", tmp_path / "mirror"
    version = case.bare.cluster.kubernetes.version
    served = mirror / f"dl.k8s.io/release/v{version}/bin/linux/amd64"
    served.mkdir(parents=True)
    for name in ("kubelet", "kube-apiserver", "kubectl"):
        (served / name).touch()
        os.truncate(served / name, 64 << 20)
    cache.mkdir()
    case.edit(lambda text: f"{text}artifacts: {{sources: [mirror], mirror: {mirror}}}\n")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(cache)], check=True)
    try:
        text = case.refused(1, str(cache), environ={"PROVISIONER_CACHE": str(cache)})
        assert "full" in text or "No space left" in text, text
    finally:
        subprocess.run(["umount", str(cache)], check=True)


# -- the controller ---------------------------------------------------------------------------------------------------------------


def test_two_runs_at_once(case: Case) -> None:
    workspace = Workspace.of(case.cluster_file, case.bare.name)
    with workspace.lock("apply"):
        for command in (("apply", "--yes"), ("plan",)):
            case.refused(1, str(case.root), f"in use by `provisioner apply` (process {os.getpid()} of ", command=command)


def test_a_workspace_of_an_older_version(case: Case) -> None:
    (case.root / "layout").write_text("0\n")
    before = sorted(case.root.rglob("*"))
    case.refused(3, str(case.root), "layout 0", "this version reads layout 1")
    assert sorted(case.root.rglob("*")) == before


def test_nobody_to_ask(case: Case) -> None:
    """Without a terminal and without --yes nothing is changed, and the plan is shown."""
    text = case.refused(3, "nobody to ask", "--yes", command=("apply",))
    assert "Compare with what is there ok" in text
    assert not (case.root / "pki").exists(), "not a key has been made"
    assert not (case.root / "admin.kubeconfig").exists()


def test_plan_and_preflight_change_nothing(case: Case) -> None:
    before = case.bare.run("cp-1", LOOK)
    plan = case.bare.command(case.directory, "plan", "--json")
    assert plan.returncode == 2, plan.stderr
    changes = json.loads(plan.stdout)["changes"]
    assert {change["host"] for change in changes} == {"cp-1", "(cluster)"}
    assert len(changes) > 50
    assert not [change for change in changes if change["diff"]], "nothing is there that could differ"
    preflight = case.bare.command(case.directory, "preflight", "--json")
    assert preflight.returncode == 0, preflight.stdout
    assert json.loads(preflight.stdout)["fit"] is True
    assert case.bare.run("cp-1", LOOK) == before
