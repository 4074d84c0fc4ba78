"""Check on this machine whether the logits of a loaded model depend on what is computed together."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from assay_service.scoring.kernels.row_invariant import NotInvariant
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel

# Numbers of prompt tokens, and of tokens in the completions that share the prompt. They lie around multiples of 32 and
# 64, where kernels change their tiles, and include an empty prompt and a completion of one token. They are few, because
# every start computes them; a prompt and a completion are longer than a chunk of keys.
_GROUPS = ((90, (1, 38, 102)), (1, (63,)), (33, (31,)), (0, (17,)))

# Least number of tokens in the largest batch that is tried, with shared prompts counted each time. On CPUs it is above
# the rows that two threads of the C++ kernels take at once. Torch's products are tried at up to 2,048 rows by
# `row_invariant.py`.
_MANY = {"cpu": 900}
_MANY_ELSEWHERE = 2048

# Most steps of a sequence that is tried: more than a row of STEP_TOKENS holds with those of its neighbors.
_MOST_STEPS = 40


def find_invariant(
    model: RewardModel,
    names: Sequence[str],
    longest_tokens: int,
    *,
    steps: bool = False,
    gate: bool = False,
    predicts: bool = False,
) -> dict[str, bool]:
    """Return for each signal whether it gives random sequences the same bits in every batch that is tried.

    The sequences are computed alone, together in another order, and several times at once. Completions share prompts.
    One forward pass serves all signals, as when they are served.

    Args:
        model: model that holds the signals.
        names: names of signals with the same adapters.
        longest_tokens: largest number of tokens of a sequence.
        steps: whether the signals read several tokens of a sequence.
        gate: whether the signals read a token of the prompt as well.
        predicts: whether a signal predicts every token of the completion; the others then read each of these tokens.
    """
    generator = random.Random(0)  # noqa: S311 - the ids are not a secret, and every start tries the same ones
    size = model.get_vocabulary_size(names[0])
    sequences = _draw_sequences(generator, size, longest_tokens, pairs=model.token_types > 1)
    if steps:
        sequences += [_add_steps(generator, sequence) for sequence in sequences]
    if gate:
        sequences = [replace(s, gate=generator.randrange(s.boundary or 1)) for s in sequences]
    if predicts:
        sequences = [replace(s, score=Span(max(s.boundary, 1) - 1, len(s.ids) - 1), predicts=True) for s in sequences]
    copies = _MANY.get(model.device.type, _MANY_ELSEWHERE) // sum(len(s.ids) for s in sequences) + 1
    orders = [generator.sample(range(len(sequences)), len(sequences)) for _ in range(copies + 1)]
    batches = [orders[0], [i for order in orders[1:] for i in order]]
    with torch.inference_mode():
        alone = list(zip(*(model.read([sequence], names) for sequence in sequences), strict=True))
        together = [(batch, model.read([sequences[i] for i in batch], names)) for batch in batches]
    return {
        name: all(numbers[signal] == [alone[signal][i][0] for i in batch] for batch, numbers in together)
        for signal, name in enumerate(names)
    }


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
    # Signals with the same adapters differ in their heads only, so the base computes the sequences once for all.
    groups: dict[tuple[tuple[str, ...], bool, bool], list[str]] = {}
    for name in longest_tokens:
        groups.setdefault((model.get_adapter_names(name), name in stepwise, name in gated), []).append(name)
    held: dict[str, bool] = {}
    for (_, steps, gate), names in groups.items():
        longest = max(longest_tokens[name] for name in names)
        predicts = any(name in predicting for name in names)
        held |= find_invariant(model, names, longest, steps=steps, gate=gate, predicts=predicts)
    return {name: held[name] for name in longest_tokens}


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
