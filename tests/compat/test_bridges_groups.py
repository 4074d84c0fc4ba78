"""Bridges that get texts or groups: OpenRLHF, ms-swift, slime and AReaL; each is called as its trainer calls it."""

import asyncio
import enum
import importlib.util
import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assay_client import InvalidInput, ItemFailed, ItemsFailed, RewardClient, ServerError
from assay_client.integrations.areal import make_reward_fn
from assay_client.integrations.ms_swift import make_async_orm, make_orm, make_signal_orms
from assay_client.integrations.openrlhf import make_reward_func
from assay_client.integrations.slime import make_rm
from tests.compat.conftest import Serve

PROMPT = [{"role": "user", "content": "say hi"}]
RENDERED = "<|im_start|>user\nsay hi<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


def native(url: str, *pairs: tuple[str, str], model: str | None = None) -> Any:
    with RewardClient(url) as client:
        items = [(PROMPT, text, finish_reason) for text, finish_reason in pairs]
        return client.score(items, model=model).data  # type: ignore[arg-type]


# OpenRLHF 0.11.2: a file with `reward_func`, called in a thread with lists of one item.


def test_openrlhf_loads_a_file_whose_function_returns_what_the_url_returns(url: str, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        f"from assay_client.integrations.openrlhf import make_reward_func\nreward_func = make_reward_func({url!r})\n"
    )
    spec = importlib.util.spec_from_file_location("reward_func", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = native(url, ("hello", "stop"), ("hello", "length"))
    for row, text in zip(rows, ("hello<|im_end|>", "hello"), strict=True):
        answer = asyncio.run(asyncio.to_thread(module.reward_func, [RENDERED + text], [RENDERED], ["label"]))
        assert answer["rewards"] == [row.score]
        assert answer["extra_logs"] == {name: [value.logit] for name, value in row.signals.items()}
        assert "scores" not in answer


def test_openrlhf_has_probabilities_for_an_absolute_signal_and_errors_for_failures(serve: Serve) -> None:
    reward_func = make_reward_func(serve(wires={"openrlhf": {"model": "abs"}}).url)
    answer = reward_func([RENDERED + "hello<|im_end|>"], [RENDERED], [None])
    assert 0 < answer["scores"][0] < 1
    with pytest.raises(ServerError) as raised:
        reward_func(["no template"], ["no"], [None])
    assert raised.value.code == "unreadable_text"


# ms-swift 4.6.0: `orms[name](args=args)`, then `f(completions, **columns)` with these columns.


def batch(*texts: str, reasons: list[str | None], run: int = 1) -> dict[str, Any]:
    return {
        "trainer_state": SimpleNamespace(global_step=1),
        "messages": [[*PROMPT, {"role": "assistant", "content": text}] for text in texts],
        "prompt_id": ["p"] * len(texts),
        "request_id": [f"{run}-{row}" for row in range(len(texts))],
        "finish_reason": reasons,
        "is_truncated": [reason == "length" for reason in reasons],
        "response_token_ids": [[[1, 2]]] * len(texts),
        "label": ["x"] * len(texts),
    }


BAD = {  # what cannot be scored: a control token, a text that was cut off before its first token, and two failures
    "bad<|im_start|>": "stop",
    "": "length",
    "aborted": "abort",
    "filtered": "content_filter",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_completion_without_a_score_ends_a_run_of_ms_swift_or_has_the_declared_floor(url: str, bad: str) -> None:
    """ms-swift's `compute_advantages` sums with `nansum`, so None would be a 0, above all negative scores."""
    texts = ["hello", bad, "hello", "hello"]
    columns = batch(*texts, reasons=["stop", BAD[bad], "length", "tool_calls"])
    stop, cut = (row.score for row in native(url, ("hello", "stop"), ("hello", "length")))
    for make in (make_orm, make_async_orm):
        assert call_orm(make(url, floor=-9.0), texts, columns) == [stop, -9.0, cut, stop]
        with pytest.raises(ItemsFailed, match="1 of 4 items failed; the first: item 1") as raised:
            call_orm(make(url), texts, columns)
        assert "floor=" in raised.value.__notes__[0]
    for orm in make_signal_orms(url, ["pref", "abs"]).values():
        with pytest.raises(ItemsFailed):
            call_orm(orm, texts, columns)
    for name, orm in make_signal_orms(url, ["pref", "abs"], floor=-9).items():
        [row] = native(url, ("hello", "stop"))
        assert call_orm(orm, texts, columns)[:2] == [row.signals[name].logit, -9]


@pytest.mark.parametrize("floor", [math.nan, -math.inf, True])
def test_a_floor_is_a_finite_number(url: str, floor: Any) -> None:
    with pytest.raises(InvalidInput, match="floor"):
        make_orm(url, floor=floor)


def call_orm(orm: Any, completions: list[str], columns: dict[str, Any]) -> Any:
    """Call a class as `compute_rewards_per_func` does: coroutines by `asyncio.run`, in another loop each time."""
    function = orm(args=None)
    if not inspect.iscoroutinefunction(type(function).__call__):
        return function(completions, **columns)
    return asyncio.run(gather(function, completions, columns))


async def gather(function: Any, completions: list[str], columns: dict[str, Any]) -> Any:
    return (await asyncio.gather(function(completions, **columns)))[0]


def test_ms_swift_signals_come_from_one_request(url: str) -> None:
    with RewardClient(url) as client:
        orms = make_signal_orms(client, ["pref", "abs"])
        columns = batch("hello", reasons=["stop"])
        [row] = native(url, ("hello", "stop"))
        assert orms["pref"](args=None)(["hello"], **columns) == [row.signals["pref"].logit]
        client.close()  # the second function does not ask
        assert orms["abs"](args=None)(["hello"], **columns) == [row.signals["abs"].logit]
    with pytest.raises(InvalidInput, match="messages"):
        make_orm(url)(args=None)(["hello"], label=["x"])


class Counted(RewardClient):
    """A client that counts the requests for scores."""

    calls = 0

    def score(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return super().score(*args, **kwargs)


@pytest.mark.parametrize("state", ["state", "no state"])
def test_ms_swift_signals_share_a_request_in_their_batch_only(url: str, state: str) -> None:
    """The trainers pass `trainer_state`, except Megatron on Ray; equal texts of a later rollout are asked again."""
    orms = make_signal_orms(Counted(url), ["pref", "abs"])
    Counted.calls = 0
    for run in (1, 2):
        columns = batch("hello", "no", reasons=["stop", "stop"], run=run)
        columns["trainer_state"] = SimpleNamespace(global_step=run) if state == "state" else None
        for name in ("pref", "abs") if run == 1 else ("abs", "pref"):
            rewards = orms[name](args=None)(["hello", "no"], **columns)
            assert rewards == [row.signals[name].logit for row in native(url, ("hello", "stop"), ("no", "stop"))]
        assert Counted.calls == run
    columns = {**batch("hello", reasons=["stop"]), "trainer_state": None, "request_id": [""]}  # neither is known
    for name in ("pref", "abs"):
        orms[name](args=None)(["hello"], **columns)
    assert Counted.calls == 4


def test_ms_swift_logs_each_reward_under_its_own_name(url: str) -> None:
    """It names a reward by its class: `resolve_reward_funcs` and `_prepare_rewards`."""
    classes: list[Any] = [
        make_orm(url),
        make_async_orm(url, model="mix"),
        *make_signal_orms(url, ["pref", "abs"]).values(),
    ]
    assert [cls(args=None).__class__.__name__ for cls in classes] == ["reward", "mix", "pref", "abs"]


# slime 624b824: `async f(args, sample)`, or `async f(args, samples)` with --group-rm.


class Status(enum.Enum):
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


def sample(prompt: Any, response: str, status: Status = Status.COMPLETED) -> SimpleNamespace:
    return SimpleNamespace(prompt=prompt, response=response, status=status, label="x", metadata={}, tokens=[])


@pytest.mark.parametrize("prompt", [PROMPT, RENDERED])
def test_slime_scores_a_sample_or_a_group(url: str, prompt: Any) -> None:
    rm = make_rm(url, end_token=END)
    stop, cut = (row.score for row in native(url, ("hello", "stop"), ("hello", "length")))
    samples = [
        sample(prompt, "hello<|im_end|>"),
        sample(prompt, "hello"),  # ended, with --rollout-skip-special-tokens
        sample(prompt, "hello", Status.TRUNCATED),
    ]
    assert asyncio.run(rm(SimpleNamespace(), samples)) == [stop, stop, cut]
    assert asyncio.run(rm(SimpleNamespace(), samples[2])) == cut
    parts = asyncio.run(make_rm(url, end_token=END, parts=True)(SimpleNamespace(), samples[:1]))
    assert sorted(parts[0]) == ["abs", "pref", "reward"]
    assert parts[0]["reward"] == stop


# Policies have several end tokens (Qwen 2.5: <|im_end|> and <|endoftext|>); the template prints only one of them.
ENDS = [END, "<|endoftext|>"]


@pytest.mark.parametrize("prompt", [PROMPT, RENDERED])
@pytest.mark.parametrize("text", ["hello<|im_end|>", "hello<|endoftext|>"])
def test_a_completion_has_one_score_whatever_token_ends_it(url: str, prompt: Any, text: str) -> None:
    [row] = native(url, ("hello", "stop"))
    assert asyncio.run(make_rm(url, end_token=ENDS)(SimpleNamespace(), sample(prompt, text))) == row.score
    columns = {"messages": PROMPT} if prompt is PROMPT else {}
    assert make_reward_fn(url, end_token=ENDS)(RENDERED, text, [1], [2], **columns) == row.score


def test_slime_has_errors_for_failures(url: str) -> None:
    rm = make_rm(url, end_token=END)
    with pytest.raises(ItemFailed):
        asyncio.run(rm(SimpleNamespace(), [sample(PROMPT, "hi"), sample(PROMPT, "bad<|im_start|>")]))
    with pytest.raises(InvalidInput, match="aborted"):
        asyncio.run(rm(SimpleNamespace(), sample(PROMPT, "hi", Status.ABORTED)))
    with pytest.raises(InvalidInput, match="different requests"):
        asyncio.run(rm(SimpleNamespace(), [sample(PROMPT, "hi"), sample(RENDERED, "hi")]))
    with pytest.raises(InvalidInput, match="end_token"):
        make_rm(url, end_token="")
