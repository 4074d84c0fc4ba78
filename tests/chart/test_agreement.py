"""What the chart and the image say about the service, compared with the service itself."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import uvicorn
import yaml
from prometheus_client.parser import text_string_to_metric_families

from assay_service import cli, create_app
from assay_service.api.app import PROBE_TIMEOUT_S
from assay_service.api.authentication import OPEN
from assay_service.cli_options import LogFormat, LogLevel
from assay_service.keys import add_key
from assay_service.operation_settings import LifecycleSettings
from assay_service.server import SEND_S
from assay_service.telemetry.metrics import Metrics
from tests.chart.render import CHART, ROOT, VALUES, find, find_service, render
from tests.compat.conftest import run_app
from tests.security.conftest import make_certificate
from tests.service.conftest import tiny

__all__ = ["tiny"]

pytestmark = pytest.mark.chart


@pytest.fixture(scope="module")
def guarded(
    tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """The address of a service with keys, its application, and a key for each scope."""
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = {name: add_key(file, name, (name,)) for name in ("score", "metrics")}
    app = create_app(tiny["settings"].model_copy(update={"keys": str(file)}))
    with run_app(app) as served:
        yield served.url, app, keys


@contextmanager
def run_server(server: uvicorn.Server) -> Iterator[int]:
    """Run a server in a thread; gives its port."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it listened"
        time.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, key: str = "") -> int:
    """The status of a GET, with curl's rather than our client's idea of HTTP."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url]
    header = ["-H", f"Authorization: Bearer {key}"] if key else []
    return int(subprocess.run([*command, *header], capture_output=True, text=True, check=True).stdout)


def parse(arguments: Sequence[str], files: Path) -> dict[str, Any]:
    """The parameters that `assay serve` reads; files of the container are empty ones in `files`."""
    placed = []
    for argument in arguments:
        option, _, value = argument.partition("=")
        if value.startswith("/etc/"):
            path = files / value.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            placed.append(f"{option}={path}")
        else:
            placed.append(argument)
    command: Any = typer.main.get_command(cli.app)
    return dict(command.commands["serve"].make_context("serve", placed).params)


def test_probes_are_open_routes_of_the_service(guarded: tuple[str, Any, dict[str, str]]) -> None:
    url, app, _ = guarded
    routes = {route.path for route in app.routes}
    for values in VALUES:
        container = find_service(render(values))
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for name, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
            probe = container[name]
            assert probe["httpGet"]["path"] == path
            assert path in routes & OPEN
            assert f"--port={ports[probe['httpGet']['port']]}" in container["args"]
            is_tls = any(argument.startswith("--tls-certificate") for argument in container["args"])
            assert probe["httpGet"]["scheme"] == ("HTTPS" if is_tls else "HTTP")
            assert probe["timeoutSeconds"] > (PROBE_TIMEOUT_S if path == "/ready" else 1)
    assert (ask(f"{url}/ready"), ask(f"{url}/health")) == (200, 200)


def test_the_command_line_reads_every_flag(tmp_path: Path) -> None:
    for values in VALUES:
        container = find_service(render(values))
        assert container["command"] == ["assay", "serve"]
        params = parse(container["args"], tmp_path)
        assert (params["host"], params["port"]) == ("0.0.0.0", 8000)
        given = yaml.safe_load(VALUES[values].read_text())
        assert params["insecure"] is given.get("insecure", False)
        assert (params["keys"] is None) is params["insecure"]
        assert (params["tls_key"] is None) is ("tls" not in given)
        assert params["log_format"] == given.get("logs", {}).get("format", "json")
        # Each path is in a volume that is mounted.
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        paths = [argument.partition("=")[2] for argument in container["args"] if "=/etc/" in argument]
        assert all(any(Path(path).is_relative_to(mount) for mount in mounts) for path in paths)


def test_levels_and_formats_of_the_log_are_those_of_the_command_line() -> None:
    known = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]["logs"]["properties"]
    levels, formats = (list(get_args(get_args(option)[0])) for option in (LogLevel, LogFormat))
    assert (known["level"]["enum"], known["format"]["enum"]) == (levels, formats)


def test_the_grace_period_is_longer_than_the_drain() -> None:
    cases: dict[tuple[str, ...], int] = {(): 30, ("preStopSeconds=40",): 30, ("config.lifecycle.drain_s=90",): 90}
    assert LifecycleSettings().drain_s == 30
    assert SEND_S < 10
    for sets, drain_s in cases.items():
        objects = render("minimal", *sets)
        pod = find(objects, "Deployment")["spec"]["template"]["spec"]
        sleep = find_service(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] == sleep + drain_s + 10


def test_scaling_reads_metrics_that_exist() -> None:
    families = text_string_to_metric_families(Metrics().format_text().decode())
    there = {sample.name for family in families for sample in family.samples}
    tokens, seconds = (
        trigger["metadata"]["query"] for trigger in find(render("keda"), "ScaledObject")["spec"]["triggers"]
    )
    page = (ROOT / "docs/kubernetes.md").read_text()
    used = set(re.findall(r"\bassay_\w+", f"{tokens} {seconds}"))
    assert used == {"assay_queue_tokens", "assay_queue_seconds_sum", "assay_queue_seconds_count"}
    (rules,) = [yaml.safe_load(code) for code in re.findall(r"```yaml\n(rules:.*?)```", page, flags=re.DOTALL)]
    read = {name for rule in rules["rules"] for name in re.findall(r"\bassay_\w+", rule["seriesQuery"])}
    assert used | read <= there
    # The adapter's names are those that the HPA asks for.
    asked = {
        metric["pods"]["metric"]["name"] for metric in find(render("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    assert {rule["name"]["as"] for rule in rules["rules"]} == asked


def test_prometheus_may_read_the_metrics(guarded: tuple[str, Any, dict[str, str]]) -> None:
    url, app, keys = guarded
    (endpoint,) = find(render("keda"), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["path"] in {route.path for route in app.routes}
    assert endpoint["authorization"]["type"] == "Bearer"
    assert ask(f"{url}{endpoint['path']}", keys["metrics"]) == 200
    assert ask(f"{url}{endpoint['path']}") == 401


def test_helm_test_asks_the_service(guarded: tuple[str, Any, dict[str, str]]) -> None:
    url, _, keys = guarded
    (container,) = find(render("all"), "Pod")["spec"]["containers"]
    assert container["command"][:2] == ["python", "-c"]
    assert container["command"][3] == "https://rewards.rl.svc:443"
    program = container["command"][2]
    assert program == (CHART / "files/test.py").read_text()

    def run(key: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"ASSAY_API_KEY": key}
        command = [sys.executable, "-c", program, url]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    scored, without, wrong = run(keys["score"]), run(""), run("assay_wrong")
    assert (scored.returncode, without.returncode, wrong.returncode) == (0, 0, 1)
    assert re.search(r"score: -?\d", scored.stdout)
    assert "401" in without.stdout


def test_the_image_and_the_chart_agree(tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, flags=re.MULTILINE)
    command = yaml.safe_load(entry)
    assert command[:2] == ["assay", "serve"]
    assert parse([*command[2:], "--insecure"], tmp_path)["host"] == "0.0.0.0"
    container = find_service(render("minimal"))
    port = container["ports"][0]["containerPort"]
    assert f"EXPOSE {port}\n" in text
    assert command[-2:] == ["--port", str(port)]
    user = find(render("minimal"), "Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in text
    home = {entry["name"]: entry["value"] for entry in container["env"]}["HF_HOME"]
    assert f"HF_HOME={home}\n" in text
    assert {"name": "models", "mountPath": home, "readOnly": False} in container["volumeMounts"]


def test_the_health_check_of_the_image_asks_the_service(
    guarded: tuple[str, Any, dict[str, str]], tmp_path: Path
) -> None:
    url, app, _ = guarded
    program = ROOT / "service/container/healthcheck.py"

    def check(port: int) -> int:
        return subprocess.run([sys.executable, program, str(port)], check=False).returncode

    assert check(int(url.rpartition(":")[2])) == 0
    made = make_certificate(tmp_path)
    config = uvicorn.Config(app, port=0, lifespan="off", ssl_certfile=made.certificate, ssl_keyfile=made.key)
    with run_server(uvicorn.Server(config)) as port:
        assert check(port) == 0
    assert check(port) == 1  # nobody listens any more
