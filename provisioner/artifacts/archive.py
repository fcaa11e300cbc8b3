"""Taking single files out of an archive. Nothing is ever unpacked to a path that an archive names."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from provisioner.artifacts.cache import copy
from provisioner.artifacts.download import DownloadFailed


def extract(archive: Path, members: Mapping[str, str], target: Path) -> dict[str, Path]:
    """Take regular files out of a tar of any compression.

    Args:
        archive: the tar.
        members: {what we call it: its path inside}.
        target: a directory; the results lie in it under names of ours.

    Raises:
        DownloadFailed: no tar, a member is missing or no regular file, or an entry would lie outside of the archive's directory.
    """
    wanted = {str(PurePosixPath(path)): name for name, path in members.items()}
    found: dict[str, Path] = {}
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                inside = PurePosixPath(entry.name)
                if inside.is_absolute() or ".." in inside.parts:
                    raise DownloadFailed(f"the archive has an entry outside of itself ({entry.name!r}) and is not trusted")
                name = wanted.get(str(inside))
                if name is None:
                    continue
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None:
                    raise DownloadFailed(f"{entry.name} in the archive is no regular file")
                path = target / f"member-{len(found)}"
                with source, path.open("wb") as file:
                    copy(source, file)
                found[name] = path
    except (tarfile.TarError, EOFError) as error:
        raise DownloadFailed(f"not a tar archive: {error}") from None
    if missing := set(members) - set(found):
        raise DownloadFailed(f"the archive does not hold {', '.join(sorted(members[name] for name in missing))}")
    return found
