"""Forms that several rules ask for: DNS names, label keys and values, URLs, quantities. Pure predicates."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.IGNORECASE)
# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"\+?(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?")
_FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, **{u: 1e3**i for i, u in enumerate("MGTPE", start=2)}}
_BINARY = {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)}


@lru_cache(maxsize=4096)
def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, or None where the text is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_dns_name(text: str) -> bool:
    """A host name as DNS and certificates take it. Four numbers with dots are no name, whatever their size."""
    return len(text) <= 253 and _DNS_NAME.fullmatch(text) is not None and not text.rpartition(".")[2].isdecimal()


def host_fault(text: str) -> str:
    """Why the text is neither an IP address nor a DNS name; "" where it is one."""
    if ip(text) or is_dns_name(text):
        return ""
    host, _, port = text.rpartition(":")
    bare = ip(host) or is_dns_name(host)
    faults = (
        (not text, "must not be empty"),
        ("://" in text, "is a URL; give the host alone"),
        ("@" in text, "names a user; users have a key of their own"),
        (port.isdecimal() and bare, f"has a port; give the host alone, {host}, and the port under its own key"),
        (text.endswith(".") and is_dns_name(text[:-1]), "ends in a dot; leave it away"),
        (True, "is neither an IP address nor a DNS name"),
    )
    return next(fault for holds, fault in faults if holds)


def label_key_fault(key: str) -> str:
    """Why Kubernetes would refuse the key of a label or taint; "" where it takes it."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix)):
        return "the part before the slash must be a DNS name in lower case"
    if not _LABEL_NAME.fullmatch(name):
        return "the name must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at either end"
    return ""


def label_value_fault(value: str) -> str:
    """Why Kubernetes would refuse the value of a label or taint; "" where it takes it."""
    if value and not _LABEL_NAME.fullmatch(value):
        return "the value must be at most 63 letters, digits, '-', '_' or '.', with a letter or digit at either end"
    return ""


def url_fault(text: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """Why the text is no URL of these schemes with a host; "" where it is one. Never repeats the text: it may hold a password."""
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    if any(char.isspace() or not char.isprintable() for char in text):
        return "holds a space or a control character"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"is no URL: {error}" if "port" in str(error).lower() else "is no URL"
    if parts.scheme not in schemes:
        return f"must begin with {wanted}"
    if not host or host_fault(host):
        return f"must name a host after {parts.scheme}://"
    if port == 0:
        return "has port 0"
    return ""


def quantity(text: str) -> float | None:
    """The value of a Kubernetes quantity (``100m``, ``1Gi``) in its base unit, or None where the text is none."""
    match = _QUANTITY.fullmatch(text)
    if not match or len(text) > 32:
        return None
    unit = match["unit"] or ""
    factor = _FACTORS.get(unit) or _BINARY.get(unit) or 10.0 ** int(unit[1:])
    return float(match["number"]) * factor
