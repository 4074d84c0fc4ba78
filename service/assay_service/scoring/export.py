"""Collect the trained tensors of a signal under the names of the file formats of PEFT and transformers."""

import torch

from assay_service.scoring.model import RewardModel


def collect_adapter_tensors(model: RewardModel, name: str) -> dict[str, torch.Tensor]:
    """Return the LoRA and head tensors of a signal, fp32 on the CPU, under the names of PEFT's file format.

    The tensors have the shapes of PEFT's file: `[r, in]` and `[out, r]` for LoRA, `[1, H]` for the head's weight.

    Args:
        model: model that holds the signal.
        name: signal with one adapter.
    """
    (adapter,) = model.get_adapter_names(name)
    prefix = f"base_model.model.{model.base.base_model_prefix}."
    tensors = {
        prefix + parameter_name.replace(f".{adapter}.", "."): parameter
        for parameter_name, parameter in model.base.named_parameters()
        if f".{adapter}." in parameter_name
    }
    head = {f"base_model.model.{model.architecture.head}.{n}": p for n, p in model.get_head(name).named_parameters()}
    return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (tensors | head).items()}


def collect_whole_tensors(model: RewardModel, name: str) -> dict[str, torch.Tensor]:
    """Return base and head tensors of a signal without adapter, fp32 on the CPU, under transformers' names.

    The tensors have the shapes of transformers' file; the head's weight is `[1, H]`.
    """
    prefix = f"{model.base.base_model_prefix}."
    base = {prefix + n: p for n, p in model.base.state_dict().items()}
    head = {f"{model.architecture.head}.{n}": p for n, p in model.get_head(name).named_parameters()}
    return {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in (base | head).items()}
