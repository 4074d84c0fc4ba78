"""Heads of every served form against transformers, and several signals that share one forward pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from assay_service import create_app
from assay_service.errors import StartError
from assay_service.loader import load
from assay_service.registry import Registry
from assay_service.scoring.model import RewardModel
from assay_service.settings import Settings, parse
from tests import checkpoints

SOFTCAP = "final_logit_softcapping"
FAST = checkpoints.decoder_tokenizer()
TEXTS = ("Mix flour, water, salt and yeast, and wait.", "No.", "I am sorry, I cannot help with that.")
ITEMS = [{"prompt": "How do I bake bread?", "completion": text} for text in TEXTS]


def settings(root: Path, **signals: dict[str, Any]) -> Settings:
    common = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "error", "max_length": 128}
    raw = {"signals": {name: {**common, **keys} for name, keys in signals.items()}, "default": next(iter(signals))}
    parsed = parse(raw, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


def refused(root: Path, message: str, **keys: Any) -> None:
    with pytest.raises(StartError, match=message):
        load(settings(root, s=keys))


def score(registry: Registry, name: str) -> list[float]:
    signal = registry.signals[name]
    with torch.inference_mode():
        return signal.model.logits([signal.renderer.render(item).sequence for item in items()], name).tolist()


def edit_config(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def items() -> list[Any]:
    from assay_service.scoring.item import Item  # noqa: PLC0415

    return [Item.of(item["prompt"], item["completion"]) for item in ITEMS]


def ids_of_items() -> list[list[int]]:
    chats = [
        [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["completion"]}]
        for item in ITEMS
    ]
    return [
        FAST.encode(str(FAST.apply_chat_template(chat, tokenize=False)), add_special_tokens=False) for chat in chats
    ]


def reference(model: Any, read: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """What transformers gives for each item alone, read at its last token."""
    with torch.inference_mode():
        return [float(read(model(input_ids=torch.tensor([ids])).logits[0])) for ids in ids_of_items()]


def saved_classifier(root: Path, **config: Any) -> Any:
    model = checkpoints.classifier("llama", FAST, num_labels=3, **config)
    checkpoints.save(root / "rm", model, FAST)
    return model


def test_a_head_on_a_bf16_base_is_computed_in_fp32(tmp_path: Path) -> None:
    """Trap 12: the weight and the sum of the head keep all digits, so that close completions do not tie."""
    model = checkpoints.classifier("llama", FAST)
    checkpoints.save(tmp_path / "rm", model, FAST)
    found = load(settings(tmp_path, s={"dtype": "bfloat16", "compute": "bfloat16", "score_position": "last_token"}))
    signal = found.signals["s"]
    assert isinstance(signal.model, RewardModel)
    with torch.inference_mode():
        hidden = signal.model.pooled([signal.renderer.render(item).sequence for item in items()], "s")
    assert torch.equal(hidden, hidden.bfloat16().float())
    expected = (hidden.double() @ model.score.weight.detach().double().T)[:, 0]
    assert score(found, "s") == pytest.approx(expected.tolist(), rel=1e-5)


def test_outputs_by_number_name_and_difference_are_those_of_transformers(tmp_path: Path) -> None:
    model = saved_classifier(tmp_path, id2label={0: "helpful", 1: "harmless", 2: "verbose"})
    found = load(settings(tmp_path, number={"output": 2}, name={"output": "harmless"}, difference={"output": [0, 2]}))
    for name, read in (
        ("number", lambda logits: logits[2]),
        ("name", lambda logits: logits[1]),
        ("difference", lambda logits: logits[0] - logits[2]),
    ):
        assert score(found, name) == pytest.approx(reference(model, read), abs=1e-5)
    assert len({signal.provenance.head_sha256 for signal in found.signals.values()}) == 3
    assert found.invariant == {"number": True, "name": True, "difference": True}


def test_signals_of_one_checkpoint_cost_one_forward_pass(tmp_path: Path) -> None:
    saved_classifier(tmp_path)
    with TestClient(create_app(settings(tmp_path, a={"output": 0}, b={"output": 1}))) as client:
        body = {"items": ITEMS, "weights": {"a": 1.0, "b": -0.5}}
        rows = client.post("/v1/score", json=body).json()["data"]
        lines = client.get("/metrics").text.splitlines()
    passes = [line for line in lines if line.startswith("assay_forward_seconds_count")]
    assert [line.partition("}")[0] for line in passes] == ['assay_forward_seconds_count{signal="a+b"']
    for row in rows:
        a, b = (row["signals"][name]["logit"] for name in "ab")
        assert a != b
        assert row["score"] == pytest.approx(a - 0.5 * b)


def test_one_signal_that_is_not_finite_does_not_fail_the_other_of_its_trunk(tmp_path: Path) -> None:
    saved_classifier(tmp_path)
    app = create_app(settings(tmp_path, a={"output": 0}, b={"output": 1}))
    with TestClient(app) as client:
        model: Any = app.state.scorer.registry.signals["a"].model
        model.get_head("a").weight.data.fill_(float("nan"))
        bad = client.post("/v1/score", json={"items": ITEMS, "model": "a"}).json()["data"]
        good = client.post("/v1/score", json={"items": ITEMS, "model": "b"}).json()["data"]
    assert {row["error"]["code"] for row in bad} == {"not_finite"}
    assert all(row["score"] == row["signals"]["b"]["logit"] for row in good)


def test_outputs_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    saved_classifier(tmp_path)
    refused(tmp_path, r"score\.weight: has 3 outputs; declare the one to read")
    refused(tmp_path, r"output: 3 is declared, but score\.weight has only 3 outputs; declare one of 0 to 2", output=3)
    refused(tmp_path, r"output: 'helpful' is not an output of this checkpoint", output="helpful")
    for wrong in ([0], [0, 0], [0, 1, 2], -1, True, 1.5, ""):
        raw = {"signals": {"s": {"base": "rm", "output": wrong}}}
        assert "output: must be the number or name" in " ".join(parse(raw, tmp_path).problems)


@pytest.mark.parametrize("names", [("good", "bad", "good"), ("bad", "good", "good"), ("good", "good", "good")])
def test_a_name_of_several_outputs_is_refused_with_their_numbers(names: tuple[str, ...], tmp_path: Path) -> None:
    """`label2id` has only the last of them."""
    saved_classifier(tmp_path)
    edit_config(tmp_path / "rm" / "config.json", id2label=dict(enumerate(names)), label2id={})
    numbers = " and ".join(str(row) for row, name in enumerate(names) if name == "good")
    refused(
        tmp_path, f"output: 'good' is the name of several outputs; declare the number of one: {numbers}", output="good"
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    found = load(settings(tmp_path, one={"output": names.index("good")}))
    assert score(found, "one") == pytest.approx(reference(model, lambda x: x[names.index("good")]), abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt_neox"])
@pytest.mark.parametrize("tokens", [["z", "q"], ["q"], [5]], ids=str)
def test_rows_of_the_output_layer_are_the_logits_of_the_language_model(
    architecture: str, tokens: list[str | int], tmp_path: Path
) -> None:
    model = checkpoints.language_model(architecture, FAST)
    checkpoints.save(tmp_path / "rm", model, FAST)
    ids = [token if isinstance(token, int) else FAST.get_vocab()[token] for token in tokens]
    found = load(settings(tmp_path, s={"head": {"tokens": tokens}, "score_position": "last_token"}))
    expected = reference(model, lambda logits: logits[-1, ids[0]] - (logits[-1, ids[1]] if len(ids) == 2 else 0))
    assert score(found, "s") == pytest.approx(expected, abs=1e-5)


def test_tokens_that_are_not_one_token_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "rm", checkpoints.language_model("llama", FAST), FAST)
    refused(tmp_path, r"head\.tokens: 'zzz' is 3 tokens", head={"tokens": ["zzz"]}, score_position="last_token")
    refused(tmp_path, r"has no row 99999", head={"tokens": [99999]}, score_position="last_token")
    for wrong in ([], ["a", "a"], ["a", "b", "c"], [True], [""], "a"):
        raw = {"signals": {"s": {"base": "rm", "head": {"tokens": wrong}}}}
        assert "head.tokens: must be a list of one or two" in " ".join(parse(raw, tmp_path).problems)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("qwen3", False), ("gemma", True)])
def test_embeddings_take_the_place_of_a_missing_output_layer_only_where_the_model_ties_them(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    """A checkpoint without an output layer whose config.json does not speak of it; the architecture decides."""
    checkpoints.save(tmp_path / "rm", checkpoints.language_model(architecture, FAST), FAST)
    weights, config = tmp_path / "rm/model.safetensors", tmp_path / "rm/config.json"
    save_file({n: t for n, t in load_file(weights).items() if n != "lm_head.weight"}, weights)
    keys = json.loads(config.read_text())
    keys.pop("tie_word_embeddings", None)
    config.write_text(json.dumps(keys))
    head = {"head": {"tokens": [5]}, "score_position": "last_token"}
    if tied:
        assert load(settings(tmp_path, s=head)).signals["s"].kind == "preference"
    else:
        refused(tmp_path, "does not tie the output layer to the embeddings", **head)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("architecture", "served"), [("llama", True), ("gemma", False)])
def test_an_adapter_of_the_rows_that_are_read_is_refused(architecture: str, served: bool, tmp_path: Path) -> None:
    base = checkpoints.language_model(architecture, FAST)
    checkpoints.save(tmp_path / "rm", base, FAST)
    lora = LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=2, target_modules=["q_proj", "embed_tokens"])
    wrapped = get_peft_model(base, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    keys: dict[str, Any] = {"adapter": "adapter", "head": {"tokens": [5]}, "score_position": "last_token"}
    if served:  # its output layer has rows of its own
        load(settings(tmp_path, s=keys))
    else:
        refused(tmp_path, r"head\.tokens: .*embed_tokens.* adapts the output layer", **keys)


def test_a_language_model_that_changes_its_logits_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "rm", checkpoints.language_model("llama", FAST), FAST)
    path = tmp_path / "rm/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "final_logit_softcapping": 30.0}))
    refused(tmp_path, "final_logit_softcapping", head={"tokens": [5]}, score_position="last_token")


def test_a_change_of_logits_that_is_the_architectures_default_is_refused(tmp_path: Path) -> None:
    """A hand-written config.json may omit Gemma 2's bound, which transformers then takes from its class."""
    checkpoints.save(tmp_path / "rm", checkpoints.language_model("gemma2", FAST), FAST)
    path = tmp_path / "rm/config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != SOFTCAP}))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "rm").config.final_logit_softcapping == 30.0
    refused(tmp_path, f"changes its logits by {SOFTCAP}", head={"tokens": [5]}, score_position="last_token")
    path.write_text(json.dumps({**json.loads(path.read_text()), SOFTCAP: None}))  # null: no bound
    load(settings(tmp_path, s={"head": {"tokens": [5]}, "score_position": "last_token"}))


