"""Process reward models of four trainers, on their tokenizers: ids and logits of steps as the original code has them.

Each reference builds the ids as the published code does, and reads transformers' own forward pass of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from assay_service import create_app
from assay_service.settings import parse
from tests.real_tokenizers import real_tokenizer

QUESTION = "Sue has 18 + 6 flamingos. She gives 1/3 away; how many – 多少 – are left?"
STEPS = ("She has 18 + 6 = 24.", "Of these she gives 24 / 3 = 8 away (1/3).", "24 - 8 = 16 ✓. The answer is 16.")
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
PAGE = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()


def published(name: str, **specials: str) -> PreTrainedTokenizerFast:
    directory = real_tokenizer(name)
    fast = PreTrainedTokenizerFast.from_pretrained(directory)
    for key, token in specials.items():
        setattr(fast, key, token)
    return fast


def documented(model: str) -> dict[str, Any]:
    """The keys that docs/checkpoints.md gives for a process reward model."""
    block = PAGE.split(f"### {model}\n")[1].split("```yaml\n")[1].split("```")[0]
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def template(model: str) -> str:
    """The template that docs/checkpoints.md gives for it."""
    return PAGE.split(f"### {model}\n")[1].split("```jinja\n")[1].split("\n```")[0]


def name_remote_code(directory: Path, architecture: str, code: str) -> None:
    """Name a class and code of the checkpoint's own in `config.json`, as the published one does."""
    path = directory / "config.json"
    named = {"architectures": [architecture], "auto_map": {"AutoModel": code}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))


def serve(root: Path, keys: dict[str, Any], completion: str) -> tuple[list[int], list[dict[str, Any]], list[float]]:
    """Return the ids of one item, its steps, and their logits when the item is scored among others."""
    common = {"base": "rm", "unfinished": "error", "max_length": 512, "dtype": "float32"}
    parsed = parse({"signals": {"prm": common | keys}}, root)
    assert parsed.settings is not None, parsed.problems
    items = [{"prompt": QUESTION, "completion": text} for text in (completion, completion[:30], "No.")]
    with TestClient(create_app(parsed.settings)) as client:
        rendered = client.post("/v1/render", json={"items": items}).json()["data"][0]["signals"]["prm"]
        alone = client.post("/v1/score", json={"items": items[:1]}).json()["data"]
        rows = client.post("/v1/score", json={"items": items}).json()["data"]
        assert client.get("/info").json()["signals"]["prm"]["invariant"] is True
    assert rows[0] == alone[0]
    steps = rows[0]["signals"]["prm"]["steps"]
    assert [step["text"].strip() for step in rendered["steps"]] == list(STEPS)
    assert [step["token"] for step in steps] == [step["token"] for step in rendered["steps"]]
    return rendered["ids"], steps, [step["logit"] for step in steps]


