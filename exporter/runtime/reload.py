"""Reloads: a new configuration is loaded and prepared completely, then applied. After an error, nothing changes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

import structlog

from exporter.clock import Clock
from exporter.config.problems import ConfigError, read_timeout_error
from exporter.config.settings import Settings
from exporter.runtime.service import Service
from exporter.runtime.view import ReloadState
from exporter.threads import LOAD_SECONDS, BlockingCalls

FOLLOW_SECONDS = 10.0
"""Time between two calls of `Reloader.follow_once`."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class Loader(Protocol):
    """Loads the configuration from its source."""

    def load(self) -> Settings:
        """Return the current settings. Raises ConfigError."""

    def changed(self, *, retry: bool) -> bool:
        """Whether a space file has changed since the last load, or `retry` is set. False while a file is written."""

    def space_files(self) -> Mapping[str, bool]:
        """Map each space file to whether it was valid in the last `load`."""


class StaticLoader:
    """A loader for settings that do not come from a file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> Settings:
        return self._settings

    def changed(self, *, retry: bool) -> bool:
        return retry

    def space_files(self) -> Mapping[str, bool]:
        return {}


class Reloader:
    """Reloads on request and after a change of a space file. Only one reload runs at a time."""

    def __init__(
        self,
        loader: Loader,
        service: Service,
        state: ReloadState,
        clock: Clock,
        follow_web_config: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._loader = loader
        self._service = service
        self._state = state
        self._clock = clock
        self._follow_web_config = follow_web_config
        self._lock = asyncio.Lock()
        self._reads = BlockingCalls()
        self._logged_problems = ""
        self._retry = False
        state.space_files = self._applied_files = loader.space_files()

    async def reload(self) -> None:
        """Load the configuration and apply it.

        Raises:
            ConfigError: the configuration has errors. The current configuration is kept.
        """
        self._logged_problems = ""
        await self._reload()

    async def _reload(self) -> None:
        async with self._lock:
            with self._reporting_failure():
                settings = await self._read(self._loader.load)
                await self._service.apply(settings)
            self._state.space_files = self._applied_files = self._loader.space_files()
            self._logged_problems, self._retry = "", False
            self._state.successful, self._state.last_success = True, self._clock.now()
            _log.info("config reloaded", accounts=len(settings.accounts))

    async def _read(self, read: Callable[[], Result]) -> Result:
        """Call the loader with a time limit and return the result. Raises ConfigError."""
        try:
            return await self._reads.run(read, seconds=LOAD_SECONDS)
        except TimeoutError as error:
            raise read_timeout_error(LOAD_SECONDS) from error

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._state.successful = False
            if isinstance(error, ConfigError) and str(error) != self._logged_problems:
                self._logged_problems = str(error)
                _log.error("config reload failed, keeping the current configuration", problems=str(error))
            invalid = {file: False for file, valid in self._loader.space_files().items() if not valid}
            self._state.space_files = {**self._applied_files, **invalid}
            raise

    async def run(self, requested: asyncio.Event) -> None:
        """Call `follow_once` every 10 seconds, and reload when `requested` is set, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_SECONDS):
                    await requested.wait()
            try:
                if requested.is_set():
                    requested.clear()
                    await self.reload()
                else:
                    await self.follow_once()
            except ConfigError:
                pass  # already logged, and shown by a metric
            except Exception:
                _log.exception("config reload failed because of a bug, please report it")

    async def follow_once(self) -> None:
        """Check the state file, the credentials of denied accounts, the web configuration and the space files once.
        Reload after a change of a space file, and retry a reload that failed after such a change."""
        await self._service.recorder.reopen_state_file()
        await self._service.check_credentials()
        if self._follow_web_config:
            self._state.web_config_valid = await self._follow_web_config()
        if await self._has_changed():
            self._retry = True  # until a reload succeeds, because the cause of a failure can be outside the space files
            await self._reload()

    async def _has_changed(self) -> bool:
        with self._reporting_failure():
            try:
                return await self._read(partial(self._loader.changed, retry=self._retry))
            except ConfigError:
                self._retry = True  # the metric shows a failure, and only a successful reload resets it
                raise
