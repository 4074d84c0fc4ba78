"""Rejection sampling in rounds: sample, score, keep the best, learn to say it ([Llama 2] section 3.2.3).

The best of earlier rounds are kept and learned from again, so that a round does not forget what another could.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from assay_client.client import RewardClient
from assay_training.algorithms.schedule import cyclic_batch
from assay_training.config.base import read
from assay_training.config.rejection import RejectionConfig
from assay_training.config.rollout import Reward
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.processes import accelerator, tell
from assay_training.loop.next_token import NextToken
from assay_training.loop.supervised import Schedule, train
from assay_training.models.batches import token_batches
from assay_training.models.policy import Policy
from assay_training.rl import summary
from assay_training.rl.experience import correlation, example_of, scores_of
from assay_training.rl.session import RolloutSession, sampled_base
from assay_training.rollout.collect import Rollout, ScoredCompletion
from assay_training.rollout.completion import Ids
from assay_training.rollout.rewards import Rewards, patient_client, served_by


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
        base = sampled_base(config)
        torch.manual_seed(config.seed)
        self.policy = Policy(base, config.lora, accelerator().device)
        self.session = RolloutSession(config, base, self.policy, data, out)
        self.run = self.session.run

    def go(self) -> Path:
        """All rounds from where an interrupted run left off; then the policy, whole. Returns its directory.

        Raises:
            ConfigError: the service is not the one that the run expects; nothing has been sampled then.
        """
        if self.run.read_json("results.json") is not None:
            self.run.forget()  # a kill may have come between the two
            return self.session.checkpoint
        for line in served_by(self._client, self.config.reward):
            tell(line)
        kept: list[SftExample] = []
        results: list[dict[str, Any]] = []
        fingerprint: str | None = None
        for number in range(1, self.config.rounds + 1):
            done = self.run.read_json(f"round-{number}.json") or self._sample(number, fingerprint)
            fingerprint, self.session.engine_check.floor = done["fingerprint"], done["mismatch_floor"]
            results.append({key: done[key] for key in ("round", "fingerprint", "score", "best_score", "dropped")})
            kept += [SftExample.of(tuple(best["prompt_ids"]), tuple(best["ids"])) for best in done["best"]]
            self._learn(number, kept)
        return self.session.finish(results)

    def _sample(self, number: int, fingerprint: str | None) -> dict[str, Any]:
        """A round's best completions, with what the others were worth; kept in the run directory."""
        config, rewards = self.config, Rewards(self._client, self.config.reward, fingerprint)
        prompts = self.session.asked
        chosen = cyclic_batch(len(prompts), config.prompts, number - 1, config.seed)
        rollout = self.session.roll_out(number, [prompts[i] for i in chosen for _ in range(config.samples)], rewards)
        probed = self.session.engine_check.check(number, self._gap(rollout.samples[: config.rollout.chunk_completions]))
        answers = by_prompt(rollout.samples)
        best = [best_of(of, config.reward) for of in answers]
        done = {
            "round": number,
            "fingerprint": rewards.fingerprint,
            "mismatch_floor": self.session.engine_check.floor,
            "score": _mean(rollout.samples),
            "best_score": _mean(best),
            "dropped": rollout.dropped,
            "best": [_record(sample) for sample in best],
            "scores": [[sample.score.value for sample in of] for of in answers],
        }
        if self.run.writes:
            self._log(number, {**numbers_of(rollout, best), **probed, "fingerprint": rewards.fingerprint})
        self.run.write_json(f"round-{number}.json", done)
        again: dict[str, Any] = json.loads(json.dumps(done))  # as a resumed run reads it
        return again

    def _gap(self, samples: Sequence[ScoredCompletion]) -> float:
        """How far the engine's log-probabilities are from the policy's; in fp32, where rounding hides least."""
        settings, examples, found = self.config, [example_of(sample) for sample in samples], []
        for part in token_batches(range(len(examples)), examples, settings.optimizer.micro_batch_tokens):
            with torch.no_grad():
                found.append(self.policy.logprobs([examples[i] for i in part], settings.rollout.temperature).cpu())
        engine = torch.tensor([logprob for sample in samples for logprob in sample.completion.logprobs])
        return float((torch.cat(found) - engine).abs().mean())

    def _log(self, number: int, row: Mapping[str, Any]) -> None:
        """The round's row of metrics; before the round counts as sampled, so that a kill between them loses none."""
        metrics = self.run.metrics("rounds")
        metrics.begin(number)
        metrics.log({"step": number, **row})
        metrics.end()

    def _learn(self, number: int, kept: Sequence[SftExample]) -> None:
        """Supervised training of the adapter, from where the round before it left off."""
        adapter = self.run.path / f"round-{number}"
        if (adapter / "adapter_config.json").is_file():
            self.policy.load_adapter(adapter)
            return
        schedule = Schedule(kept, self.config.optimizer, self.config.seed + number)
        train(
            NextToken(self.policy, self.config.optimizer),
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


def by_prompt(samples: Sequence[ScoredCompletion]) -> list[list[ScoredCompletion]]:
    """The completions of each prompt."""
    found: dict[Ids, list[ScoredCompletion]] = {}
    for sample in samples:
        found.setdefault(sample.prompt.ids, []).append(sample)
    return list(found.values())


def best_of(samples: Sequence[ScoredCompletion], reward: Reward) -> ScoredCompletion:
    """Of one prompt's completions that with the best score, as PPO would shape it; the first of equal ones."""
    worth = scores_of(samples, reward)[-1].tolist()
    return samples[max(range(len(samples)), key=worth.__getitem__)]


def numbers_of(rollout: Rollout, best: Sequence[ScoredCompletion]) -> dict[str, float]:
    """What metrics tell of a round; without the correlation of score and length where there is none."""
    count = len(rollout.samples)
    scores = torch.tensor([sample.score.value for sample in rollout.samples])
    lengths = torch.tensor([float(len(sample.completion.ids)) for sample in rollout.samples])
    related = correlation(scores, lengths)
    return {
        "score": _mean(rollout.samples),
        "best_score": _mean(best),
        "length": float(lengths.mean()),
        "eos_rate": sum(sample.completion.finish_reason == "stop" for sample in rollout.samples) / count,
        **({} if related is None else {"score_length_correlation": related}),
        **rollout.numbers,
    }


def _mean(samples: Sequence[ScoredCompletion]) -> float:
    return sum(sample.score.value for sample in samples) / len(samples)


def _record(sample: ScoredCompletion) -> dict[str, Any]:
    messages = [message.as_dict() for message in sample.prompt.prompt.messages]
    return {
        "prompt": messages,
        "completion": sample.text,
        "finish_reason": sample.completion.finish_reason,
        "score": sample.score.value,
        "signals": sample.score.signals,
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
        rejection = RejectionRun(config, data, out or Path("runs") / config.name, client)
        checkpoint = rejection.go()
    for line in summary.rejection_lines(rejection.run.read_json("results.json") or [], config.samples, checkpoint):
        tell(line)
    return checkpoint
