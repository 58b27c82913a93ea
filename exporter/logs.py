"""Logs for people: structlog over the standard library, so that libraries' lines come out in the same form."""

import logging
import sys
from typing import Literal

import structlog

_QUIET = ("httpx", "httpcore", "apscheduler", "uvicorn", "asyncio")
"""Libraries that report each request or run at INFO; what can be counted is a metric here."""

_SHARED: list[structlog.types.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", key="ts"),
    structlog.processors.format_exc_info,
]


def configure_logs(level: str, form: Literal["logfmt", "json"]) -> None:
    """Send everything from `level` on to standard error, a line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # what any client can cause must not fill the log; what fails in our pages, they log themselves
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _formatter(form: Literal["logfmt", "json"]) -> logging.Formatter:
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["ts", "level", "event"])
    )
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    return structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=_SHARED)
