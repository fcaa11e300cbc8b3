"""`kubernetes.version` written into the text of a cluster.yaml; everything else keeps its place and its comments."""

from __future__ import annotations

import copy
import json

from provisioner import document
from provisioner.errors import BadInput

_HINT = "set `kubernetes.version` by hand, and run `provisioner upgrade` without --to"


def pinned(text: str, version: str) -> str:
    """A text that :func:`document.parse` reads without a problem, with another Kubernetes version.

    Raises:
        BadInput: the file is written in a way that this cannot be done safely.
    """
    parsed, root = document.parse(text), document.outline(text)
    if root is None or not isinstance(parsed.value, dict) or root.style != "block":
        raise BadInput("the version cannot be written into cluster.yaml: it is not a block of keys", hint=_HINT)
    section = root.get("kubernetes")
    old = section.get("version") if section is not None else None
    if old is not None and old.kind == "scalar" and not old.decorated and old.style in {"", "'", '"'}:
        quote = old.style
        result = f"{text[: old.start]}{quote}{version}{quote}{text[old.end :]}"
    elif section is None:
        newline = "\r\n" if "\r\n" in text else "\n"
        whole = text if text.endswith(("\n", "\r")) else text + newline
        result = f"{whole}kubernetes:{newline}  version: {version}{newline}"
    else:
        raise BadInput("the version cannot be written into cluster.yaml: the way `kubernetes:` is written", hint=_HINT)
    expected = copy.copy(parsed.value)
    expected["kubernetes"] = {**(expected.get("kubernetes") or {}), "version": version}
    again = document.parse(result)
    if again.problems or json.dumps(again.value, sort_keys=True) != json.dumps(expected, sort_keys=True):
        raise BadInput("the version cannot be written into cluster.yaml: its anchors or its end would break", hint=_HINT)
    return result
