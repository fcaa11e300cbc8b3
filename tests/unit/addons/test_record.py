"""What is on record of addons: what goes, in which order, and what a run that is cut short leaves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from provisioner.addons import record
from provisioner.addons.record import RECORD, Records
from provisioner.errors import BadInput


def obj(kind: str, name: str, namespace: str = "") -> dict[str, Any]:
    """A bare object."""
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **place}}


SPACE, MAP, EXTRA = obj("Namespace", "s"), obj("ConfigMap", "m", "s"), obj("Service", "old", "s")


class Api:
    """An API that holds objects by what names them, and notes what is asked of it."""

    def __init__(self, *objects: dict[str, Any], ours: bool = True, volumes: tuple[dict[str, Any], ...] = ()) -> None:
        labels = {"app.kubernetes.io/managed-by": "provisioner" if ours else "helm"}
        self.held = {record.ref_of(one): {**one, "metadata": {**one["metadata"], "labels": labels}} for one in objects}
        self.volumes = list(volumes)
        self.asked: list[str] = []

    def get(self, one: dict[str, Any]) -> dict[str, Any] | None:
        return self.held.get(record.ref_of(one))

    def apply(self, one: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(f"apply {one['metadata']['name']}")
        self.held[record.ref_of(one)] = one
        return one

    def delete(self, one: dict[str, Any]) -> bool:
        self.asked.append(f"delete {one['metadata']['name']}")
        return self.held.pop(record.ref_of(one), None) is not None

    def items(self, _path: str) -> list[dict[str, Any]]:
        return self.volumes


def recorded(**names: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The record of some addons."""
    data = {name.replace("_", "-"): json.dumps([record.ref_of(one) for one in found]) for name, found in names.items()}
    return {**RECORD, "data": data}


def test_a_cluster_without_addons_and_without_a_record_has_nothing_to_do() -> None:
    api: Any = Api()
    assert record.look(api, {}) == ()
    record.finish(api, record.begin(api, {}))
    assert api.asked == []


def test_the_record_is_there_before_the_first_object_and_the_same_is_no_change() -> None:
    api: Any = Api()
    wanted = {"metrics-server": (SPACE, MAP)}
    assert [change.action for change in record.look(api, wanted)] == ["create"]
    records = record.begin(api, wanted)
    assert api.asked == ["apply provisioner-addons"]
    for one in wanted["metrics-server"]:
        api.apply(one)
    record.finish(api, records)
    assert record.look(api, wanted) == ()
    assert Records.of(api.get(RECORD), wanted).differ is False


def test_what_is_off_goes_the_last_applied_first_and_the_record_with_it() -> None:
    api: Any = Api(SPACE, MAP, recorded(metrics_server=(SPACE, MAP)))
    changes = record.look(api, {})
    assert [(change.what, change.action) for change in changes] == [
        ("ConfigMap s/m", "delete (addons.metricsServer is off)"),
        ("Namespace s", "delete with all that is in it (addons.metricsServer is off)"),
        ("ConfigMap kube-system/provisioner-addons", "delete"),
    ]
    record.finish(api, record.begin(api, {}))
    assert api.asked == ["apply provisioner-addons", "delete m", "delete s", "delete provisioner-addons"]
    assert api.held == {}


def test_a_run_that_was_cut_short_before_it_deleted_goes_on() -> None:
    api: Any = Api(SPACE, MAP, recorded(metrics_server=(SPACE, MAP)))
    record.begin(api, {})
    assert [change.what for change in record.look(api, {})][:2] == ["ConfigMap s/m", "Namespace s"]


def test_an_object_that_a_newer_version_has_not_goes_alone() -> None:
    api: Any = Api(SPACE, MAP, EXTRA, recorded(metrics_server=(SPACE, EXTRA, MAP)))
    wanted = {"metrics-server": (SPACE, MAP)}
    assert [change.what for change in record.look(api, wanted) if change.action.startswith("delete")] == ["Service s/old"]
    record.finish(api, record.begin(api, wanted))
    assert [one for one in api.asked if one.startswith("delete")] == ["delete old"]


