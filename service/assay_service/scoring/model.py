"""A base in memory with its adapters and heads: sequences in, fp32 logits out.

The model code is transformers'; its attention is ours, and where kernels serve, more of its layers (`fused.py`). One
base serves many signals, each an adapter (or none) with a head. Switching adapters changes the base's state, so a
`RewardModel` belongs to one thread at a time (scoring-traps 18). Training uses the same forward, with gradients, on
torch's operators.
"""

import warnings
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from assay_service.errors import StartError
from assay_service.scoring.architectures import ARCHITECTURES, ROPE_TYPES, architecture_of, first_position
from assay_service.scoring.attention import NAME as ATTENTION
from assay_service.scoring.checkpoint import Adapter
from assay_service.scoring.files import ADAPTER_CONFIG, read_config, weight_files
from assay_service.scoring.fused import fuse, segment_table
from assay_service.scoring.head import Head, pool
from assay_service.scoring.layout import Layout, Sequence, narrowed, pack
from assay_service.scoring.lora import bare_tensors, lora_config
from assay_service.scoring.native import missing
from assay_service.scoring.rows import make_invariant
from assay_service.scoring.varlen import NAME as VARLEN
from assay_service.scoring.varlen import gather, usable

# Tensors of a checkpoint that a bare base does not use: heads, language-model outputs, buffers of old versions.
_UNUSED = (
    *("score.", "classifier.", "v_head.", "value_head.", "lm_head.", "embed_out.", "cls.", "pooler."),
    *("lm_predictions.", "mask_predictions."),
    *("embeddings.position_ids", "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)


@dataclass(frozen=True, slots=True)
class _Signal:
    adapter: str | None
    head: Head


class RewardModel:
    """One base, many signals.

    Args:
        base: a bare transformers model (no task head) with packed attention.
        device: where it is.

    Attributes:
        hidden_size: width of the hidden states.
        vocabulary_size: rows of the embedding.
        architecture: what scoring must know of the base.
        kernels: what the base computes with: `assay` (see `native.py`), or torch's operators, and why.
    """

    def __init__(self, base: PreTrainedModel, device: torch.device) -> None:
        self.base: Any = base.to(device).eval()
        self.hidden_size = int(base.config.hidden_size)
        self.vocabulary_size = int(base.get_input_embeddings().num_embeddings)
        self.architecture = ARCHITECTURES[base.config.model_type]
        self.device = device
        self._first_position = first_position(base.config.to_dict())
        self._signals: dict[str, _Signal] = {}
        self.kernels = "torch"
        self._segments: Callable[[Layout], Any] = lambda row: row.segments
        self._narrows = False

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "RewardModel":
        """Reads a base from safetensors files.

        Args:
            directory: a checkpoint with `config.json` and weights; heads in it are not read here.
            dtype: what the base computes in; heads stay fp32.
            device: where to put it.

        Raises:
            StartError: the architecture is not on the list, or a tensor is missing, unknown or of the wrong shape.
        """
        config = read_config(directory)
        architecture = architecture_of(config, directory)
        weight_files(directory)
        if (directory / ADAPTER_CONFIG).is_file():
            raise StartError(f"{directory}: a base with an {ADAPTER_CONFIG} in it; declare the adapter as `adapter`")
        options = {"add_pooling_layer": False} if config["model_type"] in ("bert", "roberta") else {}
        # Quiet: its report of unused tensors is replaced by ours, which is an error or nothing.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        base, report = AutoModel.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation=ATTENTION if architecture.packed else "eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        _check_report(report, directory, f"{base.base_model_prefix}.")
        rope = (getattr(base.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in ROPE_TYPES:
            raise StartError(
                f"{directory}: rope_type {rope!r} is not served; served are {', '.join(sorted(ROPE_TYPES))}"
            )
        return cls(base, device)

    def add_signal(self, name: str, head: Head, adapter: Adapter | None = None) -> None:
        """Adds a signal.

        Args:
            name: its name, new to this model.
            head: reads the logit.
            adapter: LoRA weights to load onto the base; None reads the bare base.

        Raises:
            StartError: the adapter does not fit the base, naming a tensor.
        """
        key = None if adapter is None else f"signal{len(self._signals)}"
        if adapter is not None and key is not None:
            self._load_adapter(adapter, key)
        self._signals[name] = _Signal(key, head.to(self.device))
        self.base.eval()

    def add_fresh_signal(self, name: str, head: Head, lora: LoraConfig | None) -> None:
        """Adds a signal to be trained, with an adapter, or for None with the whole base."""
        if lora is None:
            self._signals[name] = _Signal(None, head.to(self.device))
            return
        key = f"signal{len(self._signals)}"
        inject_adapter_in_model(lora, self.base, adapter_name=key)
        self.base.eval()  # new modules start in training mode
        for module in self.base.modules():
            if isinstance(module, BaseTunerLayer):  # in mixed precision it would copy its input to fp32 for nothing
                module.cast_input_dtype_enabled = False
        self._signals[name] = _Signal(key, head.to(self.device))
        self._activate(key)

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """What is trained of a fresh signal: LoRA weights, or the whole base's, and the head's."""
        signal = self._signals[name]
        of_base = self.base.named_parameters()
        mine = [p for n, p in of_base if signal.adapter is None or f".{signal.adapter}." in n]
        return [*mine, *signal.head.parameters()]

    def adapter_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The LoRA and head tensors of a signal, under the names of PEFT's file format."""
        signal = self._signals[name]
        prefix = f"base_model.model.{self.base.base_model_prefix}."
        tensors = {
            prefix + parameter_name.replace(f".{signal.adapter}.", "."): parameter
            for parameter_name, parameter in self.base.named_parameters()
            if f".{signal.adapter}." in parameter_name
        }
        head = {f"base_model.model.{self.architecture.head}.{n}": p for n, p in signal.head.named_parameters()}
        return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (tensors | head).items()}

    def whole_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The base's tensors and the head's of a signal without adapter, under the names of transformers' format."""
        prefix = f"{self.base.base_model_prefix}."
        base = {prefix + n: p for n, p in self.base.state_dict().items()}
        head = {f"{self.architecture.head}.{n}": p for n, p in self._signals[name].head.named_parameters()}
        return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (base | head).items()}

    def make_invariant(self) -> None:
        """Makes the logit of a sequence independent of what it is computed with; after all signals were added.

        Raises:
            NotInvariant: this machine has no way of computing a layer's product like that.
        """
        if self.architecture.packed:  # the others run alone, and alone is always the same
            head_size = _head_size(self.base.config)
            reason = "they need heads of even size" if head_size % 2 else missing(self.base.dtype, self.device)
            if reason is None:
                self._narrows = fuse(self.base)
                self.kernels, self._segments = "assay", lambda row: segment_table(row.segments)
            elif usable(self.base.dtype, self.device, head_size):
                self.base.set_attn_implementation(VARLEN)
                self.kernels, self._segments = "torch, varlen_attn", lambda row: gather(row, self.device)
            else:
                self.kernels = f"torch; no others: {reason}"
            make_invariant(self.base)
        for signal in self._signals.values():
            make_invariant(signal.head)

    def pooled(self, sequences: Seq[Sequence], name: str) -> torch.Tensor:
        """What the head of signal `name` reads: fp32 `[n, H]`, in the order of `sequences`."""
        self._activate(self._signals[name].adapter)
        if not self.architecture.packed:
            return torch.cat([self._pooled_alone(sequence) for sequence in sequences])
        row = pack(sequences, share_prompts=self.architecture.causal)
        if not self._narrows:
            return pool(self.hidden(row), row.spans)
        read, spans = narrowed(row)
        return pool(self.hidden(row, read=read), spans)

    def hidden(self, row: Layout, **read: torch.Tensor) -> torch.Tensor:
        """The last hidden states of a packed row, `[1, T, H]`, with whatever adapter is active.

        Args:
            row: the row.
            read: where the kernels' layers serve, `read`: the tokens that are asked for, int64 `[R]`; then `[1, R, H]`.
        """
        output = self.base(
            input_ids=row.ids.to(self.device),
            position_ids=row.positions.to(self.device) + self._first_position,
            segments=self._segments(row),
            masks={},
            **read,
            **({"use_cache": False} if self.architecture.causal else {}),
        )
        return torch.as_tensor(output.last_hidden_state)

    def logits(self, sequences: Seq[Sequence], name: str) -> torch.Tensor:
        """The logits of signal `name`: fp32 `[n]`, in order. They may be non-finite; callers check."""
        return torch.as_tensor(self._signals[name].head(self.pooled(sequences, name)))

    def _pooled_alone(self, sequence: Sequence) -> torch.Tensor:
        ids = torch.tensor([sequence.ids], device=self.device)
        return pool(self.base(input_ids=ids).last_hidden_state, ((sequence.score,),))

    def _activate(self, adapter: str | None) -> None:
        """Makes `adapter`, or the bare base, what the next forward computes."""
        for module in self.base.modules():
            if hasattr(module, "lora_A"):
                module.enable_adapters(adapter is not None)
                if adapter is not None and module.active_adapters != [adapter]:
                    module.set_adapter(adapter)

    def _load_adapter(self, adapter: Adapter, key: str) -> None:
        prefix = self.base.base_model_prefix
        tensors = bare_tensors(adapter, prefix)
        config = lora_config(adapter, prefix)
        try:
            with warnings.catch_warnings():
                # Several adapters on one base is what we mean.
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                inject_adapter_in_model(config, self.base, adapter_name=key)
            result = set_peft_model_state_dict(self.base, tensors, adapter_name=key)
        except (ValueError, RuntimeError, KeyError) as error:
            raise StartError(f"{adapter.directory}: the adapter does not fit its base: {error}") from error
        unknown = sorted(result.unexpected_keys)
        missing = sorted(name for name in result.missing_keys if f".{key}" in name)
        if unknown or missing:
            raise StartError(f"{adapter.directory}: the adapter does not fit its base at {(unknown + missing)[0]}")


def _head_size(config: Any) -> int:  # noqa: ANN401 - transformers' configurations
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _check_report(report: Mapping[str, Any], directory: Path, prefix: str) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise StartError(f"{directory}: tensor {missing[0]} is missing, so it would be random ({len(missing)} missing)")
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if mismatched:
        raise StartError(f"{directory}: tensor of the wrong shape: {mismatched[0]}")
    names = (name.removeprefix(prefix) for name in report["unexpected_keys"])
    unknown = sorted(name for name in names if not name.startswith(_UNUSED) and not name.endswith(_UNUSED))
    if unknown:
        raise StartError(f"{directory}: tensor {unknown[0]} has no place in the architecture ({len(unknown)} unknown)")
