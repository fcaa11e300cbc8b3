"""Backups that the members take by themselves: by their timer, on one of them, off the machine, and back into the cluster."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.server
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyrage
import pytest

from provisioner.cluster_api import ClusterApi
from provisioner.errors import ProvisionerError
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills.kit import Kit

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

UNIT = "provisioner-etcd-backup"
DIRECTORY = "/var/lib/provisioner/backups"
# Seconds from the edit to the moment of the schedule: `apply` has placed the timers by then.
AHEAD = 60
# What a user's own tool does: the lab's machines have none but Python.
CARRY = (
    "import sys, urllib.request as u; path, url = sys.argv[1:]; "
    "u.urlopen(u.Request(url + path.rpartition('/')[2], data=open(path, 'rb').read(), method='PUT'), timeout=30)"
)


class Share(http.server.ThreadingHTTPServer):
    """Somewhere off the machines: takes files by PUT into a directory, or refuses while ``full``."""

    def __init__(self, address: str, directory: Path) -> None:
        self.directory, self.full = directory, False
        super().__init__((address, 0), Taker)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def files(self) -> list[Path]:
        """What has come, the newest last."""
        return sorted(self.directory.iterdir())


class Taker(http.server.BaseHTTPRequestHandler):
    """One file."""

    server: Share

    def do_PUT(self) -> None:
        """Take it."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.full:
            (self.server.directory / Path(self.path).name).write_bytes(content)
        self.send_response(507 if self.server.full else 201)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@pytest.fixture
