"""The load against a server that forgets to answer: what counts as acknowledged, and when a request is given up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.drills import load

COLLECTION = "/api/v1/namespaces/drill/configmaps"


class Api(ThreadingHTTPServer):
    """ConfigMaps with resource versions. ``trouble`` may make a request fail after, or before, it was done."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[str, int]] = {}
        self.version = 0
        self.trouble: list[Callable[[Handler], bool]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        self.answer(200, name) if name in self.server.objects else self.answer(404)

    def do_POST(self) -> None:
        body = self.body()
        name = body["metadata"]["name"]
        if name in self.server.objects:
            self.answer(409)
        else:
            self.store(name, body)
            self.answer(201, name)

    def do_PUT(self) -> None:
        body = self.body()
        name = body["metadata"]["name"]
        if str(self.server.objects[name][1]) != body["metadata"]["resourceVersion"]:
            self.answer(409)
        else:
            self.store(name, body)
            self.answer(200, name)

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def store(self, name: str, body: dict[str, Any]) -> None:
        self.server.version += 1
        self.server.objects[name] = (body["data"]["value"], self.server.version)

    def answer(self, status: int, name: str = "") -> None:
        if self.server.trouble and self.server.trouble.pop(0)(self):
            self.close_connection = True
            return
        document: dict[str, Any] = {"message": "no"}
        if name:
            value, version = self.server.objects[name]
            document = {"metadata": {"name": name, "resourceVersion": str(version)}, "data": {"value": value}}
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=[True, False], ids=["kept", "fresh"])
def writer(api: Api, request: pytest.FixtureRequest) -> Iterator[load.Writer]:
    client = load.Client(f"http://127.0.0.1:{api.server_port}", None, keep=request.param)
    yield load.Writer("w", client, {"namespace": "drill", "run": "1a"}, threading.Event(), lambda: time.monotonic() + 10)
    client.close()


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def no_answer(_: Handler) -> bool:
    return True


def slow(_: Handler) -> bool:
    time.sleep(load.TIMEOUT + 0.2)
    return True


def test_a_write_is_acknowledged_once(api: Api, writer: load.Writer, capsys: pytest.CaptureFixture[str]) -> None:
    version = writer.operation(0, "")
    version = writer.operation(1, version)
    writer.operation(2, version)
    events = said(capsys)
    assert [(event["name"], event["number"], event["attempts"]) for event in events] == [
        ("w-1a-000000", 0, 1),
        ("w-1a-000000", 1, 1),
        ("w-1a-000001", 2, 1),
    ]
    assert all(event["acknowledged"] >= event["start"] and not event["errors"] for event in events)
    assert {name: value for name, (value, _) in api.objects.items()} == {"w-1a-000000": "1", "w-1a-000001": "2"}


def test_a_write_whose_answer_was_lost(api: Api, writer: load.Writer, capsys: pytest.CaptureFixture[str]) -> None:
    """The retry is refused, and the value that is there says that the first try was done."""
    api.trouble = [no_answer]
    version = writer.operation(0, "")
    api.trouble = [no_answer]
    writer.operation(1, version)
    for event in said(capsys):
        assert event["acknowledged"]
        assert event["attempts"] == 2
        assert event["errors"][-1][1].startswith("409")
    assert api.objects["w-1a-000000"] == ("1", 2), "each written once"


def test_an_object_that_changed_in_between(api: Api, writer: load.Writer, capsys: pytest.CaptureFixture[str]) -> None:
    writer.operation(0, "")
    writer.operation(1, "77")
    event = said(capsys)[-1]
    assert event["attempts"] == 2, "the second try takes the version that is there"
    assert api.objects["w-1a-000000"][0] == "1"


def test_a_slow_answer_is_given_up_after_a_second(api: Api, writer: load.Writer, capsys: pytest.CaptureFixture[str]) -> None:
    api.trouble = [slow]
    writer.operation(0, "")
    (event,) = said(capsys)
    assert event["attempts"] == 2
    first = event["errors"][0]
    assert "timed out" in first[1] or "no answer" in first[1]
    assert first[0] - event["start"] >= load.TIMEOUT * 0.95


def test_what_is_never_acknowledged_is_said_so(api: Api, writer: load.Writer, capsys: pytest.CaptureFixture[str]) -> None:
    api.trouble = [no_answer] * 10_000
    writer.end = lambda: 0.0

    def end() -> None:
        writer.stop.set()

    timer = threading.Timer(0.3, end)
    timer.start()
    writer.operation(0, "")
    timer.join()
    (event,) = said(capsys)
    assert event["acknowledged"] is None
    assert event["attempts"] > 1


def test_what_matters_of_the_clusters_state() -> None:
    node = {"metadata": {"name": "cp-1"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    assert load.ready_nodes({"items": [node, {"metadata": {"name": "new"}, "status": {}}]}) == {"cp-1": "Unknown", "new": "Unknown"}
    lease = {"holderIdentity": "cp-1_0b2c", "acquireTime": "1970-01-01T00:00:07.500000Z"}
    assert load.holder({"spec": lease}) == ["cp-1", round(load.CLOCK + 7.5, 3)]
    assert load.holder({"spec": lease | {"holderIdentity": None}})[0] == ""
    ready = [{"addresses": ["10.0.0.2"], "conditions": {"ready": True}}, {"addresses": ["10.0.0.1"]}]
    gone = [{"addresses": ["10.0.0.3"], "conditions": {"ready": False}}]
    assert load.endpoints({"items": [{"endpoints": ready}, {"endpoints": gone}, {"endpoints": None}]}) == ["10.0.0.1", "10.0.0.2"]
