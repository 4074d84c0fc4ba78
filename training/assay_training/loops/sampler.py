"""What PPO and rejection sampling do alike: prompts, an engine, rollouts of the policy as it is, a run directory."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from assay_service.scoring.checkpoint import resolve, sha256_of, weight_files
from assay_training.config.base import ConfigError
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.loops.checks import check_length
from assay_training.loops.policies import policy_renderer
from assay_training.policy import Policy
from assay_training.processes import accelerator
from assay_training.records.sources import data_hashes, read_prompts
from assay_training.rollout.asked import Asked, render_prompts
from assay_training.rollout.collect import Rollout, collect
from assay_training.rollout.completion import Completion
from assay_training.rollout.engines import engine_of
from assay_training.rollout.rewards import Rewards
from assay_training.rundir import RunDirectory
from assay_training.sharding import asked_for


def base_of(config: PpoConfig | RejectionConfig) -> Path:
    """The directory of the policy to start from.

    Raises:
        ConfigError: it has too few positions; or layers are to be spread over processes, each of which samples.
    """
    if asked_for():
        raise ConfigError("sampling needs the whole policy in every process; start it without FSDP")
    base = resolve(config.base, config.revision, Path.cwd())
    check_length(config.rollout.max_tokens, base)
    return base


class Sampler:
    """The prompts of a run and an engine that answers them.

    Args:
        config: the run's.
        policy: that is trained; the engine follows it.
        data: the folder that holds the sources' folders.
        out: the run directory.

    Attributes:
        run: the run directory.
        tokenizer: of the policy.
        asked: the prompts.

    Raises:
        ValueError: the configuration, the prompts or the run directory is wrong.
    """

    def __init__(self, config: PpoConfig | RejectionConfig, policy: Policy, data: Path, out: Path) -> None:
        base, self._config, self._policy = base_of(config), config, policy
        found = read_prompts(data, config.sources)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        renderer = policy_renderer(self.tokenizer, config.template, policy.vocabulary_size)
        self.asked, left_out = render_prompts(found.records, renderer, config.rollout.max_prompt_tokens)
        if not self.asked:
            raise ConfigError(f"sources: no prompt is left: {dict(left_out)}")
        identity = {
            "config": config.model_dump(mode="json", exclude={"template"}),
            "template": config.template.read_text(),
            "base_sha256": sha256_of(weight_files(base)),
            "data_sha256": data_hashes(data, config.sources, []),
        }
        self.run = RunDirectory(out, identity, writes=accelerator().is_main_process)
        accelerator().wait_for_everyone()  # the first looks for files that are no run's; now the others may write
        self.run.write_json("render.json", {"prompts": len(self.asked), "left_out": found.left_out + left_out})
        self._engine = engine_of(config.rollout, config.lora.r, base, accelerator().device)

    def roll_out(self, number: int, asked: Sequence[Asked], rewards: Rewards) -> Rollout:
        """A completion of each prompt by the policy as it is now, with its score, from all processes.

        Args:
            number: of the step or round; an adapter's directory has it in its name, and no other adapter has.
            asked: prompts.
            rewards: scores.
        """
        folder = self.run.path / "state" / f"adapters-{accelerator().process_index}" / f"step-{number}"
        self._policy.save_adapter(folder)
        self._engine.push(folder)
        chunk, seed = self._config.rollout.chunk_completions, f"{self._config.seed}:{number}"
        rollout = collect(asked, self._engine, rewards, self._text, chunk, seed)
        shutil.rmtree(folder)  # the engine has it in memory
        return rollout

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()

    def _text(self, completion: Completion) -> str:
        """What it says, without the EOS that ended it; control tokens inside it stay visible, and are refused."""
        ids = completion.ids[:-1] if completion.finish_reason == "stop" else completion.ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
