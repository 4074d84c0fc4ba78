"""Read OpenAssistant message trees ([OASST]): threads, sibling ranks and labels.

Rows are messages with their parent, as in the published exports. `labels` is either lists of names and values, or an
object per label. Whole trees with nested `replies` are flattened first. As in the code of [CRS], only finished trees
(`ready_for_export`) and messages that were not deleted count. The group is the tree; trees with the same first message
are one group.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from assay_service.scoring.item import Item, Message
from assay_training.records.record import Dialogue, Dropped, Labelled, Pair, Ranking, drop_equal_pairs, find_group
from assay_training.records.rows import Row

MAX_REPLIES = 4  # the largest K of a ranking
_ROLES = {"prompter": "user", "assistant": "assistant"}
_FINISHED = "ready_for_export"


@dataclass(frozen=True, slots=True)
class _Node:
    """A message in its tree.

    Attributes:
        path: turns from the root to this message, inclusive.
        rank: rank among its siblings, 0 is best; None if the siblings were not ranked.
        labels: value in 0..1 of each label, by its name.
        replies: child messages, in the order of the file.
    """

    path: tuple[Message, ...]
    rank: int | None
    labels: Mapping[str, float]
    replies: list["_Node"] = field(default_factory=list)


def read_rankings(source: str, rows: Iterable[Row], languages: frozenset[str]) -> Iterator[Ranking | Dropped]:
    """Yield a ranking of the best four ranked completions of every prompt, best first.

    Prompts with fewer than two ranked completions are dropped.

    Args:
        source: name of the records' source.
        rows: messages or trees.
        languages: languages of the trees to keep.

    Raises:
        RecordError: a row or a tree is malformed.
    """
    for group, language, root in _read_trees(rows, languages):
        for node in _walk(root):
            if node.path[-1].role != "user" or not node.replies:
                continue
            ranked = sorted((r for r in node.replies if r.rank is not None), key=lambda r: r.rank or 0)[:MAX_REPLIES]
            if len(ranked) < 2:
                yield Dropped("fewer than two ranked completions")
                continue
            ranks = [reply.rank or 0 for reply in ranked]
            pairs = tuple(Pair(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b)
            ties = tuple((i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i < j and a == b)
            texts = tuple(reply.path[-1].content for reply in ranked)
            yield from drop_equal_pairs(Ranking(f"{source}/{language}", group, node.path, texts, pairs, ties))


def read_labelled(
    source: str, rows: Iterable[Row], languages: frozenset[str], weights: Mapping[str, float]
) -> Iterator[Labelled | Dropped]:
    """Yield every assistant message with the weighted sum of its labels as its label.

    Messages without one of the labels, or with a sum below 0, are dropped.

    Args:
        source: name of the records' source.
        rows: messages or trees.
        languages: languages of the trees to keep.
        weights: weight of each label; the magnitudes sum to 1, so that the sum stays within 1 ([CRS] section 5.3).

    Raises:
        RecordError: a row or a tree is malformed.
    """
    for group, language, root in _read_trees(rows, languages):
        for node in _walk(root):
            if node.path[-1].role != "assistant":
                continue
            missing = weights.keys() - node.labels.keys()
            label = sum(weight * node.labels.get(name, 0.0) for name, weight in weights.items())
            if missing:
                yield Dropped(f"no label {min(missing)!r}")
            elif label < 0:
                yield Dropped("a quality below 0")
            else:
                yield Labelled(f"{source}/{language}", group, Item(node.path), label)


def read_dialogues(source: str, rows: Iterable[Row], languages: frozenset[str]) -> Iterator[Dialogue]:
    """Yield one thread per tree, which follows the best-ranked child and ends with the assistant's last turn.

    Args:
        source: name of the records' source.
        rows: messages or trees.
        languages: languages of the trees to keep.

    Raises:
        RecordError: a row or a tree is malformed.
    """
    for group, language, root in _read_trees(rows, languages):
        node = root
        while node.replies:
            # Children without a rank come last, because False sorts before True.
            node = min(node.replies, key=lambda reply: (reply.rank is None, reply.rank))
        path = node.path if node.path[-1].role == "assistant" else node.path[:-1]
        if path:
            yield Dialogue(f"{source}/{language}", group, path)


def _read_trees(rows: Iterable[Row], languages: frozenset[str]) -> Iterator[tuple[str, str, _Node]]:
    """Yield group, language and root of every finished tree in one of `languages`, in the order of the file."""
    messages: dict[str, Row] = {}
    for row in _flatten_messages(rows):
        # Replies find their parent by its id, so two messages of one id would share their replies.
        if messages.setdefault(row.get("message_id", str), row) is not row:
            raise row.error(f"field 'message_id': {row.get('message_id', str)!r} occurs twice")
    children: dict[str, list[Row]] = defaultdict(list)
    for row in messages.values():
        # A deleted message drops its whole subtree: its children are reached only through it.
        if row.fields.get("parent_id") is not None and row.fields.get("deleted") is not True:
            children[_get_parent(row, messages)].append(row)
    _check_roots(messages)
    for root in messages.values():
        if root.fields.get("parent_id") is not None or root.fields.get("deleted") is True:
            continue
        language = root.get("lang", str)
        if root.get("tree_state", str) == _FINISHED and language in languages:
            yield find_group(root.text("text")), language, _build_tree(root, children)


def _get_parent(row: Row, messages: Mapping[str, Row]) -> str:
    parent = row.get("parent_id", str)
    if parent not in messages:
        raise row.error(f"field 'parent_id': no message has the id {parent!r}")
    return parent


def _check_roots(messages: Mapping[str, Row]) -> None:
    """Check that no message is its own ancestor: it would belong to no tree, and would be dropped silently."""
    rooted: set[str] = set()
    for name in messages:
        visited: dict[str, None] = {}
        above: str | None = name
        while above is not None and above not in rooted:
            row = messages[above]
            if above in visited:
                raise row.error("field 'parent_id': the message is its own ancestor")
            visited[above] = None
            top = row.fields.get("parent_id") is None or row.fields.get("deleted") is True
            above = None if top else _get_parent(row, messages)
        # Remembered, so that a deep tree is not climbed again from each of its messages.
        rooted |= visited.keys()


def _flatten_messages(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield messages, also those inside whole trees."""
    for row in rows:
        prompt = row.fields.get("prompt")
        if not isinstance(prompt, Mapping):
            yield row
            continue
        tree = {"message_tree_id": row.get("message_tree_id", str), "tree_state": row.get("tree_state", str)}
        waiting: list[tuple[Any, str | None]] = [(prompt, None)]
        while waiting:
            message, parent = waiting.pop(0)
            flat = Row(row.where, row.subset, {**message, **tree, "parent_id": parent})
            yield flat
            replies = message.get("replies") or []
            if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
                raise row.error("field 'replies' is not a list of messages")
            waiting += [(reply, flat.get("message_id", str)) for reply in replies]


