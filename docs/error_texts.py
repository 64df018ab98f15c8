"""What docs/errors.md says besides what the code does (docs/make_errors.py)."""

from __future__ import annotations

INTRODUCTION = """\
# Errors

Written from the code by `python docs/make_errors.py`. Find the line that you see by its words that are not in
CAPITALS: those stand for a name, a number or a path. The commands print `criu-relay: LINE: WHAT TO DO`, the control API
answers `{"error": LINE, "hint": WHAT TO DO}`, and a daemon that cannot start prints the same and ends with status 1. In a
log, and as the reason of an aborted namespace in `criu-relay status`, stands the line alone. Symptoms that have no line:
[troubleshooting.md](troubleshooting.md).
"""

IMPERATIVES = (
    "give", "create", "set", "start", "criu-relay", "leave", "remove", "use", "this is for", "the daemon's log",
)  # fmt: skip
"""How the part of a line that says what to do begins."""

PROTOCOL_GROUP = "What a peer sends that does not fit"

OWN_PROTOCOL = ("link/handshake", "link/connection")
"""Modules whose ProtocolErrors a person can do something about."""

ADVICE: dict[str, str] = {}

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Starting a daemon: options": (
        "Of `twistd criu-relay-proxy` and `twistd criu-relay-cache`; also at `systemctl reload`. In a line about `--config`"
        " the option is `FILE: KEY = VALUE`. Every option: [options.md](options.md).",
        ("options", "given", "values", "memory_options", "console_options", "settings"),
    ),
    "Starting and running a daemon: sockets, files, services": (
        "At the start they end the daemon; later they are in its log.",
        (
            "daemon",
            "proxy",
            "cache",
            "lifecycle",
            "notify",
            "journal",
            "admin/listen",
            "admin/rundir",
            "commit/lock",
            "commit/records",
            "link/services",
            "store/spill",
        ),
    ),
    "Attaching a directory": (
        "`--stream`, `--images` and `criu-relay attach`.",
        ("local/attachments", "flow/unix_listener", "local/listener"),
    ),
    "TLS": (
        "In the log of the side that refuses; the other side learns little, so look at both ([tls.md](tls.md)).",
        ("link/credentials", "link/handshake", "flow/tls", "flow/twisted_tls"),
    ),
    "The link": (
        "In the log, in `criu-relay status` beside the link, and as the reason of a namespace that was aborted for it.",
        ("link", "flow/frames", "flow/channel"),
    ),
    "Dump": (
        "At the proxy. The reason reaches `criu dump` as a failed `--action-script`, or a socket that breaks; the task lives on.",
        (
            "commit",
            "local/stream_capture",
            "local/images_proxy",
            "local/sources",
            "local/ordering",
            "flow/source",
            "machine",
        ),
    ),
    "The cache and its memory": (
        "At the cache, in its log and as the reason of a namespace. More: [memory.md](memory.md).",
        ("store",),
    ),
    "Restore, and CRIU's sockets": (
        "In the log of the daemon whose socket CRIU is connected to.",
        ("local", "flow"),
    ),
    "criu-relay": (
        "On standard error, behind `criu-relay: `; the exit status is in [control.md](control.md).",
        (
            "admin/command",
            "admin/argument",
            "admin/client",
            "admin/files",
            "admin/certificates",
            "admin/watch",
            "admin/show",
        ),
    ),
    "criu-relay-action": (
        "In CRIU's log (`-o dump.log`, in the `-D` directory; without `-o` on its standard error), behind"
        " `criu-relay-action: STAGE: `. Whatever the proxy or the cache refuse is said the same way.",
        ("admin/action",),
    ),
    "The manhole": ("At the prompt, or in the log ([manhole.md](manhole.md)).", ("admin/manhole",)),
    "The control API": ("As JSON, and behind `criu-relay: ` ([control.md](control.md)).", ("admin",)),
    PROTOCOL_GROUP: (
        "CRIU, the other daemon, or whoever connected there sent what the protocol does not allow. Its connection ends,"
        " nothing else. Look who it is (the line in the log has its address or pid) and compare the versions of both"
        " sides (`criu-relay --version`, `criu --version`). When they are the same, it is a defect: please report the"
        " line.",
        ("wire",),
    ),
}
"""Title -> what it is about, and the modules that its lines are from."""

ENVELOPES = (
    "WHERE SHOWN: ADVICE", "the peer's certificate is refused: REFUSAL", "--OPTION VALUE: neither a DNS name nor an IP address; HINT",
)  # fmt: skip
"""Lines around others, which are found by themselves."""

SEE_HELP = "see criu-relay COMMAND --help"

_ITSELF = "the line says it"
_LOG = "see the REASON; the lines before it in the log say what was going on"
_OTHER_SIDE = "look into the log of the other side"
_AGAIN = "nothing: the task lives on; dump again"
_DEFECT = "it should not happen: please report it, with the log"
_NEW_CERTIFICATE = "make a new certificate (criu-relay make-certs), and look at the clocks"
_ONE_CA = "give both sides certificates of one CA, and that CA as --tls-ca"
_ANSWER = "what is at the --control socket is not this program, or not this version: compare criu-relay --version"
_DAEMON = "look into the daemon's log; systemctl restart ends one that hangs"
_OLD_CACHE = "look at CRIU's image-cache; a criu-relay-cache with --link takes broken links better"

