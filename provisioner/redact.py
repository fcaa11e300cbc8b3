"""Secrets out of text and documents that leave the house. Pure; where in doubt it takes out too much.

What goes: private keys (PEM, also cut off, escaped in JSON, or in base64), bootstrap tokens, JWTs, credentials after `Bearer`
and in URLs, values of fields, flags and variables that are called token, password, secret and the like, keys of
encryption at rest, and any long base64. Each pattern is anchored so that it takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MARK = "[redacted]"

# Names end in one of these: `client-key-data`, `--oidc-client-secret`, `DB_PASSWORD`, but neither `secretName` nor `token-file`.
_WORDS = r"(?:token|password|passwd|passphrase|auth_pass|secret|(?:private|secret|access|api|encryption)[-_]?key|key[-_]?data)"
# No line without one of these has such a name: most lines are done with after four quick looks.
_STEMS = ("token", "pass", "secret", "key")
_NAME = rf"[A-Za-z0-9_./-]*{_WORDS}"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# Values that are none: `automountServiceAccountToken: false`.
_HARMLESS = r"(?:true|false|null|none|~|\"\"|'')"

_BEGIN, _END = r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----", r"-----END [A-Z0-9 ]*PRIVATE KEY-----"
# a block that is cut off ends where its base64 does, so that what follows in a JSON document stays whole
_PEM = re.compile(rf'{_BEGIN}(?:[^"]{{0,16384}}?{_END}|(?:[A-Za-z0-9+/=\s]|\\[nr])*)')
_PEM_END = re.compile(_END)
_BACKWARDS = re.compile(r"(?:[A-Za-z0-9+/=\s]|[nr]\\)*")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{6,4096}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*")
# https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/: the part before the dot is public
_BOOTSTRAP = re.compile(r"(?<![a-z0-9])([a-z0-9]{6})\.[a-z0-9]{16}(?![a-z0-9])")
_HEADER = re.compile(
    r"(authorization\"?[ \t]*[:=][ \t]*\"?(?:(?:bearer|basic)[ \t]+)?)(?!(?:bearer|basic)\s)[^\s\"',;\\{\[]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_URL = re.compile(r"(://)[^\s/\"'<>?#]*@")
_LONG = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{60,}={0,2}")
# 16 and 32 bytes, as the keys of encryption at rest are written
_KEY = re.compile(r"(?<![A-Za-z0-9+/_=-])(?:[A-Za-z0-9+/_-]{43}=|[A-Za-z0-9+/_-]{22}==)(?![A-Za-z0-9+/_=-])")

_START = rf"(?P<indent>[ \t]*(?:- )?)(?P<open>(?P<quote>[\"']?){_NAME}(?P=quote)[ \t]*(?P<sign>[:=])[ \t]*)"
# `key: |`, and a line below it that is deeper
_BLOCK = re.compile(rf"{_START}[|>][+-]?\d?[ \t]*", re.IGNORECASE)
# a line that is nothing but one field: its whole rest is the value, blanks included
_LINE = re.compile(rf"{_START}(?P<value>[^\s].*)", re.IGNORECASE)
# 'NAME=VALUE' and "NAME=VALUE" in quotes: to the closing one
_QUOTED = re.compile(rf"(?P<mark>[\"'])(?P<flag>{_NAME}[=:][ \t]*)[^\"'\\]+(?P=mark)", re.IGNORECASE)
_FIELD = re.compile(
    rf"(?P<open>{_WORDS}(?P<quote>\\?[\"']?)[ \t]*[:=][ \t]*)"
    r"(?P<value>\\\"(?:[^\"\\]|\\[^\"])*(?:\\\")?|\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|\[[^\]]*\]|[^\s,;\"'{}\[\]\\]+)",
    re.IGNORECASE,
)
_FLAG = re.compile(rf"((?<!\S)--?{_NAME}[ \t]+)(?!-)[^\s\"',;:\\]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without secrets; JSON and YAML stay what they are. Doing it again changes nothing."""
    text = _without_tails(_PEM.sub(MARK, text))
    text = _URL.sub(rf"\1{MARK}@", text)
    text = _JWT.sub(MARK, text)
    text = _HEADER.sub(rf"\1{MARK}", text)
    text = _BEARER.sub(rf"\1{MARK}", text)
    text = _without_fields(text)
    text = _BOOTSTRAP.sub(rf"\1.{MARK}", text)
    text = _KEY.sub(MARK, text)
    return _LONG.sub(lambda found: MARK if _is_mixed(found[0]) else found[0], text)


