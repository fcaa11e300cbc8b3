"""The host's own apt sources for a Debian suite, so that the base image comes from where the host's packages come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

APT = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Other vendors' repositories often carry a Debian suite's name; Debian's own have these components and no others.
COMPONENTS = frozenset({"main", "contrib", "non-free", "non-free-firmware"})
_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")


def sources_for(suite: str, directory: Path = APT) -> str:
    """Sources in deb822 format, for the suite, its updates and its security archive; only Debian's own, only ``main``.

    Args:
        suite: e.g. ``bookworm``.
        directory: apt's configuration directory.

    Returns:
        Text for a ``.sources`` file; empty when the host has none of that suite (mmdebstrap then takes Debian's own mirror).
    """
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    found: dict[str, str] = {}
    for uri, suites, components, signed_by in _entries(directory):
        if not COMPONENTS.issuperset(components) or "main" not in components:
            continue
        for name in suites:
            if name in wanted and name not in found:
                found[name] = f"Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: main\nSigned-By: {signed_by or KEYRING}\n"
    if suite not in found:
        return ""
    return "\n".join(found[name] for name in wanted if name in found)


def _entries(directory: Path) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], str]]:
    """(URIs, suites, components, keyring) of every enabled binary source, main file first."""
    parts = directory / "sources.list.d"
    for path in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        if path.is_file():
            yield from _one_line(path.read_text(errors="replace"))
    for path in sorted(parts.glob("*.sources")):
        yield from _deb822(path.read_text(errors="replace"))


def _one_line(text: str) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], str]]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if match:
            options = dict(option.split("=", 1) for option in (match["options"] or "").split() if "=" in option)
            yield match["uri"], (match["suite"],), tuple(match["components"].split()), options.get("signed-by", "")


def _deb822(text: str) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields: dict[str, str] = {}
        for line in re.sub(r"\n[ \t]+", " ", stanza).splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields[name.strip().lower()] = value.strip()
        # a key written into the stanza itself is Debian's own all the same: the archive keyring has it
        key = fields.get("signed-by", "")
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            uris, suites = fields.get("uris", ""), tuple(fields.get("suites", "").split())
            yield uris, suites, tuple(fields.get("components", "").split()), key if key.startswith("/") else ""
