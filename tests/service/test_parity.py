"""The packed forward against transformers' own, one item at a time (scoring-traps: the test oracle)."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from assay_service.errors import StartError
from assay_service.scoring.architectures import find_longest_scaled, find_longest_sequence, read_activation
from assay_service.scoring.checkpoint import read_adapter, read_dense, read_head
from assay_service.scoring.files import list_weight_files, read_config
from assay_service.scoring.head import Dense, Head
from assay_service.scoring.item import Item, Message
from assay_service.scoring.kernels.backend import Kernels
from assay_service.scoring.manifest import ScorePosition
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints

LENGTHS = (1, 2, 3, 7, 20, 31, 57, 90)
ARCHITECTURES = tuple(checkpoints.CONFIGS)
BOTH = pytest.mark.usefixtures("kernels")


def items() -> list[Item]:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "I",
        "bake",
        "bread",
        "for",
        "you",
        "1",
        "2",
        "3",
    ]
    texts = [" ".join(words[i % len(words)] for i in range(n)) for n in LENGTHS]
    pairs = [Item.of(texts[i], texts[-1 - i]) for i in range(len(texts))]
    long = Item(
        (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "bread"), Message("assistant", "flour"))
    )
    return [*pairs, long, Item.of("", "x"), Item.of("x", "")]


def head_of(directory: Path, model: RewardModel, adapter: Path | None = None) -> Head:
    """The head in `directory` or `adapter`, with the layer before it where the architecture has one."""
    own = list_weight_files(directory)
    files = own if adapter is None else [adapter / "adapter_model.safetensors"]
    head = read_head(files)
    assert head is not None
    if model.architecture.dense is None:
        return Head(head.weight, head.bias)
    dense = read_dense([*files, *own], model.architecture.dense, model.architecture.norm)
    assert dense is not None
    return Head(head.weight, head.bias, Dense(dense, read_activation(read_config(directory))))


def renderer_of(architecture: str, fast: PreTrainedTokenizerFast) -> Renderer:
    position: ScorePosition = "pooler" if architecture in checkpoints.ENCODERS else "last_non_pad_id"
    rules = RenderRules(fast.chat_template, 254, position, "template", "score", fast.pad_token_id)
    return Renderer(fast, rules, len(fast))


def check_against_oracle(architecture: str, reference: Any, directory: Path) -> RewardModel:
    """Holds what is served from `directory` to what `reference` gives; returns the model."""
    fast = checkpoints.tokenizer_of(architecture)
    model = RewardModel.load(directory, torch.float32, torch.device("cpu"))
    model.add_signal("s", head_of(directory, model))
    model.make_invariant()
    sequences = [renderer_of(architecture, fast).render(item).sequence for item in items()]
    with torch.inference_mode():
        logits = model.logits(sequences, "s").tolist()
    expected = [checkpoints.oracle(reference, sequence.ids) for sequence in sequences]
    assert max(expected) - min(expected) > 0.1  # the rows have different logits
    assert logits == pytest.approx(expected, abs=1e-5)
    return model


@BOTH
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_item_of_a_mixed_batch_has_the_oracle_logit(architecture: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast)
    directory = checkpoints.save(tmp_path, reference, fast)
    check_against_oracle(architecture, reference, directory)


@BOTH
@pytest.mark.parametrize("architecture", [*checkpoints.ENCODERS])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_text_with_the_pad_of_the_configuration_scores_as_in_transformers(
    architecture: str, rank: int, tmp_path: Path
) -> None:
    """RoBERTa's positions do not count the pad, also where the template prints it or `pad_token_id` is a word's."""
    fast = checkpoints.tokenizer_of(architecture)
    texts = [renderer_of(architecture, fast).render(item).sequence.ids for item in items()]
    pad = Counter(token for ids in texts for token in ids).most_common()[rank][0]
    reference = checkpoints.classifier(architecture, fast, pad_token_id=pad, max_position_embeddings=1024)
    directory = checkpoints.save(tmp_path, reference, fast)
    check_against_oracle(architecture, reference, directory)


@BOTH
@pytest.mark.parametrize("architecture", ["llama", "bert", "roberta", "deberta-v2"])
def test_adapters_on_one_base_score_as_peft_does_alone(architecture: str, tmp_path: Path) -> None:
    """Traps 17 and 18: every adapter uses its own weights and its own head, and the bare base stays bare."""
    fast = checkpoints.tokenizer_of(architecture)
    base = checkpoints.classifier(architecture, fast)
    checkpoints.save(tmp_path / "base", base, fast)
    model = RewardModel.load(tmp_path / "base", torch.float32, torch.device("cpu"))
    oracles = {"bare": base}
    model.add_signal("bare", head_of(tmp_path / "base", model))
    for seed, name in enumerate(("first", "second"), start=1):
        directory, wrapped = checkpoints.save_adapter(tmp_path / name, copy.deepcopy(base), seed=seed)
        adapter, _ = read_adapter(directory)
        model.add_signal(name, head_of(tmp_path / "base", model, directory), adapter)
        oracles[name] = wrapped
    model.make_invariant()
    sequences = [renderer_of(architecture, fast).render(item).sequence for item in items()]
    expected = {name: [checkpoints.oracle(reference, s.ids) for s in sequences] for name, reference in oracles.items()}
    for name in ("first", "bare", "second", "first"):
        with torch.inference_mode():
            assert model.logits(sequences, name).tolist() == pytest.approx(expected[name], abs=1e-5)
    assert expected["first"] != pytest.approx(expected["second"], abs=1e-2)


@BOTH
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 8}},
        {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 64}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_adapters_of_every_served_form_score_as_peft_loads_them(settings: dict[str, Any], tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of("llama")
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(tmp_path / "base", base, fast)
    directory, wrapped = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(base), lora=settings)
    model = RewardModel.load(tmp_path / "base", torch.float32, torch.device("cpu"))
    adapter, head = read_adapter(directory)
    assert head is not None
    model.add_signal("s", Head(head.weight, head.bias), adapter)
    model.make_invariant()
    sequences = [renderer_of("llama", fast).render(item).sequence for item in items()]
    with torch.inference_mode():
        logits = model.logits(sequences, "s").tolist()
    assert logits == pytest.approx([checkpoints.oracle(wrapped, s.ids) for s in sequences], abs=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_signal_has_the_same_bits_whichever_others_share_its_base(dtype: torch.dtype, tmp_path: Path) -> None:
    """Among them an adapter around every layer, and two with DoRA, which reads the weights: of some layers, of all."""
    fast = checkpoints.tokenizer_of("llama")
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(tmp_path / "base", base, fast)
    forms: dict[str, dict[str, Any]] = {
        "wide": {"target_modules": "all-linear"},
        "dora": {"use_dora": True},
        "wide-dora": {"use_dora": True, "target_modules": "all-linear"},
    }
    for seed, (name, lora) in enumerate(forms.items()):
        checkpoints.save_adapter(tmp_path / name, copy.deepcopy(base), seed=seed, lora=lora)
    sequences = [renderer_of("llama", fast).render(item).sequence for item in items()]

    def logits(names: tuple[str, ...]) -> dict[str, list[float]]:
        model = RewardModel.load(tmp_path / "base", dtype, torch.device("cpu"))
        for name in names:
            adapters = [] if name == "bare" else [read_adapter(tmp_path / name)[0]]
            model.add_signal(name, head_of(tmp_path / "base", model), *adapters)
        model.make_invariant()
        with torch.inference_mode():
            return {name: model.logits(sequences, name).tolist() for name in names}

    together = logits(("wide", "bare", "dora", "wide-dora"))
    assert together["bare"] != together["wide"] != together["dora"] != together["wide-dora"]
    for name in together:
        assert logits((name,))[name] == together[name]


def test_a_window_that_transformers_ignores_is_ignored(tmp_path: Path) -> None:
    """A Mistral in Llama's format may have kept its `sliding_window`, which Llama's code does not read."""
    fast = checkpoints.tokenizer_of("llama")
    reference = checkpoints.classifier("llama", fast, sliding_window=16)
    check_against_oracle("llama", reference, checkpoints.save(tmp_path, reference, fast))


def test_heads_of_odd_size_are_served_without_the_kernels(tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of("bert")
    reference = checkpoints.classifier("bert", fast, hidden_size=36, num_attention_heads=4)
    model = check_against_oracle("bert", reference, checkpoints.save(tmp_path, reference, fast))
    assert model.kernels == Kernels("torch", "no CPU kernels: they need heads of even size")


ROPES = {
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


@BOTH
@pytest.mark.parametrize("rope_type", ROPES)
def test_position_scalings_do_not_depend_on_neighbors(rope_type: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of("llama")
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPES[rope_type]}
    reference = checkpoints.classifier("llama", fast, rope_parameters=rope)
    check_against_oracle("llama", reference, checkpoints.save(tmp_path, reference, fast))


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
}


@BOTH
def test_longrope_is_served_to_its_original_length(tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of("phi3")
    rope = LONGROPE | {"partial_rotary_factor": 1.0}
    size = {"max_position_embeddings": 512, "original_max_position_embeddings": 256}
    reference = checkpoints.classifier("phi3", fast, rope_parameters=rope, **size)
    directory = checkpoints.save(tmp_path, reference, fast)
    check_against_oracle("phi3", reference, directory)
    config = read_config(directory)
    assert find_longest_sequence(config) == 256
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    for name in ("su", "yarn", "longrope"):  # as older versions wrote it
        assert find_longest_sequence(old | {"rope_scaling": {"type": name, "factor": 2.0}}) == 256
        assert find_longest_scaled(old | {"rope_scaling": {"type": name, "factor": 2.0}}) is None
    with pytest.raises(
        StartError, match=r"original_max_position_embeddings is None; set it to .*, which `longrope` needs"
    ):
        find_longest_sequence({"model_type": "llama", "rope_scaling": {"type": "longrope"}})


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
NESTED = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}


@pytest.mark.parametrize(
    ("architecture", "rope", "kind"),
    [
        ("llama", DYNAMIC, "dynamic"),
        ("gemma3_text", {"full_attention": DYNAMIC, **NESTED}, "dynamic"),
        ("gemma3_text", {"full_attention": LONGROPE | {"original_max_position_embeddings": 64}, **NESTED}, "longrope"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_position_scaling_that_looks_at_neighbors_is_refused(
    architecture: str, rope: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    more = {"head_dim": 8} if architecture == "gemma3_text" else {}
    reference = checkpoints.classifier(architecture, fast, rope_parameters=rope, **more)
    directory = checkpoints.save(tmp_path, reference, fast)
    with pytest.raises(StartError, match=f"rope_type '{kind}' is not served"):
        RewardModel.load(directory, torch.float32, torch.device("cpu"))
