"""Encryption of a backup."""

from __future__ import annotations

import stat
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provisioner.backup import seal
from provisioner.backup.archive import BackupError
from provisioner.backup.seal import Key, Secret
from provisioner.errors import BadInput

WORDS = "correct horse battery"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(b"every key of the cluster" * 10_000)
    return path


def age_pair(directory: Path, name: str) -> tuple[str, Path]:
    identity = pyrage.x25519.Identity.generate()
    path = directory / f"{name}.txt"
    path.write_text(f"# created: today\n{identity}\n")
    return str(identity.to_public()), path


def test_for_any_of_several_public_keys(plain: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    ssh = tmp_path / "id_ed25519"
    ssh.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    recipient, identity = age_pair(tmp_path, "mine")
    sealed = tmp_path / "sealed"
    seal.seal(plain, sealed, Key((recipient, public)))
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert seal.is_sealed(sealed)
    assert not seal.wants_passphrase(sealed)
    assert b"every key" not in sealed.read_bytes()
    for number, path in enumerate((identity, ssh)):
        opened = tmp_path / f"opened-{number}"
        seal.unseal(sealed, opened, Secret((path,)))
        assert opened.read_bytes() == plain.read_bytes()
        assert stat.S_IMODE(opened.stat().st_mode) == 0o600


def test_with_a_passphrase(plain: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    seal.seal(plain, sealed, Key(passphrase=WORDS))
    assert seal.is_sealed(sealed)
    assert seal.wants_passphrase(sealed)
    seal.unseal(sealed, tmp_path / "opened", Secret(passphrase=WORDS))
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()
    with pytest.raises(BackupError, match="cannot be decrypted"):
        seal.unseal(sealed, tmp_path / "again", Secret(passphrase=WORDS.upper()))


def test_a_wrong_key_and_a_damaged_file(plain: Path, tmp_path: Path) -> None:
    recipient, identity = age_pair(tmp_path, "mine")
    _, other = age_pair(tmp_path, "other")
    sealed = tmp_path / "sealed"
    seal.seal(plain, sealed, Key((recipient,)))
    with pytest.raises(BackupError, match="nothing was changed"):
        seal.unseal(sealed, tmp_path / "a", Secret((other,)))
    whole = sealed.read_bytes()
    for number, broken in enumerate(
        (whole[:-1], whole[: len(whole) // 2], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole + b"more")
    ):
        sealed.write_bytes(broken)
        with pytest.raises(BackupError, match="nothing was changed"):
            seal.unseal(sealed, tmp_path / f"b{number}", Secret((identity,)))


def test_what_is_plain_is_known_as_such(plain: Path, tmp_path: Path) -> None:
    assert not seal.is_sealed(plain)
    (tmp_path / "empty").touch()
    assert not seal.is_sealed(tmp_path / "empty")


def test_what_could_not_encrypt_is_refused_first() -> None:
    with pytest.raises(BadInput, match="no public key of age"):
        seal.check(Key(("AGE-SECRET-KEY-1QQQQ",)))
    with pytest.raises(BadInput, match="it needs 12"):
        seal.check(Key(passphrase=WORDS[:11]))
    assert WORDS not in repr(Key(passphrase=WORDS))
    assert WORDS not in repr(Secret(passphrase=WORDS))


def test_files_that_hold_no_private_key(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        seal.identities([tmp_path / "missing"])
    (tmp_path / "public").write_text("age1qqqq\n")
    with pytest.raises(BadInput, match="no private key of age or SSH"):
        seal.identities([tmp_path / "public"])
