"""Read the base of a reward model from safetensors files, as transformers' bare model of its architecture."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from assay_service.errors import StartError
from assay_service.scoring import names
from assay_service.scoring.architectures import check_ropes, read_architecture
from assay_service.scoring.files import ADAPTER_CONFIG, list_weight_files, read_config
from assay_service.scoring.head_layouts import recognize_layout
from assay_service.scoring.kernels.torch_segments import NAME as ATTENTION

# Types whose base has a pooler that can be left out.
_POOLERS = ("bert", "roberta", "xlm-roberta")


def load_base(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a base without its head, with packed attention where the architecture has it.

    Args:
        directory: checkpoint with `config.json` and weights; a head in it is not read here.
        dtype: dtype in which the base computes.
        device: device on which the base will be placed. On `meta` no weight is read: the errors below come from the
            headers of the files, and the model has names and shapes only. That needs accelerate.

    Raises:
        StartError: the architecture is not served, or a tensor is missing, unknown or of the wrong shape.
    """
    config = read_config(directory)
    architecture = read_architecture(config, directory)
    tensors = names.read_shapes(list_weight_files(directory))
    names.check_unwrapping(tensors, directory)
    if (directory / ADAPTER_CONFIG).is_file():
        raise StartError(
            f"{directory}: declared as `base`, but it holds an {ADAPTER_CONFIG}; declare the adapter as `adapter`"
        )
    # A pooler counts as part of the head, which is read elsewhere, so the base is loaded without it.
    options: dict[str, Any] = {"add_pooling_layer": False} if config["model_type"] in _POOLERS else {}
    if any(name != names.unwrap_name(name) for name in tensors):
        options["key_mapping"] = {names.WRAPPER.pattern: ""}
    if device.type == "meta":  # otherwise transformers would read the weights before `to` drops them
        options["device_map"] = device
    # Transformers only warns of missing and unused tensors; `check_loaded` below makes them errors.
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
    layout = recognize_layout(tensors, config, directory)
    unused = frozenset(() if layout is None else layout.tensors)
    prefix = f"{base.base_model_prefix}."
    names.check_loaded(report, directory, prefix, tensors, config.get("value_head_prefix"), unused)
    check_ropes(getattr(base.config, "rope_parameters", None), directory)
    return base
