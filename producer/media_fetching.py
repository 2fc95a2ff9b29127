"""Fetches images and videos from http(s) addresses, only from hosts that are allowed.

A host's name must be allowed, and the address that it resolves to must be public or in an allowed network. The address
is checked when the connection is made, so a name cannot change its address between the check and the connection.
Redirects are checked like the first address.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urljoin

import anyio
import httpcore
import httpx

from sailq.shared.errors import BadMedia, BadRequest

_AT_A_TIME = 8
"""Downloads that are in memory at a time."""
_REDIRECTS = 5
_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: its last 32 bits are an IPv4 address."""
_GLOBAL = IPv6Network("2000::/3")
"""The IPv6 addresses that IANA has given out. Outside them are forms of IPv4 addresses that some systems route to the
address inside (::127.0.0.1, ::ffff:0:127.0.0.1, 64:ff9b:1::127.0.0.1), and Python counts some as global."""
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"\.?[\w-]+(\.[\w-]+)*")
_MOVED = {301, 302, 303, 307, 308}
_FAILURES = (
    httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError,
    UnicodeError,  # a name that cannot be looked up, such as one with a label of more than 63 characters
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class MediaFetcher:
    """Fetches media from allowed hosts."""

    def __init__(self, allowed: Iterable[str], *, max_bytes: int, max_seconds: float) -> None:
        """`allowed`: names (`cdn.example.com`, or `.example.com` for all names below it), IP addresses, or networks
        (`192.168.1.0/24`) that need not be public. Each may have a port; without one, the ports of http and https are
        allowed. `max_bytes`: of all media of a request. `max_seconds`: to fetch one. Raises BadRequest for a host
        that cannot be read."""
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._hosts: set[tuple[str, int | None]] = set()
        self._networks: list[tuple[Network, int | None]] = []
        for entry in allowed:
            name, port = _host(entry)
            try:
                self._networks.append((ip_network(name), port))
            except ValueError:
                if not _NAME.fullmatch(name):
                    raise _unreadable(entry) from None
            self._hosts.add((name, port))
        self._backend = _CheckedBackend(self)
        self._tls = httpx.create_ssl_context(trust_env=False) if self._hosts else None
        self._free = asyncio.Semaphore(_AT_A_TIME)

    async def fetch(self, urls: Iterable[str]) -> list[bytes]:
        """The media of a request, by their addresses. Raises BadRequest for one that is not allowed, and BadMedia."""
        found, left = list[bytes](), self._max_bytes
        for url in urls:
            found.append(await self._fetch(url, left))
            left -= len(found[-1])
        return found

    async def _fetch(self, url: str, most: int) -> bytes:
        try:
            with anyio.fail_after(self._max_seconds):
                async with self._free:
                    return await self._follow(url, most)
        except TimeoutError:
            raise BadMedia(f"The medium was not fetched within {self._max_seconds:g} s.") from None
        except _FAILURES as error:
            raise BadMedia(f"The medium cannot be fetched: {type(error).__name__}.") from None

    async def _follow(self, url: str, most: int) -> bytes:
        target = ""
        async with httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._backend) as pool:
            for _ in range(_REDIRECTS + 1):
                target = self._checked(target, url)
                async with pool.stream("GET", target, headers={
                    "Host": httpx.URL(target).netloc.decode(), "User-Agent": "sailq", "Accept": "*/*",
                    "Accept-Encoding": "identity",
                }) as response:
                    if response.status in _MOVED:
                        url = _header(response, b"location")
                        continue
                    if response.status != 200:
                        raise BadMedia(f"The medium cannot be fetched: its server answered {response.status}.")
                    return await self._read(response, most)
        raise BadMedia("The medium cannot be fetched: there are too many redirects.")

    async def _read(self, response: httpcore.Response, most: int) -> bytes:
        data = bytearray()
        async for part in response.aiter_stream():
            data += part
            if len(data) > most:
                raise BadMedia(f"The fetched media of the request are larger than {self._max_bytes >> 20} MiB.")
        if not data:
            raise BadMedia("The medium is empty.")
        return bytes(data)

    def _checked(self, base: str, url: str) -> str:
        """The address in normal form; `base` is the one that it may be relative to. Raises BadRequest if its host is
        not allowed."""
        try:
            parsed = httpx.URL(urljoin(base, url))
            host, port = parsed.host.rstrip(".").lower(), parsed.port
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise BadRequest("The address of a medium is not a URL.") from None
        if parsed.scheme not in _PORTS or not host or parsed.userinfo:
            raise BadRequest("The address of a medium must be http:// or https://, without a user name.")
        if not self._allows(host, None if port in (None, _PORTS[parsed.scheme]) else port):
            raise BadRequest(f"Media are not fetched from {host[:100]!r}: --media-from does not name it.")
        return str(parsed.copy_with(fragment=None))

    def _allows(self, host: str, port: int | None) -> bool:
        if (host, port) in self._hosts:
            return True
        try:
            literal = _plain(ip_address(host))
        except ValueError:
            parents = (host[at:] for at, letter in enumerate(host) if letter == ".")
            return any((parent, port) in self._hosts for parent in parents)
        return any(literal in network and port == allowed for network, allowed in self._networks)

    def allows_address(self, address: Address, port: int) -> bool:
        """Whether a connection to an address and a port may be made."""
        plain = _plain(address)
        allowed = (network for network, only in self._networks if only in (None, port))
        public = plain.is_global and not plain.is_multicast and (plain.version == 4 or plain in _GLOBAL)
        return public or any(plain in network for network in allowed)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that the fetcher allows."""

    def __init__(self, fetcher: MediaFetcher) -> None:
        self._fetcher, self._backend = fetcher, httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        addresses = [str(where[0]) for *_, where in found]
        allowed = [
            one for one in addresses if self._fetcher.allows_address(ip_address(one.partition("%")[0]), port)
        ]
        if not allowed:
            raise BadRequest(f"Media are not fetched from {host[:100]!r}: its address is not a public one.")
        for place in allowed[:-1]:
            with suppress(httpcore.NetworkError, httpcore.TimeoutException):
                return await self._backend.connect_tcp(place, port, *arguments, **options)
        return await self._backend.connect_tcp(allowed[-1], port, *arguments, **options)


def _plain(address: Address) -> Address:
    """The IPv4 address in an IPv6 address that holds one."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _host(entry: str) -> tuple[str, int | None]:
    """(name or address, port) of an allowed host."""
    name, colon, port = entry.rpartition(":")
    if not colon or (entry.count(":") > 1 and not name.endswith("]")):
        return entry.strip("[]").rstrip(".").lower(), None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise _unreadable(entry)
    return name.strip("[]").rstrip(".").lower(), int(port)


def _unreadable(entry: str) -> BadRequest:
    return BadRequest(f"{entry!r} is neither a host name nor an address nor a network.")


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")
