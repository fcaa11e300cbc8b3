"""The driver's side of a drill: objects in the cluster, the load on one of its machines, and looks at who leads and who is back."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provisioner import lab, pki
from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import ClusterApi, Object
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import EtcdApi, Member, Status
from provisioner.pki import CaName
from provisioner.ssh import Connections
from provisioner.topology import API_PROXY_URL, APISERVER_PORT, ETCD_METRICS_PORT
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace
from tests.e2e.drills.figures import Event, acknowledgements, lost

Real = Any  # tests/e2e/conftest.py's; pytest imports no test module by name

SCRIPT = Path(__file__).with_name("load.py")
# The job is the first line of standard input and carries the script itself: nothing is left on the machine.
START = (
    "import json, sys; job = json.loads(sys.stdin.buffer.readline()); scope = {'__name__': 'load'}; "
    "exec(compile(job['script'], 'load.py', 'exec'), scope); scope['main'](job)"
)
ADMIN_SOCKET = "/run/provisioner-api-proxy/admin.sock"
HTTP_PORT = 8080
# For whatever a cluster does in its own time; the machine that runs the drill may be slow and busy.
PATIENCE = 300.0
# The longest a load runs when nobody stops it.
LONGEST = 900.0
# Entries of etcd's log a member may be behind and count as caught up.
CAUGHT_UP = 200


@dataclass(frozen=True, slots=True)
class Job:
    """What the load is told; see ``load.py``.

    Attributes:
        endpoint: URL of the API for the writers.
        namespace: where they write; empty for no writers.
        run: part of every object's name, so that no two loads share one.
        pin: server of the node's proxy on which the kept connection begins; empty for any.
        poll: HOST:PORT of the Service that is called; empty for none.
        watch: URL of the API for the watcher; empty for none.
        slices: (namespace, Service) whose endpoints are watched.
    """

    script: str
    ca: str
    certificate: str
    key: str
    seconds: float = LONGEST
    endpoint: str = API_PROXY_URL
    namespace: str = ""
    run: str = field(default_factory=lambda: secrets.token_hex(3))
    pin: str = ""
    socket: str = ADMIN_SOCKET
    poll: str = ""
    watch: str = API_PROXY_URL
    slices: tuple[tuple[str, str], ...] = ()


class Load:
    """The load under way on one machine; its events as they come in."""

    def __init__(self, argv: Sequence[str], job: Job) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()
        # an SSH client of its own: Connections give a command's output only at its end
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            # the last line may be cut off where the machine lost its power
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                with self._lock:
                    self._events.append(event)

    @property
    def events(self) -> list[Event]:
        """What has happened so far."""
        with self._lock:
            return list(self._events)

    def wait_for_acknowledgements(
        self, count: int, *, clients: Sequence[str] = ("kept", "fresh"), seconds: float = PATIENCE
    ) -> None:
        """Wait until each writer has so many acknowledgements more than now."""
        before = {client: len(acknowledgements(self.events, client)) for client in clients}

        def enough() -> None:
            if self._process.poll() is not None:
                raise RuntimeError(f"the load has ended: {self._complaint()}")
            now = {client: len(acknowledgements(self.events, client)) - before[client] for client in clients}
            if min(now.values()) < count:
                raise NotYet(f"{now}; {[event for event in self.events if event['kind'] != 'poll'][-3:]}")

        wait_until(f"{count} acknowledged writes", enough, seconds=seconds)

    def stop(self) -> list[Event]:
        """Let it end what is under way, and return all events."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._reader.join(10)
        events = self.events
        assert events, f"the load said nothing: {self._complaint()}"
        assert events[-1]["kind"] == "ended", f"{events[-1]}: {self._complaint()}"
        return events

    def kill(self) -> list[Event]:
        """Drop the connection; on the machine the load ends by itself, if the machine still lives."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        return self.events

    def _complaint(self) -> str:
        assert self._process.stderr
        ended = self._process.poll() is not None and not self._process.stderr.closed
        return self._process.stderr.read()[-2000:] if ended else ""


class Kit:
    """One cluster in a drill's hands.

    Attributes:
        namespace: of this kit's objects; gone at the end.
    """

    def __init__(self, real: Real, issued: pki.Pki, api: ClusterApi) -> None:
        self.real = real
        self.cluster: Cluster = real.cluster
        self.workspace: Workspace = real.workspace
        self.connections: Connections = real.connections
        self.pki, self.api = issued, api
        self.namespace = f"drill-{secrets.token_hex(3)}"

    @classmethod
    @contextlib.contextmanager
    def of(cls, real: Real) -> Iterator[Kit]:
        """A kit for a cluster, with a namespace that is deleted at the end."""
        issued = pki.ensure(real.cluster, real.workspace.pki, now=dt.datetime.now(dt.UTC))
        with ClusterApi(real.cluster, real.workspace, real.connections, issued) as api:
            kit = cls(real, issued, api)
            # pods are agnhost's alone; a Pod Security level of its own for hostNetwork is not needed
            api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kit.namespace}})
            try:
                yield kit
            finally:
                with contextlib.suppress(ProvisionerError):
                    api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kit.namespace}})

    # --- objects -----------------------------------------------------------------------------------------------

    def object(self, api: str, kind: str, name: str, **fields: Any) -> Object:
        """An object of the kit's namespace."""
        return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": self.namespace}, **fields}

    def write(self, name: str, value: str = "written") -> None:
        """One ConfigMap, through whichever control plane answers, tried until it is there."""
        body = self.object("v1", "ConfigMap", name, data={"value": value})
        wait_until(f"ConfigMap {name}", lambda: self.api.apply(body), seconds=PATIENCE, retry_on=(ProvisionerError,))

    def read(self, name: str) -> str | None:
        """A ConfigMap's value; None where there is none."""
        found = self.api.get(self.object("v1", "ConfigMap", name))
        return None if found is None else str(found["data"]["value"])

    def deploy(self) -> None:
        """Web servers on every node, as two DaemonSets with a Service each: ``workers`` and ``planes``; wait until they answer."""
        image = load_lock().image("agnhost", self.cluster.kubernetes.version)
        for name, role in (("workers", Role.WORKER), ("planes", Role.CONTROL_PLANE)):
            container = {"name": "web", "image": image, "args": ["netexec", f"--http-port={HTTP_PORT}"]}
            spec = {
                "nodeSelector": {f"node-role.kubernetes.io/{role}": ""},
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "containers": [{**container, "readinessProbe": {"httpGet": {"path": "/hostname", "port": HTTP_PORT}}}],
            }
            template = {"metadata": {"labels": {"app": name}}, "spec": spec}
            selector = {"matchLabels": {"app": name}}
            self.api.apply(self.object("apps/v1", "DaemonSet", name, spec={"selector": selector, "template": template}))
            ports = [{"port": 80, "targetPort": HTTP_PORT}]
            self.api.apply(self.object("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports}))
        for name, role in (("workers", Role.WORKER), ("planes", Role.CONTROL_PLANE)):
            self.wait_for_pods(name, len(self.cluster.nodes_with(role)))

    def wait_for_pods(self, name: str, count: int) -> None:
        """Wait until a DaemonSet has so many Ready pods."""

        def ready() -> None:
            status = (self.api.get(self.object("apps/v1", "DaemonSet", name)) or {}).get("status") or {}
            if status.get("numberReady") != count:
                raise NotYet(f"{status.get('numberReady')} of {count} Ready")

        wait_until(f"the pods of {name}", ready, seconds=PATIENCE, retry_on=(ProvisionerError,))

    def service_address(self, name: str) -> str:
        """ClusterIP and port of a Service of the kit."""
        found = self.api.get(self.object("v1", "Service", name))
        assert found, f"Service {name} is gone"
        return f"{found['spec']['clusterIP']}:80"

    def plane_addresses(self, machine: str) -> dict[str, str]:
        """What the watcher's endpoints call one control plane: {Service: address}."""
        pods = self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector="app=planes")
        own = next((str(pod["status"]["podIP"]) for pod in pods if pod["spec"].get("nodeName") == machine), "")
        return {"kubernetes": str(self.cluster.node(machine).ip), "planes": own}

    # --- load --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def load(self, machine: str, *, pin: str = "", endpoint: str = API_PROXY_URL, pods: bool = True) -> Iterator[Load]:
        """Writers, and with ``pods`` the Service's client and the watcher, on one machine until the block ends.

        Args:
            machine: where they run.
            pin: control plane on which the kept connection begins.
            endpoint: URL of the API for the writers.
        """
        leaf = self.pki.leaf("admin")
        job = Job(
            script=SCRIPT.read_text(),
            ca=self.pki.trust(CaName.CLUSTER).decode(),
            certificate=leaf.certificate.decode(),
            key=leaf.key.decode(),
            endpoint=endpoint,
            namespace=self.namespace,
            pin=pin,
            poll=self.service_address("workers") if pods else "",
            slices=(("default", "kubernetes"), *(((self.namespace, "planes"),) if pods else ())),
        )
        load = Load(lab.ssh_command(self.real.name, machine, ["python3", "-c", shlex.quote(START)]), job)
        try:
            load.wait_for_acknowledgements(10)
            if pin:
                pinned = [event for event in load.events if event["kind"] == "pinned"]
                assert pinned, f"the kept connection was not asked to be on {pin}"
                assert pinned[0]["done"], f"the kept connection is not on {pin}"
            yield load
        finally:
            load.kill()

    def lost(self, events: Sequence[Event]) -> dict[str, str]:
        """Acknowledged writes that are not there, once everything is over."""
        stored = self.api.items(f"/api/v1/namespaces/{self.namespace}/configmaps", timeout=60)
        values = {str(item["metadata"]["name"]): item["data"].get("value", "") for item in stored}
        return lost(events, {name: int(value) for name, value in values.items() if re.fullmatch(r"\d{1,9}", value)})

    # --- who leads, who is back --------------------------------------------------------------------------------

    def members(self, *, but: str = "") -> dict[str, Status]:
        """What every etcd member says, by machine; ``but`` is not asked.

        Raises:
            ProvisionerError: one does not answer.
        """
        return {node.name: self.member(node) for node in self.cluster.etcd_members if node.name != but}

    def member(self, node: Node) -> Status:
        """What one etcd member says."""
        with EtcdApi(node, self.workspace, self.connections, self.pki) as etcd:
            return etcd.status()

    def member_list(self) -> tuple[Member, ...]:
        """Etcd's member list, as a quorum knows it."""
        with EtcdApi(self.cluster.etcd_members[0], self.workspace, self.connections, self.pki) as etcd:
            return etcd.members()

    def leader(self) -> str:
        """The machine with etcd's leader."""

        def look() -> str:
            members = self.members()
            for name, status in members.items():
                if status.leader == status.member_id:
                    return name
            raise NotYet("no member leads")

        return wait_until("a leader of etcd", look, seconds=PATIENCE, retry_on=(ProvisionerError,))

    def lease_holders(self) -> set[str]:
        """The machines whose controller-manager or scheduler is at work."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        leases = [self.api.request("GET", f"{path}/{name}").json() for name in ("kube-controller-manager", "kube-scheduler")]
        return {str(lease["spec"]["holderIdentity"]).split("_")[0] for lease in leases}

    def leader_changes(self, machine: str) -> int:
        """How many leader changes a member has seen since it was started: etcd_server_leader_changes_seen_total."""
        with self.connections.forward(self.cluster.node(machine), ETCD_METRICS_PORT) as forward:
            connection = http.client.HTTPConnection("127.0.0.1", forward.port, timeout=10)
            try:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
            finally:
                connection.close()
        found = re.search(r"^etcd_server_leader_changes_seen_total (\S+)$", text, re.MULTILINE)
        assert found, "etcd's metrics do not count leader changes"
        return int(float(found[1]))

    def wait_for_member(self, machine: str) -> None:
        """Wait until a member votes, sees a leader and has caught up."""

        def back() -> None:
            statuses = self.members()
            own = statuses[machine]
            behind = max(status.raft_applied_index for status in statuses.values()) - own.raft_applied_index
            if own.learner or not own.leader or behind > CAUGHT_UP:
                raise NotYet(f"{machine}: leader {own.leader:x}, learner {own.learner}, {behind} entries behind")

        wait_until(f"etcd on {machine}", back, seconds=PATIENCE, retry_on=(ProvisionerError,))

    def wait_for_plane(self, machine: str, *, since: dt.datetime) -> None:
        """Wait until a control plane is wholly back: its member, its apiserver, its Node with a lease newer than ``since``."""
        node = self.cluster.node(machine)
        if node.has(Role.ETCD):
            self.wait_for_member(machine)

        def back() -> None:
            ready = self.api.request_to(node, "/readyz")
            if ready.status != http.client.OK:
                raise NotYet(f"{machine}: /readyz says {ready.status}: {ready.text[-200:]}")
            self._node_is_back(machine, since)

        wait_until(f"{machine} is back", back, seconds=PATIENCE, retry_on=(ProvisionerError,))

    def wait_for_nodes(self, *, since: dt.datetime) -> None:
        """Wait until every Node is Ready, with a lease newer than ``since``."""

        def back() -> None:
            for node in self.cluster.kubernetes_nodes:
                self._node_is_back(node.name, since)

        wait_until("every Node is back", back, seconds=PATIENCE, retry_on=(ProvisionerError,))

    def _node_is_back(self, machine: str, since: dt.datetime) -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{machine}"
        renewed = self.api.request("GET", path).json()["spec"]["renewTime"]
        if dt.datetime.fromisoformat(renewed) < since:
            raise NotYet(f"{machine}'s kubelet was last heard of at {renewed}")
        conditions = self.api.request("GET", f"/api/v1/nodes/{machine}").json()["status"]["conditions"]
        ready = next(condition for condition in conditions if condition["type"] == "Ready")
        if ready["status"] != "True":
            raise NotYet(f"{machine} is not Ready: {ready['message']}")

    def holder_of(self, address: str) -> str:
        """The control plane that holds an address on one of its interfaces; empty where none does."""
        for node in self.cluster.control_planes:
            with contextlib.suppress(ProvisionerError):
                done = self.connections.run(node, "ip -o -4 address", timeout=10)
                if re.search(rf"\binet {re.escape(address)}/", done.text):
                    return node.name
        return ""


def now() -> float:
    """The load's clock."""
    return time.monotonic()


def vip_url(address: str) -> str:
    """URL of the API at a virtual address."""
    return f"https://{address}:{APISERVER_PORT}"
