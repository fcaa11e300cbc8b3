"""Care of a running etcd: giving back the room of what was deleted, and curing the alarm of a full database.

Everything goes one member at a time behind a health gate, because a member that is being defragmented answers nobody:
https://etcd.io/docs/v3.6/op-guide/maintenance/
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_camel

from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import Alarm, EtcdApi, EtcdError, Member, Status
from provisioner.ssh import parallel
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki
    from provisioner.ssh import Connections

# Seconds. Defragmentation and compaction read and write a whole database: some seconds for each GiB, on a slow disk more.
LONG = 600.0
# Seconds until a member that was defragmented has caught up, and until a new leader is seen by all.
GATE = 120.0
# Of the quota. Disarmed with less room than this, the alarm would be back in no time.
FULL = 0.9
NOSPACE = "NOSPACE"
CORRUPT = "CORRUPT"
MIB = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Defragmented:
    """One member's database file before and after, in bytes, and the seconds for which the member answered nobody."""

    member: str
    before: int
    after: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cured:
    """What `etcd cure` did. ``alarms``: (member, alarm) that were lowered; empty where there was nothing to cure.

    ``revision`` is the one to which history was compacted.
    """

    alarms: tuple[tuple[str, str], ...] = ()
    revision: int | None = None
    defragmented: tuple[Defragmented, ...] = ()

    def to_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "alarms": [{"member": member, "alarm": alarm} for member, alarm in self.alarms],
            "revision": self.revision,
            "defragmented": rows(self.defragmented),
        }


def rows(done: Sequence[Defragmented]) -> list[dict[str, object]]:
    """For --json."""
    return [{to_camel(key): value for key, value in asdict(one).items()} for one in done]


