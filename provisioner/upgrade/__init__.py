"""From one Kubernetes version to another: every machine, in an order that the version skew policy allows.

skew        what may run beside what, and over which versions the way leads
stages      which part of the plan comes when, and which machines go together
course      the look at what runs: the whole of what an upgrade will do
run         doing it, and back to the old version where a machine fails
gates       what must hold before the next part
workloads, deprecated, pin   the gate; what a newer API no longer has; the version in cluster.yaml
"""

from provisioner.upgrade.course import Course, chart
from provisioner.upgrade.run import Patience, carry_out

__all__ = ["Course", "Patience", "carry_out", "chart"]
