"""Rejection sampling in rounds: sample, score, keep the best, learn to say it (Llama-2's recipe, seeds §12).

The best of earlier rounds are kept and learned from again, so that a round does not forget what another could.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from assay_client.client import RewardClient
from assay_training.algorithms.schedule import passing
from assay_training.config.base import read
from assay_training.config.rejection import RejectionConfig
from assay_training.config.rollout import Reward
from assay_training.loops.experience import scores_of
from assay_training.loops.next_token import NextToken
from assay_training.loops.sampler import Sampler, base_of
from assay_training.loops.supervised import Schedule, train
from assay_training.policy import Policy
from assay_training.processes import accelerator
from assay_training.rollout.collect import Sample
from assay_training.rollout.completion import Ids
from assay_training.rollout.rewards import Rewards, patient_client
from assay_training.sft_examples import SftExample


class RejectionRun:
    """One configuration with its prompts, a service and an engine.

    Args:
        config: the run's.
        data: the folder that holds the sources' folders.
        out: the run directory.
        client: of the service.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: RejectionConfig, data: Path, out: Path, client: RewardClient) -> None:
        self.config, self._client = config, client
        base = base_of(config)
        torch.manual_seed(config.seed)
        self.policy = Policy(base, config.lora, accelerator().device)
        self.sampler = Sampler(config, base, self.policy, data, out)
        self.run = self.sampler.run

    def go(self) -> Path:
        """All rounds from where an interrupted run left off; then the policy, whole. Returns its directory."""
        if self.run.read_json("results.json") is not None:
            return self.sampler.checkpoint
        kept: list[SftExample] = []
        results: list[dict[str, Any]] = []
        fingerprint: str | None = None
        for number in range(1, self.config.rounds + 1):
            done = self.run.read_json(f"round-{number}.json") or self._sample(number, fingerprint)
            fingerprint = done["fingerprint"]
            results.append({key: done[key] for key in ("round", "fingerprint", "score", "best_score", "dropped")})
            kept += [SftExample.of(tuple(best["prompt_ids"]), tuple(best["ids"])) for best in done["best"]]
            self._learn(number, kept)
        return self.sampler.finish(results, kept)

    def _sample(self, number: int, fingerprint: str | None) -> dict[str, Any]:
        """A round's best completions, with what the others were worth; kept in the run directory."""
        config, rewards = self.config, Rewards(self._client, self.config.reward, fingerprint)
        prompts = self.sampler.asked
        chosen = passing(len(prompts), config.prompts, number - 1, config.seed)
        rollout = self.sampler.roll_out(number, [prompts[i] for i in chosen for _ in range(config.samples)], rewards)
        best = best_of(rollout.samples, config.reward)
        done = {
            "round": number,
            "fingerprint": rewards.fingerprint,
            "score": sum(sample.worth.score for sample in rollout.samples) / len(rollout.samples),
            "best_score": sum(sample.worth.score for sample in best) / len(best),
            "dropped": rollout.dropped,
            "best": [_told(sample) for sample in best],
        }
        self.run.write_json(f"round-{number}.json", done)
        again: dict[str, Any] = json.loads(json.dumps(done))  # as a resumed run reads it
        return again

    def _learn(self, number: int, kept: Sequence[SftExample]) -> None:
        """Supervised training of the adapter, from where the round before it left off."""
        adapter = self.run.path / f"round-{number}"
        if (adapter / "adapter_config.json").is_file():
            self.policy.load_adapter(adapter)
            return
        schedule = Schedule(kept, self.config.optimiser, self.config.seed + number)
        train(
            NextToken(self.policy, self.config.optimiser),
            self.policy.parameters(),
            schedule,
            name=f"{self.config.name} round {number}",
            metrics=self.run.metrics(f"round-{number}"),
            resume=self.run.resume_point(f"round-{number}"),
        )
        if self.run.writes:
            unfinished = adapter.with_suffix(".tmp")
            self.policy.save_adapter(unfinished)
            unfinished.rename(adapter)
        accelerator().wait_for_everyone()


def best_of(samples: Sequence[Sample], reward: Reward) -> list[Sample]:
    """Of each prompt the completion with the best score, as PPO would shape it; the first of equal ones."""
    worth = scores_of(samples, reward)[-1].tolist()
    best: dict[Ids, int] = {}
    for i, sample in enumerate(samples):
        first = best.setdefault(sample.asked.ids, i)
        if worth[i] > worth[first]:
            best[sample.asked.ids] = i
    return [samples[i] for i in best.values()]


def _told(sample: Sample) -> dict[str, Any]:
    messages = [asdict(message) for message in sample.asked.prompt.messages]
    return {
        "prompt": messages,
        "completion": sample.text,
        "finish_reason": sample.completion.finish_reason,
        "score": sample.worth.score,
        "signals": sample.worth.signals,
        "prompt_ids": sample.completion.prompt,
        "ids": sample.completion.ids,
    }


def run(config_path: Path, data: Path, out: Path | None, url: str) -> Path:
    """The whole of `assay train rejection`; returns the checkpoint's directory.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong, or the service does not have the reward.
        AssayError: the service could not be reached, or refused.
    """
    config = read(config_path, RejectionConfig)
    with patient_client(url, config.reward) as client:
        return RejectionRun(config, data, out or Path("runs") / config.name, client).go()
