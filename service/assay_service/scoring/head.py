"""The head: an fp32 linear with one output, read over a span of hidden states."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from assay_service.errors import StartError
from assay_service.scoring.layout import Span


class Dense(nn.Module):
    """The layer that a transformers classifier of an encoder has between hidden state and head; fp32.

    Args:
        weight: `[H, H]`.
        bias: `[H]`.
        activation: as transformers names it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.weight, self.linear.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        self.activation = ACT2FN[activation]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`[n, H]` from `[n, H]`."""
        # Row by row: what is left over of many numbers at once may be computed another way (see `rows.py`).
        return torch.stack([self.activation(row) for row in self.linear(pooled)])


class Head(nn.Module):
    """One logit from the mean hidden state of a score span.

    The head stays in fp32 whatever the base computes in: bf16 has steps of 0.0625 at a logit of 8, which makes ties in
    best-of-N (scoring-traps 12).

    Args:
        weight: fp32 `[1, H]`.
        bias: fp32 `[1]`, or None.
        dense: is applied first; None for none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dense: Dense | None = None) -> None:
        super().__init__()
        self.dense = dense
        self.weight = nn.Parameter(weight.float())
        self.bias = None if bias is None else nn.Parameter(bias.float())

    @classmethod
    def fresh(cls, hidden_size: int, generator: torch.Generator, *, bias: bool) -> "Head":
        """A new head for training: weights of std 1/sqrt(H + 1), bias 0 (Ziegler et al. 2019, lm-human-preferences).

        Args:
            hidden_size: H.
            generator: of the weights.
            bias: whether it has one, as the architecture's classifier in transformers does; one too many would be lost
                to whoever loads the adapter with PEFT.
        """
        weight = torch.randn(1, hidden_size, generator=generator) * (hidden_size + 1) ** -0.5
        return cls(weight, torch.zeros(1) if bias else None)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits, fp32 `[n]`, from pooled hidden states `[n, H]`; also under autocast, which would make them bf16.

        A sum over each row by itself: a matrix product may pick its kernel by the number of rows (see `rows.py`).
        """
        with torch.autocast(pooled.device.type, enabled=False):
            read = pooled.float() if self.dense is None else self.dense(pooled.float())
            logits = (read * self.weight).sum(dim=-1)
            return logits if self.bias is None else logits + self.bias


def pool(hidden: torch.Tensor, spans: tuple[tuple[Span, ...], ...]) -> torch.Tensor:
    """The mean hidden state of each sequence's score span, fp32 `[n, H]`, from `[1, T, H]`; of one token, that token's.

    Args:
        hidden: `[1, T, H]`.
        spans: for each sequence the pieces of its score span in the row.
    """
    places = dict.fromkeys(piece for pieces in spans for piece in pieces)
    index = torch.cat([torch.arange(place.start, place.end) for place in places]).to(hidden.device)
    # One gathering and one split: slices would each cost the backward pass a tensor of the whole row.
    parts = dict(zip(places, torch.split(hidden[0][index], [place.tokens for place in places]), strict=True))
    return torch.stack([torch.cat([parts[piece] for piece in pieces]).float().mean(dim=0) for pieces in spans])


def checked(head: Head, hidden_size: int, where: str) -> Head:
    """`head`, if it is one that was trained.

    Raises:
        StartError: naming the tensor, if its shape does not fit the base, it is all zero, or it is not finite.
    """
    if tuple(head.weight.shape) != (1, hidden_size):
        several = head.weight.shape[0] if head.weight.dim() == 2 and head.weight.shape[1] == hidden_size else 0
        hint = f"; it has {several} labels, and Assay serves heads with one (num_labels: 1)" if several > 1 else ""
        raise StartError(f"{where}: shape {list(head.weight.shape)}, a head on this base is [1, {hidden_size}]{hint}")
    if head.bias is not None and tuple(head.bias.shape) != (1,):
        raise StartError(f"{where}: bias of shape {list(head.bias.shape)}, expected [1]")
    if not torch.count_nonzero(head.weight):
        raise StartError(f"{where}: all zero, so every score would be the same; the head was never trained")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
        raise StartError(f"{where}: holds values that are not finite")
    return head
