"""The one builder: turns a row of ``recipes`` into files, the same bytes every time.

What keeps the bytes the same: one Go release, ``-trimpath`` and ``-buildvcs=false``, an environment said outright, every module
checked against the go.sum kept in ``gomod/``, images packed without times.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.artifacts import oci
from provisioner.artifacts.lock import Arch
from provisioner.artifacts.recipes import Patch, Recipe
from provisioner.artifacts.toolchain import Go, machine
from provisioner.errors import ArtifactError

# go.mod and go.sum per component and version; made by `artifacts lock` where they are missing.
KEPT = Path(__file__).parent / "gomod"
BUILD_SECONDS = 2 * 3600
# Debian's busybox-static
BUSYBOX = Path("/bin/busybox")
_TRIPLES: dict[Arch, str] = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_UNREACHABLE = re.compile(r"dial tcp|no such host|i/o timeout|connection re(fused|set)|TLS handshake|proxyconnect|unexpected EOF")


@dataclass(frozen=True, slots=True)
class Job:
    """One build: a component at a version, for an architecture. ``module_version`` is its modules', without the "v"."""

    component: str
    recipe: Recipe
    version: str
    module_version: str
    arch: Arch
    image: str = ""

    def __str__(self) -> str:
        return f"{self.component} {self.version} {self.arch}"

    @property
    def kept(self) -> Path:
        """Where its go.mod and go.sum are kept."""
        return KEPT / f"{self.component}-{self.version}"

    def fill(self, text: str) -> str:
        """A recipe's text with the versions in it."""
        major, minor, _ = self.module_version.split(".")
        return text.format(version=self.module_version, major=major, minor=minor, component_version=self.version)


def build(job: Job, outputs: Sequence[str], go: Go, work: Path) -> dict[str, Path]:
    """Build some of a component's outputs.

    Args:
        job: what.
        outputs: names of the recipe's packages.
        go: the pinned Go.
        work: an empty directory; the results lie in it.

    Raises:
        ArtifactError: a tool is missing, the module proxy does not answer, or the build fails.
    """
    compiler = _c_compiler(job, go) if job.recipe.needs_c else ""
    busybox = _busybox(job) if job.recipe.needs_busybox else None
    source = work / "source"
    source.mkdir()
    prepare_module(job, go, source)
    if job.recipe.c_source:
        binaries = {outputs[0]: _compile_c(job, go, source, compiler=compiler, work=work)}
    else:
        binaries = _compile_go(job, outputs, go, source, compiler=compiler, work=work)
    if job.recipe.image is None:
        return binaries
    results: dict[str, Path] = {}
    for name, binary in binaries.items():
        results[name] = work / Path(name).name
        oci.single_binary(
            job.recipe.image, binary, reference=job.image, arch=job.arch, work=work, target=results[name], busybox=busybox
        )
    return results


def prepare_module(job: Job, go: Go, source: Path) -> None:
    """Make the main module that requires the component's modules, with the kept go.mod and go.sum where there are some."""
    imports = "".join(f'\t_ "{package}"\n' for _, package in job.recipe.packages if package)
    (source / "tools.go").write_text(f"//go:build tools\n\npackage build\n\nimport (\n{imports})\n")
    kept = (job.kept / "go.mod").is_file()
    if kept:
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(job.kept / name, source / name)
    else:
        (source / "go.mod").write_text(_requirements(job, go, source))
    if job.recipe.patch:
        _patched_copy(job, job.recipe.patch, go, source)
    if kept:
        return
    if not job.recipe.c_source:
        _run(job, go, [go.command, "mod", "tidy"], source, {})
    if job.recipe.c_source or job.recipe.patch:
        # go sees no use of the module itself (nothing imports it, or a directory replaces it): `tidy` notes no sum of it
        beside = source.parent / "sum"
        beside.mkdir()
        (beside / "go.mod").write_text("module sum\n")
        with (source / "go.sum").open("a") as sums:
            sums.write(_sum_lines(job, _download(job, go, beside)))


