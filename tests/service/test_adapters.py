"""An adapter changes nothing but its own signal, and scores as PEFT's own model does (scoring-traps 47 to 49)."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from assay_service import loader, registry, resolve
from assay_service.errors import StartError
from assay_service.scoring.checkpoint import read_adapter
from assay_service.scoring.head import Head
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.lineage import check_lineage
from assay_service.scoring.model import RewardModel
from assay_service.settings import Settings
from tests import checkpoints
from tests.service.test_parity import head_of

CPU = torch.device("cpu")
ADDED = 3  # tokens, by runs that resize the embedding
EMBEDDINGS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma"), "embed_tokens"),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "phi3", "qwen3_moe", "qwen3_5_text"), "embed_tokens"),
    "gpt_neox": "embed_in",
    "modernbert": "tok_embeddings",
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "deberta-v2"), "word_embeddings"),
}
FULL_NAMES = {"llama": "model.embed_tokens", "gpt_neox": "gpt_neox.embed_in"}
TARGETS = {
    **{name: ["q_proj", "down_proj"] for name in ("llama", "qwen2", "qwen3", "mistral", "gemma")},
    **{name: ["q_proj", "down_proj"] for name in ("gemma2", "gemma3_text", "olmo2")},
    "qwen3_moe": ["q_proj", "o_proj"],
    "qwen3_5_text": ["in_proj_qkv", "out_proj", "q_proj", "down_proj"],
    "phi3": ["qkv_proj", "down_proj"],
    "modernbert": ["Wqkv", "Wi"],
    "gpt_neox": ["query_key_value"],
    **{name: ["query"] for name in ("bert", "roberta", "xlm-roberta")},
    "deberta-v2": ["query_proj"],
}


def trained(directory: Path, base: Any, *, added: int = 0, task: TaskType = TaskType.SEQ_CLS, **lora: Any) -> Any:
    """Return a PEFT model around a copy of `base` whose trained tensors are random, after saving its adapter.

    Args:
        directory: of the adapter.
        base: a transformers model; is not changed.
        added: tokens that the embedding is resized by; it is then saved, as PEFT does where the vocabulary has grown.
        task: what PEFT wraps the model for.
        lora: settings besides rank and modules.
    """
    torch.manual_seed(len(directory.name))
    base = copy.deepcopy(base)
    if added:
        base.resize_token_embeddings(base.config.vocab_size + added, mean_resizing=False)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[base.config.model_type], **lora}
    wrapped = get_peft_model(base, LoraConfig(task_type=task, **settings))
    randomize(wrapped)
    with_embedding = bool(added) or EMBEDDINGS[base.config.model_type] in settings["target_modules"]
    wrapped.save_pretrained(directory, save_embedding_layers=with_embedding)
    return wrapped.eval()


def randomize(wrapped: Any) -> None:
    """Put random numbers of the size of the model's own into all that is trained."""
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def kinds(architecture: str) -> dict[str, dict[str, Any]]:
    """Return the settings of an adapter of every kind that is served, by name."""
    embedding, targets = EMBEDDINGS[architecture], TARGETS[architecture]
    with_pooler = {"with-pooler": {"modules_to_save": ["pooler"]}} if architecture in ("bert", "deberta-v2") else {}
    return with_pooler | {
        "plain": {},
        "dora": {"use_dora": True},
        "lora-on-embedding": {"target_modules": [*targets, embedding]},
        "resized": {"added": ADDED},
        "resized-and-indices": {"added": ADDED, "trainable_token_indices": [5, 9]},
        "resized-and-lora-on-embedding": {"added": ADDED, "target_modules": [*targets, embedding], "use_rslora": True},
        "modules-to-save": {"modules_to_save": [embedding]},
        "indices": {"trainable_token_indices": [11, 5, 9]},
        "indices-by-module": {"trainable_token_indices": {embedding: [40, 41]}},
        "indices-by-full-name": {"trainable_token_indices": {FULL_NAMES.get(architecture, embedding): [9]}},
    }


