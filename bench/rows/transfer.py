"""One large image, part of the way or all of it."""

from __future__ import annotations

from dataclasses import replace

from bench.certificates import files, identities
from bench.measure import Row, Sample, alternate, row
from bench.references import bare, c_receive, c_serve, twisted
from bench.relay import relay
from bench.stage import Stage
from bench.tools import socat_tls

C_RECEIVE = "C: memory -> TCP -> recv into recycled memory"
C_SERVE = "C: memory -> sendfile -> pipe"
TWISTED = "Twisted: pipe -> write -> dataReceived -> recycled memory"


def pipe_window0(stage: Stage) -> list[Row]:
    """Nothing kept at the proxy."""
    with relay(stage, proxy=["--window", "0", "--insecure"]) as ours:
        samples = alternate(
            {"ours": ours.transfer, "c": lambda: c_receive(stage), "twisted": lambda: twisted(stage)},
            stage.plan.rounds,
        )
    limits = {"proxy": 0.25, "cache": 0.35}
    return [
        row("pipe-window0@c", C_RECEIVE, 1.0, samples["ours"], samples["c"], limits),
        row("pipe-window0@twisted", TWISTED, 4.0, samples["ours"], samples["twisted"], limits),
    ]


def pipe_window(stage: Stage) -> list[Row]:
    """The default."""
    with relay(stage) as ours:
        samples = alternate({"ours": ours.transfer, "c": lambda: c_receive(stage)}, stage.plan.rounds)
    return [row("pipe-window", C_RECEIVE, 0.55, samples["ours"], samples["c"], {"proxy": 0.55})]


def unix(stage: Stage) -> list[Row]:
    """The image comes over a unix socket."""
    with relay(stage, dialect="images") as ours:
        samples = alternate({"ours": ours.transfer, "c": lambda: c_receive(stage)}, stage.plan.rounds)
    return [row("unix", C_RECEIVE, 0.6, samples["ours"], samples["c"])]


def serve_pipe(stage: Stage) -> list[Row]:
    """From the cache to a restore."""
    with relay(stage) as ours:
        ours.dump(stage.plan.size)
        samples = alternate({"ours": ours.serve, "c": lambda: c_serve(stage)}, stage.plan.rounds)
        ours.discard()
    return [row("serve-pipe", C_SERVE, 0.9, samples["ours"], samples["c"])]


def cut_through(stage: Stage) -> list[Row]:
    """The whole relay, its restore waiting."""
    parts: list[tuple[Sample, Sample, Sample]] = []

    def through() -> Sample:
        parts.append(ours.through())
        return parts[-1][0]

    rounds = stage.plan.rounds
    with relay(stage) as ours:
        samples = alternate({"ours": through, "c": lambda: c_receive(stage).then(c_serve(stage))}, rounds)
    _, written, tail = zip(*parts[-rounds:], strict=True)
    held = row("cut-through@transfer", "the time that the transfer took until its last byte", 10.0, tail, written)
    return [
        # A speed of what comes after the last byte would mean nothing.
        replace(held, gb_per_s=held.reference_gb_per_s),
        row("cut-through@c", f"{C_RECEIVE}, then {C_SERVE}", 0.6, samples["ours"], samples["c"]),
    ]


def tls(stage: Stage) -> list[Row]:
    """Mutual TLS 1.3 on the link."""
    shown = identities(stage)
    proxy, cache = shown.options()
    with relay(stage, proxy=proxy, cache=cache) as ours:
        samples = alternate(
            {
                "ours": ours.transfer,
                "twisted": lambda: twisted(stage, sender=files(shown.proxy), receiver=files(shown.cache)),
                "socat": lambda: socat_tls(stage, shown),
            },
            stage.plan.rounds,
        )
    return [
        row("tls@twisted", f"{TWISTED}, TLS 1.3", 2.0, samples["ours"], samples["twisted"]),
        row("tls@socat", "socat: pipe -> TLS 1.3 -> file in recycled memory", 0.8, samples["ours"], samples["socat"]),
    ]


def bare_path(stage: Stage) -> list[Row]:
    """What the kernel allows on this machine: the same way in C, with nothing but its system calls."""
    samples = alternate(
        {
            "pipe-window0": lambda: bare(stage, window=False),
            "pipe-window": lambda: bare(stage, window=True),
            "unix": lambda: bare(stage, window=True, unix=True),
            "c": lambda: c_receive(stage),
        },
        stage.plan.rounds,
    )
    bounds = {"pipe-window0": 1.0, "pipe-window": 0.55, "unix": 0.6}
    return [row(f"bare-{name}", C_RECEIVE, bound, samples[name], samples["c"]) for name, bound in bounds.items()]
