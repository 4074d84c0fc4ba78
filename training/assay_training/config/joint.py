"""Declare the configuration of a run that trains several heads on one trunk."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from assay_service.errors import StartError
from assay_service.scoring.manifest import REASONING_TAGS, EosPolicy, Reasoning, ScorePosition, Tag, Unfinished
from assay_service.yaml_file import read_yaml
from assay_training.config.base import Frozen, Name, RunConfig, Seed
from assay_training.config.data import Sources, Split
from assay_training.config.mixture import Step
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.objective import Objective
from assay_training.config.reward import LowerLayers, RewardConfig, check_adapted_layers, check_trainable


def has_several_heads(path: Path) -> bool:
    """Return whether a YAML file declares `heads`, and so a `JointConfig`; other faults of the file are found later."""
    with suppress(StartError):
        raw = read_yaml(path)
        return isinstance(raw, dict) and "heads" in raw
    return False


class HeadConfig(Frozen):
    """One head of a joint run, with the data that it is trained on.

    Attributes:
        objective: The training objective: `preference` (Bradley-Terry on rankings) or `absolute` (labels in 0..1).
        weight: The factor of this head's loss in the sum over all heads.
        sources: The data sets to train on and to test on.
        mixture: The steps, in order, that turn the records of a training part into its training set.
        golden: Pairs of prompt and completion, stored with their logits and checked at every load; null takes the
            first rows.
    """

    objective: Objective
    weight: float = Field(1.0, gt=0)
    sources: Sources
    mixture: list[Step] = Field([])
    golden: Annotated[list[tuple[str, str]], Field(min_length=1)] | None = None


class JointConfig(RunConfig):
    """A run of `assay train reward` that trains several heads on one trunk.

    The served signals of its checkpoint share one forward pass. The keys outside `heads` are those of a run with one
    head.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` is given.
        heads: The heads by the names of their signals.
        max_length: The largest number of tokens of prompt and completion; longer prompts are truncated on the left.
        score_position: The tokens that the heads read.
        eos: The source of the end-of-turn token: the chat template prints it, or it is appended.
        unfinished: The treatment of completions that were cut off, by the served model.
        reasoning: The treatment of reasoning in completions, in training and by the served model.
        reasoning_tags: The tags that open and close reasoning, where it is not kept.
        lora: The adapter that all heads share; null trains all weights.
        lower_layers: The layers below `lora.layers`: `compute` in every step, `store` their hidden states once, or
            `keep` that file afterwards.
        optimizer: The optimizer and its learning-rate schedule; a batch holds records of all heads.
        split: The division of each head's data into training and test parts; folds are not supported.
        seed: The seed of all random draws.
    """

    name: Name
    heads: Annotated[dict[Name, HeadConfig], Field(min_length=2)]
    max_length: int = Field(gt=0)
    score_position: Annotated[ScorePosition, AfterValidator(check_trainable)]
    eos: EosPolicy
    unfinished: Unfinished
    reasoning: Reasoning = "keep"
    reasoning_tags: tuple[Tag, Tag] = REASONING_TAGS
    lora: Lora | None
    lower_layers: LowerLayers = "compute"
    optimizer: OptimizerConfig
    split: Split
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_heads(self) -> "JointConfig":
        check_adapted_layers(self.lower_layers, self.lora)
        if self.split.folds is not None:
            raise ValueError("split: a run with several heads is tested on `held_out` groups; remove `folds`")
        for name, head in self.heads.items():
            if not head.objective.served:
                raise ValueError(f"heads.{name}.objective: its output is not a logit, so it cannot be served")
        self.build_head_configs()  # refuses what a run with one head refuses
        return self

    def build_head_configs(self) -> dict[str, RewardConfig]:
        """Return the configuration of each head as that of a run with this head alone, by name."""
        configs = {}
        for name, head in self.heads.items():
            own: dict[str, Any] = {key: getattr(head, key) for key in ("objective", "sources", "mixture", "golden")}
            shared = JointConfig.model_fields.keys() & RewardConfig.model_fields.keys() - {"name"}
            config = RewardConfig(name=name, **own, **{key: getattr(self, key) for key in shared})
            config._folder = self._folder
            configs[name] = config
        return configs
