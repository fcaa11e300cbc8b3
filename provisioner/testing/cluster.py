"""What a test gets: a kubeconfig, the official client, and the few things that every smoke test does.

The official client is imported when it is first asked for: that takes seconds.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from functools import cached_property
from pathlib import Path
from typing import Any

# What fits in front of a suffix, in a name of at most 63 characters.
_NAME = 40
LABEL = "provisioner.pytest/test"


class ClusterError(Exception):
    """Something of the cluster is not as a test needs it; the text says what was seen."""


class Cluster:
    """A Kubernetes cluster in the hands of tests.

    Args:
        kubeconfig: of an administrator.
        lab: name of the lab whose machines carry it; empty for a cluster that was there already.
    """

    def __init__(self, kubeconfig: Path, lab: str = "") -> None:
        self.kubeconfig = kubeconfig
        self.lab = lab

    def __repr__(self) -> str:
        return f"Cluster(kubeconfig={str(self.kubeconfig)!r}, lab={self.lab!r})"

    # --- the official client -------------------------------------------------------------------------------------------

    # typed Any: the library says that it has types, and its methods have none

    @cached_property
    def client(self) -> Any:
        """``kubernetes.client.ApiClient``, for any of the library's API classes: ``BatchV1Api(cluster.client)``."""
        from kubernetes import config  # noqa: PLC0415

        made: Any = config
        return made.new_client_from_config(config_file=str(self.kubeconfig))

    @cached_property
    def core(self) -> Any:
        """``kubernetes.client.CoreV1Api``: namespaces, pods, Services, Secrets…"""
        from kubernetes.client import CoreV1Api  # noqa: PLC0415

        return CoreV1Api(self.client)

    @cached_property
    def apps(self) -> Any:
        """``kubernetes.client.AppsV1Api``: Deployments, DaemonSets, StatefulSets."""
        from kubernetes.client import AppsV1Api  # noqa: PLC0415

        return AppsV1Api(self.client)

    def close(self) -> None:
        """Drop the client's connections."""
        if "client" in self.__dict__:
            self.client.close()

    # --- kubectl -------------------------------------------------------------------------------------------------------

    @cached_property
    def kubectl_binary(self) -> str:
        """The user's own kubectl, else one from the cache of artifacts.

        Raises:
            ClusterError: there is none.
        """
        if found := shutil.which("kubectl"):
            return found
        from provisioner import kubectl  # noqa: PLC0415 - knows the whole program
        from provisioner.errors import ArtifactError  # noqa: PLC0415

        try:
            cached = kubectl.in_cache()
        except ArtifactError as error:
            raise ClusterError(f"kubectl: command not found, and none can be taken from the cache: {error}") from None
        if cached is None:
            raise ClusterError("kubectl: command not found: install one, or use the client (`cluster.core`, `cluster.client`)")
        return str(cached)

    def kubectl(self, *args: str, stdin: str = "", check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run kubectl on this cluster.

        Args:
            args: e.g. ``"rollout", "status", "deployment/web", "--namespace", namespace``.
            stdin: for ``--filename -``.
            check: raise if its exit code is not 0.
            timeout: seconds.

        Raises:
            ClusterError: it failed; says what it printed.
        """
        try:
            done = subprocess.run(
                [self.kubectl_binary, *args],
                input=stdin,
                env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl {' '.join(args)}: not done within {timeout:g} s") from None
        if check and done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(args)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done

    def apply(self, manifest: Path | str, namespace: str) -> None:
        """`kubectl apply --server-side` of a file, a directory of files, or a manifest's text.

        Raises:
            ClusterError: the API refuses something of it.
        """
        where = ("apply", "--server-side", "--namespace", namespace, "--filename")
        if isinstance(manifest, Path):
            self.kubectl(*where, str(manifest))
        else:
            self.kubectl(*where, "-", stdin=manifest)

    # --- namespaces, requests, images ----------------------------------------------------------------------------------

    def new_namespace(self, test: str = "test") -> str:
        """Make a namespace that pods can be put into, and return its name.

        Args:
            test: part of the name, as far as it may be.

        Raises:
            ClusterError: its service account does not come.
        """
        words = re.sub(r"[^a-z0-9]+", "-", test.lower())[:_NAME].strip("-") or "test"
        name = f"{words}-{secrets.token_hex(3)}"
        self.core.create_namespace({"metadata": {"name": name, "labels": {LABEL: "true"}}}, _request_timeout=30)
        # a pod is refused before the controller-manager has made it
        deadline = time.monotonic() + 60
        while not any(one.metadata.name == "default" for one in self._service_accounts(name)):
            if time.monotonic() > deadline:
                raise ClusterError(f"namespace {name} has no service account after 60 s: does the controller-manager work?")
            time.sleep(0.05)
        return name

    def _service_accounts(self, namespace: str) -> Any:
        return self.core.list_namespaced_service_account(namespace, _request_timeout=30).items

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace with all in it, in the background; harmless where it is gone."""
        from kubernetes.client import ApiException  # noqa: PLC0415

        try:
            self.core.delete_namespace(name, _request_timeout=30)
        except ApiException as error:
            if error.status not in {404, 409}:
                raise

    def get(self, service: str, path: str = "/", *, namespace: str, timeout: float = 10) -> str:
        """GET from a Service, through the API server; the answer's text.

        Args:
            service: its name, ``NAME:PORT`` where it has several ports, ``https:NAME:PORT`` where it speaks TLS.
            path: path and query.
            timeout: seconds.

        Raises:
            ClusterError: the answer is an error, or no pod is behind the Service.
        """
        # by kubectl: it knows every way to log in, and the client's own call mends the path and reads the answer as it likes
        url = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/{path.lstrip('/')}"
        return self.kubectl("get", "--raw", url, "--request-timeout", f"{timeout:g}s", timeout=timeout + 30).stdout

    def load_image(self, *archives: Path) -> None:
        """Put images on every machine: `docker save --output FILE IMAGE` writes an archive. Lab machines reach no registry.

        Raises:
            ClusterError: this is no lab's cluster.
            provisioner.errors.ProvisionerError: there is no such file, or a machine does not take it.
        """
        if not self.lab:
            raise ClusterError(
                "images are loaded on lab machines; for the cluster of --cluster-kubeconfig, push them to its registry"
            )
        from provisioner.lab import load_images  # noqa: PLC0415

        load_images(self.lab, archives)
