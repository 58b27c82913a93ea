"""Records the result of each poll in the store, the rendered metrics, the state file and the counters."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace

from exporter.clock import Clock, Now
from exporter.config.settings import Settings
from exporter.metrics.catalogue import SpaceView
from exporter.metrics.instruments import Instruments
from exporter.metrics.rendered import RenderedMetrics
from exporter.model import Space
from exporter.source import Outcome
from exporter.state.store import Key, Records, SpaceRecord, Store
from exporter.state.writer import StateWriter


class Recorder:
    """Keeps the records of all spaces: in memory, in the rendered metrics, and in the state file.

    A record is *shown* when it is in the rendered metrics, which `/metrics` and all pages use. With a state file, the
    result of a poll is shown after it was written to the file or the write failed (see `StateWriter`).
    """

    def __init__(self, clock: Clock) -> None:
        self.instruments = Instruments()
        self.state_file: StateWriter | None = None
        self.rendered = RenderedMetrics()
        self._clock = clock
        self._store = Store(self._show)
        self._settings = Settings.model_construct(accounts=[])
        self._limits: Mapping[str, float] = {}
        self._spaces: Mapping[Key, Space] = {}
        self._discovered: Set[Key] = frozenset()
        self._stored: Records = {}
        """Records that were read from the state file. They are not written again until they change."""

    @property
    def unpolled(self) -> int:
        """Number of spaces that have no fresh stored values and were not polled since the start, or whose newest record
        is not shown yet."""
        return sum(key in self._store.unpolled or self._is_pending(key) for key in self._spaces)

    def has_numbers(self, key: Key) -> bool:
        """Whether the last successful poll of the space, of any age, listed phone numbers."""
        return key in self._spaces and bool(self._store[key].phone_numbers)

    def record(self, outcome: Outcome) -> None:
        """Record the result of a poll."""
        key = outcome.account, outcome.space
        missing_before = self._store[key].missing
        record = self._store.add_outcome(outcome)
        if outcome.answer:
            newly_missing = [field for number, field in record.missing if (number, field) not in missing_before]
            self.instruments.count_unknown_values(outcome.answer, self._limits, newly_missing)
        if self.state_file:
            self._save([key])
        else:
            self._show(key, record)

    def apply(self, settings: Settings, discovered: Set[Key], stored_records: Records) -> Set[Key]:
        """Apply these settings to the store, the rendered metrics and the counters. `discovered` has the discovered
        spaces, `stored_records` the records that were read from a state file. Return the spaces whose records must be
        saved with `sync_state_file`."""
        old_settings, self._settings, self._limits = self._settings, settings, settings.limits
        old_spaces, self._spaces = self._spaces, settings.spaces
        old_discovered, self._discovered = self._discovered, discovered
        self.instruments.apply([account.name for account in settings.accounts])
        identities, old_identities = settings.identities, old_settings.identities
        now = Now.of(self._clock)
        self._store.set_spaces(
            [key for key in self._spaces if identities[key[0]] == old_identities.get(key[0])], now=now
        )
        self._restore(stored_records)  # before new spaces are added, so that each space is rendered only once
        self._store.set_spaces(self._spaces, now=now)
        self.rendered.retain(self._spaces)
        render_all = (settings.limits, settings.max_age) != (old_settings.limits, old_settings.max_age)
        for key in self._spaces.keys() & old_spaces.keys():
            if (render_all or old_spaces[key] != self._spaces[key]) and not self._is_pending(key):
                self._show(key, self._store[key])
        renamed = {key for key in discovered if old_spaces.get(key) != self._spaces[key]}
        return (old_discovered ^ discovered | renamed) & self._spaces.keys()

    def use_state_file(self, state_file: StateWriter | None) -> StateWriter | None:
        """Replace the state file. Return the previous state file."""
        previous, self.state_file = self.state_file, state_file
        for key in [key for key in self._spaces if previous and previous.is_pending(key)]:
            self._show(key, self._store[key])
        return previous

    def show_records(self, records: Records) -> None:
        """Show these records. Called after the write of the records, or if the state file cannot be written."""
        for key, record in records.items():
            # after a reload, the space can have another record, for example of another account
            if key in self._spaces and replace(self._store[key], discovered_as=record.discovered_as) == record:
                self._show(key, self._store[key])

    def sync_state_file(self, keys: Iterable[Key]) -> None:
        """Save the records of these spaces if they have changed, and remove the spaces that are not polled."""
        if self.state_file:
            self.state_file.retain(self._spaces, self._settings.identities)
            self._save(keys)
            self._stored = {}

    async def reopen_state_file(self) -> None:
        """Open the state file again if it is not open, or was removed or replaced."""
        state_file, identities = self.state_file, self._settings.identities
        stored = await state_file.reopen(identities) if state_file else None
        if stored is not None and state_file is self.state_file:
            new = self._settings.identities  # a reload can have changed them
            self._restore({key: stored[key] for key in stored if identities.get(key[0]) == new.get(key[0])})
            self.sync_state_file(self._spaces)

    def slots(self, account: str, spaces: Iterable[Space]) -> dict[str, float]:
        """Return the next slots (monotonic seconds) of spaces with fresh values whose last poll succeeded. Spaces
        without a slot are polled first, so that a denied account is detected quickly."""
        offset = self._clock.monotonic() - self._clock.now()
        ids = (space.id for space in spaces if (account, space.id) not in self._store.unpolled)
        records = {space: self._store[account, space] for space in ids}
        return {space: r.next_slot + offset for space, r in records.items() if r.up and r.next_slot is not None}

    def expire(self) -> Iterator[None]:
        """Remove the values that are older than `max_age`, one space at each step."""
        return self.rendered.expire(Now.of(self._clock), self._settings.max_age)

    def views(self) -> Iterator[SpaceView]:
        """Return all spaces with their shown values. Safe to call from another thread."""
        return self.rendered.views(Now.of(self._clock), self._settings.max_age)

    def _is_pending(self, key: Key) -> bool:
        return self.state_file is not None and self.state_file.is_pending(key)

    def _restore(self, stored_records: Records) -> None:
        self._stored = {key: stored_records[key] for key in self._spaces if key in stored_records}
        self._store.restore(self._stored, now=Now.of(self._clock), max_age=self._settings.max_age)

    def _save(self, keys: Iterable[Key]) -> None:
        if self.state_file:
            polled = (key for key in keys if key in self._spaces and key not in self._store.unpolled)
            records = {key: self._record_to_save(key) for key in polled}
            if new := {key: record for key, record in records.items() if record != self._stored.get(key)}:
                self.state_file.save(new)

    def _record_to_save(self, key: Key) -> SpaceRecord:
        record, name = self._store[key], self._spaces[key].name if key in self._discovered else None
        return record if record.discovered_as == name else replace(record, discovered_as=name)

    def _show(self, key: Key, record: SpaceRecord) -> None:
        fresh = record.last_success is not None  # `expire` removes old values before each scrape
        self.rendered.update(SpaceView(key[0], self._spaces[key], record, fresh, self._limits))
