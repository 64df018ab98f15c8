"""Every path of the control API, over a fake transport."""

from __future__ import annotations

import json
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from criu_relay import errors
from criu_relay.admin.inspected import IInspected
from criu_relay.interfaces import CommitRequest, IImportSink, IOpenedImage


def test_the_fakes_are_what_they_stand_for(make: Any) -> None:
    verifyObject(IInspected, make["control"]())
    verifyObject(IImportSink, make["sink"]())
    verifyObject(IOpenedImage, make["image"](b""))


def test_status(control: Any, ask: Any) -> None:
    answer = ask("GET", "/v1/status")
    assert answer.code == 200
    assert answer.json == control.state
    assert answer.headers["Cache-Control"] == "no-store"


def test_namespaces(control: Any, ask: Any, make: Any) -> None:
    control.state["namespaces"] = [make["namespace"]("a"), make["namespace"]("b")]
    assert [one["name"] for one in ask("GET", "/v1/namespaces").json] == ["a", "b"]


def test_namespace(control: Any, ask: Any, make: Any) -> None:
    control.details["web"] = make["namespace"]()
    assert ask("GET", "/v1/namespaces/web").json == control.details["web"]


def test_namespace_that_is_not_there(ask: Any) -> None:
    answer = ask("GET", "/v1/namespaces/web")
    assert answer.code == 404
    assert answer.json == {"error": "no namespace web", "hint": "criu-relay status lists them"}


@pytest.mark.parametrize(
    ("method", "target", "body", "call"),
    [
        ("DELETE", "/v1/namespaces/web", None, ("discard", "web", None, None, None, None)),
        ("POST", "/v1/namespaces/web/restored", None, ("restored", "web")),
        ("PUT", "/v1/rate", {"rate": 65536}, ("rate", 65536)),
        ("PUT", "/v1/rate", {"rate": None}, ("rate", None)),
        ("DELETE", "/v1/attachments?directory=%2Fa%20b%2Bc", None, ("detach", "/a b+c")),
        ("POST", "/v1/namespaces/web/images/a.img/discard", None, ("discard", "web", None, "a.img", None, None)),
        ("POST", "/v1/namespaces/web/snapshots/3/images/a.img/discard", {"offset": 0, "length": 2**63 - 1},
         ("discard", "web", 3, "a.img", 0, 2**63 - 1)),
        ("POST", "/v1/attachments", {"directory": "/"}, ("attach", "/", None, "stream", False)),
        ("POST", "/v1/attachments", {"directory": "/", "namespace": "n", "dialect": "images", "copy": True},
         ("attach", "/", "n", "images", True)),
        ("POST", "/v1/attachments", {"directory": "/", "namespace": None, "dialect": None},
         ("attach", "/", None, "stream", False)),
    ],
)  # fmt: skip
def test_calls(control: Any, ask: Any, method: str, target: str, body: Any, call: Any) -> None:
    answer = ask(method, target, None if body is None else json.dumps(body).encode())
    assert answer.code == 200, answer.body
    assert control.calls == [call]
    assert isinstance(answer.json, dict)


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("wait", ("wait", "web", None, False)),
        ("wait?timeout=1.5", ("wait", "web", 1.5, False)),
        ("wait?timeout=0&next=0", ("wait", "web", 0.0, False)),
        ("wait?next=1", ("wait", "web", None, True)),
        ("commit", ("commit", "web", CommitRequest(), None)),
        ("commit?timeout=120", ("commit", "web", CommitRequest(), 120.0)),
    ],
)
def test_wait_and_commit(control: Any, ask: Any, make: Any, target: str, call: Any) -> None:
    control.outcomes |= {"wait": make["namespace"](), "commit": make["namespace"]()}
    assert ask("POST", f"/v1/namespaces/web/{target}").json == make["namespace"]()
    assert control.calls == [call]


def test_commit_with_everything(control: Any, ask: Any, make: Any) -> None:
    control.outcomes["commit"] = make["namespace"]()
    body = {"root": 7, "criu": 2**22, "copy": True, "force": True}
    assert ask("POST", "/v1/namespaces/web/commit", json.dumps(body).encode()).code == 200
    assert control.calls == [("commit", "web", CommitRequest(7, 2**22, True, True), None)]


