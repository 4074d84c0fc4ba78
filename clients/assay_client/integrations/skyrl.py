"""Give SkyRL a text environment of one turn that scores over HTTP.

Source: https://github.com/NovaSky-AI/SkyRL, `skyrl_gym` (0.4.0). `AssayEnv` is made when it is first imported by name,
so that this module does not need SkyRL. SkyRL has no value for a missing reward, so that failures raise an error.
"""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from assay_client.client import RewardClient
from assay_client.integrations._rows import build_rows, read_end_tokens, split_end_token
from assay_client.integrations._scorer import ScoreOptions, Scorer
from assay_client.integrations._service import Service, read_service
from assay_client.integrations._single import read_parts, score_single
from assay_client.types import FinishReason


@cache
def make_env_class() -> Any:
    """Return the environment class, a subclass of SkyRL's `BaseTextEnv`.

    Its `env_config` has `url` and the other options of `read_service`, and optionally `model` and `end_token`. SkyRL
    passes the completion as text only. With `end_token`, a completion without it was cut off; without `end_token`,
    every completion counts as finished.
    """
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

    class AssayEnv(BaseTextEnv):  # type: ignore[misc]
        """An environment of one turn, whose reward is the score of a running service."""

        def __init__(self, env_config: Mapping[str, Any], extras: Mapping[str, Any] | None = None) -> None:
            super().__init__()
            self._scorer = _open(read_service(env_config), env_config.get("model"))
            token = env_config.get("end_token")
            self._end_tokens = None if token is None else read_end_tokens(token if isinstance(token, str) else [*token])
            self._prompt: list[Any] = []

        def init(self, prompt: list[Any]) -> tuple[list[Any], dict[str, Any]]:
            """Keep the prompt, and return it."""
            self._prompt = prompt
            return prompt, {}

        def step(self, action: str) -> Any:
            """Return the score of a completion as the reward, and the logit of each signal as metadata.

            Raises:
                ItemFailed: the completion cannot be scored.
                AssayError: the request failed.
            """
            text, reason = _read_end(action, self._end_tokens)
            score = score_single(self._scorer, build_rows([self._prompt], [text], [reason]))
            return BaseTextEnvStepOutput(observations=[], reward=score.score, done=True, metadata=read_parts(score))

    return AssayEnv


def _read_end(action: str, end_tokens: Any) -> tuple[str, FinishReason | None]:
    """Return a completion without its end token, and why it ended; None if the end tokens are not known."""
    return (action, None) if end_tokens is None else split_end_token(action, end_tokens)


@lru_cache
def _open(service: Service, model: str | None) -> Scorer:
    return Scorer(RewardClient(**service.to_arguments()), ScoreOptions(model))


def __getattr__(name: str) -> Any:
    """Return `AssayEnv`, the name that `register` takes."""
    if name == "AssayEnv":
        return make_env_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
