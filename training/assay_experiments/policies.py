"""Compare trained policies with their initial policy, by a gold model on which no policy was trained.

    assay train reward --config training/assay_experiments/gold.yaml --data DIR --out runs/experiments/gold
    assay serve --config training/assay_experiments/service.yaml
    python -m assay_experiments.policies PLAN... --data DIR --url URL

Each policy that `sweep.py` has trained for the plans generates `--samples` completions of each of some prompts that no
run has seen. The temperature is that of training. Each completion is compared with all completions of the same prompt
by the initial policy, in score and in length. The initial policy generates `--pool` completions of each prompt. Its
best of N by the optimized scores are compared in the same way. Each row also has the completions of a few prompts as
text. Results go to `training/assay_experiments/results/NAME.json`.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from assay_client.client import RewardClient
from assay_experiments.rollouts import read_prompts
from assay_experiments.sweep import Run, build_runs, read_plan, write_rows
from assay_service.scoring.item import Message
from assay_service.scoring.tokenizer import load
from assay_training.algorithms.best_of_n import compute_expected_gold, compute_kl_bound, compute_win_rate
from assay_training.algorithms.statistics import Floats, compute_clustered_share
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.config.rollout import Reward
from assay_training.data.chat_template import find_template
from assay_training.data.checks import find_base
from assay_training.models.batches import cut_token_batches
from assay_training.models.checkpoint import build_policy_renderer
from assay_training.models.policy import Policy
from assay_training.records.record import Prompt, find_group
from assay_training.rl.experience import build_example
from assay_training.rollout.collect import Collector, ScoredCompletion
from assay_training.rollout.completion import Ids
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.prompts import TokenizedPrompt, render_prompts
from assay_training.rollout.rewards import Rewards

PROMPTS = Path("prompts") / "laion_prompt_lottery_en_250_text.jsonl.gz"
BEST_OF = (4, 16)
WEIGHTS = {"pref": {"preference": 1.0}, "abs": {"absolute": 1.0}, "crs 0.25": {"preference": 0.25, "absolute": 0.75}}
TOGETHER = 64
FORWARD_TOKENS = 8192
SHOWN = 3  # prompts whose completions are kept as text
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """The setting in which all policies are compared.

    Attributes:
        first: directory of the initial policy.
        asked: prompts.
        tokenizer: tokenizer of all policies.
        sampling: sampling settings.
        rewards: scores of completions by all signals of the service.
    """

    first: Path
    asked: Sequence[TokenizedPrompt]
    tokenizer: Any
    sampling: Sampling
    rewards: Rewards

    @classmethod
    def prepare(cls, config: PpoConfig | RejectionConfig, data: Path, client: RewardClient, count: int) -> "Bench":
        """Prepare prompts, sampling and scores as in a run of a configuration.

        Args:
            config: configuration of a plan's runs.
            data: folder of the data sets.
            client: client of the running service.
            count: number of prompts.
        """
        first, rollout = find_base(config), config.rollout
        tokenizer: Any = load(first)
        prompts = [
            Prompt("laion", find_group(text), (Message("user", text),)) for text in read_prompts(data / PROMPTS, count)
        ]
        renderer = build_policy_renderer(tokenizer, find_template(config, first), len(tokenizer))
        asked, _ = render_prompts(prompts, renderer, rollout.max_prompt_tokens)
        signals = [card.id for card in client.models() if card.kind != "blend"]
        # The weights only make the service score by all signals; the blend itself is not used.
        rewards = Rewards(client, Reward(weights=dict.fromkeys(signals, 1.0), failed="drop"), None)
        sampling = Sampling(rollout.max_new_tokens, 1.0, tokenizer.eos_token_id)
        return cls(first, asked, tokenizer, sampling, rewards)

    def sample(self, policy: Path, count: int) -> list[ScoredCompletion]:
        """Sample `count` completions of each prompt, and return those that could be scored."""
        engine = TransformersEngine(policy, self.sampling, CPU)
        collector = Collector(engine, lambda completion: completion.text(self.tokenizer), TOGETHER)
        asked = [prompt for prompt in self.asked for _ in range(count)]
        return collector.collect(asked, self.rewards, "policies").samples

    def compute_kl(self, policy: Path, samples: Sequence[ScoredCompletion]) -> float:
        """Return the mean of log π - log π_first over the policy's completions, in nats per completion."""
        examples, total = [build_example(sample) for sample in samples], 0.0
        models = (Policy(policy, None, CPU), Policy(self.first, None, CPU))
        for part in cut_token_batches(range(len(examples)), examples, FORWARD_TOKENS):
            with torch.no_grad():
                own, initial = (float(m.logprobs([examples[i] for i in part]).double().sum()) for m in models)
            total += own - initial
        return total / len(samples)


def collect_numbers(sample: ScoredCompletion) -> dict[str, float]:
    """Return the logit of each signal, the length in tokens, and `ends`: 1 if the completion ended with EOS."""
    ends, length = sample.completion.finish_reason == "stop", len(sample.completion.ids)
    return {**sample.score.signals, "length": float(length), "ends": float(ends)}


