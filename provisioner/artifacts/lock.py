"""The lock: ``versions.yml`` as frozen values. Every version, official URL and checksum, and nothing anywhere else.

A checksum that nobody has published or computed yet is ``null``: the source it belongs to then refuses that artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from provisioner.errors import BadInput

Arch = Literal["amd64", "arm64"]
ARCHITECTURES: tuple[Arch, ...] = ("amd64", "arm64")

Version = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
# Upstream publishes sha256 for most files and sha512 for Kubernetes' tarballs.
Sum = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Url = Annotated[str, StringConstraints(pattern=r"^https://[^/]+/.+$")]
Sums = dict[Arch, Sum | None]

# The official registry's manifest of an image stands in `official` under this key.
IMAGE_KEY = "image"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OfficialFile(_Model):
    """One file of an official site. ``{version}`` and ``{arch}`` are filled in.

    ``members`` maps what we install to its path inside the archive; without it the file itself is installed, under the
    name it has in ``files``. ``sum_url`` is where the project publishes the file's sum (``{url}`` is the file's own URL).
    """

    url: Url
    sum_url: str | None = None
    members: dict[str, str] = {}


class Release(_Model):
    """The sums of one version of a component.

    ``official`` holds the sums of the official files (the sources ``release`` and ``mirror``), ``modules`` those of what our
    own build makes, per installed file. ``built_from`` is the version of the Go modules where it has another number.
    """

    built_from: Version | None = None
    official: dict[str, Sums] = {}
    modules: dict[str, dict[Arch, Sha256 | None]] = {}


class Component(_Model):
    """A project whose files we install. ``image`` is the reference of a container image."""

    image: str | None = None
    files: dict[str, OfficialFile] = {}
    versions: dict[Version, Release]

    @model_validator(mode="after")
    def _known_keys(self) -> Component:
        known = {*self.files, *((IMAGE_KEY,) if self.image else ())}
        for version, release in self.versions.items():
            if unknown := set(release.official) - known:
                raise ValueError(f"{version}: sums of files that are not described: {', '.join(sorted(unknown))}")
        return self


class GoToolchain(_Model):
    """The one Go release that modules are built with, and the sums of its module zips (golang.org/toolchain)."""

    version: Version
    toolchain: dict[Arch, Sha256]


class Lock(_Model):
    """versions.yml."""

    version: Literal[1]
    go: GoToolchain
    # Kubernetes version -> component -> version
    releases: dict[Version, dict[str, Version]]
    components: dict[str, Component]

    @model_validator(mode="after")
    def _consistent(self) -> Lock:
        for kubernetes, chosen in self.releases.items():
            for name, version in {"kubernetes": kubernetes, **chosen}.items():
                if name not in self.components:
                    raise ValueError(f"releases.{kubernetes}: no component {name}")
                if version not in self.components[name].versions:
                    raise ValueError(f"releases.{kubernetes}: component {name} has no version {version}")
        return self

    @property
    def kubernetes_versions(self) -> tuple[str, ...]:
        """Kubernetes versions a cluster may have, in the file's order (the default first)."""
        return tuple(self.releases)

    def version_of(self, component: str, kubernetes: str) -> str:
        """The version of a component that goes with a Kubernetes version.

        Raises:
            BadInput: the lock does not know that Kubernetes version.
        """
        if kubernetes not in self.releases:
            raise BadInput(
                f"Kubernetes {kubernetes} is not in versions.yml",
                hint=f"versions it knows: {', '.join(self.kubernetes_versions)}",
            )
        return kubernetes if component == "kubernetes" else self.releases[kubernetes][component]

    def component(self, name: str) -> Component:
        """The component of that name.

        Raises:
            BadInput: there is none.
        """
        if name not in self.components:
            raise BadInput(f"{name}: not a component of versions.yml", hint=f"components: {', '.join(self.components)}")
        return self.components[name]

    def release(self, component: str, version: str) -> Release:
        """The sums of one version of a component.

        Raises:
            BadInput: the lock does not know it.
        """
        versions = self.component(component).versions
        if version not in versions:
            raise BadInput(f"{component} {version}: not in versions.yml", hint=f"versions it knows: {', '.join(versions)}")
        return versions[version]

    def image(self, component: str, kubernetes: str) -> str:
        """Reference of a component's image (``registry.k8s.io/pause:3.10.2``) that goes with a Kubernetes version."""
        reference = self.component(component).image
        if reference is None:
            raise BadInput(f"{component}: has no container image in versions.yml", hint="add `image` to it there")
        return reference.format(version=self.version_of(component, kubernetes))


def default_path() -> Path:
    """versions.yml as it travels with the program: in the wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_share" / "versions.yml"
    return shipped if shipped.is_file() else package.parent / "versions.yml"


def load_lock(path: Path | None = None) -> Lock:
    """Read a lock (default: the program's own).

    Raises:
        BadInput: no such file, no YAML, or a value that a lock may not hold; every problem is named.
    """
    path = path or default_path()
    hint = "`git checkout versions.yml` restores the published file"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}", hint=hint) from None
    return parse_lock(text, name=str(path), hint=hint)


def parse_lock(text: str, *, name: str, hint: str = "") -> Lock:
    """A lock from its text; ``name`` stands for it in errors.

    Raises:
        BadInput: as :func:`load_lock`.
    """
    # libyaml where PyYAML has it: a no-op apply reads this file too
    loader = cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        document: object = yaml.load(text, Loader=loader)  # noqa: S506 - both are safe loaders
    except yaml.YAMLError as error:
        raise BadInput(f"{name}: not YAML: {' '.join(str(error).split())}", hint=hint) from None
    try:
        return Lock.model_validate(document)
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(str(part) for part in problem['loc']) or 'the file'}: {problem['msg']}" for problem in error.errors()
        )
        raise BadInput(f"{name}: not a lock", details=problems, hint=hint) from None
