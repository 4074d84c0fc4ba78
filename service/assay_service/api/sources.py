"""Define what an endpoint makes of one entry of a request, and cut such entries into turns of the render thread."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from assay_service.errors import ContentError
from assay_service.scoring.item import Item

# One turn of the render thread ends at whichever limit is reached first: items, or characters.
SLICE_ITEMS = 16
SLICE_CHARS = 50_000

# Characters that a message counts for besides its content and role, because a template prints words around it.
MESSAGE_CHARS = 16


@dataclass(frozen=True, slots=True)
class UnreadItem:
    """An item that is still text or token ids.

    The render thread reads it, because reading renders templates: it is slow, and tokenizers are shared.

    Attributes:
        chars: number of characters of the text, or a lower bound for token ids.
        read: function that returns the item, or raises a ContentError.
    """

    chars: int
    read: Callable[[], Item]


# What an endpoint makes of one entry of a request; an error stands for an entry that holds no item.
ItemSource = Item | UnreadItem | ContentError


def count_chars(item: ItemSource) -> int:
    """Return a lower bound on the characters of the rendered item; a message without content counts as well."""
    if isinstance(item, ContentError):
        return 0
    if isinstance(item, UnreadItem):
        return item.chars
    texts = (text for message in item.messages for _, text in message.texts())
    links = (link for message in item.messages for link in message.list_links())
    return (
        sum(map(len, texts))
        + sum(map(len, links))
        + sum(len(message.role) + MESSAGE_CHARS for message in item.messages)
    )


def cut_slices(items: Sequence[ItemSource]) -> Iterator[list[ItemSource]]:
    """Cut `items` into turns of the render thread; an item that is long by itself has a turn of its own."""
    part: list[ItemSource] = []
    chars = 0
    for item in items:
        if part and (len(part) == SLICE_ITEMS or chars + count_chars(item) > SLICE_CHARS):
            yield part
            part, chars = [], 0
        part.append(item)
        chars += count_chars(item)
    if part:
        yield part
