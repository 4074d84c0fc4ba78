"""Recognise heads and prefixes of other trainers by the names and shapes of a checkpoint's tensors, without torch."""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import StartError

Shapes = Mapping[str, tuple[int, ...]]

# Where trainers put a head that is one linear layer: transformers' ForSequenceClassification (`score`, `classifier`),
# TRL and LLaMA-Factory (`v_head.summary`), DeepSpeed-Chat (`v_head`), OpenRLHF (`value_head`, or what its
# `value_head_prefix` says, often `reward_head`), UltraRM (`regression_head`), safe-rlhf (`score_head`).
HEAD_MODULES = (
    *("score", "classifier", "classifier.out_proj", "v_head.summary", "v_head", "value_head.summary", "value_head"),
    *("regression_head", "reward_head", "score_head"),
)

# What a class or a wrapper around the base puts in front of every name of a state dict; it changes no number.
_WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "pretrained_model": "TRL's value-head models",
    "rwtransformer": "DeepSpeed-Chat",
    "rwtranrsformer": "DeepSpeed-Chat",
    "transformer": "a class with the base as `self.transformer`",
}
WRAPPER = re.compile(rf"^(?:(?:{'|'.join(_WRAPPERS)})\.)+")

# Tensors of a checkpoint that a bare base does not use: heads, language-model outputs, buffers of old versions.
_UNUSED = (
    *(f"{module}." for module in HEAD_MODULES),
    *("lm_head.", "embed_out.", "cls.", "pooler.dense.", "lm_predictions.", "mask_predictions."),
    *("embeddings.position_ids", "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)

# The largest header that the safetensors library reads as well.
_MAX_HEADER_BYTES = 100_000_000

# Heads that are known and not served: a pattern of names, and what has them.
_UNSERVED_HEADS = (
    (re.compile(r"^(?:[\w.]+\.)?(?:score|classifier|v_head|value_head)(?:\.summary)?\.\d+\.weight$"),
     "a head of several layers ({names}), as of GRM (sftreg), INF-ORM or Qwen2.5-Math-RM"),
    (re.compile(r"^(?:[\w.]+\.)?v_head_mlp\d+\.weight$"), "a head of several layers ({names})"),
    (re.compile(r"^(?:[\w.]+\.)?(?:regression_layer|gating)\."),
     "a gated head of several objectives ({names}), as of ArmoRM, QRM or URM"),
)  # fmt: skip


def shapes_of(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in safetensors files, by name, from the files' headers.

    Raises:
        StartError: a file is missing or is not a safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        _, header = _header(path)
        shapes |= {name: shape for name, (shape, _) in header.items()}
    return shapes


def missing_bytes(path: Path) -> int:
    """Return how many bytes of its tensors a safetensors file lacks, as after a download that broke off.

    Raises:
        StartError: it is not a safetensors file.
    """
    start, header = _header(path)
    return max(0, start + max((end for _, end in header.values()), default=0) - path.stat().st_size)


def _header(path: Path) -> tuple[int, dict[str, tuple[tuple[int, ...], int]]]:
    """Return where the tensors of a safetensors file begin, and of each its shape and where it ends from there."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return 8 + length, {n: (tuple(e["shape"]), int(e["data_offsets"][1])) for n, e in tensors.items()}
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError, IndexError) as error:
        raise StartError(f"{path}: not a whole safetensors file ({error}); download or save it again") from error


def unwrapped(name: str) -> str:
    """Return a tensor's name without the prefixes that trainers' wrappers put in front of it."""
    return WRAPPER.sub("", name)


def check_unwrapping(names: Iterable[str], where: object) -> None:
    """Refuse a checkpoint in which two tensors have one name once their wrappers' prefixes are removed.

    Raises:
        StartError: naming both tensors.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(unwrapped(name), name)
        if other != name:
            raise StartError(
                f"{where}: tensors {other} and {name} differ by a wrapper's prefix only, so one of them would be lost; "
                "save the model again without its wrapper"
            )


def head_weight(also: str | None = None) -> re.Pattern[str]:
    """Return the pattern of a head weight's name without wrappers; PEFT's prefix and `modules_to_save` may be there.

    Args:
        also: one more module, as OpenRLHF's `value_head_prefix` in `config.json` names it.
    """
    modules = "|".join(map(re.escape, (*HEAD_MODULES, *([also] if also else []))))
    return re.compile(rf"^(?:base_model\.model\.)?(?:{modules})(?:\.modules_to_save\.\w+)?\.weight$")


def check_whole_head(head: str, names: Iterable[str], where: object, also: str | None = None) -> None:
    """Refuse a checkpoint whose head has more tensors than the linear layer that is read.

    Without them the score would be that of another head. RoBERTa's dense layer before `classifier.out_proj` is read
    where the score position asks for it, and the loader refuses that head elsewhere.

    Args:
        head: name of the weight that is read.
        names: of all tensors in the same files.
        where: what to call them in errors.
        also: as in `head_weight`.

    Raises:
        StartError: naming a tensor.
    """
    module = _in_module(head).removesuffix(".weight")
    own = {f"{module}.weight", f"{module}.bias"}
    if module == "classifier.out_proj":
        own |= {"classifier.dense.weight", "classifier.dense.bias"}
    roots = tuple({f"{name.partition('.')[0]}." for name in (*HEAD_MODULES, *([also] if also else []))})
    for name in sorted(names):
        found = _in_module(name)
        if found in own or not found.startswith(roots) or ".original_module." in name:
            continue
        if ".lora_" in name:
            raise StartError(f"{where}: {name} adapts the head itself, which is not served")
        raise StartError(
            f"{where}: {name} belongs to the head beside {head}; Assay serves heads of one linear layer, and without "
            "the rest scores would be wrong"
        )


def _in_module(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers and PEFT, and without PEFT's `modules_to_save`."""
    return re.sub(r"\.modules_to_save\.\w+(?=\.)", "", unwrapped(name).removeprefix("base_model.model."))


def why_no_head(shapes: Shapes) -> str:
    """Return what a checkpoint without a served head has instead, and what to do.

    Args:
        shapes: of all its tensors.
    """
    for pattern, kind in _UNSERVED_HEADS:
        found = sorted({name.rpartition(".")[0] for name in shapes if pattern.match(name)})
        if found:
            return (
                f"{kind.format(names=', '.join(found[:4]))}: not served yet; Assay serves heads of one linear layer "
                "with one output"
            )
    one_row = sorted(name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == 1 and _is_top(name))
    looked = f"no head; looked for {', '.join(f'{module}.weight' for module in HEAD_MODULES)}"
    if one_row:
        return f"{looked}; {one_row[0]} has one output: if that is the head, rename it to score.weight in the file"
    if any(unwrapped(name).startswith(("lm_head.", "embed_out.")) for name in shapes):
        return (
            f"{looked}; this is a language model. A reward that is read off rows of lm_head is not served; for a base "
            "of a LoRA reward model, declare the `adapter` that has the head"
        )
    return f"{looked}; for a base of a LoRA reward model, declare the `adapter` that has the head"


def why_missing(missing: str, names: Iterable[str]) -> str:
    """Return where a missing tensor may be instead: under a foreign prefix, or as part of another format; else "".

    Args:
        missing: a name that the architecture needs.
        names: of the tensors that are there.
    """
    names = sorted(names)
    if any(".lora_" in name or ".base_layer." in name for name in names):
        return (
            "; these are tensors of a PEFT model around its base: merge it (`merge_and_unload()`, then "
            "`save_pretrained`), or save the adapter alone and declare it as `adapter`"
        )
    for name in names:
        if name != missing and name.endswith(f".{missing}"):
            prefix = name.removesuffix(missing)
            return f"; {name} is there: prefix {prefix!r} is not known, so save the tensors again without it"
    return ""


def why_unknown(name: str) -> str:
    """Return what a tensor is that the architecture has no place for; "" where it is not recognised."""
    if name.startswith("normalizer."):
        return "; it belongs to safe-rlhf's normaliser of scores, which is not served"
    for pattern, kind in _UNSERVED_HEADS:
        if pattern.match(name):
            return f"; it belongs to {kind.format(names=name.rpartition('.')[0])}, which is not served yet"
    return ""


def check_loaded(report: Mapping[str, Any], directory: Path, prefix: str, tensors: Shapes, head: str | None) -> None:
    """Refuse a base of which transformers reports tensors that are missing, unknown or of the wrong shape.

    Args:
        report: transformers' own, of loading.
        directory: of the base.
        prefix: what transformers puts in front of the base's names.
        tensors: shapes of all tensors in the files.
        head: one more module that is a head, as `config.json` says.

    Raises:
        StartError: naming the tensor, and what it is where that is known.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise StartError(
            f"{directory}: tensor {missing[0]} is missing, so it would be random ({len(missing)} missing)"
            f"{why_missing(missing[0].removeprefix(prefix), tensors)}"
        )
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if mismatched:
        raise StartError(f"{directory}: tensor of the wrong shape: {mismatched[0]}")
    unused = (*_UNUSED, *([f"{head}."] if head else []))
    unexpected = (unwrapped(name).removeprefix(prefix) for name in report["unexpected_keys"])
    unknown = sorted(name for name in unexpected if not name.startswith(unused) and not name.endswith(_UNUSED))
    if unknown:
        raise StartError(
            f"{directory}: tensor {unknown[0]} has no place in the architecture ({len(unknown)} unknown)"
            f"{why_unknown(unknown[0])}"
        )


def _is_top(name: str) -> bool:
    """Return whether a weight lies outside of the base's layers, as heads do."""
    return name.endswith(".weight") and not re.search(r"\.\d+\.|embed", name)
