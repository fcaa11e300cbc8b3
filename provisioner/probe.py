"""What runs on a machine to look at it: one script, fed to its Python on stdin, that prints one JSON line and changes nothing.

It stands alone: standard library only, Python 3.9 (it must also *load* on 3.7, to say that a Python is too old), no import
of this package. ``facts`` sends this file's own text, with a last line that calls ``report``. It reads /proc and /sys and
starts a single program, systemctl, twice: the whole takes well under half a second of a slow core; asked how quickly
a disk syncs, it takes half a second more.

os's own calls in place of pathlib's: this reads every open descriptor of a machine, and they are several times as fast.
"""

# ruff: noqa: PTH108, PTH110, PTH112, PTH115, PTH116, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import json
import os
import platform
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

SECONDS = 60  # the script ends itself: a hanging network filesystem must not leave it behind for ever


def read(path: str, default: str = "") -> str:
    """A small file's text, or the default where it is missing or unreadable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return default


def os_release() -> dict[str, object]:
    """os-release(5)."""
    text = read("/etc/os-release") or read("/usr/lib/os-release")
    values = dict(re.findall(r"""^(\w+)=["']?(.*?)["']?\s*$""", text, re.MULTILINE))
    return {
        "os_id": values.get("ID", "").lower(),
        "os_version": values.get("VERSION_ID", ""),
        "os_like": values.get("ID_LIKE", "").lower().split(),
        "os_name": values.get("PRETTY_NAME", ""),
    }


def cgroups() -> dict[str, object]:
    """Version 2 only where it is the one hierarchy: a hybrid machine's controllers are version 1's."""
    unified = read("/sys/fs/cgroup/cgroup.controllers")
    if unified:
        return {"cgroup": 2, "cgroup_controllers": sorted(unified.split())}
    rows = [line.split() for line in read("/proc/cgroups").splitlines() if not line.startswith("#")]
    return {"cgroup": 1, "cgroup_controllers": sorted(row[0] for row in rows if row[-1] == "1")}


def memory() -> dict[str, object]:
    """In MiB."""
    found = {key: int(value) // 1024 for key, value in re.findall(r"^(MemTotal|SwapTotal):\s+(\d+)", read("/proc/meminfo"), re.M)}
    return {"memory_mib": found["MemTotal"], "swap_mib": found.get("SwapTotal", 0), "cpus": os.cpu_count() or 1}


def disks(paths: list[str]) -> dict[str, object]:
    """The filesystem each path is on, or would be on: the nearest ancestor that exists."""
    mounts = []
    for line in read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal.group(1), 8)), fields[4])
        mounts.append((point, right.split()[0], fields[5].split(",")))
    found = {}
    for path in paths:
        place = path
        while not os.path.exists(place):
            place = os.path.dirname(place)
        place = os.path.realpath(place)
        usage, device = os.statvfs(place), os.stat(place).st_dev
        # the last of equally long mount points hides the others; in a chroot there may be none at all
        above: list[tuple[str, str, list[str]]] = [
            mount for mount in reversed(mounts) if (place + "/").startswith(mount[0].rstrip("/") + "/")
        ]
        _, kind, options = max(above, key=lambda mount: len(mount[0]), default=("/", "", []))
        found[path] = {
            "free_mib": usage.f_bavail * usage.f_frsize >> 20,
            "total_mib": usage.f_blocks * usage.f_frsize >> 20,
            "filesystem": kind,
            "device": f"{os.major(device)}:{os.minor(device)}",
            "rotational": rotational(os.major(device), os.minor(device)),
            "noexec": "noexec" in options,
            "read_only": "ro" in options,
        }
    return {"disks": found}


def rotational(major: int, minor: int) -> bool:
    """Whether a block device is a spinning disk; a partition asks its disk."""
    device = os.path.realpath(f"/sys/dev/block/{major}:{minor}")
    return any(read(base + "/queue/rotational").strip() == "1" for base in (device, os.path.dirname(device)))


