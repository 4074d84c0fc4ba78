"""Chat completions as a reward: the openai SDK, and how NVIDIA's, CAMEL's and ms-swift's clients read the answer."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from assay_service import StartError, read_settings
from assay_service.compat_settings import ChatSettings
from tests.compat.conftest import Serve

MESSAGES: list[Any] = [
    {"role": "user", "content": "I am going to Paris, what should I see?"},
    {"role": "assistant", "content": "Ah, Paris, the City of Light!"},
]


def score(url: str, model: str) -> dict[str, Any]:
    body = {"model": model, "items": [{"messages": MESSAGES}]}
    return dict(httpx.post(f"{url}/v1/score", json=body).json()["data"][0])


def test_nvidias_example_reads_the_content(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/compat/chat/v1", api_key="none")
    answer = client.chat.completions.create(model="mix", messages=MESSAGES, stream=False)
    content = answer.choices[0].message.content
    assert content is not None
    pairs = {name: float(value) for name, value in (pair.split(":") for pair in content.split(","))}
    row = score(url, "mix")
    assert pairs == {
        "mix": row["score"],
        "pref": row["signals"]["pref"]["logit"],
        "abs": row["signals"]["abs"]["logit"],
    }
    assert answer.model == "mix"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0


def test_camel_reads_the_log_probabilities(url: str) -> None:
    async def call() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/compat/chat/v1", api_key="none") as client:
            return await client.chat.completions.create(model="abs", messages=MESSAGES, temperature=0.2, max_tokens=1)

    answer = asyncio.run(call())
    logprobs = answer.choices[0].logprobs
    assert {entry.token: entry.logprob for entry in logprobs.content} == {"abs": score(url, "abs")["score"]}


def test_ms_swift_reads_a_bare_number(serve: Serve) -> None:
    """`InferClient` of ms-swift takes the model from `/v1/models`; `recorded/` has its request."""
    url = serve(wires={"chat": {"model": "pref", "content": "{score}"}}).url
    model = httpx.get(f"{url}/compat/chat/v1/models").json()["data"][0]["id"]
    answer = httpx.post(f"{url}/compat/chat/v1/chat/completions", json={"model": model, "messages": MESSAGES}).json()
    assert answer["object"] != "error"
    assert float(answer["choices"][0]["message"]["content"]) == score(url, "pref")["score"]


def test_the_pair_may_have_a_name_of_its_own(serve: Serve) -> None:
    url = serve(wires={"chat": {"content": "reward:{score}"}}).url
    answer = httpx.post(f"{url}/compat/chat/v1/chat/completions", json={"messages": MESSAGES}).json()
    name, value = answer["choices"][0]["message"]["content"].split(":")
    assert (name, float(value)) == ("reward", score(url, "mix")["score"])


@pytest.mark.parametrize("form", ["", "reward", "{pairs!r}", "{score:.2f}", "{0}", "{mean}", "{", "{score} {}"])
def test_another_form_of_the_content_is_refused_at_start(form: str) -> None:
    with pytest.raises(ValueError, match=r"must have \{pairs\} or \{score\}"):
        ChatSettings(content=form)


def test_the_form_is_a_setting_of_this_wire_only(tmp_path: Any) -> None:
    text = "signals: {a: {base: b}}\ncompat: {wires: {%s: {content: '{score}'}}}\n"
    (tmp_path / "right.yaml").write_text(text % "chat")
    assert read_settings(tmp_path / "right.yaml").compat.get_wire("chat").content == "{score}"  # type: ignore[attr-defined]
    (tmp_path / "wrong.yaml").write_text(text % "vllm")
    with pytest.raises(StartError, match=r"compat.wires\.vllm\.content: unknown key"):
        read_settings(tmp_path / "wrong.yaml")
    (tmp_path / "unknown.yaml").write_text(text % "chatt")
    with pytest.raises(StartError, match=r"compat.wires\.chatt: unknown key"):
        read_settings(tmp_path / "unknown.yaml")


def test_the_errors_of_the_openai_sdk(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/compat/chat/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as stream:
        client.chat.completions.create(model="mix", messages=MESSAGES, stream=True)
    assert stream.value.param == "stream"
    with pytest.raises(openai.BadRequestError) as last:
        client.chat.completions.create(model="mix", messages=MESSAGES[:1])
    assert last.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as null:
        client.chat.completions.create(model="mix", messages=[MESSAGES[0], {"role": "assistant", "content": None}])
    assert (null.value.code, null.value.param) == ("invalid_message", "messages[1].content")
    assert next(model.id for model in client.models.list()) == "mix"
