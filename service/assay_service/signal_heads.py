"""Load the weights that one signal adds to its base: adapters and head."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from assay_service.errors import StartError
from assay_service.resolve import ResolvedSignal
from assay_service.scoring import checkpoint, files, gguf_files, gguf_header, names, tokenizer
from assay_service.scoring.architectures import ARCHITECTURES, Architecture, read_activation
from assay_service.scoring.head import Dense, Head, checked
from assay_service.scoring.head_files import check_logits, read_output_rows, select_output
from assay_service.scoring.head_modules import build_network
from assay_service.scoring.head_rule import HeadRule
from assay_service.scoring.language_models import EMBEDDINGS, OUTPUT_LAYERS
from assay_service.scoring.manifest import ScorePosition
from assay_service.scoring.missing_head import why_no_head
from assay_service.scoring.model import AnyHead, RewardModel
from assay_service.scoring.network_files import NetworkTensors, read_network

StoredHead = checkpoint.HeadTensors | NetworkTensors


def read_weights(resolved: ResolvedSignal) -> tuple[list[checkpoint.Adapter], StoredHead]:
    """Read the adapters in the order in which they are applied, and the one output of the head that the signal reads.

    Raises:
        StartError: there is no such head, or it is not read whole; the message names the tensor.
    """
    if (layout := resolved.head.layout) is not None:
        return [], read_network(resolved.weights, layout, resolved.head.objective)
    if resolved.head.likelihood is not None:
        return _read_output_layer(resolved, "head.likelihood", None)
    adapters, head = _read_tokens(resolved) if resolved.head.tokens else _read_head(resolved)
    architecture = ARCHITECTURES[resolved.config["model_type"]]
    position = resolved.rules.score_position
    _check_head(head.name, position, architecture)
    if position in ("pooler", "mean_pooler"):
        dense = _read_dense(resolved, architecture)
        epsilon = resolved.config.get("norm_eps") or head.epsilon
        head = replace(head, dense=dense, activation=read_activation(resolved.config), epsilon=epsilon)
    return adapters, select_output(head, resolved.head)


def build_head(tensors: StoredHead, rule: HeadRule, model: RewardModel) -> AnyHead:
    """Return the head of these tensors as a module, in fp32; an output layer keeps the base's dtype.

    Args:
        tensors: tensors of the head.
        rule: part of the head that the signal reads.
        model: model on whose base the head is.

    Raises:
        StartError: the head does not fit the base, or was never trained; the message names the tensor.
    """
    if isinstance(tensors, NetworkTensors):
        return build_network(tensors)
    if rule.likelihood is not None:
        if tensors.weight.shape[1] != model.hidden_size:
            raise StartError(
                f"{tensors.name}: has rows of {tensors.weight.shape[1]} numbers, but the base has {model.hidden_size}; "
                "take weights and config.json of one model"
            )
        return model.share_output_layer(None if _is_tied(tensors) else tensors.weight)
    dense = None if tensors.dense is None else Dense(tensors.dense, tensors.activation, tensors.epsilon)
    return checked(Head(tensors.weight, tensors.bias, dense), model.hidden_size, tensors.name)


def _read_head(resolved: ResolvedSignal) -> tuple[list[checkpoint.Adapter], checkpoint.HeadTensors]:
    """Read the head of the last adapter or of the base."""
    if resolved.adapter is None:
        return [], _read_own_head(resolved)
    read = [checkpoint.read_adapter(directory) for directory in resolved.adapters]
    head = read[-1][1]
    if head is None:
        weights = [resolved.adapter / files.ADAPTER_WEIGHTS]
        raise StartError(
            f"{resolved.adapter}: the adapter has no head: {_explain_no_head(resolved, weights)}. PEFT saves a "
            "head that was trained with `modules_to_save`"
        )
    return [adapter for adapter, _ in read], head


def _read_own_head(resolved: ResolvedSignal) -> checkpoint.HeadTensors:
    """Read the head of the base."""
    weights, also = resolved.weights, resolved.config.get("value_head_prefix")
    if resolved.gguf is not None:
        return _read_gguf_head(resolved.gguf, weights[1:], also)
    head = checkpoint.read_head(weights, also)
    if head is None:
        raise StartError(f"{resolved.base}: {_explain_no_head(resolved, weights)}")
    return head


def _read_gguf_head(gguf: Path, beside: Sequence[Path], also: str | None) -> checkpoint.HeadTensors:
    """Read the head of a base whose weights are in a GGUF file: the file's own, or a value head's file beside it."""
    heads = [gguf_files.read_gguf_head(gguf), checkpoint.read_head(beside, also)]
    found = [head for head in heads if head is not None]
    if len(found) > 1:
        raise StartError(f"{gguf}: there are several heads, here and in {beside[0].name}; remove one of them")
    if not found:
        raise StartError(
            f"{gguf}: no head was found; looked for {gguf_header.HEAD}, and for {files.VALUE_HEAD} beside it. Declare "
            "`head: {tokens: [TOKEN]}` if the reward is the logit of a token, or the `adapter` that has the head"
        )
    return found[0]


def _read_tokens(resolved: ResolvedSignal) -> tuple[list[checkpoint.Adapter], checkpoint.HeadTensors]:
    """Read the rows of the base's output layer for the declared tokens."""
    encoder = tokenizer.load(resolved.tokenizer).backend_tokenizer
    ids: list[int] = []
    for token in resolved.head.tokens:
        found = [token] if isinstance(token, int) else encoder.encode(token, add_special_tokens=False).ids
        if len(found) != 1:
            raise StartError(
                f"head.tokens: {token!r} is {len(found)} tokens ({found}), not one; declare one, of which a leading "
                "space is often a part"
            )
        ids += found
    adapters, rows = _read_output_layer(resolved, "head.tokens", ids)
    return adapters, select_output(rows, HeadRule(tuple(range(len(ids)))))


