"""One SSH connection, made at first use and made again when it is found dead."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from provisioner.patience import stretch
from provisioner.ssh.auth import KeyRing, authenticate
from provisioner.ssh.errors import SshError, Trouble
from provisioner.ssh.known_hosts import HostKey, KnownHosts, name_of
from provisioner.ssh.target import Target

# Seconds. A machine on a LAN answers in milliseconds; an overloaded one, or one over a slow bastion, may need a few seconds.
CONNECT_SECONDS = 10.0
HANDSHAKE_SECONDS = 20.0
AUTHENTICATION_SECONDS = 30.0
CHANNEL_SECONDS = 15.0
KEEPALIVE_SECONDS = 10
# A peer that acknowledges nothing for this long is gone (TCP_USER_TIMEOUT of tcp(7)).
DEAD_AFTER_MILLISECONDS = 30_000
# OpenSSH's MaxSessions is 10 by default; a margin stays for the user's own.
SESSIONS = 8

# Reasons of a refused channel (RFC 4254, 5.1), and one of our own for an address that never answers.
NO_ANSWER = 0
FORBIDDEN = 1
CONNECT_FAILED = 2

# AES-GCM first: the fastest here by far, and authenticated. No CBC, no SHA-1, no MD5.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
HOST_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")


class Link:
    """A lazily made, shared connection to one SSH server. Thread-safe."""

    def __init__(
        self,
        target: Target,
        known_hosts: KnownHosts,
        keys: KeyRing,
        *,
        strict: bool,
        via: Link | None,
        log: str,
        seconds: float | None = None,
    ) -> None:
        self.target = target
        # for each step of connecting, where the caller would rather know soon than for certain
        self._seconds = seconds if seconds is not None else float("inf")
        self._known_hosts = known_hosts
        self._keys = keys
        self._strict = strict
        self._via = via
        self._log = log
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._failure: tuple[float, SshError] | None = None
        self._slots = _Slots(SESSIONS)
        self.sudo_works = False

    def connect(self) -> paramiko.Transport:
        """The live connection; made now if there is none.

        Raises:
            SshError: the server cannot be reached, is not the one on record, or does not let us in.
        """
        asked = time.monotonic()
        with self._lock:
            if self._transport is not None and self._transport.is_active():
                return self._transport
            if self._failure and self._failure[0] >= asked:
                # the attempt that ran while this thread waited has failed: a second one would only wait as long again
                error = self._failure[1]
                raise SshError(error.trouble, error.message, hint=error.hint, details=error.details)
            self._drop()
            try:
                self._transport = self._establish()
            except SshError as error:
                self._failure = (time.monotonic(), error)
                raise
            return self._transport

    def close(self) -> None:
        """Close the connection and wait for its thread."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._transport is not None:
            _close(self._transport)
            self._transport = None

    def forget(self, transport: paramiko.Transport) -> None:
        """Close a connection that was found dead, unless another thread has replaced it already."""
        with self._lock:
            if self._transport is transport:
                self._drop()

    @contextlib.contextmanager
    def session(self, deadline: float) -> Iterator[paramiko.Channel]:
        """A channel for one command, closed at the end. Waits while the server has no room for one more.

        Args:
            deadline: as time.monotonic() counts.

        Raises:
            SshError: no channel could be had.
        """
        channel = self._session(deadline)
        try:
            yield channel
        finally:
            channel.close()
            self._slots.release()

    def _session(self, deadline: float) -> paramiko.Channel:
        while True:
            if not self._slots.acquire(deadline):
                raise SshError(
                    Trouble.SESSION_REFUSED,
                    f"{self.target.who}: no free session: every one the machine allows is busy",
                    hint="raise MaxSessions in the machine's sshd_config",
                )
            try:
                return self._open("session", None)
            except paramiko.ChannelException as error:
                if not self._slots.refused():
                    raise SshError(
                        Trouble.SESSION_REFUSED,
                        f"{self.target.who}: the machine refuses to open a session ({error})",
                        hint="look at MaxSessions and the like in the machine's sshd_config, and at its sshd's log",
                    ) from error
            except BaseException:
                self._slots.release()
                raise

    def open(self, address: tuple[str, int]) -> paramiko.Channel:
        """A TCP connection from the server to an address, as a channel.

        Raises:
            paramiko.ChannelException: the server could not connect there, or forbids it.
            SshError: there is no connection to the server.
        """
        return self._open("direct-tcpip", address)

    def _open(self, kind: str, address: tuple[str, int] | None) -> paramiko.Channel:
        """A new channel; on a connection that turns out dead, once more on a new one."""
        transport = self.connect()
        try:
            return _channel(transport, kind, address)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError):
            self.forget(transport)
        transport = self.connect()
        try:
            return _channel(transport, kind, address)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            self.forget(transport)
            raise lost(self.target, error) from error

    def _establish(self) -> paramiko.Transport:
        target = self.target
        stream = self._dial()
        try:
            transport = paramiko.Transport(stream)
        except BaseException:
            stream.close()
            raise
        try:
            transport.set_log_channel(self._log)
            transport.banner_timeout = transport.handshake_timeout = stretch(min(HANDSHAKE_SECONDS, self._seconds))
            transport.auth_timeout = stretch(min(AUTHENTICATION_SECONDS, self._seconds))
            transport.channel_timeout = stretch(min(CHANNEL_SECONDS, self._seconds))
            known = self._known_hosts.keys_of(target.host, target.port)
            _choose_algorithms(transport, known)
            self._negotiate(transport)
            key = transport.get_remote_server_key()
            self._check_host_key(HostKey(key.get_name(), key.get_base64()), known)
            try:
                with self._keys.offers(target.key) as offers:
                    authenticate(transport, target.user, offers, who=target.who)
            except SshError as error:
                if error.trouble is not Trouble.KEY_FILE:
                    raise
                raise SshError(error.trouble, f"{target.name}: {error.message}", hint=error.hint) from error
            transport.set_keepalive(KEEPALIVE_SECONDS)
        except BaseException:
            _close(transport)
            raise
        return transport

    def _dial(self) -> socket.socket | paramiko.Channel:
        if self._via is not None:
            return _through(self._via, self.target)
        return _tcp(self.target, stretch(min(CONNECT_SECONDS, self._seconds)))

    def _negotiate(self, transport: paramiko.Transport) -> None:
        done = threading.Event()
        transport.start_client(event=done)
        seconds = stretch(min(HANDSHAKE_SECONDS, self._seconds))
        finished = done.wait(seconds + 1)
        if finished and transport.is_active():
            return
        error = transport.get_exception()
        # paramiko wraps what really happened while it waited for the server's first line
        if not finished or isinstance(error, TimeoutError) or isinstance(getattr(error, "__context__", None), TimeoutError):
            raise SshError(
                Trouble.TIMEOUT,
                f"{self.target.who}: something accepts the connection there, but answers nothing within {seconds:g} s",
                hint="see whether sshd on it hangs or the machine is overloaded; check the address and `ssh.port`",
            ) from error
        if isinstance(error, IncompatiblePeer):
            raise SshError(
                Trouble.NOT_SSH,
                f"{self.target.who}: no common algorithm with its SSH server: {error}",
                hint="update the machine's OpenSSH, or let its sshd_config offer current algorithms and host keys",
            ) from error
        if not transport.remote_version.startswith("SSH-"):
            raise SshError(
                Trouble.NOT_SSH,
                f"{self.target.who}: what answers there is no SSH server, or closes at once",
                hint="check the address and `ssh.port`; sshd closes at once where MaxStartups is exceeded or hosts.deny says so",
                details=(str(error),) if error else (),
            ) from error
        raise lost(self.target, error) from error

    def _check_host_key(self, key: HostKey, known: tuple[HostKey, ...]) -> None:
        target = self.target
        if key in known:
            return
        if known:
            name = name_of(target.host, target.port)
            raise SshError(
                Trouble.HOST_KEY_CHANGED,
                f"{target.who}: the machine's host key has changed: it may not be the machine it was, so nothing was sent to it",
                hint="if it was reinstalled or its key renewed, run "
                f"`ssh-keygen -R '{name}' -f '{self._known_hosts.path}'`, then this again",
                details=(
                    *(f"on record: {old.kind} {old.fingerprint}" for old in known),
                    f"now:       {key.kind} {key.fingerprint}",
                ),
            )
        if self._strict:
            raise SshError(
                Trouble.HOST_KEY_UNKNOWN,
                f"{target.who}: its host key is not on record, and `ssh.hostKeys` is strict ({key.kind} {key.fingerprint})",
                hint=f"compare the fingerprint with the machine's, then add its key to {self._known_hosts.path}",
                details=(f"{name_of(target.host, target.port)} {key.kind} {key.blob}",),
            )
        self._known_hosts.record(target.host, target.port, key)


