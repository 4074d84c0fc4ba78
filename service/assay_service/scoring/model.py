"""A base in memory with its adapters and heads: sequences in, fp32 logits out.

The model code is transformers'; its attention is ours, and where kernels serve, more of its layers (`kernels/`). One
base serves many signals, each an adapter (or none) with a head. Switching adapters changes the base's state, so a
`RewardModel` belongs to one thread at a time (scoring-traps 18). Training uses the same forward, with gradients, on
torch's operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from assay_service.errors import StartError
from assay_service.scoring import names
from assay_service.scoring.adapters import attach
from assay_service.scoring.architectures import ARCHITECTURES, ROPE_TYPES, architecture_of, first_position, token_types
from assay_service.scoring.checkpoint import Adapter
from assay_service.scoring.embedding import OwnEmbedding
from assay_service.scoring.files import ADAPTER_CONFIG, read_config, weight_files
from assay_service.scoring.head import Head, pool
from assay_service.scoring.kernels.backend import Backend, Kernels
from assay_service.scoring.kernels.choose import choose_backend
from assay_service.scoring.kernels.row_invariant import make_invariant
from assay_service.scoring.kernels.torch_segments import NAME as ATTENTION
from assay_service.scoring.kernels.torch_segments import TorchSegments
from assay_service.scoring.layout import Layout, TokenSequence, narrowed, pack


@dataclass(frozen=True, slots=True)
class _Signal:
    adapters: tuple[str, ...]  # names that PEFT knows them by, in the order in which they are applied
    head: Head
    embedding: OwnEmbedding | None = None


class RewardModel:
    """One base, many signals.

    Args:
        base: a bare transformers model (no task head) with packed attention.
        device: where it is.

    Attributes:
        hidden_size: width of the hidden states.
        vocabulary_size: rows of the base's embedding; a signal may have its own (`vocabulary_size_of`).
        architecture: what scoring must know of the base.
        token_types: how many token types the base tells apart.
        kernels: the back end that computes the base.
    """

    def __init__(self, base: PreTrainedModel, device: torch.device) -> None:
        self.base: Any = base.to(device).eval()
        self.hidden_size = int(base.config.hidden_size)
        self.vocabulary_size = int(base.get_input_embeddings().num_embeddings)
        self.architecture = ARCHITECTURES[base.config.model_type]
        self.device = device
        self._first_position = first_position(base.config.to_dict())
        self.token_types = token_types(base.config.to_dict())
        self._signals: dict[str, _Signal] = {}
        self._embedding: OwnEmbedding | None = None  # of the active signal
        self._backend: Backend = TorchSegments()
        self.kernels = Kernels(TorchSegments.name)

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
        tensors = names.shapes_of(weight_files(directory))
        names.check_unwrapping(tensors, directory)
        if (directory / ADAPTER_CONFIG).is_file():
            raise StartError(f"{directory}: a base with an {ADAPTER_CONFIG} in it; declare the adapter as `adapter`")
        options: dict[str, Any] = {"add_pooling_layer": False} if config["model_type"] in ("bert", "roberta") else {}
        if any(name != names.unwrapped(name) for name in tensors):
            options["key_mapping"] = {names.WRAPPER.pattern: ""}
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
        names.check_loaded(report, directory, f"{base.base_model_prefix}.", tensors, config.get("value_head_prefix"))
        rope = (getattr(base.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in ROPE_TYPES:
            raise StartError(
                f"{directory}: rope_type {rope!r} is not served; served are {', '.join(sorted(ROPE_TYPES))}"
            )
        return cls(base, device)

    def add_signal(self, name: str, head: Head, *adapters: Adapter) -> None:
        """Add a signal.

        Args:
            name: its name, new to this model.
            head: reads the logit.
            adapters: are put on the base in this order, each trained on what is there before it; none reads the bare
                base.

        Raises:
            StartError: an adapter does not fit the base or would change it, naming a tensor.
        """
        keys = tuple(f"signal{len(self._signals)}_{number}" for number in range(len(adapters)))
        embedding = attach(self.base, self.architecture.dense, dict(zip(keys, adapters, strict=True)))
        self._signals[name] = _Signal(keys, head.to(self.device), embedding)
        self.base.eval()

    def add_fresh_signal(self, name: str, head: Head, lora: LoraConfig | None) -> None:
        """Adds a signal to be trained, with an adapter, or for None with the whole base."""
        if lora is None:
            self._signals[name] = _Signal((), head.to(self.device))
            return
        key = f"signal{len(self._signals)}"
        inject_adapter_in_model(lora, self.base, adapter_name=key)
        self.base.eval()  # new modules start in training mode
        for module in self.base.modules():
            if isinstance(module, BaseTunerLayer):  # in mixed precision it would copy its input to fp32 for nothing
                module.cast_input_dtype_enabled = False
        self._signals[name] = _Signal((key,), head.to(self.device))
        self._activate(name)

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """What is trained of a fresh signal: LoRA weights, or the whole base's, and the head's."""
        signal = self._signals[name]
        of_base = self.base.named_parameters()
        mine = [p for n, p in of_base if not signal.adapters or f".{signal.adapters[0]}." in n]
        return [*mine, *signal.head.parameters()]

    def adapter_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The LoRA and head tensors of a signal, under the names of PEFT's file format."""
        signal = self._signals[name]
        prefix = f"base_model.model.{self.base.base_model_prefix}."
        tensors = {
            prefix + parameter_name.replace(f".{signal.adapters[0]}.", "."): parameter
            for parameter_name, parameter in self.base.named_parameters()
            if f".{signal.adapters[0]}." in parameter_name
        }
        head = {f"base_model.model.{self.architecture.head}.{n}": p for n, p in signal.head.named_parameters()}
        return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (tensors | head).items()}

    def whole_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The base's tensors and the head's of a signal without adapter, under the names of transformers' format."""
        prefix = f"{self.base.base_model_prefix}."
        base = {prefix + n: p for n, p in self.base.state_dict().items()}
        head = {f"{self.architecture.head}.{n}": p for n, p in self._signals[name].head.named_parameters()}
        return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (base | head).items()}

    def vocabulary_size_of(self, name: str) -> int:
        """Return how many token ids signal `name` embeds: the base's, or those of its own embedding."""
        embedding = self._signals[name].embedding
        return self.vocabulary_size if embedding is None else embedding.vocabulary_size

    def own_bytes(self, name: str) -> int:
        """Return the bytes that signal `name` holds besides the base: LoRA, embedded tokens of its own, the head."""
        signal = self._signals[name]
        lora = [p for n, p in self.base.named_parameters() if set(n.split(".")) & set(signal.adapters)]
        held = [*lora, *signal.head.parameters()]
        embedding = 0 if signal.embedding is None else signal.embedding.bytes
        return embedding + sum(int(p.numel()) * int(p.element_size()) for p in held)

    def make_invariant(self) -> None:
        """Makes the logit of a sequence independent of what it is computed with; after all signals were added.

        Raises:
            NotInvariant: this machine has no way of computing a layer's product like that.
        """
        if self.architecture.packed:  # the others run alone, and alone is always the same
            self._backend, self.kernels = choose_backend(self.base)
            self._backend.prepare(self.base)
            make_invariant(self.base)
        for signal in self._signals.values():
            make_invariant(signal.head)

    def pooled(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """What the head of signal `name` reads: fp32 `[n, H]`, in the order of `sequences`."""
        self._activate(name)
        if not self.architecture.packed:
            return torch.cat([self._pooled_alone(sequence) for sequence in sequences])
        row = pack(sequences, share_prompts=self.architecture.causal)
        if not self._backend.reads_subset:
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
            **self._inputs(row.ids.to(self.device)),
            position_ids=row.positions.to(self.device) + self._first_position,
            segments=self._backend.segments(row),
            masks={},
            **read,
            **self._types(row.types),
            **({"use_cache": False} if self.architecture.causal else {}),
        )
        return torch.as_tensor(output.last_hidden_state)

    def logits(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """The logits of signal `name`: fp32 `[n]`, in order. They may be non-finite; callers check."""
        return torch.as_tensor(self._signals[name].head(self.pooled(sequences, name)))

    def _pooled_alone(self, sequence: TokenSequence) -> torch.Tensor:
        ids = torch.tensor([sequence.ids], device=self.device)
        types = self._types(torch.tensor([sequence.types]))
        return pool(self.base(**self._inputs(ids), **types).last_hidden_state, ((sequence.score,),))

    def _types(self, types: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": types.to(self.device)} if self.token_types > 1 else {}

    def _inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the base is called with: ids, or tokens embedded by the active signal's own embedding."""
        return {"input_ids": ids} if self._embedding is None else {"inputs_embeds": self._embedding(ids)}

    def _activate(self, name: str) -> None:
        """Make what signal `name` reads the next forward's: its adapters, or the bare base, and its embedding."""
        signal = self._signals[name]
        self._embedding = signal.embedding
        for module in self.base.modules():
            if hasattr(module, "lora_A"):
                module.enable_adapters(bool(signal.adapters))
                if signal.adapters and module.active_adapters != list(signal.adapters):
                    module.set_adapter(list(signal.adapters))
