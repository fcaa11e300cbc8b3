"""Merging into somebody else's kubeconfig: theirs stays, ours comes, goes, and is recognised."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.errors import BadInput, WaitTimeout
from provisioner.kubeconfig import render
from provisioner.kubeconfig_merge import Ours, Result, entries_of, merge, unmerge
from provisioner.user_kubeconfig import change, default_path

# As kubectl would write it, with what no version of this program knows, and scalars that mean something only as they stand.
FOREIGN = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Zm9yZWlnbg==
    server: https://other:6443
    x-unknown: 2024-01-01T00:00:00Z
  name: work
- cluster:
    insecure-skip-tls-verify: true
    server: https://lab:6443
  name: "0123"
contexts:
- context:
    cluster: work
    namespace: team
    user: me
  name: work
current-context: work
kind: Config
preferences: {}
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      args: [token, '007', yes]
      command: aws
"""


def ours(*, name: str = "", ca: bytes = b"ca", key: bytes = b"key", cluster_id: str = "1" * 16, planes: int = 1) -> Ours:
    others = {f"cp-{number}": f"https://10.0.0.{number}:6443" for number in range(1, planes + 1)}
    content = render(
        server="https://10.0.0.1:6443",
        ca=ca,
        cluster="demo",
        user="admin",
        certificate=b"certificate",
        key=key,
        others=others if planes > 1 else None,
    )
    return entries_of(content.decode(), cluster="demo", id=cluster_id, name=name)


def names(text: str, kind: str) -> list[str]:
    return [entry["name"] for entry in yaml.safe_load(text)[kind]]


def as_written(text: str) -> dict[str, Any]:
    """Every scalar as the characters in the file."""
    document: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
    return document


def foreign_part(text: str, known: str = FOREIGN) -> dict[str, Any]:
    """What is not ours, values as they stand in the file, in its order."""
    document, before = as_written(text), as_written(known)
    for kind in ("clusters", "contexts", "users"):
        theirs = [entry["name"] for entry in before[kind]]
        document[kind] = [entry for entry in document[kind] if entry["name"] in theirs]
    document.pop("current-context", None)
    return document


def test_merged_into_a_foreign_file() -> None:
    done = merge(FOREIGN, ours(planes=3), switch=True)
    assert done.changed
    assert done.current == yaml.safe_load(done.text)["current-context"] == "admin@demo"
    assert names(done.text, "clusters") == ["work", "0123", "demo", "demo-cp-1", "demo-cp-2", "demo-cp-3"]
    assert names(done.text, "contexts") == ["work", "admin@demo", "admin@demo-cp-1", "admin@demo-cp-2", "admin@demo-cp-3"]
    assert names(done.text, "users") == ["me", "demo-admin"]
    expected = as_written(FOREIGN)
    expected.pop("current-context")
    assert foreign_part(done.text) == expected
    assert "args: [token, '007', yes]" in done.text


def test_twice_is_once() -> None:
    once = merge(FOREIGN, ours(planes=3), switch=True)
    twice = merge(once.text, ours(planes=3), switch=True)
    assert (twice.text, twice.changed, twice.foreign) == (once.text, False, False)


def test_unmerge_takes_exactly_ours() -> None:
    merged = merge(FOREIGN, ours(planes=3), switch=True)
    back = unmerge(merged.text, id="1" * 16)
    assert yaml.safe_load(back.text) == yaml.safe_load(FOREIGN)
    assert back.current == "work"
    again = unmerge(back.text, id="1" * 16)
    assert (again.changed, again.names) == (False, ())


def test_without_switching() -> None:
    done = merge(FOREIGN, ours(), switch=False)
    assert done.current == "work"
    assert unmerge(done.text, id="1" * 16).current == "work"


def test_into_nothing_and_out_of_it() -> None:
    done = merge("", ours(), switch=True)
    assert done.current == "admin@demo"
    assert not done.foreign
    back = unmerge(done.text, id="1" * 16)
    assert yaml.safe_load(back.text)["contexts"] == []
    assert back.current == ""


