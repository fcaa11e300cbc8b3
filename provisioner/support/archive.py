"""The file: written beside its place, read again in search of secrets, and only then put there."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from provisioner.errors import BadInput, ProvisionerError
from provisioner.support.secrets import Needles


def place(path: Path, top: str, files: Mapping[str, str], secrets: Needles) -> int:
    """Write a tar.gz (0600) of texts, and put it in place if none of the secrets is in it; returns its size in bytes.

    Args:
        path: where it shall be; nothing may be there.
        top: the directory in the archive that holds everything.
        files: text by relative path.
        secrets: what must not be in there.

    Raises:
        ProvisionerError: a secret is in it; no file is left.
        BadInput: somebody has put a file there meanwhile.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for inside, text in sorted(files.items()):
                    raw = text.encode(errors="replace")
                    member = tarfile.TarInfo(f"{top}/{inside}")
                    member.size, member.mode, member.mtime = len(raw), 0o600, int(time.time())
                    archive.addfile(member, io.BytesIO(raw))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            for where, text in _texts(file):
                if what := secrets.found_in(f"{where}\n{text}"):
                    raise ProvisionerError(
                        f"{where}: {what} would be in the bundle; no file was left",
                        hint="this is a bug of the redaction: report it (not the secret), and see where that file has it from",
                    )
            size = file.seek(0, os.SEEK_END)
        # unlike a rename, a link never replaces what is there
        os.link(name, path)
    except FileExistsError:
        raise BadInput(f"{path}: there is such a file already", hint="name another one with --output") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
    return size


def _texts(file: io.BufferedRandom) -> Iterator[tuple[str, str]]:
    """What is in the archive, as whoever gets it will read it."""
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        for member in archive:
            raw = archive.extractfile(member)
            if raw is not None:
                yield member.name.partition("/")[2], raw.read().decode(errors="replace")
