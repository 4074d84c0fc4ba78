"""The pipeline of [CRS] in small, as `make pipeline` left it: a policy, and two reward models, adapters on it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from assay_client.client import RewardClient
from assay_service import loader, registry, settings
from assay_service.scoring.item import Item
from tests.service.test_serve_process import served as server
from tests.service.test_serve_process import wait_until_ready

PIPELINE = Path(__file__).parents[1] / "examples" / "pipeline"
POLICY = PIPELINE / "policy"
SIGNALS = ("preference", "absolute")
TRIPLES = [json.loads(line) for line in (Path(__file__).parent / "clear_triples.jsonl").read_text().splitlines()][:20]
PROMPT = TRIPLES[0]["prompt"]
COMPLETIONS = [triple[side] for triple in TRIPLES for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def served() -> registry.Registry:
    """Loading checks base hash, template hash, heads and golden rows, and proves that the batch does not matter."""
    return loader.load(settings.read_settings(PIPELINE / "service.yaml"))


def test_both_are_served_from_one_base(served: registry.Registry) -> None:
    assert served.signals["preference"].model is served.signals["absolute"].model
    assert served.invariant == {"preference": True, "absolute": True}
    assert sum(path.stat().st_size for path in PIPELINE.rglob("*")) <= 15_000_000


@pytest.mark.parametrize("name", SIGNALS)
def test_logits_are_those_of_transformers_and_peft(served: registry.Registry, name: str) -> None:
    """The plain way: one text at a time, the chat template, a classification head on the last token."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    plain = AutoModelForSequenceClassification.from_pretrained(POLICY, num_labels=1, dtype=torch.float32)
    oracle = PeftModel.from_pretrained(plain, PIPELINE / name).eval()
    signal = served.signals[name]
    for triple in TRIPLES[:5]:
        messages = [
            {"role": "user", "content": triple["prompt"]},
            {"role": "assistant", "content": triple["chosen"]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        with torch.inference_mode():
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            expected = float(oracle(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        sequence = signal.renderer.render(Item.of(triple["prompt"], triple["chosen"])).sequence
        assert signal.model.logits([sequence], name).item() == pytest.approx(expected, abs=1e-4)


def test_completions_that_share_a_prompt_score_as_if_alone(served: registry.Registry) -> None:
    for name in SIGNALS:
        signal = served.signals[name]
        rows = [signal.renderer.render(Item.of(PROMPT, completion)).sequence for completion in COMPLETIONS]
        together = signal.model.logits(rows, name).tolist()
        assert together == [signal.model.logits([row], name).item() for row in rows]
        assert len(set(together)) == len(rows)


def test_the_policy_speaks_and_ends_its_turn() -> None:
    tokenizer, policy = AutoTokenizer.from_pretrained(POLICY), AutoModelForCausalLM.from_pretrained(POLICY)
    asked = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    said = policy.generate(**ids, max_new_tokens=256, do_sample=True, num_return_sequences=8)
    ends = (said[:, ids["input_ids"].shape[1] :] == tokenizer.eos_token_id).any(dim=1)
    assert ends.sum() >= 4


@pytest.mark.slow
def test_a_service_ranks_by_the_blend() -> None:
    with server(PIPELINE / "service.yaml") as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        ranked = client.rank(PROMPT, COMPLETIONS).results
        scores = client.score([(PROMPT, completion) for completion in COMPLETIONS]).scores()
        assert sorted((r.score for r in ranked), reverse=True) == [r.score for r in ranked]
        assert [scores[r.index] for r in ranked] == [r.score for r in ranked]
