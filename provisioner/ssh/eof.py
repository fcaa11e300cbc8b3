"""End of file on a channel, sent so that it can never come after the channel's close."""

from __future__ import annotations

import paramiko


def send_eof(channel: paramiko.Channel) -> None:
    """``channel.shutdown_write()``, safe against a close at the same moment, by another thread or by the server.

    paramiko makes the message under the channel's lock but sends it after. A close that slips in between goes out first; the server
    then forgets the channel, takes the late end of file for an attack ("ieof packet referred to nonexistent channel") and ends the
    whole connection, with every command and forward on it. Here the lock is kept until the message is sent.

    Raises:
        OSError, EOFError, paramiko.SSHException: the connection is gone.
    """
    with channel.lock:
        message = channel._send_eof()  # type: ignore[attr-defined] # there is no public way
        if message is not None and channel.transport is not None:
            channel.transport._send_user_message(message)  # type: ignore[attr-defined]
