"""Complete images on their way into descriptors of CRIU."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from criu_relay.interfaces import IOpenedImage


class Servings:
    """The images that one client reads at the same time."""

    _log = Logger()

    def __init__(self, ended: Callable[[], None]) -> None:
        """@param ended: called after one of them ended, well or not."""
        self._ended = ended
        self._running: set[Deferred[int]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, name: str, who: str, opened: IOpenedImage, descriptor: int) -> None:
        """Write all of an image. Image and descriptor are ours from now on, and closed at the end.

        @param who: the reader, for the log.
        """
        done = opened.serve(descriptor)
        self._running.add(done)

        def over(result: int | Failure) -> None:
            os.close(descriptor)
            opened.close()
            self._running.discard(done)
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.warn(
                    "{name} for {who} stopped: {reason}", name=name, who=who, reason=result.getErrorMessage()
                )
            self._ended()

        done.addBoth(over)

    def cancel(self) -> None:
        """Stop all of them."""
        for done in list(self._running):
            done.cancel()
