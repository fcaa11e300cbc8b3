"""Reference pages out of the code: `make docs` writes them, and a test compares what is in docs/reference with what is said here.

``python -m tools.reference docs/reference`` writes every page; with ``--check`` it names those that are not current, and the exit
code is 1 where there are some.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import provisioner
from provisioner import preflight, schema
from provisioner.artifacts.lock import load_lock
from provisioner.cli import reference as cli
from provisioner.errors import ExitCode, ProvisionerError
from provisioner.render.layout import ROLES, RoleSpec
from provisioner.ssh.errors import Trouble
from provisioner.verify.checks import CHECKS

ROOT = Path(__file__).parents[1]
_NOTE = "<!-- Written by `make docs` out of {}; do not edit by hand. -->"


def exit_codes() -> str:
    """Exit codes, and which error of the program leads to which of them."""
    by_code: dict[ExitCode, list[type[ProvisionerError]]] = {code: [] for code in ExitCode}
    for kind in sorted(_errors(), key=lambda kind: kind.__name__):
        by_code[kind.exit_code].append(kind)
    lines = [
        "# Exit codes",
        "",
        _NOTE.format("`provisioner/errors.py`"),
        "",
        "Scripts may rely on them. The message on standard error says what happened, `remedy:` what to do about it.",
        "",
        "| Exit code | Meaning |",
        "| --- | --- |",
        cli.exit_codes(),
        "",
        "## Kinds of errors",
        "",
        "Every failure that the program foresees is of one of these kinds; anything else is a defect of its own, and exits with 1.",
        "",
        "| Exit code | Error | When |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {int(code)} | `{kind.__name__}` | {_summary(kind)} |" for code, kinds in by_code.items() for kind in kinds]
    return "\n".join(lines) + "\n"


def checks() -> str:
    """The rules of preflight and the checks of verify, as the program has them."""
    lines = [
        "# Rules and checks",
        "",
        _NOTE.format("the tables `preflight.RULES` and `verify.checks.CHECKS`"),
        "",
        "Their names stand in `--json`, in JUnit reports, and in messages.",
        "",
        "## Rules of preflight",
        "",
        "What each makes sure of, in the order in which they are told. [Preflight](preflight.md) says when one is an error,",
        "a warning or for information.",
        "",
        "| Rule | Makes sure that |",
        "| --- | --- |",
        *(f"| `{name}` | {_summary(rule)} |" for name, rule in preflight.RULES.items()),
        "",
        "A machine that cannot be looked at has one problem instead: "
        + ", ".join(f"`ssh-{trouble}`" for trouble in Trouble)
        + f"; the {len(Trouble)} are [explained](preflight.md#getting-there).",
        "",
        "## Checks of verify",
        "",
        "In the order of the report. A check is *blocked* where one that it needs has not passed; its deadline grows with the",
        "number of machines. [Verify](../verify.md) says how they look.",
        "",
        "| Check | Level | Proves that | Needs | Deadline |",
        "| --- | --- | --- | --- | --- |",
    ]
    for check in CHECKS:
        needs = ", ".join(f"`{name}`" for name in check.needs)
        deadline = f"{check.seconds:g} s + {check.per_node:g} s per machine"
        lines.append(f"| `{check.id}` | {check.level} | {_cell(check.title)} | {needs} | {deadline} |")
    return "\n".join(lines) + "\n"


def roles() -> str:
    """Every Ansible role: its variables (meta/argument_specs.yml), and what it puts where (render/layout.py)."""
    placed = {role.name: role for role in ROLES}
    names = sorted(path.parents[1].name for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"))
    lines = [
        "# Roles",
        "",
        _NOTE.format("the roles' `meta/argument_specs.yml` and `provisioner/render/layout.py`"),
        "",
        "Ansible places what Python has computed. The variables are for whoever changes a role: the driver sets them out of",
        "[cluster.yaml](cluster-yaml.md), and nobody else has to.",
        "",
        "Files are owned by root and 0644 where nothing else is said; certificates and keys are [listed by themselves](pki.md).",
    ]
    for name in [*(role.name for role in ROLES if role.name in names), *(name for name in names if name not in placed)]:
        spec = yaml.safe_load((ROOT / "roles" / name / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
        lines += ["", f"## {name}", "", f"{_sentence(spec['short_description'])}"]
        if description := spec.get("description"):
            lines += ["", *(_sentence(text) for text in ([description] if isinstance(description, str) else description))]
        if name in placed and (placing := list(_placed(placed[name]))):
            lines += ["", *placing]
        if options := spec.get("options"):
            lines += ["", "| Variable | Type | Required | What it is |", "| --- | --- | --- | --- |", *_variables(options)]
    return "\n".join(lines) + "\n"


def versions() -> str:
    """Which versions go with which Kubernetes, where the files come from, and which sums are known."""
    lock = load_lock(ROOT / "versions.yml")
    chosen = lock.kubernetes_versions
    names = list(dict.fromkeys(name for version in chosen for name in lock.releases[version]))
    lines = [
        "# Versions",
        "",
        _NOTE.format("`versions.yml`"),
        "",
        f"Kubernetes {chosen[0]} is the default. Each goes with these versions of everything else;",
        f"the source `modules` builds with Go {lock.go.version}.",
        "",
        "| | " + " | ".join(f"Kubernetes {version}" for version in chosen) + " |",
        "| --- |" + " --- |" * len(chosen),
        *(f"| {name} | " + " | ".join(lock.releases[version].get(name, "") for version in chosen) + " |" for name in names),
        "",
        "## Official files",
        "",
        "What the sources `release` and `mirror` take. A file is used only with its sum; for which architectures it is known",
        "is in the last columns, and [Artifacts](../artifacts.md) says how to fill in the rest.",
        "",
        "| Component | Official file or image | " + " | ".join(f"for {version}" for version in chosen) + " |",
        "| --- | --- |" + " --- |" * len(chosen),
    ]
    for name in ["kubernetes", *names]:
        component = lock.component(name)
        official = {file: described.url for file, described in component.files.items()}
        if component.image:
            official["image"] = component.image
        for file, url in official.items():
            known = [_known(lock.release(name, lock.version_of(name, version)).official.get(file, {})) for version in chosen]
            lines.append(f"| {name} | `{url}` | " + " | ".join(known) + " |")
    lines += [
        "",
        "## Built from modules",
        "",
        "Files that the source `modules` builds, with the architectures whose sum is known.",
        "",
        "| Component | File | " + " | ".join(f"for {version}" for version in chosen) + " |",
        "| --- | --- |" + " --- |" * len(chosen),
    ]
    for name in ["kubernetes", *names]:
        built = [lock.release(name, lock.version_of(name, version)).modules for version in chosen]
        for file in dict.fromkeys(file for sums in built for file in sums):
            lines.append(f"| {name} | `{file}` | " + " | ".join(_known(sums.get(file, {})) for sums in built) + " |")
    return "\n".join(lines) + "\n"


# Every page below docs/reference that is written by a program.
PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli.reference,
    "cluster-yaml.md": schema.reference,
    "exit-codes.md": exit_codes,
    "checks.md": checks,
    "roles.md": roles,
    "versions.md": versions,
}


def _errors() -> set[type[ProvisionerError]]:
    """Every class of errors there is; for that all modules are imported."""
    for module in pkgutil.walk_packages(provisioner.__path__, "provisioner."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: set[type[ProvisionerError]] = set()
    new = {ProvisionerError}
    while new:
        found |= new
        new = {below for kind in new for below in kind.__subclasses__()} - found
    return {kind for kind in found if kind.__module__.startswith("provisioner.")}


def _placed(role: RoleSpec) -> Iterator[str]:
    lists = {
        "Units": [f"`{unit.name}`" for unit in role.units],
        "Files": [f"`{file.path}`" + _rights(file.mode, file.owner) for file in role.files]
        + [f"`{path}`" for path, _ in role.scripts],
        "Artifacts": [f"`{name}`" for name in role.binaries],
    }
    for title, items in lists.items():
        if items:
            yield f"- {title}: {', '.join(items)}"


def _rights(mode: int, owner: str) -> str:
    said = [text for text in (f"{mode:04o}" if mode != 0o644 else "", owner if owner != "root" else "") if text]
    return f" ({', '.join(said)})" if said else ""


def _variables(options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        yield f"| `{name}` | {kind} | {'yes' if option.get('required') else 'no'} | {_cell(_text(option['description']))} |"


def _text(description: str | list[str]) -> str:
    return description if isinstance(description, str) else " ".join(description)


def _known(sums: Mapping[Any, object]) -> str:
    return ", ".join(str(arch) for arch, value in sums.items() if value) or "none"


def _summary(thing: object) -> str:
    """The first paragraph of a docstring, for a cell."""
    text = inspect.getdoc(thing) or ""
    assert text, f"{thing} says nothing of itself"  # noqa: S101 - a page with holes would not be noticed
    return _cell(text.split("\n\n")[0])


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":")) else f"{text}."


def _cell(text: str) -> str:
    """One cell of a table: one line, with Markdown's code instead of reST's."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def main(directory: Path, *, check: bool) -> int:
    """Write the pages, or compare them; returns the exit code."""
    stale = [name for name, page in PAGES.items() if not (directory / name).exists() or (directory / name).read_text() != page()]
    for name in stale:
        if check:
            print(f"{directory / name} is not current: run `make docs`", file=sys.stderr)
        else:
            (directory / name).write_text(PAGES[name]())
            print(f"written: {directory / name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), check="--check" in sys.argv[2:]))
