"""Give NeMo-RL an environment that scores over HTTP.

Source: https://github.com/NVIDIA-NeMo/RL, `nemo_rl/experience/rollouts.py` and `nemo_rl/environments` (7ea279a). An
environment is given the role and the content of messages, and no token ids. `AssayEnvironment` is a Ray actor class; it
is made when it is first imported by name, so that this module needs neither Ray nor torch.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from assay_client.client import RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rendered import append_end, require_parts, score_rendered
from assay_client.integrations._rows import read_end_tokens
from assay_client.integrations._service import read_service

Turn = Mapping[str, Any]
COMPONENT = "reward/"  # NeMo-RL's GDPO takes the rewards whose names begin with it


class RewardReader:
    """Scores message logs; the environment without its framework.

    NeMo-RL writes the rendered prompt into the messages' contents. The service reads it back: `compat.wires.openrlhf`
    of its configuration names the policy's template and the model. NeMo-RL decodes completions without special tokens,
    so that nothing says whether one was cut off: every completion counts as finished.

    Args:
        config: `url` and the other options of `read_service`. Also `end_token`, the text with which the policy's
            template ends a completion; and `parts`, true for one reward per signal.

    Raises:
        InvalidInput: a value is missing or has another type.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._client = RewardClient(**read_service(config).to_arguments())
        token = config.get("end_token")
        if not isinstance(token, str):
            raise InvalidInput(f"`end_token` must be the text of the policy's end token, not {token!r}")
        self._end_tokens = read_end_tokens(token)
        self._parts = bool(config.get("parts", False))

    def score(self, logs: Sequence[Sequence[Turn]]) -> list[float] | dict[str, list[float]]:
        """Return the reward of each message log, or the logits of each signal, named `reward/SIGNAL`.

        Raises:
            InvalidInput: a log does not end with the assistant's message, or its content is not text.
            AssayError: the request failed; one completion that cannot be scored fails the batch.
        """
        prompts = [_join(log[:-1]) for log in logs]
        queries = [prompt + self._build_completion(log) for prompt, log in zip(prompts, logs, strict=True)]
        scores = score_rendered(self._client, queries, prompts)
        if not self._parts:
            return scores.rewards
        return {f"{COMPONENT}{name}": logits for name, logits in require_parts(scores).items()}

    def _build_completion(self, log: Sequence[Turn]) -> str:
        if not log or log[-1]["role"] != "assistant":
            raise InvalidInput("a message log does not end with the assistant's message, so there is no completion")
        return append_end(_join(log[-1:]), "stop", self._end_tokens)


def _join(turns: Sequence[Turn]) -> str:
    contents = [turn["content"] for turn in turns]
    if not all(isinstance(content, str) for content in contents):
        raise InvalidInput("a message log has content that is not text; only text is scored")
    return "".join(contents)


@cache
def make_environment() -> Any:
    """Return the environment class, without the decorator of Ray."""
    from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

    class Environment(EnvironmentInterface):  # type: ignore[misc]
        """An environment of one turn, whose reward is the score of a running service."""

        def __init__(self, config: Mapping[str, Any]) -> None:
            self._reader = RewardReader(config)

        def step(self, message_log_batch: list[Any], metadata: list[Any], return_extracted_answer: bool = False) -> Any:
            """Return the rewards of a batch; see `RewardReader.score`.

            Args:
                message_log_batch: the message logs.
                metadata: the metadata of each log, which is returned.
                return_extracted_answer: the flag of NeMo-RL's evaluation, which has no effect: the answers are always
                    the completions.
            """
            rewards = self._reader.score(message_log_batch)
            return EnvironmentReturn(metadata=metadata, **_build_return(message_log_batch, rewards))

        def global_post_process_and_metrics(self, batch: Any) -> Any:
            """Return the batch as it is, and no metrics."""
            return batch, {}

    return Environment


def _build_return(logs: Sequence[Any], rewards: Any) -> dict[str, Any]:
    """Return what NeMo-RL wants to know of finished conversations, except for their metadata.

    Args:
        logs: the message logs.
        rewards: the reward of each log, or by name the rewards of each log.
    """
    import torch

    # One turn ends every conversation, so nothing is observed after the completion.
    size = len(logs)
    return {
        "observations": [{"role": "environment", "content": ""}] * size,
        "next_stop_strings": [None] * size,
        "rewards": {name: torch.tensor(values) for name, values in rewards.items()}
        if isinstance(rewards, dict)
        else torch.tensor(rewards),
        "terminateds": torch.ones(size, dtype=torch.bool),
        "answers": [log[-1]["content"] for log in logs],
    }


@cache
def _make_actor() -> Any:
    import ray

    return ray.remote(make_environment())


def __getattr__(name: str) -> Any:
    """Return `AssayEnvironment`, the name that `register_env` takes."""
    if name == "AssayEnvironment":
        return _make_actor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
