"""Turn an item into exactly what is scored: token ids, the boundary before its completion, and the score span."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError, StartError
from assay_service.scoring.borders import VARIABLE, find_borders
from assay_service.scoring.chat_environment import TemplateRenderer
from assay_service.scoring.control import ControlRules
from assay_service.scoring.encoding import Encoded, ItemEncoder, find_control_tokens, find_step_token
from assay_service.scoring.gates import find_gate
from assay_service.scoring.item import PROBE, Item, Message, Truncation
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.positions import find_score_span
from assay_service.scoring.reasoning import ReasoningRule
from assay_service.scoring.rendered import Rendered
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.steps import StepLayout
from assay_service.scoring.template import Template
from assay_service.scoring.transcript import build_transcript


class Renderer:
    """A converter of items to token sequences, not safe for concurrent use (the tokenizer's settings are shared).

    Args:
        tokenizer: fast tokenizer; its truncation and padding are switched off.
        rules: rules by which text becomes ids.
        vocabulary_size: number of rows of the signal's embedding.
        like: renderer of the same tokenizer, whose rules read text in the same way; an item that it has just encoded is
            not encoded again. None if there is none.

    Raises:
        StartError: the rules do not work with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rules: RenderRules,
        vocabulary_size: int,
        like: "Renderer | None" = None,
    ) -> None:
        self.rules = rules
        self.tokenizer: Any = tokenizer
        self._vocabulary_size = vocabulary_size
        # Tokenizer files may set truncation and padding (all-MiniLM: 128 tokens), which would shorten texts silently.
        encoder = self.tokenizer.backend_tokenizer
        encoder.no_truncation()
        encoder.no_padding()
        file = encoder.to_str()
        # Templates print special tokens by name, also by the model's own names (`image_token`), so names decide ids.
        named = sorted((name, str(text)) for name, text in self.tokenizer.special_tokens_map.items())
        self.tokenizer_sha256 = hashlib.sha256(f"{named}{file}".encode()).hexdigest()
        steps = rules.steps
        renderer = TemplateRenderer(tokenizer)
        self.template = Template(renderer if steps is None else StepLayout(renderer, steps), rules.template)
        self.transcript = build_transcript(self.template, self.tokenizer)
        start, end = rules.reasoning_tags
        opened = rules.reasoning != "keep" and self.template.opens(start)
        self._reasoning = ReasoningRule(rules.reasoning, start, end, opened)
        special = find_control_tokens(self.template, self.tokenizer)
        control_ids = frozenset(special.values()) | find_step_token(self.tokenizer, steps)
        # Unknown words of a message become the unknown token, so it must not be refused as a control token. GPT-2 and
        # Pythia only name one without using it: it is their EOS.
        model = json.loads(file)["model"]
        if model.get("unk_token") or model.get("unk_id") is not None:
            control_ids -= {self.tokenizer.unk_token_id}
        borders = find_borders(self.tokenizer, rules.template)
        if borders is not None and steps is not None:
            raise StartError(
                f"template: prints {VARIABLE}, which `score_position: steps` does not read; remove it, or declare "
                "`steps.tokenize: apart`"
            )
        control = ControlRules(frozenset(special), control_ids, rules.control_tokens)
        new = (self.template, encoder, control, steps, rules.max_length, borders)
        self._items: ItemEncoder = ItemEncoder(*new) if like is None else like._items
        # Ids that every item must have in the places where the probe has them; `_check_rules` sets them.
        self._first: int | None = None
        self._separator: int | None = None
        self._gate = None if rules.gate is None else self._items.encode_text(rules.gate)
        self._check_rules()

    @property
    def text_rule(self) -> tuple[str, str]:
        """Return what decides how text is read; steps do not, because completions are divided after they were read."""
        return self.template.sha256, self.tokenizer_sha256

    def render(self, item: Item, truncation: Truncation = "error", *, trained: bool = False) -> Rendered:
        """Return the ids of `item`, with its boundary and score span.

        Args:
            item: prompt and completion.
            truncation: "error" refuses an item that is too long; "prompt_left" cuts the front of its prompt.
            trained: True for an item whose reasoning was treated in training; the rules' policy is not applied.

        Raises:
            ContentError: the item cannot be scored; the code is `unfinished`, `empty_completion`, `special_tokens`,
                `template_error`, `dropped_content`, `unfinished_unsupported`, `no_prompt`, `token_out_of_range`,
                `reasoning`, `too_long` or `completion_too_long`.
        """
        self._refuse_unfinished(item)
        item, reasoning = (item, "") if trained else self._reasoning.apply(item)
        encoded = self._encode(item)
        return replace(self._build_rendered(encoded, encoded.ids, truncation), reasoning=reasoning)

    def treat_reasoning(self, item: Item) -> Item:
        """Return `item` without the reasoning that the rules remove, as `render` reads it.

        Raises:
            ContentError: the rules refuse its reasoning; the code is `reasoning`.
        """
        return self._reasoning.apply(item)[0]

    def render_within(self, item: Item, kept_prompt_tokens: int) -> Rendered:
        """Return the ids of `item`, cut on both sides as far as needed, as in training ([CRS] section 5.3).

        The prompt is cut from the front, but `kept_prompt_tokens` of it stay. A completion that does not fit beside
        them is cut on the right, and then has no end of turn.

        Raises:
            ContentError: the item cannot be scored, as for `render`, except `too_long` and `completion_too_long`.
        """
        item, reasoning = self._reasoning.apply(item)
        encoded = self._encode(item)
        room = self.rules.max_length - min(encoded.boundary, kept_prompt_tokens)
        cut = len(encoded.ids) - encoded.boundary > room
        if cut:  # encode it again without an end of turn, as an unfinished completion
            item = replace(item, finish_reason="length")
            self._refuse_unfinished(item)
            encoded = self._encode(item)
        rendered = self._build_rendered(encoded, encoded.ids[: encoded.boundary + room], "prompt_left")
        return replace(rendered, completion_cut=cut, reasoning=reasoning)

    def locate_reading(self, rendered: Rendered) -> tuple[int, int] | None:
        """Return the characters of the text that the head reads; see `Rendered.locate_reading`."""
        encoding = self.tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False)
        return rendered.locate_reading(encoding, self._count_lead(rendered.sequence.ids, rendered.boundary))

    def prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the ids that a policy continues: the conversation so far with the generation prompt.

        Raises:
            ContentError: the conversation cannot be rendered, for the reasons of `render`.
        """
        return self._encode(Item((*messages, PROBE.messages[-1]))).prompt

    def _refuse_unfinished(self, item: Item) -> None:
        if item.finish_reason == "length" and self.rules.unfinished == "error":
            raise ContentError(
                "this signal does not score unfinished completions; send finished ones, or declare `unfinished: score`",
                code="unfinished",
                param="finish_reason",
            )

    def _encode(self, item: Item) -> Encoded:
        """Return the text of `item`, all its ids and the boundary."""
        if self.rules.neutral_prompt is not None:
            item = item.replace_prompt(self.rules.neutral_prompt)
        encoded = self._items.encode(item)
        if self.rules.dropped_content == "error" and encoded.text.dropped:
            dropped = encoded.text.dropped[0]
            raise ContentError(
                f"the template does not print a part of {dropped.slot} ({len(dropped.text)} characters); "
                "declare `dropped_content: report` to score the rest",
                code="dropped_content",
            )
        ids = encoded.ids
        if self.rules.eos == "append" and item.finish_reason == "stop" and ids[-1:] != (self.tokenizer.eos_token_id,):
            ids = (*ids, self.tokenizer.eos_token_id)
        if not ids or (item.finish_reason == "length" and encoded.boundary == len(ids)):
            raise ContentError("the completion has no tokens; send text", code="empty_completion", param="completion")
        # An id beyond the embedding would fail in the forward pass, and on a GPU break the device for all items.
        if max(ids) >= self._vocabulary_size:
            raise ContentError(
                f"token id {max(ids)} lies outside the model's vocabulary; check the checkpoint's tokenizer.json",
                code="token_out_of_range",
            )
        self._check_reading(ids, encoded.boundary)
        return replace(encoded, ids=ids)

    def _check_reading(self, ids: tuple[int, ...], boundary: int) -> None:
        """Refuse a conversation without the tokens that the head or the token types depend on.

        The probe shows where they belong. Templates can print them for some roles only.
        """
        if self._first is not None and ids[0] != self._first:
            raise ContentError(
                f"score_position {self.rules.score_position} reads the first token, but the template does not begin "
                f"this conversation with {self.tokenizer.convert_ids_to_tokens(self._first)!r}",
                code="template_error",
            )
        if self._separator is not None and self._separator not in ids[:boundary]:
            raise ContentError(
                "token_types is second_after_sep, but the template prints no separator before this completion",
                code="template_error",
            )

    def _build_rendered(self, encoded: Encoded, ids: tuple[int, ...], truncation: Truncation) -> Rendered:
        kept, cut = self._truncate(ids, encoded.boundary, truncation)
        boundary = encoded.boundary - cut
        second = self._find_second_segment(ids, encoded.boundary, cut)
        # Only tokens of the prompt are cut, and steps are in the completion.
        steps = [Span(read - cut, read - cut + 1) for read in encoded.reads]
        score, *later = steps or [find_score_span(kept, boundary, self.rules, self.tokenizer.eos_token_id)]
        predicts, gate = self.rules.score_position == "completion_tokens", find_gate(kept, self._gate, boundary)
        dropped = encoded.text.dropped
        return Rendered(
            text=encoded.text.full,
            sequence=TokenSequence(kept, boundary, score, second, tuple(later), gate, predicts),
            truncated_tokens=cut,
            dropped=dropped,
            dropped_tokens=sum(len(self._items.encode_text(part.text)) for part in dropped),
            control_tokens_as_text=encoded.control_tokens_as_text,
            steps=encoded.steps,
        )

    def _find_second_segment(self, ids: tuple[int, ...], boundary: int, cut: int) -> int | None:
        """Return the index where tokens of type 1 begin after `cut` prompt tokens were removed; None if there are none.

        A separator that was removed still ends the first segment, so the completion keeps the type that it has in
        training.
        """
        separator = self.tokenizer.sep_token_id
        if self.rules.token_types != "second_after_sep" or separator not in ids[:-1]:
            return None
        return max(ids.index(separator) + 1 - cut, self._count_lead(ids, boundary))

    def _count_lead(self, ids: tuple[int, ...], boundary: int) -> int:
        """Return the number of tokens at the front that are never removed: 1 for a leading BOS or CLS, else 0."""
        return int(ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) and boundary > 0)

    def _truncate(self, ids: tuple[int, ...], boundary: int, truncation: Truncation) -> tuple[tuple[int, ...], int]:
        """Return the ids within the length limit and the number of prompt tokens removed after a leading BOS or CLS."""
        excess = len(ids) - self.rules.max_length
        if excess <= 0:
            return ids, 0
        if truncation == "error":
            raise ContentError(f"the item has {len(ids)} tokens, at most {self.rules.max_length} fit", code="too_long")
        lead = self._count_lead(ids, boundary)  # models are trained with this token at the front
        # The first token of the completion is predicted from a token of the prompt, which is then never removed.
        kept = max(lead, int(self.rules.score_position == "completion_tokens"))
        if excess > boundary - kept:
            raise ContentError(
                f"the completion alone has {len(ids) - boundary} tokens, at most {self.rules.max_length - kept} fit",
                code="completion_too_long",
                param="completion",
            )
        return ids[:lead] + ids[lead + excess :], excess

    def _check_rules(self) -> None:
        """Refuse at start the rules that would fail, or score the wrong token, for every item."""
        if (self.rules.eos == "append" or self.rules.score_position == "eos") and self.tokenizer.eos_token_id is None:
            raise StartError(
                "eos, score_position: the tokenizer has no EOS token; declare its `eos_token` in "
                "tokenizer_config.json, or other values of these keys"
            )
        if self.rules.score_position == "last_non_pad_id" and self.rules.pad_token_id is None:
            raise StartError(
                "score_position: last_non_pad_id skips a pad token, but no file of the checkpoint names one; declare "
                "the `pad_token_id` that the head was trained with, or `score_position: last_token`"
            )
        try:
            probe = self.render(PROBE)
        except ContentError as error:
            raise StartError(f"template: cannot render one user and one assistant message: {error.message}") from error
        if (
            self.rules.score_position == "eos"
            and self.tokenizer.eos_token_id not in probe.sequence.ids[probe.boundary :]
        ):
            raise StartError(
                "score_position: eos, but the template prints no EOS after the completion; print it, or declare "
                "`eos: append`"
            )
        second = probe.sequence.second_segment
        if self.rules.token_types == "second_after_sep" and (second is None or second > probe.boundary):
            raise StartError(
                "token_types: second_after_sep, but the template prints no separator token of the tokenizer "
                f"({self.tokenizer.sep_token!r}) before the completion; print it, or declare `token_types: zero`"
            )
        if self.rules.score_position in ("pooler", "first_token"):
            self._check_first(probe.sequence.ids[0])
            self._first = probe.sequence.ids[0]
        if self.rules.token_types == "second_after_sep":
            self._separator = self.tokenizer.sep_token_id

    def _check_first(self, first: int) -> None:
        """Refuse to read a first token into which the model was not trained to summarize the text."""
        name = "cls_token" if self.tokenizer.cls_token is not None else "bos_token"
        token = getattr(self.tokenizer, name)
        if token is None or first != getattr(self.tokenizer, f"{name}_id"):
            raise StartError(
                f"score_position: {self.rules.score_position} reads the first token, which is "
                f"{self.tokenizer.convert_ids_to_tokens(first)!r}; it must be the tokenizer's {name} ({token!r}): "
                "print it at the start of the template"
            )
