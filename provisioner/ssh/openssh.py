"""The same access for OpenSSH's ssh(1): what Ansible and `provisioner ssh` are given."""

from __future__ import annotations

import shlex

from provisioner.config import Cluster, Node
from provisioner.ssh.target import Target, bastion_of, target_of
from provisioner.workspace import Workspace


def openssh_args(cluster: Cluster, workspace: Workspace, node: Node) -> tuple[str, ...]:
    """Options of ssh(1) that reach a node as ``Connections`` does: user, port, key, bastion, this cluster's known_hosts.

    The host keys must be on record already (``Connections`` records them): an unknown one is refused here. The user's
    ~/.ssh/config is left out, as paramiko knows nothing of it. Add ControlMaster options and the host yourself:
    ``("ssh", *openssh_args(...), node.address)``.
    """
    options = _options(target_of(cluster, workspace, node), workspace)
    bastion = bastion_of(cluster, workspace)
    if bastion is None:
        return options
    # ssh expands % in ProxyCommand before the inner ssh expands its own: each % of the inner arguments is doubled once more
    hop = shlex.join(("ssh", *_options(bastion, workspace))).replace("%", "%%")
    return (*options, "-o", f"ProxyCommand={hop} -W '[%h]:%p' -- {shlex.quote(bastion.host)}")


def _options(target: Target, workspace: Workspace) -> tuple[str, ...]:
    known_hosts = _file(workspace.known_hosts)
    settings = [
        f"Port={target.port}",
        f"User={target.user}",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=none",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "CheckHostIP=no",
        "PreferredAuthentications=publickey",
        "ConnectTimeout=10",
        "ServerAliveInterval=10",
        "ServerAliveCountMax=3",
        "LogLevel=ERROR",
    ]
    if target.key is not None:
        settings += ["IdentitiesOnly=yes", f"IdentityFile={_file(target.key)}"]
    return ("-F", "none", *(word for setting in settings for word in ("-o", setting)))


def _file(path: object) -> str:
    """A file name as an ssh option takes it: quoted, for blanks, and with % doubled, which begins a token there."""
    return '"' + str(path).replace("%", "%%") + '"'
