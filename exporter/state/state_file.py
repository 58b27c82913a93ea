"""The state file: an SQLite database that keeps the records of all spaces across restarts. Its failures never stop a
poll.

A damaged file is renamed, and a new one is created. A file of another program or of a newer version is never changed.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Literal

import structlog
from pydantic import TypeAdapter, ValidationError

from exporter.clock import Clock
from exporter.files import NotRegularError, read_bytes, require_regular
from exporter.model import PhoneNumber
from exporter.state.store import Change, Key, Records, SpaceRecord

_APPLICATION_ID = int.from_bytes(b"CHAT")
_SCHEMA_VERSION = 2
_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id={_APPLICATION_ID};
PRAGMA user_version={_SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS space (
    account TEXT NOT NULL, space TEXT NOT NULL, identity TEXT NOT NULL, known TEXT NOT NULL,
    PRIMARY KEY (account, space)
) WITHOUT ROWID;
COMMIT;
"""
_SUFFIXES = ("", "-wal", "-shm")
"""Name suffixes of the database file, its write-ahead log (WAL) and its WAL index."""
_CHECKPOINT_BYTES = 256 * 1024
"""WAL size that requires a checkpoint. SQLite's default of 4 MB could fill a small volume."""
_SQLITE_HEADER = b"SQLite format 3\0"
_HEADER_BYTES = 100
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite error codes for invalid content. All other codes are about the file system or locks."""
_ERRORS = (sqlite3.Error, UnicodeDecodeError, ValidationError)
"""Errors of reads and writes. UnicodeDecodeError: a message of SQLite can quote damaged bytes."""
_LOCK_TIMEOUT_SECONDS = 0.1
"""How long the start waits for a lock of another program."""

Identities = Mapping[str, str]
"""Maps each account to the identity of its source. Records with another identity are not used."""
FailureReason = Literal["damaged", "foreign", "newer", "unwritable"]

_WRITE_FAILED = "state file cannot be written, continuing without it"

_log = structlog.get_logger()


class _UnusableError(Exception):
    """The file cannot be opened, read or written."""

    def __init__(self, reason: FailureReason, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


class StateFile:
    """A state file. Methods can be called from any thread, but only one at a time.

    `up` is True if the file is open and the last write succeeded. If it is True after `save`, the records survive a
    kill of this process. A crash of the machine can lose the records of the last seconds. `failures` counts the
    failures by reason. Only the first failure and the recovery are logged.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.up = False
        self.failures: Counter[FailureReason] = Counter()
        self._clock = clock
        self._identities: Identities = {}
        self._unsaved: dict[Key, SpaceRecord] = {}
        """Records whose write failed."""
        self._database: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._failure_logged = False

    def open(self, identities: Identities) -> dict[Key, SpaceRecord]:
        """Open or create the file, and return the records of these accounts. If the file cannot be used, return no
        records. A file that can be read but not written is read, but not again by later attempts."""
        is_retry = self._failure_logged
        if was_removed := self._database is not None and self.needs_reopen():
            self._set_down("state file removed or replaced, opening it again")
        self.close()
        self._identities = identities
        try:
            records = self._open_or_replace()
        except _UnusableError as unusable:
            self.close()
            if was_removed:  # the log line about the removal does not include this failure
                self._failure_logged = False
            self._record_failure("state file cannot be used, continuing without it", unusable)
            is_readable = unusable.reason == "unwritable" and not is_retry
            return _read_unwritable(self.path, identities) if is_readable else {}
        self._inode = _inode(self.path)
        self._record_success()
        return records

    def save(self, records: Records) -> None:
        """Save these records, and earlier records whose write failed. If the write fails, the next call repeats it. If
        the file is not open, do nothing."""
        if not self._database:
            return
        self._unsaved.update(records)
        try:
            self._write_or_checkpoint(records)  # if the disk is full, do not encode all unsaved records
            if not self.up:
                self._write_rows(self._unsaved)
        except _ERRORS as error:
            self._record_failure(_WRITE_FAILED, _classify_error(error))
        else:
            self._unsaved.clear()
            self._record_success()

    def retain(self, spaces: Collection[Key], identities: Identities) -> None:
        """Delete the records of all spaces that are not in `spaces`. If this fails, the next call deletes them."""
        unchanged = {account for account, identity in identities.items() if self._identities.get(account) == identity}
        self._identities = identities
        self._unsaved = {key: record for key, record in self._unsaved.items() if key in spaces and key[0] in unchanged}
        if not self._database:
            return
        try:
            stored = self._database.execute("SELECT account, space FROM space").fetchall()
            with self._database:
                removed = [key for key in stored if key not in spaces]
                self._database.executemany("DELETE FROM space WHERE account=? AND space=?", removed)
        except _ERRORS as error:
            self._record_failure(_WRITE_FAILED, _classify_error(error))

    def needs_checkpoint(self) -> bool:
        """Whether the WAL is so large that `checkpoint` must be called."""
        return self._database is not None and _wal_bytes(self.path) > _CHECKPOINT_BYTES

    def checkpoint(self) -> bool:
        """Copy the WAL into the database, so that the next write starts a new WAL. Waits for two disk syncs (fsync).
        Return whether the complete WAL was copied. The next call copies the rest."""
        with suppress(*_ERRORS):
            if self._database:
                _, pages, written = self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                return bool(pages == written)
        return False

    def mark_failed(self, problem: str) -> None:
        """Count and log a failure that the caller detected, for example a timeout."""
        self._record_failure(_WRITE_FAILED, _UnusableError("unwritable", problem))

    def needs_reopen(self) -> bool:
        """Whether the file is not open, or was removed or replaced after it was opened."""
        return self._database is None or _inode(self.path) != self._inode

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._database:
            self._database.close()
        self._database, self.up = None, False

    def _record_failure(self, event: str, unusable: _UnusableError) -> None:
        self.failures[unusable.reason] += 1
        self._set_down(event, problem=str(unusable))

    def _set_down(self, event: str, **fields: str) -> None:
        """Set `up` to False. Log the event if it is the first failure."""
        if not self._failure_logged:
            _log.error(event, file=str(self.path), **fields)
        self.up, self._failure_logged = False, True

    def _record_success(self) -> None:
        if self._failure_logged:
            _log.info("state file available again", file=str(self.path))
        self.up, self._failure_logged = True, False

    def _open_or_replace(self) -> dict[Key, SpaceRecord]:
        try:
            _check_format(self.path)
            return self._open()
        except _UnusableError as unusable:
            if unusable.reason != "damaged":
                raise
            self.close()
            self.failures["damaged"] += 1
            new_path = _rename_damaged(self.path, self._clock.now())
            _log.error(
                "state file damaged, renamed and replaced with a new file",
                file=str(self.path),
                renamed_to=str(new_path),
                problem=str(unusable),
            )
            return self._open()

    def _open(self) -> dict[Key, SpaceRecord]:
        try:
            _create(self.path)
            self._database = _connect(self.path.absolute().as_uri())
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # before WAL mode, so that the header contains the application id
                self._database.executescript(_SCHEMA)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA wal_autocheckpoint=0")  # only `checkpoint` waits for the disk
            self._database.execute("PRAGMA journal_size_limit=0")  # truncate the WAL after a checkpoint
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("PRAGMA busy_timeout=0")  # the next save repeats a save that was locked out
            return dict(_read_rows(self._database, self._identities))
        except _ERRORS as error:
            raise _classify_error(error) from error

    def _write_or_checkpoint(self, records: Records) -> None:
        try:
            self._write_rows(records)
        except sqlite3.OperationalError:  # if the disk is full, a checkpoint can make the WAL smaller
            if not self.checkpoint():
                raise
            self._write_rows(records)

    def _write_rows(self, records: Records) -> None:
        assert self._database
        rows = ((*key, self._identities[key[0]], _encode(record)) for key, record in records.items())
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO space VALUES (?, ?, ?, ?)", rows)


