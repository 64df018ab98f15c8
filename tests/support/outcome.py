"""What fixtures know of their test when it is over."""

from __future__ import annotations

import pytest

FAILED = pytest.StashKey[bool]()
"""Set by tests/conftest.py."""


def failed(request: pytest.FixtureRequest) -> bool:
    """Whether the test, or the setup of it, failed."""
    return bool(request.node.stash.get(FAILED, False))
