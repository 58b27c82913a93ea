"""A simulated fleet and its state at any time of a scenario. The same seed creates the same fleet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from exporter.config.problems import ConfigError, Place, Problem
from exporter.config.validation import add_file_and_lines, load_document
from exporter.simulator.scenario import Event, Scenario, SimulatedAccount

Number = Mapping[str, Any]

_DEMO = Path(__file__).parent / "demo.yml"
_FIRST_WORDS = "Amber Blue Cedar Delta Ember Fjord Golden Harbor Indigo Kite Lotus Maple Nordic Opal Pearl".split()
_SECOND_WORDS = "Air Bank Books Coffee Foods Garden Health Hotel Logistics Market Motors Optics Pharma Toys".split()
_TIERS = ("TIER_250", "TIER_2K", "TIER_10K", "TIER_10K", "TIER_100K", "TIER_UNLIMITED")
_NUMBER_COUNTS = (1, 1, 1, 2, 2, 3, 5)
"""Phone numbers per space. A repeated count is selected more often."""


@dataclass(slots=True)
class SimulatedSpace:
    """A simulated customer space: its phone numbers in the format of the API, and its events."""

    id: str
    name: str
    numbers: tuple[Number, ...]
    events: list[Event] = field(default_factory=list)
    arrivals: list[tuple["SimulatedSpace", Event]] = field(default_factory=list, repr=False)
    """Pairs of a space and its `move_to` event, for each number that moves to this space."""

    @property
    def instance(self) -> Mapping[str, str]:
        """The space as an entry of a ListInstance response."""
        return {
            "InstanceId": self.id.removeprefix("cams-"),
            "InstanceName": self.name,
            "CustSpaceId": self.id,
            "ChannelType": "WHATSAPP",
            "State": "published",
        }

    def numbers_at(self, elapsed: float) -> list[Number]:
        """Return the PhoneNumbers entries `elapsed` seconds after the start."""
        own = [self._entry(position, elapsed) for position in range(1, len(self.numbers) + 1)]
        arrived = [origin._entry(number, elapsed, arrived=True) for origin, number in self._active_arrivals(elapsed)]
        return [entry for entry in (*own, *arrived) if entry is not None]

    def _entry(self, position: int, elapsed: float, *, arrived: bool = False) -> Number | None:
        """Return a number. None if it is removed, or moved to another space and not `arrived` there."""
        active = [e for e in self.events if e.number in (position, None) and e.is_active(elapsed)]
        if any(event.remove or (event.move_to and not arrived) for event in active):
            return None
        entry = dict(self.numbers[position - 1])
        for event in active:
            entry.update(event.set or {})
        return entry

    def _active_arrivals(self, elapsed: float) -> list[tuple["SimulatedSpace", int]]:
        return [(origin, event.number) for origin, event in self.arrivals if event.number and event.is_active(elapsed)]

    def error_at(self, elapsed: float) -> str | None:
        """Return the error Code of the space, if an event sets one."""
        return next((e.answer for e in self.events if e.answer and e.is_active(elapsed)), None)


class Fleet:
    """The accounts of a scenario by name, and their spaces in order."""

    def __init__(self, scenario: Scenario) -> None:
        """Raises ConfigError if an account name is duplicate, or an event refers to an account, space or number that
        does not exist."""
        _require_unique_names(scenario)
        random = Random(scenario.seed)
        self.accounts: dict[str, SimulatedAccount] = {account.name: account for account in scenario.accounts}
        self.spaces: dict[str, list[SimulatedSpace]] = {
            name: [_random_space(random) for _ in range(account.spaces)] for name, account in self.accounts.items()
        }
        self._account_events: dict[str, list[Event]] = {name: [] for name in self.accounts}
        for index, event in enumerate(scenario.events):
            self._add_event(event, ("events", index))

    def _add_event(self, event: Event, place: Place) -> None:
        spaces = self.spaces.get(event.account)
        if spaces is None:
            raise _invalid_event("account", event.account, f"one of {', '.join(self.spaces)}", place)
        if event.space is None:
            self._account_events[event.account].append(event)
            return
        if event.space > len(spaces):
            raise _invalid_event("space", event.space, f"1 to {len(spaces)}", place)
        space = spaces[event.space - 1]
        if event.number and event.number > len(space.numbers):
            raise _invalid_event("number", event.number, f"1 to {len(space.numbers)}", place)
        space.events.append(event)
        if event.move_to:
            if event.move_to > len(spaces):
                raise _invalid_event("move_to", event.move_to, f"1 to {len(spaces)}", place)
            spaces[event.move_to - 1].arrivals.append((space, event))

    def account_error_at(self, account: str, action: str, elapsed: float) -> str | None:
        """Return the error Code of the account for this operation, if an event sets one."""
        active = (event for event in self._account_events[account] if event.is_active(elapsed))
        return next((event.answer for event in active if event.action in (None, action)), None)

    def find(self, account: str, space_id: str | None) -> SimulatedSpace | None:
        """Return the space with this id. Without an id, the first space has the account's own numbers."""
        spaces = self.spaces[account]
        if space_id is None:
            return spaces[0]
        return next((space for space in spaces if space.id == space_id), None)


def load_scenario(path: Path | None) -> Scenario:
    """Load and check a scenario file. Without a path, load the scenario of the demo.

    Raises:
        ConfigError: the file cannot be read, or its content is invalid.
    """
    file = path or _DEMO
    scenario = load_document(file, Scenario)
    try:
        Fleet(scenario)
    except ConfigError as error:
        raise add_file_and_lines(file, error) from error
    return scenario


def _require_unique_names(scenario: Scenario) -> None:
    names: set[str] = set()
    for index, account in enumerate(scenario.accounts):
        if account.name in names:
            raise ConfigError([Problem("scenario", ("accounts", index, "name"), "duplicate account name")])
        names.add(account.name)


def _invalid_event(key: str, found: object, expected: str, place: Place) -> ConfigError:
    return ConfigError([Problem("scenario", (*place, key), f"expected {expected}, found {found}")])


def _random_space(random: Random) -> SimulatedSpace:
    name = f"{random.choice(_FIRST_WORDS)} {random.choice(_SECOND_WORDS)}"
    numbers = tuple(_random_number(random, name) for _ in range(random.choice(_NUMBER_COUNTS)))
    return SimulatedSpace(f"cams-{random.randrange(16**10):010x}", name, numbers)


def _random_number(random: Random, name: str) -> Number:
    return {
        "PhoneNumber": f"1555{random.randrange(10**7):07d}",
        "VerifiedName": name,
        "QualityRating": "GREEN",
        "Status": "CONNECTED",
        "MessagingLimitTier": random.choice(_TIERS),
        "CodeVerificationStatus": "VERIFIED",
        "NameStatus": "Approval",
        "NewNameStatus": random.choice(("", "Pending_Review")),
        "IsOfficial": random.choice("NNNY"),
        "UpCallbackUrl": random.choice(("", "https://customer.example/inbound")),
        "UpQueue": random.choice(("", "Alicom-Queue-0000-ChatAppInbound")),
        "StatusCallbackUrl": "https://customer.example/status",
        "StatusQueue": "",
    }
