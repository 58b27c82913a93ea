"""Writes records to a state file without blocking the event loop: one operation at a time, in a thread.

Pending records are written together and then passed to `on_write_ended`, which shows them. Therefore a restart does not
lose shown records. Exception: if the file cannot be written, or the write exceeds its time limit, records are shown
before they are saved.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial

import structlog

from exporter.state.state_file import Identities, StateFile
from exporter.state.store import Key, Records, SpaceRecord
from exporter.threads import BlockingCalls

OPEN_SECONDS = 20.0
"""Time limit for opening and reading the file."""
WRITE_SECONDS = 10.0
"""Time limit for a write. After it, records are shown unsaved."""
_CLOSE_SECONDS = 2.0

_log = structlog.get_logger()


class StateWriter:
    """Reads and writes one state file. A running exporter has no other access to its state file."""

    def __init__(self, file: StateFile, on_write_ended: Callable[[Records], None]) -> None:
        self.file = file
        self._on_write_ended = on_write_ended
        self._calls = BlockingCalls()
        self._identities: Identities = {}
        self._open_timed_out = False
        """The last `open` exceeded its time limit: the stored records were not returned."""
        self._unsaved: dict[Key, SpaceRecord] = {}
        """Records for the next write."""
        self._saving: dict[Key, SpaceRecord] = {}
        """Records of the write in flight."""
        self._pending: dict[Key, SpaceRecord] = {}
        """The newest record of each space, until it is passed to `on_write_ended`."""
        self._spaces_to_keep: tuple[Collection[Key], Identities] | None = None
        """The arguments of `StateFile.retain` for the next write; None if it need not be called."""
        self._writing: asyncio.Task[None] | None = None

    async def open(self, identities: Identities) -> Records:
        """Open or create the file. Return the records of these accounts, or no records if the file cannot be used."""
        self._identities = identities
        return await self._open(partial(self.file.open, identities)) or {}

    async def reopen(self, identities: Identities) -> Records | None:
        """Open the file again if it is not open, or was removed or replaced. Return its records, or None if it was not
        opened. Does nothing while a call is in flight, because the file is in use or does not respond."""
        if self._calls.busy:
            return None
        open_timed_out = self._open_timed_out

        def open_again() -> Records | None:
            return self.file.open(identities) if open_timed_out or self.file.needs_reopen() else None

        return await self._open(open_again)

    def save(self, records: Records) -> None:
        """Write these records, then pass them to `on_write_ended`. If the file is not `up`, pass them first."""
        self._unsaved.update(records)
        self._pending.update(records)
        if not self.file.up:
            self._call_on_write_ended(records)
        self._start_writing()

    def retain(self, spaces: Collection[Key], identities: Identities) -> None:
        """Remove the records of all other spaces, and of accounts whose identity has changed."""
        unchanged = {name for name, identity in identities.items() if self._identities.get(name) == identity}

        def filtered(records: Records) -> dict[Key, SpaceRecord]:
            return {key: record for key, record in records.items() if key in spaces and key[0] in unchanged}

        self._unsaved, self._saving = filtered(self._unsaved), filtered(self._saving)
        self._pending = filtered(self._pending)
        self._identities, self._spaces_to_keep = identities, (spaces, identities)
        self._start_writing()

    def is_pending(self, key: Key) -> bool:
        """Whether the newest record of this space was not yet passed to `on_write_ended`."""
        return key in self._pending

    async def close(self) -> None:
        """Write the unsaved records and close the file, within 2 seconds."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._writing and not self._writing.done():
                    await asyncio.wait([self._writing])
                await self._calls.run(self.file.close, seconds=_CLOSE_SECONDS)
        except TimeoutError:
            _log.error("state file not written before exit", file=str(self.file.path))
        if self._writing:
            self._writing.cancel()

    async def _open(self, call: Callable[[], Records | None]) -> Records | None:
        try:
            records = await self._calls.run(call, seconds=OPEN_SECONDS)
        except TimeoutError:
            self._open_timed_out = True
            self.file.mark_failed(f"timed out after {OPEN_SECONDS:g} s")
            return None
        self._open_timed_out = False
        return records

    def _start_writing(self) -> None:
        if not self._writing or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        # after a timeout of `open`, never replace records that were not read
        while (self._unsaved or self._spaces_to_keep) and not self._open_timed_out:
            spaces_to_keep, self._spaces_to_keep = self._spaces_to_keep, None
            self._saving, self._unsaved = self._unsaved, {}
            write = partial(_write_to_file, self.file, self._saving, spaces_to_keep)
            try:
                needs_checkpoint = await self._calls.run(write, seconds=WRITE_SECONDS)
                self._call_on_write_ended(self._saving)
                if needs_checkpoint:  # after `on_write_ended`, because a checkpoint waits for the disk
                    await self._calls.run(self.file.checkpoint, seconds=WRITE_SECONDS)
            except TimeoutError:
                self._unsaved = {**self._saving, **self._unsaved}
                self._spaces_to_keep = self._spaces_to_keep or spaces_to_keep
                self.file.mark_failed(f"timed out after {WRITE_SECONDS:g} s")
                self._call_on_write_ended(self._pending)
            except Exception:
                _log.exception(
                    "state file cannot be written because of a bug, please report it", file=str(self.file.path)
                )
                self._unsaved = {**self._saving, **self._unsaved}
                self.file.mark_failed("internal error")
                self._call_on_write_ended(self._pending)
                return  # the next save tries again

    def _call_on_write_ended(self, records: Records) -> None:
        """Pass records to `on_write_ended`, without those that are outdated or were already passed."""
        new = {key: record for key, record in records.items() if self._pending.get(key) is record}
        for key in new:
            del self._pending[key]
        self._on_write_ended(new)


def _write_to_file(
    file: StateFile, records: Records, spaces_to_keep: tuple[Collection[Key], Identities] | None
) -> bool:
    """Remove and save records. Return whether the file needs a checkpoint."""
    if spaces_to_keep:
        file.retain(*spaces_to_keep)
    if records:
        file.save(records)
    return file.needs_checkpoint()
