"""What a failed test tells of its cluster, where the cluster answers in part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from provisioner.testing import evidence


class Core:
    """An API with two pods that are not ready, of which one has no log to be read."""

    def list_namespaced_pod(self, _namespace: str, **_: Any) -> Any:
        state = SimpleNamespace(running=True, terminated=None, waiting=None)
        container = SimpleNamespace(name="app", state=state, ready=False, restart_count=0)
        status = SimpleNamespace(init_container_statuses=None, container_statuses=[container])
        names = ("first", "second")
        return SimpleNamespace(items=[SimpleNamespace(metadata=SimpleNamespace(name=name), status=status) for name in names])

    def list_node(self, **_: Any) -> Any:
        condition = SimpleNamespace(type="Ready", status="True")
        node = SimpleNamespace(metadata=SimpleNamespace(name="cp-1"), status=SimpleNamespace(conditions=[condition]))
        # the second one cannot be understood
        return SimpleNamespace(items=[node, None])

    def read_namespaced_pod_log(self, name: str, _namespace: str, **_: Any) -> str:
        if name == "first":
            raise ConnectionError("no kubelet")
        return "its last words"


def test_one_unreadable_log_does_not_hide_the_others() -> None:
    text = evidence.collect(SimpleNamespace(core=Core(), kubeconfig="k"), "ns")  # type: ignore[arg-type] # as much of one as is asked
    logs = text.partition("restarted:\n")[2]
    assert logs.splitlines() == [
        "  first, app:",
        "    could not be read: ConnectionError: no kubelet",
        "  second, app:",
        "    its last words",
    ]
    assert "  cp-1: Ready\n  could not be read: AttributeError" in text
