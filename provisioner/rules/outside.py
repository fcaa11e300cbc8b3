"""Rules about what lies outside the cluster: files of the user's, SSH, proxies, registries, where artifacts come from."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import yaml

from provisioner.problems import Path as Where
from provisioner.problems import Problem, did_you_mean, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.rule import Context

# Login names as useradd and most directories have them.
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.@\\-]{0,63}\$?")
_MANIFEST_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_MAX_MANIFEST_BYTES = 16 << 20
# How the text of bytes begins that are a public key.
_PUBLIC = ("b'ssh-", "b'ecdsa-", "b'sk-")


def expand(text: str, base: Path) -> Path:
    """A file name of cluster.yaml: `~` is the user's home, relative names count from the directory of cluster.yaml."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~nobody-of-that-name
        path = Path(text)
    return path if path.is_absolute() else base / path


def _stat(path: Path) -> os.stat_result | str:
    """What the system says of a path, or why it says nothing."""
    try:
        return path.stat()
    except (OSError, ValueError) as fault:
        return (getattr(fault, "strerror", None) or str(fault)).lower()


def kubernetes_version_known(context: Context) -> Iterator[Problem]:
    """The Kubernetes version is in versions.yml: only its versions have checksums, so nothing else could be installed."""
    version, known = context.cluster.kubernetes.version, context.known_versions
    if known is not None and version not in known:
        ordered = sorted(known, key=lambda text: [int(part) if part.isdecimal() else 0 for part in text.split(".")], reverse=True)
        meant = did_you_mean(version, ordered) if len(ordered) > 5 else ""
        yield error(
            ("kubernetes", "version"),
            f"{quoted(version)} is not in versions.yml, which knows {', '.join(ordered) or 'no version'}{meant}",
        )


def ssh_users(context: Context) -> Iterator[Problem]:
    """Login names look like login names."""
    cluster = context.cluster
    users: list[tuple[Where, str | None]] = [(("ssh", "user"), cluster.ssh.user)]
    users += [(("nodes", index, "sshUser"), node.ssh_user) for index, node in enumerate(cluster.nodes)]
    if cluster.ssh.bastion:
        users.append((("ssh", "bastion", "user"), cluster.ssh.bastion.user))
    for path, user in users:
        if user is not None and not _USER.fullmatch(user):
            yield error(path, f"{quoted(user)} is no login name")


def ssh_keys_usable(context: Context) -> Iterator[Problem]:
    """A private key's file is there, is the private half, and is its owner's alone, as OpenSSH asks too."""
    cluster = context.cluster
    keys: list[tuple[Where, str | None]] = [(("ssh", "key"), cluster.ssh.key)]
    keys += [(("nodes", index, "sshKey"), node.ssh_key) for index, node in enumerate(cluster.nodes)]
    if cluster.ssh.bastion:
        keys.append((("ssh", "bastion", "key"), cluster.ssh.bastion.key))
    verdicts: dict[str, str] = {}
    for path, key in keys:
        if key is None:
            continue
        if key not in verdicts:
            verdicts[key] = _key_fault(key, context.base)
        if verdicts[key]:
            yield error(path, verdicts[key])


def _key_fault(text: str, base: Path) -> str:
    if "PRIVATE KEY" in text:
        return "holds a key itself; give the name of a file with the key"
    path = expand(text, base)
    found = _stat(path)
    if isinstance(found, str):
        return f"{quoted(path)}: {found}"
    head = _head(path) if stat.S_ISREG(found.st_mode) else b""
    faults = (
        (not stat.S_ISREG(found.st_mode), "is no file"),
        (found.st_mode & 0o077, f"has mode {found.st_mode & 0o777:04o}, so others could read the key: chmod 600 it"),
        (isinstance(head, str), str(head)),
        (str(head).startswith(_PUBLIC), "is a public key; name the private one, mostly the same without .pub"),
        ("PRIVATE KEY" not in str(head), "is no private key"),
    )
    return next((f"{quoted(path)} {fault}" for holds, fault in faults if holds), "")


def _head(path: Path) -> bytes | str:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as fault:
        return f"cannot be read: {(fault.strerror or str(fault)).lower()}"


def bastion_valid(context: Context) -> Iterator[Problem]:
    """The bastion is an IP address or a DNS name."""
    bastion = context.cluster.ssh.bastion
    if bastion and (fault := syntax.host_fault(bastion.host)):
        hint = " (ssh.bastion.port)" if "port" in fault else " (ssh.bastion.user)" if "user" in fault else ""
        yield error(("ssh", "bastion", "host"), f"{quoted(bastion.host)} {fault}{hint}")


