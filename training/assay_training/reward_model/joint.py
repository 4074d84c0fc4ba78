"""Train several heads on one trunk: each head on its own data, all of them on the same adapter or base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import ConfigError
from assay_training.config.joint import JointConfig
from assay_training.config.reward import describe_training
from assay_training.data.examples import Example
from assay_training.distributed.processes import get_accelerator
from assay_training.distributed.sharding import sharding_requested
from assay_training.loop.step import MicroBatch, Total
from assay_training.loop.supervised import Schedule, train
from assay_training.reward_model.objectives import Pairwise, Pointwise
from assay_training.reward_model.run import RewardRun
from assay_training.reward_model.stored_states import reuse_lower_layers
from assay_training.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class HeadExample:
    """An example of one head.

    Attributes:
        head: name of the head that is trained on it.
        example: the example.
    """

    head: str
    example: Example

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all sequences."""
        return self.example.tokens


class Joint:
    """The weighted sum of the losses of several heads, each a mean over the records of its own in the batch.

    Args:
        objectives: loss of each head by its name.
        weights: factor of each loss.
    """

    def __init__(self, objectives: Mapping[str, Pairwise | Pointwise], weights: Mapping[str, float]) -> None:
        self._objectives, self._weights = objectives, weights

    def begin(self, batch: Sequence[HeadExample], mine: Sequence[MicroBatch], total: Total) -> dict[str, Any]:
        """Compute what every micro-batch needs of the whole batch, for each head with records in it."""
        shared = {}
        for name, objective in self._objectives.items():
            own = _select(batch, name)
            parts = [MicroBatch(chosen, part.share) for part in mine if (chosen := _select(part.examples, name))]
            if own:  # the same in every process, which all know the whole batch
                shared[name] = objective.begin(own, parts, total)
        return shared

    def loss(self, part: Sequence[HeadExample], shared: Mapping[str, Any]) -> Float[Tensor, ""]:
        """Return the micro-batch's share of the batch's loss, fp32 scalar."""
        losses = [
            self._weights[name] * objective.loss(own, shared[name])
            for name, objective in self._objectives.items()
            if (own := _select(part, name))
        ]
        return torch.stack(losses).sum()


class JointRun:
    """A run that trains several heads on one trunk.

    Args:
        config: configuration of the run.
        data: folder that holds the folders of the sources.
        out: run directory; each head has a folder of its own in it.

    Attributes:
        config: configuration of the run.
        runs: data and results of each head by its name, as those of a run with this head alone.
        run: run directory, with the metrics of the training.

    Raises:
        ConfigError: the configuration does not fit the base or the data.
        RecordError: a data file is missing or malformed.
    """

    def __init__(self, config: JointConfig, data: Path, out: Path) -> None:
        if sharding_requested():
            raise ConfigError("heads: a run with several heads does not shard its layers; train it in one process")
        self.config = config
        # The runs of the heads record base, template and data; this one records what they share.
        self.run = RunDirectory(out, {"config": describe_training(config)}, writes=get_accelerator().is_main_process)
        self.runs = {
            name: RewardRun(own, data, out / "heads" / name) for name, own in config.build_head_configs().items()
        }
        self._first = next(iter(self.runs.values()))

    def fit(self) -> RewardModel:
        """Train a new model on the training parts of all heads, from the last saved state of an interrupted run."""
        model, config = self._build_model(), self.config
        examples = [
            HeadExample(name, example)
            for name, run in self.runs.items()
            for example in run.mix("model", run.exclude_parts(HELD_OUT))
        ]
        objectives = {name: run.build_objective(model) for name, run in self.runs.items()}
        texts = [example.example for example in examples]
        with reuse_lower_layers(model, self._first.config, self._first.base, self.run, texts):
            train(
                Joint(objectives, {name: head.weight for name, head in config.heads.items()}),
                self._list_parameters(model),
                Schedule(examples, config.optimizer, config.seed),
                name=config.name,
                metrics=self.run.metrics("model"),
                resume=self.run.resume_point("model"),
            )
        return model

    def _build_model(self) -> RewardModel:
        """Load the base with a new adapter and one new head for each signal, from the seed of the run."""
        model = self._first.build_model()
        generator = torch.Generator().manual_seed(self.config.seed + 1)  # the first head is drawn from the seed itself
        for name in list(self.runs)[1:]:
            head = Head.fresh(model.hidden_size, generator, bias=model.architecture.head_bias)
            model.add_fresh_head(name, head, self._first.config.name)
        return model

    def _list_parameters(self, model: RewardModel) -> list[nn.Parameter]:
        """Return the parameters of trunk and heads, each of them once."""
        every = [parameter for name in self.runs for parameter in model.get_parameters(name)]
        return list({id(parameter): parameter for parameter in every}.values())


def _select(examples: Sequence[HeadExample], head: str) -> list[Example]:
    """Return the examples of one head."""
    return [example.example for example in examples if example.head == head]
