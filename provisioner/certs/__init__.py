"""Every certificate of a cluster, in every place where it lies or is served.

- ``places``: where certificates are expected, from the table of the PKI;
- ``node_script``: runs on a machine and tells what is there; no key leaves it;
- ``look``: the controller and all machines, in parallel;
- ``model``: one certificate in one place, and what is to be said of it;
- ``rotate``: the CAs replaced, pass by pass; ``published``: what the API's objects tell of them; ``workloads``: pods that have
  read the old one.
"""

from provisioner.certs.look import look
from provisioner.certs.model import Found, Row, State

__all__ = ["Found", "Row", "State", "look"]
