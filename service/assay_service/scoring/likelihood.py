"""Compute the log-probabilities of tokens under a causal language model, in fp32 and in blocks of bounded memory.

A product of all tokens with the whole output layer could take gigabytes. So the vocabulary is cut into blocks of
columns, and the tokens into blocks of rows. Every block has the same size, so that the bits of a token depend on its
hidden state only (`kernels/row_invariant.py`). On the C++ kernels one call computes all blocks, with the same property.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import nn

from assay_service.errors import StartError
from assay_service.scoring.kernels.row_invariant import SlicedActivation, has_remainders, multiply, needs_transposing
from assay_service.scoring.layout import STEP_TOKENS, TokenSequence

# Tokens and ids of the vocabulary that one product computes: 2 MiB in fp32. A wider block would take more memory for
# weights of 16 bits. These become fp32 one block at a time (128 MiB at a width of 4,096).
_ROWS = STEP_TOKENS
_COLUMNS = 8192


class _Exp(nn.Module):
    """The exponential function as a module, so that it can be sliced."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the exponential of every number, in the shape and dtype of the input."""
        return input.exp()


@dataclass(slots=True)
class _Block:
    """Tokens that are computed together, with what is known of their log-probabilities so far.

    Attributes:
        states: hidden states, fp32 `[_ROWS, H]`.
        targets: ids whose log-probabilities are wanted, int64 `[_ROWS]`.
        logits: logits of the targets, fp32 `[_ROWS]`; -inf until their columns were computed.
        largest: largest logit so far, fp32 `[_ROWS]`.
        total: sum of the exponentials of all logits so far, each minus the largest, fp32 `[_ROWS]`.
    """

    states: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    largest: torch.Tensor
    total: torch.Tensor

    def add(self, product: torch.Tensor, start: int, exp: nn.Module) -> None:
        """Add the logits of some columns.

        Args:
            product: logits, fp32 `[_ROWS, N]`, which are overwritten.
            start: token id of the first column.
            exp: the exponential function.
        """
        places = self.targets - start
        inside = (places >= 0) & (places < product.shape[1])
        found = product.gather(1, places.clamp(0, product.shape[1] - 1)[:, None])[:, 0]
        self.logits = torch.where(inside, found, self.logits)
        largest = torch.maximum(self.largest, product.amax(dim=1))
        added = exp(product.sub_(largest[:, None])).sum(dim=1)
        self.total = self.total * exp(self.largest - largest) + added
        self.largest = largest


class LikelihoodHead(nn.Module):
    """The output layer of a causal language model, by which it predicts tokens.

    Args:
        weight: weight `[V, H]`, which is kept as it is, so that it may be that of the embedding. Products are summed in
            fp32.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self._native = False  # whether the C++ kernels compute it
        self._exp: nn.Module = _Exp()
        self._transposed: dict[int, bool] = {}  # by the number of columns of a block

    def check_vocabulary(self, size: int) -> None:
        """Refuse an output layer that predicts fewer ids than the `size` ids that a signal embeds.

        Raises:
            StartError: it does.
        """
        if len(self.weight) < size:
            raise StartError(
                f"head.likelihood: the output layer predicts {len(self.weight)} tokens, but the embedding has {size}; "
                "save the checkpoint with both of one size"
            )

    def forward(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, fp32 `[n]`, in nats; that of an id without a row is -inf.

        Args:
            states: hidden states of the tokens before the targets, `[n, H]`, with values of the base's dtype.
            targets: token ids, int64 `[n]`.
        """
        if self._native:  # the weight has the base's dtype, so the conversion changes no state
            found: torch.Tensor = torch.ops.assay.log_probabilities(states.to(self.weight.dtype), self.weight, targets)
            return found
        with torch.autocast(states.device.type, enabled=False):
            blocks = _cut(states.float(), targets.to(states.device))
            for start in range(0, len(self.weight), _COLUMNS):
                weight, columns = self._read_columns(start)
                transposed = self._transposed.get(len(weight), False)
                for block in blocks:
                    product = multiply(block.states, weight, None, transposed=transposed)
                    product[:, columns:] = -torch.inf  # of the zeros that fill the last block
                    block.add(product, start, self._exp)
            parts = [block.logits - block.largest - block.total.log() for block in blocks]
            return torch.cat(parts)[: len(states)]

    def make_invariant(self, dtype: torch.dtype, *, native: bool) -> None:
        """Make the log-probability of a token independent of the tokens beside it.

        Args:
            dtype: dtype of the hidden states.
            native: whether the C++ kernels compute the base, and so this layer.

        Raises:
            NotInvariant: this machine has no way to compute a product so.
        """
        # The kernel reads states and weight in one dtype. A bf16 weight under fp32 states is widened below.
        self._native = native and self.weight.dtype == dtype
        if self._native:
            return
        if has_remainders(self._exp, torch.float32, self.weight.device):
            self._exp = SlicedActivation(self._exp)
        with torch.inference_mode():
            for start in {0, (len(self.weight) - 1) // _COLUMNS * _COLUMNS}:  # all but the last have one shape
                weight, _ = self._read_columns(start)
                self._transposed[len(weight)] = needs_transposing(weight, _ROWS)

    def _read_columns(self, start: int) -> tuple[torch.Tensor, int]:
        """Return the rows of the weight from `start` on in fp32, filled by zeros to a multiple of 64; and their number.

        Rows of logits then begin at multiples of a vector.
        """
        rows = self.weight[start : start + _COLUMNS].float()
        fill = -len(rows) % STEP_TOKENS
        return (nn.functional.pad(rows, (0, 0, 0, fill)) if fill else rows), len(rows)


def split_numbers(rows: Sequence[Sequence[float]], sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
    """Return the numbers of each sequence; of log-probabilities their exact sum and how many they are.

    A long completion then takes no more memory in the engine than a short one.

    Args:
        rows: numbers that a head gave for each of `TokenSequence.score_reads`, of one sequence after the other.
        sequences: sequences that gave them.
    """
    ends = accumulate((len(sequence.score_reads) for sequence in sequences), initial=0)
    parts = [tuple(number for row in rows[start:end] for number in row) for start, end in pairwise(ends)]
    return [
        (math.fsum(numbers), float(len(numbers))) if sequence.predicts else numbers
        for sequence, numbers in zip(sequences, parts, strict=True)
    ]


def _cut(states: torch.Tensor, targets: torch.Tensor) -> list[_Block]:
    """Return the tokens in blocks of `_ROWS`; zeros fill the last one."""
    fill = -len(states) % _ROWS
    parts = zip(
        torch.split(nn.functional.pad(states, (0, 0, 0, fill)), _ROWS),
        torch.split(nn.functional.pad(targets, (0, fill)), _ROWS),
        strict=True,
    )
    start = states.new_zeros(_ROWS)
    return [_Block(*part, start - torch.inf, start - torch.inf, start) for part in parts]
