"""Read a conversation back from the text that a chat template rendered.

The text is split by the strings that the template prints around turns. The template then renders the messages that
were read: a reading counts only if the result is the text. White space is not compared, as in `skeleton.py`.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError
from assay_service.scoring.encoding import find_control_tokens
from assay_service.scoring.item import FinishReason, Item, Message
from assay_service.scoring.skeleton import NEUTRAL
from assay_service.scoring.template import PINNED_DAY, RenderedText, Template
from assay_service.scoring.turns import Turns, learn_turns, list_day_patterns, remove_bos

_UNREADABLE = "unreadable_text"
# Forms in which templates print the day, with the days that they match.
_DAYS = {
    "%d %b %Y": r"\d{2} [A-Z][a-z]{2} \d{4}",
    "%Y-%m-%d": r"\d{4}-\d{2}-\d{2}",
    "%B %d, %Y": r"[A-Z][a-z]{2,8} \d{2}, \d{4}",
    "%d %B %Y": r"\d{2} [A-Z][a-z]{2,8} \d{4}",
}


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to split a text.

    Attributes:
        messages: messages that were read; the last one is the assistant's.
        start: index in the text where the completion starts, behind its generation prompt.
        preference: sort key; the reading with the lowest one that the template confirms is taken.
    """

    messages: tuple[Message, ...]
    start: int
    preference: tuple[bool, bool, int]


