# Apache-2.0 (see LICENSE)
"""What of ours is in a node's packet filters: tables of nftables, chains of iptables with the rules that lead to them.

Everybody else's rules stay, in the same tables too. What the CNI plugins make has the same names for whoever calls them: of that,
what is proved to be of our pods (provisioner_reset_pods).
"""

from __future__ import annotations

import re

from ansible.module_utils.provisioner_before import iptables_programs, nft_tables

# The tables that iptables makes in nftables for its own use.
IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
# A chain of a hook without any rule, that lets everything pass.
HOOK = re.compile(r"type \w+ hook \w+ priority [^;]+; policy accept;")
# https://github.com/containernetworking/plugins/tree/main/plugins/meta/portmap: one chain for each container, and those that
# all containers share. The last two hold rules of their own, the first ones only what leads to containers.
CNI = "CNI-"
CONTAINER = re.compile(r"CNI-(DN-|SN-)?[0-9a-f]{16,}")
ENTRIES = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SNAT")
SHARED = (*ENTRIES, "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ")
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
COMMENT = re.compile(r'name: \\?"([^"\\]*)\\?" id: \\?"([^"\\]*)')


def find_filters(machine):
    """Tables of nftables, chains of iptables, and tables that iptables made for us alone."""
    tables = nft_tables() or []
    found = []
    if machine.has_pods:
        existed = machine.was("nft_tables")
        ours = ["%s %s" % tuple(table) for table in machine.footprint["nft_tables"]]
        found += ["nft table " + table for table in tables if table in ours and table not in existed]
        shared = ["%s %s" % tuple(table) for table in machine.footprint["cni_tables"]]
        found += [item for table in tables if table in shared for item in _shared_table(machine, table, table in existed)]
        for program in iptables_programs():
            for table, (chains, _) in _going(machine, program).items():
                found += ["%s %s %s" % (program, table, chain) for chain in chains]
    return found + _bare(machine, tables)


def remove_filters(machine, _items):
    """iptables' first: its tables are bare only without our chains."""
    if machine.has_pods:
        for program in iptables_programs():
            for table, (chains, jumps) in _going(machine, program).items():
                if chains:
                    _remove_chains(machine, program, table, chains, jumps)
    for item in [item for item in find_filters(machine) if item.startswith("nft ")]:
        code, _, complaint = machine.run("nft", "delete", *item.split()[1:])
        if code:
            machine.failed(item, complaint)


# -- nftables ---------------------------------------------------------------------------------------------------------------------


def _shared_table(machine, table, existed):
    """The table of everybody's ports: the whole of it where only our pods have rules in it, else our pods' rules."""
    _, text, _ = machine.run("nft", "--handle", "list", "table", *table.split())
    ours, others, chain = [], 0, ""
    for line in text.splitlines():
        begin = re.match(r"\s*chain (\S+) \{", line)
        rule = re.search(r' comment "([^"]*)" # handle (\d+)$', line)
        if begin:
            chain = begin[1]
        elif rule and machine.pods.has_container(rule[1]):
            ours.append("nft rule %s %s handle %s" % (table, chain, rule[2]))
        elif rule:
            others += 1
    if not existed and not others and (ours or machine.pods.alone):
        return ["nft table " + table]
    machine.note("the nft table %s is not ours alone, and stays" % table)
    return ours


def _bare(machine, tables):
    """What iptables has made for its own use since our first change, and holds nothing any more: tables, chains of hooks."""
    recorded = machine.before is not None and machine.before.get("nft_chains") is not None
    found = []
    for table in tables:
        family, name = table.split()
        if family not in ("ip", "ip6") or name not in IPTABLES_TABLES:
            continue
        _, text, _ = machine.run("nft", "list", "table", family, name)
        chains = dict(re.findall(r"^\tchain (\S+) \{\n(.*?)^\t\}", text, re.MULTILINE | re.DOTALL))
        bare = [chain for chain, lines in chains.items() if HOOK.fullmatch(lines.strip())]
        if not recorded:
            if len(bare) == len(chains):
                machine.note("the table %s of iptables is empty, and stays: nobody has written down whether it was there" % table)
        elif table not in machine.was("nft_tables"):
            # a table with somebody's chain in it stays whole
            found += ["nft table " + table] if len(bare) == len(chains) else []
        else:
            known = machine.was("nft_chains")
            found += ["nft chain %s %s" % (table, chain) for chain in bare if "%s %s" % (table, chain) not in known]
    return found


# -- iptables ---------------------------------------------------------------------------------------------------------------------


def _saved(machine, program):
    """{table: (chains whose names begin like ours, all rules)}; a rule is the chain it is in, the one it leads to, and its text."""
    code, text, _ = machine.run(program)
    if code:
        return {}
    prefixes = tuple(machine.footprint["chains"])
    tables = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            tables[table] = ([], [])
        elif line.startswith(":") and line[1:].startswith(prefixes):
            tables[table][0].append(line[1:].split()[0])
        elif line.startswith("-A "):
            target = re.search(r" (?:-j|-g) (\S+)", re.sub(r'"(\\.|[^"\\])*"', '""', line))
            tables[table][1].append((line.split()[1], target[1] if target else "", line))
    return tables


def _going(machine, program):
    """{table: (chains that go, rules of other chains that lead to them)}."""
    found = {}
    for table, (chains, rules) in _saved(machine, program).items():
        known = _known(machine, program, table)
        proved = _proved(machine, [chain for chain in chains if chain.startswith(CNI)], rules)
        going = [chain for chain in chains if chain not in known and (chain in proved or not chain.startswith(CNI))]
        for chain in chains:
            if chain not in going:
                why = "was there before us" if chain in known else "is not proved to be of our pods"
                machine.note("the chain %s of %s's table %s %s, and stays" % (chain, program[: -len("-save")], table, why))
        found[table] = (going, [line for chain, target, line in rules if target in going and chain not in going])
    return found


def _known(machine, program, table):
    """Chains that were there before us. A record of an older version tells of those in nftables only."""
    known = {line.split()[1] for line in machine.was("chains").get(program, ()) if line.split()[0] == table}
    if not program.endswith("-legacy-save"):
        family = "ip6" if program.startswith("ip6") else "ip"
        rows = [row.split() for row in machine.was("nft_chains")]
        known |= {row[2] for row in rows if row[:2] == [family, table]}
    return known


def _proved(machine, chains, rules):
    """Chains of the CNI plugins that are our pods': by the comments of their rules, by their names, by who leads to them."""
    said = {chain: [] for chain in chains}
    for chain, target, line in rules:
        comment = COMMENT.search(line)
        if comment:
            for name in {chain, target} & said.keys():
                said[name].append(machine.pods.is_ours(*comment.groups()))
    ours = {
        chain
        for chain in chains
        if CONTAINER.fullmatch(chain) and (all(said[chain]) if said[chain] else machine.pods.has_chain(chain))
    }
    # what all containers share is ours where nobody else's leads to it, or through it
    used = any(
        (chain in ENTRIES and target not in ours) or (target in SHARED and chain not in (*ours, *SHARED, *HOOKS))
        for chain, target, _ in rules
    )
    return ours | {chain for chain in chains if chain in SHARED and not used and (ours or machine.pods.alone)}


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
