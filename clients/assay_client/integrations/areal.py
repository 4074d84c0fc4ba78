"""Give AReaL a reward function, and a workflow that awaits it, which score over HTTP.

Source: https://github.com/inclusionAI/AReaL, `areal/api/reward_api.py` and `areal/workflow/rlvr.py` (1.0.4). AReaL runs
a reward function in a small pool of processes. It makes a reward of 0 of a call that takes 15 seconds, in which the
wait for a process counts. It does the same with any `TimeoutError`. `AssayWorkflow` awaits the service instead, without
a pool. A rollout whose reward raises an error is rejected. `AssayWorkflow` is made when it is first imported by name.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput, TransportError
from assay_client.integrations._rendered import append_end, score_rendered, score_rendered_async
from assay_client.integrations._rows import Rows, build_rows, build_token_rows, read_end_tokens, split_end_token
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions, Scorer
from assay_client.integrations._service import Service, read_service
from assay_client.integrations._single import score_single, score_single_async

# AReaL's own limit is 15 s. The rest is for starting a process and reading the answer.
MAX_DEADLINE_S = 13.0


@dataclass(frozen=True)
class AssayReward:
    """A reward function that can be pickled; copies in one process share their connections.

    Attributes:
        service: the addresses and the API key of the service.
        end_tokens: the texts of the policy's end tokens, that of the template first.
        model: the signal or blend to score by; the server's default if None.
        deadline_s: the time limit of one call in AReaL's pool in seconds, with its retries.
        messages_key: the column of the data set that holds the prompt as messages.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`, with which token ids are scored.
    """

    service: Service
    end_tokens: tuple[str, ...]
    model: str | None = None
    deadline_s: float = 12.0
    messages_key: str = "messages"
    tokenizer_sha256: str | None = None

    def __call__(
        self,
        prompt: str,
        completions: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        /,  # a data set may have columns of these names
        **row: object,
    ) -> float:
        """Return the score of one completion.

        Args:
            prompt: the prompt as the policy's template renders it. It is read only if the row has no messages, and then
                by the template and the model that the service's `compat.wires.openrlhf` names.
            completions: the completion, decoded with special tokens.
            prompt_ids: the token ids of the prompt, which are scored if `tokenizer_sha256` is given.
            completion_ids: the token ids of the completion, as `prompt_ids`.
            row: the columns of the data set.

        Raises:
            ItemFailed: the completion cannot be scored.
            TransportError: the service did not answer in time.
            AssayError: the request failed otherwise.
        """
        scorer = _open(self.service, self._options, self.deadline_s)
        rows = self._build_rows(completions, prompt_ids, completion_ids, row)
        try:
            if rows is None:
                return score_rendered(scorer.client, [self._build_query(prompt, completions)], [prompt]).rewards[0]
            return score_single(scorer, rows).score
        except TimeoutError as error:
            late = TransportError(f"the service did not answer within {self.deadline_s:g} s: {error.args[0]}")
            late.request_id = getattr(error, "request_id", None)
            raise late from None

    async def score_async(
        self,
        prompt: str,
        completions: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        /,
        **row: object,
    ) -> float:
        """Return the score of one completion, in the event loop and without the time limit; see `__call__`."""
        scorer = _open_async(self.service, self._options)
        rows = self._build_rows(completions, prompt_ids, completion_ids, row)
        if rows is None:
            query = self._build_query(prompt, completions)
            return (await score_rendered_async(scorer.client, [query], [prompt])).rewards[0]
        return (await score_single_async(scorer, rows)).score

    @property
    def _options(self) -> ScoreOptions:
        return ScoreOptions(self.model, tokenizer_sha256=self.tokenizer_sha256)

    def _build_rows(
        self, completion: str, prompt_ids: Sequence[int], completion_ids: Sequence[int], row: Mapping[str, object]
    ) -> Rows | None:
        """Return the row that is scored; None if there are neither ids nor messages, so that the text is."""
        messages = row.get(self.messages_key)
        if self.tokenizer_sha256 is not None:
            return build_token_rows([prompt_ids], [completion_ids])
        if messages is None:
            return None
        text, finish_reason = split_end_token(completion, self.end_tokens)
        return build_rows([messages], [text], [finish_reason])

    def _build_query(self, prompt: str, completion: str) -> str:
        _, finish_reason = split_end_token(completion, self.end_tokens)
        return prompt + append_end(completion, finish_reason, self.end_tokens)


def make_reward_fn(
    url: str | Sequence[str],
    *,
    end_token: str | Collection[str],
    api_key_file: str | None = None,
    model: str | None = None,
    deadline_s: float = 12.0,
    messages_key: str = "messages",
    tokenizer_sha256: str | None = None,
) -> AssayReward:
    """Return a reward function for `AssayWorkflow(reward_fn=...)`.

    Args:
        url: the address of the service, or a list of addresses.
        end_token: the text of the policy's end token, such as "<|im_end|>", or all of them, that of the template first.
            A completion that ends otherwise was cut off.
        api_key_file: the path of a file with the API key, which is read now and pickled with the function.
        model: the signal or blend to score by; the server's default if None.
        deadline_s: the time limit of one call in AReaL's pool in seconds, at most 13: AReaL makes a 0 of one that takes
            15. `AssayWorkflow` has no such limit.
        messages_key: the column of the data set that holds the prompt as messages.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`. The token ids are then scored, and neither messages
            nor text are read.

    Raises:
        InvalidInput: `end_token` is empty, `deadline_s` is out of range, or another argument has another form.
    """
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidInput(f"`deadline_s` must be above 0 and at most {MAX_DEADLINE_S:g}, because AReaL waits 15 s")
    service = read_service({"url": url, "api_key_file": api_key_file})
    ScoreOptions(model, tokenizer_sha256=tokenizer_sha256)  # checked here, before it reaches another process
    return AssayReward(service, read_end_tokens(end_token), model, deadline_s, messages_key, tokenizer_sha256)


@lru_cache
def _open(service: Service, options: ScoreOptions, deadline_s: float) -> Scorer:
    return Scorer(RewardClient(**service.to_arguments(), timeout_s=deadline_s, deadline_s=deadline_s), options)


@lru_cache
def _open_async(service: Service, options: ScoreOptions) -> AsyncScorer:
    return AsyncScorer(AsyncRewardClient(**service.to_arguments()), options)


@cache
def make_workflow_class() -> Any:
    """Return the workflow class, a subclass of AReaL's `RLVRWorkflow` with the same arguments.

    Its `reward_fn` is what `make_reward_fn` returns, or the import path of that.
    """
    from areal.workflow.rlvr import RLVRWorkflow

    class AssayWorkflow(RLVRWorkflow):  # type: ignore[misc]
        """An `RLVRWorkflow` that awaits its rewards, where AReaL's own waits for a pool of processes."""

        @property
        def async_reward_fn(self) -> Any:
            """Return the coroutine function that `RLVRWorkflow` awaits for each reward."""
            return self._reward.score_async

        @async_reward_fn.setter
        def async_reward_fn(self, wrapper: Any) -> None:
            # `RLVRWorkflow` sets a wrapper with the pool: when it is made, or when it has imported the function.
            if not isinstance(wrapper.reward_fn, AssayReward):
                raise InvalidInput("`reward_fn` of `AssayWorkflow` must come from `make_reward_fn`")
            self._reward = wrapper.reward_fn

    return AssayWorkflow


def __getattr__(name: str) -> Any:
    """Return `AssayWorkflow`, the name that AReaL imports."""
    if name == "AssayWorkflow":
        return make_workflow_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
