"""Which test runs which command of the pages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from provisioner.cli import app
from tests.docs.blocks import ROOT, Block, blocks

# Nobody needs a test for these: a shell's own words, and a person's editor.
TRIVIAL = frozenset({"cd", "export", "mkdir", "$EDITOR"})
# Run as they stand, in a directory with a fresh cluster.yaml, by tests/unit/docs/test_commands.py.
ALONE = frozenset({"graph", "init", "validate", "schema", "verify --list"})
# Run as they stand on a real, whole cluster by tests/e2e/test_docs.py. None changes anything but files beside the user.
ON_A_CLUSTER = frozenset(
    {
        "artifacts fetch",
        "artifacts list",
        "artifacts verify",
        "certs status",
        "kubeconfig",
        "lab status",
        "logs",
        "plan",
        "support-bundle",
        "verify",
    }
)
# Of these, forms that differ in their options alone go into one run with all of the options: each costs seconds.
COSTLY = frozenset({"certs status", "plan", "support-bundle", "verify"})
# Other tests do what these do: they change machines, or need what a test prepares. A name that ends with an option is of forms
# that have it.
ELSEWHERE: Mapping[str, str] = {
    "--install-completion": "tests/unit/floor/test_completion.py::test_it_is_installed_for_each_shell",
    "--show-completion": "tests/unit/floor/test_completion.py::test_it_is_shown_for_each_shell",
    "apply": "tests/e2e/test_apply.py::test_an_edit_by_hand_is_shown_and_undone_and_nothing_else",
    "certs renew": "tests/e2e/test_certs.py::test_all_are_renewed_under_load",
    "certs rotate-ca": "tests/e2e/test_rotate_ca.py::test_every_ca_is_replaced_under_load",
    "etcd cure": "tests/e2e/test_etcd_care.py::test_nothing_to_cure",
    "etcd defrag": "tests/e2e/test_etcd_care.py::test_defragmentation_leaves_everything_healthy",
    "etcd list": "tests/e2e/test_scheduled_backup.py::test_the_members_back_themselves_up_and_a_restore_takes_it",
    "etcd restore": "tests/e2e/test_backup.py::test_the_cluster_returns_as_it_was",
    "etcd snapshot": "tests/e2e/test_backup.py::test_a_backup_is_one_file_that_tells_nothing",
    "init --from-vagrant": "tests/unit/vagrant/test_clusterfile.py::test_libvirt",
    "kubectl": "tests/e2e/test_dead_control_plane.py::test_kubectl_finds_a_control_plane_that_answers",
    "lab down": "tests/integration/test_lab.py::test_the_command_line_says_what_it_did",
    "lab load-image": "tests/e2e/test_smoke.py::test_the_steps_of_the_github_example",
    "lab ssh": "tests/integration/test_lab.py::test_the_command_line_says_what_it_did",
    "lab up": "tests/integration/test_lab.py::test_the_command_line_says_what_it_did",
    "node add": "tests/e2e/test_nodes.py::test_a_worker_is_added_by_two_connections",
    "node remove": "tests/e2e/test_nodes.py::test_a_budget_holds_a_machine_that_is_to_leave",
    "node replace": "tests/e2e/test_nodes.py::test_a_dead_worker_is_replaced_under_its_own_name",
    "preflight": "tests/integration/transport/test_preflight.py::test_the_command_names_every_problem_of_every_machine",
    "report": "tests/e2e/test_status.py::test_the_page",
    "reset": "tests/e2e/test_reset.py::test_a_machine_is_afterwards_what_it_was",
    "ssh": "tests/e2e/test_dead_control_plane.py::test_other_commands_go_on",
    "status": "tests/e2e/test_status.py::test_for_people",
    "status --watch": "tests/e2e/test_status.py::test_watching_keeps_its_connections",
    "up": "tests/e2e/test_smoke.py::test_the_steps_of_the_github_example",
    "upgrade": "tests/e2e/test_upgrade.py::test_under_load",
    "verify --level": "tests/e2e/test_sudo_user.py::test_one_machine_through_a_user_with_sudo",
    "verify --only": "tests/e2e/test_addons.py::test_without_credentials_nothing_is_pulled",
    "workspace export": "tests/e2e/test_backup.py::test_it_comes_back_on_new_machines_with_the_controller_lost",
    "workspace import": "tests/e2e/test_backup.py::test_it_comes_back_on_new_machines_with_the_controller_lost",
}
# What `make test` does itself, and so CI: the targets it begins with, and those whose tests are parts of its own.
MAKEFILE = (ROOT / "Makefile").read_text()
# A word that stands for one of the reader's own: FILE, NAME-TIME, age1…, [OPTIONS], 2024-….
PLACEHOLDER = re.compile(r"^[A-Z][A-Z-]+$|…|^\[|\]$|\.\.\.|\bMACHINE\b|^<")


@cache
def root() -> TyperGroup:
    """The command line, built once: that takes half a second."""
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def path_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """A command's name below ``provisioner`` ("node add"), and the words behind it."""
    name, _, rest = resolve(words)
    return name, rest


