"""TRL's own GRPOTrainer trains a tiny policy on rewards that a running service gives over HTTP."""

import asyncio
import importlib.util
import math
import pickle
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer
from trl.experimental.async_grpo import async_rollout_worker
from trl.trainer.utils import get_callable_name, is_async_callable

from assay_client import AsyncRewardClient, Item, RewardClient
from assay_client.integrations.trl import async_signal_rewards, reward_function, signal_rewards
from tests import checkpoints

PAGE = Path(__file__).parents[2] / "docs" / "trainer-trl.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_grpo.py"
PROMPTS = ["How do I bake bread?", "The quick brown fox", "Hi", "0 1 2 3"]
COMPLETIONS = 32  # per step
AVERAGED = 12  # steps at either end
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": COMPLETIONS,
    "num_generations": 16,
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def example() -> Any:
    """The example script as a module."""
    spec = importlib.util.spec_from_file_location("trl_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(example: Any, url: str, folder: Path, *, seed: int, steps: int, **options: Any) -> list[dict[str, float]]:
    """What TRL logs in each step of training a random policy of this seed."""
    tokenizer = checkpoints.decoder_tokenizer()
    policy = checkpoints.language_model("llama", tokenizer, seed=seed, initializer_range=0.02)
    checkpoints.save(folder / "policy", policy, tokenizer)
    # Decoded completions do not show these, so that no reward could tell the policy to leave them.
    unseen = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    options = {"generation_kwargs": {"suppress_tokens": sorted(unseen)}, **options}
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS])
    out = str(folder / "out")
    log = example.train(
        str(folder / "policy"),
        url,
        prompts,
        out,
        seed=seed,
        max_steps=steps,
        max_completion_length=8,
        **(SETTINGS | options),
    )
    return [row for row in log if "reward" in row]


def mean(rows: list[dict[str, float]], name: str = "reward") -> float:
    """The mean over steps; a step without a number fails the test."""
    values = [row[name] for row in rows]
    assert all(math.isfinite(value) for value in values)
    return sum(values) / len(values)


def check_rise(log: list[dict[str, float]]) -> None:
    """The mean reward of the last steps is above that of the first by at least six standard errors of chance.

    Without learning both are means of `AVERAGED * COMPLETIONS` rewards of one distribution, and TRL logs its deviation.
    The weakest of five seeds, 2, had 13 of them after 40 steps and 21 after 64.
    """
    first, last = log[:AVERAGED], log[-AVERAGED:]
    deviation = max(row["reward_std"] for row in first)
    by_chance = deviation * math.sqrt(2 / (AVERAGED * COMPLETIONS))
    print(f"reward {mean(first):.3f} -> {mean(last):.3f}, standard error {by_chance:.3f}")  # noqa: T201
    assert mean(last) - mean(first) > 6 * by_chance


def test_the_reward_of_a_policy_rises(example: Any, url: str, tmp_path: Path) -> None:
    log = train(example, url, tmp_path, seed=1, steps=40)
    check_rise(log)
    # The service's default is a blend, whose signals are logged beside it: 0.25 * pref + 0.75 * abs.
    for row in log:
        assert row["rewards/reward/mean"] == pytest.approx(0.25 * row["assay/pref"] + 0.75 * row["assay/abs"], abs=1e-4)
        assert 0 <= row["assay/unscored"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_reward_rises_with_every_seed(example: Any, url: str, tmp_path: Path, seed: int) -> None:
    check_rise(train(example, url, tmp_path, seed=seed, steps=64))


def test_the_example_runs_as_a_command(example: Any, url: str, tmp_path: Path) -> None:
    tokenizer = checkpoints.decoder_tokenizer()
    policy = checkpoints.language_model("llama", tokenizer, initializer_range=0.02)
    checkpoints.save(tmp_path / "policy", policy, tokenizer)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{text}"}}\n' for text in PROMPTS))
    out = tmp_path / "out"
    given = ["--policy", str(tmp_path / "policy"), "--url", url, "--out", str(out), "--steps", "1", "--cpu"]
    example.main([str(tmp_path / "prompts.jsonl"), *given])
    assert (out / "checkpoint-1" / "model.safetensors").is_file()


def test_signals_are_separate_rewards_for_gdpo(example: Any, url: str, tmp_path: Path, monkeypatch: Any) -> None:
    calls = []

    class Counted(RewardClient):
        def score(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(len(args[0]))
            return super().score(*args, **kwargs)

    with Counted(url) as client:
        functions = signal_rewards(client, ["pref", "abs"], eos_token_id=checkpoints.decoder_tokenizer().eos_token_id)
        monkeypatch.setattr(example, "reward_function", lambda *_, **__: functions)
        options = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.5, 1.0]}
        log = train(example, url, tmp_path, seed=1, steps=3, **options)
    assert calls == [COMPLETIONS] * 3
    for row in log:
        assert row["rewards/pref/mean"] == pytest.approx(row["assay/pref"], abs=1e-5)
        assert row["rewards/abs/mean"] == pytest.approx(row["assay/abs"], abs=1e-5)


