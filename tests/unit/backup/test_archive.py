"""The file of a backup: whatever was done to it, a restore is told before it touches anything."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from provisioner import pki as pkis
from provisioner.backup import archive
from provisioner.backup.archive import BackupError, EtcdState, Manifest
from provisioner.cli import app
from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.pki import CaName
from provisioner.pki import rotation as rotations
from provisioner.pki.store import ca_file
from provisioner.workspace import Workspace

# repeatable, not secret
CHANCE = random.Random(7)  # noqa: S311
SNAPSHOT = CHANCE.randbytes(50_000)


def cluster_of(name: str) -> Cluster:
    nodes = [{"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]}]
    return Cluster.model_validate({"name": name, "nodes": nodes})


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Workspace]:
    """Two clusters' workspaces, with their keys."""
    made = []
    for name in ("mine", "other"):
        root = tmp_path_factory.mktemp(name)
        cluster = cluster_of(name)
        workspace = Workspace(root / "workspace" / name, root / "cluster.yaml")
        workspace.create()
        workspace.cluster_file.write_text(f"name: {name}\n")
        pkis.ensure(cluster, workspace.pki, now=dt.datetime.now(dt.UTC))
        made.append(workspace)
    return made[0], made[1]


def ca_of(workspace: Workspace) -> bytes:
    return ca_file(workspace.pki, CaName.CLUSTER).read_bytes()


@pytest.fixture
def written(workspaces: tuple[Workspace, Workspace], tmp_path: Path) -> Path:
    """A backup of the first cluster."""
    return make(workspaces[0], tmp_path / "backup")


def make(workspace: Workspace, path: Path) -> Path:
    database = path.with_suffix(".db")
    database.write_bytes(SNAPSHOT)
    ca = ca_of(workspace)
    manifest = Manifest(
        format=archive.FORMAT,
        cluster=workspace.root.name,
        cluster_id="0123456789abcdef",
        ca_fingerprint=archive.fingerprint(ca),
        created=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        kubernetes="1.36.3",
        etcd=EtcdState(version="3.6.0", revision=7, member="a"),
        files={},
    )
    cluster = cluster_of(workspace.root.name)
    archive.write(path, manifest, {**archive.of_workspace(cluster, workspace), archive.SNAPSHOT: database}, ca)
    return path


@pytest.fixture
def opens(tmp_path: Path, workspaces: tuple[Workspace, Workspace]) -> Callable[..., archive.Opened]:
    """Read an archive as the first cluster does."""
    count = iter(range(10_000))

    def read(path: Path, ca: bytes | None = None) -> archive.Opened:
        directory = tmp_path / f"read-{next(count)}"
        directory.mkdir()
        return archive.read(path, directory, ca=ca or ca_of(workspaces[0]), who=path.name)

    return read


def test_what_was_written_is_read(
    written: Path, opens: Callable[..., archive.Opened], workspaces: tuple[Workspace, Workspace]
) -> None:
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    opened = opens(written)
    assert opened.manifest.etcd == EtcdState(version="3.6.0", revision=7, member="a")
    assert opened.files[archive.SNAPSHOT].read_bytes() == SNAPSHOT
    assert opened.files["cluster.yaml"].read_text() == "name: mine\n"
    for name in ("cluster-ca.pem", "etcd-ca.pem", "front-proxy-ca.pem", "service-account.pem", "encryption.key"):
        assert opened.files[f"pki/{name}"].read_bytes() == (workspaces[0].pki / name).read_bytes()
        assert stat.S_IMODE(opened.files[f"pki/{name}"].stat().st_mode) == 0o600
    assert not [name for name in opened.files if "nodes" in name or "controller" in name], "what can be issued again is not in it"
    assert archive.peek(written, "x") == opened.manifest