def _requirements(job: Job, go: Go, source: Path) -> str:
    """The go.mod of our main module."""
    (source / "go.mod").write_text("module build\n")
    upstream = Path(_download(job, go, source)["GoMod"]).read_text()
    language = re.search(r"^go (\S+)$", upstream, re.MULTILINE)
    lines = ["module build", "", f"go {language.group(1) if language else '1.24'}", ""]
    lines += [f"godebug {setting}" for setting in re.findall(r"^godebug (\S+=\S+)$", upstream, re.MULTILINE)]
    lines += ["require ("]
    lines += [f"\t{module} v{job.module_version}" for module in job.recipe.modules]
    lines += [")"]
    if job.recipe.staging:
        _, minor, patch = job.module_version.split(".")
        staged = re.findall(r"^\s*(k8s\.io/\S+) => \./staging/", upstream, re.MULTILINE)
        lines += ["replace (", *(f"\t{module} => {module} v0.{minor}.{patch}" for module in staged), ")"]
    if job.recipe.patch:
        lines += [f"replace {job.recipe.modules[0]} => ./patched"]
    return "\n".join(lines) + "\n"


def _download(job: Job, go: Go, source: Path) -> Mapping[str, str]:
    """Fetch the component's (first) module into Go's module cache: {"Dir": …, "GoMod": …}; checked against go.sum."""
    text = _run(
        job,
        go,
        [go.command, "mod", "download", "-json", f"{job.recipe.modules[0]}@v{job.module_version}"],
        source,
        {"GOFLAGS": "-mod=mod"},
    )
    found: dict[str, str] = json.loads(text)
    sums = source / "go.sum"
    if sums.is_file() and _sum_lines(job, found) not in sums.read_text():
        raise ArtifactError(
            f"{job}: {job.recipe.modules[0]}@v{job.module_version} has the sum {found['Sum']}, which is not the one kept in go.sum",
            hint="the module proxy ($GOPROXY) serves other bytes than upstream's; name another one",
        )
    return found


def _sum_lines(job: Job, module: Mapping[str, str]) -> str:
    """The module's two lines of a go.sum: of its files, and of its go.mod."""
    name = f"{job.recipe.modules[0]} v{job.module_version}"
    return f"{name} {module['Sum']}\n{name}/go.mod {module['GoModSum']}\n"


def _patched_copy(job: Job, patch: Patch, go: Go, source: Path) -> None:
    # in a module of its own: the main one replaces the very module that is asked for here
    beside = source.parent / "original"
    beside.mkdir()
    (beside / "go.mod").write_text("module original\n")
    if (source / "go.sum").is_file():
        shutil.copyfile(source / "go.sum", beside / "go.sum")
    target = source / "patched"
    # the module cache is read-only; a copy need not be
    shutil.copytree(_download(job, go, beside)["Dir"], target, copy_function=shutil.copyfile)
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    for name in patch.drop_directories:
        shutil.rmtree(target / name)
    for name, texts in patch.drop_lines:
        path = target / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not any(text in line for text in texts)))


def _compile_go(job: Job, outputs: Sequence[str], go: Go, source: Path, *, compiler: str, work: Path) -> dict[str, Path]:
    packages = {name: package for name, package in job.recipe.packages if name in outputs}
    flags = "-s -w " + " ".join(f"-X {name}={job.fill(value)}" for name, value in job.recipe.variables)
    environment = {"GOARCH": job.arch, "CGO_ENABLED": "1" if job.recipe.cgo_libraries else "0"}
    if job.recipe.cgo_libraries:
        environment["CC"] = compiler
        flags += " -linkmode external -extldflags -static"
    target = work / "built"
    target.mkdir()
    command: list[str | Path] = [
        go.command,
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-mod=readonly",
        "-ldflags",
        flags.strip(),
        "-o",
        f"{target}/",
    ]
    if job.recipe.tags:
        command += ["-tags", ",".join(job.recipe.tags)]
    _run(job, go, [*command, *packages.values()], source, environment)
    return {name: target / _binary_name(package) for name, package in packages.items()}


