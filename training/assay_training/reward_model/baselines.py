"""What a reward model must beat: the length of the completion, and a linear head on the frozen encoder.

Both are fitted on what the model itself is trained on: the length source by source, since what it means differs from
one to the next; the head's ridge penalty is the one that does best on what is held out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from tqdm import tqdm

from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.model import OptimizerConfig
from assay_training.data.examples import Example
from assay_training.models.batches import autocast, token_batches
from assay_training.records.record import Labelled

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, slots=True)
class LinearData:
    """Feature rows with either labels (absolute) or pairs of rows (preference).

    Attributes:
        features: float64 `[n, d]`.
        labels: float64 `[n]`, or None.
        better, worse: int64 `[p]`, or None.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    better: torch.Tensor | None
    worse: torch.Tensor | None

    @classmethod
    def of(cls, features: Sequence[torch.Tensor], examples: Sequence[Example]) -> "LinearData":
        """From the feature rows `[K, d]` of each example."""
        labels, better, worse, offset = [], [], [], 0
        for rows, example in zip(features, examples, strict=True):
            if isinstance(example.record, Labelled):
                labels.append(example.record.label)
            else:
                better += [offset + pair.better for pair in example.record.pairs]
                worse += [offset + pair.worse for pair in example.record.pairs]
            offset += len(rows)
        stacked = torch.cat(list(features)).double()
        if labels:
            return cls(stacked, torch.tensor(labels, dtype=torch.float64), None, None)
        return cls(stacked, None, torch.tensor(better), torch.tensor(worse))

    def loss(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of a linear head."""
        logits = self.features @ weight + bias
        if self.labels is not None:
            return binary_cross_entropy_with_logits(logits, self.labels)
        assert self.better is not None
        assert self.worse is not None
        return -logsigmoid(logits[self.better] - logits[self.worse]).mean()


def frozen_features(
    model: RewardModel, signal: str, examples: Sequence[Example], settings: OptimizerConfig
) -> list[torch.Tensor]:
    """Mean hidden states of the frozen base: fp32 `[K, H]` for each example.

    The mean over all tokens whatever the model's own score position, because that is where the encoder was trained to
    put meaning; the baseline should be as strong as it can be.
    """
    features: dict[int, torch.Tensor] = {}
    by_length = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    for part in tqdm(
        list(token_batches(by_length, examples, settings.micro_batch_tokens)), desc="frozen base", mininterval=10
    ):
        with torch.inference_mode(), autocast(model.device, settings):
            rows = model.pooled([_whole(s) for i in part for s in examples[i].sequences], signal)
        for i, chunk in zip(part, torch.split(rows, [len(examples[i].sequences) for i in part]), strict=True):
            features[i] = chunk.clone()
    return [features[i] for i in range(len(examples))]


def _whole(sequence: TokenSequence) -> TokenSequence:
    return replace(sequence, score=Span(0, len(sequence.ids)))


def length_features(examples: Sequence[Example]) -> list[torch.Tensor]:
    """Log of the completion's characters: `[K, 1]` for each example."""
    return [
        torch.tensor([[len(item.completion)] for item in example.record.items], dtype=torch.float64).log1p()
        for example in examples
    ]


def length_logits(examples: Sequence[Example]) -> list[list[float]]:
    """The longer completion wins: the length itself as a logit, unfitted."""
    return [rows[:, 0].tolist() for rows in length_features(examples)]


def length_fit(training: Sequence[Example], test: Sequence[Example]) -> list[list[float]]:
    """Logits of the length alone, brought to the labels' scale by a logistic fit on the same source in `training`.

    One fit over several sources would tell them apart by the lengths that are usual in each, and could so put the
    completions of every one of them in the wrong order. What has no other record of its source gets the fit of all.
    """
    fits = {source: _length_fit([e for e in training if e.record.source == source]) for source in _sources(training)}
    every = _length_fit(training)
    found: list[list[float]] = []
    for example, rows in zip(test, length_features(test), strict=True):
        weight, bias = fits.get(example.record.source, every)
        found.append((rows @ weight + bias).tolist())
    return found


def _sources(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(example.record.source for example in examples))


def _length_fit(training: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    return _fit(LinearData.of(length_features(training), training), PENALTIES[0])


def out_of_fold(
    features: list[torch.Tensor], examples: list[Example], folds: list[int], tested: Iterable[int]
) -> list[list[float] | None]:
    """Logits of a linear head on `features` from fits without each example's fold; None outside `tested`."""
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


def _select(features: list[torch.Tensor], examples: list[Example], mask: list[bool]) -> LinearData:
    return LinearData.of(
        [f for f, keep in zip(features, mask, strict=True) if keep],
        [e for e, keep in zip(examples, mask, strict=True) if keep],
    )


def _fit(data: LinearData, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge-penalised maximum likelihood on standardised features, by L-BFGS; in the features' own units."""
    mean, std = data.features.mean(dim=0), data.features.std(dim=0, correction=0).clamp_min(1e-12)
    scaled = LinearData((data.features - mean) / std, data.labels, data.better, data.worse)
    weight = torch.zeros(scaled.features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = scaled.loss(weight, bias) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    own = (weight / std).detach()
    return own, (bias - own @ mean).detach()