def read_state_file(path: Path, identities: Identities) -> dict[Key, SpaceRecord]:
    """Return the records of these accounts, or an empty dict if the file does not exist or cannot be read. Works while
    an exporter writes the file. Does not change or create any file."""
    with suppress(OSError, _UnusableError, *_ERRORS):
        _check_format(path)
        if not _wal_bytes(path):
            options = "mode=ro&immutable=1"  # otherwise SQLite creates an empty WAL, even for a read
        elif _sqlite_file(path, "-shm").exists():
            options = "mode=ro"
        else:
            return {}  # SQLite would create the WAL index; it is missing only if the file was copied manually
        with closing(_connect(f"{path.absolute().as_uri()}?{options}")) as database:
            return dict(_read_rows(database, identities))
    return {}


def _check_format(path: Path) -> None:
    """Check the header before SQLite opens the file, so that a file of another program is not changed.

    Raises:
        _UnusableError: the path is not a regular file, cannot be read, or is not a state file of this version.
    """
    try:
        for suffix in _SUFFIXES:  # do not rename a device, and do not wait for a FIFO
            with suppress(FileNotFoundError):
                require_regular(_sqlite_file(path, suffix))
        header = read_bytes(path, _HEADER_BYTES)
    except FileNotFoundError:
        return
    except NotRegularError as error:
        raise _UnusableError("unwritable", f"expected a regular file, found {error.strerror}") from error
    except OSError as error:
        raise _UnusableError("unwritable", error.strerror or str(error)) from error
    if header.startswith(_SQLITE_HEADER) and len(header) == _HEADER_BYTES:
        if int.from_bytes(header[68:72]) != _APPLICATION_ID:
            raise _UnusableError("foreign", "expected a state file, found a database of another program")
        version = int.from_bytes(header[60:64])
        if version > _SCHEMA_VERSION:
            problem = f"expected schema version {_SCHEMA_VERSION}, found {version} of a newer exporter"
            raise _UnusableError("newer", problem)
        if version < _SCHEMA_VERSION:
            raise _UnusableError("damaged", f"expected schema version {_SCHEMA_VERSION}, found {version}")
    elif header and _is_text(header):
        raise _UnusableError("foreign", "expected a state file, found text")
    elif header or _sqlite_file(path, "-wal").exists():  # SQLite would delete the WAL of an empty file
        raise _UnusableError("damaged", "expected a state file, found unknown binary data")


