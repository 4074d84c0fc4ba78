"""The likelihood of a completion against transformers' own logits, and the label-free signals that are made of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from assay_service import EMBEDDED, create_app
from assay_service.errors import ContentError, StartError
from assay_service.loader import load
from assay_service.registry import Registry
from assay_service.scoring.invariance import find_invariant
from assay_service.scoring.item import Item, Message
from assay_service.scoring.kernels import build
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.likelihood import LikelihoodHead
from assay_service.scoring.model import RewardModel
from assay_service.settings import Settings, parse
from tests import checkpoints

FAST = checkpoints.decoder_tokenizer()
LABEL_FREE = EMBEDDED.parent / "label_free.yaml"
KEYS: dict[str, Any] = {
    "base": "lm",
    "kind": "preference",
    "head": {"likelihood": "sum"},
    "score_position": "completion_tokens",
    "eos": "template",
    "unfinished": "score",
    "max_length": 128,
}
ITEMS = (
    Item.of("How do I bake bread?", "Mix flour, water, salt and yeast, and wait."),
    Item.of("How do I bake bread?", "No."),
    Item.of("fox?", "I am sorry, I cannot help with that."),
    Item((Message("system", "Be brief."), Message("user", "fox?"), Message("assistant", "The quick brown fox."))),
    Item.of("How do I bake bread?", "Mix flour, water", "length"),
)


def settings(root: Path, **signals: dict[str, Any]) -> Settings:
    declared = {name: {k: v for k, v in (KEYS | keys).items() if v is not None} for name, keys in signals.items()}
    parsed = parse({"signals": declared, "default": next(iter(signals))}, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


def refused(root: Path, message: str, **keys: Any) -> None:
    with pytest.raises(StartError, match=message):
        load(settings(root, s=keys))


def save(root: Path, architecture: str = "llama", fast: Any = FAST, **config: Any) -> Any:
    """Writes a tiny random language model as `lm`, and returns it."""
    model = checkpoints.language_model(architecture, fast, **config)
    checkpoints.save(root / "lm", model, fast)
    return model


def log_probabilities(model: Any, ids: tuple[int, ...], boundary: int) -> list[float]:
    """What transformers gives for each token from the boundary on, in a batch of one."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    logs = logits.log_softmax(dim=-1)
    return [float(logs[place - 1, ids[place]]) for place in range(boundary, len(ids))]


def tokenize(item: Item, fast: Any = FAST) -> tuple[tuple[int, ...], int]:
    """The ids of a conversation and the number of its prompt tokens, without Assay's renderer."""
    messages = [{"role": message.role, "content": message.content} for message in item.messages]
    prompt = fast.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    full = fast.apply_chat_template(messages, tokenize=False)
    if item.finish_reason == "length":
        full = full.removesuffix("<|im_end|>\n")
    return tuple(fast.encode(full, add_special_tokens=False)), len(fast.encode(prompt, add_special_tokens=False))


