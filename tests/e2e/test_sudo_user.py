"""The smallest cluster, one machine with every role, reached as a user who is not root."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

Real = Any  # what the fixture makes (tests/e2e/conftest.py); pytest imports no test module by name

USER = """
set -eu
useradd --create-home --shell /bin/bash deploy
echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy
install -d -m 700 -o deploy -g deploy /home/deploy/.ssh
install -m 600 -o deploy -g deploy /root/.ssh/authorized_keys /home/deploy/.ssh/authorized_keys
rm /root/.ssh/authorized_keys
"""


@pytest.mark.e2e
def test_one_machine_through_a_user_with_sudo(bare_lab: Callable[..., contextlib.AbstractContextManager[Real]]) -> None:
    """Built, verified, and found unchanged by a second run, with root's own login shut."""
    with bare_lab("--control-planes", "1", "--workers", "0") as real:
        (node,) = real.cluster.nodes
        real.run(node, USER)
        with real.edited(lambda text: text.replace("user: root", "user: deploy")):
            built = real.cli("apply", "--yes")
            assert built.returncode == 0, built.stderr
            again = real.cli("apply", "--yes")
            assert again.returncode == 0, again.stderr
            assert "nothing to do" in again.stderr
            proved = real.cli("verify", "--level", "full")
            assert proved.returncode == 0, proved.stdout + proved.stderr
