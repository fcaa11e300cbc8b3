"""Images from a registry (the OCI distribution API), or from a mirror that keeps the same paths.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md: the manifest is asked for by the digest in the lock, and it
names the digests of all the rest, so that no byte is taken on trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from provisioner.artifacts import oci
from provisioner.artifacts.download import Downloader, DownloadFailed

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (oci.MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_ACCEPT = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
# Docker Hub's API is not at the name its images carry.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Reference:
    """``host/name:tag``."""

    host: str
    name: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split a full reference (host and tag are never left out in the lock)."""
        host, _, rest = text.partition("/")
        name, _, tag = rest.rpartition(":")
        return cls(host=host, name=name, tag=tag)

    def url(self, kind: str, which: str) -> str:
        """Of a manifest or a blob."""
        return f"https://{_API_HOSTS.get(self.host, self.host)}/v2/{self.name}/{kind}/{which}"


def manifest_layers(body: bytes) -> tuple[Mapping[str, object], ...]:
    """Descriptors of a manifest's config and layers, config first.

    Raises:
        DownloadFailed: it is no image manifest.
    """
    try:
        document = json.loads(body)
        found = (document["config"], *document["layers"])
        if all(_DIGEST.match(item["digest"]) and isinstance(item["mediaType"], str) for item in found):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise DownloadFailed("the registry's answer is no image manifest with sha256 digests")


def media_type(manifest: bytes) -> str:
    """What a (checked) manifest says it is; OCI's own may leave it out."""
    return str(json.loads(manifest).get("mediaType", oci.MANIFEST))


def authorised(downloader: Downloader, url: str) -> dict[str, str]:
    """Headers for a registry: an anonymous token, where it asks for one.

    Raises:
        DownloadFailed: the registry does not answer, or wants more than anonymous pulls.
    """
    answer = downloader.get(url, headers=_ACCEPT)
    if answer.status != 401:
        return dict(_ACCEPT)
    challenge = {name.lower(): value for name, value in answer.headers.items()}.get("www-authenticate", "")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer ") or "realm" not in fields:
        raise DownloadFailed(f"{url}: the registry wants a login")
    query = urlencode({name: fields[name] for name in ("service", "scope") if name in fields})
    granted = downloader.get(f"{fields['realm']}?{query}")
    try:
        document = json.loads(granted.body)
        token = document.get("token") or document["access_token"]
    except (ValueError, KeyError, AttributeError):
        raise DownloadFailed(f"{url}: the registry wants a login") from None
    return {**_ACCEPT, "Authorization": f"Bearer {token}"}


def platform_digest(body: bytes, own_digest: str, arch: str) -> str:
    """The digest of one architecture's manifest, out of an index; ``own_digest`` where the document is a manifest itself.

    Raises:
        DownloadFailed: the index has none for this architecture.
    """
    try:
        document = json.loads(body)
        if "manifests" not in document:
            return own_digest
        for item in document["manifests"]:
            platform = item.get("platform", {})
            if platform.get("architecture") == arch and platform.get("os") == "linux" and _DIGEST.match(item["digest"]):
                return str(item["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DownloadFailed(f"the registry has no image for linux/{arch}")


def blob(item: Mapping[str, object], path: Path) -> oci.Blob:
    """A descriptor and the file that holds its bytes."""
    return oci.Blob(media_type=str(item["mediaType"]), path=path, digest=str(item["digest"]))
