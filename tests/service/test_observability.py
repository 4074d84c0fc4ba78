"""The page of metrics, the dashboard and the alert rules, against a running service, promtool and Prometheus."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from assay_service import create_app
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.telemetry.metrics import Metrics
from tests.compat.conftest import Served, run_app
from tests.compat.test_gateway_nginx import find_free_port, is_listening
from tests.real_tokenizers import unavailable

ROOT = Path(__file__).parents[2]
FILES = ROOT / "service" / "observability"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
QUERIES = [*PANELS, *(alert["expr"] for alert in ALERTS)]
START_S = 60


def find_binary(name: str) -> str:
    binary = shutil.which(name)
    if binary is None:
        unavailable(f"{name} is not installed; Debian's package is prometheus")
    return str(binary)


def list_families(text: str) -> dict[str, str]:
    """The type of each metric of an answer of `/metrics`, by its name as queries have it."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.M))


@pytest.fixture(scope="module")
def served(tiny: dict[str, Any]) -> Iterator[Served]:
    """A service that has answered a few requests, also with errors."""
    with run_app(create_app(tiny["settings"])) as service:
        items = [{"prompt": "hello", "completion": text} for text in ("he", "lo")]
        for body in ({"items": items}, {"items": items}, {}):
            httpx.post(f"{service.url}/v1/score", json=body)
        yield service


def test_the_page_has_every_metric_and_its_labels() -> None:
    metrics = Metrics()
    page = (ROOT / "docs/observe.md").read_text()
    rows = re.findall(r"^\| `(assay_\w+)` \| (.*?) \|", page, flags=re.M)
    families = {f for f in list_families(metrics.format_text().decode()) if not f.endswith("_created")}
    assert [name for name, _ in rows if rows.count((name, _)) > 1] == []
    assert {name for name, _ in rows} == {name for name in families if name.startswith("assay_")}
    known = {
        collector._name: collector._labelnames
        for collector in vars(metrics).values()
        if hasattr(collector, "_labelnames")
    }
    for name, labels in rows:
        declared = known.get(name.removesuffix("_total").removesuffix("_info"))
        if declared is not None and "…" not in labels:
            assert re.findall(r"`(\w+)`", labels) == list(declared), name


def test_dashboard_and_alerts_ask_for_metrics_of_a_running_service(served: Served) -> None:
    text = httpx.get(f"{served.url}/metrics").text
    there = set()
    for name, kind in list_families(text).items():
        there |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    asked = {name for query in QUERIES for name in re.findall(r"\b(?:assay|process)_\w+", query)}
    assert len(asked) > 20
    assert not asked - there


def test_the_dashboard_is_for_any_data_source() -> None:
    assert DASHBOARD["uid"] == "assay-service"
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    sources = {t["datasource"]["uid"] for panel in DASHBOARD["panels"] for t in panel.get("targets", [])}
    assert sources == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_to_do() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert len(alert["annotations"]["runbook"].split()) > 6


@pytest.mark.parametrize("command", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]])
def test_promtool_accepts_and_tests_the_rules(command: list[str]) -> None:
    done = subprocess.run([find_binary("promtool"), *command], cwd=FILES, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire() -> None:
    tests = (FILES / "alerts_test.yaml").read_text()
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r'alertname="(\w+)"', tests))


@pytest.mark.parametrize("name", ["dashboard.json", "alerts.yaml"])
def test_the_chart_has_the_same_files(name: str) -> None:
    """Helm packages no file outside of the chart, and no link."""
    assert (ROOT / "helm/files" / name).read_bytes() == (FILES / name).read_bytes()


@pytest.mark.slow
def test_prometheus_scrapes_a_service_and_answers_the_dashboard(served: Served, tmp_path: Path) -> None:
    reference = ReferenceHistogram(edges=(-1.0, 1.0), counts=(1, 8, 1), samples=10, samples_sha256="0" * 64)
    metrics = served.app.state.metrics
    metrics.windows._references = {"pref": reference}
    for number in range(600):  # enough for drift and correlation
        metrics.count_score("pref", number % 7 - 3.0, number)
    shutil.copy(FILES / "alerts.yaml", tmp_path)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": "assay", "static_configs": [{"targets": [served.url.removeprefix("http://")]}]}
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = find_free_port()
    command = [
        find_binary("prometheus"),
        f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/d",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log, env={"PATH": os.environ["PATH"]}
        )
    try:
        ask_everything(f"http://127.0.0.1:{port}", process, tmp_path / "log", port)
    finally:
        process.terminate()
        process.wait(START_S)


def ask_everything(url: str, process: "subprocess.Popen[bytes]", log: Path, port: int) -> None:
    """Wait for two scrapes, then ask for every query of the dashboard, and for the alerts."""

    def query(text: str) -> list[Any]:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", (text, answer)
        return list(answer["data"]["result"])

    end = time.monotonic() + START_S
    while not is_listening(port) or not query("count_over_time(assay_build_info[1m]) >= 3"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    empty = []
    for text in PANELS:
        filled = text.replace("$__rate_interval", "1m")
        for variable in ("instance", "signal", "job"):
            filled = filled.replace(f"${variable}", ".*")
        if not query(filled):
            empty.append(text)
    # Only what has not happened to this service has no series.
    assert {re.findall(r"assay_\w+", text)[0] for text in empty} <= {
        "assay_rejected_requests_total",
        "assay_item_errors_total",
    }
    assert query('assay_length_correlation{signal="pref"}')
    assert query('assay_drift_psi{signal="pref"} > 0.25')
    rules = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in rules if rule["health"] == "ok"} == {alert["alert"] for alert in ALERTS}
