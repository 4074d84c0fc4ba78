"""Render prompts to the token ids that a policy continues."""

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
    """A prompt with the token ids that the policy reads.

    Attributes:
        prompt: prompt with its messages, which the reward service renders by its own template.
        ids: token ids, which end with the generation prompt.
    """

    prompt: Prompt
    ids: Ids


def render_prompts(
    prompts: Sequence[Prompt], renderer: Renderer, max_tokens: int
) -> tuple[list[TokenizedPrompt], Counter[str]]:
    """Render prompts to token ids; prompts that are too long or cannot be rendered are dropped and counted.

    Args:
        prompts: prompts with their messages.
        renderer: renderer of the policy's template.
        max_tokens: largest number of token ids.

    Returns:
        The rendered prompts in order, and the number of dropped ones by reason: `too_long`, or the renderer's error
        code.
    """
    rendered: list[TokenizedPrompt] = []
    dropped: Counter[str] = Counter()
    for prompt in tqdm(prompts, "render", unit="prompts", mininterval=10):
        try:
            ids = renderer.prompt(prompt.messages)
        except ContentError as error:
            dropped[error.code] += 1
            continue
        # Dropped and not cut: a cut prompt would ask something else.
        if len(ids) > max_tokens:
            dropped["too_long"] += 1
        else:
            rendered.append(TokenizedPrompt(prompt, ids))
    return rendered, dropped
