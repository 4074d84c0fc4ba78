"""Hold the rules by which one signal turns text into ids. Imports neither torch nor transformers."""

from dataclasses import dataclass

from assay_service.scoring.manifest import (
    ControlTokenPolicy,
    DroppedContent,
    EosPolicy,
    ScorePosition,
    TokenTypes,
    Unfinished,
)


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
        pad_token_id: the id that `last_non_pad_id` skips; None where no file of the checkpoint names one.
        token_types: "zero": every token has type 0; "second_after_sep": tokens after the first separator have type 1,
            as `tokenizer(prompt, reply)` gives; None where the base has one type only.
        dropped_content: whether an item of which the template leaves out a text is an error, or is scored and reported.
        control_tokens: whether a control token in a message is an error, or plain characters.
    """

    template: str
    max_length: int
    score_position: ScorePosition
    eos: EosPolicy
    unfinished: Unfinished
    pad_token_id: int | None = None
    dropped_content: DroppedContent = "error"
    control_tokens: ControlTokenPolicy = "error"
    token_types: TokenTypes | None = None
