"""Collect the trained tensors of signals under the names of the file formats of PEFT and transformers."""

from collections.abc import Sequence

import torch

from assay_service.scoring.model import RewardModel


def collect_adapter_tensors(model: RewardModel, *names: str) -> dict[str, torch.Tensor]:
    """Return the LoRA and head tensors of signals, fp32 on the CPU, under the names of PEFT's file format.

    The tensors have the shapes of PEFT's file: `[r, in]` and `[out, r]` for LoRA, `[K, H]` for the weight of `K` heads.

    Args:
        model: model that holds the signals.
        names: signals with the same adapter; the rows of the head have their order.
    """
    (adapter,) = model.get_adapter_names(names[0])
    prefix = f"base_model.model.{model.base.base_model_prefix}."
    tensors = {
        prefix + parameter_name.replace(f".{adapter}.", "."): parameter
        for parameter_name, parameter in model.base.named_parameters()
        if f".{adapter}." in parameter_name
    }
    head = {f"base_model.model.{model.architecture.head}.{n}": p for n, p in _join_heads(model, names).items()}
    return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (tensors | head).items()}


def collect_whole_tensors(model: RewardModel, *names: str) -> dict[str, torch.Tensor]:
    """Return base and head tensors of signals without adapter, fp32 on the CPU, under transformers' names.

    The tensors have the shapes of transformers' file; the weight of `K` heads is `[K, H]`.
    """
    prefix = f"{model.base.base_model_prefix}."
    base = {prefix + n: p for n, p in model.base.state_dict().items()}
    head = {f"{model.architecture.head}.{n}": p for n, p in _join_heads(model, names).items()}
    return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (base | head).items()}


def _join_heads(model: RewardModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return weight, `[K, H]`, and bias, `[K]`, of the heads of `K` signals as one head with `K` outputs."""
    heads = [dict(model.get_head(name).named_parameters()) for name in names]
    return {part: torch.cat([head[part] for head in heads]) for part in heads[0]}
