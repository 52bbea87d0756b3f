"""What stands in docs/ is what the code says, and its rules speak of metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from raftstate.config import ClusterConfig, MemberConfig, NodeSettings
from raftstate.ops.metric import Kind
from raftstate.ops.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS = (ROOT / "docs" / "alerts.yml").read_text("utf-8")
OF_THE_PROCESS = {"process_start_time_seconds", "process_open_fds", "process_max_fds", "up"}


def test_the_generated_pages_are_those_of_the_code() -> None:
    checked = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_stale_pages_are_told_by_name_and_made_anew(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    for page in ("settings.md", "metrics.md"):
        (docs / page).write_text((docs / page).read_text("utf-8").replace("|", "!", 1), "utf-8")
    (docs / "errors.md").unlink()
    script = [sys.executable, str(docs / "generate.py")]
    checked = subprocess.run([*script, "--check"], capture_output=True, text=True, check=False)
    told = "docs are stale (settings.md, metrics.md, errors.md); run `make docs`\n"
    assert (checked.returncode, checked.stderr) == (1, told)
    subprocess.run(script, check=True)
    for page in ("settings.md", "metrics.md", "errors.md"):
        assert (docs / page).read_text("utf-8") == (ROOT / "docs" / page).read_text("utf-8")


def test_every_setting_metric_and_error_has_its_row() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text("utf-8")
    for model in (NodeSettings, ClusterConfig, MemberConfig):
        for name in model.model_fields:
            assert f"| `{name}` |" in settings or name == "config_file"
    metrics = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert all(f"| `{metric.name}` | {metric.kind.value} |" in metrics for metric in METRICS)


def test_metrics_are_named_as_prometheus_wants_it() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"(raftstate|grpc_server)_[a-z0-9_]+", metric.name)
        assert metric.help.endswith(".")
        # What etcd counts, but calls a total nevertheless.
        if not metric.name.startswith("raftstate_debugging_mvcc_"):
            assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert metric.name.endswith("_seconds") or metric.kind is not Kind.HISTOGRAM


def rules() -> dict[str, str]:
    """Return the rules by the names of their alerts."""
    found = re.split(r"\n      - alert: ", ALERTS)[1:]
    return {rule.split("\n", 1)[0]: rule for rule in found}


def test_every_alert_is_over_metrics_that_there_are_and_says_what_to_do() -> None:
    known = {metric.name for metric in METRICS} | OF_THE_PROCESS
    known |= {f"{metric.name}_bucket" for metric in METRICS if metric.kind is Kind.HISTOGRAM}
    for alert, rule in rules().items():
        expression = rule.split("expr: ", 1)[1].split("for: ", 1)[0]
        used = set(re.findall(r"\b(?:raftstate_|grpc_server_|process_)\w+|\bup\b", expression))
        assert used, alert
        assert used <= known, f"{alert}: {used - known}"
        assert re.search(r'summary: "[^"]+"', rule), alert
        assert re.search(r'action: "[^"]+\."', rule), alert
        assert re.search(r"severity: (warning|critical)}", rule), alert


def test_every_alert_has_series_that_fire_it_and_series_that_do_not() -> None:
    tests = (Path(__file__).parent / "alerts_test.yml").read_text("utf-8")
    for alert in rules():
        asked = re.findall(
            rf'alertname="{alert}", alertstate="firing", job="raftstate-{alert}"}}\n'
            r"        eval_time: \w+\n        exp_samples:(.*)\n",
            tests,
        )
        assert sorted(asked) == ["", " []"], alert
