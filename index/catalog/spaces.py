"""The roles of the vector spaces, read and changed inside a transaction.

A vector space is the set of vectors made by one model. The table `meta` gives up to three of them a role:
`active_space` is searched; `target_space` is being filled during a migration and is searched next; `kept_space` was
searched before and is kept for a rollback, and can be the target too. All other spaces are unused and can be dropped.
Out of scope: committing (see writer.py), vectors in memory, and when a role changes (see index/local/spaces.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Set
from enum import StrEnum

from index.records import Unembedded

_DELETE_BATCH = 500
_UNUSED = """SELECT id FROM spaces WHERE id NOT IN
    (SELECT CAST(value AS INTEGER) FROM meta WHERE name IN ('active_space', 'target_space', 'kept_space'))"""


class SwitchResult(StrEnum):
    """Result of trying to switch to a vector space."""

    INCOMPLETE = "incomplete"  # images were added that have no vector there yet
    TOO_FEW_VECTORS = "too_few_vectors"  # most images would no longer be found
    DONE = "done"


def open_spaces(connection: sqlite3.Connection) -> dict[str, int]:
    """Return {fingerprint: space} of the spaces that get the vectors of added images: active, then target."""
    return dict(
        connection.execute(
            """SELECT s.fingerprint, s.id FROM meta m JOIN spaces s ON s.id = CAST(m.value AS INTEGER)
               WHERE m.name IN ('active_space', 'target_space') ORDER BY m.name"""
        ).fetchall()
    )


def active_space(connection: sqlite3.Connection) -> tuple[int, str, str]:
    """Return (id, model, fingerprint) of the active space, or (0, "", "") if there is none."""
    row: tuple[int, str, str] = connection.execute(
        """SELECT s.id, s.model, s.fingerprint FROM meta m JOIN spaces s ON s.id = CAST(m.value AS INTEGER)
           WHERE m.name = 'active_space' UNION ALL SELECT 0, '', '' LIMIT 1"""
    ).fetchone()
    return row


def set_target(connection: sqlite3.Connection, space: int) -> None:
    """Make `space` the only target of a migration. If it is active already, there is no target from now on."""
    if _value(connection, "active_space") == space:
        connection.execute("DELETE FROM meta WHERE name = 'target_space'")
    else:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('target_space', ?)", (str(space),))


def activate(connection: sqlite3.Connection, space: int, *, keep: bool) -> None:
    """Make `space` the active one and end the migration. With `keep`, the previous one is kept for a rollback."""
    previous = _value(connection, "active_space")
    if previous is not None and previous != space:
        if keep:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('kept_space', ?)", (str(previous),))
        else:
            connection.execute("DELETE FROM meta WHERE name = 'kept_space'")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('active_space', ?)", (str(space),))
    connection.execute("DELETE FROM meta WHERE name = 'target_space'")


def activate_if_complete(connection: sqlite3.Connection, space: int, skipped: Set[int], *, keep: bool) -> SwitchResult:
    """Make `space` the active one if all images, except those with ids in `skipped`, have a vector there.

    The kept space is activated although images added since have no vector there. No space is activated if most images
    have no vector there, because searches would no longer find them.
    """
    if _value(connection, "kept_space") == space and _value(connection, "active_space") != space:
        with_vector, images = connection.execute(
            "SELECT (SELECT count(*) FROM vectors WHERE space_id = ?), (SELECT count(*) FROM images)", (space,)
        ).fetchone()
        if 2 * with_vector >= images:
            activate(connection, space, keep=keep)
            return SwitchResult.DONE
    missing = connection.execute(
        """SELECT id FROM images i
           WHERE NOT EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?) LIMIT ?""",
        (space, len(skipped) + 1),
    ).fetchall()
    if any(row[0] not in skipped for row in missing):
        return SwitchResult.INCOMPLETE
    images = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
    if _value(connection, "active_space") != space:
        if 2 * len(missing) > images:
            return SwitchResult.TOO_FEW_VECTORS
        activate(connection, space, keep=keep)
    return SwitchResult.DONE


def needs_vector(connection: sqlite3.Connection, space: int, image: Unembedded) -> bool:
    """Return whether the image was not replaced or deleted since, and has no vector in `space`."""
    row = connection.execute(
        """SELECT 1 FROM images i WHERE i.id = ? AND i.sha256 = ?
           AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?)""",
        (image.id, image.sha256, space),
    ).fetchone()
    return row is not None


def drop_unused(connection: sqlite3.Connection) -> int:
    """Delete a batch of vectors of unused spaces and return its size; delete the spaces once they are empty."""
    dropped = connection.execute(
        f"DELETE FROM vectors WHERE id IN (SELECT id FROM vectors WHERE space_id IN ({_UNUSED}) LIMIT ?)",  # noqa: S608
        (_DELETE_BATCH,),
    ).rowcount
    if not dropped:
        connection.execute(f"DELETE FROM spaces WHERE id IN ({_UNUSED})")  # noqa: S608
    return dropped


def _value(connection: sqlite3.Connection, name: str) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])
