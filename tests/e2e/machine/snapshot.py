"""Runs on a machine, from standard input: prints all that a reset could have left or taken, as one JSON document.

``{part: {name: value}}``, so that two of them are compared name by name.
"""

# ruff: noqa: PTH115, PTH123, PTH208

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import time

TREES = (
    "/etc",
    "/opt",
    "/usr/local",
    "/usr/libexec",
    "/usr/lib/systemd/system",
    "/var/lib",
    "/var/log",
    "/run",
    "/srv",
    "/root",
    "/home",
)

# Each with the reason why it may differ although nothing of the cluster is left.
VOLATILE = (
    # the system's own tools keep the last version of the files of users and groups, and lock them with this one
    r"/etc/(passwd|group|shadow|gshadow)-",
    r"/etc/\.pwd\.lock",
    # the journal tells what happened, and shall go on telling it
    r"/(run|var)/log/journal/.*",
    # systemd's own books: its random seed, stamps of timers, running units and sessions, inhibitors, credentials
    r"/var/lib/systemd/.*",
    r"/run/systemd/.*",
    r"/run/credentials/.*",
    r"/run/(user|dbus|utmp|udev|sudo|log|lock|motd\.dynamic|initctl).*",
    # log-ins by SSH are written down, the reset's and the test's own among them
    r"/var/log/(wtmp|btmp|lastlog|faillog)",
    # whoever calls iptables makes it, the look at the rules below included
    r"/run/xtables\.lock",
    # Ansible's directory for temporary files, which it makes at its first visit and keeps
    r"/root/\.ansible(/.*)?",
    # the lab's own way to log in
    r"/root/\.(ssh|bash_history|cache).*",
)
VOLATILE_FILES = re.compile("|".join(f"(?:{pattern})" for pattern in VOLATILE))
# Names only: their content is the distribution's, and goes on.
GROWING = re.compile(r"/var/log/.*")

# Units of this very look, and of log-ins, and those that are there only while a timer's work is done. And network-online.target:
# the system's own, reached once a unit has asked to wait for it, which nothing undoes but a reboot.
PASSING = re.compile(
    r"network-online|session-|user@|user-runtime-dir@|user-\d+\.slice|run-user-|run-credentials|systemd-(tmpfiles-clean|hostnamed|localed|timedated)|init\.scope|e2scrub|dpkg-db|apt-daily|logrotate|man-db|fstrim|ssh@|\.device$"
)


def out(*command: str) -> str:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode(
            errors="replace"
        )
    except FileNotFoundError:
        return ""


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def entry(path: str) -> str:
    status = os.lstat(path)
    head = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{head} -> {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode) and not GROWING.fullmatch(path):
        with open(path, "rb") as file:
            return f"{head} {hashlib.sha256(file.read()).hexdigest()[:16]}"
    return head


def files() -> dict[str, str]:
    found = {}
    for tree in TREES:
        for directory, names, leaves in os.walk(tree):
            names[:] = [name for name in names if not VOLATILE_FILES.fullmatch(f"{directory}/{name}")]
            for name in (*names, *leaves):
                path = f"{directory}/{name}"
                if not VOLATILE_FILES.fullmatch(path):
                    try:
                        found[path] = entry(path)
                    except OSError:
                        continue
    return found


def units() -> dict[str, str]:
    rows = [line.split() for line in out("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full").splitlines()]
    # systemd hears of mounts some time after they are there; mounts() has them
    rows = [row for row in rows if row and not row[0].endswith(".mount")]
    found = {row[0]: " ".join(row[1:3]) for row in rows if not PASSING.match(row[0]) and row[1] != "not-found"}
    rows = [line.split() for line in out("systemctl", "list-unit-files", "--plain", "--no-legend", "--full").splitlines()]
    found.update(
        {f"file of {row[0]}": row[1] for row in rows if len(row) > 1 and not PASSING.match(row[0]) and row[1] != "transient"}
    )
    return found


def mounts() -> dict[str, str]:
    found = {}
    for line in read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if not re.match(r"/run/(user|credentials)", fields[4]):
            found[fields[4]] = f"{fields[3]} {right.split()[0]}"
    return found