def test_the_previous_context_may_be_gone() -> None:
    merged = merge(FOREIGN, ours(), switch=True).text
    without = yaml.safe_load(merged)
    without["contexts"] = [entry for entry in without["contexts"] if entry["name"] != "work"]
    assert unmerge(yaml.safe_dump(without), id="1" * 16).current == ""


def test_a_new_key_is_brought_up_to_date_and_the_users_own_fields_stay() -> None:
    document = yaml.safe_load(merge(FOREIGN, ours(), switch=True).text)
    context = next(entry for entry in document["contexts"] if entry["name"] == "admin@demo")
    context["context"]["namespace"] = "mine"
    # as `kubectl config rename-context` does
    context["name"] = "short"
    document["current-context"] = "short"
    done = merge(yaml.safe_dump(document), ours(key=b"another key"), switch=True)
    assert names(done.text, "contexts") == ["work", "short"]
    after = yaml.safe_load(done.text)
    assert after["contexts"][1]["context"]["namespace"] == "mine"
    assert after["users"][1]["user"]["client-key-data"] == "YW5vdGhlciBrZXk="
    assert done.current == "short"


def test_a_control_plane_that_is_gone_goes_here_too() -> None:
    merged = merge(FOREIGN, ours(planes=3), switch=True).text
    assert names(merge(merged, ours(), switch=True).text, "clusters") == ["work", "0123", "demo"]


def test_two_clusters_of_one_name() -> None:
    first = merge(FOREIGN, ours(), switch=True).text
    other = ours(ca=b"another ca", cluster_id="2" * 16)
    with pytest.raises(BadInput, match="an entry demo already under clusters, with another CA") as caught:
        merge(first, other, switch=True)
    assert "--name OTHER" in caught.value.hint
    assert "--unmerge --name demo" in caught.value.hint
    both = merge(first, ours(ca=b"another ca", cluster_id="2" * 16, name="second"), switch=True)
    assert names(both.text, "users") == ["me", "demo-admin", "second-admin"]
    # each goes alone
    assert names(unmerge(both.text, id="1" * 16).text, "contexts") == ["work", "admin@second"]
    assert names(unmerge(both.text, id="2" * 16).text, "contexts") == ["work", "admin@demo"]
    assert names(unmerge(both.text, id="1" * 16, name="second").text, "contexts") == ["work", "admin@demo"]
    # without a workspace, by the name they were merged under
    assert names(unmerge(both.text, cluster="demo").text, "contexts") == ["work", "admin@second"]


@pytest.mark.parametrize("kind", ["clusters", "users", "contexts"])
def test_a_foreign_entry_of_our_name_is_refused(kind: str) -> None:
    body = {
        "clusters": {"name": "demo", "cluster": {"server": "https://x", "certificate-authority-data": "Zg=="}},
        "users": {"name": "demo-admin", "user": {"token": "t"}},
        "contexts": {"name": "admin@demo", "context": {"cluster": "work", "user": "me"}},
    }[kind]
    document = yaml.safe_load(FOREIGN)
    document[kind].append(body)
    with pytest.raises(BadInput, match=f"already under {kind}"):
        merge(yaml.safe_dump(document), ours(), switch=True)


def test_our_own_entry_copied_by_hand_is_ours() -> None:
    """As printed by `kubeconfig` and pasted: the same CA is the same cluster."""
    document = yaml.safe_load(FOREIGN)
    entry = next(entry for entry in ours().entries if entry.kind == "clusters")
    document["clusters"].append({"name": "demo", "cluster": dict(entry.fields)})
    done = merge(yaml.safe_dump(document), ours(), switch=True)
    assert names(done.text, "clusters") == ["work", "0123", "demo"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("clusters: [", "no YAML"),
        ("- a\n", "no mapping"),
        ("kind: Pod\n", "its kind is Pod"),
        ("clusters: {}\n", "clusters is no list"),
        ("users: [{user: {}}]\n", "has no name"),
        ("contexts: [{name: a, context: text}]\n", "has no name, or no context"),
        ("a: 1\n---\nb: 2\n", "no YAML"),
        ("users: []\nusers: []\n", "twice"),
    ],
)
def test_what_is_no_kubeconfig_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        merge(text, ours(), switch=True)
    with pytest.raises(BadInput, match=why):
        unmerge(text, id="1" * 16)