def resolve(words: Sequence[str]) -> tuple[str, TyperCommand | TyperGroup, list[str]]:
    """A command's name, itself, and the words behind it.

    Raises:
        AssertionError: there is no such command.
    """
    command: TyperCommand | TyperGroup = root()
    rest, path = list(words[1:]), list[str]()
    while isinstance(command, TyperGroup):
        if not rest or rest[0].startswith("-"):
            break
        assert rest[0] in command.commands, f"provisioner {' '.join([*path, rest[0]])}: no such command"
        path.append(rest[0])
        below = command.commands[rest[0]]
        assert isinstance(below, TyperCommand | TyperGroup)
        command, rest = below, rest[1:]
    return " ".join(path), command, rest


def form_of(words: Sequence[str]) -> str:
    """The name that a command has in the lists above: with an option where a list has such a form, else without."""
    path, rest = path_of(words)
    forms = (f"{path} {word}".strip() for word in rest)
    return next((form for form in forms if form in {*ALONE, *ELSEWHERE}), path)


def is_placeholder(words: Sequence[str]) -> bool:
    """Whether some word has to be filled in by the reader."""
    return any(PLACEHOLDER.search(word) for word in words)


def in_make_test(words: Sequence[str]) -> bool:
    """Whether CI's `make test` does what this `make` does; files that ARGS names exist."""
    found = re.search(r"^test:(?P<needs>[^#\n]*)##.*\n(?P<recipe>(?:[\t@].*\n)+(?:.*\\\n|\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert found is not None, "the Makefile has no target `test` any more"
    needs, recipe = found["needs"].split(), found["recipe"]
    targets = [word for word in words[1:] if "=" not in word]
    files = [name for word in words if word.startswith("ARGS=") for name in re.findall(r"tests/\S+\.py", word)]
    inside = all(target in ("test", *needs) or f"tests/{target}" in recipe for target in targets)
    return bool(targets) and inside and all((ROOT / name).is_file() for name in files)


def to_run(paths: frozenset[str]) -> list[tuple[str, list[str]]]:
    """(where, words) of each different command of these that stands on a page and is not excused there."""
    found: dict[tuple[str, ...], str] = {}
    for block in blocks():
        for words in shell(block):
            if words[0] != "provisioner" or block.excuses(words) or is_placeholder(words):
                continue
            if form_of(words) in paths:
                found.setdefault(tuple(words), block.where)
    return [(where, list(words)) for words, where in found.items()]


def united(commands: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The same commands, with those of ``COSTLY`` that are one in all but options become one.

    Of options that stand there with two values the first counts; that the others are parsed is what tests/unit/docs sees to.
    """
    found: list[tuple[str, list[str]]] = []
    first: dict[str, list[str]] = {}
    for where, words in commands:
        path, rest = path_of(words)
        if path not in COSTLY or is_refused(words) or (rest and not rest[0].startswith("-")):
            found.append((where, words))
        elif path not in first:
            first[path] = list(words)
            found.append((where, first[path]))
        else:
            # an option, and its value where the next word is one
            starts = [at for at, word in enumerate(rest) if word.startswith("-")]
            for at, end in pairwise([*starts, len(rest)]):
                if rest[at] not in first[path]:
                    first[path].extend(rest[at:end])
    return found


def is_refused(words: Sequence[str]) -> bool:
    """Whether a page shows that the command is refused."""
    return any(list(words) == refused for block in blocks() for refused in block.refused())


def shell(block: Block) -> list[list[str]]:
    """The commands of a block; none where it is no shell's, or wholly output."""
    return list(block.commands()) if block.is_shell else []
