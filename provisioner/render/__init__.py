"""Desired state of every host, rendered by Python from the roles' own templates. Pure: values in, values out.

layout      what each role puts where, as data
footprint   everything that may ever lie on a machine, for whoever takes it away again
context     the input of one host
control_plane, machine   the roles' variables
templates   Jinja under StrictUndefined
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from provisioner.addons.table import ADDONS
from provisioner.desired import Artifact, File, HostState, Unit
from provisioner.render import registry_login
from provisioner.render.context import CachedArtifact, HostContext, Image, MachineTraits
from provisioner.render.footprint import BOOTSTRAP_KUBECONFIG, everything, questions
from provisioner.render.layout import ROLES, RoleSpec, UnitSpec, binary_path
from provisioner.render.machine import IMAGE_DIR, LOGINS, PROVIDER, PROVIDER_CONFIG, users_of
from provisioner.render.templates import render, template_of
from provisioner.render.trust import CA_FILE, CERTS_D, ca_path

__all__ = ["ROLES", "CachedArtifact", "HostContext", "Image", "MachineTraits", "binary_path", "render_host", "roles_of"]

# Where files lie whose number depends on cluster.yaml, so that no list tells which of them are left over.
_SWEPT = (f"{CERTS_D}/*/hosts.toml", f"{CERTS_D}/*/{CA_FILE}")


def roles_of(host: HostContext) -> tuple[RoleSpec, ...]:
    """The roles that a machine carries, in the order they are applied."""
    return tuple(role for role in ROLES if role.applies(host.cluster, host.node))


def render_host(host: HostContext) -> HostState:
    """Everything one machine shall be.

    Raises:
        jinja2.UndefinedError: a template uses a variable that is not computed (a bug; the contract tests look for it).
        KeyError: an artifact that a role needs is not in the cache (a bug in the caller).
    """
    roles = roles_of(host)
    variables = {role.name: role.variables(host) for role in roles}
    artifacts = _artifacts(host, roles)
    binaries = {item.path.rsplit("/", 1)[-1]: item.sha256 for item in artifacts}
    files: list[File] = [*host.certificates, *_special_files(host, variables)]
    units: list[Unit] = []
    for role in roles:
        unit_paths = {f"/etc/systemd/system/{unit.name}": unit for unit in role.units}
        files += [
            _render_file(role, file.path, variables[role.name], mode=file.mode, owner=file.owner, once=file.once)
            for file in role.files
            if file.path not in unit_paths
        ]
        files += [File(role.name, path, Path(str(module.__file__)).read_bytes(), mode=0o755) for path, module in role.scripts]
        for file in role.files:
            if unit := unit_paths.get(file.path):
                # the hash covers the unit file itself: rendered once without it, then with it
                bare = _render_file(role, file.path, {**variables[role.name], "provisioner_unit_hash": ""})
                reads = _reads(unit, files)
                # a timer has no process whose environment could tell
                value = "" if unit.is_timer else _unit_hash(unit, bare, reads, binaries)
                files.append(_render_file(role, file.path, {**variables[role.name], "provisioner_unit_hash": value}))
                places = tuple(item.path for item in artifacts if item.path.rsplit("/", 1)[-1] in unit.binaries)
                passing = tuple(item.path for item in files if item.path in unit.passing)
                paths = (file.path, *(item.path for item in reads), *places, *passing)
                units.append(Unit(role.name, unit.name, value, unit.reload_on, paths))
    base = variables["base"]
    return HostState(
        host=host.node.name,
        files=tuple(files),
        artifacts=artifacts,
        units=tuple(units),
        absent=_absent(host, roles),
        swept=tuple(("containerd", pattern) for pattern in _SWEPT) if host.node.is_kubernetes_node else (),
        sysctls=tuple(sorted(base["base_sysctls"].items())),  # type: ignore[attr-defined]  # a dict, by machine.base
        modules=tuple(base["base_modules"]),  # type: ignore[arg-type]  # a list, by machine.base
        users=tuple(user["name"] for user in users_of(host)),
        variables={name: value for role in roles for name, value in variables[role.name].items()},
        before=questions(host.cluster_id),
    )


def _absent(host: HostContext, roles: tuple[RoleSpec, ...]) -> tuple[tuple[str, str], ...]:
    """What must not be there: a token that nobody needs any more, and what was left by roles that the machine does not carry."""
    withdrawn = {role.name for role in ROLES if role.withdrawn and role not in roles}
    gone = [("base", path) for part in everything().parts if part.role in withdrawn for path in part.files]
    if host.node.is_kubernetes_node:
        if not host.bootstrap_kubeconfig:
            gone.append(("kubelet", BOOTSTRAP_KUBECONFIG))
        if not host.registries.logins:
            gone += [("kubelet", path) for path in (LOGINS, PROVIDER, PROVIDER_CONFIG)]
        off = (addon.component for addon in ADDONS if not addon.wanted(host.cluster))
        gone += [("containerd", f"{IMAGE_DIR}/{name}.tar") for name in off]
    return tuple(gone)


def _render_file(
    role: RoleSpec, path: str, variables: dict[str, object], *, mode: int = 0o644, owner: str = "root", once: bool = False
) -> File:
    content = render(template_of(role.name, path), variables)
    return File(role.name, path, content, mode=mode, owner=owner, group=owner, once=once)


def _special_files(host: HostContext, variables: dict[str, dict[str, object]]) -> list[File]:
    """Files whose number or existence depends on the input."""
    files = []
    if host.bootstrap_kubeconfig:
        files.append(File("kubelet", BOOTSTRAP_KUBECONFIG, host.bootstrap_kubeconfig, mode=0o600, secret=True))
    if "containerd" not in variables:
        return files
    for registry in variables["containerd"]["containerd_registries"]:  # type: ignore[attr-defined]  # a list, by machine.containerd
        content = render(template_of("containerd", f"{CERTS_D}/hosts.toml"), {"containerd_registry": registry})
        files.append(File("containerd", f"{CERTS_D}/{registry['name']}/hosts.toml", content))
    files += [File("containerd", ca_path(name), ca) for name, ca in sorted(host.registries.cas.items())]
    return [*files, *_logins(host, variables["kubelet"])]


def _logins(host: HostContext, kubelet: dict[str, object]) -> list[File]:
    """What the kubelet needs for private registries: the one file with secrets, the program that reads it, and when to run it."""
    logins = host.registries.logins
    if not logins:
        return []
    document = {name: {"username": user, "password": password} for name, (user, password) in sorted(logins.items())}
    return [
        File("kubelet", LOGINS, json.dumps(document).encode(), mode=0o600, secret=True),
        File("kubelet", PROVIDER, Path(str(registry_login.__file__)).read_bytes(), mode=0o755),
        File("kubelet", PROVIDER_CONFIG, render(template_of("kubelet", PROVIDER_CONFIG), kubelet)),
    ]


def _artifacts(host: HostContext, roles: Iterable[RoleSpec]) -> tuple[Artifact, ...]:
    found = []
    for role in roles:
        for name in role.binaries:
            found.append(_artifact(host.artifacts[name], binary_path(name), 0o755))
    if host.node.is_kubernetes_node:
        for name, image in sorted(host.images.items()):
            found.append(_artifact(host.artifacts[image.artifact], f"{IMAGE_DIR}/{name}.tar", 0o644))
    return tuple(found)


def _artifact(cached: CachedArtifact, path: str, mode: int) -> Artifact:
    return Artifact("artifacts", path, cached.sha256, cached.size, str(cached.path), mode)


def _reads(unit: UnitSpec, files: list[File]) -> tuple[File, ...]:
    """The files that a unit takes in at each start; not those of a birth, which it reads once in its life."""
    found = (file for file in files if unit.reads and file.path.startswith(unit.reads) and not file.once)
    return tuple(sorted(found, key=lambda file: file.path))


def _unit_hash(unit: UnitSpec, unit_file: File, reads: tuple[File, ...], binaries: dict[str, str]) -> str:
    digest = hashlib.sha256(unit_file.content)
    for file in reads:
        digest.update(f"{file.path} {file.sha256}\n".encode())
    for name in unit.binaries:
        digest.update(f"{name} {binaries[name]}\n".encode())
    return digest.hexdigest()[:32]
