"""Write provisioner/data/upstream.json: the flags and configuration fields that upstream's components know.

    python tools/upstream_names.py BINARIES MODULES KUBERNETES ETCD FLANNEL > provisioner/data/upstream.json

BINARIES is a directory with kube-apiserver, etcd, flanneld and the rest anywhere below it; MODULES is `go env GOMODCACHE`.
The last three are versions, e.g. 1.36.3 3.6.14 0.28.10. Run it when the default Kubernetes version changes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

_BINARIES = {
    "kube-apiserver": "kube-apiserver",
    "kube-controller-manager": "kube-controller-manager",
    "kube-scheduler": "kube-scheduler",
    "kubelet": "kubelet",
    "kube-proxy": "kube-proxy",
    "etcd": "etcd",
    "flannel": "flanneld",
}
_FLAG = re.compile(r"^ +(?:-\w, )?--?([a-z0-9][a-zA-Z0-9_.-]*)\b(?! *,)", re.MULTILINE)
_FIELD = re.compile(r"^\t\w+\s+(?P<type>\S+)\s+`json:\"(?P<name>\w+)", re.MULTILINE)
_KINDS = {"bool": "boolean", "string": "text", "int32": "number", "int64": "number", "uint32": "number", "float64": "number"}
_TEXTS = {"metav1.Duration", "resource.Quantity"}


def flags_of(binary: Path) -> list[str]:
    """Every flag in a binary's own help."""
    done = subprocess.run([str(binary), "--help"], capture_output=True, text=True, check=False, timeout=60)
    return sorted(set(_FLAG.findall(done.stdout + done.stderr)) - {"help", "version", "h"})


def fields_of(source: str, struct: str) -> dict[str, str]:
    """Field -> kind of value, of one struct of a Go source."""
    body = re.search(rf"^type {struct} struct {{\n(.*?)^}}", source, re.MULTILINE | re.DOTALL)
    if body is None:
        raise SystemExit(f"no struct {struct}")
    named = dict(re.findall(r"^type (\w+) (\w+)$", source, re.MULTILINE))
    return {match["name"]: _kind(match["type"], named) for match in _FIELD.finditer(body[1])}


def _kind(go_type: str, named: dict[str, str]) -> str:
    bare = go_type.lstrip("*")
    if bare.startswith("[]"):
        return "list"
    if bare.startswith("map["):
        return "mapping"
    if bare in _TEXTS:
        return "text"
    return _KINDS.get(named.get(bare, bare), "mapping")


def main() -> None:
    """Print the document."""
    binaries, modules, (kubernetes, etcd, flannel) = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:6]
    staging = "v0." + kubernetes.partition(".")[2]
    kubelet = (modules / f"k8s.io/kubelet@{staging}/config/v1beta1/types.go").read_text()
    kube_proxy = (modules / f"k8s.io/kube-proxy@{staging}/config/v1alpha1/types.go").read_text()
    found = {name: next(path for path in sorted(binaries.rglob(file)) if path.is_file()) for name, file in _BINARIES.items()}
    document = {
        "versions": {"kubernetes": kubernetes, "etcd": etcd, "flannel": flannel},
        "flags": {name: flags_of(path) for name, path in found.items()},
        "fields": {
            "KubeletConfiguration": fields_of(kubelet, "KubeletConfiguration"),
            "KubeProxyConfiguration": fields_of(kube_proxy, "KubeProxyConfiguration"),
        },
    }
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
