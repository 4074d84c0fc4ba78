"""Blends through the whole service: negative weights, and penalties on long completions."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from assay_client import (
    AppTransport,
    AsyncRewardClient,
    Blend,
    Item,
    LengthPenalty,
    RewardClient,
    Score,
    ScoreResult,
)
from assay_client import _show as show
from assay_client._answers import encode_comparison
from assay_service import create_app
from assay_service.errors import StartError
from assay_service.resolve import read_resolved
from assay_service.settings import Settings, parse
from assay_training.config.rollout import Reward
from assay_training.rollout.rewards import identify_service
from tests.service.test_configuration import model


def list_scores(result: ScoreResult) -> list[Score]:
    """The rows of a result that has no failures."""
    rows = [row for row in result.data if isinstance(row, Score)]
    assert len(rows) == len(result.data)
    return rows


ITEMS = [("hi", "yes"), ("hi", "no, wait and bake it"), ("bake?", "bread bread bread")]
BLENDS = """
blends:
  safe: {weights: {pref: 1, abs: -0.5}}
  cost: {weights: {abs: -2}, standardise: manifest}
  short: {weights: {pref: 1, abs: -0.5}, length_penalty: {per_token: 0.25}}
  short_std: {weights: {abs: -2}, standardise: manifest, length_penalty: {per_token: 0.25, signal: abs}}
  short_mixed: {weights: {pref: 1, enc: 1}, length_penalty: {per_token: 0.25, signal: enc}}
