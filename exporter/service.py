"""The running program: an exporter behind its HTTP server, with the signals and files that it follows."""

import asyncio
import gc
import signal
from collections.abc import Callable, Mapping
from socket import socket
from typing import Protocol

import structlog

from exporter import __version__
from exporter.app import Exporter
from exporter.clock import SystemClock
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.web.access import Access
from exporter.web.app import create_app
from exporter.web.server import serving, url_of

FOLLOW_SECONDS = 10.0
"""How often files are looked at that count without a reload: secrets of refused accounts, and space files."""

_log = structlog.get_logger()


class ConfigSource(Protocol):
    """Where the configuration comes from."""

    def load(self) -> Settings:
        """The settings as they stand there now. Raises ConfigError."""

    def load_changed_spaces(self) -> Settings | None:
        """The last settings with changed space files; None where those have not changed. Raises ConfigError."""


class Fixed:
    """A configuration that stands in no file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> Settings:
        return self._settings

    def load_changed_spaces(self) -> Settings | None:
        return None


class Reloader:
    """Brings a new configuration to a running exporter: whole, or not at all, and one at a time."""

    def __init__(self, source: ConfigSource, exporter: Exporter) -> None:
        self._source = source
        self._exporter = exporter
        self._one_at_a_time = asyncio.Lock()
        self._main_file_refused = False

    async def reload(self) -> None:
        """Take over the configuration as it stands now.

        Raises:
            ConfigError: it is wrong, and the old one goes on.
        """
        await self._take_over(self._source.load, whole=True)

    async def follow(self) -> None:
        """Take over what is followed, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self.take_over_changes()
            except ConfigError:
                pass  # it was logged, and is told by a metric
            except Exception:
                _log.exception("files not followed by a bug, please report it")

    async def take_over_changes(self) -> None:
        """Take over keys and space files that have changed, and try a state file again that could not be used.

        Raises:
            ConfigError: a space file is wrong, and the old ones go on.
        """
        self._exporter.follow_credentials()
        self._exporter.follow_state_file()
        await self._take_over(self._source.load_changed_spaces, whole=False)

    async def _take_over(self, load: Callable[[], Settings | None], *, whole: bool) -> None:
        async with self._one_at_a_time:
            try:
                settings = await asyncio.to_thread(load)
            except ConfigError as error:
                self._main_file_refused |= not error.mends_itself
                self._exporter.tell_of_configuration(good=False)
                _log.error("configuration refused, the old one goes on", problems=str(error))
                raise
            if settings:
                try:
                    await self._exporter.reconfigure(settings)
                except Exception:
                    self._exporter.tell_of_configuration(good=False)
                    raise
                # a good space file does not make a main file good that was refused
                self._main_file_refused &= not whole
                if not self._main_file_refused:
                    self._exporter.tell_of_configuration(good=True)
                _log.info("configuration taken over", accounts=len(settings.accounts))


async def serve(
    source: ConfigSource,
    settings: Settings,
    environ: Mapping[str, str],
    listener: socket,
    *,
    access: Access | None = None,
    lifecycle: bool = False,
) -> None:
    """Poll, and serve on the listening socket, until SIGTERM or SIGINT; SIGHUP reloads from `source`."""
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one that came earlier comes now
    exporter = Exporter(settings, environ, SystemClock())
    reloader = Reloader(source, exporter)
    app = create_app(exporter, reload=reloader.reload if lifecycle else None, admits=access.admits if access else None)
    async with serving(app, listener, tls=access.tls if access else None):
        await exporter.start(may_follow_another=True)
        gc.freeze()
        gc.enable()
        following = [asyncio.create_task(work) for work in (reloader.follow(), _reload_on(hangup, reloader))]
        _log.info("listening", url=url_of(listener, tls=bool(access and access.tls)), version=__version__)
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