def test_coroutines_run_in_the_trainers_own_loop(example: Any, url: str, tmp_path: Path, monkeypatch: Any) -> None:
    eos = checkpoints.decoder_tokenizer().eos_token_id
    functions = async_signal_rewards(AsyncRewardClient(url), ["pref", "abs"], eos_token_id=eos)
    monkeypatch.setattr(example, "reward_function", lambda *_, **__: functions)
    log = train(example, url, tmp_path, seed=1, steps=2)
    assert [row["rewards/pref/mean"] for row in log] == pytest.approx([row["assay/pref"] for row in log], abs=1e-5)


def test_trl_sees_what_the_functions_are() -> None:
    functions = [
        reward_function("http://a", eos_token_id=2),
        *signal_rewards("http://a", ["pref", "abs"], eos_token_id=2),
        *async_signal_rewards("http://a", ["pref", "abs"], eos_token_id=2),
    ]
    assert [get_callable_name(function) for function in functions] == ["reward", "pref", "abs", "pref", "abs"]
    assert [is_async_callable(function) for function in functions] == [False, False, False, True, True]


def test_async_grpo_scores_a_group_with_pickled_functions_in_threads(url: str) -> None:
    """The trainer itself needs vLLM; this is its own method that scores a group, in the process that it starts."""
    functions = pickle.loads(pickle.dumps(signal_rewards(url, ["pref", "abs"], eos_token_id=2)))
    worker = SimpleNamespace(
        reward_funcs=functions, reward_func_names=["pref", "abs"], _env_reward_types=[], _provides_rollout_reward=False
    )
    row = SimpleNamespace(input_ids=[1], completion_mask=[1], old_log_probs=[0.0])
    group = async_rollout_worker.RolloutGroup(
        prompts=["Hi"] * 3,
        reward_kwargs={"solution": ["x"] * 3},
        completions=["Mix flour.", "", "No."],
        completions_ids=[[5, 2], [5, 7], [5, 7]],
        completions_sequences=[[row]] * 3,
        tool_call_counts=[0] * 3,
        tool_failure_counts=[0] * 3,
        model_version=1,
        group_id=1,
        env_rewards=[None] * 3,
        rollout_rewards=[None] * 3,
    )
    samples = asyncio.run(async_rollout_worker._AsyncRolloutLoop._score_group(worker, group))
    with RewardClient(url) as client:
        items = [
            Item(prompt="Hi", completion="Mix flour."),
            Item(prompt="Hi", completion="No.", finish_reason="length"),
        ]
        expected = client.score(items, weights={"pref": 1.0, "abs": 1.0}).scores()
    assert [samples[0].metrics["reward"], samples[2].metrics["reward"]] == pytest.approx(expected, abs=1e-5)
    assert math.isnan(samples[1].metrics["reward"])  # empty and cut off: no reward, and no part in the update
    assert samples[1].advantage == 0.0


def test_rloo_takes_the_same_function(url: str, tmp_path: Path) -> None:
    tokenizer = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "policy", checkpoints.language_model("llama", tokenizer), tokenizer)
    trainer = RLOOTrainer(
        model=str(tmp_path / "policy"),
        reward_funcs=reward_function(url, eos_token_id=tokenizer.eos_token_id),
        args=RLOOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            max_completion_length=4,
            logging_steps=1,
            **(SETTINGS | {"learning_rate": 0.0}),
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=tokenizer,
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["rewards/reward/mean"] == pytest.approx(0.25 * row["assay/pref"] + 0.75 * row["assay/abs"], abs=1e-4)


def test_the_examples_of_the_page_make_trainers(url: str, tmp_path: Path) -> None:
    """As they are, but for the address, the names of the tiny signals, and settings for a CPU."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    tokenizer = checkpoints.decoder_tokenizer()
    policy = checkpoints.language_model("llama", tokenizer)
    checkpoints.save(tmp_path / "policy", policy, tokenizer)
    prompts = Dataset.from_list([{"prompt": text} for text in PROMPTS])
    names: dict[str, Any] = {"policy": str(tmp_path / "policy"), "tokenizer": tokenizer, "prompts": prompts}
    theirs = {
        "http://127.0.0.1:8000": url,
        '"preference", "absolute"': '"pref", "abs"',
        "GRPOConfig(": "partial(GRPOConfig, **SETTINGS)(",
        '"runs/grpo"': repr(str(tmp_path)),
    }
    trainers = []
    for block in blocks:
        assert "127.0.0.1:8000" in block
        for old, new in theirs.items():
            block = block.replace(old, new)  # noqa: PLW2901
        exec(block, names | {"partial": partial, "SETTINGS": SETTINGS}, names)
        trainers.append(names["trainer"])
    assert [trainer.reward_func_names for trainer in trainers] == [["reward"], ["pref", "abs"]]
    arguments = {"prompts": ["Hi"], "completions": ["Mix."], "completion_ids": [[5, tokenizer.eos_token_id]]}
    (total,), (pref,), (absolute,) = (f(**arguments) for one in trainers for f in one.reward_funcs)
    assert total == pytest.approx(0.25 * pref + 0.75 * absolute, abs=1e-5)
