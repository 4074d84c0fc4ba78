"""Give NeMo-RL an environment that scores over HTTP.

Source: https://github.com/NVIDIA-NeMo/RL, `nemo_rl/environments` (7ea279a). `AssayEnvironment` is a Ray actor class; it
is made when it is first imported by name, so that this module needs neither Ray nor torch.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from assay_client.client import RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rendered import append_end, require_parts, score_rendered
from assay_client.integrations._rows import read_finish_reason, read_token_ids
from assay_client.integrations._service import read_service
from assay_client.integrations._single import read_end_tokens
from assay_client.types import FinishReason

Turn = Mapping[str, Any]


class RewardReader:
    """Scores message logs; the environment without its framework.

    NeMo-RL writes the rendered prompt into the messages' contents. The service reads it back: `compat.wires.openrlhf`
    of its configuration names the policy's template and the model.

    Args:
        config: `url` and the other options of `read_service`; `eos_token_id` and `end_token`, the policy's end tokens
            as ids and as texts, that of the template first; and `parts`, true for one reward per signal.

    Raises:
        InvalidInput: a value is missing or has another type.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._client = RewardClient(**read_service(config).to_arguments())
        tokens, ids = config.get("end_token", ""), config.get("eos_token_id", ())
        self._end_token = read_end_tokens(tokens if isinstance(tokens, str) else [*tokens])[0]
        self._eos_token_ids = read_token_ids(ids if isinstance(ids, int) else [*ids])
        self._parts = bool(config.get("parts", False))

    def score(self, logs: Sequence[Sequence[Turn]]) -> list[float] | dict[str, list[float]]:
        """Return the reward of each message log, or the logits of each signal by name.

        Raises:
            InvalidInput: a log does not end with the assistant's message, or its content is not text.
            AssayError: the request failed; one completion that cannot be scored fails the batch.
        """
        prompts = [_join(log[:-1]) for log in logs]
        queries = [prompt + self._build_completion(log) for prompt, log in zip(prompts, logs, strict=True)]
        scores = score_rendered(self._client, queries, prompts)
        return require_parts(scores) if self._parts else scores.rewards

    def _build_completion(self, log: Sequence[Turn]) -> str:
        if not log or log[-1]["role"] != "assistant":
            raise InvalidInput("a message log does not end with the assistant's message, so there is no completion")
        ids = [int(token) for token in log[-1]["token_ids"]]
        finish_reason: FinishReason = read_finish_reason(ids, self._eos_token_ids)
        # NeMo-RL decodes without special tokens; the ids say whether the turn ended.
        return append_end(_join(log[-1:]), finish_reason, self._end_token)


def _join(turns: Sequence[Turn]) -> str:
    contents = [turn["content"] for turn in turns]
    if not all(isinstance(content, str) for content in contents):
        raise InvalidInput("a message log has content that is not text; only text is scored")
    return "".join(contents)


@cache
def make_environment() -> Any:
    """Return the environment class, without the decorator of Ray."""
    import torch
    from nemo_rl.environments.interfaces import (
        EnvironmentInterface,
        EnvironmentReturn,
    )

    class Environment(EnvironmentInterface):  # type: ignore[misc]
        """An environment of one turn, whose reward is the score of a running service."""

        def __init__(self, config: Mapping[str, Any]) -> None:
            self._reader = RewardReader(config)

        def step(self, message_log_batch: list[Any], metadata: list[Any]) -> Any:
            """Return the rewards of a batch; see `RewardReader.score`."""
            rewards = self._reader.score(message_log_batch)
            size = len(message_log_batch)
            return EnvironmentReturn(
                observations=[{"role": "environment", "content": ""}] * size,
                metadata=metadata,
                next_stop_strings=[None] * size,
                rewards={name: torch.tensor(values) for name, values in rewards.items()}
                if isinstance(rewards, dict)
                else torch.tensor(rewards),
                terminateds=torch.ones(size, dtype=torch.bool),
                answers=[log[-1]["content"] for log in message_log_batch],
            )

        def global_post_process_and_metrics(self, batch: Any) -> Any:
            """Return the batch as it is, and no metrics."""
            return batch, {}

    return Environment


@cache
def _make_actor() -> Any:
    import ray

    return ray.remote(make_environment())


def __getattr__(name: str) -> Any:
    """Return `AssayEnvironment`, the name that `register_env` takes."""
    if name == "AssayEnvironment":
        return _make_actor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