def manifest_files(directory: Path) -> list[Path]:
    """What of a directory is taken for manifests, in the order in which it is applied."""
    return sorted(file for file in directory.iterdir() if file.suffix in _MANIFEST_SUFFIXES)


def manifests_readable(context: Context) -> Iterator[Problem]:
    """Manifests are there and hold Kubernetes objects in valid YAML."""
    for index, text in enumerate(context.cluster.manifests):
        path: Where = ("manifests", index)
        if "://" in text:
            yield error(path, f"{quoted(text)} is a URL; download the file and name it here, so that a run is repeatable")
            continue
        place = expand(text, context.base)
        found = _stat(place)
        if isinstance(found, str):
            yield error(path, f"{quoted(place)}: {found}")
            continue
        files = [place]
        if stat.S_ISDIR(found.st_mode):
            try:
                files = manifest_files(place)
            except OSError as fault:
                yield error(path, f"{quoted(place)}: {(fault.strerror or str(fault)).lower()}")
                continue
            if not files:
                yield error(path, f"{quoted(place)} holds no file that ends in .yaml, .yml or .json")
        for file in files:
            if problem := _manifest_fault(file):
                yield error(path, f"{quoted(file)}: {problem}")


def _manifest_fault(file: Path) -> str:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_MANIFEST_BYTES:
            return f"is no file of at most {_MAX_MANIFEST_BYTES >> 20} MiB"
        with file.open("rb") as stream:
            documents = list(yaml.load_all(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as fault:
        return (fault.strerror or str(fault)).lower()
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        return f"{where}not valid YAML: {getattr(fault, 'problem', None) or type(fault).__name__}"
    return _objects_fault([document for document in documents if document is not None])


def _objects_fault(objects: list[object]) -> str:
    for number, item in enumerate(objects, start=1):
        if not isinstance(item, dict) or not {"apiVersion", "kind"} <= item.keys():
            return f"object {number} has no apiVersion and kind"
    return "" if objects else "holds no object"


def artifacts_mirror(context: Context) -> Iterator[Problem]:
    """artifacts.mirror is a directory that is there, or a URL; it is set where it is the only source."""
    artifacts = context.cluster.artifacts
    path: Where = ("artifacts", "mirror")
    for index, source in enumerate(artifacts.sources):
        if source in artifacts.sources[:index]:
            yield error(("artifacts", "sources", index), f"{source} stands here twice")
    if artifacts.mirror is None:
        if artifacts.sources == ("mirror",):
            yield error(("artifacts", "sources"), "mirror is the only source, and `artifacts.mirror` does not say where it is")
        return
    if "mirror" not in artifacts.sources:
        yield warning(path, "is not used, for `artifacts.sources` does not name mirror")
    if "://" in artifacts.mirror:
        if fault := syntax.url_fault(artifacts.mirror):
            yield error(path, fault)
        return
    place = expand(artifacts.mirror, context.base)
    found = _stat(place)
    if isinstance(found, str):
        yield error(path, f"{quoted(place)}: {found}")
    elif not stat.S_ISDIR(found.st_mode):
        yield error(path, f"{quoted(place)} is no directory")


def http_proxy_valid(context: Context) -> Iterator[Problem]:
    """Proxies are URLs; noProxy lists hosts, domains, addresses and ranges. No message repeats a URL, which may hold a password."""
    proxy = context.cluster.http_proxy
    for key, url in (("http", proxy.http), ("https", proxy.https)):
        if url and (fault := syntax.url_fault(url)):
            advice = "; a proxy for https is mostly an http:// URL too" if key == "https" else ""
            yield error(("httpProxy", key), f"{fault}{advice}")
    for index, entry in enumerate(proxy.no_proxy):
        host = entry.removeprefix("*").removeprefix(".").rpartition(":")
        bare = host[0] if host[2].isdecimal() and host[0] else entry.removeprefix("*").removeprefix(".")
        if entry != "*" and syntax.host_fault(bare) and not _is_range(entry):
            yield error(("httpProxy", "noProxy", index), f"{quoted(entry)} is no host, domain, address or range")
    if proxy.no_proxy and not (proxy.http or proxy.https):
        yield warning(("httpProxy", "noProxy"), "has no effect without httpProxy.http or httpProxy.https")


def _is_range(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
