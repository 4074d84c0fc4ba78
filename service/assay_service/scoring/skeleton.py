"""Find where a chat template prints each text of a conversation, and which texts it drops. No side effects.

A skeleton is the rendered conversation with a unique mark in the place of every text. White space is not compared:
templates trim texts and put line breaks around reasoning, and models are trained on the result.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from assay_service.errors import ContentError
from assay_service.scoring.item import Message
from assay_service.scoring.tool_calls import Leaf

# Marks are letters only, so that no template trims, splits or escapes them. Those of argument names begin with their
# rank, so that a template which sorts them puts them in the order of the names themselves. Bare values need numbers.
_MARK = re.compile("Assay[A-J]*Sentinel([A-J]+)q|8190412([0-9]{7})2140918")
NEUTRAL = "AssaySentinelq"  # takes the place of one text beside others, which may be marks
NEUTRAL_BARE = "81904122140918"
_PLAIN_FIELD = re.compile(r"(?:[\w.\[\]-]|<name \d+>){1,128}")  # `<name 0>` stands for the name of an argument
_PLAIN_ROLE = re.compile(r"[\w-]{1,64}")  # another role may hold text of a user, which an error never quotes

# The role and the names of the further fields of each message. A message with parts, tool calls or links is itself in
# the shape, with neutral texts. A skeleton depends on nothing else.
Shape = tuple[tuple[str, tuple[str, ...]] | Message, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one text of a conversation: the field `field` of the message at `index`.

    The field is a path, such as `content` or `tool_calls[0].function.name`; `bare` is that of `Leaf`.
    """

    index: int
    role: str
    field: str
    bare: bool = False

    @property
    def may_repeat(self) -> bool:
        """Return True if a template may print the text twice: names of functions stand before their results, too."""
        return self.field.startswith("tool_calls")

    def __str__(self) -> str:
        """Return the place for errors; an unusual role or name is not shown, since errors never quote a text."""
        field = f".{self.field}" if _PLAIN_FIELD.fullmatch(self.field) else ": a field with an unusual name"
        where = f"messages[{self.index}]" + ("" if self.field == "content" else field)
        return where + (f" (role '{self.role}')" if _PLAIN_ROLE.fullmatch(self.role) else "")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A text that a template did not print: all of the text at `slot`, or a part of it."""

    slot: Slot
    text: str


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The strings that a template prints around the texts of a conversation.

    Attributes:
        literals: strings before the first text, between the texts and after the last one.
        order: numbers of the texts in the order in which they are printed; one fewer than `literals`.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]

    def fill(self, texts: Sequence[str]) -> str:
        """Return the conversation with `texts`, indexed by number, inserted as they are."""
        pieces = [self.literals[0]]
        for number, literal in zip(self.order, self.literals[1:], strict=True):
            pieces += (texts[number], literal)
        return "".join(pieces)

    def spell(self, printed: str, spellings: Sequence[Sequence[str]]) -> list[str]:
        """Return each text in the first of its spellings that `printed` shows; the first one where it shows none.

        Args:
            printed: rendered conversation.
            spellings: spellings of each text, as `Leaf.list_spellings` gives them.
        """
        chosen = [known[0] for known in spellings]
        if all(len(known) == 1 for known in spellings):
            return chosen
        packed = _remove_space(printed)
        place = len(_remove_space(self.literals[0]))
        for number, literal in zip(self.order, self.literals[1:], strict=True):
            after = _remove_space(literal)
            shown = (text for text in spellings[number] if packed.startswith(_remove_space(text) + after, place))
            if (text := next(shown, None)) is None:
                break
            chosen[number] = text
            place += len(_remove_space(text)) + len(after)
        return chosen

    def find_suspects(self, printed: str, texts: Sequence[str]) -> Sequence[int]:
        """Return the numbers of the texts that `printed` may not show as they are; none if it shows all of them."""
        if printed == self.fill(texts):
            return ()
        packed = _remove_space(printed)
        literals, contents = (
            [_remove_space(literal) for literal in self.literals],
            [_remove_space(texts[number]) for number in self.order],
        )
        around = [f"{text}{after}" for text, after in zip(contents, literals[1:], strict=True)]
        if packed == literals[0] + "".join(around):
            return ()
        first = _count_matching(packed, literals[0], contents, literals[1:])
        last = _count_matching(packed[::-1], literals[-1][::-1], *_reverse_all(contents, literals[:-1]))
        return self.order[first : max(len(self.order) - last, first)] or self.order


def build_shape(messages: Iterable[Message]) -> Shape:
    """Return the shape of `messages`, on which alone the skeleton depends."""
    return tuple((m.role, tuple(name for name, _ in m.fields)) if m.is_plain else _blank(m) for m in messages)


def _blank(message: Message) -> Message:
    fields = tuple((name, "") for name, _ in message.fields)
    # A content that is empty beside tool calls is not printed, so it is part of the shape.
    content = NEUTRAL if message.content else ""
    parts, calls = ("",) * len(message.parts), tuple(call.blank() for call in message.tool_calls)
    return replace(message, content=content, fields=fields, parts=parts, tool_calls=calls)


def list_slots(shape: Shape) -> tuple[Slot, ...]:
    """Return the slots of a conversation in the order of its messages."""
    slots: list[Slot] = []
    for index, turn in enumerate(shape):
        if isinstance(turn, Message):
            slots += (Slot(index, turn.role, leaf.field, leaf.bare) for leaf in turn.list_leaves())
        else:
            slots += (Slot(index, turn[0], field) for field in ("content", *turn[1]))
    return tuple(slots)


def list_texts(messages: Iterable[Message]) -> list[str]:
    """Return the texts of a conversation, in the order of `list_slots`."""
    return [text for message in messages for _, text in message.texts()]


def list_spellings(messages: Iterable[Message]) -> list[tuple[str, ...]]:
    """Return the spellings of the texts of a conversation, in the order of `list_slots`."""
    return [leaf.list_spellings() for message in messages for leaf in message.list_leaves()]


def build_neutral(slots: Iterable[Slot]) -> list[str]:
    """Return a neutral text for each slot."""
    return [NEUTRAL_BARE if slot.bare else NEUTRAL for slot in slots]


def build_neutral_links(messages: Iterable[Message]) -> dict[str, str]:
    """Return a plain text of the same length for each link of `messages`; templates may check lengths."""
    links = dict.fromkeys(link for message in messages for link in message.list_links())
    return {link: str(number).translate(_LETTERS).rjust(len(link), "Z") for number, link in enumerate(links)}


def _build_mark(number: int, leaf: Leaf | None = None) -> str:
    """Return the mark that stands for the text with this number."""
    if leaf is not None and leaf.bare:
        return f"8190412{number:07}2140918"
    rank = leaf.text.translate(_LETTERS) if leaf is not None and leaf.named else ""
    return f"Assay{rank}Sentinel{str(number).translate(_LETTERS)}q"


def build_marked(shape: Shape) -> tuple[Message, ...]:
    """Return a conversation of this shape with a mark in the place of every text."""
    messages, number = [], 0
    for turn in shape:
        if isinstance(turn, Message):
            leaves = turn.list_leaves()
            messages.append(turn.replace_texts(_build_mark(number + i, leaf) for i, leaf in enumerate(leaves)))
            number += len(leaves)
            continue
        role, fields = turn
        content, *others = (_build_mark(number + i) for i in range(len(fields) + 1))
        number += len(fields) + 1
        messages.append(Message(role, content, tuple(zip(fields, others, strict=True))))
    return tuple(messages)


def parse_skeleton(shape: Shape, text: str) -> Skeleton:
    """Return the skeleton that `text`, the rendered conversation of marks, shows.

    Raises:
        ContentError: a text of the conversation is not printed, or more than once; the code is `template_error`.
    """
    slots = list_slots(shape)
    parts = _MARK.split(text)
    numbers = [
        int(digits or letters.translate(_DIGITS)) for letters, digits in zip(parts[1::3], parts[2::3], strict=True)
    ]
    counts = Counter(numbers)
    for number, slot in enumerate(slots):
        if counts[number] == 0:
            raise ContentError(f"the template does not print {slot}; {_ADVICE}", code="template_error")
        if counts[number] > 1 and not slot.may_repeat:
            raise ContentError(
                f"the template prints {slot} {counts[number]} times; declare a template that prints it once",
                code="template_error",
            )
    return Skeleton(tuple(parts[::3]), tuple(numbers))


def find_lost(text: str, head: str, tail: str, printed: str) -> str:
    """Return the part of `text` that `printed` does not show; "" if it shows all of it.

    Args:
        text: text that should stand between `head` and `tail`.
        head: text that the template prints before a neutral text in this place.
        tail: text that the template prints after it.
        printed: rendered conversation with `text`.
    """
    wanted, head, tail, printed = _remove_space(text), _remove_space(head), _remove_space(tail), _remove_space(printed)
    start = _count_common(head, printed)
    end = len(printed) - _count_common(tail[::-1], printed[start:][::-1])
    # The template may print less around this text than around a neutral one (no empty `<think></think>`). The same
    # characters may then belong to the text.
    if start < len(head):
        start -= _count_overlap(printed[:start], wanted)
    elif _TAGS.fullmatch(wanted[: (shared := _count_overlap(head, wanted))]):
        start -= shared  # an empty `<think></think>` that the template prints once, even if the text contains it too
    if len(printed) - end < len(tail):
        end += _count_overlap(printed[end:][::-1], wanted[::-1])
    shown = printed[start:end]
    # A template may insert characters between those of the text; a text whose characters all occur in order is shown.
    remaining = iter(shown)
    if wanted in shown or all(character in remaining for character in wanted):
        return ""
    before = _count_common(wanted, shown)
    after = _count_common(wanted[before:][::-1], shown[before:][::-1])
    places = [place for place, character in enumerate(text) if not character.isspace()]
    return text[places[before] : places[len(wanted) - after - 1] + 1]


_TAGS = re.compile(r"(<[^<>]+>|\[[^\[\]]+\])+")
_LONGEST_MARKER = 256  # characters that a template prints around a text; the limit keeps the search linear
_ADVICE = "remove it, or declare a template that prints it"
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def _remove_space(text: str) -> str:
    """Return `text` without white space."""
    return "".join(text.split())


def _count_matching(packed: str, lead: str, contents: Sequence[str], literals: Sequence[str]) -> int:
    """Return the number of contents that stand at the start of `packed`, each followed by its literal."""
    if not packed.startswith(lead):
        return 0
    place, count = len(lead), 0
    for content, literal in zip(contents, literals, strict=True):
        if not packed.startswith(content + literal, place):
            break
        place, count = place + len(content) + len(literal), count + 1
    return count


def _reverse_all(contents: Sequence[str], literals: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return both lists backwards with every string reversed, so that ends can be matched like beginnings."""
    return [text[::-1] for text in reversed(contents)], [text[::-1] for text in reversed(literals)]


def _count_common(a: str, b: str) -> int:
    """Return the length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _count_overlap(before: str, text: str) -> int:
    """Return the length of the longest end of `before` that is a start of `text`, up to `_LONGEST_MARKER`."""
    longest = min(len(before), len(text), _LONGEST_MARKER)
    return next((n for n in range(longest, 0, -1) if before.endswith(text[:n])), 0)
