"""Samples in alternation, and the ratios that they make."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

import pytest

from bench import report
from bench.measure import MIB, Row, Sample, alternate, ratio, row
from bench.rows import fairness
from tests.support.daemons import free_port


def samples(*seconds: float, size: int = 10**9) -> list[Sample]:
    return [Sample(one, size) for one in seconds]


def test_subjects_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []

    def subject(name: str) -> Callable[[], Sample]:
        def run() -> Sample:
            order.append(name)
            return Sample(float(len(order)), 1)

        return run

    found = alternate({name: subject(name) for name in ("ours", "c", "twisted")}, 2)
    assert order == ["ours", "c", "twisted"] * 3
    assert {name: [sample.seconds for sample in taken] for name, taken in found.items()} == {
        "ours": [4.0, 7.0],
        "c": [5.0, 8.0],
        "twisted": [6.0, 9.0],
    }


def test_a_ratio_is_larger_when_ours_is_faster() -> None:
    assert ratio(samples(1.0), samples(2.0)) == 2.0
    assert ratio(samples(2.0), samples(1.0)) == 0.5


def test_a_ratio_compares_speeds_not_times() -> None:
    assert ratio(samples(1.0, size=10), samples(1.0, size=40)) == 0.25


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    """A machine that is slow for one round, for both, changes nothing; the medians of each side would."""
    assert ratio(samples(1.0, 10.0, 1.0, 1.0, 1.0), samples(2.0, 20.0, 2.0, 9.0, 1.0)) == 2.0


def test_rounds_that_do_not_match_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio(samples(1.0, 1.0), samples(1.0))


def test_a_row_has_the_median_of_cpu_time_and_the_largest_memory() -> None:
    ours = [Sample(1.0, 2 * 10**9, {"proxy": cpu}, {"proxy": rss * MIB}) for cpu, rss in ((1, 7), (5, 9), (2, 8))]
    made = row("x", "that", 1.0, ours, samples(1.0, 1.0, 2.0, size=2 * 10**9))
    assert made.as_json() == {
        "name": "x",
        "reference": "that",
        "ratio": 1.0,
        "bound": 1.0,
        "gb_per_s": 2.0,
        "cpu_s_per_gb": {"proxy": 1.0},
        "rss_mib": {"proxy": 9.0},
    }
    assert made.reference_gb_per_s == 2.0


def test_one_after_the_other_takes_the_time_of_both() -> None:
    both = Sample(1.0, 8, {"receiver": 1.0}, {"receiver": 5}).then(Sample(2.0, 8, {"server": 3.0}, {"server": 4}))
    assert both == Sample(3.0, 8, {"receiver": 1.0, "server": 3.0}, {"receiver": 5, "server": 4})


def limited(value: float, cpu: float) -> Row:
    return Row("x", "that", value, 0.5, 1.0, {"proxy": cpu, "cache": 9.0}, {}, math.nan, {"proxy": 0.25})


@pytest.mark.parametrize(
    ("value", "cpu", "misses"),
    [
        (0.5, 0.25, []),
        (0.49, 0.25, ["ratio 0.49 < 0.50"]),
        (0.6, 0.26, ["proxy 0.26 > 0.25 CPU s/GB"]),
        (0.1, 1.0, ["ratio 0.10 < 0.50", "proxy 1.00 > 0.25 CPU s/GB"]),
    ],
)
def test_what_is_missed_is_said(value: float, cpu: float, misses: list[str]) -> None:
    made = limited(value, cpu)
    assert made.misses == misses
    line = report.table([made]).splitlines()[1]
    assert line.endswith("MISSED: " + ", ".join(misses) if misses else "ok")


def test_a_time_within_its_limit_reaches_the_bound() -> None:
    assert fairness.latency("fair-small", "the median", 0.025, [1.0, 3.0, 2.0]).ratio == 2.0
    assert fairness.latency("fair-small", "the median", 0.025, [1.0, 3.0, 2.0]).gb_per_s == 2.0
    assert fairness.latency("fair-small", "the median", fairness.LATENCY, [1.0]).misses == []
    assert fairness.latency("fair-small", "the median", 0.1, [1.0]).misses == ["ratio 0.50 < 1.00"]


def test_half_open_handshakes_begin_and_end() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port), backlog=fairness.HALF_OPEN) as server:
        with fairness.Besiegers(port):
            strangers = [server.accept()[0] for _ in range(20)]
            assert all(one.recv(len(fairness.CLIENT_HELLO)) == fairness.CLIENT_HELLO for one in strangers)
        assert all(one.recv(1) == b"" for one in strangers)
        for one in strangers:
            one.close()
