# Apache-2.0 (see LICENSE)
"""What a machine was before its first change: written once, and read by whoever makes it that again.

Runs on the node's own Python (3.9 and newer) with the standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess

from ansible.module_utils.provisioner_host import STATE_DIR, make_parents, user_exists, write_atomic

BEFORE = os.path.join(STATE_DIR, "before.json")
VERSION = 1


def record_before(questions):
    """Write down what the machine is, unless that was done before, or the machine is a cluster's already.

    A machine that was built by a version that did not ask would tell what *we* made of it.
    """
    if os.path.lexists(BEFORE) or os.path.lexists(questions["marker"]):
        return
    document = {"version": VERSION, **look_before(questions)}
    make_parents(BEFORE)
    write_atomic(BEFORE, json.dumps(document).encode(), 0o600, "root", "root")


def read_before():
    """What was written down; None where nothing was, or nobody can read it."""
    try:
        with open(BEFORE, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("version") == VERSION else None


def look_before(questions):
    """The answers."""
    loaded = read_lines("/proc/modules")
    interfaces = {line.partition(":")[0].strip() for line in read_lines("/proc/net/dev")}
    return {
        "id": questions["cluster"],
        "files": [path for path in questions["files"] if os.path.lexists(path)],
        "directories": {
            path: describe_directory(path, listed=path in questions["listed"])
            for path in sorted({*questions["directories"], *questions["listed"]})
            if os.path.isdir(path)
        },
        "mounts": [point for point in mount_points() if below(point, questions["mounts"])],
        "users": [name for name in questions["users"] if user_exists(name)],
        "sysctls": {name: read_sysctl(name) for name in questions["sysctls"]},
        "modules": [name for name in questions["modules"] if any(line.split()[0] == name for line in loaded)],
        "interfaces": [name for name in questions["interfaces"] if name in interfaces],
        "nft_tables": nft_tables(),
        "nft_chains": nft_chains(),
        "chains": iptables_chains(questions["chains"]),
    }


def describe_directory(path, listed):
    """Its mode and owner, and what is in it where that is asked for."""
    status = os.stat(path)
    return {
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "entries": sorted(os.listdir(path)) if listed else [],
    }


def read_lines(path):
    """A small file's lines; none where it is missing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def mount_points():
    """Every mount point, in the order in which they were mounted."""
    fields = [line.split() for line in read_lines("/proc/self/mountinfo")]
    return [re.sub(r"\\(\d{3})", lambda octal: chr(int(octal.group(1), 8)), row[4]) for row in fields]


def below(path, directories):
    """Whether a path lies below one of these directories; not whether it is one."""
    return any(path.startswith(directory.rstrip("/") + "/") for directory in directories)


def sysctl_path(name):
    """The file of a kernel parameter."""
    return "/proc/sys/" + name.replace(".", "/")


def read_sysctl(name):
    """Value of a kernel parameter with single spaces, or None where the kernel has none of that name."""
    try:
        with open(sysctl_path(name), encoding="ascii") as file:
            return " ".join(file.read().split())
    except OSError:
        return None


def nft_tables():
    """Tables of the packet filter ("ip filter"); None where there is no program to ask."""
    text = _nft("tables")
    return None if text is None else re.findall(r"^table (\S+ \S+)", text, re.MULTILINE)


def nft_chains():
    """Chains of it ("ip filter INPUT"); None where there is no program to ask."""
    text = _nft("chains")
    if text is None:
        return None
    found, table = [], ""
    for kind, name in re.findall(r"^\s*(table|chain) (.+?) \{", text, re.MULTILINE):
        table = name if kind == "table" else table
        found += ["%s %s" % (table, name)] if kind == "chain" else []
    return found


def iptables_programs():
    """Those that tell what rules there are: of each family and each of the two kernel interfaces that are in use.

    The older interface makes its tables when it is asked for them, so it is asked only where it has some.
    """
    found = []
    for family in ("iptables", "ip6tables"):
        nft = family + "-nft-save"
        plain = family + "-save"
        if shutil.which(nft):
            found.append(nft)
        elif shutil.which(plain):
            found.append(plain)
        names = "/proc/net/%s_names" % ("ip_tables" if family == "iptables" else "ip6_tables")
        if read_lines(names) and shutil.which(family + "-legacy-save"):
            found.append(family + "-legacy-save")
    return found


def iptables_chains(prefixes):
    """Chains whose names begin like ours, by the program that tells of them: {"iptables-nft-save": ["nat KUBE-SERVICES"]}."""
    found = {}
    for program in iptables_programs():
        table, chains = "", []
        for line in (_output(program) or "").splitlines():
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith(":") and line[1:].startswith(tuple(prefixes)):
                chains.append("%s %s" % (table, line[1:].split()[0]))
        found[program] = chains
    return found


def _nft(what):
    return _output("nft", "list", what)


def _output(*command):
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
