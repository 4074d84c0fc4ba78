"""Find the tokens of a sequence that a head reads, by the score position of its signal; pure."""

from collections.abc import Sequence

from assay_service.errors import ContentError
from assay_service.scoring.layout import Span
from assay_service.scoring.rules import RenderRules


def find_score_span(ids: Sequence[int], boundary: int, rules: RenderRules, eos: int | None) -> Span:
    """Return the tokens that the head reads.

    Args:
        ids: token ids of prompt and completion.
        boundary: number of prompt tokens.
        rules: rules of the signal.
        eos: id of the tokenizer's EOS; None if it has none.

    Raises:
        ContentError: there is no token to read (`empty_completion`), or none before the completion (`template_error`).
    """
    last = -1
    match rules.score_position:
        case "first_token" | "pooler":
            return Span(0, 1)
        case "mean" | "mean_pooler":
            return Span(0, len(ids))
        case "completion" if boundary < len(ids):
            return Span(boundary, len(ids))
        case "completion_tokens" if boundary < len(ids):
            if boundary == 0:
                raise ContentError(
                    "score_position completion_tokens predicts each token of the completion from those before it, but "
                    "this conversation has no token before its completion; declare a template that prints one",
                    code="template_error",
                )
            return Span(boundary - 1, len(ids) - 1)  # a token is predicted at the one before it
        case "last_token":
            last = len(ids) - 1
        case "last_non_pad_id":
            last = next((i for i in reversed(range(len(ids))) if ids[i] != rules.pad_token_id), -1)
        case "eos":  # earlier turns of the prompt may end with EOS as well, so the search starts at the boundary
            last = next((i for i in range(boundary, len(ids)) if ids[i] == eos), len(ids) - 1)
    if last < 0:  # also for an empty completion after which the template prints no end of turn
        raise ContentError("the head has no token to read; send text", code="empty_completion", param="completion")
    return Span(last, last + 1)