def _build_tree(root: Row, children: Mapping[str, list[Row]]) -> _Node:
    """Build a tree; without recursion, because its depth is not limited."""
    top = _build_node(root, ())
    waiting = [(root, top)]
    while waiting:
        row, node = waiting.pop()
        for reply in children.get(row.get("message_id", str), ()):
            node.replies.append(_build_node(reply, node.path))
            waiting.append((reply, node.replies[-1]))
    return top


def _build_node(row: Row, before: tuple[Message, ...]) -> _Node:
    role = row.get("role", str)
    if role not in _ROLES:
        raise row.error("field 'role' is not prompter or assistant")
    path = (*before, Message(_ROLES[role], row.text("text")))
    rank = None if row.fields.get("rank") is None else row.get("rank", int)
    if rank is not None and rank < 0:
        raise row.error(f"field 'rank' is {rank}; ranks begin at 0, which is best")
    return _Node(path, rank, _read_labels(row))


def _read_labels(row: Row) -> dict[str, float]:
    given = row.fields.get("labels") or {}
    try:
        # The data set on the hub has lists of names and values, the published files an object per label.
        if "name" in given:
            labels = dict(zip(given["name"], given["value"], strict=True))
        else:
            labels = {name: label["value"] for name, label in given.items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        raise row.error("field 'labels' is neither names and values nor an object per label") from None
    for name, value in labels.items():
        # In Python true is an int, but it is not a label.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise row.error(f"field 'labels': {name!r} is not a number")
        if not 0 <= value <= 1:
            raise row.error(f"field 'labels': {name!r} is {value}, not in 0..1")
    return {name: float(value) for name, value in labels.items()}


def _walk(root: _Node) -> Iterator[_Node]:
    """Yield the messages of a tree, parents before their children."""
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        yield node
        waiting += node.replies
