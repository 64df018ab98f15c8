"""Every option of both services: what it becomes, and the one line that says what to give instead."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet import endpoints
from twisted.python import usage

from criu_relay import values
from criu_relay.given import LARGEST_FILE
from criu_relay.options import CacheOptions, CacheSettings, ProxyOptions, ProxySettings
from criu_relay.settings import Attached
from criu_relay.store.policy import Dedup, Policy

ROOT = Path(__file__).resolve().parents[2]
SIDES = [ProxyOptions, CacheOptions]
PROXY_KEYS = [
    *("allow-uid", "control", "criu-dev-link", "dedup", "idle", "images", "insecure", "link", "link-fd"),
    *("link-timeout", "manhole", "manhole-keys", "metrics", "rate", "state", "stream", "tls-ca", "tls-cert", "tls-key"),
    *("tls-peer", "window"),
]
TLS_FILES = ["--tls-cert", "node.crt", "--tls-key", "node.key", "--tls-ca", "ca.crt"]
CACHE_KEYS = sorted((set(PROXY_KEYS) | {"memory", "warm", "retain", "release", "spill", "ttl"}) - {"window", "rate"})


def parse(side: type[ProxyOptions] | type[CacheOptions], *arguments: str) -> ProxySettings | CacheSettings:
    options = side()
    options.parseOptions(arguments)
    return options.settings()


def refusal(side: type[ProxyOptions] | type[CacheOptions], *arguments: str) -> str:
    """The one line of the error."""
    with pytest.raises(usage.UsageError) as caught:
        parse(side, *arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert line
    return line


@pytest.fixture(autouse=True)
def _private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/.state")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Defaults


def test_proxy_defaults() -> None:
    assert parse(ProxyOptions) == ProxySettings(
        link="tcp:127.0.0.1:9876",
        link_fd=None,
        criu_dev_link=None,
        state=Path("/home/x/.state/criu-relay"),
        attachments=(),
        control="unix:/run/user/7/criu-relay/proxy.sock",
        metrics=None,
        manhole=None,
        manhole_keys=None,
        insecure=False,
        idle=3600.0,
        allow_uids=frozenset(),
        link_timeout=30.0,
        tls=None,
        window=256 * 2**20,
        rate=None,
        leave_out_zeros=True,
    )


def test_cache_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "available_memory", lambda: 10 * 2**30)
    assert parse(CacheOptions) == CacheSettings(
        link="tcp:9876:interface=127.0.0.1",
        link_fd=None,
        criu_dev_link=None,
        state=Path("/home/x/.state/criu-relay"),
        attachments=(),
        control="unix:/run/user/7/criu-relay/cache.sock",
        metrics=None,
        manhole=None,
        manhole_keys=None,
        insecure=False,
        idle=3600.0,
        allow_uids=frozenset(),
        link_timeout=30.0,
        tls=None,
        memory=5 * 2**30,
        warm=256 * 2**20,
        policy=Policy(),
    )


def test_memory_options(tmp_path: Path) -> None:
    settings = parse(CacheOptions, "--release", "--ttl", "90", "--spill", str(tmp_path), "--dedup", "pages")
    assert settings.policy == Policy(release=True, ttl=90.0, spill=tmp_path, dedup=Dedup.PAGES)
    assert settings.warm == 0
    for never in (["--ttl", "never"], ["--config", write(tmp_path / "a.toml", 'ttl = "never"')], []):
        assert parse(CacheOptions, *never).policy.ttl is None
    assert parse(CacheOptions, "--release", "--warm", "1G").warm == 2**30
    for value, leaves_out in (("off", False), ("zero", True), ("pages", True)):
        assert parse(ProxyOptions, "--dedup", value).leave_out_zeros is leaves_out


def test_wrong_memory_options(tmp_path: Path) -> None:
    assert "exclude each other" in refusal(CacheOptions, "--retain", "--release")
    assert "off, zero, pages" in refusal(CacheOptions, "--dedup", "all")
    assert "create it first" in refusal(CacheOptions, "--spill", str(tmp_path / "missing"))
    assert "--ttl" in refusal(CacheOptions, "--ttl", "0")


def test_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("XDG_STATE_HOME")
    settings = parse(CacheOptions)
    assert settings.control == "unix:/run/criu-relay/cache.sock"
    assert settings.state == Path("/var/lib/criu-relay")


def test_default_control_is_an_endpoint_whatever_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "a:b=c\\d"))
    assert values.server_address(parse(ProxyOptions).control, ("unix",)).path == (
        f"{tmp_path}/a:b=c\\d/criu-relay/proxy.sock"
    )


def test_available_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < values.available_memory() <= total


# Single options


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1M", 2**20),
        ("1m", 2**20),
        ("4096K", 2**22),
        ("3G", 3 * 2**30),
        ("1048576", 2**20),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_sizes(side: type[ProxyOptions] | type[CacheOptions], text: str, expected: int) -> None:
    settings = parse(side, "--window" if side is ProxyOptions else "--memory", text)
    assert (settings.window if isinstance(settings, ProxySettings) else settings.memory) == expected


def test_window_zero() -> None:
    settings = parse(ProxyOptions, "--window", "0")
    assert isinstance(settings, ProxySettings)
    assert settings.window == 0


@pytest.mark.parametrize("text", ["", "M", "1T", "-1", "1.5G", "0x10", " 1M", "1 M", "1MB", "٣M", "1M\n", "9" * 20])
def test_not_a_size(text: str) -> None:
    for side, name in ((ProxyOptions, "--window"), (CacheOptions, "--memory")):
        assert refusal(side, name, text).endswith(
            "not a size; give a whole number of bytes, or one with K, M or G behind it, such as 512M"
        )


def test_size_out_of_range() -> None:
    assert refusal(ProxyOptions, "--window", "1023K") == "--window 1023K: too little; give 1M or more, or 0"
    assert refusal(CacheOptions, "--memory", "0") == "--memory 0: too little; give 1M or more"
    assert "more than any machine has" in refusal(CacheOptions, "--memory", str(2**63))
    assert "more than any machine has" in refusal(CacheOptions, "--memory", "9999999999999999999G")


@pytest.mark.parametrize(
    ("text", "rate"), [("off", None), ("64K", 65536), ("100M/s", 100 << 20), ("1g/s", 1 << 30), ("70000", 70_000)]
)
def test_rate(text: str, rate: int | None) -> None:
    assert parse(ProxyOptions, "--rate", text).rate == rate


@pytest.mark.parametrize("text", ["", "0", "63K", "-1", "1.5M", "fast", "1M/h", "1T", "/s"])
def test_wrong_rate(text: str) -> None:
    assert "--rate" in refusal(ProxyOptions, "--rate", text)


@pytest.mark.parametrize("name", ["idle", "link-timeout"])
def test_seconds(name: str) -> None:
    for side in SIDES:
        for text, expected in (("1", 1.0), ("0.25", 0.25), ("31622400", 31622400.0)):
            assert getattr(parse(side, f"--{name}", text), name.replace("-", "_")) == expected
        for text in ("0", "-1", "nan", "inf", "1e99", "1h", "", "31622401"):
            line = refusal(side, f"--{name}", text)
            assert line.startswith(f"--{name} ")
            assert line.endswith("not a time; give a number of seconds above 0, such as 30")


def test_allow_uid() -> None:
    assert parse(ProxyOptions, "--allow-uid", "0", "--allow-uid", "4294967294").allow_uids == {0, 4294967294}
    for text in ("4294967295", "-1", "root", "", "1.0", "99999999999"):
        assert "not the number of a user; give one from 0" in refusal(CacheOptions, "--allow-uid", text)


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "available_memory", lambda: 10 * 2**30)
    assert parse(CacheOptions, "--retain", "--insecure") == parse(CacheOptions, "--insecure", "--retain", "--retain")
    settings = parse(CacheOptions, "--retain", "--insecure")
    assert isinstance(settings, CacheSettings)
    assert settings.policy.retain
    assert settings.insecure


def test_state(tmp_path: Path) -> None:
    assert parse(ProxyOptions, "--state", "new/state").state == tmp_path / "new" / "state"
    assert parse(ProxyOptions, "--state", "/abs/../else").state == Path("/else")
    write(tmp_path / "file", "")
    for text in ("", "file"):
        assert "not a directory; give one, it is created when it is missing" in refusal(ProxyOptions, "--state", text)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("arguments", [["--no-such"], ["--idle"], ["--insecure=1"], ["-x"]])
def test_what_getopt_refuses(side: type[ProxyOptions] | type[CacheOptions], arguments: list[str]) -> None:
    assert refusal(side, *arguments).endswith("; give one that --help lists, as it is shown there")


def test_options_of_the_other_side() -> None:
    assert "--window not recognized" in refusal(CacheOptions, "--window", "1M")
    assert "--memory not recognized" in refusal(ProxyOptions, "--memory", "1M")
    assert "--retain not recognized" in refusal(ProxyOptions, "--retain")


def test_arguments_are_refused() -> None:
    assert refusal(CacheOptions, "/run/a\nb") == (
        "'/run/a\\nb': not an option; give directories as --stream DIR or --images DIR"
    )


# Directories


def test_attachments(tmp_path: Path) -> None:
    for name in ("web", "db", "a=b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("web")
    settings = parse(
        ProxyOptions,
        "--images",
        "db",
        "--stream",
        "link=x",
        "--stream",
        "./db/",
        "--stream",
        "a=b=n",
        "--images",
        "web",
    )
    assert settings.attachments == (
        Attached(str(tmp_path / "web"), "x", "stream"),
        Attached(str(tmp_path / "db"), None, "stream"),
        Attached(str(tmp_path / "a=b"), "n", "stream"),
        Attached(str(tmp_path / "db"), None, "images"),
        Attached(str(tmp_path / "web"), None, "images"),
    )


def test_directories_may_share_a_namespace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    settings = parse(CacheOptions, "--stream", "a=n", "--stream", "b=n")
    assert [attached.namespace for attached in settings.attachments] == ["n", "n"]


@pytest.mark.parametrize("name", ["--stream", "--images"])
def test_wrong_directories(name: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "a b").mkdir()
    write(tmp_path / "file", "")
    assert (
        refusal(ProxyOptions, name, "gone")
        == f"{name} gone: no directory {tmp_path}/gone; create it first, or give another"
    )
    assert "no directory" in refusal(ProxyOptions, name, "file")
    assert "names no directory" in refusal(ProxyOptions, name, "=n")
    assert "names no directory" in refusal(ProxyOptions, name, "")
    assert "no path has a NUL in it; give one without" in refusal(ProxyOptions, name, "dir\0x=n")
    for text in ("dir=", "dir=a/b", "dir=..", "dir=.", "a b", "dir=" + "n" * 256, "dir=a\nb", "/"):
        assert "give DIR=NAMESPACE with 1 to 255 of A-Z a-z 0-9 . _ -" in refusal(ProxyOptions, name, text), text
    assert parse(ProxyOptions, name, "dir=" + "n" * 255).attachments[0].namespace == "n" * 255


def test_a_directory_twice(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for again in ("dir", "dir=other", "../" + tmp_path.name + "/dir"):
        assert "was given before; give it once" in refusal(ProxyOptions, "--stream", "dir", "--stream", again)


# The link


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("tcp:127.0.0.1:9", True),
        ("tcp:127.9.9.9:9", True),
        ("tcp:localhost:9", True),
        ("tcp:host=127.0.0.1:port=9:timeout=5", True),
        (r"tcp:\:\:1:9", True),
        ("TCP:127.0.0.1:65535", True),
        ("tcp:10.0.0.1:9", False),
        ("tcp:cache.example:9", False),
        ("tcp:127.0.0.1.example:9", False),
        (r"tcp:fe80\:\:1:9", False),
        ("tcp:0.0.0.0:9", False),
    ],
)
@pytest.mark.parametrize("name", ["link", "criu-dev-link"])
def test_client_endpoints(name: str, text: str, local: bool) -> None:
    assert getattr(parse(ProxyOptions, f"--{name}", text, "--insecure"), name.replace("-", "_")) == text
    if local:
        assert getattr(parse(ProxyOptions, f"--{name}", text), name.replace("-", "_")) == text
    else:
        line = refusal(ProxyOptions, f"--{name}", text)
        assert line.startswith(f"--{name} {text}: the host ")
        assert "is beyond loopback and the link is plain; give --tls-cert, --tls-key and --tls-ca, or" in line


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("tcp:9:interface=127.0.0.1", True),
        ("tcp:0:interface=127.0.0.2:backlog=5", True),
        (r"tcp:9:interface=\:\:1", True),
        (r"tcp6:9:interface=\:\:1", True),
        ("tcp:port=9:interface=localhost", True),
        ("tcp:9", False),
        ("tcp6:9", False),
        ("tcp:9:interface=0.0.0.0", False),
        ("tcp:9:interface=192.0.2.1", False),
    ],
)
@pytest.mark.parametrize("name", ["link", "criu-dev-link"])
def test_server_endpoints(name: str, text: str, local: bool) -> None:
    assert getattr(parse(CacheOptions, f"--{name}", text, "--insecure"), name.replace("-", "_")) == text
    if local:
        assert getattr(parse(CacheOptions, f"--{name}", text), name.replace("-", "_")) == text
    else:
        assert "is beyond loopback and the link is plain" in refusal(CacheOptions, f"--{name}", text)


@pytest.mark.parametrize(
    "text", ["", "9876", "127.0.0.1:9876", "tcp", "udp:1:2", "unix:/x", "ssl:127.0.0.1:9", "tls:a:9"]
)
def test_endpoints_of_other_kinds(text: str) -> None:
    assert refusal(ProxyOptions, "--link", text).endswith(
        "not one of tcp:; give an endpoint such as tcp:127.0.0.1:9876"
    )
    assert refusal(CacheOptions, "--link", text).endswith(
        "not one of tcp:, tcp6:, systemd:; give an endpoint such as tcp:9876:interface=127.0.0.1"
    )


@pytest.mark.parametrize(
    "text", ["tcp:", "tcp:host", "tcp:127.0.0.1:x", "tcp:127.0.0.1:9:9:9:9", "tcp:127.0.0.1:9:nonsense=1"]
)
def test_client_endpoints_that_do_not_parse(text: str) -> None:
    assert "give one such as tcp:127.0.0.1:9876" in refusal(ProxyOptions, "--link", text)


@pytest.mark.parametrize("text", ["tcp:", "tcp:x", "tcp:9:nonsense=1", "tcp:9:backlog=x", "tcp:9:1:2:3"])
def test_server_endpoints_that_do_not_parse(text: str) -> None:
    assert "give one such as tcp:9876:interface=127.0.0.1" in refusal(CacheOptions, "--link", text)


def test_ports() -> None:
    assert "port 0 does not exist; give one from 1 to 65535" in refusal(ProxyOptions, "--link", "tcp:127.0.0.1:0")
    assert "port 65536 does not exist" in refusal(ProxyOptions, "--link", "tcp:127.0.0.1:65536")
    assert "port -1 does not exist; give one from 0" in refusal(CacheOptions, "--link", "tcp:-1:interface=127.0.0.1")
    assert "names no host" in refusal(ProxyOptions, "--link", "tcp::9876")


def test_looking_at_an_endpoint_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a path that cannot be bound."""
    opened = set(os.listdir("/proc/self/fd"))
    parse(CacheOptions, "--link", "tcp:1:interface=127.0.0.1", "--control", "unix:/no/such/directory/x.sock")
    assert set(os.listdir("/proc/self/fd")) == opened


