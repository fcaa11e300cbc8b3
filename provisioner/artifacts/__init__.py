"""Artifacts: every binary and image a cluster needs, by locked sum, from three interchangeable sources, in one cache.

lock.py        versions.yml as frozen values
wants.py       which files machines with which roles need
ensure.py      the wanted files in the cache, from the first source that has them
cache.py       files by sha256, safe for several runs at once
sources/       release and mirror (official.py), modules (modules.py)
download.py archive.py registry.py        what release and mirror stand on
recipes.py gobuild.py toolchain.py oci.py gomod/    what modules stands on
relock.py      `artifacts lock`: fetch or compute what the lock does not know
"""

from provisioner.artifacts.cache import Cache, CachedFile
from provisioner.artifacts.ensure import ensure
from provisioner.artifacts.lock import Arch, Lock, load_lock
from provisioner.artifacts.progress import Progress, Silent
from provisioner.artifacts.wants import Want, everything, wanted_for

__all__ = ["Arch", "Cache", "CachedFile", "Lock", "Progress", "Silent", "Want", "ensure", "everything", "load_lock", "wanted_for"]