ADVICE: dict[str, str] = {
    # The command
    "the daemon at PATH accepts no connection": _DAEMON,
    "the daemon does not read": _DAEMON,
    "the daemon does not answer": _DAEMON,
    "the daemon hung up": "it ended meanwhile: look into its log, and start it again",
    "the daemon hung up: REASON": "it ended meanwhile: look into its log, and start it again",
    "PATH: REASON": "for no such file, or a refused connection: start the daemon; for a denied permission: be root, or the"
    " daemon's user",
    "what answers at PATH is not criu_relay": _ANSWER,
    "an answer of LENGTH bytes": _ANSWER,
    "cannot VERBWHAT: REASON": "give a directory that can be read, or written; export needs room for all the images",
    "cannot write the output: REASON": "make room where it is written to, or write it elsewhere; what the command had to do"
    " otherwise is done",
    # Control API
    "discarded at the proxy": _AGAIN,
    "the client hung up after SIZE bytes": "an import was interrupted: import again",
    "the image is not wanted any more": "the namespace ended: criu-relay status says why",
    "an image that a client reads cannot be read on: REASON": _LOG,
    "manhole: KEY discarded WHAT: BYTES bytes": "nothing: it is on record who did it",
    "manhole: REASON": _ITSELF,
    # Daemons
    "cannot start: REASON": _ITSELF,
    "the configuration is not taken: REASON": "mend the file, then systemctl reload; until then the old one holds",
    "not attached: REASON": _ITSELF,
    "changed, and taken at the next start: NAMES": "restart the daemon when nothing is under way",
    "stopping at once": "nothing: a second SIGTERM asked for it",
    "the record PATH cannot be read: REASON": "its migration waits for a person: criu-relay status at the cache; then"
    " remove the file",
    "migration MIGRATION is not decided: its record cannot be read": "find out whether its task lives on; then at the"
    " cache criu-relay commit NS --force, or criu-relay discard NS",
    "namespace NAME is not decided: it was permitted over another link, LINK": "start criu-relay-proxy with that --link"
    " again; if that cache is gone, remove the record from permitted in --state",
    "PATH is listened on already": _DEFECT,
    "PATH is not listened on": _DEFECT,
    "nothing more is spilled: DIRECTORY: REASON": "make room there, or give another --spill, and restart",
    # TLS
    "there is no --tls-peer: whoever has a certificate from --tls-ca is let in": "give --tls-peer NAME, unless that CA"
    " signs for your own nodes only",
    "the certificates of before stay in use: REASON": _ITSELF,
    "the peer's certificate is refused: it has expired": _NEW_CERTIFICATE,
    "the peer's certificate is refused: it is not valid yet": _NEW_CERTIFICATE,
    "the peer's certificate is refused: it is from a CA that --tls-ca does not have": _ONE_CA,
    "the peer's certificate is refused: it is signed by nobody but itself": _ONE_CA,
    "the peer's certificate is refused: its signature is not of a CA in --tls-ca": _ONE_CA,
    "the peer's certificate is refused: it is signed by one that is no CA": _ONE_CA,
    "the peer's certificate is refused: its extended key usage does not allow this side of a link": "the proxy needs one"
    " for clients, the cache one for servers; criu-relay make-certs makes both",
    "the peer's certificate is refused: its key usage does not allow signatures": "TLS 1.3 needs digitalSignature: make a"
    " new one",
    "the peer's certificate is refused: it cannot be read": "make a new one",
    "the peer's certificate is refused: it has SHOWN; --tls-peer and --link allow NAMES": "add a name that it has to"
    " --tls-peer, or make a certificate with the right name",
    "the peer gave the TLS handshake up: REASON": _OTHER_SIDE,
    "the peer does not speak TLS: give it --tls-cert, --tls-key and --tls-ca as well": _ITSELF,
    "the peer does not speak TLS 1.3, and nothing older is safe enough": "update OpenSSL at the other side",
    "the peer shows no certificate: give it --tls-cert and --tls-key": _ITSELF,
    "the peer refuses our certificate or our TLS, its log says why: SHOWN": _OTHER_SIDE,
    "TLS failed: SHOWN": _OTHER_SIDE,
    # The link
    "the peer refuses the link: REASON": _OTHER_SIDE,
    "the peer's first frame is KIND, not hello": "something else is at that port: look at --link",
    "the peer said hello twice": _DEFECT,
    "the peer does not read": _OTHER_SIDE,
    "link to PEER: REASON": _ITSELF,
    "link to PEER is refused: REASON": _ITSELF,
    "the peer speaks version VERSION of the link, not 1": "install the same version of criu_relay on both sides",
    "both ends of the link are of the same kind: connect a proxy to a cache": _ITSELF,
    "the peer did not finish the TLS handshake in 10 s": "something else listens there, or the network is that slow",
    "the peer did not say hello in 10 s": "something else is at the other end, or one side has TLS and the other has not",
    "the link is lost: REASON": "nothing: the proxy makes it again; when that fails look at the network and the cache",
    "64 connections after it have not said hello either": "look who connects to --link: a firewall keeps them away",
    "waiting up to SECONDS s for the link to be made again": "nothing yet: is the cache reachable?",
    "the cache has lost its images: it was started again": "dump again; when the task is gone already, it is lost",
    "REASON, and it was not made again in PATIENCE s": "look at the network and the cache; a larger --link-timeout waits"
    " longer",
    "the cache holds NAME, which was given up here": "nothing: the cache is told to forget it",
    "the cache gives it up: REASON": _OTHER_SIDE,
    "its proxy was started again, and has made another link": "nothing: the new link is in use",
    "the proxy has made another link": "nothing: the new link is in use",
    "a migration of PEER is refused: REASON": _ITSELF,
    "the labels of its snapshots were changed on the way: their digest differs": "look at the network; dump again",
    "the cache holds NAMESPACE as NAMESPACE: the link changed what was sent": "look at the network; dump again",
    "image NAME takes one push producer at a time": _DEFECT,
    "image NAME: REASON": _ITSELF,
    "image NAME was replaced": "nothing: CRIU wrote it anew",
    "image NAME is opened again while it is being written": "one criu only may dump into a directory",
    "the old cache closed the link": _OLD_CACHE,
    "the old cache did not read for 30 s": _OLD_CACHE,
    "no link to the old cache: REASON": _OLD_CACHE,
    "the link to the old cache is lost: REASON": _OLD_CACHE,
    "link of criu image-proxy: REASON": "look at CRIU's image-proxy; dump again",
    # Dump
    "the dump was given up: REASON": "criu-relay status says more; dump again",
    "namespace NAME was permitted before a restart: looking after its task": "nothing: the proxy finds out",
    "criu-relay-proxy is being stopped": "start it again, then dump again",
    "NAMESPACE has more than 1024 snapshots": "make a full dump into a new namespace",
    "NAMESPACE has more than 65536 images": "dump fewer processes at once",
    "NAME is for snapshot LABEL, which this dump has not declared": _DEFECT,
    "image NAME of NAMESPACE is being written already": "one criu only may dump into a directory",
    "namespace NAMESPACE is STATE already": "it is decided: criu-relay status says how",
    "namespace NAMESPACE is STATE": "criu-relay status says more",
    "REASON: the dump is over": "criu ended early: its dump.log says why",
    "namespace NAME stays held: REASON; HINT": _ITSELF,
    "image NAME cannot go on at SIZE: the page there was thrown away": "its own proxy threw the end of the image away and then"
    " appends to it: dump again",
    "the copy in namespace NAME is lost: REASON": "the process runs on at its source: copy it again",
    "namespace NAME is lost: REASON": "the process is gone from its source and the cache has no images: start the service"
    " anew. A cache that is stopped loses what it holds",
    "there is no process PID": "it ended meanwhile: criu's dump.log says why",
    "cannot read the image: REASON": _LOG,
    "criu left in the middle of a message": "criu ended early: its dump.log says why",
    "stream client (WHO) left in the middle of a message": "criu ended early: its dump.log says why",
    "WHAT is STATE: EVENT does not fit": _DEFECT,
    # The cache
    "USED bytes of image memory are in use, the limit is LIMIT": "give criu-relay-cache a larger --memory, or discard what"
    " is not needed",
    "more was sent than the cache has room for: COST bytes of memory": _DEFECT,
    "namespace NAMESPACE is STATE: nothing can be added to it": "dump into it again from the beginning",
    "image NAME was thrown away": "somebody discarded it: dump again",
    "image NAME: its SIZE bytes were changed on the way: their digest differs": "look at the memory and network of both"
    " hosts; the task lives on: dump again",
    "image NAME: the bytes at OFFSET were KIND": "dump again; without --release and discard they are kept",
    "namespace NAMESPACE: REASON while it was being restored": "dump again, then restore",
    "cannot serve an image: REASON": _LOG,
    "migration MIGRATION is not PEER's": "two proxies use certificates with different names: look who owns it",
    "namespace NAME was decided before: it is STATE, its proxy says WORD": "a person decided otherwise here: see that the"
    " process runs once only",
    "namespace NAME is STATE, not committed": "wait for it: criu-relay wait NAME",
    "namespace NAMESPACE: superseded pages are kept: IMAGE of snapshot SNAPSHOT: REASON": "nothing: it takes more memory",
    # Restore
    "cannot write an image: REASON": "criu ended early: its restore.log says why",
    "an image cannot be read: REASON": _LOG,
    "DIALECT client (WHO) dropped: REASON": _ITSELF,
    "WHAT is answered as missing to WHO: REASON": _ITSELF,
    "NAME for WHO stopped: REASON": _LOG,
    "restore (WHO) asks for images of snapshot LABEL, which is not in the list; its -D must be literally one of: LABELS":
        _ITSELF,
    "restore (WHO) read the list of snapshots and opened no image of any; its -D must be literally one of: LABELS":
        _ITSELF,
}  # fmt: skip
"""The line -> what to do, where the code has no hint for it."""
