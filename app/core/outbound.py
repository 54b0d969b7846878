"""One POST to an address that was checked: the only way in which this service calls somebody else's URL.

The name is resolved once, every address it has is judged, and the connection goes to one of those, so a name that
changes its answer (DNS rebinding) gains nothing. No redirects, no proxies from the environment, five seconds and
64 KiB in all. Knows nothing of webhooks but the words of its errors.
"""

import io
import socket
import ssl
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

from app.core.addresses import Address, Reach, Target
from app.core.errors import InvalidRequest

TOTAL_SECONDS = 5.0
ANSWER_BYTES = 65_536


def post(url: str, body: bytes, headers: dict[str, str], reach: Reach) -> int:
    """Send and return the status. Raises `InvalidRequest` when the URL may not or cannot be called."""
    target = reach.target(url)
    deadline = _Deadline()
    try:
        with _connect(target, _resolve(target, reach, deadline), deadline) as connected:
            connected.settimeout(deadline.left())
            connection = HTTPConnection(target.host, target.port)
            connection.sock = connected
            connection.request("POST", target.path, body, {"Host": target.authority, "Connection": "close", **headers})
            answer = HTTPResponse(_Bounded(connected, deadline), method="POST")  # type: ignore[arg-type]
            with answer:
                answer.begin()
                with suppress(OSError, HTTPException):  # the status says it all; reading on is for the receiver's log
                    answer.read(ANSWER_BYTES)  # a length that is claimed is not allocated
                return answer.status
    except (OSError, HTTPException) as exc:
        raise InvalidRequest(
            f"{target.host} port {target.port} did not answer as a web server should: {type(exc).__name__}: "
            f"{str(exc)[:200]}",
            code="webhook_unreachable",
            param="url",
        ) from exc


class _Deadline:
    def __init__(self) -> None:
        self._end = monotonic() + TOTAL_SECONDS

    def left(self) -> float:
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {TOTAL_SECONDS:g} s")
        return left


class _Bounded(io.RawIOBase):
    """What the receiver says, until the deadline or 64 KiB: one that sends a byte a second is cut off too."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._socket, self._deadline, self._room = connected, deadline, ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._socket.settimeout(self._deadline.left())
        count = self._socket.recv_into(buffer[: self._room]) if self._room else 0
        self._room -= count
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """All that `HTTPResponse` asks of a socket."""
        return io.BufferedReader(self)


def _resolve(target: Target, reach: Reach, deadline: _Deadline) -> list[Address]:
    """Every address of the target, all of them permitted."""
    if target.literal is not None:
        return [target.literal]
    answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except OSError as exc:
            answers.put(exc)

    # In a thread because libc waits for name servers as long as it likes (30 s), and cannot be told otherwise.
    Thread(target=ask, name="lookup", daemon=True).start()
    try:
        found = answers.get(timeout=deadline.left())
    except Empty:
        raise TimeoutError(f"no name server answered for it within {TOTAL_SECONDS:g} s") from None
    if isinstance(found, OSError):
        raise found
    addresses = [ip_address(text.partition("%")[0]) for text in found]
    for address in addresses:
        reach.check(target, address)
    return addresses


def _connect(target: Target, addresses: list[Address], deadline: _Deadline) -> socket.socket:
    """The first address that takes the connection; each may use its share of the time."""
    for waiting, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        connecting = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
        try:
            connecting.settimeout(deadline.left() / waiting)
            connecting.connect((str(address), target.port))
            connecting.settimeout(deadline.left())
            if target.scheme == "http":
                return connecting
            return _tls().wrap_socket(connecting, server_hostname=target.host)
        except OSError:
            connecting.close()
            if waiting == 1:
                raise
    raise OSError("the name has no address")


@lru_cache
def _tls() -> ssl.SSLContext:
    """The system's authorities, or those that SSL_CERT_FILE names; certificate and name are checked."""
    return ssl.create_default_context()
