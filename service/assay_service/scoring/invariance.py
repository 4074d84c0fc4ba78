"""Check on this machine whether the logits of a loaded model depend on what is computed together."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from assay_service.scoring.kernels.row_invariant import NotInvariant
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel

# Numbers of prompt tokens, and of tokens in the completions that share the prompt. They lie around multiples of 32 and
# 64, where kernels change their tiles, and include an empty prompt and a completion of one token.
_GROUPS = ((90, (1, 5, 230, 64)), (1, (63,)), (33, (31, 32, 128)), (0, (17,)))

# Least number of tokens in the largest batch that is tried.
_MANY = 2048

# Most steps of a sequence that is tried: more than a row of STEP_TOKENS holds with those of its neighbors.
_MOST_STEPS = 40


def is_invariant(
    model: RewardModel,
    name: str,
    longest_tokens: int,
    *,
    steps: bool = False,
    gate: bool = False,
    predicts: bool = False,
) -> bool:
    """Return whether signal `name` gives random sequences the same bits in every batch that is tried.

    The sequences are computed alone, together, in another order, and with completions of the same prompt.

    Args:
        model: model that holds the signal.
        name: name of the signal.
        longest_tokens: largest number of tokens of a sequence.
        steps: whether the signal reads several tokens of a sequence.
        gate: whether the signal reads a token of the prompt as well.
        predicts: whether the signal predicts every token of the completion.
    """
    generator = random.Random(0)  # noqa: S311 - the ids are not a secret, and every start tries the same ones
    sequences = _draw_sequences(generator, model.get_vocabulary_size(name), longest_tokens, pairs=model.token_types > 1)
    if steps:
        sequences += [_add_steps(generator, sequence) for sequence in sequences]
    if gate:
        sequences = [replace(s, gate=generator.randrange(s.boundary or 1)) for s in sequences]
    if predicts:
        sequences = [replace(s, score=Span(max(s.boundary, 1) - 1, len(s.ids) - 1), predicts=True) for s in sequences]
    order = generator.sample(range(len(sequences)), len(sequences))
    half = len(sequences) // 2
    with torch.inference_mode():
        alone = [model.read([sequence], (name,))[0][0] for sequence in sequences]
        several = [i for _ in range(_MANY // sum(len(s.ids) for s in sequences) + 1) for i in order]
        batches: list[Sequence[int]] = [range(len(sequences)), order, order[:half], order[half:], several]
        return all(
            model.read([sequences[i] for i in batch], (name,)) == [[alone[i] for i in batch]] for batch in batches
        )


def make_invariant(
    model: RewardModel,
    longest_tokens: Mapping[str, int],
    stepwise: Collection[str] = (),
    gated: Collection[str] = (),
    predicting: Collection[str] = (),
) -> dict[str, bool]:
    """Make the signals of `model` invariant as far as this machine can, and return for which of them the check holds.

    Args:
        model: model with all its signals.
        longest_tokens: largest number of tokens of a sequence, keyed by signal.
        stepwise: signals that read several tokens of a sequence.
        gated: signals that read a token of the prompt as well.
        predicting: signals that predict every token of the completion.
    """
    try:
        model.make_invariant()
    except NotInvariant:
        return dict.fromkeys(longest_tokens, False)
    return {
        name: is_invariant(
            model, name, longest, steps=name in stepwise, gate=name in gated, predicts=name in predicting
        )
        for name, longest in longest_tokens.items()
    }


def _add_steps(generator: random.Random, sequence: TokenSequence) -> TokenSequence:
    """Return `sequence` with up to `_MOST_STEPS` tokens of its completion read as steps."""
    places = range(sequence.boundary, len(sequence.ids))
    first, *later = sorted(generator.sample(places, min(len(places), _MOST_STEPS)))
    return replace(sequence, score=Span(first, first + 1), later_steps=tuple(Span(i, i + 1) for i in later))


def _draw_sequences(
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
