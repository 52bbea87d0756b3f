"""The confchange format: `simple`, `enter-joint [autoleave=true]`, `leave-joint`, on changes as `v1 l2`."""

from __future__ import annotations

import re

from raftstate.core.membership import Changer, ConfChangeError, ProgressTracker
from raftstate.core.types import ConfChangeSingle, ConfChangeType
from tests.transcripts.datadriven import Directive
from tests.transcripts.describe import describe_config, describe_progress_map

COMMANDS = frozenset({"simple", "enter-joint", "leave-joint"})

_CHANGE_TYPES = {
    "v": ConfChangeType.ADD_NODE,
    "l": ConfChangeType.ADD_LEARNER_NODE,
    "r": ConfChangeType.REMOVE_NODE,
    "u": ConfChangeType.UPDATE_NODE,
}


def parse_changes(text: str) -> tuple[ConfChangeSingle, ...]:
    """Parse changes separated by single spaces: `v` voter, `l` learner, `r` remove, `u` update, each with a
    node id.

    Raises:
        ValueError: with etcd's text of the refusal.
    """
    text = text.strip()
    changes = []
    for token in text.split(" ") if text else []:
        if len(token.encode()) < 2:
            raise ValueError(f"unknown token {token}")
        if token[0] not in _CHANGE_TYPES:
            raise ValueError(f"unknown input: {token}")
        changes.append(ConfChangeSingle(_CHANGE_TYPES[token[0]], _parse_uint64(token[1:])))
    return tuple(changes)


def _parse_uint64(text: str) -> int:
    if re.fullmatch(r"[0-9]+", text) is None:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 1 << 64:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


class Environment:
    """One tracker that starts empty; each command counts as one more index in the log."""

    def __init__(self) -> None:
        self._tracker = ProgressTracker(max_inflight=10)
        self._last_index = 0

    def handle(self, directive: Directive) -> str:
        try:
            return self._change(directive)
        except (ConfChangeError, ValueError) as error:
            return str(error)
        finally:
            self._last_index += 1

    def _change(self, directive: Directive) -> str:
        changes = parse_changes(directive.input)
        changer = Changer(self._tracker, self._last_index)
        match directive.command:
            case "simple":
                result = changer.simple(changes)
            case "enter-joint":
                result = changer.enter_joint(directive.values("autoleave") == ("true",), changes)
            case "leave-joint":
                if changes:
                    raise ValueError("this command takes no input")
                result = changer.leave_joint()
            case _:
                raise ValueError("unknown command")
        self._tracker.install(*result)
        return f"{describe_config(self._tracker.config)}\n{describe_progress_map(self._tracker.progress)}"
