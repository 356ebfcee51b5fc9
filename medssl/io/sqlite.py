"""SQLite files that may be of others, and transactions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from medssl.types import UserError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits all statements of the block, or none where it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def refuse_programs(connection: sqlite3.Connection, name: str) -> None:
    """Refuses a file with views, triggers or virtual tables, which medssl never makes: they run when it is read.

    Raises:
        UserError: Names the first.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    query = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
    found = connection.execute(query).fetchone()
    if found is not None:
        message = f"{name} holds a {found[0]} called {found[1]!r}, which medssl does not make: get it anew, or make it"
        raise UserError(message)
