"""Give verl a reward manager and a reward function that score over HTTP.

Source: https://github.com/verl-project/verl, `verl/experimental/reward_loop` (0.9.1). verl has no value for a missing
reward, so that a completion that cannot be scored raises an error.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import Rows, build_rows, build_token_rows, read_finish_reason, read_token_ids
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions
from assay_client.integrations._service import Service, read_service
from assay_client.integrations._single import read_parts, score_single_async


class AssayRewardManager:
    """A reward manager that scores the messages of a row with the policy's completion.

    It reads `reward.reward_kwargs` of verl's configuration: `url` and the other options of `read_service`, and
    optionally `model`. It also reads `eos_token_id`, for a policy with more end tokens than its tokenizer names. With
    `tokenizer_sha256` the token ids are sent instead of text.

    Args:
        config: verl's configuration.
        tokenizer: the policy's tokenizer.
        compute_score: verl's reward function, which is not used.
        reward_router_address: the address of verl's own reward model, which is not used.
        reward_model_tokenizer: the tokenizer of verl's own reward model, which is not used.

    Raises:
        InvalidInput: `url` is missing, or an option has another form.
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
        self._scorer = build_scorer(read_service(options), options.get("model"), options.get("tokenizer_sha256"))
        self._tokenizer = tokenizer
        ids = options.get("eos_token_id", tokenizer.eos_token_id)
        self._eos_token_ids = read_token_ids(ids if isinstance(ids, int) else [*ids])

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of the last sequence of `data`, and the logit of each signal beside it.

        Args:
            data: a `DataProto` with `responses` and `attention_mask`, and `raw_prompt` or, for token ids, `prompts`.

        Raises:
            InvalidInput: the row has no `raw_prompt`.
            ItemFailed: the completion cannot be scored.
            AssayError: the request failed, or the model is no longer that of the first reward.
        """
        score = await score_single_async(self._scorer, self._build_row(data[len(data) - 1]))
        return {"reward_score": score.score, "reward_extra_info": {**read_parts(score), "score": score.score}}

    def _build_row(self, row: Any) -> Rows:
        responses, mask = row.batch["responses"], row.batch["attention_mask"]
        width = responses.shape[-1]
        ids = responses[: int(mask[-width:].sum())].tolist()
        if self._scorer.options.tokenizer_sha256 is not None:
            kept = zip(row.batch["prompts"].tolist(), mask[:-width].tolist(), strict=True)
            return build_token_rows([[token for token, counts in kept if counts]], [ids])
        if "raw_prompt" not in row.non_tensor_batch:
            raise InvalidInput("the row has no `raw_prompt`; set `data.return_raw_chat=True`")
        finish_reason = read_finish_reason(ids, self._eos_token_ids)
        # Only the end token is removed: a control token inside the text must not disappear from what is scored.
        text = self._tokenizer.decode(ids[:-1] if finish_reason == "stop" else ids, skip_special_tokens=False)
        return build_rows([read_messages(row.non_tensor_batch["raw_prompt"])], [text], [finish_reason])

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Any:
        """Return the scores as the tensor that verl trains on, by verl's own function."""
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

        return RewardManagerBase.assemble_rm_scores(data, scores)


async def compute_score(
    *,
    solution_str: str,
    extra_info: Mapping[str, Any] | None = None,
    url: str | Sequence[str],
    api_key_file: str | None = None,
    model: str | None = None,
    prompt_key: str = "prompt",
    **others: Any,
) -> dict[str, float]:
    """Return the score of a completion, and the logit of each signal, for `custom_reward_function`.

    Prefer `AssayRewardManager`: verl gives a reward function neither the prompt nor the token ids. So the prompt must
    be a column of `extra_info`, and every completion counts as finished.

    Args:
        solution_str: the completion, without special tokens.
        extra_info: columns of the data set; `prompt_key` names the one that holds the prompt.
        url: the address of the service, or a list of addresses.
        api_key_file: the path of a file with the API key.
        model: the signal or blend to score by; the server's default if None.
        prompt_key: the name of the prompt in `extra_info`, as text or as messages.
        others: further options of `read_service`; verl's other arguments are ignored.

    Raises:
        InvalidInput: `extra_info` has no prompt, or an option has another form.
        ItemFailed: the completion cannot be scored.
        AssayError: the request failed.
    """
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise InvalidInput(
            f"`extra_info` has no `{prompt_key}`, and verl gives a reward function no prompt; add that column to the "
            "data set, or use AssayRewardManager"
        )
    scorer = build_scorer(read_service({**others, "url": url, "api_key_file": api_key_file}), model)
    score = await score_single_async(scorer, build_rows([read_messages(prompt)], [solution_str], [None]))
    return {**read_parts(score), "score": score.score}


@lru_cache
def build_scorer(service: Service, model: str | None, tokenizer_sha256: str | None = None) -> AsyncScorer:
    """Return the scorer of this process for a service and a model; another key or address has another scorer."""
    options = ScoreOptions(model, tokenizer_sha256=tokenizer_sha256)
    return AsyncScorer(AsyncRewardClient(**service.to_arguments()), options)


def read_messages(prompt: Any) -> str | Sequence[Any]:
    """Return a prompt as text or as a list; columns of parquet files are arrays."""
    return prompt if isinstance(prompt, str) else list(prompt)