def listening() -> dict[str, object]:
    """Ports that processes listen on, with the program's name ("" where the kernel itself does)."""
    ports: dict[str, dict[str, str]] = {"tcp": {}, "udp": {}}
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in read("/proc/net/" + table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                ports[table[:3]].setdefault(str(int(fields[1].rpartition(":")[2], 16)), fields[9])
    wanted = {f"socket:[{inode}]" for table in ports.values() for inode in table.values() if inode != "0"}
    owners: dict[str, str] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if len(owners) == len(wanted):
            break
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:  # it ended meanwhile
            continue
        for link in wanted.intersection(links).difference(owners):
            owners[link] = program(pid)
    named = {kind: {port: owners.get(f"socket:[{inode}]", "") for port, inode in table.items()} for kind, table in ports.items()}
    return {"listening": named["tcp"], "listening_udp": named["udp"]}


def program(pid: str) -> str:
    """A process' program; an interpreter's name says little, its own says more."""
    short = read(f"/proc/{pid}/comm").strip()
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe")).replace(" (deleted)", "")
    except OSError:
        return short
    return short if re.match(r"(python|perl|ruby|node|java|busybox)", name) else name


def netlink(request: int, answer: int, header: int) -> list[tuple[bytes, dict[int, bytes]]]:
    """A dump of the kernel's network tables (rtnetlink(7)): each entry's fixed part and its attributes by number."""
    entries: list[tuple[bytes, dict[int, bytes]]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as stream:
        # nlmsghdr: length, type, NLM_F_REQUEST | NLM_F_DUMP, sequence, port; then the table's own header, of IPv4 and zeroes
        stream.sendall(struct.pack("=IHHII", 16 + header, request, 0x301, 1, 0) + bytes([socket.AF_INET]).ljust(header, b"\0"))
        while True:
            data = stream.recv(1 << 17)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                message, data = data[16:length], data[(length + 3) & ~3 :]
                if kind != answer:  # the dump's end, or an error
                    return entries
                attributes, values = message[header:], {}
                while len(attributes) >= 4:
                    size, number = struct.unpack_from("=HH", attributes)
                    values[number] = attributes[4:size]
                    attributes = attributes[(size + 3) & ~3 :]
                entries.append((message[:header], values))


def interfaces() -> dict[str, object]:
    """IPv4 addresses, MTU and MAC by interface, asked of the kernel: iproute2 need not be there, and a container's
    /sys/class/net may show the machine below."""
    found: dict[str, list[str]] = {}
    mtus, macs, names = {}, {}, {}
    # RTM_GETLINK, ifinfomsg; IFLA_ADDRESS 1, IFLA_IFNAME 3, IFLA_MTU 4
    for header, values in netlink(18, 16, 16):
        name = values[3].rstrip(b"\0").decode()
        names[struct.unpack_from("=I", header, 4)[0]] = name
        found[name] = []
        mtus[name] = struct.unpack("=I", values[4])[0]
        macs[name] = ":".join(f"{byte:02x}" for byte in values.get(1, b""))
    # RTM_GETADDR, ifaddrmsg; IFA_ADDRESS 1, IFA_LOCAL 2
    for header, values in netlink(22, 20, 8):
        address = values.get(2) or values.get(1)
        if address:
            found[names[struct.unpack_from("=I", header, 4)[0]]].append(socket.inet_ntoa(address))
    return {"interfaces": found, "mtus": mtus, "macs": macs}


def routes() -> dict[str, object]:
    """Whether there is a default route, and whether the machine forwards already."""
    rows = [line.split() for line in read("/proc/net/route").splitlines()[1:]]
    return {
        "default_route": any(row[1] == "00000000" and row[7] == "00000000" for row in rows),
        "ip_forward": read("/proc/sys/net/ipv4/ip_forward").strip() == "1",
    }


def resolver() -> dict[str, object]:
    """The nameservers, and the file pods should be given: systemd-resolved's stub address means nothing inside a pod."""
    pattern = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
    path = "/etc/resolv.conf"
    servers = pattern.findall(read(path))
    upstream = "/run/systemd/resolve/resolv.conf"
    if servers and all(server.startswith("127.") or server == "::1" for server in servers) and pattern.search(read(upstream)):
        path, servers = upstream, pattern.findall(read(upstream))
    return {"resolv_conf": path, "resolv_nameservers": servers}


def kernel_features(wanted: dict[str, dict[str, list[str]]]) -> dict[str, object]:
    """Feature by feature: present or loadable (true), absent (false), or not to be told on this machine (null).

    A feature is loaded, or a module that can be loaded, or built in; modules' lists and the kernel's configuration tell.
    """
    base = "/lib/modules/" + platform.release()
    modules = read(base + "/modules.dep") + read(base + "/modules.builtin")
    config = read("/boot/config-" + platform.release())
    if not config and os.path.exists("/proc/config.gz"):
        import gzip  # noqa: PLC0415 - seldom needed, and its import is a tenth of the whole

        with gzip.open("/proc/config.gz", "rt") as file:
            config = file.read()
    found = {}
    for name, signs in wanted.items():
        known = (
            any(os.path.exists("/sys/module/" + module) for module in signs["modules"])
            or any(f"/{module}.ko" in modules for module in signs["modules"])
            or any(re.search(f"^{option}=[ym]$", config, re.MULTILINE) for option in signs["config"])
        )
        found[name] = True if known else False if modules or config else None
    return {"kernel_features": found}


def oom() -> dict[str, object]:
    """Whether oom_score_adj may be lowered, tried in a child: the capability alone does not tell in every container."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write("-999")
            code = 0
        finally:
            os._exit(code)
    return {"can_lower_oom": os.waitpid(child, 0)[1] == 0}


def systemd(units: list[str]) -> dict[str, object]:
    """systemd's version (0: it is not process 1 here) and the units of ours, or in our way, that it knows."""
    if not os.path.isdir("/run/systemd/system"):
        return {"systemd": 0, "units": {}}
    version = systemctl("show", "--property=Version")
    number = re.search(r"\d+", version)
    blocks = systemctl("show", "--property=Id,LoadState,ActiveState", *units).split("\n\n")
    states = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in blocks]
    return {
        "systemd": int(number.group()) if number else 0,
        "units": {state["Id"]: state["ActiveState"] for state in states if state.get("LoadState") in ("loaded", "masked")},
    }


def systemctl(*words: str) -> str:
    """systemctl's output."""
    done = subprocess.run(("systemctl", "--no-pager", *words), stdout=subprocess.PIPE, timeout=SECONDS / 2, check=False)
    return done.stdout.decode("utf-8", "replace")


def security() -> dict[str, object]:
    """SELinux, AppArmor, and the firewalls that hold their rules without a daemon of their own."""
    enforce = read("/sys/fs/selinux/enforce").strip()
    return {
        "selinux": {"1": "enforcing", "0": "permissive"}.get(enforce, "disabled"),
        "apparmor": read("/sys/module/apparmor/parameters/enabled").strip() == "Y",
        # ufw.service is active on every Ubuntu, also where the firewall is off
        "ufw": bool(re.search(r"^\s*ENABLED\s*=\s*yes", read("/etc/ufw/ufw.conf"), re.MULTILINE | re.IGNORECASE)),
    }


def time_sync() -> dict[str, object]:
    """The kernel's word on whether something keeps the clock (adjtimex(2); TIME_ERROR is 5)."""
    import ctypes  # noqa: PLC0415 - missing from a stripped Python, which then costs this one fact

    return {"time_sync": ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) not in (-1, 5)}


