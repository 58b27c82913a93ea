"""The state file: keeps what is known of every space over a restart, in SQLite. A failure of it never stops a poll.

A damaged file is renamed, and a new one started. A file of another program, or of a newer version, is never changed.
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
from exporter.state.store import Change, Key, SpaceRecord

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
"""Of the names of the file, and of SQLite's files beside it."""
_LARGE_LOG_BYTES = 256 * 1024
"""Size of SQLite's write-ahead log from which it is written back into the file. SQLite's own 4 MB would fill a small
volume."""
_SQLITE_HEADER = b"SQLite format 3\0"
_HEADER_BYTES = 100
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite's codes for content that is not what it must be; all others are about the file system or locks."""
_ERRORS = (sqlite3.Error, UnicodeDecodeError, ValidationError)
"""Of a read or a write. Python cannot decode a message of SQLite that quotes damaged bytes."""
_LOCKED_SECONDS = 0.1
"""How long a lock of another program may delay a start."""

Identities = Mapping[str, str]
"""The accounts, each with the identity of its source: values of another identity are not used."""
Trouble = Literal["damaged", "foreign", "newer", "unwritable"]

_log = structlog.get_logger()


class _Unusable(Exception):
    def __init__(self, trouble: Trouble, problem: str) -> None:
        super().__init__(problem)
        self.trouble = trouble