def sequences(vocabulary: int, *, added: int = 0, count: int = 6) -> list[TokenSequence]:
    """Return random sequences; the added tokens and those that have rows of their own are among them."""
    generator = torch.Generator().manual_seed(vocabulary)
    made = []
    for number in range(count):
        ids = torch.randint(8, vocabulary, (7 + 9 * number,), generator=generator).tolist()
        ids[1:6] = [vocabulary - 1 - number % (added or 1), 5, 9, 11, 40]
        made.append(TokenSequence(tuple(ids), 3, Span(len(ids) - 1, len(ids))))
    return made


def with_position(architecture: str, made: list[TokenSequence]) -> list[TokenSequence]:
    """Return the sequences, read at the first token where the architecture's classifier does so."""
    span = Span(0, 1) if architecture in checkpoints.ENCODERS else None
    return [TokenSequence(s.ids, s.boundary, span or s.score) for s in made]


def hashes(model: RewardModel) -> dict[str, str]:
    """Return the SHA-256 of every tensor of the base, under the name that it has without adapters."""
    own = {n.replace(".base_layer.", "."): t for n, t in model.base.state_dict().items() if "lora_" not in n}
    return {n: hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in own.items()}


def logits(model: RewardModel, name: str, made: list[TokenSequence]) -> list[float]:
    with torch.inference_mode():
        return model.logits(made, name).tolist()


def served(base: Path, adapters: Mapping[str, Path | None], dtype: torch.dtype = torch.float32) -> RewardModel:
    """Return a base with a signal for each adapter, or for None the bare one."""
    model = RewardModel.load(base, dtype, CPU)
    for name, directory in adapters.items():
        read = [] if directory is None else [read_adapter(directory)[0]]
        model.add_signal(name, head_of(base, model, directory), *read)
    return model


def saved(directory: Path, architecture: str, **more: Any) -> tuple[Path, Any]:
    fast = checkpoints.tokenizer_of(architecture)
    base = checkpoints.classifier(architecture, fast, **more)
    return checkpoints.save(directory, base, fast), base


