"""The cluster's certificates and keys, made on the controller and kept in ``workspace/NAME/pki``.

- ``specs``: the table of certificates: who holds which, what it says, where it lies on a node;
- ``issue``: making one certificate, and judging whether a stored one may be used again; no files, no clock;
- ``store``: the files on the controller: one file per node, replaced atomically, 0600;
- ``rotation``: CAs that are being replaced: the stage, and what follows from it;
- ``state``: :func:`ensure`, which brings the stored PKI in line with cluster.yaml;
- ``bundle``: :func:`bundle_for`, the only way by which key material gets to a node;
- ``tokens``: bootstrap tokens, by which kubelets ask for their client certificates.
"""

from provisioner.pki.bundle import CLUSTER_CA, bundle_for
from provisioner.pki.issue import Ca, Leaf, Lifetimes, PkiError
from provisioner.pki.rotation import Rotation, Stage
from provisioner.pki.specs import CERTIFICATES, MAX_NODE_NAME, CaName, CertSpec
from provisioner.pki.state import Issued, Pki, ServiceAccount, adopt, cluster_id, drop, ensure, read
from provisioner.pki.tokens import BootstrapToken, new_bootstrap_token

__all__ = [
    "CERTIFICATES",
    "CLUSTER_CA",
    "MAX_NODE_NAME",
    "BootstrapToken",
    "Ca",
    "CaName",
    "CertSpec",
    "Issued",
    "Leaf",
    "Lifetimes",
    "Pki",
    "PkiError",
    "Rotation",
    "ServiceAccount",
    "Stage",
    "adopt",
    "bundle_for",
    "cluster_id",
    "drop",
    "ensure",
    "new_bootstrap_token",
    "read",
]
