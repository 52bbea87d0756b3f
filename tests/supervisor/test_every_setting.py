"""Every setting that there is comes from the file, and from the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from raftstate.config import ClusterConfig, NodeSettings, dump_toml, load_settings

MEMBER = {"id": 1, "name": "n1", "peer_address": "127.0.0.1:7101", "client_address": "127.0.0.1:7001"}
BASE: dict[str, Any] = {
    "name": "n1",
    "data_dir": "data",
    "cluster": {"cluster_id": 5, "members": [MEMBER]},
}
# What can't be told from a field's type and limits.
OTHERS: dict[str, Any] = {
    "name": "n1",
    "data_dir": "elsewhere",
    "log_level": "error",
    "log_format": "json",
    "peer_addresses": {"n1": "127.0.0.1:9"},
    "members": [{**MEMBER, "client_address": "127.0.0.1:8001"}],
    "election_timeout_ms": 800,
}


def another(name: str, model: type[BaseModel]) -> Any:
    """Return a value that a setting may have, and does not have by default where it has a default."""
    if name in OTHERS:
        return OTHERS[name]
    field = model.model_fields[name]
    kind = str(field.annotation)
    if "Annotated" in kind or "str" in kind:
        return "127.0.0.1:9"
    if field.annotation is bool:
        return not field.default
    if "int" in kind or "float" in kind:
        if field.default not in (None, PydanticUndefined):
            return field.default * 2 or 1
        return 1 << 22
    raise AssertionError(f"say in OTHERS what {name} may be: {kind}")


def field_names(model: type[BaseModel]) -> list[str]:
    return [name for name in model.model_fields if name not in ("config_file", "cluster")]


CASES = [
    *(((name,), NodeSettings) for name in field_names(NodeSettings)),
    *((("cluster", name), ClusterConfig) for name in field_names(ClusterConfig)),
]


def shown(settings: NodeSettings, path: tuple[str, ...]) -> Any:
    value: Any = settings.model_dump(mode="json")
    for key in path:
        value = value[key]
    return value


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(BASE))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "model"), CASES, ids=lambda case: ".".join(case) if type(case) is tuple else ""
)
def test_a_setting_comes_from_the_file_and_from_the_environment(
    path: tuple[str, ...], model: type[BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = another(path[-1], model)
    file = tmp_path / "node.toml"
    file.write_text(dump_toml(changed(path, value)))
    from_file = shown(load_settings(file), path)
    file.write_text(dump_toml(BASE))
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv("RAFTSTATE_" + "__".join(path).upper(), text)
    from_environment = shown(load_settings(file), path)
    assert from_file == from_environment
    if path[-1] == "members":
        assert from_file[0]["client_address"] == "127.0.0.1:8001"
    else:
        assert from_file == value
