"""Give verl a reward manager and a reward function that score over HTTP.

Source: https://github.com/verl-project/verl, `verl/experimental/reward_loop` (0.9.1). verl has no value for a missing
reward, so that a completion that cannot be scored raises an error.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import read_finish_reason, read_token_ids
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions
from assay_client.integrations._single import read_option, read_parts, score_single_async


class AssayRewardManager:
    """A reward manager that scores the messages of a row with the policy's completion.

    It reads `reward.reward_kwargs` of verl's configuration: `url`, and optionally `model`, and `eos_token_id` where the
    policy has more end tokens than its tokenizer names.

    Args:
        config: verl's configuration.
        tokenizer: the policy's tokenizer.
        compute_score: verl's reward function, which is not used.
        reward_router_address: the address of verl's own reward model, which is not used.
        reward_model_tokenizer: the tokenizer of verl's own reward model, which is not used.

    Raises:
        InvalidInput: `url` is missing.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: object,
        reward_router_address: str | None = None,
        reward_model_tokenizer: object = None,
    ) -> None:
        options = config.reward.get("reward_kwargs") or {}
        self._scorer = build_scorer(read_option(options, "url"), options.get("model"))
        self._tokenizer = tokenizer
        ids = options.get("eos_token_id", tokenizer.eos_token_id)
        self._eos_token_ids = read_token_ids(ids if isinstance(ids, int) else [*ids])

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of the last sequence of `data`, and the logit of each signal beside it.

        Args:
            data: a `DataProto` with `raw_prompt`, `responses` and `attention_mask`.

        Raises:
            InvalidInput: the row has no `raw_prompt`.
            ItemFailed: the completion cannot be scored.
            AssayError: the request failed, or the model is no longer that of the first reward.
        """
        row = data[len(data) - 1]
        if "raw_prompt" not in row.non_tensor_batch:
            raise InvalidInput("the row has no `raw_prompt`; set `data.return_raw_chat=True`")
        responses = row.batch["responses"]
        length = int(row.batch["attention_mask"][-responses.shape[-1] :].sum())
        ids = responses[:length].tolist()
        finish_reason = read_finish_reason(ids, self._eos_token_ids)
        # Only the end token is removed: a control token inside the text must not disappear from what is scored.
        text = self._tokenizer.decode(ids[:-1] if finish_reason == "stop" else ids, skip_special_tokens=False)
        prompt = read_messages(row.non_tensor_batch["raw_prompt"])
        score = await score_single_async(self._scorer, prompt, text, finish_reason)
        return {"reward_score": score.score, "reward_extra_info": {**read_parts(score), "score": score.score}}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Any:
        """Return the scores as the tensor that verl trains on, by verl's own function."""
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

        return RewardManagerBase.assemble_rm_scores(data, scores)


async def compute_score(
    *,
    solution_str: str,
    extra_info: Mapping[str, Any] | None = None,
    url: str,
    model: str | None = None,
    prompt_key: str = "prompt",
    **_: object,
) -> dict[str, float]:
    """Return the score of a completion, and the logit of each signal, for `custom_reward_function`.

    Prefer `AssayRewardManager`: verl gives a reward function neither the prompt nor the token ids. So the prompt must
    be a column of `extra_info`, and every completion counts as finished.

    Args:
        solution_str: the completion, without special tokens.
        extra_info: columns of the data set; `prompt_key` names the one that holds the prompt.
        url: the address of the service.
        model: the signal or blend to score by; the server's default if None.
        prompt_key: the name of the prompt in `extra_info`, as text or as messages.

    Raises:
        InvalidInput: `extra_info` has no prompt.
        ItemFailed: the completion cannot be scored.
        AssayError: the request failed.
    """
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise InvalidInput(
            f"`extra_info` has no `{prompt_key}`, and verl gives a reward function no prompt; add that column to the "
            "data set, or use AssayRewardManager"
        )
    score = await score_single_async(build_scorer(url, model), read_messages(prompt), solution_str)
    return {**read_parts(score), "score": score.score}


@lru_cache
def build_scorer(url: str, model: str | None) -> AsyncScorer:
    """Return the scorer of this process for a service and a model."""
    return AsyncScorer(AsyncRewardClient(url), ScoreOptions(model))


def read_messages(prompt: Any) -> str | Sequence[Any]:
    """Return a prompt as text or as a list; columns of parquet files are arrays."""
    return prompt if isinstance(prompt, str) else list(prompt)
