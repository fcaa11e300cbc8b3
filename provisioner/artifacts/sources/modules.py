"""The source ``modules``: files built on the controller from Go modules, where nothing but a module proxy is in reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from provisioner.artifacts.cache import CachedFile, digest
from provisioner.artifacts.download import Downloader
from provisioner.artifacts.gobuild import Job, build
from provisioner.artifacts.lock import Arch, Lock
from provisioner.artifacts.recipes import RECIPES
from provisioner.artifacts.sources import Context, Outcome, Refusal, in_cache, waiting
from provisioner.artifacts.toolchain import find_go
from provisioner.artifacts.wants import Want
from provisioner.errors import ArtifactError


def job_for(lock: Lock, component: str, version: str, arch: Arch) -> Job:
    """What building a component means."""
    release = lock.release(component, version)
    return Job(
        component=component,
        recipe=RECIPES[component],
        version=version,
        module_version=release.built_from or version,
        arch=arch,
        image=(lock.component(component).image or "").format(version=version),
    )


class Modules:
    """Builds what is asked for, one component after the other (a build uses every core by itself)."""

    name = "modules"

    def __init__(self, context: Context, downloader: Downloader) -> None:
        self._context = context
        self._downloader = downloader

    def cached(self, want: Want, *, full: bool = False) -> CachedFile | None:
        """The file, if it was built before."""
        expected = self._sum(want)
        return in_cache(self._context, self.name, want, expected, full=full) if expected else None

    def fetch(self, wants: Sequence[Want]) -> Outcome:
        """Build the files; a component that cannot be built is refused with the reason."""
        outcome = Outcome()
        for (component, version, arch), group in groupby(sorted(wants), lambda want: (want.component, want.version, want.arch)):
            batch = list(group)
            if component not in RECIPES:
                why = Refusal("it is never built here, for its modules are served by no module proxy")
                outcome.refused.update(dict.fromkeys(batch, why))
                continue
            for want in batch:
                if self._sum(want) is None:
                    outcome.refused[want] = Refusal(
                        "no sum of a build is known for it",
                        f"{_relock(component, arch)} builds it twice and notes the sum",
                    )
            known = [want for want in batch if want not in outcome.refused]
            if not known:
                continue
            try:
                self._build(job_for(self._context.lock, component, version, arch), known, outcome)
            except ArtifactError as error:
                refusal = Refusal(error.message, error.hint, error.details)
                outcome.refused.update({want: refusal for want in known if want not in outcome.files})
        return outcome

    def _build(self, job: Job, wants: Sequence[Want], outcome: Outcome) -> None:
        cache, progress = self._context.cache, self._context.progress
        with cache.exclusive(f"build {job}", waiting(progress, str(job))):
            for want in wants:
                if found := self.cached(want):
                    outcome.files[want] = found
            missing = [want for want in wants if want not in outcome.files]
            if not missing:
                return
            go = find_go(self._context.lock.go, cache, self._downloader, progress)
            started = time.monotonic()
            progress.start(str(job), f"{job}: building from Go modules", None)
            try:
                with cache.temporary() as work:
                    built = build(job, [want.name for want in missing], go, work)
                    for want in missing:
                        actual = digest(built[want.name])
                        if actual == self._sum(want):
                            cache.add(built[want.name])
                            found = self.cached(want)
                            if found:
                                outcome.files[want] = found
                        else:
                            outcome.refused[want] = _other_bytes(job, want, actual, self._sum(want) or "")
            finally:
                progress.finish(str(job))
            progress.note(f"{job}: built in {time.monotonic() - started:.0f} s")

    def _sum(self, want: Want) -> str | None:
        """Hex sha256 of the file as a build makes it; None where nobody knows it."""
        sums = self._context.lock.release(want.component, want.version).modules.get(want.name, {})
        found = sums.get(want.arch)
        return found.removeprefix("sha256:") if found else None


def _relock(what: str, arch: Arch) -> str:
    return f"`provisioner artifacts lock --source modules --arch {arch} {what}`"


def _other_bytes(job: Job, want: Want, actual: str, expected: str) -> Refusal:
    reason = f"the build made sha256 {actual}, and the lock has {expected}"
    relock = f"{_relock(f'--force {job.component}', job.arch)} builds it twice and notes the sum"
    if job.recipe.needs_c:
        return Refusal(
            f"{reason}: the C compiler or library here is not the one of the lock",
            f"let the source `release` or `mirror` bring {want.name}; or {relock}",
        )
    return Refusal(reason, f"a changed module or compiler: look into it first; then {relock}")
