"""Scores of steps: how completions are divided, what is refused, and what answers and clients show."""

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from pyarrow import parquet

from assay_client import AppTransport, RenderedItem, RewardClient, Score
from assay_client._answers import encode_outcome
from assay_client._parquet import write_parquet
from assay_service import create_app
from assay_service.errors import ContentError, StartError
from assay_service.loader import load
from assay_service.scoring.invariance import make_invariant
from assay_service.scoring.item import Item, Message
from assay_service.scoring.manifest import StepRules
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.settings import Settings, parse
from tests import checkpoints
from tests.real_templates import trl_templates

TOKEN = "<|step|>"
STEP = {"delimiter": "\n", "token": TOKEN}
KEYS = {"kind": "absolute", "eos": "template", "unfinished": "score", "max_length": 200, "score_position": "steps"}


def tokenizer(template: str = checkpoints.CHATML) -> Any:
    fast = checkpoints.decoder_tokenizer(template)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", TOKEN]})
    return fast


FAST = tokenizer()


def renderer(template: str = checkpoints.CHATML, *, max_length: int = 200, rules: Any = None, **steps: Any) -> Renderer:
    declared = StepRules.model_validate({**STEP, **steps})
    settings = {"unfinished": "score", "eos": "template"} | (rules or {})
    rendered = RenderRules(template, max_length, "steps", steps=declared, **settings)
    return Renderer(tokenizer(template), rendered, len(FAST))


def steps_of(completion: str, finish_reason: Any = "stop", **steps: Any) -> tuple[str, ...]:
    return renderer(**steps).render(Item.of("fox?", completion, finish_reason)).steps


def refused(item: Item, subject: Renderer | None = None, **steps: Any) -> tuple[str, str]:
    with pytest.raises(ContentError) as caught:
        (subject or renderer(**steps)).render(item)
    return caught.value.code, caught.value.message


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prm")
    checkpoints.save(directory / "rm", checkpoints.classifier("llama", FAST), FAST)
    return directory


def settings(root: Path, **signals: dict[str, Any]) -> Settings:
    common = {"base": "rm", "steps": STEP, "aggregate": "min", **KEYS}
    raw = {"signals": {name: common | keys for name, keys in signals.items()}, "default": next(iter(signals))}
    parsed = parse(raw, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


def start_error(root: Path, **keys: Any) -> str:
    with pytest.raises(StartError) as caught:
        load(settings(root, s=keys))
    return caught.value.message


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("one", ("one",)),
        ("one\ntwo", ("one", "two")),
        ("\none\ntwo\n", ("one", "two")),
        ("one\n\n \n\ttwo \n", ("one", "\ttwo ")),
        ("one\\ntwo", ("one\\ntwo",)),
    ],
    ids=["no delimiter", "two", "at both ends", "empty pieces", "an escaped delimiter"],
)
def test_a_completion_is_divided_at_its_delimiters(completion: str, expected: tuple[str, ...]) -> None:
    rendered = renderer().render(Item.of("fox?", completion))
    assert rendered.steps == expected
    assert rendered.text.endswith("assistant\n" + "".join(step + TOKEN for step in expected) + "<|im_end|>\n")
    read = [rendered.sequence.ids[span.start] for span in rendered.sequence.score_spans]
    assert read == [FAST.convert_tokens_to_ids(TOKEN)] * len(expected)


def test_white_space_at_the_borders_of_steps_is_kept_unless_it_is_stripped() -> None:
    assert steps_of(" one \n two") == (" one ", " two")
    assert steps_of(" one \n two", strip=True) == ("one", "two")


@pytest.mark.parametrize("completion", ["", "\n", " \n\n\t"])
def test_a_completion_of_white_space_has_no_step(completion: str) -> None:
    assert refused(Item.of("fox?", completion)) == ("empty_completion", "the completion has no step; send text")


def test_an_unfinished_last_step_is_shown_but_has_no_score() -> None:
    cut = renderer().render(Item.of("fox?", "one\ntwo\nthr", "length"))
    whole = renderer().render(Item.of("fox?", "one\ntwo\nthree"))
    assert cut.steps == ("one", "two")
    assert cut.text.endswith(f"two{TOKEN}thr")
    assert cut.sequence.score_spans == whole.sequence.score_spans[:2]
    assert FAST.decode(cut.sequence.ids) == cut.text
    assert steps_of("one\ntwo\n", "length") == ("one", "two")  # the delimiter finishes a step
    assert refused(Item.of("fox?", "one", "length"))[0] == "unfinished"
    strict = renderer(rules={"unfinished": "error"})
    assert refused(Item.of("fox?", "one\ntwo", "length"), strict)[0] == "unfinished"


