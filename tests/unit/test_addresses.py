"""Which URLs and addresses webhooks may reach, judged without a connection."""

from ipaddress import ip_address

import pytest
from pydantic import ValidationError

from app.core.addresses import Reach, is_public
from app.core.errors import InvalidRequest
from app.core.settings import Settings

NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::127.0.0.1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1
2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:db8::1 2002:7f00:1::1 2002:808:808::1 3fff::1 5f00::1
fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
"""


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_private_special_and_wrapping_addresses_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001::8a"])
def test_addresses_of_the_internet_are(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://Example.COM:443/hook?token=a%20b&c=[1]", "example.com", "/hook?token=a%20b&c=[1]"),
        ("https://hooks.xn--bcher-kva.example?x=1", "hooks.xn--bcher-kva.example", "/?x=1"),
        ("https://8.8.8.8/a@b", "8.8.8.8", "/a@b"),
        ("https://[2606:4700::1111]/", "[2606:4700::1111]", "/"),
        ("http://10.1.2.3:8443/", "10.1.2.3:8443", "/"),
        ("http://inside.example:8443/", "inside.example:8443", "/"),
        ("https://[fd00::7]:9000/", "[fd00::7]:9000", "/"),
    ],
)
def test_good_urls_are_taken_apart(url: str, authority: str, path: str) -> None:
    target = Reach("10.0.0.0/8:8443, fd00::/8:9000").target(url)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "http on port 80"),
        ("https://example.com:8444/", "https on port 8444"),
        ("http://example.com:443/", "http on port 443"),
        ("https://10.1.2.3/", "not a public address"),
        ("http://11.1.2.3:8443/", "http on port 8443 of 11.1.2.3"),
        ("https://10.1.2.3:8442/", "https on port 8442"),
        ("https://example.com:0/", "between 1 and 65,535"),
        ("https://example.com:65536/", "between 1 and 65,535"),
        ("https://" + "a" * 64 + ".com/", "no host name"),
        ("https://example.com/" + "a" * 2048, "at most 2,048"),
        ("https://127.0.0.1.1/", "write an address as"),
    ],
)
def test_others_are_refused_with_what_to_do(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        Reach("10.0.0.0/8:8443").target(url)
    assert (caught.value.code, caught.value.param) == ("invalid_webhook_url", "url")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("allow", ["", " ", "127.0.0.0/8:9000", "10.0.0.0/8:8443, ::1/128:80 ,"])
def test_the_setting_may_list_networks_with_ports(allow: str) -> None:
    assert Settings(webhook_allow=allow).webhook_allow == allow


@pytest.mark.parametrize(
    "allow",
    ["localhost:80", "10.0.0.0/8", "10.0.0.1:80", "10.0.0.1/8:80", "10.0.0.0/8:0", "10.0.0.0/8:x", "::1:80", "*"],
)
def test_a_malformed_setting_stops_the_start(allow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWRIGHT_WEBHOOK_ALLOW", allow)
    with pytest.raises(ValidationError, match=r"cannot be used.*Write networks with their ports"):
        Settings()
