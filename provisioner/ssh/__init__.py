"""Access to the machines over SSH, with paramiko for the driver and the same access written down for OpenSSH.

- ``connections``: ``Connections``, what the rest of the program uses: run a command, forward a port;
- ``link``: one connection: reaching the server, its host key, the bastion, reconnecting;
- ``auth``: private keys and logging in;        ``known_hosts``: the cluster's own known_hosts file;
- ``forward``: a local TCP port that leads to a machine;  ``openssh``: arguments of ssh(1) for Ansible and `provisioner ssh`;
- ``errors``: what can go wrong, each with its remedy.
"""

from provisioner.ssh.connections import Completed, Connections, parallel
from provisioner.ssh.errors import SshError, Trouble
from provisioner.ssh.forward import Forward
from provisioner.ssh.openssh import openssh_args

__all__ = ["Completed", "Connections", "Forward", "SshError", "Trouble", "openssh_args", "parallel"]
