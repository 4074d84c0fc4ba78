"""One test for each lesson of a published vulnerability, where no other file has it; all inputs are harmless."""

import ast
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.version import Version
from typer.testing import CliRunner

from assay_service import cli, create_app
from assay_service.conversion import source
from assay_service.errors import StartError
from assay_service.server import DrainingServer
from tests.security.test_no_texts import BODIES
from tests.service.test_start import load, plain

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
LESSONS: list[dict[str, Any]] = yaml.safe_load((TESTS / "security/lessons.yaml").read_text())
# All vulnerabilities that the design lists, from the advisories of vLLM, SGLang, Triton, Ray, torch and others.
KNOWN = re.findall(
    r"\S+",
    """
    CVE-2023-48022 CVE-2025-23310 CVE-2025-23311 CVE-2025-23319 CVE-2025-23320 CVE-2025-23334 CVE-2025-24357
    CVE-2025-29783 CVE-2025-32434 CVE-2025-32444 CVE-2025-33201 CVE-2025-47277 CVE-2025-48944 CVE-2025-48956
    CVE-2025-53002 CVE-2025-59425 CVE-2025-62164 CVE-2025-6242 CVE-2025-62426 CVE-2025-62593 CVE-2025-62727
    CVE-2026-1839 CVE-2026-22807 CVE-2026-24173 CVE-2026-24208 CVE-2026-27482 CVE-2026-3059 CVE-2026-3060
    CVE-2026-34756 CVE-2026-53923 CVE-2026-5760 vLLM-open-routes
    """,
)
SOURCES = {
    path: ast.parse(path.read_text())
    for package in ("service/assay_service", "training/assay_training", "clients/assay_client")
    for path in sorted((ROOT / package).rglob("*.py"))
}
GOOD: dict[str, Any] = {"items": [{"prompt": "p", "completion": "c"}]}


def test_every_lesson_has_a_test_or_a_reason() -> None:
    assert sorted(name for row in LESSONS for name in row["ids"]) == sorted(KNOWN)
    for row in LESSONS:
        assert row.keys() in ({"ids", "of", "here", "tests"}, {"ids", "of", "reason"})
        for test in row.get("tests", ()):
            file, _, name = test.partition("::")
            tree = ast.parse((TESTS / file).read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test


@pytest.fixture(scope="module")
def url(tiny: dict[str, Any]) -> Iterator[str]:
    """The address of a service that runs as `assay serve` runs it."""
    server = DrainingServer(create_app(tiny["settings"]), None, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def score(url: str) -> float:
    return float(httpx.post(f"{url}/v1/score", json=GOOD).raise_for_status().json()["data"][0]["score"])


MANY = ["c"] * 65  # limits.max_items is 64
CHAT = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"items": GOOD["items"] * 65}),
        ("/v1/render", {"items": GOOD["items"] * 65}),
        ("/v1/rank", {"prompt": "p", "completions": MANY}),
        ("/compat/vllm/score", {"model": "pref", "text_1": "p", "text_2": MANY}),
        ("/compat/vllm/rerank", {"model": "pref", "query": "p", "documents": MANY}),
        ("/compat/vllm/pooling", {"model": "pref", "input": MANY}),
        ("/compat/cohere/v2/rerank", {"model": "pref", "query": "p", "documents": MANY}),
        ("/compat/jina/v1/rerank", {"model": "pref", "query": "p", "documents": MANY}),
        ("/compat/tei/rerank", {"query": "p", "texts": MANY}),
        ("/compat/openrlhf/get_reward", {"query": MANY}),
        ("/compat/llamafactory/v1/score/evaluation", {"model": "model", "messages": MANY}),
        ("/compat/aws/reward", [{"id": str(i), "messages": CHAT} for i in range(65)]),
    ],
)
def test_every_list_of_a_request_is_bounded(url: str, path: str, body: Any) -> None:
    answer = httpx.post(url + path, json=body)
    assert answer.status_code in (413, 422)
    assert "the limit is 64 (max_items)" in answer.text


def test_a_huge_header_is_refused_and_the_service_goes_on(url: str) -> None:
    with pytest.raises(httpx.HTTPError):  # 400, or the connection is closed
        httpx.get(f"{url}/health", headers={"x-large": "x" * 10_000_000}).raise_for_status()
    answered = httpx.get(f"{url}/health", headers={"x-large": "x" * 30_000})
    assert answered.status_code == 200
    assert score(url) == score(url)


@pytest.mark.parametrize(
    "field", [{"chat_template_kwargs": {"tokenize": True}}, {"chat_template": "{{ 1 }}"}, {"template": "{{ 1 }}"}]
)
def test_fields_that_would_steer_a_template_are_refused(url: str, field: dict[str, Any]) -> None:
    asked: dict[str, dict[str, Any]] = {
        "/v1/score": GOOD,
        "/v1/render": GOOD,
        "/compat/vllm/pooling": {"model": "pref", "messages": CHAT},
        "/compat/vllm/score": {"model": "pref", "text_1": "p", "text_2": "c"},
        "/compat/chat/v1/chat/completions": {"model": "pref", "messages": CHAT},
    }
    for path, body in asked.items():
        assert httpx.post(url + path, json=body | field).status_code in (400, 422), path
    assert httpx.post(f"{url}/v1/score", json={"items": [GOOD["items"][0] | field]}).status_code == 422


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """All calls of a function or method with this name."""
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) == name:
                yield path, node


