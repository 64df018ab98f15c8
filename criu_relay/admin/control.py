"""What the control API of either daemon can do."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from criu_relay.interfaces import CommitRequest, IImportSink, IOpenedImage


class IControl(Interface):
    """Results are ready for JSON.

    Each method raises, or its Deferred errs with, a L{RelayError}: its `status` is the HTTP status.
    """

    role = Attribute('"proxy" or "cache".')

    def status() -> dict[str, Any]:
        """Everything, as docs/control.md has it."""

    def namespaces() -> list[dict[str, Any]]:
        """The newest generation of each namespace, without the list of images."""

    def namespace(name: str) -> dict[str, Any]:
        """One of them, with its snapshots and images."""

    def attach(directory: str, namespace: str | None, dialect: str, copy: bool) -> dict[str, Any]:
        """Bind CRIU's socket in `directory`; the attachment made."""

    def detach(directory: str) -> None:
        """Remove the sockets that `attach` bound there."""

    def wait(name: str, timeout: float | None, following: bool) -> Deferred[dict[str, Any]]:
        """Fires with the namespace once it is committed; errs with Aborted or TimedOut.

        @param timeout: seconds; None: without end.
        @param following: what was decided before does not count: wait for the next generation.
        """

    def commit(name: str, request: CommitRequest, timeout: float | None) -> Deferred[dict[str, Any]]:
        """Proxy: seal, and fires when CRIU may go on. Cache: with `force` only."""

    def rate(rate: int | None) -> dict[str, Any]:
        """Proxy: bytes of image data per second on the link from now on; None: as fast as it goes."""

    def restored(name: str) -> dict[str, Any]:
        """Cache: the restored process runs; its images are released unless they are retained."""

    def discard(
        name: str, snapshot: int | None, image: str | None, offset: int | None, length: int | None
    ) -> dict[str, Any]:
        """Throw away a namespace, an image (of the newest snapshot when None), or a range of it."""

    def open_image(name: str, snapshot: int | None, image: str) -> Deferred[IOpenedImage]:
        """Cache: an image of a committed namespace, waiting for the decision when one is open."""

    def put_image(name: str, snapshot: int | None, image: str, migration: str) -> IImportSink:
        """Proxy: one image of an import; the first of a namespace begins its generation as a copy.

        @param migration: in hex: add to this one only, which may be over; L{NEW}: to a new one only; empty: to the open
            one, or a new one.
        """
