"""Calls to other people's URLs over real sockets: what is refused, what is bounded, what is checked."""

import re
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest

from app.core import outbound
from app.core.addresses import Reach
from app.core.errors import InvalidRequest
from tests.receiver import Receiver, certificate

# {p} is the port of the listener, which the operator has listed, but for another network. Every name leads to the
# listener: the worst that a name server may say.
HOSTILE = """
http://127.0.0.1:{p}/ https://127.0.0.1:{p}/ http://127.1:{p}/ http://127.0.1:{p}/ http://2130706433:{p}/
http://0x7f000001:{p}/ http://0x7f.1:{p}/ http://0x7f.0.0.1:{p}/ http://0X7F.0x0.0x0.0x1:{p}/ http://017700000001:{p}/
http://0177.0.0.1:{p}/ http://0177.1:{p}/ http://00000177.0.0.01:{p}/ http://127.0.0.01:{p}/ http://127.0.0.0x1:{p}/
http://127.000.000.001:{p}/ http://0:{p}/ http://0.0.0.0:{p}/ http://127.255.255.254:{p}/ http://4294967295:{p}/
http://127.0.0.1.:{p}/ http://localhost:{p}/ http://LOCALHOST:{p}/ http://localhost.:{p}/
http://localhost.localdomain:{p}/ http://[::1]:{p}/ http://[0:0:0:0:0:0:0:1]:{p}/ http://[::]:{p}/
http://[::ffff:127.0.0.1]:{p}/ http://[::ffff:7f00:1]:{p}/ http://[::127.0.0.1]:{p}/ http://[64:ff9b::7f00:1]:{p}/
http://[64:ff9b::127.0.0.1]:{p}/ http://[2002:7f00:1::]:{p}/ http://[2001:0:7f00:1::]:{p}/ http://[::1%25lo]:{p}/
http://[::1%lo]:{p}/ http://[fe80::1]:{p}/ http://[127.0.0.1]:{p}/ http://[v1.127.0.0.1]:{p}/
http://user@127.0.0.1:{p}/ http://user:password@localhost:{p}/ http://8.8.8.8@127.0.0.1:{p}/
http://203.0.113.7:{p}@127.0.0.1:{p}/ http://203.0.113.7:{p}#@127.0.0.1:{p}/ http://127.0.0.1:{p}#@203.0.113.7/
http://203.0.113.7%40127.0.0.1:{p}/ http://127.0.0.1:{p}\\@203.0.113.7:{p}/ http:\\\\127.0.0.1:{p}/
http:/127.0.0.1:{p}/ http:127.0.0.1:{p}/ //127.0.0.1:{p}/ http:///127.0.0.1:{p}/ http://%31%32%37.0.0.1:{p}/
http://127%2e0%2e0%2e1:{p}/ http://１２７.0.0.1:{p}/ http://①②⑦.⓪.⓪.①:{p}/ http://127。0。0。1:{p}/ http://ⓛocalhost:{p}/
http://localhoſt:{p}/ http://lo\u00adcalhost:{p}/ http://127.0.0.1:{p}\t/ http://\u2028127.0.0.1:{p}/
http://xn--localhost-.example:{p}/ http://public.example:{p}/ https://public.example:{p}/
http://127.0.0.1.nip.example:{p}/ http://a.b.c.example:{p}/?next=http://203.0.113.7
http://169.254.169.254:{p}/latest/meta-data/ http://metadata.google.internal:{p}/ https://169.254.169.254/
https://[fd00:ec2::254]/ file:///etc/passwd gopher://127.0.0.1:{p}/ ftp://127.0.0.1:{p}/ ws://127.0.0.1:{p}/
data:,127.0.0.1 unix:/run/x.sock http://:{p}/ http://-:{p}/ http://.:{p}/ http://127.0.0.1:+{p}/
http://127.0.0.1:{p}:{p}/
"""


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """The same port on all of IPv4 and, where there is any, on IPv6's loopback."""
    with socket.create_server(("0.0.0.0", 0)) as four:  # noqa: S104  (whatever address a trick leads to)
        found = [four]
        with suppress(OSError):  # no IPv6 here
            found.append(socket.create_server(("::1", port_of(four)), family=socket.AF_INET6))
        yield found
        for listener in found[1:]:
            listener.close()


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def knocked(listeners: list[socket.socket]) -> bool:
    return bool(select.select(listeners, [], [], 0)[0])