@pytest.mark.parametrize("what", ["wait", "commit"])
def test_answer_comes_when_it_is_decided(control: Any, ask: Any, make: Any, what: str) -> None:
    answer = ask("POST", f"/v1/namespaces/web/{what}")
    assert answer.transport.value() == b""
    answer.clock.advance(3600)
    assert answer.transport.connected and not answer.transport.disconnecting
    control.pending[0].callback(make["namespace"]())
    assert answer.json["state"] == "committed"


@pytest.mark.parametrize("what", ["wait", "commit"])
def test_hanging_up_cancels(control: Any, ask: Any, what: str) -> None:
    answer = ask("POST", f"/v1/namespaces/web/{what}")
    answer.hang_up()
    assert control.cancelled == 1
    assert answer.transport.value() == b""
    assert not answer.clock.getDelayedCalls()


@pytest.mark.parametrize("error", [
    errors.Invalid, errors.Forbidden, errors.NotFound, errors.Conflict, errors.Aborted, errors.TimedOut,
    errors.OutOfMemory, errors.LinkLost, errors.ProtocolError, errors.RelayError,
])  # fmt: skip
def test_errors_have_their_status(control: Any, ask: Any, error: Any) -> None:
    control.outcomes["wait"] = error("what happened", hint="what to do")
    answer = ask("POST", "/v1/namespaces/web/wait")
    assert answer.code == error.status
    assert answer.json == {"error": "what happened", "hint": "what to do"}


@pytest.mark.parametrize(("method", "target"), [("GET", "/v1/status"), ("PUT", "/v1/namespaces/w/images/i")])
def test_a_bug_is_said_and_logged(control: Any, ask: Any, method: str, target: str) -> None:
    from twisted.logger import globalLogPublisher

    control.error = ZeroDivisionError("secret")
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        answer = ask(method, target, b"")
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert answer.code == 500
    assert answer.json["error"] == "internal error"
    assert b"secret" not in answer.body
    assert [event["log_failure"].type for event in seen if "log_failure" in event] == [ZeroDivisionError]


@pytest.mark.parametrize("target", [
    "/v1", "/v1/", "/v2/status", "/v1/status/", "//v1/status", "/v1/namespaces/", "/v1/namespaces/web/images",
    "/v1/namespaces/web/snapshots/1", "/v1/namespaces/web/images/a/b", "*", "x", "/V1/status",
])  # fmt: skip
def test_unknown_path(control: Any, ask: Any, target: str) -> None:
    answer = ask("GET", target)
    assert answer.code in (400, 404) and control.calls == []
    assert answer.json["hint"]


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/v1/status", "GET"),
        ("PUT", "/v1/namespaces/web", "GET, DELETE"),
        ("GET", "/v1/namespaces/web/wait", "POST"),
        ("GET", "/v1/attachments", "POST, DELETE"),
        ("DELETE", "/v1/namespaces/web/images/a", "GET, PUT"),
        ("BREW", "/metrics", "GET"),
    ],
)
def test_wrong_method(control: Any, ask: Any, method: str, target: str, allow: str) -> None:
    answer = ask(method, target)
    assert answer.code == 405 and control.calls == []
    assert answer.headers["Allow"] == allow


def test_head_is_answered_without_a_body(ask: Any) -> None:
    answer = ask("HEAD", "/v1/status")
    assert answer.code == 405
    assert answer.body == b""


@pytest.mark.parametrize("name", ["..", ".", "a%2Fb", "a%00", "%0a", "x" * 256, "a%20b", "%ff", "%C3%A9"])
def test_names_are_checked_on_every_path(control: Any, ask: Any, name: str) -> None:
    for target in (f"/v1/namespaces/{name}", f"/v1/namespaces/web/images/{name}"):
        answer = ask("GET", target)
        assert (answer.code, control.calls) == (400, []), target
        assert "not a valid name" in answer.json["error"]


