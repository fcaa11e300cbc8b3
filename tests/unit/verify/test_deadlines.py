"""Deadlines of checks that follow from what Kubernetes itself takes."""

from __future__ import annotations

from provisioner.verify.checks import CHECKS

# --leader-elect-lease-duration's default, as long as nobody may follow a leader that died
LEASE_SECONDS = 15


def test_a_dead_leader_is_outlived() -> None:
    """Right after a power cut nobody leads for that long; `renewed` waits for four fifths of the check's time."""
    (controllers,) = (check for check in CHECKS if check.id == "controllers")
    assert controllers.seconds * 0.8 > LEASE_SECONDS + 2