@pytest.mark.parametrize("architecture", checkpoints.CONFIGS)
def test_adapters_of_every_kind_score_as_peft_does_and_leave_the_base_as_it_was(
    architecture: str, tmp_path: Path
) -> None:
    """Every base tensor keeps its bytes and the bare signal its bits, whichever adapters come and are used."""
    directory, base = saved(tmp_path / "base", architecture)
    vocabulary = base.config.vocab_size
    oracles = {name: trained(tmp_path / name, base, **settings) for name, settings in kinds(architecture).items()}
    alone = served(directory, {"bare": None})
    before = hashes(alone)
    alone.make_invariant()
    plain = with_position(architecture, sequences(vocabulary))
    expected = logits(alone, "bare", plain)
    model = served(directory, {"bare": None} | {name: tmp_path / name for name in oracles})
    assert hashes(model) == before
    model.make_invariant()
    packed = hashes(model)
    for name, oracle in oracles.items():
        added = kinds(architecture)[name].get("added", 0)
        assert model.get_vocabulary_size(name) == vocabulary + added
        made = with_position(architecture, sequences(vocabulary + added, added=added))
        right = [checkpoints.oracle(oracle, s.ids) for s in made]
        assert logits(model, name, made) == pytest.approx(right, abs=2e-5), name
        assert max(right) - min(right) > 0.05
        assert logits(model, "bare", plain) == expected
    assert hashes(model) == packed


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_signal_with_its_own_embedding_has_its_bits_alone_and_beside_others(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Also of sequences that are computed one by one, and in another order."""
    directory, base = saved(tmp_path / "base", "llama")
    adapters: dict[str, Path | None] = {}
    for name in ("resized", "modules-to-save", "indices"):
        trained(tmp_path / name, base, **kinds("llama")[name])
        adapters[name] = tmp_path / name
    together = served(directory, {"bare": None} | adapters, dtype)
    together.make_invariant()
    for name, adapter in adapters.items():
        alone = served(directory, {name: adapter}, dtype)
        alone.make_invariant()
        made = sequences(together.get_vocabulary_size(name), added=ADDED if name == "resized" else 0)
        expected = logits(alone, name, made)
        assert logits(together, name, made) == expected
        assert logits(together, name, made[::-1]) == expected[::-1]
        assert [logits(together, name, [one])[0] for one in made] == expected
        assert expected != logits(together, "bare", [TokenSequence(s.ids[3:], 0, Span(0, 1)) for s in made])


def test_only_the_rows_that_differ_take_memory(tmp_path: Path) -> None:
    """A resized embedding whose old rows were frozen holds three rows of 32 fp32 numbers, and where they are."""
    directory, base = saved(tmp_path / "base", "llama")
    vocabulary = base.config.vocab_size
    for name in ("plain", "resized", "indices", "modules-to-save"):
        trained(tmp_path / name, base, **kinds("llama")[name])
    names = ("plain", "resized", "indices", "modules-to-save")
    model = served(directory, {name: tmp_path / name for name in names})
    plain, resized, indices, whole = (model.count_own_bytes(name) for name in names)
    # Two layers: q_proj 32 -> 32 and down_proj 64 -> 32 by rank 4, and a head of 32.
    assert plain == 4 * (2 * 4 * (32 + 32 + 64 + 32) + 32)
    assert resized - plain == ADDED * 32 * 4 + (vocabulary + ADDED) * 4
    assert indices - plain == 3 * 32 * 4 + vocabulary * 4
    assert whole - plain == vocabulary * 32 * 4 + vocabulary * 4


def patterns(names: list[str]) -> list[str]:
    """Return patterns as users write them, for modules `names` as they are called in training."""
    first = names[0]
    layers = re.sub(r"\.\d+\..*", "", first)
    last = first.rpartition(".")[2]
    start, _, stem = layers.partition(".")
    return [
        last,
        first,
        f"^{first}",
        re.escape(first),
        rf"{re.escape(layers)}\.[01]\..*{last}",
        rf".*\.{re.escape(stem or start)}\.[01]\..*{last}",
        rf"^{re.escape(layers)}\.1\..*",
        rf"({re.escape(layers)}\.0|{re.escape(layers)}\.2)\..*",
        rf"{re.escape(stem or start)}\.[01]\..*{last}",
        "no_such_module",
    ]


# Their layers have the names of Llama's or RoBERTa's, and patterns see names only.
NAMED_ALIKE = ("gemma2", "gemma3_text", "olmo2", "qwen3_moe", "xlm-roberta")


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("architecture", [name for name in checkpoints.CONFIGS if name not in NAMED_ALIKE])
def test_patterns_of_ranks_and_alphas_are_those_of_peft(architecture: str, tmp_path: Path) -> None:
    """Trap 47: they go by names in training, which a bare base does not have."""
    directory, base = saved(tmp_path / "base", architecture)
    wrapped = trained(tmp_path / "names", base)
    names = [n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")]
    forms: dict[str, dict[str, Any]] = {}
    for number, pattern in enumerate(patterns(names)):
        forms[f"alpha{number}"] = {"alpha_pattern": {pattern: 64}}
        forms[f"rank{number}"] = {"rank_pattern": {pattern: 2}, "use_rslora": number % 2 == 0}
    # Training takes 2 for the first layer. PEFT saves the patterns in another order, but the tensors have the rank.
    ranks = {rf"{names[0]}": 2, ".*": 3}
    forms["dora"] = {"alpha_pattern": {patterns(names)[3]: 64}, "rank_pattern": ranks, "use_dora": True}
    oracles = {name: trained(tmp_path / name, base, **settings) for name, settings in forms.items()}
    model = served(directory, {name: tmp_path / name for name in oracles})
    made = with_position(architecture, sequences(base.config.vocab_size, count=2))
    for name, oracle in oracles.items():
        right = [checkpoints.oracle(oracle, s.ids) for s in made]
        assert logits(model, name, made) == pytest.approx(right, abs=1e-4, rel=1e-4), forms[name]


def test_an_alpha_pattern_changes_the_score(tmp_path: Path) -> None:
    """The other test would pass on patterns that match nothing anywhere."""
    directory, base = saved(tmp_path / "base", "llama")
    with_it = trained(tmp_path / "a", base, alpha_pattern={r"model\.layers\.[01]\..*q_proj": 64})
    without = trained(tmp_path / "b", base)
    made = sequences(base.config.vocab_size)
    model = served(directory, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert logits(model, "a", made) != pytest.approx(logits(model, "b", made), abs=0.05)
    assert [checkpoints.oracle(with_it, s.ids) for s in made] != pytest.approx(
        [checkpoints.oracle(without, s.ids) for s in made], abs=0.05
    )


def test_alphas_whose_order_the_file_has_lost_are_refused(tmp_path: Path) -> None:
    """PEFT trains by the first pattern that matches and sorts them when saving; its own reload scales otherwise."""
    directory, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "a", base, alpha_pattern={r"layers\.0\..*": 64, ".*": 16})
    kept = json.loads((tmp_path / "a/adapter_config.json").read_text())["alpha_pattern"]
    assert next(iter(kept)) == ".*"
    with pytest.raises(StartError, match=r"alpha_pattern has \[16, 64\] for model\.layers\.0\."):
        served(directory, {"a": tmp_path / "a"})


def change_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(dict(change(load_file(path))), path, metadata={"format": "pt"})


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


PREFIX = "base_model.model.model."


@pytest.mark.parametrize(
    "name",
    [
        "norm.weight",
        "layers.0.input_layernorm.weight",
        "layers.1.mlp.down_proj.base_layer.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.0.self_attn.q_proj.base_layer.bias",
    ],
)
def test_a_tensor_that_would_change_the_base_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Trap 48: `load_state_dict` would write it over the base of every signal."""
    directory, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "a", base)
    change_tensors(tmp_path / "a", lambda tensors: tensors | {PREFIX + name: torch.full((32,), 0.5)})
    with pytest.raises(StartError, match=rf"{re.escape(name)} is neither LoRA.* must not change the base.*Merge the"):
        served(directory, {"a": tmp_path / "a"})


