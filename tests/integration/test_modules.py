"""The project's Ansible modules against a real machine: idempotent, honest in check mode, atomic, and silent about secrets.

Each test is one run of Ansible wherever it can be: a list of steps, and what each has returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ansible_runner
import pytest

from provisioner import inventory, lab, runner
from provisioner.config import Cluster
from provisioner.desired import Artifact, File, HostState, Shipment, Unit, save_host, save_shipment
from provisioner.errors import LabError
from provisioner.lab import host as lab_host
from provisioner.load import load
from provisioner.plan import difference
from provisioner.workspace import Workspace

REQUIRED = os.environ.get("PROVISIONER_REQUIRE_LAB") == "1"


def _why_not() -> str:
    try:
        lab_host.check()
    except LabError as error:
        return f"{error.message}; {error.hint}"
    return ""


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_why_not()) and not REQUIRED, reason=_why_not() or "the host can run lab machines"),
]

# Roles whose files the tests place: `base` also makes users and sets the kernel, as in the project's own roles.
ROLE, BASE = "etcd", "base"
SECRET = "dGhpcyBsaW5lIGlzIGEgc2VjcmV0IGFuZCBtdXN0IGJlIGluIG5vIGxvZw"  # noqa: S105 - a made-up one


@dataclass(frozen=True)
class Outcome:
    """What a step returned."""

    ok: bool
    result: Mapping[str, Any]
    state: HostState

    @property
    def changed(self) -> bool:
        return bool(self.result["changed"])

    @property
    def changes(self) -> list[str]:
        assert self.ok, self.result
        found: list[str] = self.result["changes"]
        assert bool(found) == self.changed
        return found

    @property
    def message(self) -> str:
        assert not self.ok, self.result
        return str(self.result["msg"])

    @property
    def text(self) -> str:
        return str(self.result["stdout"])

    @property
    def differs(self) -> list[tuple[str, str, str]]:
        """What `plan` says of the machine, by the state that was read."""
        assert self.ok, self.result
        assert not self.changed
        return [(change.kind, change.what, change.action) for change in difference(self.state, self.result["state"])]


@dataclass(frozen=True)
class Step:
    """One task: a module for a desired state, or a shell command."""

    module: str
    options: Mapping[str, Any]
    state: HostState
    check: bool = False
    shipment: Shipment = field(default_factory=Shipment)


def state_of(**fields: Any) -> HostState:
    return HostState(host="cp-1", **{"variables": {"base_packages": []}, **fields})


def look(state: HostState) -> Step:
    return Step("host_state", {}, state)


def apply(state: HostState, *, role: str = ROLE, check: bool = False, **options: object) -> Step:
    return Step("role_state", {"role": role, **options}, state, check)


def shell(command: str, stdin: str = "") -> Step:
    return Step(
        "ansible.builtin.shell", {"cmd": command, "executable": "/bin/bash", "stdin": stdin, "stdin_add_newline": False}, state_of()
    )


@dataclass(frozen=True)
class Target:
    """The machine."""

    cluster: Cluster
    workspace: Workspace
    log: Path

    def run(self, *steps: Step) -> list[Outcome]:
        """Run the steps in order, going on after a failure, as tasks of one play."""
        tasks = []
        for number, step in enumerate(steps):
            directory = self.workspace.rendered / str(number)
            save_host(directory, step.state)
            save_shipment(directory, step.state.host, step.shipment)
            tasks.append(
                {
                    "name": f"Step {number}",
                    step.module: dict(step.options),
                    "check_mode": step.check,
                    "diff": True,
                    "ignore_errors": True,
                    "vars": {"rendered_dir": str(directory)},
                }
            )
        path = inventory.write(self.cluster, self.workspace, {"cp-1": state_of()}, {"cp-1": "/usr/bin/python3"})
        found: list[Outcome] = []

        def take(event: Mapping[str, Any]) -> bool:
            if event["event"] in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
                found.append(Outcome(event["event"] == "runner_on_ok", event["event_data"]["res"], steps[len(found)].state))
            return True

        with runner.control_sockets() as sockets:
            ansible_runner.run(
                private_data_dir=str(self.log),
                playbook=[{"hosts": "all", "gather_facts": False, "tasks": tasks}],
                inventory=str(path),
                envvars=runner._environment(self.log, sockets),
                event_handler=take,
                # without one of ours, ansible-runner takes Ctrl-C and SIGTERM over, for the rest of this process' life
                cancel_callback=lambda: False,
                suppress_env_files=True,
                quiet=True,
            )
        assert len(found) == len(steps), found
        for step, outcome in zip(steps, found, strict=True):
            assert outcome.ok or "MODULE FAILURE" not in outcome.message, outcome.result
            assert outcome.ok or not step.module.endswith("shell"), outcome.result
            assert "Traceback" not in json.dumps(outcome.result, default=str), outcome.result
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One lab machine, gone at the end."""
    name = f"modules-{os.getpid()}"
    directory = tmp_path_factory.mktemp("modules") / "workspace" / name
    try:
        path = lab.up(name, 1, 0, directory=directory)
        workspace = Workspace.of(path, name)
        workspace.create()
        yield Target(load(path), workspace, tmp_path_factory.mktemp("log"))
    finally:
        lab.down(name)


