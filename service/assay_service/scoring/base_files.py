"""Read the base of a reward model from its files, as transformers' bare model of its architecture."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from assay_service.errors import StartError
from assay_service.scoring import names
from assay_service.scoring.architectures import check_ropes, read_architecture
from assay_service.scoring.dequantize import read_quantized_tensors
from assay_service.scoring.files import ADAPTER_CONFIG, list_weight_files, read_config
from assay_service.scoring.gguf_files import read_gguf_tensors
from assay_service.scoring.head_layouts import recognize_layout
from assay_service.scoring.kernels.torch_segments import NAME as ATTENTION
from assay_service.scoring.lazy_tensor import LazyTensor
from assay_service.scoring.own_memory import copy_out_of_files
from assay_service.scoring.quantization import CONFIG_KEY, Quantization, check_declared

# Types whose base has a pooler that need not be built.
_POOLERS = ("bert", "roberta", "xlm-roberta")


def load_base(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    alone: AbstractContextManager[object] | None = None,
) -> PreTrainedModel:
    """Return a base without its head, with packed attention where the architecture has it.

    Args:
        directory: checkpoint with `config.json` and weights; a head in it is not read here.
        dtype: dtype in which the base computes.
        device: device on which the base will be placed. On `meta` no weight is read: the errors below come from the
            headers of the files, and the model has names and shapes only. That needs accelerate.
        quantization: declared format of quantized weights, which become plain weights of `dtype` here; None for plain
            weights.
        alone: context in which nothing else computes. transformers constructs the model within it, for which it changes
            torch's default dtype in the whole process; None where nothing else computes anyway.

    Raises:
        StartError: the architecture is not served, or a tensor is missing, unknown or of the wrong shape.
    """
    config = read_config(directory)
    architecture = read_architecture(config, directory)
    check_declared(config, None if quantization is None else quantization.method, directory)
    lazy = None if quantization is None else _read_lazily(directory, config, quantization)
    shapes = names.read_shapes(list_weight_files(directory)) if lazy is None else {n: t.shape for n, t in lazy.items()}
    names.check_unwrapping(shapes, directory)
    if (directory / ADAPTER_CONFIG).is_file():
        raise StartError(
            f"{directory}: declared as `base`, but it holds an {ADAPTER_CONFIG}; declare the adapter as `adapter`"
        )
    # A pooler counts as part of the head, which is read elsewhere, so the base is loaded without it.
    options: dict[str, Any] = {"add_pooling_layer": False} if config["model_type"] in _POOLERS else {}
    if any(name != names.unwrap_name(name) for name in shapes):
        options["key_mapping"] = {names.WRAPPER.pattern: ""}
    if device.type == "meta":  # otherwise transformers would read the weights before `to` drops them
        options["device_map"] = device
    # Transformers only warns of missing and unused tensors; `check_loaded` below makes them errors.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    options |= {
        "output_loading_info": True,
        "dtype": dtype,
        "attn_implementation": ATTENTION if architecture.packed else "eager",
    }
    base, report = _load(directory, lazy, options, alone)
    layout = recognize_layout(shapes, config, directory)
    unused = frozenset(() if layout is None else layout.tensors)
    prefix = f"{base.base_model_prefix}."
    names.check_loaded(report, directory, prefix, shapes, config.get("value_head_prefix"), unused)
    check_ropes(getattr(base.config, "rope_parameters", None), directory)
    if device.type == "cpu":  # for other devices the weights are copied anyway, and on `meta` there are none
        copy_out_of_files(base)
    return base


def _read_lazily(directory: Path, config: Mapping[str, Any], quantization: Quantization) -> dict[str, LazyTensor]:
    """Return the tensors of a base with quantized weights by name."""
    if quantization.gguf_file is not None:
        return read_gguf_tensors(directory / quantization.gguf_file, _read_plain_config(directory))
    return read_quantized_tensors(list_weight_files(directory), quantization.method, config)


def _load(
    directory: Path,
    lazy: dict[str, LazyTensor] | None,
    options: Mapping[str, Any],
    alone: AbstractContextManager[object] | None,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Return a base, and transformers' report about loading it, from plain files or from tensors read one by one."""
    plain = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    if lazy is None and alone is None:
        return AutoModel.from_pretrained(directory, **plain, **options)  # type: ignore[no-any-return]
    config = _read_plain_config(directory)
    kind = MODEL_MAPPING[type(config)]
    loading = kind if alone is None else _construct_within(kind, alone)
    base, report = (
        loading.from_pretrained(directory, config=config, **plain, **options)
        if lazy is None
        else loading.from_pretrained(None, config=config, state_dict=lazy, **options)
    )
    base.__class__ = kind
    return base, report


def _construct_within(kind: type[PreTrainedModel], alone: AbstractContextManager[object]) -> type[PreTrainedModel]:
    """Return a class like `kind` whose `from_pretrained` constructs the model, without weights, within a context.

    Meanwhile transformers changes torch's default dtype and `torch.linspace` for all threads. Weights are read later.
    """

    def get_init_context(cls: type[PreTrainedModel], *arguments: object) -> list[object]:
        return [alone, *super(loading, cls).get_init_context(*arguments)]

    members = {"__module__": kind.__module__, "get_init_context": classmethod(get_init_context)}
    loading: type[PreTrainedModel] = type(kind.__name__, (kind,), members)
    return loading


def _read_plain_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration of a base whose weights are plain by the time transformers gets them."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if hasattr(config, CONFIG_KEY):
        delattr(config, CONFIG_KEY)
    return config
