"""Compute logits by the head: an fp32 linear layer with one output, applied to the mean of a span of hidden states."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn
from transformers.activations import ACT2FN

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import DenseTensors
from assay_service.scoring.layout import Span, TokenSequence

# The remedy for a head of another width.
_OWN_BASE = "declare the `base` that it was trained on"


class Dense(nn.Module):
    """The fp32 layer between hidden state and head, in classifiers on encoders and in heads of two layers.

    Args:
        tensors: weight and bias of the layer, and of its norm; converted to fp32.
        activation: name of the activation in transformers.
        epsilon: epsilon of the norm.
    """

    def __init__(self, tensors: DenseTensors, activation: str, epsilon: float = 1e-5) -> None:
        super().__init__()
        weight, bias = tensors.weight, tensors.bias
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.linear.weight = nn.Parameter(weight.float())
        if bias is not None:
            self.linear.bias = nn.Parameter(bias.float())
        self.activation = ACT2FN[activation]
        self.norm: nn.Module = nn.Identity()
        if tensors.norm is not None:
            scale, shift = tensors.norm
            self.norm = nn.LayerNorm(len(scale), eps=epsilon, bias=shift is not None)
            self.norm.weight = nn.Parameter(scale.float())
            if shift is not None:
                self.norm.bias = nn.Parameter(shift.float())

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the activated output, fp32 `[n, D]`, for pooled hidden states, fp32 `[n, H]`."""
        # Row by row: the remainder of many numbers at once may be computed another way (`kernels/row_invariant.py`).
        return torch.stack([self.norm(self.activation(row)) for row in self.linear(pooled)])


class Head(nn.Module):
    """A head that maps the mean hidden state of a score span to one logit.

    The head stays in fp32, whatever dtype the base computes in. bf16 has steps of 0.0625 at a logit of 8, which makes
    ties in best-of-N (scoring-traps 12).

    Args:
        weight: weight, `[1, H]`, or `[1, D]` behind `dense`; converted to fp32.
        bias: bias, `[1]`, converted to fp32; or None.
        dense: layer that is applied first; None if there is none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dense: Dense | None = None) -> None:
        super().__init__()
        self.dense = dense
        self.weight = nn.Parameter(weight.float())
        self.bias = None if bias is None else nn.Parameter(bias.float())

    @classmethod
    def fresh(cls, hidden_size: int, generator: torch.Generator, *, bias: bool) -> "Head":
        """Create a head for training: weights with standard deviation 1/sqrt(H + 1), bias 0.

        Source: [Ziegler], and its code lm-human-preferences.

        Args:
            hidden_size: width H of the hidden states.
            generator: random generator of the weights.
            bias: whether the head has a bias, as the architecture's classifier in transformers has. A bias that the
                classifier lacks would be lost to everyone who loads the adapter with PEFT.
        """
        # So that a logit begins with a standard deviation of about one, whatever the width.
        weight = torch.randn(1, hidden_size, generator=generator) * (hidden_size + 1) ** -0.5
        return cls(weight, torch.zeros(1) if bias else None)

    def forward(self, pooled: torch.Tensor, gates: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits, fp32 `[n]`, for pooled hidden states `[n, H]`; autocast, which would make them bf16, is off.

        `gates` are hidden states for gating networks (`head_modules.py`), which this head does not have.

        Each row is summed by itself, because a matrix product may pick its kernel by the number of rows (see
        `kernels/row_invariant.py`). It is summed in one order, because torch's own sum depends on the CPU.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            read = pooled.float() if self.dense is None else self.dense(pooled.float())
            logits = add_in_halves(read * self.weight)
            return logits if self.bias is None else logits + self.bias


def add_in_halves(numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum over the last axis, which is not empty; the second half is added to the first until one is left.

    So every machine adds in the same order.
    """
    while (half := numbers.shape[-1] // 2) > 0:
        pairs = numbers[..., :half] + numbers[..., half : 2 * half]
        numbers = torch.cat([pairs, numbers[..., 2 * half :]], dim=-1)
    return numbers[..., 0]


def pool(hidden: torch.Tensor, spans: tuple[tuple[Span, ...], ...]) -> torch.Tensor:
    """Return the mean hidden state of each span, fp32 `[n, H]`.

    Args:
        hidden: hidden states of a row, `[1, T, H]`.
        spans: pieces of each of the `n` spans in the row.
    """
    if all(len(pieces) == 1 and pieces[0].tokens == 1 for pieces in spans):  # nothing to average
        return hidden[0][torch.tensor([pieces[0].start for pieces in spans], device=hidden.device)].float()
    places = dict.fromkeys(piece for pieces in spans for piece in pieces)
    index = torch.cat([torch.arange(place.start, place.end) for place in places]).to(hidden.device)
    # One gather and one split: each slice would cost the backward pass a tensor of the whole row.
    parts = dict(zip(places, torch.split(hidden[0][index], [place.tokens for place in places]), strict=True))
    return torch.stack([torch.cat([parts[piece] for piece in pieces]).float().mean(dim=0) for pieces in spans])


def split_gates(pooled: torch.Tensor, sequences: Sequence[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the hidden states of score spans and those of gates.

    Args:
        pooled: pooled hidden states, `[N, H]`, in the order of `TokenSequence.reads` of one sequence after the other.
        sequences: sequences that gave them; either all or none of them have a gate.

    Returns:
        The hidden states of score spans, `[S, H]`, and those of the gates, one for each sequence, or None.
    """
    if all(sequence.gate is None for sequence in sequences):
        return pooled, None
    ends = [end - 1 for end in accumulate(len(sequence.reads) for sequence in sequences)]  # the gate is read last
    others = sorted(set(range(len(pooled))) - set(ends))
    # Two gathers: the head and the gate have different inputs of one pass.
    return pooled[others], pooled[ends]


def checked(head: Head, hidden_size: int, where: str) -> Head:
    """Return `head` if it fits the base and was trained.

    Args:
        head: head to check.
        hidden_size: width of the base's hidden states.
        where: name of the head's tensor in errors.

    Raises:
        StartError: the shape does not fit the base, the weight is all zero, or a value is not finite; the message names
            the tensor.
    """
    width = hidden_size
    if head.dense is not None:
        width, inputs = head.dense.linear.weight.shape
        if inputs != hidden_size:
            raise StartError(
                f"{where}: the layer before it reads {inputs} numbers, but the base has {hidden_size}; {_OWN_BASE}"
            )
    if tuple(head.weight.shape) != (1, width):
        raise StartError(
            f"{where}: has shape {list(head.weight.shape)}, but a head on this base has [1, {width}]; {_OWN_BASE}"
        )
    if head.bias is not None and tuple(head.bias.shape) != (1,):
        raise StartError(
            f"{where}: its bias has shape {list(head.bias.shape)}, but a head has [1]; save the checkpoint again"
        )
    if not torch.count_nonzero(head.weight):
        raise StartError(
            f"{where}: is all zero, so every score would be the same; the head was never trained: declare a trained one"
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
        raise StartError(
            f"{where}: holds values that are not finite, so scores would not be finite either; use a checkpoint "
            "from before training diverged"
        )
    return head