class StateFile:
    """One file, one caller at a time, from any thread. States are durable against a kill of this process once `save`
    returns; a crash of the machine may lose the last seconds.

    `up` says whether values are being kept, `failures` counts what failed. Each failure is logged when it starts and
    when it ends.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.up = False
        self.failures: Counter[Trouble] = Counter()
        self._clock = clock
        self._identities: Identities = {}
        self._unsaved: dict[Key, SpaceRecord] = {}
        self._database: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._reported = False

    def open(self, identities: Identities) -> dict[Key, SpaceRecord]:
        """Open the file, or start a new one. Returns what it knows of these accounts; nothing if it cannot be used."""
        is_retry = self._reported
        if was_lost := self._database is not None and self.is_lost():
            self._report("state file removed or replaced, opening it again")
        self.close()
        self._identities = identities
        try:
            known = self._open_or_replace()
        except _Unusable as unusable:
            self.close()
            self._reported &= not was_lost  # why it cannot be opened again is a line of its own
            self._fail("state file unusable, continuing without it", unusable)
            is_readable = unusable.trouble == "unwritable" and not is_retry
            return _read_only(self.path, identities) if is_readable else {}
        self._inode = _inode(self.path)
        self._succeed()
        return known

    def save(self, states: Mapping[Key, SpaceRecord]) -> None:
        """Keep these states, and those that could not be kept before."""
        if not self._database:
            return
        self._unsaved.update(states)
        try:
            self._write_or_make_room(states)  # the new ones first: if the disk is full, do not encode all of them
            if not self.up:
                self._write(self._unsaved)
        except _ERRORS as error:
            self._fail("state file not written, continuing without it", _unusable(error))
        else:
            self._unsaved.clear()
            self._succeed()

    def retain(self, spaces: Collection[Key], identities: Identities) -> None:
        """Remove what is known of all other spaces. What cannot be removed now is removed at the next start."""
        same = {account for account, identity in identities.items() if self._identities.get(account) == identity}
        self._identities = identities
        self._unsaved = {key: state for key, state in self._unsaved.items() if key in spaces and key[0] in same}
        if not self._database:
            return
        try:
            stored = self._database.execute("SELECT account, space FROM space").fetchall()
            with self._database:
                removed = [key for key in stored if key not in spaces]
                self._database.executemany("DELETE FROM space WHERE account=? AND space=?", removed)
        except _ERRORS as error:
            self._fail("state file not written, continuing without it", _unusable(error))

    def needs_checkpoint(self) -> bool:
        """Whether it is time to call `checkpoint`."""
        return self._database is not None and _bytes_of_log(self.path) > _LARGE_LOG_BYTES

    def checkpoint(self) -> bool:
        """Write SQLite's log back into the file, so that the next write starts a new one. Waits for the disk twice.
        Returns whether all of it was written back; what was not is tried again with the next call."""
        with suppress(*_ERRORS):
            if self._database:
                _, pages, written = self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                return bool(pages == written)
        return False

    def mark_failed(self, problem: str) -> None:
        """Report that a call did not end well."""
        self._fail("state file not written, continuing without it", _Unusable("unwritable", problem))

    def is_lost(self) -> bool:
        """Whether it could not be opened, or its file was removed or replaced since."""
        return self._database is None or _inode(self.path) != self._inode

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._database:
            self._database.close()
        self._database, self.up = None, False

    def _fail(self, event: str, unusable: _Unusable) -> None:
        self.failures[unusable.trouble] += 1
        self._report(event, problem=str(unusable))

    def _report(self, event: str, **fields: str) -> None:
        if not self._reported:
            _log.error(event, file=str(self.path), **fields)
        self.up, self._reported = False, True

    def _succeed(self) -> None:
        if self._reported:
            _log.info("state file in use again", file=str(self.path))
        self.up, self._reported = True, False

    def _open_or_replace(self) -> dict[Key, SpaceRecord]:
        try:
            _require_ours(self.path)
            return self._open()
        except _Unusable as unusable:
            if unusable.trouble != "damaged":
                raise
            self.close()
            self.failures["damaged"] += 1
            kept = _rename(self.path, self._clock.now())
            _log.error(
                "state file damaged, renamed it and started a new one",
                file=str(self.path),
                kept=str(kept),
                problem=str(unusable),
            )
            return self._open()

    def _open(self) -> dict[Key, SpaceRecord]:
        try:
            _create(self.path)
            self._database = _connect(self.path.absolute().as_uri())
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # before WAL, so that the header itself says whose file it is
                self._database.executescript(_SCHEMA)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA wal_autocheckpoint=0")  # `checkpoint` waits for the disk, not a commit
            self._database.execute("PRAGMA journal_size_limit=0")  # a log that was written back starts at no size
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("PRAGMA busy_timeout=0")  # a save that meets a lock is repeated with the next one
            return dict(_read(self._database, self._identities))
        except _ERRORS as error:
            raise _unusable(error) from error

    def _write_or_make_room(self, states: Mapping[Key, SpaceRecord]) -> None:
        try:
            self._write(states)
        except sqlite3.OperationalError:  # on a full disk, the log may be what takes the room
            if not self.checkpoint():
                raise
            self._write(states)

    def _write(self, states: Mapping[Key, SpaceRecord]) -> None:
        assert self._database
        rows = ((*key, self._identities[key[0]], _encode(state)) for key, state in states.items())
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO space VALUES (?, ?, ?, ?)", rows)


def read_state_file(path: Path, identities: Identities) -> dict[Key, SpaceRecord]:
    """What a state file knows of these accounts, also while an exporter writes it. Nothing if there is no file, or it
    cannot be read. Changes and creates no file."""
    with suppress(OSError, _Unusable, *_ERRORS):
        _require_ours(path)
        if not _bytes_of_log(path):
            options = "mode=ro&immutable=1"  # otherwise SQLite creates an empty log, even to read
        elif _beside(path, "-shm").exists():
            options = "mode=ro"
        else:
            return {}  # SQLite would create the index of the log; only a manually copied file has none
        with closing(_connect(f"{path.absolute().as_uri()}?{options}")) as database:
            return dict(_read(database, identities))
    return {}


def _require_ours(path: Path) -> None:
    """By the header, before SQLite touches anything: a file of another program stays as it is."""
    try:
        for suffix in _SUFFIXES:  # never rename a device, and never wait for a FIFO
            with suppress(FileNotFoundError):
                require_regular(_beside(path, suffix))
        header = read_bytes(path, _HEADER_BYTES)
    except FileNotFoundError:
        return
    except NotRegularError as error:
        raise _Unusable("unwritable", f"expected a regular file, found {error.strerror}") from error
    except OSError as error:
        raise _Unusable("unwritable", error.strerror or str(error)) from error
    if header.startswith(_SQLITE_HEADER) and len(header) == _HEADER_BYTES:
        if int.from_bytes(header[68:72]) != _APPLICATION_ID:
            raise _Unusable("foreign", "expected a state file, found a database of another program")
        version = int.from_bytes(header[60:64])
        if version > _SCHEMA_VERSION:
            raise _Unusable("newer", f"expected schema {_SCHEMA_VERSION}, found {version} of a newer version")
        if version < _SCHEMA_VERSION:
            raise _Unusable("damaged", f"expected schema {_SCHEMA_VERSION}, found {version}")
    elif header and _is_text(header):
        raise _Unusable("foreign", "expected a state file, found text")
    elif header or _beside(path, "-wal").exists():  # SQLite would delete the log of an empty file
        raise _Unusable("damaged", "expected a state file, found other bytes")


def _is_text(header: bytes) -> bool:
    text = header.decode("utf-8", "replace")
    return "\0" not in text and text.count("\N{REPLACEMENT CHARACTER}") <= 1  # the last character may be cut


def _read_only(path: Path, identities: Identities) -> dict[Key, SpaceRecord]:
    """What a file knows that cannot be written (disk full or read-only). Nothing if the disk is read-only and the
    file has an unread write-ahead log: its values would be older."""
    with suppress(OSError, *_ERRORS):
        options = "" if _bytes_of_log(path) else "?immutable=1"
        with closing(_connect(path.absolute().as_uri() + options)) as database:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")  # so that the log's index needs no file
            return dict(_read(database, identities))
    return {}


def _beside(path: Path, suffix: str) -> Path:
    """One of SQLite's files, which are beside the file that a link leads to."""
    return Path(f"{os.path.realpath(path)}{suffix}")