SELECTIONS: dict[str, dict[str, Any]] = {
    "names": {},
    "one layer": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "layers": {"layers_to_transform": [1]},
    "an expression": {"target_modules": r".*layers\.[01]\.(self_attn|mlp)\.(q|down)_proj"},
    "exclusions": {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\.mlp.*"},
    "an embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a language model's": {"target_modules": ["v_proj", "lm_head"], "task": TaskType.CAUSAL_LM},
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_an_adapter_that_lacks_a_module_is_refused(selection: str, tmp_path: Path) -> None:
    """PEFT would leave that module as the base has it, and the score would be another one."""
    fast = checkpoints.tokenizer_of("llama")
    base = checkpoints.language_model("llama", fast)
    directory = checkpoints.save(tmp_path / "base", base, fast)
    trained(tmp_path / "a", base, **{"task": TaskType.FEATURE_EXTRACTION, **SELECTIONS[selection]})
    path, model = tmp_path / "a" / "adapter_model.safetensors", RewardModel.load(directory, torch.float32, CPU)
    head = Head(torch.ones(1, model.hidden_size), None)
    model.add_signal("whole", head, read_adapter(tmp_path / "a")[0])
    model.add_signal("beside another", head, read_adapter(tmp_path / "a")[0])
    tensors = load_file(path)
    lost = sorted({re.sub(r"\.lora_.*", "", name) for name in tensors if ".layers." in name})[-1]
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}, path)
    alone = RewardModel.load(directory, torch.float32, CPU)
    for one in (model, alone):
        with pytest.raises(
            StartError, match=rf"{lost.removeprefix('base_model.model.')} was adapted, .* \(1 modules\)"
        ):
            one.add_signal("lost", head, read_adapter(tmp_path / "a")[0])


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("bert", r"pooler\.dense"), ("deberta-v2", r"pooler\.dense"), ("modernbert", r"head\.dense")],
)
def test_lora_on_the_layer_before_the_head_is_refused_by_name(architecture: str, layer: str, tmp_path: Path) -> None:
    directory, base = saved(tmp_path / "base", architecture)
    trained(tmp_path / "a", base, target_modules="all-linear")
    with pytest.raises(StartError, match=rf"LoRA on {layer}, the layer before the head, is not served\. Merge"):
        served(directory, {"a": tmp_path / "a"})


