"""The bridge to TRL, called with the arguments of TRL 1.16 (trl/trainer/grpo_trainer.py, `_calculate_rewards`)."""

import asyncio
import inspect
import json
import pickle
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from assay_client import AsyncRewardClient, InvalidInput, RewardClient, ServerError
from assay_client.integrations.trl import (
    RewardFunction,
    async_reward_function,
    async_signal_rewards,
    reward_function,
    signal_rewards,
)
from tests.client.conftest import Wire

EOS = 2
USER = {"role": "user", "content": "Hi"}


@dataclass
class State:
    """`transformers.TrainerState`, of which the bridge reads the step."""

    global_step: int


class Logs:
    """TRL's `log_extra` and `log_metric`."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}

    def extra(self, column: str, values: list[Any]) -> None:
        self.columns.setdefault(column, []).extend(values)

    def metric(self, name: str, value: float) -> None:
        assert name not in self.metrics
        self.metrics[name] = value


class Service:
    """A service with two signals: the logit of "absolute" is ten times that of "preference"."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        self.requests.append(asked)
        if asked.get("model") == "none":
            return Wire.answer(request, 404, json=Wire.refusal("model_not_found", retryable=False))
        answer = Wire.scored(asked)
        answer["provenance"]["signals"]["absolute"] = answer["provenance"]["signals"]["preference"]
        for row in answer["data"]:
            if "score" in row:
                row["signals"]["absolute"] = Wire.value(10 * row["score"])
        return Wire.answer(request, json=answer)

    @property
    def client(self) -> RewardClient:
        return RewardClient("http://a", transport=httpx.MockTransport(self))

    @property
    def async_client(self) -> AsyncRewardClient:
        return AsyncRewardClient("http://a", transport=httpx.MockTransport(self))


def arguments(texts: list[str], logs: Logs | None = None, step: int = 1) -> dict[str, Any]:
    """What GRPOTrainer passes for conversational data with one further column; every second completion is cut off."""
    logs = logs or Logs()
    return {
        "prompts": [[USER] for _ in texts],
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[7, EOS] if n % 2 == 0 else [7, 8] for n in range(len(texts))],
        "solution": ["x" for _ in texts],
        "trainer_state": State(step),
        "log_extra": logs.extra,
        "log_metric": logs.metric,
        "environments": [None for _ in texts],
    }


def test_rewards_are_scores_and_a_refused_completion_has_none() -> None:
    service, logs = Service(), Logs()
    reward = reward_function(service.client, eos_token_id=EOS, model="crs")
    assert reward(**arguments(["1.5", "2.5", "bad"], logs)) == [1.5, 2.5, None]
    [asked] = service.requests
    assert asked["model"] == "crs"
    assert [item["finish_reason"] for item in asked["items"]] == ["stop", "length", "stop"]
    assert asked["items"][0]["messages"] == [USER, {"role": "assistant", "content": "1.5"}]
    assert reward.__name__ == "crs"
    assert reward.scorer.fingerprint == "f1"
    assert logs.columns == {"assay/preference": [1.5, 2.5, None], "assay/absolute": [15.0, 25.0, None]}
    assert logs.metrics == {
        "assay/preference": 2.0,
        "assay/absolute": 20.0,
        "assay/unscored": pytest.approx(1 / 3),
    }


def test_text_prompts_and_the_arguments_of_async_grpo() -> None:
    service = Service()
    reward = reward_function(service.client, eos_token_id=[EOS, 3])
    assert reward(prompts=["Hi"], completions=["1"], completion_ids=[[3]], solution=["x"]) == [1.0]
    assert service.requests[0]["items"] == [{"prompt": "Hi", "completion": "1", "finish_reason": "stop"}]


def test_no_score_at_all_logs_no_mean() -> None:
    logs = Logs()
    reward = reward_function(Service().client, eos_token_id=EOS)
    assert reward(**arguments(["bad"], logs)) == [None]
    assert logs.metrics == {"assay/unscored": 1.0}


def test_an_error_of_the_request_is_raised() -> None:
    reward = reward_function(Service().client, eos_token_id=EOS, model="none")
    with pytest.raises(ServerError, match="model_not_found"):
        reward(**arguments(["1"]))


