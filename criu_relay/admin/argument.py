"""What stands on the command line of `criu-relay`, taken or refused; each raises argparse.ArgumentTypeError."""

from __future__ import annotations

import argparse
import math

from criu_relay.errors import Invalid
from criu_relay.wire.names import check_name


def name(text: str) -> str:
    """The name of a namespace."""
    try:
        return check_name(text, "namespace")
    except Invalid as error:
        raise argparse.ArgumentTypeError(f"{error.reason}, {error.hint}") from None


def image(text: str) -> tuple[int | None, str]:
    """The snapshot, or None, and the name of an image."""
    index, parted, name = text.rpartition("/")
    if parted and not (index.isascii() and index.isdigit() and int(index[:10]) > 0):
        raise argparse.ArgumentTypeError(f"{text} is neither NAME nor N/NAME")
    try:
        return (int(index) if parted else None), check_name(name, "image name")
    except Invalid as error:
        raise argparse.ArgumentTypeError(f"{error.reason}, {error.hint}") from None


def seconds(text: str) -> float:
    """A length of time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def count(text: str) -> int:
    """A number of bytes."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise argparse.ArgumentTypeError(f"{text} is not a number of bytes")
    return int(text)


def rate(text: str) -> int | str:
    """Bytes per second, or "off"."""
    # It knows endpoints as well: Twisted takes longer to load than everything that this command does.
    from criu_relay import values

    try:
        value = values.rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return "off" if value is None else value
