"""Manual pages, written out of the commands and models themselves (`make docs`) as reference.py writes the Markdown.

provisioner(1) says what there is, provisioner-COMMAND(1) everything about one command or group, cluster.yaml(5) the file's keys.
The language is man(7) of the simple kind, which man-db, mandoc and everybody's converters read. No dates: the same sources give
the same bytes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from provisioner import __version__, schema
from provisioner.cli import app
from provisioner.cli.lazy import NarrowContext, first_sentence
from provisioner.cli.reference import MEANINGS, leaves

# In provisioner(1), after the commands.
_FILES = (
    ("cluster.yaml", "Describes the cluster; see cluster.yaml(5)."),
    ("workspace/NAME/", "What a cluster has on this machine: cluster.yaml of a lab, keys, kubeconfigs, logs, backups. Mode 0700."),
    ("~/.cache/provisioner/", "Binaries and images, by their sums; $PROVISIONER_CACHE names another place."),
)
_ENVIRONMENT = (
    ("NO_COLOR", "Where it is set and not empty, no escape sequence is written: no colours, no live display."),
    ("FORCE_COLOR, CLICOLOR_FORCE", "Colours also where the output is no terminal. The live display stays a terminal's."),
    ("CLICOLOR", "0: as NO_COLOR."),
    ("TERM", "dumb: plain lines."),
    ("COLUMNS", "How wide the terminal is."),
    ("PROVISIONER_CACHE", "Where the cache of artifacts is."),
    ("PROVISIONER_DEBUG", "Not empty: as --debug."),
    ("KUBECONFIG", "The file that `kubeconfig --merge` writes to, as kubectl reads it."),
)


def pages() -> dict[str, str]:
    """Every page: name of its file -> its text."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)  # noqa: S101 - an application of several commands is one
    names = tuple(root.commands)
    found = {"man1/provisioner.1": _overview(root)}
    for name in names:
        found[f"man1/provisioner-{name}.1"] = _page(name, root.commands[name])
    found["man5/cluster.yaml.5"] = _file_page(schema.reference())
    return found


def text(words: str) -> str:
    """Plain text as roff: what is special there is not, `code` is bold."""
    parts = re.split(r"(`+)(.+?)\1", " ".join(words.split()))
    out = []
    for index in range(0, len(parts), 3):
        out.append(_escaped(parts[index]))
        if index + 2 < len(parts):
            out.append(rf"\fB{_escaped(parts[index + 2], code=True)}\fR")
    line = "".join(out)
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _escaped(words: str, *, code: bool = False) -> str:
    words = words.replace("\\", r"\e")
    words = re.sub(r"(?<![\w])(--?)(?=[A-Za-z])", lambda found: found[1].replace("-", r"\-"), words)
    if code:
        words = re.sub(r"(?<!\\)-", r"\-", words).replace("'", r"\(aq").replace("^", r"\(ha").replace("~", r"\(ti")
    words = words.replace("~", r"\(ti")
    return "".join(char if char.isascii() else rf"\[u{ord(char):04X}]" for char in words)


def _head(name: str, section: int, about: str) -> list[str]:
    manual = "provisioner manual"
    return [
        r".\" Written by `make docs` out of the program; do not edit by hand.",
        f'.TH "{name.upper()}" "{section}" "" "provisioner {__version__}" "{manual}"',
        ".nh",  # a word that is broken cannot be searched for, nor copied
        ".ad l",
        ".SH NAME",
        rf"{name.replace('-', chr(92) + '-')} \- {text(about)}",
    ]


def _paragraphs(words: str) -> Iterator[str]:
    for index, paragraph in enumerate(inspect.cleandoc(words).split("\n\n")):
        if index:
            yield ".PP"
        yield text(paragraph)


