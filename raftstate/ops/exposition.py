"""Metrics as text, for Prometheus. The only importer of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from raftstate.errors import InvariantError
from raftstate.measure import Snapshot
from raftstate.ops.metric import Kind, Reading

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Exposition:
    """Makes the text of a scrape; beside the readings it has what is to be said of any Python process.

    Takes some milliseconds: for any thread but the loop's.
    """

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def text(self, readings: Sequence[Reading]) -> bytes:
        """Return what a scrape is answered."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Prepared(readings))
        return generate_latest(registry) + generate_latest(self._process)


class _Prepared(Collector):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterable[Family]:
        return map(family, self._readings)

    def describe(self) -> Iterable[Family]:
        return ()


def family(reading: Reading) -> Family:
    """Return a reading as prometheus_client has it."""
    metric = reading.metric
    if metric.kind is Kind.HISTOGRAM:
        made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in reading.samples:
            if not isinstance(value, Snapshot):
                raise InvariantError(f"{metric.name} is a histogram, and was read as {value!r}")
            made.add_metric(labels, list(_buckets(value)), value.sum)
        return made
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    plain: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in reading.samples:
        if isinstance(value, Snapshot):
            raise InvariantError(f"{metric.name} is no histogram, and was read as one")
        plain.add_metric(labels, value)
    return plain


def _buckets(snapshot: Snapshot) -> Iterator[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in snapshot.bounds), "+Inf"]
    yield from zip(bounds, accumulate(snapshot.counts), strict=True)
