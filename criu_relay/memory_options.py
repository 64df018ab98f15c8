"""The options of the cache that are about memory; see L{criu_relay.store.policy.Policy}."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from twisted.python import usage

from criu_relay import values
from criu_relay.given import Given, one, parameter
from criu_relay.store.policy import Dedup, Policy

DEFAULT_DEDUP = Dedup.ZERO.value

MEMORY_FLAGS: list[list[str | None]] = [
    ["retain", None, "keep images after a confirmed restore, so that they can be restored again"],
    ["release", None, "give images back while a restore reads them: it can be tried once only"],
]

MEMORY_PARAMETERS: list[list[str | None]] = [
    parameter("spill", "directory on a disk for namespaces that nobody reads, when memory is short"),
    parameter("ttl", "discard a committed namespace that nobody asks for after so many seconds, or never", "never"),
    parameter(
        "dedup", "off: keep everything; zero: no pages of zeros; pages: equal pages of a peer once", DEFAULT_DEDUP
    ),
]


def policy_of(given: dict[str, list[Given]]) -> Policy:
    """What is done with memory when there is a choice.

    @raise UsageError: options contradict each other.
    """
    if "retain" in given and "release" in given:
        raise usage.UsageError("--retain and --release exclude each other; give one of them")
    spill = given["spill"][-1] if "spill" in given else None
    return Policy(
        retain="retain" in given,
        release="release" in given,
        ttl=one(given, "ttl", values.seconds_or_never, None),
        spill=None if spill is None else Path(spill.read(partial(values.directory, base=spill.base))),
        dedup=one(given, "dedup", values.dedup, None) or Dedup.ZERO,
    )
