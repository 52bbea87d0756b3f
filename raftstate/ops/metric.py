"""What a metric is: its name, and how it is read from a node's parts.

Reading is done on the node's loop, where nothing changes meanwhile, and copies numbers only. What becomes of
them (text, for Prometheus) is the business of `exposition`, on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from raftstate.measure import Snapshot
from raftstate.node.applier import StateApplier
from raftstate.node.driver import Driver
from raftstate.node.links import PeerLinks
from raftstate.node.local import LocalNode
from raftstate.rpc.meter import Meter
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

Value = int | float | Snapshot
Samples = Iterable[tuple[tuple[str, ...], Value]]
"""(values of the labels, value)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What metrics are read from. `meter` None: this node serves no gRPC."""

    name: str
    version: str
    """Of the raftstate package."""
    driver: Driver
    service: LocalNode
    applier: StateApplier
    links: PeerLinks
    log: LogStore
    log_writer: LogWriter
    state: StateStore
    meter: Meter | None


class Kind(StrEnum):
    """Prometheus' types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric. The name of a counter ends in _total."""

    name: str
    kind: Kind
    help: str
    read: Callable[[Parts], Value | Samples | None]
    """Returns its value; with `labels` its samples; None: there is nothing to say now."""
    labels: tuple[str, ...] = ()


class Reading(NamedTuple):
    """A metric and its samples at one moment."""

    metric: Metric
    samples: list[tuple[tuple[str, ...], Value]]


def counter(name: str, help: str, read: Callable[[Parts], Value | Samples | None], *labels: str) -> Metric:
    """Return a metric that only grows, until the node is started again."""
    return Metric(name, Kind.COUNTER, help, read, labels)


def gauge(name: str, help: str, read: Callable[[Parts], Value | Samples | None], *labels: str) -> Metric:
    """Return a metric that goes up and down."""
    return Metric(name, Kind.GAUGE, help, read, labels)


def histogram(name: str, help: str, read: Callable[[Parts], Value | Samples | None], *labels: str) -> Metric:
    """Return a metric of how often something was how large."""
    return Metric(name, Kind.HISTOGRAM, help, read, labels)


def read_all(metrics: Iterable[Metric], parts: Parts) -> list[Reading]:
    """Read metrics at one moment, on the node's loop. Raises what the stores do when they can't be read."""
    readings = []
    for metric in metrics:
        value = metric.read(parts)
        if value is None:
            samples: list[tuple[tuple[str, ...], Value]] = []
        elif isinstance(value, int | float | Snapshot):
            samples = [((), value)]
        else:
            samples = list(value)
        readings.append(Reading(metric, samples))
    return readings