def test_the_default_links_are_endpoints() -> None:
    assert values.client_address(ProxyOptions.default_link) == values.Address("127.0.0.1", 9876)
    assert values.server_address(CacheOptions.default_link) == values.Address("127.0.0.1", 9876)
    assert endpoints.serverFromString(object(), CacheOptions.default_link) is not None


def test_link_fd(pair: tuple[socket.socket, socket.socket]) -> None:
    number = pair[0].fileno()
    for side in SIDES:
        settings = parse(side, "--link-fd", str(number))
        assert (settings.link, settings.link_fd) == (None, number)
    pair[1].send(b"x")
    assert pair[0].recv(1) == b"x", "the socket is as it was"


def test_link_fd_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert parse(ProxyOptions, "--link-fd", str(client.fileno())).link_fd == client.fileno()


def test_link_fd_beyond_this_machine(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(values, "inherited_address", lambda descriptor: values.Address("192.0.2.7", 5))
    number = str(pair[0].fileno())
    assert "the host 192.0.2.7 is beyond loopback" in refusal(ProxyOptions, "--link-fd", number)
    assert parse(ProxyOptions, "--link-fd", number, "--insecure").link_fd == pair[0].fileno()


def test_wrong_link_fd(tmp_path: Path) -> None:
    for text in ("2", "0", "-1", "x", "", "9999999999"):
        assert "give that of an inherited socket, 3 or above" in refusal(ProxyOptions, "--link-fd", text)
    advice = "give the number of an inherited, connected stream socket"
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket() as lonely,
        socket.socket(type=socket.SOCK_DGRAM) as packets,
    ):
        packets.connect(("127.0.0.1", 9))
        for descriptor in (file.fileno(), lonely.fileno(), packets.fileno()):
            assert advice in refusal(ProxyOptions, "--link-fd", str(descriptor))
        closed = os.dup(file.fileno())
        os.close(closed)
        assert advice in refusal(ProxyOptions, "--link-fd", str(closed))


