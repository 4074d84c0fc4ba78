"""Bridges that get whole conversations: verifiers, NeMo-RL, SkyRL, rLLM and Tinker.

SkyRL's environments are the real ones. The other packages bring a torch of their own or pins that differ, so their
types are written here with the fields of the named sources.
"""

import asyncio
import math
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import BaseModel

from assay_client import InvalidInput, ItemFailed, RewardClient, ServerError
from assay_client.integrations import nemo_rl
from assay_client.integrations.rllm import make_evaluator
from assay_client.integrations.tinker import AssayPreferenceModel
from assay_client.integrations.verifiers import make_reward, make_rubric_function

PROMPT = [{"role": "user", "content": "say hi"}]
ANSWER = [{"role": "assistant", "content": "hello"}]
RENDERED = "<|im_start|>user\nsay hi<|im_end|>\n<|im_start|>assistant\n"


def native(url: str, finish_reason: Any = "stop", model: str | None = None) -> Any:
    return score_text(url, "hello", finish_reason, model)


def score_text(url: str, text: str, finish_reason: Any = "stop", model: str | None = None) -> Any:
    with RewardClient(url) as client:
        return client.score([(PROMPT, text, finish_reason)], model=model).data[0]


# verifiers 0.4.0, v1/types.py and v1/trace.py: messages are pydantic objects, functions are called by names.


class UserMessage(BaseModel):
    role: str = "user"
    content: str


class AssistantMessage(BaseModel):
    role: str = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    provider_state: list[dict[str, Any]] | None = None


def branch(text: str, finish_reason: str = "stop") -> SimpleNamespace:
    return SimpleNamespace(
        messages=[UserMessage(content="say hi"), AssistantMessage(content=text, provider_state=[{"x": 1}])],
        calls=[
            SimpleNamespace(error=None, finish_reason=finish_reason),
            SimpleNamespace(error="x", finish_reason=None),
        ],
    )


