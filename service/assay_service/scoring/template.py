"""Render a conversation to text by a Jinja chat template, and find the completion in that text.

The template runs in the sandbox of transformers. It is the checkpoint's own or a file that the configuration names,
never part of a request. All special tokens come from the template; the text is later tokenised without adding any
(scoring-traps 5-7).
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from jinja2.exceptions import TemplateError

from assay_service.errors import ContentError, StartError
from assay_service.scoring import skeleton
from assay_service.scoring.item import FinishReason, Item, Message
from assay_service.scoring.skeleton import NEUTRAL, Dropped, Shape, Skeleton, Slot

# Templates that print today's date would give another score tomorrow. All see this day, Llama 3.1's own default.
PINNED_DAY = datetime(2024, 7, 26)

_DEFAULT = "default"
_KEPT = 16  # rendered prompts in memory: completions of one prompt arrive together, and a prompt may be long

# To find dropped texts, the conversation is rendered once for each suspect. The product of suspects and messages is
# limited, so that one request cannot keep the service busy for minutes.
_MOST_RENDERED = 4096

# Words and tags that a template prints before a completion, such as `<think>`.
_WORD = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\s<>\[\]]+")


def read_template(declared: Path | None, checkpoint: Path, tokenizer: Path, name: str | None = None) -> str:
    """Return the Jinja source of a signal's chat template.

    Args:
        declared: file that the configuration names; None takes the checkpoint's own template.
        checkpoint: directory of the adapter or base; its files come first.
        tokenizer: directory of the tokenizer, whose `tokenizer_config.json` may hold templates.
        name: name of one of the checkpoint's templates; None takes the one called "default", as transformers does.
            `chat_template.jinja` and a single text in `tokenizer_config.json` have this name.

    Raises:
        StartError: the declared file is missing, or the checkpoint has no template of this name.
    """
    if declared is not None:
        if name is not None:
            raise StartError("template, template_name: declare only one of them")
        if not declared.is_file():
            raise StartError(f"template: {declared}: no such file; declare the path of a Jinja file")
        return declared.read_text(encoding="utf-8")
    templates = _read_configured(tokenizer / "tokenizer_config.json")
    for directory in dict.fromkeys((tokenizer, checkpoint)):
        files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
        if (single := directory / "chat_template.jinja").is_file():
            files[_DEFAULT] = single
        templates |= {stem: path.read_text(encoding="utf-8") for stem, path in files.items()}
    if not templates:
        raise StartError(f"template: {checkpoint} has no chat template; declare the path of a Jinja file")
    if (name or _DEFAULT) not in templates:
        names = ", ".join(sorted(templates))
        missing = "no chat template is called 'default'" if name is None else f"no chat template is called {name!r}"
        raise StartError(f"template_name: {missing}; declare one of: {names}")
    return templates[name or _DEFAULT]


def _read_configured(path: Path) -> dict[str, str]:
    """Return the chat templates of a `tokenizer_config.json`, keyed by name; none if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        own = json.loads(path.read_bytes()).get("chat_template")
        named = {entry["name"]: entry["template"] for entry in own} if isinstance(own, list) else {_DEFAULT: own}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise StartError(f"{path}: chat_template must be a text or a list of `name` and `template`") from error
    return {name: template for name, template in named.items() if isinstance(template, str)}


