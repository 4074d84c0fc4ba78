"""Decide under which name every tensor of a foreign checkpoint is written; pure, on names and shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring import names
from assay_service.scoring.architectures import Architecture
from assay_service.scoring.missing_head import why_no_head
from assay_service.scoring.names import Shapes

NORMALIZER = "normalizer."
_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True)
class Base:
    """The tensors that transformers' bare model of an architecture has.

    Attributes:
        prefix: prefix of their names in a whole checkpoint, such as `model.`.
        shapes: shapes by name without the prefix.
        embedding: name of the token embedding without the prefix.
    """

    prefix: str
    shapes: Shapes
    embedding: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the tensors of a checkpoint go.

    Attributes:
        targets: written name by name in the source.
        copies: pairs of names in the source whose tensors have one place and so must be equal.
        head: name of the head's weight in the source.
        dropped: names that nothing reads, such as `lm_head.weight`.
        normalizer: names of the tensors of the head's normalizer.
    """

    targets: Mapping[str, str]
    copies: tuple[tuple[str, str], ...]
    head: str
    dropped: tuple[str, ...]
    normalizer: tuple[str, ...]


def find_head(shapes: Shapes, config: Mapping[str, Any], extra: str | None, where: object) -> str:
    """Return the name of the head's weight.

    Args:
        shapes: shapes of all tensors of the source, keyed by name.
        config: `config.json` of the source.
        extra: name of a further head module.
        where: name of the source in errors.

    Raises:
        StartError: there is no head, more than one, or one that is not a linear layer with one output.
    """
    pattern = names.build_head_weight_pattern(extra)
    heads = sorted(name for name in shapes if pattern.match(names.unwrap_name(name)))
    if extra is not None:
        # A checkpoint may keep the head of an earlier training; the named one counts.
        heads = [name for name in heads if names.unwrap_name(name) == f"{extra}.weight"] or heads
    if not heads:
        raise StartError(f"{where}: {why_no_head(shapes, config)}; `assay convert` takes its name with --head")
    if len(heads) > 1:
        raise StartError(f"{where}: there are several heads: {', '.join(heads)}; name the right one with --head")
    names.check_whole_head(heads[0], shapes, where, extra)
    shape = shapes[heads[0]]
    if len(shape) != 2 or shape[0] != 1:
        raise StartError(
            f"{where}: {heads[0]} has shape {list(shape)}, but only a head with one output is converted; save it with "
            "the one row to serve"
        )
    return heads[0]


def plan(shapes: Shapes, base: Base, head: str, module: str, architecture: Architecture, where: object) -> Plan:
    """Return the written name of every tensor.

    Args:
        shapes: shapes of all tensors of the source, keyed by name.
        base: tensors of the architecture.
        head: name of the head's weight in the source.
        module: name under which the head is written.
        architecture: properties of the architecture.
        where: name of the source in errors.

    Raises:
        StartError: a tensor of the base is missing, unknown or of the wrong shape; the message names it.
    """
    roots = _find_roots(shapes, base, where)
    targets = _place_head(shapes, head, module)
    dropped, normalizer, unknown = [], [], []
    for name in sorted(shapes.keys() - targets.keys()):
        bare, plain = _remove_root(name, roots), names.unwrap_name(name)
        # transformers 5 joins the experts of a layer when it loads them, so their names in files are others.
        if bare in base.shapes or (bare != name and _EXPERTS in bare):
            targets[name] = base.prefix + bare
        elif architecture.dense is not None and plain.startswith(f"{architecture.dense}."):
            targets[name] = plain
        # Not written: no class of transformers reads it, so it is folded into the head.
        elif plain.startswith(NORMALIZER):
            normalizer.append(name)
        elif _is_unused(name, bare, plain):
            dropped.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise StartError(
            f"{where}: tensor {unknown[0]} has no place in the architecture ({len(unknown)} unknown), and it could "
            f"change the score, so it is not dropped{names.explain_unknown(unknown[0])}"
        )
    kept, copies = _merge_copies(targets)
    _check_base(shapes, kept, base, where)
    return Plan(kept, copies, head, tuple(dropped), tuple(normalizer))


def _place_head(shapes: Shapes, head: str, module: str) -> dict[str, str]:
    """Return the written names of a head's tensors; a head of two layers keeps both, as `0` and `2`."""
    last = head.removesuffix("weight")
    layers = {last: f"{module}."}
    if last.endswith(".2."):
        layers = {last: f"{module}.2.", f"{last.removesuffix('2.')}0.": f"{module}.0."}
    parts = ("weight", "bias")
    return {own + part: new + part for own, new in layers.items() for part in parts if own + part in shapes}


def _find_roots(shapes: Shapes, base: Base, where: object) -> list[str]:
    """Return the prefixes under which the base's tensors lie, the longest first."""
    found = {name.removesuffix(base.embedding) for name in shapes if f".{name}".endswith(f".{base.embedding}")}
    if not found:
        raise StartError(
            f"{where}: no tensor is called {base.embedding}, which the architecture of config.json needs; take weights "
            "and config.json of one model"
        )
    # Otherwise a short prefix would match where a longer one is meant.
    return sorted(found, key=len, reverse=True)


def _remove_root(name: str, roots: Sequence[str]) -> str:
    return next((name.removeprefix(root) for root in roots if name.startswith(root)), name)


def _is_unused(*spellings: str) -> bool:
    """Return whether one of a tensor's names, with and without prefixes, is that of a tensor that no base uses."""
    # The language model's output lies beside the base, so it may have only a part of the base's prefix.
    outputs = ("lm_head.", "embed_out.")
    return any(names.is_unused(name) or name.partition(".")[2].startswith(outputs) for name in spellings)


def _merge_copies(targets: Mapping[str, str]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Return one source for every written name, and the pairs of the others with it."""
    first: dict[str, str] = {}
    copies = []
    for name, target in targets.items():
        if (other := first.setdefault(target, name)) != name:
            # Their values are compared when they are read: a policy and its reference differ.
            copies.append((other, name))
    return {name: target for target, name in first.items()}, tuple(copies)


def _check_base(shapes: Shapes, kept: Mapping[str, str], base: Base, where: object) -> None:
    """Refuse tensors that are missing or have another shape than the architecture's."""
    written = {target: name for name, target in kept.items()}
    missing = [name for name in base.shapes if base.prefix + name not in written and _is_needed(name)]
    if missing:
        raise StartError(
            f"{where}: tensor {base.prefix}{missing[0]} is missing, so it would be random ({len(missing)} missing)"
            f"{names.explain_missing(missing[0], shapes)}"
        )
    for name, shape in base.shapes.items():
        source = written.get(base.prefix + name)
        if source is not None and shapes[source] != shape:
            raise StartError(
                f"{where}: tensor {source} has shape {list(shapes[source])}, but config.json makes it {list(shape)}; "
                "correct config.json (vocab_size, hidden_size, …) or take that of this model"
            )


def _is_needed(name: str) -> bool:
    """Return whether the base computes with a tensor; a pooler belongs to the head, which is checked when it loads."""
    return not name.startswith("pooler.") and _EXPERTS not in name
