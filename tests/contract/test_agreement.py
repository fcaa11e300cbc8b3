"""Python and Ansible agree: what the driver computes is what roles, playbooks, modules and plugins take, name by name."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2.meta
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from rich.console import Console

from provisioner import inventory, phases, plays
from provisioner import render as rendering
from provisioner.artifacts import load_lock
from provisioner.config import Cluster, Node
from provisioner.desired import HostState
from provisioner.display import Display
from provisioner.lifecycle import reset
from provisioner.plan import Change, Plan
from provisioner.render import ROLES, HostContext, render_host
from provisioner.render.layout import RoleSpec
from provisioner.render.templates import environment, role_defaults, template_of, templates_of
from provisioner.session import Session
from provisioner.share import ANSIBLE_CFG, PLAYBOOKS, SHARE
from provisioner.share import ROLES as ROLES_DIR
from provisioner.ssh import Connections
from provisioner.workspace import Workspace

MakeCluster = Callable[..., Cluster]
MakeHost = Callable[..., HostContext]
Options = Callable[[str], Mapping[str, Mapping[str, Any]]]

KINDS = ("cp-etcd", "cp", "etcd", "worker", "every-role")
NAMES = tuple(role.name for role in ROLES)
# A role that places nothing: no part of any desired state, with a playbook and a group of its own.
RESET = "reset"
# Of a restore; their groups are in an inventory of their own.
RESTORE = ("restore_prepare", "restore")
MODULES = SHARE / "plugins" / "modules"
ACTIONS = SHARE / "plugins" / "action"
TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "dict": dict, "list": list, "path": str}
# Given by render itself beside a role's variables: the hash to unit files, one registry at a time to the file of its own.
RENDERED_IN = {"provisioner_unit_hash", "containerd_registry"}
# Templates whose number depends on cluster.yaml; all others stand in the role's table.
MULTIPLE = {
    "containerd/templates/etc/containerd/certs.d/hosts.toml.j2",
    "kubelet/templates/etc/kubernetes/kubelet/credential-provider.yaml.j2",
}
# Read where cluster.yaml has registries with credentials.
AT_TIMES = {"/etc/kubernetes/kubelet/credential-provider.yaml"}


def role_named(name: str) -> RoleSpec:
    return next(role for role in ROLES if role.name == name)


def variables_of(make_host: MakeHost, name: str) -> list[Mapping[str, object]]:
    """A role's variables on each kind of machine that carries it."""
    hosts = [make_host(kind) for kind in KINDS]
    return [role_named(name).variables(host) for host in hosts if role_named(name).applies(host.cluster, host.node)]