def text_file(path: str, text: str = "a: 1\n", **fields: Any) -> File:
    return File(fields.pop("role", ROLE), path, text.encode(), **fields)


def unit_of(
    name: str, value: str, start: str = "/bin/sleep infinity", *, reload_on: tuple[str, ...] = (), before: str = "/bin/true"
) -> tuple[File, Unit]:
    """A service and its unit file, in the form of the project's own."""
    text = f"""\
[Unit]
Description=A service of the tests
StartLimitIntervalSec=0
[Service]
Environment=PROVISIONER_HASH={value}
ExecStartPre={before}
ExecStart={start}
ExecReload=/bin/true
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
    return text_file(f"/etc/systemd/system/{name}", text), Unit(ROLE, name, value, reload_on)


# -- files ------------------------------------------------------------------------------------------------------------------------


def test_files_are_placed_once_and_kept_right(machine: Target) -> None:
    config = text_file("/etc/pv/deep/config", mode=0o640, owner="nobody", group="nogroup")
    state = state_of(files=(config, text_file("/etc/pv/script", "#!/bin/sh\n", mode=0o755)))
    break_it = "chmod 0600 script; chown root: deep/config; ln script link; echo more >>script"
    checked, empty, first, modes, second, before, _, broken, shown, kept, mended, after, old, left = machine.run(
        apply(state, check=True),
        shell("ls /etc/pv 2>/dev/null || true"),
        apply(state),
        shell("cd /etc/pv; stat -c '%a %U:%G' . deep deep/config script"),
        apply(state),
        look(state),
        shell(f"cd /etc/pv; {break_it}"),
        look(state),
        apply(state, check=True),
        shell("tail -n 1 /etc/pv/script"),
        apply(state),
        look(state),
        shell("cat /etc/pv/link"),
        shell("find /etc/pv -name '.provisioner-*'"),
    )
    assert empty.text == "", "check mode changes nothing"
    assert checked.changes == first.changes == ["placed /etc/pv/deep/config", "placed /etc/pv/script"]
    assert modes.text.split("\n") == ["755 root:root", "755 root:root", "640 nobody:nogroup", "755 root:root"]
    assert second.changes == []
    assert before.differs == []
    assert broken.differs == [
        ("file", "/etc/pv/deep/config", "change owner root:root -> nobody:nogroup"),
        ("file", "/etc/pv/script", "change content, mode 0600 -> 0755"),
    ]
    assert "-more" in json.dumps(shown.result["diff"])
    assert kept.text == "more"
    assert mended.changes == first.changes
    assert after.differs == []
    assert old.text == "#!/bin/sh\nmore", "replaced, never written into: who has the old file keeps the old file"
    assert left.text == ""


def test_a_file_of_birth_is_written_once(machine: Target) -> None:
    birth = text_file("/etc/pv/birth", "first\n", once=True)
    born, grown = state_of(files=(birth,)), state_of(files=(replace(birth, content=b"second\n"),))
    first, seen, second, text = machine.run(apply(born), look(grown), apply(grown), shell("cat /etc/pv/birth"))
    assert first.changes == ["placed /etc/pv/birth"]
    assert seen.differs == []
    assert second.changes == []
    assert text.text == "first"


def test_what_stands_in_a_files_place(machine: Target) -> None:
    """A link is replaced and not followed, so that it shows and changes nothing else; a directory is somebody's, and refused."""
    links = {"linked": "/etc/pv/target", "dangling": "/nowhere", "shown": "/etc/shadow"}
    prepare = "; ".join(f"ln -sf {target} /etc/pv/{name}" for name, target in links.items())
    linked = state_of(files=tuple(text_file(f"/etc/pv/{name}") for name in links))
    _, seen, checked, done, after, target, taken, owner = machine.run(
        shell(f"mkdir -p /etc/pv/taken; echo kept >/etc/pv/target; {prepare}"),
        look(linked),
        apply(linked, check=True),
        apply(linked),
        look(linked),
        shell("cat /etc/pv/target; grep -o ^root: /etc/shadow"),
        apply(state_of(files=(text_file("/etc/pv/taken"),))),
        apply(state_of(files=(text_file("/etc/pv/owned", owner="nosuchuser"),))),
    )
    action = "change content, mode 0777 -> 0644"
    assert seen.differs == [("file", f"/etc/pv/{name}", action) for name in links]
    for outcome in (seen, checked, done):
        assert "root:" not in json.dumps(outcome.result["state"]["files"] if outcome is seen else outcome.result["diff"])
    assert len(done.changes) == 3
    assert after.differs == []
    assert target.text == "kept\nroot:"
    assert "/etc/pv/taken: cannot be written" in taken.message
    assert "/etc/pv/owned: cannot be written" in owner.message
    assert "nosuchuser" in owner.message


