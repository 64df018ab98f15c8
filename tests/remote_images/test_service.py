"""What the first implementation of remote images got wrong as a service, D17 to D29."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.remote_images.pair import LABEL, Pair
from tests.support.daemons import Daemon, Relay
from tests.support.polling import until
from tests.support.remote_client import APPEND, DumpSide, RestoreSide, framed, header, string

MIB = 1 << 20

IMAGES = {"files.img": b"files", "pages-1.img": os.urandom(MIB), "core-1.img": b""}


def memory(daemon: Daemon, field: str) -> int:
    """Bytes of a process by /proc/PID/status, such as VmRSS."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def test_D17_silent_clients_stop_nobody(relay: Relay) -> None:
    """Of every kind of socket that there is, and at every point of an exchange.

    A commit waits for the rest of a header, for as long as that is waited for at all.
    """
    relay.shorten("criu_relay.local.images.PATIENCE", 2.0)
    pair = Pair(relay)
    pair.start()
    connections = [side.connect() for side in (pair.dump(), pair.restore()) for _ in range(5)]
    for side in (pair.dump(), pair.restore()):
        connections.append(side.connect())
        connections[-1].send(header("x.img", LABEL, 0)[:7])
    for daemon in (pair.relay.cache, pair.relay.proxy):
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(daemon.control))
        control.send(b"GET /v1/sta")
    strangers = [socket.create_connection(("127.0.0.1", pair.relay.port), 5) for _ in range(5)]
    strangers[0].send(b"\x10")
    pair.dumped(IMAGES)
    with pair.restore().ask("pages-1.img") as stalled:
        assert stalled.reply() == 0
        pipe = stalled.pass_pipe("read")
    began = time.monotonic()
    pair.restored(IMAGES)
    assert time.monotonic() - began < 5.0
    os.close(pipe)
    for one in [*strangers, *(connection.socket for connection in connections)]:
        one.close()
    pair.alive()


def test_D17_a_writer_that_stops_in_the_middle_stops_nobody(relay: Relay) -> None:
    pair, other = Pair(relay), Pair(relay, "other")
    pair.start()
    other.attach()
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    os.write(pipe, b"the beginning")
    other.moved(IMAGES)
    os.write(pipe, b" and the end")
    os.close(pipe)
    dump.write("inventory.img", b"inventory of " + LABEL.encode())
    pair.commits()
    dump.finish()
    pair.restored({"pages-1.img": b"the beginning and the end"})


def test_D18_a_header_in_many_parts(pair: Pair) -> None:
    push = header("parent", "", APPEND) + framed(string(1, LABEL))
    dump = pair.dump()
    with dump.connect() as connection:
        for byte in push:
            connection.send(bytes([byte]))
    whole = header("files.img", LABEL, 1)
    for cut in range(1, len(whole)):
        with dump.connect() as connection:
            connection.send(whole[:cut])
            # An answer to another client: the first part has been read by then.
            assert pair.dump().labels() == [LABEL]
            connection.send(whole[cut:])
            pipe = connection.pass_pipe("write")
        os.write(pipe, b"%d" % cut)
        os.close(pipe)
    dump.write("inventory.img", b"inventory of " + LABEL.encode())
    pair.commits()
    dump.finish()
    restore = pair.restore()
    with restore.connect() as connection:
        for byte in header("files.img", LABEL, 0):
            connection.send(bytes([byte]))
        assert connection.reply() == 0
        pipe = connection.pass_pipe("read")
    assert os.read(pipe, 10) == b"%d" % (len(whole) - 1)
    os.close(pipe)
    restore.finish()


def test_D19_a_restore_may_begin_before_there_is_a_proxy(relay: Relay) -> None:
    pair = Pair(relay)
    relay.start_cache("--images", str(pair.target))
    restore = pair.restore()
    early = restore.ask("pages-1.img")
    early_list = restore.ask_labels()
    pair.waiting(2)
    assert early.silent(0.2)
    relay.start_proxy()
    pair.attach_proxy()
    relay.linked()
    pair.dumped(IMAGES)
    assert restore.take_labels(early_list) == [LABEL]
    assert restore.take(early) == IMAGES["pages-1.img"]
    restore.finish()
    pair.alive()


