"""PPO, top to bottom: sample, score, look, learn; each step from a rollout of its own.

Every process has the whole rollout: it samples and outputs at its share, and all of them learn from all of it.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from assay_client.client import RewardClient
from assay_training.algorithms.ppo import adapted_kl_coef, ratio_too_large
from assay_training.algorithms.schedule import cyclic_batch, random_batches
from assay_training.config.base import read
from assay_training.config.ppo import PpoConfig
from assay_training.distributed.processes import accelerator, gathered, mine, tell
from assay_training.loop.step import accumulate, build_optimizer, check_finite, check_numbers, update
from assay_training.models.actor import Actor
from assay_training.records.rows import rows_of_file
from assay_training.rl import summary
from assay_training.rl.clipped import NAMES, Clipped
from assay_training.rl.experience import Experience, Metrics, example_of, experiences
from assay_training.rl.session import RolloutSession, sampled_base
from assay_training.rollout.collect import ScoredCompletion
from assay_training.rollout.rewards import Rewards, patient_client, served_by


class PpoRun:
    """One configuration with its prompts, a service and an engine.

    Args:
        config: the run's.
        data: the folder that holds the sources' folders.
        out: the run directory.
        client: of the service.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: PpoConfig, data: Path, out: Path, client: RewardClient) -> None:
        self.config, self._client, self._together = config, client, accelerator()
        base = sampled_base(config)
        torch.manual_seed(config.seed)
        self.actor = Actor(base, config.lora, self._together.device, config.rollout.temperature)
        self.session = RolloutSession(config, base, self.actor.policy, data, out)
        self.run = self.session.run
        self._objective = Clipped(self.actor, config.ppo, config.optimizer)
        self._optimiser = build_optimizer(self.actor.parameters(), config.optimizer)

    def go(self) -> Path:
        """All steps from where an interrupted run left off; then the policy, whole. Returns its directory.

        Raises:
            ConfigError: the service is not the one that the run expects; nothing has been sampled then.
        """
        if self.run.read_json("results.json") is not None:
            self.run.forget()  # a kill may have come between the two
            return self.session.checkpoint
        for line in served_by(self._client, self.config.reward):
            tell(line)
        metrics, resume, main = self.run.metrics("ppo"), self.run.resume_point("ppo"), self._together.is_main_process
        start, kept = resume.load(self.actor.parameters(), self._optimiser)
        kl_coef = float(kept.get("kl_coef") or self.config.kl.coef)
        fingerprint, floor = kept.get("fingerprint"), kept.get("mismatch_floor")
        self.session.engine_check.floor = None if floor is None else float(floor)
        rewards = Rewards(self._client, self.config.reward, None if fingerprint is None else str(fingerprint))
        if main:
            metrics.begin(start)
        steps, settings = self.config.steps, self.config.optimizer
        progress = tqdm(range(start, steps), self.config.name, steps, initial=start, disable=not main)
        for step in progress:
            numbers, completions = self.step(step, kl_coef, rewards)
            check_numbers(f"step {step}", numbers, settings)
            kl_coef = self._adapted(kl_coef, numbers["kl"], completions)
            progress.set_postfix(score=f"{numbers['score']:.3f}", kl=f"{numbers['kl']:.2f}", refresh=False)
            if main:
                metrics.log({"step": step, **numbers, "fingerprint": str(rewards.fingerprint)})
            if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == steps:
                check_finite(self.actor.parameters(), f"step {step}")
                now = {
                    "kl_coef": kl_coef,
                    "fingerprint": rewards.fingerprint,
                    "mismatch_floor": self.session.engine_check.floor,
                }
                resume.save(step + 1, self.actor.parameters(), self._optimiser, writes=main, kept=now)
        if main:
            metrics.end()
            shutil.rmtree(self.run.path / "adapter", ignore_errors=True)
            self.actor.policy.save_adapter(self.run.path / "adapter")
        return self.session.finish({"steps": steps, "fingerprint": rewards.fingerprint})

    def step(self, step: int, kl_coef: float, rewards: Rewards) -> tuple[Metrics, int]:
        """ScoredCompletion, score, look, learn; returns the numbers of it and how many completions it learned from.

        Raises:
            RewardError: see `Rewards.score`.
            EngineError: the engine samples from something else.
            FloatingPointError: see `learn`.
        """
        prompts, count = self.session.asked, self.config.rollout.completions
        asked = [prompts[i] for i in cyclic_batch(len(prompts), count, step, self.config.seed)]
        rollout = self.session.roll_out(step, asked, rewards)
        began_s = time.monotonic()
        made, numbers = self.experiences(rollout.samples, kl_coef)
        numbers |= self.session.engine_check.check(step, numbers["logprob_mismatch"])
        numbers |= self.learn(step, made)
        return numbers | rollout.numbers | {"update_s": time.monotonic() - began_s}, len(made)

    def experiences(self, samples: Sequence[ScoredCompletion], kl_coef: float) -> tuple[list[Experience], Metrics]:
        """What the policy, its values and its reference say of the samples, and what is to be learned from that."""
        share, settings = [example_of(sample) for sample in mine(samples)], self.config.optimizer
        looked = [look.to("cpu") for look in self.actor.old_outputs(share, settings)]
        references = [of.cpu() for of in self.actor.reference_logprobs(share, settings)]
        count, device = len(samples), self._together.device
        outputs = [look.to(device) for look in gathered(looked, count)]
        return experiences(
            samples, outputs, [of.to(device) for of in gathered(references, count)], kl_coef, self.config
        )

    def learn(self, step: int, made: Sequence[Experience]) -> Metrics:
        """The updates of a step, and the means of the numbers of those that were not skipped.

        Raises:
            FloatingPointError: a loss or a gradient is not finite, where the ratio is within its limit.
        """
        settings, optimizer = self.config.ppo, self.config.optimizer
        parameters, told, skipped = self.actor.parameters(), [], 0
        order = random_batches(len(made), settings.mini_batch, settings.epochs, self.config.seed + 1_000_003 * step)
        for indices in order:
            batch = [made[i] for i in indices]
            loss, norm = accumulate(self._objective, batch, parameters, optimizer, self._together)
            tally = self._together.reduce(self._objective.tally, reduction="sum")
            tokens = sum(experience.example.targets for experience in batch)
            numbers = {name: float(value) / tokens for name, value in zip(NAMES, tally, strict=True)}
            # First of all: a ratio that overflows takes loss and gradients with it.
            if ratio_too_large(numbers["ratio"], settings.ratio_limit):
                self._optimiser.zero_grad(set_to_none=True)
                skipped += 1
                continue
            check_numbers(f"step {step}", {"loss": loss, "grad_norm": norm}, optimizer)
            told.append(numbers | {"loss": loss, "grad_norm": norm})
            update(self._optimiser, optimizer.learning_rate)
        return _means(told) | {"skipped": float(skipped)}

    def _adapted(self, kl_coef: float, kl: float, completions: int) -> float:
        kl_settings = self.config.kl
        if kl_settings.target is None:
            return kl_coef
        return adapted_kl_coef(kl_coef, kl, completions, target=kl_settings.target, horizon=kl_settings.horizon)


def _means(told: Sequence[Metrics]) -> Metrics:
    return {name: sum(of[name] for of in told) / len(told) for name in told[0]} if told else {}


def run(config_path: Path, data: Path, out: Path | None, url: str) -> Path:
    """The whole of `assay train ppo`; returns the checkpoint's directory.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong, or the service does not have the reward.
        AssayError: the service could not be reached, or refused.
    """
    config = read(config_path, PpoConfig)
    with patient_client(url, config.reward) as client:
        ppo = PpoRun(config, data, out or Path("runs") / config.name, client)
        checkpoint = ppo.go()
    rows = [row.fields for row in rows_of_file(ppo.run.path / "metrics.jsonl")]
    for line in summary.ppo_lines([row for row in rows if row["part"] == "ppo"], checkpoint):
        tell(line)
    return checkpoint
