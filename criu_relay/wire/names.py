"""What names may look like, on every wire and every command line.

>>> check_name("pages-1.img", "image name")
'pages-1.img'
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from criu_relay.errors import Invalid, ProtocolError

NEW = "new"
"""Stands in place of a migration's id, which is in hex, for one that is begun by what it comes with."""

MAX_NAME = 255
"""Characters in a name: names become file names in an export, and NAME_MAX is 255 (limits.h)."""

MAX_LABEL = 4096
"""Bytes in a snapshot label: CRIU sends its -D string, a path, and PATH_MAX is 4096 (limits.h)."""

MAX_HOST = 253
"""Characters in a DNS name (RFC 1035, 2.3.4, without the dot at the end)."""

SHOWN = 60
"""Characters of a wrong name that an error repeats: enough to find it, too few to flood a log."""

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text of somebody else on one line, with nothing that a terminal or the reader of a log would obey.

    >>> plain("gone\\n\\x1b[2Jall is well")
    'gone??[2Jall is well'
    """
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= SHOWN else f"{text[:SHOWN]!a}..."


def check_name(name: str, what: str) -> str:
    """Check the name of an image or a namespace: 1 to 255 of A-Z a-z 0-9 . _ - and neither "." nor "..".

    @param what: what the name is of, for the error ("namespace").
    @return: C{name}.
    @raise Invalid: it is not of this form.
    """
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise Invalid(
            f"{what} {_shown(name)} is not a valid name",
            hint=f'use 1 to {MAX_NAME} of A-Z a-z 0-9 . _ - , and not "." or ".."',
        )
    return name


def check_label(label: str, what: str) -> str:
    """Check the label of a snapshot: at most 4096 bytes of UTF-8 without control characters; may be empty.

    @param what: what the label is of, for the error ("snapshot_id").
    @return: C{label}.
    @raise Invalid: it is not of this form.
    """
    if _CONTROL.search(label) is not None:
        raise Invalid(f"{what} {_shown(label)} has a control character")
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise Invalid(f"{what} {_shown(label)} is not text in UTF-8") from None
    if size > MAX_LABEL:
        raise Invalid(f"{what} {_shown(label)} has {size} bytes", hint=f"at most {MAX_LABEL} are possible")
    return label


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def host_name(text: str, what: str) -> str:
    """A DNS name or an IP address, in the form that names in certificates are compared in.

    @param what: what the name is of, for the error ("host").
    @raise Invalid: it is neither; a DNS name that is not ASCII must be given as xn--...
    """
    if is_address(text):
        return str(ipaddress.ip_address(text))
    name = text.lower().removesuffix(".")
    if len(name) > MAX_HOST or _HOST.fullmatch(name) is None or name.rpartition(".")[2].isdigit():
        raise Invalid(
            f"{what} {_shown(text)} is neither a DNS name nor an IP address",
            hint="give one such as node-a.example or 192.0.2.1",
        )
    return name


def from_peer(check: Callable[[str, str], str], text: str, what: str) -> str:
    """Apply L{check_name} or L{check_label} to what a peer sent.

    @raise ProtocolError: instead of Invalid, as the peer is at fault.
    """
    try:
        return check(text, what)
    except Invalid as error:
        raise ProtocolError(error.reason, hint=error.hint) from None