def test_an_unfinished_step_after_an_uncertain_think_block_is_refused() -> None:
    """Qwen3's template closes an empty block before it, but the completion may go on to reason."""
    subject = renderer(trl_templates()["qwen3"])
    assert subject.render(Item.of("fox?", "one\ntwo")).steps == ("one", "two")
    assert refused(Item.of("fox?", "one\ntwo", "length"), subject)[0] == "unfinished_unsupported"


def test_a_typed_step_token_is_never_a_step() -> None:
    """In no message, in no part of a step, and not as characters that the tokenizer would read as the token."""
    for prompt, completion in (("fox?", f"one{TOKEN}two"), (f"{TOKEN}", "one"), ("fox?", f"one\n{TOKEN}")):
        code, message = refused(Item.of(prompt, completion))
        assert code == "special_tokens"
        assert TOKEN in message
    read = renderer(rules={"control_tokens": "text"}).render(Item.of(TOKEN, f"one{TOKEN}two\nthree"))
    assert read.steps == (f"one{TOKEN}two", "three")
    assert read.control_tokens_as_text == 2
    step = FAST.convert_tokens_to_ids(TOKEN)
    assert [i for i, token in enumerate(read.sequence.ids) if token == step] == [
        span.start for span in read.sequence.score_spans
    ]
    # A step token that is an ordinary word of the vocabulary.
    assert steps_of("one\ntwo", token="~") == ("one", "two")
    assert refused(Item.of("a ~ b", "one"), token="~")[0] == "special_tokens"


def test_steps_of_any_text_keep_their_number_and_their_text() -> None:
    texts = [
        "é",
        unicodedata.normalize("NFD", "é"),
        "👩‍👩‍👧",
        "\u200b",
        "ﬁ",
        "\ufdd0",
        "a\rb",
        "<|im_en",
        "{{ x }}",
        "多少",
    ]
    assert steps_of("\n".join(texts)) == tuple(texts)
    turns = renderer(token="+", layout="turns").render(Item.of("a+b?", "\n".join(text + "+" for text in texts)))
    assert len(turns.sequence.score_spans) == len(texts)
    ids = turns.sequence.ids
    assert {FAST.decode([ids[span.end]]) for span in turns.sequence.score_spans} == {"+"}


def test_the_turn_before_each_answer_is_read() -> None:
    rendered = renderer(token="+", layout="turns", strip=True).render(Item.of("1 + 2?", "1+2=3\n\n3!"))
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
    assert rendered.text == asked.format("1 + 2? 1+2=3") + asked.format("3!")
    first, second = (FAST.decode(rendered.sequence.ids[: span.end]) for span in rendered.sequence.score_spans)
    assert first == asked.format("1 + 2? 1+2=3").partition("+<|im_end|>")[0]
    assert second == rendered.text.removesuffix("+<|im_end|>\n")
    assert FAST.decode(rendered.sequence.prompt) == "<|im_start|>user\n1 + 2?"
    chat = (Message("system", "be brief"), Message("assistant", "hi"), Message("assistant", "3"))
    assert refused(Item(chat), token="+", layout="turns")[0] == "template_error"


def test_prompts_are_truncated_and_steps_never() -> None:
    item = Item.of("the quick brown fox " * 30, "one\ntwo\nthree")
    subject = renderer(max_length=60)
    assert refused(item, subject)[0] == "too_long"
    cut, whole = subject.render(item, "prompt_left"), renderer(max_length=500).render(item)
    assert len(cut.sequence.ids) == 60
    assert cut.steps == whole.steps == ("one", "two", "three")
    gone = cut.truncated_tokens
    assert [span.start + gone for span in cut.sequence.score_spans] == [s.start for s in whole.sequence.score_spans]
    for completion in ("one\n" * 20, "x\n" * 5000):
        with pytest.raises(ContentError) as caught:
            subject.render(Item.of("fox?", completion), "prompt_left")
        assert caught.value.code == "completion_too_long"


def test_two_thousand_steps_are_divided_at_once() -> None:
    rendered = renderer(max_length=100_000).render(Item.of("fox?", "\n".join(f"step {n}" for n in range(2000))))
    assert rendered.steps[-1] == "step 1999"
    assert len(rendered.sequence.score_spans) == 2000


