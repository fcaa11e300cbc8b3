"""Bootstrap tokens: what a kubelet without a client certificate shows to ask for one."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field

_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """A token in Kubernetes' format, ``[a-z0-9]{6}.[a-z0-9]{16}``.

    https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/

    The ``id`` is public (it names the Secret ``bootstrap-token-ID``), the ``secret`` is not.
    """

    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The bearer token itself: a secret."""
        return f"{self.id}.{self.secret}"


def new_bootstrap_token() -> BootstrapToken:
    """A fresh token: about 31 bits of name and 82 bits of secret, from the system's random source."""
    return BootstrapToken(id=_random(6), secret=_random(16))


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