def _read_output_layer(
    resolved: ResolvedSignal, key: str, ids: Sequence[int] | None
) -> tuple[list[checkpoint.Adapter], checkpoint.HeadTensors]:
    """Read the adapters, and the rows of the base's output layer for these ids, or for all if `ids` is None.

    Raises:
        StartError: the base is not a causal language model whose logits these rows give, or an adapter changes them.
    """
    if not ARCHITECTURES[resolved.config["model_type"]].causal:
        raise StartError(
            f"{key}: is for causal language models, but {resolved.config['model_type']!r} is an encoder; remove `head`"
        )
    adapters = [checkpoint.read_adapter(directory)[0] for directory in resolved.adapters]
    check_logits(resolved.config, key)
    if resolved.gguf is None:
        rows = read_output_rows(resolved.weights, resolved.config, key, ids)
    else:
        rows = gguf_files.read_gguf_rows(resolved.gguf, key, ids)
    changing = {*OUTPUT_LAYERS, *(EMBEDDINGS if _is_tied(rows) else ())}
    adapted = sorted(name for adapter in adapters for name in adapter.tensors if changing & {*name.split(".")})
    if adapted:
        raise StartError(f"{key}: {adapted[0]} adapts the output layer; merge the adapter into its base first")
    return adapters, rows


def _is_tied(rows: checkpoint.HeadTensors) -> bool:
    """Return whether rows of an output layer are those of the embedding, by their name."""
    return not set(EMBEDDINGS).isdisjoint(rows.name.partition("[")[0].split("."))


def _explain_no_head(resolved: ResolvedSignal, weights: Sequence[Path]) -> str:
    directory = resolved.adapter or resolved.base
    if pickle := files.explain_pickled(directory, files.VALUE_HEAD):
        return f"no head{pickle}"
    return why_no_head(names.read_shapes(weights), resolved.config, directory)


def _read_dense(resolved: ResolvedSignal, architecture: Architecture) -> checkpoint.DenseTensors:
    """Read the layer before the head: the adapter's own where it was trained with the head, else the base's."""
    if architecture.dense is None:
        raise StartError(
            "score_position: pooler is only for encoders whose classifiers have a layer before the head; declare "
            "another position"
        )
    own = [] if resolved.adapter is None else [resolved.adapter / files.ADAPTER_WEIGHTS]
    sources = [*own, *resolved.weights]
    dense = checkpoint.read_dense(sources, architecture.dense, architecture.norm)
    if dense is None:
        needed = " or no ".join(f"{name}.weight" for name in (architecture.dense, architecture.norm) if name)
        raise StartError(
            f"{resolved.base}: has no tensor {needed}, which score_position pooler reads; declare the position of "
            "training, or download the checkpoint again"
        )
    return dense


def _check_head(name: str, position: ScorePosition, architecture: Architecture) -> None:
    """Refuse a head that was trained behind a dense layer, unless it is read behind that layer."""
    # RoBERTa's classifier is called `dense` and `out_proj`; without `dense` its logits would be plausible and wrong.
    if "out_proj" in name and (position != "pooler" or architecture.dense != "classifier.dense"):
        raise StartError(
            f"{name}: has a dense layer before it, which only `score_position: pooler` of RoBERTa reads; declare that, "
            "or a checkpoint with a linear head"
        )
