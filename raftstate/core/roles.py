"""The roles of a node, and which may follow which.

May live here: the roles and the table of their changes. A role changes in `Raft.become_*` only, and each
asks `check_change` first:

                  timeout (pre-vote)                   pre-votes of a quorum
      FOLLOWER ---------------------> PRE_CANDIDATE -------------------------+
       ^  ^  |                             |   ^                             v
       |  |  +---- timeout, told to -------|---|------------------------> CANDIDATE
       |  +------- refused, or a leader ---+   +---- timeout (pre-vote) ----+  |
       |                                                                    |  | votes of a quorum
       +---------- higher term, refused, a leader, no quorum ---------------+  v
       +-------------------------------------------------------------------- LEADER

A follower may become one again (a new term, another leader), a candidate may stand again; a leader only
ever becomes a follower.
"""

from __future__ import annotations

from enum import IntEnum

from raftstate.errors import InvariantError


class Role(IntEnum):
    """What a node is in its current term."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


ROLE_CHANGES: dict[Role, frozenset[Role]] = {
    Role.FOLLOWER: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE}),
    Role.PRE_CANDIDATE: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE}),
    Role.CANDIDATE: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER}),
    Role.LEADER: frozenset({Role.FOLLOWER}),
}
"""From each role, those it may become."""


def check_change(node_id: int, term: int, old: Role, new: Role) -> None:
    """Raise `InvariantError` unless `old` may become `new`."""
    if new not in ROLE_CHANGES[old]:
        raise InvariantError(f"node {node_id}, term {term}: a {old.name} can't become a {new.name}")
