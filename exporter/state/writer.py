"""Writes states to a state file without holding the event loop: one operation at a time, in a thread.

States that wait are written together. A state is passed to `on_saved`, which shows it, after it was written: nothing
is lost that was shown. If the file cannot be written, or not in time, states are passed on without that.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial

import structlog

from exporter.state.state_file import Identities, StateFile
from exporter.state.store import Key, SpaceRecord
from exporter.threads import BlockingCalls

OPEN_SECONDS = 20.0
"""How long a start waits for the file."""
WRITE_SECONDS = 10.0
"""How long a state waits for its write before it is shown."""
_CLOSE_SECONDS = 2.0

States = Mapping[Key, SpaceRecord]

_log = structlog.get_logger()


class StateWriter:
    """The way to one state file. All that reads or writes the file is called through it."""

    def __init__(self, file: StateFile, on_saved: Callable[[States], None]) -> None:
        self.file = file
        self._on_kept = on_saved
        self._calls = BlockingCalls()
        self._identities: Identities = {}
        self._unread = False
        """The last `open` did not end in time: what the file knows was not passed on."""
        self._unsaved: dict[Key, SpaceRecord] = {}
        self._saving: dict[Key, SpaceRecord] = {}
        self._unshown: dict[Key, SpaceRecord] = {}
        self._retained: tuple[Collection[Key], Identities] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def open(self, identities: Identities) -> States:
        """Open the file, or start a new one. Returns what it knows of these accounts; nothing if it cannot be used."""
        self._identities = identities
        return await self._open(partial(self.file.open, identities)) or {}

    async def reopen(self, identities: Identities) -> States | None:
        """Open the file if it could not be opened, or was removed or replaced since: what it knows then, or None. Not
        while a call is in flight: the file is in use, or hangs."""
        if self._calls.busy:
            return None
        unread = self._unread

        def open_again() -> States | None:
            return self.file.open(identities) if unread or self.file.is_lost() else None

        return await self._open(open_again)

    def save(self, states: States) -> None:
        """Write these states, and pass them to `on_saved` then."""
        self._unsaved.update(states)
        self._unshown.update(states)
        if not self.file.up:
            self._show(states)
        self._start()

    def retain(self, spaces: Collection[Key], identities: Identities) -> None:
        """Remove all other spaces, and those of accounts that have another identity now."""

        def kept(states: States) -> dict[Key, SpaceRecord]:
            same = {name for name, identity in identities.items() if self._identities.get(name) == identity}
            return {key: state for key, state in states.items() if key in spaces and key[0] in same}

        self._unsaved, self._saving, self._unshown = kept(self._unsaved), kept(self._saving), kept(self._unshown)
        self._identities, self._retained = identities, (spaces, identities)
        self._start()

    def is_waiting(self, key: Key) -> bool:
        """Whether the newest state of this space was not passed to `on_saved` yet."""
        return key in self._unshown

    async def close(self) -> None:
        """Write what waits, and close the file, within a few seconds."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._writing and not self._writing.done():
                    await asyncio.wait([self._writing])
                await self._calls.run(self.file.close, seconds=_CLOSE_SECONDS)
        except TimeoutError:
            _log.error("state file not written before the exit", file=str(self.file.path))
        if self._writing:
            self._writing.cancel()

    async def _open(self, call: Callable[[], States | None]) -> States | None:
        try:
            known = await self._calls.run(call, seconds=OPEN_SECONDS)
        except TimeoutError:
            self._unread = True
            self.file.mark_failed(f"timed out after {OPEN_SECONDS:g} s")
            return None
        self._unread = False
        return known

    def _start(self) -> None:
        if not self._writing or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while (self._unsaved or self._retained) and not self._unread:  # what was not read yet must not be replaced
            retained, self._retained = self._retained, None
            self._saving, self._unsaved = self._unsaved, {}
            write = partial(_write, self.file, self._saving, retained)
            try:
                needs_checkpoint = await self._calls.run(write, seconds=WRITE_SECONDS)
                self._show(self._saving)
                if needs_checkpoint:  # after the states are shown, for it waits for the disk
                    await self._calls.run(self.file.checkpoint, seconds=WRITE_SECONDS)
            except TimeoutError:
                self._unsaved, self._retained = {**self._saving, **self._unsaved}, self._retained or retained
                self.file.mark_failed(f"timed out after {WRITE_SECONDS:g} s")
                self._show(self._unshown)
            except Exception:
                _log.exception("state file not written because of a bug, please report it", file=str(self.file.path))
                self._unsaved = {**self._saving, **self._unsaved}
                self.file.mark_failed("internal error")
                self._show(self._unshown)
                return  # the next state tries again

    def _show(self, states: States) -> None:
        """Pass on those of the states that are the newest of their spaces, and were not passed on."""
        new = {key: state for key, state in states.items() if self._unshown.get(key) is state}
        for key in new:
            del self._unshown[key]
        self._on_kept(new)


def _write(file: StateFile, states: States, retained: tuple[Collection[Key], Identities] | None) -> bool:
    """Whether the file's log is large then."""
    if retained:
        file.retain(*retained)
    if states:
        file.save(states)
    return file.needs_checkpoint()