class ChatTokenizer(Protocol):
    """The method of a transformers tokenizer that renders a chat template."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str,
        tokenize: bool,
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
    """A chat template with the tokenizer that renders it.

    Args:
        tokenizer: tokenizer that renders the template.
        text: Jinja source of the template.
    """

    def __init__(self, tokenizer: ChatTokenizer, text: str) -> None:
        self._tokenizer = tokenizer
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
        frame = self._skeleton(skeleton.build_shape(item.messages))
        prompt = self._prompt(item.prompt)
        full = self._apply(item.messages)
        texts = skeleton.list_texts(item.messages)
        suspects = frame.find_suspects(full, texts)
        dropped = tuple(self._find_dropped(item.messages, texts, suspects, full)) if suspects else ()
        if item.finish_reason == "length":
            full = self._cut_unfinished(item, prompt, full)
        return RenderedText(prompt, full, dropped)

    def render_neutral(self, item: Item) -> str:
        """Return a neutral conversation of the same shape, whose control tokens are those that `item` may have."""
        return self._neutral(skeleton.build_shape(item.messages), item.finish_reason)

    def _render_neutral(self, shape: Shape, finish_reason: FinishReason) -> str:
        frame = self._skeleton(shape)
        slots = skeleton.list_slots(shape)
        neutral = [NEUTRAL] * len(slots)
        if finish_reason == "stop":
            return frame.fill(neutral)
        end = frame.order.index(slots.index(_locate_completion(skeleton.build_marked(shape)))) + 1
        return Skeleton((*frame.literals[:end], ""), frame.order[:end]).fill(neutral)

    def _render_skeleton(self, shape: Shape) -> Skeleton:
        return skeleton.parse_skeleton(shape, self._apply(skeleton.build_marked(shape)))

    def _render_prompt(self, messages: tuple[Message, ...]) -> str:
        return self._apply(messages, add_generation_prompt=True)

    def _find_dropped(
        self, messages: tuple[Message, ...], texts: Sequence[str], suspects: Sequence[int], full: str
    ) -> list[Dropped]:
        """Return the texts that `full` does not show, by rendering each suspect once with a mark in its place."""
        if len(suspects) * len(messages) > _MOST_RENDERED:
            raise ContentError(
                "the template rewrites too many messages to find dropped texts; send fewer", code="template_error"
            )
        slots, dropped = skeleton.list_slots(skeleton.build_shape(messages)), []
        for number in sorted(suspects):
            head, tail = self._split_around(messages, slots[number])
            if text := skeleton.find_lost(texts[number], head, tail, full):
                dropped.append(Dropped(slots[number], text))
        return dropped

    def _split_around(self, messages: tuple[Message, ...], slot: Slot) -> tuple[str, str]:
        """Return the text before and after a neutral text in the place of `slot`."""
        message, neutral = messages[slot.index], NEUTRAL
        while any(neutral in text for text in skeleton.list_texts(messages)):
            neutral += "q"
        if slot.field == "content":
            message = replace(message, content=neutral)
        else:
            message = replace(message, fields=tuple({**dict(message.fields), slot.field: neutral}.items()))
        head, *rest = self._apply((*messages[: slot.index], message, *messages[slot.index + 1 :])).split(neutral)
        if len(rest) != 1:
            raise ContentError(f"beside other messages, the template does not print {slot} once", code="template_error")
        return head, rest[0]

    def _cut_unfinished(self, item: Item, prompt: str, full: str) -> str:
        """Return `full` up to the end of the completion, which the template printed as it is or stripped."""
        head, tail = self._split_around(item.messages, _locate_completion(item.messages))
        printed = _extract_completion(full, head, tail, item.completion)
        if printed is None:  # neutral completions have other text before them: try the generation prompt
            head, printed = prompt, _extract_completion(full, prompt, tail, item.completion)
        elif not _is_certain(self._lead(skeleton.build_shape(item.messages)), prompt, head, item.completion):
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
        words = _find_words_between(prompt, head)
        closed = [word.replace("/", "", 1) for word in words if word.startswith(("</", "[/"))]
        if not head.startswith(prompt) or not set(words).issuperset(closed):
            return None
        for word in words:
            for start, more in ((NEUTRAL, word), (word, NEUTRAL)):
                completion = replace(messages[-1], content=f"{start}{more}")
                if not self._apply((*messages[:-1], completion)).startswith(f"{head}{start}"):
                    return None
        return words

    def _apply(self, messages: tuple[Message, ...], *, add_generation_prompt: bool = False) -> str:
        """Render messages by the tokenizer, on the pinned day."""
        conversation = [message.as_dict() for message in messages]
        try:
            return self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=PINNED_DAY.strftime,
            )
        except Exception as error:
            # Error texts may quote the conversation; only the text of a template's own `raise_exception` is shown.
            reason = str(error) if type(error) is TemplateError else type(error).__name__
            raise ContentError(
                f"the chat template refuses this conversation: {reason}", code="template_error"
            ) from None


def _locate_completion(messages: tuple[Message, ...]) -> Slot:
    """Return the slot of the completion."""
    return Slot(len(messages) - 1, messages[-1].role, "content")


def _extract_completion(full: str, head: str, tail: str, completion: str) -> str | None:
    """Return the text between `head` and `tail`; None unless it is the completion, stripped or not."""
    printed = full[len(head) : len(full) - len(tail)]
    return printed if full == head + printed + tail and printed.strip() == completion.strip() else None


def _find_words_between(prompt: str, head: str) -> tuple[str, ...]:
    """Return the different words that `head` has after `prompt`, with which it starts."""
    return tuple(dict.fromkeys(_WORD.findall(head[len(prompt) :])))


def _is_certain(lead: tuple[str, ...] | None, prompt: str, head: str, completion: str) -> bool:
    """Return whether the place of an unfinished completion is certain.

    It is if the completion stands behind `lead` however it continues, and does not begin with a part of `lead` itself.

    Args:
        lead: words that the template always prints between the generation prompt and completions, or None.
        prompt: conversation with the generation prompt.
        head: text that the template printed before this completion; other messages may change it.
        completion: text of the completion so far.
    """
    prompt, start = prompt.rstrip(), completion.strip()
    if lead is None or not head.startswith(prompt) or _find_words_between(prompt, head) != lead:
        return False
    # Tags can be distinguished as wholes; of other words (`◁think▷`, `# Thinking`) the first character must differ.
    openings = [word if word[0] in "<[" else word[0] for word in (*lead[:1], *(w for w in lead[1:] if w[0] in "<["))]
    return not any(start.startswith(word) or (start and word.startswith(start)) for word in openings)
