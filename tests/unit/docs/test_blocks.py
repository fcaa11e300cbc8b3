"""Every code block of the pages is run, checked, or says why not."""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
import typer
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioner.config import Cluster
from provisioner.fields import keys_of
from provisioner.load import load
from provisioner.pki import CaName, Lifetimes
from provisioner.pki.issue import new_ca
from tests.docs.blocks import ROOT, Block, Marker, blocks, parse
from tests.docs.commands import (
    ALONE,
    ELSEWHERE,
    ON_A_CLUSTER,
    TRIVIAL,
    form_of,
    in_make_test,
    is_placeholder,
    resolve,
    shell,
    united,
)

BLOCKS = blocks()
HELP = (
    "say why nothing runs it (<!-- not run: the reason -->) or which test does (<!-- run by: tests/…::test_… -->) "
    "in a line above the block; see CONTRIBUTING.md"
)
# What a part of a cluster.yaml is a part of.
REST = {
    "name": "demo",
    "nodes": [
        {"name": f"cp-{number}", "address": f"192.168.56.1{number}", "roles": ["control-plane", "etcd", "worker"]}
        for number in (1, 2, 3)
    ],
}
# Files beside a cluster.yaml, for those that it names; the login is the page's own.
MANIFEST = "{apiVersion: v1, kind: Namespace, metadata: {name: demo}}\n"
LOGIN = next(block.text for block in BLOCKS if block.page == "docs/addons.md" and block.text.startswith("username: "))
# typer's own class of what it says against a command line; it has a public name for one of its children alone
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
CHECKED = {"yaml", "json", "toml", "python"}
# Text that is shown and does nothing.
SHOWN = {"text", "diff"}


def named(block: Block) -> str:
    return block.where


def is_cluster(block: Block) -> bool:
    """Whether it is a cluster.yaml, or a part of one: in a fence or indented."""
    if block.language not in ("yaml", ""):
        return False
    try:
        value = yaml.safe_load(block.text)
    except yaml.YAMLError:
        return False
    return isinstance(value, dict) and bool(value) and set(value) <= set(keys_of(Cluster))


def is_json(block: Block) -> bool:
    return block.language == "json" or (not block.language and block.text.startswith(("{", "[{")))


def test_the_blocks_are_found() -> None:
    assert len(BLOCKS) > 60
    assert sum(len(shell(block)) for block in BLOCKS) > 90, "the pages have their commands in another form now: nothing sees them"


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_nothing_is_left_out(block: Block) -> None:
    if block.marker is not None and not block.marker.words:
        return
    if block.is_shell:
        left = [" ".join(words) for words in block.commands() if not (block.excuses(words) or is_covered(words))]
        assert not left, f"{block.where}: no test runs {left}: {HELP}"
        return
    covered = is_cluster(block) or is_json(block) or block.language in SHOWN | (CHECKED - {"yaml"})
    assert covered, f"{block.where}: a block in {block.language or 'no language'} that nothing checks: {HELP}"


def is_covered(words: list[str]) -> bool:
    if words[0] == "provisioner":
        # how a command is written, not one that can be run
        return form_of(words) in {*ALONE, *ON_A_CLUSTER, *ELSEWHERE} or "[" in " ".join(words)
    return words[0] in TRIVIAL or (words[0] == "make" and in_make_test(words))


def test_the_tests_that_are_named_exist() -> None:
    problems = [(block.where, missing(block.marker.test)) for block in BLOCKS if block.marker and block.marker.test]
    assert [problem for problem in problems if problem[1]] == []
    assert problems, "no page names a test any more: nothing sees them"


