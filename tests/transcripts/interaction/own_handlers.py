"""Commands that our own transcripts need and etcd's language has no words for.

    read-index NODE CONTEXT            ask for a read index; the answer is among the ReadStates of a Ready
    report-snapshot NODE PEER [failed] tell NODE, a leader, what became of the snapshot that it sent to PEER
    step-down NODE                     have a leader follow whoever will be elected
    restart NODE                       stop NODE and start it from what it stored; its storage work is lost
    damage NODE INDEX                  make a stored record unreadable; of the last one the term stays known
    mend NODE INDEX                    make it readable again
    may-campaign NODE true|false       whether NODE's application lets it stand for election

How their arguments are read stands here, what they do too: each is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.transcripts.datadriven import Directive
from tests.transcripts.interaction.output import CommandError

if TYPE_CHECKING:
    from tests.transcripts.interaction.environment import Environment


def _words(directive: Directive, usage: str) -> list[str]:
    """The arguments of a command that takes exactly those of `usage`."""
    words = [argument.key for argument in directive.arguments if not argument.values]
    if len(words) != len(directive.arguments) or len(words) != len(usage.split()):
        raise ValueError(f"line {directive.line}: it must be: {directive.command} {usage}")
    return words


def _read_index(env: Environment, directive: Directive) -> None:
    node_id, context = _words(directive, "NODE CONTEXT")
    env.node(int(node_id)).raw.read_index(context.encode())


def _report_snapshot(env: Environment, directive: Directive) -> None:
    failed = len(directive.arguments) == 3
    node_id, peer, *result = _words(directive, "NODE PEER failed" if failed else "NODE PEER")
    if result not in ([], ["failed"]):
        raise CommandError(f"a snapshot arrived or failed, it is not {result[0]}")
    env.node(int(node_id)).raw.report_snapshot(int(peer), ok=not failed)


def _step_down(env: Environment, directive: Directive) -> None:
    (node_id,) = _words(directive, "NODE")
    env.node(int(node_id)).raw.step_down()


def _restart(env: Environment, directive: Directive) -> None:
    (node_id,) = _words(directive, "NODE")
    env.restart(int(node_id))


def _damage(env: Environment, directive: Directive) -> None:
    node_id, index = _words(directive, "NODE INDEX")
    env.node(int(node_id)).storage.damaged.add(int(index))


def _mend(env: Environment, directive: Directive) -> None:
    node_id, index = _words(directive, "NODE INDEX")
    env.node(int(node_id)).storage.damaged.remove(int(index))


def _may_campaign(env: Environment, directive: Directive) -> None:
    node_id, answer = _words(directive, "NODE true|false")
    if answer not in ("true", "false"):
        raise CommandError(f"it may campaign or not: true or false, not {answer}")
    env.node(int(node_id)).raw.raft.may_campaign = answer == "true"


OWN_HANDLERS: dict[str, Callable[[Environment, Directive], None]] = {
    "damage": _damage,
    "may-campaign": _may_campaign,
    "mend": _mend,
    "read-index": _read_index,
    "report-snapshot": _report_snapshot,
    "restart": _restart,
    "step-down": _step_down,
}
