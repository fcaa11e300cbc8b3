"""What must hold on every machine after the last `apply`; each function returns what does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from provisioner.desired import HostState, load_host
from provisioner.errors import ProvisionerError
from provisioner.ssh import parallel
from tests.e2e.kills.site import Site
from tests.e2e.machine import SCRIPT, differences, parse

# Units as they run and as they are on disk (a oneshot writes its hash down when it is through), and what a killed run has left.
LOOK = r"""
import glob, json, os, re, subprocess, sys, time

def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""

wanted, units = json.loads(sys.argv[1]), {}
for name in wanted:
    text = subprocess.run(["systemctl", "show", "--property=ActiveState,MainPID,Type", name], capture_output=True, text=True).stdout
    state = dict(line.split("=", 1) for line in text.splitlines())
    pid = state["MainPID"]
    if pid != "0":
        items = read("/proc/%s/environ" % pid).split(b"\0")
        running = [item[17:].decode() for item in items if item.startswith(b"PROVISIONER_HASH=")]
    else:
        running = read("/run/provisioner/%s.hash" % name).decode().split()
    placed = re.findall(r"PROVISIONER_HASH=(\w+)", read("/etc/systemd/system/" + name).decode()) or [wanted[name]]
    exe = os.readlink("/proc/%s/exe" % pid) if pid != "0" else ""
    units[name] = {"state": state["ActiveState"], "running": running[:1], "placed": placed[:1], "exe": exe}
left = []
for tree in ("/etc", "/usr/local", "/opt", "/var/lib/provisioner", "/var/lib/etcd", "/var/lib/kubelet", "/var/lib/cni", "/run"):
    for directory, names, files in os.walk(tree):
        names[:] = [name for name in names if name not in ("pods", "plugins", "systemd", "containerd", "user")]
        left += [os.path.join(directory, name) for name in files if name.startswith(".provisioner-")]
for pattern in ("/etc/kubernetes/kubelet/bootstrap.kubeconfig", "/root/.ansible/tmp/*", "/tmp/ansible*", "/tmp/.provisioner-*"):
    left += glob.glob(pattern)
for path in glob.glob("/dev/shm/ansible*") + glob.glob("/var/tmp/ansible*"):
    # an empty one is let be for a minute: it might be another Ansible's
    if os.listdir(path) or time.time() - os.lstat(path).st_mtime > 60:
        left.append("%s: %s" % (path, os.listdir(path)))
# modules of an earlier run, still at work: their script is the standard input, their command line the interpreter's alone
for pid in filter(str.isdigit, os.listdir("/proc")):
    line = read("/proc/%s/cmdline" % pid).replace(b"\0", b" ").decode(errors="replace")
    if re.search(r"ansible|AnsiballZ", line) and int(pid) != os.getpid():
        left.append("process %s: %s" % (pid, line[:200]))
print(json.dumps({"units": units, "left": left}))
"""


# What another boot of a lab machine brings along, after a power cut: the process of sshd, mounts of the lab, its cable's number.
OF_A_BOOT = re.compile(r"/run/sshd\.pid|proc-kmsg|random-boot-id|ip -d link: eth0@if\d+:")


def violations(site: Site) -> list[str]:
    """Of all machines: those in cluster.yaml run what is on disk and carry no litter, those that left are as they were."""
    found: list[str] = []
    with site.connected() as (cluster, connections):
        states = {name: load_host(site.real.workspace.rendered, name) for name in site.layout.machines}

        def look(node: Any) -> Any:
            hashes = json.dumps({unit.name: unit.hash for unit in states[node.name].units})
            done = connections.run(node, f"python3 - '{hashes}'", stdin=LOOK.encode(), timeout=60)
            assert done.code == 0, done.stderr
            return json.loads(done.text)

        def snap(node: Any) -> Any:
            return parse(connections.run(node, "python3 -", stdin=SCRIPT.read_bytes(), timeout=120).text)

        inside = [node for node in cluster.nodes if node.name in site.layout.machines]
        outside = [node for node in cluster.nodes if node.name in site.gone]
        looks = _answers(parallel(inside, look))
        snaps = _answers(parallel(outside, snap))
    for node in inside:
        seen = looks[node.name]
        found += [f"{node.name}: {line}" for line in _of_units(states[node.name], seen["units"])]
        found += [f"{node.name}: left behind: {line}" for line in seen["left"]]
    for node in outside:
        found += [
            f"{node.name}, which is not in cluster.yaml: {line}"
            for line in differences(site.before[node.name], snaps[node.name])
            if not OF_A_BOOT.search(line)
        ]
    return found


def remember(site: Site) -> None:
    """The look of the spare machines before anything was put there."""
    with site.connected() as (cluster, connections):
        for name in site.gone:
            done = connections.run(cluster.node(name), "python3 -", stdin=SCRIPT.read_bytes(), timeout=120)
            site.before[name] = parse(done.text)


def _answers(given: Mapping[str, Any]) -> dict[str, Any]:
    for answer in given.values():
        if isinstance(answer, ProvisionerError):
            raise answer
    return dict(given)


def _of_units(state: HostState, seen: Mapping[str, Any]) -> list[str]:
    found = []
    for unit in state.units:
        now = seen[unit.name]
        if now["state"] != "active":
            found.append(f"{unit.name} is {now['state']}")
        elif now["running"] != now["placed"] or not now["placed"]:
            found.append(f"{unit.name} runs {now['running']}, on disk is {now['placed']}")
        elif now["placed"] != [unit.hash]:
            found.append(f"{unit.name} on disk is {now['placed']}, desired is {unit.hash}")
        if now["exe"].endswith(" (deleted)"):
            found.append(f"{unit.name} runs {now['exe']}")
    return found
