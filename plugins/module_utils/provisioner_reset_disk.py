# Apache-2.0 (see LICENSE)
"""What of ours is on a node's disks and in its kernel's settings: files, data, users, kernel parameters and modules, directories.

What was there before us stays, by the record of the first change (provisioner_before). Nothing is ever deleted through a
mount: a volume that could not be unmounted keeps its content.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat

from ansible.module_utils.provisioner_before import BEFORE, below, mount_points, read_lines, read_sysctl, sysctl_path
from ansible.module_utils.provisioner_reset_running import others_mounts

# sysusers.d gives them this; a user of the same name without it is somebody's own.
USER_TITLE = "Kubernetes component"
# The name of a file that is about to be put in another one's place (mkstemp(3), by write_atomic).
TEMPORARY = re.compile(r"\.provisioner-[a-z0-9_]{8}")
LOGIND = "/etc/systemd/logind.conf.d/99-kubelet.conf"
# Of every system: never taken for ours where nobody has written down what was there before.
STANDARD = (
    *("/etc", "/etc/modules-load.d", "/etc/sysctl.d", "/etc/systemd", "/etc/systemd/system", "/opt", "/run", "/run/netns"),
    *("/usr", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/var", "/var/lib", "/var/log"),
)


# -- files ------------------------------------------------------------------------------------------------------------------------


def find_files(machine):
    """Files that we, or a component, have placed; but for the marker, which goes last. Unit files go with their units."""
    found = []
    existed = set(machine.was("files"))
    for part in machine.parts:
        for path in part["files"]:
            if path in (machine.footprint["marker"], BEFORE) or not os.path.lexists(path) or path.endswith(".service"):
                continue
            if path in existed:
                machine.note("%s was there before us, and stays (with our content, where we have written it)" % path)
            else:
                found.append(path)
    for directory in machine.footprint["directories"]:
        # a run that was killed may have left a file that it was about to put in place
        if os.path.isdir(directory):
            found += [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if TEMPORARY.fullmatch(name)]
    return found


def remove_files(machine, items):
    """Unlink them; a directory in a file's place is somebody's."""
    for path in items:
        try:
            os.unlink(path)
        except OSError as error:
            machine.failed(path, error.strerror)
    if LOGIND in items:
        # as the kubelet does when it has written the file
        machine.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "systemd-logind.service")


# -- data -------------------------------------------------------------------------------------------------------------------------


def find_data(machine):
    """Data directories, or the entries of one that was there before us or is a mount point."""
    found = machine.pods.results()
    points, others = set(mount_points()), others_mounts(machine)
    for part in machine.parts:
        for path in part["data"]:
            if not os.path.lexists(path) or below(path, found):
                continue
            if _stays(machine, path, points):
                for name in _entries(machine, path, points):
                    found += _around(os.path.join(path, name), others)
                if _wrong_mode(machine, path):
                    found.append(path)
            else:
                found += _around(path, others)
    return found


def _around(path, others):
    """The path; where somebody has mounted something below it, all that is beside that."""
    if path in others:
        return []
    if not any(point.startswith(path + "/") for point in others):
        return [path]
    return [item for name in sorted(os.listdir(path)) for item in _around(os.path.join(path, name), others)]


def _stays(machine, path, points):
    """Whether the directory itself is not ours to remove; that of our own record goes with the record."""
    return path in machine.was("directories") or path in points or os.path.islink(path) or path == os.path.dirname(BEFORE)


def _entries(machine, path, points):
    known = machine.was("directories").get(path, {}).get("entries", ())
    keep = {*known, "lost+found"} if path in points or known else set()
    if path == os.path.dirname(BEFORE):
        keep = {*keep, os.path.basename(BEFORE)}
    try:
        return sorted(set(os.listdir(path)) - keep)
    except OSError:
        return []


def remove_data(machine, items):
    """Delete trees, never across a mount point."""
    # a namespace or a chain that could not be removed is ours by this proof only, for the next run too
    proofs = machine.pods.results() if any(item.startswith(("/run/netns/", "ip", "nft ")) for item in machine.why) else ()
    for path in items:
        if path in proofs:
            machine.failed(path, "kept, for it proves whose the network is that could not be removed")
        elif path in machine.was("directories"):
            _restore_mode(machine, path)
        else:
            delete_tree(machine, path)


def delete_tree(machine, path):
    """Delete a file or a tree that holds no mount point."""
    held = [point for point in mount_points() if point == path or point.startswith(path + "/")]
    if held:
        machine.failed(path, "%s is still mounted, and nothing is deleted through a mount" % held[0])
        return
    # rm(1): a tree of a hundred thousand files in seconds, and of any depth; it stays on its file system
    code, _, complaint = machine.run("rm", "-rf", "--one-file-system", "--", path, seconds=600)
    if code:
        machine.failed(path, complaint)


# -- directories ------------------------------------------------------------------------------------------------------------------


def find_directories(machine):
    """Directories that hold nothing any more and were not there before us, and those whose mode or owner changed."""
    found, gone = [], set()
    points = set(mount_points())
    last = (os.path.dirname(machine.footprint["marker"]), os.path.dirname(BEFORE))
    for path in machine.footprint["directories"]:
        if not os.path.isdir(path) or os.path.islink(path) or path in points or path in last:
            continue
        if path in machine.was("directories"):
            if _wrong_mode(machine, path):
                found.append(path)
        elif (machine.before is not None or path not in STANDARD) and all(
            os.path.join(path, name) in gone for name in os.listdir(path)
        ):
            gone.add(path)
            found.append(path)
    return found


def remove_directories(machine, items):
    """The deepest first, as the footprint lists them."""
    for path in items:
        if path in machine.was("directories"):
            _restore_mode(machine, path)
        else:
            _remove_empty(machine, path)


def remove_last(machine, paths):
    """The directories of the marker and of the record, once these are gone. Returns those that should not be there."""
    left = []
    points = set(mount_points())
    for path in paths:
        if not os.path.isdir(path) or path in machine.was("directories") or path in points:
            continue
        if not os.listdir(path):
            _remove_empty(machine, path)
            left += [path] if os.path.isdir(path) else []
    return left


def note_kept(machine):
    """Say which directories stay because there is something of others in them."""
    ours = {*machine.footprint["directories"], machine.footprint["marker"], os.path.dirname(BEFORE)}
    for path in machine.footprint["directories"]:
        if path not in STANDARD and path not in machine.was("directories") and os.path.isdir(path):
            others = [name for name in sorted(os.listdir(path)) if os.path.join(path, name) not in ours]
            if others:
                machine.note("%s stays, for there is something of others in it: %s" % (path, ", ".join(others[:5])))


def _remove_empty(machine, path):
    try:
        os.rmdir(path)
    except OSError as error:
        machine.failed(path, error.strerror)


def _wrong_mode(machine, path):
    known = machine.was("directories").get(path)
    if known is None:
        return False
    status = os.stat(path)
    return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (known["mode"], known["uid"], known["gid"])


def _restore_mode(machine, path):
    known = machine.was("directories")[path]
    try:
        os.chown(path, known["uid"], known["gid"])
        os.chmod(path, known["mode"])
    except OSError as error:
        machine.failed(path, error.strerror)


# -- users ------------------------------------------------------------------------------------------------------------------------


def find_users(machine):
    """System users that we have made, and groups of theirs that have stayed behind."""
    found = []
    for name in machine.footprint["users"]:
        if name in machine.was("users"):
            continue
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            user = None
        if user is not None and user.pw_gecos == USER_TITLE:
            found.append(name)
        elif user is not None:
            machine.note("the user %s is not one that we make, and stays" % name)
        elif machine.before is not None and _group_exists(name):
            found.append(name)
    return found


def remove_users(machine, items):
    """userdel takes the group of the same name along, where the system is set up so."""
    for name in items:
        if _user_exists(name):
            code, _, complaint = machine.run("userdel", name)
            if code:
                machine.failed(name, complaint)
                continue
        if _group_exists(name):
            code, _, complaint = machine.run("groupdel", name)
            if code:
                machine.failed(name, complaint)


def _user_exists(name):
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _group_exists(name):
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


# -- kernel -----------------------------------------------------------------------------------------------------------------------


def find_sysctls(machine):
    """Kernel parameters that have our value, and had another one; what somebody has set since stays."""
    if machine.before is None:
        machine.note("nobody has written down what this machine was before its first change: kernel parameters stay as they are")
        return []
    found = []
    for name, ours in machine.footprint["sysctls"].items():
        before, now = machine.was("sysctls").get(name), read_sysctl(name)
        if before is not None and now is not None and now != before and (not ours or now == ours):
            found.append("%s = %s" % (name, now))
    return found


def remove_sysctls(machine, items):
    """Give them back the values they had; ip_forward first, for it sets others."""
    for _ in range(2):
        for item in sorted(items, key=lambda text: "ip_forward" not in text):
            name = item.partition(" ")[0]
            try:
                with open(sysctl_path(name), "w", encoding="ascii") as file:
                    file.write(machine.was("sysctls")[name])
            except OSError as error:
                machine.failed(item, error.strerror)
        # what ip_forward has changed along with itself
        items = find_sysctls(machine)


def find_modules(machine):
    """Kernel modules that we have loaded. In a container, they are the host's."""
    if machine.before is None or os.path.exists("/run/systemd/container"):
        return []
    loaded = {line.split()[0] for line in read_lines("/proc/modules")}
    return [name for name in machine.footprint["modules"] if name in loaded and name not in machine.was("modules")]


def remove_modules(machine, items):
    """Quietly: one that somebody uses by now stays."""
    for name in items:
        if machine.run("modprobe", "--remove", "--quiet", name)[0]:
            machine.note("the kernel module %s is in use, and stays" % name)
