#!/usr/bin/python3
# Placed by provisioner.
"""The kubelet's question for a registry's credentials, answered out of a file that root alone may read.

Runs on the machine, by the kubelet, on the distribution's own Python (3.9 and newer).
https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LOGINS = "/etc/kubernetes/kubelet/registry-logins.json"


def answer(request: Any, logins: Any) -> dict[str, Any]:
    """What the kubelet is told: the login of the registry that the image's name begins with; of none other."""
    registry = str(request["image"]).partition("/")[0]
    known = logins.get(registry)
    return {
        "apiVersion": request["apiVersion"],
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "0s",
        "auth": {registry: known} if known else {},
    }


def main() -> None:
    """One question on standard input, its answer on standard output."""
    logins = json.loads(Path(LOGINS).read_text(encoding="utf-8"))
    json.dump(answer(json.load(sys.stdin), logins), sys.stdout)


if __name__ == "__main__":
    main()