def test_copies_of_the_base_and_output_layers_are_left_alone(tmp_path: Path) -> None:
    """They do not change what a reward reads; nor does an output layer that the language model was trained with."""
    directory, base = saved(tmp_path / "base", "llama")
    oracle = trained(tmp_path / "a", base)
    weights = {n.removeprefix("model."): t for n, t in base.state_dict().items()}
    copies = {PREFIX + "layers.0.mlp.up_proj.weight": weights["layers.0.mlp.up_proj.weight"].clone()}
    outputs = {f"base_model.model.lm_head.{n}": torch.ones(4, 32) for n in ("weight", "lora_A.weight", "lora_B.weight")}
    change_tensors(tmp_path / "a", lambda tensors: tensors | copies | outputs)
    model = served(directory, {"a": tmp_path / "a"})
    made = sequences(base.config.vocab_size)
    assert logits(model, "a", made) == pytest.approx([checkpoints.oracle(oracle, s.ids) for s in made], abs=1e-5)
    assert model.count_own_bytes("a") == 4 * (2 * 4 * (32 + 32 + 64 + 32) + 32)


@pytest.mark.parametrize("kind", ["plain", "dora", "indices", "modules-to-save", "lora-on-embedding"])
def test_a_raw_state_dict_is_read_as_what_it_is(kind: str, tmp_path: Path) -> None:
    """Some scripts save `model.state_dict()`: adapters' names in every key, originals beside heads, the whole base."""
    directory, base = saved(tmp_path / "base", "llama")
    oracle = trained(tmp_path / "a", base, **kinds("llama")[kind])
    raw = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    assert {"base_model.model.score.original_module.weight", "base_model.model.model.norm.weight"} < raw.keys()
    save_file(raw, tmp_path / "a/adapter_model.safetensors", metadata={"format": "pt"})
    made = sequences(base.config.vocab_size)
    right = [checkpoints.oracle(oracle, s.ids) for s in made]
    assert logits(served(directory, {"a": tmp_path / "a"}), "a", made) == pytest.approx(right, abs=1e-5)
    two = {n.replace(".default.", ".other."): t.clone() for n, t in raw.items() if ".lora_A.default." in n}
    save_file(raw | two, tmp_path / "a/adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartError, match=r"holds several adapters \(default, other\)"):
        served(directory, {"a": tmp_path / "a"})


def test_settings_that_do_not_change_a_trained_adapter_are_accepted(tmp_path: Path) -> None:
    directory, base = saved(tmp_path / "base", "llama")
    oracle = trained(tmp_path / "a", base)
    history = {"exclude_modules": ["lm_head"], "layers_to_transform": [0, 1], "layers_pattern": "layers"}
    eva = {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99, "whiten": False}}
    change_config(tmp_path / "a", ensure_weight_tying=True, **history, **eva)
    made = sequences(base.config.vocab_size)
    right = [checkpoints.oracle(oracle, s.ids) for s in made]
    assert logits(served(directory, {"a": tmp_path / "a"}), "a", made) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'pissa_niter_4' changes the base.*path_initial_model_for_weight_conv",
        ),
        ({"init_lora_weights": "loftq"}, "'loftq' changes the base.*set init_lora_weights to true"),
        ({"bias": "lora_only"}, "'bias' is not served. Merge the adapter into its base"),
        ({"modules_to_save": ["norm"]}, "'norm' was trained, .* its tensors are missing"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices' was trained, .* its tensors are missing"),
        ({"r": 16}, "have rank 4, but adapter_config.json says 16"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern must have regular expressions as keys"),
    ],
)
def test_settings_that_are_not_served_are_refused_with_what_to_do(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "a", base)
    change_config(tmp_path / "a", **changes)
    with pytest.raises(StartError, match=message):
        served(directory, {"a": tmp_path / "a"})


