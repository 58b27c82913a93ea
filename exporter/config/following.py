"""Files that are followed: what was made from them is made again when one of them changes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from exporter.config.problems import ConfigError

Value = TypeVar("Value")
Version = tuple[tuple[int, int, int] | None, ...]

_log = structlog.get_logger()


def version_of(files: Iterable[Path]) -> Version:
    """Changes when one of these files does: its content, by its time and size, or the file that its name leads to."""
    return tuple(_version(file) for file in files)


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


class Followed(Generic[Value]):
    """A value made from files. When one of them changes it is made again; while that fails, the last one stays.

    `make` gives the value and the files that it comes from, or raises `refusal`.
    """

    def __init__(
        self,
        what: str,
        make: Callable[[], tuple[Value, tuple[Path, ...]]],
        refusal: type[Exception] = ConfigError,
    ) -> None:
        self._what = what
        self._make = make
        self._refusal = refusal
        self._files: tuple[Path, ...] = ()
        self._made_of: Version | None = None
        self._refused: Version | None = None
        self._value: Value

    def __call__(self) -> Value:
        """Raises the refusal if it was never made."""
        # as they were before: what changes while it is made is seen the next time
        version = version_of(self._files)
        if version == self._made_of:
            self._refused = None
        else:
            self._renew(version)
        return self._value

    def _renew(self, version: Version) -> None:
        try:
            self._value, self._files = self._make()
            self._made_of, self._refused = version, None
        except self._refusal as error:
            if self._made_of is None:
                raise
            if version != self._refused:  # one line when it starts failing, not one for every use
                _log.error(f"{self._what} refused, the last one stays", problems=str(error))
            self._refused = version
