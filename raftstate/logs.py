"""What a node tells those who run it: events with named values, through Python's logging.

A node may live within a program of somebody else, whose logging it must not set up: loggers are those of
`logging`, named after their modules, and without a handler only warnings reach stderr. `serve` sets up its
own process with `to_stderr`.
"""

from __future__ import annotations

import json
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


def to_stderr(level: str, format: str = "text") -> None:
    """Have this process print what its node tells to stderr; stdout is for what was asked for.

    What its libraries tell comes in the same form, from warnings on: whoever reads lines of JSON wants no
    others.

    Args:
        level: debug, info, warning or error.
        format: text, for people; or json, an object a line, with timestamp (UTC), level, logger, event, and
            the event's values.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso"),
                _with_values,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_RENDERERS[format],
            ],
        )
    )
    ours = logging.getLogger("raftstate")
    ours.handlers = [handler]
    ours.setLevel(level.upper())
    ours.propagate = False
    others = logging.getLogger()
    others.handlers = [handler]
    others.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


_OWN = frozenset({"timestamp", "level", "logger", "event"})
"""What every line says; a value of that name gets another."""


def _as_json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """Return an event as one line: what says when, how bad and who first, then what it is about."""
    head = {name: event.pop(name) for name in ("timestamp", "level", "logger", "event")}
    return json.dumps({**head, **event}, default=str)


def _without_logger(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del event["logger"]
    return event


# Plain: a traceback with local variables would print keys and values of users.
_RENDERERS: dict[str, list[structlog.typing.Processor]] = {
    "text": [
        _without_logger,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    "json": [structlog.processors.format_exc_info, _as_json],
}


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
        event.update({f"{key}_" if key in _OWN else key: value for key, value in record.values.items()})
    return event