def test_what_is_no_longer_wanted_goes(machine: Target) -> None:
    paths = ((ROLE, "/etc/pv/old"), (ROLE, "/etc/pv/tree"), (ROLE, "/etc/pv/never"), ("kubelet", "/etc/pv/others"))
    state = state_of(absent=paths)
    _, seen, checked, still, done, gone, last, again = machine.run(
        shell("mkdir -p /etc/pv/tree/inner; touch /etc/pv/old /etc/pv/tree/inner/file /etc/pv/others"),
        look(state),
        apply(state, check=True),
        shell("ls -d /etc/pv/old /etc/pv/tree"),
        apply(state),
        shell("ls -d /etc/pv/old /etc/pv/tree /etc/pv/others 2>/dev/null || true"),
        apply(state_of(), finally_remove="/etc/pv/others"),
        apply(state_of(), finally_remove="/etc/pv/others"),
    )
    assert [what for _, what, _ in seen.differs] == ["/etc/pv/old", "/etc/pv/tree", "/etc/pv/others"]
    assert checked.changes == done.changes == ["removed /etc/pv/old", "removed /etc/pv/tree"]
    assert still.text.split() == ["/etc/pv/old", "/etc/pv/tree"]
    assert gone.text == "/etc/pv/others", "another role's is left to it"
    assert last.changes == ["removed /etc/pv/others"]
    assert again.changes == []


def test_what_is_ours_under_a_pattern_goes_and_the_users_stays(machine: Target) -> None:
    kept = text_file("/etc/pv/certs.d/new.example/hosts.toml", "# Placed by provisioner; wanted still\n")
    state = state_of(files=(kept,), swept=((ROLE, "/etc/pv/certs.d/*/hosts.toml"), (ROLE, "/etc/pv/certs.d/*/provisioner-ca.crt")))
    _, seen, checked, still, done, left, directories, again = machine.run(
        shell(
            "cd /etc/pv && mkdir -p certs.d/{old,users,new}.example && cd certs.d"
            " && echo '# Placed by provisioner: a registry' >old.example/hosts.toml && echo pem >old.example/provisioner-ca.crt"
            " && echo '# mine' | tee users.example/hosts.toml >users.example/ca.crt"
            " && mkdir -p link.example tree.example/hosts.toml && ln -s /nowhere link.example/hosts.toml"
        ),
        look(state),
        apply(state, check=True),
        shell("cd /etc/pv/certs.d && ls -d */hosts.toml */*.crt"),
        apply(state),
        shell("cd /etc/pv/certs.d && ls -d */hosts.toml */*.crt"),
        shell("ls /etc/pv/certs.d"),
        apply(state),
    )
    ours = ["/etc/pv/certs.d/old.example/hosts.toml", "/etc/pv/certs.d/old.example/provisioner-ca.crt"]
    assert [what for _, what, action in seen.differs if action == "remove"] == ours
    assert checked.changes == done.changes == [f"placed {kept.path}", *(f"removed {path}" for path in ours)]
    users = ["link.example/hosts.toml", "tree.example/hosts.toml", "users.example/ca.crt", "users.example/hosts.toml"]
    assert sorted(still.text.split()) == sorted([*users, "old.example/hosts.toml", "old.example/provisioner-ca.crt"])
    assert sorted(left.text.split()) == sorted([*users, "new.example/hosts.toml"])
    # containerd would look into an empty one, and not into _default
    assert directories.text.split() == ["link.example", "new.example", "tree.example", "users.example"]
    assert again.changes == []


