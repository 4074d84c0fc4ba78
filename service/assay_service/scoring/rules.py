"""Hold the rules by which one signal turns text into ids, without importing torch or transformers."""

from dataclasses import dataclass

from assay_service.scoring.manifest import (
    REASONING_TAGS,
    ControlTokenPolicy,
    DroppedContent,
    EosPolicy,
    Reasoning,
    ScorePosition,
    StepRules,
    TokenTypes,
    Unfinished,
)


@dataclass(frozen=True, slots=True)
class RenderRules:
    """The rules by which one signal turns text into ids; all of them are part of the fingerprint.

    Attributes:
        template: Jinja source of the chat template.
        max_length: largest number of tokens of prompt and completion together.
        score_position: position or span of tokens that the head reads.
        eos: "template": the template prints the end of turn. "append": the tokenizer's EOS is added to a finished
            completion that does not end with it.
        unfinished: "score" if items with `finish_reason` "length" are scored, "error" if they are refused.
        pad_token_id: token id that `last_non_pad_id` skips; None if no file of the checkpoint names one.
        dropped_content: "error" if an item is refused when the template does not print one of its texts. "report" if it
            is scored and the text is reported.
        control_tokens: "error" if an item with a control token in a message is refused; "text" if such a token is read
            as plain characters.
        token_types: "zero": every token has type 0. "second_after_sep": tokens after the first separator have type 1,
            as `tokenizer(prompt, completion)` gives them. None if the base has one type only.
        reasoning: "keep" if reasoning in completions is rendered as it is, "strip" if it is removed first, "error" if
            such completions are refused.
        reasoning_tags: tags that open and close reasoning; "keep" does not read them.
        steps: rules by which the steps of a completion are read; None unless the score position is "steps".
        gate: text between prompt and completion at whose first token a gating network reads; None if there is none.
        neutral_prompt: text of a user's turn that is rendered in place of the messages before the completion; None
            renders those messages.
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
    reasoning: Reasoning = "keep"
    reasoning_tags: tuple[str, str] = REASONING_TAGS
    steps: StepRules | None = None
    gate: str | None = None
    neutral_prompt: str | None = None

    def reads_text_as(self, other: "RenderRules") -> bool:
        """Return whether both rules give the same ids to a conversation, before these are checked and truncated."""
        same = (self.template, self.control_tokens, self.steps) == (other.template, other.control_tokens, other.steps)
        return same and (self.steps is None or self.max_length == other.max_length)