def answer_with(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[Any]:
    """Name servers that give these answers, the last one for ever. Returns the questions."""
    asked: list[Any] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def send(url: str, allow: str = "") -> int:
    return outbound.post(url, b"{}", {"content-type": "application/json"}, Reach(allow))


def refusal(url: str, allow: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        send(url, allow)
    return caught.value


def test_hostile_urls_reach_no_listener(listeners: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    port = port_of(listeners[0])
    answer_with(monkeypatch, ["127.0.0.1", "::1"])
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.3)
    forms = re.split("[ \n]+", HOSTILE.strip())  # not every white space: some forms hold a tab or worse
    assert len(set(forms)) >= 60
    for form in forms:
        url = form.format(p=port)
        assert refusal(url, f"203.0.113.0/24:{port}").code == "invalid_webhook_url", url
        assert not knocked(listeners), url
    # The listener does hear what is permitted.
    assert refusal(f"http://public.example:{port}/", f"127.0.0.0/8:{port},::1/128:{port}").code == "webhook_unreachable"
    assert knocked(listeners)


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "10.0.0.1"],
        ["2606:4700::1111", "::ffff:169.254.169.254"],
        ["fe80::1%eth0"],
        ["64:ff9b::7f00:1"],
        ["168.63.129.16"],
    ],
)
def test_a_name_with_one_private_address_is_not_called_at_all(
    answer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, answer)
    monkeypatch.setattr(outbound, "_connect", lambda *_: pytest.fail("it went to connect"))
    assert "is not a public address" in refusal("https://public.example/").message


def test_a_name_that_changes_its_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.2", 0)) as listed:
        port = port_of(listed)
        with socket.create_server(("127.0.0.1", port)) as private:
            refusal(f"http://rebind.example:{port}/", f"127.0.0.2/32:{port}")
            assert knocked([listed])
            assert not knocked([private])
    assert asked == ["rebind.example"]


def test_redirects_are_answers_not_orders(listeners: list[socket.socket]) -> None:
    with Receiver("127.0.0.2", None).running() as receiver:
        receiver.statuses["/"].extend((301, 302, 307, 308))
        receiver.headers["location"] = f"http://127.0.0.1:{port_of(listeners[0])}/"
        statuses = [send(receiver.url, f"127.0.0.0/8:{receiver.port}") for _ in range(4)]
    assert statuses == [301, 302, 307, 308]
    assert not knocked(listeners)


def test_proxies_of_the_environment_are_not_used(
    listeners: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port_of(listeners[0])}")
    with Receiver("127.0.0.2", None).running() as receiver:
        assert send(receiver.url, f"127.0.0.0/8:{receiver.port}") == 200
    assert not knocked(listeners)


def test_the_certificate_must_fit_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path)
    answer_with(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(outbound, "_tls", lambda: ssl.create_default_context(cafile=str(pem)))
    with Receiver("127.0.0.1", pem).running() as receiver:
        allow = f"127.0.0.0/8:{receiver.port}"
        assert send(f"https://hooks.example:{receiver.port}/in?a=b", allow) == 200
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"https://other.example:{receiver.port}/", allow).message
        monkeypatch.undo()
        outbound._tls.cache_clear()
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"https://127.0.0.1:{receiver.port}/", allow).message
    assert receiver.server_names[:2] == ["hooks.example", "other.example"]
    assert [(r.path, r.headers["Host"]) for r in receiver.received] == [("/in?a=b", f"hooks.example:{receiver.port}")]


def answering(listener: socket.socket, chunks: list[bytes], *, pause: float = 0.0) -> Thread:
    """A receiver that says these bytes, then keeps the line open until it is hung up on."""
    stop = Event()

    def serve() -> None:
        connected, _ = listener.accept()
        with connected, suppress(OSError):
            for chunk in chunks:
                connected.sendall(chunk)
                stop.wait(pause)
            while connected.recv(65536):
                pass

    thread = Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("chunks", "pause"),
    [
        ([b"H", b"T", b"T", b"P", b"/", b"1", b".", b"1", b" ", b"2", b"0", b"0"], 0.1),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"] * 30, 0.05),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000], 0.0),
        ([b"SSH-2.0-OpenSSH\r\n"], 0.0),
        ([], 0.0),
    ],
    ids=["drips", "continues for ever", "many headers", "no HTTP", "silent"],
)
def test_a_bad_receiver_costs_little(
    listeners: list[socket.socket], chunks: list[bytes], pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.5)
    server = answering(listeners[0], chunks, pause=pause)
    port, started = port_of(listeners[0]), monotonic()
    assert refusal(f"http://127.0.0.1:{port}/", f"127.0.0.0/8:{port}").code == "webhook_unreachable"
    assert monotonic() - started < 1.5
    server.join()


@pytest.mark.parametrize(
    "start", [b"x: ", b"content-length: 999999999999999\r\n\r\n", b"transfer-encoding: chunked\r\n\r\nfffffffffff\r\n"]
)
def test_an_endless_answer_is_not_read_to_its_end(listeners: list[socket.socket], start: bytes) -> None:
    server = answering(listeners[0], [b"HTTP/1.1 200 OK\r\n" + start, *[b"x" * 65536] * 4])
    port, started = port_of(listeners[0]), monotonic()
    assert send(f"http://127.0.0.1:{port}/", f"127.0.0.0/8:{port}") == 200
    assert monotonic() - started < 2
    server.join()


def test_a_name_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Event()
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [release.wait(10)][:0])
    started = monotonic()
    assert "no name server answered" in refusal("https://slow.example/").message
    assert monotonic() - started < 1
    release.set()
