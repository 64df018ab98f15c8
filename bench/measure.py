"""What is measured, and what becomes of it: samples, taken in alternation, and rows of ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GB = 1e9
"""Bytes in what is called a GB here."""

MIB = 1 << 20


class Skipped(Exception):
    """A row cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Sample:
    """One run of one subject.

    @ivar seconds: how long it took.
    @ivar size: bytes that it moved.
    @ivar cpu: process -> CPU seconds, user and system.
    @ivar rss: process -> peak resident memory in bytes.
    """

    seconds: float
    size: int
    cpu: Mapping[str, float] = field(default_factory=dict)
    rss: Mapping[str, int] = field(default_factory=dict)

    def then(self, other: Sample) -> Sample:
        """Both, one after the other, for the same bytes."""
        return Sample(self.seconds + other.seconds, self.size, {**self.cpu, **other.cpu}, {**self.rss, **other.rss})


Subject = Callable[[], Sample]


def alternate(subjects: Mapping[str, Subject], rounds: int) -> dict[str, list[Sample]]:
    """Run the subjects in turn, so that what disturbs the machine disturbs all of them.

    @param rounds: how many samples of each; a first one, into memory and caches that are cold, is not counted.
    """
    for subject in subjects.values():
        subject()
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            samples[name].append(subject())
    return samples


def ratio(ours: Sequence[Sample], reference: Sequence[Sample]) -> float:
    """Speed of ours / speed of the reference: the median over the rounds."""
    return statistics.median(
        (own.size / own.seconds) / (other.size / other.seconds) for own, other in zip(ours, reference, strict=True)
    )


@dataclass(frozen=True)
class Row:
    """A line of the table.

    @ivar name: the row's name; `NAME@REFERENCE` where it has several.
    @ivar reference: what is compared with, for people.
    @ivar ratio: larger is better.
    @ivar bound: what it must reach.
    @ivar gb_per_s: of ours, median.
    @ivar cpu_s_per_gb: of ours, by process, median.
    @ivar rss_mib: peak, by process, the largest of all runs.
    @ivar reference_gb_per_s: of the reference, median.
    @ivar cpu_limits: CPU s/GB that processes must stay within.
    """

    name: str
    reference: str
    ratio: float
    bound: float
    gb_per_s: float
    cpu_s_per_gb: Mapping[str, float]
    rss_mib: Mapping[str, float]
    reference_gb_per_s: float
    cpu_limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def misses(self) -> list[str]:
        """What is not reached, for people; empty when all is."""
        missed = [] if self.ratio >= self.bound else [f"ratio {self.ratio:.2f} < {self.bound:.2f}"]
        for process, limit in self.cpu_limits.items():
            if self.cpu_s_per_gb[process] > limit:
                missed.append(f"{process} {self.cpu_s_per_gb[process]:.2f} > {limit:.2f} CPU s/GB")
        return missed

    def as_json(self) -> dict[str, Any]:
        """As build/bench.json has it."""
        return {
            "name": self.name,
            "reference": self.reference,
            "ratio": round(self.ratio, 3),
            "bound": round(self.bound, 3),
            "gb_per_s": round(self.gb_per_s, 3),
            "cpu_s_per_gb": {process: round(value, 3) for process, value in self.cpu_s_per_gb.items()},
            "rss_mib": {process: round(value, 1) for process, value in self.rss_mib.items()},
        }


def row(
    name: str,
    reference: str,
    bound: float,
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    cpu_limits: Mapping[str, float] | None = None,
) -> Row:
    """The row that samples of the same rounds make."""
    return Row(
        name,
        reference,
        ratio(ours, theirs),
        bound,
        _speed(ours),
        _by_process((sample.cpu for sample in ours), lambda values: statistics.median(values) / (ours[0].size / GB)),
        _by_process((sample.rss for sample in ours), lambda values: max(values) / MIB),
        _speed(theirs),
        cpu_limits or {},
    )


def _speed(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.size / sample.seconds / GB for sample in samples)


def _by_process(tables: Iterable[Mapping[str, float]], together: Callable[[list[float]], float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for table in tables:
        for process, value in table.items():
            found.setdefault(process, []).append(value)
    return {process: together(values) for process, values in found.items()}
