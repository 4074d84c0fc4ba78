"""What the supervised loop makes smaller for reward models: pairs of a ranking, or labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from assay_service.scoring.model import RewardModel
from assay_training.algorithms import losses
from assay_training.config.model import OptimizerConfig
from assay_training.config.objective import AbsoluteObjective, BatchMeanMargin, LabelledMargin, PreferenceObjective
from assay_training.data.examples import Example
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.batches import autocast
from assay_training.records.record import Labelled, Ranking

POINTWISE = {
    "logistic": losses.soft_label_cross_entropy,
    "sig+mse": losses.sigmoid_squared_error,
    "mse+penalty": losses.raw_squared_error,
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of some rankings whose logits lie end to end.

    Attributes:
        better, worse: int64 `[p]`, indices of logits.
        weights: fp32 `[p]`: a mean over each prompt's pairs, then over the batch's prompts.
        gaps: fp32 `[p]`; 0 where a source does not say.
    """

    better: torch.Tensor
    worse: torch.Tensor
    weights: torch.Tensor
    gaps: torch.Tensor

    @classmethod
    def of(cls, part: Sequence[Example], batch_size: int, device: torch.device) -> "Pairs":
        """The pairs of a micro-batch of a batch of `batch_size` prompts."""
        better: list[int] = []
        worse: list[int] = []
        weights: list[float] = []
        gaps: list[float] = []
        offset = 0
        for example in part:
            assert isinstance(example.record, Ranking)
            for pair in example.record.pairs:
                better.append(offset + pair.better)
                worse.append(offset + pair.worse)
                weights.append(1 / (len(example.record.pairs) * batch_size))
                gaps.append(pair.gap or 0.0)
            offset += len(example.sequences)
        return cls(
            torch.tensor(better, device=device),
            torch.tensor(worse, device=device),
            torch.tensor(weights, device=device),
            torch.tensor(gaps, device=device),
        )

    def margins(self, logits: torch.Tensor) -> torch.Tensor:
        """fp32 `[p]`: logit of the better completion minus logit of the worse."""
        return logits[self.better] - logits[self.worse]


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """What a micro-batch must know of its batch.

    Attributes:
        prompts: how many there are.
        mean_margin: fp32 scalar, μ over all pairs, weighted like the loss; None where nothing needs it.
    """

    prompts: int
    mean_margin: torch.Tensor | None


class Pairwise:
    """Bradley-Terry over the pairs of rankings.

    Args:
        model: holds the signal.
        signal: which one.
        config: margin, L2, centring.
        settings: compute dtype.
    """

    def __init__(self, model: RewardModel, signal: str, config: PreferenceObjective, settings: OptimizerConfig) -> None:
        self._model, self._signal, self._config, self._settings = model, signal, config, settings

    def begin(self, batch: Sequence[Example], mine: Sequence[MicroBatch], total: Total) -> RankedBatch:
        """For the batch-mean margin a first pass over the whole batch, without gradient."""
        if not isinstance(self._config.margin, BatchMeanMargin):
            return RankedBatch(len(batch), None)
        mean = torch.zeros((), device=self._model.device)
        with torch.no_grad():
            for part in mine:
                pairs = Pairs.of(part.examples, len(batch), self._model.device)
                mean += part.share * (pairs.weights * pairs.margins(self._logits(part.examples))).sum()
        return RankedBatch(len(batch), total(mean))

    def loss(self, part: Sequence[Example], shared: RankedBatch) -> torch.Tensor:
        """The micro-batch's share of the batch's loss."""
        logits = self._logits(part)
        pairs = Pairs.of(part, shared.prompts, self._model.device)
        margins = pairs.margins(logits)
        targets = torch.zeros_like(margins)
        if isinstance(self._config.margin, LabelledMargin):
            targets = self._config.margin.scale * pairs.gaps
        elif shared.mean_margin is not None:
            targets = losses.batch_mean_margins(margins, shared.mean_margin)
        loss = losses.bradley_terry(margins, targets, pairs.weights)
        better, worse = logits[pairs.better], logits[pairs.worse]
        if self._config.l2:
            loss = loss + self._config.l2 * losses.squared_logits(better, worse, pairs.weights)
        if self._config.centring:
            loss = loss + self._config.centring * losses.squared_sums(better, worse, pairs.weights)
        return loss

    def _logits(self, part: Sequence[Example]) -> torch.Tensor:
        return _logits(self._model, self._signal, part, self._settings)


class Pointwise:
    """A loss on the label of each item, times its weight, averaged over the batch's items.

    Args:
        model: holds the signal.
        signal: which one.
        config: which loss.
        settings: compute dtype.
    """

    def __init__(self, model: RewardModel, signal: str, config: AbsoluteObjective, settings: OptimizerConfig) -> None:
        self._model, self._signal, self._settings = model, signal, settings
        self._loss = POINTWISE[config.loss]

    def begin(self, batch: Sequence[Example], mine: Sequence[MicroBatch], total: Total) -> int:
        """The number of items. Weights are not divided by their sum ([CRS] section 5.3)."""
        return len(batch)

    def loss(self, part: Sequence[Example], shared: int) -> torch.Tensor:
        """The micro-batch's share of the batch's loss."""
        records = [example.record for example in part if isinstance(example.record, Labelled)]
        logits = _logits(self._model, self._signal, part, self._settings)
        labels = torch.tensor([record.label for record in records]).to(logits)
        weights = torch.tensor([record.weight / shared for record in records]).to(logits)
        return self._loss(logits, labels, weights)


def _logits(model: RewardModel, signal: str, part: Sequence[Example], settings: OptimizerConfig) -> torch.Tensor:
    """fp32 `[n]` of all sequences of a micro-batch, end to end."""
    with autocast(model.device, settings):
        return model.logits([sequence for example in part for sequence in example.sequences], signal)
