"""Which hosts and addresses media are fetched from."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from sailq.producer.media_fetching import MediaFetcher
from sailq.shared.errors import BadRequest


def fetcher(*allowed: str) -> MediaFetcher:
    return MediaFetcher(allowed, max_bytes=1, max_seconds=1)


@pytest.mark.parametrize("address", [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "192.0.2.1", "198.18.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:7f00:1",
    "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "100::1", "2001:0:7f00:1::80ff:fffe", "2001:db8::1", "2002:7f00:1::1",
    "5f00::1", "fd00:ec2::254", "fe80::1", "fe80::5efe:7f00:1", "fec0::1", "ff02::1",
])
def test_an_address_that_is_not_public(address: str) -> None:
    assert not fetcher().allows_address(ip_address(address), 80)
    assert fetcher("::/0", "0.0.0.0/0").allows_address(ip_address(address), 80)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address(address: str) -> None:
    assert fetcher().allows_address(ip_address(address), 80)


@pytest.mark.parametrize("entry", [
    "", "*", "*.example.com", "a b", ".", "..", "a..b", "user@a.b", "http://a.b", "a.b/path", "a.b:0", "a.b:99999",
    "a.b:x", "1.2.3.4/33",
])
def test_an_entry_that_names_no_host(entry: str) -> None:
    with pytest.raises(BadRequest, match="is neither a host name nor an address nor a network"):
        fetcher(entry)


@pytest.mark.parametrize("entry", ["a.b", "A.B.", ".b", "a_1.b", "a.b:80", "bücher.example", "1.2.3.0/24", "[::1]:80"])
def test_an_entry_that_names_a_host(entry: str) -> None:
    fetcher(entry)
