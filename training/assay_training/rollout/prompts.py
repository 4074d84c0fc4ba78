"""Prompts as a policy reads them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from assay_service.errors import ContentError
from assay_service.scoring.render import Renderer
from assay_training.records.record import Prompt
from assay_training.rollout.completion import Ids


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the policy reads it.

    Attributes:
        prompt: with its messages, which the service renders in its own way.
        ids: with the generation prompt.
    """

    prompt: Prompt
    ids: Ids


def render_prompts(
    prompts: Sequence[Prompt], renderer: Renderer, max_tokens: int
) -> tuple[list[TokenizedPrompt], Counter[str]]:
    """The prompts as ids; what is longer than `max_tokens`, or cannot be rendered, is left out and counted."""
    asked: list[TokenizedPrompt] = []
    left_out: Counter[str] = Counter()
    for prompt in tqdm(prompts, "render", unit="prompts", mininterval=10):
        try:
            ids = renderer.prompt(prompt.messages)
        except ContentError as error:
            left_out[error.code] += 1
            continue
        if len(ids) > max_tokens:
            left_out["too_long"] += 1
        else:
            asked.append(TokenizedPrompt(prompt, ids))
    return asked, left_out
