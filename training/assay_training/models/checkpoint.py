"""Build the renderer of a policy, and save a trained policy as a checkpoint that has been read back."""

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
from assay_training.runs.files import replace_whole

RELOADED_SAMPLE = 8
RELOADED_TOLERANCE = 1e-3  # in nats; merging an adapter into the weights rounds


def build_policy_renderer(loaded: PreTrainedTokenizerBase, template: str, vocabulary_size: int) -> Renderer:
    """Build the renderer of a policy's chat template, without a length limit.

    Args:
        loaded: tokenizer of the policy.
        template: Jinja source of the chat template.
        vocabulary_size: rows of the policy's embedding.

    Raises:
        ConfigError: the template does not work with this tokenizer.
    """
    # Callers decide whether a long prompt is dropped or cut, so the renderer itself never refuses one.
    rules = RenderRules(template, 2**31, "eos", "template", "score")
    # The template is the user's, so its fault is one of the configuration.
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
    """Write the whole model in transformers' format with tokenizer and template, and check it by reading it back.

    The check compares the log-probabilities of the model in memory and of the checkpoint on some examples.

    Args:
        policy: trained policy; its adapter is merged into its weights permanently.
        directory: directory of the checkpoint. It is complete afterwards, or absent if the check fails.
        base: checkpoint that training started from; its tokenizer is copied.
        template: Jinja source of the chat template that the policy was trained with.
        sample: examples of the check, of which the first 8 are used.

    Raises:
        RuntimeError: a log-probability of the checkpoint differs by more than 1e-3 nats.
    """
    sample = sample[:RELOADED_SAMPLE]
    with torch.inference_mode():
        expected = policy.logprobs(sample)

    def write(unchecked: Path) -> None:
        policy.save(unchecked)
        tokenizer.write(base, unchecked, template)
        with torch.inference_mode():
            again = Policy(unchecked, None, policy.device).logprobs(sample)
        difference = float((again - expected).abs().max())
        if not difference <= RELOADED_TOLERANCE:
            raise RuntimeError(
                f"{unchecked}: the saved model is not the trained one: a log-probability differs by {difference} nats"
            )

    replace_whole(directory, write)


def describe_policy(checkpoint: Path) -> list[str]:
    """Return the lines that name the checkpoint of a finished run and how to use it."""
    return [f"policy: {checkpoint}", "to use it: as any model of transformers or vLLM, or as `base` of another run"]