def _terms(rows: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, meaning in rows:
        yield ".TP"
        yield f".B {_term(term)}"
        yield text(meaning) if meaning else r"\&"


def _term(words: str) -> str:
    return '"' + _escaped(words, code=True).replace('"', r"\(dq") + '"'


def _overview(root: TyperGroup) -> str:
    with _called(root, "provisioner") as context:
        lines = _head("provisioner", 1, first_sentence(root.help or ""))
        lines += [".SH SYNOPSIS", r"\fBprovisioner\fR [\fIOPTION\fR...] \fICOMMAND\fR [\fIARGUMENT\fR...]", ".SH DESCRIPTION"]
        lines += _paragraphs(
            f"{root.help}\n\nWhat a script may want to read goes to standard output, progress and errors to standard error. "
            "Without `--cluster`, a command takes `cluster.yaml` of the working directory, else the only "
            "`workspace/*/cluster.yaml` there is."
        )
        lines += [".SH OPTIONS", *_terms(_records(root, context)), ".SH COMMANDS"]
        for name, command in root.commands.items():
            lines += [
                ".TP",
                rf".BR provisioner\-{name.replace('-', chr(92) + '-')} (1)",
                text(f"{first_sentence(command.help or '')}."),
            ]
    lines += [".SH EXIT STATUS", *_terms(tuple((str(int(code)), f"{meaning}.") for code, meaning in MEANINGS.items()))]
    lines += [".PP", "A process that SIGTERM or SIGHUP has asked to end cleans up as after Ctrl-C and ends by that signal."]
    lines += [".SH ENVIRONMENT", *_terms(_ENVIRONMENT), ".SH FILES", *_terms(_FILES)]
    lines += [".SH SEE ALSO", ".BR cluster.yaml (5),", ".BR kubectl (1),", ".BR ssh (1)"]
    return "\n".join(lines) + "\n"


def _page(name: str, command: Any) -> str:
    lines = _head(f"provisioner-{name}", 1, first_sentence(command.help or ""))
    found = [(path, one) for path, one in leaves(command, f"provisioner {name}")]
    lines.append(".SH SYNOPSIS")
    for index, (path, one) in enumerate(found):
        with _called(one, path) as context:
            usage = one.get_usage(context).removeprefix(f"Usage: {path}").replace("[[", "[").replace("]]", "]")
        lines += [".br"] * bool(index) + [f".B {_term(path)}", text(usage)]
    if isinstance(command, TyperGroup):
        lines += [".SH DESCRIPTION", *_paragraphs(command.help or "")]
    for path, one in found:
        with _called(one, path) as context:
            if isinstance(command, TyperGroup):
                lines.append(f".SH {_term(path.removeprefix('provisioner '))}")
            else:
                lines.append(".SH DESCRIPTION")
            lines += _paragraphs(one.help or "")
            if rows := tuple(_records(one, context)):
                lines += [] if isinstance(command, TyperGroup) else [".SH OPTIONS"]
                lines += _terms(rows)
    lines += [".SH SEE ALSO", ".BR provisioner (1),", ".BR cluster.yaml (5)"]
    return "\n".join(lines) + "\n"


def _records(command: TyperCommand | TyperGroup, context: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument | TyperOption):
            record = parameter.get_help_record(context)
            if record:
                yield record
        elif (record := parameter.get_help_record(context)) is not None:  # --help
            yield record


def _called(command: TyperCommand | TyperGroup, path: str) -> Any:
    return NarrowContext(command, info_name=path, help_option_names=["-h", "--help"], terminal_width=10_000)


def _file_page(markdown: str) -> str:
    """The reference of cluster.yaml as a page: headings, paragraphs, and each row of a table as a term."""
    lines = _head("cluster.yaml", 5, "the one file that describes a cluster")
    lines.append(".SH DESCRIPTION")
    for block in re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL).split("\n\n"):
        block = block.strip()  # noqa: PLW2901 - the block, without blanks around it
        if not block or block.startswith("# "):
            continue
        if heading := re.fullmatch(r"(#{2,3}) (.+)", block):
            lines.append(f".{'SH' if len(heading[1]) == 2 else 'SS'} {_term(heading[2].replace('`', ''))}")
        elif block.startswith("|"):
            lines += _terms(tuple(_row(line) for line in block.splitlines()[2:]))
        else:
            lines += [".PP"] * (not lines[-1].startswith(".S")) + [text(block)]
    lines += [".SH SEE ALSO", ".BR provisioner (1)"]
    return "\n".join(lines) + "\n"


def _row(line: str) -> tuple[str, str]:
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    if len(cells) == 2:
        return cells[0].replace("`", ""), cells[1]
    key, kind, default, about = cells
    said = [kind.replace("*", "")] + ([default.replace("*", "") if "*" in default else f"default {default}"] if default else [])
    return key.replace("`", ""), f"({'; '.join(said)}) {about}"


def write(directory: Path) -> None:
    """Write all pages below a directory, and delete those of commands that are gone."""
    made = pages()
    for name, page in made.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
    for path in directory.glob("man*/*"):
        if str(path.relative_to(directory)) not in made:
            path.unlink()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
