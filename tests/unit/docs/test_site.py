"""The site is built without a warning, loads nothing from elsewhere, and its build ends at what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
# What a browser fetches by itself: scripts, pictures, style sheets; links that a reader may follow are another matter.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)|<link\b(?![^>]*rel=\"?canonical)[^>]*\bhref=\"?([^\s\">]+)"
)
MKDOCS = Path(sys.executable).parent / "mkdocs"


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MKDOCS, "build", "--strict", "--config-file", config, "--site-dir", site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", place)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    return place


def test_every_page_is_there_and_found(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {page.replace("README.html", "index.html") for page in pages} - made == set()
    assert {"project/readme.html", "project/contributing.html", "project/changelog.html"} <= made
    index = json.loads((site / "search/search_index.json").read_text())
    assert any(entry["location"].startswith("reference/roles.html") for entry in index["docs"])


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = {one or other for page in site.rglob("*.html") for one, other in FETCHED.findall(page.read_text())}
    assert len(fetched) > 5, "nothing is found any more"
    assert [url for url in fetched if re.match(r"(https?:)?//", url)] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text()) == [], sheet


def test_no_link_of_the_site_leads_out_of_it_into_the_repository(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r"<a\b[^>]*\bhref=\"?([^\s\"#>]+)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).resolve().exists():
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []


# -- a site of two pages, with something wrong --------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository like ours, small, and right."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text(f"# {name}\n\n[Index](docs/README.md)\n")
    (tmp_path / "code.py").write_text("answer = 42  # ``` and ````\n")
    (tmp_path / "docs/adr").mkdir(parents=True)
    (tmp_path / "docs/adr/0001.md").write_text("# One\n")
    (tmp_path / "docs/README.md").write_text("# Index\n\n[code](../code.py), [README](../README.md#readmemd), [decisions](adr/)\n")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/site_hooks.py", tmp_path / "tools")
    # ours, with another navigation and without what this site has not
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[0]
    text = "\n".join(line for line in text.splitlines() if "assets/" not in line and "extra_css" not in line)
    nav = [
        "README.md",
        "adr/0001.md",
        {"Project": ["project/readme.md", "project/contributing.md", "project/changelog.md"]},
    ]
    (tmp_path / "mkdocs.yml").write_text(f"{text}\n{yaml.safe_dump({'nav': nav})}")
    return tmp_path


def test_links_out_of_docs_lead_to_pages(small: Path) -> None:
    done = build(small / "mkdocs.yml", small / "out")
    assert done.returncode == 0, done.stdout
    index = (small / "out/index.html").read_text()
    assert {"source/code.py.html", "project/readme.html#readmemd", "adr/0001.html"} <= set(re.findall(r'href="?([^\s">]+)', index))
    assert "42" in (small / "out/source/code.py.html").read_text()
    assert "code.py" not in {entry["title"] for entry in json.loads((small / "out/search/search_index.json").read_text())["docs"]}


WRONG = {
    "[x](../nowhere.py)": "README.md: the link ../nowhere.py leads nowhere",
    "[x](absent.md)": "README.md: the link absent.md leads nowhere",
    "[x](adr/0001.md#two)": "does not contain an anchor '#two'",
    "[x](#three)": "there is no such anchor on this page",
    "Text:\n- a list": "README.md: put an empty line before this list",
}


def test_what_is_wrong_is_named_and_ends_the_build(small: Path) -> None:
    with (small / "docs/README.md").open("a") as page:
        page.write("\n" + "\n\n".join(WRONG) + "\n")
    (small / "docs/new.md").write_text("# A page that no navigation has\n")
    done = build(small / "mkdocs.yml", small / "out")
    assert done.returncode != 0
    assert [says for says in (*WRONG.values(), "new.md") if says not in done.stdout] == [], done.stdout
