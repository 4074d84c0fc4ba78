"""Build the items of a request, in which token ids may stand for text."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from assay_service.api.messages import build_items
from assay_service.api.schemas import ScoreItem
from assay_service.api.sources import ItemSource, UnreadItem
from assay_service.errors import ContentError, ServingError
from assay_service.scoring.item import Item
from assay_service.scoring.token_reader import TokenReader

# The readers of each known tokenizer by its hash; those of one tokenizer have different templates.
TokenReaders = Mapping[str, Sequence[TokenReader]]


def collect_readers(readers: Iterable[TokenReader]) -> TokenReaders:
    """Return the readers by the hash of their tokenizer; the first of several with the same hash is asked first."""
    known: dict[str, list[TokenReader]] = {}
    for reader in readers:
        known.setdefault(reader.sha256, []).append(reader)
    return known


def read_items(items: Sequence[ScoreItem], tokenizer_sha256: str | None, known: TokenReaders) -> list[ItemSource]:
    """Build the item of each entry of a request, or the error for which an entry has none.

    Args:
        items: entries of the request.
        tokenizer_sha256: hash of the tokenizer that gave the ids; entries of text need none.
        known: readers of the tokenizers that the service knows.

    Raises:
        ServingError: no known tokenizer has this hash.
    """
    if tokenizer_sha256 is not None and tokenizer_sha256 not in known:
        raise ServingError(
            "is not the hash of a tokenizer that this service knows; /info lists them under `tokenizers`. Declare the "
            "policy's tokenizer by compat.wires.NAME.policy, or send text",
            code="invalid_request",
            param="tokenizer_sha256",
        )
    readers = known[tokenizer_sha256] if tokenizer_sha256 is not None else ()
    return [build_items([item])[0] if item.prompt_ids is None else _defer(item, readers) for item in items]


def _defer(item: ScoreItem, readers: Sequence[TokenReader]) -> UnreadItem:
    ids = len(item.prompt_ids or ()) + len(item.completion_ids or ())
    return UnreadItem(ids, partial(_read, item, readers))


def _read(item: ScoreItem, readers: Sequence[TokenReader]) -> Item:
    first: ContentError | None = None
    for reader in readers:
        try:
            return reader.read(item.prompt_ids or (), item.completion_ids or ())
        except ContentError as error:
            first = first or error
    assert first is not None  # the schema requires the hash of a tokenizer beside ids
    raise first
