"""The wire, through the real application with real (tiny) models."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import torch

from assay_service.api.app import create_app
from assay_service.scoring.blend import compute_probability
from tests import checkpoints

Run = Callable[[Callable[[httpx.AsyncClient], Awaitable[Any]]], Any]


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any]) -> Run:
    """Runs a conversation with the application from its start to its shutdown."""

    def go(talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        async def inner() -> Any:
            app = create_app(tiny["settings"])
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://assay") as http,
            ):
                return await talk(http)

        return asyncio.run(inner())

    return go


def post(run: Run, path: str, body: Any, **headers: str) -> httpx.Response:
    async def talk(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post(path, json=body, headers=headers)

    response: httpx.Response = run(talk)
    return response


def score(run: Run, *items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = post(run, "/v1/score", {"items": list(items), **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_scores_are_the_oracles_and_the_blend_is_theirs(run: Run, tiny: dict[str, Any]) -> None:
    items = [{"prompt": "hi", "completion": "bread " * n} for n in (0, 1, 5, 20)]
    rendered = post(run, "/v1/render", {"items": items}).json()["data"]
    for row, shown in zip(score(run, *items)["data"], rendered, strict=True):
        assert set(row["signals"]) == {"pref", "abs"}
        for name, value in row["signals"].items():
            expected = checkpoints.oracle(tiny["oracles"][name], tuple(shown["signals"][name]["ids"]))
            assert value["logit"] == pytest.approx(expected, abs=1e-5)
        pref, absolute = row["signals"]["pref"], row["signals"]["abs"]
        assert row["score"] == pytest.approx(0.25 * pref["logit"] + 0.75 * absolute["logit"], abs=1e-12)
        assert "prob" not in pref  # trap 11: a Bradley-Terry logit has no probability of its own
        assert absolute["prob"] == compute_probability(absolute["logit"])


def test_both_forms_of_an_item_score_bit_equal(run: Run) -> None:
    pair = {"prompt": "bake?", "completion": "yes"}
    chat = {"messages": [{"role": "user", "content": "bake?"}, {"role": "assistant", "content": "yes"}]}
    mixed = {"prompt": [{"role": "user", "content": "bake?"}], "completion": "yes"}
    first, second, third = (row["signals"] for row in score(run, pair, chat, mixed)["data"])
    assert first == second == third


def test_an_item_scores_the_same_alone_and_in_any_company(run: Run) -> None:
    items = [{"prompt": p, "completion": c} for p in ("bake?", "the fox") for c in ("yes", "no, wait and bake it", "")]
    alone = [score(run, item)["data"][0]["signals"] for item in items]
    assert [row["signals"] for row in score(run, *items)["data"]] == alone
    assert [row["signals"] for row in score(run, *items[::-1])["data"]] == alone[::-1]
    assert run(lambda http: http.get("/info")).json()["numerics"]["invariant"] is True


def test_the_answer_has_the_promised_shape(run: Run) -> None:
    body = score(run, {"prompt": "hi", "completion": "yes", "id": "row-7"}, {"prompt": "hi", "completion": "no"})
    assert set(body) == {"id", "object", "created", "model", "data", "provenance"}
    assert (body["object"], body["model"]) == ("list", "mix")
    assert [row["index"] for row in body["data"]] == [0, 1]
    assert body["data"][0]["id"] == "row-7"
    assert "id" not in body["data"][1]
    assert set(body["data"][0]["signals"]["abs"]) == {
        "logit",
        "prob",
        "prompt_tokens",
        "completion_tokens",
        "truncated_tokens",
        "dropped_tokens",
        "control_tokens_as_text",
    }
    provenance = body["provenance"]
    assert provenance["blend"] == {"name": "mix", "weights": {"pref": 0.25, "abs": 0.75}, "standardise": "none"}
    assert set(provenance["signals"]["pref"]) == {
        "model", "revision", "adapter_sha256", "head_sha256", "template_sha256", "dtype", "compute",
    }  # fmt: skip
    assert provenance["signals"]["pref"]["head_sha256"] != provenance["signals"]["abs"]["head_sha256"]
    assert len(provenance["fingerprint"]) == 64


def test_model_weights_and_default(run: Run) -> None:
    item = {"prompt": "hi", "completion": "yes"}
    by_blend = score(run, item, model="mix")["data"][0]
    assert score(run, item)["data"][0] == by_blend
    assert score(run, item, weights={"pref": 0.25, "abs": 0.75})["data"][0] == by_blend
    alone = score(run, item, model="pref")
    assert alone["data"][0]["score"] == by_blend["signals"]["pref"]["logit"]
    assert set(alone["data"][0]["signals"]) == {"pref"}
    assert alone["provenance"]["blend"] == {"name": "pref", "weights": {"pref": 1.0}, "standardise": "none"}


def test_standardised_blend_uses_the_manifests_moments(run: Run) -> None:
    row = score(run, {"prompt": "hi", "completion": "yes"}, model="mix_std")["data"][0]
    pref, absolute = row["signals"]["pref"]["logit"], row["signals"]["abs"]["logit"]
    assert row["score"] == pytest.approx(0.25 * (pref - 0.5) / 2 + 0.75 * (absolute - 1.0) / 2)


def test_fingerprints_tell_rules_apart_and_are_stable(run: Run) -> None:
    item = {"prompt": "hi", "completion": "yes"}
    bodies = [score(run, item), score(run), score(run, item, model="mix_std"), score(run, item, weights={"pref": 1.0})]
    prints = [body["provenance"]["fingerprint"] for body in bodies]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_messages_without_content_count_as_well(run: Run) -> None:
    """The cap is on the work of rendering, and templates write something for every message."""
    many = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 3600
    body = {"items": [{"messages": many}, {"prompt": "hi", "completion": "yes"}]}
    refused, scored = post(run, "/v1/score", body).json()["data"]
    assert refused["error"]["code"] == "too_long"
    assert "score" in scored


def test_the_longest_items_are_refused_before_they_are_tokenized(run: Run) -> None:
    long, short = ({"prompt": "a" * n, "completion": "b"} for n in (150_001, 1))
    row, neighbor = score(run, long, short)["data"]
    assert row["error"]["code"] == "too_long"
    assert "characters" in row["error"]["message"]
    assert "score" in neighbor


@pytest.mark.parametrize("weights", [{"a b": 1.0}, {"x" * 100_000: 1.0}, {"pref": 1e7}])
def test_weights_with_absurd_names_or_sizes_are_schema_faults(run: Run, weights: dict[str, float]) -> None:
    response = post(run, "/v1/score", {"items": [], "weights": weights})
    assert response.status_code == 422
    assert response.json()["error"]["param"] in ("weights", "weights.pref")
    assert len(response.content) < 1000


def test_an_unknown_field_of_any_length_is_not_echoed(run: Run) -> None:
    response = post(run, "/v1/score", {"items": [], "x" * 100_000: 1})
    assert (response.status_code, response.json()["error"]["param"]) == (422, None)
    assert len(response.content) < 1000


def test_an_empty_model_name_is_not_the_default(run: Run) -> None:
    assert post(run, "/v1/score", {"items": [], "model": ""}).status_code == 422


def test_work_of_a_client_that_left_is_dropped_and_logged(
    tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Trap 28: Starlette lets an endpoint run on after the disconnect."""
    app = create_app(tiny["settings"])
    body = json.dumps({"items": [{"prompt": "a", "completion": "b " * 50}] * 64}).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        "server": ("assay", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip

    async def talk() -> tuple[list[int], float]:
        arriving = iter([{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}])
        statuses: list[int] = []

        async def receive() -> Any:
            return next(arriving)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
        scored = app.state.metrics._registry.get_sample_value("assay_items_total", {"signal": "pref"})
        assert app.state.metrics._registry.get_sample_value("assay_disconnects_total") == 1
        return statuses, scored or 0.0

    with caplog.at_level("WARNING", "assay"):
        statuses, scored = asyncio.run(talk())
    assert statuses == [499]
    (warned,) = [record for record in caplog.records if "clients close their connections" in record.getMessage()]
    assert vars(warned)["fields"]["items"] == 64
    assert scored == 0.0


def test_no_items_no_data(run: Run) -> None:
    """Trap 27."""
    assert score(run)["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": [{"prompt": "x"}]}, "items[0]"),
        ({"items": [{"completion": "x"}]}, "items[0]"),
        ({"items": [{}]}, "items[0]"),
        ({"items": [{"prompt": "a", "completion": "b", "messages": []}]}, "items[0]"),
        ({"items": [{"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": "b"}]}, "items[1].prompt"),
        ({"items": [{"prompt": "a", "completion": 5}]}, "items[0].completion"),
        ({"items": [{"prompt": None, "completion": "b"}]}, "items[0]"),
        ({"items": [{"prompt": "a", "completion": "b", "activation": True}]}, "items[0].activation"),
        ({"items": [{"prompt": "a", "completion": "b", "finish_reason": "eos"}]}, "items[0].finish_reason"),
        ({"items": [{"messages": [{"role": "user", "content": "x"}]}]}, "items[0]"),
        ({"items": [{"messages": []}]}, "items[0]"),
        ({"items": [{"messages": [{"role": 3, "content": "x"}]}]}, "items[0].messages[0].role"),
        ({"items": [{"prompt": [{"role": "user"}], "completion": "b"}]}, "items[0].prompt[0].content"),
        ({"items": [{"prompt": "a", "completion": "b", "id": 7}]}, "items[0].id"),
        ({"items": "x"}, "items"),
        ({"items": [], "model": "mix", "weights": {"pref": 1}}, None),
        ({"items": [], "weights": {}}, "weights"),
        ({"items": [], "weights": {"pref": -1.5e6}}, "weights.pref"),
        ({"items": [], "weights": {"pref": 0, "abs": -0.0}}, None),
        ({"items": [], "weights": {"pref": "1"}}, "weights.pref"),
        ({"items": [], "truncation": "right"}, "truncation"),
        ({"items": [], "use_activation": False}, "use_activation"),
        ([], None),
    ],
)
def test_schema_faults_name_the_field(run: Run, body: Any, param: str | None) -> None:
    """Traps 7, 10, 16: nothing is guessed and nothing is ignored."""
    response = post(run, "/v1/score", body)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["retryable"] is False


