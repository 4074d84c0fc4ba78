"""Recognize heads and prefixes of other trainers by the names and shapes of a checkpoint's tensors, without torch."""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import StartError

Shapes = Mapping[str, tuple[int, ...]]

# Names that trainers give a head of one linear layer: transformers' ForSequenceClassification (`score`, `classifier`),
# TRL and LLaMA-Factory (`v_head.summary`), and DeepSpeed-Chat (`v_head`). Others are OpenRLHF (`value_head`, or its
# `value_head_prefix`, often `reward_head`), UltraRM (`regression_head`), safe-rlhf (`score_head`).
HEAD_MODULES = (
    *("score", "classifier", "classifier.out_proj", "v_head.summary", "v_head", "value_head.summary", "value_head"),
    *("regression_head", "reward_head", "score_head"),
)

# Prefixes that a class or a wrapper around the base puts in front of every name of a state dict, and their origin.
# They do not change the tensors, so they can be removed.
_WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "pretrained_model": "TRL's value-head models",
    "rwtransformer": "DeepSpeed-Chat",
    "rwtranrsformer": "DeepSpeed-Chat",  # its own spelling
    "transformer": "a class with the base as `self.transformer`",
}
WRAPPER = re.compile(rf"^(?:(?:{'|'.join(_WRAPPERS)})\.)+")

