"""Addresses of sockets, for people."""

from __future__ import annotations

from typing import Any


def shown(address: Any) -> str:
    """HOST:PORT of an address of IP, as people write it; for any other what Twisted calls it.

    @param address: an IAddress of Twisted.
    """
    host = getattr(address, "host", None)
    if host is None:
        return str(address)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
