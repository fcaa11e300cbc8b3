"""Lab machines for real: they come up, see each other, and leave nothing behind, however they were ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner import lab
from provisioner.errors import BadInput, LabError
from provisioner.lab import cgroups, clusterfile, host, network, nspawn, state
from provisioner.lab.spec import Lab
from provisioner.wait import NotYet, wait_until


def _why_not() -> str:
    try:
        host.check()
    except LabError as error:
        return f"{error.message}; {error.hint}"
    return ""


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "the host can run lab machines"),
]


@pytest.fixture
def new_name(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Names of labs that exist nowhere else; each lab is taken down at the end, also when the test failed."""
    made: list[str] = []

    def name() -> str:
        made.append(f"test-{os.getpid()}-{tmp_path.name[-20:].strip('-_').replace('_', '-').lower()}-{len(made)}"[-40:].strip("-"))
        return made[-1]

    yield name
    for one in made:
        lab.down(one)


def up(name: str, tmp_path: Path, control_planes: int = 1, workers: int = 1, spares: int = 0) -> Lab:
    path = lab.up(name, control_planes, workers, spares=spares, directory=tmp_path / "workspace" / name)
    assert path == tmp_path / "workspace" / name / "cluster.yaml"
    return lab.get(name)


def ssh(name: str, machine: str, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    argv = lab.ssh_command(name, machine, command)
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)


def said(name: str, machine: str, *command: str) -> str:
    done = ssh(name, machine, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _read(path: Path) -> str:
    # processes end while they are looked at
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def traces(one: Lab) -> dict[str, list[str]]:
    """Everything on this host that belongs to a lab, by kind: found by looking at the host, not by asking the code under test."""
    home, marks = str(one.home), (f"plab.{one.name}.", f"plab.{one.name}/", str(one.home), f"{one.name}.cp-")
    processes: list[str] = []
    mounts: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        command = _read(process / "cmdline").replace("\0", " ")
        if any(mark in _read(process / "cgroup") or mark in command for mark in marks):
            processes.append(f"{process.name} {command}")
        mounts.update(line for line in _read(process / "mountinfo").splitlines() if home in line or f"plab.{one.name}" in line)
    mounts.update(line for line in _read(Path("/proc/self/mountinfo")).splitlines() if home in line)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout.splitlines()
    groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"/plab.{one.name}." in path + "/"]
    namespaces = [
        path.name for path in Path("/run/netns").glob("*") if path.name == one.switch or path.name.startswith(f"{one.switch}.")
    ]
    left = [str(path) for path in Path("/run/systemd/nspawn").rglob(f"{one.name}.*")]
    files = [str(path) for path in (one.home, one.directory, state.root() / f".{one.name}.lock") if path.exists()]
    found = {
        "processes": processes,
        "mounts": sorted(mounts),
        "links": [line for line in links if f" {one.link}@" in line or f" {one.link}:" in line],
        "routes": [line for line in routes if str(one.network.network_address)[:-1] in line],
        "cgroups": groups,
        "namespaces": namespaces,
        "run": left,
        "files": files,
    }
    return {kind: things for kind, things in found.items() if things}


def rules() -> str:
    """The host's own packet filter."""
    return "".join(
        subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for command in (["nft", "list", "ruleset"], ["iptables-save"], ["ip", "rule"])
    )


def assert_nothing_left(one: Lab) -> None:
    def gone() -> None:
        # killed processes wait a moment for init to collect them
        if found := traces(one):
            raise NotYet(str(found))

    wait_until(f"no trace of lab {one.name}", gone, seconds=30)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    def probe() -> None:
        if not condition():
            raise NotYet("no")

    wait_until(what, probe, seconds=120, every=0.01)


