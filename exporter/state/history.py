"""The state file: what is known of every space, kept over a restart in SQLite. A trouble with it never stops a poll."""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import structlog

from exporter.chatapp.model import Callback, PhoneNumber
from exporter.state.store import Key, SpaceState

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS space (
    account TEXT NOT NULL, space TEXT NOT NULL, up INTEGER NOT NULL, last_success REAL, known TEXT NOT NULL,
    PRIMARY KEY (account, space)
) WITHOUT ROWID
"""

_LOCKED_SECONDS = 0.1
"""How long a file that someone else has locked may hold up the polls."""

_log = structlog.get_logger()


class History:
    """One file, one writer. A poll's outcome is durable against a kill of this process once `save` returns."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            sqlite3.Error: it cannot be used, or a newer version wrote it.
        """
        self._database = sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_SECONDS)
        self._failing = False
        try:
            self._prepare()
        except sqlite3.Error:
            self._database.close()
            raise

    def load(self, keys: Collection[Key]) -> dict[Key, SpaceState]:
        """The states of these spaces as far as they are known; what is known of others is forgotten."""
        states = {}
        for account, space, *row in self._database.execute("SELECT * FROM space").fetchall():
            if (account, space) not in keys:
                self._database.execute("DELETE FROM space WHERE account=? AND space=?", (account, space))
                continue
            try:
                states[account, space] = _decode(*row)
            except (ValueError, KeyError, TypeError) as error:
                _log.warning("state of a space unreadable, it is polled anew", space=space, problem=str(error))
        return states

    def save(self, key: Key, state: SpaceState) -> None:
        """Keep a space's state; a failure is logged when it begins and when it ends."""
        row = (*key, state.up, state.last_success, _encode(state))
        try:
            self._database.execute("INSERT OR REPLACE INTO space VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            if not self._failing:
                _log.warning("state file not written, polling goes on without it", problem=str(error))
            self._failing = True
        else:
            if self._failing:
                _log.info("state file written again")
            self._failing = False

    def close(self) -> None:
        self._database.close()

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"written by a newer version (schema {version}, expected {_SCHEMA_VERSION})")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(_SCHEMA)
        self._database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _encode(state: SpaceState) -> str:
    numbers = [asdict(number) for number in state.phone_numbers]
    changes = [[number, field, at] for (number, field), at in state.changes.items()]
    return json.dumps({"phone_numbers": numbers, "changes": changes})


def _decode(up: int, last_success: float | None, known: str) -> SpaceState:
    document = json.loads(known)
    numbers = (
        PhoneNumber(
            **{
                **fields,
                "inbound_callback": Callback(fields["inbound_callback"]),
                "status_callback": Callback(fields["status_callback"]),
            }
        )
        for fields in document["phone_numbers"]
    )
    changes = {(number, field): at for number, field, at in document["changes"]}
    return SpaceState(bool(up), last_success, tuple(numbers), changes)