def identity(marker: str) -> dict[str, object]:
    """Who the machine says it is, and whose it is."""
    text = read(marker)
    try:
        mark = json.loads(text) if text else None
    except ValueError:
        mark = {}
    return {
        "hostname": socket.gethostname(),
        "machine_id": read("/etc/machine-id").strip(),
        "product_uuid": read("/sys/class/dmi/id/product_uuid").strip().lower(),
        "container": read("/run/systemd/container").strip(),
        "marker": mark if isinstance(mark, dict) or mark is None else {},
    }


def commands(names: list[str]) -> dict[str, object]:
    """Which programs there are, wherever root's PATH would find them."""
    places = [place for place in os.environ.get("PATH", "").split(":") if place]
    places += ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return {"commands": {name: any(os.access(place + "/" + name, os.X_OK) for place in places) for name in names}}


def disk_sync(path: str) -> dict[str, object]:
    """How long the disk under etcd's data takes to sync: the 99th percentile in ms, and how it was found out.

    As etcd's documentation measures it with fio: fdatasync after each append of 2300 bytes. Where an etcd runs, from what
    that counts itself, and never by writing beside it. Empty ``path``: not asked.
    """
    if not path:
        return {"disk_sync": None}
    try:
        text = etcd_metrics()
    except ConnectionRefusedError:
        return {"disk_sync": measured_sync(path)}
    return {"disk_sync": counted_sync(text)}