# Tensors of a checkpoint that a bare base does not use: heads, language-model outputs, buffers of old versions.
_UNUSED = (
    *(f"{module}." for module in HEAD_MODULES),
    *(
        "lm_head.",
        "embed_out.",
        "cls.",
        "decoder.",
        "pooler.dense.",
        "head.dense.",
        "head.norm.",
        "lm_predictions.",
        "mask_predictions.",
    ),
    *("embeddings.position_ids", "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)

# The limit of the safetensors library itself; beyond it a length is more likely the start of another format.
_MAX_HEADER_BYTES = 100_000_000

# Heads that are known and not served: a pattern of names, and a description with the models that have them. To read
# one of their layers as the head would give a wrong score.
UNSERVED_HEADS = (
    (re.compile(r"^(?:[\w.]+\.)?(?:score|classifier|v_head|value_head)(?:\.summary)?\.\d+\.weight$"),
     "a head of other layers than two with a ReLU between ({names})"),
    (re.compile(r"^(?:[\w.]+\.)?v_head_mlp\d+\.weight$"), "a head of several layers ({names})"),
    (re.compile(r"^(?:[\w.]+\.)?regression_layer\."),
     "a head of several objectives without its gate ({names})"),
)  # fmt: skip


def read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in safetensors files, keyed by name, from the headers of the files.

    Raises:
        StartError: a file is missing or is not a safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        _, header = _read_header(path)
        shapes |= {name: shape for name, (shape, _) in header.items()}
    return shapes


def count_missing_bytes(path: Path) -> int:
    """Return how many bytes of its tensors a safetensors file lacks, as after an interrupted download.

    Raises:
        StartError: the file is not a safetensors file.
    """
    start, header = _read_header(path)
    return max(0, start + max((end for _, end in header.values()), default=0) - path.stat().st_size)


def _read_header(path: Path) -> tuple[int, dict[str, tuple[tuple[int, ...], int]]]:
    """Return the offset of the tensors in a safetensors file, and each tensor's shape and end from that offset."""
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


def unwrap_name(name: str) -> str:
    """Return a tensor's name without the prefixes that trainers' wrappers put in front of it."""
    return WRAPPER.sub("", name)


def check_unwrapping(names: Iterable[str], where: object) -> None:
    """Refuse a checkpoint in which two tensors have the same name once the prefixes of wrappers are removed.

    Raises:
        StartError: two names become the same; the message names both tensors.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(unwrap_name(name), name)
        if other != name:
            raise StartError(
                f"{where}: tensors {other} and {name} differ only by a wrapper's prefix, so one of them would be lost; "
                "save the model again without its wrapper"
            )


def build_head_weight_pattern(extra_head: str | None = None) -> re.Pattern[str]:
    """Return the pattern of a head weight's name without wrappers; it also accepts PEFT's prefix and `modules_to_save`.

    Args:
        extra_head: name of a further head module, as OpenRLHF's `value_head_prefix` in `config.json` gives it.
    """
    modules = "|".join(map(re.escape, (*HEAD_MODULES, *([extra_head] if extra_head else []))))
    # `.2`: the last layer of a head of two layers, with an activation between them.
    return re.compile(rf"^(?:base_model\.model\.)?(?:{modules})(?:\.modules_to_save\.\w+)?(?:\.2)?\.weight$")


def check_whole_head(head: str, names: Iterable[str], where: object, extra_head: str | None = None) -> None:
    """Refuse a checkpoint whose head has more tensors than the linear layer that is read.

    Without them the score would be that of another head. RoBERTa's dense layer before `classifier.out_proj` is read if
    the score position needs it. The loader refuses that head elsewhere.

    Args:
        head: name of the weight that is read.
        names: names of all tensors in the same files.
        where: name of the files in errors.
        extra_head: name of a further head module, as for `build_head_weight_pattern`.

    Raises:
        StartError: the head has another tensor; the message names it.
    """
    module = _strip_to_module(head).removesuffix(".weight")
    own = {f"{module}.weight", f"{module}.bias"}
    if module.endswith(".2"):
        own |= {f"{module.removesuffix('2')}0.{part}" for part in ("weight", "bias")}
    if module == "classifier.out_proj":
        own |= {"classifier.dense.weight", "classifier.dense.bias"}
    roots = tuple({f"{name.partition('.')[0]}." for name in (*HEAD_MODULES, *([extra_head] if extra_head else []))})
    for name in sorted(names):
        bare = _strip_to_module(name)
        # PEFT keeps the untrained head beside the trained one as `original_module`; nothing reads it.
        if bare in own or not bare.startswith(roots) or ".original_module." in name:
            continue
        if ".lora_" in name:
            raise StartError(
                f"{where}: {name} is LoRA on the head itself, which is not served; merge the adapter into its base"
            )
        raise StartError(
            f"{where}: {name} belongs to the head as well as {head}, and without it scores would be wrong; declare a "
            "checkpoint whose head is one linear layer, or two with a ReLU between"
        )


def _strip_to_module(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers and PEFT, and without PEFT's `modules_to_save`."""
    return re.sub(r"\.modules_to_save\.\w+(?=\.)", "", unwrap_name(name).removeprefix("base_model.model."))


def explain_missing(missing: str, names: Iterable[str]) -> str:
    """Return what to do about a missing tensor, and why it is missing if its prefix or format shows that.

    Args:
        missing: name that the architecture needs.
        names: names of the tensors in the files.
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
    return "; download the checkpoint again, or take weights and config.json of one model"


def is_unused(name: str, head: str | None = None) -> bool:
    """Return whether a bare base does not use a tensor: a head, an output of a language model, an old buffer.

    Args:
        name: name without the prefixes of wrappers and of the base.
        head: name of a further head module, from `config.json`, or None.
    """
    return name.startswith((*_UNUSED, *([f"{head}."] if head else []))) or name.endswith(_UNUSED)


def explain_unknown(name: str) -> str:
    """Return what to do about a tensor without a place in the architecture, and where it belongs if that is known."""
    if name.startswith("normalizer."):
        return "; it belongs to safe-rlhf's normalizer of scores: convert it by `assay convert DIR OUT`"
    for pattern, kind in UNSERVED_HEADS:
        if pattern.match(name):
            head = kind.format(names=name.rpartition(".")[0])
            return f"; it belongs to {head}, which is not served: declare a checkpoint with another head"
    return "; take weights and config.json of one model, or save the model without it if it was not trained"


def check_loaded(
    report: Mapping[str, Any],
    directory: Path,
    prefix: str,
    tensors: Shapes,
    head: str | None,
    read_elsewhere: frozenset[str] = frozenset(),
) -> None:
    """Refuse a base for which transformers reports tensors that are missing, unknown or of the wrong shape.

    Args:
        report: report of transformers about loading.
        directory: directory of the base.
        prefix: prefix that transformers puts in front of the base's names.
        tensors: shapes of all tensors in the files, keyed by name.
        head: name of a further head module, from `config.json`, or None.
        read_elsewhere: names of tensors that the base does not use, because a head has them.

    Raises:
        StartError: a tensor does not fit; the message names it, and its origin if that is recognized.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise StartError(
            f"{directory}: tensor {missing[0]} is missing, so it would be random ({len(missing)} missing)"
            f"{explain_missing(missing[0].removeprefix(prefix), tensors)}"
        )
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if mismatched:
        raise StartError(
            f"{directory}: a tensor has the wrong shape: {mismatched[0]}; check that config.json belongs to the weights"
        )
    unexpected = (unwrap_name(name).removeprefix(prefix) for name in report["unexpected_keys"])
    unknown = sorted(name for name in unexpected if not is_unused(name, head) and name not in read_elsewhere)
    if unknown:
        raise StartError(
            f"{directory}: tensor {unknown[0]} has no place in the architecture ({len(unknown)} unknown)"
            f"{explain_unknown(unknown[0])}"
        )
