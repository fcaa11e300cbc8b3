"""PROVISIONER_PATIENCE: one factor, applied once, wherever a deadline is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from provisioner import patience, runner
from provisioner.errors import BadInput, ExitCode, WaitTimeout
from provisioner.wait import NotYet, wait_until


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The factor is read once for each process: not before these tests, nor after."""
    patience.factor.cache_clear()
    yield
    patience.factor.cache_clear()


@pytest.mark.parametrize(("text", "factor"), [(None, 1), ("", 1), ("1", 1), ("2.5", 2.5), (" 10 ", 10), ("100", 100)])
def test_the_factor(text: str | None, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(patience.VARIABLE, text)
    assert patience.factor() == factor
    assert patience.stretch(30) == 30 * factor


@pytest.mark.parametrize("text", ["0", "0.5", "-1", "101", "inf", "nan", "ten", "1e9"])
def test_what_is_no_factor(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, text)
    with pytest.raises(BadInput, match=patience.VARIABLE) as caught:
        patience.factor()
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert "from 1 to 100" in caught.value.hint


def test_waiting_takes_so_much_longer_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "20")

    def never() -> None:
        raise NotYet("still not")

    began = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"not reached within 0\.4 s"):
        wait_until("it", never, seconds=0.02, every=0.01)
    assert time.monotonic() - began > 0.3


def test_ansible_waits_longer_for_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv(patience.VARIABLE, "1.25")
    assert runner._environment(tmp_path_factory.mktemp("a") / "b" / "c", "s")["ANSIBLE_TIMEOUT"] == "13"
