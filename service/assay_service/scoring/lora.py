"""Read what a PEFT adapter changes: LoRA and the token embedding. Anything else is refused.

A base is shared by every signal on it, so a tensor that would change it is refused by name. A tensor that equals the
base's own is accepted (PEFT saves such copies beside LoRA on an embedding).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import Adapter
from assay_service.scoring.embedding import EmbeddingChange
from assay_service.scoring.files import ADAPTER_CONFIG

# Settings that change the forward pass and are passed to PEFT. The tensors show which modules are adapted.
_SHAPING = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out")

# Settings that select the adapted modules. Modules that are saved whole count here, since they are never adapted.
_SELECTING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")

# Settings that record how the adapter was made and do not change the forward pass of trained weights. EVA's new ranks
# and scales are in the patterns; `ensure_weight_tying` concerns output layers, which a reward never reads.
_HISTORY = frozenset(
    {"peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping"}
    | {*_SELECTING, "peft_version"}
    | {"init_lora_weights", "eva_config", "ensure_weight_tying", "trainable_token_indices"}
    | {"rank_pattern", "alpha_pattern"}
)

# Initializations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) change its weights.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
_CONVERSION = (
    "Convert it to plain LoRA by PEFT's save_pretrained(path_initial_model_for_weight_conversion=…). If `base` is "
    "the changed base that training saved, set init_lora_weights to true in adapter_config.json"
)
_MERGE = "Merge the adapter into its base (PEFT: merge_and_unload, then save_pretrained) and serve that as `base`"

# Modules of `modules_to_save` that PEFT names for every classifier, whether or not the model has them.
_HEADS = ("score", "classifier", "v_head", "value_head", "pooler", "head")

# Output layers of language models, which a reward never reads.
_OUTPUTS = ("lm_head.", "embed_out.", "cls.", "lm_predictions.", "mask_predictions.")

_LORA = re.compile(r"^(.+)\.(?:lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)$")
_DELTA = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class Parts:
    """The changes of one adapter, under the names of a bare base.

    Attributes:
        adapter: adapter that was read.
        lora: LoRA tensors, keyed by name.
        trained_names: name in training of each adapted module, keyed by its bare name. Patterns of ranks and alphas
            refer to the names in training.
        embedding: other changes of the token embedding.
    """

    adapter: Adapter
    lora: Mapping[str, torch.Tensor]
    trained_names: Mapping[str, str]
    embedding: EmbeddingChange

    def build_config(self) -> LoraConfig:
        """Return the configuration to inject on a bare base, with one exact entry for every module that needs one."""
        given = self.adapter.config
        config = LoraConfig(
            **{key: given[key] for key in _SHAPING if key in given},
            target_modules=sorted(self.trained_names),
            inference_mode=True,
        )
        exact = {module: f"^{re.escape(module)}" for module in self.trained_names}
        ranks = {exact[module]: self._find_rank(module) for module in exact}
        alphas = {exact[module]: _find_alpha(self.adapter, trained) for module, trained in self.trained_names.items()}
        # PEFT tries every entry for every module, so only those that differ from the rest are entries.
        config.rank_pattern = {module: rank for module, rank in ranks.items() if rank != config.r}
        config.alpha_pattern = {module: alpha for module, alpha in alphas.items() if alpha != config.lora_alpha}
        return config

    def fold_embedding(self, embedding: str) -> "Parts":
        """Return the same parts, with LoRA on the token embedding turned into the sum that it adds to the table.

        Raises:
            StartError: the adapter is a DoRA, whose norms depend on the table that it was trained on.
        """
        if embedding not in self.trained_names:
            return self
        if self.adapter.config.get("use_dora"):
            raise StartError(
                f"{self.adapter.directory}: DoRA on an embedding of the signal's own is not served. {_MERGE}"
            )
        rank, alpha = self._find_rank(embedding), _find_alpha(self.adapter, self.trained_names[embedding])
        scaling = alpha / (rank**0.5 if self.adapter.config.get("use_rslora") else rank)
        a, b = (self.lora[f"{embedding}.lora_embedding_{side}"].float() for side in "AB")
        return replace(
            self,
            lora={name: tensor for name, tensor in self.lora.items() if not name.startswith(f"{embedding}.")},
            trained_names={module: name for module, name in self.trained_names.items() if module != embedding},
            embedding=replace(self.embedding, delta=(b @ a).T * scaling),
        )

    def _find_rank(self, module: str) -> int:
        """Return the rank of a module's tensors, because the file does not keep the order of overlapping patterns."""
        sides = (self.lora.get(f"{module}.{name}") for name in ("lora_A.weight", "lora_embedding_A"))
        first = next((side for side in sides if side is not None), None)
        if first is None:
            raise StartError(
                f"{self.adapter.directory}: the adapter does not fit its base at {module}: it has no lora_A; save the "
                "whole adapter again"
            )
        _check_rank(self.adapter, self.trained_names[module], len(first))
        return len(first)