def test_errors_never_echo_the_input(run: Run) -> None:
    secret = "my medical history"
    for body in (
        {"items": [{"prompt": secret, "completion": 5, secret: 1}]},
        {"items": [{"prompt": secret, "completion": secret, "finish_reason": secret}]},
        {"items": [], "truncation": secret},
        {"items": [{"prompt": [{"role": secret, "content": secret}], "completion": secret}]},
        {"items": [], "model": secret},
    ):
        response = post(run, "/v1/score", body)
        assert secret not in response.text.replace(f'"param":"items[0].{secret}"', "")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_json_numbers_that_are_not_finite_are_refused(run: Run, number: str) -> None:
    async def talk(http: httpx.AsyncClient) -> httpx.Response:
        body = f'{{"items": [], "weights": {{"pref": {number}}}}}'
        return await http.post("/v1/score", content=body, headers={"content-type": "application/json"})

    response = run(talk)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["message"] == "a number in the body is not finite, or too large for a float of 64 bits"


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 422), (b'"\xff"', 422), (b"[" * 100_000, 422), (b"", 422), (b'{"items": [], "items"', 422)],
)
def test_bodies_that_are_not_json_get_an_error_body(run: Run, content: bytes, status: int) -> None:
    async def talk(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/score", content=content, headers={"content-type": "application/json"})

    response = run(talk)
    assert response.status_code == 422
    assert set(response.json()["error"]) == {"code", "message", "param", "request_id", "retryable"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": [{"prompt": "a", "completion": "b", "completion": "c"}]}',
        b'{"items": [{"prompt": "a", "completion": "b"}], "model": "pref", "model": "abs"}',
    ],
)
def test_a_key_that_is_there_twice_is_refused(run: Run, body: bytes) -> None:
    """Python's own reader would score the last one, and lose the other text."""
    response = run(lambda http: http.post("/v1/score", content=body, headers={"content-type": "application/json"}))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "invalid_request")
    assert error["message"] == "an object in the body has a key twice, and one of its values would be lost"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"items": [{"prompt": "a", "completion": "\ud800"}]}', "items[0].completion"),
        (rb'{"items": [], "weights": {"\ud800": 1}}', "weights"),
        (rb'{"items": [], "\ud800": 1}', None),
    ],
)
def test_a_lone_surrogate_is_a_schema_fault(run: Run, body: bytes, param: str | None) -> None:
    async def talk(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/score", content=body, headers={"content-type": "application/json"})

    response = run(talk)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


def test_content_faults_are_the_items_own_and_neighbors_are_scored(run: Run) -> None:
    good = {"prompt": "hi", "completion": "yes"}
    items = [
        good,
        {"prompt": "bread " * 200, "completion": "yes", "id": "long"},
        {"prompt": "x <|im_end|>", "completion": "yes"},
        {"prompt": "hi", "completion": "", "finish_reason": "length"},
        {"prompt": "hi", "completion": ""},
    ]
    data = score(run, *items)["data"]
    assert [row.get("error", {}).get("code") for row in data] == [
        None,
        "too_long",
        "special_tokens",
        "empty_completion",
        None,
    ]
    assert data[1]["id"] == "long"
    assert [row["error"]["param"] for row in data if "error" in row] == [None, None, "completion"]
    assert data[0]["score"] == pytest.approx(score(run, good)["data"][0]["score"], abs=1e-5)
    assert all("score" not in row for row in data if "error" in row)


def test_prompt_left_truncation_is_reported(run: Run) -> None:
    row = score(run, {"prompt": "bread " * 200, "completion": "yes"}, truncation="prompt_left")["data"][0]
    value = row["signals"]["pref"]
    assert value["truncated_tokens"] > 0
    assert value["prompt_tokens"] + value["completion_tokens"] == 128


def test_unfinished_is_scored_or_refused_as_the_signal_says(run: Run) -> None:
    item = {"prompt": "hi", "completion": "yes", "finish_reason": "length"}
    assert "score" in score(run, item)["data"][0]
    assert score(run, item, model="enc")["data"][0]["error"]["code"] == "unfinished"


@pytest.mark.parametrize(
    ("fields", "param"), [({"model": "nope"}, "model"), ({"weights": {"pref": 1, "nope": 1}}, "weights.nope")]
)
def test_unknown_names_are_404(run: Run, fields: dict[str, Any], param: str) -> None:
    response = post(run, "/v1/score", {"items": [], **fields})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == param


def test_another_method_is_a_405_that_names_the_methods_of_the_path(run: Run) -> None:
    async def talk(http: httpx.AsyncClient) -> list[httpx.Response]:
        return [await http.delete("/v1/score"), await http.post("/info"), await http.get("/compat/tei/rerank")]

    answers = run(talk)
    assert [answer.status_code for answer in answers] == [405] * 3
    assert [answer.headers["allow"] for answer in answers] == ["POST", "GET", "POST"]


def test_too_many_items_and_too_large_bodies_are_413(run: Run) -> None:
    item = {"prompt": "a", "completion": "b"}
    assert post(run, "/v1/score", {"items": [item] * 64}).status_code == 200
    response = post(run, "/v1/score", {"items": [item] * 65})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_items")
    response = post(run, "/v1/score", {"items": [{"prompt": "a" * 250_001, "completion": "b"}]})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")

    async def chunked(http: httpx.AsyncClient) -> httpx.Response:
        async def body() -> Any:
            for _ in range(300):
                yield b" " * 1000

        return await http.post("/v1/score", content=body(), headers={"content-type": "application/json"})

    assert run(chunked).status_code == 413


def test_rank_sorts_with_margins_and_keeps_failures_apart(run: Run) -> None:
    completions = [
        "yes",
        {"completion": "", "finish_reason": "length", "id": "cut"},
        "no, never",
        {"completion": "yes", "id": "same"},
    ]
    body = post(run, "/v1/rank", {"prompt": "hi", "completions": completions}).json()
    results = body["results"]
    scores = [row["score"] for row in results]
    assert scores == sorted(scores, reverse=True)
    assert [row["margin"] for row in results] == [scores[0] - scores[1], scores[1] - scores[2], None]
    tied = [row["index"] for row in results if row["index"] in (0, 3)]
    assert tied == [0, 3]  # equal scores in the order they came
    assert [(row["index"], row["id"], row["error"]["code"]) for row in body["errors"]] == [
        (1, "cut", "empty_completion")
    ]
    single = score(run, {"prompt": "hi", "completion": "no, never"})["data"][0]
    assert next(row for row in results if row["index"] == 2)["score"] == pytest.approx(single["score"], abs=1e-5)
    top = post(run, "/v1/rank", {"prompt": "hi", "completions": completions, "top_n": 1}).json()["results"]
    assert [(row["index"], row["margin"]) for row in top] == [
        (results[0]["index"], pytest.approx(results[0]["margin"]))
    ]


def test_rank_takes_messages_as_its_prompt(run: Run) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    ranked = post(run, "/v1/rank", {"messages": messages, "completions": ["d"]}).json()["results"][0]
    scored = score(run, {"messages": [*messages, {"role": "assistant", "content": "d"}]})["data"][0]
    assert ranked["score"] == pytest.approx(scored["score"], abs=1e-5)
    assert post(run, "/v1/rank", {"prompt": "a", "messages": messages, "completions": []}).status_code == 422
    assert post(run, "/v1/rank", {"prompt": "a", "completions": [], "top_n": 0}).json()["error"]["param"] == "top_n"
    assert post(run, "/v1/rank", {"prompt": "a", "completions": []}).json()["results"] == []


def test_compare_has_a_probability_for_preference_only(run: Run) -> None:
    """P(a beats b) = σ(r_a - r_b), Bradley-Terry; trap 11."""
    body = post(run, "/v1/compare", {"prompt": "hi", "a": "yes", "b": "no"}).json()
    rows = score(run, *({"prompt": "hi", "completion": c} for c in ("yes", "no")))["data"]
    margins = {n: rows[0]["signals"][n]["logit"] - rows[1]["signals"][n]["logit"] for n in ("pref", "abs")}
    assert body["signals"]["pref"]["margin"] == pytest.approx(margins["pref"], abs=1e-5)
    assert body["signals"]["pref"]["prob_a"] == compute_probability(body["signals"]["pref"]["margin"])
    assert body["signals"]["abs"]["margin"] == pytest.approx(margins["abs"], abs=1e-5)
    assert "prob_a" not in body["signals"]["abs"]
    assert body["blends"]["mix"]["margin"] == pytest.approx(rows[0]["score"] - rows[1]["score"])
    failed = post(run, "/v1/compare", {"prompt": "hi", "a": "yes", "b": "<|im_end|>"})
    assert (failed.status_code, failed.json()["error"]["param"]) == (422, "b")


def test_render_shows_what_is_scored(run: Run) -> None:
    items = [{"prompt": "hi", "completion": "yes", "id": "r"}, {"prompt": "hi", "completion": "<|im_end|>"}]
    rows = post(run, "/v1/render", {"items": items}).json()["data"]
    shown = rows[0]["signals"]["pref"]
    assert shown["text"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    end, length = len(shown["ids"]), len(shown["text"])
    place = {"start": end - 1, "end": end, "characters": [length - 1, length]}  # the line break
    assert shown["score_position"] == {"policy": "last_token", **place}
    assert 0 < shown["boundary"] < len(shown["ids"])
    assert rows[0]["id"] == "r"
    assert rows[1]["error"]["code"] == "special_tokens"


def test_models_health_ready_info_metrics_and_docs(run: Run) -> None:
    async def talk(http: httpx.AsyncClient) -> dict[str, httpx.Response]:
        await http.post("/v1/score", json={"items": [{"prompt": "a", "completion": "b"}]})
        paths = ("/v1/models", "/health", "/ready", "/info", "/metrics", "/docs", "/openapi.json", "/nowhere")
        return {path: await http.get(path) for path in paths}

    got = run(talk)
    assert [r.status_code for r in got.values()] == [200] * 7 + [404]
    assert "begin with /compat/NAME" in got["/nowhere"].json()["error"]["message"]
    models = {row["id"]: row for row in got["/v1/models"].json()["data"]}
    assert {name: row["kind"] for name, row in models.items()} == {
        "pref": "preference", "abs": "absolute", "enc": "preference", "mix": "blend", "mix_std": "blend",
    }  # fmt: skip
    assert [name for name, row in models.items() if row["default"]] == ["mix"]
    described = {name: row["description"] for name, row in models.items() if "description" in row}
    assert described == {"mix": "a quarter and three quarters"}
    info = got["/info"].json()
    assert info["api_version"] == "1"
    assert info["limits"]["max_items"] == 64
    assert info["signals"]["abs"]["score_position"] == "last_token"
    assert 'assay_items_total{signal="pref"} 1.0' in got["/metrics"].text
    assert 'assay_requests_total{route="/v1/score",status="200"} 1.0' in got["/metrics"].text
    assert got["/nowhere"].json()["error"]["request_id"]


@pytest.mark.parametrize(
    "header", [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "text/plain"}]
)
def test_a_body_without_the_json_header_is_refused_with_the_name_of_the_header(
    run: Run, header: dict[str, str]
) -> None:
    """As curl sends it with `-d` alone."""
    response = run(lambda http: http.post("/v1/score", content=b'{"items": []}', headers=header))
    assert response.status_code == 422
    assert response.json()["error"]["message"] == (
        "the body was not read as JSON: send the header `content-type: application/json`"
    )


def test_a_body_that_is_json_and_no_object_is_answered_without_a_word_on_headers(run: Run) -> None:
    error = post(run, "/v1/score", [1]).json()["error"]
    assert error["message"] == "must be a mapping of keys to values (a JSON object)"


def test_an_unknown_model_is_answered_with_the_served_ones(run: Run) -> None:
    error = post(run, "/v1/score", {"items": [], "model": "nope"}).json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == "neither a signal nor a blend; served are pref, abs, enc, mix, mix_std"
    error = post(run, "/v1/score", {"items": [], "weights": {"mix": 1.0}}).json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "weights.mix")
    assert error["message"] == "not a served signal; signals are pref, abs, enc"


