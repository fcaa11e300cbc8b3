"""Bootstrap tokens."""

from __future__ import annotations

import re

from provisioner.pki import new_bootstrap_token


def test_tokens_have_the_format_of_kubernetes_and_never_repeat() -> None:
    tokens = [new_bootstrap_token() for _ in range(500)]
    # The apiserver's own pattern, staging/src/k8s.io/cluster-bootstrap/token/api/types.go
    assert all(re.fullmatch(r"([a-z0-9]{6})\.([a-z0-9]{16})", token.text) for token in tokens)
    assert len({token.secret for token in tokens}) == 500
    assert set("".join(token.secret for token in tokens)) == set("abcdefghijklmnopqrstuvwxyz0123456789")


def test_the_secret_half_is_not_shown() -> None:
    token = new_bootstrap_token()
    assert token.secret not in repr(token)
    assert token.secret not in str(token)
    assert token.id in repr(token)
