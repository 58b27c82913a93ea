"""Reloads: the configuration is loaded and prepared completely, then applied; or the current one is kept."""

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
"""How often followed files are compared with what was loaded."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class Loader(Protocol):
    """Where the configuration comes from."""

    def load(self) -> Settings:
        """The settings as they are now. Raises ConfigError."""

    def changed(self, *, retry: bool) -> bool:
        """Whether a followed file differs from what was loaded last, or in any case if `retry`; not while one
        changes."""

    def space_files(self) -> Mapping[str, bool]:
        """By space file, whether the last `load` found it good."""


class Fixed:
    """A configuration without a file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> Settings:
        return self._settings

    def changed(self, *, retry: bool) -> bool:
        return retry

    def space_files(self) -> Mapping[str, bool]:
        return {}


class Reloader:
    """Reloads one at a time: on request, and when a followed file has changed."""

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
        self._one_at_a_time = asyncio.Lock()
        self._reads = BlockingCalls()
        self._problems = ""
        self._retry = False
        state.space_files = self._applied_files = loader.space_files()

    async def reload(self) -> None:
        """Load the configuration and apply it.

        Raises:
            ConfigError: it has errors, and the current one is kept.
        """
        self._problems = ""
        await self._reload()

    async def _reload(self) -> None:
        async with self._one_at_a_time:
            with self._reporting_failure():
                settings = await self._read(self._loader.load)
                await self._service.apply(settings)
            self._state.space_files = self._applied_files = self._loader.space_files()
            self._problems, self._retry = "", False
            self._state.successful, self._state.last_success = True, self._clock.now()
            _log.info("config reloaded", accounts=len(settings.accounts))

    async def _read(self, read: Callable[[], Result]) -> Result:
        """The result of a call of the loader, with a time limit. Raises ConfigError."""
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
            if isinstance(error, ConfigError) and str(error) != self._problems:
                self._problems = str(error)
                _log.error("config reload failed, keeping the current configuration", problems=str(error))
            broken = {file: False for file, good in self._loader.space_files().items() if not good}
            self._state.space_files = {**self._applied_files, **broken}
            raise

    async def run(self, requested: asyncio.Event) -> None:
        """Follow the files, and reload when it is `requested`, until cancelled."""
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
                pass  # logged, and a metric
            except Exception:
                _log.exception("reload failed by a bug, please report it")

    async def follow_once(self) -> None:
        """Look once at everything that is followed: state file, credentials of denied accounts, web configuration and
        space files. A change of a space file reloads, and a reload that failed for one is tried again."""
        await self._service.recorder.follow_state_file()
        await self._service.follow_credentials()
        if self._follow_web_config:
            self._state.web_config_good = await self._follow_web_config()
        if await self._has_changed():
            self._retry = True  # until it succeeds: the cause of a failure can be outside the followed files
            await self._reload()

    async def _has_changed(self) -> bool:
        with self._reporting_failure():
            try:
                return await self._read(partial(self._loader.changed, retry=self._retry))
            except ConfigError:
                self._retry = True  # a successful reload ends the failure
                raise
