"""Learn the strings that a chat template prints before, between and after the turns of a conversation.

The template renders conversations of many shapes with marks in the place of texts (`skeleton.py`). What it prints
around the marks separates the turns of every text that it renders. No side effects.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.skeleton import Skeleton, build_marked, build_shape, parse_skeleton
from assay_service.scoring.template import Template

# Where a template prints two roles alike, the first of them is read.
_ROLES = ("user", "assistant", "system", "tool", "developer")
# Contexts of templates that allow only some orders of roles.
_CONTEXTS = (
    (),
    *((role,) for role in _ROLES),
    ("user", "assistant"),
    ("system", "user"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool"),
)
# The last tag of a string, such as `<think>`; a tag with a bar opens a turn.
_LAST_TAG = re.compile(r"(<[^<>/\s|｜]+>|\[[^\[\]/\s]+\]|◁[^◁▷/\s]+▷)\s*$")


@dataclass(frozen=True, slots=True)
class Turns:
    """The strings that a chat template prints around the turns of a conversation.

    Attributes:
        starts: roles of the first turn, keyed by what is printed before it, without BOS.
        between: roles of the next turn, keyed by the role of a turn and then by what is printed between both.
        ends: strings after an assistant's last turn.
        opened: length of the part that belongs to the completion, keyed by a string that opens reasoning. The part is
            `<think>` and a line break, for example.
    """

    starts: dict[str, str] = field(default_factory=dict)
    between: dict[str, dict[str, str]] = field(default_factory=dict)
    ends: set[str] = field(default_factory=set)
    opened: dict[str, int] = field(default_factory=dict)

    def list_marks(self) -> frozenset[str]:
        """Return the strings that end a turn, without the white space at their borders."""
        after = itertools.chain(self.ends, *self.between.values())
        return frozenset(mark for text in after if (mark := text.strip()))


def learn_turns(template: Template, bos: str | None) -> Turns:
    """Return what `template` prints around the turns of conversations of system, user, assistant, tool and developer.

    Args:
        template: template that is asked.
        bos: text of the tokenizer's BOS token; None if it has none.
    """
    turns = Turns()
    for roles in _list_shapes():
        shape = build_shape(Message(role, "") for role in roles)
        try:
            rendered = template.render(Item(build_marked(shape)))
            full = parse_skeleton(shape, rendered.full)
        except ContentError:  # templates refuse some roles and orders
            continue
        if list(full.order) != sorted(full.order):  # a system text that is printed later cannot be read in order
            continue
        _add(turns, roles, full, bos)
        turns.ends.add(full.literals[-1])
        try:
            prompt = parse_skeleton(shape[:-1], rendered.prompt)
        except ContentError:  # the generation prompt changes what is printed before it
            continue
        _add(turns, roles[:-1], prompt, bos)
        _add_generation_prompt(turns, roles[-2], prompt.literals[-1], full.literals[-2])
    return turns


def remove_bos(text: str, bos: str | None) -> str:
    """Return `text` without one BOS at its start."""
    return text.removeprefix(bos) if bos else text


def _list_shapes() -> Iterator[tuple[str, ...]]:
    """Yield sequences of roles, of which each ends with the assistant and has a prompt."""
    shapes = (
        (*context, role, *last) for context in _CONTEXTS for role in _ROLES for last in ((), ("user",), ("assistant",))
    )
    return (shape for shape in dict.fromkeys(shapes) if shape[-1] == "assistant" and len(shape) > 1)


def _add(turns: Turns, roles: Sequence[str], skeleton: Skeleton, bos: str | None) -> None:
    """Add what the skeleton of a conversation has before its first turn and between its turns."""
    start = remove_bos(skeleton.literals[0], bos)
    if _comes_first(roles[0], turns.starts.get(start)):
        turns.starts[start] = roles[0]
    for (before, after), text in zip(itertools.pairwise(roles), skeleton.literals[1:], strict=False):
        _add_between(turns.between.setdefault(before, {}), text, after)


def _add_between(known: dict[str, str], text: str, role: str) -> None:
    # White space alone separates nothing: texts contain it as well.
    if text.strip() and _comes_first(role, known.get(text)):
        known[text] = role


def _comes_first(role: str, known: str | None) -> bool:
    """Return whether `role` is read where a template prints it like the role `known`."""
    return known is None or _ROLES.index(role) < _ROLES.index(known)


def _add_generation_prompt(turns: Turns, role: str, text: str, finished: str) -> None:
    """Add a generation prompt after a turn of `role`.

    Args:
        turns: strings to add to.
        role: role of the turn before it.
        text: the end of that turn and the generation prompt.
        finished: the string that stands before a finished completion in the same place.
    """
    _add_between(turns.between.setdefault(role, {}), text, "assistant")
    tag = _LAST_TAG.search(text)
    if tag is None:
        return
    # Reasoning that the generation prompt opens is absent from, or closed before, a completion without reasoning.
    closed = finished.rfind(tag[1][0] + "/" + tag[1][1:])
    if tag[1] not in finished or closed > finished.rfind(tag[1]):
        turns.opened[text] = len(text) - tag.start()


def list_day_patterns(turns: Turns, formats: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of texts that begin as the template begins them on any day, each with the pinned day's text.

    The first group of a pattern is the day.

    Args:
        turns: strings of the template, which saw the pinned day.
        formats: regular expressions of days, keyed by the pinned day in the same form.
    """
    patterns = []
    for start in turns.starts:
        for day, expression in formats.items():
            before, found, _ = start.partition(day)
            if found:
                patterns.append((re.compile(f"{re.escape(before)}({expression})"), day))
    return patterns