def etcd_metrics() -> str:
    """The metrics of an etcd of ours. Raises ConnectionRefusedError where none runs."""
    with socket.create_connection(("127.0.0.1", 2381), timeout=2) as stream:
        # HTTP/1.0: the answer comes in one piece, and its end is the connection's
        stream.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        parts: list[bytes] = []
        while True:
            part = stream.recv(1 << 17)
            if not part:
                return b"".join(parts).decode("utf-8", "replace")
            parts.append(part)


def counted_sync(text: str) -> dict[str, object] | None:
    """From etcd's histogram, within a bucket by interpolation, as Prometheus' histogram_quantile does; None without any sync."""
    rows = re.findall(r'^etcd_disk_wal_fsync_duration_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE)
    buckets = [(float(bound.replace("+Inf", "inf")), float(count)) for bound, count in rows]
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    below, under = 0.0, 0.0
    for bound, count in buckets:
        if count >= 0.99 * total:
            # beyond the last bound nothing is known but that
            p99 = under if bound == float("inf") else under + (bound - under) * (0.99 * total - below) / (count - below)
            return {"p99_ms": round(p99 * 1000, 2), "syncs": int(total), "source": "etcd"}
        below, under = count, bound
    return None


def measured_sync(path: str) -> dict[str, object]:
    """By trying, in a file without a name, which is gone with this process whatever happens."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        handle = os.open(path, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError:  # a filesystem that cannot; its name lives for no longer than the next line
        import tempfile  # noqa: PLC0415 - seldom needed, and not cheap

        handle, name = tempfile.mkstemp(prefix=".provisioner-", dir=path)
        os.unlink(name)
    try:
        times: list[float] = []
        data, begin = b"\0" * 2300, time.monotonic()
        while len(times) < 300 and time.monotonic() - begin < 0.5:
            os.write(handle, data)
            before = time.monotonic()
            os.fdatasync(handle)
            times.append(time.monotonic() - before)
    finally:
        os.close(handle)
    times.sort()
    p99 = times[max(0, -(-99 * len(times) // 100) - 1)]
    return {"p99_ms": round(p99 * 1000, 2), "syncs": len(times), "source": "measured"}


def leftovers(paths: list[str]) -> dict[str, object]:
    """Which of these files, and directories with anything in them, there are."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            found += [path] if os.listdir(path) else []
        elif os.path.exists(path):
            found.append(path)
    return {"leftovers": found}


def machine() -> dict[str, object]:
    """The rest."""
    return {
        "arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "kernel": platform.release(),
        "python": sys.executable,
        "python_version": ".".join(str(part) for part in sys.version_info[:3]),
        "uid": os.geteuid(),
    }


def report(questions: dict[str, object]) -> None:
    """Look at everything and print it as one line of JSON. What cannot be found out is named under ``incomplete``."""
    begin = time.time()
    signal.alarm(SECONDS)
    parts: tuple[tuple[Callable[..., dict[str, object]], tuple[str, ...]], ...] = (
        (machine, ()),
        (os_release, ()),
        (cgroups, ()),
        (memory, ()),
        (disks, ("paths",)),
        (listening, ()),
        (interfaces, ()),
        (routes, ()),
        (resolver, ()),
        (kernel_features, ("features",)),
        (oom, ()),
        (systemd, ("units",)),
        (security, ()),
        (time_sync, ()),
        (identity, ("marker",)),
        (commands, ("commands",)),
        (leftovers, ("leftovers",)),
        (disk_sync, ("disk_sync",)),
    )
    answer: dict[str, object] = {"incomplete": {}}
    missing = {}
    for part, names in parts:
        try:
            answer.update(part(*(questions[name] for name in names)))
        except Exception as error:
            missing[part.__name__] = f"{type(error).__name__}: {error}"
    answer["incomplete"] = missing
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answer["probe_cpu_s"] = round(sum(usage.ru_utime + usage.ru_stime for usage in used), 3)
    answer["clock"] = [begin, time.time()]
    sys.stdout.write(json.dumps(answer) + "\n")
