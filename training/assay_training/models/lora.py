"""Translate the adapter of a configuration into PEFT's, after checking that the base has its modules ([LoRA])."""

from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from assay_training.config.base import ConfigError
from assay_training.config.model import Lora

# Names that PEFT reads as the parameters of experts and their router where a base has them.
_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj"})


def build_lora_config(lora: Lora, model: Any, task_type: str | None = None) -> LoraConfig:  # noqa: ANN401 - transformers
    """Return PEFT's configuration of an adapter, without dropout, so that training and serving compute the same.

    With `lora.layers` the adapted modules are listed by their full names. PEFT's own `layers_to_transform` expects a
    prefix before the layer index, which the module names of a bare decoder do not have.

    Args:
        lora: adapter of the run's configuration.
        model: a model of transformers, bare or with an output layer.
        task_type: PEFT's task type, or None.

    Raises:
        ConfigError: `model` has no linear layer of a configured name, or fewer layers than `lora.layers` needs. PEFT
            itself would silently adapt only the names that exist. Or a name is the output layer, which is applied
            separately, without an adapter. Or it belongs to experts.
    """
    _check_experts(lora.target_modules, model)
    layers = None if lora.layers is None else _find_layer_prefixes(model, lora.layers)
    head = model.get_output_embeddings()
    wanted: list[str] = []
    for target in lora.target_modules:
        # With the dots only whole parts of a name are compared, as PEFT does: `proj` is not `o_proj`.
        names = [name for name, module in _find_linears(model) if f".{name}".endswith(f".{target}")]
        if layers is not None:
            names = [name for name in names if any(name.startswith(layer) for layer in layers)]
        if not names:
            where = "" if lora.layers is None else f" in the layers {', '.join(map(str, lora.layers))}"
            raise ConfigError(
                f"lora.target_modules: the base has no linear layer {target!r}{where}{_list_linears(model)}"
            )
        if any(model.get_submodule(name) is head for name in names):
            raise ConfigError(f"lora.target_modules: {target!r} is the output layer, which cannot have an adapter")
        wanted += names
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules if lora.layers is None else sorted(set(wanted)),
        task_type=task_type,
    )


def _check_experts(targets: Sequence[str], model: nn.Module) -> None:
    """Refuse layers of experts: PEFT would adapt the experts of all layers, and the service refuses such an adapter."""
    if not any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters()):
        return
    for target in targets:
        if target.rpartition(".")[2] in _EXPERTS:
            raise ConfigError(
                f"lora.target_modules: {target!r} belongs to the experts of this base, and adapters of experts are not "
                "served; adapt its attention (q_proj, k_proj, v_proj, o_proj), or train all weights"
            )


def _find_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a model with their full names."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def _find_layer_prefixes(model: Any, indices: Sequence[int]) -> list[str]:  # noqa: ANN401 - transformers
    """Return the prefixes of the module names in these layers, such as `encoder.layer.3.` or `layers.3.`."""
    count = model.config.num_hidden_layers
    if max(indices) >= count:
        raise ConfigError(f"lora.layers: the base has no layer {max(indices)}; it has {count} layers, counted from 0")
    name, _ = find_layers(model)
    return [f"{name}.{index}." for index in indices]


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:  # noqa: ANN401 - transformers
    """Return the name of the list of a model's layers, such as `encoder.layer` or `layers`, and the list."""
    count = model.config.num_hidden_layers
    # Architectures name the list differently; its length identifies it.
    return next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )


def _list_linears(model: nn.Module) -> str:
    """Return the end of an error message: the names of the linear layers that the base has."""
    return f"; it has {', '.join(sorted({name.rpartition('.')[2] for name, _ in _find_linears(model)}))}"
