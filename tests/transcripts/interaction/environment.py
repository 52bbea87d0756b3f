"""The cluster that the commands act on: nodes, the messages between them, and the work of their storage.

What may live here: what a command does to the cluster. How its arguments are read is `handlers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import msgspec

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.config import Config
from raftstate.core.errors import Damaged
from raftstate.core.rawnode import RawNode
from raftstate.core.storage import NO_LIMIT, MemoryStorage
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from tests.transcripts.datadriven import Directive
from tests.transcripts.interaction import handlers
from tests.transcripts.interaction.describe import (
    REFUSALS,
    describe_entries,
    describe_message,
    describe_ready,
    describe_refusal,
)
from tests.transcripts.interaction.output import LOG_LEVELS, CommandError, Output
from tests.transcripts.interaction.own_handlers import OWN_HANDLERS

_LOCAL_THREADS = (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)


_HANDLERS = handlers.HANDLERS | OWN_HANDLERS


class HistoryStorage(MemoryStorage):
    """A storage whose newest snapshot is always that of the last applied entry, and whose records may rot."""

    def __init__(self) -> None:
        super().__init__()
        self.history = [Snapshot()]
        self.damaged: set[int] = set()

    def initial_state(self) -> tuple[HardState, ConfState]:
        return super().initial_state()[0], self.history[-1].metadata.conf_state

    def snapshot(self) -> Snapshot:
        return self.history[-1]

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        super().apply_snapshot(snapshot)
        self.history.append(snapshot)

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        found = super().entries(lo, hi, max_bytes)
        for entry in found:
            if entry.index in self.damaged:
                raise Damaged(f"log entry {entry.index} is damaged")
        return found

    def term(self, index: int) -> int:
        if index in self.damaged and index != self.last_index():
            raise Damaged(f"log entry {index} is damaged")
        return super().term(index)


@dataclass
class Node:
    raw: RawNode
    storage: HistoryStorage
    config: Config
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)


class Environment:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self.output = Output()

    def handle(self, directive: Directive) -> str:
        """Carry out a command and return its output."""
        self.output.take()
        error = ""
        handler = _HANDLERS.get(directive.command)
        try:
            if handler is None:
                raise CommandError("unknown command")
            handler(self, directive)
        except CommandError as refusal:
            error = str(refusal)
        except REFUSALS as refusal:
            error = describe_refusal(refusal)
        if error and self.output.quiet:
            return error
        return self.output.take() + error or "ok"

    def node(self, node_id: int) -> Node:
        if not 1 <= node_id <= len(self.nodes):
            raise IndexError(f"node {node_id} was not added")
        return self.nodes[node_id - 1]

    def add_nodes(self, count: int, template: Config, snapshot: Snapshot) -> None:
        """Add `count` nodes that all start from `snapshot`."""
        if snapshot != Snapshot():
            if snapshot.metadata.index <= 1:
                raise CommandError("index must be specified as > 1 due to bootstrap")
            metadata = msgspec.structs.replace(snapshot.metadata, term=1)
            snapshot = msgspec.structs.replace(snapshot, metadata=metadata)
        for _ in range(count):
            storage = HistoryStorage()
            if snapshot.metadata.index:
                storage.apply_snapshot(snapshot)
            config = replace(template, id=len(self.nodes) + 1, storage=storage)
            self.nodes.append(Node(RawNode(config), storage, config))

    def restart(self, node_id: int) -> None:
        """Start a node anew from its storage and the state that it applied. What it had sent is under way."""
        node = self.node(node_id)
        applied = node.storage.history[-1].metadata.index
        node.config = replace(node.config, applied=applied, random=Random(node_id))
        node.append_work.clear()
        node.apply_work.clear()
        # What its storage threads had told it is gone, what they had told others is not.
        self.messages = [
            message for message in self.messages if message.to != node_id or not _is_local(message)
        ]
        node.raw = RawNode(node.config)

    def process_ready(self, node_id: int) -> None:
        node = self.node(node_id)
        ready = node.raw.ready()
        self.output.write(describe_ready(ready))
        if not node.config.async_storage_writes:
            _write(node, ready.hard_state or HardState(), ready.entries, ready.snapshot)
            _apply(node, ready.committed_entries)
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
            elif message.to == LOCAL_APPLY_THREAD:
                node.apply_work.append(message)
            else:
                self.messages.append(message)
        if not node.config.async_storage_writes:
            node.raw.advance()

    def process_append_thread(self, node_id: int) -> None:
        node = self.node(node_id)
        if not node.append_work:
            self.output.write("no append work to perform")
            return
        message = node.append_work.pop(0)
        self._print_processing(message)
        hard_state = HardState(message.term, message.vote, message.commit)
        _write(node, hard_state, message.entries, message.snapshot)
        self._pass_on(message.responses)

    def process_apply_thread(self, node_id: int) -> None:
        node = self.node(node_id)
        if not node.apply_work:
            self.output.write("no apply work to perform")
            return
        message = node.apply_work.pop(0)
        self._print_processing(message)
        _apply(node, message.entries)
        self._pass_on(message.responses)

    def _print_processing(self, message: Message) -> None:
        self.output.write(
            f"Processing:\n{describe_message(msgspec.structs.replace(message, responses=[]))}\n"
        )

    def _pass_on(self, responses: list[Message]) -> None:
        self.output.write("Responses:\n")
        for response in responses:
            self.output.write(describe_message(response) + "\n")
        self.messages.extend(responses)

    def deliver(self, node_id: int, *, drop: bool = False, kind: MessageType | None = None) -> int:
        """Deliver or drop the messages to `node_id`, all or those of one type; return how many there were."""
        chosen = self.messages_to(node_id, drop=drop, kind=kind)
        # By identity: two messages may be equal, and only one of them local.
        taken = set(map(id, chosen))
        self.messages = [message for message in self.messages if id(message) not in taken]
        for message in chosen:
            self.output.write(("dropped: " if drop else "") + describe_message(message) + "\n")
            if drop:
                continue
            try:
                self.node(node_id).raw.step(message)
            except REFUSALS as refusal:
                self.output.write(describe_refusal(refusal) + "\n")
        return len(chosen)

    def messages_to(
        self, node_id: int, *, drop: bool = False, kind: MessageType | None = None
    ) -> list[Message]:
        """Return the messages on their way to `node_id`; of those to drop, local ones are none."""
        return [
            message
            for message in self.messages
            if message.to == node_id
            and (kind is None or message.type is kind)
            and not (drop and _is_local(message))
        ]

    def stabilize(self, node_ids: Sequence[int]) -> None:
        """Let the nodes work and receive, in turns, until nothing is left to do."""
        node_ids = node_ids or range(1, len(self.nodes) + 1)
        busy = True
        while busy:
            busy = False
            for node_id in node_ids:
                if self.node(node_id).raw.has_ready():
                    busy = True
                    self.output.write(f"> {node_id} handling Ready\n")
                    with self.output.indented():
                        self.process_ready(node_id)
            for node_id in node_ids:
                if self.messages_to(node_id):
                    busy = True
                    self.output.write(f"> {node_id} receiving messages\n")
                    with self.output.indented():
                        self.deliver(node_id)
            for node_id in node_ids:
                if self.node(node_id).append_work:
                    busy = True
                    self.output.write(f"> {node_id} processing append thread\n")
                    while self.node(node_id).append_work:
                        with self.output.indented():
                            self.process_append_thread(node_id)
            for node_id in node_ids:
                if self.node(node_id).apply_work:
                    busy = True
                    self.output.write(f"> {node_id} processing apply thread\n")
                    while self.node(node_id).apply_work:
                        with self.output.indented():
                            self.process_apply_thread(node_id)

    def send_snapshot(self, from_id: int, to_id: int) -> None:
        node = self.node(from_id)
        message = Message(
            MessageType.SNAP,
            to=to_id,
            from_=from_id,
            term=node.raw.basic_status().hard_state.term,
            snapshot=node.storage.snapshot(),
        )
        self.messages.append(message)
        self.output.write(describe_message(message))

    def print_log(self, node_id: int) -> None:
        storage = self.node(node_id).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self.output.write(f"log is empty: first index={first}, last index={last}")
            return
        self.output.write(describe_entries(storage.entries(first, last + 1, NO_LIMIT)))

    def set_log_level(self, name: str) -> None:
        if name.upper() not in LOG_LEVELS:
            raise CommandError(f"log levels must be either of [{' '.join(LOG_LEVELS)}]")
        self.output.level = name.upper()


def _is_local(message: Message) -> bool:
    return message.from_ == message.to or message.from_ in _LOCAL_THREADS or message.to in _LOCAL_THREADS


def _write(node: Node, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None) -> None:
    if hard_state != HardState():
        node.storage.set_hard_state(hard_state)
    if snapshot is None:
        node.storage.append(entries)
    elif entries:
        raise CommandError("can't apply snapshot and entries at the same time")
    else:
        node.storage.apply_snapshot(snapshot)


def _apply(node: Node, entries: list[Entry]) -> None:
    """Apply `entries` to a state machine that strings all data together."""
    for entry in entries:
        last = node.storage.history[-1]
        conf_state = last.metadata.conf_state
        update = entry.data
        if entry.type is not EntryType.NORMAL:
            change = decode_conf_change(entry)
            conf_state = node.raw.apply_conf_change(change)
            update = change.context
        metadata = SnapshotMetadata(conf_state=conf_state, index=entry.index, term=entry.term)
        node.storage.history.append(Snapshot(data=last.data + update, metadata=metadata))
