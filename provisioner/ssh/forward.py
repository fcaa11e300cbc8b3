"""A local TCP port whose connections come out at a machine: how the driver reaches the Kubernetes API and etcd."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

import paramiko

from provisioner.errors import ProvisionerError
from provisioner.ssh.eof import send_eof

CHUNK = 1 << 17
# Seconds to wait for a thread whose socket and channel are closed already; it ends at once unless the machine swaps.
JOIN_SECONDS = 10.0


class Forward:
    """Listens on 127.0.0.1:``port``; each connection becomes a channel. Closing it ends every connection and thread.

    Attributes:
        port: the local TCP port.
        error: why the last connection could not be carried, for messages; empty when none failed.
    """

    def __init__(self, open_channel: Callable[[], paramiko.Channel], *, name: str) -> None:
        self._open_channel = open_channel
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._open: set[socket.socket | paramiko.Channel] = set()
        self._threads: set[threading.Thread] = set()
        self.error = ""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"forward {name}", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, end every connection, wait for the threads. Harmless when closed already."""
        with self._lock:
            self._closed = True
            ends = list(self._open)
        # shutdown wakes the thread blocked in accept(), close alone does not
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in ends:
            _abort(end)
        self._acceptor.join(JOIN_SECONDS)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(JOIN_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._carry, client)

    def _start(self, work: Callable[[socket.socket], None], client: socket.socket) -> None:
        def run() -> None:
            try:
                work(client)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"forward {self._name}", daemon=True)
        with self._lock:
            if self._closed:
                client.close()
                return
            self._threads.add(thread)
            self._open.add(client)
        thread.start()

    def _carry(self, client: socket.socket) -> None:
        """One connection from its beginning to its end, both directions."""
        channel: paramiko.Channel | None = None
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = self._open_channel()
            with self._lock:
                self._open.add(channel)
                closed = self._closed
            if not closed:
                self._pump(client, channel)
        except (ProvisionerError, paramiko.SSHException, OSError, EOFError) as error:
            self.error = f"{self._name}: {error}"
        finally:
            with self._lock:
                self._open -= {client, channel} if channel else {client}
            if channel:
                channel.close()
            client.close()

    def _pump(self, client: socket.socket, channel: paramiko.Channel) -> None:
        upward = threading.Thread(target=_copy_up, args=(client, channel), name=f"forward {self._name} up", daemon=True)
        upward.start()
        try:
            _copy_down(channel, client)
        finally:
            upward.join()


def _copy_up(client: socket.socket, channel: paramiko.Channel) -> None:
    """Client to machine. The client's end of file is passed on; the other direction goes on."""
    try:
        while data := client.recv(CHUNK):
            channel.sendall(data)
        send_eof(channel)
    except (OSError, EOFError, paramiko.SSHException):
        # one side is gone without a goodbye: let the other know, and wake the other direction
        _abort(channel)
        _abort(client)


def _copy_down(channel: paramiko.Channel, client: socket.socket) -> None:
    """Machine to client, likewise. A channel that is closed, not just at its end of file, takes no more of ours either."""
    try:
        while data := channel.recv(CHUNK):
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR if channel.closed else socket.SHUT_WR)
    except (OSError, EOFError, paramiko.SSHException):
        _abort(channel)
        _abort(client)


def _abort(end: socket.socket | paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        if isinstance(end, socket.socket):
            end.shutdown(socket.SHUT_RDWR)
        else:
            end.close()
