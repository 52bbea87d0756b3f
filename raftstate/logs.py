"""What a node tells those who run it: events with named values, through Python's logging.

A node may live within a program of somebody else, whose logging it must not set up: loggers are those of
`logging`, named after their modules, and without a handler only warnings reach stderr. `serve` sets up its
own process with `to_stderr`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, cast

import structlog


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: `log.info("leader", node=1, term=7)`."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _to_logging],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return cast(structlog.stdlib.BoundLogger, logger)


def to_stderr(level: str) -> None:
    """Have this process print what its node tells to stderr; stdout is for what was asked for.

    `level`: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    # Plain: a traceback with local variables would print keys and values of users.
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                _with_values,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(
                    colors=False, exception_formatter=structlog.dev.plain_traceback
                ),
            ],
        )
    )
    ours = logging.getLogger("raftstate")
    ours.handlers = [handler]
    ours.setLevel(level.upper())
    ours.propagate = False


def _to_logging(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """Return what to call `logging` with: a sentence for any handler, and the values for ours."""
    exc_info = event.pop("exc_info", None)
    what = event.pop("event")
    values = dict(event)
    sentence = " ".join([str(what), *(f"{name}={value}" for name, value in values.items())])
    return (sentence,), {"exc_info": exc_info, "extra": {"event": what, "values": values}}


def _with_values(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record = event["_record"]
    if hasattr(record, "values"):
        event["event"] = record.event
        event.update(record.values)
    return event