def redact_document(value: object) -> object:
    """The same for what JSON or YAML was read into: every text in it, and what stands under a secret's name."""
    if isinstance(value, Mapping):
        # a variable of a container's environment: {name: DB_PASSWORD, value: ...}
        secret = is_secret_name(str(value.get("name", "")))
        return {
            redact(key) if isinstance(key, str) else key: (
                _hidden(item)
                if isinstance(key, str) and (is_secret_name(key) or (secret and key == "value"))
                else redact_document(item)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        # the words of a command line: ["--token", ...]
        pairs = zip((None, *value), value, strict=False)
        return [MARK if _is_flag(flag) and isinstance(item, str) else redact_document(item) for flag, item in pairs]
    return redact(value) if isinstance(value, str) else value


def _is_flag(word: object) -> bool:
    return isinstance(word, str) and word.startswith("-") and is_secret_name(word)


def is_secret_name(name: str) -> bool:
    """Whether what is called so is taken for a secret."""
    return _SECRET_NAME.fullmatch(name) is not None


def _hidden(value: object) -> object:
    """What stands under a secret's name. A mapping there says where the secret is: it is looked at like any other."""
    if value is None or isinstance(value, bool) or value == "":
        return value
    return redact_document(value) if isinstance(value, Mapping) else MARK


def _without_tails(text: str) -> str:
    """Without the ends of private keys whose beginning was cut off."""
    parts, done = [], 0
    for found in _PEM_END.finditer(text):
        before = text[max(done, found.start() - 16384) : found.start()]
        tail = _BACKWARDS.match(before[::-1])
        parts += [text[done : found.start() - (tail.end() if tail else 0)], MARK]
        done = found.end()
    return "".join((*parts, text[done:]))


def _without_fields(text: str) -> str:
    """Without the values of what is called token, password, ..., line by line."""
    lines: list[str] = []
    deeper: int | None = None
    for line in text.split("\n"):
        if deeper is not None and (not line.strip() or len(line) - len(line.lstrip()) > deeper):
            continue  # inside a block whose key has said it all
        deeper = None
        low = line.lower()
        if not any(stem in low for stem in _STEMS):
            lines.append(line)
        elif block := _BLOCK.fullmatch(line):
            deeper = len(line) - len(line.lstrip())
            lines.append(f"{block['indent']}{block['open']}'{MARK}'")
        else:
            whole = _LINE.fullmatch(line)
            lines.append((_whole(whole) if whole else "") or _parts(line))
    return "\n".join(lines)


def _whole(found: re.Match[str]) -> str:
    """The line without its value; empty where there is more on it than one field."""
    value = found["value"].rstrip()
    comma = "," if value.endswith(",") and (found["quote"] or value[0] in "\"'") else ""
    value = value.removesuffix(",") if comma else value
    if re.fullmatch(_HARMLESS, value, re.IGNORECASE):
        return found[0]
    if value[0] == '"' and re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
        return f'{found["indent"]}{found["open"]}"{MARK}"{comma}'
    if found["sign"] == ":" and not found["quote"] and value[0] not in "\"'{[|>&*#":
        return f"{found['indent']}{found['open']}'{MARK}'"
    return ""


def _parts(line: str) -> str:
    line = _QUOTED.sub(rf"\g<mark>\g<flag>{MARK}\g<mark>", line)
    return _FLAG.sub(rf"\g<1>{MARK}", _FIELD.sub(_field, line))


def _field(found: re.Match[str]) -> str:
    value = found["value"]
    if re.fullmatch(_HARMLESS, value, re.IGNORECASE):
        return found[0]
    for quote in ('\\"', '"', "'"):
        if value.startswith(quote):
            return f"{found['open']}{quote}{MARK}{quote if len(value) > len(quote) and value.endswith(quote) else ''}"
    # in JSON a mark needs quotes, however bare the value was
    return found["open"] + (f'"{MARK}"' if found["quote"] == '"' else MARK)


def _is_mixed(run: str) -> bool:
    """Base64 of random bytes has all of these; digests in hex and paths do not."""
    return all(re.search(kind, run) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
