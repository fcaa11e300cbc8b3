"""What can go wrong between here and a machine's shell, each with its own words and remedy."""

from __future__ import annotations

from enum import StrEnum

from provisioner.errors import ProvisionerError


class Trouble(StrEnum):
    """Kinds of SSH failure, for callers and scripts that must tell them apart."""

    NAME = "name-does-not-resolve"
    REFUSED = "connection-refused"
    NO_ROUTE = "no-route"
    TIMEOUT = "timeout"
    NOT_SSH = "not-ssh"
    LOST = "connection-lost"
    HOST_KEY_UNKNOWN = "host-key-unknown"
    HOST_KEY_CHANGED = "host-key-changed"
    KEY_FILE = "key-file"
    AUTHENTICATION = "authentication"
    SUDO = "sudo"
    PYTHON = "python"
    COMMAND_TIMEOUT = "command-timeout"
    SESSION_REFUSED = "session-refused"


class SshError(ProvisionerError):
    """A machine could not be reached, or would not do what was asked over SSH. The message begins with the machine's name."""

    def __init__(self, trouble: Trouble, message: str, *, hint: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint, details=details)
        self.trouble = trouble
