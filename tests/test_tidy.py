"""What a reader of the code may rely on.

Which way imports run, which flags are never used, how docstrings are set, what a file may not hold.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "raftstate"

# layer -> what it imports of raftstate: all of that, and nothing else. The client loads `state` in one method
# only, which opens a workflow, and `embedded` where a URL asks for it: both stand above it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "lifeline": set(),
    "measure": set(),
    "logs": set(),
    "address": {"errors"},
    "compression": set(),
    "config": {"address", "errors"},
    "folder": {"config", "errors"},
    "core": {"core", "errors"},
    "machine": {"machine", "core", "pb", "errors"},
    "store": {"store", "core", "machine.tables", "compression", "errors", "measure"},
    "node": {"node", "store", "machine", "core", "address", "errors", "logs", "measure"},
    "rpc": {"rpc", "node", "machine", "core.types", "pb", "address", "errors", "logs", "measure"},
    "ops": {
        "ops",
        "node",
        "store",
        "core",
        "machine.tables",
        "rpc.meter",
        "errors",
        "logs",
        "measure",
    },
    "joining": {"client", "config", "folder"},
    "supervisor": {"config", "folder", "joining", "lifeline", "client", "address", "errors"},
    "server": {
        "server",
        "ops",
        "rpc",
        "node",
        "store",
        "machine",
        "core",
        "config",
        "folder",
        "address",
        "errors",
        "logs",
    },
    "client": {"client", "pb", "address", "errors", "state", "embedded"},
    "offline": {"offline", "store", "machine", "core", "config", "folder", "errors"},
    "embedded": {"embedded", "server", "rpc", "client", "folder", "errors", "logs"},
    "doctor": {"doctor", "config", "client", "address", "errors"},
    "testing": {"client", "supervisor"},
    "state": {"state", "compression", "errors"},
    "cli": {
        "cli",
        "doctor",
        "server",
        "supervisor",
        "client",
        "state",
        "config",
        "folder",
        "lifeline",
        "logs",
    }
    | {"offline", "joining", "address", "errors"},
}
THIRD_PARTY_OF_CORE = {"msgspec"}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "pb" not in path.relative_to(PACKAGE).parts]


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of_raftstate(path: Path) -> list[str]:
    return [name.removeprefix("raftstate.") for name in imports(path) if name.startswith("raftstate.")]


def covers(item: str, name: str) -> bool:
    return name == item or name.startswith(item + ".")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    for name in imports_of_raftstate(path):
        assert any(covers(item, name) for item in ALLOWED[layer]), f"{layer} may not import raftstate.{name}"


@pytest.mark.parametrize("layer", ALLOWED)
def test_no_import_is_allowed_that_nobody_uses(layer: str) -> None:
    names = [name for path in modules() if layer_of(path) == layer for name in imports_of_raftstate(path)]
    assert {item for item in ALLOWED[layer] if not any(covers(item, name) for name in names)} == set()


def test_the_core_needs_nothing_but_msgspec() -> None:
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        for name in imports(path):
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or top in THIRD_PARTY_OF_CORE | {"raftstate"}, (
                f"{path.name}: {name}"
            )
            assert top not in {"asyncio", "time", "threading", "socket"}, (
                f"{path.name} imports {name}: the core has no clock and no I/O"
            )


def test_only_the_store_imports_lmdb() -> None:
    users = {
        layer_of(path) for path in modules() if any(name.split(".")[0] == "lmdb" for name in imports(path))
    }
    assert users == {"store"}


def keywords_of_calls() -> Iterator[tuple[str, ast.keyword]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield from ((str(path.relative_to(PACKAGE)), keyword) for keyword in node.keywords)


@pytest.mark.case(49)
def test_no_durability_flag_is_weakened_but_sync_of_the_state_in_one_place() -> None:
    flags = [
        (path, keyword.arg)
        for path, keyword in keywords_of_calls()
        if keyword.arg in {"writemap", "map_async", "metasync", "sync"}
    ]
    assert flags == [("store/start.py", "sync")]


def docstrings(path: Path) -> Iterator[str]:
    """Yield all strings that stand as statements: those of attributes are docstrings too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield inspect.cleandoc(node.value.value)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_are_set_as_they_were_written(path: Path) -> None:
    for docstring in docstrings(path):
        for paragraph in re.split(r"\n\n+", docstring):
            if paragraph.startswith(" "):
                continue  # a table or a diagram
            heading, *items = paragraph.splitlines()
            for line in (heading, *items):
                assert "   " not in line.strip(), f"a gap within prose: {line}"
            if heading in {"Args:", "Raises:", "Attributes:"}:
                for item in items:
                    assert re.match(r"    [\w.]+(, [\w.]+)*: |        \S", item), (
                        f"not an item, nor its next line: {item}"
                    )


def test_what_no_test_of_the_core_reaches_says_why() -> None:
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "pragma" in line:
                assert re.search(r"  # pragma: no (cover|branch) - \w+( \w+){2,}", line), (
                    f"{path.name}:{number}: a line that is left out of the coverage gives the reason"
                )


def test_the_project_names_no_machine_and_no_package_index() -> None:
    pattern = re.compile(
        r"https?://[^ \"]*/(simple|packages)/|--index-url|/home/[a-z]|/(?:root|work)/|/tmp/[a-z]"
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / name for name in listed.stdout.splitlines()] or list(PACKAGE.rglob("*.py"))
    for path in paths:
        if path == Path(__file__) or not path.is_file():
            continue
        match = pattern.search(path.read_text())
        assert match is None, f"{path.relative_to(ROOT)}: {match and match[0]}"
