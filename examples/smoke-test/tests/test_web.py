"""Does it run on a real cluster? Deployed, reached through its Service, found by its name, and whole again after a pod's end."""

import json
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from provisioner.testing import Cluster

MANIFESTS = Path(__file__).parents[1] / "manifests"


@pytest.fixture
def web(cluster: Cluster, namespace: str) -> str:
    """The manifests in a namespace of the test's own, rolled out."""
    cluster.apply(MANIFESTS, namespace)
    cluster.kubectl("rollout", "status", "deployment/web", "--namespace", namespace, "--timeout=60s")
    return namespace


def test_it_answers_through_its_service(cluster: Cluster, web: str) -> None:
    pods = {pod.metadata.name for pod in cluster.core.list_namespaced_pod(web, label_selector="app=web").items}
    assert len(pods) == 2
    assert cluster.get("web", "/hostname", namespace=web) in pods


def test_other_pods_find_it_by_name(cluster: Cluster, web: str) -> None:
    query = urlencode({"request": "hostname", "protocol": "http", "host": f"web.{web}.svc.cluster.local", "port": 80, "tries": 1})
    for _ in range(20):
        answer = json.loads(cluster.get("web", f"/dial?{query}", namespace=web))
        if answer.get("responses"):
            return
        time.sleep(0.5)  # the node's kube-proxy hears of a Service's pods a moment after the API server
    pytest.fail(str(answer))


def test_a_pod_that_dies_is_replaced(cluster: Cluster, web: str) -> None:
    victim = cluster.core.list_namespaced_pod(web, label_selector="app=web").items[0].metadata.name
    cluster.core.delete_namespaced_pod(victim, web)
    cluster.kubectl("wait", "--for=delete", f"pod/{victim}", "--namespace", web, "--timeout=60s")
    cluster.kubectl("rollout", "status", "deployment/web", "--namespace", web, "--timeout=60s")
    assert cluster.apps.read_namespaced_deployment("web", web).status.ready_replicas == 2
