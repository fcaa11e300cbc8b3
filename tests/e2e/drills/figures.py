"""Figures out of what the load saw. Pure: events in, numbers out. Times are CLOCK_MONOTONIC in seconds, lengths seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

Event = Mapping[str, Any]

CLIENTS = ("kept", "fresh")


@dataclass(frozen=True, slots=True)
class Window:
    """The time between two moments, both inclusive."""

    begin: float
    end: float

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment <= self.end


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure should be at most."""

    what: str
    value: float | None
    limit: float

    @property
    def met(self) -> bool:
        """Whether the figure is there and within the bar."""
        return self.value is not None and self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self), "met": self.met}


def longest_gap(moments: Iterable[float], window: Window) -> float:
    """The longest time without one of ``moments`` within a window, its edges included: nothing at all is a gap of its length.

    The last moment before the window counts as its beginning's, so that a gap that was open then is seen whole.
    """
    known = sorted(moments)
    before = [moment for moment in known if moment < window.begin]
    inside = [moment for moment in known if moment in window]
    after = [moment for moment in known if moment > window.end]
    # a gap open at the end is known in full where something comes after it
    edge = after[0] if after else window.end
    return max(later - earlier for earlier, later in pairwise([before[-1] if before else window.begin, *inside, edge]))


@dataclass(frozen=True, slots=True)
class Writes:
    """What one writer did in a window.

    Attributes:
        acknowledged: operations with an answer that said yes.
        retried: operations that were sent more than once.
        failed: requests that failed or were refused.
        unfinished: operations that never had their yes.
        most_attempts: of any one operation.
        gap: seconds of the longest time without an acknowledgement.
    """

    acknowledged: int
    retried: int
    failed: int
    unfinished: int
    most_attempts: int
    gap: float


def acknowledgements(events: Iterable[Event], client: str) -> list[float]:
    """When a writer's operations were acknowledged."""
    return [event["acknowledged"] for event in writes_of(events, client) if event["acknowledged"] is not None]


def writes_of(events: Iterable[Event], client: str) -> list[Event]:
    """A writer's operations."""
    return [event for event in events if event["kind"] == "write" and event["client"] == client]


def writes(events: Sequence[Event], client: str, window: Window) -> Writes:
    """Figures of one writer. An operation belongs to the window in which it ended or was given up."""
    found = [event for event in writes_of(events, client) if (event["acknowledged"] or window.end) in window]
    return Writes(
        acknowledged=sum(event["acknowledged"] is not None for event in found),
        retried=sum(event["attempts"] > 1 for event in found),
        failed=sum(len(event["errors"]) for event in found),
        unfinished=sum(event["acknowledged"] is None for event in found),
        most_attempts=max((event["attempts"] for event in found), default=0),
        gap=round(longest_gap(acknowledgements(events, client), window), 3),
    )


def errors(events: Iterable[Event]) -> list[str]:
    """What went wrong, each once, in the order of its first time."""
    said = (error for event in events if event["kind"] == "write" for _, error in event["errors"])
    polls = (event["error"] for event in events if event["kind"] == "poll" and event["error"])
    return list(dict.fromkeys([*said, *polls]))


def lost(events: Iterable[Event], stored: Mapping[str, int]) -> dict[str, str]:
    """Acknowledged writes that are not there: name to what is wrong; empty when nothing is lost.

    A value written after the last acknowledged one is no loss: its operation was under way when the record ended.

    Args:
        events: what the writers did.
        stored: name to value, as read back.
    """
    last: dict[str, int] = {}
    for event in events:
        if event["kind"] == "write" and event["acknowledged"] is not None:
            last[event["name"]] = max(event["number"], last.get(event["name"], 0))
    wrong = {}
    for name, number in last.items():
        found = stored.get(name)
        if found is None:
            wrong[name] = f"acknowledged with value {number}, absent"
        # operations 2k and 2k+1 write the same object, no others do
        elif not number <= found <= number | 1:
            wrong[name] = f"acknowledged with value {number}, holds {found}"
    return wrong


@dataclass(frozen=True, slots=True)
class Polls:
    """What the client of a Service saw in a window: requests, those that failed, seconds of the longest time without an answer."""

    requests: int
    failed: int
    gap: float


def polls(events: Iterable[Event], window: Window) -> Polls:
    """Figures of the Service's client."""
    found = [event for event in events if event["kind"] == "poll"]
    inside = [event for event in found if event["at"] in window]
    good = [event["at"] for event in found if not event["error"]]
    return Polls(len(inside), sum(bool(event["error"]) for event in inside), round(longest_gap(good, window), 3))


def seen(events: Iterable[Event], what: str) -> list[tuple[float, Any]]:
    """The states of one thing as the watcher saw them change: (when, state)."""
    return [(event["at"], event["value"]) for event in events if event["kind"] == "seen" and event["what"] == what]


def state_at(events: Iterable[Event], what: str, moment: float) -> Any:
    """The state of a thing at a moment, as far as the watcher knew; None where it had not looked yet."""
    known = [value for at, value in seen(events, what) if at <= moment]
    return known[-1] if known else None


def moved(events: Sequence[Event], lease: str, machine: str, since: float) -> float | None:
    """Seconds until another machine had taken a lease, by the lease's own time; None where nobody has, or the machine did not
    hold it (``held`` tells)."""
    if not held(events, lease, machine, since):
        return None
    takings = (taken for at, (holder, taken) in seen(events, lease) if at > since and holder not in ("", machine))
    return next((round(taken - since, 2) for taken in takings), None)


def held(events: Sequence[Event], lease: str, machine: str, at: float) -> bool:
    """Whether a machine held a lease at a moment."""
    state = state_at(events, lease, at)
    return state is not None and bool(state[0] == machine)


def gone(events: Sequence[Event], what: str, address: str, since: float) -> float | None:
    """Seconds until an address was no longer among the endpoints; None where it stayed."""
    return next((at - since for at, addresses in seen(events, what) if at > since and address not in addresses), None)


def not_ready(events: Sequence[Event], window: Window, *, but: Iterable[str] = ()) -> dict[str, str]:
    """Nodes that were not Ready at some time of a window, and what their condition was."""
    states = [state_at(events, "nodes", window.begin), *(value for at, value in seen(events, "nodes") if at in window)]
    found: dict[str, str] = {}
    for state in states:
        found |= {name: status for name, status in (state or {}).items() if status != "True" and name not in but}
    return found
