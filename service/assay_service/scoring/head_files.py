"""Read the head of one signal from a checkpoint, as one output and the layer before it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import HeadTensors, check_plain
from assay_service.scoring.head_rule import HeadRule
from assay_service.scoring.language_models import EMBEDDINGS, OUTPUT_LAYERS
from assay_service.scoring.names import read_shapes, unwrap_name

# Keys of `config.json` by which a language model changes its logits after the output layer.
_LOGIT_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale")


def select_output(head: HeadTensors, rule: HeadRule) -> HeadTensors:
    """Return a head with the one output that a signal reads, of weight `[1, H]` and bias `[1]`.

    Args:
        head: head with `K` outputs, of weight `[K, H]` and bias `[K]` or None.
        rule: outputs to read.

    Raises:
        StartError: the head has no such output, or has several and none is declared.
    """
    count = head.weight.shape[0]
    if not rule.outputs:
        if count > 1:
            raise StartError(
                f"{head.name}: has {count} outputs; declare the one to read by its number (`output: 0`) or name, or "
                "`output: [I, J]` for the difference of two"
            )
        return head
    if max(rule.outputs) >= count:
        raise StartError(
            f"output: {max(rule.outputs)} is declared, but {head.name} has only {count} outputs; declare one of 0 to "
            f"{count - 1}"
        )
    bias = None if head.bias is None else _combine(head.bias, rule.outputs)
    return replace(head, weight=_combine(head.weight, rule.outputs), bias=bias)


def check_logits(config: Mapping[str, Any], key: str) -> None:
    """Refuse a language model that changes its logits after the output layer.

    Args:
        config: its `config.json`.
        key: name of the declared key, for errors.

    Raises:
        StartError: it does; the message names the key of `config.json`.
    """
    # `config.json` omits values that are the architecture's default, such as Gemma 2's bound of 30.
    defaults = CONFIG_MAPPING[config["model_type"]]()
    changed = [key for key in _LOGIT_KEYS if config.get(key, getattr(defaults, key, None)) not in (None, 1, 1.0)]
    if changed:
        raise StartError(
            f"{key}: this model changes its logits by {changed[0]} of config.json; rows of its output layer are not "
            "its logits, so they are not served; declare a checkpoint with a head of its own"
        )


def read_output_rows(
    files: Iterable[Path], config: Mapping[str, Any], key: str, ids: Sequence[int] | None
) -> HeadTensors:
    """Return rows of a language model's output layer as a head with an output for each: weight `[N, H]`, no bias.

    Args:
        files: safetensors files of the language model.
        config: its `config.json`.
        key: name of the declared key, for errors.
        ids: ids of tokens; None reads the rows of all tokens.

    Raises:
        StartError: there is no output layer, it lacks a row, or it is quantized.
    """
    files = list(files)
    _refuse_bias(files, key)
    for path, name in _find_output_layer(files, config):
        with safe_open(path, framework="pt") as tensors:
            rows = tensors.get_slice(name)
            if ids is not None and max(ids) >= rows.get_shape()[0]:
                raise StartError(f"{key}: {name} has no row {max(ids)}; check the tokenizer of the checkpoint")
            weight = rows[:] if ids is None else torch.cat([rows[id_ : id_ + 1] for id_ in ids])
            check_plain(name, weight)
        return HeadTensors(name if ids is None else f"{name}{list(ids)}", weight, None)
    raise StartError(
        f"{key}: the checkpoint has neither {' nor '.join(f'{name}.weight' for name in OUTPUT_LAYERS)}, and its "
        "config.json does not tie the output layer to the embeddings; declare the language model as `base`"
    )


def _refuse_bias(files: Iterable[Path], key: str) -> None:
    """Refuse a bias of the output layer: transformers' classes of the served architectures would ignore it."""
    for name in read_shapes(files):
        if unwrap_name(name) in {f"{module}.bias" for module in OUTPUT_LAYERS}:
            raise StartError(
                f"{key}: {name} is a bias, which transformers' language model of this architecture does not "
                "have; save the checkpoint without it if it was not trained"
            )


def _find_output_layer(files: Sequence[Path], config: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return file and name of the output layer: its own weight, or else the embeddings that it is tied to."""
    found: dict[bool, list[tuple[Path, str]]] = {False: [], True: []}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                module = unwrap_name(name).removesuffix(".weight").rpartition(".")[2]
                if module in OUTPUT_LAYERS or module in EMBEDDINGS:
                    found[module in EMBEDDINGS].append((path, name))
    # `config.json` omits values that are the architecture's default.
    default = CONFIG_MAPPING[config["model_type"]]().tie_word_embeddings
    return found[False] or (found[True] if config.get("tie_word_embeddings", default) else [])


def _combine(rows: torch.Tensor, outputs: Sequence[int]) -> torch.Tensor:
    """Return one row, or the difference of two rows in fp32, as a tensor with one row."""
    first, *second = (rows[output : output + 1].float() for output in outputs)
    return first - second[0] if second else first
