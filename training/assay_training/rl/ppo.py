"""Run PPO: in each step sample completions, score them, compute their advantages, and update the policy.

Every process holds the whole rollout: it samples and evaluates its share of the completions, then all processes learn
from all of them together.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from assay_client.client import RewardClient
from assay_training.algorithms.ppo import adapt_kl_coef, exceeds_ratio_limit
from assay_training.algorithms.schedule import SEED_STRIDE, draw_cyclic_batch, draw_random_batches
from assay_training.config.base import read
from assay_training.config.ppo import PpoConfig
from assay_training.distributed.numbers import decide_compute_dtype
from assay_training.distributed.processes import gather_results, get_accelerator, print_once, select_own
from assay_training.loop.step import accumulate, build_optimizer, check_finite, check_numbers, update
from assay_training.models.actor import Actor
from assay_training.records.rows import read_json_lines
from assay_training.rl import summary
from assay_training.rl.clipped import TALLY_NAMES, ClippedObjective
from assay_training.rl.experience import Experience, Metrics, build_example, build_experiences
from assay_training.rl.session import RolloutSession, check_sampled_base
from assay_training.rollout.collect import ScoredCompletion
from assay_training.rollout.rewards import Rewards, identify_service, open_patient_client


class PpoRun:
    """A PPO run: one configuration with its prompts, a reward service and an engine.

    Args:
        config: configuration of the run.
        data: folder with a folder for each source.
        out: run directory.
        client: client of the reward service.

    Attributes:
        config: configuration of the run.
        actor: policy, value head and reference policy.
        session: prompts, engine and run directory.
        run: run directory.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: PpoConfig, data: Path, out: Path, client: RewardClient) -> None:
        self.config, self._client, self._together = config, client, get_accelerator()
        base = check_sampled_base(config)
        torch.manual_seed(config.seed)  # the adapter is initialized at random
        self.actor = Actor(base, config.lora, self._together.device, config.rollout.temperature)
        self.session = RolloutSession(config, base, self.actor.policy, data, out)
        self.run = self.session.run
        self._objective = ClippedObjective(self.actor, config.ppo, config.optimizer)
        self._optimizer = build_optimizer(self.actor.parameters(), config.optimizer)

    def go(self) -> Path:
        """Run all steps from where an interrupted run stopped, then save the whole policy and return its directory.

        Raises:
            ConfigError: the service is not the one that the run expects; nothing has been sampled then.
            RunStopped: the service or the engine is not as it must be; see `step`.
            FloatingPointError: the training diverges.
        """
        if self.run.read_json("results.json") is not None:
            self.run.forget()  # a run killed after writing its results still has its resume state
            return self.session.checkpoint
        # Before sampling: the wrong service would give rewards for hours.
        for line in identify_service(self._client, self.config.reward):
            print_once(line)
        metrics, resume, main = self.run.metrics("ppo"), self.run.resume_point("ppo"), self._together.is_main_process
        start, kept = resume.load(self.actor.parameters(), self._optimizer)
        kl_coef, rewards = self._restore(kept)
        if main:
            metrics.begin(start)
        steps, settings = self.config.steps, self.config.optimizer
        progress = tqdm(range(start, steps), self.config.name, steps, initial=start, disable=not main)
        for step in progress:
            numbers, completions = self.step(step, kl_coef, rewards)
            check_numbers(f"step {step}", numbers, settings)
            # After the update, so that a step uses one coefficient for all its rewards.
            kl_coef = self._adapt_kl_coef(kl_coef, numbers["kl"], completions)
            progress.set_postfix(score=f"{numbers['score']:.3f}", kl=f"{numbers['kl']:.2f}", refresh=False)
            if main:
                metrics.log({"step": step, **numbers, "fingerprint": str(rewards.fingerprint)})
            if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == steps:
                check_finite(self.actor.parameters(), f"step {step}")
                now = {"kl_coef": kl_coef, "fingerprint": rewards.fingerprint}
                now["mismatch_floor"] = self.session.engine_check.floor
                resume.save(step + 1, self.actor.parameters(), self._optimizer, writes=main, kept=now)
        if main:
            metrics.end()
            # Saved before `finish`, which merges the adapter into the weights.
            shutil.rmtree(self.run.path / "adapter", ignore_errors=True)
            self.actor.policy.save_adapter(self.run.path / "adapter")
        return self.session.finish({"steps": steps, "fingerprint": rewards.fingerprint})

    def _restore(self, kept: Mapping[str, Any]) -> tuple[float, Rewards]:
        """Continue from what `go` kept of an interrupted run, or from nothing.

        Returns:
            The coefficient of the KL penalty, and the rewards of the service that the run began with.
        """
        fingerprint, floor = kept.get("fingerprint"), kept.get("mismatch_floor")
        self.session.engine_check.floor = None if floor is None else float(floor)
        # A run must not mix the rewards of two models, so that it expects the same fingerprint.
        rewards = Rewards(self._client, self.config.reward, None if fingerprint is None else str(fingerprint))
        return float(kept.get("kl_coef") or self.config.kl.coef), rewards

    def step(self, step: int, kl_coef: float, rewards: Rewards) -> tuple[Metrics, int]:
        """Run one PPO step: sample, score, compute experiences, and learn.

        Args:
            step: number of the step, from 0; it selects the prompts.
            kl_coef: coefficient of the KL penalty.
            rewards: source of the scores.

        Returns:
            The metrics of the step, and the number of completions that it learned from.

        Raises:
            RewardError: a completion has no score, or the service has changed; see `Rewards.score`.
            EngineError: the engine does not sample from the policy.
            FloatingPointError: the training diverges; see `learn`.
        """
        prompts, count = self.session.prompts, self.config.rollout.completions
        # From the step alone, so that a resumed run takes the same prompts.
        chosen = [prompts[i] for i in draw_cyclic_batch(len(prompts), count, step, self.config.seed)]
        rollout = self.session.roll_out(step, chosen, rewards)
        began_s = time.monotonic()
        experiences, numbers = self.compute_experiences(rollout.samples, kl_coef)
        numbers |= self.session.engine_check.check(step, numbers["logprob_mismatch"])
        numbers |= self.learn(step, experiences)
        return numbers | rollout.numbers | {"update_s": time.monotonic() - began_s}, len(experiences)

    def compute_experiences(
        self, samples: Sequence[ScoredCompletion], kl_coef: float
    ) -> tuple[list[Experience], Metrics]:
        """Evaluate policy, value head and reference on the samples, and return experiences and rollout metrics.

        Each process evaluates its share; the outputs are gathered, so that every process returns the same.

        Args:
            samples: scored completions of the rollout, the same in every process.
            kl_coef: coefficient of the KL penalty.
        """
        share, settings = [build_example(sample) for sample in select_own(samples)], self.config.optimizer
        # Moved to the CPU, because gathering pickles them.
        own_outputs = [output.to("cpu") for output in self.actor.compute_old_outputs(share, settings)]
        own_references = [logprobs.cpu() for logprobs in self.actor.compute_reference_logprobs(share, settings)]
        count, device = len(samples), self._together.device
        outputs = [output.to(device) for output in gather_results(own_outputs, count)]
        references = [logprobs.to(device) for logprobs in gather_results(own_references, count)]
        return build_experiences(samples, outputs, references, kl_coef, self.config)

    def learn(self, step: int, experiences: Sequence[Experience]) -> Metrics:
        """Run the updates of a step: `ppo.epochs` passes over the experiences in mini-batches.

        An update whose mean ratio π/π_old exceeds `ppo.ratio_limit` is skipped and counted.

        Args:
            step: number of the step, which seeds the order of the experiences.
            experiences: experiences of the rollout.

        Returns:
            Metrics, averaged over the updates that were not skipped, and the number of those that were.

        Raises:
            FloatingPointError: a loss or a gradient is not finite although the ratio is within its limit.
        """
        settings, optimizer = self.config.ppo, self.config.optimizer
        parameters, updates, skipped = self.actor.parameters(), [], 0
        seed = self.config.seed + SEED_STRIDE * step
        for indices in draw_random_batches(len(experiences), settings.mini_batch, settings.epochs, seed):
            batch = [experiences[i] for i in indices]
            loss, norm = accumulate(self._objective, batch, parameters, optimizer, self._together)
            tally = self._together.reduce(self._objective.tally, reduction="sum")
            tokens = sum(experience.example.targets for experience in batch)
            numbers = {name: float(value) / tokens for name, value in zip(TALLY_NAMES, tally, strict=True)}
            # Checked before the loss, because a ratio that overflows makes loss and gradients infinite as well.
            if exceeds_ratio_limit(numbers["ratio"], settings.ratio_limit):
                self._optimizer.zero_grad(set_to_none=True)
                skipped += 1
                continue
            check_numbers(f"step {step}", {"loss": loss, "grad_norm": norm}, optimizer)
            updates.append(numbers | {"loss": loss, "grad_norm": norm})
            update(self._optimizer, optimizer.learning_rate)
        return _average(updates) | {"skipped": float(skipped)}

    def _adapt_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """Return the KL coefficient of the next step; it is constant without `kl.target`."""
        kl_settings = self.config.kl
        if kl_settings.target is None:
            return kl_coef
        return adapt_kl_coef(kl_coef, kl, completions, target=kl_settings.target, horizon=kl_settings.horizon)


def _average(updates: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over the updates; nothing if there are none."""
    return {name: sum(row[name] for row in updates) / len(updates) for name in updates[0]} if updates else {}


def run(config_path: Path, data: Path, out: Path | None, url: str, api_key: str | None = None) -> Path:
    """Run `assay train ppo` and return the directory of the checkpoint.

    Args:
        config_path: YAML file of the configuration.
        data: folder with a folder for each source.
        out: run directory; None means `runs/NAME`.
        url: address of the reward service.
        api_key: key that is sent to the service; None sends none.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong, or the service does not have the reward.
        AssayError: the service could not be reached, or refused a request.
        RunStopped: the service or the engine is not as it must be; the run can be resumed.
        FloatingPointError: the training diverges.
    """
    config = decide_compute_dtype(read(config_path, PpoConfig))
    with open_patient_client(url, config.reward, api_key) as client:
        ppo = PpoRun(config, data, out or Path("runs") / config.name, client)
        checkpoint = ppo.go()
    rows = [row.fields for row in read_json_lines(ppo.run.path / "metrics.jsonl")]
    for line in summary.describe_ppo_run([row for row in rows if row["part"] == "ppo"], checkpoint):
        print_once(line)
    return checkpoint
