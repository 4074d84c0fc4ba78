"""What policies have become: judged by a gold model that nobody optimises, beside the policy that they started from.

    assay train reward --config training/experiments/gold.yaml --data DIR --out runs/experiments/gold
    assay serve --config training/experiments/service.yaml
    python training/experiments/policies.py PLAN... --data DIR --url URL

Each policy of the plans (that `sweep.py` has trained) and the one that they start from answer prompts that no run has
seen, `SAMPLES` times each, at the temperature of training. A policy wins where its answer has the higher score, against
every answer of the first policy to the same prompt. Results go to `training/experiments/results/policies.json`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm
from transformers import AutoTokenizer

from assay_client.client import RewardClient
from assay_service.scoring.item import Message
from assay_training.algorithms.statistics import clustered_share
from assay_training.config.rollout import Reward
from assay_training.examples import token_batches
from assay_training.loops.experience import example_of
from assay_training.loops.policies import policy_renderer
from assay_training.policy import Policy
from assay_training.records.record import Prompt, group_of
from assay_training.rollout.asked import Asked, render_prompts
from assay_training.rollout.collect import Collector, Sample
from assay_training.rollout.completion import Ids
from assay_training.rollout.engine import Sampling
from assay_training.rollout.rewards import Rewards
from assay_training.rollout.with_transformers import TransformersEngine
from experiments.rollouts import prompts_of
from experiments.sweep import Run, read, runs_of

HERE = Path(__file__).parent
PROMPTS = Path("prompts") / "laion_prompt_lottery_en_250_text.jsonl.gz"
SAMPLES = 4
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
    asked: Sequence[Asked]
    tokenizer: Any
    sampling: Sampling
    rewards: Rewards

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Path, client: RewardClient) -> "Bench":
        """As a run of that configuration answers and is scored."""
        first, rollout = Path(config["base"]), config["rollout"]
        tokenizer: Any = AutoTokenizer.from_pretrained(first)
        prompts = [
            Prompt("laion", group_of(text), (Message("user", text),)) for text in prompts_of(data / PROMPTS, 250)
        ]
        renderer = policy_renderer(tokenizer, Path(config["template"]), len(tokenizer))
        asked, _ = render_prompts(prompts, renderer, rollout["max_prompt_tokens"])
        signals = [card.id for card in client.models() if card.kind != "blend"]
        rewards = Rewards(client, Reward(weights=dict.fromkeys(signals, 1.0), failed="drop"), None)
        sampling = Sampling(rollout["max_new_tokens"], 1.0, tokenizer.eos_token_id)
        return cls(first, asked, tokenizer, sampling, rewards)

    def answers(self, policy: Path) -> list[Sample]:
        """Those that have scores."""
        engine = TransformersEngine(policy, self.sampling, CPU)
        collector = Collector(engine, lambda completion: completion.text(self.tokenizer), TOGETHER)
        asked = [one for one in self.asked for _ in range(SAMPLES)]
        return collector.collect(asked, self.rewards, "policies").samples

    def kl(self, policy: Path, samples: Sequence[Sample]) -> float:
        """Log π - log π_first of what the policy said, nats per answer."""
        examples, total = [example_of(sample) for sample in samples], 0.0
        models = (Policy(policy, None, CPU), Policy(self.first, None, CPU))
        for part in token_batches(range(len(examples)), examples, FORWARD_TOKENS):
            with torch.no_grad():
                of, of_first = (float(m.logprobs([examples[i] for i in part]).double().sum()) for m in models)
            total += of - of_first
        return total / len(samples)


def by_prompt(samples: Sequence[Sample], signal: str) -> dict[Ids, list[float]]:
    """The logits of each prompt's answers."""
    found: dict[Ids, list[float]] = defaultdict(list)
    for sample in samples:
        found[sample.asked.ids].append(sample.worth.signals[signal])
    return found


def wins(samples: Sequence[Sample], first: Sequence[Sample], signal: str) -> dict[str, Any]:
    """How often an answer's logit is above one of the first policy's to the same prompt; ties are half; by prompt."""
    own, other = by_prompt(samples, signal), by_prompt(first, signal)
    both = [prompt for prompt in own if prompt in other]
    rates = [(np.sign(np.subtract.outer(own[of], other[of])).mean() + 1) / 2 for of in both]
    return asdict(clustered_share(np.array(rates), [str(prompt) for prompt in both]))


def told(bench: Bench, policy: Path, samples: Sequence[Sample], first: Sequence[Sample]) -> dict[str, Any]:
    """The numbers of a policy."""
    signals = list(samples[0].worth.signals)
    return {
        "answers": len(samples),
        "unscored": len(bench.asked) * SAMPLES - len(samples),
        "kl": bench.kl(policy, samples),
        "length": float(np.mean([len(sample.completion.ids) for sample in samples])),
        "ends": float(np.mean([sample.completion.finish_reason == "stop" for sample in samples])),
        "scores": {name: float(np.mean([s.worth.signals[name] for s in samples])) for name in signals},
        "wins": {name: wins(samples, first, name) for name in signals},
    }


def main(
    plans: Annotated[list[Path], typer.Argument(exists=True)],
    data: Annotated[Path, typer.Option(exists=True)],
    url: str,
    runs: Path = Path("runs/experiments"),
) -> None:
    """Judges all policies of the plans that are there."""
    given = {plan: read(plan) for plan in plans}
    found: list[tuple[Path, Run]] = [(plan, run) for plan, of in given.items() for run in runs_of(plan, of, runs)]
    done = [(plan, run) for plan, run in found if (run.directory / "checkpoint" / "config.json").is_file()]
    with RewardClient(url) as client:
        bench = Bench.of(given[plans[0]]["config"], data, client)
        first = bench.answers(bench.first)
        rows = [{"plan": None, "variant": "first", "seed": None, **told(bench, bench.first, first, first)}]
        for plan, run in tqdm(done, "policies"):
            policy = run.directory / "checkpoint"
            samples = bench.answers(policy)
            of_run = {"plan": plan.stem, "variant": run.variant, "seed": run.seed}
            rows.append(of_run | told(bench, policy, samples, first))
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "results" / "policies.json").write_text(f"[\n{lines}\n]\n")
    typer.echo(f"{len(done)} of {len(found)} policies are there and have been judged")


if __name__ == "__main__":
    typer.run(main)
