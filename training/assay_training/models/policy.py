"""Train a causal language model on packed sequences: token ids in, log-probabilities of their target tokens out.

Legend: `t` target tokens of some examples, end to end; `H` hidden size. The forward pass is the service's, with
gradients. The output layer is applied at target tokens only, because no loss needs the logits of prompt tokens.
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

from assay_service.scoring.architectures import read_architecture
from assay_service.scoring.files import read_config
from assay_service.scoring.kernels.torch_segments import NAME as ATTENTION
from assay_service.scoring.layout import Span, TokenSequence, pack
from assay_service.scoring.model import RewardModel
from assay_service.scoring.own_memory import copy_out_of_files
from assay_service.scoring.quantization import check_declared
from assay_training.config.base import ConfigError
from assay_training.config.model import Lora
from assay_training.data.sft_examples import SftExample
from assay_training.distributed.sharding import shard
from assay_training.models.lora import build_lora_config


class Policy:
    """A causal language model of which all weights, or only an adapter, are trained.

    Args:
        directory: checkpoint with `config.json` and safetensors weights.
        lora: configuration of the adapter to train; None trains all weights.
        device: device of the weights.

    Attributes:
        device: device of the weights.
        head: output layer, from hidden states `[t, H]` to logits `[t, V]` without Gemma 2's bound.
        hidden_size: width H of the hidden states.
        vocabulary_size: number V of rows of the embedding.

    Raises:
        ConfigError: the architecture is not a causal one; weights are missing or have another shape; or the adapter
            does not fit the base.
    """

    def __init__(self, directory: Path, lora: Lora | None, device: torch.device) -> None:
        config = read_config(directory)
        architecture = read_architecture(config, directory)
        check_declared(config, None, directory)
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
        _check_weights(report, directory)
        copy_out_of_files(self._model)
        self._body = RewardModel(self._model.base_model, device)
        self.head: nn.Module = self._model.get_output_embeddings().to(device)
        self._softcap: float | None = getattr(self._model.config, "final_logit_softcapping", None)
        if lora is not None:
            self._model = get_peft_model(self._model, build_lora_config(lora, self._model, "CAUSAL_LM"))
        self._adapted = lora is not None
        self._model.eval()  # also in training: no module may behave differently in training and serving
        self.device = device
        self.vocabulary_size, self.hidden_size = self._body.vocabulary_size, self._body.hidden_size

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, all fp32."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def shard(self) -> None:
        """Shard the layers over the processes if FSDP was requested; this replaces the parameters."""
        shard(self._body.base)

    def logprobs(self, examples: Sequence[SftExample], temperature: float = 1.0) -> torch.Tensor:
        """Compute the log-probabilities of the target tokens of all examples.

        Args:
            examples: token ids with their target masks.
            temperature: divisor of the logits.

        Returns:
            Log-probabilities, fp32 `[t]`, in nats, end to end in the order of the examples.
        """
        hidden, targets = self.compute_target_states(examples)
        return -cross_entropy(self.compute_logits(hidden) / temperature, targets, reduction="none")

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, fp32 `[t, V]`, that follow from hidden states `[t, H]`; Gemma 2 bounds them."""
        logits: torch.Tensor = self.head(hidden).float()
        return logits if self._softcap is None else (logits / self._softcap).tanh() * self._softcap

    def compute_target_states(self, examples: Sequence[SftExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the hidden states from which the target tokens of all examples are predicted.

        Args:
            examples: token ids with their target masks.

        Returns:
            Hidden states `[t, H]` in the compute dtype, and the ids of the target tokens, int64 `[t]`.
        """
        # A boundary of 0 and unshared prompts: equal prompts are computed for each example, as separate sequences.
        row = pack(
            [TokenSequence(example.ids, 0, Span(0, len(example.ids))) for example in examples], share_prompts=False
        )
        starts = [pieces[0].start for pieces in row.spans]
        places = [
            start + position
            for start, example in zip(starts, examples, strict=True)
            for position, counts in enumerate(example.target_mask)
            if counts
        ]
        targets = torch.tensor(places, device=self.device)
        # A token is predicted from the one before it; the first of a sequence is never a target.
        return self._body.hidden(row)[0][targets - 1], row.ids[0].to(self.device)[targets]

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the policy is its base, the reference policy."""
        assert self._adapted
        context: AbstractContextManager[None] = self._model.disable_adapter()
        return context

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter alone, in PEFT's format."""
        assert self._adapted
        self._model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # PEFT writes an unfilled template of a model card
        _make_public(directory)

    def load_adapter(self, directory: Path) -> None:
        """Replace the weights of the adapter by those of a saved one of the same shape."""
        assert self._adapted
        set_peft_model_state_dict(self._model, load_peft_weights(str(directory), device="cpu"))

    def save(self, directory: Path) -> None:
        """Write the whole model in transformers' format; an adapter is merged into the weights permanently."""
        if self._adapted:
            self._model, self._adapted = self._model.merge_and_unload(), False
        self._model.save_pretrained(directory)
        _make_public(directory)


def _make_public(directory: Path) -> None:
    """Make the weight files readable for all users; safetensors makes them private to the one that trained."""
    for file in directory.glob("*.safetensors"):
        file.chmod(0o644)


def _check_weights(report: Mapping[str, Any], directory: Path) -> None:
    """Check that the checkpoint has every weight; transformers would initialize missing ones at random.

    Raises:
        ConfigError: weights are missing or have another shape.
    """
    for reason in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report[reason])
        if names:
            raise ConfigError(
                f"base: {directory} is not a complete causal language model: {reason.replace('_', ' ')}: "
                f"{', '.join(names[:3])}{', …' * (len(names) > 3)}"
            )
