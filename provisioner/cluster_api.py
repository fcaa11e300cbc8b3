"""The Kubernetes API through the official client: the only place that imports `kubernetes`.

Every request goes through an SSH forward to a control plane, so it works from wherever SSH works. Objects are plain
dictionaries, as in a manifest: the same value is rendered, compared, applied and read back.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from provisioner.api_kinds import KINDS
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.patience import stretch
from provisioner.pki import CaName
from provisioner.tls_client import write_client_files
from provisioner.topology import APISERVER_PORT
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace, private_directory

if TYPE_CHECKING:
    from provisioner.pki import Pki
    from provisioner.ssh import Connections, Forward

Object = dict[str, Any]

# Answers that pass by themselves: the apiserver is starting, throttling, or etcd is electing a leader.
_PASSING = frozenset({429, 503, 504})
# Of an exec's stream: carries one metav1.Status when the command has ended, or could not be started.
_STATUS_CHANNEL = 3


class ClusterApiError(ProvisionerError):
    """The Kubernetes API refused a request or could not be reached.

    Args:
        message: what was asked, of whom, and the answer.
        status: HTTP status; 0 where no answer came.
        reason: the API's own word for it (`NotFound`, `Forbidden`, `Conflict`...).
    """

    remedy = "`provisioner status` shows which API servers answer, and why the others do not"

    def __init__(self, message: str, *, status: int = 0, reason: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.reason = reason


class UnknownKind(ClusterApiError):  # noqa: N818 - a refusal like any other, told apart
    """The API serves no such kind, or not yet: its definition may be on its way."""


# The client's modules import each other: two threads that begin at different ends would deadlock.
_IMPORTING = threading.Lock()


def preload() -> None:
    """Import the official client now, on a thread that has nothing better to do: it takes a second."""
    _library()


def _library() -> SimpleNamespace:
    """The official client's core, imported at the first use, which `--help` need not pay."""
    with _IMPORTING:
        from kubernetes.client import ApiClient, ApiException, Configuration  # noqa: PLC0415
        from urllib3.exceptions import HTTPError, TimeoutError  # noqa: A004, PLC0415 - the library's own

    return SimpleNamespace(
        ApiClient=ApiClient, ApiException=ApiException, Configuration=Configuration, HTTPError=HTTPError, TimeoutError=TimeoutError
    )


def _exec_library() -> SimpleNamespace:
    """What `exec` needs besides: the API of every kind, which takes two seconds more."""
    with _IMPORTING:
        import websocket  # noqa: PLC0415
        from kubernetes.client import CoreV1Api  # noqa: PLC0415
        from kubernetes.stream import stream  # noqa: PLC0415

    return SimpleNamespace(CoreV1Api=CoreV1Api, stream=stream, websocket=websocket)


class _NoAnswerError(Exception):
    """A control plane did not answer at all; another one may."""


class _SilentError(_NoAnswerError):
    """It had all the time there was: asked again, it would take as long."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of the API, whatever its status."""

    node: str
    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body, with undecodable bytes replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Object:
        """The body as an object.

        Raises:
            ClusterApiError: it is none.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ClusterApiError(
                f"{self.node}: the API answered {self.status} without JSON: {self.text[:200]!r}", status=self.status
            )
        return value


@dataclass(frozen=True, slots=True)
class Executed:
    """What a command in a container printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: Object | list[Object] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class _Endpoint:
    forward: Forward
    # the library says it has types, but its methods have none
    client: Any
    anonymous: Any