def test_what_a_unit_has_made_and_would_keep_goes_before_it_is_started(machine: Target) -> None:
    (_, checked, there, done, gone, again) = machine.run(
        shell("mkdir -p /etc/pv; touch /etc/pv/identity; ln -sf /etc/pv/identity /etc/pv/current"),
        apply(state_of(), check=True, forget=["/etc/pv/current", "/etc/pv/never"]),
        shell("ls /etc/pv/current"),
        apply(state_of(), forget=["/etc/pv/current", "/etc/pv/never"]),
        shell("ls /etc/pv/current /etc/pv/identity 2>/dev/null || true"),
        apply(state_of(), forget=["/etc/pv/current", "/etc/pv/never"]),
    )
    assert checked.changes == done.changes == ["removed /etc/pv/current"]
    assert there.text == "/etc/pv/current"
    assert gone.text == "/etc/pv/identity", "the link goes, not what it leads to"
    assert again.changes == []


def test_a_secret_is_in_no_log(machine: Target) -> None:
    key = text_file("/etc/pv/key", f"key: {SECRET}\n", mode=0o600, secret=True)
    state, other = state_of(files=(key,)), state_of(files=(replace(key, content=f"key: {SECRET[::-1]}\n".encode()),))
    checked, first, seen, changed = machine.run(apply(state, check=True), apply(state), look(other), apply(other))
    assert all(outcome.changed for outcome in (checked, first, changed))
    assert seen.differs == [("file", "/etc/pv/key", "change content")]
    assert "content" not in seen.result["state"]["files"]["/etc/pv/key"]
    # a module's options are in the machine's journal, and in the run's log: the payload is in neither
    (journal,) = machine.run(shell("journalctl --no-pager --output=cat"))
    logged = "\n".join(path.read_text(errors="replace") for path in machine.log.rglob("*") if path.is_file())
    assert "Invoked with role=etcd" in journal.text
    assert "role_state" in logged
    results = json.dumps([outcome.result for outcome in (checked, first, seen, changed)])
    for text in (journal.text, logged, results):
        assert SECRET not in text
        assert SECRET[::-1] not in text
        assert "H4sI" not in text, "the beginning of every gzipped payload in base64"
    assert re.search(r"payload=(NOT_LOGGING_PARAMETER|VALUE_SPECIFIED)", journal.text)


# -- units ------------------------------------------------------------------------------------------------------------------------


def test_a_unit_runs_what_is_on_the_disk(machine: Target) -> None:
    name = "pv-one.service"
    pairs = [unit_of(name, str(number) * 32) for number in (1, 2, 3)]
    first, second, third = (state_of(files=(file,), units=(unit,)) for file, unit in pairs)
    until = {"unit": name, "seconds": 60}
    pid = shell(f"systemctl show --property=MainPID --value {name}")
    path = f"/etc/systemd/system/{name}"
    # a run was killed between the third file and the restart: the file is right, and the process is not
    killed = shell(f"cat >{path}", stdin=pairs[2][0].content.decode())
    found = machine.run(
        look(first),
        apply(first, check=True),
        shell(f"systemctl is-active {name} || true"),
        apply(first, until=until),
        look(first),
        pid,
        apply(first, until=until),
        pid,
        look(second),
        apply(second, until=until),
        look(second),
        pid,
        killed,
        look(third),
        apply(third, until=until),
        look(third),
        pid,
        shell(f"systemctl disable -q --now {name}"),
        look(third),
        apply(third, until=until),
        look(third),
    )
    new, checked, inactive, started, right, pid_1, again, pid_2, older, restarted, right_2, pid_3, *rest = found
    _, lost, taken_up, right_3, pid_4, _, stopped, back, right_4 = rest
    assert new.differs == [("file", path, "create"), ("unit", name, "start")]
    assert checked.changed
    assert inactive.text == "inactive"
    assert set(started.changes) == {f"placed {path}", f"{name}: enable", f"{name}: start"}
    assert right.differs == right_2.differs == right_3.differs == right_4.differs == []
    assert again.changes == []
    assert pid_1.text == pid_2.text
    assert older.differs[1:] == [("unit", name, "restart (runs an older configuration)")]
    assert restarted.changes == [f"placed {path}", f"{name}: restart"]
    assert lost.differs == [("unit", name, "restart (runs an older configuration)")]
    assert taken_up.changes == [f"{name}: restart"]
    assert len({pid_1.text, pid_3.text, pid_4.text}) == 3
    assert stopped.differs == [("unit", name, "start (is inactive/dead)")]
    assert back.changes == [f"{name}: enable", f"{name}: start"]


