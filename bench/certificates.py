"""Certificates for the rows with TLS, of one authority."""

from __future__ import annotations

from typing import NamedTuple

from bench.stage import Stage
from tests.support.certificates import Authority, Shown

PROXY = "proxy"
CACHE = "127.0.0.1"
"""As the link's endpoint has it."""


class Identities(NamedTuple):
    """What both ends show."""

    proxy: Shown
    cache: Shown

    def options(self) -> tuple[list[str], list[str]]:
        """What proxy and cache are told."""
        return self.proxy.options(CACHE), self.cache.options(PROXY)


def files(shown: Shown) -> tuple[str, str, str]:
    """Paths of certificate, key and authority."""
    return str(shown.certificate), str(shown.key), str(shown.authorities)


def identities(stage: Stage) -> Identities:
    """New ones."""
    authority = Authority(stage.new_folder("certificates"))
    return Identities(authority.issue(PROXY), authority.issue(CACHE))