def test_one_function_for_each_signal_from_one_request_per_step() -> None:
    service = Service()
    functions = signal_rewards(service.client, ["preference", "absolute"], eos_token_id=EOS)
    assert [function.__name__ for function in functions] == ["preference", "absolute"]
    for step in (1, 2, 3):
        logs = Logs()
        rewards = [function(**arguments(["1.5", "bad"], logs, step)) for function in functions]
        assert rewards == [[1.5, None], [15.0, None]]
        assert logs.columns["assay/absolute"] == [15.0, None]  # once, although two functions were called
        assert len(service.requests) == step
    assert service.requests[0]["weights"] == {"preference": 1.0, "absolute": 1.0}


def test_coroutine_functions_share_one_request_as_well() -> None:
    service, logs = Service(), Logs()
    functions = async_signal_rewards(service.async_client, ["preference", "absolute"], eos_token_id=EOS)
    assert [function.__name__ for function in functions] == ["preference", "absolute"]
    # The test of TRL before 1.16, which an object with an async `__call__` fails.
    assert all(inspect.iscoroutinefunction(function) for function in functions)

    async def run(step: int) -> list[Any]:
        return await asyncio.gather(*(function(**arguments(["1.5", "bad"], logs, step)) for function in functions))

    for step in (1, 2):  # a loop of its own each time
        logs = Logs()
        assert asyncio.run(run(step)) == [[1.5, None], [15.0, None]]
        assert len(service.requests) == step


def test_a_coroutine_function_scores_as_the_other_does() -> None:
    reward = async_reward_function(Service().async_client, eos_token_id=EOS, weights={"preference": 1.0})
    assert inspect.iscoroutinefunction(reward)
    assert asyncio.run(reward(**arguments(["1.5", "bad"]))) == [1.5, None]


@pytest.mark.parametrize("floor", [-10.0, 0, 3.5])
def test_a_floor_takes_the_place_of_each_missing_reward(floor: float) -> None:
    """TRL's sum of several reward functions counts None as 0."""
    service, logs = Service(), Logs()
    one = reward_function(service.client, eos_token_id=EOS, floor=floor)
    assert one(**arguments(["1.5", "bad", "-2.5"], logs)) == [1.5, floor, -2.5]
    assert logs.metrics["assay/unscored"] == pytest.approx(1 / 3)
    assert logs.columns["assay/preference"] == [1.5, None, -2.5]  # a floor is not a logit
    several = signal_rewards(service.client, ["preference", "absolute"], eos_token_id=EOS, floor=floor)
    assert [function(**arguments(["1.5", "bad"])) for function in several] == [[1.5, floor], [15.0, floor]]
    waiting = async_reward_function(service.async_client, eos_token_id=EOS, floor=floor)
    names = ["preference", "absolute"]

    async def run() -> list[Any]:
        each = async_signal_rewards(service.async_client, names, eos_token_id=EOS, floor=floor)
        return await asyncio.gather(*(function(**arguments(["1.5", "bad"])) for function in (waiting, *each)))

    assert asyncio.run(run()) == [[1.5, floor], [1.5, floor], [15.0, floor]]


@pytest.mark.parametrize("floor", [float("nan"), float("inf"), True])
def test_a_floor_that_is_not_a_finite_number_is_refused(floor: float) -> None:
    names = ["preference"]
    for make in (
        lambda: reward_function("http://a", eos_token_id=EOS, floor=floor),
        lambda: signal_rewards("http://a", names, eos_token_id=EOS, floor=floor),
        lambda: async_reward_function("http://a", eos_token_id=EOS, floor=floor),
        lambda: async_signal_rewards("http://a", names, eos_token_id=EOS, floor=floor),
    ):
        with pytest.raises(InvalidInput, match="`floor` must be a finite number"):
            make()


def test_functions_can_be_pickled_and_still_share() -> None:
    functions = signal_rewards("http://127.0.0.1:9", ["preference", "absolute"], eos_token_id=EOS)
    copies: list[RewardFunction] = pickle.loads(pickle.dumps(functions))
    assert [copy.__name__ for copy in copies] == ["preference", "absolute"]
    assert copies[0].scorer is copies[1].scorer
    assert copies[0].scorer.client.base_url == "http://127.0.0.1:9"


def test_an_end_token_is_required() -> None:
    with pytest.raises(InvalidInput, match="eos_token_id"):
        reward_function("http://a", eos_token_id=None)  # type: ignore[arg-type]