def test_two_machines_come_up_see_each_other_and_go(new_name: Callable[[], str], tmp_path: Path) -> None:
    before = rules()
    name = new_name()
    one = up(name, tmp_path, spares=1)
    found = traces(one)
    assert set(found) == {"processes", "mounts", "links", "routes", "cgroups", "namespaces", "run", "files"}, (
        "the search finds things"
    )

    for machine in one.machines:
        assert said(name, machine.name, "hostname") == machine.name
    assert said(name, "cp-1", "systemctl is-system-running --wait") == "running"
    assert "1 received" in said(name, "cp-1", "ping -c1 -W5 worker-1")
    assert "1 received" in said(name, "worker-1", f"ping -c1 -W5 {one.host_address}")
    assert "Unreachable" in ssh(name, "cp-1", "ping -c1 -W5 198.51.100.1").stdout, "no way out, and it is told at once"
    # what a Kubernetes node needs
    assert said(name, "cp-1", "findmnt -no PROPAGATION /") == "shared"
    for path in ("containerd", "etcd", "kubelet", "provisioner"):
        assert said(name, "cp-1", f"stat -fc %T /var/lib/{path}") != "overlayfs"
    said(name, "cp-1", "sysctl -w net.ipv4.ip_forward=1 && test -c /dev/kmsg && grep -q nameserver /etc/resolv.conf")
    said(name, "cp-1", "haproxy -v; keepalived --version; python3 --version; nft --version; conntrack --version; socat -V")
    assert said(name, "cp-1", "systemctl is-active haproxy keepalived || true").split() == ["inactive", "inactive"]
    assert said(name, "cp-1", "cat /etc/machine-id") != said(name, "worker-1", "cat /etc/machine-id")
    # a child control group can be made in every hierarchy, as the container runtime does
    said(
        name,
        "cp-1",
        "for d in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mkdir $d/probe && rmdir $d/probe || exit 1; done",
    )

    status = lab.status(name)
    assert [(item.name, item.state, item.ssh, item.link) for item in status.machines] == [
        (machine.name, "running", True, True) for machine in one.machines
    ]
    assert all(item.memory is None or 1 << 20 < item.memory < 1 << 30 for item in status.machines)
    key = one.directory / "id_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "spare-1" in (one.directory / "cluster.yaml").read_text()

    assert lab.down(name)
    assert_nothing_left(one)
    assert not lab.down(name), "a second time there is nothing to do"
    assert rules() == before


def test_up_twice_keeps_what_runs_and_boots_what_does_not(new_name: Callable[[], str], tmp_path: Path) -> None:
    name = new_name()
    one = up(name, tmp_path)
    before = {machine.name: said(name, machine.name, "cat /proc/sys/kernel/random/boot_id") for machine in one.machines}
    edited = (one.directory / "cluster.yaml").read_text() + "\nnetwork: {podCidr: 10.9.0.0/16}\n"
    (one.directory / "cluster.yaml").write_text(edited)
    lab.machine(name, "worker-1").power_off()
    assert [item.state for item in lab.status(name).machines] == ["running", "stopped"]
    assert up(name, tmp_path).machines == one.machines
    after = {machine.name: said(name, machine.name, "cat /proc/sys/kernel/random/boot_id") for machine in one.machines}
    assert after["cp-1"] == before["cp-1"]
    assert after["worker-1"] != before["worker-1"]
    assert (one.directory / "cluster.yaml").read_text() == edited

    with pytest.raises(BadInput, match="asked for 1 control plane, 2 workers"):
        up(name, tmp_path, workers=2)
    with pytest.raises(BadInput, match="belongs to"):
        up(name, tmp_path / "elsewhere")

    # an edited file outlives the lab and is taken up by the next one
    lab.down(name)
    assert [path.name for path in one.directory.iterdir()] == ["cluster.yaml"]
    again = up(name, tmp_path)
    assert again.network == one.network
    assert said(name, "worker-1", "hostname") == "worker-1"
    assert (one.directory / "cluster.yaml").read_text() == edited


def test_two_labs_side_by_side_share_nothing(new_name: Callable[[], str], tmp_path: Path) -> None:
    first, second = (up(new_name(), tmp_path) for _ in range(2))
    assert not first.network.overlaps(second.network)
    assert said(first.name, "cp-1", "hostname") == said(second.name, "cp-1", "hostname") == "cp-1"
    assert (first.directory / "known_hosts").read_text() != (second.directory / "known_hosts").read_text()
    other = second.machine("worker-1").address
    assert ssh(first.name, "cp-1", f"ping -c1 -W2 {other}").returncode != 0
    lab.down(first.name)
    assert_nothing_left(first)
    assert said(second.name, "cp-1", "ping -c1 -W5 worker-1")