def test_an_error_does_not_show_the_line() -> None:
    with pytest.raises(BadInput) as caught:
        merge("users:\n- user: {token: verysecret\n", ours(), switch=True)
    assert "verysecret" not in caught.value.message + "".join(caught.value.details)


_WORD = st.text("abcdefgh0123456789-.", min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(st.lists(_WORD, unique=True, max_size=5), st.lists(_WORD, unique=True, max_size=5), st.booleans())
def test_whatever_is_there_stays(clusters: list[str], users: list[str], switch: bool) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "x-more": {"a": [1, None]},
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}"}} for name in clusters],
        "users": [{"name": name, "user": {"token": name}} for name in users],
        "contexts": [],
        "current-context": "",
    }
    text = yaml.safe_dump(document, sort_keys=False)
    merged = merge(text, ours(planes=3), switch=switch)
    assert merge(merged.text, ours(planes=3), switch=switch).text == merged.text
    assert yaml.safe_load(unmerge(merged.text, id="1" * 16).text) == document


# -- the file -------------------------------------------------------------------------------------------------------------------


def put(path: Path, *, seconds: float = 5) -> tuple[Result, Path | None]:
    done = change(path, lambda text: merge(text, ours(), switch=True), seconds=seconds)
    return done.result, done.backup


def test_a_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config"
    _, backup = put(path)
    assert backup is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["config"]


def test_a_backup_where_something_of_the_users_changes(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("# my comment\n" + FOREIGN)
    _, backup = put(path)
    assert backup is not None
    assert backup.name.startswith("config.before-provisioner-")
    assert backup.read_text() == "# my comment\n" + FOREIGN
    assert stat.S_IMODE(backup.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o600
    inode = path.stat().st_ino
    assert put(path) == (merge(path.read_text(), ours(), switch=True), None)
    assert path.stat().st_ino == inode, "written although nothing changed"


def test_no_backup_where_only_ours_changes(tmp_path: Path) -> None:
    path = tmp_path / "config"
    put(path)
    _, backup = change(path, lambda text: merge(text, ours(key=b"new"), switch=True), seconds=5).result, None
    assert backup is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["config"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(FOREIGN)
    (tmp_path / "config").symlink_to("real")
    put(tmp_path / "config")
    assert (tmp_path / "config").is_symlink()
    assert "admin@demo" in (tmp_path / "real").read_text()


def test_a_malformed_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("clusters: [")
    with pytest.raises(BadInput, match="config: no YAML"):
        put(path)
    assert path.read_text() == "clusters: ["
    assert [entry.name for entry in tmp_path.iterdir()] == ["config"]


def test_another_writer_is_waited_for(tmp_path: Path) -> None:
    path, lock = tmp_path / "config", tmp_path / "config.lock"
    path.write_text(FOREIGN)
    lock.touch()
    with pytest.raises(WaitTimeout, match="another program is writing it") as caught:
        put(path, seconds=0.3)
    assert str(lock) in caught.value.hint
    assert path.read_text() == FOREIGN
    assert lock.exists(), "somebody else's lock was removed"
    release = threading.Timer(0.3, lock.unlink)
    release.start()
    put(path, seconds=10)
    release.join()
    assert not lock.exists()


def test_which_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert default_path() == tmp_path / ".kube" / "config"
    monkeypatch.setenv("KUBECONFIG", f"{os.pathsep}/a{os.pathsep}/b")
    assert default_path() == Path("/a")
