"""Generates raftstate/pb from the .proto files beside this script.

python proto/generate.py            write raftstate/pb/v1
python proto/generate.py --check    write nothing; exit 1 when what is checked in is stale
"""

from __future__ import annotations

import argparse
import filecmp
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "raftstate" / "pb" / "v1"
# protoc's Python output imports by the path of the .proto file; in the wheel the modules live below
# raftstate.pb.
IMPORT = re.compile(r"^from raftstate\.v1 import", re.MULTILINE)


def generate(target: Path) -> None:
    """Write the generated modules of all .proto files into `target`."""
    protos = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-I{SOURCE}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
        ]
        if protoc.main([*arguments, *protos]) != 0:
            sys.exit("protoc failed; what it said stands above")
        target.mkdir(parents=True, exist_ok=True)
        (target / "__init__.py").write_text("")
        for path in sorted((Path(scratch) / "raftstate" / "v1").iterdir()):
            (target / path.name).write_text(IMPORT.sub("from raftstate.pb.v1 import", path.read_text()))


def main() -> None:
    """Run the command line described above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name for path in Path(scratch).iterdir()}
        present = {path.name for path in TARGET.iterdir() if path.suffix in {".py", ".pyi"}}
        _, changed, broken = filecmp.cmpfiles(scratch, TARGET, sorted(fresh & present), shallow=False)
        stale = sorted({*changed, *broken, *(fresh ^ present)})
    if stale:
        sys.exit(f"raftstate/pb is stale ({', '.join(stale)}); run `make proto`")


if __name__ == "__main__":
    main()
