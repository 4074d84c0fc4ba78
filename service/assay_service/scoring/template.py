"""Render a conversation to text by a Jinja chat template, and find the completion in that text.

The template runs in the sandbox of `chat_environment`, within bounds. It is the checkpoint's own or a file that the
configuration names, never part of a request. All special tokens come from the template; the text is later tokenized
without adding any (scoring-traps 5-7).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from assay_service.errors import ContentError
from assay_service.scoring import skeleton
from assay_service.scoring.item import PROBE, FinishReason, Item, Message
from assay_service.scoring.skeleton import NEUTRAL, NEUTRAL_BARE, Dropped, Shape, Skeleton, Slot
from assay_service.scoring.unfinished import extract_completion, find_words_between, is_certain

# Templates that print today's date would give another score tomorrow. All see this day, Llama 3.1's own default.
PINNED_DAY = datetime(2024, 7, 26)

_KEPT = 16  # rendered prompts in memory: completions of one prompt arrive together, and a prompt may be long

# To find dropped texts, the conversation is rendered once for each suspect. The product of suspects and messages is
# limited, so that one request cannot keep the service busy for minutes.
_MOST_RENDERED = 4096


class ChatRenderer(Protocol):
    """The method that renders a chat template: of `TemplateRenderer`, or of a layout in front of it."""

    def render_chat(
        self,
        conversation: list[dict[str, Any]],
        *,
        chat_template: str,
        add_generation_prompt: bool,
        strftime_now: Callable[[str], str],
    ) -> str:
        """Render `conversation` to text."""
        ...


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        prompt: text of the prompt with the generation prompt, from which a policy would continue.
        full: text of the whole conversation; for `finish_reason` "length" it ends with the completion.
        dropped: texts of the messages that `full` does not show.
    """

    prompt: str
    full: str
    dropped: tuple[Dropped, ...]


