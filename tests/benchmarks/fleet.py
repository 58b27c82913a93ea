"""Fleets of phone numbers for the benchmarks: the configuration, the API responses and the state file."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from exporter import sources
from exporter.clock import SystemClock
from exporter.config.loading import Configuration
from exporter.sources.cams.wire import decode_phone_numbers
from exporter.state.state_file import StateFile
from exporter.state.store import Change, Key, SpaceRecord

TIERS = ("TIER_250", "TIER_2K", "TIER_10K", "TIER_100K", "TIER_UNLIMITED")
MIN_INTERVAL = "30s"


@dataclass(frozen=True)
class Fleet:
    """Phone numbers, divided evenly among the spaces, and spaces among the accounts. Each number has 13 samples."""

    numbers: int
    spaces: int
    accounts: int = 1

    @cached_property
    def responses(self) -> dict[str, bytes]:
        """The JSON response for each space id."""
        random = Random(1)
        sizes = [self.numbers // self.spaces + (i < self.numbers % self.spaces) for i in range(self.spaces)]
        return {f"cams-{index:010x}": _response(random, index, size) for index, size in enumerate(sizes)}

    def document(self, endpoint: str, *, interval: str = MIN_INTERVAL) -> dict[str, Any]:
        """Return a configuration with the maximum qps."""
        ids = list(self.responses)
        accounts = [
            {
                "name": f"account-{index}",
                "endpoint": endpoint,
                "access_key_id": f"key-{index}",
                "access_key_secret": "secret",
                "qps": 10,
                "poll_interval": interval,
                "spaces": [{"id": i, "name": f"Contoso {i[-5:]}", "labels": {"team": "emea"}} for i in share],
            }
            for index in range(self.accounts)
            for share in [ids[index :: self.accounts]]
        ]
        return {"accounts": accounts}

    def records(self, now: float) -> Iterator[tuple[Key, SpaceRecord]]:
        """Yield the record of each space, polled in the last five minutes. 10 % of the numbers changed once."""
        for index, (space, body) in enumerate(self.responses.items()):
            numbers = decode_phone_numbers(200, {}, body).phone_numbers
            change = Change(now - 86_400.0 + index, "GREEN")
            changes = {(number.phone_number, "quality_rating"): change for number in numbers[::10]}
            key = (f"account-{index % self.accounts}", space)
            yield key, SpaceRecord(True, now - index % 300, numbers, changes, next_slot=now + index % 300)

    def write(
        self, directory: Path, endpoint: str, *, with_state_file: bool = True, interval: str = MIN_INTERVAL
    ) -> Path:
        """Write a configuration file, and a state file with the records of all spaces."""
        path, document = directory / "exporter.json", self.document(endpoint, interval=interval)
        if with_state_file:
            document["state_file"] = "state.db"
        path.write_text(json.dumps(document))
        if with_state_file:
            file = StateFile(directory / "state.db", SystemClock())
            file.open(Configuration(path, {}, sources.Settings).load().identities)
            file.save(dict(self.records(time.time())))
            file.close()
        return path


def _response(random: Random, index: int, size: int) -> bytes:
    numbers = [
        {
            "PhoneNumber": f"1555{index:05d}{position:02d}",
            "VerifiedName": f"Contoso {index}",
            "QualityRating": random.choice(("GREEN", "GREEN", "GREEN", "YELLOW")),
            "Status": "CONNECTED",
            "MessagingLimitTier": random.choice(TIERS),
            "CodeVerificationStatus": "VERIFIED",
            "NameStatus": "Approval",
            "NewNameStatus": "Pending_Review",
            "IsOfficial": "N",
            "UpCallbackUrl": "https://example.com/up",
            "StatusCallbackUrl": "https://example.com/status",
            "UpQueue": "",
            "StatusQueue": "",
        }
        for position in range(size)
    ]
    return json.dumps(
        {"RequestId": f"{index:032X}", "Code": "OK", "Message": "SUCCESS", "PhoneNumbers": numbers}
    ).encode()