def _binary_name(package: str) -> str:
    """What `go build` calls a main package's binary: the last part of the path that is no major version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]


def _compile_c(job: Job, go: Go, source: Path, *, compiler: str, work: Path) -> Path:
    assert job.recipe.image is not None  # noqa: S101 - recipes are a table of ours; mypy cannot know
    target = work / job.recipe.image.binary
    flags = [job.fill(flag) for flag in job.recipe.c_flags]
    # copied, so that no path of this machine can show in the bytes
    shutil.copyfile(Path(_download(job, go, source)["Dir"]) / job.recipe.c_source, source / "main.c")
    _run(job, go, [compiler, *flags, "-o", str(target), "main.c"], source, {})
    return target


def _c_compiler(job: Job, go: Go) -> str:
    """The C compiler for the job's architecture, tried with the libraries it needs.

    Raises:
        ArtifactError: it, or a static library, is missing; the hint has the apt line.
    """
    foreign = job.arch != machine()
    compiler = f"{_TRIPLES[job.arch]}-gcc" if foreign else "gcc"
    if foreign:
        packages = [f"gcc-{_TRIPLES[job.arch].replace('_', '-')}", f"libc6-dev-{job.arch}-cross"]
        packages += [f"lib{library}-dev:{job.arch}" for library in job.recipe.cgo_libraries]
    else:
        packages = ["gcc", "libc6-dev", *(f"lib{library}-dev" for library in job.recipe.cgo_libraries)]
    hint = f"apt-get install {' '.join(packages)}; or let the source `release` or `mirror` bring it"
    path = go.environment.get("PATH")
    if shutil.which(compiler, path=path) is None:
        raise ArtifactError(f"{job}: {compiler} is not installed, and this component needs a C compiler", hint=hint)
    headers = "".join(f"#include <{library}.h>\n" for library in job.recipe.cgo_libraries)
    libraries = [f"-l{library}" for library in job.recipe.cgo_libraries]
    trial = subprocess.run(
        [compiler, "-static", "-x", "c", "-", "-o", "/dev/null", *libraries],
        input=headers + "int main(void) { return 0; }\n",
        capture_output=True,
        text=True,
        check=False,
        env=dict(go.environment),
    )
    if trial.returncode:
        raise ArtifactError(
            f"{job}: {compiler} cannot make a static program with {' and '.join(('libc', *job.recipe.cgo_libraries))}",
            details=tuple(trial.stderr.strip().splitlines()[:3]),
            hint=hint,
        )
    return compiler


def _busybox(job: Job) -> Path:
    """The distribution's static busybox, for images with a shell.

    Raises:
        ArtifactError: it is not installed, is linked to libraries that the image has not, or is for another architecture.
    """
    hint = "apt-get install busybox-static; or let the source `release` or `mirror` bring it"
    if job.arch != machine():
        raise ArtifactError(f"{job}: needs a busybox for {job.arch}, and this machine has its own alone", hint=hint)
    try:
        head = BUSYBOX.read_bytes()
    except OSError:
        raise ArtifactError(f"{job}: {BUSYBOX} is not there, and this image needs a shell", hint=hint) from None
    # what the program header PT_INTERP names, at the beginning of the file
    if b"/ld-linux" in head[:4096]:
        raise ArtifactError(f"{job}: {BUSYBOX} is not static, and the image has no libraries", hint=hint)
    return BUSYBOX


def _run(job: Job, go: Go, command: Sequence[str | Path], cwd: Path, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**go.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"{job}: `{Path(command[0]).name} {command[1]}` took more than {BUILD_SECONDS} s") from None
    if done.returncode == 0:
        return done.stdout
    # `go mod download -json` tells its error on stdout
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    text = "\n".join(lines)
    hint = ""
    if "no space left on device" in text:
        hint = "free some space: a first build takes about 6 GiB in Go's caches (`go env GOCACHE GOMODCACHE`)"
    elif "checksum mismatch" in text or "SECURITY ERROR" in text:
        hint = "the module proxy ($GOPROXY) serves other bytes than upstream's; name another one"
    elif _UNREACHABLE.search(text):
        hint = "the Go modules could not be fetched: set $GOPROXY (and https_proxy) to a module proxy that this machine reaches"
    raise ArtifactError(f"{job}: the build failed", details=tuple(lines[-12:]), hint=hint)
