"""What every training of a policy does alike: its renderer, and the checkpoint that it leaves."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from assay_service.errors import StartError
from assay_service.scoring import tokenizer
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.config.base import ConfigError
from assay_training.data.sft_examples import SftExample
from assay_training.models.policy import Policy

RELOADED_SAMPLE = 8
RELOADED_TOLERANCE = 1e-3  # merging an adapter rounds


def policy_renderer(loaded: PreTrainedTokenizerBase, template: str, vocabulary_size: int) -> Renderer:
    """Of a policy's template, without a length limit.

    Raises:
        ConfigError: the template does not work with this tokenizer.
    """
    rules = RenderRules(template, 2**31, "eos", "template", "score")
    try:
        return Renderer(loaded, rules, vocabulary_size)
    except StartError as error:
        raise ConfigError(f"template: {error} (the tokenizer's EOS is {loaded.eos_token!r})") from error


def save_policy(
    policy: Policy,
    directory: Path,
    base: Path,
    template: str,
    sample: Sequence[SftExample],
) -> None:
    """Writes the whole model in transformers' format with tokenizer and template, and reads it back.

    Args:
        policy: an adapter is merged into it, for good.
        directory: whole afterwards, or not there.
        base: the checkpoint that training started from, whose tokenizer the policy has.
        template: that it was trained with.
        sample: of the first of these log-probabilities are compared.

    Raises:
        RuntimeError: what is read back says something else.
    """
    sample = sample[:RELOADED_SAMPLE]
    with torch.inference_mode():
        expected = policy.logprobs(sample)
    unchecked = directory.with_suffix(".tmp")
    policy.save(unchecked)
    tokenizer.write(base, unchecked, template)
    with torch.inference_mode():
        again = Policy(unchecked, None, policy.device).logprobs(sample)
    apart = float((again - expected).abs().max())
    if not apart <= RELOADED_TOLERANCE:
        raise RuntimeError(f"{unchecked}: read back, a log-probability differs by {apart}; it is not what was trained")
    shutil.rmtree(directory, ignore_errors=True)
    unchecked.rename(directory)


def policy_lines(checkpoint: Path) -> list[str]:
    """Return the lines that say where the policy of a finished run is, and how to use it."""
    return [f"policy: {checkpoint}", "to use it: as any model of transformers or vLLM, or as `base` of another run"]
