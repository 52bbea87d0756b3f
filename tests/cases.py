"""The eighty-six cases: `python -m tests.cases` lists each with its tests, and ends with `N of 86`.

Each is a way in which a real system broke, or in which this one would. A test guards against one when it is
marked `@pytest.mark.case(N)`; the marks are read from the source, without importing it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TITLES: dict[int, str] = dict(
    enumerate(
        (
            # Log and vote
            "a vote is durable before it is answered",
            "term and vote change in one transaction",
            "a single node acknowledges only after its sync",
            "a new leader's first entry is durable before the leader counts itself",
            "a leader counts its own copy of an entry only after its own sync",
            "the log's view in memory is never ahead of the disk when a write failed",
            "entries of earlier terms commit only through one of the present term",
            "a repeated or reordered append never truncates a suffix that matches",
            "a follower commits no further than the last entry that this append verified",
            "match comes from what was acknowledged, and never moves back",
            "a report of a write from an earlier term is ignored",
            "a step-down in the middle of an append leaves log and waiters consistent",
            "a leader that can't read its own log sends nothing, rather than a gap",
            "a follower with a long conflicting tail catches up in few rounds",
            # Membership
            "no membership change before an entry of the present term is committed",
            "one membership change at a time",
            "a configuration acts when it is applied, and one that was truncated never acted",
            "a removed node can't disturb the cluster",
            "a node whose disk was wiped can't come back under its old identity",
            "a leader can remove itself, and is not counted afterwards",
            "a learner far behind is not promoted",
            "a change that would lose the quorum is refused, with the reason",
            "a membership change under partitions and kills ends in one configuration",
            # Elections
            "a pre-vote with a lower term",
            "pre-vote after a restart, and among mixed versions",
            "a pre-candidate forgets its leader at the right time",
            "a leader that can send but not receive steps down",
            "election timers are reset by valid events only",
            "a leadership transfer that does not finish is given up, and writes go on",
            # Reads
            "no read index before a commit in the leader's own term",
            "a read-index id used again by a retry can't confirm an older read",
            "a leader that was paused and deposed serves no stale linearizable read",
            "lease reads under clock drift, jumps, pauses and transfers",
            "a restarted node serves no read before it has caught up to what it acknowledged",
            "session reads are monotonic across nodes; a staleness bound stays true while cut off",
            # Clients
            "a retried write of a session is applied once, and answered as the first time",
            "a forwarding node that dies in the middle of a write gives an unknown outcome",
            "an evicted client session is an error, and its operations are never run again",
            # Snapshots
            "no gap between snapshot and log",
            "a crash at any step of an install leaves the old or the new state",
            "two snapshots in quick succession",
            "a corrupt snapshot never replaces good state",
            "an older snapshot is ignored",
            "client sessions, leases and members are inside the snapshot",
            "an install does not loop when the log moves on meanwhile",
            "the applied index is in the transaction that applied it",
            # LMDB and the disk
            "every acknowledged write survives a power cut",
            "the state comes back exact from its checkpoint and the log",
            "no durability flag is weakened",
            "a torn or damaged log record is found, mended from peers and never served",
            "a full disk never kills the process and never loses an acknowledged write",
            "without space writes are refused, and taken again by themselves once there is some",
            "after a failed sync nothing more is acknowledged, and a later success is not believed",
            "an error at LMDB's meta page stops the node with a clear message",
            "a dead reader does not grow the file for ever",
            "a flipped bit is detected, not served, and repaired",
            "a long copy or read transaction does not grow the file without bound",
            "running out of reader slots fails the request, not the node",
            "a wrong cluster id or data directory is refused",
            "a format version that is not known is refused or migrated, never guessed",
            # Found by reading the design
            "an install or a repair never lowers what the node has acknowledged",
            "a node with a damaged log neither campaigns nor votes for a log behind its own",
            "hard state carries the commit index; members are applied up to it before campaigning",
            "the log is cut only up to the last durable checkpoint",
            "no answer leaves before its transaction commits; an aborted one is redone, answered once",
            "a poison or oversized command is the same refusal on every node",
            "a crash between the swap of the state and the reset of the log",
            "a leader whose sync hangs gives up leadership",
            "a leader that stalled expires no lease whose renewal waits in its sockets",
            "a freshness token is never used again; a page of an earlier boot is refused",
            "a cancelled write that arrives late is not applied after it was given up",
            "a watch across a snapshot install goes on without a gap, or ends as compacted",
            "a leader with the odd digest steps down; without a majority nobody rebuilds",
            "a forked client process can't use its parent's serials",
            "an unknown field during a rolling upgrade does not split replicas",
            "damage to a tree page is found by the scrub",
            "a checkpoint's pages are not used again before the next one is durable",
            "a session id of a cluster that was reset never meets a stranger's session",
            "a full window or byte cap never blocks the lowest serial",
            "no forwarder resends",
            "a refusal is definite only when every copy sent was refused",
            "damage is not handed on to who installs a snapshot",
            "a start after a swap with a longer, conflicting log resets it",
            "a repair copy older than the log's boundary is refused",
            "a node acknowledges nothing at or above its first damaged entry",
            "a freshness answer from before a clock step or a reset is not used after it",
        ),
        1,
    )
)


def find(root: Path) -> dict[int, list[str]]:
    """Return the tests of each case, as pytest names them, by the marks in the files under `root`/tests."""
    found: dict[int, list[str]] = {number: [] for number in TITLES}
    for path in sorted((root / "tests").rglob("test_*.py")):
        name = path.relative_to(root).as_posix()
        for test, marks in marked(ast.parse(path.read_text("utf-8"), str(path))):
            for number in sorted(marks):
                found.setdefault(number, []).append(f"{name}::{test}")
    return found


def marked(module: ast.Module) -> Iterator[tuple[str, set[int]]]:
    """Yield the tests of a module, as `name` or `Class::name`, with the cases that they are marked with: by
    themselves, in their parameters, by their class or by the module's `pytestmark`."""
    of_module = {
        number
        for statement in module.body
        if isinstance(statement, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in statement.targets)
        for number in _numbers(statement.value)
    }
    yield from _marked_within(module, "", of_module)


def _marked_within(
    scope: ast.Module | ast.ClassDef, prefix: str, marks: set[int]
) -> Iterator[tuple[str, set[int]]]:
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _marked_within(node, f"{prefix}{node.name}::", marks | _of_decorators(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield f"{prefix}{node.name}", marks | _of_decorators(node)


def _of_decorators(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[int]:
    return {number for decorator in node.decorator_list for number in _numbers(decorator)}


def _numbers(expression: ast.expr) -> Iterator[int]:
    """The N of each `pytest.mark.case(N)` within an expression."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, int):
                    yield argument.value


def main() -> None:
    """Print the list; see the module's docstring."""
    found = find(ROOT)
    for number, title in TITLES.items():
        print(f"{number:3}  {title}")
        for test in found[number] or ["(no test)"]:
            print(f"       {test}")
    for number in sorted(found.keys() - TITLES.keys()):
        print(f"there is no case {number}, but these are marked with it: {', '.join(found[number])}")
    covered = sum(bool(found[number]) for number in TITLES)
    print(f"{covered} of {len(TITLES)}")


if __name__ == "__main__":
    main()
