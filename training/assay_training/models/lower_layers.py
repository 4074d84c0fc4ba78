"""Compute the layers below an adapter by themselves, or put their stored hidden states in the place of computing them.

Both are changes of a base's forward pass that end with a `with` block. The base still embeds its tokens and computes
their positions. So the layers above see the same positions, segments and masks as in a whole forward pass. Layers that
are skipped pass their input on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from assay_service.scoring.layout import Segment, TokenSequence, pack
from assay_service.scoring.model import RewardModel
from assay_training.models.lora import find_layers

# Reads the hidden states `[T, H]` of segments, one after the other, by their keys.
Read = Callable[[Sequence[str]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Row:
    """The segments of a packed row, with their keys."""

    segments: Sequence[Segment]
    keys: Sequence[str]


class LowerLayers:
    """The layers of a base below its lowest adapter.

    Args:
        model: model with a fresh signal, whose architecture packs sequences, on torch's operators.
        count: number of these layers.

    Raises:
        ValueError: a trained parameter lies below the layer `count`.
    """

    def __init__(self, model: RewardModel, count: int) -> None:
        self._model, self._row = model, _Row((), ())
        name, layers = find_layers(model.base)
        self._lower, self._upper = list(layers[:count]), list(layers[count:])
        above = tuple(f"{name}.{index}." for index in range(count, len(layers)))
        for parameter, value in model.base.named_parameters():
            if value.requires_grad and not parameter.startswith(above):
                raise ValueError(f"{parameter} is trained, so the layers below {name}.{count} change in training")

    def identify(self, sequence: TokenSequence) -> dict[str, int]:
        """Return the keys of a sequence's segments, and their numbers of tokens.

        Where prompts are shared, a sequence has two segments; sequences with the same prompt share a key.
        """
        row = pack([sequence], share_prompts=self._model.architecture.causal)
        types = row.types if self._model.token_types > 1 else None
        keys = _identify(row.ids, types, row.segments)
        return dict(zip(keys, (segment.own.tokens for segment in row.segments), strict=True))

    @contextmanager
    def record(self) -> Iterator[dict[str, torch.Tensor]]:
        """Compute only these layers in the forward passes of the block.

        Yields:
            Hidden states of the segments by their keys, `[T, H]` in the dtype of the residual stream. Each forward pass
            adds its own, and its outputs mean nothing.
        """
        found: dict[str, torch.Tensor] = {}

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            """Add the states of each segment to the mapping."""
            for segment, key in zip(self._row.segments, self._row.keys, strict=True):
                found[key] = hidden[0, segment.own.start : segment.own.end]
            return hidden

        with self._change_input(keep), _skip(self._upper):
            yield found

    @contextmanager
    def replace(self, read: Read) -> Iterator[None]:
        """Replace these layers in the forward passes of the block by stored hidden states.

        Args:
            read: reader of the states by the keys of `identify`.
        """

        def insert(hidden: torch.Tensor) -> torch.Tensor:
            """Return the row of stored states; its padding, which nobody reads, is zero."""
            states = read(self._row.keys).to(hidden)
            return torch.cat([states, hidden.new_zeros(hidden.shape[1] - len(states), hidden.shape[2])])[None]

        with self._change_input(insert), _skip(self._lower):
            yield

    @contextmanager
    def _change_input(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Pass the input of the lowest layer with an adapter, `[1, T, H]`, through a function."""

        def see_row(_: nn.Module, __: Any, arguments: dict[str, Any]) -> None:  # noqa: ANN401 - transformers' arguments
            """Keep the segments of the row that the base is about to compute."""
            segments = arguments["segments"]
            keys = _identify(arguments["input_ids"], arguments.get("token_type_ids"), segments)
            self._row = _Row(segments, keys)

        def change_first(_: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
            """Change the first argument of a layer, its hidden states."""
            return (change(positional[0]), *positional[1:])

        hooks = [
            self._model.base.register_forward_pre_hook(see_row, with_kwargs=True),
            self._upper[0].register_forward_pre_hook(change_first),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _identify(ids: torch.Tensor, types: torch.Tensor | None, segments: Sequence[Segment]) -> list[str]:
    """Return a key for each segment: a hash of its tokens and of the tokens before it in its sequence.

    Args:
        ids: token ids of a packed row, int64 `[1, T]`.
        types: token types in the same shape; None if all of them are 0.
        segments: segments of the row.
    """
    rows = torch.cat([ids, torch.zeros_like(ids) if types is None else types]).cpu().numpy()
    keys = []
    for segment in segments:
        spans = [segment.own] if segment.prefix is None else [segment.prefix, segment.own]
        # The border is hashed as well: attention rounds a prompt in its own segment in another way.
        digest = blake2b(",".join(str(span.tokens) for span in spans).encode(), digest_size=16)
        for span in spans:
            digest.update(rows[:, span.start : span.end].tobytes())
        keys.append(digest.hexdigest())
    return keys


@contextmanager
def _skip(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers pass their hidden states on, in the forward passes of the block.

    They are not taken out of the base, whose forward pass reads their place and kind.
    """
    for layer in layers:
        layer.forward = _pass_on
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own method shows again


def _pass_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:  # noqa: ANN401 - transformers' arguments
    """Return the hidden states of a layer's input, `[1, T, H]`."""
    return hidden
