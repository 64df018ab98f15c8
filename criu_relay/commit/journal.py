"""What the proxy's log says of a migration that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from criu_relay.errors import ABORTED

if TYPE_CHECKING:
    from criu_relay.commit.migration import Migration

AGAIN = "dump it again; when criu-relay-action refused, its process lives on"

NOBODY = "a task that is not known"


def tell_aborted(migration: Migration) -> None:
    """One line."""
    migration.log.error(
        ABORTED,
        name=migration.namespace,
        migration=migration.id.hex(),
        bytes=migration.bytes,
        why=migration.reason,
        who=migration.source.told() or NOBODY,
        todo=migration.hint or AGAIN,
    )


def tell_lost(migration: Migration) -> None:
    """One line; that of a copy is less loud, as its process runs on."""
    name, why = migration.namespace, migration.reason
    if migration.copy:
        migration.log.error("the copy in namespace {name} is lost: {why}", name=name, why=why)
    else:
        migration.log.critical("namespace {name} is lost: {why}", name=name, why=why)
