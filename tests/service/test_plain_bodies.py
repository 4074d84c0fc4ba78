"""Plain bodies, which are read without pydantic, mean what the schemas say, and get the same answers."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assay_service.api import answers
from assay_service.api.app import create_app
from assay_service.api.body import read_strict_json
from assay_service.api.messages import build_completion_items
from assay_service.api.plain_bodies import PlainBody, read_rank, read_score
from assay_service.api.schemas import RankCompletion, RankRequest, ScoreRequest
from assay_service.api.token_ids import read_items
from assay_service.errors import ServingError

PLAIN, SAME = "application/json", "application/same+json"  # only the first is read without pydantic
READ, ANSWERED = (
    settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=count)
    for count in (600, 120)
)


class Raw(str):
    """A part of a JSON text, as it is."""

    __slots__ = ()


def write(value: Any, *, ascii_only: bool) -> str:
    """Write a value as JSON; an object is a tuple of pairs, so that it can have a key twice."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, tuple):
        pairs = (f"{write(k, ascii_only=ascii_only)}: {write(v, ascii_only=ascii_only)}" for k, v in value)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(write(each, ascii_only=ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "\\", '\\"', '"', "a\\\\", "\x00", "\x7f", "é😀", "\ud800", "x" * 257, "</s>", "user"]),
    st.sampled_from([Raw('"\\u0061\\/"'), Raw('"\x01"'), Raw('"\\ud83d\\ude00"'), Raw('"\\x"'), Raw('"\n"')]),
)
numbers = st.sampled_from([Raw(n) for n in ("0", "-1", "1.5", "1e999", "NaN", "-Infinity", "1.0", "01", "9" * 5000)])
others = st.one_of(st.none(), st.booleans(), texts, numbers, st.just([]), st.just(()), st.just([["text"]]))
names = st.sampled_from(["mix", "pref", "nobody", "mix ", "mix\n", "", "x" * 65])
HOW = ["good"] * 30 + ["other", "missing", "twice", "unknown"]


