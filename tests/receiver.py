"""A real HTTP(S) server on loopback that writes down what it is sent, and a certificate for it. Knows no signature."""

import ssl
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

# Self-signed, for hooks.example and 127.0.0.1, until 2126. It guards nothing.
_PEM = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg5hrlMbX/OR6cPgkg
z+M1FT+k92V3IWv0FnDamMPaRr2hRANCAATYzdCwTImud2U/LVfFJ1gQ5WNsaDB8
eYP1+VzsU1bzT1Dwgmy2iYf0DydNPf2rRWDolhVsTqycxujWU+lF53IV
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBrzCCAVWgAwIBAgIUSMJlF9/fX9XfeDJHgazqw8xr8dcwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRTW9kZWx3cmlnaHQgdGVzdHMwIBcNMjYxMTIyMjE1NDU5WhgP
MjEyNjEwMjkyMTU0NTlaMBwxGjAYBgNVBAMMEU1vZGVsd3JpZ2h0IHRlc3RzMFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2M3QsEyJrndlPy1XxSdYEOVjbGgwfHmD
9flc7FNW809Q8IJstomH9A8nTT39q0Vg6JYVbE6snMbo1lPpRedyFaNzMHEwHQYD
VR0OBBYEFAQTAEqXKP9H1qs88I39KUPM9yoQMB8GA1UdIwQYMBaAFAQTAEqXKP9H
1qs88I39KUPM9yoQMA8GA1UdEwEB/wQFMAMBAf8wHgYDVR0RBBcwFYINaG9va3Mu
ZXhhbXBsZYcEfwAAATAKBggqhkjOPQQDAgNIADBFAiEAsnks/YjsXB12oepids17
K3QptzLZkuMa8zUFp09kGqMCIGcScNxuueSJZmUScCvJvMCdvEcQqVIwNWSioQX0
Iwfv
-----END CERTIFICATE-----
"""


def certificate(folder: Path) -> Path:
    """Key and certificate in one file; it is its own authority."""
    path = folder / "receiver.pem"
    path.write_text(_PEM)
    return path


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers 200, or what `statuses[path]` still holds; `/hang` answers when `release` is set."""

    def __init__(self, address: str, pem: Path | None) -> None:
        self.received: list[Received] = []
        self.statuses: defaultdict[str, deque[int]] = defaultdict(deque)
        self.headers: dict[str, str] = {}
        self.server_names: list[str | None] = []
        self.release = Event()
        self._server = ThreadingHTTPServer((address, 0), _handler(self))
        self.port = self._server.server_port
        self.url = f"{'https' if pem else 'http'}://{address}:{self.port}"
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            context.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up on us

    def at(self, path: str) -> list[Received]:
        return [r for r in self.received if r.path == path]

    @contextmanager
    def running(self) -> Iterator["Receiver"]:
        thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(Received(self.path, dict(self.headers.items()), body))
            if self.path == "/hang":
                receiver.release.wait()
            statuses = receiver.statuses[self.path]
            self.send_response(statuses.popleft() if statuses else 200)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