@pytest.mark.parametrize(
    ("template", "steps", "message"),
    [
        (checkpoints.LLAMA3, {"token": "\n"}, "does not print the step token"),
        (checkpoints.CHATML, {"token": "two tokens"}, "as one token of its own"),
        (checkpoints.CHATML, {"token": "a", "layout": "turns"}, "exactly once after each step"),
        ("{{ messages[1:] | map(attribute='content') | join | upper }}", {}, "does not print"),
    ],
    ids=["trimmed", "two tokens", "a letter of the template", "changed"],
)
def test_a_template_or_token_that_hides_the_steps_is_refused_at_start(
    template: str, steps: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartError, match=message):
        renderer(template, **steps)


def test_keys_that_do_not_fit_are_refused(root: Path) -> None:
    assert "steps: declare it" in start_error(root, steps=None)
    assert "aggregate: declare it, one of min, last, mean, product" in start_error(root, aggregate=None)
    assert "a product is only for `kind: absolute`" in start_error(root, kind="preference", aggregate="product")
    plain = {"score_position": "last_token"}
    assert "steps: is only for `score_position: steps`" in start_error(root, aggregate=None, **plain)
    assert "aggregate: is only for `score_position: steps`" in start_error(root, steps=None, **plain)
    wrong = {**STEP, "layout": "turns", "between": " "}
    assert "remove the other key" in " ".join(parse({"signals": {"s": {"base": "rm", "steps": wrong}}}, root).problems)
    unknown = parse({"signals": {"s": {"base": "rm", "steps": {**STEP, "delimeter": "x"}}}}, root).problems
    assert "did you mean `delimiter`?" in " ".join(unknown)


TEXTS = ("Mix flour, water and salt.\nWait.\nBake the bread.", "No.", "I am sorry.\nI cannot\nhelp\nwith\nthat.")
ITEMS = [{"prompt": "How do I bake bread?", "completion": text} for text in TEXTS]


def test_the_logit_is_the_declared_aggregate(root: Path) -> None:
    names = ("min", "last", "mean", "product")
    signals = {name: {"aggregate": name} for name in names} | {"margin": {"kind": "preference", "aggregate": "mean"}}
    app = create_app(settings(root, **signals))
    with TestClient(app) as client:
        rows = client.post("/v1/score", json={"items": ITEMS, "weights": dict.fromkeys(signals, 1.0)}).json()["data"]
        passes = [line for line in client.get("/metrics").text.splitlines() if "forward_seconds_count{" in line]
        info = client.get("/info").json()["signals"]["product"]
        prints = {
            name: client.post("/v1/score", json={"items": ITEMS[:1], "model": name}).json()["provenance"]["fingerprint"]
            for name in names
        }
    assert len(passes) == 1  # signals that differ by the aggregate alone share a forward pass
    assert len(set(prints.values())) == 4
    assert info["aggregate"] == "product"
    assert info["steps"]["token"] == TOKEN
    for row, text in zip(rows, TEXTS, strict=True):
        values = row["signals"]
        logits = [step["logit"] for step in values["min"]["steps"]]
        probs = [step["prob"] for step in values["min"]["steps"]]
        assert [step["index"] for step in values["min"]["steps"]] == list(range(text.count("\n") + 1))
        assert values["min"]["logit"] == min(logits)
        assert values["last"]["logit"] == logits[-1]
        assert values["mean"]["prob"] == pytest.approx(sum(probs) / len(probs))
        assert values["product"]["prob"] == pytest.approx(math.prod(probs))
        assert values["margin"]["logit"] == pytest.approx(sum(logits) / len(logits))
        assert "prob" not in values["margin"]["steps"][0]


@pytest.mark.parametrize("policy", [False, True], ids=["own template", "policy's template"])
def test_a_blend_of_a_process_and_an_outcome_reward_model_reads_rendered_text(root: Path, policy: bool) -> None:
    """A policy writes no step tokens: both readers give the same messages, which each signal then prints its way."""
    served = settings(
        root,
        prm={},
        other={"steps": {**STEP, "delimiter": "e"}},
        plain={"score_position": "last_token", "steps": None, "aggregate": None},
    )
    raw = served.model_dump(mode="json", exclude_unset=True)
    raw["blends"] = {"mix": {"weights": {"prm": 0.5, "other": -0.5, "plain": 0.25}}}
    raw["compat"] = {"wires": {"openrlhf": {"model": "mix", **({"policy": "rm"} if policy else {})}}}
    parsed = parse(raw, root)
    assert parsed.settings is not None, parsed.problems
    with TestClient(create_app(parsed.settings)) as client:
        answer = client.post("/v1/score", json={"items": ITEMS, "model": "mix"}).json()
        asked = "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
        queries = [f"{asked}{text}<|im_end|>\n" for text in TEXTS]
        for prompts in (None, [asked] * len(TEXTS)):
            wire = client.post("/compat/openrlhf/get_reward", json={"query": queries, "prompts": prompts}).json()
            assert wire["rewards"] == [row["score"] for row in answer["data"]]
            for name in ("prm", "other", "plain"):
                expected = [row["signals"][name]["logit"] for row in answer["data"]]
                assert wire["extra_logs"][name] == expected