class Template:
    """A chat template with the renderer that prints it.

    Args:
        renderer: renderer of the template.
        text: Jinja source of the template.
    """

    def __init__(self, renderer: ChatRenderer, text: str) -> None:
        self._renderer = renderer
        self._text = text
        self._skeleton = lru_cache(maxsize=256)(self._render_skeleton)
        self._neutral = lru_cache(maxsize=256)(self._render_neutral)
        self._lead = lru_cache(maxsize=256)(self._find_lead)
        self._prompt = lru_cache(maxsize=_KEPT)(self._render_prompt)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def render(self, item: Item) -> RenderedText:
        """Return the text of `item`.

        Raises:
            ContentError: the item cannot be rendered. Code `no_prompt`: the completion is the only message.
                `template_error`: the template refuses the conversation, does not print a message at all or prints it
                twice. `unfinished_unsupported`: `finish_reason` is "length", and the text before the completion or its
                end is not certain. `empty_completion`: `finish_reason` is "length" and the completion is empty.
        """
        if not item.prompt:
            raise ContentError("the completion is the only message; send its prompt as well", code="no_prompt")
        if item.finish_reason == "length" and item.messages[-1].tool_calls:
            raise ContentError(
                "the completion was cut off and has tool calls, whose end cannot be distinguished from the end of "
                "turn; send its text",
                code="unfinished_unsupported",
                param="finish_reason",
            )
        frame = self._skeleton(skeleton.build_shape(item.messages))
        prompt = self._prompt(item.prompt)
        full = self._apply(item.messages)
        spellings = skeleton.list_spellings(item.messages)
        suspects = frame.find_suspects(full, frame.spell(full, spellings))
        dropped = tuple(self._find_dropped(item.messages, spellings, suspects, full)) if suspects else ()
        if item.finish_reason == "length":
            full = self._cut_unfinished(item, prompt, full)
        return RenderedText(prompt, full, dropped)

    def opens(self, tag: str) -> bool:
        """Return whether the generation prompt ends with `tag`, so that completions begin within the block it opens."""
        try:
            return self._prompt(PROBE.prompt).rstrip().endswith(tag)
        except ContentError:  # no item can be rendered, which is reported when the first one is
            return False

    def get_skeleton(self, item: Item) -> Skeleton:
        """Return the skeleton of conversations like `item`."""
        return self._skeleton(skeleton.build_shape(item.messages))

    def choose_arguments(self, item: Item) -> Item:
        """Return `item` with the arguments of its tool calls in the form that the template reads.

        It is an object, as transformers documents it, unless the template can only print the JSON text that was sent.
        """
        calls = [call for message in item.messages for call in message.tool_calls]
        if not any(call.sent_as_text for call in calls) or self._can_print(item):
            return item
        messages = tuple(
            replace(m, tool_calls=tuple(replace(c, as_text=c.sent_as_text) for c in m.tool_calls))
            for m in item.messages
        )
        other = replace(item, messages=messages)
        return other if self._can_print(other) else item

    def _can_print(self, item: Item) -> bool:
        try:
            self._skeleton(skeleton.build_shape(item.messages))
        except ContentError:
            return False
        return True

    def render_neutral(self, item: Item) -> str:
        """Return a neutral conversation of the same shape, whose control tokens are those that `item` may have."""
        links = skeleton.build_neutral_links(item.messages)
        messages = (message.replace_links(links) for message in item.messages) if links else item.messages
        return self._neutral(skeleton.build_shape(messages), item.finish_reason)

    def _render_neutral(self, shape: Shape, finish_reason: FinishReason) -> str:
        frame = self._skeleton(shape)
        slots = skeleton.list_slots(shape)
        neutral = skeleton.build_neutral(slots)
        if finish_reason == "stop":
            return frame.fill(neutral)
        end = frame.order.index(slots.index(_locate_completion(skeleton.build_marked(shape)))) + 1
        return Skeleton((*frame.literals[:end], ""), frame.order[:end]).fill(neutral)

    def _render_skeleton(self, shape: Shape) -> Skeleton:
        messages = skeleton.build_marked(shape)
        try:
            text = self._apply(messages)
            found = skeleton.parse_skeleton(shape, text)
        except ContentError:
            # With one text for each list of parts, the template shows whether it refuses the lists or something else.
            single = tuple(replace(m, content=m.content + "".join(m.parts), parts=()) for m in messages)
            if not any(m.parts for m in messages) or not self._can_print(Item(single)):
                raise
            raise _make_parts_error(next(i for i, m in enumerate(messages) if m.parts)) from None
        self._check_structure(messages, text)
        return found

    def _check_structure(self, messages: tuple[Message, ...], text: str) -> None:
        """Refuse a template that prints lists of parts or arguments as Python writes them.

        Every text would be shown, but with braces that no model was trained on.
        """
        for index, message in enumerate(messages):
            if message.parts and self._apply(messages, swapped=index) != text:
                raise _make_parts_error(index)
            for call in message.tool_calls:
                if not call.as_text and call.arguments != "{}" and str(json.loads(call.arguments)) in text:
                    raise ContentError(
                        f"the template does not read arguments that are objects, as those of messages[{index}] are; "
                        "send them as JSON text",
                        code="template_error",
                    )

    def _render_prompt(self, messages: tuple[Message, ...]) -> str:
        return self._apply(messages, add_generation_prompt=True)

    def _find_dropped(
        self, messages: tuple[Message, ...], spellings: Sequence[Sequence[str]], suspects: Sequence[int], full: str
    ) -> list[Dropped]:
        """Return the texts that `full` does not show, by rendering each suspect once with a mark in its place."""
        if len(suspects) * len(messages) > _MOST_RENDERED:
            raise ContentError(
                "the template rewrites too many messages to find dropped texts; send fewer", code="template_error"
            )
        slots, dropped = skeleton.list_slots(skeleton.build_shape(messages)), []
        for number in sorted(set(suspects)):
            head, tail = self._split_around(messages, slots[number])
            lost = [skeleton.find_lost(text, head, tail, full) for text in spellings[number]]
            if all(lost):
                dropped.append(Dropped(slots[number], lost[0]))
        return dropped

    def _split_around(self, messages: tuple[Message, ...], slot: Slot) -> tuple[str, str]:
        """Return the text before and after a neutral text in the place of `slot`."""
        message, neutral = messages[slot.index], NEUTRAL_BARE if slot.bare else NEUTRAL
        while any(neutral in text for text in skeleton.list_texts(messages)):
            neutral += "7" if slot.bare else "q"
        message = message.replace_texts(neutral if name == slot.field else text for name, text in message.texts())
        head, *rest = self._apply((*messages[: slot.index], message, *messages[slot.index + 1 :])).split(neutral)
        if len(rest) != 1:
            raise ContentError(f"beside other messages, the template does not print {slot} once", code="template_error")
        return head, rest[0]

    def _cut_unfinished(self, item: Item, prompt: str, full: str) -> str:
        """Return `full` up to the end of the completion, which the template printed as it is or stripped."""
        head, tail = self._split_around(item.messages, _locate_completion(item.messages))
        printed = extract_completion(full, head, tail, item.completion)
        if printed is None:  # neutral completions have other text before them: try the generation prompt
            head, printed = prompt, extract_completion(full, prompt, tail, item.completion)
        elif not is_certain(self._lead(skeleton.build_shape(item.messages)), prompt, head, item.completion):
            raise ContentError(
                "the text that the template prints before a completion depends on how the completion continues; "
                "declare a template that prints its generation prompt before every finished completion",
                code="unfinished_unsupported",
                param="finish_reason",
            )
        if printed is None:
            raise ContentError(
                "the template changes the completion, so its end cannot be distinguished from the end of turn; declare "
                "a template that prints completions as they are",
                code="unfinished_unsupported",
                param="finish_reason",
            )
        if not printed:
            raise ContentError("the completion is empty; send text", code="empty_completion", param="completion")
        return head + printed

    def _find_lead(self, shape: Shape) -> tuple[str, ...] | None:
        """Return the words that the template prints between the generation prompt and a completion.

        The result is None if these words depend on the completion, or close what the generation prompt opened. For
        example, Qwen3's template opens completions without reasoning by an empty, closed `<think>` block, but an
        unfinished completion may still get reasoning. The method tries completions of the template's own words.
        """
        messages = skeleton.build_marked(shape)
        prompt = self._prompt(messages[:-1]).rstrip()
        head, _ = self._split_around(messages, _locate_completion(messages))
        words = find_words_between(prompt, head)
        closed = [word.replace("/", "", 1) for word in words if word.startswith(("</", "[/"))]
        if not head.startswith(prompt) or not set(words).issuperset(closed):
            return None
        for word in words:
            for start, more in ((NEUTRAL, word), (word, NEUTRAL)):
                completion = replace(messages[-1], content=f"{start}{more}")
                if not self._apply((*messages[:-1], completion)).startswith(f"{head}{start}"):
                    return None
        return words

    def _apply(
        self, messages: tuple[Message, ...], *, add_generation_prompt: bool = False, swapped: int | None = None
    ) -> str:
        """Render messages on the pinned day; the parts of message `swapped` have swapped keys."""
        conversation = [message.as_dict() for message in messages]
        if swapped is not None:
            parts = conversation[swapped]["content"]
            conversation[swapped]["content"] = [dict(reversed(part.items())) for part in parts]
        try:
            return self._renderer.render_chat(
                conversation,
                chat_template=self._text,
                add_generation_prompt=add_generation_prompt,
                strftime_now=PINNED_DAY.strftime,
            )
        except Exception as error:
            # Error texts may quote the conversation; only the text of a template's own `raise_exception` is shown.
            reason = str(error) if type(error) is TemplateError else type(error).__name__
            raise ContentError(
                f"the chat template refuses this conversation: {reason}", code="template_error"
            ) from None


def _make_parts_error(index: int) -> ContentError:
    return ContentError(
        f"the template does not read lists of text parts, as messages[{index}].content is; servers join them "
        "differently, so send one text",
        code="template_error",
    )


def _locate_completion(messages: tuple[Message, ...]) -> Slot:
    """Return the slot of the completion."""
    return Slot(len(messages) - 1, messages[-1].role, "content")
