"""Do the pages' links to other sites lead somewhere? Needs the network, so it is a command (`make links`) and no test.

Every address is asked for once, a few at a time, with a second try; an answer below 400 is good. 403 and 429 are told apart from
broken: some sites refuse programs. Exit code 0: all good; 1: some are broken; the pages they stand on are named.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import urllib3

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?P<url>https?://[^)\s]+)\)|<(?P<auto>https?://[^>\s]+)>")
CODE = re.compile(r"^(`{3,}|~{3,})[\s\S]*?^\1`*[ ]*$|^    .*$|`[^`\n]*`", re.MULTILINE)
REFUSED = (401, 403, 429)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one address. ``status`` is None where nothing answered; ``said`` is the reason."""

    url: str
    status: int | None
    said: str

    @property
    def is_broken(self) -> bool:
        """Whether somebody must look: no answer, or one that says the page is not there."""
        return self.status is None or (self.status >= 400 and self.status not in REFUSED)


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that people read."""
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def external(text: str) -> list[str]:
    """Addresses that a page links to, without fragments; what stands in code is an example, and no link."""
    prose = CODE.sub("", text)
    found = (match["url"] or match["auto"] for match in LINK.finditer(prose))
    return list(dict.fromkeys(url.partition("#")[0] for url in found))


def collect(files: Iterable[Path], root: Path = ROOT) -> Mapping[str, list[str]]:
    """Address -> the pages it stands on."""
    where: dict[str, list[str]] = {}
    for file in files:
        for url in external(file.read_text()):
            where.setdefault(url, []).append(str(file.relative_to(root)))
    return where


def ask(pool: urllib3.PoolManager, url: str, *, seconds: float) -> Answer:
    """One address: redirections are followed, a broken connection is tried once more."""
    try:
        retries = urllib3.Retry(total=5, connect=1, read=1, redirect=5, status=0)
        response = pool.request("GET", url, timeout=seconds, retries=retries, preload_content=False)
    except urllib3.exceptions.HTTPError as error:
        return Answer(url, None, str(error.__cause__ or error))
    try:
        return Answer(url, response.status, response.reason or "")
    finally:
        # the page itself is of no interest, and may be long
        response.close()


def check(urls: Iterable[str], *, seconds: float = 20.0, at_once: int = 6) -> list[Answer]:
    """Ask for every address, a few at a time."""
    with (
        urllib3.PoolManager(headers={"User-Agent": "provisioner-docs-links/1"}) as pool,
        ThreadPoolExecutor(at_once) as workers,
    ):
        return list(workers.map(lambda url: ask(pool, url, seconds=seconds), urls))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Does every link to another site lead somewhere?")
    parser.add_argument("files", nargs="*", type=Path, help="pages; default: all of them")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for each answer")
    options = parser.parse_args(arguments)
    files = [file.resolve() for file in options.files] or pages()
    root = ROOT if not options.files else Path(files[0].anchor)
    where = collect(files, root)
    answers = check(where, seconds=options.timeout)
    for answer in answers:
        if answer.is_broken or answer.status in REFUSED:
            verdict = "broken" if answer.is_broken else "refuses programs"
            print(f"{verdict}: {answer.url} ({answer.status or answer.said}): {', '.join(where[answer.url])}", file=sys.stderr)
    broken = sum(answer.is_broken for answer in answers)
    print(f"{len(answers)} addresses on {len(files)} pages: {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
