"""The pinned Go release: the one on PATH where it is that very release, else the official one, fetched once into the cache."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from provisioner.artifacts.cache import Cache, copy, digest
from provisioner.artifacts.download import Downloader, DownloadFailed
from provisioner.artifacts.lock import Arch, GoToolchain
from provisioner.artifacts.progress import Progress
from provisioner.config import HttpProxy
from provisioner.errors import ArtifactError

DEFAULT_PROXY = "https://proxy.golang.org,direct"
_NO_PROXY = HttpProxy()
# What a user may have set, in the environment or with `go env -w`, about where modules come from and where Go keeps them.
_USERS = (
    *("GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE", "GOVCS", "GOAUTH"),
    *("GOMODCACHE", "GOCACHE", "GOPATH"),
)
# What else of the environment reaches a build: where things are, and how the network is reached. Nothing that changes bytes.
_PASSED = re.compile(
    r"(?i)^(HOME|USER|LOGNAME|PATH|TMPDIR|GOTMPDIR|XDG_CACHE_HOME|NETRC|GONOSUMCHECK|SSL_CERT_(FILE|DIR)|GIT_(SSL|SSH|TERMINAL|CONFIG|ASKPASS)\w*"
    r"|SSH_AUTH_SOCK|(HTTPS?|NO|ALL)_PROXY|SYSTEMD_EXEC_PID)$"
)
# What decides about bytes, said outright; GOENV=off shuts out what the user wrote with `go env -w`.
_FIXED = {
    "GOENV": "off",
    "GOFLAGS": "",
    "GOWORK": "off",
    "GO111MODULE": "on",
    "GOTOOLCHAIN": "local",
    "GOTELEMETRY": "off",
    "GOEXPERIMENT": "",
    "GODEBUG": "",
    "GOFIPS140": "off",
    "GOOS": "linux",
    "GOAMD64": "v1",
    "GOARM64": "v8.0",
    "GOCACHEPROG": "",
    "GCCGO": "gccgo",
    "AR": "ar",
    "CGO_CFLAGS": "-O2 -g",
    "CGO_CPPFLAGS": "",
    "CGO_CXXFLAGS": "-O2 -g",
    "CGO_FFLAGS": "-O2 -g",
    "CGO_LDFLAGS": "-O2 -g",
    "LC_ALL": "C",
    "SOURCE_DATE_EPOCH": "0",
}


@dataclass(frozen=True, slots=True)
class Go:
    """A Go of the pinned release, and the environment it runs with."""

    command: Path
    environment: Mapping[str, str]


def machine() -> Arch:
    """Go's name of this machine's architecture.

    Raises:
        ArtifactError: another than the two we know.
    """
    names: dict[str, Arch] = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    found = names.get(platform.machine())
    if found is None:
        raise ArtifactError(
            f"this machine is a {platform.machine()}: modules can be built on x86_64 and aarch64 only",
            hint="use the sources `release` or `mirror`",
        )
    return found


def find_go(pinned: GoToolchain, cache: Cache, downloader: Downloader, progress: Progress) -> Go:
    """The pinned Go.

    Raises:
        ArtifactError: it is not here and cannot be fetched.
    """
    found = shutil.which("go")
    command = Path(found).absolute() if found else None
    if command is None or _release(command) != f"go{pinned.version}":
        command = _unpacked(pinned, cache, downloader, progress)
    return Go(command=command, environment=environment(command, downloader.proxy))


def environment(command: Path, proxy: HttpProxy = _NO_PROXY) -> dict[str, str]:
    """What the builds run with: the user's network settings, and nothing of theirs that could change bytes."""
    users = subprocess.run(
        [command, "env", "-json", *_USERS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": ""},
        cwd="/",  # not in a module of the user's, whose go.mod may ask for another release
    )
    settings: dict[str, str] = json.loads(users.stdout) if users.returncode == 0 else {}
    passed = {name: value for name, value in os.environ.items() if _PASSED.match(name)}
    given = {"HTTP_PROXY": proxy.http, "HTTPS_PROXY": proxy.https, "NO_PROXY": ",".join(proxy.no_proxy)}
    if proxy.http or proxy.https:
        passed = {name: value for name, value in passed.items() if name.upper() not in given} | given
    return {**passed, **{name: value for name, value in settings.items() if value}, **_FIXED}


def _release(command: Path) -> str:
    """`go1.26.8` of a go command; empty where it does not run."""
    try:
        version = subprocess.run(
            [command, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": ""},
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return version.stdout.strip() if version.returncode == 0 else ""


def _unpacked(pinned: GoToolchain, cache: Cache, downloader: Downloader, progress: Progress) -> Path:
    """Path of the go command of the official release, fetched as the module golang.org/toolchain."""
    arch = machine()
    home = cache.root / "go" / f"go{pinned.version}.linux-{arch}"
    command = home / "bin" / "go"
    if command.is_file():
        return command
    what = f"Go {pinned.version}"

    def tell() -> None:
        progress.note(f"{what}: another run fetches it; waiting for it")

    with cache.exclusive(str(home), tell):
        if command.is_file():
            return command
        module = f"golang.org/toolchain@v0.0.1-go{pinned.version}.linux-{arch}"
        archive = _fetch_zip(module, pinned.toolchain[arch].removeprefix("sha256:"), cache, downloader, what)
        with cache.temporary() as work:
            progress.note(f"{what}: unpacking")
            unzip_module(archive, module, work / "go")
            for renamed in (work / "go").rglob("_go.mod"):
                # a module's zip may hold no further go.mod, so the release's own are renamed in it
                shutil.copyfile(renamed, renamed.with_name("go.mod"))
            for directory in ("bin", "pkg/tool"):
                for tool in (work / "go" / directory).rglob("*"):
                    tool.chmod(0o755)
            home.parent.mkdir(parents=True, exist_ok=True)
            (work / "go").rename(home)
        archive.unlink()
    return command


def _fetch_zip(module: str, sha256: str, cache: Cache, downloader: Downloader, what: str) -> Path:
    path, _, version = module.partition("@")
    proxies = [proxy for proxy in re.split(r"[,|]", os.environ.get("GOPROXY") or DEFAULT_PROXY) if proxy]
    reasons: list[str] = []
    part = cache.partial(f"{module} {sha256}")
    for proxy in proxies:
        if proxy == "off":
            break
        if proxy == "direct":
            continue
        url = f"{proxy.rstrip('/')}/{path}/@v/{version}.zip"
        try:
            if urlsplit(url).scheme == "file":
                with Path(unquote(urlsplit(url).path)).open("rb") as source, cache.guarded(), part.open("wb") as target:
                    copy(source, target)
            else:
                downloader.fetch(url, part, key=what, cache=cache)
        except DownloadFailed as error:
            reasons.append(error.message)
            continue
        except OSError as error:
            reasons.append(f"{url}: {error.strerror}")
            continue
        finally:
            downloader.progress.finish(what)
        if digest(part) == sha256:
            return part
        reasons.append(f"{url}: its sha256 is {digest(part)}, and not the locked {sha256}")
        part.unlink()
    raise ArtifactError(
        f"{what} is needed to build from modules, is not on PATH, and could not be fetched",
        details=tuple(reasons),
        hint="install that very Go release, or name a module proxy that answers in $GOPROXY",
    )


def unzip_module(archive: Path, module: str, target: Path) -> None:
    """Unpack a module's zip (https://go.dev/ref/mod#zip-files).

    Raises:
        ArtifactError: it holds a path that is not the module's.
    """
    with zipfile.ZipFile(archive) as files:
        for entry in files.infolist():
            name = PurePosixPath(entry.filename)
            inside = entry.filename.removeprefix(f"{module}/")
            if inside == entry.filename or name.is_absolute() or ".." in name.parts:
                raise ArtifactError(f"{archive}: holds {entry.filename!r}, which is no path of {module}")
            if entry.is_dir():
                continue
            path = target / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.open(entry) as source, path.open("wb") as file:
                copy(source, file)