def test_without_a_ca_the_backups_own_is_believed(written: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert archive.read(written, tmp_path / "new", ca=None, who="x").manifest.cluster == "mine"


def test_of_a_cluster_whose_ca_was_replaced(tmp_path: Path, opens: Callable[..., archive.Opened]) -> None:
    """A backup of before is this cluster's still, and one that was forged is not; the old key is not needed, and is gone."""
    cluster = cluster_of("turned")
    workspace = Workspace(tmp_path / "workspace" / "turned", tmp_path / "cluster.yaml")
    workspace.create()
    workspace.cluster_file.write_text("name: turned\n")
    now = dt.datetime.now(dt.UTC)
    known_by = pkis.cluster_id(pkis.ensure(cluster, workspace.pki, now=now))
    before = make(workspace, tmp_path / "before")
    rotations.begin(cluster, workspace.pki, tuple(CaName), now=now)
    rotations.advance(workspace.pki)
    amidst = make(workspace, tmp_path / "amidst")
    assert {name for name in opens(amidst, ca_of(workspace)).files if name.startswith("pki/")} >= {
        *("pki/identity", "pki/rotation.json", "pki/next/cluster-ca.pem", "pki/next/etcd-ca.pem"),
    }, "whoever imports it goes on with the rotation"
    done = imported(amidst, tmp_path / "elsewhere")
    assert done.exit_code == 0, done.output
    taken = pkis.ensure(cluster, tmp_path / "elsewhere" / "workspace" / "turned" / "pki", now=now)
    assert taken.rotation == rotations.read(workspace.pki)
    assert pkis.cluster_id(taken) == known_by
    assert taken.trusted == pkis.ensure(cluster, workspace.pki, now=now).trusted
    rotations.advance(workspace.pki)
    rotations.finish(workspace.pki)
    after = make(workspace, tmp_path / "after")
    former = rotations.former(workspace.pki)
    for number, path in enumerate((before, amidst, after)):
        opened = archive.read(path, _made(tmp_path / str(number)), ca=ca_of(workspace), who="x", former=former)
        assert opened.files[archive.SNAPSHOT].read_bytes() == SNAPSHOT
    with pytest.raises(BackupError, match="a backup of another cluster"):
        opens(before, ca_of(workspace))

    def change(content: dict[str, bytes]) -> None:
        content[archive.MANIFEST] = content[archive.MANIFEST].replace(b'"revision": 7', b'"revision": 8')

    with pytest.raises(BackupError, match="the MAC is not"):
        archive.read(rewritten(before, change), _made(tmp_path / "forged"), ca=ca_of(workspace), who="x", former=former)
    alone = archive.read(after, _made(tmp_path / "alone"), ca=None, who="x")
    assert alone.files["pki/identity"].read_text().strip() == known_by


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_another_clusters_is_refused(
    opens: Callable[..., archive.Opened], workspaces: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    foreign = make(workspaces[1], tmp_path / "foreign")
    with pytest.raises(BackupError, match="a backup of another cluster: other"):
        opens(foreign)


def test_a_truncated_one_is_refused_wherever_it_ends(written: Path, opens: Callable[..., archive.Opened]) -> None:
    whole = written.read_bytes()
    # a tar ends with empty blocks, which nobody needs
    needed = len(whole.rstrip(b"\0"))
    for length in (0, 1, 511, 512, 513, needed // 2, needed - 1, *CHANCE.sample(range(needed), 40)):
        written.write_bytes(whole[:length])
        with pytest.raises(BackupError, match="nothing was changed"):
            opens(written)


def test_a_changed_byte_is_found_wherever_it_is(written: Path, opens: Callable[..., archive.Opened]) -> None:
    whole = written.read_bytes()
    before = opens(written)
    for offset in CHANCE.sample(range(len(whole.rstrip(b"\0"))), 150):
        written.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x41]) + whole[offset + 1 :])
        try:
            found = opens(written)
        except BackupError:
            continue
        # padding, an owner or a time in a header: nothing that is believed
        assert found.manifest == before.manifest
        for name, path in found.files.items():
            assert path.read_bytes() == before.files[name].read_bytes(), (offset, name)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], kind: bytes = tarfile.REGTYPE) -> Path:
    """The same archive with other content, as somebody without the CA's key can make it."""
    with tarfile.open(path) as tar:
        content = {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry))}
    change(content)
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if name == "strange":
                entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_other_data_with_fitting_sums_has_no_fitting_mac(
    written: Path, opens: Callable[..., archive.Opened], tmp_path: Path
) -> None:
    def change(content: dict[str, bytes]) -> None:
        other = tmp_path / "other.db"
        other.write_bytes(b"forged")
        manifest = json.loads(content[archive.MANIFEST])
        manifest["files"][archive.SNAPSHOT] = archive.sum_of(other).model_dump()
        content[archive.SNAPSHOT] = b"forged"
        content[archive.MANIFEST] = json.dumps(manifest).encode()

    with pytest.raises(BackupError, match="its manifest was changed"):
        opens(rewritten(written, change))


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "pki/../../evil", "pki/.hidden", "a/b", "layout", "ssh/../x", "ssh/.x", "x.desktop"]
)
def test_no_file_leads_out_of_the_directory(name: str, written: Path, opens: Callable[..., archive.Opened]) -> None:
    with pytest.raises(BackupError, match="which no backup does"):
        opens(rewritten(written, lambda content: content.update({name: b"x"})))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_nothing_but_plain_files(kind: bytes, written: Path, opens: Callable[..., archive.Opened]) -> None:
    with pytest.raises(BackupError, match="which no backup does"):
        opens(rewritten(written, lambda content: content.update({"strange": b""}), kind))


