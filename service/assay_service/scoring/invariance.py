"""Whether the logits of a model depend on what is computed together: tried on this machine with this model."""

import random
from collections.abc import Sequence

import torch

from assay_service.scoring.kernels.row_invariant import NotInvariant
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel

# Prompt and completion tokens of the tried sequences; completions in one group share their prompt.
_GROUPS = ((90, (1, 5, 230, 64)), (1, (63,)), (33, (31, 32, 128)), (0, (17,)))

# Tokens of the largest tried batch, at least.
_MANY = 2048


def is_invariant(model: RewardModel, name: str, longest_tokens: int) -> bool:
    """Whether signal `name` gives random sequences the same bits alone, together, in another order and with a sibling.

    Args:
        model: holds the signal.
        name: of the signal.
        longest_tokens: tokens that a sequence may have.
    """
    generator = random.Random(0)  # noqa: S311 - a draw, not a secret
    sequences = _sequences(generator, model.vocabulary_size_of(name), longest_tokens, pairs=model.token_types > 1)
    order = generator.sample(range(len(sequences)), len(sequences))
    half = len(sequences) // 2
    with torch.inference_mode():
        alone = [model.logits([sequence], name).item() for sequence in sequences]
        several = [i for _ in range(_MANY // sum(len(s.ids) for s in sequences) + 1) for i in order]
        batches: list[Sequence[int]] = [range(len(sequences)), order, order[:half], order[half:], several]
        return all(
            model.logits([sequences[i] for i in batch], name).tolist() == [alone[i] for i in batch] for batch in batches
        )


def made_invariant(model: RewardModel, longest_tokens: dict[str, int]) -> dict[str, bool]:
    """Makes the signals of `model` invariant as far as this machine can, and says for which of them it is proved.

    Args:
        model: with all its signals.
        longest_tokens: tokens that a sequence may have, by signal.
    """
    try:
        model.make_invariant()
    except NotInvariant:
        return dict.fromkeys(longest_tokens, False)
    return {name: is_invariant(model, name, longest) for name, longest in longest_tokens.items()}


def _sequences(
    generator: random.Random, vocabulary_size: int, longest_tokens: int, *, pairs: bool
) -> list[TokenSequence]:
    """Return random sequences; with `pairs` their completions have token type 1."""
    sequences = []
    for prompt_tokens, completions in _GROUPS:
        ids = [generator.randrange(vocabulary_size) for _ in range(prompt_tokens)]
        for completion_tokens in completions:
            row = (*ids, *(generator.randrange(vocabulary_size) for _ in range(completion_tokens)))[:longest_tokens]
            boundary = min(prompt_tokens, len(row) - 1)
            second = boundary if pairs and boundary else None
            sequences.append(TokenSequence(row, boundary, Span(len(row) - 1, len(row)), second))
    return sequences
