"""Records the results of polls in every place that keeps them: states, rendered page, state file and counters."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace

from exporter.clock import Clock, Now
from exporter.config.settings import Settings
from exporter.metrics.catalogue import SpaceView
from exporter.metrics.instruments import Instruments
from exporter.metrics.rendered import RenderedMetrics
from exporter.model import Space
from exporter.source import Outcome
from exporter.state.store import Key, SpaceRecord, Store
from exporter.state.writer import StateWriter

Known = Mapping[Key, SpaceRecord]


class Recorder:
    """`record` is the only writer of values; `apply` changes the spaces.

    With a state file, the result of a poll is shown after it was written to the file (see `StateWriter`): a restart
    loses nothing that was shown.
    """

    def __init__(self, clock: Clock) -> None:
        self.instruments = Instruments()
        self.state_file: StateWriter | None = None
        self.page = RenderedMetrics()
        self._clock = clock
        self._store = Store(self._show)
        self._settings = Settings.model_construct(accounts=[])
        self._limits: Mapping[str, float] = {}
        self._spaces: Mapping[Key, Space] = {}
        self._discovered: Set[Key] = frozenset()
        self._read: Known = {}
        """What the state file has already."""

    @property
    def unpolled(self) -> int:
        """How many spaces have no stored value and were not polled since the start, or are not shown yet."""
        return sum(key in self._store.unpolled or self._is_waiting(key) for key in self._spaces)

    def has_numbers(self, key: Key) -> bool:
        """Whether the last successful poll of the space listed numbers, however long ago."""
        return key in self._spaces and bool(self._store[key].phone_numbers)

    def record(self, outcome: Outcome) -> None:
        """Record the result of a poll."""
        key = outcome.account, outcome.space
        before = self._store[key].missing
        state = self._store.record(outcome)
        if outcome.answer:
            lost = [field for number, field in state.missing if (number, field) not in before]
            self.instruments.count_unknown_values(outcome.answer, self._limits, lost)
        if self.state_file:
            self._save([key])
        else:
            self._show(key, state)

    def apply(self, settings: Settings, discovered: Set[Key], known: Known) -> Set[Key]:
        """Apply these settings, of whose spaces these are `discovered`, to states and page; `known` are values that
        were read from a state file. Writes no file; returns the spaces whose row in the file must be written."""
        before, self._settings, self._limits = self._settings, settings, settings.limits
        old, self._spaces = self._spaces, settings.spaces
        were, self._discovered = self._discovered, discovered
        self.instruments.apply([account.name for account in settings.accounts])
        identities, others = settings.identities, before.identities
        now = Now.of(self._clock)
        self._store.retain([key for key in self._spaces if identities[key[0]] == others.get(key[0])], now=now)
        self._restore(known)  # before the new spaces are added: each is rendered once
        self._store.retain(self._spaces, now=now)
        self.page.retain(self._spaces)
        shown_differently = (settings.limits, settings.max_age) != (before.limits, before.max_age)
        for key in self._spaces.keys() & old.keys():
            if (shown_differently or old[key] != self._spaces[key]) and not self._is_waiting(key):
                self._show(key, self._store[key])
        renamed = {key for key in discovered if old.get(key) != self._spaces[key]}
        return (were ^ discovered | renamed) & self._spaces.keys()

    def use_state_file(self, state_file: StateWriter | None) -> StateWriter | None:
        """Write to this state file from now on. Returns the one before."""
        before, self.state_file = self.state_file, state_file
        for key in [key for key in self._spaces if before and before.is_waiting(key)]:
            self._show(key, self._store[key])
        return before

    def show_saved(self, states: Known) -> None:
        """Show these states. They are in the state file, or it cannot be written now."""
        for key, state in states.items():
            # after a reload, a space can have another state, for example of another account
            if key in self._spaces and replace(self._store[key], discovered_as=state.discovered_as) == state:
                self._show(key, self._store[key])

    def sync_state_file(self, keys: Iterable[Key]) -> None:
        """Write these spaces to the state file, if it does not have them, and remove those that are not polled."""
        if self.state_file:
            self.state_file.retain(self._spaces, self._settings.identities)
            self._save(keys)
            self._read = {}

    async def follow_state_file(self) -> None:
        """Open the state file again if it could not be opened, or was removed or replaced."""
        followed, identities = self.state_file, self._settings.identities
        known = await followed.reopen(identities) if followed else None
        if known is not None and followed is self.state_file:
            now = self._settings.identities  # a reload can have changed them meanwhile
            self._restore({key: s for key, s in known.items() if identities.get(key[0]) == now.get(key[0])})
            self.sync_state_file(self._spaces)

    def slots(self, account: str, spaces: Iterable[Space]) -> dict[str, float]:
        """The next slots, in monotonic seconds, of the spaces whose values are known and whose last poll succeeded. A
        failing space is polled first, so that a denied account is detected quickly."""
        ahead = self._clock.monotonic() - self._clock.now()
        keys = ((account, space.id) for space in spaces)
        states = {space: self._store[name, space] for name, space in keys if (name, space) not in self._store.unpolled}
        return {space: s.next_slot + ahead for space, s in states.items() if s.up and s.next_slot is not None}

    def expire(self) -> Iterator[None]:
        """Remove the values that are too old to show, one space at each step."""
        return self.page.expire(Now.of(self._clock), self._settings.max_age)

    def views(self) -> Iterator[SpaceView]:
        """The spaces as the page shows them. Safe to call from another thread."""
        return self.page.views(Now.of(self._clock), self._settings.max_age)

    def _is_waiting(self, key: Key) -> bool:
        return self.state_file is not None and self.state_file.is_waiting(key)

    def _restore(self, known: Known) -> None:
        self._read = {key: known[key] for key in self._spaces if key in known}
        self._store.restore(self._read, now=Now.of(self._clock), max_age=self._settings.max_age)

    def _save(self, keys: Iterable[Key]) -> None:
        if self.state_file:
            polled = (key for key in keys if key in self._spaces and key not in self._store.unpolled)
            states = {key: self._kept(key) for key in polled}
            if new := {key: state for key, state in states.items() if state != self._read.get(key)}:
                self.state_file.save(new)

    def _kept(self, key: Key) -> SpaceRecord:
        state, name = self._store[key], self._spaces[key].name if key in self._discovered else None
        return state if state.discovered_as == name else replace(state, discovered_as=name)

    def _show(self, key: Key, state: SpaceRecord) -> None:
        fresh = state.last_success is not None  # `expire` decides, before every scrape
        self.page.update(SpaceView(key[0], self._spaces[key], state, fresh, self._limits))
