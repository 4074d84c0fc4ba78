"""Divide completions into steps, print them as a process reward model was trained, and find the tokens that are read.

A completion becomes a list of text parts. `StepLayout` prints them, so that the step tokens count as a part of the
template: the checks for dropped texts and control tokens hold for each step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.manifest import StepRules
from assay_service.scoring.pieces import EncodedPieces
from assay_service.scoring.skeleton import Skeleton, list_texts
from assay_service.scoring.template import ChatRenderer


@dataclass(frozen=True, slots=True)
class Divided:
    """An item whose completion is a list of steps.

    Attributes:
        item: item with one text part for each step, as if all of them were finished.
        finished: number of steps that are finished.
    """

    item: Item
    finished: int


@dataclass(frozen=True, slots=True)
class PlacedSteps:
    """The places of the steps among the tokens of an item.

    Attributes:
        reads: index of the token that is read for each step.
        end: number of tokens up to the end of the last step's text.
        tail: number of characters after the last step's text.
    """

    reads: tuple[int, ...]
    end: int
    tail: int


def divide(item: Item, rules: StepRules, max_length: int) -> Divided:
    """Return `item` with the steps of its completion; pieces of white space only are dropped.

    Raises:
        ContentError: the completion has no finished step, too many steps, or tool calls. Or the layout is "turns" and
            the prompt does not end with a text of the user.
    """
    last = item.messages[-1]
    if last.tool_calls:
        raise ContentError(
            "score_position steps reads text, but the completion has tool calls; send its text", code="template_error"
        )
    if rules.layout == "turns" and item.prompt and (item.prompt[-1].role != "user" or not item.prompt[-1].is_plain):
        raise ContentError(
            "steps.layout turns adds the first step to the user's text, but the prompt does not end with one",
            code="template_error",
        )
    pieces = last.content.split(rules.delimiter)
    steps = tuple(piece.strip() if rules.strip else piece for piece in pieces if piece.strip())
    if not steps:
        raise ContentError("the completion has no step; send text", code="empty_completion", param="completion")
    if 2 * len(steps) > max_length:  # each has a token of its own and the step token
        raise ContentError(
            f"the completion has {len(steps)} steps, which do not fit in {max_length} tokens",
            code="completion_too_long",
            param="completion",
        )
    finished = len(steps) - (item.finish_reason == "length" and bool(pieces[-1].strip()))
    if not finished:
        raise ContentError(
            "the completion was cut off in its first step, so no step is finished",
            code="unfinished",
            param="completion",
        )
    divided = replace(last, content="", parts=steps)
    return Divided(Item((*item.prompt, divided)), finished)


class StepLayout:
    """A renderer whose templates print completions of several parts as the steps of a process reward model.

    Args:
        renderer: renderer of the template.
        rules: rules by which steps are printed.
    """

    def __init__(self, renderer: ChatRenderer, rules: StepRules) -> None:
        self._renderer = renderer
        self._rules = rules

    def render_chat(
        self,
        conversation: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        **options: Any,  # noqa: ANN401 - the others of `ChatRenderer`
    ) -> str:
        """Render `conversation` to text; parts of its completion are steps."""
        # With a generation prompt the last message is a part of the prompt.
        if not add_generation_prompt and isinstance(conversation[-1]["content"], list):
            conversation = self._lay_out(conversation)
        return self._renderer.render_chat(conversation, add_generation_prompt=add_generation_prompt, **options)

    def _lay_out(self, conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        *prompt, completion = (dict(message) for message in conversation)
        steps = [part["text"] for part in completion["content"]]
        if self._rules.layout == "inline":
            between = f"{self._rules.token}{self._rules.between}"
            return [*prompt, completion | {"content": between.join(steps) + self._rules.token}]
        # The space is RLHFlow's, whose checkpoints have this layout.
        steps[0] = f"{prompt[-1]['content']} {steps[0]}"
        asked = (
            {**prompt[-1], "content": step} if i == 0 else {"role": "user", "content": step}
            for i, step in enumerate(steps)
        )
        answer = completion | {"content": self._rules.token}
        return [*prompt[:-1], *(turn for question in asked for turn in (question, answer))]


def place_steps(
    item: Item, frame: Skeleton, full: str, rules: StepRules, encode: Callable[[Sequence[str]], EncodedPieces]
) -> tuple[tuple[int, ...], PlacedSteps]:
    """Return the token ids of a rendered item, and the places of its steps.

    Args:
        item: item whose completion is a list of steps.
        frame: skeleton of its shape.
        full: rendered conversation.
        rules: rules by which steps are read.
        encode: function that encodes consecutive pieces of the text.

    Raises:
        ContentError: the template changes the steps, or the tokenizer merges a step token with its neighbors.
    """
    spans = _find_steps(item, frame, full)
    ends = [*(start for start, _ in spans[1:]), len(full)]
    # Four cuts for each step: before its text, after it, before the step token, and after it.
    cuts: list[int] = []
    for (start, stop), end in zip(spans, ends, strict=True):
        token = _find_token(full[stop:end], rules) + stop
        cuts += (start, stop, token, token + len(rules.token))
    encoded = encode([full[i:j] for i, j in zip([0, *cuts], [*cuts, len(full)], strict=True)])
    tokens, merged = encoded.ends[:-1], encoded.merged[:-1]
    _, stops, befores, afters = (tokens[i::4] for i in range(4))
    inline = rules.layout == "inline"
    for step, (before, after) in enumerate(zip(befores, afters, strict=True)):
        if any(merged[4 * step + 1 : 4 * step + 3 + inline]) or (inline and after - before != 1):
            raise ContentError(
                f"step {step}: the tokenizer does not read the step token {rules.token!r} after it as one token of its "
                "own; send the step without white space at its end, or declare `steps.strip: true`",
                code="template_error",
                param="completion",
            )
    reads = befores if inline else tuple(before - 1 for before in befores)
    return encoded.ids, PlacedSteps(reads, stops[-1], len(full) - spans[-1][1])


def _find_steps(item: Item, frame: Skeleton, full: str) -> list[tuple[int, int]]:
    """Return where each step stands in a rendered conversation, stripped or not; the search begins at the end."""
    texts = list_texts(item.messages)
    first = len(list_texts(item.prompt))
    steps = range(first, first + len(item.messages[-1].parts))
    spans: dict[int, tuple[int, int]] = {}
    end = len(full)
    for number, literal in zip(reversed(frame.order), reversed(frame.literals), strict=False):
        text = texts[number]
        tail = end - len(literal)
        forms = (form for form in (text, text.rstrip(), text.lstrip(), text.strip()) if full.endswith(form, 0, tail))
        if len(spans) == len(steps):
            break
        if not full.endswith(literal, 0, end) or (form := next(forms, None)) is None:
            raise ContentError(
                "the template changes the completion, so its steps cannot be found in the text; declare a template "
                "that prints completions as they are",
                code="template_error",
            )
        end = tail - len(form)
        if number in steps:
            spans[number] = end, tail
    return [spans[number] for number in steps]


def _find_token(text: str, rules: StepRules) -> int:
    """Return the place of the step token in the text that the template prints after a step."""
    place = text.find(rules.token)
    # Inline it follows the step at once. In turns the template prints its own words before it, which must differ.
    wrong = place != 0 if rules.layout == "inline" else text.count(rules.token) != 1
    if wrong:
        raise ContentError(
            f"the template does not print the step token {rules.token!r} exactly once after each step",
            code="template_error",
        )
    return place
