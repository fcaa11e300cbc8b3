"""From the text of a cluster.yaml to a ``Cluster``, or to every problem of it at once, each with its line."""

from __future__ import annotations

import copy
import dataclasses
import json
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from provisioner import document, messages, validate
from provisioner.config import Cluster, Model
from provisioner.document import Document
from provisioner.errors import BadInput
from provisioner.fields import field_at, keys_of, sections_of
from provisioner.messages import Finding
from provisioner.problems import Path as Where
from provisioner.problems import Problem

# More lines than this help nobody; the count is told.
_MAX_SHOWN = 500
# Beyond this many places that the models refuse, it is another kind of file.
_MAX_FINDINGS = 2_000
# Stand in for required values that did not validate, so that the rules can speak about the rest. Rules never speak about these.
_PLACEHOLDERS: dict[str, object] = {
    "name": "placeholder",
    "address": "placeholder.invalid",
    "roles": ["worker"],
    "key": "placeholder",
    "effect": "PreferNoSchedule",
    "host": "placeholder",
    "registry": "placeholder",
    "endpoints": ["https://placeholder"],
    "nodes": [{"name": "placeholder", "address": "placeholder.invalid", "roles": ["worker"]}],
}
_HINT = "`provisioner schema --markdown` describes every key, `provisioner schema` tells your editor"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of reading a file. ``cluster`` is None where a problem is an error; ``problems`` are in the file's order."""

    file: Path
    cluster: Cluster | None
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What refuses the file."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is doubtful, and does not refuse the file."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")


def load(path: Path, *, known_versions: Collection[str] | None = None, exists: bool = False) -> Cluster:
    """Read a cluster.yaml.

    Args:
        path: the file.
        known_versions: Kubernetes versions that can be installed; default: those of versions.yml.
        exists: the cluster runs already; what only a new one is refused (an even number of etcd members) becomes a warning.

    Raises:
        BadInput: the file cannot be read, or is wrong; ``details`` has one line for every problem,
            ``cluster.yaml:12: nodes[1].adress: unknown key; did you mean "address"?``.
    """
    loaded = read(path, known_versions=known_versions, exists=exists)
    if loaded.cluster is None:
        raise refusal(loaded)
    return loaded.cluster


def read(path: Path, *, known_versions: Collection[str] | None = None, exists: bool = False) -> Loaded:
    """Like :func:`load`, with the problems as values, warnings included.

    Raises:
        BadInput: the file cannot be read as text at all.
    """
    text = _text_of(path)
    if known_versions is None:
        # only here: reading a file needs the lock, the models and rules do not
        from provisioner.artifacts.lock import load_lock  # noqa: PLC0415

        known_versions = load_lock().kubernetes_versions
    return parse(text, path, known_versions=known_versions, exists=exists)


def parse(text: str, path: Path, *, known_versions: Collection[str] | None = None, exists: bool = False) -> Loaded:
    """The same for a text at hand; ``path`` names it and says where relative file names count from."""
    parsed = document.parse(text)
    problems = list(parsed.problems)
    cluster: Cluster | None = None
    if isinstance(parsed.value, dict):
        cluster, damaged, found = _validated(parsed.value, {problem.path for problem in problems})
        problems += found
        if cluster is not None:
            base = path.absolute().parent
            problems += validate.problems_of(cluster, base, known_versions=known_versions, exists=exists, damaged=damaged)
    elif not problems:
        what = (
            "the file is empty"
            if parsed.value is None
            else f"must hold a mapping (`key: value`), not {messages.describe(parsed.value)}"
        )
        problems.append(Problem((), what, line=1, column=1))
    located = tuple(sorted(dict.fromkeys(_locate(parsed, problems)), key=lambda problem: (problem.line, problem.column)))
    if any(problem.severity == "error" for problem in located):
        cluster = None
    return Loaded(path, cluster, located)


def lines(file: Path, problems: Iterable[Problem]) -> tuple[str, ...]:
    """The problems as lines of a terminal: ``cluster.yaml:12: nodes[1].adress: unknown key; ...``."""
    shown = []
    for problem in problems:
        place = f"{file.name}:{problem.line}" if problem.line else file.name
        grade = "warning: " if problem.severity == "warning" else ""
        where = f"{problem.where}: " if problem.path else ""
        shown.append(f"{place}: {grade}{where}{problem.message}")
    rest = len(shown) - _MAX_SHOWN
    return (*shown[:_MAX_SHOWN], f"and {rest} more") if rest > 0 else tuple(shown)


