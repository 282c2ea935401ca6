"""The SQLite database of the catalog: connections, schema, migrations and error translation.

Guarantees: a commit that returned is on disk (WAL, synchronous=FULL). Readers see only committed data and never wait
for the writer. A database on a read-only mount, or in a folder without write permission, can be read. Inside
`translated`, every `sqlite3` error becomes an error of the index; only real damage becomes IndexCorruptError.
Out of scope: network file systems, because SQLite's write-ahead log needs shared memory.
References: SQLite's documentation of WAL mode ("Read-Only Databases") and of URI file names (`immutable`).
"""

from __future__ import annotations

import sqlite3
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index import errors
from index.catalog import attributes

CATALOG_FILE = "catalog.db"
# One script for each version of the schema, applied in order. `PRAGMA user_version` is the number of applied scripts.
# A released script is never changed.
MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE images (
        id INTEGER PRIMARY KEY AUTOINCREMENT,   -- the order of listings; never reused
        key TEXT NOT NULL UNIQUE,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        added INTEGER NOT NULL,                 -- microseconds since 1970, UTC
        updated INTEGER NOT NULL
    );

    CREATE TABLE pictures (
        image_id INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        jpeg BLOB NOT NULL
    );

    CREATE TABLE spaces (                       -- one for each model that made vectors
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint TEXT NOT NULL UNIQUE,
        model TEXT NOT NULL
    );

    CREATE TABLE vectors (
        id INTEGER PRIMARY KEY AUTOINCREMENT,   -- used by the searcher; a replaced vector gets a new id
        image_id INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        space_id INTEGER NOT NULL REFERENCES spaces ON DELETE CASCADE,
        crc INTEGER NOT NULL,
        vector BLOB NOT NULL CHECK (length(vector) = 8192)
    );
    CREATE UNIQUE INDEX vectors_of_image ON vectors (image_id, space_id);
    CREATE INDEX vectors_of_space ON vectors (space_id, id, crc);
    """,
    # Checksums of all records, which detect flipped bits; metadata in a form that filters can compare.
    """
    ALTER TABLE images ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pictures ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE spaces ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
    UPDATE images SET crc = crc32(key, sha256, size, width, height, metadata, added, updated);
    UPDATE pictures SET crc = crc32(jpeg);
    UPDATE spaces SET crc = crc32(fingerprint, model);

    CREATE TABLE fields (                       -- what filters may name; never deleted
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        type TEXT NOT NULL,                     -- string, number or boolean
        UNIQUE (name, type)
    );

    CREATE TABLE attributes (
        field_id INTEGER NOT NULL REFERENCES fields,
        value NOT NULL,
        image_id INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        PRIMARY KEY (field_id, value, image_id)
    ) WITHOUT ROWID;
    CREATE INDEX attributes_of_image ON attributes (image_id);
    """,
    # The version of the preparation that made the picture and the vectors of each image. Not part of the checksum: a
    # wrong value only makes the image be prepared again.
    """
    ALTER TABLE images ADD COLUMN preparation INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX images_of_preparation ON images (preparation);
    """,
    # For listings by the time of the last change: 130 ms become 4 ms for a page of 100,000 images.
    "CREATE INDEX images_of_update ON images (updated);",
)

# Free pages can be returned to the file system a few at a time (see writer.py). Takes effect only in a new database, or
# when an existing one is vacuumed.
AUTO_VACUUM = "PRAGMA auto_vacuum = INCREMENTAL"
BUSY_S = 30.0  # how long to wait for a lock of another process
_MAX_LOG_BYTES = 16 << 20  # the write-ahead log is cut to this size once its content is in the database

# Result codes of SQLite, primary or extended, with the errors that they become.
_ERRORS = (
    (
        {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_TRUNCATE},
        errors.IndexFullError,
    ),
    ({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}, errors.IndexReadOnlyError),
    ({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_CORRUPTFS}, errors.IndexCorruptError),
    ({sqlite3.SQLITE_IOERR}, errors.IndexUnreadableError),
    ({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}, errors.IndexBusyError),
)


def record_checksum(*values: str | int | bytes) -> int:
    """Return the CRC-32 of a record's values; available in SQL as `crc32(...)`."""
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        total = zlib.crc32(data, zlib.crc32(len(data).to_bytes(8, "little"), total))
    return total


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the database at `path` in autocommit mode; create it if it is missing and not `read_only`.

    Any thread may use the connection, but only one at a time. Raises IndexUnreadableError if the file or its log cannot
    be read, and the errors of `translated`.
    """
    with translated(path):
        try:
            return _connect(path, "mode=ro") if read_only else _connect(path, "mode=rwc", log=True)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            if not read_only and not path.exists():
                raise
            _check_readable(path, with_log=not read_only)
            if not read_only:
                raise
        return _connect(path, "mode=ro&immutable=1")


def _connect(path: Path, parameters: str, *, log: bool = False) -> sqlite3.Connection:
    """Open the database with these URI parameters. log: use a write-ahead log, which requires a writable folder."""
    uri = f"{path.absolute().as_uri()}?{parameters}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if log:
            connection.execute(AUTO_VACUUM)
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}").fetchone()
        connection.execute("PRAGMA foreign_keys = ON")
        connection.create_function("crc32", -1, record_checksum, deterministic=True)
        connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _check_readable(path: Path, *, with_log: bool) -> None:
    """Raise IndexUnreadableError unless the database can be read; without `with_log`, also if it needs its log.

    SQLite cannot create the files of the log on a read-only mount. They exist while another process writes, so without
    them the database does not change. If the log has content, the database without it would be an old or mixed state.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        with path.open("rb"):
            pending = not with_log and log.exists() and log.stat().st_size > 0
    except OSError as error:
        raise errors.IndexUnreadableError(path, error.strerror or str(error)) from error
    if pending:
        raise errors.IndexUnreadableError(
            path,
            f"its write-ahead log {log.name} has changes that are not in the database yet, and applying them requires "
            "write permission; open the index once with write permission, for example with fc7 index optimize",
        )


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the missing migrations, each in a transaction. Raises IndexFormatError if the schema is newer."""
    found = check_format(connection, path)
    with translated(path):
        for number, script in enumerate(MIGRATIONS[found:], start=found + 1):
            with transaction(connection):
                for statement in _statements(script):
                    connection.execute(statement)
                if number == 1:
                    connection.execute("INSERT INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex,))
                if number == 2:
                    for image, metadata in connection.execute("SELECT id, metadata FROM images"):
                        attributes.store(connection, image, metadata)
                connection.execute(f"PRAGMA user_version = {number}")


def check_format(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the schema. Raises IndexFormatError if it is newer than this program."""
    with translated(path):
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        raise errors.IndexFormatError(path, found, len(MIGRATIONS))
    return found


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements. `executescript` would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one write transaction: commit at its end, roll back on any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back the open transaction, if any: SQLite rolls back by itself after a full disk or an I/O error."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate SQLite's errors in the block to errors of the index about the database `path`."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def translate(error: sqlite3.Error, path: Path) -> errors.ImageIndexError:
    """Return the index's error for an error of SQLite."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    for codes, kind in _ERRORS:
        if code in codes or code & 0xFF in codes:  # the low byte is the primary result code
            return kind(path, str(error))
    return errors.IndexUnavailableError(path, str(error))
