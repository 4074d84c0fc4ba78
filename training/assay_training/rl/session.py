"""What PPO and rejection sampling do alike: prompts, an engine, rollouts of the policy as it is, a run directory."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay_service.scoring import tokenizer
from assay_training.config.base import ConfigError
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.data.chat_template import template_of
from assay_training.data.checks import base_of, check_length, check_refused
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.processes import accelerator, tell
from assay_training.distributed.sharding import sharding_requested
from assay_training.models.checkpoint import RELOADED_SAMPLE, policy_renderer, save_policy
from assay_training.models.policy import Policy
from assay_training.records.sources import data_hashes, read_prompts
from assay_training.rl.engine_check import EngineCheck
from assay_training.rollout.collect import Collector, Rollout
from assay_training.rollout.engines.load import engine_of
from assay_training.rollout.prompts import TokenizedPrompt, render_prompts
from assay_training.rollout.rewards import Rewards
from assay_training.runs.directory import RunDirectory, base_identity

# The template's text and the base's files are hashed, not their places. The others may be changed when a run that has
# stopped is to go on.
CHANGEABLE: Any = {
    "template": True,
    "base": True,
    "reward": {"failed", "expect"},
    "rollout": {"max_logprob_mismatch"},
    "optimizer": {"checkpoint_steps"},
}


def sampled_base(config: PpoConfig | RejectionConfig) -> Path:
    """The directory of the policy to start from, once all that needs no model is seen to fit.

    Raises:
        ConfigError: the base has too few positions; or layers are to be spread over processes, each of which samples.
    """
    if sharding_requested():
        raise ConfigError("sampling needs the whole policy in every process; start it without FSDP")
    base = base_of(config)
    check_length("rollout: max_prompt_tokens + max_new_tokens", config.rollout.max_tokens, base)
    return base


class RolloutSession:
    """The prompts of a run and an engine that answers them.

    Args:
        config: the run's.
        base: the policy's directory.
        policy: that is trained; the engine follows it.
        data: the folder that holds the sources' folders.
        out: the run directory.

    Attributes:
        run: the run directory.
        asked: the prompts.
        engine_check: compares the engine's log-probabilities with the trainer's.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: PpoConfig | RejectionConfig, base: Path, policy: Policy, data: Path, out: Path) -> None:
        self._config, self._policy, self._base = config, policy, base
        self._template = template_of(config, base)
        self.engine_check = EngineCheck(config.rollout.max_logprob_mismatch)
        found = read_prompts(data, config.sources)
        for line in found.report_lines():
            tell(line)
        self._tokenizer: Any = tokenizer.load(base)
        renderer = policy_renderer(self._tokenizer, self._template, policy.vocabulary_size)
        self.asked, left_out = render_prompts(found.records, renderer, config.rollout.max_prompt_tokens)
        check_refused(left_out - Counter(too_long=left_out["too_long"]), len(found.records))
        self._check(found.left_out + left_out)
        identity = {
            "config": config.model_dump(mode="json", exclude=CHANGEABLE),
            "template": self._template,
            **base_identity(base),
            "data_sha256": data_hashes(data, config.sources, []),
        }
        self.run = RunDirectory(out, identity, writes=accelerator().is_main_process)
        accelerator().wait_for_everyone()  # the first outputs for files that are no run's; now the others may write
        counts = {"prompts": len(self.asked), "understood": found.understood, "left_out": found.left_out + left_out}
        self.run.write_json("render.json", counts)
        eos, device = self._tokenizer.eos_token_id, accelerator().device
        engine = engine_of(config.rollout, config.lora.r, eos, base, device)
        self._collector = Collector(engine, lambda of: of.text(self._tokenizer), config.rollout.chunk_completions)

    def roll_out(self, number: int, asked: Sequence[TokenizedPrompt], rewards: Rewards) -> Rollout:
        """A completion of each prompt by the policy as it is now, with its score, from all processes.

        Args:
            number: of the step or round; an adapter's directory has it in its name, and no other adapter has.
            asked: prompts.
            rewards: scores.
        """
        folder = self.run.path / "state" / f"adapters-{accelerator().process_index}" / f"step-{number}"
        self._policy.save_adapter(folder)
        self._collector.engine.push(folder)
        rollout = self._collector.collect(asked, rewards, f"{self._config.seed}:{number}")
        shutil.rmtree(folder)  # the engine has it in memory
        return rollout

    def _check(self, left_out: Counter[str]) -> None:
        """Says how many prompts there are, and why there are not more.

        Raises:
            ConfigError: there are too few.
        """
        limit = f"rollout.max_prompt_tokens is {self._config.rollout.max_prompt_tokens}"
        without = "".join(f", without {count:,} {reason}" for reason, count in left_out.items())
        told = f"{len(self.asked):,} prompts{without}" + (f" ({limit})" if left_out["too_long"] else "")
        wanted = self._config.prompts if isinstance(self._config, RejectionConfig) else 1
        if len(self.asked) < wanted:
            raise ConfigError(f"sources: {told}; a round is of {wanted:,}")
        tell(told)

    @property
    def checkpoint(self) -> Path:
        """Where the policy goes."""
        return self.run.path / "checkpoint"

    def finish(self, results: Any) -> Path:  # noqa: ANN401 - JSON
        """Ends the engine, and the run: the policy, whole, then the results. Returns the policy's directory.

        Args:
            results: of the run; with them it is done.
        """
        self._collector.engine.close()
        if self.run.writes:
            end = (self._tokenizer.eos_token_id,)  # so that there is something to predict after one token, too
            sample = [SftExample.of(asked.ids[:1], asked.ids[1:] + end) for asked in self.asked[:RELOADED_SAMPLE]]
            save_policy(self._policy, self.checkpoint, self._base, self._template, sample)
        accelerator().wait_for_everyone()
        self.run.write_json("results.json", results)
        self.run.forget()
        return self.checkpoint
