"""Machines that Vagrant made: what Vagrant knows of them, what they say themselves, and the cluster that becomes of both.

tool      runs `vagrant`, and reads what it prints
guests    asks the machines: their addresses, and whether they are emulated
plan      names, roles, addresses: pure
"""

from provisioner.vagrant.plan import Made, Plan, plan
from provisioner.vagrant.tool import Access

__all__ = ["Access", "Made", "Plan", "plan"]
