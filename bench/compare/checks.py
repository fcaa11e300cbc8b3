"""The proof that a cluster works, the same for whoever built it: a kubeconfig, the official client, and nothing else.

    python -m bench.compare.checks KUBECONFIG NODE...

A pod on every node; every pod calls every other, a Service's address, and the Service by its name in the cluster's DNS; the log of
every pod is read, and a command runs in each. What a pod calls is told by agnhost's `/dial`, through the API server's proxy.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from urllib3.exceptions import HTTPError

AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
PORT = 8080
SECONDS = 120.0
EVERY = 0.2
LOGGED = "Started HTTP server on port"
CALL_SECONDS = 10

Object = dict[str, Any]


class CheckFailedError(Exception):
    """A check has not passed (yet), or the API has refused a request; the text is what was seen."""


# what may pass by itself while a cluster is young
PASSING = (CheckFailedError, ApiException, HTTPError, OSError)


class Api:
    """Requests through the official client, answers as plain dictionaries."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        self.client: Any = config.new_client_from_config(kubeconfig)  # type: ignore[no-untyped-call]

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        known: Sequence[int] = (),
    ) -> str:
        """The body of an answer.

        Args:
            method: GET, POST or DELETE.
            path: of the API.
            body: an object.
            query: parameters of the URL.
            known: statuses that are no error here, though they are none of 2xx.

        Raises:
            CheckFailedError: the API has refused.
        """
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        parts = self.client.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = self.client.call_api(*parts, _request_timeout=CALL_SECONDS)
        text = str(answer.read().decode(errors="replace"))
        if not 200 <= answer.status < 300 and answer.status not in known:
            raise CheckFailedError(f"{method} {path}: {answer.status} {text[:300]}")
        return text

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """An object, or a list of them."""
        found: Object = json.loads(self.request("GET", path, query=query))
        return found

    def create(self, path: str, body: Object) -> None:
        """Make an object, which an earlier try may have made already."""
        self.request("POST", path, body=body, known=(409,))


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod of the checks."""

    name: str
    node: str
    address: str


class Checker:
    """One run of all checks against one cluster.

    Args:
        kubeconfig: an administrator's.
        nodes: the names of all nodes, no more and no less.
        image: agnhost's reference; every machine has it.
        seconds: deadline of each check.
    """

    def __init__(self, kubeconfig: str, nodes: Iterable[str], *, image: str = AGNHOST, seconds: float = SECONDS) -> None:
        self._api, self._nodes, self._image, self._seconds = Api(kubeconfig), frozenset(nodes), image, seconds
        self._namespace = f"race-{uuid.uuid4().hex[:8]}"
        self._path = f"/api/v1/namespaces/{self._namespace}"
        self._pods: list[Pod] = []
        self._address = ""

    def run(self) -> dict[str, Object]:
        """Every check in turn; name -> seconds since the start at which it had passed, and its evidence.

        Raises:
            CheckFailedError: names the check and what was seen last.
        """
        steps: Sequence[tuple[str, Callable[[], str]]] = (
            ("all nodes Ready", self._ready),
            ("the checks' objects made", self._make),
            ("a pod on every node", self._running),
            ("every pod to every pod", self._pairs),
            ("a Service from every node", self._service),
            ("its name in DNS from every node", self._name),
            ("logs from every node", self._logs),
            ("exec on every node", self._exec),
        )
        began = time.monotonic()
        passed: dict[str, Object] = {}
        for name, step in steps:
            evidence = self._until(name, step)
            passed[name] = {"at_s": round(time.monotonic() - began, 2), "evidence": evidence}
        return passed

    def remove(self) -> None:
        """Delete the checks' namespace; does not wait until it is gone."""
        self._api.request("DELETE", self._path)

    def _until(self, name: str, step: Callable[[], str]) -> str:
        end = time.monotonic() + self._seconds
        while True:
            try:
                return step()
            except PASSING as error:
                last = str(error)
            if time.monotonic() > end:
                raise CheckFailedError(f"{name}: not within {self._seconds:g} s; last seen: {last[:1000]}")
            time.sleep(EVERY)

    def _ready(self) -> str:
        found = {node["metadata"]["name"]: is_ready(node) for node in self._api.get("/api/v1/nodes")["items"]}
        if set(found) != self._nodes or not all(found.values()):
            raise CheckFailedError(f"the nodes and whether they are Ready: {found}")
        return f"{len(found)} nodes"

    def _make(self) -> str:
        labels = {"app": "race"}
        container = {
            "name": "netexec",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", f"--http-port={PORT}"],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
        }
        pod = {"containers": [container], "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0}
        daemons = {
            "metadata": {"name": "race"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        }
        service = {"metadata": {"name": "race"}, "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": PORT}]}}
        self._api.create("/api/v1/namespaces", {"metadata": {"name": self._namespace}})
        self._api.create(f"/apis/apps/v1/namespaces/{self._namespace}/daemonsets", daemons)
        self._api.create(f"{self._path}/services", service)
        self._address = str(self._api.get(f"{self._path}/services/race")["spec"]["clusterIP"])
        return f"the Service's address is {self._address}"

    def _running(self) -> str:
        pods = self._api.get(f"{self._path}/pods")["items"]
        ready = [pod for pod in pods if is_ready(pod)]
        if sorted(pod["spec"]["nodeName"] for pod in ready) != sorted(self._nodes):
            seen = [(pod["spec"].get("nodeName"), pod["status"].get("phase"), is_ready(pod)) for pod in pods]
            raise CheckFailedError(f"pods (node, phase, Ready): {seen}")
        self._pods = [Pod(pod["metadata"]["name"], pod["spec"]["nodeName"], pod["status"]["podIP"]) for pod in ready]
        return f"{len(ready)} pods"

    def _pairs(self) -> str:
        def dial(pair: tuple[Pod, Pod]) -> None:
            source, target = pair
            answers = self._dial(source, target.address, PORT)
            if answers != [target.name]:
                raise CheckFailedError(f"{source.node} -> {target.node}: {answers}")

        pairs = [(source, target) for source in self._pods for target in self._pods]
        _each(pairs, dial)
        return f"{len(pairs)} pairs"

    def _service(self) -> str:
        return self._served(self._address)

    def _name(self) -> str:
        return self._served(f"race.{self._namespace}.svc.cluster.local")

    def _served(self, host: str) -> str:
        names = {pod.name for pod in self._pods}

        def dial(pod: Pod) -> None:
            answers = self._dial(pod, host, 80)
            if len(answers) != 1 or answers[0] not in names:
                raise CheckFailedError(f"{pod.node} -> {host}: {answers}")

        _each(self._pods, dial)
        return f"{host} from {len(self._pods)} pods"

    def _dial(self, source: Pod, host: str, port: int) -> list[str]:
        """What the pod got from ``host:port``, or its errors: netexec answers with its pod's name."""
        query = {"host": host, "port": str(port), "request": "hostname", "protocol": "http", "tries": "1"}
        found = self._api.get(f"{self._path}/pods/{source.name}:{PORT}/proxy/dial", query)
        return [str(item) for item in (found.get("responses") or found.get("errors") or [])]

    def _logs(self) -> str:
        def read(pod: Pod) -> None:
            text = self._api.request("GET", f"{self._path}/pods/{pod.name}/log")
            if LOGGED not in text:
                raise CheckFailedError(f"{pod.node}: the log of {pod.name} is {text[:200]!r}")

        _each(self._pods, read)
        return f"from {len(self._pods)} kubelets"

    def _exec(self) -> str:
        def run(pod: Pod) -> None:
            # `stream` changes the client that it is given: each gets one of its own
            core = client.CoreV1Api(Api(self._api.kubeconfig).client)
            command = ["/agnhost", "dns-suffix"]
            streams = {"stdout": True, "stderr": True, "stdin": False, "tty": False}
            text = stream(core.connect_get_namespaced_pod_exec, pod.name, self._namespace, command=command, **streams)
            if f"{self._namespace}.svc.cluster.local" not in text:
                raise CheckFailedError(f"{pod.node}: {' '.join(command)} in {pod.name} printed {text[:200]!r}")

        _each(self._pods, run)
        return f"in {len(self._pods)} pods"


def is_ready(item: Mapping[str, Any]) -> bool:
    """Whether a Node or a Pod has the condition Ready."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _each(items: Sequence[Any], function: Callable[[Any], None]) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        for future in [pool.submit(function, item) for item in items]:
            future.result()


def main() -> None:
    """Run the checks by hand."""
    checker = Checker(sys.argv[1], sys.argv[2:])
    try:
        print(json.dumps(checker.run(), indent=1))
    finally:
        with contextlib.suppress(*PASSING):
            checker.remove()


if __name__ == "__main__":
    main()