def test_an_edit_by_hand_is_undone_in_the_process_too(machine: Target) -> None:
    """Whoever edits a file may restart the unit as well; its hash says nothing about that."""
    name, path = "pv-five.service", "/etc/pv/read"
    file, unit = unit_of(name, "1" * 32)
    state = state_of(files=(text_file(path), file), units=(replace(unit, reads=(path, file.path)),))
    until = {"unit": name, "seconds": 60}
    restart = f"restart (takes in {path})"
    # an edit that keeps the old time stamp, as `cp -p` does
    edit = f"cp -p {path} /run/pv-stamp; echo more >>{path}; touch -r /run/pv-stamp {path}; systemctl restart {name}"
    started, right, _, edited, mended, right_2, _, lost, again, right_3, _, loose, owned, right_4 = machine.run(
        apply(state, until=until),
        look(state),
        shell(edit),
        look(state),
        apply(state, until=until),
        look(state),
        shell(f"touch {path}"),  # as if written by a run that was killed before the restart
        look(state),
        apply(state, until=until),
        look(state),
        shell(f"chmod 0600 {path}"),
        look(state),
        apply(state, until=until),
        look(state),
    )
    assert started.ok
    assert right.differs == right_2.differs == right_3.differs == right_4.differs == []
    assert edited.differs == [("file", path, "change content"), ("unit", name, restart)]
    assert mended.changes == [f"placed {path}", f"{name}: restart"]
    assert lost.differs == [("unit", name, "restart (a file that it reads was written after its start)")]
    assert again.changes == [f"{name}: restart"]
    # a mode is put right without a restart: what was read was right
    assert loose.differs == [("file", path, "change mode 0600 -> 0644")]
    assert owned.changes == [f"placed {path}"]


def test_a_unit_that_takes_its_file_by_a_reload_is_not_restarted(machine: Target) -> None:
    name, path = "pv-two.service", "/etc/pv/reloaded"
    file, unit = unit_of(name, "1" * 32, reload_on=(path,))
    config = text_file(path)
    first = state_of(files=(config, file), units=(unit,))
    second = state_of(files=(replace(config, content=b"a: 2\n"), file), units=(unit,))
    pid = shell(f"systemctl show --property=MainPID --value {name}")
    started, right, pid_1, changed, pid_2, right_2, _, lost, again, pid_3, right_3 = machine.run(
        apply(first, until={"unit": name, "seconds": 60}),
        look(first),
        pid,
        apply(second),
        pid,
        look(second),
        shell(f"touch {path}"),  # as if written by a run that was killed before the reload
        look(second),
        apply(second),
        pid,
        look(second),
    )
    assert started.ok
    assert right.differs == right_2.differs == right_3.differs == []
    assert changed.changes == [f"placed {path}", f"{name}: reload"]
    assert lost.differs == [("unit", name, "reload")]
    assert again.changes == [f"{name}: reload"]
    assert pid_1.text == pid_2.text == pid_3.text


def test_a_unit_that_is_no_longer_wanted_is_stopped_before_it_goes(machine: Target) -> None:
    name = "pv-gone.service"
    file, unit = unit_of(name, "1" * 32)
    look_at = shell(
        f"systemctl is-active {name}; systemctl show --property=LoadState --value {name}; "
        f"ls /etc/systemd/system/{name} /etc/systemd/system/multi-user.target.wants/{name} 2>/dev/null || true"
    )
    started, before, removed, after, again = machine.run(
        apply(state_of(files=(file,), units=(unit,)), until={"unit": name, "seconds": 60}),
        look_at,
        apply(state_of(absent=((ROLE, file.path),))),
        look_at,
        apply(state_of(absent=((ROLE, file.path),))),
    )
    assert started.changed
    assert before.text.split()[:2] == ["active", "loaded"]
    assert removed.changes == [f"removed {file.path}"]
    assert after.text.split() == ["inactive", "not-found"]
    assert again.changes == []


