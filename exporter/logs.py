"""Logging: structlog on top of the standard library, so that log lines of libraries have the same format."""

import logging
import sys
from typing import Literal

import structlog

_QUIET_LOGGERS = ("httpx", "httpcore", "apscheduler", "uvicorn", "asyncio")
"""Libraries that log each request or run at INFO. The exporter has metrics for them."""

_SHARED_PROCESSORS: list[structlog.types.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", key="ts"),
    structlog.processors.format_exc_info,
]


def configure_logs(level: str, log_format: Literal["logfmt", "json"]) -> None:
    """Log events with this level or higher to standard error, one line per event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # clients can cause these messages and could fill the log. `Guard` logs exceptions of request handlers.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _formatter(log_format: Literal["logfmt", "json"]) -> logging.Formatter:
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.processors.LogfmtRenderer(key_order=["ts", "level", "event"])
    )
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    return structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=_SHARED_PROCESSORS)