def _bytes_of_log(path: Path) -> int:
    """The size of SQLite's write-ahead log: if it is not empty, it has newer values than the file."""
    try:
        return _beside(path, "-wal").stat().st_size
    except OSError:
        return 0


def _rename(path: Path, now: float) -> Path:
    """Rename the file that a link leads to, and SQLite's files beside it, to a free name."""
    path = Path(os.path.realpath(path))
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{f'-{n}' if n else ''}") for n in count())
    kept = next(name for name in names if not name.exists())
    try:
        for suffix in _SUFFIXES:
            beside = Path(f"{path}{suffix}")
            if beside.exists():
                beside.rename(f"{kept}{suffix}")
    except OSError as error:
        raise _Unusable("unwritable", error.strerror or str(error)) from error
    return kept


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, timeout=_LOCKED_SECONDS, uri=True, check_same_thread=False)


def _create(path: Path) -> None:
    """Create the file, if there is none, for its owner alone: it holds phone numbers. SQLite's files beside it get the
    same mode."""
    with suppress(OSError):  # SQLite says what is wrong
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _read(database: sqlite3.Connection, identities: Identities) -> Iterator[tuple[Key, SpaceRecord]]:
    """The rows of these accounts, if they are of the same identity."""
    for account, space, identity, text in database.execute("SELECT account, space, identity, known FROM space"):
        if identities.get(account) == identity:
            yield (account, space), _decode(text)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _unusable(error: Exception) -> _Unusable:
    damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE
    return _Unusable("damaged" if damaged else "unwritable", str(error))


@dataclass(frozen=True, slots=True)
class _Known:
    """A row in JSON: all but the counters, which start again with the process."""

    up: bool
    last_success: float | None
    next_slot: float | None
    phone_numbers: tuple[PhoneNumber, ...]
    changes: tuple[tuple[str, str, float, str], ...]
    missing: tuple[tuple[str, str, float, str], ...] = ()
    discovered_as: str | None = None
    added: float | None = None


_KNOWN = TypeAdapter(_Known)  # reads equal texts as one object, which saves half the memory of fifty thousand numbers


def _encode(state: SpaceRecord) -> str:
    changes, missing = (
        tuple((number, name, change.at, change.before) for (number, name), change in kept.items())
        for kept in (state.changes, state.missing)
    )
    known = _Known(
        state.up,
        state.last_success,
        state.next_slot,
        state.phone_numbers,
        changes,
        missing,
        state.discovered_as,
        state.added,
    )
    return _KNOWN.dump_json(known).decode()


def _decode(text: str) -> SpaceRecord:
    known = _KNOWN.validate_json(text)
    changes, missing = (
        {(number, name): Change(at, before) for number, name, at, before in kept}
        for kept in (known.changes, known.missing)
    )
    return SpaceRecord(
        known.up,
        known.last_success,
        known.phone_numbers,
        changes,
        missing,
        next_slot=known.next_slot,
        discovered_as=known.discovered_as,
        added=known.added,
    )
