"""What `verify` found, as a value: for the terminal, as JSON, as JUnit XML. Further forms start from ``Report.to_json``."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from provisioner.errors import VerifyFailed
from provisioner.workspace import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

# Raised when a key of the JSON document changes its meaning or goes away.
FORMAT = 1


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    # it could not be tried because a check it builds on failed; never counts as passed
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every ordered pair of nodes was tried.

    Args:
        nodes: their names; alone it was tried with itself.
        failed: (from, to, why) of each pair that did not pass.
    """

    nodes: tuple[str, ...]
    failed: tuple[tuple[str, str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"nodes": list(self.nodes), "failed": [{"from": one, "to": two, "why": why} for one, two, why in self.failed]}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Pairs:
        """Back from :meth:`to_json`."""
        failed = tuple((str(one["from"]), str(one["to"]), str(one["why"])) for one in document["failed"])
        return cls(tuple(document["nodes"]), failed)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: what was seen.

    Args:
        id: stable name, for scripts and `--only`.
        title: what the check proves, for people.
        level: `smoke` or `full`.
        outcome: how it ended.
        seconds: how long it took.
        evidence: what was seen, in one line, where it passed.
        failures: what was seen, one line each, where it did not.
        pairs: of a check that tries every node with every other one: which have failed.
    """

    id: str
    title: str
    level: str
    outcome: Outcome
    seconds: float
    evidence: str = ""
    failures: tuple[str, ...] = ()
    pairs: Pairs | None = None

    @property
    def passed(self) -> bool:
        """Whether the check proved what it is there to prove."""
        return self.outcome is Outcome.PASSED

    @property
    def seen(self) -> str:
        """What was seen, whatever the outcome; one line for each thing."""
        return self.evidence if self.passed else "\n".join(self.failures)


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one run.

    Args:
        cluster: the cluster's name.
        version: the Kubernetes version cluster.yaml asks for.
        level: the level asked for.
        started: when the run began (UTC).
        seconds: from the first check's start to the last one's end.
        results: in the order of the checks' table.
        only: the checks that were asked for by name, where not all of the level were.
    """

    cluster: str
    version: str
    level: str
    started: dt.datetime
    seconds: float
    results: tuple[CheckResult, ...]
    only: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed. A run without a check proves nothing and has not passed."""
        return bool(self.results) and all(result.passed for result in self.results)

    def count(self, outcome: Outcome) -> int:
        """Number of checks that ended so."""
        return sum(result.outcome is outcome for result in self.results)

    def summary(self) -> str:
        """One line: how many of how many, and the time."""
        parts = [f"{self.count(Outcome.PASSED)} of {len(self.results)} checks passed"]
        parts += [f"{self.count(outcome)} {outcome}" for outcome in (Outcome.FAILED, Outcome.BLOCKED) if self.count(outcome)]
        return f"{self.cluster}: {', '.join(parts)} in {self.seconds:.1f} s"

    def raise_if_failed(self) -> None:
        """Turn a failed run into the error the command line knows.

        Raises:
            VerifyFailed: a check did not pass; lists each with what it saw.
        """
        if self.passed:
            return
        failed = [result for result in self.results if not result.passed]
        details = tuple(
            f"{result.id} ({result.outcome}): {line}" for result in failed for line in result.failures or ("no reason given",)
        )
        raise VerifyFailed(
            f"verify: {self.summary()}" if failed else "verify: no check was run",
            hint=("run one check again with `provisioner verify --only " + ",".join(result.id for result in failed) + "`")
            if failed
            else "",
            details=details,
        )

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain values."""
        return {
            "format": FORMAT,
            "cluster": self.cluster,
            "kubernetesVersion": self.version,
            "level": self.level,
            **({"only": list(self.only)} if self.only else {}),
            "started": self.started.isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 3),
            "passed": self.passed,
            "counts": {str(outcome): self.count(outcome) for outcome in Outcome},
            "checks": [
                {
                    "id": result.id,
                    "title": result.title,
                    "level": result.level,
                    "outcome": str(result.outcome),
                    "seconds": round(result.seconds, 3),
                    "evidence": result.evidence,
                    "failures": list(result.failures),
                    **({"pairs": result.pairs.to_json()} if result.pairs else {}),
                }
                for result in self.results
            ],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Report:
        """Back from :meth:`to_json`.

        Raises:
            ValueError: it is no such document.
        """
        try:
            return cls(
                cluster=str(document["cluster"]),
                version=str(document["kubernetesVersion"]),
                level=str(document["level"]),
                started=dt.datetime.fromisoformat(document["started"]),
                seconds=float(document["seconds"]),
                results=tuple(
                    CheckResult(
                        id=str(check["id"]),
                        title=str(check["title"]),
                        level=str(check["level"]),
                        outcome=Outcome(check["outcome"]),
                        seconds=float(check["seconds"]),
                        evidence=str(check["evidence"]),
                        failures=tuple(str(line) for line in check["failures"]),
                        pairs=Pairs.of(check["pairs"]) if "pairs" in check else None,
                    )
                    for check in document["checks"]
                ),
                only=tuple(str(name) for name in document.get("only", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a report of verify: {error!r}") from None

    def save(self, path: Path) -> None:
        """Write it where :meth:`last` finds it."""
        write_atomic(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def last(cls, path: Path) -> Report | None:
        """The report that was saved there; None where there is none that can be read."""
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def to_junit(self) -> bytes:
        """JUnit XML as CI systems read it, a test case per check; a blocked check is an error: a skip would pass unseen."""
        failed, blocked = self.count(Outcome.FAILED), self.count(Outcome.BLOCKED)
        counts = {"tests": str(len(self.results)), "failures": str(failed), "errors": str(blocked), "time": f"{self.seconds:.3f}"}
        root = ElementTree.Element("testsuites", {"name": "provisioner verify", **counts})
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            {
                "name": f"verify {self.cluster} ({self.level})",
                **counts,
                "skipped": "0",
                "timestamp": self.started.isoformat(timespec="seconds"),
            },
        )
        for result in self.results:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                {"classname": f"verify.{result.level}", "name": f"{result.id}: {result.title}", "time": f"{result.seconds:.3f}"},
            )
            text = printable(result.seen)
            if result.passed:
                ElementTree.SubElement(case, "system-out").text = text
            else:
                kind = "failure" if result.outcome is Outcome.FAILED else "error"
                first = text.splitlines()[0] if text else str(result.outcome)
                ElementTree.SubElement(case, kind, {"message": first, "type": str(result.outcome)}).text = text
        ElementTree.indent(root)
        return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"

    def to_table(self) -> Table:
        """The human form, for terminals. A check that did not pass also says what it is there to prove."""
        from rich.table import Table  # noqa: PLC0415 - slow to import, needed on a terminal only
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, show_header=True, header_style="bold", expand=False)
        table.add_column("")
        table.add_column("check", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        table.add_column("what was seen", overflow="fold")
        for result in self.results:
            mark, style = MARKS[result.outcome]
            seen = printable(result.seen if result.passed else f"{result.title}:\n{result.seen}")
            table.add_row(
                Text(mark, style=style),
                Text(result.id, style="" if result.passed else style),
                Text(f"{result.seconds:.1f}", style="dim"),
                Text(seen, style="dim" if result.passed else style),
            )
        return table

    def to_lines(self) -> tuple[str, ...]:
        """The human form for pipes and logs: one line for each thing seen, never wrapped."""
        lines = []
        for result in self.results:
            mark, _ = MARKS[result.outcome]
            for seen in printable(result.seen).splitlines() or [""]:
                lines.append(f"{mark:7} {result.id:18} {result.seconds:5.1f} s  {seen}")
        return (*lines, self.summary())


MARKS = {Outcome.PASSED: ("ok", "green"), Outcome.FAILED: ("FAILED", "bold red"), Outcome.BLOCKED: ("blocked", "yellow")}

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Text without the control characters that XML 1.0 forbids and terminals obey, and without halves of characters, which a
    terminal gets as bare bytes; they may come from a node's own words."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)
