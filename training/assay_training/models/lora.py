"""The adapter of a configuration, for PEFT."""

from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from assay_training.config.base import ConfigError
from assay_training.config.model import Lora


def lora_config(lora: Lora, model: Any, task_type: str | None = None) -> LoraConfig:  # noqa: ANN401 - transformers
    """Return PEFT's configuration, without dropout: a row is the same function in training and in serving.

    With `lora.layers` the adapted modules are listed one by one under their whole names. PEFT's own
    `layers_to_transform` outputs for the index behind a prefix, which the names of a bare decoder do not have.

    Args:
        lora: the run's.
        model: a model of transformers, bare or with an output layer.
        task_type: of PEFT.

    Raises:
        ConfigError: `model` has no linear of a name, or fewer layers; PEFT adapts what it finds and is silent. Or the
            linear is the output layer, which is applied by itself, without an adapter.
    """
    layers = None if lora.layers is None else _layers(model, lora.layers)
    head = model.get_output_embeddings()
    wanted: list[str] = []
    for target in lora.target_modules:
        found = [name for name, module in _linears(model) if f".{name}".endswith(f".{target}")]
        if layers is not None:
            found = [name for name in found if any(name.startswith(layer) for layer in layers)]
        if not found:
            where = "" if lora.layers is None else f" in the layers {', '.join(map(str, lora.layers))}"
            raise ConfigError(f"lora.target_modules: the base has no linear {target!r}{where}{_hint(model)}")
        if any(model.get_submodule(name) is head for name in found):
            raise ConfigError(f"lora.target_modules: {target!r} is the output layer, which gets no adapter")
        wanted += found
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules if lora.layers is None else sorted(set(wanted)),
        task_type=task_type,
    )


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def _layers(model: Any, indices: Sequence[int]) -> list[str]:  # noqa: ANN401 - transformers
    """Return what the names of the modules in these layers begin with: `encoder.layer.3.`, `layers.3.`."""
    count = model.config.num_hidden_layers
    if max(indices) >= count:
        raise ConfigError(f"lora.layers: the base has no layer {max(indices)}; its {count} layers count from 0")
    of = next(
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    )
    return [f"{of}.{index}." for index in indices]


def _hint(model: nn.Module) -> str:
    return f"; it has {', '.join(sorted({name.rpartition('.')[2] for name, _ in _linears(model)}))}"
