"""Which layers get an adapter, on every served architecture."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from assay_service import loader, settings
from assay_service.scoring.architectures import ARCHITECTURES
from assay_service.scoring.head import Head
from assay_service.scoring.item import Item
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_training.config.base import ConfigError
from assay_training.config.model import Lora
from assay_training.models.lora import build_lora_config
from assay_training.models.policy import Policy
from assay_training.reward_model.command import run
from tests import checkpoints
from tests.training import tiny

TARGETS = {
    "bert": ["query", "dense"],
    "roberta": ["query", "dense"],
    "xlm-roberta": ["query", "dense"],
    "phi3": ["qkv_proj", "down_proj"],
    "modernbert": ["Wqkv", "Wi"],
    "qwen3_moe": ["q_proj", "o_proj"],
    "qwen3_5_text": ["q_proj", "down_proj"],
    "deberta-v2": ["query_proj", "dense"],
    "gpt_neox": ["query_key_value", "dense"],
}
CPU = torch.device("cpu")


def targets_of(architecture: str) -> list[str]:
    return TARGETS.get(architecture, ["q_proj", "down_proj"])


def adapted(model: torch.nn.Module, prefix: str = "") -> set[str]:
    return {name.removeprefix(prefix) for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("layers", [[1], [3, 1]], ids=str)
def test_exactly_the_wanted_layers_get_adapters(architecture: str, layers: list[int], tmp_path: Path) -> None:
    """The second implementation is PEFT's `layers_to_transform` on the whole classifier."""
    fast, targets = checkpoints.tokenizer_of(architecture), targets_of(architecture)
    whole = checkpoints.classifier(architecture, fast, num_hidden_layers=4)
    checkpoints.save(tmp_path, whole.base_model, fast)
    model = RewardModel.load(tmp_path, torch.float32, CPU)
    head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(0), bias=model.architecture.head_bias)
    lora = Lora(r=2, alpha=4, target_modules=targets, layers=layers)
    model.add_fresh_signal("s", head, build_lora_config(lora, model.base))
    peft = LoraConfig(r=2, target_modules=targets, layers_to_transform=layers, task_type=TaskType.SEQ_CLS)
    prefix = f"base_model.model.{whole.base_model_prefix}."
    expected = {name for name in adapted(get_peft_model(whole, peft), prefix) if "pooler" not in name}
    found = adapted(model.base)
    assert found == expected
    assert {int(part) for name in found for part in name.split(".") if part.isdigit()} == set(layers)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_gradients_reach_every_adapter_and_the_head(architecture: str, tmp_path: Path) -> None:
    """In mixed precision, as training computes; prompts are shared where the architecture allows it."""
    fast = checkpoints.tokenizer_of(architecture)
    checkpoints.save(tmp_path, checkpoints.classifier(architecture, fast).base_model, fast)
    model = RewardModel.load(tmp_path, torch.float32, CPU)
    head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(0), bias=model.architecture.head_bias)
    lora = Lora(r=2, alpha=4, target_modules=targets_of(architecture))
    model.add_fresh_signal("s", head, build_lora_config(lora, model.base))
    draw = torch.Generator().manual_seed(1)
    made = [tuple(torch.randint(8, 260, (n,), generator=draw).tolist()) for n in (40, 70)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits([TokenSequence((5, 6, *ids), 2, Span(len(ids) + 1, len(ids) + 2)) for ids in made], "s")
    torch.autograd.backward(logits[0] - logits[1])
    trained = {n: p for n, p in model.base.named_parameters() if "lora_B" in n} | dict(head.named_parameters())
    assert len(trained) >= 3
    for name, parameter in trained.items():
        if name != "bias":  # it cancels out of a difference
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_more_than_ten_layers_do_not_lend_each_other_their_numbers(tmp_path: Path) -> None:
    """`layers.1` is also how `layers.11` begins; and from 20 names on PEFT shortens its list."""
    fast = checkpoints.tokenizer_of("llama")
    checkpoints.save(tmp_path, checkpoints.language_model("llama", fast, num_hidden_layers=12), fast)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    policy = Policy(tmp_path, Lora(r=2, alpha=4, target_modules=names, layers=[1, 2, 10]), CPU)
    policy.save_adapter(tmp_path / "adapter")
    trained = {
        name.split(".layers.")[1].split(".")[0] for name, p in policy._model.named_parameters() if p.requires_grad
    }
    assert trained == {"1", "2", "10"}
    assert len(policy.parameters()) == 3 * len(names) * 2


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"layers": [4]}, "lora.layers: the base has no layer 4; it has 4 layers, counted from 0"),
        ({"target_modules": ["query"]}, "the base has no linear layer 'query'; it has .*q_proj"),
        ({"target_modules": ["query"], "layers": [1]}, r"no linear layer 'query' in the layers 1; it has .*q_proj"),
    ],
)
def test_modules_that_the_base_does_not_have_are_named(lora: dict[str, list[int]], message: str) -> None:
    whole = checkpoints.classifier("llama", checkpoints.tokenizer_of("llama"), num_hidden_layers=4)
    given = Lora.model_validate({"r": 2, "alpha": 4, "target_modules": ["q_proj"]} | lora)
    with pytest.raises(ConfigError, match=message):
        build_lora_config(given, whole.base_model)


@pytest.mark.parametrize("target", ["down_proj", "mlp.gate", "up_proj"])
def test_experts_get_no_adapter(target: str) -> None:
    """PEFT would adapt the experts of every layer, whatever `layers` says."""
    whole = checkpoints.classifier("qwen3_moe", checkpoints.tokenizer_of("qwen3_moe"))
    lora = Lora(r=2, alpha=4, target_modules=["q_proj", target])
    with pytest.raises(ConfigError, match=rf"'{target}' belongs to the experts of this base.* adapt its attention"):
        build_lora_config(lora, whole.base_model)


TRAINED = ["llama", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "phi3", "qwen3_moe"]


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_trained_adapter_of_some_layers_is_served_and_read_by_peft(architecture: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    whole = checkpoints.classifier(architecture, fast, num_hidden_layers=4)
    base = checkpoints.save(tmp_path / "base", whole.base_model, fast)
    tiny.write_rows(
        tmp_path / "data" / "hh_rlhf" / "x.jsonl.gz", [tiny.hh_row(f"q {i}", "a fox", "no") for i in range(40)]
    )
    path = tiny.write_config(
        tmp_path / "run.yaml",
        base,
        template_text=checkpoints.CHATML,
        score_position="last_token",
        lora={"r": 2, "alpha": 4, "target_modules": targets_of(architecture), "layers": [1, 2]},
        split={"held_out": 0.2},
    )
    run(path, tmp_path / "data", tmp_path / "out")
    (tmp_path / "s.yaml").write_text("signals: {s: {base: base, adapter: out/checkpoint, device: cpu}}\ndefault: s\n")
    signal = loader.load(settings.read_settings(tmp_path / "s.yaml")).signals["s"]  # compares the golden rows
    rendered = signal.renderer.render(Item.of("How do I bake bread?", "Mix flour and water.")).sequence
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=None)
    loaded = PeftModel.from_pretrained(model, tmp_path / "out" / "checkpoint").eval()
    with torch.inference_mode():
        (logit,) = signal.model.logits([rendered], signal.name).tolist()
    assert logit == pytest.approx(checkpoints.oracle(loaded, rendered.ids), abs=1e-5)