@pytest.mark.parametrize("path", ELSEWHERE)
def test_the_other_tests_run_the_command(path: str) -> None:
    assert missing(ELSEWHERE[path]) == ""
    quoted = ", ".join(f'"{word}"' for word in path.split())
    text = (ROOT / ELSEWHERE[path].partition("::")[0]).read_text()
    # tests of one family of commands have a helper that says its name
    short = ['"lab", *'] if path.startswith("lab ") else []
    helped = all(part in text for part in (*short, f'provisioner("{path.rsplit(maxsplit=1)[-1]}"'))
    # in a line for a shell: a whole one, or the part that is exchanged in a step of an example
    line = re.search(rf'(?:"|\{{COMMAND\}} |provisioner"? ){path}[ ;]', text)
    assert quoted in text or helped or line, f"it does not call `{path}`"


def missing(test: str) -> str:
    """What is wrong with the name of a test; empty where it exists."""
    name, _, function = test.partition("::")
    if not (ROOT / name).is_file():
        return f"{name}: no such file"
    tree = ast.parse((ROOT / name).read_text())
    return "" if any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body) else f"{test}: no such test"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_shell], ids=named)
def test_commands_are_what_the_command_line_takes(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in block.commands():
        if words[0] == "provisioner" and "[" not in " ".join(words):
            assert refusal(words) == "", f"{block.where}: {' '.join(words)}"


def refusal(words: list[str]) -> str:
    """What the real parser says against a command line; empty where it takes it. Nothing is run."""
    path, command, rest = resolve(words)
    if not path:
        # the program's own options act while they are parsed: --install-completion writes into a home directory
        known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
        return " ".join(word for word in rest if word not in known)
    try:
        command.make_context(path, rest)
    except typer.Exit as error:
        return "" if error.exit_code == 0 else f"exit {error.exit_code}"
    except USAGE_ERROR as error:
        # files that a reader has are not here
        return "" if is_placeholder(words) and "does not exist" in str(error) else str(error)
    return ""


@pytest.mark.parametrize("block", [block for block in BLOCKS if is_cluster(block)], ids=named)
def test_a_cluster_or_a_part_of_one_loads(block: Block, tmp_path: Path) -> None:
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    text = block.text.replace("age1…", recipient)
    value = yaml.safe_load(text)
    path = tmp_path / "cluster.yaml"
    # the text itself where it is a whole file: so its form is read, too
    path.write_text(text if {"name", "nodes"} <= set(value) else yaml.safe_dump({**REST, **value}))
    if "key" in (value.get("ssh") or {}):
        key = tmp_path / value["ssh"]["key"]
        key.touch(mode=0o600)
        key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    for name in value.get("manifests") or ():
        place(tmp_path / name / "a.yaml" if name.endswith("/") else tmp_path / name, MANIFEST)
    for registry in (value.get("containerd") or {}).get("registries") or ():
        if "credentials" in registry:
            place(tmp_path / registry["credentials"], LOGIN)
        if "ca" in registry:
            authority = new_ca(CaName.CLUSTER, "demo", now=dt.datetime.now(dt.UTC), lifetimes=Lifetimes())
            place(tmp_path / registry["ca"], authority.certificate.decode())
    load(path)


def place(path: Path, text: str) -> None:
    """A file that a reader has beside cluster.yaml, readable for nobody else."""
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def test_json_toml_and_yaml_are_what_they_say() -> None:
    readers: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    seen = 0
    for block in BLOCKS:
        language = "json" if is_json(block) else block.language
        # indented output may be cut short
        if language in readers and (block.language or not block.marker):
            seen += 1
            assert readers[language](block.text), block.where
    assert seen > 3, "the pages have their examples in another form now: nothing sees them"


def test_python_is_run_as_far_as_that_makes_nothing() -> None:
    for block in BLOCKS:
        if block.language != "python":
            continue
        tree = ast.parse(block.text, block.where)
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
        found: dict[str, object] = {}
        exec(compile(ast.Module([*imports], []), block.where, "exec"), found)  # noqa: S102 - a page of ours
        for node in ast.walk(tree):
            # what is taken from the modules that the page imports is there
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in found:
                assert hasattr(found[node.value.id], node.attr), f"{block.where}: {node.value.id}.{node.attr}"
        assert block.marker is not None or len(imports) == len(tree.body), f"{block.where}: nothing runs all of it: {HELP}"


# -- the tests of these tests: each can fail --------------------------------------------------------------------------------------

PAGE = """\
Text.

    provisioner node add w --address 10.0.0.1   # a remark
    cd x && KUBECONFIG=y kubectl get nodes

- an item

    with more text of it

<!-- not run: output -->

    worker-1: 2 changes

```console
$ provisioner etcd cure \\
    --yes 2>/dev/null | jq -r '.a | .b' >x.json
cured
```

<!-- not run (kubectl): not here -->
```sh
kubectl get nodes
rm -r x
```
"""


def test_blocks_are_parsed() -> None:
    first, output, console, marked = parse("p.md", PAGE)
    assert [(block.line, block.language) for block in (first, output, console, marked)] == [
        (3, "sh"),
        (12, ""),
        (15, "console"),
        (22, "sh"),
    ]
    assert list(first.commands()) == [
        ["provisioner", "node", "add", "w", "--address", "10.0.0.1"],
        ["cd", "x"],
        ["kubectl", "get", "nodes"],
    ]
    assert output.marker == Marker(reason="output")
    assert list(console.commands()) == [["provisioner", "etcd", "cure", "--yes"], ["jq", "-r", ".a | .b"]]
    assert console.refused() == []
    (refusing,) = parse("p.md", "    $ provisioner plan\n    error: no\n    $ provisioner apply\n    done\n")
    assert refusing.refused() == [["provisioner", "plan"]]
    assert [marked.excuses(words) for words in marked.commands()] == [True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [("```sh\nmake\n", "has no end"), ("<!-- not run output -->\n\n    x\n", "no marker")],
)
def test_a_page_that_is_not_well_formed_is_named(text: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        list(parse("p.md", text))


@pytest.mark.parametrize(
    "text",
    [
        "    rm -rf /\n",
        "    $ rm -rf /\n",
        "```sh\ncurl http://example.org | sh\n```\n",
        "```yaml\nsurprise: 1\n```\n",
        "```ruby\n1\n```\n",
    ],
)
def test_a_block_that_nothing_covers_is_found(text: str) -> None:
    (block,) = parse("p.md", text)
    with pytest.raises(AssertionError, match=r"p\.md:"):
        test_nothing_is_left_out(block)


def test_a_paragraph_of_output_is_no_command() -> None:
    (block,) = parse("p.md", "    provisioner plan\n\n    cp-1: 1 change\n\n    provisioner apply\n")
    assert list(block.commands()) == [["provisioner", "plan"], ["provisioner", "apply"]]


@pytest.mark.parametrize(("line", "is_in"), [("make test", True), ("make unit lint", True), ("make up", False), ("make", False)])
def test_what_make_test_does_is_known(line: str, is_in: bool) -> None:
    assert in_make_test(line.split()) is is_in


@pytest.mark.parametrize(
    "line",
    [
        "provisioner --instal-completion",
        "provisioner node add",
        "provisioner verify --levl full",
        "provisioner logs cp-1 -n many",
        "provisioner apply cp-1",
    ],
)
def test_a_command_that_does_not_exist_in_this_form_is_found(line: str) -> None:
    assert refusal(line.split())


def test_costly_commands_are_run_once() -> None:
    forms = (
        "plan",
        "verify --json",
        "logs cp-1",
        "verify --junit a.xml",
        "logs cp-2",
        "plan --json",
        "verify --junit b.xml --json",
    )
    commands = [(form, ["provisioner", *form.split()]) for form in forms]
    assert [" ".join(words[1:]) for _, words in united(commands)] == [
        "plan --json",
        "verify --json --junit a.xml",
        "logs cp-1",
        "logs cp-2",
    ]
    assert commands[0][1] == ["provisioner", "plan"]
