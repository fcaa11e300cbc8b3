"""The pytest plugin: a real Kubernetes cluster for the tests of any project. Installed by ``provisioner[pytest]``.

pytest loads this module in every run of every environment that has this package, so it imports nothing but pytest and what is
loaded by then anyhow; everything else is in :mod:`provisioner.testing`, imported when a test asks for a cluster.

Fixtures: ``cluster`` (session; a :class:`provisioner.testing.Cluster`) and ``namespace`` (function; a fresh namespace's name). A
project with fixtures of these names keeps its own, and finds ours as ``provisioner_cluster`` and ``provisioner_namespace``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from provisioner.testing import Cluster

# Option (pytest-kind has --cluster-name and --keep-cluster), its setting in the configuration file, its value's name, its help.
OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("--cluster-control-planes", "cluster_control_planes", "N", "machines with an apiserver and an etcd member (default: 1)"),
    ("--cluster-workers", "cluster_workers", "N", "machines for pods; 0: the control planes take them (default: 1)"),
    ("--cluster-kubernetes", "cluster_kubernetes", "X.Y.Z", "Kubernetes version (default: that of versions.yml)"),
    ("--cluster-lab", "cluster_lab", "NAME", "name of the lab (default: one made from the root directory)"),
)
# Whether this run has asked for the cluster.
USED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and settings; what they mean together is checked in ``pytest_configure``."""
    group = parser.getgroup("provisioner", "the fixture `cluster`, a Kubernetes cluster (provisioner)")
    for option, setting, value, text in OPTIONS:
        group.addoption(option, dest=f"provisioner_{setting}", metavar=value, help=text)
        parser.addini(setting, f"fixture `cluster`: {text}")
    group.addoption(
        "--cluster-keep",
        dest="provisioner_cluster_keep",
        action="store_true",
        help="leave the cluster at the end; the next run with this option takes it again, in seconds",
    )
    group.addoption(
        "--cluster-kubeconfig",
        dest="provisioner_cluster_kubeconfig",
        metavar="FILE",
        help="take the cluster of this kubeconfig's current context instead of building one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options at once, and not when the first test asks for the cluster."""
    from provisioner.testing.settings import of_config  # noqa: PLC0415 - standard library only

    of_config(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist: its workers share one cluster, which belongs to this process."""
    from provisioner.testing.process import Process  # noqa: PLC0415

    node.workerinput["provisioner_owner"] = Process.current().to_text()


@pytest.fixture(scope="session")
def provisioner_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Kubernetes cluster, built for this run on machines of its own, or the one of ``--cluster-kubeconfig``."""
    from provisioner.testing import run  # noqa: PLC0415

    request.config.stash[USED] = True
    with run.cluster(request.config) as found:
        yield found


@pytest.fixture(scope="session")
def cluster(provisioner_cluster: Cluster) -> Cluster:
    """``provisioner_cluster`` by its short name."""
    return provisioner_cluster


@pytest.fixture
def provisioner_namespace(request: pytest.FixtureRequest, provisioner_cluster: Cluster) -> Iterator[str]:
    """The name of a namespace of the test's own, deleted after it."""
    name = provisioner_cluster.new_namespace(request.node.name)
    yield name
    provisioner_cluster.delete_namespace(name)


@pytest.fixture
def namespace(provisioner_namespace: str) -> str:
    """``provisioner_namespace`` by its short name."""
    return provisioner_namespace


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the cluster was like at that moment."""
    report = yield
    used = getattr(item, "funcargs", {})
    # at teardown the namespace may be gone already
    if report.failed and call.when != "teardown" and "provisioner_cluster" in used:
        from provisioner.testing import evidence  # noqa: PLC0415

        text = evidence.collect(used["provisioner_cluster"], used.get("provisioner_namespace"))
        report.sections.append(("Kubernetes cluster", text))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take the cluster down: in the process that all workers of pytest-xdist belong to, when they are gone."""
    config = session.config
    if hasattr(config, "workerinput") or not (config.stash.get(USED, False) or config.pluginmanager.has_plugin("dsession")):
        return
    from provisioner.testing import run  # noqa: PLC0415

    if not run.finish(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