def _is_text(header: bytes) -> bool:
    text = header.decode("utf-8", "replace")
    return "\0" not in text and text.count("\N{REPLACEMENT CHARACTER}") <= 1  # the last character can be incomplete


def _read_unwritable(path: Path, identities: Identities) -> dict[Key, SpaceRecord]:
    """Return the records of a file that cannot be written (disk full or read-only). Return an empty dict if the disk
    is read-only and the WAL is not empty, because the database alone has older values."""
    with suppress(OSError, *_ERRORS):
        options = "" if _wal_bytes(path) else "?immutable=1"
        with closing(_connect(path.absolute().as_uri() + options)) as database:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")  # keeps the WAL index in memory, without a file
            return dict(_read_rows(database, identities))
    return {}


def _sqlite_file(path: Path, suffix: str) -> Path:
    """The path of the database or of an SQLite file next to it, with symbolic links resolved."""
    return Path(f"{os.path.realpath(path)}{suffix}")


def _wal_bytes(path: Path) -> int:
    """The size of the WAL. A WAL that is not empty has newer values than the database."""
    try:
        return _sqlite_file(path, "-wal").stat().st_size
    except OSError:
        return 0


def _rename_damaged(path: Path, now: float) -> Path:
    """Rename the database and the SQLite files next to it to an unused name. Resolves symbolic links first."""
    path = Path(os.path.realpath(path))
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{f'-{n}' if n else ''}") for n in count())
    new_path = next(name for name in names if not name.exists())
    try:
        for suffix in _SUFFIXES:
            file = Path(f"{path}{suffix}")
            if file.exists():
                file.rename(f"{new_path}{suffix}")
    except OSError as error:
        raise _UnusableError("unwritable", error.strerror or str(error)) from error
    return new_path


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, timeout=_LOCK_TIMEOUT_SECONDS, uri=True, check_same_thread=False)


def _create(path: Path) -> None:
    """Create the file if it does not exist. Only its owner may read it, because it contains phone numbers. SQLite gives
    its other files the same mode."""
    with suppress(OSError):  # SQLite reports the problem when it opens the file
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _read_rows(database: sqlite3.Connection, identities: Identities) -> Iterator[tuple[Key, SpaceRecord]]:
    """Yield the records of these accounts, without those of another identity."""
    for account, space, identity, text in database.execute("SELECT account, space, identity, known FROM space"):
        if identities.get(account) == identity:
            yield (account, space), _decode(text)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _classify_error(error: Exception) -> _UnusableError:
    """Return the failure reason of an SQLite or decoding error: damaged content, or no access."""
    damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE_CODES
    return _UnusableError("damaged" if damaged else "unwritable", str(error))


@dataclass(frozen=True, slots=True)
class _StoredRecord:
    """The saved fields of a record, as JSON. The counters start at zero in each process."""

    up: bool
    last_success: float | None
    next_slot: float | None
    phone_numbers: tuple[PhoneNumber, ...]
    changes: tuple[tuple[str, str, float, str], ...]
    missing: tuple[tuple[str, str, float, str], ...] = ()
    discovered_as: str | None = None
    added: float | None = None


_STORED_RECORD = TypeAdapter(_StoredRecord)  # equal strings share one object: half the memory for 50,000 numbers


def _encode(record: SpaceRecord) -> str:
    changes, missing = (
        tuple((number, name, change.at, change.before) for (number, name), change in entries.items())
        for entries in (record.changes, record.missing)
    )
    stored = _StoredRecord(
        record.up,
        record.last_success,
        record.next_slot,
        record.phone_numbers,
        changes,
        missing,
        record.discovered_as,
        record.added,
    )
    return _STORED_RECORD.dump_json(stored).decode()


def _decode(text: str) -> SpaceRecord:
    stored = _STORED_RECORD.validate_json(text)
    changes, missing = (
        {(number, name): Change(at, before) for number, name, at, before in entries}
        for entries in (stored.changes, stored.missing)
    )
    return SpaceRecord(
        stored.up,
        stored.last_success,
        stored.phone_numbers,
        changes,
        missing,
        next_slot=stored.next_slot,
        discovered_as=stored.discovered_as,
        added=stored.added,
    )