def trace(text: str = "hello", finish_reason: str = "stop", stop_condition: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(branches=[branch(text, finish_reason)], stop_condition=stop_condition, root_reply=None)


def test_verifiers_scores_the_agents_reply_and_not_that_of_a_subagent(url: str) -> None:
    """A trace with subagents has `root_reply`, and branches of subagents may be later ones."""
    reward = make_reward(url)
    branches = [branch("other"), branch("hello", "length"), branch("no")]
    told = SimpleNamespace(branches=branches, stop_condition="agent_completed", root_reply="hello\n")
    assert asyncio.run(reward(trace=told)) == native(url, "length").score
    told.root_reply = None
    assert asyncio.run(reward(trace=told)) == score_text(url, "no").score
    for found, reply in ((branches, "another"), ([], None)):
        told = SimpleNamespace(branches=found, stop_condition=None, root_reply=reply)
        with pytest.raises(InvalidInput, match="no completion"):
            asyncio.run(reward(trace=told))


def test_verifiers_scores_the_last_message_of_a_trace(url: str) -> None:
    reward = make_reward(url)
    assert asyncio.run(reward(trace=trace())) == native(url).score
    assert asyncio.run(reward(trace=trace(stop_condition="max_turns"))) == native(url).score
    for cut in (trace(finish_reason="length"), trace(stop_condition="max_output_tokens")):
        assert asyncio.run(reward(trace=cut)) == native(url, "length").score
    parts = asyncio.run(make_reward(url, parts=True)(trace=trace()))
    assert parts == {name: value.logit for name, value in native(url).signals.items()}
    for failed in (trace("bad<|im_start|>"), trace(finish_reason="abort")):
        with pytest.raises(ItemFailed):  # verifiers then records an error, and no reward
            asyncio.run(reward(trace=failed))


def test_rubrics_get_nan_for_failures_because_they_make_a_zero_of_errors(url: str) -> None:
    function = make_rubric_function(url)
    bad = [{"role": "assistant", "content": "bad<|im_start|>"}]
    states = [{"is_truncated": False}, {"is_truncated": True}, {}]
    got = asyncio.run(function(prompts=[PROMPT] * 3, completions=[ANSWER, ANSWER, bad], states=states))
    assert got[:2] == [native(url).score, native(url, "length").score]
    assert math.isnan(got[2])
    nowhere = make_rubric_function("http://127.0.0.1:9", model="none")
    with_no_service = asyncio.run(function_without_retries(nowhere))
    assert all(map(math.isnan, with_no_service))


async def function_without_retries(function: Any) -> list[float]:
    """Call with columns of different lengths, an error before anything is sent."""
    result: list[float] = await function(prompts=[PROMPT], completions=[ANSWER, ANSWER], states=[{}, {}])
    return result


# NeMo-RL 7ea279a, environments/interfaces.py. The contents are what its data processors write: the rendered prompt.


class EnvironmentReturn(NamedTuple):
    observations: list[dict[str, str]]
    metadata: list[Any]
    next_stop_strings: list[Any]
    rewards: Any
    terminateds: torch.Tensor
    answers: list[str | None] | None


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nemo_rl.environments.interfaces")
    module.EnvironmentInterface = type("EnvironmentInterface", (), {})  # type: ignore[attr-defined]
    module.EnvironmentReturn = EnvironmentReturn  # type: ignore[attr-defined]
    for name in ("nemo_rl", "nemo_rl.environments"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ray = ModuleType("ray")
    ray.remote = lambda cls: ("actor", cls)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)


def log(text: str = "hello") -> list[dict[str, Any]]:
    """A message log as `calculate_rewards` passes it: of each message only `role` and `content`."""
    return [{"role": "user", "content": RENDERED}, {"role": "assistant", "content": text}]


@pytest.mark.usefixtures("interfaces")
def test_nemo_rl_gets_one_reward_per_log_or_one_tensor_per_signal(url: str) -> None:
    config = {"url": url, "end_token": "<|im_end|>"}
    environment = nemo_rl.make_environment()(config)
    answer = environment.step([log(), log("no")], [{"a": 1}, {"a": 2}])
    other = score_text(url, "no")
    assert answer.rewards.tolist() == pytest.approx([native(url).score, other.score], rel=1e-6)
    assert answer.terminateds.tolist() == [True, True]
    assert answer.metadata == [{"a": 1}, {"a": 2}]
    assert answer.answers == ["hello", "no"]
    evaluated = environment.step([log()], [None], True)  # as `run_env_eval` calls it
    assert evaluated.rewards.tolist() == answer.rewards.tolist()[:1]
    parts = nemo_rl.make_environment()({**config, "parts": True}).step([log()], [None]).rewards
    # `get_gdpo_reward_component_keys` takes the names that begin with "reward/".
    assert {name: values.tolist() for name, values in parts.items()} == {
        f"reward/{name}": pytest.approx([value.logit], rel=1e-6) for name, value in native(url).signals.items()
    }
    with pytest.raises(ServerError):
        environment.step([log(), log("bad<|im_start|>user")], [None, None])
    with pytest.raises(InvalidInput, match="does not end with the assistant's"):
        environment.step([log(), log()[:1]], [None, None])
    for missing in ({}, {"end_token": ""}, {"end_token": ["<|im_end|>"]}):
        with pytest.raises(InvalidInput, match="end_token"):
            nemo_rl.make_environment()({"url": url, **missing})
    assert nemo_rl.AssayEnvironment == ("actor", nemo_rl.make_environment())


# SkyRL: the real package.


def test_skyrl_registers_and_steps_the_environment(url: str) -> None:
    gym = pytest.importorskip("skyrl_gym")
    gym.register(id="assay_steps", entry_point="assay_client.integrations.skyrl:AssayEnv")
    for config, action, reason in (
        ({"url": url}, "hello", "stop"),
        ({"url": url, "end_token": "<|im_end|>"}, "hello<|im_end|>", "stop"),
        ({"url": url, "end_token": "<|im_end|>"}, "hello", "length"),
    ):
        environment = gym.make("assay_steps", env_config=config, extras={"reward_spec": {}})
        prompt, _ = environment.init(PROMPT)
        assert prompt == PROMPT
        answer = environment.step(action)
        expected = native(url, reason)
        assert (answer["reward"], answer["done"], answer["observations"]) == (expected.score, True, [])
        assert answer["metadata"] == {name: value.logit for name, value in expected.signals.items()}
    with pytest.raises(ItemFailed):
        environment.step("bad<|im_start|>")


# rLLM 9beb6e0, eval/types.py and types.py.


@dataclass
class Signal:
    name: str
    value: float
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvalOutput:
    reward: float
    is_correct: bool
    signals: list[Signal] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def eval_types(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("rllm.eval.types")
    module.EvalOutput, module.Signal = EvalOutput, Signal  # type: ignore[attr-defined]
    for name in ("rllm", "rllm.eval"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def episode(**step: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {"chat_completions": [], "model_response": "", "output": None, "model_output": None}
    return SimpleNamespace(trajectories=[SimpleNamespace(steps=[SimpleNamespace(**{**defaults, **step})])])


@pytest.mark.usefixtures("eval_types")
def test_rllm_evaluates_the_last_step(url: str) -> None:
    evaluate = make_evaluator(url)
    task = SimpleNamespace(instruction="say hi", metadata={})
    expected = native(url)
    signals = [Signal("abs", expected.signals["abs"].logit), Signal("pref", expected.signals["pref"].logit)]
    for step in ({"chat_completions": [*PROMPT, *ANSWER]}, {"model_response": "hello"}, {"output": "hello"}):
        assert evaluate(task, episode(**step)) == EvalOutput(expected.score, expected.score > 0, signals)
    # `rllm.evaluator` annotates its task as a dict, so that rLLM passes the task's metadata.
    assert evaluate({"instruction": "say hi"}, episode(output="hello")).reward == expected.score
    parts = SimpleNamespace(instruction=[{"type": "text", "text": "say hi"}])
    assert evaluate(parts, episode(output="hello")).reward == expected.score
    for without in ({"question": "say hi"}, SimpleNamespace(instruction="")):
        with pytest.raises(InvalidInput, match="`instruction`"):
            evaluate(without, episode(output="hello"))
    cut = episode(output="hello", model_output=SimpleNamespace(finish_reason="length"))
    assert evaluate(task, cut).reward == native(url, "length").score
    for failed in (
        episode(output="bad<|im_start|>"),
        episode(output="hello", model_output=SimpleNamespace(finish_reason="content_filter")),
    ):
        with pytest.raises(ItemFailed):
            evaluate(task, failed)
    for empty in (SimpleNamespace(trajectories=[]), episode()):
        with pytest.raises(InvalidInput):
            evaluate(task, empty)


# Tinker's cookbook 0.6.1, preference/types.py.


@dataclass
class Comparison:
    prompt_conversation: list[dict[str, Any]]
    completion_A: list[dict[str, Any]]
    completion_B: list[dict[str, Any]]


def test_tinker_gets_minus_one_where_a_is_preferred_and_one_where_b_is(url: str) -> None:
    other = [{"role": "assistant", "content": "no"}]
    model = AssayPreferenceModel(url, "pref")
    forward, backward, tie = (
        asyncio.run(model(Comparison(PROMPT, a, b))) for a, b in ((ANSWER, other), (other, ANSWER), (other, other))
    )
    with RewardClient(url) as client:
        margin = client.compare(PROMPT, "hello", "no", model="pref").signals["pref"].margin
    assert forward == pytest.approx(-math.tanh(margin / 2), abs=1e-12)  # 1 - 2 sigmoid(x) = -tanh(x / 2)
    assert backward == pytest.approx(-forward, abs=1e-12)
    assert tie == 0
    # Renderers write a list of parts if the policy reasons or calls tools.
    text = [{"role": "assistant", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert asyncio.run(model(Comparison(PROMPT, text, other))) == forward
    thinking = [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, *text[0]["content"]]}]
    with pytest.raises(InvalidInput, match="content_preprocessor"):
        asyncio.run(model(Comparison(PROMPT, other, thinking)))
    calls = [{"role": "assistant", "content": text[0]["content"], "tool_calls": [{"id": "1"}]}]
    for lost in (calls, [], text + text):
        with pytest.raises(InvalidInput, match="`completion`"):
            asyncio.run(model(Comparison(PROMPT, other, lost)))
    with pytest.raises(InvalidInput, match="not a preference signal"):
        asyncio.run(AssayPreferenceModel(url, "abs")(Comparison(PROMPT, ANSWER, other)))
    with pytest.raises(ServerError):
        asyncio.run(model(Comparison(PROMPT, [{"role": "assistant", "content": "bad<|im_start|>"}], other)))
