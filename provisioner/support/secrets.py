"""What must not be in a bundle, whatever ``redact`` thinks: this workspace's own secrets, and a search for them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from provisioner.config import Cluster
from provisioner.desired import load_host
from provisioner.pki import rotation, store
from provisioner.registries import Unusable, read_login
from provisioner.rules.outside import expand
from provisioner.ssh.target import bastion_of, target_of
from provisioner.workspace import Workspace

_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\s(?P<body>[A-Za-z0-9+/=\s]+)-----END [A-Z0-9 ]*PRIVATE KEY-----\n?")
_TOKEN = re.compile(rb"(?<![a-z0-9])[a-z0-9]{6}\.[a-z0-9]{16}(?![a-z0-9])")
# Shorter pieces of a key could be in a text by chance.
_SHORTEST = 24
# By so many characters a run of base64 is looked up.
_INDEX = 16
_RUN = re.compile(r"[A-Za-z0-9+/=]{24,}")


@dataclass(frozen=True, slots=True)
class Needles:
    """Secrets by what they are; never printed.

    ``pieces`` of base64 are indexed by their beginnings, so that thousands are searched for in one pass; ``words`` are few.
    """

    pieces: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    words: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.pieces.values())) + len(self.words)

    def found_in(self, text: str) -> str:
        """What secret is in a text, in words; empty for none."""
        for word, what in self.words.items():
            if word in text:
                return what
        for run in _RUN.finditer(text):
            for start in range(run.start(), run.end() - _INDEX + 1):
                for piece, what in self.pieces.get(text[start : start + _INDEX], {}).items():
                    if text.startswith(piece, start):
                        return what
        return ""


def needles(pieces: Iterable[tuple[str, str]], words: Iterable[tuple[str, str]] = ()) -> Needles:
    """From (secret, what it is); what is too short to be told from chance is left out."""
    index: dict[str, dict[str, str]] = {}
    for piece, what in pieces:
        if len(piece) >= _SHORTEST:
            index.setdefault(piece[:_INDEX], {})[piece] = what
    return Needles(index, {word: what for word, what in words if len(word) >= 4})


def of_workspace(cluster: Cluster, workspace: Workspace) -> Needles:
    """Every private key of the PKI, the service account's, the encryption key, live bootstrap tokens, the SSH keys that lead to
    the machines, the proxy's credentials and the registries'.
    """
    root = workspace.pki
    files = [*store.ca_files(root), store.service_account_file(root), *store.leaf_files(root)]
    pieces = [(piece, f"the private key in {path.name}") for path in files for piece in pieces_of(store.read(path) or b"")]
    if key := (store.read(store.encryption_file(root)) or b"").decode(errors="replace").strip():
        pieces.append((key.rstrip("="), "the key of encryption at rest"))
    pieces += [(key, "a key of old backups") for key in rotation.former(root).values() if key]
    targets = [target_of(cluster, workspace, node) for node in cluster.nodes] + [bastion_of(cluster, workspace)]
    for path in {target.key for target in targets if target and target.key}:
        pieces += [(piece, "an SSH key") for piece in pieces_of(_read(path))]
    tokens = [(token, "a bootstrap token") for token in _tokens(cluster, workspace)]
    words = [*tokens, *((word, "the proxy's credentials") for word in credentials(cluster))]
    return needles(pieces, [*words, *((word, "a registry's credentials") for word in registry_words(cluster, workspace))])


def pieces_of(raw: bytes) -> Iterator[str]:
    """The lines of every private key in a PEM file, and of the same in base64, as kubeconfigs have it."""
    for block in _PRIVATE.finditer(raw):
        yield from block["body"].decode().split()
        encoded = base64.b64encode(block[0]).decode().rstrip("=")
        # the first ones say BEGIN PRIVATE KEY in every key of the world
        yield from (encoded[start : start + 48] for start in range(96, len(encoded), 48))


def credentials(cluster: Cluster) -> Iterator[str]:
    """Passwords in the proxy's URLs."""
    for url in (cluster.http_proxy.http, cluster.http_proxy.https):
        password = urlsplit(url).password if url else None
        if password:
            yield password


def registry_words(cluster: Cluster, workspace: Workspace) -> Iterator[str]:
    """Passwords of registries, as they are and as requests carry them."""
    for registry in cluster.containerd.registries:
        try:
            name, password = read_login(expand(registry.credentials or "", workspace.cluster_file.parent))
        except Unusable:
            continue
        yield password
        yield base64.b64encode(f"{name}:{password}".encode()).decode()


def _tokens(cluster: Cluster, workspace: Workspace) -> Iterator[str]:
    for node in cluster.nodes:
        try:
            state = load_host(workspace.rendered, node.name)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        yield from (token.decode() for file in state.files if file.secret for token in _TOKEN.findall(file.content))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
