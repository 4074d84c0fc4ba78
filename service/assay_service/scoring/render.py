"""An item to ids, boundary and score span: exactly what is scored.

The full text is tokenised once, without adding special tokens. The boundary is the longest common prefix, in ids, with
the tokenised generation prompt; a token that merges across the border belongs to the completion.
"""

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import PROBE, Item, Message, Truncation
from assay_service.scoring.layout import Sequence, Span
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template import Template

_KEPT = 16  # ids of texts that items share


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is scored for one item and one signal.

    Attributes:
        text: the rendered conversation before tokenising; of a truncated item, the whole of it.
        sequence: the ids after truncation, the boundary and the score span.
        truncated_tokens: prompt tokens that were cut.
        completion_cut: whether the completion was cut as well, which only training does.
    """

    text: str
    sequence: Sequence
    truncated_tokens: int
    completion_cut: bool = False

    @property
    def boundary(self) -> int:
        """Number of prompt tokens."""
        return self.sequence.boundary

    @property
    def completion_tokens(self) -> int:
        """Tokens of the completion, its end of turn included."""
        return len(self.sequence.ids) - self.boundary


class Renderer:
    """Turns items into sequences under fixed rules. Not safe for concurrent use: the tokenizer's settings are shared.

    Args:
        tokenizer: a fast tokenizer; its truncation and padding are switched off.
        rules: how to render.
        vocabulary_size: rows of the base's embedding.

    Raises:
        StartError: the rules do not work with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: RenderRules, vocabulary_size: int) -> None:
        self.rules = rules
        self._tokenizer: Any = tokenizer
        self._vocabulary_size = vocabulary_size
        # Tokenizer files may carry truncation and padding (all-MiniLM: 128 tokens), which would cut silently.
        self._encoder: Any = self._tokenizer.backend_tokenizer
        self._encoder.no_truncation()
        self._encoder.no_padding()
        # Completions of one prompt come one after the other, and conversations of one form have one skeleton.
        self._encode_kept = functools.lru_cache(maxsize=_KEPT)(self._encode)
        ids = [getattr(self._tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "cls", "unk")]
        self.tokenizer_sha256 = hashlib.sha256(f"{ids}{self._encoder.to_str()}".encode()).hexdigest()
        special = {str(t): i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special}
        special |= {t: self._tokenizer.convert_tokens_to_ids(t) for t in self._tokenizer.all_special_tokens}
        self._control_ids = frozenset(special.values()) - {self._tokenizer.unk_token_id}
        self.template = Template(self._tokenizer, rules.template, frozenset(special))
        self._check_rules()

    def render(self, item: Item, truncation: Truncation = "error") -> Rendered:
        """The ids of `item`.

        Raises:
            ContentError: with code `unfinished`, `empty_completion`, `special_tokens`, `template_error`,
                `unfinished_unsupported`, `too_long` or `completion_too_long`.
        """
        self._refuse_unfinished(item)
        text, ids, boundary = self._ids(item)
        return self._rendered(text, ids, boundary, truncation)

    def render_within(self, item: Item, kept_prompt_tokens: int) -> Rendered:
        """The ids of `item`, cut on both sides as far as needed; how training treats what is too long (seeds §4).

        The prompt is cut from the front, but `kept_prompt_tokens` of it stay; a completion that has no room beside them
        is cut on the right, and then has no end of turn.

        Raises:
            ContentError: as `render`, without `too_long` and `completion_too_long`.
        """
        text, ids, boundary = self._ids(item)
        room = self.rules.max_length - min(boundary, kept_prompt_tokens)
        cut = len(ids) - boundary > room
        if cut:
            item = replace(item, finish_reason="length")
            self._refuse_unfinished(item)
            text, ids, boundary = self._ids(item)
        rendered = self._rendered(text, ids[: boundary + room], boundary, "prompt_left")
        return replace(rendered, completion_cut=cut)

    def prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The ids that a policy continues: the conversation so far with the generation prompt.

        Raises:
            ContentError: as `render`.
        """
        item = Item((*messages, PROBE.messages[-1]))
        self._ids(item)  # refuses what must not stand in a message
        return self._encode(self.template.render(item).prompt)

    def _refuse_unfinished(self, item: Item) -> None:
        if item.finish_reason == "length" and self.rules.unfinished == "error":
            raise ContentError(
                "this signal does not score unfinished completions", code="unfinished", param="finish_reason"
            )

    def _ids(self, item: Item) -> tuple[str, tuple[int, ...], int]:
        """The text of `item`, all its ids and the boundary."""
        text = self.template.render(item)
        ids = self._encode(text.full)
        if self._control_count(ids) != self._control_count(self._encode_kept(self.template.skeleton(item))):
            raise ContentError("a message tokenises to a control token", code="special_tokens")
        boundary = _common_prefix(ids, self._encode_kept(text.prompt))
        if self.rules.eos == "append" and item.finish_reason == "stop" and ids[-1:] != (self._tokenizer.eos_token_id,):
            ids = (*ids, self._tokenizer.eos_token_id)
        if not ids or (item.finish_reason == "length" and boundary == len(ids)):
            raise ContentError("the completion has no tokens", code="empty_completion", param="completion")
        if max(ids) >= self._vocabulary_size:
            raise ContentError("a token id lies outside the model's vocabulary", code="token_out_of_range")
        return text.full, ids, boundary

    def _rendered(self, text: str, ids: tuple[int, ...], boundary: int, truncation: Truncation) -> Rendered:
        kept, cut = self._truncate(ids, boundary, truncation)
        span = self._score_span(kept, boundary - cut)
        return Rendered(text, Sequence(kept, boundary - cut, span), cut)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids)

    def _control_count(self, ids: tuple[int, ...]) -> int:
        return sum(token in self._control_ids for token in ids)

    def _truncate(self, ids: tuple[int, ...], boundary: int, truncation: Truncation) -> tuple[tuple[int, ...], int]:
        """The ids within the length limit, and how many prompt tokens were cut from the front (a leading BOS stays)."""
        excess = len(ids) - self.rules.max_length
        if excess <= 0:
            return ids, 0
        if truncation == "error":
            raise ContentError(f"{len(ids)} tokens, at most {self.rules.max_length} fit", code="too_long")
        lead = int(ids[0] in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id) and boundary > 0)
        if excess > boundary - lead:
            raise ContentError(
                f"the completion alone has {len(ids) - boundary} tokens, at most {self.rules.max_length - lead} fit",
                code="completion_too_long",
                param="completion",
            )
        return ids[:lead] + ids[lead + excess :], excess

    def _score_span(self, ids: tuple[int, ...], boundary: int) -> Span:
        match self.rules.score_position:
            case "first_token" | "pooler":
                return Span(0, 1)
            case "mean":
                return Span(0, len(ids))
            case "completion" if boundary < len(ids):
                return Span(boundary, len(ids))
            case "completion":  # empty, and the template prints no end of turn
                last = -1
            case "last_token":
                last = len(ids) - 1
            case "last_non_pad_id":
                last = next((i for i in reversed(range(len(ids))) if ids[i] != self.rules.pad_token_id), -1)
            case "eos":
                eos = self._tokenizer.eos_token_id
                last = next((i for i in range(boundary, len(ids)) if ids[i] == eos), len(ids) - 1)
        if last < 0:
            raise ContentError("there is no token to read", code="empty_completion", param="completion")
        return Span(last, last + 1)

    def _check_rules(self) -> None:
        """Refuses at start what would fail, or score the wrong token, for every item."""
        if (self.rules.eos == "append" or self.rules.score_position == "eos") and self._tokenizer.eos_token_id is None:
            raise StartError("eos: the tokenizer has no EOS token")
        if self.rules.score_position == "last_non_pad_id" and self.rules.pad_token_id is None:
            raise StartError("score_position: last_non_pad_id needs a base that declares a pad_token_id")
        try:
            probe = self.render(PROBE)
        except ContentError as error:
            raise StartError(f"template: cannot render one user and one assistant message: {error.message}") from error
        if (
            self.rules.score_position == "eos"
            and self._tokenizer.eos_token_id not in probe.sequence.ids[probe.boundary :]
        ):
            raise StartError("score_position: eos, but the template prints no EOS after the completion")


def _common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common prefix."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
