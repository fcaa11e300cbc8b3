"""Writes ConfigMaps until the power goes, remembers what the API acknowledged, and compares that with what came back.

Each thread creates a new ConfigMap and updates one that it keeps, in turn. A write counts as acknowledged when its answer has
arrived here, and as attempted before it is sent: what was sent and never answered may be there or not, and either is right.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from provisioner.cluster_api import ClusterApi, Object
from provisioner.errors import ProvisionerError

NAMESPACE = "power-cut"
# seconds for one request: machines under emulation need a second for what takes others a millisecond
REQUEST_SECONDS = 30.0


def payload(name: str, sequence: int) -> str:
    """What write number ``sequence`` of an object holds: nothing else has it, so a mixture of two writes is seen."""
    return hashlib.sha256(f"{name} {sequence}".encode()).hexdigest() * 8


def config_map(name: str, sequence: int) -> Object:
    """The object of one write."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {"sequence": str(sequence), "payload": payload(name, sequence)},
    }


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer has done, by the objects' names: the last sequence number sent, and the last acknowledged one.

    Attributes:
        attempted: of every object that was ever sent.
        acknowledged: of every object with an answered write.
        writes: number of acknowledged writes, creations and updates.
        seconds: from the first to the last acknowledged write.
    """

    attempted: Mapping[str, int]
    acknowledged: Mapping[str, int]
    writes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found when everything was read back: one line for each write that is lost or wrong."""

    read: int
    lost: tuple[str, ...]
    unacknowledged_kept: int

    @property
    def whole(self) -> bool:
        """Whether nothing is lost or wrong."""
        return not self.lost


@dataclass(slots=True)
class Writer:
    """Threads that write as fast as the API answers, until told to stop or until it answers no more.

    Attributes:
        connect: makes the API client; each thread has its own.
        threads: how many write side by side.
    """

    connect: Callable[[], ClusterApi]
    threads: int = 4
    _attempted: dict[str, int] = field(default_factory=dict)
    _acknowledged: dict[str, int] = field(default_factory=dict)
    _times: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Make the namespace, then begin to write.

        Raises:
            ClusterApiError: the API does not answer.
        """
        with self.connect() as api:
            api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, timeout=REQUEST_SECONDS)
        for number in range(self.threads):
            # a daemon: a request that hangs must not keep the drill from ending
            thread = threading.Thread(target=self._write, args=(f"writer-{number}",), name=f"writer-{number}", daemon=True)
            self._running.append(thread)
            thread.start()

    @property
    def count(self) -> int:
        """Acknowledged writes so far."""
        return len(self._times)

    def _write(self, name: str) -> None:
        with self.connect() as api:
            sequence = 0
            while not self._stop.is_set():
                sequence += 1
                new = f"{name}-{sequence}"
                try:
                    self._one(api, new if sequence % 2 else name, sequence)
                except ProvisionerError:
                    # passing refusals are part of a slow machine's life; what was not acknowledged is not claimed
                    self._stop.wait(0.5)

    def _one(self, api: ClusterApi, name: str, sequence: int) -> None:
        with self._lock:
            self._attempted[name] = sequence
        api.apply(config_map(name, sequence), timeout=REQUEST_SECONDS)
        with self._lock:
            self._acknowledged[name] = sequence
            self._times.append(time.monotonic())

    def stop(self, seconds: float) -> Written:
        """End the threads and say what was written.

        Args:
            seconds: for requests that are under way; threads that hang longer are left behind.
        """
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._running:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            times = self._times
            return Written(dict(self._attempted), dict(self._acknowledged), len(times), times[-1] - times[0] if times else 0.0)


def compare(written: Written, found: Mapping[str, Mapping[str, str]]) -> Compared:
    """Hold what is stored against what was acknowledged.

    Args:
        written: by the writer.
        found: data of the stored ConfigMaps by their names.
    """
    lost: list[str] = []
    kept = 0
    for name, attempted in sorted(written.attempted.items()):
        acknowledged = written.acknowledged.get(name)
        data = found.get(name)
        if data is None:
            if acknowledged is not None:
                lost.append(f"{name}: acknowledged with sequence {acknowledged}, not there")
            continue
        stored = int(data.get("sequence", -1))
        if not (acknowledged or 1) <= stored <= attempted:
            lost.append(f"{name}: sequence {acknowledged} acknowledged, {attempted} sent last, {stored} stored")
        elif data.get("payload") != payload(name, stored):
            lost.append(f"{name}: the payload stored with sequence {stored} is not that of this write")
        elif stored != acknowledged:
            kept += 1
    return Compared(read=len(found.keys() & written.attempted.keys()), lost=tuple(lost), unacknowledged_kept=kept)


def read_back(api: ClusterApi, *, timeout: float) -> dict[str, dict[str, str]]:
    """Data of the drill's ConfigMaps by name, from etcd (no ``resourceVersion``: a read of the most recent state).

    Raises:
        ClusterApiError: the API does not answer.
    """
    items = api.items(f"/api/v1/namespaces/{NAMESPACE}/configmaps", timeout=timeout)
    return {item["metadata"]["name"]: dict(item.get("data") or {}) for item in items}
