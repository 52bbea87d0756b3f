"""`python -m tests.transcripts [--json FILE|-] [--rewrite] [DIR_OR_FILE...]`: judge the core by transcripts.

Without a path it is judged by etcd's, which are no part of this repository. `tests/transcripts/ours` holds
our own: each documents one behaviour, in the same format, and opens with a comment that says which. With
--rewrite the outputs in the files that are named are first replaced by what the core gives now. A rewritten
file only says what the core does, not that it is right: read the difference (`git diff`) before you keep it.

Exit code 0 only if at least one file was run and none failed; 2 for a path that does not exist.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.transcripts.runner import Failure, default_paths, find_files, judge, rewrite


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.transcripts", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="DIR_OR_FILE")
    parser.add_argument("--json", metavar="FILE|-", help="write the verdicts as JSON; -: to stdout, alone")
    parser.add_argument("--rewrite", action="store_true", help="write the outputs of the named files anew")
    options = parser.parse_args(arguments)
    if options.rewrite and not options.paths:
        parser.error("--rewrite changes files, so name them: for instance tests/transcripts/ours")
    paths = options.paths or default_paths()
    for path in paths:
        if not path.exists():
            parser.error(f"{path} does not exist; name transcripts, or set RAFTSTATE_TRANSCRIPTS")

    verdicts: list[tuple[Path, Failure | None]] = []
    for path in find_files(paths):
        # Judged after that as well: outputs that differ from run to run could not be kept.
        failure = (rewrite(path) if options.rewrite else None) or judge(path)
        verdicts.append((path, failure))
        if options.json != "-":
            print(f"ok   {path}" if failure is None else f"FAIL {path}: {failure}\n{failure.diff()}")

    failed = sum(failure is not None for _, failure in verdicts)
    passed = len(verdicts) - failed
    if options.json is not None:
        _write_json(options.json, passed, failed, verdicts)
    if options.json != "-":
        print(f"{passed} passed, {failed} failed")
    return 0 if passed > 0 and failed == 0 else 1


def _write_json(target: str, passed: int, failed: int, verdicts: list[tuple[Path, Failure | None]]) -> None:
    files = [
        {"path": str(path), "ok": failure is None}
        | (
            {}
            if failure is None
            else {"line": failure.line, "got": failure.got, "expected": failure.expected}
        )
        for path, failure in verdicts
    ]
    text = json.dumps({"passed": passed, "failed": failed, "files": files}, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
