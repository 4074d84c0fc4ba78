"""Hold what PPO and rejection sampling share: prompts, an engine, rollouts of the current policy, a run directory."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay_service.scoring import tokenizer
from assay_training.config.base import ConfigError
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.data.chat_template import find_template
from assay_training.data.checks import check_length, check_refused, find_base
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.processes import get_accelerator, print_once
from assay_training.distributed.sharding import sharding_requested
from assay_training.models.checkpoint import RELOADED_SAMPLE, build_policy_renderer, save_policy
from assay_training.models.policy import Policy
from assay_training.records.sources import hash_data, read_prompts
from assay_training.rl.engine_check import EngineCheck
from assay_training.rollout.collect import Collector, Rollout
from assay_training.rollout.engines.load import load_engine
from assay_training.rollout.prompts import TokenizedPrompt, render_prompts
from assay_training.rollout.rewards import Rewards
from assay_training.runs.directory import RunDirectory, hash_base

# Keys that are not part of a run's identity. `template` and `base` are paths: the identity has the template's text and
# hashes of the base's files. The others may be changed to let a stopped run continue.
CHANGEABLE: Any = {
    "template": True,
    "base": True,
    "reward": {"failed", "expect"},
    "rollout": {"max_logprob_mismatch"},
    "optimizer": {"checkpoint_steps"},
}


def check_sampled_base(config: PpoConfig | RejectionConfig) -> Path:
    """Check everything about the base that needs no loaded model, and return its directory.

    Raises:
        ConfigError: the base has fewer positions than a prompt with its completion needs. Or FSDP was requested,
            although every process samples and needs the whole policy for that.
    """
    if sharding_requested():
        raise ConfigError("sampling needs the whole policy in every process; start the run without FSDP")
    base = find_base(config)
    check_length("rollout: max_prompt_tokens + max_new_tokens", config.rollout.max_tokens, base)
    return base


class RolloutSession:
    """The prompts of a run, and an engine that samples completions of them from the current policy.

    Args:
        config: configuration of the run.
        base: directory of the base.
        policy: policy that is trained; its adapter is pushed to the engine before each rollout.
        data: folder with a folder for each source.
        out: run directory.

    Attributes:
        run: run directory.
        prompts: prompts of the run as token ids.
        engine_check: check that the log-probabilities of engine and trainer agree.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: PpoConfig | RejectionConfig, base: Path, policy: Policy, data: Path, out: Path) -> None:
        self._config, self._policy, self._base = config, policy, base
        self._template = find_template(config, base)
        self.engine_check = EngineCheck(config.rollout.max_logprob_mismatch)
        read = read_prompts(data, config.sources)
        for line in read.report_lines():
            print_once(line)
        self._tokenizer: Any = tokenizer.load(base)
        renderer = build_policy_renderer(self._tokenizer, self._template, policy.vocabulary_size)
        self.prompts, dropped = render_prompts(read.records, renderer, config.rollout.max_prompt_tokens)
        # Long prompts are expected to be dropped; many that the renderer refuses mean a wrong template.
        check_refused(dropped - Counter(too_long=dropped["too_long"]), len(read.records))
        self._report_prompts(read.dropped + dropped)
        identity = {
            "config": config.model_dump(mode="json", exclude=CHANGEABLE),
            "template": self._template,
            **hash_base(base),
            "data_sha256": hash_data(data, config.sources, []),
        }
        self.run = RunDirectory(out, identity, writes=get_accelerator().is_main_process)
        # The main process first checks that the directory has no foreign files; after that the others may write.
        get_accelerator().wait_for_everyone()
        counts = {"prompts": len(self.prompts), "understood": read.understood, "dropped": read.dropped + dropped}
        self.run.write_json("render.json", counts)
        eos, device = self._tokenizer.eos_token_id, get_accelerator().device
        engine = load_engine(config.rollout, config.lora.r, eos, base, device)
        self._collector = Collector(
            engine, lambda completion: completion.text(self._tokenizer), config.rollout.chunk_completions
        )

    def roll_out(self, number: int, prompts: Sequence[TokenizedPrompt], rewards: Rewards) -> Rollout:
        """Sample one completion of each prompt from the current policy, and score it, over all processes.

        Args:
            number: number of the step or round. It names the adapter's directory and seeds the sampling.
            prompts: prompts to complete; equal ones get completions of their own.
            rewards: source of the scores.

        Raises:
            RewardError: a completion has no score, or the service has changed; see `Collector.collect`.
            AssayError: the service could not be reached, or refused a request.
        """
        # Engines cache adapters by name, so every adapter has a directory that no other has had.
        folder = self.run.path / "state" / f"adapters-{get_accelerator().process_index}" / f"step-{number}"
        self._policy.save_adapter(folder)
        self._collector.engine.push(folder)
        rollout = self._collector.collect(prompts, rewards, f"{self._config.seed}:{number}")
        shutil.rmtree(folder)  # the engine has loaded it
        return rollout

    def _report_prompts(self, dropped: Counter[str]) -> None:
        """Print the number of prompts, and how many were dropped for which reason.

        Raises:
            ConfigError: the run needs more prompts than there are.
        """
        limit = f"rollout.max_prompt_tokens is {self._config.rollout.max_prompt_tokens}"
        reasons = "".join(f", {count:,} dropped ({reason})" for reason, count in dropped.items())
        counted = f"{len(self.prompts):,} prompts{reasons}" + (f"; {limit}" if dropped["too_long"] else "")
        needed = self._config.prompts if isinstance(self._config, RejectionConfig) else 1
        if len(self.prompts) < needed:
            raise ConfigError(f"sources: {counted}; the run needs at least {needed:,}")
        print_once(counted)

    @property
    def checkpoint(self) -> Path:
        """Return the directory of the trained policy."""
        return self.run.path / "checkpoint"

    def finish(self, results: Any) -> Path:  # noqa: ANN401 - JSON
        """Close the engine, save the whole policy and then the results, and return the policy's directory.

        Args:
            results: results of the run as JSON; a run that has them is finished.
        """
        # Closed first, because its memory is needed to read the checkpoint back.
        self._collector.engine.close()
        if self.run.writes:
            end = (self._tokenizer.eos_token_id,)  # a prompt of one token would have no target to compare
            sample = [SftExample.of(prompt.ids[:1], prompt.ids[1:] + end) for prompt in self.prompts[:RELOADED_SAMPLE]]
            save_policy(self._policy, self.checkpoint, self._base, self._template, sample)
        get_accelerator().wait_for_everyone()
        self.run.write_json("results.json", results)
        self.run.forget()
        return self.checkpoint
