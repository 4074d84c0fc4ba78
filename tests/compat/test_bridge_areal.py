"""The bridge for AReaL: its reward function in a pool of processes, and its workflow without one."""

import asyncio
import pickle
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import pytest

from assay_client import InvalidInput, ItemFailed, TransportError
from assay_client.integrations import areal
from assay_client.integrations.areal import make_reward_fn
from tests.compat.conftest import run_gateway
from tests.compat.test_bridges_groups import END, PROMPT, RENDERED, native

# AReaL 1.0.4: positional texts and ids, the row by name, in a process pool, with 15 s for each of 4 tries.


def test_areal_scores_in_another_process(url: str) -> None:
    reward_fn = make_reward_fn(url, end_token=END)
    stop, cut = (row.score for row in native(url, ("hello", "stop"), ("hello", "length")))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        scores = [
            pool.submit(reward_fn, RENDERED, text, [1], [2], messages=PROMPT, answer="x").result(60)
            for text in ("hello<|im_end|>", "hello")
        ]
    assert scores == [stop, cut]
    assert reward_fn(RENDERED, "hello<|im_end|>", [1], [2], prompt="x") == stop  # a row without messages


def test_areal_never_gets_a_timeout_error_of_which_it_would_make_a_zero() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never answers
        reward_fn = make_reward_fn(f"http://127.0.0.1:{silent.getsockname()[1]}", end_token=END, deadline_s=1.0)
        began = time.monotonic()
        with pytest.raises(TransportError) as raised:
            reward_fn(RENDERED, "hello", [1], [2], messages=PROMPT)
        assert time.monotonic() - began < 5
    assert not isinstance(raised.value, TimeoutError)
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), TransportError)
    with pytest.raises(InvalidInput, match="AReaL waits 15 s"):
        make_reward_fn("http://127.0.0.1:1", end_token=END, deadline_s=15)


# The workflow. The two classes are shortened copies of `AsyncRewardWrapper` and `RLVRWorkflow`, of which the latter
# makes the former in its `__init__`, or after it has imported the function.


class AsyncRewardWrapper:
    """AReaL's begins its limit of time when it submits a call to the pool, and makes a 0 of a late one."""

    def __init__(self, reward_fn: Callable[..., float], timeout_seconds: float = 15) -> None:
        self.reward_fn = reward_fn
        self.timeout_seconds = timeout_seconds


class RLVRWorkflow:
    async_reward_fn: Any

    def __init__(self, reward_fn: Any) -> None:
        self.reward_fn = reward_fn
        if not isinstance(reward_fn, str):
            self.async_reward_fn = AsyncRewardWrapper(reward_fn)

    async def arun_episode(self, prompt: str, completion: str, **row: Any) -> float:
        if isinstance(self.reward_fn, str):
            module, name = self.reward_fn.rsplit(".", 1)
            self.reward_fn = getattr(import_module(module), name)
            self.async_reward_fn = AsyncRewardWrapper(self.reward_fn)
        reward: float = await self.async_reward_fn(prompt, completion, [1], [2], **row)
        return reward


@pytest.fixture
def workflow_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("areal", "areal.workflow"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("areal.workflow.rlvr")
    vars(module).update(RLVRWorkflow=RLVRWorkflow)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    areal.make_workflow_class.cache_clear()
    yield areal.AssayWorkflow
    areal.make_workflow_class.cache_clear()


@pytest.mark.parametrize("by_name", [False, True])
def test_rewards_of_the_workflow_do_not_wait_for_a_process(
    workflow_class: Any, url: str, by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward_fn = make_reward_fn(url, end_token=END)
    if by_name:
        module = ModuleType("my_rewards")
        vars(module).update(reward_fn=reward_fn)
        monkeypatch.setitem(sys.modules, "my_rewards", module)
    workflow = workflow_class("my_rewards.reward_fn" if by_name else reward_fn)
    stop, cut = (row.score for row in native(url, ("hello", "stop"), ("hello", "length")))

    async def run() -> list[Any]:
        episodes = [
            workflow.arun_episode(RENDERED, "hello<|im_end|>", messages=PROMPT, answer="x"),
            workflow.arun_episode(RENDERED, "hello", messages=PROMPT),
            workflow.arun_episode(RENDERED, "hello<|im_end|>"),  # a row without messages
            workflow.arun_episode(RENDERED, "bad<|im_start|>", messages=PROMPT),
        ]
        return await asyncio.gather(*episodes, return_exceptions=True)

    for _ in range(2):  # each in an event loop of its own
        *scores, failed = asyncio.run(run())
        assert scores == [stop, cut, stop]
        assert isinstance(failed, ItemFailed)  # AReaL rejects such a rollout


def test_many_rollouts_with_a_slow_service_have_their_rewards(workflow_class: Any, url: str) -> None:
    """Each call takes 0.5 s: one after the other, as in a pool with one process, 60 would take 30 s."""

    def wait(_: object) -> None:
        time.sleep(0.5)

    async def run(workflow: Any) -> list[Any]:
        text = "hello<|im_end|>"
        return await asyncio.gather(*(workflow.arun_episode(RENDERED, text, messages=PROMPT) for _ in range(60)))

    [row] = native(url, ("hello", "stop"))
    with run_gateway(url, wait) as slow:
        began = time.monotonic()
        assert asyncio.run(run(workflow_class(make_reward_fn(slow, end_token=END)))) == [row.score] * 60
        assert time.monotonic() - began < 20


def test_another_reward_function_is_refused(workflow_class: Any) -> None:
    with pytest.raises(InvalidInput, match="make_reward_fn"):
        workflow_class(lambda *_: 1.0)