@st.composite
def objects(draw: st.DrawFn, always: dict[str, Any], sometimes: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """An object with these fields, of which few are wrong, missing, twice or unknown, in any order."""
    pairs = []
    optional = {name: values for name, values in (sometimes or {}).items() if draw(st.integers(0, 3)) == 0}
    for name, values in (always | optional).items():
        how = draw(st.sampled_from(HOW))
        if how != "missing":
            pairs.append((name, draw(others if how == "other" else values)))
        if how == "twice":
            pairs.append((name, draw(values)))
        if how == "unknown":
            pairs.append((draw(texts), draw(others)))
    return tuple(draw(st.permutations(pairs)))


roles = st.sampled_from(["user", "assistant", "system", "tool", "", "r" * 65])
turns = st.lists(objects({"role": roles, "content": texts}), max_size=3)
dialogues = st.builds(
    lambda before, last: [*before, last], turns, objects({"role": st.just("assistant"), "content": texts})
)
reasons, ids = st.sampled_from(["stop", "length", "stop", "eos"]), texts
further: dict[str, Any] = {"finish_reason": reasons, "id": ids}
prompts = st.one_of(texts, texts, turns)
entries = st.one_of(
    objects({"prompt": prompts, "completion": texts}, further),
    objects({"messages": dialogues}, {**further, "prompt": prompts, "tools": st.just([])}),
)
truncations = st.sampled_from(["error", "prompt_left", "left"])
scores = objects(
    {"items": st.lists(entries, max_size=3)}, {"model": names, "truncation": truncations, "weights": others}
)
completions = st.lists(st.one_of(texts, objects({"completion": texts}, further)), max_size=3)
ranks = st.one_of(
    objects({"prompt": prompts, "completions": completions}, {"model": names, "top_n": numbers}),
    objects({"messages": turns, "completions": completions}, {"model": names, "prompt": prompts}),
)


@st.composite
def bodies(draw: st.DrawFn, values: Any) -> bytes:
    """A JSON text in bytes, of which few are damaged or have another encoding."""
    text = write(draw(values), ascii_only=draw(st.booleans()))
    body = text.encode("utf-8", "surrogatepass")
    place = draw(st.integers(0, len(body)))
    odd = draw(st.sampled_from([b"\xff", b"\x00", b'"', b"\\", b",", b"\x1f"]))
    wide = text.encode("utf-16", "surrogatepass")
    damaged = [body[:place], body[:place] + odd + body[place:], b"\xef\xbb\xbf" + body, wide, body + b"{}"]
    return draw(st.sampled_from([body] * 20 + [b" \t\r\n" + body + b"\n", *damaged]))


def read_by_schema(body: bytes, *, ranks: bool) -> PlainBody | None:
    """Return what a body asks for as the schemas read it; None for a wrong one."""
    try:
        value = read_strict_json(body)
        if not ranks:
            sent = ScoreRequest.model_validate(value)
            items = read_items(sent.items, sent.tokenizer_sha256, {})
            return PlainBody(items, [item.id for item in sent.items], sent.model, sent.truncation)  # type: ignore[arg-type]
        ranking = RankRequest.model_validate(value)
    except (ValueError, RecursionError, ValidationError, ServingError):
        return None
    completions = [RankCompletion(completion=c) if isinstance(c, str) else c for c in ranking.completions]
    prompt = (ranking.messages or []) if ranking.prompt is None else ranking.prompt
    built = build_completion_items(prompt, completions, "prompt")
    return PlainBody(built, [entry.id for entry in completions], ranking.model)  # type: ignore[arg-type]


@READ
@given(bodies(scores))
@example(b'{"items":[{"prompt":"a","completion":"b","completion":"c"}]}')
@example(b'{"items":[{"prompt":"a\\\\","completion":"\\""}],"model":"mix"}')
@example(b'{"items":[{"prompt":"a","completion":"b"}],"items":[]}')
def test_a_plain_body_of_scores_is_read_as_by_the_schema(body: bytes) -> None:
    if (plain := read_score(body)) is not None:
        assert plain == read_by_schema(body, ranks=False)


@READ
@given(bodies(ranks))
@example(b'{"prompt":"a","prompt":"b","completions":["c"]}')
def test_a_plain_body_of_a_ranking_is_read_as_by_the_schema(body: bytes) -> None:
    if (plain := read_rank(body)) is not None:
        assert plain == read_by_schema(body, ranks=True)


def test_bodies_of_the_common_forms_are_plain() -> None:
    dialogue = [{"role": "system", "content": "\u00e9\\"}, {"role": "user", "content": '"'}]
    items = [
        {"prompt": 'a"\\', "completion": "b", "id": "1", "finish_reason": "length"},
        {"messages": [*dialogue, {"role": "assistant", "content": "x"}]},
        {"prompt": dialogue, "completion": ""},
    ]
    score = {"items": items, "model": "mix", "truncation": "prompt_left"}
    rank = {"messages": dialogue, "completions": ["a", {"completion": "b", "id": "\\"}], "model": "mix"}
    for ascii_only in (True, False):
        for value, read, ranks in ((score, read_score, False), (rank, read_rank, True)):
            body = json.dumps(value, ensure_ascii=ascii_only).encode()
            plain = read(body)
            assert plain is not None
            assert plain == read_by_schema(body, ranks=ranks)


class Service:
    """A running application, which answers a body twice: read without pydantic, and by the schemas."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.runner = asyncio.Runner()

    def answer(self, path: str, body: bytes) -> list[httpx.Response]:
        async def post() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://assay") as http:
                heads = ({"content-type": kind, "x-request-id": "same"} for kind in (PLAIN, SAME))
                return [await http.post(path, content=body, headers=head) for head in heads]

        return self.runner.run(post())


@pytest.fixture(scope="module")
def service(tiny: dict[str, Any]) -> Iterator[Service]:
    app = create_app(tiny["settings"])
    served = Service(app)
    context = app.router.lifespan_context(app)
    with served.runner as runner:
        runner.run(context.__aenter__())
        yield served
        runner.run(context.__aexit__(None, None, None))


def check(service: Service, path: str, body: bytes, model: type[answers.Answer]) -> None:
    plain, same = service.answer(path, body)
    assert plain.status_code == same.status_code
    if plain.status_code != 200:
        assert plain.content == same.content
        return
    first, second = plain.json(), same.json()
    assert first.pop("id") != second.pop("id")
    assert abs(first.pop("created") - second.pop("created")) <= 60
    assert json.dumps(first) == json.dumps(second)  # with the order of the fields
    # Neither more nor less than the contract has, in its order.
    declared = model.model_validate_json(plain.content, strict=True).model_dump_json(exclude_unset=True)
    assert json.dumps(json.loads(declared)) == json.dumps(plain.json())


@ANSWERED
@given(bodies(scores))
@example(b'{"items":[{"prompt":"a","completion":"b","completion":"c"}]}')
@example(b'{"items":[{"prompt":"a","completion":"' + b"b" * 150_001 + b'"}]}')
@example(b'{"items":[' + b",".join([b'{"prompt":"a","completion":"b"}'] * 65) + b"]}")
@example(b"[" * 100_000)
def test_scores_have_the_same_answer_and_errors_the_same_bytes(service: Service, body: bytes) -> None:
    check(service, "/v1/score", body, answers.ScoreAnswer)


@ANSWERED
@given(bodies(ranks))
@example(b'{"prompt":"a","completions":["c","","d"]}')
def test_rankings_have_the_same_answer_and_errors_the_same_bytes(service: Service, body: bytes) -> None:
    check(service, "/v1/rank", body, answers.RankAnswer)