def numbered(text: str) -> dict[str, int]:
    """Each line and how often it is there; counters and handles left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        plain = re.sub(r"\[\d+:\d+\]| # handle \d+|packets \d+ bytes \d+", "", line).rstrip()
        if plain and not plain.startswith("#"):
            found[plain] = found.get(plain, 0) + 1
    return found


def network() -> dict[str, int]:
    # of an interface that has just come up, an address is not usable before the kernel knows that nobody else has it
    for _ in range(50):
        if "tentative" not in out("ip", "-6", "addr"):
            break
        time.sleep(0.1)
    found = {}
    for words in (
        ["-d", "link"],
        ["-4", "addr"],
        ["-6", "addr"],
        ["-4", "route", "show", "table", "all"],
        ["-6", "route", "show", "table", "all"],
        ["rule"],
        ["-6", "rule"],
    ):
        text = re.sub(r"valid_lft \S+ preferred_lft \S+|expires \d+sec|state \S+", "", out("ip", "-o", *words))
        # an interface's number is of no meaning
        text = re.sub(r"^\d+: ", "", text, flags=re.MULTILINE)
        found.update({f"ip {' '.join(words)}: {line}": count for line, count in numbered(text).items()})
    return found


def filters() -> dict[str, int]:
    found = {f"nft: {line}": count for line, count in numbered(out("nft", "list", "ruleset")).items()}
    programs = ["iptables-nft-save", "ip6tables-nft-save"]
    if read("/proc/net/ip_tables_names"):
        programs += ["iptables-legacy-save", "ip6tables-legacy-save"]
    for program in programs:
        found.update({f"{program}: {line}": count for line, count in numbered(out(program)).items()})
    return found


def cgroups() -> dict[str, str]:
    """Groups with something of a cluster in their name, wherever they are; systemd's own come and go with its units."""
    found = {}
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        for name in list(names):
            if re.search(r"kube|containerd|etcd|flannel|provisioner", name):
                found[f"{directory}/{name}"] = ""
                names.remove(name)
    return found


def users() -> dict[str, str]:
    found = {
        f"user {user.pw_name}": f"{user.pw_uid}:{user.pw_gid} {user.pw_gecos} {user.pw_dir} {user.pw_shell}"
        for user in pwd.getpwall()
    }
    found.update({f"group {line.split(':')[0]}": line for line in read("/etc/group").splitlines()})
    return found


def sysctls() -> dict[str, str]:
    """Of the network's own, which every machine has to itself; the others are the host's where the machine is a container,
    and any other lab on it changes them too."""
    found = {}
    for directory, _, names in os.walk("/proc/sys/net"):
        for name in names:
            path = f"{directory}/{name}"
            # counters, and what changes with each packet or has a value of its own at each read
            if not re.search(
                r"nf_conntrack_(count|buckets)|/stable_secret|/flush$|gc_thresh|random|netdev_rss_key|tcp_.*mem$", path
            ):
                found[path] = " ".join(read(path).split())
    return found


def processes() -> dict[str, int]:
    """Programs that run, but for what this look and log-ins are made of."""
    found: dict[str, int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            exe = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if not re.search(r"sshd|python3|/bash$|/dash$|/sh$|sudo|systemd-(hostnamed|tmpfiles|userwork)|\(sd-pam\)|sftp", exe):
            name = f"{exe}: {read(f'/proc/{pid}/cmdline').replace(chr(0), ' ').strip()}"
            found[name] = found.get(name, 0) + 1
    return found


def modules() -> dict[str, str]:
    return {line.split()[0]: "" for line in read("/proc/modules").splitlines()}


def ports() -> dict[str, str]:
    found = {}
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in read(f"/proc/net/{table}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                found[f"{table} {fields[1]}"] = ""
    return found


PARTS = (files, units, mounts, network, filters, cgroups, users, sysctls, processes, modules, ports)

if __name__ == "__main__":
    json.dump({part.__name__: part() for part in PARTS}, sys.stdout)