@contextlib.contextmanager
def opened(cluster: Cluster, workspace: Workspace, connections: Connections, pki: Pki) -> Iterator[tuple[EtcdApi, ...]]:
    """Clients of all members, in the order of cluster.yaml.

    Raises:
        EtcdError: a member's machine cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        made = parallel(cluster.etcd_members, lambda node: EtcdApi(node, workspace, connections, pki))
        for api in made.values():
            if isinstance(api, EtcdApi):
                stack.enter_context(api)
        _refuse_down({name: error for name, error in made.items() if isinstance(error, ProvisionerError)})
        yield tuple(api for api in made.values() if isinstance(api, EtcdApi))


def statuses(apis: Sequence[EtcdApi]) -> dict[str, Status]:
    """What each member says of itself, by name.

    Raises:
        EtcdError: one does not answer; names it.
    """
    found = parallel([api.node for api in apis], lambda node: _named(apis, node.name).status())
    _refuse_down({name: error for name, error in found.items() if isinstance(error, ProvisionerError)})
    return {name: status for name, status in found.items() if isinstance(status, Status)}


def _refuse_down(errors: Mapping[str, ProvisionerError]) -> None:
    if errors:
        raise EtcdError(
            f"etcd is not whole: {', '.join(errors)} {'is' if len(errors) == 1 else 'are'} down, and a member that is "
            "defragmented answers nobody meanwhile; nothing was changed from here on",
            hint="bring every member back first: `provisioner status` says what is wrong, `provisioner apply` repairs",
            details=tuple(error.message for error in errors.values()),
        )


def disorder(known: Mapping[str, Status], listed: Sequence[Member]) -> tuple[str, ...]:
    """Why it would not be safe to take a member out of service for a while: a line for each reason; none where it is.

    Args:
        known: every member of cluster.yaml.
        listed: etcd's member list.
    """
    found = []
    ids = {status.member_id: name for name, status in known.items()}
    for name, status in known.items():
        if not status.leader:
            found.append(f"{name}: sees no leader")
        if status.learner:
            found.append(f"{name}: still a learner, without a vote")
    leaders = {status.leader for status in known.values() if status.leader}
    if len(leaders) > 1:
        found.append("the members follow different leaders: an election is under way")
    found += [
        f"{entry.name or ', '.join(entry.peer_urls)}: in etcd's member list, but not in cluster.yaml"
        for entry in listed
        if entry.id not in ids
    ]
    found += [
        f"{name}: not in etcd's member list" for name, status in known.items() if status.member_id not in {e.id for e in listed}
    ]
    return tuple(found)


def require_whole(apis: Sequence[EtcdApi]) -> dict[str, Status]:
    """Every member answers, votes and sees the leader; returns what each says.

    Raises:
        EtcdError: names those that do not.
    """
    known = statuses(apis)
    leader = next((name for name, status in known.items() if status.leader == status.member_id), None)
    # a learner does not tell the list, and whoever sees no leader tells an old one
    wrong = disorder(known, _named(apis, leader).members()) if leader else ("no member of cluster.yaml leads",)
    if wrong:
        raise EtcdError(
            f"etcd is not whole: {wrong[0]}{' (and more)' if len(wrong) > 1 else ''}; nothing was changed from here on",
            hint="`provisioner status` says what is wrong, `provisioner apply` repairs",
            details=wrong if len(wrong) > 1 else (),
        )
    return known


def order(known: Mapping[str, Status]) -> tuple[str, ...]:
    """Names of the members in the order of defragmentation: the followers as given, the leader last."""
    return tuple(sorted(known, key=lambda name: known[name].leader == known[name].member_id))


def heir(known: Mapping[str, Status], leader: str) -> str | None:
    """The member to which leadership goes: the voter with the most of the log; None where the leader is alone."""
    voters = [name for name, status in known.items() if name != leader and not status.learner]
    return max(voters, key=lambda name: known[name].raft_applied_index, default=None)


def defragment(apis: Sequence[EtcdApi], say: Say) -> tuple[Defragmented, ...]:
    """Defragment every member, one at a time: followers first, the leader last and after it has handed over.

    Args:
        apis: every member of cluster.yaml.
        say: told of each step.

    Raises:
        EtcdError: a member is down, or does not come back in time; the others are left as they are.
    """
    todo = order(require_whole(apis))
    done = []
    for name in todo:
        # anew before each: who leads may have changed, and somebody may have gone down
        known = require_whole(apis)
        if known[name].leader == known[name].member_id:
            known = _hand_over(apis, known, name, say)
        done.append(_defragment(_named(apis, name), known[name], say))
        wait_until(
            f"{name} in sync after its defragmentation",
            lambda name=name: _in_sync(apis, name),  # type: ignore[misc]  # bound now, called now
            seconds=GATE,
            hint="`provisioner status` says what is wrong; the members not named above were left alone",
        )
    return tuple(done)


def _named(apis: Sequence[EtcdApi], name: str) -> EtcdApi:
    return next(api for api in apis if api.node.name == name)


def _hand_over(apis: Sequence[EtcdApi], known: Mapping[str, Status], leader: str, say: Say) -> dict[str, Status]:
    """Let another member lead, so that no election is forced by a leader that falls silent."""
    to = heir(known, leader)
    if to is None:
        say(f"{leader}: the only member: the cluster takes no writes while it is defragmented")
        return dict(known)
    target = known[to].member_id
    _named(apis, leader).move_leader(target)

    def moved() -> dict[str, Status]:
        now = statuses(apis)
        followed = {status.leader for status in now.values()}
        if followed != {target}:
            raise NotYet(f"members follow {', '.join(f'{one:x}' for one in followed)}")
        return now

    now = wait_until(f"{to} leads", moved, seconds=GATE, retry_on=(EtcdError,), hint="run this again: nothing is left half done")
    say(f"{leader}: leadership handed to {to}")
    return now


def _defragment(api: EtcdApi, before: Status, say: Say) -> Defragmented:
    name, begin = api.node.name, time.monotonic()
    api.defragment(timeout=LONG)
    seconds = round(time.monotonic() - begin, 2)
    after = wait_until(f"{name} answers", api.status, seconds=GATE, retry_on=(EtcdError,))
    say(f"{name}: {before.db_size / MIB:.1f} -> {after.db_size / MIB:.1f} MiB in {seconds:.1f} s")
    return Defragmented(name, before.db_size, after.db_size, seconds)


def _in_sync(apis: Sequence[EtcdApi], name: str) -> None:
    """The member has applied all that any member had committed a moment ago, and sees the leader."""
    try:
        goal = max(status.raft_applied_index for status in statuses(apis).values())
        status = _named(apis, name).status()
    except EtcdError as error:
        raise NotYet(error.message) from None
    if not status.leader:
        raise NotYet(f"{name} sees no leader")
    if status.raft_applied_index < goal:
        raise NotYet(f"{name} has applied {status.raft_applied_index} of {goal} entries")


def raised(known: Mapping[str, Status]) -> tuple[tuple[str, Alarm], ...]:
    """(member, alarm) of every alarm, as any member knows it."""
    names = {status.member_id: name for name, status in known.items()}
    alarms = sorted(
        {alarm for status in known.values() for alarm in status.alarms}, key=lambda alarm: (alarm.alarm, alarm.member_id)
    )
    return tuple((names.get(alarm.member_id, f"{alarm.member_id:x}"), alarm) for alarm in alarms)


def refuse_corrupt(alarms: Sequence[tuple[str, Alarm]], known: Mapping[str, Status]) -> None:
    """A corrupt member must not be compacted, defragmented or disarmed: it needs other data.

    Raises:
        EtcdError: there is one among the members.
    """
    corrupt = [member for member, alarm in alarms if alarm.alarm == CORRUPT and member in known]
    if corrupt:
        raise EtcdError(
            f"alarm CORRUPT on {', '.join(corrupt)}: its data is not that of the other members, and no compaction cures that; "
            "nothing was changed",
            hint='docs/etcd.md, "CORRUPT": stop etcd there, move /var/lib/etcd/member away, then `provisioner apply`',
        )


def cure(apis: Sequence[EtcdApi], quota: int, say: Say) -> Cured:
    """Cure NOSPACE: forget history, defragment every member, and lower the alarm if there is room again.

    An alarm of a member that is gone is lowered as well: nobody else would.

    Args:
        apis: every member of cluster.yaml.
        quota: bytes, for members that do not tell theirs.
        say: told of each step.

    Raises:
        EtcdError: alarm CORRUPT; a member is down; or what is left after all that still fills the quota.
    """
    known = require_whole(apis)
    alarms = raised(known)
    refuse_corrupt(alarms, known)
    revision: int | None = None
    defragmented: tuple[Defragmented, ...] = ()
    if any(alarm.alarm == NOSPACE and member in known for member, alarm in alarms):
        revision, defragmented = _make_room(apis, known, say)
        still = {name: status for name, status in statuses(apis).items() if status.db_size > FULL * (status.db_size_quota or quota)}
        if still:
            raise still_full(still, quota)
    for member, alarm in alarms:
        apis[0].disarm(alarm)
        say(f"{member}: alarm {alarm.alarm} lowered")
    if alarms and (left := apis[0].alarms()):
        raise EtcdError(
            f"alarm {left[0].alarm} is up again at once: something writes faster than there is room",
            hint="find what writes so much, then run this again",
        )
    return Cured(tuple((member, alarm.alarm) for member, alarm in alarms), revision, defragmented)


def _make_room(apis: Sequence[EtcdApi], known: Mapping[str, Status], say: Say) -> tuple[int, tuple[Defragmented, ...]]:
    """Forget history up to now, then give back its room; returns the revision up to which it is forgotten."""
    leader = next(_named(apis, name) for name, status in known.items() if status.leader == status.member_id)
    revision = max(status.revision for status in known.values())
    leader.compact(revision, timeout=LONG)
    say(f"history before revision {revision} forgotten")
    wait_until("compaction settled on every member", _Settled(apis), seconds=LONG, every=0.5)
    return revision, defragment(apis, say)


def still_full(known: Mapping[str, Status], quota: int) -> EtcdError:
    """Live data fills the database: only a larger quota, or less data, helps."""
    sizes = ", ".join(
        f"{name} {status.db_size / MIB:.1f} of {(status.db_size_quota or quota) / MIB:.0f} MiB" for name, status in known.items()
    )
    return EtcdError(
        f"the database is still full after compaction and defragmentation ({sizes}): live data fills it, not history; "
        "the alarm NOSPACE stays",
        hint="raise `etcd.quotaBackendBytes` in cluster.yaml, run `provisioner apply`, then `provisioner etcd cure` again; "
        "etcd's documentation advises at most 8 GiB",
    )


class _Settled:
    """Compaction frees pages on each member by itself, a moment after it is agreed on: true when no size changes any more."""

    def __init__(self, apis: Sequence[EtcdApi]) -> None:
        self._apis = apis
        self._last: dict[str, int] = {}

    def __call__(self) -> None:
        now = {name: status.db_size_in_use for name, status in statuses(self._apis).items()}
        if now != self._last:
            self._last = now
            raise NotYet("the data in use still changes")