@pytest.fixture(scope="module")
def pace(make_cluster: MakeCluster, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """What the driver gives to a run as a whole: how many hosts at a time, and whether each waits behind its gate."""
    path = tmp_path_factory.mktemp("pace") / "cluster.yaml"
    path.touch()
    cluster, workspace = make_cluster(), Workspace.of(path, "contract")
    display = Display(Console(file=io.StringIO()))
    return plays.pace(Session(cluster, workspace, Connections(cluster, workspace), load_lock(), display, path.parent, ""))


# -- variables ---------------------------------------------------------------------------------------------------------------


def test_the_table_of_roles_is_the_directory_of_roles() -> None:
    assert sorted((*NAMES, RESET)) == sorted(path.name for path in ROLES_DIR.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_the_options_of_the_role(
    make_host: MakeHost, options_of: Options, pace: Mapping[str, object], name: str
) -> None:
    options = options_of(name)
    for variables in variables_of(make_host, name):
        assert variables.keys() <= options.keys()
        assert options.keys() - variables.keys() <= pace.keys()
        assert all(key.startswith(f"{name}_") for key in variables), "a role's variables carry its name"
        for key, option in options.items():
            value = variables[key] if key in variables else pace[key]
            assert option["required"] is True, f"{key}: Python gives every value, so none may be missing"
            assert option["description"]
            wanted = TYPES[option["type"]]
            assert isinstance(value, wanted), f"{key}: {value!r} is no {option['type']}"
            assert not (isinstance(value, bool) and option["type"] == "int")
            if option["type"] == "list":
                assert isinstance(value, list)
                assert all(isinstance(item, TYPES[option["elements"]]) for item in value), key


@pytest.mark.parametrize("name", NAMES)
def test_ansible_takes_the_variables_as_they_are(
    make_host: MakeHost, options_of: Options, pace: Mapping[str, object], name: str
) -> None:
    of_the_run = {key: value for key, value in pace.items() if key in options_of(name)}
    for computed in variables_of(make_host, name):
        variables = {**computed, **of_the_run}
        result = ArgumentSpecValidator(dict(options_of(name))).validate(dict(variables))
        assert not result.errors.messages
        assert not result.unsupported_parameters
        assert result.validated_parameters == variables
        # the same specification refuses a misspelt name and a missing value
        misspelt = ArgumentSpecValidator(dict(options_of(name))).validate({f"{name}_flagz": {}})
        assert misspelt.unsupported_parameters


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_and_no_default_is_idle(options_of: Options, name: str) -> None:
    tasks = "\n".join(path.read_text() for path in (ROLES_DIR / name / "tasks").rglob("*.yml"))
    templates = "\n".join(path.read_text() for path in templates_of(name))
    playbooks = "\n".join(path.read_text() for path in PLAYBOOKS.glob("*.yml"))
    python = "\n".join(path.read_text() for path in Path(str(rendering.__file__)).parent.glob("*.py"))
    # packages, kernel parameters and modules go to the machine through the desired state, not through a template
    state = python + inspect_source(inventory)
    for option in options_of(name):
        assert re.search(rf"\b{option}\b", tasks + templates + playbooks) or f'["{option}"]' in state, f"{option} is used nowhere"
    for default in role_defaults(name):
        assert default.startswith(f"{name}_")
        assert f'role_defaults("{name}")["{default}"]' in python or f'defaults["{default}"]' in python, f"{default} is used nowhere"


def inspect_source(module: Any) -> str:
    return Path(str(module.__file__)).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_plain_data(name: str) -> None:
    path = ROLES_DIR / name / "defaults" / "main.yml"
    if path.exists():
        assert "{{" not in path.read_text()
        assert "{%" not in path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_templates_use_only_what_is_computed(make_host: MakeHost, name: str) -> None:
    env = environment()
    assert env.undefined is jinja2.StrictUndefined
    for template in templates_of(name):
        relative = str(template.relative_to(ROLES_DIR))
        used = jinja2.meta.find_undeclared_variables(env.parse(template.read_text()))
        for variables in variables_of(make_host, name):
            assert used - variables.keys() - RENDERED_IN == set(), relative
        assert ("containerd_registry" in used) == (relative in MULTIPLE and name == "containerd")
        # systemd's own services get the hash and nothing else does; but for what a timer starts, which no run keeps running
        timed = template.with_name(template.name.replace(".service.j2", ".timer.j2")).exists()
        assert ("provisioner_unit_hash" in used) == (template.name.endswith(".service.j2") and not timed), relative


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_the_table_of_files(name: str) -> None:
    listed = {template_of(name, file.path) for file in role_named(name).files}
    assert len(listed) == len(role_named(name).files)
    found = {str(path.relative_to(ROLES_DIR)) for path in templates_of(name)}
    assert listed == found - MULTIPLE


@pytest.mark.parametrize("name", NAMES)
def test_units_have_their_files_and_binaries(make_host: MakeHost, name: str) -> None:
    role = role_named(name)
    files = {file.path for file in role.files}
    for unit in role.units:
        assert f"/etc/systemd/system/{unit.name}" in files
        assert set(unit.binaries) <= set(role.binaries), unit.name
        for kind in KINDS:
            host = make_host(kind)
            if not role.applies(host.cluster, host.node):
                continue
            there = [file.path for file in render_host(host).files]
            for prefix in {*unit.reads, *unit.reload_on} - AT_TIMES:
                assert any(path.startswith(prefix) for path in there), f"{unit.name} reads {prefix}, which {kind} does not get"
    unit_files = {path for path in files if path.endswith((".service", ".timer"))}
    assert unit_files == {f"/etc/systemd/system/{name}" for unit in role.units for name in (unit.name, unit.service)}


# -- roles and playbooks ---------------------------------------------------------------------------------------------------------


def all_plays() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(playbook, play) of every playbook; site.yml only imports the others."""
    for path in sorted(PLAYBOOKS.glob("*.yml")):
        for play in yaml.safe_load(path.read_text()):
            if "ansible.builtin.import_playbook" not in play:
                yield path.stem, play


def roles_of_play(play: Mapping[str, Any]) -> set[str]:
    listed = {role["role"] for role in play.get("roles", ())}
    return listed | {
        task["ansible.builtin.include_role"]["name"] for task in play.get("tasks", ()) if "ansible.builtin.include_role" in task
    }


def test_every_role_is_in_a_playbook_and_conversely() -> None:
    assert {role for _, play in all_plays() for role in roles_of_play(play)} == {*NAMES, RESET}


def test_plays_have_names_of_their_own() -> None:
    names = [play["name"] for _, play in all_plays()]
    assert len(names) == len(set(names))


def test_phases_and_playbooks_are_the_same() -> None:
    stems = {path.stem for path in PLAYBOOKS.glob("*.yml")}
    named = {phase.name for phase in phases.CHANGE if phase.run is None}
    # those that no phase is named after: what is read before the phases, and what phases in Python run themselves
    assert stems == named | {"site", "state", "packages", "etcd_join", "api_proxy", "retire", *RESTORE, RESET}
    site = [play["ansible.builtin.import_playbook"] for play in yaml.safe_load((PLAYBOOKS / "site.yml").read_text())]
    in_order = ["packages", *(phase.name for phase in phases.CHANGE if phase.run is None)]
    assert site == [f"{name}.yml" for name in in_order], "site.yml runs them in the driver's order"
    assert {phase.alongside for phase in phases.CHANGE if phase.alongside} <= named


def test_plays_ask_for_no_facts_and_touch_only_machines_that_differ(groups: Mapping[str, Any]) -> None:
    for playbook, play in all_plays():
        assert play["gather_facts"] is False, play["name"]
        # machines that leave stand in an inventory of their own
        if playbook in {"state", "retire", *RESTORE, RESET}:
            continue
        assert play["hosts"] in groups, f"{play['name']}: no group {play['hosts']} in the inventory"
        roles = roles_of_play(play)
        if play["hosts"] not in {"lacks_packages", "joins_etcd"}:
            assert {f"differs_{role}" for role in roles} == {play["hosts"]}, play["name"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    path = tmp_path / "cluster.yaml"
    path.touch()
    return Workspace.of(path, "contract")


@pytest.fixture
def states(make_host: MakeHost) -> dict[str, HostState]:
    return {kind: render_host(make_host(kind)) for kind in KINDS}


@pytest.fixture
def groups(make_cluster: MakeCluster, workspace: Workspace, states: dict[str, HostState]) -> Mapping[str, Any]:
    plan = Plan(tuple(Change(kind, role.name, "file", "/etc/x", "create") for kind in KINDS for role in ROLES))
    path = inventory.write(make_cluster(), workspace, states, dict.fromkeys(KINDS, "/usr/bin/python3"), plan)
    found: Mapping[str, Any] = yaml.safe_load(path.read_text())["all"]["children"]
    return found


def test_a_serial_run_is_one_host_at_a_time_unless_the_driver_says_otherwise(pace: Mapping[str, object]) -> None:
    """Restarts are serial by the playbook itself, so that running it by hand is safe too."""
    serial = {play["name"]: play for _, play in all_plays() if "serial" in play}
    assert {role for play in serial.values() for role in roles_of_play(play)} >= {"etcd", "kube_apiserver", "kubelet"}
    used: set[str] = set()
    for name, play in serial.items():
        variable = re.fullmatch(r"\{\{ (\w+) \}\}", play["serial"])
        assert variable, name
        assert play["vars"].keys() <= pace.keys(), f"{name}: a variable that the driver does not know"
        assert play["vars"][variable[1]] == 1, name
        assert all(value is True for key, value in play["vars"].items() if key != variable[1]), f"{name}: behind the gate"
        used |= play["vars"].keys()
        # quorum is at risk where control planes change: the first failure stops the run
        if roles_of_play(play) & {"etcd", "kube_apiserver", "kube_controller_manager", "kube_scheduler"}:
            assert play["any_errors_fatal"] is True, name
    # (and the action plugins use the last one)
    assert used | {"aside_limit"} == pace.keys(), "what the driver gives is used"


FORBIDDEN = {
    r"hostvars\[": "Python computes; a play reaches into no other host's variables",
    r"\bset_fact\b": "Python computes",
    r"\|\s*default\(|\bdefault\(": "every value is given",
    r"ignore_errors": "a task that failed has failed",
    r"ansible\.builtin\.shell|^\s*-?\s*shell:": "command, or a module",
    r"\bnotify:|\bhandlers:": "restarts are decided by what runs (managed_unit), a handler can be lost",
    r"\bwhen:": "groups decide where a task runs; a skipped task costs as much as one that runs",
    r"\bdelegate_to|\brun_once": "no special first node",
}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_roles_and_playbooks_keep_to_the_house_style(pattern: str) -> None:
    files = [*ROLES_DIR.rglob("*.yml"), *ROLES_DIR.rglob("*.j2"), *PLAYBOOKS.glob("*.yml")]
    assert len(files) > 50
    found = [str(path.relative_to(SHARE)) for path in files if re.search(pattern, path.read_text(), re.MULTILINE)]
    assert not found, FORBIDDEN[pattern]


@pytest.mark.parametrize("name", NAMES)
def test_roles_stand_alone_and_name_their_tasks(name: str) -> None:
    meta = yaml.safe_load((ROLES_DIR / name / "meta" / "main.yml").read_text())
    assert meta["dependencies"] == []
    assert meta["galaxy_info"]["role_name"] == name
    own = {path.stem for path in MODULES.glob("*.py")}
    for path in (ROLES_DIR / name / "tasks").glob("*.yml"):
        for task in yaml.safe_load(path.read_text()):
            action = next(iter(set(task) - {"name", "register", "changed_when", "retries", "delay", "until", "no_log", "vars"}))
            assert action in own or action.startswith("ansible.builtin."), f"{path}: {action}"
            assert re.match(r"[A-Z][a-z]+ ", task["name"]), f"{path}: {task['name']}"
            if action in own:
                assert task[action]["role"] == name, f"{path}: {task['name']} names another role"
            if action == "ansible.builtin.command":
                assert "changed_when" in task, f"{path}: {task['name']}"


def test_the_role_that_destroys_is_a_play_of_its_own(make_cluster: MakeCluster, workspace: Workspace, options_of: Options) -> None:
    """Its hosts are in no other inventory, its failure on one stops no other, and it gets just what it takes."""
    (play,) = [play for playbook, play in all_plays() if playbook == RESET]
    assert play["hosts"] == "to_reset"
    assert "any_errors_fatal" not in play
    assert "serial" not in play
    cluster = make_cluster()
    gone = Node.model_validate({"name": "gone", "address": "10.77.0.99", "roles": ["worker"]})
    variables = reset.variables_of(cluster, workspace, 60)
    result = ArgumentSpecValidator(dict(options_of(RESET))).validate(dict(variables))
    assert not result.errors.messages
    assert not result.unsupported_parameters
    assert variables.keys() == options_of(RESET).keys()
    assert "PRIVATE" not in repr(variables)
    path = inventory.write_apart(
        cluster, workspace, "to_reset", [*cluster.nodes[:1], gone], {"cp-etcd": "/p", "gone": "/q"}, **variables
    )
    assert path.stat().st_mode & 0o777 == 0o600
    written = yaml.safe_load(path.read_text())["all"]
    assert written["hosts"]["gone"]["ansible_host"] == "10.77.0.99", "a machine that is in cluster.yaml no more"
    assert list(written["children"]["to_reset"]["hosts"]) == ["cp-etcd", "gone"]
    tasks = yaml.safe_load((ROLES_DIR / RESET / "tasks" / "main.yml").read_text())
    assert [set(re.findall(r"reset_\w+", str(task["reset_machine"]))) for task in tasks] == [set(options_of(RESET))]


def test_the_driver_and_ansible_agree_on_the_number_of_tasks() -> None:
    """A control plane that is a worker too runs every role once; the bar is 60 executed tasks."""
    tasks = sum(len(yaml.safe_load(path.read_text())) for path in ROLES_DIR.glob("*/tasks/*.yml"))
    assert tasks + 2 <= 60


def test_ansible_parses_every_playbook(
    make_cluster: MakeCluster, workspace: Workspace, states: dict[str, HostState], tmp_path: Path
) -> None:
    cluster, interpreters = make_cluster(), dict.fromkeys(KINDS, "/usr/bin/python3")
    path = inventory.write(cluster, workspace, states, interpreters)
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "--syntax-check", "--inventory", str(path)]
    command += ["--inventory", str(inventory.write_apart(cluster, workspace, "to_reset", cluster.nodes, interpreters))]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE_CFG), "ANSIBLE_HOME": str(tmp_path / "ansible"), "LC_ALL": "C.UTF-8"}
    books = [str(PLAYBOOKS / name) for name in ("site.yml", "state.yml", "reset.yml")]
    done = subprocess.run([*command, *books], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


# -- modules and action plugins ----------------------------------------------------------------------------------------------

MODULE_NAMES = tuple(sorted(path.stem for path in MODULES.glob("*.py")))


def documentation_of(name: str) -> Mapping[str, Any]:
    tree = ast.parse((MODULES / f"{name}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "DOCUMENTATION":
            document: Mapping[str, Any] = yaml.safe_load(ast.literal_eval(node.value))
            return document
    raise AssertionError(f"{name} has no DOCUMENTATION")


class Inlined(ast.NodeTransformer):
    """Names of constants replaced by what they stand for."""

    def __init__(self, bound: Mapping[str, ast.expr]) -> None:
        self._bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found: ast.expr = self.visit(self._bound[node.id])
        return found


def argument_spec_of(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The literal given to AnsibleModule, in its call or by the name it was bound to."""
    tree = ast.parse((MODULES / f"{name}.py").read_text())
    bound = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AnsibleModule":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            spec = given["argument_spec"]
            literal = bound[spec.id] if isinstance(spec, ast.Name) else spec
            assert ast.literal_eval(given["supports_check_mode"]) is True, f"{name}: check mode"
            found: Mapping[str, Mapping[str, Any]] = ast.literal_eval(Inlined(bound).visit(literal))
            return found
    raise AssertionError(f"{name} makes no AnsibleModule")


def test_every_module_has_its_action_plugin() -> None:
    assert tuple(sorted(path.stem for path in ACTIONS.glob("*.py") if not path.stem.startswith("_"))) == MODULE_NAMES
    for name in MODULE_NAMES:
        assert f'"{name}"' in (ACTIONS / f"{name}.py").read_text(), f"the action plugin {name} runs another module"


@pytest.mark.parametrize("name", MODULE_NAMES)
def test_a_modules_documentation_is_its_argument_spec(name: str) -> None:
    documentation = documentation_of(name)
    assert documentation["module"] == name
    assert documentation["short_description"]
    compare_options(documentation["options"], argument_spec_of(name))


def compare_options(documented: Mapping[str, Any], spec: Mapping[str, Mapping[str, Any]]) -> None:
    assert documented.keys() == spec.keys()
    for option, told in documented.items():
        real = spec[option]
        assert told["description"], option
        for key in ("type", "default", "elements", "choices"):
            assert told.get(key) == real.get(key), f"{option}: {key}"
        assert bool(told.get("required")) == bool(real.get("required")), option
        compare_options(told.get("suboptions", {}), real.get("options", {}))


@pytest.mark.parametrize("name", MODULE_NAMES)
def test_ansible_doc_reads_every_module(name: str) -> None:
    """RETURN and EXAMPLES are YAML too."""
    source = (MODULES / f"{name}.py").read_text()
    for block in ("EXAMPLES", "RETURN"):
        found = re.search(rf'^{block} = r"""\n(.*?)"""', source, re.DOTALL | re.MULTILINE)
        assert found, f"{name} has no {block}"
        assert yaml.safe_load(found[1]), block