def test_a_unit_that_fails_is_told_with_its_journal(machine: Target) -> None:
    name = "pv-three.service"
    file, unit = unit_of(name, "1" * 32, before="/bin/sh -c 'echo out of cheese error; exit 3'")
    state, until = state_of(files=(file,), units=(unit,)), {"unit": name, "seconds": 3}
    failed, hopeless, later, checked, missing = machine.run(
        apply(state, until=until),
        apply(state, until={"unit": name, "seconds": 600, "url": "http://127.0.0.1:9/"}),
        apply(state, gate=False, until=until),
        apply(state, check=True, until=until),
        apply(state_of(units=(Unit(ROLE, "pv-missing.service", "1" * 32),))),
    )
    assert "not healthy within 3 s; last seen: pv-three.service is " in failed.message
    assert failed.result["unit"] == name
    assert any("out of cheese error" in line for line in failed.result["journal"])
    assert "not healthy: it ended 15 times in " in hopeless.message, "no use in waiting ten minutes"
    assert hopeless.result["journal"]
    assert later.ok, "the gate may be left for later"
    assert checked.ok, "check mode waits for nothing"
    assert "pv-missing.service" in missing.message


def test_a_gate_opens_for_health_and_tells_what_it_waited_for(machine: Target) -> None:
    name = "pv-four.service"
    file, unit = unit_of(name, "1" * 32, "/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory /etc/pv 18080")
    state = state_of(files=(text_file("/etc/pv/index.html"), file), units=(unit,))
    opened, nothing, path, refused, no_ca = machine.run(
        apply(state, until={"unit": name, "seconds": 60, "url": "http://127.0.0.1:18080/"}),
        apply(state, until={"unit": name, "seconds": 1, "url": "http://127.0.0.1:18080/nothing"}),
        apply(state, until={"unit": name, "seconds": 1, "path": "/run/pv-never"}),
        apply(state, until={"unit": name, "seconds": 1, "url": "http://127.0.0.1:9/readyz"}),
        apply(state, until={"unit": name, "seconds": 1, "url": "https://127.0.0.1:18080/", "ca": "/etc/ssl/none.crt"}),
    )
    assert opened.ok, opened.result
    assert "http://127.0.0.1:18080/nothing answers 404" in nothing.message
    assert "last seen: /run/pv-never does not exist yet" in path.message
    assert "last seen: http://127.0.0.1:9/readyz: " in refused.message
    assert "last seen: https://127.0.0.1:18080/: " in no_ca.message


# -- users and the kernel ---------------------------------------------------------------------------------------------------------


def test_users_and_kernel_parameters(machine: Target) -> None:
    (before,) = machine.run(shell("sysctl -n net.ipv4.ip_forward"))
    wanted = "0" if before.text == "1" else "1"
    users = text_file("/etc/sysusers.d/provisioner.conf", 'u pvtester - "A test" /\n', role=BASE)
    state = state_of(files=(users,), users=("pvtester",), sysctls=(("net.ipv4.ip_forward", wanted),))
    new, checked, still, done, user, again, right, _, others, broken = machine.run(
        look(state),
        apply(state, role=BASE, check=True),
        shell("sysctl -n net.ipv4.ip_forward"),
        apply(state, role=BASE),
        shell("getent passwd pvtester"),
        apply(state, role=BASE),
        look(state),
        shell(f"sysctl -q -w net.ipv4.ip_forward={before.text}"),
        apply(state, role=ROLE),
        apply(state_of(sysctls=(("net.no.such", "1"),)), role=BASE),
    )
    assert new.differs[1:] == [
        ("sysctl", "net.ipv4.ip_forward", f"set to {wanted} (is {before.text})"),
        ("user", "pvtester", "create"),
    ]
    assert still.text == before.text
    assert checked.changes == done.changes
    assert done.changes[1:] == ["created user pvtester", "set net.ipv4.ip_forward"]
    assert user.text.endswith("nologin")
    assert again.changes == []
    assert right.differs == []
    assert others.changes == [], "they are the role base's, and no other's"
    assert "net.no.such" in broken.message


# -- artifacts --------------------------------------------------------------------------------------------------------------------


def artifact_of(path: str, content: bytes) -> Artifact:
    return Artifact("artifacts", path, hashlib.sha256(content).hexdigest(), len(content), "")


