"""The one tree of errors a user may see: what went wrong, how to cure it, and the exit code of the process."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of the command line, documented in the README; scripts rely on them."""

    OK = 0
    FAILURE = 1
    PLAN_HAS_CHANGES = 2
    BAD_INPUT = 3
    PREFLIGHT_UNFIT = 4
    VERIFY_FAILED = 5
    INTERRUPTED = 130


class ProvisionerError(Exception):
    """A failure with a cause and a remedy. The command line prints it without a traceback.

    Args:
        message: what happened, with the host, file or object it happened to.
        hint: what the user can do about it; without one, what helps with every error of its kind (``remedy`` of the class).
        details: further lines (a journal's tail, a list of problems), printed below the message as they are.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE
    remedy: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.remedy
        self.details = details


class BadInput(ProvisionerError):  # noqa: N818 - reads as what it is at the raise
    """The command line, cluster.yaml, or another file of the user's is wrong; nothing was changed."""

    exit_code = ExitCode.BAD_INPUT


class PreflightUnfit(ProvisionerError):  # noqa: N818
    """A machine cannot take the role asked of it; nothing was changed."""

    exit_code = ExitCode.PREFLIGHT_UNFIT


class VerifyFailed(ProvisionerError):  # noqa: N818
    """The cluster runs, but a check of it failed."""

    exit_code = ExitCode.VERIFY_FAILED


class ArtifactError(ProvisionerError):
    """An artifact could not be had from any source, or its bytes are not the locked ones."""

    remedy = (
        "`provisioner artifacts list` shows what is missing; `artifacts.sources` and `artifacts.mirror` say where it comes from"
    )


class ApplyError(ProvisionerError):
    """A phase of `apply` failed; the message names host, task and reason."""

    remedy = "`provisioner apply` goes on where this run stopped"


class LabError(ProvisionerError):
    """The lab cannot run here, or one of its machines did not come up."""

    remedy = "`provisioner lab status` shows what runs; `provisioner lab down`, then `lab up`, makes it anew"


class WaitTimeout(ProvisionerError):  # noqa: N818
    """A deadline passed; the message carries the last observed state."""

    remedy = "`provisioner status` says what is wrong now; the same command again goes on"


STOPPED = "stopped by Ctrl-C"


class Interrupted(ProvisionerError):  # noqa: N818
    """Ctrl-C: stopped cleanly; the message says how to go on."""

    exit_code = ExitCode.INTERRUPTED
