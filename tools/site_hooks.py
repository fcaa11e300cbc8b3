"""Hooks of the documentation site (mkdocs.yml): what is right on GitHub is right on the site as well.

Pages link to README.md, to source files and to directories, as people follow them on GitHub; MkDocs knows only what is below
``docs/``. README.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site; each other file that a page links to gets a page
with its text, below ``source/``. A link to something that is not there is a warning, and with ``strict`` the end of the build.

A list right behind a line of text is a list on GitHub and running text in Python's Markdown: that is a warning too.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

# below this name, MkDocs counts warnings for --strict
log = logging.getLogger("mkdocs.hooks.site")

# Files at the top of the repository that are pages of the site.
PROJECT = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
SOURCE = "source"
# [text](target), and not in `code`.
LINK = re.compile(r"(?P<code>`+[^`]*`+)|(?P<head>(?<!\\)\]\()(?P<target>[^)\s]+)(?P<tail>[^)]*\))")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
LIST_IN_A_PARAGRAPH = re.compile(r"<p>(?:(?!</p>).)*?\n[-*] .*?</p>", re.DOTALL)
LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".j2": "jinja", ".cfg": "ini"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors that GitHub gives them, so that a link works in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the project's own pages, and one for every source file that some page links to."""
    root = _root(config)
    for origin, name in PROJECT.items():
        files.append(File.generated(config, name, content=(root / origin).read_text()))
    wanted: set[str] = set()
    for file in list(files.documentation_pages()):
        for target in _targets(file.content_string):
            path = _in_repository(file.src_uri, target)
            if path is not None and _page_of(root, path) is None and (root / path).exists():
                wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, _source_page(path), content=_source_text(root, path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site."""
    root = _root(config)
    here = page.file.src_uri
    if here.startswith(f"{SOURCE}/"):
        return markdown

    def lead(found: re.Match[str]) -> str:
        if found["code"]:
            return found[0]
        target, hash_, anchor = found["target"].partition("#")
        path = _in_repository(here, target)
        if path is None:
            return found[0]
        if not (root / path).exists():
            log.warning("%s: the link %s leads nowhere", here, found["target"])
            return found[0]
        to = posixpath.relpath(_page_of(root, path) or _source_page(path), posixpath.dirname(here) or ".")
        return f"{found['head']}{to}{hash_}{anchor}{found['tail']}"

    return "".join(LINK.sub(lead, line) if prose else line for prose, line in _lines(markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Refuse what one renderer shows as a list and the other as running text."""
    for found in LIST_IN_A_PARAGRAPH.finditer(html):
        log.warning("%s: put an empty line before this list: %s", page.file.src_uri, found[0][:100].replace("\n", " "))
    return html


def _root(config: MkDocsConfig) -> Path:
    """The top of the repository: where mkdocs.yml is."""
    return Path(config.config_file_path).parent


def _lines(markdown: str) -> Iterator[tuple[bool, str]]:
    """(is prose, line) of each line: what is in fences is not."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and fence and mark[1].startswith(fence):
            fence = ""
            yield False, line
            continue
        yield not fence and not line.startswith("    "), line


def _targets(markdown: str) -> Iterator[str]:
    for prose, line in _lines(markdown):
        if prose:
            yield from (found["target"].partition("#")[0] for found in LINK.finditer(line) if not found["code"])


def _in_repository(page: str, target: str) -> str | None:
    """The path that a link means, relative to the repository's root; None for links to elsewhere and within the page."""
    if not target or re.match(r"[a-z][a-z0-9+.-]*:|/", target):
        return None
    origin = next((origin for origin, name in PROJECT.items() if name == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), unquote(target)))


def _page_of(root: Path, path: str) -> str | None:
    """The site's page (or picture) of a path of the repository; None where it needs one below ``source/``."""
    if path in PROJECT:
        return PROJECT[path]
    if not path.startswith("docs/") and path != "docs":
        return None
    if (root / path).is_dir():
        inside = sorted((root / path).glob("*.md"))
        index = [page for page in inside if page.name in ("README.md", "index.md")]
        first = (index or inside or [root / path])[0]
        return first.relative_to(root / "docs").as_posix()
    return path.removeprefix("docs/")


def _source_page(path: str) -> str:
    return f"{SOURCE}/{path}.md"


def _source_text(root: Path, path: str) -> str:
    """A page with a file's text, or a directory's names; search leaves it out."""
    place = root / path
    head = f"---\nsearch:\n  exclude: true\ntitle: {path}\n---\n\n# {path}\n\n"
    if place.is_dir():
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in place.iterdir() if entry.name[0] not in "._")
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = place.read_text(errors="replace")
    fence = "`" * max(4, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{head}{fence}{LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
