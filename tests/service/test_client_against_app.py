"""The real client against the real application."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from assay_client.client import AsyncRewardClient
from assay_client.errors import ServerError
from assay_client.results import RenderedItem
from assay_client.types import Score, ScoreFailure
from assay_service.api import answers
from assay_service.api.app import create_app


def talk_to(tiny: dict[str, Any], talk: Callable[[AsyncRewardClient], Awaitable[Any]], **client: Any) -> Any:
    async def inner() -> Any:
        app = create_app(tiny["settings"])
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncRewardClient("http://assay", transport=transport, **client) as subject,
        ):
            return await talk(subject)

    return asyncio.run(inner())


def test_a_thousand_concurrent_items_keep_identity_and_order(tiny: dict[str, Any]) -> None:
    """Trap 15: every item's logits are those it has alone, whatever it was batched with."""
    texts = [f"bread {i} " + "flour " * (i % 7) for i in range(1000)]

    async def talk(client: AsyncRewardClient) -> tuple[Any, Any]:
        many = asyncio.gather(*(client.score([("bake?", text)]) for text in texts[:500]))
        return await client.score([("bake?", text) for text in texts], model="mix"), await many

    together, alone = talk_to(tiny, talk, chunk_size=20, max_concurrency=50)
    assert len({round(score, 6) for score in together.scores()}) > 900
    assert [row.index for row in together.data] == list(range(1000))
    for row, single in zip(together.data, alone, strict=False):
        assert row.signals["pref"].logit == pytest.approx(single.data[0].signals["pref"].logit, abs=1e-5)
        assert row.score == pytest.approx(single.data[0].score, abs=1e-5)


def test_every_method_reads_the_real_answers(tiny: dict[str, Any]) -> None:
    async def talk(client: AsyncRewardClient) -> None:
        assert await client.ready()
        result = await client.score([("hi", "yes"), {"prompt": "hi", "completion": "<|im_end|>", "id": "bad"}])
        assert isinstance(result.data[0], Score)
        assert [failure.id for failure in result.failures] == ["bad"]
        ranking = await client.rank("hi", ["yes", "no"], weights={"pref": 1.0})
        assert ranking.results[0].score >= ranking.results[1].score
        rendered = await client.render([("hi", "yes", "stop"), ("hi", "<|im_end|>")])
        first, second = rendered.data
        assert isinstance(first, RenderedItem)
        assert set(first.signals) == {"pref", "abs", "enc"}
        one = first.signals["pref"]
        assert "yes" in one.text
        assert one.score_policy == "last_token"
        assert (one.score_start, one.score_end) == (len(one.ids) - 1, len(one.ids))
        assert isinstance(second, ScoreFailure)
        assert second.error.code == "special_tokens"
        comparison = await client.compare("hi", "yes", "no")
        assert set(comparison.signals) == {"pref", "abs", "enc"}
        assert {card.id for card in await client.models()} == {"pref", "abs", "enc", "mix", "mix_std"}
        assert (await client.info())["api_version"] == "1"
        assert (await client.score([])).data == ()
        with pytest.raises(ServerError) as caught:
            await client.score([("a", "b")], model="nope")
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")

    talk_to(tiny, talk)


def test_messages_of_an_sdk_score_as_plain_ones(tiny: dict[str, Any]) -> None:
    async def talk(client: AsyncRewardClient) -> None:
        written = {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": None}
        reply = {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None}
        sent = await client.score([{"messages": [written, reply]}, ("hi", "yes")], model="abs")
        assert len(set(sent.scores())) == 1

    talk_to(tiny, talk)


def test_comparisons_and_renderings_of_one_model(tiny: dict[str, Any]) -> None:
    async def talk(client: AsyncRewardClient) -> None:
        comparison = await client.compare("hi", "yes", "no")
        by_abs = await client.compare("hi", "yes", "no", model="abs")
        assert (list(by_abs.signals), by_abs.blends) == (["abs"], {})
        assert by_abs.signals["abs"] == comparison.signals["abs"]
        mix = await client.compare("hi", "yes", "no", model="mix")
        assert (set(mix.signals), mix.blends) == ({"pref", "abs"}, {"mix": comparison.blends["mix"]})
        assert mix.provenance.fingerprint == (await client.score([("hi", "yes")], model="mix")).fingerprint
        (shown,) = (await client.render([("hi", "yes")], model="mix")).data
        assert isinstance(shown, RenderedItem)
        assert set(shown.signals) == {"pref", "abs"}
        with pytest.raises(ServerError, match="served are pref, abs, enc, mix, mix_std"):
            await client.compare("hi", "yes", "no", model="nope")

    talk_to(tiny, talk)


def test_the_two_sides_name_the_same_fields() -> None:
    """Wire types are pydantic in the service and dataclasses in the client on purpose; here they are held equal."""
    from dataclasses import fields  # noqa: PLC0415

    from assay_client import provenance, types  # noqa: PLC0415

    pairs: list[tuple[type[BaseModel], Any]] = [
        (answers.SignalValue, types.SignalValue),
        (answers.ErrorDetail, types.ItemError),
        (answers.SignalProvenance, provenance.SignalProvenance),
        (answers.PresetInfo, provenance.Preset),
        (answers.BlendInfo, provenance.Blend),
    ]
    for wire, own in pairs:
        assert set(wire.model_fields) == {field.name for field in fields(own)}