def test_a_machine_of_another_key_is_not_talked_to(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path, workers=0)
    known = one.directory / "known_hosts"
    known.write_text(known.read_text().split(" ")[0] + " " + (one.directory / "id_ed25519.pub").read_text())
    refused = ssh(one.name, "cp-1", "true")
    assert refused.returncode == 255
    assert "verification failed" in refused.stderr


def test_power_off_keeps_the_disk_and_the_machine_rejoins(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path)
    handle = lab.machine(one.name, "worker-1")
    said(
        one.name,
        "worker-1",
        "echo kept > /root/file; echo kept > /var/lib/etcd/file; sync; ip link add left type dummy; echo x > /run/x",
    )
    handle.power_off()
    assert not handle.running
    assert ssh(one.name, "cp-1", "ping -c1 -W1 worker-1").returncode != 0
    handle.power_off()
    handle.start()
    handle.start()
    assert said(one.name, "worker-1", "cat /root/file /var/lib/etcd/file").split() == ["kept", "kept"]
    assert said(one.name, "worker-1", "ls /run/x /sys/class/net/left 2>/dev/null | wc -l") == "0", (
        "memory and network state are lost"
    )
    assert "1 received" in said(one.name, "cp-1", "ping -c1 -W5 worker-1")


def test_a_reboot_from_within_comes_back(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path, workers=0)
    before = said(one.name, "cp-1", "cat /proc/sys/kernel/random/boot_id")
    ssh(one.name, "cp-1", "systemctl reboot")

    def back() -> None:
        done = ssh(one.name, "cp-1", "cat /proc/sys/kernel/random/boot_id")
        if done.returncode or done.stdout.strip() == before:
            raise NotYet(done.stderr or "not rebooted yet")

    wait_until("the machine to come back", back, seconds=120)
    ssh(one.name, "cp-1", "systemctl poweroff")
    wait_for("the machine to stop", lambda: not lab.machine(one.name, "cp-1").running)
    assert [item.state for item in lab.status(one.name).machines] == ["stopped"]


def test_a_cut_link_separates_and_heals(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path)
    handle = lab.machine(one.name, "worker-1")
    handle.cut_link()
    assert ssh(one.name, "cp-1", "ping -c1 -W1 worker-1").returncode != 0
    status = lab.status(one.name).machines[1]
    assert (status.state, status.ssh, status.link) == ("running", False, False)
    handle.heal_link()
    assert "received" in said(one.name, "cp-1", "ping -c3 -W5 worker-1")
    assert lab.status(one.name).machines[1].ssh


def test_down_after_nspawn_was_killed_with_groups_full_of_processes(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path)
    # processes that ignore TERM, in groups of their own, one of them with a mount and a namespace
    said(
        one.name,
        "cp-1",
        "for d in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mkdir -p $d/pods/a; done;"
        " for i in $(seq 30); do setsid sh -c 'trap \"\" TERM; sleep 3600' >/dev/null 2>&1 </dev/null & done;"
        " mount -t tmpfs none /var/lib/kubelet; unshare -n -m setsid sleep 3600 >/dev/null 2>&1 </dev/null &",
    )
    nspawns = [line for line in traces(one)["processes"] if " systemd-nspawn " in line]
    assert len(nspawns) == 2
    for line in nspawns:
        os.kill(int(line.split()[0]), signal.SIGKILL)
    assert lab.down(one.name)
    assert_nothing_left(one)


def test_links_and_files_left_behind_do_not_stop_a_boot(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path)
    handle = lab.machine(one.name, "worker-1")
    handle.power_off()
    # as a boot leaves them that was cut short: a port without a machine, a namespace that is a plain file, groups, a directory
    subprocess.run(["ip", "-n", one.switch, "link", "add", "worker-1", "type", "veth", "peer", "name", "stale"], check=True)
    (network.NETNS / one.resource(handle.machine)).touch()
    for directory in cgroups.detect().directories(one.resource(handle.machine)):
        (directory / "sub").mkdir(parents=True)
    (nspawn.NSPAWN_RUN / "propagate" / nspawn.nspawn_name(one, handle.machine)).mkdir(parents=True)
    handle.start()
    assert "1 received" in said(one.name, "cp-1", "ping -c1 -W5 worker-1")
    handle.power_off()
    (network.NETNS / one.resource(handle.machine)).touch()
    lab.down(one.name)
    assert_nothing_left(one)


