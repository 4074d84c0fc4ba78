"""Items that were scored before are neither rendered nor queued again."""

import asyncio
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from assay_service.api.app import create_app
from assay_service.api.rendering_cache import RenderingCache, build_key
from assay_service.registry import Registry
from assay_service.scoring.item import Item

ITEMS = [{"prompt": "bake?", "completion": "bread " * n} for n in (1, 5, 20)]


def run(tiny: dict[str, Any], talk: Callable[[httpx.AsyncClient, Any], Awaitable[Any]], **limits: int) -> Any:
    """Talk to the application from its start to its shutdown."""
    settings = tiny["settings"]
    settings = settings.model_copy(update={"limits": settings.limits.model_copy(update=limits)})

    async def inner() -> Any:
        app = create_app(settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://assay") as http,
        ):
            return await talk(http, app)

    return asyncio.run(inner())


async def score(http: httpx.AsyncClient, *items: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/score", json={"items": list(items)})


def test_known_items_need_no_render_thread(tiny: dict[str, Any]) -> None:
    async def talk(http: httpx.AsyncClient, app: Any) -> None:
        first = await score(http, *ITEMS)
        app.state.scorer.close()
        again = await score(http, *ITEMS[::-1])
        assert again.json()["data"][0]["signals"] == first.json()["data"][2]["signals"]
        assert again.json()["provenance"] == first.json()["provenance"]
        assert "queue;dur=0.000, compute;dur=0.000" in again.headers["server-timing"]
        assert 'assay_lookups_total{result="hit"} 6.0' in (await http.get("/metrics")).text  # by two signals
        assert (await score(http, {"prompt": "new", "completion": "new"})).status_code == 500

    run(tiny, talk)


def test_nothing_is_kept_where_either_cache_is_off(tiny: dict[str, Any]) -> None:
    async def talk(http: httpx.AsyncClient, app: Any) -> tuple[Any, int]:
        first, again = await score(http, *ITEMS), await score(http, *ITEMS)
        assert first.json()["data"] == again.json()["data"]
        app.state.scorer.close()
        return first.json()["data"], (await score(http, ITEMS[0])).status_code

    rows, status = run(tiny, talk, rendering_cache_bytes=0)
    assert status == 500
    other, status = run(tiny, talk, cache_bytes=0)
    assert status == 200  # rendered before, and computed again
    assert rows == other


def test_known_items_obey_limits_and_the_end_of_the_service(tiny: dict[str, Any]) -> None:
    async def talk(http: httpx.AsyncClient, app: Any) -> None:
        counts = [(await score(http, item)).json()["data"][0]["signals"] for item in ITEMS[:2]]
        assert sum(v["prompt_tokens"] + v["completion_tokens"] for c in counts for v in c.values()) > 60
        assert (await score(http, *ITEMS[:2])).json()["error"]["code"] == "too_many_tokens"
        await asyncio.to_thread(app.state.scorer.engine.stop)
        assert (await score(http, ITEMS[0])).json()["error"]["code"] == "not_ready"

    run(tiny, talk, max_request_tokens=60)


@pytest.fixture(scope="module")
def registry(tiny: dict[str, Any]) -> Registry:
    found: Registry = create_app(tiny["settings"]).state.scorer.registry
    return found


def test_the_least_recently_used_is_removed_beyond_the_limit(registry: Registry) -> None:
    renderer = registry.signals["pref"].renderer
    key, other = build_key({"pref": renderer}, "error"), build_key({"pref": renderer}, "prompt_left")
    items = [Item.of("bake?", f"bread {n}") for n in range(3)]
    rendered = [{"pref": renderer.render(item)} for item in items]
    one = RenderingCache(10**6)
    one.put(key, items[0], rendered[0])
    cache = RenderingCache(int(one.size_bytes * 2.5))
    for item, renderings in zip(items[:2], rendered[:2], strict=True):
        cache.put(key, item, renderings)
    assert cache.get(key, Item.of("bake?", "bread 0")) is not None
    assert cache.get(other, items[0]) is None
    cache.put(key, items[2], rendered[2])
    assert [cache.get(key, item) is not None for item in items] == [True, False, True]


@pytest.mark.parametrize("words", [5, 50])
def test_the_size_is_that_of_the_memory(registry: Registry, words: int) -> None:
    draw, renderers = random.Random(0), {name: registry.signals[name].renderer for name in ("pref", "abs")}
    key, cache = build_key(renderers, "error"), RenderingCache(10**9)
    small = 0
    tracemalloc.start()
    try:
        for _ in range(300):
            text = " ".join(draw.choices(["bread", "bake", "the", "fox", "wait"], k=words)) + str(draw.random())
            item = Item.of(f"bake? {draw.random()}", text)
            once = {renderer: renderer.render(item) for renderer in renderers.values()}
            small += sum(token <= 256 for rendered in once.values() for token in rendered.sequence.ids)
            cache.put(key, item, {name: once[renderer] for name, renderer in renderers.items()})
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # CPython has numbers up to 256 once; all others take 32 bytes each, as most ids of large vocabularies do.
    assert size + 32 * small == pytest.approx(cache.size_bytes, rel=0.15)