@pytest.mark.parametrize("index", ["0", "-1", "1.0", "01e", "4294967296", "9" * 5000, "%D9%A1", "a", "+1", "1_0"])
def test_snapshots_are_numbers(control: Any, ask: Any, index: str) -> None:
    answer = ask("GET", f"/v1/namespaces/web/snapshots/{index}/images/a")
    assert (answer.code, control.calls) == (400, [])


@pytest.mark.parametrize("query", [
    "timeout=", "timeout=x", "timeout=-1", "timeout=nan", "timeout=inf", "timeout=1e99", "timeout=1&timeout=1",
    "timeout", "&", "next=2", "next=", "next=true", "other=1", "timeout=1&next=1&" + "a=1&" * 8,
])  # fmt: skip
def test_bad_queries(control: Any, ask: Any, query: str) -> None:
    answer = ask("POST", f"/v1/namespaces/web/wait?{query}")
    assert (answer.code, control.calls) == (400, [])
    assert answer.json["hint"]


def test_query_where_there_is_none(control: Any, ask: Any) -> None:
    assert ask("GET", "/v1/status?a=1").code == 400
    assert ask("DELETE", "/v1/attachments").code == 400
    assert ask("DELETE", "/v1/attachments?directory=relative").code == 400
    assert ask("DELETE", "/v1/attachments?directory=%2Fa%00").code == 400
    assert control.calls == []


@pytest.mark.parametrize("body", [
    b"{", b"[]", b"1", b'"a"', b"null", b"\xff", b"[" * 60000, b'{"root": NaN}', b'{"root": 1e400}',
    b'{"root": ' + b"9" * 5000 + b"}", b'{"root": 1.0}', b'{"root": -1}', b'{"root": 4194305}', b'{"root": true}',
    b'{"root": "1"}', b'{"copy": 1}', b'{"copy": null}', b'{"force": "yes"}', b'{"other": 1}', b'{"root": 1} x',
])  # fmt: skip
def test_bad_bodies_of_commit(control: Any, ask: Any, body: bytes) -> None:
    answer = ask("POST", "/v1/namespaces/web/commit", body)
    assert (answer.code, control.calls) == (400, []), answer.body
    assert answer.json["error"]


@pytest.mark.parametrize("body", [
    {}, {"directory": ""}, {"directory": "relative"}, {"directory": 1}, {"directory": "/a\n"}, {"directory": "/a\0"},
    {"directory": "/", "dialect": "morse"}, {"directory": "/", "namespace": 5}, {"directory": "/", "copy": "no"},
])  # fmt: skip
def test_bad_bodies_of_attach(control: Any, ask: Any, body: Any) -> None:
    assert ask("POST", "/v1/attachments", json.dumps(body).encode()).code == 400
    assert control.calls == []


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "1", True, []])
def test_bad_ranges(control: Any, ask: Any, field: str, value: Any) -> None:
    answer = ask("POST", "/v1/namespaces/web/images/a/discard", json.dumps({field: value}).encode())
    assert (answer.code, control.calls) == (400, [])


def test_bodies_up_to_64_kib(control: Any, ask: Any, make: Any) -> None:
    control.outcomes["commit"] = make["namespace"]()
    body = b"{" + b" " * (64 * 1024 - 2) + b"}"
    assert ask("POST", "/v1/namespaces/web/commit", body).code == 200


def test_a_larger_body_is_refused_before_it_comes(control: Any, connect: Any) -> None:
    head = b"POST /v1/namespaces/web/commit HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"
    answer = connect().send(head)
    assert answer.code == 413
    assert answer.headers["Connection"] == "close"
    answer.send(b" " * 65537)
    assert answer.transport.disconnecting and control.calls == []