def refusal(loaded: Loaded) -> BadInput:
    """The error that says all that is wrong with a file."""
    count = len(loaded.errors)
    return BadInput(
        f"{loaded.file}: {count} problem{'s' if count > 1 else ''}; nothing was changed",
        hint=_HINT,
        details=lines(loaded.file, loaded.problems),
    )


def _text_of(path: Path) -> str:
    shown = str(path)[:500].encode(errors="backslashreplace").decode()
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise BadInput(f"{shown}: is a directory", hint="name the file in it, e.g. cluster.yaml")
        if not stat.S_ISREG(found.st_mode):
            raise BadInput(f"{shown}: is no regular file", hint="cluster.yaml must be an ordinary file")
        if found.st_size > document.MAX_BYTES:
            limit = f"{document.MAX_BYTES >> 20} MiB"
            raise BadInput(f"{shown}: is larger than the {limit} that a cluster.yaml may have", hint="is this the right file?")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{shown}: no such file", hint="`provisioner init` writes a commented cluster.yaml") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise BadInput(f"{shown}: cannot be read: {reason}", hint="check the name and the permissions") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # with a signature, the position counts from behind it
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        detail = f"{path.name.encode(errors='backslashreplace').decode()}:{line}: byte 0x{byte:02x} is no UTF-8"
        raise BadInput(f"{shown}: is not UTF-8 text", hint="save the file as UTF-8", details=(detail,)) from None


def _validated(data: dict[str, object], spoken: Collection[Where]) -> tuple[Cluster | None, set[Where], list[Problem]]:
    """The cluster as far as the models take it, the paths of it that are not the user's own, and the models' findings."""
    data = _without_empty(data, Cluster)
    try:
        return _model(data), {*spoken}, []
    except ValidationError as error:
        findings = messages.findings_of(error.errors(include_url=False)[:_MAX_FINDINGS], data)
    cluster, patched = _patched(data, findings)
    problems = [finding.problem for finding in findings if not finding.said and finding.problem.path not in spoken]
    return cluster, patched.union(spoken), problems


def _model(data: dict[str, object]) -> Cluster:
    # JSON's strict mode is the one that fits YAML: lists become tuples and texts addresses, but 22 is no text and "22" no number
    return Cluster.model_validate_json(json.dumps(data), strict=True, by_alias=True, by_name=False)


def _patched(data: dict[str, object], findings: Iterable[Finding]) -> tuple[Cluster | None, set[Where]]:
    """The file with a default or a placeholder wherever the models refused something, so that the rules can speak about the rest;
    and the paths that are no longer the user's own."""
    data = copy.deepcopy(data)
    damaged: set[Where] = set()
    for finding in findings:
        path = finding.problem.path
        if finding.unknown_key:
            _put(data, path, None)
            # a misspelt key leaves the key that was meant at its default
            damaged |= {path, messages.meant_by(path) or path}
        elif found := field_at(path):
            field_path, field = found
            if len(path) > len(field_path) and isinstance(path[len(field_path)], str):
                # one entry of free-form flags, labels or fields
                field_path = path[: len(field_path) + 1]
                _put(data, field_path, None)
            else:
                _put(data, field_path, _PLACEHOLDERS[str(field_path[-1])] if field.is_required() else None)
            damaged.add(field_path)
    try:
        return _model(data), damaged
    except ValidationError:
        return None, damaged


def _put(data: object, path: Where, value: object) -> None:
    """Set the value of a key, or take the key away (None); harmless where the path leads nowhere."""
    for part in path[:-1]:
        if isinstance(data, dict) and isinstance(part, str):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return
    if not isinstance(data, dict):
        return
    if value is None:
        data.pop(path[-1], None)
    else:
        data[path[-1]] = copy.deepcopy(value)


def _without_empty(data: dict[str, object], model: type[Model]) -> dict[str, object]:
    """A key with nothing behind it takes its default: what is left of a section when all its lines are commented out."""
    fields, sections = keys_of(model), sections_of(model)
    kept: dict[str, object] = {}
    for key, value in data.items():
        field, inner = fields.get(key), sections.get(key)
        if value is None and field is not None and not field.is_required():
            continue
        if inner and isinstance(value, dict):
            kept[key] = _without_empty(value, inner)
        elif inner and isinstance(value, list):
            kept[key] = [_without_empty(item, inner) if isinstance(item, dict) else item for item in value]
        else:
            kept[key] = value
    return kept


def _locate(parsed: Document, problems: Iterable[Problem]) -> Iterable[Problem]:
    for problem in problems:
        if problem.line:
            yield problem
        else:
            line, column = parsed.locate(problem.path)
            yield dataclasses.replace(problem, line=line, column=column)
