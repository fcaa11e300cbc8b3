"""Downloads over HTTP: they resume where they stopped, give up on a dead site quickly, and count for nothing until the sum fits."""

from __future__ import annotations

import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3

from provisioner.artifacts.cache import Cache
from provisioner.artifacts.progress import Progress
from provisioner.config import HttpProxy
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.wait import wait_until

T = TypeVar("T")
# What is lost when a connection dies in the middle of one.
CHUNK = 64 << 10


class DownloadFailed(ProvisionerError):  # noqa: N818 - reads as what it is at the raise
    """One file could not be had from one place; the source turns it into a refusal."""


class _Unreachable(Exception):  # noqa: N818 - this and the next two steer the retries, no user sees them
    """The site did not even take the connection."""


class _Failing(Exception):  # noqa: N818
    """The site answers, but not with what was asked for; it may yet."""


class _MovedOn(Exception):  # noqa: N818
    """An attempt that got some bytes and then died: the deadline starts anew."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long failures are borne, in seconds."""

    # refused or unanswered connections, unknown names: the whole site is given up after that
    unreachable: float = 4.0
    # a site that answers, but with errors or dying connections; since the last byte that arrived
    failing: float = 30.0
    every: float = 1.0
    connect: float = 8.0
    # a connection without a byte for so long counts as dead
    read: float = 30.0
    # a connection that dies again and again, though some bytes come each time: so many times
    resumes: int = 200


@dataclass(frozen=True, slots=True)
class Response:
    """A small document that was fetched whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Downloader:
    """One run's connections (a context manager). Remembers the sites that do not answer, so that the second file does not
    wait for them too. Proxies are those of cluster.yaml, else of the environment (``https_proxy``), which also names the
    certificates (``SSL_CERT_FILE``)."""

    progress: Progress
    patience: Patience = Patience()
    proxy: HttpProxy = field(default_factory=HttpProxy)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _dead: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pools: dict[str, urllib3.PoolManager] = field(default_factory=dict)

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in self._pools.values():
            pool.clear()

    def stop(self) -> None:
        """Let every download under way fail at its next piece: the run is being interrupted."""
        self._stopped.set()

    def fetch(self, url: str, part: Path, *, key: str, cache: Cache, headers: Mapping[str, str] | None = None) -> None:
        """Download into ``part``, going on where an earlier attempt or run stopped. The caller checks the sum.

        Raises:
            DownloadFailed: the site does not answer, refuses, or keeps failing.
            ArtifactError: the cache's disk is full.
        """
        for _ in range(self.patience.resumes):
            try:
                self._patiently(url, lambda: self._attempt(url, part, key=key, cache=cache, headers=headers or {}))
            except _MovedOn:
                continue
            return
        raise DownloadFailed(f"{shown(url)}: the connection died {self.patience.resumes} times")

    def get(self, url: str, *, headers: Mapping[str, str] | None = None, limit: int = 8 << 20) -> Response:
        """Fetch a small document (a sum, a manifest). A 401 is returned, for its challenge; other errors raise.

        Raises:
            DownloadFailed: as :meth:`fetch`, or it has more than ``limit`` bytes.
        """
        return self._patiently(url, lambda: self._get(url, headers or {}, limit))

    def _patiently(self, url: str, attempt: Callable[[], T]) -> T:
        site = urlsplit(url).hostname or ""

        def reach() -> T:
            if self._stopped.is_set():
                raise DownloadFailed(f"{shown(url)}: interrupted")
            if site in self._dead:
                raise DownloadFailed(f"{shown(url)}: {self._dead[site]}")
            try:
                return wait_until(
                    site, attempt, seconds=self.patience.unreachable, every=self.patience.every, retry_on=(_Unreachable,)
                )
            except WaitTimeout as error:
                reason = f"{site} cannot be reached ({error.message.partition('last seen: ')[2]})"
                with self._lock:
                    self._dead[site] = reason
                raise DownloadFailed(f"{shown(url)}: {reason}") from None

        try:
            return wait_until(shown(url), reach, seconds=self.patience.failing, every=self.patience.every, retry_on=(_Failing,))
        except WaitTimeout as error:
            raise DownloadFailed(error.message) from None

    def _attempt(self, url: str, part: Path, *, key: str, cache: Cache, headers: Mapping[str, str]) -> None:
        offset = part.stat().st_size if part.exists() else 0
        wanted = {**headers, "Range": f"bytes={offset}-"} if offset else headers
        response = self._open(url, wanted)
        try:
            if response.status == 416:
                if response.headers.get("Content-Range", "").rpartition("/")[2] == str(offset):
                    return
                part.unlink(missing_ok=True)
                raise _Failing("the partial file was no beginning of what the site has")
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                part.unlink(missing_ok=True)
                raise _Failing("the site sent another range than the one asked for")
            if response.status not in {200, 206}:
                _refuse(url, response.status)
            done = offset if response.status == 206 else 0
            length = response.headers.get("Content-Length", "")
            self.progress.start(key, key, done + int(length) if length.isdigit() else None)
            received = 0
            with cache.guarded(), part.open("ab" if done else "wb") as file:
                try:
                    for piece in response.stream(CHUNK, decode_content=False):
                        if self._stopped.is_set():
                            raise DownloadFailed(f"{shown(url)}: interrupted")
                        file.write(piece)
                        received += len(piece)
                        self.progress.advance(key, done + received)
                except urllib3.exceptions.HTTPError as error:
                    # IncompleteRead, ProtocolError, ReadTimeoutError: the connection died, or stopped short of the length
                    if received:
                        raise _MovedOn from None
                    raise _Failing(_words(error)) from None
        finally:
            response.close()

    def _get(self, url: str, headers: Mapping[str, str], limit: int) -> Response:
        response = self._open(url, headers)
        try:
            if response.status not in {200, 401}:
                _refuse(url, response.status)
            try:
                body = response.read(limit + 1, decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                raise _Failing(_words(error)) from None
            if len(body) > limit:
                raise DownloadFailed(f"{shown(url)}: more than {limit} bytes, which cannot be right")
            return Response(status=response.status, headers=dict(response.headers), body=body)
        finally:
            response.close()

    def _open(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        sent = {"Accept-Encoding": "identity", "User-Agent": "provisioner", **headers}
        if parts.username:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            sent.update(urllib3.make_headers(basic_auth=login))
        try:
            return self._pool(parts.scheme, parts.hostname or "").request(
                "GET",
                shown(url),
                headers=sent,
                preload_content=False,
                timeout=urllib3.Timeout(connect=self.patience.connect, read=self.patience.read),
                # False: the error itself is raised, and the retries are ours
                retries=urllib3.Retry(total=10, redirect=10, connect=False, read=False, status=False, other=False),
            )
        except urllib3.exceptions.HTTPError as error:
            raise _sorted(error, url) from None

    def _pool(self, scheme: str, host: str) -> urllib3.PoolManager:
        proxy = self._proxy_for(scheme, host)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _proxied(proxy) if proxy else urllib3.PoolManager(maxsize=8)
            return self._pools[proxy]

    def _proxy_for(self, scheme: str, host: str) -> str:
        if not self.proxy.http and not self.proxy.https:
            return "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme, "")
        # as curl and Go read no_proxy: a name stands for itself and all below it
        names = [name.lstrip(".") for name in self.proxy.no_proxy]
        if "*" in names or any(host == name or host.endswith(f".{name}") for name in names):
            return ""
        return self.proxy.https if scheme == "https" else self.proxy.http


def shown(url: str) -> str:
    """A URL without the login it may carry, for messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _proxied(proxy: str) -> urllib3.PoolManager:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
    return urllib3.ProxyManager(shown(urlunsplit(parts)), proxy_headers=headers, maxsize=8)


