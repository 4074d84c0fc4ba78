"""Find tags and phrases that may enclose reasoning, in the forms that models print. No side effects.

They make a completion doubtful where they are not the declared tags, or do not stand where reasoning stands. Such a
completion is refused: neither scoring the text as it is nor removing a part of it is certain to be right.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Characters that nobody sees: controls, Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the
# blank Braille pattern.
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[{_INVISIBLE}]")
_FRONT = re.compile(rf"[\s{_INVISIBLE}]*")
# Fenced blocks, of which the last may be open, and spans of code within a line.
_CODE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\n]*|\Z)|``[^\n]+?``|`[^`\n]+`", re.MULTILINE | re.DOTALL)

# `<think>` (Qwen3, DeepSeek-R1), `[THINK]` (Magistral), `<seed:think>`, `<longcat_think>`, `◁think▷` (Kimi),
# `<thought>` (EXAONE Deep), `<|begin_of_thought|>` (Sky-T1), `<|START_THINKING|>` (Command A), `<|channel|>analysis`
# (gpt-oss), `<|channel>thought` (Gemma 4). Others are `<thinking>`, `<reasoning>`, `<scratchpad>`,
# `<start_working_out>` of prompts and of recipes for GRPO.
_NAME = (
    r"(?:[a-z0-9]{1,20}[:_]){0,3}(?:think|thinking|thoughts?|reasoning|scratchpad|working_out|monologue)"
    r"(?:_(?:process|content|trace|steps|block))?"
)
_TAG = (
    rf"<\|?[ ]?(?P<angle>/?)(?P<name>{_NAME})(?:\s[^<>\n=]{{1,40}}=[^<>\n]{{0,100}})?[ ]?/?\|?>"
    rf"|◁(?P<triangle>/?){_NAME}▷|\[(?P<square>/?)think(?:ing)?\]|<\|channel\|?>\s?(?:analysis|thought)\b"
)
_TO_END_OF_LINE = re.compile(r"[^\S\n]*(?:\n|\Z)")
# Beginnings of those tags, one of which may be all that there is of a completion that was cut off.
_BEGINNINGS = (
    *("<thinking>", "<thought>", "<reasoning>", "<scratchpad>", "<seed:think>", "<longcat_think>", "[think]"),
    *("◁think▷", "<|begin_of_thought|>", "<|start_thinking|>", "<|channel|>analysis", "<|channel>thought"),
)
# What stands before the reasoning, and what before the text: gpt-oss without its special tokens, Granite, Apriel.
_PHRASES = (
    (re.compile(r"analysis(?=\S)"), re.compile("assistantfinal")),
    (
        re.compile(r"here(?:['\u2019]s| is) my thought process:", re.IGNORECASE),
        re.compile(r"my response:", re.IGNORECASE),
    ),
    (re.compile(r"here are my reasoning steps:", re.IGNORECASE), re.compile(r"\[BEGIN FINAL RESPONSE\]")),
)

_PHRASED = "the completion has phrases that some models write around their reasoning, in place of tags"
_BEHIND_TEXT = "the completion has a tag of reasoning behind its beginning, so it is not certain what is reasoning"
_UNDECLARED = (
    "the completion has a tag like those of reasoning, and another one is declared; declare the tags of the policy "
    "(`reasoning_tags`), or send the reasoning as `reasoning_content`"
)


def trim(text: str) -> str:
    """Return a text without the white space and the invisible characters at its start."""
    return text[_FRONT.match(text).end() :]  # type: ignore[union-attr]  # the pattern matches every text


def mask_code(text: str) -> str:
    """Return a text of the same length in which code in the sense of Markdown is replaced by letters."""
    return _CODE.sub(lambda match: "x" * len(match[0]), text)


def may_begin(text: str, start: str) -> bool:
    """Return whether a text that was cut off may end within the tag `start`, or within another tag of reasoning."""
    seen = trim(text).casefold()
    return bool(seen) and any(tag.startswith(seen) for tag in (start.casefold(), *_BEGINNINGS))


def find_doubt(text: str, tags: tuple[str, str], *, strict: bool, unfinished: bool) -> str | None:
    """Return why a text may hold reasoning that is not the declared block at the start; None if nothing says so.

    Code is not read. Case, wide letters and invisible characters within tags make no difference.

    Args:
        text: the completion behind its declared block.
        tags: declared tags.
        strict: True if whole blocks within a line are doubtful as well; False takes them for text about such tags.
        unfinished: whether the completion was cut off.
    """
    shown = _normalize(text)
    for start, end in _PHRASES:
        if start.match(shown.lstrip()) and (unfinished or end.search(shown)):
            return _PHRASED
    begun: dict[str, bool] = {}  # whether the opening tag begins a line, by the name of the tag
    for mark in _list_marks(shown, tags):
        is_block = mark.closes and mark.name in begun and (strict or begun[mark.name])
        if mark.leads or mark.alone or is_block:
            return _BEHIND_TEXT if mark.name == _DECLARED and not mark.leads else _UNDECLARED
        if not mark.closes:
            begun[mark.name] = mark.begins_line
    return None


def has_tags(text: str, tags: tuple[str, str]) -> bool:
    """Return whether a text has any tag of reasoning outside of code, in any case; see `find_doubt`."""
    return next(_list_marks(_normalize(text), tags), None) is not None


_DECLARED = ""  # the name of both declared tags


@dataclass(frozen=True, slots=True)
class _Mark:
    """A tag in a text: its name, whether it closes a block, and where it stands."""

    name: str
    closes: bool
    leads: bool
    begins_line: bool
    alone: bool


def _normalize(text: str) -> str:
    """Return a text without code and invisible characters, in which wide letters are plain ones."""
    return mask_code(unicodedata.normalize("NFKC", _HIDDEN.sub("", text)))


def _list_marks(text: str, tags: tuple[str, str]) -> Iterator[_Mark]:
    """Yield all tags of a text; the time is linear in its length."""
    start, end = (re.escape(unicodedata.normalize("NFKC", tag)) for tag in tags)
    front, before = len(text) - len(text.lstrip()), 0
    for match in re.finditer(f"(?P<start>{start})|(?P<end>{end})|{_TAG}", text, re.IGNORECASE):
        line_start = text.rfind("\n", before, match.start())  # another tag on the line is before the search
        begins_line = (line_start >= 0 or before == 0) and not text[line_start + 1 : match.start()].strip()
        before = match.end()
        declared = bool(match["start"] or match["end"])
        yield _Mark(
            name=_DECLARED if declared else (match["name"] or match[0][:1]).casefold(),
            closes=any(match[group] for group in ("end", "angle", "triangle", "square")),
            leads=match.start() == front,
            begins_line=begins_line,
            alone=begins_line and _TO_END_OF_LINE.match(text, match.end()) is not None,
        )
