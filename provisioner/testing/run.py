"""Between pytest and the cluster: which one, whose, and what is said about it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator

import pytest

from provisioner.testing.cluster import Cluster
from provisioner.testing.process import Process
from provisioner.testing.settings import of_config
from provisioner.testing.site import Site, Unavailable

NOT_ROOT = (
    "the fixture `cluster` builds machines on this host, which takes root on Linux. Run pytest as root "
    "(`sudo .venv/bin/python -m pytest`); or build the cluster first, `sudo provisioner up --kubeconfig FILE`, and run "
    "`pytest --cluster-kubeconfig FILE` as yourself"
)


def owner(config: pytest.Config) -> Process:
    """The run's first process: this one, or the one that pytest-xdist's workers belong to."""
    given = getattr(config, "workerinput", {}).get("provisioner_owner")
    return Process.from_text(given) if given else Process.current()


@contextlib.contextmanager
def cluster(config: pytest.Config) -> Iterator[Cluster]:
    """The cluster of this run; it outlives the block, for other processes of the run may use it.

    Raises:
        pytest.fail.Exception: there is none; says why.
    """
    settings = of_config(config)
    if settings.kubeconfig is not None:
        found = Cluster(kubeconfig=settings.kubeconfig)
    elif platform.system() != "Linux" or os.geteuid() != 0:
        pytest.fail(NOT_ROOT, pytrace=False)
    else:
        try:
            path = Site(settings.lab).take(settings, owner(config), lambda text: _say(config, text))
        except Unavailable as error:
            pytest.fail(str(error), pytrace=False)
        found = Cluster(kubeconfig=path, lab=settings.lab)
    try:
        yield found
    finally:
        found.close()


def finish(config: pytest.Config) -> bool:
    """Take the run's cluster down, where it has one; False if something of it is left."""
    settings = of_config(config)
    if settings.kubeconfig is not None:
        return True
    try:
        Site(settings.lab).release(owner(config), lambda text: _say(config, text))
    except Unavailable as error:
        _say(config, str(error), red=True)
        return False
    return True


def _say(config: pytest.Config, text: str, **style: bool) -> None:
    """A line on the terminal, past pytest's capture; in a worker of pytest-xdist there is none."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None:
        return
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        reporter.ensure_newline()
        reporter.write_line(text, **style)
