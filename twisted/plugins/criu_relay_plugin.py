"""Makes `twistd criu-relay-proxy` and `twistd criu-relay-cache` known.

There must be no __init__.py beside this file: it would hide the plugins of everyone else.
"""

from twisted.application.service import ServiceMaker

proxy = ServiceMaker(
    "criu-relay-proxy",
    "criu_relay.proxy",
    "Sends the images of criu dump to a criu-relay-cache, through memory.",
    "criu-relay-proxy",
)

cache = ServiceMaker(
    "criu-relay-cache",
    "criu_relay.cache",
    "Receives images from criu-relay-proxy and serves them to criu restore.",
    "criu-relay-cache",
)
