"""Tokens per second of PPO's rollouts: vLLM against transformers' generation, the engines as a run has them.

    .venv-vllm/bin/python -m benchmarks.rollouts --data DIR [--out benchmarks/results/rollouts]

Both sample from the small pipeline's policy (5.5 million parameters) with the same fresh adapter, at temperature 1. The
HH prompts are the same, and both return ids and log-probabilities. Counted are the tokens of completions up to their
EOS. Rounds alternate, on fresh prompts, after one that warms up; medians. Only ratios within one run mean anything.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from assay_service.memory import keep_freed_memory
from assay_service.scoring.tokenizer import load
from assay_training.config.data import Source
from assay_training.config.model import Lora
from assay_training.models.actor import Actor
from assay_training.models.checkpoint import build_policy_renderer
from assay_training.records.sources import read_prompts
from assay_training.rollout.completion import Ids
from assay_training.rollout.engines.base import Engine, Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.engines.vllm import VllmEngine
from assay_training.rollout.prompts import render_prompts
from benchmarks.written import describe_machine, format_table, summarize, write

ROUNDS = 3
TOGETHER = (8, 32)
PROMPT_TOKENS = 128
NEW_TOKENS = 64
LORA = Lora(
    r=16, alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
ROOT = Path(__file__).parents[1]
POLICY = ROOT / "tests" / "assets" / "pipeline" / "policy"
TEMPLATE = ROOT / "training" / "configs" / "chatml.jinja"


def read_prompt_ids(base: Path, data: Path, count: int) -> list[Ids]:
    """Return the ids of the first prompts that are short enough."""
    tokenizer: Any = load(base)
    found = read_prompts(data, [Source(name="hh_rlhf", format="hh")])
    renderer = build_policy_renderer(tokenizer, TEMPLATE.read_text(), len(tokenizer))
    return [asked.ids for asked in render_prompts(found.records, renderer, PROMPT_TOKENS)[0][:count]]


def measure_tokens_per_s(engine: Engine, prompts: Sequence[Ids], together: int, seed: int) -> float:
    """Measure the tokens per second of all prompts, `together` of them at a time."""
    started_s, tokens = time.perf_counter(), 0
    for start in range(0, len(prompts), together):
        completions = engine.generate(prompts[start : start + together], seed + start)
        tokens += sum(len(completion.ids) for completion in completions)
    return tokens / (time.perf_counter() - started_s)


def measure(base: Path, data: Path) -> dict[tuple[str, int], list[float]]:
    """Measure the tokens per second of every round, by engine and by the number of prompts given together."""
    tokenizer: Any = load(base)
    sampling, device = Sampling(NEW_TOKENS, 1.0, tokenizer.eos_token_id), torch.device("cpu")
    engines: Mapping[str, Callable[[], Engine]] = {
        "vLLM": lambda: VllmEngine(base, sampling, PROMPT_TOKENS + NEW_TOKENS, LORA.r),
        "transformers": lambda: TransformersEngine(base, sampling, device),
    }
    opened = {name: open_engine() for name, open_engine in engines.items()}
    lot = max(TOGETHER)
    prompts = read_prompt_ids(base, data, lot * (1 + ROUNDS))
    rates: dict[tuple[str, int], list[float]] = {(name, n): [] for n in TOGETHER for name in opened}
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "adapter"
        Actor(base, LORA, device, 1.0).policy.save_adapter(adapter)
        for engine in opened.values():
            engine.push(adapter)
        for number in range(1 + ROUNDS):
            for (name, together), seen in rates.items():
                rate = measure_tokens_per_s(opened[name], prompts[number * lot : (number + 1) * lot], together, number)
                if number > 0:  # the first warms up
                    seen.append(rate)
    for engine in opened.values():
        engine.close()
    return rates


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rollouts")
    given = parser.parse_args()
    keep_freed_memory()
    rates = measure(POLICY, given.data)
    rows = [
        {"engine": name, "together": together} | summarize(seen, rates["vLLM", together], "tokens/s")
        for (name, together), seen in rates.items()
    ]
    sampled = f"at most {NEW_TOKENS} new tokens, fp32, LoRA r {LORA.r}, 5.5M parameters"
    lot = f"{max(TOGETHER)} HH prompts a round, {ROUNDS} rounds, {sampled}"
    text = f"# Rollouts\n\n`python -m benchmarks.rollouts --data DIR`; {describe_machine()}; {lot}.\n\n"
    write(
        given.out, text, format_table(rows, {"prompts together": "together", "engine": "engine"}, "vLLM / it", 0), rows
    )


if __name__ == "__main__":
    main()
