"""The stopwatch's eye: when the API answers for the first time, and when each node is Ready; one way of looking for both tools."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.compare.checks import PASSING, Api, is_ready

EVERY = 0.25


class Watcher:
    """Asks for the Nodes four times a second from the moment on at which there is a kubeconfig.

    Args:
        kubeconfig: gives its path once there is one, else None.
        nodes: how many there will be.
        on_api: called once, from the watcher's thread, with a client, when the API has answered.
    """

    def __init__(self, kubeconfig: Callable[[], Path | None], nodes: int, on_api: Callable[[Api], None] | None = None) -> None:
        self._kubeconfig, self._count, self._on_api = kubeconfig, nodes, on_api
        self._stop, self._all_ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._began = 0.0
        self._error: BaseException | None = None
        self.milestones: dict[str, Any] = {"api_s": None, "registered_s": {}, "ready_s": {}, "all_ready_s": None}

    def start(self, began: float) -> None:
        """Begin; ``began`` is the clock's zero (``time.monotonic()``)."""
        self._began = began
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until all nodes were Ready in one answer.

        Raises:
            TimeoutError: they were not, within that time.
        """
        end = time.monotonic() + seconds
        while not self._all_ready.wait(0.2):
            if self._error is not None:
                raise self._error
            if time.monotonic() > end:
                raise TimeoutError(f"not all {self._count} nodes are Ready after {seconds:g} s: {self.milestones}")

    def stop(self) -> None:
        """End; harmless twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _watch(self) -> None:
        try:
            while (path := self._kubeconfig()) is None:
                if self._stop.wait(EVERY):
                    return
            api = Api(str(path))
            while not self._stop.is_set() and not self._all_ready.is_set():
                with contextlib.suppress(*PASSING):
                    self._note(api.get("/api/v1/nodes")["items"], api)
                self._stop.wait(EVERY)
        except BaseException as error:  # told by wait()
            self._error = error

    def _note(self, nodes: list[dict[str, Any]], api: Api) -> None:
        found = self.milestones
        if found["api_s"] is None:
            found["api_s"] = self._now()
            if self._on_api:
                threading.Thread(target=self._on_api, args=(api,), daemon=True).start()
        ready = [node["metadata"]["name"] for node in nodes if is_ready(node)]
        for node in nodes:
            found["registered_s"].setdefault(node["metadata"]["name"], self._now())
        for name in ready:
            found["ready_s"].setdefault(name, self._now())
        if len(ready) == self._count:
            found["all_ready_s"] = self._now()
            self._all_ready.set()