def test_a_file_that_the_manifest_does_not_name_and_one_that_is_missing(
    written: Path, opens: Callable[..., archive.Opened]
) -> None:
    whole = written.read_bytes()
    with pytest.raises(BackupError, match="do not agree on ssh/more"):
        opens(rewritten(written, lambda content: content.update({"ssh/more": b"x"})))
    written.write_bytes(whole)
    with pytest.raises(BackupError, match=r"do not agree on pki/encryption\.key"):
        opens(rewritten(written, lambda content: content.__delitem__("pki/encryption.key")))


def test_a_newer_format_says_so(written: Path, opens: Callable[..., archive.Opened]) -> None:
    def change(content: dict[str, bytes]) -> None:
        content[archive.MANIFEST] = json.dumps({"format": 99, "anything": "else"}).encode()

    with pytest.raises(BackupError, match="format 99, and this version reads up to 2") as caught:
        opens(rewritten(written, change))
    assert "the version of provisioner that made it" in caught.value.hint


def forged(path: Path, workspace: Workspace, **changes: object) -> Path:
    """An archive as somebody makes it who has a CA of their own, and so a fitting MAC."""

    def change(content: dict[str, bytes]) -> None:
        manifest = {**json.loads(content[archive.MANIFEST]), **changes}
        content[archive.MANIFEST] = json.dumps(manifest).encode()
        content[archive.MAC] = archive.mac_of(content[archive.MANIFEST], ca_of(workspace))

    return rewritten(path, change)


@pytest.mark.parametrize("name", ["../../.config/autostart", "/etc/cron.d", "", "a/b", "UPPER"])
def test_the_clusters_name_is_one(name: str, written: Path, workspaces: tuple[Workspace, Workspace], tmp_path: Path) -> None:
    """It becomes a directory where a workspace is imported, and nobody checks the MAC of a lost controller's file there."""
    (tmp_path / "new").mkdir()
    with pytest.raises(BackupError, match="its manifest cannot be read"):
        archive.read(forged(written, workspaces[0], cluster=name), tmp_path / "new", ca=None, who="x")


def imported(file: Path, into: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["workspace", "import", str(file), "--into", str(into), *options], catch_exceptions=True)


def test_import_makes_a_workspace_and_overwrites_none(
    written: Path, workspaces: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    done = imported(written, tmp_path / "new", "--json")
    assert done.exit_code == 0, done.output
    root = tmp_path / "new" / "workspace" / "mine"
    assert json.loads(done.stdout)["caFingerprint"] == archive.fingerprint(ca_of(workspaces[0]))
    assert {path.name for path in root.iterdir()} == {"cluster.yaml", "pki", "layout"}
    assert stat.S_IMODE(root.stat().st_mode) == stat.S_IMODE((root / "pki").stat().st_mode) == 0o700
    assert (root / "pki" / "encryption.key").read_bytes() == (workspaces[0].pki / "encryption.key").read_bytes()
    assert [path.name for path in root.parent.iterdir()] == ["mine"], "nothing else is left there"
    again = imported(written, tmp_path / "new")
    assert isinstance(again.exception, BadInput)
    assert "there is such a workspace already" in again.exception.message


def test_import_refuses_another_ca_where_it_was_told_which(
    written: Path, workspaces: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    right = archive.fingerprint(ca_of(workspaces[0])).upper()
    wrong = imported(written, tmp_path / "new", "--ca-fingerprint", archive.fingerprint(ca_of(workspaces[1])))
    assert isinstance(wrong.exception, BadInput)
    assert "not the one that was given" in wrong.exception.message
    assert not any((tmp_path / "new" / "workspace").iterdir())
    assert imported(written, tmp_path / "new", "--ca-fingerprint", right).exit_code == 0


def test_a_key_of_ssh_takes_the_place_of_nothing(written: Path, workspaces: tuple[Workspace, Workspace], tmp_path: Path) -> None:
    def change(content: dict[str, bytes]) -> None:
        content["ssh/machines.json"] = b"{}"
        manifest = json.loads(content[archive.MANIFEST])
        (tmp_path / "key").write_bytes(b"{}")
        manifest["files"]["ssh/machines.json"] = archive.sum_of(tmp_path / "key").model_dump()
        content[archive.MANIFEST] = json.dumps(manifest).encode()
        content[archive.MAC] = archive.mac_of(content[archive.MANIFEST], ca_of(workspaces[0]))

    done = imported(rewritten(written, change), tmp_path / "new")
    assert isinstance(done.exception, BackupError)
    assert "a key of SSH is called machines.json" in done.exception.message
    assert not any((tmp_path / "new" / "workspace").iterdir())
