"""Fit the baselines that a reward model must beat: the completion's length, and a linear head on the frozen encoder.

Both are fitted on records that the model itself is trained on. The length is fitted source by source, because its
meaning differs between sources. The head's ridge penalty is the one with the lowest loss on other records than those
that are tested.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from tqdm import tqdm

from assay_service.scoring.head import Head
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.config.model import OptimizerConfig
from assay_training.data.examples import Example
from assay_training.models.batches import autocast, cut_token_batches
from assay_training.records.record import Labelled
from assay_training.reward_model.prediction import finish_training

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # on standardized features, so that one grid serves every base


@dataclass(frozen=True, slots=True)
class LinearData:
    """The data of a linear fit: feature rows with either labels (absolute) or pairs of rows (preference).

    Attributes:
        features: features of all completions, float64 `[n, d]`.
        labels: labels in 0..1, float64 `[n]`; None for pairs.
        better, worse: rows of the better and the worse completion of each pair, int64 `[p]`; None for labels.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    better: torch.Tensor | None
    worse: torch.Tensor | None

    @classmethod
    def build(cls, features: Sequence[torch.Tensor], examples: Sequence[Example]) -> "LinearData":
        """Collect the feature rows of some examples, with their labels or pairs.

        Args:
            features: features of each example's K completions, floating point `[K, d]`.
            examples: examples, all of them rankings or all labelled items.
        """
        labels, better, worse, offset = [], [], [], 0
        for rows, example in zip(features, examples, strict=True):
            if isinstance(example.record, Labelled):
                labels.append(example.record.label)
            else:
                better += [offset + pair.better for pair in example.record.pairs]
                worse += [offset + pair.worse for pair in example.record.pairs]
            offset += len(rows)
        # float64: near the optimum, the loss changes by less than the rounding of fp32.
        stacked = torch.cat(list(features)).double()
        if labels:
            return cls(stacked, torch.tensor(labels, dtype=torch.float64), None, None)
        return cls(stacked, None, torch.tensor(better), torch.tensor(worse))

    def loss(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the mean negative log-likelihood of a linear head, float64 scalar.

        Args:
            weight: weight of the head, float64 `[d]`.
            bias: bias of the head, float64 `[1]`.
        """
        logits = self.features @ weight + bias
        if self.labels is not None:
            return binary_cross_entropy_with_logits(logits, self.labels)
        assert self.better is not None
        assert self.worse is not None
        return -logsigmoid(logits[self.better] - logits[self.worse]).mean()


def load_frozen_base(base: Path, device: torch.device, settings: OptimizerConfig) -> RewardModel:
    """Load a base with a signal `frozen`, whose head is never used: pooling needs a signal on the base.

    Args:
        base: directory of the base.
        device: device that it is loaded to.
        settings: settings that name the compute dtype.
    """
    model = RewardModel.load(base, torch.float32, device)
    model.add_signal("frozen", Head(torch.ones(1, model.hidden_size), None))
    finish_training(model, settings)
    return model


def compute_frozen_features(
    model: RewardModel, signal: str, examples: Sequence[Example], settings: OptimizerConfig
) -> list[torch.Tensor]:
    """Compute the mean hidden states of the frozen base: fp32 `[K, H]` for each example.

    The mean is over all tokens, whatever the model's own score position. Sentence encoders are trained to put meaning
    there, and the baseline should be as strong as possible.

    Args:
        model: model with the frozen base.
        signal: name of its signal.
        examples: examples, in any order of length.
        settings: compute dtype and tokens of a micro-batch.
    """
    features: dict[int, torch.Tensor] = {}
    # Sequences of like length share a micro-batch, which bounds its memory by tokens; the order is restored below.
    by_length = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    for part in tqdm(
        list(cut_token_batches(by_length, examples, settings.micro_batch_tokens)), desc="frozen base", mininterval=10
    ):
        with torch.inference_mode(), autocast(model.device, settings):
            rows = model.pooled([_score_all_tokens(s) for i in part for s in examples[i].sequences], signal)
        for i, chunk in zip(part, torch.split(rows, [len(examples[i].sequences) for i in part]), strict=True):
            # Cloned outside inference mode, because autograd cannot use tensors that were made in it.
            features[i] = chunk.clone()
    return [features[i] for i in range(len(examples))]


def _score_all_tokens(sequence: TokenSequence) -> TokenSequence:
    return replace(sequence, score=Span(0, len(sequence.ids)))


def compute_length_features(examples: Sequence[Example]) -> list[torch.Tensor]:
    """Compute log(1 + characters) of the completions: float64 `[K, 1]` for each example."""
    return [
        torch.tensor([[len(item.completion)] for item in example.record.items], dtype=torch.float64).log1p()
        for example in examples
    ]


def compute_length_logits(examples: Sequence[Example]) -> list[list[float]]:
    """Return the length feature of each completion as its logit, without a fit: the longer completion wins."""
    return [rows[:, 0].tolist() for rows in compute_length_features(examples)]


def predict_length(training: Sequence[Example], test: Sequence[Example]) -> list[list[float]]:
    """Return the logits of the length baseline for each test example; labels have a scale, which is fitted."""
    if any(isinstance(example.record, Labelled) for example in test):
        return fit_length(training, test)
    return compute_length_logits(test)


def fit_length(training: Sequence[Example], test: Sequence[Example]) -> list[list[float]]:
    """Return logits from the length alone, on the labels' scale, for each test example.

    The scale is from a logistic fit on the same source in `training`. One fit over several sources would distinguish
    the sources by their usual lengths, and could order the completions within each of them wrongly. A test example
    whose source is not in `training` gets the fit over all sources.
    """
    fits = {
        source: _fit_one_length([e for e in training if e.record.source == source])
        for source in _list_sources(training)
    }
    every = _fit_one_length(training)
    logits: list[list[float]] = []
    for example, rows in zip(test, compute_length_features(test), strict=True):
        weight, bias = fits.get(example.record.source, every)
        logits.append((rows @ weight + bias).tolist())
    return logits


def _list_sources(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.record.source for example in examples))


def _fit_one_length(training: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    # A single feature cannot overfit: the smallest penalty only keeps the optimum finite for separable labels.
    return _fit(LinearData.build(compute_length_features(training), training), PENALTIES[0])


def predict_out_of_fold(
    features: list[torch.Tensor], examples: list[Example], folds: list[int], tested: Iterable[int]
) -> list[list[float] | None]:
    """Return each example's logits by a linear head that was fitted without the example's fold.

    Args:
        features: features of each example's K completions, floating point `[K, d]`.
        examples: examples, all of them rankings or all labelled items.
        folds: fold of each example, or `HELD_OUT`; the held-out examples choose the ridge penalty.
        tested: folds to predict.

    Returns:
        K logits for each example; None for an example outside `tested`.
    """
    logits: list[list[float] | None] = [None] * len(examples)
    dev = _select(features, examples, [f == HELD_OUT for f in folds])
    for fold in tested:
        training = _select(features, examples, [f not in (fold, HELD_OUT) for f in folds])
        fits = [_fit(training, penalty) for penalty in PENALTIES]
        weight, bias = min(fits, key=lambda fit: float(dev.loss(*fit)))
        for i, f in enumerate(folds):
            if f == fold:
                logits[i] = (features[i].double() @ weight + bias).tolist()
    return logits


def predict_by_linear_head(
    features: list[torch.Tensor], training: Sequence[Example], tested: Sequence[torch.Tensor], seed: int
) -> list[list[float]]:
    """Return the logits of tested examples by a linear head.

    A fifth of the training groups chooses the ridge penalty. The head is then fitted on all of them.

    Args:
        features: features of each training example's K completions, floating point `[K, d]`.
        training: training examples, all of them rankings or all labelled items.
        tested: features of each tested example's K completions, floating point `[K, d]`.
        seed: seed of the division into fifths.

    Returns:
        K logits for each tested example.
    """
    examples = list(training)
    chooses = [assign_fold(e.record.group, folds=1, held_out=0.2, seed=seed + 1) == HELD_OUT for e in examples]
    fitted, dev = _select(features, examples, [not c for c in chooses]), _select(features, examples, chooses)
    penalty = min(PENALTIES, key=lambda candidate: float(dev.loss(*_fit(fitted, candidate))))
    weight, bias = _fit(LinearData.build(features, examples), penalty)
    return [(rows.double() @ weight + bias).tolist() for rows in tested]


def _select(features: list[torch.Tensor], examples: list[Example], mask: list[bool]) -> LinearData:
    return LinearData.build(
        [f for f, keep in zip(features, mask, strict=True) if keep],
        [e for e, keep in zip(examples, mask, strict=True) if keep],
    )


def _fit(data: LinearData, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a linear head by ridge-penalized maximum likelihood on standardized features, with L-BFGS.

    Returns:
        The weight, float64 `[d]`, and the bias, float64 `[1]`, for features in their own units.
    """
    # A constant feature has no spread: the clamp makes it zeros instead of NaN.
    mean, std = data.features.mean(dim=0), data.features.std(dim=0, correction=0).clamp_min(1e-12)
    scaled = LinearData((data.features - mean) / std, data.labels, data.better, data.worse)
    weight = torch.zeros(scaled.features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    # The loss is convex, so L-BFGS finds its optimum, without a learning rate to choose.
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = scaled.loss(weight, bias) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    # Standardization is folded into weight and bias, which then apply to features as they are.
    own = (weight / std).detach()
    return own, (bias - own @ mean).detach()
