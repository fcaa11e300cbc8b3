"""The power-cut drill's judgement: what it calls lost, and what may be either way."""

from __future__ import annotations

import pytest

from tests.power.writer import Written, compare, payload


def stored(**sequences: int) -> dict[str, dict[str, str]]:
    return {name: {"sequence": str(number), "payload": payload(name, number)} for name, number in sequences.items()}


WRITTEN = Written(attempted={"a": 4, "b": 2, "c": 1}, acknowledged={"a": 4, "b": 1}, writes=5, seconds=1.0)


def test_everything_that_was_acknowledged_is_there() -> None:
    compared = compare(WRITTEN, stored(a=4, b=1))
    assert compared.whole
    assert compared.unacknowledged_kept == 0


def test_what_was_sent_and_never_answered_may_be_there() -> None:
    compared = compare(WRITTEN, stored(a=4, b=2, c=1))
    assert compared.whole
    assert compared.unacknowledged_kept == 2


def test_objects_of_others_are_none_of_its_business() -> None:
    found = {**stored(a=4, b=1), "kube-root-ca.crt": {"ca.crt": "..."}}
    compared = compare(WRITTEN, found)
    assert compared.whole
    assert compared.read == 2


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (stored(b=1), "a: acknowledged with sequence 4, not there"),
        (stored(a=2, b=1), "a: sequence 4 acknowledged, 4 sent last, 2 stored"),
        (stored(a=5, b=1), "a: sequence 4 acknowledged, 4 sent last, 5 stored"),
        ({**stored(b=1), "a": {"sequence": "4", "payload": payload("a", 3)}}, "a: the payload stored with sequence 4"),
        ({**stored(b=1), "a": {}}, "a: sequence 4 acknowledged, 4 sent last, -1 stored"),
    ],
)
def test_a_lost_or_mixed_write_is_seen(found: dict[str, dict[str, str]], word: str) -> None:
    compared = compare(WRITTEN, found)
    assert not compared.whole
    assert compared.lost[0].startswith(word)