def sort_tensors(adapter: Adapter, base: PreTrainedModel, before_head: Sequence[str]) -> Parts:
    """Sort the tensors of an adapter by what they change.

    Args:
        adapter: adapter as it was read.
        base: bare base for the adapter; other adapters may be on it already.
        before_head: names of the layers before the head, which are read with the head.

    Raises:
        StartError: the adapter has a setting that is not served, or would change the base; the message names the
            setting or tensor.
    """
    _check_settings(adapter)
    lora, trained, rest = {}, {}, {}
    for name, tensor in adapter.tensors.items():
        bare = _strip_prefixes(name, base.base_model_prefix)
        if bare.startswith(_OUTPUTS) or bare.rpartition(".")[0] in before_head:
            continue
        if (match := _LORA.match(bare)) is None:
            rest[bare] = tensor
        else:
            lora[bare] = tensor
            trained[match[1]] = name.removeprefix("base_model.model.")[: len(match[1]) - len(bare)]
    embedding = find_embedding_name(base)
    whole = [rest.pop(name, None) for name in _list_embedding_names(embedding)]
    rows = rest.pop(f"{embedding}.{_DELTA}", None)
    _check_rest(rest, adapter, base)
    _check_modules(trained, adapter, base, before_head)
    change = EmbeddingChange(
        source=adapter.directory,
        whole=next((tensor for tensor in whole if tensor is not None), None),
        indices=() if rows is None else _read_token_indices(adapter, f"{base.base_model_prefix}.{embedding}"),
        rows=rows,
    )
    return Parts(adapter, lora, trained, change)


def find_embedding_name(base: PreTrainedModel) -> str:
    """Return the name of the token embedding among the modules of a bare base."""
    embedding = base.get_input_embeddings()
    return next(_strip_base_layer(name) for name, module in base.named_modules() if module is embedding)


def _list_embedding_names(embedding: str) -> tuple[str, ...]:
    """Return the names under which PEFT saves a whole embedding: plain, below LoRA, below trained rows."""
    return tuple(f"{embedding}.{part}weight" for part in ("", "base_layer.", "token_adapter.base_layer."))


def _read_token_indices(adapter: Adapter, embedding: str) -> tuple[int, ...]:
    """Return the ids of the tokens that have trained rows."""
    indices = adapter.config.get("trainable_token_indices")
    if isinstance(indices, Mapping):
        indices = next((ids for module, ids in indices.items() if f".{embedding}".endswith(f".{module}")), None)
    if not isinstance(indices, list) or not indices or not all(type(index) is int for index in indices):
        raise StartError(
            f"{adapter.directory}: trainable_token_indices must list the token ids that have trained rows; save the "
            "adapter again"
        )
    return tuple(indices)


def _check_rest(rest: Mapping[str, torch.Tensor], adapter: Adapter, base: PreTrainedModel) -> None:
    """Refuse tensors that would change the base; copies of its own tensors are accepted."""
    own = {_strip_base_layer(name): tensor for name, tensor in base.state_dict().items()} if rest else {}
    for name, tensor in sorted(rest.items()):
        original = own.get(_strip_base_layer(name))
        if original is not None and original.shape == tensor.shape and torch.equal(tensor.to(original), original):
            continue
        why = "is not a tensor of its base" if original is None else "differs from the base's own tensor"
        raise StartError(
            f"{adapter.directory}: {name} is neither LoRA nor a head nor the token embedding, and {why}; "
            f"an adapter must not change the base, which other signals share. {_MERGE}"
        )