default: safe
"""


@pytest.fixture
def app(tiny: dict[str, Any]) -> FastAPI:
    raw = yaml.safe_load((tiny["root"] / "service.yaml").read_text()) | yaml.safe_load(BLENDS)
    settings = parse(raw, tiny["root"]).settings
    assert settings is not None
    return create_app(settings)


@pytest.fixture
def talk(app: FastAPI) -> Callable[[Callable[[AsyncRewardClient], Awaitable[Any]]], Any]:
    def run(work: Callable[[AsyncRewardClient], Awaitable[Any]]) -> Any:
        async def inner() -> Any:
            async with (
                app.router.lifespan_context(app),
                AsyncRewardClient("http://assay", transport=httpx.ASGITransport(app)) as client,
            ):
                return await work(client)

        return asyncio.run(inner())

    return run


Talk = Callable[[Callable[[AsyncRewardClient], Awaitable[Any]]], Any]


def test_a_negative_weight_counts_against_a_completion_in_scores_ranks_and_margins(talk: Talk) -> None:
    async def work(client: AsyncRewardClient) -> None:
        plain = await client.score(ITEMS, model="pref"), await client.score(ITEMS, model="abs")
        logits = list(zip(*(result.scores() for result in plain), strict=True))
        safe = await client.score(ITEMS, model="safe")
        assert safe.scores() == [pref - 0.5 * absolute for pref, absolute in logits]
        assert safe.provenance.blend == Blend("safe", {"pref": 1.0, "abs": -0.5}, "none")
        # The moments of `abs` are 1.0 and 2.0 (conftest.py).
        cost = await client.score(ITEMS, model="cost")
        assert cost.scores() == pytest.approx([-2 * (absolute - 1.0) / 2.0 for _, absolute in logits], abs=1e-12)
        assert (await client.score(ITEMS, weights={"pref": 1, "abs": -0.5})).scores() == safe.scores()
        texts = ["yes", "no", "bread bread", "wait"]
        up, down = [await client.rank("hi", texts, weights={"abs": weight}) for weight in (2.0, -2.0)]
        assert [row.index for row in down.results] == [row.index for row in up.results][::-1]
        assert [row.margin for row in down.results[:-1]] == [row.margin for row in up.results[:-1]][::-1]
        assert all(row.margin is not None and row.margin > 0 for row in down.results[:-1])
        compared = await client.compare("hi", "yes", "no")
        margins = {name: signal.margin for name, signal in compared.signals.items()}
        assert compared.blends["safe"] == pytest.approx(margins["pref"] - 0.5 * margins["abs"], abs=1e-12)
        assert compared.blends["cost"] == pytest.approx(-margins["abs"], abs=1e-12)

    talk(work)


def test_the_sign_of_a_weight_is_part_of_the_fingerprint(talk: Talk) -> None:
    async def work(client: AsyncRewardClient) -> list[str]:
        rules: list[dict[str, float]] = [{"pref": 1, "abs": 0.5}, {"pref": 1, "abs": -0.5}, {"abs": -0.5, "pref": 1}]
        return [(await client.score([], weights=weights)).fingerprint for weights in rules]

    plus, minus, reordered = talk(work)
    assert plus != minus == reordered


def test_a_length_penalty_is_subtracted_for_each_token_that_the_answer_counts(talk: Talk) -> None:
    async def work(client: AsyncRewardClient) -> None:
        for penalised, plain, signal in [("short", "safe", "abs"), ("short_std", "cost", "abs")]:
            with_it, without = [await client.score(ITEMS, model=name) for name in (penalised, plain)]
            tokens = [row.signals[signal].completion_tokens for row in list_scores(without)]
            assert len(set(tokens)) > 1
            expected = [score - 0.25 * count for score, count in zip(without.scores(), tokens, strict=True)]
            assert with_it.scores() == pytest.approx(expected, abs=1e-12)
            assert [row.signals for row in list_scores(with_it)] == [row.signals for row in list_scores(without)]
            assert with_it.provenance.blend is not None
            assert with_it.provenance.blend.length_penalty == LengthPenalty(0.25, signal)
            assert with_it.fingerprint != without.fingerprint
        mixed = await client.score(ITEMS, model="short_mixed")
        counted = []
        for row in list_scores(mixed):
            counts = {name: value.completion_tokens for name, value in row.signals.items()}
            counted.append((counts["pref"], counts["enc"]))
            logits = sum(float(value.logit) for value in row.signals.values())
            assert row.score == pytest.approx(logits - 0.25 * counts["enc"], abs=1e-12)
        assert any(pref != enc for pref, enc in counted)

    talk(work)


def test_the_end_of_turn_is_a_token_of_the_penalty_unless_the_completion_was_cut_off(talk: Talk) -> None:
    async def work(client: AsyncRewardClient) -> None:
        items = [Item(prompt="hi", completion="yes", finish_reason=ended) for ended in ("stop", "length")]
        rows = list_scores(await client.score(items, model="short"))
        plain = list_scores(await client.score(items, model="safe"))
        # "yes" is three tokens; `<|im_end|>` and the line break behind it are two.
        assert [row.signals["pref"].completion_tokens for row in rows] == [5, 3]
        assert [p.score - s.score for p, s in zip(plain, rows, strict=True)] == pytest.approx([1.25, 0.75], abs=1e-12)

    talk(work)


def test_a_length_penalty_is_in_models_ranks_and_comparisons(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(client: AsyncRewardClient) -> Any:
        cards = {card.id: card.details for card in await client.models()}
        assert cards["short"]["length_penalty"] == {"per_token": 0.25, "signal": "abs"}
        assert "length_penalty" not in cards["safe"]
        texts = ["yes", "bread bread bread bread bread bread bread bread"]
        ranked = await client.rank("hi", texts, model="short")
        scored = await client.score([("hi", text) for text in texts], model="short")
        assert {row.index: row.score for row in ranked.results} == dict(enumerate(scored.scores()))
        compared = await client.compare("hi", *texts)
        assert compared.blends["short"] == ranked.results[0].score - ranked.results[1].score
        assert compared.blends["short"] - compared.blends["safe"] == pytest.approx(0.25 * 7)
        assert set(compared.length_penalties) == {"short", "short_std", "short_mixed"}
        return compared

    show.show_comparison(talk(work))
    lines = capsys.readouterr().out
    assert "short (blend, -0.25 per token of abs)" in lines
    assert "safe (blend) " in lines


def test_a_run_prints_the_whole_rule_that_it_trains_on(app: FastAPI) -> None:
    with RewardClient("http://assay", transport=AppTransport(app)) as client:
        (line, *_) = identify_service(client, Reward(model="short"))
        assert line.startswith(
            "rewards: short = 1 pref - 0.5 abs, minus 0.25 per completion token of abs; fingerprint "
        )
        (line, *_) = identify_service(client, Reward(weights={"pref": -1.0, "abs": 2.0}))
        assert line.startswith("rewards: weights of the run = -1 pref + 2 abs; fingerprint ")


def test_a_comparison_is_written_as_the_server_wrote_it(app: FastAPI, talk: Talk) -> None:
    async def work(client: AsyncRewardClient) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://assay") as http:
            body = (await http.post("/v1/compare", json={"prompt": "hi", "a": "yes", "b": "no"})).json()
        del body["id"], body["created"]
        assert encode_comparison(await client.compare("hi", "yes", "no")) == body
        assert body["blends"]["short"]["length_penalty"] == {"per_token": 0.25, "signal": "abs"}
        assert set(body["blends"]["safe"]) == {"margin"}

    talk(work)


def test_blends_without_a_penalty_keep_the_fingerprint_of_their_rule(app: FastAPI, talk: Talk) -> None:
    """The rule as it was hashed before penalties existed: weights and scaling, nothing else."""

    async def work(client: AsyncRewardClient) -> str:
        return (await client.score([], model="safe")).fingerprint

    found = talk(work)
    registry = app.state.scorer.registry
    described = {name: registry._described[name] for name in ("abs", "pref")}
    rule = {"weights": {"abs": -0.5, "pref": 1.0}, "standardise": "none"}
    text = json.dumps({"signals": described, "blend": rule, **registry._libraries}, sort_keys=True)
    assert found == hashlib.sha256(text.encode()).hexdigest()


SIGNAL = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "score"}


def read(tmp_path: Path, other: dict[str, Any], penalty: Any, **weights: float) -> Settings:
    if not (tmp_path / "rm").exists():
        model(tmp_path / "rm")
    blend = {"weights": weights or {"b": 1, "a": 1}, "length_penalty": penalty}
    raw = {"signals": {"b": SIGNAL, "a": SIGNAL | other}, "blends": {"short": blend}, "default": "short"}
    return read_resolved(raw, tmp_path, "service.yaml")[0]


def problem(tmp_path: Path, other: dict[str, Any], penalty: Any, **weights: float) -> str:
    with pytest.raises(StartError) as caught:
        read(tmp_path, other, penalty, **weights)
    (line,) = caught.value.problems
    return line


def test_signals_that_count_alike_need_not_be_named(tmp_path: Path) -> None:
    settings = read(tmp_path, {"max_length": 100}, {"per_token": 0.01})
    blend = settings.blends["short"].build_blend("short")
    assert blend.length_penalty is not None
    assert (blend.length_penalty.per_token, blend.length_penalty.signal) == (0.01, "a")  # whatever their order
    model(tmp_path / "copy")
    read(tmp_path, {"base": "copy"}, {"per_token": 0.01})  # another directory with the same files


@pytest.mark.parametrize("other", ["tokenizer.json", "tokenizer_config.json", "template", "eos"])
def test_a_penalty_names_its_signal_where_tokenizers_templates_or_eos_differ(tmp_path: Path, other: str) -> None:
    directory = model(tmp_path / "other")
    changed: dict[str, Any] = {"base": "other"}
    if other == "tokenizer.json":
        (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    elif other == "tokenizer_config.json":
        (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    elif other == "template":
        (directory / "chat_template.jinja").write_text("{{ messages }} ")
    else:
        changed["eos"] = "append"
    assert problem(tmp_path, changed, {"per_token": 0.01}) == (
        "blends.short: length_penalty.signal: 'b' and 'a' do not have the same tokenizer, template and eos, so that "
        "they may count different numbers of tokens: declare one of b, a"
    )
    read(tmp_path, changed, {"per_token": 0.01, "signal": "a"})


@pytest.mark.parametrize(
    ("penalty", "line"),
    [
        ({"per_token": 0}, "blends.short.length_penalty.per_token: must be more than 0.0, not 0"),
        ({"per_token": -0.5}, "blends.short.length_penalty.per_token: must be more than 0.0, not -0.5"),
        ({"per_token": float("nan")}, "blends.short.length_penalty.per_token: must be a finite number, not nan"),
        ({"per_token": 1e7}, "blends.short.length_penalty.per_token: must be at most 1000000.0, not 10000000.0"),
        ({"signal": "a"}, "blends.short.length_penalty.per_token: is required"),
        (0.5, "blends.short.length_penalty: must be a mapping of keys to values (a JSON object), not 0.5"),
        (
            {"per_token": 1, "signals": "a"},
            "blends.short.length_penalty.signals: unknown key; did you mean `signal`? Keys are per_token, signal",
        ),
        (
            {"per_token": 1, "signal": "c"},
            "blends.short: length_penalty.signal: 'c' has no weight in this blend; name one that has",
        ),
    ],
)
def test_wrong_penalties_are_named(tmp_path: Path, penalty: Any, line: str) -> None:
    assert problem(tmp_path, {}, penalty) == line


@pytest.mark.parametrize(
    ("weight", "line"),
    [
        (-2e6, "blends.short.weights.a: must be at least -1000000.0, not -2000000.0"),
        (float("-inf"), "blends.short.weights.a: must be a finite number, not -inf"),
        (-0.0, "blends.short: at least one weight must not be zero"),
    ],
)
def test_weights_stay_finite_bounded_and_not_all_zero(tmp_path: Path, weight: float, line: str) -> None:
    assert problem(tmp_path, {}, None, a=weight) == line
