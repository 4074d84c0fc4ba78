"""The bridge for verl, called as `RewardLoopWorker` calls a reward manager (verl 0.9.1)."""

import asyncio
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from assay_client import InvalidInput, ItemFailed, RewardClient
from assay_client.integrations.verl import AssayRewardManager, compute_score
from tests.checkpoints import decoder_tokenizer

TOKENIZER = decoder_tokenizer()
PROMPT = [{"role": "user", "content": "say hi"}]


class Proto:
    """A `DataProto` of rows: items by number, slices by range, as `verl/protocol.py` has them."""

    def __init__(self, rows: list[SimpleNamespace]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> Any:
        return Proto(self.rows[index]) if isinstance(index, slice) else self.rows[index]


def row(text: str, *, width: int = 24, prompt: Any = PROMPT) -> SimpleNamespace:
    """One row: prompts are padded on the left, responses on the right."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    response = torch.full((width,), TOKENIZER.pad_token_id)
    response[: len(ids)] = torch.tensor(ids)
    mask = torch.cat([torch.tensor([0, 1, 1]), (torch.arange(width) < len(ids)).long()])
    messages = np.array(prompt, dtype=object)
    extra = {"data_source": "d", "reward_model": {"ground_truth": ""}, "raw_prompt": messages}
    return SimpleNamespace(batch={"responses": response, "attention_mask": mask}, non_tensor_batch=extra)


def make_manager(url: str, **options: Any) -> AssayRewardManager:
    class Reward(dict[str, Any]):
        """The part of OmegaConf's DictConfig that is read."""

    config = SimpleNamespace(reward=Reward(reward_kwargs={"url": url, **options}))
    # verl passes all of these by name: `load_reward_manager` and `RewardLoopWorker._init_reward_fn`
    return AssayRewardManager(
        config=config,
        tokenizer=TOKENIZER,
        compute_score=None,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )


def native(url: str, text: str, finish_reason: Any, model: str | None = None) -> Any:
    with RewardClient(url) as client:
        return client.score([(PROMPT, text, finish_reason)], model=model).data[0]


@pytest.mark.parametrize(("text", "finish_reason"), [("hello<|im_end|>", "stop"), ("hello", "length")])
def test_a_row_has_the_reward_of_its_messages_and_the_same_keys_always(url: str, text: str, finish_reason: str) -> None:
    manager = make_manager(url)
    answer = asyncio.run(manager.run_single(Proto([row("other<|im_end|>"), row(text)])))
    expected = native(url, "hello", finish_reason)
    assert answer["reward_score"] == expected.score
    assert answer["reward_extra_info"] == {
        "abs": expected.signals["abs"].logit,
        "pref": expected.signals["pref"].logit,
        "score": expected.score,
    }


def test_the_finish_reason_changes_the_reward(url: str) -> None:
    assert native(url, "hello", "stop").score != native(url, "hello", "length").score


def test_further_end_tokens_are_those_of_the_configuration(url: str) -> None:
    manager = make_manager(url, model="abs", eos_token_id=[TOKENIZER.eos_token_id, TOKENIZER.pad_token_id])
    answer = asyncio.run(manager.run_single(Proto([row("hello<|pad|>")])))
    assert answer["reward_score"] == native(url, "hello", "stop", "abs").score


def test_a_control_token_in_the_completion_is_not_dropped_but_refused(url: str) -> None:
    with pytest.raises(ItemFailed, match="control"):
        asyncio.run(make_manager(url).run_single(Proto([row("hi<|im_start|>there<|im_end|>")])))


def test_mistakes_of_the_configuration_are_named(url: str) -> None:
    bare = row("hi<|im_end|>")
    del bare.non_tensor_batch["raw_prompt"]
    with pytest.raises(InvalidInput, match=r"data\.return_raw_chat=True"):
        asyncio.run(make_manager(url).run_single(Proto([bare])))
    with pytest.raises(InvalidInput, match="`url`"):
        AssayRewardManager(SimpleNamespace(reward={}), TOKENIZER, None)


def call(**arguments: Any) -> Mapping[str, float]:
    """Call as `NaiveRewardManager` does, with `reward_kwargs` merged in by `get_custom_reward_fn`."""
    assert inspect.iscoroutinefunction(compute_score)
    defaults: dict[str, Any] = {"data_source": "d", "solution_str": "hello", "ground_truth": ""}
    return asyncio.run(compute_score(**defaults, **arguments))


def test_a_reward_function_takes_the_prompt_from_extra_info(url: str) -> None:
    prompt = np.array(PROMPT, dtype=object)
    expected = native(url, "hello", "stop")
    got = call(extra_info={"prompt": prompt, "num_turns": 2}, url=url)
    assert got["score"] == expected.score
    assert sorted(got) == ["abs", "pref", "score"]
    for extra_info in (None, {}, {"prompt": None}):
        with pytest.raises(InvalidInput, match="AssayRewardManager"):
            call(extra_info=extra_info, url=url)