def difference(model: Any, ids: Sequence[int], rows: tuple[int, int]) -> list[float]:
    """The logarithm of the ratio of two softmax values at every position: the difference of their logits."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return [float(row[rows[0]] - row[rows[1]]) for row in logits]


def test_qwen_math_prm(tmp_path: Path) -> None:
    fast = published("qwen2_5")
    fast.add_special_tokens({"additional_special_tokens": [AddedToken("<extra_0>", special=True)]})
    torch.manual_seed(0)
    base = Qwen2Model(Qwen2Config(vocab_size=len(fast), **TINY)).eval()
    base.save_pretrained(tmp_path / "rm")
    name_remote_code(tmp_path / "rm", "Qwen2ForProcessRewardModel", "modeling_qwen2_rm.Qwen2ForProcessRewardModel")
    fast.save_pretrained(tmp_path / "rm")
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    path = tmp_path / "rm/model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {f"score.{n}": p.detach() for n, p in head.named_parameters()}, path, {"format": "pt"})
    ids, steps, logits = serve(tmp_path, documented("Qwen2.5-Math-PRM"), "\n\n".join(STEPS))
    # The model card's code.
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    text = str(fast.apply_chat_template(messages[1:], tokenize=False))
    assert ids == fast.encode(text)
    with torch.inference_mode():
        labels = head(base(input_ids=torch.tensor([ids])).last_hidden_state[0])
    places = [place for place, token in enumerate(ids) if token == fast.encode("<extra_0>")[0]]
    assert [step["token"] for step in steps] == places
    assert logits == pytest.approx([float(labels[place, 1] - labels[place, 0]) for place in places], abs=1e-5)
    rewards = torch.softmax(labels[places], dim=-1)[:, 1].tolist()
    assert [step["prob"] for step in steps] == pytest.approx(rewards, abs=1e-5)


def test_math_shepherd(tmp_path: Path) -> None:
    fast = published("llama2")
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=len(fast), sliding_window=None, **TINY)).eval()
    model.save_pretrained(tmp_path / "rm")
    fast.chat_template = template("Math-Shepherd")
    fast.save_pretrained(tmp_path / "rm")
    keys = documented("Math-Shepherd")
    ids, steps, logits = serve(tmp_path, keys, "\n".join(STEPS))
    # The model card's code; the step tag's id is the last one of its own encoding.
    output = "\n".join(f"{step} ки" for step in STEPS)
    assert ids == fast.encode(f"{QUESTION} {output}")
    tag, (good, bad) = fast.encode("ки")[-1], fast.encode("+ -")[1:]
    assert keys["head"]["tokens"] == [good, bad]
    everywhere = difference(model, ids, (good, bad))
    places = [place for place, token in enumerate(ids) if token == tag]
    assert [step["token"] for step in steps] == places
    assert logits == pytest.approx([everywhere[place] for place in places], abs=1e-5)


def test_rlhflow(tmp_path: Path) -> None:
    fast = published("llama3_1")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **TINY)).eval()
    model.save_pretrained(tmp_path / "rm")
    fast.save_pretrained(tmp_path / "rm")
    ids, steps, logits = serve(tmp_path, documented("RLHFlow"), " \n\n".join(STEPS))
    # prm_evaluate.py: one forward pass for each prefix of the conversation, read three tokens before its end.
    plus, minus = fast.encode("+")[-1], fast.encode("-")[-1]
    conversation: list[dict[str, str]] = []
    expected, places = [], []
    for number, step in enumerate(STEPS):
        conversation += [
            {"role": "user", "content": step if number else f"{QUESTION} {step}"},
            {"role": "assistant", "content": "+"},
        ]
        prefix = fast.encode(str(fast.apply_chat_template(conversation, tokenize=False)), add_special_tokens=False)
        assert ids[: len(prefix)] == prefix
        expected.append(difference(model, prefix, (plus, minus))[-3])
        places.append(len(prefix) - 3)
    assert len(ids) == len(prefix)
    assert [step["token"] for step in steps] == places
    assert logits == pytest.approx(expected, abs=1e-5)


def test_skywork_o1(tmp_path: Path) -> None:
    fast = published("qwen2_5", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    base = Qwen2Model(Qwen2Config(vocab_size=len(fast), **TINY)).eval()
    base.save_pretrained(tmp_path / "rm")
    name_remote_code(tmp_path / "rm", "Qwen2ForPrmModel", "modeling_qwen2_prm.Qwen2ForPrmModel")
    fast.chat_template = template("Skywork-o1-Open-PRM")
    fast.save_pretrained(tmp_path / "rm")
    head = nn.Linear(32, 1)
    path = tmp_path / "rm/model.safetensors"
    tensors = {f"pretrained_model.model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {f"v_head.summary.{n}": p.detach() for n, p in head.named_parameters()}, path, {"format": "pt"})
    ids, steps, logits = serve(tmp_path, documented("Skywork-o1-Open-PRM"), "\n".join(STEPS))
    # prepare_input of skywork-o1-prm-inference: every step is encoded by itself.
    expected = fast.encode(f"{fast.bos_token}{QUESTION}\n")
    places = []
    for step in STEPS:
        expected += [*fast.encode(step), fast.encode("\n")[-1]]
        places.append(len(expected) - 1)
    assert ids == expected
    assert ids != fast.encode(f"{fast.bos_token}{QUESTION}\n" + "\n".join(STEPS) + "\n")
    with torch.inference_mode():
        values = head(base(input_ids=torch.tensor([ids])).last_hidden_state[0])[:, 0]
    assert [step["token"] for step in steps] == places
    assert logits == pytest.approx([float(values[place]) for place in places], abs=1e-5)
    assert [step["prob"] for step in steps] == pytest.approx(torch.sigmoid(values[places]).tolist(), abs=1e-6)