def test_a_larger_body_in_chunks_is_refused_when_it_gets_there(control: Any, connect: Any) -> None:
    answer = connect().send(b"POST /v1/namespaces/web/commit HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(16):
        answer.send(b"1000\r\n" + b" " * 4096 + b"\r\n")
    assert answer.transport.value() == b""
    answer.send(b"1\r\n \r\n")
    assert answer.code == 413
    answer.send(b"0\r\n\r\n")
    assert answer.transport.disconnecting and control.calls == []


def test_refused_clients_that_fall_silent_are_closed(connect: Any) -> None:
    answer = connect().send(b"POST /nowhere HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
    assert answer.code == 404 and not answer.transport.disconnecting
    answer.clock.advance(61)
    assert answer.transport.disconnecting


def test_a_refusal_is_not_followed_by_100_continue(connect: Any) -> None:
    answer = connect().send(b"PUT /nowhere HTTP/1.1\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
    assert answer.code == 404
    assert b"100 Continue" not in answer.transport.value()


def test_several_requests_on_one_connection(control: Any, connect: Any) -> None:
    answer = connect()
    answer.send(b"GET /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n")
    assert answer.transport.value().count(b"HTTP/1.1 200") == 2
    assert answer.transport.value().count(b"HTTP/1.1 404") == 1


def test_request_split_at_every_byte(control: Any, connect: Any, make: Any) -> None:
    control.outcomes["commit"] = make["namespace"]()
    data = b'POST /v1/namespaces/web/commit?timeout=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{"root": 1}'
    for cut in range(1, len(data)):
        control.calls.clear()
        answer = connect().send(data[:cut])
        assert control.calls == []
        assert answer.send(data[cut:]).code == 200
        assert control.calls == [("commit", "web", CommitRequest(1), 9.0)]


def test_request_cut_at_every_byte(control: Any, connect: Any) -> None:
    data = b'POST /v1/namespaces/web/commit HTTP/1.1\r\nContent-Length: 11\r\n\r\n{"root": 1}'
    for cut in range(len(data)):
        answer = connect().send(data[:cut])
        answer.hang_up()
        assert control.calls == [] and answer.transport.value() == b""
        assert not answer.clock.getDelayedCalls()


def test_request_with_every_byte_changed(control: Any, connect: Any, make: Any) -> None:
    """No byte on its way can make more of a call than an answer; none leads to an internal error."""
    control.outcomes["commit"] = make["namespace"]()
    data = b'POST /v1/namespaces/web/commit HTTP/1.1\r\nContent-Length: 11\r\n\r\n{"root": 1}'
    for position in range(len(data)):
        for byte in (0, 10, 13, 32, 37, 48, 58, 255):
            answer = connect().send(data[:position] + bytes([byte]) + data[position + 1 :])
            assert b" 500 " not in answer.transport.value()
            answer.hang_up()


def test_long_targets_are_refused(control: Any, ask: Any, connect: Any) -> None:
    assert ask("GET", "/v1/attachments?directory=/" + "a" * 16000).code == 405
    for target in (b"/" + b"a" * 16 * 1024, b"/" + b"a/" * 10**6):
        assert connect().send(b"GET " + target + b" HTTP/1.1\r\n\r\n").transport.disconnecting
    assert control.calls == []


def test_web_pages_are_refused(control: Any, ask: Any) -> None:
    answer = ask("POST", "/v1/namespaces/web/commit", b"", headers="Origin: http://evil.example\r\n")
    assert (answer.code, control.calls) == (403, [])


@pytest.mark.parametrize(("host", "code"), [
    ("localhost", 200), ("localhost:80", 200), ("127.0.0.1:9", 200), ("127.9.9.9", 200), ("[::1]:9", 200),
    ("[::1]", 200),
    ("evil.example", 403), ("evil.example:80", 403), ("192.0.2.1", 403), ("", 403), ("localhost.evil.example", 403),
])  # fmt: skip
def test_on_tcp_only_names_of_this_machine(connect: Any, host: str, code: int) -> None:
    answer = connect(tcp=True).send(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.code == code


def test_health(control: Any, ask: Any) -> None:
    assert ask("GET", "/healthz").json == {"role": "proxy"}


@pytest.mark.parametrize(("state", "code"), [
    ("up", 200), ("listening", 200), ("connecting", 503), ("down", 503), ("closed", 503),
])  # fmt: skip
def test_readiness(control: Any, ask: Any, state: str, code: int) -> None:
    control.state["link"]["state"] = state
    control.state["link"]["error"] = "refused by 192.0.2.1"
    answer = ask("GET", "/readyz")
    assert answer.code == code
    if code != 200:
        assert answer.json == {"error": f"the link is {state}", "hint": "refused by 192.0.2.1"}
