"""The running program: an exporter behind its HTTP server, with the signals and files that it follows."""

import asyncio
import gc
import signal
from collections.abc import Mapping
from socket import socket
from typing import Protocol

import structlog

from exporter import __version__
from exporter.app import Exporter
from exporter.clock import SystemClock
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.config.shard import WHOLE, Shard
from exporter.web.access import Access
from exporter.web.routes import create_app
from exporter.web.server import serving, url_of

FOLLOW_SECONDS = 10.0
"""How often files are looked at that count without a reload: secrets of refused accounts, and space files."""

_log = structlog.get_logger()


class ConfigSource(Protocol):
    """Where the configuration comes from."""

    def load(self) -> Settings:
        """The settings as they stand there now. Raises ConfigError."""

    def load_changed_spaces(self) -> Settings | None:
        """The last settings with the space files as they are now; None where no other spaces count."""

    def space_files(self) -> Mapping[str, bool]:
        """By space file, whether what was read there last is what counts."""


class Fixed:
    """A configuration that stands in no file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> Settings:
        return self._settings

    def load_changed_spaces(self) -> Settings | None:
        return None

    def space_files(self) -> Mapping[str, bool]:
        return {}


class Reloader:
    """Brings another configuration to a running exporter, one at a time; a reload is taken over whole or not at all."""

    def __init__(self, source: ConfigSource, exporter: Exporter) -> None:
        self._source = source
        self._exporter = exporter
        self._one_at_a_time = asyncio.Lock()
        self._good = True
        self._takes_a_reload = False
        """Whether something was refused that nothing but a reload can make good."""
        exporter.tell_of_space_files(source.space_files())

    async def reload(self) -> None:
        """Take over the configuration as it stands now.

        Raises:
            ConfigError: it is wrong, and the old one goes on.
        """
        async with self._one_at_a_time:
            try:
                settings = await asyncio.to_thread(self._source.load)
            except ConfigError as error:
                self._takes_a_reload |= not error.mends_itself
                self._tell(good=False)
                _log.error("configuration refused, the old one goes on", problems=str(error))
                raise
            await self._take_over(settings)
            self._takes_a_reload = False
            self._tell(good=True)

    async def follow(self) -> None:
        """Take over what is followed, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self.take_over_changes()
            except Exception:
                _log.exception("files not followed by a bug, please report it")

    async def take_over_changes(self) -> None:
        """Take over keys and space files that have changed, and try a state file again that could not be used.

        A space file that is broken is told of, and keeps its last good spaces.
        """
        self._exporter.follow_credentials()
        self._exporter.follow_state_file()
        async with self._one_at_a_time:
            settings = await asyncio.to_thread(self._source.load_changed_spaces)
            if settings:
                await self._take_over(settings)
            up = self._source.space_files()
            self._exporter.tell_of_space_files(up)
            good = all(up.values()) and not self._takes_a_reload
            if settings or good != self._good:
                self._tell(good=good)

    async def _take_over(self, settings: Settings) -> None:
        try:
            await self._exporter.reconfigure(settings)
        except Exception:
            self._takes_a_reload = True
            self._tell(good=False)
            raise
        _log.info("configuration taken over", accounts=len(settings.accounts))

    def _tell(self, *, good: bool) -> None:
        self._good = good
        self._exporter.tell_of_configuration(good=good)
        self._exporter.tell_of_space_files(self._source.space_files())


async def serve(
    source: ConfigSource,
    settings: Settings,
    environ: Mapping[str, str],
    listener: socket,
    *,
    access: Access | None = None,
    lifecycle: bool = False,
    shard: Shard = WHOLE,
) -> None:
    """Poll, and serve on the listening socket, until SIGTERM or SIGINT; SIGHUP reloads from `source`."""
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one that came earlier comes now
    exporter = Exporter(settings, environ, SystemClock(), shard=shard)
    reloader = Reloader(source, exporter)
    app = create_app(exporter, reload=reloader.reload if lifecycle else None, admits=access.admits if access else None)
    async with serving(app, listener, tls=access.tls if access else None):
        await exporter.start(may_follow_another=True)
        gc.freeze()
        gc.enable()
        following = [asyncio.create_task(work) for work in (reloader.follow(), _reload_on(hangup, reloader))]
        url = url_of(listener, tls=bool(access and access.tls))
        _log.info("listening", url=url, version=__version__, shard=str(shard))
        await stop.wait()
        _log.info("stopping")
        for task in following:
            task.cancel()
        await exporter.stop()
    _log.info("stopped")


async def _reload_on(hangup: asyncio.Event, reloader: Reloader) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await reloader.reload()
        except ConfigError:
            pass  # it was logged, and is told by a metric
        except Exception:
            _log.exception("reload failed by a bug, please report it")
