"""What policies have become: judged by a gold model that nobody optimises, beside the policy that they started from.

    assay train reward --config training/assay_experiments/gold.yaml --data DIR --out runs/experiments/gold
    assay serve --config training/assay_experiments/service.yaml
    python -m assay_experiments.policies PLAN... --data DIR --url URL

Each policy of the plans (that `sweep.py` has trained) answers prompts that no run has seen, `SAMPLES` times each, at
the temperature of training. It wins where its answer has the higher score, or is longer, against every answer of the
policy that all started from to the same prompt. That one answers `POOL` times, and the best of some of those by the
optimised scores stand beside the policies. Results go to `training/assay_experiments/results/policies.json`.
"""

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
from assay_experiments.rollouts import prompts_of
from assay_experiments.sweep import Run, read, runs_of, write_rows
from assay_service.scoring.item import Message
from assay_service.scoring.tokenizer import load
from assay_training.algorithms.best_of_n import expected, kl_bound, win_rate
from assay_training.algorithms.statistics import Floats, clustered_share
from assay_training.config.rollout import Reward
from assay_training.models.batches import token_batches
from assay_training.models.checkpoint import policy_renderer
from assay_training.models.policy import Policy
from assay_training.records.record import Prompt, group_of
from assay_training.rl.experience import example_of
from assay_training.rollout.collect import Collector, ScoredCompletion
from assay_training.rollout.completion import Ids
from assay_training.rollout.engines.base import Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.prompts import TokenizedPrompt, render_prompts
from assay_training.rollout.rewards import Rewards

PROMPTS = Path("prompts") / "laion_prompt_lottery_en_250_text.jsonl.gz"
SAMPLES = 4
POOL = 24
BEST_OF = (4, 16)
WEIGHTS = {"pref": {"preference": 1.0}, "abs": {"absolute": 1.0}, "crs 0.25": {"preference": 0.25, "absolute": 0.75}}
TOGETHER = 64
FORWARD_TOKENS = 8192
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """What every policy is put before.

    Attributes:
        first: the policy that all started from.
        asked: prompts.
        tokenizer: of all policies.
        sampling: how they answer.
        rewards: of their answers, by all signals.
    """

    first: Path
    asked: Sequence[TokenizedPrompt]
    tokenizer: Any
    sampling: Sampling
    rewards: Rewards

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Path, client: RewardClient) -> "Bench":
        """As a run of that configuration answers and is scored."""
        first, rollout = Path(config["base"]), config["rollout"]
        tokenizer: Any = load(first)
        prompts = [
            Prompt("laion", group_of(text), (Message("user", text),)) for text in prompts_of(data / PROMPTS, 250)
        ]
        renderer = policy_renderer(tokenizer, Path(config["template"]).read_text(), len(tokenizer))
        asked, _ = render_prompts(prompts, renderer, rollout["max_prompt_tokens"])
        signals = [card.id for card in client.models() if card.kind != "blend"]
        rewards = Rewards(client, Reward(weights=dict.fromkeys(signals, 1.0), failed="drop"), None)
        sampling = Sampling(rollout["max_new_tokens"], 1.0, tokenizer.eos_token_id)
        return cls(first, asked, tokenizer, sampling, rewards)

    def answers(self, policy: Path, count: int) -> list[ScoredCompletion]:
        """Those that have scores, of `count` to each prompt."""
        engine = TransformersEngine(policy, self.sampling, CPU)
        collector = Collector(engine, lambda completion: completion.text(self.tokenizer), TOGETHER)
        asked = [one for one in self.asked for _ in range(count)]
        return collector.collect(asked, self.rewards, "policies").samples

    def kl(self, policy: Path, samples: Sequence[ScoredCompletion]) -> float:
        """Log π - log π_first of what the policy said, nats per answer."""
        examples, total = [example_of(sample) for sample in samples], 0.0
        models = (Policy(policy, None, CPU), Policy(self.first, None, CPU))
        for part in token_batches(range(len(examples)), examples, FORWARD_TOKENS):
            with torch.no_grad():
                of, of_first = (float(m.logprobs([examples[i] for i in part]).double().sum()) for m in models)
            total += of - of_first
        return total / len(samples)


