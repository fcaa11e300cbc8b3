"""Certificates that are valid for minutes: a cluster lives through their renewal under load; past their end `apply` recovers it.

Most of it is waiting. The full form, three control planes and a worker, is `make drill-certs`, a quarter of an hour; the short one,
one and one, takes seven minutes that `make test` spends beside other tests: there the kubelets' own renewal is not waited
for. ``EXPIRY_OUT`` names a file for the figures, ``EXPIRY_MINUTES`` another validity.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.errors import ProvisionerError
from provisioner.load import load
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import write_atomic
from tests.e2e.drills import figures
from tests.e2e.drills.kit import Kit, now

pytestmark = pytest.mark.e2e

Real = Any  # tests/e2e/conftest.py's

FULL = os.environ.get("EXPIRY") == "full"
MINUTES = int(os.environ.get("EXPIRY_MINUTES", "10" if FULL else "4"))
VALIDITY = f"{MINUTES}m"
# in the short form the window begins a minute after the certificates were made
SHORT = f"certificates: {{validity: {VALIDITY}, renewBefore: {MINUTES // 2 if FULL else MINUTES - 1}m}}\n"
SHAPE = ("--control-planes", "3" if FULL else "1", "--workers", "1")
# What nothing but a kubelet renews, in its own time; and what is not renewed.
OTHERS = ("-ca",) if FULL else ("-ca", "kubelet-client")
PATIENCE = 900.0


def certificates(real: Real) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every certificate in every place, whatever is wrong with it."""
    document = json.loads(real.cli("certs", "status", "--within", "0", "--json").stdout)
    return {(row["machine"], row["name"], row["where"]): row for row in document["certificates"]}


def test_through_the_window_under_load_and_back_from_beyond_the_end(
    bare_lab: Callable[..., contextlib.AbstractContextManager[Real]],
) -> None:
    with bare_lab(*SHAPE) as real:
        path = real.workspace.cluster_file
        path.write_text(path.read_text() + SHORT)
        # with the validity: the kit would issue its own certificates for a year
        real = replace(real, cluster=load(path))  # noqa: PLW2901 - it is this one from here on
        built = real.cli("apply", "--yes", "--skip-verify")
        assert built.returncode == 0, built.stderr
        record = {"validity": VALIDITY, **through_the_window(real), **beyond_the_end(real)}
    print(json.dumps(record))
    if out := os.environ.get("EXPIRY_OUT"):
        write_atomic(Path(out), json.dumps(record, indent=1) + "\n", mode=0o644)


def through_the_window(real: Real) -> dict[str, Any]:
    """`apply` renews what is due, and kubelets renew their own, while writers go on."""
    before = certificates(real)
    with Kit.of(real) as kit:
        kit.deploy()
        kit.write("kept")
        with kit.load("worker-1") as load:
            load.wait_for_acknowledgements(20)

            def due() -> None:
                states = {row["state"] for row in certificates(real).values() if row["name"] == "kube-apiserver"}
                if states != {"due"}:
                    raise NotYet(str(states))

            wait_until("the window", due, seconds=PATIENCE, every=5)
            began = now()
            done = real.cli("apply", "--yes", "--skip-verify", "--json")
            assert done.returncode == 0, done.stderr
            seconds = now() - began

            def rotated() -> None:
                after = certificates(real)
                same = [key for key, row in after.items() if row["serial"] == before[key]["serial"] and not key[1].endswith(OTHERS)]
                wrong = [f"{key}: {row['state']}" for key, row in after.items() if row["state"] not in ("ok", "due")]
                if same or wrong:
                    raise NotYet(f"{same} {wrong}")

            wait_until("every certificate is another one", rotated, seconds=PATIENCE, every=5)
            load.wait_for_acknowledgements(20)
            events = load.stop()
        assert not kit.lost(events)
    window = figures.Window(began, events[-1]["at"])
    gap = max(figures.longest_gap(figures.acknowledgements(events, client), window) for client in figures.CLIENTS)
    assert gap < 30, "the bar is 3 s; ten times it fails, for the machine that runs this may be slow"
    return {"renewal_seconds": round(seconds, 1), "longest_time_without_a_write": round(gap, 2)}


def beyond_the_end(real: Real) -> dict[str, Any]:
    """Every machine is off until the last certificate has expired."""
    rows = certificates(real).values()
    machines = [real.machine(node.name) for node in real.cluster.nodes]
    for machine in machines:
        machine.power_off()
    own = [row for row in rows if not row["name"].endswith("-ca") and row["name"] != "kube-apiserver-loopback"]
    last = max(own, key=lambda row: str(row["notAfter"]))
    end = dt.datetime.fromisoformat(last["notAfter"])
    print(
        f"every machine is off until {end:%Y-%m-%d %H:%M:%S} UTC, the end of {last['name']} on {last['machine']} ({last['where']})"
    )
    seconds = (end - dt.datetime.now(dt.UTC)).total_seconds() + 5
    assert seconds < 2 * MINUTES * 60, "a certificate with another validity than cluster.yaml's"
    time.sleep(max(0.0, seconds))
    for machine in machines:
        machine.start()
    for node in real.cluster.nodes:
        wait_until("SSH", lambda node=node: real.run(node, "true"), seconds=PATIENCE, every=1, retry_on=(ProvisionerError,))  # type: ignore[misc]
    expired = [row for row in certificates(real).values() if row["state"] == "expired"]
    assert {row["machine"] for row in expired} >= {node.name for node in real.cluster.nodes}
    began = now()
    done = real.cli("apply", "--yes")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    seconds = now() - began
    assert {row["state"] for row in certificates(real).values()} <= {"ok", "due"}
    with Kit.of(real) as kit:
        assert kit.api.get({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return {"recovery_seconds": round(seconds, 1)}
