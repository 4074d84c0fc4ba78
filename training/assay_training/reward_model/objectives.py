"""Compute the training losses of reward models, on the pairs of rankings or on labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from assay_service.scoring.model import RewardModel
from assay_training.algorithms import losses
from assay_training.config.model import OptimizerConfig
from assay_training.config.objective import AbsoluteObjective, BatchMeanMargin, LabelledMargin, PreferenceObjective
from assay_training.data.examples import Example
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.batches import autocast
from assay_training.records.record import Labelled, Ranking

POINTWISE = {
    "logistic": losses.compute_soft_label_cross_entropy,
    "sig+mse": losses.compute_sigmoid_squared_error,
    "mse+penalty": losses.compute_raw_squared_error,
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of some rankings, as indices into the concatenated logits of the rankings.

    Attributes:
        better, worse: indices of logits, int64 `[p]`.
        weights: weights of a mean over each prompt's pairs, then over the batch's prompts, fp32 `[p]`.
        gaps: gaps in 0..1, fp32 `[p]`; 0 for a pair without one.
    """

    better: Int64[Tensor, " p"]
    worse: Int64[Tensor, " p"]
    weights: Float[Tensor, " p"]
    gaps: Float[Tensor, " p"]

    @classmethod
    def build(cls, part: Sequence[Example], batch_size: int, device: torch.device) -> "Pairs":
        """Collect the pairs of a micro-batch.

        Args:
            part: rankings of the micro-batch.
            batch_size: number of prompts of the whole batch, over all processes.
            device: device of the tensors.
        """
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
                # A mean per prompt first: a prompt with four completions has six pairs, but counts once.
                weights.append(1 / (len(example.record.pairs) * batch_size))
                # Without a gap, the target margin is 0.
                gaps.append(pair.gap or 0.0)
            offset += len(example.sequences)
        return cls(
            torch.tensor(better, device=device),
            torch.tensor(worse, device=device),
            torch.tensor(weights, device=device),
            torch.tensor(gaps, device=device),
        )

    def margins(self, logits: Float[Tensor, " n"]) -> Float[Tensor, " p"]:
        """Return the logit of the better completion minus that of the worse: `[n]` to fp32 `[p]`."""
        return logits[self.better] - logits[self.worse]


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """The numbers of a batch that the loss of each of its micro-batches needs.

    Attributes:
        prompts: number of prompts.
        mean_margin: mean margin μ over all pairs, weighted like the loss, fp32 scalar; None if no loss term uses it.
    """

    prompts: int
    mean_margin: Float[Tensor, ""] | None


class Pairwise:
    """The Bradley-Terry loss over the pairs of rankings ([Bradley-Terry]).

    Args:
        model: model that holds the signal.
        signal: name of the signal to train.
        config: margin, L2 and centring terms.
        settings: optimizer settings, for the compute dtype.
    """

    def __init__(self, model: RewardModel, signal: str, config: PreferenceObjective, settings: OptimizerConfig) -> None:
        self._model, self._signal, self._config, self._settings = model, signal, config, settings

    def begin(self, batch: Sequence[Example], mine: Sequence[MicroBatch], total: Total) -> RankedBatch:
        """Compute the numbers that all micro-batches of a batch share.

        The batch-mean margin needs a first pass over the whole batch, without gradient.

        Args:
            batch: rankings of the batch, over all processes.
            mine: micro-batches of this process.
            total: sum over all processes.
        """
        if not isinstance(self._config.margin, BatchMeanMargin):
            return RankedBatch(len(batch), None)
        # The sum over this process; `total` adds those of the others.
        mean = torch.zeros((), device=self._model.device)
        with torch.no_grad():
            for part in mine:
                pairs = Pairs.build(part.examples, len(batch), self._model.device)
                mean += part.share * (pairs.weights * pairs.margins(self._compute_logits(part.examples))).sum()
        return RankedBatch(len(batch), total(mean))

    def loss(self, part: Sequence[Example], shared: RankedBatch) -> Float[Tensor, ""]:
        """Return the micro-batch's share of the batch's loss, fp32 scalar."""
        logits = self._compute_logits(part)
        pairs = Pairs.build(part, shared.prompts, self._model.device)
        margins = pairs.margins(logits)
        targets = torch.zeros_like(margins)
        if isinstance(self._config.margin, LabelledMargin):
            targets = self._config.margin.scale * pairs.gaps
        elif shared.mean_margin is not None:
            targets = losses.compute_batch_mean_margins(margins, shared.mean_margin)
        loss = losses.compute_bradley_terry(margins, targets, pairs.weights)
        better, worse = logits[pairs.better], logits[pairs.worse]
        # A term with the coefficient 0 is not computed: 0 times an infinite logit would be NaN.
        if self._config.l2:
            loss = loss + self._config.l2 * losses.compute_squared_logits(better, worse, pairs.weights)
        if self._config.centring:
            loss = loss + self._config.centring * losses.compute_squared_sums(better, worse, pairs.weights)
        return loss

    def _compute_logits(self, part: Sequence[Example]) -> Float[Tensor, " n"]:
        return _compute_logits(self._model, self._signal, part, self._settings)


class Pointwise:
    """The loss on the label of each item, times the item's weight, averaged over the batch's items.

    Args:
        model: model that holds the signal.
        signal: name of the signal to train.
        config: kind of the loss.
        settings: optimizer settings, for the compute dtype.
    """

    def __init__(self, model: RewardModel, signal: str, config: AbsoluteObjective, settings: OptimizerConfig) -> None:
        self._model, self._signal, self._settings = model, signal, settings
        self._loss = POINTWISE[config.loss]

    def begin(self, batch: Sequence[Example], mine: Sequence[MicroBatch], total: Total) -> int:
        """Return the number of items of the batch; weights are not divided by their sum ([CRS] section 5.3)."""
        return len(batch)

    def loss(self, part: Sequence[Example], shared: int) -> Float[Tensor, ""]:
        """Return the micro-batch's share of the batch's loss, fp32 scalar."""
        records = [example.record for example in part if isinstance(example.record, Labelled)]
        logits = _compute_logits(self._model, self._signal, part, self._settings)
        labels = torch.tensor([record.label for record in records]).to(logits)
        weights = torch.tensor([record.weight / shared for record in records]).to(logits)
        return self._loss(logits, labels, weights)


def _compute_logits(
    model: RewardModel, signal: str, part: Sequence[Example], settings: OptimizerConfig
) -> Float[Tensor, " n"]:
    """Return the logits of all sequences of a micro-batch, concatenated, fp32 `[n]`."""
    with autocast(model.device, settings):
        return model.logits([sequence for example in part for sequence in example.sequences], signal)
