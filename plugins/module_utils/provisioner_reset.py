# Apache-2.0 (see LICENSE)
"""How a node becomes again what it was: whose machine it is, the order of removal, and a second look at the end.

Each aspect of a machine is a pair: ``find`` names what of ours is there, ``remove`` takes it away. So the same code tells what
would go (check mode), takes it, and looks again: what it still finds then is what the user is told. No aspect's failure stops
another one.

Runs on the node's own Python (3.9 and newer) with the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time

from ansible.module_utils import provisioner_reset_disk as disk
from ansible.module_utils import provisioner_reset_filters as filters
from ansible.module_utils import provisioner_reset_network as network
from ansible.module_utils import provisioner_reset_running as running
from ansible.module_utils.provisioner_before import BEFORE, read_before
from ansible.module_utils.provisioner_reset_pods import Pods

# The order: nothing runs any more before its mounts go, nothing is mounted below what is deleted. Certificates of a CA tell
# whose a machine is that has lost its marker.
ASPECTS = (
    ("units", running.find_units, running.remove_units),
    ("processes", running.find_processes, running.remove_processes),
    ("unit files", running.find_unit_files, running.remove_unit_files),
    ("mounts", running.find_mounts, running.remove_mounts),
    ("network namespaces", network.find_namespaces, network.remove_namespaces),
    ("interfaces", network.find_interfaces, network.remove_interfaces),
    ("routes", network.find_routes, network.remove_routes),
    ("addresses", network.find_addresses, network.remove_addresses),
    ("packet filter", filters.find_filters, filters.remove_filters),
    ("cgroups", running.find_cgroups, running.remove_cgroups),
    ("files", disk.find_files, disk.remove_files),
    ("data", disk.find_data, disk.remove_data),
    ("users", disk.find_users, disk.remove_users),
    ("kernel parameters", disk.find_sysctls, disk.remove_sysctls),
    ("kernel modules", disk.find_modules, disk.remove_modules),
    ("directories", disk.find_directories, disk.remove_directories),
)
AUTHORITIES = ("/etc/kubernetes/pki/ca.crt", "/etc/etcd/pki/ca.crt")
# After the deadline, for the last look.
LOOK_SECONDS = 20


class DeadlineError(Exception):
    """The time is up."""


class NotOursError(Exception):
    """The machine belongs to somebody else; nothing was changed."""


class Machine:
    """What is to be removed from this machine, and what was found out about it.

    Args:
        footprint: everything that may be ours, as the driver has computed it.
        seconds: how long it may all take.
    """

    def __init__(self, footprint, seconds):
        self.footprint = footprint
        self.before = read_before()
        self.deadline = time.monotonic() + seconds
        self.notes = []
        self.why = {}
        self.foreign = [part for part in footprint["parts"] if any(running.is_foreign(unit) for unit in part["units"])]
        for part in self.foreign:
            self.note("%s: the unit of that name is not ours, and neither is what belongs to it" % part["role"])
        for part in self.parts:
            if running.makes_mounts_for_others(self, part):
                self.foreign.append(part)
                self.note("%s: nothing of ours is installed, and what is mounted there is somebody else's" % part["role"])
        if not self.has_pods:
            self.note("there are no pods of ours here: their interfaces, rules and control groups are somebody else's, and stay")
        # looked at before anything is removed: the evidence goes, and the last look needs it too
        self.pods = Pods(self)

    @property
    def parts(self):
        """Parts that are ours; where somebody else's unit has the name of ours, the whole part is taken for theirs."""
        return [part for part in self.footprint["parts"] if part not in self.foreign]

    def is_ours(self, role):
        """Whether what belongs to a role is ours, where it is there."""
        return not any(part["role"] == role for part in self.foreign)

    @property
    def has_pods(self):
        """Whether pods that are here may be ours."""
        return all(self.is_ours(role) for role in self.footprint["pods"])

    def was(self, kind):
        """What of a kind was there before us; empty where nobody has written it down."""
        return (self.before or {}).get(kind) or {}

    def note(self, text):
        """Something the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def left(self):
        """Seconds until the deadline.

        Raises:
            DeadlineError: there are none.
        """
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise DeadlineError
        return seconds

    def run(self, *command, text="", seconds=30.0):
        """Run a program; its exit code (127: there is none, 124: it took too long), output and complaint."""
        try:
            done = subprocess.run(
                command,
                check=False,
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=min(seconds, self.left()),
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            return 127, "", "%s: there is no such program" % command[0]
        except subprocess.TimeoutExpired:
            return 124, "", "%s: took too long" % " ".join(command[:3])
        return done.returncode, done.stdout, done.stderr.strip()

    def failed(self, item, reason):
        """Remember why something could not be removed."""
        self.why[item] = str(reason).strip().splitlines()[-1] if str(reason).strip() else "no reason given"


def owner_of(footprint, cluster_id, authorities):
    """What says that this machine is of the cluster: "marker", "record", "units", or "" where nothing of ours is there.

    Args:
        cluster_id: of the cluster that may be removed; empty where the driver has no CA any more.
        authorities: SHA-256 of the certificates of its CAs.

    Raises:
        NotOursError: it is another one's.
    """
    for path, evidence in ((footprint["marker"], "marker"), (BEFORE, "record")):
        found = _read_json(path)
        if not isinstance(found, dict) or "id" not in found:
            continue
        if not cluster_id or found["id"] != cluster_id:
            named = (found.get("cluster") or "of unknown name", found["id"], cluster_id or "not known")
            raise NotOursError("belongs to another cluster: %s (id %s); this one's id is %s" % named)
        return evidence
    if not (os.path.lexists(footprint["marker"]) or os.path.lexists(BEFORE) or any(_own_units(footprint))):
        return ""
    for path in AUTHORITIES:
        try:
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError:
            continue
        if digest not in authorities:
            raise NotOursError("has no marker that can be read, and %s is the certificate of another cluster" % path)
    return "units"


def _own_units(footprint):
    return [unit for part in footprint["parts"] for unit in part["units"] if running.is_placed(unit)]


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def look(machine):
    """Everything of ours that is there, by aspect."""
    found = {}
    for name, find, _ in ASPECTS:
        try:
            items = find(machine)
        except DeadlineError:
            raise
        except Exception as error:
            # one look that fails must not hide what the others see
            items = []
            machine.note("%s cannot be looked at: %s: %s" % (name, type(error).__name__, error))
        if items:
            found[name] = items
    return found


def reset(machine):
    """Remove everything; what was there, and what still is, by aspect. The machine's name of its cluster goes last."""
    found = look(machine)
    late = ""
    for name, find, remove in ASPECTS:
        try:
            items = find(machine)
            # what appeared meanwhile: the directories that are empty now, above all
            found[name] = list(dict.fromkeys([*found.get(name, ()), *items]))
            if items:
                remove(machine, items)
        except DeadlineError:
            late = late or name
            break
        except Exception as error:
            machine.failed(name, "%s: %s" % (type(error).__name__, error))
    machine.deadline = time.monotonic() + LOOK_SECONDS
    try:
        left = look(machine)
    except DeadlineError:
        left = {"look": ["the last look took longer than %d s" % LOOK_SECONDS]}
    # modules in use are somebody's by now, and do no harm
    left.pop("kernel modules", None)
    if not left and not late:
        disk.note_kept(machine)
        left = _forget(machine)
    return {name: items for name, items in found.items() if items}, left, late


def _forget(machine):
    """The marker, and then the record of what was before, so that a run that is killed in between still knows it."""
    left = []
    for path in (machine.footprint["marker"], BEFORE):
        try:
            if os.path.lexists(path):
                os.unlink(path)
        except OSError as error:
            machine.failed(path, error.strerror)
            left.append(path)
    directories = [os.path.dirname(machine.footprint["marker"]), os.path.dirname(BEFORE)]
    left += disk.remove_last(machine, directories)
    return {"files": left} if left else {}
