"""`status`: how a cluster is now, as far as it can be told.

- ``model``: the value, with its JSON;
- ``look``: asks everything at a time, each with a deadline;
- ``machine``: one script on each machine (``node_script``): its proxy's backends, the virtual address;
- ``etcd``, ``kubernetes``: the members, the API;
- ``problems``: what of it is wrong, and what to do.
"""

from provisioner.status.look import CONNECT_SECONDS, look
from provisioner.status.model import Problem, Status
from provisioner.status.problems import problems

__all__ = ["CONNECT_SECONDS", "Problem", "Status", "look", "problems"]