class ClusterApi:
    """The API of one cluster, over whichever control plane answers. Thread-safe; a context manager.

    Args:
        cluster: whose control planes to try.
        workspace: where the client's certificate lies for the time of the connection (0600, in a 0700 directory).
        connections: carries the forwards.
        pki: issues the client's certificate and knows the cluster's CAs.
        leaf: name of the client certificate in the PKI.
        last: control planes known not to answer, tried after all others.
        leaving: control planes that cluster.yaml does not name any more, and that serve still; tried after the others.
    """

    def __init__(
        self,
        cluster: Cluster,
        workspace: Workspace,
        connections: Connections,
        pki: Pki,
        *,
        leaf: str = "admin",
        last: Container[str] = (),
        leaving: Sequence[Node] = (),
    ) -> None:
        self._library = _library()
        self._planes = tuple(sorted((*cluster.control_planes, *leaving), key=lambda node: node.name in last))
        self._connections = connections
        self._ca = pki.trust(CaName.CLUSTER)
        workspace.create()
        # the client library wants files
        self._stack = contextlib.ExitStack()
        directory = self._stack.enter_context(private_directory(workspace.root, ".client-"))
        self._files = write_client_files(directory, self._ca, *_pair(pki, leaf))
        self._lock = threading.Lock()
        self._node_locks = {node.name: threading.Lock() for node in self._planes}
        self._endpoints: dict[str, _Endpoint] = {}
        self._current = next(iter(self._planes))
        self._discovered: dict[tuple[str, str], tuple[str, bool]] = {}

    def __enter__(self) -> ClusterApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop every connection and the client's certificate."""
        with self._lock:
            for endpoint in self._endpoints.values():
                _close(endpoint)
            self._endpoints.clear()
        self._stack.close()

    # --- objects -----------------------------------------------------------------------------------------------

    def get(self, obj: Object, *, timeout: float = 10) -> Object | None:
        """The live object that an object (`apiVersion`, `kind`, `metadata.name`, `metadata.namespace`) names; None for none."""
        response = self.request("GET", self.path_of(obj), timeout=timeout)
        return None if response.status == 404 else self._checked("read", obj, response).json()

    def items(self, path: str, *, timeout: float = 10, **query: str) -> list[Object]:
        """The items of a collection.

        Args:
            path: e.g. ``/api/v1/namespaces/kube-system/pods``.
            timeout: seconds for the whole request.
            query: query parameters, e.g. ``labelSelector="k8s-app=kube-dns"``.
        """
        response = self.request("GET", path, query=query, timeout=timeout)
        if response.status >= 300:
            raise self._error(f"list {path}", response)
        return list(response.json().get("items") or [])

    def apply(
        self, obj: Object, *, field_manager: str = "provisioner", force: bool = True, dry_run: bool = False, timeout: float = 10
    ) -> Object:
        """Server-side apply; returns the object as stored (or as it would be, with ``dry_run``)."""
        query = {"fieldManager": field_manager, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        response = self.request(
            "PATCH", self.path_of(obj), body=obj, query=query, content_type="application/apply-patch+yaml", timeout=timeout
        )
        return self._checked("apply", obj, response).json()

    def create(
        self, obj: Object, *, timeout: float = 10, headers: Mapping[str, str] | None = None, dry_run: bool = False
    ) -> Object:
        """POST an object (also a review, which is never stored)."""
        path = self.path_of(obj, collection=True)
        query = {"dryRun": "All"} if dry_run else {}
        return self._checked(
            "create", obj, self.request("POST", path, body=obj, query=query, headers=headers or {}, timeout=timeout)
        ).json()

    def delete(self, obj: Object, *, grace: int | None = None, timeout: float = 10) -> bool:
        """Delete in the background; False where the object was not there."""
        query = {"propagationPolicy": "Background"}
        if grace is not None:
            query["gracePeriodSeconds"] = str(grace)
        response = self.request("DELETE", self.path_of(obj), query=query, timeout=timeout)
        if response.status == 404:
            return False
        self._checked("delete", obj, response)
        return True

    def merge(self, obj: Object, change: Object, *, timeout: float = 10) -> Object | None:
        """Merge a change into the live object that ``obj`` names (RFC 7396: null removes); None where it is not there."""
        content_type = "application/merge-patch+json"
        response = self.request("PATCH", self.path_of(obj), body=change, content_type=content_type, timeout=timeout)
        return None if response.status == 404 else self._checked("change", obj, response).json()

    def path_of(self, obj: Object, *, collection: bool = False) -> str:
        """The API path of an object, or of the collection it belongs to."""
        api, kind = str(obj["apiVersion"]), str(obj["kind"])
        plural, namespaced = self._resource(api, kind)
        metadata = obj.get("metadata") or {}
        base = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        if namespaced:
            base += f"/namespaces/{quote(metadata.get('namespace') or 'default', safe='')}"
        return f"{base}/{plural}" if collection else f"{base}/{plural}/{quote(str(metadata['name']), safe='')}"

    def _resource(self, api: str, kind: str) -> tuple[str, bool]:
        known = KINDS.get((api, kind)) or self._discovered.get((api, kind))
        if known:
            return known
        path = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        response = self.request("GET", path)
        if response.status == 404:
            raise UnknownKind(f"the cluster's API has no {api}, and so no kind {kind}", status=404, reason="NotFound")
        if response.status >= 300:
            raise self._error(f"find the kind {kind} of {api}", response)
        for resource in response.json().get("resources") or []:
            if "/" not in resource["name"]:
                self._discovered[api, resource["kind"]] = (resource["name"], bool(resource["namespaced"]))
        try:
            return self._discovered[api, kind]
        except KeyError:
            raise UnknownKind(f"the cluster's API has no kind {kind} in {api}", status=404, reason="NotFound") from None

    # --- pods --------------------------------------------------------------------------------------------------

    def logs(self, namespace: str, pod: str, *, tail: int = 100, timeout: float = 10) -> str:
        """The last lines of a pod's log, as its node's kubelet gives them."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        response = self.request("GET", path, query={"tailLines": str(tail)}, timeout=timeout)
        if response.status >= 300:
            raise self._error(f"read the log of {namespace}/{pod}", response)
        return response.text

    def exec(self, namespace: str, pod: str, command: list[str], *, timeout: float = 10) -> Executed:
        """Run a command in a pod's only container.

        Raises:
            ClusterApiError: it could not be run, or did not end in ``timeout`` seconds.
        """
        library, streaming = self._library, _exec_library()
        timeout = stretch(timeout)
        what = f"exec {command} in {namespace}/{pod}"
        # the library offers no other way to keep a TLS handshake with a hung apiserver from waiting for ever
        streaming.websocket.setdefaulttimeout(timeout)
        endpoint = self._endpoint(self._current)
        # `stream` replaces a method of the ApiClient for the time of its call: it must be nobody else's
        client: Any = library.ApiClient(endpoint.client.configuration)
        try:
            session = streaming.stream(
                streaming.CoreV1Api(client).connect_get_namespaced_pod_exec,
                pod,
                namespace,
                command=command,
                stdin=False,
                stdout=True,
                stderr=True,
                tty=False,
                _preload_content=False,
            )
            try:
                session.run_forever(timeout=timeout)
                if session.is_open():
                    raise ClusterApiError(f"{what}: not done within {timeout:g} s")
                code = _exit_code(session.read_channel(_STATUS_CHANNEL), what)
                return Executed(code=code, stdout=session.read_stdout(), stderr=session.read_stderr())
            finally:
                session.close()
                # the library forgets the socket where the server has said goodbye first
                session.sock.shutdown()
        except (library.ApiException, OSError, streaming.websocket.WebSocketException, TypeError, KeyError) as error:
            # TypeError and KeyError: the stream broke off in the midst, which the library does not expect
            reason = getattr(error, "reason", None) or str(error)
            raise ClusterApiError(f"{what} through {self._current.name}: {' '.join(str(reason).split())[:300]}") from None
        finally:
            client.close()

    # --- requests ----------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Object | list[Object] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = 10,
        passing: Container[int] = _PASSING,
    ) -> Response:
        """One request to whichever control plane answers; the others are tried when it does not.

        Args:
            method: HTTP method; all but POST may be sent twice.
            path: absolute path on the API.
            body: sent as JSON.
            query: query parameters.
            headers: further headers (impersonation).
            content_type: of the body.
            timeout: seconds for each attempt, and for passing states (an election, a starting apiserver) to pass.
            passing: statuses that are such a state; an eviction's 429 is an answer.

        Raises:
            ClusterApiError: no control plane answers. An answer that refuses is returned, not raised.
        """

        call = _Request(method, path, body, query or {}, headers or {}, content_type)

        def attempt() -> Response:
            failures: dict[str, str] = {}
            silent = set[str]()
            # a second round for a connection that broke just now; what was sent by POST may have been done already
            for node in self._order() * (1 if method == "POST" else 2):
                if node.name in silent:
                    continue
                try:
                    response = self._send(node, call, timeout)
                except _NoAnswerError as error:
                    failures[node.name] = f"{node.name}: {error}"
                    if isinstance(error, _SilentError):
                        silent.add(node.name)
                    continue
                self._current = node
                if response.status in passing and not path.endswith("/proxy") and "/proxy/" not in path:
                    raise NotYet(f"{node.name} answered {response.status}: {message_of(response)}")
                return response
            raise ClusterApiError(
                "no control plane answers: " + "; ".join(failures.values()),
                hint="look at `systemctl status kube-apiserver etcd` on the control planes",
            )

        try:
            return wait_until(f"{method} {path}", attempt, seconds=timeout, every=0.3)
        except WaitTimeout as error:
            raise ClusterApiError(error.message) from None

    def request_to(
        self, node: Node, path: str, *, anonymous: bool = False, timeout: float = 5, query: Mapping[str, str] | None = None
    ) -> Response:
        """GET from one control plane and no other.

        Raises:
            ClusterApiError: it does not answer.
        """
        try:
            return self._send(node, _Request("GET", path, query=query or {}), timeout, anonymous=anonymous)
        except _NoAnswerError as error:
            raise ClusterApiError(f"{node.name}: the apiserver does not answer: {error}") from None

    def _order(self) -> list[Node]:
        start = self._planes.index(self._current)
        return [*self._planes[start:], *self._planes[:start]]

    def _send(self, node: Node, call: _Request, timeout: float, *, anonymous: bool = False) -> Response:
        try:
            endpoint = self._endpoint(node)
        except ProvisionerError as error:
            raise _NoAnswerError(error.message) from None
        client = endpoint.anonymous if anonymous else endpoint.client
        url = client.configuration.host + call.path + (f"?{urlencode(call.query)}" if call.query else "")
        sent = {"Accept": "application/json", "User-Agent": "provisioner", **call.headers}
        if call.body is not None:
            sent["Content-Type"] = call.content_type
        try:
            answer = client.rest_client.request(call.method, url, headers=sent, body=call.body, _request_timeout=stretch(timeout))
            raw = answer.read()
        except (self._library.HTTPError, self._library.ApiException, OSError) as error:
            # what the machine said about the connection tells more than the end of file that it became on this side
            kind = (
                _SilentError if any(isinstance(cause, self._library.TimeoutError) for cause in _causes(error)) else _NoAnswerError
            )
            raise kind(endpoint.forward.error or _readable(error)) from None
        return Response(node=node.name, status=int(answer.status), body=raw)

    def _endpoint(self, node: Node) -> _Endpoint:
        if node.name not in self._endpoints:
            # before the lock: threads that wait for one attempt to connect share its failure, those behind a lock try one by one
            self._connections.connect(node)
        with self._node_locks[node.name]:
            found = self._endpoints.get(node.name)
            if found is not None:
                return found
            library = self._library
            forward = self._connections.forward(node, APISERVER_PORT)
            ca, certificate, key = (str(file) for file in self._files)
            host = f"https://127.0.0.1:{forward.port}"
            # no_proxy and an empty proxy: the environment's proxy must never see a connection to this machine itself
            common: dict[str, Any] = {"host": host, "ssl_ca_cert": ca, "proxy": "", "no_proxy": "127.0.0.1", "retries": False}
            made = _Endpoint(
                forward,
                library.ApiClient(library.Configuration(**common, cert_file=certificate, key_file=key, connection_pool_maxsize=16)),
                library.ApiClient(library.Configuration(**common)),
            )
            with self._lock:
                self._endpoints[node.name] = made
            return made

    def _checked(self, verb: str, obj: Object, response: Response) -> Response:
        if response.status < 300:
            return response
        metadata = obj.get("metadata") or {}
        name = "/".join(str(part) for part in (metadata.get("namespace"), metadata.get("name")) if part)
        raise self._error(f"{verb} {obj.get('kind')} {name}".strip(), response)

    @staticmethod
    def _error(what: str, response: Response) -> ClusterApiError:
        return ClusterApiError(
            f"cannot {what}: {response.node} answered {response.status}: {message_of(response)}",
            status=response.status,
            reason=_status_field(response, "reason"),
        )


def _exit_code(status: str, what: str) -> int:
    """The exit code in a metav1.Status.

    Raises:
        ClusterApiError: there is none: the stream broke off, or the command could not be started.
    """
    try:
        document = json.loads(status)
        if document["status"] == "Success":
            return 0
        for cause in document.get("details", {}).get("causes") or ():
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        text = str(document["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        text = f"the stream ended without an exit code: {status!r}" if status else "the stream ended without an exit code"
    raise ClusterApiError(f"{what}: {' '.join(text.split())[:500]}")


def message_of(response: Response) -> str:
    """What the API says about a refusal: the message of its Status object, else the first bytes of the body."""
    return _status_field(response, "message") or " ".join(response.text.split())[:300] or "(no text)"


def _pair(pki: Pki, leaf: str) -> tuple[bytes, bytes]:
    found = pki.leaf(leaf)
    return found.certificate, found.key


def _close(endpoint: _Endpoint) -> None:
    with contextlib.suppress(Exception):
        endpoint.client.close()
        endpoint.anonymous.close()
    with contextlib.suppress(Exception):
        endpoint.forward.close()


def _status_field(response: Response, field: str) -> str:
    try:
        value = json.loads(response.body)
    except ValueError:
        return ""
    return str(value.get(field) or "") if isinstance(value, dict) else ""


def _readable(error: Exception) -> str:
    """One line without the library's nesting (`MaxRetryError(... NewConnectionError(...))`)."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError | ConnectionError | TimeoutError):
            return f"{type(cause).__name__}: {cause}"
    reason = getattr(error, "reason", None) or error
    return " ".join(f"{type(error).__name__}: {reason}".split())[:300]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
