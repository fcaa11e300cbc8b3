"""Nothing secret is left, whatever it stands in; what it stands in stays what it was."""

from __future__ import annotations

import base64
import json
import time

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.redact import MARK, redact, redact_document

SECRET = "S3cr3tValue"  # noqa: S105 - none of anybody's
TOKEN = "abcdef.0123456789abcdef"  # noqa: S105 - nor this
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl-_x"
EC_KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
RSA_KEY = (
    rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
)


@pytest.mark.parametrize(
    "text",
    [
        f"token: {SECRET}",
        f"password: {SECRET} with {SECRET}",
        f"- secret: {SECRET}",
        f"secret: |\n  {SECRET}\n\n  {SECRET}\nnext: 1",
        f"  client-key-data: {SECRET}\n  other: 1",
        f'  "password": "{SECRET} \\" {SECRET}",',
        f'{{"token": "{SECRET}", "a": 1}}',
        f'{{"auth": {{"password":"{SECRET}","user":"x"}}}}',
        f'"token": ["{SECRET}", "{SECRET}"]',
        f'{{"msg":"it said token=\\"{SECRET}\\" and"}}',
        f"{{password: {SECRET}, user: a}}",
        f"Environment=DB_PASSWORD={SECRET}",
        f'Environment="DB_PASSWORD={SECRET} {SECRET}"',
        f"/usr/bin/x --token={SECRET} --v=2",
        f"/usr/bin/x --client-secret {SECRET} --v=2",
        f'level=info msg="x" token="{SECRET}"',
        f"Authorization: Bearer {SECRET}",
        f"curl -H 'authorization: Basic {SECRET}'",
        f"bearer {SECRET}{SECRET}",
        f"http_proxy=http://user:{SECRET}@proxy:3128/",
        f"https://{SECRET}@host/path",
        f"apiKey: {SECRET}",
        f"aws_secret_access_key = {SECRET}",
        f"auth_pass={SECRET}",
    ],
)
def test_the_value_goes_wherever_it_stands(text: str) -> None:
    clean = redact(text)
    assert SECRET not in clean
    assert MARK in clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "automountServiceAccountToken: false",
        "secret:\n  secretName: foo\n  defaultMode: 420",
        '"secret": {"secretName": "foo"}',
        "authorization:\n  mode: Webhook",
        "--service-account-key-file=/etc/kubernetes/pki/sa.pub",
        "token: null",
        'password: ""',
        "sha256:9d1f0c8e5b7a6d4c3b2a19080706050403020100ffeeddccbbaa998877665544",
        "/var/lib/kubelet/pods/9d1f0c8e-5b7a-6d4c-3b2a-190807060504/volumes/kubernetes.io~projected/kube-api-access-abcde",
        "https://10.0.0.1:6443/api/v1/nodes?watch=true",
        "chain service-NWBZK7IH-kube-system/kube-dns/tcp/dns-tcp {",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("key", [EC_KEY, RSA_KEY])
def test_private_keys(key: str) -> None:
    lines = [line for line in key.splitlines() if not line.startswith("-")]
    logged = "".join(f"Nov 25 02:22:53 cp-1 x[1]: {line}\n" for line in key.splitlines())
    for text in (
        f"before\n{key}after",
        json.dumps({"key": key, "after": 1}),
        yaml.safe_dump({"any": key}),
        f"data: {base64.b64encode(key.encode()).decode()}",
        key[:-40],
        key[60:],
        logged,
    ):
        clean = redact(text)
        assert not [line for line in lines if len(line) > 30 and line in clean], clean
        assert "PRIVATE KEY" not in clean
    assert redact(f"before\n{key}after").startswith("before\n")
    assert redact(f"before\n{key}after").endswith("after")
    assert json.loads(redact(json.dumps({"x": key[:-40], "after": 1})))["after"] == 1


def test_tokens_and_keys() -> None:
    assert redact(f'"{TOKEN}".') == f'"abcdef.{MARK}".'
    assert JWT not in redact(f"x {JWT}, y")
    secretbox = base64.b64encode(bytes(range(32))).decode()
    assert secretbox[:-1] not in redact(f"- name: key1\n  x: {secretbox}\n")
    assert redact(f"is {secretbox}") == f"is {MARK}"


def test_documents() -> None:
    document = {
        "kind": "Config",
        "users": [
            {
                "name": "a",
                "user": {"token": SECRET, "client-key-data": SECRET, "exec": {"args": [f"--token={SECRET}", "--password", SECRET]}},
            }
        ],
        "env": [{"name": "DB_PASSWORD", "value": SECRET}],
        "secret": {"secretName": "kept", "password": [SECRET]},
        "automountServiceAccountToken": True,
        "count": 3,
    }
    clean = redact_document(document)
    assert SECRET not in json.dumps(clean)
    assert isinstance(clean, dict)
    assert (clean["secret"]["secretName"], clean["automountServiceAccountToken"], clean["count"]) == ("kept", True, 3)


_VALUE = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", min_size=12, max_size=24)
_NAMES = st.sampled_from(["token", "password", "clientSecret", "client-key-data", "DB_PASSWORD", "api_key", "bearer-token"])
_REST = st.text("abcdefgh ,.:/-", max_size=12)
_LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20))


@settings(deadline=None)
@given(_NAMES, _VALUE, _REST, _REST)
def test_a_secret_never_gets_through(name: str, value: str, before: str, after: str) -> None:
    """A value of random letters under a secret's name, in every form a file or a log has it in."""
    for text in (
        f"{before}\n{name}: {value}\n{after}",
        f"{before} {name}={value} {after}",
        f"{before} --{name}={value} {after}",
        f'{before} {name}="{value}" {after}',
        json.dumps({"a": before, name: value, "b": after}),
        json.dumps({"a": [{name: value}], "b": after}, indent=2),
        json.dumps({"message": json.dumps({name: value})}),
        yaml.safe_dump({"a": {name: value}, "b": [after]}),
    ):
        assert value not in redact(text), text


@settings(deadline=None)
@given(st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)))
def test_json_stays_json(document: object) -> None:
    for text in (json.dumps(document), json.dumps(document, indent=2), json.dumps({"token": document, "x": 1}, indent=2)):
        json.loads(redact(json.dumps(redact_document(json.loads(text)), indent=2)))


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece", ["a", "a.", "aaaaaaaaa ", "-----BEGIN PRIVATE KEY-----", "k", "token=", "://", "eyJ", '"', "- ", "|\n "]
)
def test_no_text_is_endless_work(piece: str) -> None:
    """100 kB of anything take well under the minutes that a pattern with backtracking would need."""
    begin = time.monotonic()
    redact(piece * (100_000 // len(piece)))
    assert time.monotonic() - begin < 20
