"""Programs that a test needs besides the project's own."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(tool: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or in CI, where nothing may be missing, fails.

    @param package: of Debian, which has it.
    """
    found = shutil.which(tool)
    if found is None:
        reason = f"{tool} is missing: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {reason}", pytrace=False)
        pytest.skip(reason)
    return found
