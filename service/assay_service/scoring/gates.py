"""Find the token whose hidden state a gating network reads; pure."""

from collections.abc import Sequence

from assay_service.errors import ContentError


def find_gate(ids: Sequence[int], pattern: Sequence[int] | None, boundary: int) -> int | None:
    """Return the index at which `pattern` begins for the last time in the prompt; None without a pattern.

    ArmoRM and QRM read the first token of their pattern ([ArmoRM], `find_token_for_gating`). It must belong to the
    prompt, so that no completion decides where the gate reads.

    Args:
        ids: token ids of prompt and completion.
        pattern: token ids that the template prints between prompt and completion; None for a head without a gate.
        boundary: number of prompt tokens; the pattern may begin there, but not later.

    Raises:
        ContentError: the pattern is not there; the code is `template_error`.
    """
    if pattern is None:
        return None
    wanted = tuple(pattern)
    for start in range(min(boundary, len(ids) - len(wanted)), -1, -1):
        if wanted and tuple(ids[start : start + len(wanted)]) == wanted:
            return start
    raise ContentError(
        "the text of `head.gate` does not occur in the ids where the prompt of this item ends, so its gate "
        "has nothing to read; white space at the start of a completion can merge with it",
        code="template_error",
    )
