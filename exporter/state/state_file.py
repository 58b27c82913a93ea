"""The state file: what is known of every space, kept over a restart in SQLite. A trouble with it never stops a poll.

Each row carries a checksum, for SQLite has none: a flipped bit must not become a number's rating. A damaged file is
kept aside, and what is still readable of it goes into a new one. A file that we did not write is left alone.
"""

import os
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count, repeat
from pathlib import Path
from typing import Literal, Protocol

import structlog
from pydantic import TypeAdapter, ValidationError

from exporter.model import PhoneNumber
from exporter.state.store import Change, Key, SpaceState

_APPLICATION_ID = int.from_bytes(b"CHAT")
_SCHEMA_VERSION = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id={_APPLICATION_ID};
PRAGMA user_version={_SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS space (
    account TEXT NOT NULL, space TEXT NOT NULL, known TEXT NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (account, space)
) WITHOUT ROWID;
COMMIT;
"""
_SQLITE_HEADER = b"SQLite format 3\0"
_HEADER_BYTES = 100
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite's codes for a file that does not hold what it must; all others tell of the file system or of locks."""
_SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Python cannot decode a message of SQLite's that quotes damage."""
_LOCKED_SECONDS = 0.1
"""How long a file that someone else has locked may hold up a start."""

Endpoints = Mapping[str, str]
"""The accounts, each with the endpoint that it asks: another one may tell of another world."""
Trouble = Literal["damaged", "foreign", "newer", "unwritable"]

_log = structlog.get_logger()


class StateFileObserver(Protocol):
    """Who counts what goes wrong with the state file."""

    def state_file_up(self, file: Path, *, up: bool) -> None:
        """Whether what is known is being kept."""

    def state_file_failed(self, file: Path, trouble: Trouble) -> None:
        """The file could not be opened, read or written."""


class _Unusable(Exception):
    def __init__(self, trouble: Trouble, problem: str) -> None:
        super().__init__(problem)
        self.trouble = trouble


def open_state_file(
    path: Path, endpoints: Endpoints, now: float, observer: StateFileObserver, *, again: bool = False
) -> tuple["StateFile | None", dict[Key, SpaceState]]:
    """The state file and what it knows of these accounts' spaces; no file where it cannot be used.

    The log tells of a failure once, and not when it is tried `again`; then it tells of the success.
    """
    known: dict[Key, SpaceState] = {}
    try:
        state_file = _open(path, endpoints, known, now, observer)
        if again:
            _log.info("state file in use again", file=str(path))
        return state_file, known
    except (OSError, _Unusable) as error:
        observer.state_file_up(path, up=False)
        if not again:
            _log.error("state file unusable, polling goes on without it", file=str(path), problem=str(error))
            if isinstance(error, _Unusable) and error.trouble == "unwritable":
                known = known or _look_into(path, endpoints)  # or what was readable of one that is kept aside
        return None, known


def _open(
    path: Path, endpoints: Endpoints, known: dict[Key, SpaceState], now: float, observer: StateFileObserver
) -> "StateFile":
    """The file; where it is damaged a new one, with what was readable of the other, which is kept aside."""
    try:
        _require_ours(path)
        state_file = StateFile(path, endpoints, observer)
        state_file.load(known)
        return state_file
    except _Unusable as unusable:
        observer.state_file_failed(path, unusable.trouble)
        if unusable.trouble != "damaged":
            raise
        aside = _keep_aside(path, now)
        problem = str(unusable)
        _log.error("state file damaged, it is kept aside", file=str(path), kept=str(aside), problem=problem)
    state_file = StateFile(path, endpoints, observer)
    state_file.save(known)
    return state_file


def _require_ours(path: Path) -> None:
    """By the header, before SQLite touches anything: a file that is not ours must stay as it is."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _Unusable("unwritable", error.strerror or str(error)) from error
    if not header and _log_of(path).exists():  # which SQLite would delete
        raise _Unusable("damaged", "expected a state file, found an empty one")
    if header.startswith(_SQLITE_HEADER) and len(header) == _HEADER_BYTES:
        if int.from_bytes(header[68:72]) != _APPLICATION_ID:
            raise _Unusable("foreign", "expected a state file, found a database of another program")
        if int.from_bytes(header[60:64], signed=True) < 1:  # it was written together with the application's id
            raise _Unusable("damaged", "expected a version, found none")
        _require_known(int.from_bytes(header[60:64]))
    elif header:
        if _is_text(header):
            raise _Unusable("foreign", "expected a state file, found a text")
        raise _Unusable("damaged", "expected a state file, found no header")


def _require_known(version: int) -> None:
    if version > _SCHEMA_VERSION:
        raise _Unusable("newer", f"expected schema {_SCHEMA_VERSION}, found {version} of a newer version")


def _log_of(path: Path) -> Path:
    """SQLite's log, which stands beside the file that a link leads to."""
    return Path(f"{os.path.realpath(path)}-wal")


def _look_into(path: Path, endpoints: Endpoints) -> dict[Key, SpaceState]:
    """What a file knows that cannot be written, for its disk is full or read-only. On a read-only one it must have been
    closed well: without its log the file would tell what was known earlier."""
    for options in ("", "?immutable=1"):
        with suppress(OSError, *_SQLITE_ERRORS):
            if options and _log_of(path).exists() and _log_of(path).stat().st_size:
                break
            with closing(_connect(path.absolute().as_uri() + options)) as database:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")  # so that the log's index needs no file
                rows = list(_read(database))
            return {row.key: row.state for row in rows if row.state and row.is_of(endpoints)}
    return {}


def read_beside(path: Path, endpoints: Endpoints) -> dict[Key, SpaceState]:
    """What a file knows, beside a process that may write it; nothing where there is none or it is unreadable. Leaves
    nothing behind: what root made here, the service could not write."""
    # SQLite makes a log's index where there is none, unless it is told that nobody writes
    options = "?mode=ro" if _log_of(path).exists() else "?mode=ro&immutable=1"
    with suppress(OSError, *_SQLITE_ERRORS), closing(_connect(path.absolute().as_uri() + options)) as database:
        return {row.key: row.state for row in _read(database) if row.state and row.is_of(endpoints)}
    return {}


def _is_text(header: bytes) -> bool:
    text = header.decode("utf-8", "replace")
    return "\0" not in text and text.count("\N{REPLACEMENT CHARACTER}") <= 1  # the last character may be cut


def _keep_aside(path: Path, now: float) -> Path:
    """Rename the file, and SQLite's files beside it, to a name that is free."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{f'-{n}' if n else ''}") for n in count())
    aside = next(name for name in names if not name.exists())
    for suffix in ("", "-wal", "-shm"):
        beside = Path(f"{path}{suffix}")
        if beside.exists():
            beside.rename(f"{aside}{suffix}")
    return aside


class StateFile:
    """One file, one writer. A poll's outcome is durable against a kill of this process once `save` returns; a crash of
    the whole machine may cost the last seconds."""

    def __init__(self, path: Path, endpoints: Endpoints, observer: StateFileObserver) -> None:
        self._path = path
        self._endpoints = endpoints
        self._observer = observer
        self._unsaved: dict[Key, SpaceState] = {}
        self._failing = False
        try:
            self._database = _connect(path.absolute().as_uri())
        except _SQLITE_ERRORS as error:
            raise _unusable(error) from error
        with self._closed_if_unusable():
            self._prepare()
            self._inode = _inode(path)
        observer.state_file_up(path, up=True)

    def load(self, known: dict[Key, SpaceState]) -> None:
        """Put what the file knows of its accounts' spaces into `known`, as far as it is readable.

        Raises:
            _Unusable: it is damaged; `known` has what could be read.
        """
        unreadable = 0
        with self._closed_if_unusable():
            for row in _read(self._database):
                if row.state is None:
                    unreadable += 1
                elif row.is_of(self._endpoints):
                    known[row.key] = row.state
            if unreadable:
                raise _Unusable("damaged", f"{unreadable} rows are unreadable")

    def save(self, states: Mapping[Key, SpaceState]) -> None:
        """Keep these states, and those that could not be kept before; a failure is logged when it begins and ends."""
        self._unsaved.update(states)
        try:
            self._write(states)  # little first: while there is no room, all that waits would be encoded in vain
            if self._failing:
                self._write(self._unsaved)
        except _SQLITE_ERRORS as error:
            self._observer.state_file_failed(self._path, _unusable(error).trouble)
            if not self._failing:
                self._observer.state_file_up(self._path, up=False)
                _log.error("state file not written, polling goes on without it", problem=str(error))
            self._failing = True
        else:
            self._unsaved.clear()
            if self._failing:
                self._observer.state_file_up(self._path, up=True)
                _log.info("state file written again")
            self._failing = False

    def retain(self, spaces: Collection[Key], endpoints: Endpoints) -> None:
        """Forget what is known of all other spaces; what cannot be forgotten now, the next start forgets."""
        self._endpoints = endpoints
        self._unsaved = {key: state for key, state in self._unsaved.items() if key in spaces}
        try:
            stored = self._database.execute("SELECT account, space FROM space").fetchall()
            with self._database:
                gone = [key for key in stored if key not in spaces]
                self._database.executemany("DELETE FROM space WHERE account=? AND space=?", gone)
        except _SQLITE_ERRORS as error:
            self._observer.state_file_failed(self._path, _unusable(error).trouble)
            _log.warning("state file not written, what left the configuration is still in it", problem=str(error))

    def is_there(self) -> bool:
        """Whether the file that is written is still the one that the next start will find."""
        return _inode(self._path) == self._inode

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _closed_if_unusable(self) -> Iterator[None]:
        try:
            yield
        except (*_SQLITE_ERRORS, _Unusable) as error:
            self._database.close()
            raise (error if isinstance(error, _Unusable) else _unusable(error)) from error

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        _require_known(version)
        if version < _SCHEMA_VERSION:
            # before WAL, so that the header itself says whose file it is
            self._database.executescript(_SCHEMA)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("PRAGMA busy_timeout=0")  # a save that meets a lock is made up for by the next

    def _write(self, states: Mapping[Key, SpaceState]) -> None:
        rows = (
            (account, space, text, _checksum(account, space, text))
            for (account, space), state in states.items()
            for text in [_encode(state, self._endpoints[account])]
        )
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO space VALUES (?, ?, ?, ?)", rows)


def _connect(uri: str) -> sqlite3.Connection:
    database = sqlite3.connect(uri, timeout=_LOCKED_SECONDS, uri=True)
    # text that is no UTF-8 must fail its row's checksum, and not the whole load
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return database


@dataclass(frozen=True, slots=True)
class _Row:
    """What was known of a space, and who said so; no state where it is unreadable."""

    key: Key
    endpoint: str = ""
    state: SpaceState | None = None

    def is_of(self, endpoints: Endpoints) -> bool:
        """Whether one of these accounts said so, at the endpoint that it asks now."""
        return endpoints.get(self.key[0]) == self.endpoint


def _read(database: sqlite3.Connection) -> Iterator[_Row]:
    for account, space, text, checksum in database.execute("SELECT account, space, known, checksum FROM space"):
        key = str(account), str(space)  # damage can give a column any type
        yield _decode(key, text) if checksum == _checksum(*key, str(text)) else _Row(key)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _unusable(error: Exception) -> _Unusable:
    damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE
    return _Unusable("damaged" if damaged else "unwritable", str(error))


def _checksum(account: str, space: str, text: str) -> int:
    return zlib.crc32("\0".join((account, space, text)).encode())


@dataclass(frozen=True, slots=True)
class _Known:
    """What a row says in JSON: all but the counters, which begin anew with the process."""

    endpoint: str
    up: bool
    last_success: float | None
    next_slot: float | None
    phone_numbers: tuple[PhoneNumber, ...]
    changes: list[tuple[str, str, float]]
    discovered_as: str | None = None
    before: list[str] = field(default_factory=list)
    """What the fields of `changes` were until then, in their order; apart from them, so that older versions read on."""


_KNOWN = TypeAdapter(_Known)  # reads equal texts as one, which saves half the memory of fifty thousand numbers


def _encode(state: SpaceState, endpoint: str) -> str:
    changes = [(number, field, change.at) for (number, field), change in state.changes.items()]
    known = _Known(
        endpoint,
        state.up,
        state.last_success,
        state.next_slot,
        state.phone_numbers,
        changes,
        state.discovered_as,
        [change.before for change in state.changes.values()],
    )
    return _KNOWN.dump_json(known).decode()


def _decode(key: Key, text: str) -> _Row:
    """Without a state for a row of another version, which knew other fields."""
    try:
        known = _KNOWN.validate_json(text)
    except ValidationError:
        return _Row(key)
    before = chain(known.before, repeat(""))
    changes = {(number, field): Change(at, next(before)) for number, field, at in known.changes}
    state = SpaceState(
        known.up,
        known.last_success,
        known.phone_numbers,
        changes,
        next_slot=known.next_slot,
        discovered_as=known.discovered_as,
    )
    return _Row(key, known.endpoint, state)