UP = "import sys; from pathlib import Path; from provisioner import lab; lab.up(sys.argv[1], 2, 2, 1, directory=Path(sys.argv[2]))"


def _stages(one_home: Path, name: str) -> dict[str, Callable[[], bool]]:
    """Points in the course of `up`, told from outside."""
    return {
        "state written": (one_home / "state.json").exists,
        "first disk": lambda: any(one_home.glob("machines/*/upper/etc/machine-id")),
        "switch": lambda: Path(f"/run/netns/plab.{name}").exists(),
        "first machine's network": lambda: any(Path("/run/netns").glob(f"plab.{name}.*")),
        "first control groups": lambda: any(Path("/sys/fs/cgroup").glob(f"*/plab.{name}.*")),
        "first console": lambda: any(one_home.glob("machines/*/console.log")),
    }


STAGES = tuple(_stages(Path(), ""))


@pytest.mark.parametrize("stage", STAGES)
def test_up_killed_half_way_can_be_cleared_and_can_be_continued(stage: str, new_name: Callable[[], str], tmp_path: Path) -> None:
    for finish in ("down", "up"):
        name = new_name()
        reached = _stages(state.home(name), name)[stage]
        directory = tmp_path / "workspace" / name
        process = subprocess.Popen([sys.executable, "-c", UP, name, str(directory)], stderr=subprocess.PIPE)
        try:
            wait_for(stage, lambda reached=reached, process=process: reached() or process.poll() is not None)  # type: ignore[misc]
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was killed before its end"
        one = lab.get(name)
        if finish == "up":
            lab.up(name, 2, 2, 1, directory=directory)
            assert [item.ssh for item in lab.status(name).machines] == [True] * 5
            assert said(name, "worker-2", "hostname") == "worker-2"
        assert lab.down(name)
        assert_nothing_left(one)


def test_down_killed_half_way_is_repeated(new_name: Callable[[], str], tmp_path: Path) -> None:
    one = up(new_name(), tmp_path, control_planes=3)
    code = "import sys; from provisioner import lab; lab.down(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, one.name])
    try:
        wait_for(
            "the first namespace to go",
            lambda: len(list(Path("/run/netns").glob(f"{one.switch}.*"))) < 4 or process.poll() is not None,
        )
    finally:
        process.kill()
        process.wait()
    lab.down(one.name)
    assert_nothing_left(one)


def test_five_machines_boot_at_once(
    new_name: Callable[[], str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    name = new_name()
    started = time.monotonic()
    up(name, tmp_path, control_planes=3, workers=2)
    record_property("seconds", round(time.monotonic() - started, 1))
    assert [item.ssh for item in lab.status(name).machines] == [True] * 5


def test_the_command_line_says_what_it_did(new_name: Callable[[], str], tmp_path: Path) -> None:
    name = new_name()

    def provisioner(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "provisioner", "lab", *arguments]
        return subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    made = provisioner("up", "--name", name, "--workers", "1")
    assert (made.returncode, made.stdout.strip()) == (0, f"workspace/{name}/cluster.yaml"), made.stderr
    shown = provisioner("status", "--name", name)
    assert "worker-1" in shown.stdout
    assert '"state": "running"' in provisioner("status", "--name", name, "--json").stdout
    inside = provisioner("ssh", "--name", name, "worker-1", "ls", "-d", "/etc/ssh")
    assert (inside.returncode, inside.stdout.strip()) == (0, "/etc/ssh"), inside.stderr
    assert provisioner("ssh", "--name", name, "worker-9").returncode == 3
    assert provisioner("up", "--name", name, "--workers", "3").returncode == 3
    assert provisioner("up", "--name", "No Name").returncode == 3
    unsure = provisioner("down", "--name", name)
    assert unsure.returncode == 130
    assert f"workspace/{name} with all in it" in unsure.stderr
    assert lab.get(name).directory == tmp_path / "workspace" / name
    assert (tmp_path / "workspace" / name / clusterfile.NAME).exists()
    assert provisioner("down", "--name", name, "--yes").returncode == 0
    assert provisioner("down", "--name", name, "--yes").returncode == 0
    assert provisioner("status", "--name", name).returncode == 3