def test_nothing_is_loaded_with_remote_code() -> None:
    given = [
        keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert len(given) >= 4
    assert set(given) == {False}


class Trace:
    """An object whose pickle creates an empty file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    (directory / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "value_head.bin", "adapter_model.bin"):
        (directory / name).write_bytes(pickle.dumps(Trace(tmp_path / "trace"), protocol=2))
    with pytest.raises(StartError, match="is a pickle and is not read"):
        load(directory)
    assert not (tmp_path / "trace").exists()


def test_pickles_are_read_as_tensors_only(tmp_path: Path) -> None:
    for path, call in calls("load"):
        if getattr(getattr(call.func, "value", None), "id", "") == "torch":
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
            assert keywords.get("weights_only") is True, path
    for name in ("loads", "Unpickler"):
        for path, call in calls(name):
            assert getattr(getattr(call.func, "value", None), "id", "") not in ("pickle", "dill"), path
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trace(tmp_path / "trace"), protocol=2))
    with pytest.raises(StartError, match=r"(holds more than tensors|is not a tensor).*so it is refused"):
        source._load_pickle(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "trace").exists()


FIXED = {"torch": "2.6", "transformers": "5.0", "starlette": "0.49.1", "jinja2": "3.1.6", "h11": "0.16"}


@pytest.mark.parametrize("library", FIXED)
def test_libraries_have_the_fixes(library: str) -> None:
    assert Version(version(library)) >= Version(FIXED[library])


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/x-pickle", "multipart/form-data", "text/plain"]
)
def test_only_json_is_read(url: str, kind: str) -> None:
    for content in (pickle.dumps(GOOD), b'{"items": [{"prompt": "p", "completion": "c"}]}'):
        answer = httpx.post(f"{url}/v1/score", content=content, headers={"content-type": kind})
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "invalid_request"


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    nodes = list(ast.walk(SOURCES[path]))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_service_has_no_pickle_and_no_other_transport() -> None:
    service = [path for path in SOURCES if "assay_service" in path.parts]
    found = {name: sorted(path.name for path in service if name in imports(path)) for name in ("pickle", "socket")}
    # `source.py` names the exception of a refused pickle.
    assert found == {"pickle": ["source.py"], "socket": ["listen.py", "server.py", "serving.py"]}
    others = {"zmq", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing", "socketserver", "xmlrpc", "joblib"}
    assert not [path for path in service if others & {name.partition(".")[0] for name in imports(path)}]


def test_no_address_of_a_request_is_fetched(url: str) -> None:
    service = [path for path in SOURCES if "assay_service" in path.parts]
    clients = {"httpx", "requests", "aiohttp", "urllib.request", "urllib3", "http.client", "ftplib"}
    assert not [path for path in service if clients & imports(path)]
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/x.png"
    image = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "p"}]
    for path, body in (
        ("/v1/score", {"items": [{"prompt": [{"role": "user", "content": image}], "completion": "c"}]}),
        ("/v1/score", {**GOOD, "model": address}),
        ("/compat/vllm/pooling", {"model": address, "messages": [{"role": "user", "content": image}]}),
        ("/compat/chat/v1/chat/completions", {"model": "pref", "messages": [{"role": "user", "content": image}]}),
        ("/compat/jina/v1/rerank", {"model": "pref", "query": "p", "documents": [{"image": address}]}),
        ("/compat/tei/predict", {"inputs": address}),
    ):
        httpx.post(url + path, json=body)
    server.shutdown()
    server.server_close()
    assert asked == []


def test_no_body_stops_the_service(url: str) -> None:
    before = score(url)
    for body in BODIES:
        for path in ("/v1/score", "/compat/vllm/score", "/compat/chat/v1/chat/completions"):
            answer = httpx.post(url + path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, body[:100]
    assert score(url) == before
    assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200


def test_a_chunked_body_is_bounded(url: str) -> None:
    sent = 0

    def send() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 65536
            yield b" " * 65536

    try:
        status = httpx.post(f"{url}/v1/score", content=send(), headers={"content-type": "application/json"}).status_code
    except httpx.TransportError:  # the connection is closed before everything is sent
        status = 413
    assert status == 413
    assert score(url) == score(url)


@pytest.mark.parametrize(
    "name", ["../pref", "pref/../abs", "/etc/hostname", "..%2fpref", "pref\x00", "a" * 65, "", "."]
)
def test_names_are_looked_up_and_never_paths(url: str, name: str) -> None:
    answer = httpx.post(f"{url}/v1/score", json={**GOOD, "model": name})
    assert answer.status_code in (404, 422)
    weighed = httpx.post(f"{url}/v1/score", json={**GOOD, "weights": {name: 1}})
    assert weighed.status_code in (404, 422)
    if name and "\x00" not in name:
        done = CliRunner().invoke(cli.app, ["serve", "--preset", name])
        assert (done.exit_code, "preset" in done.stderr) == (2, True)


@pytest.mark.parametrize("path", ["/../cli.py", "/..%2fcli.py", "/%2e%2e/cli.py", "/....//cli.py", "//etc/hostname"])
def test_files_of_the_page_stay_in_their_folder(url: str, path: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    # By hand, because an HTTP client would resolve the dots itself.
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET /playground{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert int(answer.split()[1]) == 404


def test_many_ranges_of_a_file_are_answered_at_once(url: str) -> None:
    answer = httpx.get(f"{url}/playground/main.js", headers={"range": "bytes=" + ",".join(["0-1"] * 3000)}, timeout=10)
    assert answer.status_code in (200, 206, 400, 416)
    assert len(answer.content) < 100_000


def test_another_origin_gets_no_permission(url: str) -> None:
    origin = {"Origin": "http://other.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = httpx.options(f"{url}/v1/score", headers=asked)
    assert preflight.status_code == 405
    simple = httpx.post(f"{url}/v1/score", json=GOOD, headers={**origin, "content-type": "text/plain"})
    assert simple.status_code == 422
    allowed = httpx.post(f"{url}/v1/score", json=GOOD, headers=origin)
    for answer in (preflight, simple, allowed):
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "set-cookie"]