def numbers_of(sample: ScoredCompletion) -> dict[str, float]:
    """The logit of each signal, the length in tokens, and 1 where it ends by itself."""
    ends, length = sample.completion.finish_reason == "stop", len(sample.completion.ids)
    return {**sample.score.signals, "length": float(length), "ends": float(ends)}


def by_prompt(samples: Sequence[ScoredCompletion]) -> dict[Ids, dict[str, Floats]]:
    """The numbers of each prompt's answers; `[answers]`."""
    found: dict[Ids, list[dict[str, float]]] = defaultdict(list)
    for sample in samples:
        found[sample.prompt.ids].append(numbers_of(sample))
    return {prompt: {name: np.array([row[name] for row in rows]) for name in rows[0]} for prompt, rows in found.items()}


def share(rates: Mapping[Ids, float]) -> dict[str, Any]:
    """Over prompts, with its interval."""
    return asdict(clustered_share(np.array(list(rates.values())), [str(prompt) for prompt in rates]))


def wins(samples: Sequence[ScoredCompletion], first: Sequence[ScoredCompletion]) -> dict[str, dict[str, Any]]:
    """How often each number of an answer is above that of one of the first policy's to its prompt; ties are half."""
    own, other = by_prompt(samples), by_prompt(first)
    both = [prompt for prompt in own if prompt in other]
    return {
        name: share({of: (np.sign(np.subtract.outer(own[of][name], other[of][name])).mean() + 1) / 2 for of in both})
        for name in numbers_of(samples[0])
    }


def told(kl: float, samples: Sequence[ScoredCompletion], first: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """The numbers of a policy: means, and wins against the first one."""
    rows = [numbers_of(sample) for sample in samples]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {
        "answers": len(rows),
        "kl": kl,
        "means": means,
        "wins": wins(samples, first),
    }


def best_of(n: int, by: Mapping[str, float], first: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """The numbers of picking the best of n answers of the first policy by weighted logits, against one more."""
    found = {prompt: numbers for prompt, numbers in by_prompt(first).items() if len(numbers["length"]) > n}
    scores = {of: np.sum([weight * found[of][name] for name, weight in by.items()], axis=0) for of in found}
    names = list(numbers_of(first[0]))
    means = {name: float(np.mean([expected(scores[of], found[of][name], n) for of in found])) for name in names}
    rates = {name: share({of: win_rate(scores[of], found[of][name], n) for of in found}) for name in names}
    return {"answers": len(first), "kl": kl_bound(n), "means": means, "wins": rates}


def main(
    plans: Annotated[list[Path], typer.Argument(exists=True)],
    data: Annotated[Path, typer.Option(exists=True)],
    url: Annotated[str, typer.Option()],
    runs: Path = Path("runs/experiments"),
) -> None:
    """Judges all policies of the plans that are there."""
    given = {plan: read(plan) for plan in plans}
    found: list[tuple[Path, Run]] = [(plan, run) for plan, of in given.items() for run in runs_of(plan, of, runs)]
    done = [(plan, run) for plan, run in found if (run.directory / "checkpoint" / "config.json").is_file()]
    with RewardClient(url) as client:
        bench = Bench.of(given[plans[0]]["config"], data, client)
        first = bench.answers(bench.first, POOL)
        rows = [{"plan": None, "variant": "first", "seed": None, **told(0.0, first, first)}]
        for name, by in WEIGHTS.items():
            rows += [
                {"plan": None, "variant": f"best of {n} by {name}", "seed": None, **best_of(n, by, first)}
                for n in BEST_OF
            ]
        for plan, run in tqdm(done, "policies"):
            policy = run.directory / "checkpoint"
            samples = bench.answers(policy, SAMPLES)
            of_run = {"plan": plan.stem, "variant": run.variant, "seed": run.seed}
            rows.append(of_run | told(bench.kl(policy, samples), samples, first))
    write_rows("policies", rows)
    typer.echo(f"{len(done)} of {len(found)} policies are there and have been judged")


if __name__ == "__main__":
    typer.run(main)
