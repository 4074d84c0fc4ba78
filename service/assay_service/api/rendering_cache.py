"""Keep rendered items up to a number of bytes, so that an item that was scored before is not rendered again.

A rendering depends on the item, the renderers of its signals and the truncation only. The least recently used go first.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_service.scoring.item import Item, Message, Truncation
from assay_service.scoring.render import Renderer
from assay_service.scoring.rendered import Rendered

Renderings = dict[str, Rendered]
# What a rendering depends on besides the item: the signals with their renderers, and the truncation.
RenderKey = tuple[tuple[tuple[str, Renderer], ...], Truncation]

# Bytes in CPython, as `tracemalloc` counts them. An entry has its keys, and a token id the number and its place in the
# tuple. Texts come on top.
_ENTRY_BYTES, _RENDERING_BYTES, _MESSAGE_BYTES, _TOKEN_BYTES = 700, 400, 120, 40


@dataclass(slots=True)
class Entry:
    """The renderings of an item, with the keys of their logits.

    Attributes:
        renderings: texts and token sequences, by signal.
        keys: keys of the logits in the engine's cache, by the fingerprint of the trunk that computes them.
    """

    renderings: Renderings
    keys: dict[str, bytes] = field(default_factory=dict)


class RenderingCache:
    """A least-recently-used cache of renderings. It is not safe for concurrent use.

    Args:
        max_bytes: size limit; beyond it the least recently used are removed. 0 keeps nothing.

    Attributes:
        size_bytes: size of the cache, about.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[tuple[RenderKey, Item], Entry] = OrderedDict()

    def get(self, key: RenderKey, item: Item) -> Entry | None:
        """Return the entry of an item, and mark it as used; None for an unknown item."""
        entry = self._entries.get((key, item))
        if entry is not None:
            self._entries.move_to_end((key, item))
        return entry

    def put(self, key: RenderKey, item: Item, renderings: Renderings) -> None:
        """Add the renderings of an item, and remove the least recently used entries beyond the size limit."""
        if (key, item) in self._entries:
            return
        self._entries[key, item] = Entry(renderings)
        self.size_bytes += count_bytes(item, renderings)
        while self.size_bytes > self._max_bytes:
            (_, oldest), removed = self._entries.popitem(last=False)
            self.size_bytes -= count_bytes(oldest, removed.renderings)


def build_key(renderers: Mapping[str, Renderer], truncation: Truncation) -> RenderKey:
    """Return the key of items that are rendered for signals with these renderers."""
    return tuple(renderers.items()), truncation


def count_bytes(item: Item, renderings: Renderings) -> int:
    """Return the bytes that an entry takes, about; signals may share a rendering."""
    different = {id(rendered): rendered for rendered in renderings.values()}.values()
    texts = [text for message in item.messages for text in _list_texts(message)]
    texts += [text for r in different for text in (r.text, r.reasoning, *r.steps, *(d.text for d in r.dropped))]
    tokens = sum(len(rendered.sequence.ids) for rendered in different)
    rest = _ENTRY_BYTES + _RENDERING_BYTES * len(different) + _MESSAGE_BYTES * len(item.messages)
    return rest + sum(map(sys.getsizeof, texts)) + _TOKEN_BYTES * tokens


def _list_texts(message: Message) -> list[str]:
    fields = [text for field in (*message.fields, *message.links) for text in field]
    return [message.role, message.content, *message.parts, *fields, *(call.arguments for call in message.tool_calls)]
