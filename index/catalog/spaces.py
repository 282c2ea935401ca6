"""Which spaces there are and what each is for, inside a transaction.

The table `meta` names them: `active_space` is searched; `target_space` is being filled and will be searched;
`kept_space` was searched before, and is kept to go back to at once. Any other is spare.
Does not: commit (writer.py does), or hold vectors in memory (spaces.py does).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Set
from enum import StrEnum

from index.records import Unembedded

_DROPPED_AT_ONCE = 500
_SPARE = """SELECT id FROM spaces WHERE id NOT IN
    (SELECT CAST(value AS INTEGER) FROM meta WHERE name IN ('active_space', 'target_space', 'kept_space'))"""


class Finish(StrEnum):
    """What came of an attempt to go over to a space."""

    AGAIN = "again"  # images came that have no vector there yet
    STUCK = "stuck"  # most images cannot have one
    DONE = "done"


def open_spaces(connection: sqlite3.Connection) -> dict[str, int]:
    """Return {fingerprint: space} of where vectors go: the searched one first, then the one to be searched."""
    return dict(
        connection.execute(
            """SELECT s.fingerprint, s.id FROM meta m JOIN spaces s ON s.id = CAST(m.value AS INTEGER)
               WHERE m.name IN ('active_space', 'target_space') ORDER BY m.name"""
        ).fetchall()
    )


def follow(connection: sqlite3.Connection, space: int) -> None:
    """Make `space` the one to be searched, unless it is searched already."""
    active = _value(connection, "active_space")
    if active != space:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('target_space', ?)", (str(space),))


def activate(connection: sqlite3.Connection, space: int, *, keep: bool) -> None:
    """Make `space` the one that is searched; keep the one before it, or make it spare."""
    before = _value(connection, "active_space")
    if before is not None and before != space:
        if keep:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('kept_space', ?)", (str(before),))
        else:
            connection.execute("DELETE FROM meta WHERE name = 'kept_space'")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('active_space', ?)", (str(space),))
    connection.execute("DELETE FROM meta WHERE name = 'target_space' AND value = ?", (str(space),))


def finish(connection: sqlite3.Connection, space: int, skipped: Set[int], *, keep: bool) -> Finish:
    """Make `space` the searched one when every image but those in `skipped` has a vector there.

    Not when most have none: they would leave the search.
    """
    missing = connection.execute(
        """SELECT id FROM images i
           WHERE NOT EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?) LIMIT ?""",
        (space, len(skipped) + 1),
    ).fetchall()
    if any(row[0] not in skipped for row in missing):
        return Finish.AGAIN
    images = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
    if _value(connection, "active_space") != space:
        if 2 * len(missing) > images:
            return Finish.STUCK
        activate(connection, space, keep=keep)
    return Finish.DONE


def lacks(connection: sqlite3.Connection, space: int, image: Unembedded) -> bool:
    """Tell whether the image is still the same picture, and has no vector in `space`."""
    row = connection.execute(
        """SELECT 1 FROM images i WHERE i.id = ? AND i.sha256 = ?
           AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?)""",
        (image.id, image.sha256, space),
    ).fetchone()
    return row is not None


def drop_some(connection: sqlite3.Connection) -> int:
    """Delete some vectors of spare spaces, or, when there are none left, those spaces. Returns how many vectors."""
    dropped = connection.execute(
        f"DELETE FROM vectors WHERE id IN (SELECT id FROM vectors WHERE space_id IN ({_SPARE}) LIMIT ?)",  # noqa: S608
        (_DROPPED_AT_ONCE,),
    ).rowcount
    if not dropped:
        connection.execute(f"DELETE FROM spaces WHERE id IN ({_SPARE})")  # noqa: S608
    return dropped


def _value(connection: sqlite3.Connection, name: str) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])