def test_links_exclude_each_other(pair: tuple[socket.socket, socket.socket]) -> None:
    number, link = str(pair[0].fileno()), "tcp:127.0.0.1:9"
    for side in SIDES:
        line = refusal(side, "--link-fd", number, "--link", link if side is ProxyOptions else "tcp:9")
        assert line == "--link and --link-fd exclude each other; give one of them"
    assert "exclude each other" in refusal(ProxyOptions, "--link", link, "--criu-dev-link", link)
    assert "exclude each other" in refusal(ProxyOptions, "--link-fd", number, "--criu-dev-link", link)


def test_criu_dev_link() -> None:
    settings = parse(ProxyOptions, "--criu-dev-link", "tcp:127.0.0.1:9")
    assert (settings.link, settings.criu_dev_link) == (None, "tcp:127.0.0.1:9")
    settings = parse(CacheOptions, "--criu-dev-link", "tcp:9:interface=127.0.0.1")
    assert (settings.link, settings.criu_dev_link) == ("tcp:9876:interface=127.0.0.1", "tcp:9:interface=127.0.0.1")


# The control endpoint


def test_control() -> None:
    for text in ("unix:/tmp/x.sock", "unix:address=/tmp/x.sock", "tcp:8000:interface=127.0.0.1"):
        assert parse(CacheOptions, "--control", text).control == text
    for arguments in (["--control", "tcp:8000"], ["--control", "tcp:8000", "--insecure"]):
        assert "give a unix: endpoint, or a loopback address" in refusal(CacheOptions, *arguments)
    for text in ("/tmp/x.sock", "unix", "ssl:5"):
        assert "give an endpoint such as unix:/run/criu-relay/cache.sock" in refusal(CacheOptions, "--control", text)