@pytest.mark.parametrize("name", ["lm_head.bias", "module.lm_head.bias"])
def test_a_bias_that_the_language_model_would_ignore_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "rm", checkpoints.language_model("llama", FAST), FAST)
    path = tmp_path / "rm/model.safetensors"
    prefix = name.removesuffix("lm_head.bias")
    tensors = {f"{prefix}{key}": tensor for key, tensor in load_file(path).items()}
    save_file(tensors | {name: torch.randn(len(FAST))}, path)
    refused(tmp_path, f"{name} is a bias".replace(".", r"\."), head={"tokens": [5]}, score_position="last_token")


@pytest.mark.parametrize("module", ["score", "v_head.summary"])
def test_heads_of_two_layers(module: str, tmp_path: Path) -> None:
    """INF-ORM and Qwen2.5-Math-RM call it `score`, GRM (sftreg) `v_head.summary`; its width may be another one."""
    model = checkpoints.classifier("llama", FAST)
    checkpoints.save(tmp_path / "rm", model, FAST)
    torch.manual_seed(1)
    head = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 1))
    path = tmp_path / "rm/model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != "score.weight"}
    save_file(tensors | {f"{module}.{n}": p.detach() for n, p in head.named_parameters()}, path)
    found = load(settings(tmp_path, s={"score_position": "last_token"}))
    with torch.inference_mode():
        states = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in ids_of_items()]
        expected = [float(head(state)) for state in states]
    assert score(found, "s") == pytest.approx(expected, abs=1e-5)
    assert found.invariant == {"s": True}
    for lost, message in (
        (f"{module}.0.bias", r"is the last of two layers, but"),
        (f"{module}.2.weight", r"other layers than two"),
    ):
        save_file({name: tensor for name, tensor in load_file(path).items() if name != lost}, path)
        refused(tmp_path, message, score_position="last_token")
        save_file(load_file(path) | {lost: head.state_dict()[lost.removeprefix(f"{module}.")]}, path)
