"""Addresses of this machine."""

from __future__ import annotations

from ipaddress import ip_address


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host's address."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
