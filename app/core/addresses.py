"""Where webhooks may go: the one reading of a URL, public addresses, what the operator lists. Opens no connection.

Refused by default (server-side request forgery). A host that some program somewhere reads as an address (`0x7f.1`,
`127.1`, full-width digits, a trailing dot) is refused, never interpreted: two readings of one URL are how such
checks are passed by.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from app.core.errors import InvalidRequest

Address = IPv4Address | IPv6Address

# No userinfo, no fragment, no backslash, nothing outside printable ASCII.
_URL = re.compile(
    r"(?P<scheme>(?i:https?))://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>[/?][!-\"$-\[\]-~]*)?"
)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# A last label like this makes the whole host an IPv4 address to browsers and libc, whatever stands before it.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

# Beside what Python knows as not global: the 6to4 relay, all of IETF's own block, and Azure's metadata service.
_NEVER_IPV4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
# Only this is given out as unicast. What carries an IPv4 address inside lies outside (mapped, NAT64) or is named below.
_UNICAST_IPV6 = IPv6Network("2000::/3")
_NEVER_IPV6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


@dataclass(frozen=True)
class Target:
    """A URL taken apart."""

    scheme: str
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str
    """With the query; what the request line carries."""
    literal: Address | None
    """The address, where the URL names one."""

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Reach:
    """What webhooks may reach: https on port 443 of public addresses, and what `MODELWRIGHT_WEBHOOK_ALLOW` lists."""

    def __init__(self, allow: str) -> None:
        self._listed = _parse_allow(allow)

    def target(self, url: str) -> Target:
        """Judge a URL as far as that goes without asking for its address. Raises `InvalidRequest`."""
        target = _parse_url(url)
        if target.literal is not None:
            self.check(target, target.literal)
        elif (target.scheme, target.port) != ("https", 443) and target.port not in {p for _, p in self._listed}:
            raise _refused(target, f"{target.scheme} on port {target.port}")
        return target

    def check(self, target: Target, address: Address) -> None:
        """Raises `InvalidRequest` unless the target may be called at this address."""
        if any(address in network and target.port == port for network, port in self._listed):
            return
        if (target.scheme, target.port) != ("https", 443):
            raise _refused(target, f"{target.scheme} on port {target.port} of {address}")
        if not is_public(address):
            raise _refused(target, f"{address}, which is not a public address")


def is_public(address: Address) -> bool:
    """Whether the address belongs to some host of the internet, itself and not as a wrapping of another."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NEVER_IPV4)
    return address in _UNICAST_IPV6 and not any(address in network for network in _NEVER_IPV6)


def readable_allow(value: str) -> str:
    """The setting unchanged. Raises `ValueError` that says what is wrong with it."""
    _parse_allow(value)
    return value


def _parse_allow(text: str) -> list[tuple[IPv4Network | IPv6Network, int]]:
    listed = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        network, _, port = entry.rpartition(":")
        try:
            if "/" not in network or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError("it is not NETWORK/BITS:PORT")
            listed.append((ip_network(network), int(port)))
        except ValueError as exc:
            raise ValueError(
                f"{entry[:80]!r} cannot be used: {exc}. Write networks with their ports, a comma between, as in "
                "127.0.0.0/8:9000,10.0.0.0/8:8443,fd00::/8:8443"
            ) from exc
    return listed


def _parse_url(url: str) -> Target:
    found = _URL.fullmatch(url) if len(url) <= 2048 else None
    if found is None:
        raise _malformed(
            url,
            "write https://host/path in at most 2,048 printable ASCII characters, a host of other letters as xn--..., "
            "without user, password, fragment or backslash",
        )
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"] or (443 if scheme == "https" else 80))
    if not 0 < port < 65536:
        raise _malformed(url, f"port {port} is not between 1 and 65,535")
    path = found["path"] or "/"
    path = path if path.startswith("/") else f"/{path}"
    if not host.startswith("[") and not _NUMBER.fullmatch(host.rsplit(".", 1)[-1]):
        if not _NAME.fullmatch(host):
            raise _malformed(url, f"{host!r} is no host name; leave out a dot at its end")
        return Target(scheme, host, port, path, None)
    host = host.strip("[]")
    try:
        return Target(scheme, host, port, path, ip_address(host))
    except ValueError as exc:
        raise _malformed(url, f"write an address as 203.0.113.7 or [2001:db8::7]: {exc}") from exc


def _malformed(url: str, remedy: str) -> InvalidRequest:
    shown = url if len(url) <= 80 else url[:77] + "..."
    return InvalidRequest(f"url: {shown!r} cannot be called: {remedy}", code="invalid_webhook_url", param="url")


def _refused(target: Target, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"url: {target.host} leads to {what}: webhooks go to https on port 443 of public addresses; the operator lists "
        "other networks and ports in MODELWRIGHT_WEBHOOK_ALLOW, as in 10.0.0.0/8:8443",
        code="invalid_webhook_url",
        param="url",
    )
