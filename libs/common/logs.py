"""JSON lines on stdout: an event (noun and past-tense verb) and facts as fields. Prompts, answers and secrets never.

Warnings of libraries pass through the same funnel, also those of threads and of `warnings`, without their arguments' objects.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_CREDENTIALS = re.compile(r"(?<=://)[^/\s,]+@")


def without_password(text: str) -> str:
    """URLs in it lose their user and password."""
    return _CREDENTIALS.sub("", text)


def configure(service: str, level: str = "info") -> None:
    """Once per process, before anything is logged."""
    number = getattr(logging, level.upper())

    def name_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service  # not a context variable: a library's thread has none
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_service,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, LookupError):  # its arguments do not fit; that is no trouble of who logs
            message = str(record.msg)
        structlog.get_logger().log(
            record.levelno,
            "library.logged",
            logger=record.name,
            message=without_password(message[:500]),
            exc_info=record.exc_info,
        )
