"""Runs the exporter with its HTTP server, and handles signals."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from socket import socket
from typing import Any

import structlog

from exporter import __version__
from exporter.clock import Clock, SystemClock
from exporter.config.effective import UNSHARDED, Shard
from exporter.config.settings import Settings
from exporter.http import http_client
from exporter.polling.plan import Progress
from exporter.runtime.reload import Loader, Reloader
from exporter.runtime.service import Service
from exporter.runtime.sweep import SweepResult, sweep
from exporter.runtime.view import ReloadState, View
from exporter.source import SourceContext
from exporter.state.state_file import read_state_file
from exporter.web.connections import max_connections, raise_descriptor_limit
from exporter.web.routes import create_app
from exporter.web.server import serving, url_of
from exporter.web.web_config import WebConfigFile

_SWITCH_INTERVAL_SECONDS = 0.0005
"""How long the event loop can wait for the interpreter lock after each system call while a thread renders a page. With
Python's default of 5 ms, a page of 50,000 numbers blocked the event loop for 40 ms."""

_log = structlog.get_logger()


async def serve(
    loader: Loader,
    settings: Settings,
    environ: Mapping[str, str],
    listeners: Sequence[socket],
    *,
    web_config: WebConfigFile | None = None,
    lifecycle: bool = False,
    hangup_stops: bool = False,
    shard: Shard = UNSHARDED,
) -> None:
    """Poll, and serve on the listening sockets, until SIGTERM or SIGINT. SIGHUP reloads the configuration. With
    `hangup_stops`, SIGHUP stops the exporter instead, unless it is ignored (nohup).

    Raises:
        ConfigError: a source cannot be opened.
    """
    clock, stop, hangup = SystemClock(), asyncio.Event(), asyncio.Event()
    descriptors = raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    service = Service(_source_context(environ, clock), shard=shard)
    change = await service.prepare(settings)
    # before this line, SIGTERM and SIGINT end the process immediately
    install_signal_handlers(stop, None if hangup_stops else hangup)
    service.commit(change)
    state = ReloadState(clock.now())
    reloader = Reloader(loader, service, state, clock, web_config.reload_if_changed if web_config else None)
    reload, authenticate = reloader.reload if lifecycle else None, web_config.authenticate if web_config else None
    app = create_app(View(service, state, clock), reload=reload, authenticate=authenticate)
    tls = web_config.tls if web_config else None
    current_limit = partial(_max_connections, service, descriptors, tls=bool(tls))
    async with serving(app, *listeners, tls=tls, max_connections=current_limit):
        await service.retire(change)
        for listener in listeners:
            _log.info("listening", url=url_of(listener, tls=bool(tls)), version=__version__, shard=str(shard))
        await _run_until(stop, reloader.run(hangup))
        await service.stop()
    _log.info("stopped")


def _max_connections(service: Service, descriptors: int, *, tls: bool) -> int:
    """Return the current limit of client connections. It depends on the accounts' qps, which a reload can change."""
    queries = sum(ceil(running.account.qps) for running in service.accounts.values())
    return max_connections(descriptors, queries, tls=tls)


async def poll_once(settings: Settings, environ: Mapping[str, str], report: Callable[[Progress], None]) -> SweepResult:
    """Poll each space once, without an HTTP server. The state file is read for stored values and never written.

    Raises:
        ConfigError: a source cannot be opened.
    """
    service = Service(_source_context(environ, SystemClock()))
    service.commit(await service.prepare(settings.model_copy(update={"state_file": None})))
    stored = read_state_file(Path(settings.state_file), settings.identities) if settings.state_file else {}
    result = await sweep(service, report, stored)
    await service.stop()
    return result


def _source_context(environ: Mapping[str, str], clock: Clock) -> SourceContext:
    return SourceContext(environ, clock, partial(http_client, environ=environ))


async def _run_until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    gc.freeze()  # objects from the start are kept until exit: exclude them from garbage collection
    gc.enable()
    task = asyncio.create_task(work)
    await stop.wait()
    _log.info("stopping")
    task.cancel()


def install_signal_handlers(stop: asyncio.Event, hangup: asyncio.Event | None = None) -> None:
    """Install the signal handlers. SIGTERM and SIGINT set `stop`. SIGHUP sets `hangup`. If `hangup` is None, SIGHUP
    sets `stop`, unless it is ignored (nohup)."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if hangup or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, (hangup or stop).set)
    # deliver a SIGHUP that was received during the start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
