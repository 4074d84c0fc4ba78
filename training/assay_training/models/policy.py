"""A causal language model that is trained: packed sequences in, log-probabilities of their target tokens out.

The forward is the service's, with gradients; the output layer is applied to the target tokens alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from assay_service.scoring.architectures import architecture_of
from assay_service.scoring.files import read_config
from assay_service.scoring.kernels.torch_segments import NAME as ATTENTION
from assay_service.scoring.layout import Span, TokenSequence, pack
from assay_service.scoring.model import RewardModel
from assay_training.config.base import ConfigError
from assay_training.config.model import Lora
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.sharding import shard
from assay_training.models.lora import lora_config


class Policy:
    """A causal language model, whole or with an adapter to be trained.

    Args:
        directory: a checkpoint with `config.json` and safetensors weights.
        lora: the adapter to train; None trains all weights.
        device: where to put it.

    Attributes:
        device: where it is.
        head: hidden states to logits.
        hidden_size: width of the hidden states.
        vocabulary_size: rows of the embedding.

    Raises:
        ConfigError: the architecture is no causal one; weights are missing or of another shape; or the adapter does
            not fit.
    """

    def __init__(self, directory: Path, lora: Lora | None, device: torch.device) -> None:
        architecture = architecture_of(read_config(directory), directory)
        if not (architecture.causal and architecture.packed):
            raise ConfigError(f"base: {directory} is not a causal language model that Assay can pack")
        self._model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        _check_whole(report, directory)
        self._body = RewardModel(self._model.base_model, device)
        self.head: nn.Module = self._model.get_output_embeddings().to(device)
        if lora is not None:
            self._model = get_peft_model(self._model, lora_config(lora, self._model, "CAUSAL_LM"))
        self._adapted = lora is not None
        self._model.eval()
        self.device = device
        self.vocabulary_size, self.hidden_size = self._body.vocabulary_size, self._body.hidden_size

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, fp32."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def shard(self) -> None:
        """Spreads the layers over the processes, if they were asked to; afterwards it has other parameters."""
        shard(self._body.base)

    def logprobs(self, examples: Sequence[SftExample], temperature: float = 1.0) -> torch.Tensor:
        """fp32 `[t]`: of the target tokens of all examples, end to end."""
        hidden, targets = self.before_targets(examples)
        return -cross_entropy(self.head(hidden).float() / temperature, targets, reduction="none")

    def before_targets(self, examples: Sequence[SftExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the target tokens of all examples are predicted from, `[t, H]`, and their ids, int64 `[t]`."""
        row = pack(
            [TokenSequence(example.ids, 0, Span(0, len(example.ids))) for example in examples], share_prompts=False
        )
        starts = [pieces[0].start for pieces in row.spans]
        at = [
            start + position
            for start, example in zip(starts, examples, strict=True)
            for position, counts in enumerate(example.target_mask)
            if counts
        ]
        targets = torch.tensor(at, device=self.device)
        # A token is predicted from the one before it; the first of a sequence is never a target.
        return self._body.hidden(row)[0][targets - 1], row.ids[0].to(self.device)[targets]

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the policy is what it was before its adapter was trained."""
        assert self._adapted
        context: AbstractContextManager[None] = self._model.disable_adapter()
        return context

    def save_adapter(self, directory: Path) -> None:
        """Writes the adapter alone, in PEFT's format."""
        assert self._adapted
        self._model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's, a form that nobody has filled in
        _make_public(directory)

    def load_adapter(self, directory: Path) -> None:
        """Puts an adapter of the same shape in the place of this one."""
        assert self._adapted
        set_peft_model_state_dict(self._model, load_peft_weights(str(directory), device="cpu"))

    def save(self, directory: Path) -> None:
        """Writes the whole model in transformers' format; an adapter is merged into it, for good."""
        if self._adapted:
            self._model, self._adapted = self._model.merge_and_unload(), False
        self._model.save_pretrained(directory)
        _make_public(directory)


def _make_public(directory: Path) -> None:
    """Safetensors makes its files private, and the server may be another user."""
    for file in directory.glob("*.safetensors"):
        file.chmod(0o644)


def _check_whole(report: Mapping[str, Any], directory: Path) -> None:
    """What transformers would fill up with random numbers is an error."""
    for reason in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report[reason])
        if names:
            raise ConfigError(
                f"base: {directory} is not a whole causal language model: {reason.replace('_', ' ')}: "
                f"{', '.join(names[:3])}{', …' * (len(names) > 3)}"
            )
