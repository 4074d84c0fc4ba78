"""PPO on a reward model of one half of some pairs, judged by a gold model of the other half that it never asked."""

import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from assay_client.client import RewardClient
from assay_training.reward_model.command import run as train_reward
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from tests import checkpoints
from tests.service.test_serve_process import served, wait_until_ready
from tests.training import tiny
from tests.training.test_ppo import go, home

__all__ = ["home"]  # a fixture

SERVICE = """
signals:
  proxy: {base: proxy/checkpoint, dtype: float32, device: cpu}
  gold: {base: gold/checkpoint, dtype: float32, device: cpu}
default: proxy
"""
TOKENIZER = checkpoints.decoder_tokenizer()
TOKENS = 4  # of a completion, and of a text of the pairs
JUDGED = 960  # completions of each policy


def worth(text: str) -> int:
    """What people want in this little world: letters of the alphabet's first half, and none of its second."""
    return sum((letter in "abcdefghijklm") - (letter in "nopqrstuvwxyz") for letter in text.lower())


def draw_text(drawn: random.Random) -> str:
    """From few tokens to many, because a trained policy repeats what is rewarded."""
    tokens = drawn.choices(range(4, len(TOKENIZER)), k=drawn.randint(1, TOKENS))
    return str(TOKENIZER.decode(drawn.choices(tokens, k=TOKENS)))


def pairs(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Of random texts; the one with more worth is chosen."""
    drawn = random.Random(seed)
    while count:
        rejected, chosen = sorted((draw_text(drawn) for _ in range(2)), key=worth)
        if worth(chosen) > worth(rejected) and chosen.strip() and rejected.strip():
            yield {"prompt": f"How do I bake {drawn.randrange(500)}?", "chosen": chosen, "rejected": rejected}
            count -= 1


@pytest.fixture(scope="module")
def world(home: Path) -> Iterator[str]:
    """A service with both models, which have seen no pair in common.

    Their base has small weights, as real ones have, so that what the pairs say outweighs the random start. They are
    right on 95 to 99 % of held-out pairs, and correlate by 0.89 to 0.96 on texts of one repeated token. With weights
    ten times as large, twice the rate and half the pairs, all of random tokens, the correlation was 0.75 to 0.77. PPO
    then learned the errors of the proxy: on one machine the gold score fell at a KL of 6 nats.
    """
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(home / "small", checkpoints.classifier("llama", fast, initializer_range=0.02), fast)
    for seed, name in enumerate(("proxy", "gold"), start=1):
        tiny.write_rows(home / "data" / name / "p.jsonl.gz", pairs(3000, seed))
        config = tiny.write_config(
            home / f"{name}.yaml",
            home / "small",
            template_text=checkpoints.CHATML,
            name=name,
            sources=[{"name": name, "format": "preferences"}],
            score_position="completion",
            lora=None,
            optimizer={"learning_rate": 0.01, "batch_prompts": 100, "epochs": 4, "compute_dtype": "float32"},
            split={"held_out": 0.1},
            seed=seed,
        )
        train_reward(config, home / "data", home / name)
    (home / "two.yaml").write_text(SERVICE)
    with served(home / "two.yaml") as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        yield url


def judged(policy: Path, url: str) -> list[float]:
    """Gold scores of a policy's completions of the prompts."""
    engine = TransformersEngine(policy, Sampling(TOKENS, 1.0, TOKENIZER.eos_token_id), torch.device("cpu"))
    prompts = [f"How do I bake {i % 12}?" for i in range(JUDGED)]
    texts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    asked = [tuple(TOKENIZER.apply_chat_template(text, add_generation_prompt=True)["input_ids"]) for text in texts]
    said = [TOKENIZER.decode(completion.ids, skip_special_tokens=True) for completion in engine.generate(asked, seed=0)]
    with RewardClient(url) as client:
        items = [(prompt, text) for prompt, text in zip(prompts, said, strict=True) if text.strip()]
        return list(client.score(items, model="gold").scores())


@pytest.fixture(scope="module")
def before(home: Path, world: str) -> list[float]:
    """Gold scores of the untrained policy."""
    return judged(home / "policy", world)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gold_score_rises_though_nobody_optimizes_it(
    home: Path, world: str, before: list[float], seed: int, tmp_path: Path
) -> None:
    """By more than ten standard errors, with every seed.

    Each machine rounds differently, so that both reward models and the policy take another path. Eight pairs of reward
    models with two or three seeds each gained 22.8 standard errors at worst, and 35 in the median, at 4 to 11 nats of
    KL. These 20 runs had one thread and AVX2, one thread without vector instructions, or two threads and AVX-512.
    """
    go(
        home, world, tmp_path / "run", steps=24, seed=seed, reward={"model": "proxy"},
        kl={"coef": 0.5, "target": None},
        rollout={"completions": 256, "chunk_completions": 256, "max_new_tokens": TOKENS},
        ppo={"epochs": 4, "mini_batch": 128}, optimizer={"learning_rate": 6e-3, "checkpoint_steps": 24},
    )  # fmt: skip
    after = judged(tmp_path / "run" / "checkpoint", world)
    error = (statistics.variance(before) / len(before) + statistics.variance(after) / len(after)) ** 0.5
    gain = statistics.fmean(after) - statistics.fmean(before)
    print(f"gold score +{gain:.2f}, standard error {error:.3f}")  # noqa: T201
    assert gain > 10 * error