def send(bundle: Path, artifacts: Sequence[Artifact], *, check: bool = False) -> Step:
    shipment = Shipment(tuple(artifacts), str(bundle), "none")
    return Step("place_artifacts", {"role": "artifacts"}, state_of(artifacts=tuple(artifacts)), check, shipment)


def test_artifacts_arrive_whole_or_not_at_all(machine: Target, tmp_path: Path) -> None:
    contents = {"/usr/local/bin/pv-a": os.urandom(3 << 20), "/opt/pv/b": b"small", "/opt/pv/empty": b""}
    artifacts = [artifact_of(path, content) for path, content in contents.items()]
    whole, short = tmp_path / "whole", tmp_path / "short"
    whole.write_bytes(b"".join(contents.values()))
    short.write_bytes(whole.read_bytes()[: 1 << 20])
    wrong = [artifact_of("/usr/local/bin/pv-a", b"x" * (3 << 20))]
    checked, empty, done, right, mode, nothing, refused, kept, _, cut, absent, gone, left = machine.run(
        send(whole, artifacts, check=True),
        shell("ls /opt/pv 2>/dev/null || true"),
        send(whole, artifacts),
        look(state_of(artifacts=tuple(artifacts))),
        shell("stat -c '%a %U:%G' /usr/local/bin/pv-a"),
        send(whole, []),
        send(whole, wrong),
        look(state_of(artifacts=tuple(artifacts))),
        shell("rm /usr/local/bin/pv-a"),
        send(short, artifacts),
        shell("ls -A /usr/local/bin | grep -e pv- -e provisioner || true"),
        send(tmp_path / "never", artifacts),
        shell("ls -A /dev/shm /var/tmp 2>/dev/null | grep -i ansible-tmp || true"),
    )
    assert checked.changed
    assert empty.text == ""
    assert done.ok, done.result
    assert set(done.result["placed"]) == set(contents)
    assert right.differs == []
    assert mode.text == "755 root:root"
    assert not nothing.changed, "nothing is lacking, so nothing is sent"
    assert "/usr/local/bin/pv-a" in refused.message
    assert "sha256 differs" in refused.message
    assert kept.differs == [], "wrong bytes replace nothing"
    assert "ends too early" in cut.message
    assert absent.text == "", "half a file is not left"
    assert "could not be sent" in gone.message or "never" in gone.message
    assert left.text == "", "nothing is left of what was sent"


def test_a_large_file_is_hashed_anew_when_it_changed(machine: Target) -> None:
    """The digests of large files are remembered; a change is noticed even where size and mtime are as before."""
    path = "/usr/local/bin/pv-large"
    (made,) = machine.run(shell(f"head -c 3000000 /dev/urandom >{path}; chmod 755 {path}; sha256sum {path}"))
    digest = made.text.split()[0]
    state = state_of(artifacts=(Artifact("artifacts", path, digest, 3_000_000, ""),))
    write = f"printf x | dd of={path} bs=1 seek=1000 conv=notrunc status=none"
    tamper = f"touch -r {path} /run/pv-stamp; {write}; touch -r /run/pv-stamp {path}"
    right, remembered, _, tampered, _, damaged = machine.run(
        look(state),
        shell("cat /var/lib/provisioner/hashes.json"),
        shell(tamper),
        look(state),
        # a memory that is lost or damaged costs time, and nothing else
        shell("echo '{' >/var/lib/provisioner/hashes.json"),
        look(state),
    )
    assert right.differs == []
    assert json.loads(remembered.text)[path][-1] == digest
    assert tampered.differs == damaged.differs == [("artifact", path, "change content")]


def test_the_kubelets_certificate_is_read_without_its_key(machine: Target) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----"
    key = "-----BEGIN EC PRIVATE KEY-----\nREVG\n-----END EC PRIVATE KEY-----\n"
    path = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    _, found, _, damaged, _, missing = machine.run(
        shell(f"mkdir -p /var/lib/kubelet/pki && cat >{path}", stdin=f"{certificate}\n{key}"),
        look(state_of()),
        shell(f"head -c 500 /dev/urandom >{path}"),
        look(state_of()),
        shell(f"rm {path}"),
        look(state_of()),
    )
    assert found.result["state"]["kubelet_certificate"] == certificate
    assert damaged.result["state"]["kubelet_certificate"] is None
    assert missing.result["state"]["kubelet_certificate"] is None
