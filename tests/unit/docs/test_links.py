"""The check of links to other sites, against a server on the loopback address; and the form of every link there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tools import links

STATUS = {"/ok": 200, "/gone": 404, "/moved": 301, "/robots": 403, "/broken": 500}


class Site(BaseHTTPRequestHandler):
    """Answers as STATUS says."""

    def do_GET(self) -> None:
        status = STATUS.get(self.path, 404)
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "/ok")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_good_and_bad_are_told_apart(site: str) -> None:
    answers = links.check([f"{site}{path}" for path in STATUS], seconds=10)
    assert [answer.is_broken for answer in answers] == [False, True, False, False, True]


def test_the_command_names_page_and_address(site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"[good]({site}/ok#part) [bad]({site}/gone) `[example]({site}/not-asked)`\n\n    [code]({site}/neither)\n")
    assert links.main([str(page)]) == 1
    printed = capsys.readouterr()
    assert f"broken: {site}/gone (404)" in printed.err
    assert "page.md" in printed.err
    assert printed.out.startswith("2 addresses on 1 pages: 1 broken")
    page.write_text(f"<{site}/ok>\n")
    assert links.main([str(page)]) == 0


def test_a_server_that_does_not_answer_is_broken() -> None:
    # port 9 of the loopback address: nothing listens there
    (answer,) = links.check(["http://127.0.0.1:9/"], seconds=2)
    assert answer.is_broken
    assert answer.said


def test_every_link_to_another_site_is_well_formed() -> None:
    where = links.collect(links.pages())
    assert len(where) > 5, "the pages have their links in another form now: nothing sees them"
    for url, pages in where.items():
        parts = urlsplit(url)
        assert parts.scheme == "https", f"{pages}: {url}"
        assert parts.hostname, f"{pages}: {url}"
        assert "." in parts.hostname, f"{pages}: {url}"
