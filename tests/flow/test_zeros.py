"""Pages of zeros are found, with many and with few."""

from __future__ import annotations

import os

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criu_relay.flow.zeros import FEW, PAGE, rows, zero_rows, zeros_unlikely

BEGINNING = bytes(8)
"""What pages of zeros have, and some others."""

KINDS = {"0": bytes(PAGE), "a": b"a" * PAGE, "b": BEGINNING + b"b" * (PAGE - 8), "c": bytes(PAGE - 1) + b"c"}


@settings(max_examples=100, deadline=None)
@given(st.text("0abc", min_size=1, max_size=2 * FEW))
def test_zeros_are_found(kinds: str) -> None:
    view = memoryview(bytearray(b"".join(KINDS[kind] for kind in kinds)))
    assert numpy.flatnonzero(zero_rows(rows(view))).tolist() == [at for at, kind in enumerate(kinds) if kind == "0"]
    assert zeros_unlikely(view) is (len(kinds) <= FEW and set(kinds) == {"a"})


@pytest.mark.parametrize("at", range(0, PAGE, 8))
def test_one_word_tells_a_page_from_zeros(at: int) -> None:
    page = bytearray(PAGE)
    page[at + os.urandom(1)[0] % 8] = 1
    assert not zero_rows(rows(memoryview(page))).any()