def test_an_adapter_of_experts_is_refused(tmp_path: Path) -> None:
    """PEFT turns the name of a linear layer into the parameters of all experts."""
    directory, base = saved(tmp_path / "base", "qwen3_moe")
    trained(tmp_path / "a", base, target_modules=["q_proj", "down_proj"])
    with pytest.raises(StartError, match=r"'target_parameters' is not served\. Merge the adapter into its base"):
        served(directory, {"a": tmp_path / "a"})


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (None, "must list the token ids"),
        ({"lm_head": [1, 2]}, "must list the token ids"),
        ([1], "must be 3 different ids"),
        ([1, 1, 2], "must be 3 different ids"),
        ([1, 1, 2, 3], "must be 3 different ids"),
        ([-1, 1, 2], "must be 3 different ids"),
        ([1, 2, 900], r"token 367 lies beyond the base's embedding and has no row; save .* save_embedding_layers=True"),
    ],
)
def test_rows_that_belong_to_no_token_are_refused(indices: Any, message: str, tmp_path: Path) -> None:
    directory, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "a", base, **kinds("llama")["indices"])
    change_config(tmp_path / "a", trainable_token_indices=indices)
    with pytest.raises(StartError, match=message):
        served(directory, {"a": tmp_path / "a"})


def test_a_row_behind_the_base_s_last_token_is_a_new_token(tmp_path: Path) -> None:
    """A run that added a token and trained only its row, saved without the embedding."""
    directory, base = saved(tmp_path / "base", "llama")
    vocabulary = base.config.vocab_size
    larger = copy.deepcopy(base)
    larger.resize_token_embeddings(vocabulary + 1, mean_resizing=False)
    oracle = trained(tmp_path / "a", larger, trainable_token_indices=[vocabulary])
    model = served(directory, {"a": tmp_path / "a"})
    assert model.get_vocabulary_size("a") == vocabulary + 1
    made = sequences(vocabulary + 1, added=1)
    right = [checkpoints.oracle(oracle, s.ids) for s in made]
    assert logits(model, "a", made) == pytest.approx(right, abs=1e-5)


def test_a_width_of_another_base_is_refused(tmp_path: Path) -> None:
    directory, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "a", base)
    change_tensors(tmp_path / "a", lambda tensors: tensors | {PREFIX + "embed_tokens.weight": torch.zeros(300, 48)})
    with pytest.raises(StartError, match=r"embedding of shape \[300, 48\], but tokens of this base have 32 numbers"):
        served(directory, {"a": tmp_path / "a"})


def stacked(root: Path, first: dict[str, Any], second: dict[str, Any], architecture: str = "llama") -> tuple[Path, Any]:
    """Train `root/sft` on `root/base`, merge it, train `root/reward` on the result; return the base and the oracle."""
    fast = checkpoints.tokenizer_of(architecture)
    language_model = checkpoints.language_model(architecture, fast)
    directory = checkpoints.save(root / "base", language_model, fast)
    sft = trained(root / "sft", language_model, task=TaskType.CAUSAL_LM, **first)
    sft.merge_and_unload().save_pretrained(root / "merged")
    torch.manual_seed(7)
    merged = AutoModelForSequenceClassification.from_pretrained(
        root / "merged", num_labels=1, pad_token_id=fast.pad_token_id
    )
    return directory, trained(root / "reward", merged, **second)


STACKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"use_rslora": True}, {"alpha_pattern": {".*down_proj": 32}}),
    "dora-first": ({"use_dora": True}, {}),
    "tokens-added-first": ({"added": ADDED}, {"trainable_token_indices": [5, 9]}),
    "lora-on-both-embeddings": (
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["v_proj", "embed_tokens"]},
    ),
}


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.parametrize("form", STACKS)
def test_a_reward_on_an_sft_adapter_scores_as_merging_them_in_order(form: str, tmp_path: Path) -> None:
    """Trap 49: on the plain base it starts as well, and is wrong. Its neighbors keep their bits."""
    first, second = STACKS[form]
    directory, oracle = stacked(tmp_path, first, second)
    wrong = (tmp_path / "reward",)
    stack = (tmp_path / "sft", tmp_path / "reward")
    model = RewardModel.load(directory, torch.float32, CPU)
    before = hashes(model)
    for name, directories in {"stack": stack, "wrong": wrong, "sft": stack[:1]}.items():
        head = head_of(tmp_path / "base", model, tmp_path / "reward")
        model.add_signal(name, head, *(read_adapter(part)[0] for part in directories))
    assert hashes(model) == before
    model.make_invariant()
    added = first.get("added", 0)
    vocabulary = int(oracle.config.vocab_size)
    assert model.get_vocabulary_size("stack") == vocabulary
    made = sequences(vocabulary, added=added)
    right = [checkpoints.oracle(oracle, s.ids) for s in made]
    found = logits(model, "stack", made)
    assert found == pytest.approx(right, abs=1e-4)
    if not added:
        assert logits(model, "wrong", made) != pytest.approx(right, abs=1e-2)
    assert logits(model, "stack", made[::-1]) == found[::-1]


def test_dora_on_another_adapter_is_refused(tmp_path: Path) -> None:
    """Its norms are those of the merged weight, which is nowhere."""
    directory, _ = stacked(tmp_path, {}, {"use_dora": True})
    model = RewardModel.load(directory, torch.float32, CPU)
    head = head_of(directory, model, tmp_path / "reward")
    adapters = [read_adapter(tmp_path / name)[0] for name in ("sft", "reward")]
    with pytest.raises(StartError, match="DoRA on top of another adapter is not served; merge the adapters before it"):
        model.add_signal("s", head, *adapters)


def configuration(root: Path, **signal: Any) -> Settings:
    declared = {"kind": "preference", "eos": "template", "unfinished": "score", "score_position": "last_token"}
    raw = {"signals": {"s": {"base": "base", **declared, **signal}}, "default": "s", "directory": root}
    return Settings.model_validate(raw)


def load(root: Path, **signal: Any) -> registry.Registry:
    return loader.load(configuration(root, **signal))


@pytest.mark.parametrize("kind", ["resized", "indices"])
def test_runs_that_added_tokens_start_and_their_scores_are_proved(kind: str, tmp_path: Path) -> None:
    """The fingerprint covers the rows and which tokens they belong to."""
    _, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "adapter", base, **kinds("llama")[kind])
    found = load(tmp_path, adapter="adapter")
    assert found.invariant == {"s": True}
    if kind == "indices":
        change_config(tmp_path / "adapter", trainable_token_indices=[11, 5, 10])
    else:
        name = PREFIX + "embed_tokens.weight"
        change_tensors(tmp_path / "adapter", lambda tensors: tensors | {name: tensors[name] + 1})
    assert load(tmp_path, adapter="adapter").fingerprint() != found.fingerprint()