def test_clients_files_and_wires_get_steps_and_the_aggregate(root: Path, tmp_path: Path) -> None:
    served = settings(root, prm={}, plain={"score_position": "last_token", "steps": None, "aggregate": None})
    with (
        TestClient(create_app(served)) as client,
        RewardClient("http://assay", transport=AppTransport(create_app(served))) as ours,
    ):
        row = client.post("/v1/score", json={"items": ITEMS[:1], "model": "prm"}).json()["data"][0]
        pair = {"prompt": "bread?", "a": "one\ntwo", "b": "one"}
        compared = client.post("/v1/compare", json=pair).json()["signals"]["prm"]
        ranked = client.post("/v1/rank", json={"prompt": "bread?", "completions": ["one\ntwo"], "model": "prm"}).json()
        asked = "<|im_start|>user\nbread?<|im_end|>\n<|im_start|>assistant\n"
        body = {"query": [f"{asked}one\ntwo<|im_end|>\n"], "prompts": [asked], "labels": ["x"]}
        wire = client.post("/compat/openrlhf/get_reward", json=body).json()
        (score,) = ours.score(ITEMS[:1], model="prm").data
        (rendered,) = ours.render(ITEMS[:1]).data
    assert isinstance(score, Score)
    assert isinstance(rendered, RenderedItem)
    value, read = score.signals["prm"], rendered.signals["prm"].steps
    assert value.steps is not None
    assert read is not None
    written = json.dumps(encode_outcome(score))  # which `assay score` writes
    assert json.loads(written) == row
    (tmp_path / "a.jsonl").write_text(written + "\n")
    write_parquet(tmp_path / "a.jsonl", tmp_path / "a.parquet")
    (stored,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert stored["signals"]["prm"]["steps"] == row["signals"]["prm"]["steps"]
    assert [step.logit for step in value.steps] == [step["logit"] for step in row["signals"]["prm"]["steps"]]
    assert value.logit == row["score"] == min(step.logit for step in value.steps)
    assert [step.text for step in read] == TEXTS[0].split("\n")
    assert [step.token for step in read] == [step.token for step in value.steps]
    assert rendered.signals["plain"].steps is None
    assert [len(compared[name]["steps"]) for name in "ab"] == [2, 1]
    (first,) = ranked["results"]
    assert first["score"] == compared["a"]["logit"] == min(step["logit"] for step in compared["a"]["steps"])
    assert wire["rewards"] == [first["score"]]


def test_a_golden_row_holds_the_aggregate(root: Path) -> None:
    registry = load(settings(root, s={}))
    signal = registry.signals["s"]
    with torch.inference_mode():
        ((numbers,),) = signal.model.read([signal.renderer.render(Item.of("fox?", "one\ntwo")).sequence], ("s",))
    golden: dict[str, Any] = {"messages": [["user", "fox?"], ["assistant", "one\ntwo"]], "logit": min(numbers)}
    claims = {**KEYS, "steps": STEP, "aggregate": "min", "token_types": None}
    for shift in (0, 1):
        claims["golden"] = [golden | {"logit": golden["logit"] + shift}]
        checkpoints.save(root / "claimed", checkpoints.classifier("llama", FAST), FAST, **claims)
        raw = parse({"signals": {"s": {"base": "claimed"}}}, root).settings
        assert raw is not None
        if shift:
            with pytest.raises(StartError, match="golden row 0"):
                load(raw)
        else:
            assert load(raw).signals["s"].reading.aggregate == "min"


def test_the_test_at_start_reads_several_tokens_of_a_sequence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load(settings(root, s={}))
    assert registry.invariant == {"s": True}
    model: Any = registry.signals["s"].model
    read = RewardModel.read

    def read_wrongly(self: RewardModel, sequences: Any, names: Any) -> Any:
        """The second step of a sequence depends on its neighbors, the first one does not."""
        found = read(self, sequences, names)
        return [[(*n[:1], *(x + (len(sequences) > 1) for x in n[1:])) for n in rows] for rows in found]

    monkeypatch.setattr(RewardModel, "read", read_wrongly)
    assert make_invariant(model, {"s": 200}) == {"s": True}
    assert make_invariant(model, {"s": 200}, {"s"}) == {"s": False}