def share(ha: Real, tmp_path: Path) -> Iterator[Share]:
    """On the controller's own address in the lab's network."""
    (tmp_path / "share").mkdir()
    network = str(ha.cluster.nodes[0].ip).rpartition(".")[0]
    with Share(f"{network}.1", tmp_path / "share") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def started(ha: Real, *nodes: str) -> list[str]:
    """The unit started by hand on machines at once, and through; returns what each said last."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: ha.run(node, f"systemctl start {UNIT}", check=False), nodes))
    return [ha.run(node, f"journalctl --unit {UNIT} --output cat --no-pager --lines 12") for node in nodes]


def on_machines(ha: Real) -> list[dict[str, Any]]:
    done = ha.cli("etcd", "list", "--machines", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["machines"]
    return found


@contextlib.contextmanager
def scheduled(ha: Real, share: Share, public: str) -> Iterator[None]:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=AHEAD)
    section = {
        "schedule": f"*-*-* {moment:%H:%M:%S} UTC",
        "keep": 2,
        "recipients": [public],
        "copy": ["python3", "-c", CARRY, "{file}", share.url],
    }
    with ha.edited(lambda text: f"{text}\nbackups: {json.dumps(section)}\n"):
        done = ha.cli("apply", "--yes", "--skip-verify")
        assert done.returncode == 0, done.stderr
        yield
    done = ha.cli("apply", "--yes", "--skip-verify")
    assert done.returncode == 0, done.stderr


def test_the_members_back_themselves_up_and_a_restore_takes_it(ha: Real, share: Share, tmp_path: Path) -> None:
    pair = pyrage.x25519.Identity.generate()
    identity = tmp_path / "key.txt"
    identity.write_text(f"{pair}\n")
    members = [node.name for node in ha.cluster.etcd_members]
    leader = json.loads(ha.cli("status", "--json").stdout)["etcd"]["leader"]
    with Kit.of(ha) as kit, scheduled(ha, share, str(pair.to_public())):
        assert ha.plan() == []
        taken = by_its_timer(ha, share, members, leader)
        opened = pyrage.decrypt(share.files()[0].read_bytes(), [pair])
        assert b'"secretsKey"' in opened
        refused = ha.cli("workspace", "import", str(share.files()[0]), "--identity", str(identity), "--into", str(tmp_path / "new"))
        assert (refused.returncode, "etcd's data alone" in refused.stderr) == (1, True), refused.stderr
        write(kit.api, "later")
        without_the_member_whose_turn_it_is(ha, share, members, taken)
        one_that_does_not_leave_the_machine(ha, share, taken)
        assert len([one for one in on_machines(ha) if one["node"] == taken]) == 2, "keep"

        done = ha.cli("etcd", "restore", str(share.files()[0]), "--identity", str(identity), "--yes", "--skip-verify", "--json")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        print(f"restored: {json.loads(done.stdout)['seconds']} s")
        later = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later", "namespace": "default"}}
        found = wait_until("a read", lambda: kit.api.get(later), seconds=60, retry_on=(ProvisionerError,))
        assert found is None, "it came after the backup"
    nothing_is_left(ha, members)


def write(api: ClusterApi, name: str) -> None:
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"a": "b"}}
    wait_until("a write", lambda: api.apply(wanted), seconds=60, retry_on=(ProvisionerError,))


def by_its_timer(ha: Real, share: Share, members: list[str], leader: str) -> str:
    """At the time of the schedule just one member takes a backup, and not the leader; returns its name."""

    def came() -> None:
        if not share.files():
            raise NotYet("nothing has come")

    wait_until("a backup", came, seconds=AHEAD + 60, every=0.5)

    def rests() -> None:
        for node in members:
            if "inactive" not in ha.run(node, f"systemctl is-active {UNIT}", check=False):
                raise NotYet(f"{node} is at it")

    wait_until("all members through", rests, seconds=60, every=0.5)
    found = on_machines(ha)
    assert len(found) == len(share.files()) == 1, found
    assert found[0]["encrypted"] is True
    assert share.files()[0].stat().st_size == found[0]["bytes"]
    taken = str(found[0]["node"])
    assert taken != leader
    assert ha.run(taken, f"stat --format %a:%U {DIRECTORY} {found[0]['path']}").split() == ["700:root", "600:root"]
    for node in members:
        said = ha.run(node, f"journalctl --unit {UNIT} --output cat --no-pager")
        assert ("was carried off by python3" if node == taken else "no backup is taken here") in said, said
    status = json.loads(ha.cli("status", "--json").stdout)
    assert status["problems"] == []
    assert [one["node"] for one in status["backups"] if one["good"]] == [taken]
    return taken


def without_the_member_whose_turn_it_is(ha: Real, share: Share, members: list[str], taken: str) -> None:
    before = len(share.files())
    ha.run(taken, "systemctl stop etcd")
    try:
        others = [node for node in members if node != taken]
        said = started(ha, *others)
        assert sum("was carried off by" in text for text in said) == 1, said
        assert len(share.files()) == before + 1
    finally:
        ha.run(taken, "systemctl start etcd")


def one_that_does_not_leave_the_machine(ha: Real, share: Share, taken: str) -> None:
    def settled() -> None:
        found = json.loads(ha.cli("status", "--json").stdout)
        if found["problems"]:
            raise NotYet(str(found["problems"]))

    wait_until("a whole cluster", settled, seconds=60, every=1)
    share.full = True
    nodes = [node.name for node in ha.cluster.etcd_members]
    started(ha, *nodes)
    share.full = False
    failed = [node for node in nodes if "failed" in ha.run(node, f"systemctl is-active {UNIT}", check=False)]
    assert len(failed) == 1
    problems = json.loads(ha.cli("status", "--json").stdout)["problems"]
    assert len(problems) == 1, problems
    assert re.match(rf"{failed[0]}: its last backup failed; the last good one is \d min old, on ", problems[0]), problems
    logs = ha.cli("logs", failed[0], "etcd-backup")
    assert "is on this machine alone: python3 ended with 1" in logs.stdout, logs.stdout
    # the next one that goes all the way is the end of it; the third here, and two are kept
    started(ha, *nodes)
    assert json.loads(ha.cli("status", "--json").stdout)["problems"] == []
    started(ha, taken)


def nothing_is_left(ha: Real, members: list[str]) -> None:
    """Without a schedule nothing of it is on any machine but the backups."""
    assert ha.plan() == []
    for node in members:
        left = ha.run(node, "find / -xdev -path /proc -prune -o -name '*etcd-backup*' -print").split()
        assert left == [], left
        assert ha.run(node, "test ! -e /usr/local/lib/provisioner/age && echo gone").strip() == "gone"
        assert ha.run(node, f"systemctl list-units --all --no-legend '{UNIT}*'").strip() == ""
    assert on_machines(ha)
    for node in members:
        ha.run(node, f"rm -r {DIRECTORY}", check=False)