def test_D20_what_is_not_said_at_once_is_not_waited_for(fresh: Pair) -> None:
    silent = [fresh.dump().connect(), fresh.restore().connect()]
    half = fresh.dump().connect()
    half.send(header("x.img", LABEL, 1)[:5])
    began = time.monotonic()
    for connection in [*silent, half]:
        with connection:
            assert connection.rest() == b""
    assert 5 < time.monotonic() - began < 15
    assert fresh.relay.proxy.text().count("did not come within") == 2
    fresh.moved(IMAGES)


def test_D20_a_dump_without_a_client_is_given_up(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start(proxy=("--idle", "1"))
    restore = pair.restore()
    waiting = restore.ask("pages-1.img")
    dump = pair.dump()
    dump.push()
    dump.write("pages-1.img", b"written, and then criu is gone")
    done = relay.command("wait", "web", "--timeout", "20", at="proxy")
    assert done.returncode == 1 and "no client" in done.stderr
    assert restore.take(waiting) is None
    restore.finish()
    dump.finish()
    pair.moved(IMAGES)
    pair.alive()


def test_D20_whoever_waits_says_for_how_long(pair: Pair) -> None:
    for role in ("proxy", "cache"):
        done = pair.relay.command("wait", pair.name, "--timeout", "0.3", at=role)
        assert done.returncode == 3
    assert pair.commit("--timeout", "0.3")[0] == 3


def test_D21_another_spelling_of_the_directory_is_explained(fresh: Pair) -> None:
    fresh.dumped(IMAGES, "/abs/img")
    restore = fresh.restore("img")
    assert restore.labels() == ["/abs/img"]
    assert restore.read("inventory.img") is None
    restore.finish()
    line = until(
        lambda: next((line for line in fresh.relay.cache.text().splitlines() if "literally one of" in line), ""),
        5.0,
        "the cache explains it",
    )
    assert "'img'" in line and line.endswith("/abs/img")
    fresh.restored(IMAGES, "/abs/img")


def test_D21_a_list_that_was_read_in_vain_is_explained(fresh: Pair) -> None:
    fresh.dumped(IMAGES, "/abs/img")
    restore = fresh.restore("img")
    assert restore.labels() == ["/abs/img"]
    restore.finish()
    until(lambda: "literally one of: /abs/img" in fresh.relay.cache.text(), 5.0, "the cache explains it")


def test_D23_the_window_stops_the_writer(relay: Relay) -> None:
    """With a cache that takes nothing, what is written is bounded by the window and what the kernel holds."""
    pair = Pair(relay)
    pair.start(proxy=("--window", "4M", "--link-timeout", "60"))
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    relay.cache.signal(signal.SIGSTOP)
    os.set_blocking(pipe, False)
    data = os.urandom(MIB)
    written, last = 0, time.monotonic()
    while time.monotonic() - last < 1.0:
        try:
            written += os.write(pipe, data[written % MIB :])
            last = time.monotonic()
        except BlockingIOError:
            relay.proxy.get("/healthz")
    used = pair.status("proxy")["memory"]["used"]
    assert used <= 4 * MIB
    assert MIB < written < 24 * MIB, written
    relay.cache.signal(signal.SIGCONT)
    os.set_blocking(pipe, True)
    os.close(pipe)
    dump.write("inventory.img", b"inventory of " + LABEL.encode())
    pair.commits()
    dump.finish()
    whole = (data * 32)[:written]
    pair.restored({"pages-1.img": whole})
    pair.alive()


def test_D23_images_are_in_memory_once_and_given_back(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start(cache=("--memory", "64M"), proxy=("--window", "4M"))
    data = os.urandom(40 * MIB)
    before = memory(relay.cache, "VmRSS") + memory(relay.proxy, "VmRSS")
    for run in range(3):
        label = f"/img/{run}"
        pair.dumped({"pages-1.img": data}, label)
        used = pair.status("cache")["memory"]
        assert len(data) <= used["used"] <= used["limit"] == 64 * MIB
        assert pair.status("proxy")["memory"]["used"] <= 4 * MIB
        pair.restored({"pages-1.img": data}, label)
        growth = memory(relay.cache, "VmRSS") + memory(relay.proxy, "VmRSS") - before
        assert growth < 64 * MIB + 4 * MIB + 24 * MIB
        done = relay.command("discard", "web")
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: pair.status("cache")["memory"]["used"] == 0, 5.0, "the memory is given back, a part in each turn")
    pair.alive()


def test_D23_what_does_not_fit_is_refused_and_given_back(relay: Relay) -> None:
    pair = Pair(relay)
    pair.start(cache=("--memory", "16M"), proxy=("--window", "4M"))
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    with pytest.raises(BrokenPipeError):
        for _ in range(64):
            os.write(pipe, os.urandom(MIB))
    os.close(pipe)
    reason = relay.command("wait", "web", "--timeout", "20", at="proxy").stderr
    assert "memory" in reason or "budget" in reason, reason
    until(lambda: pair.status("cache")["memory"]["used"] == 0, 5.0, "the memory is given back")
    dump.finish()
    pair.moved(IMAGES)
    pair.alive()


def test_a_range_is_discarded_at_the_proxy(pair: Pair) -> None:
    """While the dump goes on: the cache gives it back, and whoever reads it gets an end and no zeros."""
    data = os.urandom(MIB)
    with pair.dump().dump() as dump:
        for name in ("pages-1.img", "pages-2.img"):
            dump.write(name, data)
            pair.complete(name, "proxy")
        done = pair.relay.command("discard", pair.name, "1/pages-2.img", "--offset", str(MIB // 2), at="proxy")
        assert (done.returncode, done.stdout) == (0, f"{MIB // 2} bytes given back\n")
        pipe = dump.begin("pages-3.img")
        for arguments, reason in (("pages-3.img", "being written"), ("pages-4.img", "no image"), ("9/x", "no image")):
            refused = pair.relay.command("discard", pair.name, arguments, at="proxy")
            assert refused.returncode == 1 and reason in refused.stderr
        os.close(pipe)
    pair.commits()
    dump.finish()
    [figures] = [one["memory"] for one in pair.status("cache")["namespaces"] if one["name"] == pair.name]
    assert figures["discarded"] == MIB // 2
    assert pair.restore().read("pages-1.img") == data
    assert pair.restore().read("pages-2.img") == data[: MIB // 2]
    refused = pair.relay.command("discard", pair.name, "pages-1.img", at="proxy")
    assert refused.returncode == 1 and "discard it at the cache" in refused.stderr
    pair.alive()


def test_D24_an_image_is_at_the_cache_while_it_is_still_written(pair: Pair) -> None:
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    data = os.urandom(8 * MIB)
    for done in range(0, len(data), MIB):
        view = memoryview(data)[done : done + MIB]
        while view:
            view = view[os.write(pipe, view) :]
        until(lambda done=done: pair.bytes("cache") >= done + MIB, 10.0, f"{done + MIB} bytes are at the cache")
    assert not pair.images("cache")["pages-1.img"]["complete"]
    os.close(pipe)
    dump.write("inventory.img", b"inventory of " + LABEL.encode())
    pair.commits()
    dump.finish()
    pair.restored({"pages-1.img": data})


def test_D24_several_images_travel_at_the_same_time(pair: Pair) -> None:
    dump = pair.dump()
    dump.push()
    pipes = {f"pages-{number}.img": dump.begin(f"pages-{number}.img") for number in range(8)}
    for round_ in range(4):
        for name, pipe in pipes.items():
            os.write(pipe, name.encode() * 1000)
        expected = 8 * len("pages-1.img") * 1000 * (round_ + 1)
        until(lambda expected=expected: pair.bytes("cache") == expected, 10.0, f"{expected} bytes are at the cache")
    for pipe in pipes.values():
        os.close(pipe)
    dump.write("inventory.img", b"inventory of " + LABEL.encode())
    pair.commits()
    dump.finish()
    pair.restored({name: name.encode() * 4000 for name in pipes})


def test_D25_four_bytes_allocate_nothing(fresh: Pair) -> None:
    cache, proxy = fresh.relay.cache, fresh.relay.proxy
    sizes = [(memory(daemon, "VmSize"), memory(daemon, "VmPeak")) for daemon in (cache, proxy)]
    for prefix in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\x01\x40\0\0"):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", fresh.relay.port), 5) as stranger:
                stranger.sendall(prefix)
                until_end(stranger)
            for side in (fresh.dump(), fresh.restore()):
                with side.connect() as connection:
                    connection.send(prefix)
                    assert connection.rest() == b""
        for daemon, (size, peak) in zip((cache, proxy), sizes, strict=True):
            assert memory(daemon, "VmSize") - size < 64 * MIB, prefix
            assert memory(daemon, "VmPeak") - peak < 64 * MIB, prefix
    fresh.moved(IMAGES)


def until_end(sock: socket.socket) -> None:
    """Read until the other side ends the connection."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass


def test_D28_one_dump_after_the_other(pair: Pair) -> None:
    for run in range(5):
        pair.moved({"pages-1.img": os.urandom(MIB), f"{run}.img": b"%d" % run}, f"/img/{run}")
    assert pair.status("proxy")["counters"]["links_made"] == 1


def test_D28_many_namespaces_at_the_same_time(relay: Relay) -> None:
    pairs = [Pair(relay, f"web-{number}") for number in range(6)]
    pairs[0].start()
    for pair in pairs[1:]:
        pair.attach()
    dumps = [pair.dump() for pair in pairs]
    for dump in dumps:
        dump.push()
    pipes = [dump.begin("pages-1.img") for dump in dumps]
    for number, pipe in enumerate(pipes):
        os.write(pipe, b"%d" % number * 1000)
    readers = [pair.restore().ask("pages-1.img") for pair in pairs]
    for pipe in reversed(pipes):
        os.close(pipe)
    for dump, pair in zip(dumps, pairs, strict=True):
        dump.write("inventory.img", b"inventory of " + LABEL.encode())
        pair.commits()
        dump.finish()
    for number, (reader, pair) in enumerate(zip(readers, pairs, strict=True)):
        assert pair.restore().take(reader) == b"%d" % number * 1000
        pair.restore().finish()
    pairs[0].alive()


def test_D28_several_proxies_link_to_one_cache(relay: Relay) -> None:
    here = Pair(relay)
    here.start()
    there = Pair(relay, "other")
    control = relay.base / "second.sock"
    second = relay.start_proxy("--control", f"unix:{control}", "--state", str(relay.directory("second")), ready=False)
    second.control = control
    second.ready()
    for role, directory, daemon in (("cache", there.target, relay.cache), ("proxy", there.source, second)):
        options = ["--copy"] if role == "proxy" else []
        done = daemon.command("attach", str(directory), "other", "--dialect", "images", *options)
        assert (done.returncode, done.stderr) == (0, "")
    until(lambda: len(here.status("cache")["link"]["peers"]) == 2, 10.0, "both proxies are linked")
    # Each proxy knows its own namespace: relay.proxy is the one that was started last.
    there.moved(IMAGES)
    first = relay.daemons[1]
    with here.dump().dump() as dump:
        dump.write("pages-1.img", b"of the first proxy")
    assert first.command("commit", "web", "--timeout", "20").returncode == 0
    dump.finish()
    here.restored({"pages-1.img": b"of the first proxy"})
    here.alive()


def test_D28_a_plain_link_does_not_leave_the_machine_unasked(relay: Relay) -> None:
    for start, link in (
        (relay.start_cache, "tcp:9876:interface=192.0.2.1"),
        (relay.start_cache, "tcp:9876"),
        (relay.start_proxy, "tcp:192.0.2.1:9876"),
    ):
        daemon = start("--link", link, ready=False)
        assert daemon.process.wait(20) == 1
        assert "--insecure" in daemon.text()


def test_D29_a_daemon_that_cannot_start_says_so(relay: Relay) -> None:
    taken = relay.directory("b/web")
    relay.start_cache("--images", str(taken))
    options = ["--control", f"unix:{relay.base}/second.sock"]
    for wrong, words in (
        (["--images", str(taken), "--link", "tcp:0:interface=127.0.0.1", *options], "in use by"),
        (["--link", f"tcp:{relay.port}:interface=127.0.0.1", *options], str(relay.port)),
        (["--images", str(relay.base / "nowhere"), "--link", "tcp:0:interface=127.0.0.1", *options], "nowhere"),
        (["--images", str(relay.directory("c" * 90)), "--link", "tcp:0:interface=127.0.0.1", *options], "107"),
        (["--memory", "much"], "--memory"),
        (["--no-such-option"], "no-such-option"),
    ):
        daemon = relay.start_cache(*wrong, ready=False)
        assert daemon.process.wait(20) == 1
        assert words in daemon.text(), daemon.text()
        assert "Traceback" not in daemon.text(), daemon.text()
    assert relay.daemons[0].running
    assert sorted(path.name for path in relay.sockets()) == ["cache.sock", "img-cache.sock"]


def test_D29_commands_end_with_what_happened(fresh: Pair) -> None:
    relay = fresh.relay
    assert relay.command("no-such-command").returncode == 2
    assert relay.command("wait", "web", "--timeout", "0.2").returncode == 3
    fresh.dumped(IMAGES)
    assert relay.command("wait", "web").returncode == 0
    assert relay.command("discard", "nobody").returncode == 1
    dump = fresh.dump("/img/2")
    dump.push()
    dump.finish()
    done = relay.command("wait", "web", at="proxy")
    assert done.returncode == 1 and "inventory.img" in done.stderr
    assert done.stderr.count("\n") == 1
    relay.proxy.stop()
    done = relay.command("status", at="proxy")
    assert done.returncode == 4 and "criu-relay-proxy" in done.stderr
    relay.start_proxy()


def test_sockets_are_removed_at_the_end(relay: Relay) -> None:
    """Also while somebody is connected, and in the middle of an image."""
    relay.shorten("criu_relay.lifecycle.FINISH_SECONDS", 2.0)
    pair = Pair(relay)
    pair.start()
    dump = pair.dump()
    dump.push()
    pipe = dump.begin("pages-1.img")
    waiting = pair.restore().ask("pages-1.img")
    silent = [side.connect() for side in (pair.dump(), pair.restore())]
    pair.relay.stop()
    assert list(pair.source.iterdir()) == list(pair.target.iterdir()) == []
    with pytest.raises(BrokenPipeError):
        while True:
            os.write(pipe, bytes(MIB))
    os.close(pipe)
    for connection in [waiting, *silent]:
        connection.socket.close()
    pair.relay.start_cache("--images", str(pair.target))
    pair.relay.start_proxy()
    pair.attach_proxy()
    pair.relay.linked()
    pair.moved(IMAGES)
    pair.alive()


def test_the_client_of_these_tests_speaks_as_recorded() -> None:
    """Against bytes of a real criu, see docs/protocol.md."""
    directory = "/opt/victims/record/single/img"
    assert header("seccomp.img", directory, 1) == bytes.fromhex(
        "2f0000000a0b736563636f6d702e696d67121e" + directory.encode().hex() + "1801"
    )
    assert header("parent", "", APPEND) == bytes.fromhex("0d0000000a06706172656e741200188008")
    assert header("parent", "", 0) == bytes.fromhex("0c0000000a06706172656e7412001800")
    assert framed(string(1, directory)) == bytes.fromhex("200000000a1e" + directory.encode().hex())
    assert header("", "", 1) == bytes.fromhex("060000000a0012001801")
    assert header("", "", 0) == bytes.fromhex("060000000a0012001800")
    assert (DumpSide.socket_name, RestoreSide.socket_name) == ("img-proxy.sock", "img-cache.sock")
