"""Which addons a cluster has, by a record in the cluster itself: what is on it and not wanted any more is taken away.

The record is written before the first object of an addon and corrected after the last one is gone, so that a run which is cut short
leaves nothing that nobody knows of. It also finds what an older version's manifest had and a newer one's has not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from provisioner import objects
from provisioner.addons.objects import LABEL
from provisioner.addons.table import ADDONS, LOCAL_PATH
from provisioner.cluster_api import ClusterApi, Object
from provisioner.errors import BadInput
from provisioner.plan import CLUSTER, Change
from provisioner.wait import NotYet, wait_until

RECORD: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "provisioner-addons", "namespace": "kube-system"}}
# How long what is deleted may take to be gone.
GONE_SECONDS = 90.0
_PROVISIONED_BY = ("pv.kubernetes.io/provisioned-by", "rancher.io/local-path")
_KEYS = {addon.component: addon.key for addon in ADDONS}

# apiVersion, kind, namespace (empty where there is none), name
Ref = tuple[str, str, str, str]


def ref_of(obj: Mapping[str, object]) -> Ref:
    """What names an object."""
    metadata = obj["metadata"]
    assert isinstance(metadata, Mapping)  # noqa: S101 - every object here has some
    return (str(obj["apiVersion"]), str(obj["kind"]), str(metadata.get("namespace") or ""), str(metadata["name"]))


def _ref(api: str, kind: str, namespace: str, name: str) -> Ref:
    return (api, kind, namespace, name)


def _object(ref: Ref) -> Object:
    api, kind, namespace, name = ref
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **({"namespace": namespace} if namespace else {})}}


@dataclass(frozen=True, slots=True)
class Records:
    """What is on record, and what shall be, by component, in the order in which objects are applied.

    Attributes:
        stored: on record.
        wanted: objects of the addons that are on.
        users: what the user's own manifests name: theirs is applied in place of an addon's, and is not taken away.
    """

    stored: Mapping[str, tuple[Ref, ...]] = field(default_factory=dict)
    wanted: Mapping[str, tuple[Ref, ...]] = field(default_factory=dict)
    users: frozenset[Ref] = frozenset()

    @classmethod
    def of(cls, stored: Object | None, wanted: Mapping[str, Iterable[Object]], users: Iterable[Object] = ()) -> Records:
        """From the record's object (None where there is none), the objects that are wanted, and those of the user's manifests.

        Raises:
            BadInput: the record is damaged.
        """
        data = (stored or {}).get("data") or {}
        try:
            known = {name: tuple(_ref(*one) for one in json.loads(text)) for name, text in data.items()}
        except (ValueError, TypeError):
            raise BadInput(
                f"the record of addons, {objects.describe(RECORD)}, is damaged: somebody has written something else into it",
                hint="delete that ConfigMap: the next run writes it anew from cluster.yaml; what is left of addons that are off,"
                f" with the label {LABEL[0]}={LABEL[1]}, is then yours to delete",
            ) from None
        return cls(
            known, {name: tuple(ref_of(obj) for obj in found) for name, found in wanted.items()}, frozenset(map(ref_of, users))
        )

    @property
    def differ(self) -> bool:
        """Whether the record is to be written anew."""
        return dict(self.stored) != dict(self.wanted)

    def stale(self) -> tuple[tuple[str, Ref], ...]:
        """What is on record and not wanted any more, with its component; what was applied last comes first."""
        kept = {ref for refs in self.wanted.values() for ref in refs} | self.users
        return tuple((name, ref) for name, refs in reversed([*self.stored.items()]) for ref in reversed(refs) if ref not in kept)

    def both(self) -> Object:
        """The record while a run is under way."""
        names = dict.fromkeys((*self.stored, *self.wanted))
        return _record({name: tuple(dict.fromkeys((*self.stored.get(name, ()), *self.wanted.get(name, ())))) for name in names})

    def after(self) -> Object | None:
        """The record in the end; None where nothing is left to be on it."""
        return _record(self.wanted) if self.wanted else None


def _record(refs: Mapping[str, tuple[Ref, ...]]) -> Object:
    return {**RECORD, "data": {name: json.dumps(found) for name, found in refs.items()}}


def look(api: ClusterApi, wanted: Mapping[str, Iterable[Object]], users: Iterable[Object] = ()) -> tuple[Change, ...]:
    """What goes, and whether the record changes. Changes nothing.

    Raises:
        BadInput: storage is taken out of cluster.yaml, and there are volumes of it; or an object of somebody else's has the name of
            one that is wanted.
    """
    records = Records.of(api.get(RECORD), wanted, users)
    _refuse(api, records, "nothing was changed")
    changes = [
        Change(CLUSTER, "objects", "object", objects.describe(live), f"{_deletion(ref)} ({_why(name, wanted)})")
        for name, ref in records.stale()
        if (live := _ours(api, ref)) is not None
    ]
    if records.differ:
        action = "delete" if not wanted else "change" if records.stored else "create"
        changes.append(Change(CLUSTER, "objects", "object", objects.describe(RECORD), action))
    return tuple(changes)


def _deletion(ref: Ref) -> str:
    return "delete with all that is in it" if ref[1] == "Namespace" else "delete"


def _why(component: str, wanted: Mapping[str, object]) -> str:
    if component in wanted:
        return f"{component} has it no more"
    return f"addons.{_KEYS[component]} is off" if component in _KEYS else f"{component} is no addon any more"


def begin(api: ClusterApi, wanted: Mapping[str, Iterable[Object]], users: Iterable[Object] = ()) -> Records:
    """Put on record what is about to be applied, before it is.

    Raises:
        BadInput: as :func:`look`, which an API that was silent then has not let see it.
    """
    records = Records.of(api.get(RECORD), wanted, users)
    _refuse(api, records, "no addon was changed")
    if records.differ:
        # owned by two runs' words as by one: what a field manager sets and leaves out later, it takes away
        api.apply(records.both())
    return records


def finish(api: ClusterApi, records: Records) -> None:
    """Take away what is not wanted any more, and then its entry.

    Raises:
        WaitTimeout: it is not gone in time; names it. The next run goes on.
    """
    if not records.differ:
        return
    deleted = []
    for _, ref in records.stale():
        if (live := _ours(api, ref)) is not None:
            api.delete(live)
            deleted.append(live)

    def gone() -> None:
        if left := [objects.describe(obj) for obj in deleted if _ours(api, ref_of(obj)) is not None]:
            raise NotYet(f"not gone yet: {', '.join(left)}")

    wait_until("what addons have left", gone, seconds=GONE_SECONDS, every=0.5)
    after = records.after()
    if after is not None:
        api.apply(after)
    else:
        api.delete(RECORD)


def _ours(api: ClusterApi, ref: Ref) -> Object | None:
    """The live object, unless somebody else has put one of his own there."""
    live = api.get(_object(ref))
    if live is None or (live["metadata"].get("labels") or {}).get(LABEL[0]) != LABEL[1]:
        return None
    return {**live, "apiVersion": ref[0], "kind": ref[1]}


def _refuse(api: ClusterApi, records: Records, so_far: str) -> None:
    _refuse_others_objects(api, records, so_far)
    if LOCAL_PATH.component in records.stored and LOCAL_PATH.component not in records.wanted:
        _refuse_lost_volumes(api, so_far)


def _refuse_others_objects(api: ClusterApi, records: Records, so_far: str) -> None:
    """What is not on record was not made here: it would be overwritten, and deleted with the addon, a namespace with all in it.

    Raises:
        BadInput: names the objects.
    """
    known = {ref for refs in records.stored.values() for ref in refs} | records.users
    for component, refs in records.wanted.items():
        others = [_object(ref) for ref in refs if ref not in known and api.get(_object(ref)) and _ours(api, ref) is None]
        if others:
            names = ", ".join(objects.describe(obj) for obj in others)
            raise BadInput(
                f"addons.{_KEYS[component]} is on, and the cluster has {names} already, which {component} did not bring; {so_far}",
                hint="remove what is there, or leave the addon off; or hand it over, to be overwritten and to go with the addon:"
                f" `kubectl label --overwrite KIND NAME {LABEL[0]}={LABEL[1]}`",
            )


def _refuse_lost_volumes(api: ClusterApi, so_far: str) -> None:
    """Without its provisioner, nothing would ever free a volume's directory, and no new one would be made.

    Raises:
        BadInput: names the volumes.
    """
    held = []
    for volume in api.items("/api/v1/persistentvolumes"):
        if (volume["metadata"].get("annotations") or {}).get(_PROVISIONED_BY[0]) == _PROVISIONED_BY[1]:
            claim = volume["spec"].get("claimRef") or {}
            held.append(f"{volume['metadata']['name']} ({claim.get('namespace')}/{claim.get('name')})")
    if held:
        raise BadInput(
            f"addons.localPath is off, and {len(held)} of its volumes are there: {', '.join(held[:5])}{', …' if held[5:] else ''};"
            f" {so_far}",
            hint="move the data, delete the claims (which deletes their data), and apply again; or leave the addon on",
        )