def group_by_prompt(samples: Sequence[ScoredCompletion]) -> dict[Ids, dict[str, Floats]]:
    """Return each number of each prompt's completions, float64 `[completions]`."""
    grouped: dict[Ids, list[dict[str, float]]] = defaultdict(list)
    for sample in samples:
        grouped[sample.prompt.ids].append(collect_numbers(sample))
    return {
        prompt: {name: np.array([row[name] for row in rows]) for name in rows[0]} for prompt, rows in grouped.items()
    }


def show_texts(samples: Sequence[ScoredCompletion]) -> list[dict[str, str]]:
    """Return the first completion of each of the first prompts as text, with the prompt."""
    shown: dict[Ids, dict[str, str]] = {}
    for sample in samples:
        asked = sample.prompt.prompt.messages[-1].content
        shown.setdefault(sample.prompt.ids, {"prompt": asked, "completion": sample.text})
    return list(shown.values())[:SHOWN]


def average_rates(rates: Mapping[Ids, float]) -> dict[str, Any]:
    """Return the mean of the prompts' rates with its 95 % interval, clustered by prompt."""
    return asdict(compute_clustered_share(np.array(list(rates.values())), [str(prompt) for prompt in rates]))


def compute_wins(samples: Sequence[ScoredCompletion], first: Sequence[ScoredCompletion]) -> dict[str, dict[str, Any]]:
    """Return the win rate of each number against the initial policy's completions of the same prompt; ties are 1/2."""
    own, other = group_by_prompt(samples), group_by_prompt(first)
    both = [prompt for prompt in own if prompt in other]
    return {
        # The sign is 1 for a win, 0 for a tie and -1 for a loss: its mean over all pairs is mapped to 0..1.
        name: average_rates(
            {p: (np.sign(np.subtract.outer(own[p][name], other[p][name])).mean() + 1) / 2 for p in both}
        )
        for name in collect_numbers(samples[0])
    }


def summarize(kl: float, samples: Sequence[ScoredCompletion], first: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """Return the results of a policy: KL, means, and win rates against the initial policy."""
    rows = [collect_numbers(sample) for sample in samples]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {
        "completions": len(rows),
        "kl": kl,
        "means": means,
        "wins": compute_wins(samples, first),
        "texts": show_texts(samples),
    }


def compute_best_of(n: int, by: Mapping[str, float], first: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """Return the results of the best of n completions of the initial policy, against one more of its completions.

    Args:
        n: number of completions from which the best is picked.
        by: weight of each signal's logit in the score that picks.
        first: completions of the initial policy; prompts with n or fewer are skipped.
    """
    prompts = {prompt: numbers for prompt, numbers in group_by_prompt(first).items() if len(numbers["length"]) > n}
    scores = {p: np.sum([weight * prompts[p][name] for name, weight in by.items()], axis=0) for p in prompts}
    names = list(collect_numbers(first[0]))
    means = {
        name: float(np.mean([compute_expected_gold(scores[p], prompts[p][name], n) for p in prompts])) for name in names
    }
    rates = {
        name: average_rates({p: compute_win_rate(scores[p], prompts[p][name], n) for p in prompts}) for name in names
    }
    return {"completions": len(first), "kl": compute_kl_bound(n), "means": means, "wins": rates}


def main(  # noqa: PLR0913 - the options of a command
    plans: Annotated[list[Path], typer.Argument(exists=True)],
    data: Annotated[Path, typer.Option(exists=True)],
    url: Annotated[str, typer.Option()],
    *,
    runs: Path = Path("runs/experiments"),
    name: Annotated[str, typer.Option(help="Name of the file of results.")] = "policies",
    prompts: Annotated[int, typer.Option(help="Number of prompts.")] = 250,
    samples: Annotated[int, typer.Option(help="Completions of each prompt by a trained policy.")] = 4,
    pool: Annotated[int, typer.Option(help="Completions of each prompt by the initial policy.")] = 24,
) -> None:
    """Compare all trained policies of the plans with their initial policy."""
    given = {plan: read_plan(plan) for plan in plans}
    planned: list[tuple[Path, Run]] = [
        (plan, run) for plan, raw in given.items() for run in build_runs(plan, raw, runs)
    ]
    done = [(plan, run) for plan, run in planned if (run.directory / "checkpoint" / "config.json").is_file()]
    config = PpoConfig.model_validate(planned[0][1].config)
    with RewardClient(url, timeout_s=600) as client:
        bench = Bench.prepare(config, data, client, prompts)
        first = bench.sample(bench.first, pool)
        rows = [{"plan": None, "variant": "first", "seed": None, **summarize(0.0, first, first)}]
        # The best of N is compared with the completions that remain, so that N must be smaller than the pool.
        for by_name, n in itertools.product(WEIGHTS, [n for n in BEST_OF if n < pool]):
            best = compute_best_of(n, WEIGHTS[by_name], first)
            rows.append({"plan": None, "variant": f"best of {n} by {by_name}", "seed": None, **best})
        for plan, run in tqdm(done, "policies"):
            policy = run.directory / "checkpoint"
            sampled = bench.sample(policy, samples)
            origin = {"plan": plan.stem, "variant": run.variant, "seed": run.seed}
            rows.append(origin | summarize(bench.compute_kl(policy, sampled), sampled, first))
    write_rows(name, rows)
    typer.echo(f"compared {len(done)} trained policies of {len(planned)} planned runs")


if __name__ == "__main__":
    typer.run(main)
