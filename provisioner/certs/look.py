"""Asks the controller and every machine for their certificates. Changes nothing."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner import node_answer
from provisioner.certs import node_script
from provisioner.certs.model import CONTROLLER, Found, Row, State
from provisioner.certs.places import Place, places_on
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.pki import CaName, Lifetimes, Pki
from provisioner.pki.specs import requests_for_controller
from provisioner.pki.store import ca_file, leaf_file, read_leaves
from provisioner.ssh import Connections, parallel
from provisioner.workspace import Workspace

# Seconds for a machine to tell; each server has five.
SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Judge:
    """What certificates are judged by: the CAs, the present, and how long before its end one is due."""

    keys: Pki
    now: dt.datetime
    limits: Lifetimes

    def judge(self, machine: str, place: Place, pem: bytes, *, file: bytes | None = None) -> Row:
        """What is to be said of one certificate. Pure.

        Args:
            machine: where it is.
            place: what is expected there.
            pem: what is there.
            file: of one that is served: what is in the file from which the server has it.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        except ValueError as error:
            return Row(machine, place.name, place.where, State.MISSING, problem=f"no certificate: {error}")
        return Row(
            machine,
            place.name,
            place.where,
            self._state(place, certificate, file),
            subject=str(common[0].value) if common else "",
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
        )

    def _state(self, place: Place, certificate: x509.Certificate, file: bytes | None) -> State:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if place.ca is not None and not _signed_by(certificate, self.keys.cas[place.ca].parsed):
            return State.FOREIGN
        if end <= self.now:
            return State.EXPIRED
        if begin > self.now:
            return State.EARLY
        if file is not None and _der(file) != certificate.public_bytes(Encoding.DER):
            return State.OUTDATED
        window = self.limits.warn_ca if place.name.endswith("-ca") else self.limits.renew_before
        # a kubelet asks for a new one when between 70 and 90 % of the old one's life is over
        if place.ca is None or place.name == "kubelet-client":
            window = (end - begin) / 10
        return State.DUE if end - self.now < window else State.OK


def _der(pem: bytes) -> bytes:
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except ValueError:
        return b""


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def look(cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki, *, now: dt.datetime) -> Found:
    """Every certificate in every place. A machine that does not answer is named in the result.

    Args:
        keys: the PKI as it is stored.
        now: the present, with its time zone.
    """
    judge = Judge(keys, now, Lifetimes.of(cluster))
    rows = _own(workspace, judge)
    silent = []
    for name, result in parallel(cluster.nodes, lambda node: _ask(cluster, node, connections, judge)).items():
        if isinstance(result, ProvisionerError):
            silent.append((name, result.message))
        else:
            rows += result
    return Found(tuple(rows), tuple(silent), now)


def _own(workspace: Workspace, judge: Judge) -> list[Row]:
    """Those that stay on the controller: the CAs, its own, and what is in the kubeconfigs."""
    rows = []
    for ca in CaName:
        place = Place(f"{ca}-ca", str(ca_file(workspace.pki, ca)), ca)
        rows.append(judge.judge(CONTROLLER, place, judge.keys.cas[ca].certificate))
    stored = read_leaves(workspace.pki, None)
    for request in requests_for_controller():
        place = Place(request.name, str(leaf_file(workspace.pki, None)), request.ca)
        if request.name in stored:
            rows.append(judge.judge(CONTROLLER, place, stored[request.name]))
        else:
            rows.append(Row(CONTROLLER, place.name, place.where, State.MISSING, problem="not in the file"))
    for name, path in (("admin", workspace.kubeconfig), ("break-glass", workspace.break_glass)):
        place = Place(name, str(path), CaName.CLUSTER, kubeconfig=True)
        try:
            document = yaml.safe_load(path.read_text())
            pem = base64.b64decode(document["users"][0]["user"]["client-certificate-data"], validate=True)
        except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, binascii.Error) as error:
            problem = getattr(error, "strerror", None) or "no kubeconfig"
            rows.append(Row(CONTROLLER, name, str(path), State.MISSING, problem=problem))
        else:
            rows.append(judge.judge(CONTROLLER, place, pem))
    return rows


@cache
def _script() -> str:
    return Path(node_script.__file__).read_text(encoding="utf-8")


def _ask(cluster: Cluster, node: Node, connections: Connections, judge: Judge) -> list[Row]:
    places = places_on(cluster, node)
    questions = [
        {"path": place.path, "kubeconfig": place.kubeconfig, "address": place.address, "serverName": place.server_name}
        for place in places
    ]
    script = f"{_script()}\nreport(json.loads({json.dumps(questions)!r}))\n".encode()
    answers = node_answer.ask(connections, node, script, key="certificates", seconds=SECONDS)["certificates"]
    found = {place: _pem(answer) for place, answer in zip(places, answers, strict=True)}
    files = {place.path: pem for place, (pem, _) in found.items() if pem and not place.address}
    rows = []
    for place, (pem, problem) in found.items():
        if pem:
            rows.append(judge.judge(node.name, place, pem, file=files.get(place.path) if place.address else None))
        else:
            rows.append(Row(node.name, place.name, place.where, State.MISSING, problem=problem))
    return rows


def _pem(answer: Mapping[str, Any]) -> tuple[bytes, str]:
    """The certificate of one answer, or why there is none."""
    try:
        inside = answer.get("base64") or []
        pem = base64.b64decode(inside[0], validate=True) if inside else str(answer.get("pem", "")).encode()
    except binascii.Error:
        return b"", "not base64"
    return pem, str(answer.get("error") or ("" if pem else "no certificate is in it"))
