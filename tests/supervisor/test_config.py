from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftstate.config import NodeSettings, dump_toml, load_settings
from raftstate.errors import ConfigError
from raftstate.machine.types import Member
from raftstate.server import peer_addresses

TOML = """
name = "n1"
data_dir = "data"
[cluster]
cluster_id = 5
[[cluster.members]]
id = 1
name = "n1"
peer_address = "127.0.0.1:7101"
client_address = "127.0.0.1:7001"
[[cluster.members]]
id = 2
name = "n2"
peer_address = "127.0.0.1:7102"
client_address = "127.0.0.1:7002"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(TOML)
    return path


def refused(file: Path | None, arguments: dict[str, Any] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, arguments)
    return caught.value


def test_a_file_alone_is_enough(file: Path) -> None:
    settings = load_settings(file)
    assert (settings.name, settings.node_id, settings.data_path) == ("n1", 1, file.parent / "data")
    assert (settings.client_listener, settings.peer_listener) == ("127.0.0.1:7001", "127.0.0.1:7101")
    assert (settings.cluster.heartbeat_ms, settings.cluster.election_timeout_ms) == (15, 400)
    assert (settings.bootstrap, settings.insecure) == (False, False)


def test_arguments_come_before_the_environment_and_that_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(file).log_level == "info"
    file.write_text('log_level = "error"\n' + TOML)
    assert load_settings(file).log_level == "error"
    monkeypatch.setenv("RAFTSTATE_LOG_LEVEL", "warning")
    assert load_settings(file).log_level == "warning"
    assert load_settings(file, {"log_level": "debug"}).log_level == "debug"
    assert load_settings(file, {"log_level": None}).log_level == "warning"


def test_a_nested_variable_changes_one_key_of_its_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTSTATE_CLUSTER__HEARTBEAT_MS", "20")
    cluster = load_settings(file).cluster
    assert (cluster.heartbeat_ms, cluster.cluster_id, len(cluster.members)) == (20, 5, 2)


def test_variables_that_are_no_settings_are_other_programs_business(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTSTATE_URL", "127.0.0.1:1")
    assert load_settings(file).name == "n1"


def test_a_peer_may_be_reached_in_another_way(file: Path) -> None:
    settings = load_settings(file, {"peer_addresses": {"n2": "127.0.0.1:9"}, "advertise": "example.org:80"})
    assert peer_addresses(settings, ()) == {2: ("127.0.0.1:9",)}
    assert settings.client_address == "example.org:80"


def test_others_are_dialled_where_their_records_say_then_where_the_settings_do(file: Path) -> None:
    settings = load_settings(file, {"peer_addresses": {"n4": "127.0.0.1:9"}})
    records = [Member(number, 1, f"n{number}", f"h{number}:2", f"h{number}:1") for number in (1, 2, 3, 4)]
    assert peer_addresses(settings, records) == {
        2: ("h2:2", "127.0.0.1:7102"),
        3: ("h3:2",),
        4: ("127.0.0.1:9",),
    }
    assert peer_addresses(settings, ()) == {2: ("127.0.0.1:7102",)}


def test_listening_beyond_loopback_needs_to_be_asked_for(file: Path) -> None:
    for key in ("listen_client", "listen_peer"):
        for address in ("0.0.0.0:7001", "[::]:7001", "10.0.0.1:7001", "example.org:7001"):
            error = refused(file, {key: address})
            assert error.field == key
            assert f"got {address}; allowed: a loopback address" in error.message
            assert "--insecure" in error.message
            load_settings(file, {key: address, "insecure": True})
        for address in ("localhost:1", "127.1.2.3:1", "[::1]:1"):
            load_settings(file, {key: address})


@pytest.mark.parametrize(
    ("before", "after", "key", "got", "allowed"),
    [
        ("cluster_id = 5", "", "cluster.cluster_id", "nothing", "it must be given"),
        ("cluster_id = 5", "cluster_id = 0", "cluster.cluster_id", "0", "greater than or equal to 1"),
        ("cluster_id = 5", "cluster_id = 5\nheart = 1", "cluster.heart", "1", "there is no such setting"),
        ('name = "n1"\ndata', 'name = "n3"\ndata', "name", "n3", "the name of a member (n1, n2)"),
        ('name = "n1"\ndata', 'name = "../n1"\ndata', "name", "'../n1'", "should match pattern"),
        ("id = 2", "id = 1", "cluster.members", "1 more than once", "a different id for each member"),
        (":7102", ":0", "cluster.members.1.peer_address", "'127.0.0.1:0'", "a port from 1 to 65535"),
        (
            "cluster_id = 5",
            "cluster_id = 5\nheartbeat_ms = 90",
            "cluster.election_timeout_ms",
            "400",
            "(450 ms)",
        ),
        (
            "data_dir",
            "peer_addresses = {n9 = 'a'}\ndata_dir",
            "peer_addresses.n9",
            "'a'",
            "host:port",
        ),
        ("data_dir", "datadir", "data_dir", "nothing", "it must be given"),
        (
            "cluster_id = 5",
            "cluster_id = 5\nhistory_retention_s = -1",
            "cluster.history_retention_s",
            "-1",
            "greater than or equal to 0",
        ),
        (
            "cluster_id = 5",
            "cluster_id = 5\nhistory_retention_s = 31622401",
            "cluster.history_retention_s",
            "31622401",
            "less than or equal to 31622400",
        ),
    ],
)
def test_a_wrong_setting_is_said_with_file_key_got_and_allowed(
    file: Path, before: str, after: str, key: str, got: str, allowed: str
) -> None:
    assert before in TOML
    file.write_text(TOML.replace(before, after, 1))
    error = refused(file)
    assert error.field == key
    assert {**error.detail, "allowed": ""} == {"file": str(file), "key": key, "got": got, "allowed": ""}
    assert allowed in str(error.detail["allowed"])
    assert f"{file}: {key}: got {got}; allowed: " in error.message


def test_the_source_of_a_wrong_setting_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(file, {"log_level": "loud"}).message.startswith("argument: log_level: got 'loud'")
    assert (
        refused(file, {"loglevel": "info"}).message
        == "argument: loglevel: got 'info'; allowed: there is no such setting"
    )
    monkeypatch.setenv("RAFTSTATE_LOG_LEVEL", "loud")
    assert refused(file).message.startswith("environment variable RAFTSTATE_LOG_LEVEL: log_level: got 'loud'")


def test_all_that_is_wrong_is_said_at_once(file: Path) -> None:
    file.write_text("speed = 1\n" + TOML.replace("cluster_id = 5", "cluster_id = -1"))
    assert len(refused(file).message.splitlines()) == 2


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert refused(absent).message == f"can't read the configuration file {absent}: No such file or directory"
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    assert refused(broken).message.startswith(f"{broken} is not valid TOML: ")


def test_what_is_dumped_loads_as_the_same_settings(file: Path, tmp_path: Path) -> None:
    settings = load_settings(
        file, {"peer_addresses": {"n2": "127.0.0.1:9"}, "data_dir": 'a "quoted" \\ \x7f é'}
    )
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_toml(settings.model_dump(mode="json", exclude={"config_file"})))
    assert load_settings(copy) == settings.model_copy(update={"config_file": copy})


def test_every_field_says_what_it_is() -> None:
    assert [name for name, field in NodeSettings.model_fields.items() if not field.description] == []


def test_floors_and_quota_must_fit_each_other_and_the_map(file: Path) -> None:
    error = refused(file, {"disk_soft_floor_bytes": 100, "disk_hard_floor_bytes": 101})
    assert (error.field, error.detail["allowed"]) == (
        "disk_hard_floor_bytes",
        "at most disk_soft_floor_bytes (100)",
    )
    error = refused(file, {"quota_bytes": 1 << 40})
    assert (error.field, error.detail["allowed"]) == ("quota_bytes", f"at most state_map_bytes ({64 << 30})")
    settings = load_settings(file, {"disk_soft_floor_bytes": 0, "disk_hard_floor_bytes": 0})
    assert (settings.disk_soft_floor_bytes, settings.quota_bytes) == (0, None)


def test_a_variable_that_should_hold_json_and_does_not_is_said(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTSTATE_PEER_ADDRESSES", "{n1: x}")
    with pytest.raises(ConfigError, match=r'peer_addresses.*give a JSON object.*\{"n1"'):
        load_settings(file)


def test_an_empty_variable_is_as_if_it_was_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAFTSTATE_PEER_ADDRESSES", "RAFTSTATE_LOG_LEVEL", "RAFTSTATE_ADVERTISE"):
        monkeypatch.setenv(name, "")
    assert load_settings(file) == load_settings(file)
    assert load_settings(file).log_level == "info"