class Transcript:
    """A reader of rendered conversations.

    Args:
        template: template that rendered the conversations.
        bos: text of the tokenizer's BOS token; None if it has none.
        eos: text of the tokenizer's EOS token; None if it has none.
        pad: text of the tokenizer's pad token; None if it has none.
        control_tokens: texts of the tokens that only the template may print.
    """

    def __init__(
        self, template: Template, bos: str | None, eos: str | None, pad: str | None, control_tokens: frozenset[str]
    ) -> None:
        self._template = template
        self._bos, self._eos, self._pad = bos, eos, pad
        self._control_tokens = control_tokens

    def read(self, text: str) -> Item:
        """Return the conversation of `text`, whose last turn is the completion.

        Turns that a policy invented after its own look like the conversation; only `read_pair` refuses them.

        Raises:
            ContentError: the template does not give this text for any conversation; the code is `unreadable_text`. Or a
                message holds a control token; the code is `special_tokens`.
        """
        text, finish_reason = self._remove_end(self._remove_start(text))
        return Item(self._read(text, ""), finish_reason)

    def read_pair(self, prompt: str, completion: str) -> Item:
        """Return the conversation of a rendered prompt, which ends with the generation prompt, and its completion.

        Raises:
            ContentError: as for `read`. A completion with the end of a turn before its own end has `special_tokens`.
        """
        prompt = self._remove_start(prompt)
        completion, finish_reason = self._remove_end(completion)
        return Item(self._read(prompt, completion), finish_reason)

    def read_completion(self, prompt: Sequence[Message], completion: str) -> Item:
        """Return the conversation of messages and the completion that a policy wrote after them, with special tokens.

        Raises:
            ContentError: as for `read_pair`, or the template refuses the messages.
        """
        rendered = self._template.render(Item((*prompt, Message("assistant", NEUTRAL))))
        return self.read_pair(rendered.prompt, completion)

    @functools.cached_property
    def _turns(self) -> Turns:
        return learn_turns(self._template, self._bos)

    @functools.cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        """Return for each role the pattern of the strings that end its turn, the longest of which is tried first."""
        longest = {role: sorted(texts, key=len, reverse=True) for role, texts in self._turns.between.items()}
        return {role: re.compile("|".join(map(re.escape, texts)) or "(?!)") for role, texts in longest.items()}

    @functools.cached_property
    def _day_patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return list_day_patterns(self._turns, {PINNED_DAY.strftime(form): days for form, days in _DAYS.items()})

    @functools.cached_property
    def _ends(self) -> list[str]:
        """Return the ends of a finished text before an EOS, the longest first."""
        ends = {end.strip() for end in self._turns.ends}
        if "" in ends:  # the turn ends where the next one begins, as in GLM's template
            following = self._turns.between.get("assistant", {})
            ends |= {text.strip() for text, role in following.items() if role != "assistant"}
        # Policies stop at the first control token, but templates may print EOS or a generation prompt after it.
        ends |= {token for end in ends for token in self._control_tokens if end.startswith(token)}
        if self._eos:
            ends |= {end.removesuffix(self._eos).strip() for end in ends}
        return sorted(ends - {""}, key=len, reverse=True)

    @functools.cached_property
    def _forbidden(self) -> re.Pattern[str]:
        """Return the pattern that no message may contain: control tokens, and the strings that end a turn."""
        texts = sorted(self._control_tokens | self._turns.list_marks(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")

    def _remove_start(self, text: str) -> str:
        """Return `text` without leading pads and BOS."""
        start = 0  # an index, because a copy for each pad takes quadratic time
        while self._pad and text.startswith(self._pad, start):
            start += len(self._pad)
        text = remove_bos(text[start:], self._bos)
        if self._bos and text.startswith(self._bos):
            raise ContentError(
                "the text begins with two BOS tokens; encode rendered text with add_special_tokens=False",
                code=_UNREADABLE,
            )
        return text

    def _remove_end_pads(self, text: str) -> tuple[str, bool]:
        """Return `text` without pads at its end, and whether it had one."""
        end, is_padded = len(text), False
        while self._pad:
            rest = end
            while rest and text[rest - 1].isspace():
                rest -= 1
            if not text.endswith(self._pad, 0, rest):
                break
            end, is_padded = rest - len(self._pad), True
        return text[:end], is_padded

    def _pin_day(self, text: str) -> str | None:
        """Return `text` with the day that the template sees in place of another one; None if it names no other day."""
        for pattern, day in self._day_patterns:
            if (match := pattern.match(text)) and match[1] != day:
                return text[: match.start(1)] + day + text[match.end(1) :]
        return None

    def _remove_end(self, text: str) -> tuple[str, FinishReason]:
        """Return `text` up to the end of its completion, and whether an end of turn or EOS followed there."""
        text, is_padded = self._remove_end_pads(text)
        finish_reason: FinishReason = "stop" if is_padded and self._pad == self._eos else "length"
        if self._eos and (rest := text.rstrip()).endswith(self._eos):
            text, finish_reason = rest[: -len(self._eos)], "stop"
        rest = text.rstrip()
        end = next((end for end in self._ends if rest.endswith(end)), None)
        return (text, finish_reason) if end is None else (rest[: -len(end)], "stop")

    def _read(self, text: str, completion: str) -> tuple[Message, ...]:
        """Return the messages of a text without its start and end, and of a completion in which no turn begins."""
        reasons = []
        # A default system prompt may hold the day, and is read as it is, so the pinned day comes second.
        for shown in filter(None, (text, self._pin_day(text))):
            whole = shown + completion
            for reading in sorted(self._split(whole, len(shown)), key=lambda reading: reading.preference):
                reason = self._explain_difference(reading, whole)
                if reason is None:
                    self._check_contents(reading.messages)
                    return reading.messages
                reasons.append(reason)
        if not reasons:
            raise ContentError(
                "the text is not a conversation of this template that ends with the assistant's turn; send text that "
                "the template rendered, with its special tokens",
                code=_UNREADABLE,
            )
        raise ContentError(f"the template gives another text for the messages in it: {reasons[0]}", code=_UNREADABLE)

    def _split(self, text: str, border: int) -> Iterator[_Reading]:
        """Yield a reading of `text` for each role with which it may begin, if the last turn is the assistant's.

        No turn begins at or after `border`.
        """
        for start, role in self._turns.starts.items():
            if not text.startswith(start):
                continue
            messages, place = self._split_from(text, role, len(start), border)
            if messages[-1].role == "assistant" and len(messages) > 1:
                # A default system prompt is read as a message, but not if it is empty.
                is_empty = role == "system" and not messages[0].content.strip()
                yield _Reading(messages, place, (is_empty, role != "system", -len(start)))

    def _split_from(self, text: str, role: str, start: int, border: int) -> tuple[tuple[Message, ...], int]:
        """Return the messages from a first turn on, and the index where the last one starts."""
        messages, content = [], start
        while (pattern := self._patterns.get(role)) and (match := pattern.search(text, start)):
            if match.start() >= border:
                break
            messages.append(Message(role, text[content : match.start()]))
            start = match.end()
            content = start - self._turns.opened.get(match.group(), 0)
            role = self._turns.between[role][match.group()]
        return (*messages, Message(role, text[content:])), start

    def _explain_difference(self, reading: _Reading, text: str) -> str | None:
        """Return how the text differs from the messages that the template renders; None if it does not.

        Either the whole is the same, or the prompt with the generation prompt is, after which a policy writes freely.
        """
        try:
            rendered = self._template.render(Item(reading.messages))
        except ContentError as error:
            return error.message
        if self._is_same(rendered, text, reading.start):
            return None
        expected, found = _remove_space(remove_bos(rendered.full, self._bos)), _remove_space(text)
        same = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
        return f"they differ after {same} characters, white space not counted"

    def _is_same(self, rendered: RenderedText, text: str, start: int) -> bool:
        full, prompt = (_remove_space(remove_bos(part, self._bos)) for part in (rendered.full, rendered.prompt))
        wanted = _remove_space(text)
        finished = full.startswith(wanted) and full[len(wanted) :] in set(map(_remove_space, self._turns.ends))
        return finished or prompt == _remove_space(text[:start])

    def _check_contents(self, messages: tuple[Message, ...]) -> None:
        for index, message in enumerate(messages):
            if match := self._forbidden.search(message.content):
                raise ContentError(
                    f"messages[{index}] holds {match.group()!r}, which only the template may print; send the text of "
                    "one turn",
                    code="special_tokens",
                )


def build_transcript(template: Template, tokenizer: PreTrainedTokenizerBase) -> Transcript:
    """Return a reader of the conversations that `template` renders with the special tokens of `tokenizer`."""
    tokens = frozenset(find_control_tokens(template, tokenizer))
    return Transcript(template, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokens)


def _remove_space(text: str) -> str:
    """Return `text` without white space."""
    return "".join(text.split())
