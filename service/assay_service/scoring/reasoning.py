"""Decide what happens to the reasoning of a completion, before its text is rendered. No side effects.

Reasoning is a block between two tags at the start of a completion, or a field of its own. Blocks elsewhere and other
tags are text or doubtful: `reasoning_marks` tells which.
"""

import re
from dataclasses import dataclass, replace

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.manifest import Reasoning
from assay_service.scoring.reasoning_marks import find_doubt, has_tags, mask_code, may_begin, trim

# Fields in which servers send reasoning apart from the text: DeepSeek and vLLM, OpenRouter, gpt-oss and Ollama. The
# last is of OpenAI's Responses API; no template prints its text.
FIELDS = ("reasoning_content", "reasoning", "thinking", "encrypted_content")

_BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)+")


@dataclass(frozen=True, slots=True)
class ReasoningRule:
    """The rule by which one signal treats reasoning.

    Attributes:
        policy: "keep" renders completions as they are, "strip" removes their reasoning, "error" refuses them.
        start: tag that opens a block.
        end: tag that closes it.
        opened: whether the generation prompt of the signal's template ends with an open block.
    """

    policy: Reasoning
    start: str
    end: str
    opened: bool

    def apply(self, item: Item) -> tuple[Item, str]:
        """Return the item that is rendered, and the reasoning that was removed from its completion.

        Raises:
            ContentError: the policy refuses the completion, or its reasoning has no certain end; the code is
                `reasoning`.
        """
        if self.policy == "keep":
            return item, ""
        message = item.messages[-1]
        apart = [text for name, text in message.fields if name in FIELDS]
        unfinished = item.finish_reason == "length" and not apart
        block, rest = self._split(message.content, unfinished)
        if self.policy == "error" and (apart or block):
            raise _make_error("the completion has reasoning, and this signal declares `reasoning: error`")
        strict = self.policy == "error"
        if doubt := find_doubt(rest, (self.start, self.end), strict=strict, unfinished=unfinished):
            raise _make_error(doubt)
        if not apart and not block:
            return item, ""
        fields = tuple(field for field in message.fields if field[0] not in FIELDS)
        stripped = replace(message, content=rest, fields=fields)
        return replace(item, messages=(*item.messages[:-1], stripped)), "\n".join([*apart, *([block] if block else [])])

    def _split(self, text: str, unfinished: bool) -> tuple[str, str]:
        """Return the leading block of a completion with its tags, and the text after it; "" where it has none."""
        inside = trim(text).startswith(self.start)
        # A cut-off text may end within its first tag, and the policy's prompt may have opened the block.
        begun = unfinished and may_begin(text, self.start)
        before, tag, after = text.partition(self.end)
        if not tag:
            if inside or begun or (unfinished and (self.opened or self.policy == "strip")):
                raise _make_error(
                    "the completion ends within its reasoning, or before it is certain that it has none"
                    if unfinished
                    else "the completion opens a block of reasoning and does not close it"
                )
            return "", text
        if not inside and not self.opened and self.start in before:  # a block that stands behind text is text
            return "", text
        certain = inside or (self.start not in before if self.opened else self._stands_alone(before, text))
        if not certain:
            raise _make_error(
                "the completion has the closing tag of reasoning without the opening one, and it could be text; send "
                "the opening tag, too, or the reasoning as `reasoning_content`"
            )
        blank = _BLANK_LINES.match(after)
        rest = after if blank is None else after[blank.end() :]
        between, again, _ = rest.partition(self.end)
        if trim(rest).startswith(self.start) or (again and self.start not in between):
            raise _make_error(
                "the completion has more tags of reasoning behind the first block, so its end is uncertain"
            )
        return before + tag, rest

    def _stands_alone(self, before: str, text: str) -> bool:
        """Return whether the closing tag has a line of its own, outside of code and behind no other tag of reasoning.

        Models write the end of their reasoning so.
        """
        line, following = before.rpartition("\n")[2], text[len(before) + len(self.end) :].partition("\n")[0]
        alone = not line.strip() and not following.strip() and mask_code(text).startswith(self.end, len(before))
        return alone and not has_tags(before, (self.start, self.end))


def _make_error(why: str) -> ContentError:
    return ContentError(why, code="reasoning", param="completion")
