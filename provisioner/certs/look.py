"""Asks the controller and every machine for their certificates. Changes nothing."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner import node_answer
from provisioner.certs import node_script
from provisioner.certs.model import CONTROLLER, Found, Row, State
from provisioner.certs.places import Place, places_on
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.pki import Ca, CaName, Lifetimes, Pki, Stage
from provisioner.pki.specs import requests_for_controller
from provisioner.pki.store import ca_file, leaf_file, next_ca_file, read_leaves
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

    def authorities(self, machine: str, place: Place, pem: bytes) -> list[Row]:
        """What is to be said of a file with certificates of CAs: of each that shall be in it, and of each other one. Pure."""
        assert place.ca is not None, place  # noqa: S101 - such a file is of one of the CAs
        found = {_der(one): one for one in _CERTIFICATE.findall(pem)}
        rows = []
        for ca in (self.keys.cas[place.ca],) if place.signer else self.keys.authorities(place.ca):
            own = replace(place, name=self.called(place.ca, ca))
            one = found.pop(_der(ca.certificate), None)
            missing = Row(machine, own.name, own.where, State.MISSING, problem="not in the file")
            rows.append(self.judge(machine, own, one) if one else missing)
        other = self.keys.others.get(place.ca)
        for der, one in found.items():
            known = other is not None and der == _der(other.certificate)
            name = self.called(place.ca, other) if other and known else f"{place.name} (unknown)"
            rows.append(replace(self.judge(machine, place, one), name=name, state=State.OLD if known else State.FOREIGN))
        return rows

    def called(self, name: CaName, ca: Ca) -> str:
        """A CA of a rotation that does not sign, by what it is."""
        if ca == self.keys.cas[name]:
            return f"{name}-ca"
        return f"{name}-ca ({'new' if self.keys.rotation and self.keys.rotation.stage is Stage.TRUST else 'old'})"

    def _state(self, place: Place, certificate: x509.Certificate, file: bytes | None) -> State:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if place.ca is not None and not self._is_of(place, certificate):
            other = self.keys.others.get(place.ca)
            return State.OLD if other is not None and other.has_signed(certificate) else State.FOREIGN
        if end <= self.now:
            return State.EXPIRED
        if begin > self.now:
            return State.EARLY
        if file is not None and _der(file) != certificate.public_bytes(Encoding.DER):
            return State.OUTDATED
        window = self.limits.warn_ca if place.is_authority else self.limits.renew_before
        # a kubelet asks for a new one when between 70 and 90 % of the old one's life is over
        if place.ca is None or place.name == "kubelet-client":
            window = (end - begin) / 10
        return State.DUE if end - self.now < window else State.OK

    def _is_of(self, place: Place, certificate: x509.Certificate) -> bool:
        """Whether it is of the CA that signs; a CA's own, of one that is to be believed."""
        assert place.ca is not None, place  # noqa: S101 - by the caller
        known = self.keys.authorities(place.ca) if place.is_authority else (self.keys.cas[place.ca],)
        return any(ca.has_signed(certificate) for ca in known)


_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def _der(pem: bytes) -> bytes:
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except ValueError:
        return b""


def look(cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki, *, now: dt.datetime) -> Found:
    """Every certificate in every place. A machine that does not answer is named in the result.

    Args:
        keys: the PKI as it is stored.
        now: the present, with its time zone.
    """
    judge = Judge(keys, now, Lifetimes.of(cluster))
    rows = _own(cluster, workspace, judge)
    silent = []
    for name, result in parallel(cluster.nodes, lambda node: _ask(cluster, node, connections, judge)).items():
        if isinstance(result, ProvisionerError):
            silent.append((name, result.message))
        else:
            rows += result
    return Found(tuple(rows), tuple(silent), now)


def _own(cluster: Cluster, workspace: Workspace, judge: Judge) -> list[Row]:
    """Those that stay on the controller: the CAs, its own, and what is in the kubeconfigs."""
    rows = []
    replaced = judge.keys.rotation.cas if judge.keys.rotation else ()
    for which in CaName:
        for ca in (known := judge.keys.authorities(which)):
            # the newest is the one that replaces the other
            path = next_ca_file(workspace.pki, which) if which in replaced and ca == known[-1] else ca_file(workspace.pki, which)
            rows.append(judge.judge(CONTROLLER, Place(judge.called(which, ca), str(path), which), ca.certificate))
    stored = read_leaves(workspace.pki, None)
    for request in requests_for_controller(cluster):
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
        if pem and place.is_authority:
            rows += judge.authorities(node.name, place, pem)
        elif pem:
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
