"""Hold the rules by which one signal turns text into ids. Imports neither torch nor transformers."""

from dataclasses import dataclass

from assay_service.scoring.manifest import EosPolicy, ScorePosition, Unfinished


@dataclass(frozen=True, slots=True)
class RenderRules:
    """How one signal turns text into ids; all of it is part of the fingerprint.

    Attributes:
        template: Jinja source of the chat template.
        max_length: tokens of prompt and completion together.
        score_position: which tokens the head reads.
        eos: "template": what the template prints is the end of turn; "append": the tokenizer's EOS is added to a
            finished completion that does not end with it.
        unfinished: whether `finish_reason` "length" is scored or is an item error.
        pad_token_id: the base's, which `last_non_pad_id` skips; None where the base declares none.
    """

    template: str
    max_length: int
    score_position: ScorePosition
    eos: EosPolicy
    unfinished: Unfinished
    pad_token_id: int | None = None