def test_what_somebody_else_has_put_in_its_place_stays() -> None:
    api: Any = Api(SPACE, MAP, recorded(metrics_server=(SPACE, MAP)), ours=False)
    assert [change.what for change in record.look(api, {})] == ["ConfigMap kube-system/provisioner-addons"]
    record.finish(api, record.begin(api, {}))
    assert [one for one in api.asked if one.startswith("delete")] == ["delete provisioner-addons"]


@pytest.mark.parametrize("text", ["{", '[["v1", "ConfigMap", "m"]]', "1", "[null]"])
def test_a_damaged_record_is_named(text: str) -> None:
    api: Any = Api({**RECORD, "data": {"metrics-server": text}})
    with pytest.raises(BadInput, match="ConfigMap kube-system/provisioner-addons, is damaged") as refused:
        record.look(api, {})
    assert "delete that ConfigMap" in refused.value.hint


def test_what_others_have_made_is_not_seized() -> None:
    api: Any = Api(SPACE, EXTRA, ours=False)
    wanted = {"metrics-server": (SPACE, MAP)}
    for ask, so_far in ((record.look, "nothing was changed"), (record.begin, "no addon was changed")):
        with pytest.raises(
            BadInput, match=f"addons.metricsServer is on, and the cluster has Namespace s already.*{so_far}"
        ) as refused:
            ask(api, wanted)
        assert "kubectl label --overwrite KIND NAME app.kubernetes.io/managed-by=provisioner" in refused.value.hint
    assert api.asked == []
    # handed over by its label, or left by a run that was cut short, and so on record
    assert record.look(Api(SPACE), wanted)  # type: ignore[arg-type]
    assert record.look(Api(SPACE, recorded(metrics_server=(SPACE, MAP)), ours=False), wanted) == ()  # type: ignore[arg-type]


def test_what_the_users_manifests_name_is_theirs() -> None:
    wanted = {"metrics-server": (SPACE, MAP)}
    # theirs from the start, without our label
    api: Any = Api(MAP, ours=False)
    assert [change.what for change in record.look(api, wanted, [MAP])] == ["ConfigMap kube-system/provisioner-addons"]
    records = record.begin(api, wanted, [MAP])
    # on record all the same: what they take out of their manifests is the addon's again
    assert record.ref_of(MAP) in Records.of(api.get(RECORD), wanted).stored["metrics-server"]
    record.finish(api, records)
    assert record.look(api, wanted) == ()
    # nor does it go with the addon, labelled or not
    api = Api(SPACE, MAP, recorded(metrics_server=(SPACE, MAP)))
    assert "ConfigMap s/m" not in [change.what for change in record.look(api, {}, [MAP])]
    record.finish(api, record.begin(api, {}, [MAP]))
    assert [one for one in api.asked if one.startswith("delete")] == ["delete s", "delete provisioner-addons"]


@pytest.mark.parametrize("provisioner", ["rancher.io/local-path", "example.com/other"])
def test_storage_with_volumes_is_not_taken_away(provisioner: str) -> None:
    metadata = {"name": "pv-1", "annotations": {"pv.kubernetes.io/provisioned-by": provisioner}}
    volume = {"metadata": metadata, "spec": {"claimRef": {"namespace": "shop", "name": "orders"}}}
    api: Any = Api(SPACE, recorded(local_path_provisioner=(SPACE,)), volumes=(volume,))
    if provisioner == "example.com/other":
        assert record.look(api, {})
        return
    for ask, so_far in ((record.look, "nothing was changed"), (record.begin, "no addon was changed")):
        # the second where the API was silent at the look
        with pytest.raises(BadInput, match=rf"1 of its volumes are there: pv-1 \(shop/orders\); {so_far}"):
            ask(api, {})
    assert record.look(api, {"local-path-provisioner": (SPACE,)}) == ()
    assert api.asked == []
