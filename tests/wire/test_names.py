"""Names and labels: what is taken and what is not."""

from __future__ import annotations

import string

import pytest

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire.names import MAX_HOST, MAX_LABEL, MAX_NAME, check_label, check_name, from_peer, host_name

NAME_CHARACTERS = string.ascii_letters + string.digits + "._-"


@pytest.mark.parametrize("name", ["pages-1.img", "a", "-", "_", "...", ".img", "x" * MAX_NAME, "web.2"])
def test_valid_names(name):
    assert check_name(name, "image name") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\0", "a\n", "\n", "x" * (MAX_NAME + 1), "é", "a b", "\u0660"]
)
def test_invalid_names(name):
    with pytest.raises(Invalid, match="namespace"):
        check_name(name, "namespace")


def test_every_character_of_names():
    taken = ""
    for code in range(0x500):
        try:
            taken += check_name(f"a{chr(code)}", "name")[1]
        except Invalid:
            continue
    assert sorted(taken) == sorted(NAME_CHARACTERS)


@pytest.mark.parametrize(
    "label", ["", "img", "/var/lib/img/1", "a b", "é", "x" * MAX_LABEL, "é" * (MAX_LABEL // 2), "../x"]
)
def test_valid_labels(label):
    assert check_label(label, "snapshot_id") == label


@pytest.mark.parametrize(
    "label", ["a\0", "a\n", "\x1b[2J", "\x7f", "\x85", "x" * (MAX_LABEL + 1), "é" * (MAX_LABEL // 2) + "x", "\udc80"]
)
def test_invalid_labels(label):
    with pytest.raises(Invalid, match="snapshot_id"):
        check_label(label, "snapshot_id")


def test_an_error_repeats_little_and_nothing_that_a_terminal_obeys():
    with pytest.raises(Invalid) as caught:
        check_name("\x1b[2J\n" + "x" * 10_000, "name")
    assert len(caught.value.reason) < 200
    assert caught.value.reason.isprintable()


def test_a_peer_is_at_fault():
    assert from_peer(check_name, "a", "field name") == "a"
    with pytest.raises(ProtocolError, match="field name '\\.\\.'"):
        from_peer(check_name, "..", "field name")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Node-A", "node-a"),
        ("a.b.example.", "a.b.example"),
        ("_x.y", "_x.y"),
        ("1.example", "1.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8::0", "2001:db8::"),
        (("a" * 63 + ".") * 3 + "b" * 61, ("a" * 63 + ".") * 3 + "b" * 61),
    ],
)
def test_hosts(text, name):
    assert host_name(text, "host") == name
    assert len(name) <= MAX_HOST


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a/b",
            "../a",
            "a b",
            "a\n",
            "-a",
            "a-",
            "a.-b",
            "*",
            "*.a",
            "é",
            "a\0",
            "1.2.3",
        ),
        *("x" * 64, ("a" * 63 + ".") * 3 + "b" * 62, "[::1]", "a:1", "::g", "1.2.3.4.5"),
    ],
)
def test_no_hosts(text):
    with pytest.raises(Invalid, match="host"):
        host_name(text, "host")