def test_a_stack_is_declared_as_a_list_and_its_order_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    stacked(tmp_path, {}, {})
    found = load(tmp_path, adapter=["sft", "reward"])
    signal = found.signals["s"]
    made = sequences(signal.model.get_vocabulary_size("s"))
    assert found.invariant == {"s": True}
    with pytest.raises(StartError, match=r"trained on .*merged, but `base` is .*`adapter: \[FIRST, .*reward\]`"):
        load(tmp_path, adapter="reward")
    change_config(tmp_path / "reward", base_model_name_or_path=str(tmp_path / "base"))  # as after merge_and_unload
    both, alone = signal.provenance.adapter_sha256, load(tmp_path, adapter="reward").signals["s"]
    assert both is not None
    assert both != alone.provenance.adapter_sha256
    assert signal.model.logits(made, "s").tolist() != alone.model.logits(made, "s").tolist()
    with pytest.raises(StartError, match="sft: the adapter has no head"):
        load(tmp_path, adapter=["reward", "sft"])
    (tmp_path / "sft/assay.json").write_text(json.dumps({"base_sha256": "0" * 64}))
    with pytest.raises(StartError, match="base_sha256 differs"):
        load(tmp_path, adapter=["sft", "reward"])
    (tmp_path / "sft/assay.json").rename(tmp_path / "reward/assay.json")
    with pytest.raises(StartError, match="trained on a whole base, not on top of another adapter"):
        load(tmp_path, adapter=["sft", "reward"])


def test_an_adapter_that_names_another_adapter_as_its_base_asks_for_both(tmp_path: Path) -> None:
    stacked(tmp_path, {}, {})
    sft, reward = tmp_path / "sft", tmp_path / "reward"
    change_config(reward, base_model_name_or_path=str(sft))
    with pytest.raises(StartError, match=rf"declare both, in that order: `adapter: \[{sft}, {reward}\]`"):
        resolve.resolve(configuration(tmp_path, adapter="reward"))
    assert resolve.resolve(configuration(tmp_path, adapter=["sft", "reward"]))["s"].adapters == (sft, reward)


def test_an_adapter_of_another_directory_is_refused_unless_it_is_declared_the_same(tmp_path: Path) -> None:
    """Compared as far as that is certain: a path of another machine may be any base."""
    _, base = saved(tmp_path / "base", "llama")
    saved(tmp_path / "other", "llama")
    trained(tmp_path / "adapter", base)
    for fine in ("", None, "/nowhere/base", "somebody/some-model", str(tmp_path / "base")):
        change_config(tmp_path / "adapter", base_model_name_or_path=fine)
        assert resolve.resolve(configuration(tmp_path, adapter="adapter"))
    other = str(tmp_path / "other")
    change_config(tmp_path / "adapter", base_model_name_or_path=other)
    with pytest.raises(StartError, match=rf"was trained on {other}, but `base` is .*`adapter_base: {other}`"):
        resolve.resolve(configuration(tmp_path, adapter="adapter"))
    assert resolve.resolve(configuration(tmp_path, adapter="adapter", adapter_base=other))
    with pytest.raises(StartError, match="adapter_base: is declared without an `adapter`"):
        resolve.resolve(configuration(tmp_path, adapter_base="x"))
    with pytest.raises(StartError, match=r"adapter_base: is 'x', but .* says"):
        resolve.resolve(configuration(tmp_path, adapter="adapter", adapter_base="x"))


@pytest.mark.parametrize(
    ("trained_on", "same"),
    [("meta-llama/Llama-3.2-1B", True), ("unsloth/llama-3.2-1b", True), ("meta-llama/Llama-2-7b-hf", False)],
)
def test_hub_ids_of_other_models_are_other_bases(trained_on: str, same: bool, tmp_path: Path) -> None:
    """Copies under another owner keep the name."""
    _, base = saved(tmp_path / "base", "llama")
    trained(tmp_path / "adapter", base)
    change_config(tmp_path / "adapter", base_model_name_or_path=trained_on)
    adapters = [tmp_path / "adapter"]
    if same:
        check_lineage(adapters, tmp_path / "base", "meta-llama/Llama-3.2-1B")
        return
    with pytest.raises(StartError, match=r"but `base` is meta-llama/Llama-3\.2-1B; declare the right `base`"):
        check_lineage(adapters, tmp_path / "base", "meta-llama/Llama-3.2-1B")
    check_lineage(adapters, tmp_path / "base", "meta-llama/Llama-3.2-1B", trained_on)
