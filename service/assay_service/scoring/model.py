"""Hold a base model in memory with its adapters and heads, and turn token sequences into fp32 logits.

The model code is that of transformers. The attention is Assay's own, and so are more layers where the CPU kernels serve
(`kernels/`). One base serves many signals; each signal is an adapter (or none) with a head. Switching adapters changes
the state of the base, so only one thread at a time may use a `RewardModel` (scoring-traps 18). Training runs the same
forward pass with gradients, on torch's operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from assay_service.scoring.adapters import attach
from assay_service.scoring.architectures import ARCHITECTURES, count_token_types, find_first_position, find_position_pad
from assay_service.scoring.base_files import load_base
from assay_service.scoring.checkpoint import Adapter
from assay_service.scoring.compute import Number
from assay_service.scoring.embedding import OwnEmbedding
from assay_service.scoring.head import Head, pool, split_gates
from assay_service.scoring.head_modules import NetworkHead
from assay_service.scoring.kernels.backend import Backend, Kernels
from assay_service.scoring.kernels.build import spell_dtype
from assay_service.scoring.kernels.choose import choose_backend
from assay_service.scoring.kernels.fused import Native
from assay_service.scoring.kernels.numbers import use_numbers
from assay_service.scoring.kernels.row_invariant import make_invariant
from assay_service.scoring.kernels.torch_segments import TorchSegments
from assay_service.scoring.layout import Layout, TokenSequence, pack, select_read_tokens
from assay_service.scoring.likelihood import LikelihoodHead, split_numbers
from assay_service.scoring.quantization import Quantization

AnyHead = Head | NetworkHead | LikelihoodHead


@dataclass(frozen=True, slots=True)
class _Signal:
    """Holds the parts that one signal adds to the base."""

    adapters: tuple[str, ...]  # their names in PEFT, in the order in which they are applied
    head: AnyHead
    embedding: OwnEmbedding | None = None


class RewardModel:
    """A base model that computes the logits of many signals.

    Args:
        base: bare transformers model (no task head) with packed attention.
        device: device to which the base is moved.
        compute: numbers in which the base computes; None takes the dtype of its weights.

    Attributes:
        hidden_size: width of the hidden states.
        vocabulary_size: number of rows of the base's embedding; a signal may have its own (`get_vocabulary_size`).
        architecture: properties of the base's architecture that scoring depends on.
        token_types: number of token types that the base distinguishes.
        kernels: description of the back end that computes the base.
        compute: numbers in which the base computes.
        dtype: dtype of the hidden states.
        shares_prompts: whether the prompt is computed once for all sequences of a forward pass that have it.
    """

    def __init__(self, base: PreTrainedModel, device: torch.device, compute: Number | None = None) -> None:
        self.base: Any = base.to(device).eval()
        self.compute: Number = compute or cast("Number", spell_dtype(base.dtype))
        self.dtype = torch.float32 if self.compute == "int8" else getattr(torch, self.compute)
        self.hidden_size = int(base.config.hidden_size)
        self.vocabulary_size = int(base.get_input_embeddings().num_embeddings)
        config = base.config.to_dict()
        self.architecture, self.device = ARCHITECTURES[base.config.model_type], device
        self._position_pad, self._first_position = find_position_pad(config), find_first_position(config)
        self.token_types = count_token_types(config)
        self._signals: dict[str, _Signal] = {}
        self._output_layer: LikelihoodHead | None = None
        self._attached: dict[tuple[str, ...], tuple[tuple[str, ...], OwnEmbedding | None]] = {}
        self._embedding: OwnEmbedding | None = None  # of the active signal
        self._backend: Backend = TorchSegments()
        self.kernels = Kernels(TorchSegments.name)
        self.shares_prompts = self.architecture.shares_prompts

    @classmethod
    def load(
        cls, directory: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization | None = None
    ) -> "RewardModel":
        """Read a base from its files; arguments and errors are those of `load_base`."""
        return cls(load_base(directory, dtype, device, quantization), device)

    def share_output_layer(self, weight: torch.Tensor | None) -> LikelihoodHead:
        """Return the output layer of the base as a head: the same one for all signals, in the base's dtype.

        Args:
            weight: weight, `[V, H]`; None if the layer is tied to the embedding, whose memory it then shares.
        """
        if self._output_layer is None:
            embedding = self.base.get_input_embeddings().weight
            self._output_layer = LikelihoodHead(embedding if weight is None else weight.to(embedding, copy=True))
        return self._output_layer

    def add_signal(self, name: str, head: AnyHead, *adapters: Adapter) -> None:
        """Add a signal with a trained head. Signals with the same adapters share them.

        Args:
            name: name of the signal, new to this model.
            head: head that reads the logit.
            adapters: adapters, applied to the base in this order; each was trained on the base with those before it.
                None are given for a head on the bare base.

        Raises:
            StartError: an adapter does not fit the base or would change it; the message names a tensor.
        """
        digests = tuple(adapter.sha256 for adapter in adapters)  # files may change, so a path does not identify them
        if digests not in self._attached:
            keys = tuple(f"signal{len(self._signals)}_{number}" for number in range(len(adapters)))
            named = dict(zip(keys, adapters, strict=True))
            embedding = attach(self.base, self.dtype, self.architecture.before_head, named)
            self._attached[digests] = keys, embedding
        keys, embedding = self._attached[digests]
        self._signals[name] = _Signal(keys, head.to(self.device), embedding)
        self.base.eval()
        if isinstance(head, LikelihoodHead):
            head.check_vocabulary(self.get_vocabulary_size(name))

    def add_fresh_signal(self, name: str, head: Head, lora: LoraConfig | None) -> None:
        """Add a signal to be trained: a new adapter on the base, or the whole base if `lora` is None."""
        if lora is None:
            self._signals[name] = _Signal((), head.to(self.device))
            return
        key = f"signal{len(self._signals)}"
        inject_adapter_in_model(lora, self.base, adapter_name=key)
        self.base.eval()  # new modules start in training mode
        for module in self.base.modules():
            if isinstance(module, BaseTunerLayer):  # else it copies its input to fp32, which mixed precision undoes
                module.cast_input_dtype_enabled = False
        self._signals[name] = _Signal((key,), head.to(self.device))
        self._activate(name)

    def add_fresh_head(self, name: str, head: Head, beside: str) -> None:
        """Add a signal to be trained that shares the adapter, or the whole base, of the fresh signal `beside`."""
        self._signals[name] = _Signal(self._signals[beside].adapters, head.to(self.device))

    def get_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the trained parameters of a fresh signal: its LoRA's or the whole base's, and its head's."""
        signal = self._signals[name]
        named = self.base.named_parameters()
        own = [p for n, p in named if not signal.adapters or f".{signal.adapters[0]}." in n]
        return [*own, *signal.head.parameters()]

    def get_head(self, name: str) -> Head:
        """Return the linear head of signal `name`, such as training makes.

        Raises:
            TypeError: the head is not linear.
        """
        head = self._signals[name].head
        if not isinstance(head, Head):
            raise TypeError(f"signal {name!r} has a {type(head).__name__}")
        return head

    def get_adapter_names(self, name: str) -> tuple[str, ...]:
        """Return PEFT's names of the adapters of signal `name`; signals with equal names share a forward pass."""
        return self._signals[name].adapters

    def get_vocabulary_size(self, name: str) -> int:
        """Return the number of token ids that signal `name` embeds: the base's, or those of its own embedding."""
        embedding = self._signals[name].embedding
        return self.vocabulary_size if embedding is None else embedding.vocabulary_size

    def count_own_bytes(self, name: str) -> int:
        """Return the bytes that signal `name` holds besides the base: LoRA, rows of its own embedding, and the head.

        An output layer counts for its first signal only, and not at all if it is the base's embedding.
        """
        signal = self._signals[name]
        first = next(other for other, has in self._signals.items() if has.head is signal.head)
        shared = {p.data_ptr() for p in self.base.parameters()}
        own = [p for p in signal.head.parameters() if first == name and p.data_ptr() not in shared]
        lora = [p for n, p in self.base.named_parameters() if set(n.split(".")) & set(signal.adapters)]
        embedding = 0 if signal.embedding is None else signal.embedding.bytes
        return embedding + sum(int(p.numel()) * int(p.element_size()) for p in [*lora, *own])

    def make_invariant(self) -> None:
        """Make the logit of a sequence independent of its batch; call this after all signals were added.

        Raises:
            NotInvariant: this machine has no way to compute a layer's product so that its rows are independent.
        """
        use_numbers(self.base, self.compute)
        if self.architecture.packed:  # the others run one sequence at a time, which no neighbor can change
            self._backend, self.kernels = choose_backend(self.base, self.dtype)
            self._backend.prepare(self.base)
            make_invariant(self.base, self.dtype)
        for head in {signal.head for signal in self._signals.values()}:
            if isinstance(head, LikelihoodHead):
                head.make_invariant(self.dtype, native=isinstance(self._backend, Native))
            else:
                make_invariant(head, torch.float32)

    def pooled(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """Return the pooled hidden states that heads read with the adapters of signal `name`, fp32 `[N, H]`.

        There is one for each of `TokenSequence.reads`, of one sequence after the other. Where heads read one span of
        each sequence, `N` is the number of sequences.
        """
        self._activate(name)
        if not self.architecture.packed:
            return torch.cat([self._pool_alone(sequence) for sequence in sequences])
        # In an encoder prompt tokens also see the completion, so its hidden states cannot be shared.
        row = pack(sequences, share_prompts=self.architecture.causal, uncounted_id=self._position_pad)
        if not self._backend.reads_subset:
            return pool(self.hidden(row), row.spans)
        read, spans = select_read_tokens(row)
        return pool(self.hidden(row, read=read), spans)

    def hidden(self, row: Layout, **read: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of a packed row under the active adapters, `[1, T, H]` in `dtype`.

        Args:
            row: packed row of `T` tokens.
            read: row positions that are needed, int64 `[R]`, as the keyword `read`; only for a back end with
                `reads_subset`. The result is then `[1, R, H]`.
        """
        output = self.base(
            **self._build_inputs(row.ids.to(self.device)),
            position_ids=row.positions.to(self.device) + self._first_position,
            segments=self._backend.segments(row),
            masks={},
            **read,
            **self._build_types(row.types),
            **self._build_cache_option(),
        )
        return torch.as_tensor(output.last_hidden_state)

    def logits(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """Return the logits of signal `name`, fp32 `[n]`, in the order of `sequences`.

        They may be infinite or NaN; the caller checks them. A signal that scores steps has `n` logits for `n` steps.
        """
        (outputs,) = self.outputs(sequences, (name,))
        return outputs if outputs.dim() == 1 else outputs[:, 0]

    def outputs(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[torch.Tensor]:
        """Return what the heads of several signals give by one forward pass, for each signal.

        Args:
            sequences: sequences to score.
            names: signals with the same adapters.

        Returns:
            For each signal the result of its head, fp32 `[S]` or `[S, 2]`, where `S` counts
            `TokenSequence.score_reads` of all sequences.
        """
        scores, gates = split_gates(self.pooled(sequences, names[0]), sequences)
        targets = [target for sequence in sequences for target in sequence.targets]
        beside = torch.tensor(targets, dtype=torch.int64) if targets else gates
        heads = [self._signals[name].head for name in names]
        found = {head: torch.as_tensor(head(scores, beside)) for head in dict.fromkeys(heads)}
        return [found[head] for head in heads]

    def read(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[list[tuple[float, ...]]]:
        """Return what `outputs` returns as numbers, for each signal and sequence; see `split_numbers`."""
        computed = self.outputs(sequences, names)
        # One copy from the device for each signal; a slice for each sequence would be one copy each.
        return [split_numbers(output.reshape(len(output), -1).tolist(), sequences) for output in computed]

    def _pool_alone(self, sequence: TokenSequence) -> torch.Tensor:
        """Run one sequence by itself, for architectures whose attention cannot be packed; fp32 `[R, H]`."""
        ids = torch.tensor([sequence.ids], device=self.device)
        types = self._build_types(torch.tensor([sequence.types]))
        inputs = self._build_inputs(ids) | types | self._build_cache_option()
        return pool(self.base(**inputs).last_hidden_state, tuple((span,) for span in sequence.reads))

    def _build_types(self, types: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the token types as an argument of the base; none where the base does not distinguish them."""
        return {"token_type_ids": types.to(self.device)} if self.token_types > 1 else {}

    def _build_inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the input arguments of the base: token ids, or vectors from the active signal's own embedding."""
        return {"input_ids": ids} if self._embedding is None else {"inputs_embeds": self._embedding(ids)}

    def _build_cache_option(self) -> dict[str, Any]:
        """Return the argument by which a decoder keeps no cache; encoders do not know it."""
        return {"use_cache": False} if self.architecture.causal else {}

    def _activate(self, name: str) -> None:
        """Select the adapters and the embedding of signal `name` for the next forward pass."""
        signal = self._signals[name]
        self._embedding = signal.embedding
        for module in self.base.modules():
            if hasattr(module, "lora_A"):
                module.enable_adapters(bool(signal.adapters))
                # Setting adapters walks through all parameters, so it is done only on a change.
                if signal.adapters and module.active_adapters != list(signal.adapters):
                    module.set_adapter(list(signal.adapters))
