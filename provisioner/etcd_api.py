"""etcd's v3 API through its own JSON gateway, one member at a time, over SSH forwards.

Requests and answers: https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/ (64-bit numbers come as strings, bytes as base64).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import http.client
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from provisioner.config import Node
from provisioner.errors import ProvisionerError
from provisioner.patience import stretch
from provisioner.pki import CaName
from provisioner.tls_client import client_context
from provisioner.topology import ETCD_CLIENT_PORT
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki
    from provisioner.ssh import Connections

# The client certificate of this program, signed by the etcd CA.
CLIENT_LEAF = "driver-etcd-client"
_SUM_BYTES = 32


class EtcdError(ProvisionerError):
    """An etcd member does not answer, or answers with an error."""

    remedy = "`provisioner status` shows every member; `provisioner logs NODE etcd` what it says"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the member list. ``name`` is empty until a new member has started, ``client_urls`` also of a founding one."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What one member says of itself.

    ``leader`` is the member it believes to lead (0: none); ``revision`` the store's; sizes are in bytes, ``db_size_quota`` 0
    where it does not tell (before etcd 3.6). ``errors`` are raised alarms, and that there is no leader.
    """

    member_id: int
    leader: int
    raft_term: int
    raft_index: int
    raft_applied_index: int
    revision: int
    version: str
    db_size: int
    db_size_in_use: int
    learner: bool
    errors: tuple[str, ...]
    db_size_quota: int = 0

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The alarms as this member knows them: unlike :meth:`EtcdApi.alarms`, to be had without a quorum too."""
        found = (re.search(r"memberID:\s*(\d+)\s+alarm:\s*(\w+)", error) for error in self.errors)
        return tuple(Alarm(int(match[1]), match[2]) for match in found if match)


@dataclass(frozen=True, slots=True)
class HashKv:
    """Hash of every key up to a revision. Two hashes compare only where ``compact_revision`` is the same."""

    hash: int
    revision: int
    compact_revision: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """A raised alarm, e.g. ``NOSPACE`` or ``CORRUPT``."""

    member_id: int
    alarm: str


class EtcdApi:
    """One etcd member. A context manager; not for several threads at once.

    Args:
        node: the member's machine.
        workspace: where the client's key lies while it is being loaded.
        connections: carries the forward.
        pki: issues the client certificate.
        timeout: seconds for each request.
    """

    def __init__(self, node: Node, workspace: Workspace, connections: Connections, pki: Pki, *, timeout: float = 5) -> None:
        self.node = node
        self._timeout = timeout
        leaf = pki.leaf(CLIENT_LEAF)
        self._context = client_context(pki.trust(CaName.ETCD), leaf.certificate, leaf.key, directory=workspace.root)
        self._stack = contextlib.ExitStack()
        self._forward = self._stack.enter_context(connections.forward(node, ETCD_CLIENT_PORT))
        self._connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> EtcdApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection and the forward."""
        self._drop()
        self._stack.close()

    def status(self) -> Status:
        """The member's own view of the cluster."""
        answer = self.call("/v3/maintenance/status")
        header = answer.get("header") or {}
        return Status(
            member_id=int(header.get("member_id", 0)),
            leader=int(answer.get("leader", 0)),
            raft_term=int(answer.get("raftTerm", 0)),
            raft_index=int(answer.get("raftIndex", 0)),
            raft_applied_index=int(answer.get("raftAppliedIndex", 0)),
            revision=int(header.get("revision", 0)),
            version=str(answer.get("version", "")),
            db_size=int(answer.get("dbSize", 0)),
            db_size_in_use=int(answer.get("dbSizeInUse", 0)),
            learner=bool(answer.get("isLearner", False)),
            errors=tuple(str(error) for error in answer.get("errors") or ()),
            db_size_quota=int(answer.get("dbSizeQuota", 0)),
        )

    def members(self, *, linearizable: bool = True) -> tuple[Member, ...]:
        """The member list; without ``linearizable`` as this member knows it, which works without a quorum too."""
        return _members(self.call("/v3/cluster/member/list", {"linearizable": linearizable}))

    def add_learner(self, peer_url: str) -> tuple[Member, ...]:
        """Put a member without a vote on the list, to be started next; returns the new list. Needs a quorum."""
        return _members(self.call("/v3/cluster/member/add", {"peerURLs": [peer_url], "isLearner": True}))

    def remove_member(self, member_id: int) -> tuple[Member, ...]:
        """Take a member off the list for good; returns the new list. Needs a quorum."""
        return _members(self.call("/v3/cluster/member/remove", {"ID": str(member_id)}))

    def promote(self, member_id: int) -> tuple[Member, ...]:
        """Give a learner its vote; etcd refuses while it is not in sync with the leader. Returns the new list."""
        return _members(self.call("/v3/cluster/member/promote", {"ID": str(member_id)}))

    def hash_kv(self, revision: int) -> HashKv:
        """Hash of the keys up to a revision, which this member must have reached already."""
        answer = self.call("/v3/maintenance/hashkv", {"revision": str(revision)})
        return HashKv(
            hash=int(answer.get("hash", 0)),
            revision=int(answer.get("hash_revision", 0)),
            compact_revision=int(answer.get("compact_revision", 0)),
        )

    def alarms(self) -> tuple[Alarm, ...]:
        """Alarms that are raised on any member."""
        answer = self.call("/v3/maintenance/alarm", {"action": "GET"})
        return tuple(Alarm(int(alarm.get("memberID", 0)), str(alarm.get("alarm", ""))) for alarm in answer.get("alarms") or ())

    def disarm(self, alarm: Alarm) -> None:
        """Lower an alarm; etcd raises it again by itself where its cause is still there."""
        self.call("/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": str(alarm.member_id), "alarm": alarm.alarm})

    def compact(self, revision: int, *, timeout: float) -> bool:
        """Forget what keys were before a revision, and wait until this member has done it; False where it was forgotten already.

        Args:
            revision: kept, with all after it.
            timeout: seconds; a long history takes its time.
        """
        try:
            self.call("/v3/kv/compaction", {"revision": str(revision), "physical": True}, timeout=timeout)
        except EtcdError as error:
            if "has been compacted" not in error.message:
                raise
            return False
        return True

    def defragment(self, *, timeout: float) -> None:
        """Write this member's database anew without the holes in it; meanwhile the member answers nobody.

        Args:
            timeout: seconds; etcd's maintainers reckon with some seconds for each GiB.
        """
        self.call("/v3/maintenance/defragment", timeout=timeout)

    def move_leader(self, target: int) -> None:
        """Hand the leadership over; only the leader can."""
        self.call("/v3/maintenance/transfer-leadership", {"targetID": str(target)})

    def snapshot(self, out: IO[bytes], *, timeout: float) -> None:
        """Write the whole database, with its SHA-256 at the end as `etcdctl snapshot save` has it.

        Args:
            out: gets what the member sends, as it comes.
            timeout: seconds without any of it.

        Raises:
            EtcdError: no answer, an error, or the stream broke off.
        """
        answer = self._post("/v3/maintenance/snapshot", {}, timeout)
        digest, tail, left = hashlib.sha256(), b"", 1
        try:
            if answer.status != http.client.OK:
                raise EtcdError(f"{self.node.name}: etcd answered {answer.status} to a request for a snapshot")
            # one JSON document a line
            while line := answer.readline():
                document = json.loads(line)
                if error := document.get("error"):
                    raise EtcdError(f"{self.node.name}: etcd broke the snapshot off: {error.get('message', error)}")
                part = document["result"]
                left = int(part.get("remaining_bytes", 0))
                data = tail + base64.b64decode(part.get("blob", ""), validate=True)
                # the last 32 bytes are the sum of all others
                digest.update(data[:-_SUM_BYTES])
                tail = data[-_SUM_BYTES:]
                out.write(data[:-_SUM_BYTES])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise EtcdError(f"{self.node.name}: the snapshot broke off: {type(error).__name__}: {error}") from None
        finally:
            # what is left of a stream cannot be taken for the next answer
            self._drop()
        if left or tail != digest.digest():
            raise EtcdError(f"{self.node.name}: the snapshot is not whole: its SHA-256 is not what etcd says")
        out.write(tail)

    def read(self, key: str) -> bytes | None:
        """The stored bytes of one key, linearizably; None where there is none."""
        answer = self.call("/v3/kv/range", {"key": base64.b64encode(key.encode()).decode()})
        found = answer.get("kvs") or []
        if not found:
            return None
        try:
            return base64.b64decode(found[0].get("value", ""), validate=True)
        except binascii.Error:
            raise EtcdError(f"{self.node.name}: etcd answered with a value that is not base64") from None

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """POST one request.

        Args:
            path: of the gateway, e.g. ``/v3/maintenance/status``.
            body: the request's fields.
            timeout: seconds; default: the client's own.

        Raises:
            EtcdError: no answer, or an error; names the member.
        """
        answer = self._post(path, body or {}, timeout or self._timeout)
        try:
            raw, code = answer.read(), answer.status
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from None
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if code != http.client.OK or not isinstance(value, dict):
            text = value.get("message") if isinstance(value, dict) else raw.decode(errors="replace")
            raise EtcdError(f"{self.node.name}: etcd answered {code} to {path}: {' '.join(str(text).split())[:300]}")
        return value

    def _post(self, path: str, body: dict[str, Any], timeout: float) -> http.client.HTTPResponse:
        timeout = stretch(timeout)
        try:
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self._forward.port, timeout=timeout, context=self._context
                )
            self._connection.timeout = timeout
            if self._connection.sock is not None:
                self._connection.sock.settimeout(timeout)
            self._connection.request("POST", path, body=json.dumps(body), headers={"Content-Type": "application/json"})
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> EtcdError:
        self._drop()
        return EtcdError(
            f"{self.node.name}: etcd does not answer: {self._forward.error or f'{type(error).__name__}: {error}'}",
            hint=f"look at `systemctl status etcd` and `journalctl -u etcd` on {self.node.name}",
        )

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def listed_by_any(nodes: Iterable[Node], client: Callable[[Node], EtcdApi]) -> tuple[Member, ...] | None:
    """The member list as the first of these members that answers knows it; None where none does."""
    for node in nodes:
        with contextlib.suppress(ProvisionerError), client(node) as etcd:
            return etcd.members(linearizable=False)
    return None


def _members(answer: Mapping[str, Any]) -> tuple[Member, ...]:
    return tuple(
        Member(
            id=int(member.get("ID", 0)),
            name=str(member.get("name", "")),
            peer_urls=tuple(member.get("peerURLs") or ()),
            client_urls=tuple(member.get("clientURLs") or ()),
            learner=bool(member.get("isLearner", False)),
        )
        for member in answer.get("members") or ()
    )