@pytest.mark.parametrize("side", SIDES)
def test_metrics(side: type[ProxyOptions] | type[CacheOptions]) -> None:
    for text in ("unix:/tmp/x.sock", "tcp:8000:interface=127.0.0.1", r"tcp6:8000:interface=\:\:1"):
        assert parse(side, "--metrics", text).metrics == text
    assert refusal(side, "--metrics", "tcp:8000") == (
        "--metrics tcp:8000: other machines could reach it; give a loopback address, or --insecure as well"
    )
    assert parse(side, "--metrics", "tcp:8000", "--insecure").metrics == "tcp:8000"
    for text in ("9877", "ssl:5", "tcp:x"):
        assert "give" in refusal(side, "--metrics", text, "--insecure")


def test_manhole(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", "")
    for text in ("unix:/tmp/x.sock", "tcp:2222:interface=127.0.0.1"):
        settings = parse(CacheOptions, "--manhole", text, "--manhole-keys", "keys")
        assert (settings.manhole, settings.manhole_keys) == (text, tmp_path / "keys")
    alone = "--manhole and --manhole-keys belong together; give both, or neither"
    assert refusal(ProxyOptions, "--manhole", "unix:/m") == refusal(ProxyOptions, "--manhole-keys", keys) == alone
    assert refusal(ProxyOptions, "--manhole", "unix:/m", "--manhole-keys", "gone") == (
        f"--manhole-keys gone: no file {tmp_path}/gone; give one that is there"
    )
    assert "other machines could reach it" in refusal(ProxyOptions, "--manhole", "tcp:2222", "--manhole-keys", keys)
    assert parse(ProxyOptions, "--manhole", "tcp:2222", "--manhole-keys", keys, "--insecure").manhole == "tcp:2222"


# The file

EVERYTHING = """
link = "tcp:10.0.0.2:99"
insecure = true
state = "state"
stream = ["web", "db=base"]
images = "web"
control = "unix:/x.sock"
metrics = "tcp:9877"
manhole = "unix:/m"
manhole-keys = "keys"
idle = 2.5
allow-uid = [5, 6]
link-timeout = 7
"""


def test_file(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    for name in ("web", "db"):
        (conf / name).mkdir(parents=True)
    write(conf / "keys", "")
    path = write(conf / "relay.toml", EVERYTHING + 'window = "2M"\n')
    assert parse(ProxyOptions, "--config", path) == ProxySettings(
        link="tcp:10.0.0.2:99",
        link_fd=None,
        criu_dev_link=None,
        state=conf / "state",
        attachments=(
            Attached(str(conf / "web"), None, "stream"),
            Attached(str(conf / "db"), "base", "stream"),
            Attached(str(conf / "web"), None, "images"),
        ),
        control="unix:/x.sock",
        metrics="tcp:9877",
        manhole="unix:/m",
        manhole_keys=conf / "keys",
        insecure=True,
        idle=2.5,
        allow_uids=frozenset({5, 6}),
        link_timeout=7.0,
        tls=None,
        window=2 * 2**20,
        rate=None,
        leave_out_zeros=True,
    )


def test_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "db").mkdir()
    write(tmp_path / "keys", "")
    path = write(tmp_path / "relay.toml", EVERYTHING + "window = 2097152\n")
    settings = parse(
        ProxyOptions, "--stream", "db", "--config", path, "--idle", "9", "--window", "3M", "--allow-uid", "1",
        "--link", "tcp:127.0.0.1:1", "--link-timeout", "8", "--state", "/s", "--control", "unix:/y", "--images", "db",
        "--metrics", "unix:/m", "--manhole", "tcp:22:interface=127.0.0.1", "--manhole-keys", "keys",
    )  # fmt: skip
    assert settings == ProxySettings(
        link="tcp:127.0.0.1:1",
        link_fd=None,
        criu_dev_link=None,
        state=Path("/s"),
        attachments=(Attached(str(tmp_path / "db"), None, "stream"), Attached(str(tmp_path / "db"), None, "images")),
        control="unix:/y",
        metrics="unix:/m",
        manhole="tcp:22:interface=127.0.0.1",
        manhole_keys=tmp_path / "keys",
        insecure=True,
        idle=9.0,
        allow_uids=frozenset({1}),
        link_timeout=8.0,
        tls=None,
        window=3 * 2**20,
        rate=None,
        leave_out_zeros=True,
    )


def test_command_line_wins_over_what_stands_in(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    path = write(tmp_path / "relay.toml", 'link = "tcp:127.0.0.1:99"\n')
    settings = parse(ProxyOptions, "--config", path, "--link-fd", str(pair[0].fileno()))
    assert (settings.link, settings.link_fd) == (None, pair[0].fileno())
    path = write(tmp_path / "relay.toml", f"link-fd = {pair[0].fileno()}\n")
    settings = parse(ProxyOptions, "--config", path, "--link", "tcp:127.0.0.1:99")
    assert (settings.link, settings.link_fd) == ("tcp:127.0.0.1:99", None)
    path = write(tmp_path / "relay.toml", f'link-fd = {pair[0].fileno()}\nlink = "tcp:127.0.0.1:9"\n')
    assert "exclude each other" in refusal(ProxyOptions, "--config", path)


def test_false_flags(tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", "insecure = false\nretain = false\n")
    settings = parse(CacheOptions, "--config", path)
    assert isinstance(settings, CacheSettings)
    assert (settings.insecure, settings.policy.retain) == (False, False)


@pytest.mark.parametrize(
    "line",
    [
        "idle = '5'", "idle = true", "idle = [5]", "link = 5", "link = ['a']", "link = {a = 1}", "insecure = 1",
        "insecure = 'yes'", "stream = 5", "stream = [5]", "stream = [['a']]", "allow-uid = 'root'", "allow-uid = 1.0",
        "allow-uid = false", "state = 1", "control = false", "link-fd = '5'", "memory = 1.5", "memory = true",
        "memory = ['1M']", "retain = 'no'", "link = 1979-05-27", "link-timeout = '1'", "images = {}",
    ],
)  # fmt: skip
def test_wrong_types(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", line)
    message = refusal(CacheOptions, "--config", path)
    assert message.startswith(f"{path}: {line.partition(' ')[0]} = ")
    assert ": give " in message


@pytest.mark.parametrize(
    "line", ["memory = -1", "memory = 'much'", "idle = 0", "idle = nan", "stream = 'gone'", "allow-uid = -1"]
)
def test_wrong_values(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", line)
    message = refusal(CacheOptions, "--config", path)
    assert message.startswith(f"{path}: {line.partition(' ')[0]} = ")
    assert "; give " in message or "; create it first" in message


@pytest.mark.parametrize("key", ["config", "help", "version", "window", "no-such", "link_fd", "LINK", "cache"])
def test_unknown_keys(key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", f"{key} = 'x'")
    assert refusal(CacheOptions, "--config", path) == f"{path}: {key}: no such key; give one of {', '.join(CACHE_KEYS)}"


def test_known_keys_of_the_proxy(tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", "x = 1")
    assert refusal(ProxyOptions, "--config", path).endswith(f"; give one of {', '.join(PROXY_KEYS)}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file or directory; give a TOML file" in refusal(CacheOptions, "--config", "gone.toml")
    assert "Is a directory; give a TOML file" in refusal(CacheOptions, "--config", str(tmp_path))
    assert "not TOML: " in refusal(CacheOptions, "--config", write(tmp_path / "x.toml", "idle 5"))
    (tmp_path / "y.toml").write_bytes(b"state = '\xff'\n")
    assert "not TOML: " in refusal(CacheOptions, "--config", "y.toml")
    large = write(tmp_path / "large.toml", "#" * (LARGEST_FILE + 1))
    assert "larger than 1048576 bytes" in refusal(CacheOptions, "--config", large)
    assert parse(CacheOptions, "--config", write(tmp_path / "full.toml", "#" * LARGEST_FILE)) == parse(CacheOptions)
    assert "larger than 1048576 bytes" in refusal(CacheOptions, "--config", "/dev/zero")


@pytest.mark.parametrize(("name", "side"), [("proxy", ProxyOptions), ("cache", CacheOptions)])
def test_examples_in_conf(name: str, side: type[ProxyOptions] | type[CacheOptions], tmp_path: Path) -> None:
    """The examples are what they say: every line that is commented out is a default or a valid choice."""
    text = (ROOT / "conf" / f"{name}.toml").read_text()
    directory = tmp_path / "run"
    directory.mkdir()
    plain = write(tmp_path / "plain.toml", text.replace("/run/web", str(directory)))
    assert parse(side, "--config", plain).attachments == (Attached(str(directory), "web", "stream"),)
    keys = set()
    for line in text.splitlines():
        key, equals, _ = line.removeprefix("#").partition(" = ")
        if not equals or " " in key:
            continue
        keys.add(key)
        alone = line.removeprefix("#").replace("/run/web", str(directory))
        if key == "link-fd":
            continue
        if key.startswith("manhole"):
            alone = f'manhole = "unix:/m"\nmanhole-keys = "{write(tmp_path / "keys", "")}"\n'
        files = TLS_FILES if key.startswith("tls-") else []
        parse(side, "--config", write(tmp_path / "one.toml", alone), "--insecure", *files)
    assert sorted(keys) == (PROXY_KEYS if side is ProxyOptions else CACHE_KEYS)


# TLS


@pytest.mark.parametrize("side", SIDES)
def test_tls_files(side: type[ProxyOptions] | type[CacheOptions], tmp_path: Path) -> None:
    tls = parse(side, *TLS_FILES).tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.authorities) == tuple(tmp_path / TLS_FILES[at] for at in (1, 3, 5))
    (tmp_path / "there").mkdir()
    config = write(tmp_path / "there" / "relay.toml", 'tls-cert = "a"\ntls-key = "/b"\ntls-ca = "../c"\n')
    tls = parse(side, "--config", config, "--tls-peer", "x").tls
    assert tls is not None
    assert tls.certificate == tmp_path / "there" / "a"
    assert tls.key == Path("/b")
    assert tls.authorities.resolve() == tmp_path / "c"
    assert tls.peers == ("x",)


@pytest.mark.parametrize("side", SIDES)
def test_tls_needs_all_its_files(side: type[ProxyOptions] | type[CacheOptions]) -> None:
    for at in (0, 2, 4):
        some = TLS_FILES[:at] + TLS_FILES[at + 2 :]
        assert refusal(side, *some).endswith(f"TLS needs all of its files; give {TLS_FILES[at]} as well")
    assert "give --tls-key and --tls-ca as well" in refusal(side, *TLS_FILES[:2])
    assert "give --tls-cert and --tls-key and --tls-ca as well" in refusal(side, "--tls-peer", "node-a")
    for text in ("", "a\0b"):
        assert "not a file; give one, such as criu-relay make-certs writes" in refusal(
            side, *TLS_FILES, "--tls-cert", text
        )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("text", "name"),
    [("Node-A.Example.", "node-a.example"), ("192.0.2.1", "192.0.2.1"), ("2001:DB8:0::1", "2001:db8::1")],
)
def test_tls_peers(side: type[ProxyOptions] | type[CacheOptions], text: str, name: str) -> None:
    tls = parse(side, *TLS_FILES, "--tls-peer", text, "--tls-peer", "b", "--tls-peer", text).tls
    assert tls is not None
    assert tls.peers == (name, "b")


@pytest.mark.parametrize("text", ["", "a b", "*.example", "a/b", "..", "-a", "é.example", "x" * 64, "1.2.3", "a:1"])
def test_wrong_tls_peers(text: str) -> None:
    for side in SIDES:
        line = refusal(side, *TLS_FILES, "--tls-peer", text)
        assert line.endswith("neither a DNS name nor an IP address; give one such as node-a.example or 192.0.2.1")


def test_the_cache_is_who_the_link_says() -> None:
    for link, name in (
        ("tcp:cache.example:9", "cache.example"),
        (r"tcp:2001\:db8\:\:1:9", "2001:db8::1"),
        ("tcp:host=10.0.0.9:port=9", "10.0.0.9"),
    ):
        tls = parse(ProxyOptions, *TLS_FILES, "--link", link).tls
        assert tls is not None
        assert tls.peers == (name,)
    tls = parse(ProxyOptions, *TLS_FILES).tls
    assert tls is not None
    assert tls.peers == ("127.0.0.1",)
    tls = parse(CacheOptions, *TLS_FILES).tls
    assert tls is not None
    assert tls.peers == ()


def test_an_inherited_link_names_nobody(pair: tuple[socket.socket, socket.socket]) -> None:
    given = ["--link-fd", str(pair[0].fileno()), *TLS_FILES]
    assert refusal(ProxyOptions, *given).endswith("give --tls-peer NAME")
    assert parse(ProxyOptions, *given, "--tls-peer", "node-b").tls is not None
    assert parse(CacheOptions, *given).tls is not None


def test_tls_makes_a_link_beyond_this_machine_safe() -> None:
    assert not parse(ProxyOptions, "--link", "tcp:10.0.0.1:9", *TLS_FILES).insecure
    assert not parse(CacheOptions, "--link", "tcp:9", *TLS_FILES).insecure


def test_the_old_link_is_plain_all_the_same() -> None:
    old = ["--criu-dev-link", "tcp:127.0.0.1:9"]
    assert "CRIU's own image-cache knows no TLS" in refusal(ProxyOptions, *old, *TLS_FILES)
    assert "is beyond loopback" in refusal(CacheOptions, "--criu-dev-link", "tcp:9", *TLS_FILES)
    assert parse(CacheOptions, "--criu-dev-link", "tcp:9:interface=127.0.0.1", *TLS_FILES).tls is not None


# Help


@pytest.mark.parametrize("side", SIDES)
def test_help_teaches(side: type[ProxyOptions] | type[CacheOptions], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(side, "--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for name in PROXY_KEYS if side is ProxyOptions else CACHE_KEYS:
        assert f"--{name}" in shown
    assert shown.startswith(f"Usage: twistd [-n --pidfile=] criu-relay-{side.role} [options]")
    assert "criu-relay-action" in shown
    assert max(map(len, shown.splitlines())) < 100


@pytest.mark.parametrize("side", SIDES)
def test_an_error_is_not_buried_in_help(side: type[ProxyOptions] | type[CacheOptions]) -> None:
    """twistd prints what the options say of themselves, and then the error: in a journal that is all there is."""
    options = side()
    with pytest.raises(usage.UsageError):
        options.parseOptions(["--idle", "never"])
    assert str(options).splitlines() == [options.getSynopsis(), f"Its options: twistd criu-relay-{side.role} --help"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(ProxyOptions, "--version")
    assert capsys.readouterr().out.startswith("criu_relay ")
