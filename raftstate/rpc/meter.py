"""Counts the calls of a node's gRPC server, by method and status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from raftstate.measure import Histogram


class CallKind(NamedTuple):
    """A method, as it is called from outside."""

    service: str
    """With its package, as in "raftstate.v1.KV"."""
    method: str
    type: str
    """unary or bidi_stream, as other gRPC servers' metrics call them."""


class Meter:
    """What became of the calls, since the start. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self.started: dict[CallKind, int] = {}
        self.handled: dict[tuple[CallKind, str], int] = {}
        """(method, name of the status as in grpc.StatusCode) -> calls that ended so."""
        self.seconds: dict[CallKind, Histogram] = {}
        """How long calls of one request and one answer took within the node."""
        self.received_bytes = 0
        """Serialized messages of clients; what HTTP/2 adds is not counted."""
        self.sent_bytes = 0

    def add(self, kind: CallKind) -> None:
        """Show a method from the start, with no calls."""
        self.started[kind] = 0
        self.handled[kind, "OK"] = 0
        if kind.type == "unary":
            self.seconds[kind] = Histogram()

    @property
    def under_way(self) -> Mapping[CallKind, int]:
        """Method -> calls that have not ended."""
        rest = dict(self.started)
        for (kind, _), count in self.handled.items():
            rest[kind] -= count
        return rest

    def began(self, kind: CallKind) -> int:
        """A call begins; returns what `ended` wants to be told."""
        self.started[kind] += 1
        return time.perf_counter_ns()

    def ended(self, kind: CallKind, status: str, began_ns: int) -> None:
        """A call ended with a status."""
        self.handled[kind, status] = self.handled.get((kind, status), 0) + 1
        histogram = self.seconds.get(kind)
        if histogram is not None:
            histogram.observe_ns(time.perf_counter_ns() - began_ns)