def _check_modules(
    trained: Mapping[str, str], adapter: Adapter, base: PreTrainedModel, before_head: Sequence[str]
) -> None:
    """Refuse an adapter of modules that the base does not have, and one that lacks modules that were adapted.

    PEFT leaves modules without tensors as they are in the base, so an incomplete file would give a wrong score.
    """
    where = adapter.directory
    modules = {_strip_base_layer(name): module for name, module in base.named_modules() if ".lora_" not in name}
    foreign = sorted(set(trained) - set(modules))
    for name in before_head:
        if name in foreign:
            raise StartError(f"{where}: LoRA on {name}, the layer before the head, is not served. {_MERGE}")
    if foreign:
        raise StartError(
            f"{where}: the adapter does not fit its base: it adapts {foreign[0]}, which the base does not have; "
            "declare its own `base`"
        )
    given = {key: adapter.config[key] for key in _SELECTING if adapter.config.get(key) is not None}
    # The meaning of these two values depends on the version of PEFT, so lost modules cannot be recognized.
    if not trained or given.get("target_modules") in (None, "all-linear"):
        return
    config, (bare, full) = LoraConfig(**given), next(iter(trained.items()))
    prefix = full.removesuffix(bare)
    layers = (name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding))
    lost = [name for name in layers if name not in trained and check_target_module_exists(config, prefix + name)]
    if lost:
        raise StartError(
            f"{where}: {ADAPTER_CONFIG} says that {prefix}{lost[0]} was adapted, but its tensors are missing "
            f"({len(lost)} modules); save the whole adapter again"
        )


def _check_settings(adapter: Adapter) -> None:
    """Refuse settings that would make the forward pass differ from plain LoRA or change the base."""
    config, where = adapter.config, adapter.directory
    # A setting at its default changes nothing. One that this PEFT does not know is accepted only if it is unset.
    defaults = LoraConfig().to_dict()
    for key, value in config.items():
        if key in _HISTORY or key in _SHAPING or not value:
            continue
        if key not in defaults or value != defaults[key]:
            raise StartError(f"{where}: LoRA setting {key!r} is not served. {_MERGE}")
    if config.get("init_lora_weights", True) not in _HARMLESS_INITS:
        raise StartError(
            f"{where}: init_lora_weights {config['init_lora_weights']!r} changes the base's weights. {_CONVERSION}"
        )
    modules = [module for module in config.get("modules_to_save") or () if f"{module}." not in _OUTPUTS]
    named = [(module, f".{module}.") for module in modules if module not in _HEADS]
    named += [("trainable_token_indices", f".{_DELTA}")] if config.get("trainable_token_indices") else []
    for setting, part in named:
        if not any(part in f".{name}" for name in adapter.tensors):
            raise StartError(
                f"{where}: {ADAPTER_CONFIG} says that {setting!r} was trained, but its tensors are missing; save the "
                "whole adapter again"
            )


def _find_alpha(adapter: Adapter, trained: str) -> float:
    """Return the alpha of a module in training: the value of the pattern that matches the end of its name.

    PEFT takes the first pattern that matches, but sorts the patterns when it saves them. The file does not keep the
    order.
    """
    alphas = set(_match_patterns(adapter, "alpha_pattern", trained))
    if len(alphas) > 1:
        raise StartError(
            f"{adapter.directory}: alpha_pattern has {sorted(alphas)} for {trained}, and the file does not keep which "
            f"of them came first in training; change the patterns in {ADAPTER_CONFIG} so that only one of them matches"
        )
    alpha: float = next(iter(alphas), adapter.config.get("lora_alpha", LoraConfig.lora_alpha))
    return alpha


def _check_rank(adapter: Adapter, trained: str, rank: int) -> None:
    """Refuse a tensor whose rank is not one that the configuration gives its module."""
    known = _match_patterns(adapter, "rank_pattern", trained) or [adapter.config.get("r", LoraConfig.r)]
    if rank not in known:
        raise StartError(
            f"{adapter.directory}: the LoRA tensors of {trained} have rank {rank}, but {ADAPTER_CONFIG} says "
            f"{known[0]}; take both files from one adapter"
        )


def _match_patterns(adapter: Adapter, patterns: str, trained: str) -> list[Any]:
    """Return the values of all patterns that match a module's name in training."""
    given = adapter.config.get(patterns) or {}
    try:
        return [value for key, value in given.items() if get_pattern_key([key], trained) == key]
    except re.error as error:
        raise StartError(f"{adapter.directory}: {patterns} must have regular expressions as keys: {error}") from error


def _strip_base_layer(name: str) -> str:
    """Return the name of a module or tensor as it was before PEFT put a layer around it."""
    return name.removesuffix(".base_layer").replace(".base_layer.", ".")


def _strip_prefixes(name: str, base_model_prefix: str) -> str:
    """Return a tensor's name without the prefixes of PEFT and of the model class."""
    return re.sub(rf"^(?:base_model\.model\.)?(?:{re.escape(base_model_prefix)}\.)?", "", name)
