# Apache-2.0 (see LICENSE)
"""What of ours is in a node's network: namespaces, interfaces, routes, addresses, and rules of the packet filters.

Only what carries our names: everybody else's rules stay, in the same tables too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil

from ansible.module_utils.provisioner_before import mount_points, nft_tables, read_lines

NAMESPACES = "/run/netns"
# The tables that iptables makes in nftables for its own use.
IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
# A chain of a hook without any rule, that lets everything pass.
HOOK = re.compile(r"type \w+ hook \w+ priority [^;]+; policy accept;")


# -- namespaces -------------------------------------------------------------------------------------------------------------------


def find_namespaces(machine):
    """The namespaces of pods, which containerd names cni-UUID."""
    known = machine.was("directories").get(NAMESPACES, {}).get("entries", ())
    try:
        names = sorted(os.listdir(NAMESPACES))
    except OSError:
        return []
    return [os.path.join(NAMESPACES, name) for name in names if name.startswith("cni-") and name not in known]


def remove_namespaces(machine, items):
    """Unmount, then remove the name; with the last process of a pod gone, the kernel takes its network down."""
    for path in items:
        for _ in range(mount_points().count(path)):
            machine.run("umount", "--no-canonicalize", "--", path)
        try:
            os.unlink(path)
        except OSError as error:
            machine.failed(path, error.strerror)


# -- interfaces, routes, addresses ------------------------------------------------------------------------------------------------


def _names():
    return {line.partition(":")[0].strip() for line in read_lines("/proc/net/dev") if ":" in line}


def find_interfaces(machine):
    """The bridge, what is plugged into it, and the tunnel."""
    names = [name for name in machine.footprint["interfaces"] if name in _names()]
    for name in list(names):
        if name in machine.was("interfaces"):
            machine.note("the interface %s was there before us, and stays" % name)
            names.remove(name)
    ports = []
    if names and names[0] == machine.footprint["interfaces"][0]:
        _, text, _ = machine.run("ip", "-o", "link", "show", "master", names[0])
        ports = re.findall(r"^\d+: ([^@:\s]+)", text, re.MULTILINE)
    return [*(port for port in ports if port.startswith("veth")), *names]


def remove_interfaces(machine, items):
    """Pods' ends go with their namespaces, which may take a moment: one that has gone meanwhile is no failure."""
    for name in items:
        code, _, complaint = machine.run("ip", "link", "delete", "dev", name)
        if code and name in _names():
            machine.failed(name, complaint)


def find_routes(machine):
    """Routes to the pods of other machines (host-gw; those of a tunnel go with its interface)."""
    if not machine.footprint["pod_cidr"]:
        return []
    pods = ipaddress.ip_network(machine.footprint["pod_cidr"])
    _, text, _ = machine.run("ip", "-%d" % pods.version, "route", "show", "root", str(pods))
    found = []
    for line in text.splitlines():
        match = re.match(r"(\S+) via (\S+) dev (\S+)", line)
        if match:
            with contextlib.suppress(ValueError):
                network = ipaddress.ip_network(match[1])
                if network.prefixlen > pods.prefixlen and network.subnet_of(pods):
                    found.append("%s via %s dev %s" % match.groups())
    return found


def remove_routes(machine, items):
    """One by one."""
    for item in items:
        code, _, complaint = machine.run("ip", "route", "delete", *item.split())
        if code:
            machine.failed(item, complaint)


def find_addresses(machine):
    """A virtual address that a killed keepalived has left behind."""
    found = []
    for address in machine.footprint["addresses"]:
        _, text, _ = machine.run("ip", "-o", "-4", "addr", "show")
        found += [
            "%s/32 dev %s" % (address, name) for name in re.findall(r"^\d+: (\S+)\s+inet %s/32 " % re.escape(address), text, re.M)
        ]
    return found


def remove_addresses(machine, items):
    """One by one."""
    for item in items:
        code, _, complaint = machine.run("ip", "addr", "delete", *item.split())
        if code:
            machine.failed(item, complaint)


# -- packet filters ---------------------------------------------------------------------------------------------------------------


def find_filters(machine):
    """Tables of nftables, chains of iptables, and tables that iptables made for us alone."""
    tables = nft_tables() or []
    existed = machine.was("nft_tables")
    ours = ["%s %s" % tuple(table) for table in machine.footprint["nft_tables"]]
    found = ["nft table " + table for table in tables if table in ours and table not in existed]
    for program in _programs():
        for table, (chains, _) in _saved(machine, program).items():
            found += ["%s %s %s" % (program, table, chain) for chain in chains]
    return found + _bare(machine, tables)


def remove_filters(machine, items):
    """iptables' first: its tables are bare only without our chains."""
    for program in _programs():
        for table, (chains, jumps) in _saved(machine, program).items():
            if chains:
                _remove_chains(machine, program, table, chains, jumps)
    for item in [item for item in find_filters(machine) if item.startswith("nft ")]:
        code, _, complaint = machine.run("nft", "delete", *item.split()[1:])
        if code:
            machine.failed(item, complaint)


def _programs():
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


def _saved(machine, program):
    """{table: (our chains, rules of others' chains that lead to them)}."""
    code, text, _ = machine.run(program)
    if code:
        return {}
    prefixes = tuple(machine.footprint["chains"])
    tables = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            tables[table] = ([], [])
        elif line.startswith(":") and line[1:].startswith(prefixes):
            tables[table][0].append(line[1:].split()[0])
        elif line.startswith("-A "):
            chain = line.split()[1]
            target = re.search(r" (?:-j|-g) (\S+)", line)
            if not chain.startswith(prefixes) and target and target[1].startswith(prefixes):
                tables[table][1].append(line)
    return tables


def _remove_chains(machine, program, table, chains, jumps):
    """In one transaction: empty our chains, delete what leads to them, delete them."""
    lines = ["*" + table, *(":%s - [0:0]" % chain for chain in chains)]
    lines += ["-D" + jump[2:] for jump in jumps]
    lines += ["-X " + chain for chain in chains]
    text = "\n".join([*lines, "COMMIT", ""])
    code, _, complaint = machine.run(program.replace("-save", "-restore"), "--noflush", "--wait=10", text=text, seconds=60)
    if code:
        for chain in chains:
            machine.failed("%s %s %s" % (program, table, chain), complaint)


def _bare(machine, tables):
    """What iptables has made for its own use since our first change, and holds nothing any more: tables, chains of hooks."""
    if machine.before is None or machine.before.get("nft_chains") is None:
        return []
    found = []
    for table in tables:
        family, name = table.split()
        if family not in ("ip", "ip6") or name not in IPTABLES_TABLES:
            continue
        _, text, _ = machine.run("nft", "list", "table", family, name)
        chains = dict(re.findall(r"^\tchain (\S+) \{\n(.*?)^\t\}", text, re.MULTILINE | re.DOTALL))
        bare = [chain for chain, lines in chains.items() if HOOK.fullmatch(lines.strip())]
        if table not in machine.was("nft_tables"):
            # a table with somebody's chain in it stays whole
            found += ["nft table " + table] if len(bare) == len(chains) else []
        else:
            known = machine.was("nft_chains")
            found += ["nft chain %s %s" % (table, chain) for chain in bare if "%s %s" % (table, chain) not in known]
    return found
