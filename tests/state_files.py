"""Helpers for tests of the state file: its content, its metrics, and a full disk."""

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from world import World

from exporter.clock import SystemClock
from exporter.state.state_file import StateFile

IDENTITIES = {"a": "https://a.example"}


def state_file_samples(world: World) -> list[str]:
    """Return the samples of the metrics of the state file, without the label `file`."""
    lines = world.samples("chatapp_exporter_state_file")
    return [line.replace(f'file="{world.settings.state_file}"', "").replace("{,", "{") for line in lines]


async def poll_for(world: World, seconds: float) -> None:
    await world.exporter.start()
    await asyncio.sleep(seconds)
    await world.exporter.stop()


def stored_spaces(file: Path) -> list[str]:
    database = sqlite3.connect(file)
    spaces = [space for (space,) in database.execute("SELECT space FROM space ORDER BY space")]
    database.close()
    return spaces


def wal_bytes(file: Path) -> int:
    return Path(f"{file}-wal").stat().st_size


def opened_state_file(file: Path) -> StateFile:
    state_file = StateFile(file, SystemClock())
    assert state_file.open(IDENTITIES) == {}
    return state_file


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
