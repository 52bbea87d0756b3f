from __future__ import annotations

from pathlib import Path

import pytest

from raftstate.cli.serve import settings_for
from raftstate.errors import ConfigError, FailedPreconditionError
from raftstate.folder import data_made


def test_an_empty_directory_becomes_that_of_a_cluster_of_one_node(tmp_path: Path) -> None:
    made = settings_for(None, tmp_path / "d", {})
    assert (made.name, made.data_path, made.bootstrap) == ("n1", tmp_path / "d" / "data", True)
    assert made.client_listener == "127.0.0.1:7001"
    again = settings_for(None, tmp_path / "d", {})
    assert (again.cluster, again.bootstrap) == (made.cluster, True)  # its data were not made yet
    data_made(again)
    assert not settings_for(None, tmp_path / "d", {}).bootstrap


def test_data_without_settings_are_never_given_a_new_identity(tmp_path: Path) -> None:
    settings_for(None, tmp_path, {})
    (tmp_path / "data").mkdir()
    (tmp_path / "node.toml").unlink()
    with pytest.raises(ConfigError, match=r"holds a node's data but no node\.toml"):
        settings_for(None, tmp_path, {})


def test_a_directory_with_files_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FailedPreconditionError, match=r"not part of a new cluster \(thesis\.txt\)"):
        settings_for(None, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_and_a_directory_together_override_the_files_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(None, tmp_path / "d", {})
    monkeypatch.chdir(tmp_path)
    found = settings_for(tmp_path / "d" / "node.toml", Path("elsewhere"), {"advertise": "example.org:80"})
    assert (found.data_path, found.client_address) == (tmp_path / "elsewhere", "example.org:80")
    assert settings_for(tmp_path / "d" / "node.toml", None, {}).data_path == tmp_path / "d" / "data"


def test_serve_needs_to_know_what_to_serve() -> None:
    with pytest.raises(ConfigError, match="--config FILE or --data DIR"):
        settings_for(None, None, {})


def test_where_a_node_listens_is_what_others_are_told_unless_they_are_told_otherwise(tmp_path: Path) -> None:
    def told(**given: str) -> tuple[str, str, str, str]:
        found = settings_for(None, tmp_path, {**given, "insecure": True})
        return (
            found.client_listener,
            found.client_address,
            found.peer_listener,
            found.own_peer_address,
        )

    assert told() == ("127.0.0.1:7001", "127.0.0.1:7001", "127.0.0.1:7101", "127.0.0.1:7101")
    assert told(listen_client="h:1", listen_peer="h:2") == ("h:1", "h:1", "h:2", "h:2")
    assert told(listen_client="0.0.0.0:1", listen_peer="[::]:2") == (
        "0.0.0.0:1",
        "127.0.0.1:7001",
        "[::]:2",
        "127.0.0.1:7101",
    )
    assert told(listen_client="0.0.0.0:1", advertise="a:1", listen_peer="[::]:2", advertise_peer="a:2") == (
        "0.0.0.0:1",
        "a:1",
        "[::]:2",
        "a:2",
    )
    file = tmp_path / "node.toml"
    file.write_text('advertise = "public:1"\n' + file.read_text())
    assert told(listen_client="h:1")[:2] == ("h:1", "public:1")


def test_the_marker_of_a_new_node_counts_for_its_file_given_by_name_too(tmp_path: Path) -> None:
    settings_for(None, tmp_path, {})
    assert settings_for(tmp_path / "node.toml", None, {}).bootstrap
    (tmp_path / "new").unlink()
    assert not settings_for(tmp_path / "node.toml", None, {}).bootstrap