def test_metrics_say_what_serves(run: Run) -> None:
    async def talk(http: httpx.AsyncClient) -> tuple[str, dict[str, Any]]:
        return (await http.get("/metrics")).text, (await http.get("/info")).json()

    text, info = run(talk)
    (build,) = [line for line in text.splitlines() if line.startswith("assay_build_info{")]
    assert f'fingerprint="{info["fingerprint"]}"' in build
    assert f'version="{info["version"]}"' in build
    assert "\nprocess_resident_memory_bytes " in text


def test_requests_are_logged_without_their_text(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    item = {"prompt": "a secret question", "completion": "a secret answer", "id": "a secret id"}
    with caplog.at_level("INFO", "assay.access"):
        post(run, "/v1/score", {"items": [item, item]}, **{"x-request-id": "mine"})
    (record,) = [record for record in caplog.records if record.name == "assay.access"]
    fields = vars(record)["fields"]
    assert fields | {"ms": 0} == {
        "method": "POST", "route": "/v1/score", "status": 200, "ms": 0, "request_id": "mine", "items": 2,
    }  # fmt: skip
    assert "secret" not in str(fields) + record.getMessage()


def test_request_ids_are_echoed_if_plain_and_made_if_not(run: Run) -> None:
    assert (
        post(run, "/v1/score", {"items": []}, **{"x-request-id": "run-7.step_3"}).headers["x-request-id"]
        == "run-7.step_3"
    )
    made = post(run, "/v1/score", {"items": []}, **{"x-request-id": "a b" * 100}).headers["x-request-id"]
    assert made.isalnum()


def test_a_poisoned_head_gives_item_errors_and_not_ready(tiny: dict[str, Any]) -> None:
    """Trap 13: never 0, never a 200 with null; the healthy signal still answers."""
    app = create_app(tiny["settings"])
    model = app.state.scorer.registry.signals["pref"].model
    with torch.no_grad():
        model._signals["pref"].head.weight.fill_(float("nan"))

    async def talk() -> tuple[dict[str, Any], dict[str, Any], httpx.Response, str]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://assay") as http,
        ):
            item = {"prompt": "a", "completion": "b"}
            bad = (await http.post("/v1/score", json={"items": [item]})).json()
            good = (await http.post("/v1/score", json={"items": [item], "model": "abs"})).json()
            compared = await http.post("/v1/compare", json={"prompt": "a", "a": "b", "b": "c"})
            return bad, good, compared, (await http.get("/metrics")).text

    bad, good, compared, metrics = asyncio.run(talk())
    assert bad["data"][0]["error"]["code"] == "not_finite"
    assert "score" in good["data"][0]
    assert (compared.status_code, compared.json()["error"]["code"]) == (500, "not_finite")
    assert 'assay_not_finite_total{signal="pref"}' in metrics
    json.dumps(bad, allow_nan=False)