class _Slots:
    """How many sessions a server takes at a time: our own limit, lowered when the server refuses below it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active = 0
        self._changed = threading.Condition()

    def acquire(self, deadline: float) -> bool:
        """Take a slot; false when none came free until the deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._active < self._limit, max(0.0, deadline - time.monotonic())):
                return False
            self._active += 1
            return True

    def release(self) -> None:
        """Give a slot back."""
        with self._changed:
            self._active -= 1
            self._changed.notify()

    def refused(self) -> bool:
        """Give a slot back that the server had no session for; false when no other session is open, so that waiting is vain."""
        with self._changed:
            self._active -= 1
            if self._active == 0:
                self._changed.notify()
                return False
            self._limit = self._active
            return True


def lost(target: Target, error: object) -> SshError:
    """The connection broke."""
    return SshError(
        Trouble.LOST,
        f"{target.who}: the SSH connection broke ({error or 'closed by the machine'})",
        hint="see whether the machine rebooted or its network dropped, then run the command again: it goes on where it stopped",
    )


def _channel(transport: paramiko.Transport, kind: str, address: tuple[str, int] | None) -> paramiko.Channel:
    try:
        return transport.open_channel(kind, address, ("127.0.0.1", 0), timeout=transport.channel_timeout)
    except paramiko.ChannelException:
        raise
    except paramiko.SSHException as error:
        if transport.is_active() and address is not None and "Timeout" in str(error):
            # the server answers, but the address behind it does not: no reason to end everybody's connection
            raise paramiko.ChannelException(NO_ANSWER, "no answer") from error
        # The reason sits in one variable of the transport, where two refusals at the same moment leave one without it.
        if transport.is_active() and "Unable to open channel" in str(error):
            raise paramiko.ChannelException(CONNECT_FAILED, "refused") from error
        raise


