"""Put the adapters of one signal on a base: LoRA through PEFT, and embedded tokens into the signal's own copy.

No tensor of the base is written. PEFT receives only LoRA tensors; `lora.py` refuses all others by name.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from peft import inject_adapter_in_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import Adapter
from assay_service.scoring.embedding import OwnEmbedding, build_own_embedding
from assay_service.scoring.lora import Parts, find_embedding_name, sort_tensors


def attach(
    base: PreTrainedModel, dtype: torch.dtype, before_head: Sequence[str], adapters: Mapping[str, Adapter]
) -> OwnEmbedding | None:
    """Load adapters onto a base; each forward pass selects later which of them it uses.

    Several adapters are applied together. That equals merging one after the other, because LoRA adds to a layer's
    output. DoRA scales the output by norms of the weight that it was trained on, so it can only be the first.

    Args:
        base: bare base; adapters of other signals may be on it.
        dtype: dtype in which the base computes, and in which LoRA's tensors are kept.
        before_head: names of the layers before the head, which are read with the head from the last adapter.
        adapters: adapters in the order in which they are applied, keyed by the name that PEFT gives them.

    Returns:
        The token embedding of a signal with these adapters; None if it is the base's.

    Raises:
        StartError: an adapter does not fit, or would change the base; the message names a tensor or setting.
    """
    last = list(adapters)[-1:]  # only the last adapter has the head, and with it the layer before the head
    parts = {key: sort_tensors(adapter, base, before_head if key in last else ()) for key, adapter in adapters.items()}
    for part in list(parts.values())[1:]:
        if part.adapter.config.get("use_dora"):
            raise StartError(
                f"{part.adapter.directory}: DoRA on top of another adapter is not served; merge the adapters before it "
                "into the base (PEFT: merge_and_unload, then save_pretrained) and serve that as `base`"
            )
    embedding, parts = _build_embedding(base, parts)
    for key, part in parts.items():
        if part.trained_names:
            _inject(base, dtype, key, part)
    return embedding


def _build_embedding(base: PreTrainedModel, parts: dict[str, Parts]) -> tuple[OwnEmbedding | None, dict[str, Parts]]:
    """Return the embedding that the adapters make, and the adapters without the changes that it contains.

    LoRA on an embedding stays with PEFT if nothing else changes the embedding, since it takes less memory than a table.
    """
    shared = base.get_input_embeddings()
    shared = getattr(shared, "base_layer", shared)
    name = find_embedding_name(base)
    own = build_own_embedding(shared, [part.embedding for part in parts.values()])
    if not any(name in part.trained_names for part in parts.values()) or (own is None and len(parts) == 1):
        return own, parts
    folded = {key: part.fold_embedding(name) for key, part in parts.items()}
    return build_own_embedding(shared, [part.embedding for part in folded.values()]), folded


def _inject(base: PreTrainedModel, dtype: torch.dtype, key: str, part: Parts) -> None:
    """Add the LoRA layers of one adapter to the base through PEFT, under the name `key`."""
    where, config = part.adapter.directory, part.build_config()
    try:
        with warnings.catch_warnings():
            # PEFT warns of a second adapter on one base, which is the purpose here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, base, adapter_name=key)
            # PEFT gives LoRA the dtype of the layer's weight, which may be narrower than the one that is computed in.
            for name, parameter in base.named_parameters():
                if f".{key}." in name or name.endswith(f".{key}"):
                    parameter.data = parameter.data.to(dtype)
        result = set_peft_model_state_dict(base, dict(part.lora), adapter_name=key)
    except (ValueError, RuntimeError, KeyError) as error:
        raise StartError(f"{where}: the adapter does not fit its base: {error}; declare its own `base`") from error
    # PEFT also lists the missing tensors of the other adapters on this base, which were loaded before.
    missing = sorted(name for name in result.missing_keys if f".{key}." in name or name.endswith(f".{key}"))
    wrong = [*sorted(result.unexpected_keys), *missing]
    if wrong:
        raise StartError(f"{where}: the adapter does not fit its base at {wrong[0]}; declare its own `base`")
