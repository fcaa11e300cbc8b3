"""What a drain makes of pods and budgets, as far as values decide."""

from __future__ import annotations

from typing import Any

import pytest

from provisioner.lifecycle.pods import Budget, Pod, plan_drain, selects, state_of


def pod(
    name: str, *, owner: str = "", node: str = "w-1", phase: str = "Running", ready: bool = True, **metadata: Any
) -> dict[str, Any]:
    owners = [{"kind": owner, "name": f"the-{name}", "controller": True}] if owner else []
    # an owner that is no controller replaces nothing
    owners.append({"kind": "Node", "name": node})
    return {
        "metadata": {"namespace": "web", "name": name, "uid": f"uid-{name}", "ownerReferences": owners, **metadata},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


ENDING: Any = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}


@pytest.mark.parametrize(
    ("obj", "fate"),
    [
        (pod("a", owner="ReplicaSet"), "evict"),
        (pod("a", owner="StatefulSet"), "evict"),
        (pod("a", owner="Job"), "evict"),
        (pod("a", owner="ReplicaSet", phase="Pending"), "evict"),
        (pod("a", owner="DaemonSet"), "stay"),
        (pod("a", annotations={"kubernetes.io/config.mirror": "x"}), "stay"),
        (pod("a", owner="Job", phase="Succeeded"), "stay"),
        (pod("a", phase="Failed"), "stay"),
        (pod("a"), "block"),
        (pod("a", phase="Unknown"), "block"),
        # it ends already: nobody has to be asked whether it may
        (pod("a", **ENDING), "evict"),
        (pod("a", owner="DaemonSet", **ENDING), "stay"),
        # its containers are gone, its object and its volumes are not yet
        (pod("a", owner="ReplicaSet", phase="Succeeded", **ENDING), "evict"),
        (pod("a", owner="ReplicaSet", node="w-2"), ""),
        (pod("a", owner="ReplicaSet", node=""), ""),
    ],
)
def test_what_becomes_of_a_pod(obj: dict[str, Any], fate: str) -> None:
    plan = plan_drain([obj], "w-1")
    found = {name: [str(found) for found in getattr(plan, name)] for name in ("evict", "stay", "block")}
    assert found == {name: ["web/a"] if name == fate else [] for name in found}


def test_a_pod_of_the_api() -> None:
    found = Pod.of(pod("a", owner="ReplicaSet", finalizers=["example.com/x"], labels={"app": "web"}, **ENDING))
    assert (found.owner, found.ready, found.ending, found.grace) == ("ReplicaSet the-a", True, "2026-01-01T00:00:00Z", 30)
    assert (found.finalizers, found.labels, found.node) == (("example.com/x",), {"app": "web"}, "w-1")
    # just bound, no status yet
    bare = Pod.of({"metadata": {"namespace": "n", "name": "b", "uid": "u"}, "spec": {}})
    assert (bare.owner, bare.ready, bare.finished, bare.ending, bare.node) == ("", False, False, "", "")


LABELS = {"app": "web", "tier": "front"}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "web", "tier": "back"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        # as the API's own: a label that is not there is in no set
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
    ],
)
def test_selectors(selector: dict[str, Any], selected: bool) -> None:
    assert selects(selector, LABELS) is selected


def budget(allowed: int, healthy: int, desired: int, expected: int, selector: object, *, namespace: str = "web") -> Budget:
    status = {
        "disruptionsAllowed": allowed,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
    }
    return Budget.of({"metadata": {"namespace": namespace, "name": "b"}, "spec": {"selector": selector}, "status": status})


def test_which_pods_a_budget_covers() -> None:
    found = Pod.of(pod("a", labels=LABELS))
    assert budget(0, 1, 1, 1, {}).covers(found)
    assert budget(0, 1, 1, 1, {"matchLabels": {"app": "web"}}).covers(found)
    assert not budget(0, 1, 1, 1, {"matchLabels": {"app": "web"}}, namespace="other").covers(found)
    assert not budget(0, 1, 1, 1, None).covers(found)


def test_a_budget_in_words() -> None:
    pods = [
        Pod.of(pod("a")),
        Pod.of(pod("b", ready=False)),
        Pod.of(pod("c", ready=False, **ENDING)),
        Pod.of(pod("d", ready=False, phase="Succeeded")),
    ]
    waiting = budget(0, 1, 1, 2, {})
    assert state_of(waiting, pods) == "1 of 2 pods are Ready, 1 must be, so 0 may go; not Ready: web/b"
    assert state_of(budget(0, 2, 2, 2, {}), pods[:1]).endswith("it lets no pod go as long as there are no more of them")
    assert state_of(budget(1, 3, 2, 3, {}), pods[:1]) == "3 of 3 pods are Ready, 2 must be, so 1 may go"
