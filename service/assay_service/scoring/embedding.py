"""Give a signal its own token embedding: its own rows where they differ from the base's, else those of the base.

Runs that add tokens train an embedding, or some of its rows. The base's embedding is shared by every signal on it, so
these rows are stored in the signal's own copy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from assay_service.errors import StartError


@dataclass(frozen=True, slots=True)
class EmbeddingChange:
    """The change that one adapter's file makes to the token embedding.

    Attributes:
        source: directory of the adapter, for errors.
        whole: embedding `[V, H]` that replaces the old one; V may differ from the base's. None keeps the old one.
        delta: fp32 `[V, H]` that is added to the embedding (LoRA on the embedding). None adds nothing.
        indices: token ids that have trained rows.
        rows: trained rows of `indices`, `[k, H]`; they replace the old rows, although PEFT calls them a delta.
    """

    source: Path
    whole: torch.Tensor | None = None
    delta: torch.Tensor | None = None
    indices: tuple[int, ...] = ()
    rows: torch.Tensor | None = None

    def apply_to(self, table: torch.Tensor) -> torch.Tensor:
        """Return the embedding `[V', H]` after this change of `table`, `[V, H]`.

        With LoRA on the embedding the result is fp32. A whole table keeps its dtype, and rows take that of the table.

        Raises:
            StartError: a shape does not fit, or a token id between the table's end and the last trained row has no row.
        """
        if self.whole is not None:
            self._check_width(self.whole, table)
            table = self.whole.to(table.device)
        if self.delta is not None:
            if self.delta.shape != table.shape:
                raise StartError(
                    f"{self.source}: has LoRA on an embedding of shape {list(self.delta.shape)}, but the embedding has "
                    f"{list(table.shape)}; declare the adapter's own `base`"
                )
            table = table.float() + self.delta.to(table.device)
        return table if self.rows is None else self._replace_rows(self.rows, table)

    def _replace_rows(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Return a copy of the table with the trained rows in it."""
        self._check_width(rows, table)
        if not len(self.indices) == len(set(self.indices)) == len(rows) or min(self.indices) < 0:
            raise StartError(
                f"{self.source}: trainable_token_indices {list(self.indices)} must be {len(rows)} different ids, one "
                "for each trained row; save the adapter again"
            )
        missing = sorted(set(range(len(table), max(self.indices) + 1)) - set(self.indices))
        if missing:
            raise StartError(
                f"{self.source}: token {missing[0]} lies beyond the base's embedding and has no row; "
                "save the adapter with save_embedding_layers=True"
            )
        added = table.new_zeros(max(0, max(self.indices) + 1 - len(table)), table.shape[1])
        table = torch.cat([table, added])  # a copy even if nothing is added, so that the base's table stays unchanged
        table[torch.tensor(self.indices, device=table.device)] = rows.to(table)
        return table

    def _check_width(self, rows: torch.Tensor, table: torch.Tensor) -> None:
        """Refuse rows whose width is not that of the table."""
        if rows.ndim != 2 or rows.shape[1] != table.shape[1]:
            raise StartError(
                f"{self.source}: has an embedding of shape {list(rows.shape)}, but tokens of this base have "
                f"{table.shape[1]} numbers; declare the adapter's own `base`"
            )


class OwnEmbedding:
    """The token embedding of one signal, which stores only the rows that differ from the base's.

    Args:
        shared: embedding of the base; it is read at every call and never written.
        table: embedding of the signal, `[V, H]`.

    Attributes:
        vocabulary_size: number V of token ids.
        own_rows: number of rows that are stored here.
        bytes: memory of these rows and of the table that finds them.
    """

    def __init__(self, shared: nn.Embedding, table: torch.Tensor) -> None:
        weight = shared.weight.detach()
        common = min(len(table), len(weight))
        own = torch.ones(len(table), dtype=torch.bool, device=weight.device)
        own[:common] = (table[:common] != weight[:common]).any(dim=1)
        # The row of each token id in `_rows`; -1 reads the base's embedding.
        places = torch.full((len(table),), -1, dtype=torch.int32, device=weight.device)
        places[own] = torch.arange(int(own.sum()), dtype=torch.int32, device=weight.device)
        self._shared, self._places, self._rows = shared, places, table[own].contiguous()
        self.vocabulary_size = len(table)
        self.own_rows = len(self._rows)
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in (self._rows, self._places))

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embedded tokens, `[..., H]`, of int64 ids `[...]`.

        Rows are copied, so the result for a token does not depend on its neighbors.
        """
        places = self._places[ids].long()
        own = places >= 0
        embedded: torch.Tensor = self._shared(ids.masked_fill(own, 0))
        if not self.own_rows:
            return embedded
        rows = self._rows[places.clamp(min=0)].to(embedded.dtype)
        scale = getattr(self._shared, "embed_scale", None)  # Gemma's embedding multiplies its rows by a factor
        rows = rows if scale is None else rows * scale.to(rows.dtype)
        return torch.where(own[..., None], rows, embedded)


def build_own_embedding(shared: nn.Embedding, changes: Iterable[EmbeddingChange]) -> OwnEmbedding | None:
    """Return the embedding that `changes`, in order, make of the base's; None if they change nothing.

    Raises:
        StartError: a change does not fit the embedding.
    """
    table = weight = shared.weight.detach()
    for change in changes:
        table = change.apply_to(table)
    # Compared in the base's dtype: an adapter saved in fp32 then keeps the shared rows shared.
    table = table.to(weight)
    return None if torch.equal(table, weight) else OwnEmbedding(shared, table)