def read(registry: Registry, name: str, item: Item) -> float:
    signal = registry.signals[name]
    with torch.inference_mode():
        ((numbers,),) = signal.model.read([signal.renderer.render(item).sequence], (name,))
    return signal.reading.read(numbers).logit


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [("llama", False), ("llama", True), ("qwen2", False), ("qwen2", True), ("gemma", True), ("qwen3_5_text", False)],
)
def test_the_logit_is_the_log_probability_that_transformers_gives(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    model = save(tmp_path, architecture, tie_word_embeddings=tied)
    found = load(settings(tmp_path, total={}, mean={"head": {"likelihood": "mean"}}))
    for item in ITEMS:
        expected = log_probabilities(model, *tokenize(item))
        assert read(found, "total", item) == pytest.approx(sum(expected), abs=1e-4)
        assert read(found, "mean", item) == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert found.invariant == {"total": True, "mean": True}
    assert found.trunks["total"].name == "total+mean"  # one forward pass


def test_a_model_that_knows_nothing_gives_every_token_the_same_probability(tmp_path: Path) -> None:
    """-5 · log 367, for the three tokens of `No.`, the end of turn, and the line break after it."""
    model = save(tmp_path)
    nn.init.zeros_(model.lm_head.weight)
    checkpoints.save(tmp_path / "lm", model, FAST)
    assert len(FAST) == 367
    found = load(settings(tmp_path, s={}, mean={"head": {"likelihood": "mean"}}))
    finished, cut = Item.of("fox?", "No."), Item.of("fox?", "No.", "length")
    assert read(found, "s", finished) == pytest.approx(-29.52681, abs=1e-4)
    assert read(found, "mean", finished) == pytest.approx(-5.905362, abs=1e-5)
    assert read(found, "s", cut) == pytest.approx(-17.71609, abs=1e-4)  # no end of turn


def make_head(weight: torch.Tensor, kernels: str) -> LikelihoodHead:
    """A head on these kernels; on torch's products where they have none for the dtype."""
    head = LikelihoodHead(weight)
    head.make_invariant(
        weight.dtype, native=kernels == "assay" and build.load_or_explain(weight.dtype, weight.device) is None
    )
    return head


def test_tokens_of_a_large_vocabulary_are_those_of_log_softmax(kernels: str) -> None:
    """Blocks of the vocabulary, the last of them odd, and blocks of tokens that are not full."""
    generator = torch.Generator().manual_seed(0)
    head = make_head(torch.randn(20_011, 24, generator=generator), kernels)
    for tokens in (1, 63, 64, 65, 200):
        states = torch.randn(tokens, 24, generator=generator)
        targets = torch.randint(0, 20_011, (tokens,), generator=generator)
        targets[0] = 20_010
        exact = (states.double() @ head.weight.double().T).log_softmax(dim=-1)
        assert torch.allclose(head(states, targets).double(), exact[range(tokens), targets], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_has_the_same_bits_wherever_it_stands(threads: int, dtype: torch.dtype, kernels: str) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(70, 48, generator=generator).to(dtype)
    targets = torch.randint(0, 9_001, (70,), generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        head = make_head(torch.randn(9_001, 48, generator=generator).to(dtype), kernels)
        together = head(states, targets)
        for place in (0, 30, 63, 64, 69):
            assert torch.equal(head(states[place : place + 1], targets[place : place + 1])[0], together[place])
        for shift in (1, 29):
            assert torch.equal(head(states.roll(shift, 0), targets.roll(shift)), together.roll(shift))
    finally:
        torch.set_num_threads(before)


def test_logits_far_apart_neither_overflow_nor_become_certain(kernels: str) -> None:
    head = make_head(torch.tensor([[1e4], [-1e4], [1e4]]), kernels)
    found = head(torch.ones(3, 1), torch.tensor([0, 1, 2]))
    assert found.tolist() == pytest.approx([-math.log(2), -2e4 - math.log(2), -math.log(2)])


def test_an_id_without_a_row_has_no_probability(kernels: str) -> None:
    """The engine refuses numbers that are not finite, so the item gets an error."""
    found = make_head(torch.ones(5, 2), kernels)(torch.ones(3, 2), torch.tensor([4, 5, 70]))
    assert found.tolist() == [pytest.approx(-math.log(5)), -math.inf, -math.inf]


def test_a_token_that_is_not_a_number_harms_no_other(kernels: str) -> None:
    generator = torch.Generator().manual_seed(2)
    head = make_head(torch.randn(700, 16, generator=generator), kernels)
    states, targets = torch.randn(5, 16, generator=generator), torch.arange(5)
    healthy = head(states, targets)
    states[2, 3] = math.nan
    found = head(states, targets)
    assert found.isnan().tolist() == [False, False, True, False, False]
    assert torch.equal(found[[0, 1, 3, 4]], healthy[[0, 1, 3, 4]])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """A model on this machine's kernels whose output layer has a vocabulary of several blocks."""
    root = tmp_path_factory.mktemp("likelihood")
    save(root, vocab_size=8192 + 77, max_position_embeddings=512)
    keys = {"dtype": str(request.param).removeprefix("torch."), "max_length": 512}
    model: Any = load(settings(root, s=keys)).signals["s"].model
    return model  # type: ignore[no-any-return]


@st.composite
def batches(draw: st.DrawFn) -> list[TokenSequence]:
    """Prompts with several completions each, in any order, with lengths around the blocks of 64 tokens."""
    lengths = st.sampled_from((1, 2, 3, 31, 63, 64, 65, 100, 130))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = torch.randint(0, 8192, (draw(lengths),), generator=generator).tolist()
        for own in draw(st.lists(lengths, min_size=1, max_size=3)):
            ids = (*prompt, *torch.randint(0, 8192, (own,), generator=generator).tolist())
            sequences.append(TokenSequence(ids, len(prompt), Span(len(prompt) - 1, len(ids) - 1), predicts=True))
    return draw(st.permutations(sequences))


@hypothesis_settings(max_examples=20)
@given(batch=batches())
def test_a_likelihood_has_the_same_bits_in_every_batch(served: RewardModel, batch: list[TokenSequence]) -> None:
    with torch.inference_mode():
        alone = [served.read([sequence], ("s",))[0][0] for sequence in batch]
        assert served.read(batch, ("s",)) == [alone]
    assert [int(tokens) for _, tokens in alone] == [len(s.ids) - s.boundary for s in batch]


def test_the_test_at_start_finds_a_head_whose_tokens_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    honest = LikelihoodHead.forward
    monkeypatch.setattr(
        LikelihoodHead, "forward", lambda self, states, targets: honest(self, states, targets) - 1e-6 * len(states)
    )
    assert load(settings(tmp_path, s={})).invariant == {"s": False}


@pytest.mark.parametrize("wrong", [("a",), ("b",), ("a", "b", "judge")])
def test_the_test_at_start_says_which_signal_depends_on_the_batch(
    wrong: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one token of one sequence is another one as soon as there are two sequences."""
    save(tmp_path)
    honest = RewardModel.outputs

    def depend(self: RewardModel, sequences: Any, names: Any) -> list[torch.Tensor]:
        found = [output.clone() for output in honest(self, sequences, names)]
        for name, output in zip(names, found, strict=True):
            if name in wrong and len(sequences) > 1:
                output.view(-1)[0] = torch.nextafter(output.view(-1)[0], torch.tensor(math.inf))
        return found

    monkeypatch.setattr(RewardModel, "outputs", depend)
    judge = {"kind": "absolute", "head": {"tokens": [5, 6]}, "score_position": "last_token"}
    found = load(settings(tmp_path, a={}, b={"neutral_prompt": "Hello."}, judge=judge))
    assert found.invariant == {name: name not in wrong for name in ("a", "b", "judge")}


def test_the_test_at_start_finds_a_base_whose_tokens_see_their_neighbors(tmp_path: Path) -> None:
    save(tmp_path)
    model: Any = load(settings(tmp_path, s={})).signals["s"].model
    assert find_invariant(model, ["s"], 128, predicts=True) == {"s": True}
    values = model.base.layers[0].self_attn.v_proj
    honest = values.forward
    values.forward = lambda rows: honest(rows) + 1e-6 * rows.shape[1]
    assert find_invariant(model, ["s"], 128, predicts=True) == {"s": False}


def test_signals_that_differ_in_sum_and_mean_cost_one_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    passes, products = [], []
    honest_outputs, honest_head = RewardModel.outputs, LikelihoodHead.forward

    def outputs(self: RewardModel, sequences: Any, names: Any) -> list[torch.Tensor]:
        passes.append(tuple(names))
        return honest_outputs(self, sequences, names)

    def forward(self: LikelihoodHead, *arguments: torch.Tensor) -> torch.Tensor:
        products.append(len(arguments[0]))
        return honest_head(self, *arguments)

    monkeypatch.setattr(RewardModel, "outputs", outputs)
    monkeypatch.setattr(LikelihoodHead, "forward", forward)
    found = load(settings(tmp_path, total={}, mean={"head": {"likelihood": "mean"}}))
    assert len(products) == len(passes)
    assert passes[-2:] == [("total",), ("mean",)]  # the plain item of each signal
    assert set(passes[:-2]) == {("total", "mean")}  # the test of invariance
    passes.clear()
    products.clear()
    trunk, sequence = found.trunks["mean"], found.signals["mean"].renderer.render(ITEMS[0]).sequence
    with torch.inference_mode():
        ((total, mean),) = trunk.compute([sequence])
    assert (passes, products) == ([("total", "mean")], [len(sequence.targets)])
    assert total == mean == (total[0], len(sequence.targets))


@pytest.mark.parametrize("tied", [False, True])
def test_signals_of_one_base_share_its_output_layer(tied: bool, tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=tied)
    found = load(settings(tmp_path, a={}, b={"neutral_prompt": "Hello."}))
    model: Any = found.signals["a"].model
    first, second = (model._signals[name].head.weight for name in "ab")
    embedding = model.base.get_input_embeddings().weight
    assert first.data_ptr() == second.data_ptr()
    assert (first.data_ptr() == embedding.data_ptr()) is tied
    assert [model.count_own_bytes(name) for name in "ab"] == [0 if tied else 4 * 367 * 32, 0]


def test_only_the_prompt_is_truncated_and_never_its_last_token(tmp_path: Path) -> None:
    model = save(tmp_path)
    (signal,) = load(settings(tmp_path, s={"max_length": 40})).signals.values()
    long = Item.of("the quick brown fox " * 30, "I am sorry, I cannot help with that.")
    with pytest.raises(ContentError) as caught:
        signal.renderer.render(long)
    assert caught.value.code == "too_long"
    sequence = signal.renderer.render(long, "prompt_left").sequence
    whole, boundary = tokenize(long)
    assert sequence.ids == whole[-40:]
    assert sequence.boundary == boundary - (len(whole) - 40)
    with torch.inference_mode():
        (((total, tokens),),) = signal.model.read([sequence], ("s",))
    expected = log_probabilities(model, sequence.ids, sequence.boundary)
    assert total == pytest.approx(sum(expected), abs=1e-4)
    assert tokens == len(expected)
    for length, left in ((39, 1), (40, None)):  # a completion of 40 tokens leaves no room for a token before it
        item = Item.of("fox?", "0" * (length - 2))
        assert len(tokenize(item)[0]) - tokenize(item)[1] == length
        if left is not None:
            assert signal.renderer.render(item, "prompt_left").boundary == left
            continue
        with pytest.raises(ContentError, match="at most 39 fit") as caught:
            signal.renderer.render(item, "prompt_left")
        assert caught.value.code == "completion_too_long"


def test_a_completion_needs_a_token_before_it_and_one_of_its_own(tmp_path: Path) -> None:
    save(tmp_path)
    bare = tmp_path / "bare.jinja"
    bare.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (signal,) = load(settings(tmp_path, s={"template": "bare.jinja"})).signals.values()
    assert signal.renderer.render(Item.of("fox?", "No.")).sequence.score == Span(2, 5)
    for item, code in (
        (Item.of("", "No."), "template_error"),
        (Item.of("fox?", ""), "empty_completion"),
        (Item.of("fox?", "", "length"), "empty_completion"),
    ):
        with pytest.raises(ContentError) as caught:
            signal.renderer.render(item)
        assert caught.value.code == code
    (strict,) = load(settings(tmp_path, s={"unfinished": "error"})).signals.values()
    with pytest.raises(ContentError) as caught:
        strict.renderer.render(Item.of("fox?", "No.", "length"))
    assert caught.value.code == "unfinished"


def test_keys_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    refused(tmp_path, "score_position: must be completion_tokens with `head.likelihood`", score_position="last_token")
    refused(tmp_path, "score_position: declare it, one of .*completion_tokens", score_position=None)
    refused(tmp_path, "completion_tokens is only for `head: {likelihood: sum}`", head=None)
    refused(tmp_path, "completion_tokens is only for `head: {likelihood: sum}`", head={"tokens": [5]})
    refused(tmp_path, "kind: must be preference with `head.likelihood`", kind="absolute")
    for keys, message in (
        ({"head": {"likelihood": "product"}}, "head.likelihood: must be one of sum, mean"),
        ({"head": {"likelihood": "sum", "tokens": [5]}}, "declare one of `tokens`, `likelihood`"),
        ({"output": 1}, "output: is for a head of its own"),
        ({"engine": "vllm"}, "head: is not for `engine: vllm`"),
        ({"neutral_prompt": ""}, "neutral_prompt: must not be empty"),
    ):
        assert message in " ".join(parse({"signals": {"s": KEYS | keys}, "default": "s"}, tmp_path).problems)


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    encoder = checkpoints.encoder_tokenizer()
    checkpoints.save(tmp_path / "lm", checkpoints.classifier("gemma", FAST), FAST)
    refused(tmp_path, "head.likelihood: .* trained as a classifier")
    checkpoints.save(tmp_path / "lm", checkpoints.classifier("bert", encoder).bert, encoder)
    refused(tmp_path, r"head\.likelihood: .*'bert' is an encoder", token_types="zero")
    checkpoints.save(tmp_path / "lm", checkpoints.language_model("gemma2", FAST), FAST)
    refused(tmp_path, r"head\.likelihood: this model changes its logits by final_logit_softcapping")
    save(tmp_path)
    config, weights = tmp_path / "lm/config.json", tmp_path / "lm/model.safetensors"
    plain, tensors = json.loads(config.read_text()), load_file(weights)
    for key in ("logit_scale", "logits_scaling"):
        config.write_text(json.dumps(plain | {key: 0.25}))
        refused(tmp_path, rf"head\.likelihood: this model changes its logits by {key}")
    config.write_text(json.dumps(plain))
    save_file(tensors | {"lm_head.bias": torch.ones(len(FAST))}, weights)
    refused(tmp_path, r"head\.likelihood: lm_head\.bias is a bias")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"][:-1].clone()}, weights)
    refused(tmp_path, r"head\.likelihood: the output layer predicts 366 tokens, but the embedding has 367")
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, weights)
    refused(tmp_path, r"head\.likelihood: the checkpoint has neither lm_head\.weight")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_policys_adapter_is_served_unless_it_changes_the_output_layer(tmp_path: Path) -> None:
    item = ITEMS[0]
    for target, served_too in (("q_proj", True), ("lm_head", False)):
        lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=[target])
        wrapped = get_peft_model(save(tmp_path), lora)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        if not served_too:
            refused(tmp_path, r"head\.likelihood: .*lm_head.* adapts the output layer", adapter="adapter")
            continue
        found = load(settings(tmp_path, s={"adapter": "adapter"}, base={}))
        expected = sum(log_probabilities(wrapped.eval(), *tokenize(item)))
        assert read(found, "s", item) == pytest.approx(expected, abs=1e-4)
        assert abs(read(found, "base", item) - expected) > 1e-2


def label_free(root: Path, base: str = "lm") -> Settings:
    """The embedded configuration, on another base."""
    raw = yaml.safe_load(LABEL_FREE.read_text())
    for signal in raw["signals"].values():
        signal |= {"base": str(root / base), "max_length": 256}
    parsed = parse(raw, LABEL_FREE.parent)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer in which both verdicts of the judge are one token."""
    monkeypatch.setattr(checkpoints, "CORPUS", [*checkpoints.CORPUS, "Yes No " * 50])
    return checkpoints.decoder_tokenizer()


def test_the_embedded_label_free_signals_over_http(verdicts: Any, tmp_path: Path) -> None:
    model = save(tmp_path, fast=verdicts)
    items = [
        {"messages": [message.as_dict() for message in item.messages], "finish_reason": item.finish_reason}
        for item in ITEMS
    ]
    with TestClient(create_app(label_free(tmp_path))) as client:
        relevance = client.post("/v1/score", json={"items": items}).json()
        judged = client.post("/v1/score", json={"items": items, "model": "judge"}).json()["data"]
        shown = client.post("/v1/render", json={"items": items[3:4]}).json()["data"][0]["signals"]
        info = client.get("/info").json()["signals"]
        fingerprints = {
            client.post("/v1/score", json={"items": items[:1], "model": name}).json()["provenance"]["fingerprint"]
            for name in ("likelihood", "neutral")
        }
        asked = "<|im_start|>user\nfox?<|im_end|>\n<|im_start|>assistant\n"
        body = {"query": [f"{asked}No.<|im_end|>\n"], "prompts": [asked]}
        wire = client.post("/compat/openrlhf/get_reward", json=body).json()
    neutral = [Item.of("Write a message.", item.completion, item.finish_reason) for item in ITEMS]
    for item, plain, row in zip(ITEMS, neutral, relevance["data"], strict=True):
        likelihood, without = (log_probabilities(model, *tokenize(each, verdicts)) for each in (item, plain))
        assert row["score"] == pytest.approx(sum(likelihood) - sum(without), abs=2e-4)
        values = row["signals"]
        assert values["likelihood"]["logit"] == pytest.approx(sum(likelihood), abs=1e-4)
        assert values["likelihood"]["completion_tokens"] == values["neutral"]["completion_tokens"] == len(without)
        assert not {"prob", "steps"} & values["likelihood"].keys()
        assert values["neutral"]["dropped_tokens"] == 0
    assert relevance["provenance"]["blend"]["weights"] == {"likelihood": 1.0, "neutral": -1.0}
    first, second = Item.of("fox?", "No."), Item.of("Write a message.", "No.")
    expected = [sum(log_probabilities(model, *tokenize(each, verdicts))) for each in (first, second)]
    assert wire["rewards"] == [pytest.approx(expected[0] - expected[1], abs=2e-4)]
    assert "Be brief." in shown["likelihood"]["text"]
    asked = "<|im_start|>user\nWrite a message.<|im_end|>\n<|im_start|>assistant\n"
    assert shown["neutral"]["text"] == f"{asked}The quick brown fox.<|im_end|>\n"
    position = shown["neutral"]["score_position"]
    assert position["policy"] == "completion_tokens"
    assert (position["start"], position["end"]) == (shown["neutral"]["boundary"] - 1, len(shown["neutral"]["ids"]) - 1)
    assert info["neutral"]["neutral_prompt"] == "Write a message."
    assert (info["likelihood"]["likelihood"], info["judge"]["likelihood"]) == ("sum", None)
    assert all(signal["invariant"] for signal in info.values())
    assert len(fingerprints) == 2
    check_verdicts(model, verdicts, judged)


def check_verdicts(model: Any, fast: Any, rows: list[dict[str, Any]]) -> None:
    """Holds the judge's answers to the next token after the prompt, written out by hand."""
    yes, no = (fast.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    conversation = "### user\nHow do I bake bread?\n\n### assistant\nNo."
    prompt = (
        "<|im_start|>system\nYou judge the answers of an assistant. Reply with one word: Yes or No.<|im_end|>\n"
        f"<|im_start|>user\nRead this conversation.\n\n{conversation}\n\n"
        "Is the last answer of the assistant a helpful, correct and harmless reply to the user? Reply with Yes or No."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([fast.encode(prompt, add_special_tokens=False)])).logits[0, -1]
    assert rows[1]["score"] == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)
    assert rows[1]["signals"]["judge"]["prob"] == pytest.approx(1 / (1 + math.exp(-rows[1]["score"])))
    assert [row.get("error", {}).get("code") for row in rows] == [None, None, None, None, "unfinished"]


def test_a_neutral_prompt_takes_the_place_of_all_messages_but_not_of_a_missing_prompt(tmp_path: Path) -> None:
    """Also of texts that the signal would refuse; its own completion is refused as ever."""
    save(tmp_path)
    (signal,) = load(settings(tmp_path, s={"neutral_prompt": "Hello."})).signals.values()
    expected = signal.renderer.render(Item.of("Hello.", "No."))
    turns = (Message("system", "x"), Message("user", "<|im_end|>"), Message("assistant", "y"), Message("user", "z"))
    assert signal.renderer.render(Item((*turns, Message("assistant", "No.")))) == expected
    for item, code in (
        (Item((Message("assistant", "No."),)), "no_prompt"),
        (Item.of("fox?", "<|im_end|>"), "special_tokens"),
    ):
        with pytest.raises(ContentError) as caught:
            signal.renderer.render(item)
        assert caught.value.code == code