def _sorted(error: urllib3.exceptions.HTTPError, url: str) -> Exception:
    """What an error without an answer means: the file cannot be had, or the site, or neither just now."""
    known = urllib3.exceptions
    causes = tuple(_causes(error))
    if isinstance(error, known.LocationParseError | known.URLSchemeUnknown):
        return DownloadFailed(f"{shown(url)}: not a URL: {_words(error)}")
    if any(isinstance(cause, ssl.SSLError | known.SSLError) for cause in causes):
        return DownloadFailed(
            f"{shown(url)}: TLS: {_words(error)}",
            hint="where a proxy inspects TLS, name its CA's certificates in $SSL_CERT_FILE",
        )
    if any(isinstance(cause, known.NewConnectionError | known.ConnectTimeoutError | known.ProxyError) for cause in causes):
        return _Unreachable(_words(error))
    return _Failing(_words(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what urllib3 wrapped in it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = getattr(seen, "reason", None) or getattr(seen, "original_error", None)
        seen = (inner if isinstance(inner, BaseException) else None) or seen.__cause__ or seen.__context__


def _refuse(url: str, status: int) -> NoReturn:
    # 408, 425, 429 and the 5xx may pass; every other answer will be the same next time
    if status in {408, 425, 429} or status >= 500:
        raise _Failing(f"HTTP {status}")
    raise DownloadFailed(f"{shown(url)}: HTTP {status}")


def _words(error: Exception) -> str:
    """The last, most telling part of urllib3's nested messages."""
    *_, cause = _causes(error)
    text = str(cause) or type(cause).__name__
    return text.rpartition("object at 0x")[2].partition(": ")[2] or text
