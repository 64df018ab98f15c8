"""Never lost, never doubled: daemons, criu and its script killed, and the link cut, at random moments of real dumps."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support import moments

COUNT = 32
"""A sample; `make faults` has all."""


@pytest.mark.needs_criu
def test_never_lost_never_doubled(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
    outcomes = moments.run(seed, COUNT, tmp_path)
    shown = "\n".join([f"FAULTS_SEED={seed} repeats these:", *moments.table(outcomes)])
    assert len(outcomes) == COUNT
    assert {outcome.fate for outcome in outcomes} <= {"lives", "moved", "lost", "crashed"}, shown
    assert len({outcome.fate for outcome in outcomes}) > 1, shown


def test_moments_are_the_seeds() -> None:
    stages = {event: 0.02 * number for number, event in enumerate(moments.EVENTS)}
    assert moments.draw(7, 50, stages) == moments.draw(7, 50, stages) != moments.draw(8, 50, stages)
    drawn = moments.draw(7, 200, stages)
    assert {moment.event for moment in drawn} == set(moments.EVENTS)
    assert {name for moment in drawn for name in moment.victims} == set(moments.VICTIMS)
    assert max(len(moment.victims) for moment in drawn) == 3
