"""`python -m raftstate.cli` is `raftstate`, whatever stands on PATH."""

from __future__ import annotations

from raftstate.cli import main

if __name__ == "__main__":
    main()
