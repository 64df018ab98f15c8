"""What the manual pages and completions say besides what the parsers do (docs/make_manual.py)."""

from __future__ import annotations

MADE = "# Made by docs/make_manual.py."

COMMAND = "look at and command criu-relay-proxy and criu-relay-cache"

COMMAND_DESCRIPTION = (
    "Asks a daemon over its control socket. Without `--control` that is the one socket in the run directory which a"
    " daemon listens on; when both do, it says so and ends with status 2."
)

ARGUMENTS = {
    "DIR": "a directory",
    "NAMESPACE": "the name of a migration, as status lists it",
    "IMAGE": "an image",
    "NAME": "a name",
}
"""What an argument is, when its parser does not say."""

STATUSES = {
    "0": "done",
    "1": "it failed; the reason is one line on standard error",
    "2": "wrong usage",
    "3": "timed out",
    "4": "no daemon",
    "130, 143, 129": "interrupted by SIGINT, SIGTERM, SIGHUP: what an export or an import had begun is undone",
}

FILES = {
    "$XDG_RUNTIME_DIR/criu-relay, else /run/criu-relay": "the control sockets: proxy.sock and cache.sock",
    "$XDG_STATE_HOME/criu-relay, else /var/lib/criu-relay": "what must outlive the daemons",
    "/etc/criu-relay/proxy.toml, /etc/criu-relay/cache.toml": "the configuration of the services of systemd",
}

ACTION = "what criu runs at the stages of a dump and a restore"

ACTION_SYNOPSIS = [
    'criu dump ... --action-script "$(command -v criu-relay-action)"',
    'criu restore ... --action-script "$(command -v criu-relay-action)"',
]

ACTION_DESCRIPTION = (
    "Makes a dump end in a decision: criu kills the task only when the cache has all of its images; else it goes on."
    " CRIU gives no arguments, only an environment: the namespace is found by the directory that criu works in, among"
    " those that are attached to the daemons of this host."
)

STAGES = {
    "post-dump": "Asks the proxy to commit the namespace, and returns when criu may go on. Trouble is status 1: criu"
    " resumes the task.",
    "post-resume": "Tells the cache that the task runs, which releases its images. Trouble is said on standard error.",
}

VARIABLES = {
    "CRIU_RELAY_CONTROL": "path of the control socket, of the proxy or the cache",
    "CRIU_RELAY_NAMESPACE": "the namespace",
    "CRIU_RELAY_TIMEOUT": "seconds that the task may stay frozen for the decision; default 120",
    "CRIU_RELAY_COPY": "1: the dump leaves the task running on purpose",
}

SERVICES = {
    "proxy": "send the images of criu dump to a criu-relay-cache, through memory",
    "cache": "keep images of migrating processes in memory, and give them to criu restore",
}

SIGNALS = {
    "SIGTERM": "Nothing new begins; what is under way may finish within 10 s. Then it ends, with status 0. A second one"
    " does not wait.",
    "SIGHUP": "Reads the certificates, and the directories in `--config`, again.",
}

EXAMPLES = {
    "proxy": [
        "mkdir /run/web",
        "twistd -n --pidfile= criu-relay-proxy --stream /run/web",
        "criu dump -t PID -D /run/web --stream --action-script $(command -v criu-relay-action)",
    ],
    "cache": [
        "mkdir /run/web",
        "twistd -n --pidfile= criu-relay-cache --stream /run/web --memory 4G",
        "criu restore -D /run/web --stream --action-script $(command -v criu-relay-action)",
    ],
}

SERVICE_VALUES = {
    "allow-uid": "UID",
    "config": "FILE",
    "control": "ENDPOINT",
    "criu-dev-link": "ENDPOINT",
    "dedup": "HOW",
    "idle": "SECONDS",
    "link": "ENDPOINT",
    "link-fd": "N",
    "link-timeout": "SECONDS",
    "manhole": "ENDPOINT",
    "manhole-keys": "FILE",
    "memory": "SIZE",
    "metrics": "ENDPOINT",
    "rate": "SIZE/s",
    "spill": "DIR",
    "state": "DIR",
    "tls-ca": "FILE",
    "tls-cert": "FILE",
    "tls-key": "FILE",
    "tls-peer": "NAME",
    "ttl": "SECONDS",
    "warm": "SIZE",
    "window": "SIZE",
}
"""What stands for the value of an option of a service."""

BASH_HEAD = r"""
# shellcheck shell=bash disable=SC2207

_criu_relay_words() { COMPREPLY+=($(compgen -W "$1" -- "$current")); }
_criu_relay_names() { _criu_relay_words "$(@NAMES@)"; }
_criu_relay_files() { compopt -o filenames; COMPREPLY+=($(compgen "${1:--f}" -- "$current")); }

# Either the flags, or a status that says: complete an argument.
_criu_relay_or_flags() {
    [[ $current == -* ]] || return 0
    _criu_relay_words "$1"
    return 1
}
"""

ZSH_HEAD = r"""
_criu_relay_names() {
    local -a names=(${(f)"$(@NAMES@)"})
    _describe namespace names
}
"""

FISH_HEAD = r"""
function __criu_relay_names
    @NAMES@
end
"""
