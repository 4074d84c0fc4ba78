"""A conversation to text, and where the completion lies in it.

The text comes from a Jinja chat template, in the sandbox of transformers; the template is the checkpoint's own or a
file that the configuration names, never a request's. All special tokens come from the template: the text is later
tokenised without adding any (scoring-traps 5-7).
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from jinja2.exceptions import TemplateError

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import FinishReason, Item, Message

# Stands in for a completion; letters only, so that no template trims, splits or escapes it.
_SENTINEL = "AssaySentinelForTheCompletion"

# Control tokens of other people's templates: <|im_start|>, <|fim-prefix|>, <start_of_turn>, [INST], <<SYS>> …
# Not <s> and </s>, which are HTML as well; a tokenizer that has them as its own refuses them.
_FOREIGN_TOKEN = re.compile(
    r"<\|[\w-]+\|>|<(?:start|end)_of_turn>|<(?:bos|eos)>|\[/?INST\]|<</?SYS>>|<\uff5c[^\uff5c]{1,40}\uff5c>"
)

# Templates that print today's date would give another score tomorrow. They all see this day: Llama 3.1's own default.
_PINNED_DAY = datetime(2024, 7, 26)


def read_template(declared: Path | None, checkpoint: Path, tokenizer: Path) -> str:
    """Return the Jinja source of a signal's chat template.

    Args:
        declared: the file that the configuration names; None takes the checkpoint's own.
        checkpoint: directory of the adapter or base; its `chat_template.jinja` comes first.
        tokenizer: directory of the tokenizer, whose `tokenizer_config.json` may hold a template.

    Raises:
        StartError: the declared file is missing, or the checkpoint has no single template.
    """
    if declared is not None:
        if not declared.is_file():
            raise StartError(f"template: {declared}: no such file")
        return declared.read_text(encoding="utf-8")
    for directory in dict.fromkeys((checkpoint, tokenizer)):
        beside = directory / "chat_template.jinja"
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
    config = tokenizer / "tokenizer_config.json"
    own = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    if not isinstance(own, str):
        raise StartError("template: not declared, and the checkpoint has no single chat template")
    return own


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that renders a chat template."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
        strftime_now: Callable[[str], str],
    ) -> str:
        """Renders `conversation` to text."""
        ...


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        prompt: the prompt's text with the generation prompt that a policy would continue from.
        full: the whole conversation; for `finish_reason` "length" it ends with the completion.
    """

    prompt: str
    full: str


class Template:
    """A chat template with the tokenizer that renders it.

    Args:
        tokenizer: renders the template; its special tokens are refused in content.
        text: the Jinja source.
        special_tokens: texts that the tokenizer turns into control tokens.
    """

    def __init__(self, tokenizer: ChatTokenizer, text: str, special_tokens: frozenset[str]) -> None:
        self._tokenizer = tokenizer
        self._text = text
        alternatives = [re.escape(token) for token in sorted(special_tokens, key=len, reverse=True)]
        self._forbidden = re.compile("|".join([*alternatives, _FOREIGN_TOKEN.pattern]))
        self._skeleton = lru_cache(maxsize=256)(self._render_skeleton)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def render(self, item: Item) -> RenderedText:
        """The text of `item`.

        Raises:
            ContentError: `no_prompt`; `special_tokens` if a message holds a control token, ours or a foreign one;
                `template_error` if the template refuses the conversation; `unfinished_unsupported` if the template
                changes the completion so that its end cannot be found and `finish_reason` is "length".
        """
        if not item.prompt:
            raise ContentError("there is no message before the completion", code="no_prompt")
        self._refuse_special_tokens(item)
        prompt = self._apply(item.prompt, add_generation_prompt=True)
        full = self._apply(item.messages)
        if item.finish_reason == "length":
            head, tail = self._around_completion(item.prompt)
            full = _without_tail(full, head, tail, item.completion)
        return RenderedText(prompt=prompt, full=full)

    def skeleton(self, item: Item) -> str:
        """The text of a conversation with the same roles and neutral contents: the control tokens that belong there."""
        return self._skeleton(tuple(message.role for message in item.prompt), item.finish_reason)

    def _around_completion(self, prompt: tuple[Message, ...]) -> tuple[str, str]:
        framed = self._apply((*prompt, Message("assistant", _SENTINEL)))
        head, found, tail = framed.rpartition(_SENTINEL)
        if not found:
            raise ContentError("the template does not print the completion", code="template_error")
        return head, tail

    def _render_skeleton(self, roles: tuple[str, ...], finish_reason: FinishReason) -> str:
        head, tail = self._around_completion(tuple(Message(role, _SENTINEL) for role in roles))
        return head + _SENTINEL + ("" if finish_reason == "length" else tail)

    def _apply(self, messages: tuple[Message, ...], *, add_generation_prompt: bool = False) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_PINNED_DAY.strftime,
            )
        except Exception as error:
            # The error's text may quote the conversation, so only a template's own `raise_exception` is passed on.
            reason = str(error) if type(error) is TemplateError else type(error).__name__
            raise ContentError(
                f"the chat template refuses this conversation: {reason}", code="template_error"
            ) from None

    def _refuse_special_tokens(self, item: Item) -> None:
        for message in item.messages:
            found = self._forbidden.search(message.content) or self._forbidden.search(message.role)
            if found:
                raise ContentError(
                    f"a message holds the control token {found.group()!r}; send plain text, the service renders it",
                    code="special_tokens",
                )


def _without_tail(full: str, head: str, tail: str, completion: str) -> str:
    """`full` cut right after the completion, which the template printed as it is or stripped."""
    printed = full[len(head) : len(full) - len(tail)]
    if full != head + printed + tail or printed.strip() != completion.strip():
        raise ContentError(
            "the template changes the completion, so its end cannot be told from the end of turn",
            code="unfinished_unsupported",
            param="finish_reason",
        )
    if not printed:
        raise ContentError("the completion is empty", code="empty_completion", param="completion")
    return head + printed
