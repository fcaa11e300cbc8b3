"""The schema for editors, the reference page, and what `init` writes: they cannot drift from the models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # no types of its own

from provisioner import init, schema
from provisioner.config import Cluster, Kubernetes, Model
from provisioner.errors import BadInput
from provisioner.fields import keys_of, sections_of
from provisioner.load import parse
from provisioner.rules.owned import COMMON_FIELDS, FIELDS, FLAGS
from provisioner.rules.upstream import upstream
from provisioner.validate import RULES

from .sample import VERSIONS, changed

ROOT = Path(__file__).parents[3]


def models(model: type[Model] = Cluster) -> Iterator[type[Model]]:
    """Every model of the file."""
    yield model
    for inner in sections_of(model).values():
        yield from models(inner)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.json_schema())


def test_the_schema_takes_what_load_takes_and_refuses_what_editors_should_mark() -> None:
    validator = Draft202012Validator(schema.json_schema())
    assert list(validator.iter_errors(changed({}))) == []
    for preset in ("single", "ha"):
        document = yaml.safe_load(init.render(preset))
        # a section with nothing behind it is null to an editor, and its default to us
        assert list(validator.iter_errors({key: value for key, value in document.items() if value is not None})) == []
    wrongs: tuple[dict[str, object], ...] = (
        {"nodes.0.adress": "10.0.0.1"},
        {"name": "Demo"},
        {"network.nodePrefix": 99},
        {"network.proxyMode": "ipvs"},
        {"nodes.0.roles": ["master"]},
        {"nodes": []},
    )
    for wrong in wrongs:
        assert list(validator.iter_errors(changed(wrong))), wrong


def test_every_key_is_described() -> None:
    for model in models():
        assert model.__doc__
        for key, field in keys_of(model).items():
            assert field.description, f"{model.__name__}.{key}"


def test_the_reference_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "reference" / "cluster-yaml.md"
    assert page.read_text() == schema.reference(), "write it anew: provisioner schema --markdown > docs/reference/cluster-yaml.md"


def test_the_reference_page_has_every_key_rule_and_reason() -> None:
    page = schema.reference()
    for model in models():
        for key in keys_of(model):
            assert f"| `{key}` |" in page
    for rule in RULES:
        assert " ".join((rule.check.__doc__ or "").split("\n\n")[0].split()) in page
    for table in (*FLAGS.values(), *FIELDS.values(), COMMON_FIELDS):
        for name in table:
            assert f"`{name}`" in page


@pytest.mark.parametrize("preset", ["single", "ha"])
class TestInit:
    """`provisioner init`."""

    def test_what_it_writes_is_valid(self, preset: init.Preset, tmp_path: Path) -> None:
        target, beside = init.write(tmp_path / "new" / "directory", preset)
        loaded = parse(target.read_text(), target, known_versions=VERSIONS)
        assert loaded.problems == ()
        assert loaded.cluster
        assert loaded.cluster.kubernetes == Kubernetes()
        assert json.loads(beside.read_text()) == schema.json_schema()
        assert f"$schema={beside.name}\n" in target.read_text()
        assert target.stat().st_mode & 0o777 == 0o644

    def test_it_has_every_key(self, preset: init.Preset) -> None:
        document = yaml.safe_load(uncommented(init.render(preset)))
        assert set(document) == set(keys_of(Cluster))
        for model, section in sections(Cluster, document):
            assert set(section) == set(keys_of(model)), model.__name__

    def test_what_is_commented_out_is_valid_too_and_mostly_the_default(self, preset: init.Preset, tmp_path: Path) -> None:
        (tmp_path / "manifests").mkdir()
        (tmp_path / "manifests" / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\n")
        # the settings that name files of the user's
        text = uncommented(init.render(preset)).replace("~/.ssh/id_ed25519", "key")
        (tmp_path / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
        (tmp_path / "key").chmod(0o600)
        (tmp_path / "registry.login").write_text("username: robot\npassword: nobody's\n")
        (tmp_path / "registry.login").chmod(0o600)
        (tmp_path / "registry-ca.crt").write_text((Path(__file__).parent / "ca.crt").read_text())
        loaded = parse(text, tmp_path / "cluster.yaml", known_versions=VERSIONS)
        # on a single machine a virtual address is of little use, and the file says so
        told = [("controlPlaneEndpoint", "vip")] if preset == "single" else []
        assert [problem.path for problem in loaded.problems if problem.severity == "warning"] == told
        assert len(loaded.problems) == len(told)
        assert loaded.cluster
        plain = parse(init.render(preset), tmp_path / "cluster.yaml").cluster
        assert plain
        assert loaded.cluster.network == plain.network == Cluster.model_fields["network"].default
        assert loaded.cluster.etcd.model_copy(update={"flags": {}}) == plain.etcd

    def test_it_overwrites_only_when_told(self, preset: init.Preset, tmp_path: Path) -> None:
        target, _ = init.write(tmp_path, preset)
        target.write_text("mine")
        with pytest.raises(BadInput, match="exists") as caught:
            init.write(tmp_path, preset)
        assert "--force" in caught.value.hint
        assert target.read_text() == "mine"
        init.write(tmp_path, preset, force=True)
        assert target.read_text() == init.render(preset)

    def test_where_nothing_can_be_written(self, preset: init.Preset, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BadInput, match="cannot be written"):
            init.write(tmp_path / "file", preset)
        with pytest.raises(BadInput, match="cannot be written"):
            init.write(tmp_path / "file" / "below", preset)
        with pytest.raises(BadInput, match="cannot be written"):
            init.write(Path("a\0b"), preset)


def uncommented(text: str) -> str:
    """The file with all of its settings switched on."""
    return re.sub(r"^(\s*)#(?! \S)(?=.*\S)", r"\1", text, flags=re.MULTILINE)


def sections(model: type[Model], document: dict[str, object]) -> Iterator[tuple[type[Model], dict[str, object]]]:
    """Each model below this one with the first section of the document that it describes."""
    for key, inner in sections_of(model).items():
        value = document[key]
        section = value[0] if isinstance(value, list) else value
        assert isinstance(section, dict), key
        yield inner, section
        yield from sections(inner, section)


def test_presets_are_what_they_say() -> None:
    single, ha = (parse(init.render(preset), Path("cluster.yaml")).cluster for preset in ("single", "ha"))
    assert single
    assert ha
    assert [len(single.control_planes), len(single.etcd_members), len(single.nodes)] == [1, 1, 1]
    assert [len(ha.control_planes), len(ha.etcd_members), len(ha.nodes)] == [3, 3, 5]


def test_owned_names_are_upstreams() -> None:
    known = upstream()
    for component, table in FLAGS.items():
        # etcd's help lists --config-file in its first lines only
        assert set(table) - known.flags[component] <= {"config-file"}, component
    for kind, fields in FIELDS.items():
        assert set(fields) - set(known.fields[kind]) <= {"apiVersion", "kind"}, kind


def test_upstreams_names_are_of_the_default_version() -> None:
    assert upstream().kubernetes == Kubernetes().version, "run tools/upstream_names.py"