def _choose_algorithms(transport: paramiko.Transport, known: tuple[HostKey, ...]) -> None:
    options = transport.get_security_options()
    options.ciphers = CIPHERS
    options.digests = DIGESTS
    # Ask for the kind of key that is on record first: a server has several, and another one would look like a changed key.
    on_record = {key.kind for key in known}
    options.key_types = tuple(sorted(HOST_KEYS, key=lambda kind: ("ssh-rsa" if kind.startswith("rsa-") else kind) not in on_record))


def _close(transport: paramiko.Transport) -> None:
    transport.close()
    transport.sock.close()
    if transport.is_alive():
        transport.join(5)


def _tcp(target: Target, seconds: float) -> socket.socket:
    """A TCP connection to the server, with each failure told apart."""
    try:
        stream = socket.create_connection((target.host, target.port), timeout=seconds)
    except socket.gaierror as error:
        raise SshError(
            Trouble.NAME,
            f"{target.who}: the name does not resolve: {error.strerror}",
            hint="correct `address` in cluster.yaml, or the name service of this machine (/etc/hosts, DNS)",
        ) from error
    except UnicodeError as error:
        raise SshError(Trouble.NAME, f"{target.who}: not a host name", hint="correct `address` in cluster.yaml") from error
    except ConnectionRefusedError as error:
        raise SshError(
            Trouble.REFUSED,
            f"{target.who}: connection refused: no SSH server listens there",
            hint="start sshd on the machine; check the address and `ssh.port`; a firewall may also refuse",
        ) from error
    except TimeoutError as error:
        raise SshError(
            Trouble.TIMEOUT,
            f"{target.who}: no answer within {seconds:g} s",
            hint="see whether the machine is up, the address right, and no firewall drops the SSH port; is a bastion needed?",
        ) from error
    except OSError as error:
        unreachable = error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
        raise SshError(
            Trouble.NO_ROUTE if unreachable else Trouble.LOST,
            f"{target.who}: cannot be reached: {error.strerror or error}",
            hint="see whether the machine is up and in a network this one has a route to; is a bastion needed?",
        ) from error
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere a dead peer is found by the command's own deadline
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MILLISECONDS)
    return stream


def _through(bastion: Link, target: Target) -> paramiko.Channel:
    """A connection from the bastion to the server."""
    try:
        return bastion.open((target.host, target.port))
    except paramiko.ChannelException as error:
        trouble, what, hint = {
            FORBIDDEN: (
                Trouble.SESSION_REFUSED,
                "forbids forwarding to it",
                "set AllowTcpForwarding, and PermitOpen where it is used, in the bastion's sshd_config",
            ),
            NO_ANSWER: (
                Trouble.TIMEOUT,
                f"gets no answer from it within {stretch(CHANNEL_SECONDS):g} s",
                "see whether the machine is up, its `address` right as seen from the bastion, and no firewall is between them",
            ),
        }.get(
            error.code,
            (
                Trouble.REFUSED,
                "cannot connect to it (refused, no route, or the name does not resolve there)",
                "see whether the machine is up, and its `address` and port right as seen from the bastion",
            ),
        )
        raise SshError(trouble, f"{target.who}: the bastion {bastion.target.host} {what}", hint=hint) from error
    except SshError as error:
        raise SshError(
            error.trouble, f"{target.name}: by way of {error.message}", hint=error.hint, details=error.details
        ) from error
