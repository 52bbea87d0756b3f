"""The commands of the interaction format: how their arguments are read. What they do is `environment`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from raftstate.core.config import Config, ReadOnlyOption
from raftstate.core.storage import MemoryStorage
from raftstate.core.types import (
    ConfChange,
    ConfChangeTransition,
    ConfChangeV2,
    ConfState,
    Snapshot,
    SnapshotMetadata,
)
from tests.transcripts.confchange import parse_changes
from tests.transcripts.datadriven import Directive
from tests.transcripts.describe import describe_progress_map
from tests.transcripts.interaction.describe import MESSAGE_TYPE_NAMES, describe_role
from tests.transcripts.interaction.output import CommandError

if TYPE_CHECKING:
    from tests.transcripts.interaction.environment import Environment

_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
_BOOLEANS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)
_TRANSITIONS = {
    "auto": ConfChangeTransition.AUTO,
    "implicit": ConfChangeTransition.JOINT_IMPLICIT,
    "explicit": ConfChangeTransition.JOINT_EXPLICIT,
}
_READ_ONLY = {"safe": ReadOnlyOption.SAFE, "lease-based": ReadOnlyOption.LEASE_BASED}
_MESSAGE_TYPES = {name: kind for kind, name in MESSAGE_TYPE_NAMES.items()}
_BOOLEAN_OPTIONS = {
    "async-storage-writes": "async_storage_writes",
    "prevote": "pre_vote",
    "checkquorum": "check_quorum",
    "disable-conf-change-validation": "disable_conf_change_validation",
    "step-down-on-removal": "step_down_on_removal",
    "disable-proposal-forwarding": "disable_proposal_forwarding",
}
_NUMBER_OPTIONS = {
    "inflight": "max_inflight_messages",
    "max-committed-size-per-ready": "max_applying_bytes",
    # Names of our own from here on.
    "inflight-bytes": "max_inflight_bytes",
    "max-message-bytes": "max_message_bytes",
    "max-uncommitted-bytes": "max_uncommitted_bytes",
}
# No limits, and times short enough to tick through; etcd's stub for these files.
_TEMPLATE = Config(
    id=1,
    storage=MemoryStorage(),
    election_ticks=3,
    heartbeat_ticks=1,
    max_inflight_messages=(1 << 31) - 1,
)


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise CommandError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return _BOOLEANS[text]


def _first_id(directive: Directive) -> int:
    return int(directive.arguments[0].key)


def _ids(directive: Directive) -> list[int]:
    return [int(argument.key) for argument in directive.arguments if not argument.values]


def _required(directive: Directive, key: str) -> int:
    values = directive.values(key)
    if values is None or len(values) != 1:
        raise ValueError(f"line {directive.line}: {directive.command} needs {key}=NUMBER, got {values}")
    return int(values[0])


def _add_nodes(env: Environment, directive: Directive) -> None:
    # Every node of a run draws from a stream of its own, and every run from the same ones.
    config = replace(_TEMPLATE, random=Random(len(env.nodes)))
    voters: list[int] = []
    learners: list[int] = []
    index, content = 0, b""
    for argument in directive.arguments[1:]:
        for value in argument.values:
            match argument.key:
                case "voters":
                    voters.append(int(value))
                case "learners":
                    learners.append(int(value))
                case "index":
                    index = config.applied = int(value)
                case "content":
                    content = value.encode()
                case "read-only":
                    if value not in _READ_ONLY:
                        raise CommandError(f'invalid read-only option "{value}"')
                    config.read_only = _READ_ONLY[value]
                case key if key in _BOOLEAN_OPTIONS:
                    setattr(config, _BOOLEAN_OPTIONS[key], _boolean(value))
                case key if key in _NUMBER_OPTIONS:
                    setattr(config, _NUMBER_OPTIONS[key], int(value))
    conf_state = ConfState(voters=tuple(voters), learners=tuple(learners))
    snapshot = Snapshot(data=content, metadata=SnapshotMetadata(conf_state=conf_state, index=index))
    env.add_nodes(_first_id(directive), config, snapshot)


def _campaign(env: Environment, directive: Directive) -> None:
    env.node(_first_id(directive)).raw.campaign()


def _compact(env: Environment, directive: Directive) -> None:
    node_id = _first_id(directive)
    env.node(node_id).storage.compact(int(directive.arguments[1].key))
    env.print_log(node_id)


def _deliver(env: Environment, directive: Directive) -> None:
    kind = None
    recipients: list[tuple[int, bool]] = []
    for argument in directive.arguments:
        if not argument.values:
            recipients.append((int(argument.key), False))
        for value in argument.values:
            if argument.key == "drop":
                recipients.append((int(value), True))
            elif argument.key == "type":
                kind = _MESSAGE_TYPES[value]
    if len(dict(recipients)) < len(set(recipients)):
        raise ValueError(f"line {directive.line}: messages to one node can't be both delivered and dropped")
    if sum([env.deliver(node_id, drop=drop, kind=kind) for node_id, drop in recipients]) == 0:
        env.output.write("no messages\n")


def _in_turn(title: str, act: Callable[[Environment, int], None]) -> Callable[[Environment, Directive], None]:
    """A command for one node, or for several, each under a title."""

    def handle(env: Environment, directive: Directive) -> None:
        node_ids = _ids(directive)
        for node_id in node_ids:
            if len(node_ids) == 1:
                act(env, node_id)
                continue
            env.output.write(f"> {node_id} {title}\n")
            with env.output.indented():
                act(env, node_id)

    return handle


def _process_ready(env: Environment, node_id: int) -> None:
    env.process_ready(node_id)


def _process_append_thread(env: Environment, node_id: int) -> None:
    env.process_append_thread(node_id)


def _process_apply_thread(env: Environment, node_id: int) -> None:
    env.process_apply_thread(node_id)


def _log_level(env: Environment, directive: Directive) -> None:
    env.set_log_level(directive.arguments[0].key)


def _raft_log(env: Environment, directive: Directive) -> None:
    env.print_log(_first_id(directive))


def _raft_state(env: Environment, _directive: Directive) -> None:
    for node in env.nodes:
        status = node.raw.status()
        basic = status.basic
        voter = "(Voter)" if basic.id in status.config.voters.ids() else "(Non-Voter)"
        role = describe_role(basic.soft_state.role)
        env.output.write(
            f"{basic.id}: {role} {voter} Term:{basic.hard_state.term} Lead:{basic.soft_state.lead}\n"
        )


def _set_randomized_election_timeout(env: Environment, directive: Directive) -> None:
    timeout = _required(directive, "timeout")
    env.node(_first_id(directive)).raw.raft.randomized_election_ticks = timeout


def _stabilize(env: Environment, directive: Directive) -> None:
    level = env.output.level
    try:
        for name in directive.values("log-level") or ():
            env.set_log_level(name)
        env.stabilize(_ids(directive))
    finally:
        env.output.level = level


def _status(env: Environment, directive: Directive) -> None:
    env.output.write(describe_progress_map(env.node(_first_id(directive)).raw.status().progress))


def _tick_election(env: Environment, directive: Directive) -> None:
    node = env.node(_first_id(directive))
    for _ in range(node.config.election_ticks):
        node.raw.tick()


def _tick_heartbeat(env: Environment, directive: Directive) -> None:
    node = env.node(_first_id(directive))
    for _ in range(node.config.heartbeat_ticks):
        node.raw.tick()


def _transfer_leadership(env: Environment, directive: Directive) -> None:
    target = env.node(_required(directive, "to"))
    env.node(_required(directive, "from")).raw.transfer_leader(target.config.id)


def _forget_leader(env: Environment, directive: Directive) -> None:
    env.node(_first_id(directive)).raw.forget_leader()


def _send_snapshot(env: Environment, directive: Directive) -> None:
    from_id, to_id = _ids(directive)
    env.send_snapshot(from_id, to_id)


def _propose(env: Environment, directive: Directive) -> None:
    if len(directive.arguments) != 2 or directive.arguments[1].values:
        raise ValueError(f"line {directive.line}: propose needs a node and one value without '='")
    env.node(_first_id(directive)).raw.propose(directive.arguments[1].key.encode())


def _propose_conf_change(env: Environment, directive: Directive) -> None:
    v1, transition = False, ConfChangeTransition.AUTO
    for argument in directive.arguments[1:]:
        for value in argument.values:
            if argument.key == "v1":
                v1 = _boolean(value)
            elif argument.key != "transition":
                raise CommandError(f"unknown command {argument.key}")
            elif value not in _TRANSITIONS:
                raise CommandError(f"unknown transition {value}")
            else:
                transition = _TRANSITIONS[value]
    try:
        changes = parse_changes(directive.input)
    except ValueError as error:
        raise CommandError(str(error)) from error
    node = env.node(_first_id(directive)).raw
    if not v1:
        node.propose_conf_change(ConfChangeV2(transition=transition, changes=changes))
    elif len(changes) > 1 or transition is not ConfChangeTransition.AUTO:
        raise CommandError("v1 conf change can only have one operation and no transition")
    else:
        node.propose_conf_change(ConfChange(changes[0].type, changes[0].node_id))


def _report_unreachable(env: Environment, directive: Directive) -> None:
    node_ids = _ids(directive)
    if len(node_ids) != 2:
        raise CommandError(
            "must specify exactly two node indexes: node on which to report, and reported node"
        )
    env.node(node_ids[0]).raw.report_unreachable(env.node(node_ids[1]).config.id)


def _breakpoint(_env: Environment, _directive: Directive) -> None:
    """Do nothing: a line to stop a debugger at."""


HANDLERS: dict[str, Callable[[Environment, Directive], None]] = {
    "_breakpoint": _breakpoint,
    "add-nodes": _add_nodes,
    "campaign": _campaign,
    "compact": _compact,
    "deliver-msgs": _deliver,
    "forget-leader": _forget_leader,
    "log-level": _log_level,
    "process-append-thread": _in_turn("processing append thread", _process_append_thread),
    "process-apply-thread": _in_turn("processing apply thread", _process_apply_thread),
    "process-ready": _in_turn("handling Ready", _process_ready),
    "propose": _propose,
    "propose-conf-change": _propose_conf_change,
    "raft-log": _raft_log,
    "raft-state": _raft_state,
    "report-unreachable": _report_unreachable,
    "send-snapshot": _send_snapshot,
    "set-randomized-election-timeout": _set_randomized_election_timeout,
    "stabilize": _stabilize,
    "status": _status,
    "tick-election": _tick_election,
    "tick-heartbeat": _tick_heartbeat,
    "transfer-leadership": _transfer_leadership,
}
