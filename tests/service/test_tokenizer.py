"""Ids are those of `tokenizer.json`, for every class that a checkpoint may name, served and written out again."""

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assay_client.client import RewardClient
from assay_service import loader, registry, settings
from assay_service.errors import ContentError, StartError
from assay_service.scoring import tokenizer
from assay_service.scoring.item import Item, Message
from tests import checkpoints
from tests.real_tokenizers import real_tokenizer
from tests.service.test_serve_process import served, wait_until_ready

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOKENS = [*SPECIALS.values(), "<|im_start|>"]
CORPUS = [
    *checkpoints.CORPUS,
    "The rapist met the therapist in 2023, at 10 o'clock.\n\nIt's a café; she'll say: naïve!",
    "\uff21\uff22\uff23 ABC № No fi \ufb01 你好世界 12345 3.14 HELLO hello",
]
TEXTS = [
    "The rapist met the therapist.",
    " two  spaces\n\nand\ttabs ",
    "2023 and 1234567",
    "It's 10 o'clock, she'll say HELLO",
    "caf\u00e9 naïve",
    unicodedata.normalize("NFD", "caf\u00e9 naïve"),
    "你好世界",
    "\uff21\uff22\uff23 \ufb01ne № 👍🏽",
    "<s> a<s>a </s> two</s>\nthree",
    "<|im_start|>user\nHi</s>\n<|im_start|>assistant\n Yes",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def byte_level(split: str | None = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    pieces = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*pieces, level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=TOKENS, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def sentencepiece_bpe(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=TOKENS, show_progress=False))
    return made


def llama2() -> Tokenizer:
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    return sentencepiece_bpe(normalizers.Sequence(steps), None)


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=TOKENS, unk_token="<unk>", show_progress=False),
    )
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=TOKENS, show_progress=False)
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level,
    "byte-level BPE with Llama-3's split": lambda: byte_level(LLAMA3),
    "Llama-2's normalizer": llama2,
    "Metaspace, first word": lambda: sentencepiece_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "SentencePiece BPE": lambda: sentencepiece_bpe(normalizers.NFKC(), pre_tokenizers.Metaspace()),
    "Unigram with a normalizing table": unigram,
    "WordPiece": word_piece,
}
CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
    "BertTokenizer",
    "RobertaTokenizerFast",
    "DebertaV2TokenizerFast",
    "NoSuchTokenizer",
]
MODEL_TYPES = [None, "deepseek_v3", *checkpoints.CONFIGS]


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The text of each kind's `tokenizer.json`."""
    return {kind: make().to_str(pretty=True) for kind, make in KINDS.items()}


def put(directory: Path, law: str, name: str | None = None, model_type: str | None = None, **more: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(law)
    config = {**({} if name is None else {"tokenizer_class": name}), **(SPECIALS | more)}
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if model_type is not None:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def ids_of(loaded: Any, texts: list[str] = TEXTS) -> list[list[int]]:
    return [loaded.encode(text, add_special_tokens=False) for text in texts]


def law_of(directory: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    law = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [law.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_files_for_every_class_and_model_type(kind: str, made: dict[str, str], tmp_path: Path) -> None:
    wrong = []
    for number, (name, model_type) in enumerate(itertools.product(CLASSES, MODEL_TYPES)):
        directory = put(tmp_path / str(number), made[kind], name, model_type)
        loaded = tokenizer.load(directory)
        if ids_of(loaded) != law_of(directory):
            wrong.append((name, model_type))
        assert (loaded.bos_token, loaded.eos_token_id, loaded.pad_token_id) == ("<s>", 1, 3)
    assert not wrong


@pytest.mark.parametrize(
    ("kind", "name", "model_type", "what"),
    [
        ("byte-level BPE", "LlamaTokenizerFast", "llama", "words"),
        ("byte-level BPE", "GemmaTokenizer", "gemma", "words"),
        ("byte-level BPE with Llama-3's split", "Qwen2Tokenizer", "qwen2", "digits"),
        ("byte-level BPE with Llama-3's split", "PreTrainedTokenizerFast", "qwen2", "digits"),
        ("Llama-2's normalizer", "LlamaTokenizer", "llama", "a space after a control token"),
        ("SentencePiece BPE", None, "gpt_neox", "words"),
        ("Unigram with a normalizing table", "DebertaV2TokenizerFast", "deberta-v2", "full-width letters"),
    ],
)
def test_a_rebuilt_tokenizer_is_found_by_the_kind_of_text(
    kind: str, name: str | None, model_type: str, what: str, made: dict[str, str], tmp_path: Path
) -> None:
    """The table above tests something: transformers' own choice differs, and the check at start says where."""
    directory = put(tmp_path, made[kind], name, model_type)
    rebuilt = AutoTokenizer.from_pretrained(directory)
    assert ids_of(rebuilt) != law_of(directory)
    law = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with pytest.raises(StartError, match=rf"other ids than its tokenizer\.json for .*\b{what}\b"):
        tokenizer.check_ids(rebuilt.backend_tokenizer, law)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_files_for_any_text(kind: str, made: dict[str, str], tmp_path: Path) -> None:
    loaded = tokenizer.load(put(tmp_path, made[kind], "LlamaTokenizerFast", "llama"))
    law = Tokenizer.from_str(made[kind])
    part = st.one_of(st.text(max_size=8), st.sampled_from([*TOKENS, " ", "\n", "the"]))

    @hypothesis_settings(max_examples=100, deadline=None)
    @given(parts=st.lists(part, max_size=8))
    def compare(parts: list[str]) -> None:
        text = "".join(parts)
        assert loaded.encode(text, add_special_tokens=False) == law.encode(text, add_special_tokens=False).ids

    compare()


def test_special_tokens_are_read_from_every_place_that_transformers_reads(made: dict[str, str], tmp_path: Path) -> None:
    """As strings and objects, with names of the model's own, from an older file beside; the file decides on flags."""
    flags = {"__type": "AddedToken", "content": "</s>", "lstrip": True, "rstrip": True, "normalized": True}
    directory = put(tmp_path / "objects", made["byte-level BPE"], eos_token=flags, image_token="<|im_start|>")
    loaded = tokenizer.load(directory)
    assert ids_of(loaded) == law_of(directory)
    assert (loaded.eos_token, loaded.all_special_ids) == ("</s>", [0, 1, 2, 3, 4])
    assert loaded.special_tokens_map["image_token"] == "<|im_start|>"

    nothing = dict.fromkeys(SPECIALS)
    directory = put(tmp_path / "map", made["byte-level BPE"], **nothing)
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "</s>", "pad_token": {"content": "<s>"}})
    )
    loaded = tokenizer.load(directory)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token) == (1, 0, None)
    reference = PreTrainedTokenizerFast.from_pretrained(directory)
    assert (reference.eos_token_id, reference.pad_token_id, reference.bos_token) == (1, 0, None)

    decoder = {"1": {"content": "</s>", "special": True}}
    directory = put(tmp_path / "decoder", made["byte-level BPE"], **nothing, added_tokens_decoder=decoder)
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<s>"}))
    assert tokenizer.load(directory).eos_token is PreTrainedTokenizerFast.from_pretrained(directory).eos_token is None

    directory = put(tmp_path / "empty", made["byte-level BPE"], bos_token="", image_token=None, extra_special_tokens={})
    assert tokenizer.load(directory).bos_token is None  # as LLaMA's first conversions have it
    extra = put(tmp_path / "extra", made["byte-level BPE"], additional_special_tokens=["<|im_start|>"])
    assert tokenizer.load(extra).all_special_tokens == [*SPECIALS.values(), "<|im_start|>"]
    (put(tmp_path / "none", made["byte-level BPE"]) / "tokenizer_config.json").unlink()
    assert tokenizer.load(tmp_path / "none").all_special_tokens == []


def test_an_unknown_token_that_is_a_piece_of_the_vocabulary_stays_one(made: dict[str, str], tmp_path: Path) -> None:
    """transformers makes a control token of it, so that the text "<unk>" would get its id."""
    law = json.loads(made["WordPiece"])
    law["added_tokens"] = [token for token in law["added_tokens"] if token["content"] != "<unk>"]
    directory = put(tmp_path, json.dumps(law))
    loaded = tokenizer.load(directory)
    assert loaded.unk_token_id == 2
    assert ids_of(loaded, ["an <unk> b"]) == law_of(directory, ["an <unk> b"])
    rebuilt = PreTrainedTokenizerFast.from_pretrained(directory)
    assert ids_of(rebuilt, ["an <unk> b"]) != law_of(directory, ["an <unk> b"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|im_end|>"}}, r"has no added token '<\|im_end\|>'"),
        ({"tokenizer_config.json": {"additional_special_tokens": ["<a>", "<b>"]}}, r"'<a>'.*\(2 missing\)"),
        ({"tokenizer_config.json": {"image_token": "<image>"}}, r"has no added token '<image>'"),
        ({"tokenizer_config.json": {"unk_token": "<none>"}}, r"has no added token '<none>'"),
        ({"added_tokens.json": {"<|im_end|>": 300}}, r"'<\|im_end\|>'.*remove it from .*added_tokens\.json"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"7": {"content": "</s>"}}}},
            r"gives '</s>' the id 1, but the files beside it say 7",
        ),
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.T", None]}}}, "auto_map"),
        ({"tokenizer.json": {"version": "1.0"}}, r"tokenizer\.json: cannot be read"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    files: dict[str, Any], message: str, made: dict[str, str], tmp_path: Path
) -> None:
    """A token that only stands beside `tokenizer.json` would be split like text."""
    directory = put(tmp_path, made["byte-level BPE"])
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    with pytest.raises(StartError, match=message):
        tokenizer.load(directory)


def test_the_advice_for_a_missing_token_works(made: dict[str, str], tmp_path: Path) -> None:
    directory = put(tmp_path, made["byte-level BPE"], additional_special_tokens=["<|im_end|>"])
    with pytest.raises(StartError, match=r"PreTrainedTokenizerFast\.from_pretrained\(DIR\)\.save_pretrained\(DIR\)"):
        tokenizer.load(directory)
    PreTrainedTokenizerFast.from_pretrained(directory).save_pretrained(directory)
    assert tokenizer.load(directory).encode("<|im_end|>") == [
        Tokenizer.from_str(made["byte-level BPE"]).get_vocab_size()
    ]


RULES = {"kind": "preference", "eos": "template", "unfinished": "score"}


def load(directory: Path, **signal: Any) -> registry.Registry:
    raw = {"signals": {"s": {"base": str(directory), **RULES, **signal}}, "default": "s", "directory": directory}
    return loader.load(settings.Settings.model_validate(raw))


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("tokenizer.model", "SentencePiece or tiktoken"),
        ("spm.model", "SentencePiece"),
        ("qwen.tiktoken", "tiktoken"),
        ("tekken.json", "mistral-common"),
        ("vocab.txt", "transformers' Python tokenizers"),
        ("vocab.json", "transformers' Python tokenizers"),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(name: str, reader: str, tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast), fast)
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / name).write_bytes(b"{}")
    with pytest.raises(
        StartError, match=f"has no tokenizer.json; Assay does not read {name}, the format of {reader}.*save_pretrained"
    ):
        load(tmp_path / "base")
    with pytest.raises(StartError, match=f"Assay does not read {name}"):  # training calls this one
        tokenizer.load(tmp_path / "base")
    (tmp_path / "base" / name).unlink()
    with pytest.raises(StartError, match=r"has no tokenizer\.json; copy it from the model"):
        load(tmp_path / "base")


def test_an_adapter_whose_tokenizer_is_not_read_does_not_get_the_bases(tmp_path: Path) -> None:
    """It may have tokens of its own, which the base's tokenizer would split."""
    fast = checkpoints.decoder_tokenizer()
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(tmp_path / "base", base, fast)
    adapter, _ = checkpoints.save_adapter(tmp_path / "adapter", base)
    assert load(tmp_path / "base", adapter=str(adapter), score_position="last_token").signals
    (adapter / "added_tokens.json").write_text(json.dumps({"<|end|>": 5}))
    with pytest.raises(
        StartError, match=r"adapter: has no tokenizer\.json; Assay does not read.*or delete added_tokens"
    ):
        load(tmp_path / "base", adapter=str(adapter), score_position="last_token")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_the_file_and_transformers_reads_it(
    kind: str, made: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Byte for byte, and `AutoTokenizer` gives its ids under every model type but qwen2, whose class is fixed."""
    source = put(tmp_path / "source", made[kind], "LlamaTokenizerFast", add_prefix_space=True, chat_template="old")
    wrong = []
    for model_type in MODEL_TYPES:
        directory = tmp_path / str(model_type)
        directory.mkdir()
        if model_type is not None:
            (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
        caplog.clear()
        tokenizer.write(source, directory, checkpoints.CHATML)
        assert (directory / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        assert ids_of(tokenizer.load(directory)) == law_of(source)
        auto = AutoTokenizer.from_pretrained(directory)
        assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (0, 1, 3)
        assert auto.chat_template == checkpoints.CHATML
        if ids_of(auto) != law_of(source):
            wrong.append(model_type)
        assert bool(caplog.records) == (ids_of(auto) != law_of(source))
    assert wrong == ["qwen2"]


def retold(directory: Path, post_processor: Any = None, **config: Any) -> None:
    """Change what a checkpoint's tokenizer says besides its vocabulary."""
    law = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if post_processor is not None:
        law.post_processor = post_processor
        law.save(str(directory / "tokenizer.json"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize("position", ["pooler", "first_token"])
def test_an_encoder_that_reads_no_class_token_refuses_to_start(position: str, tmp_path: Path) -> None:
    fast = checkpoints.encoder_tokenizer()
    checkpoints.save(tmp_path, checkpoints.classifier("bert", fast), fast)
    assert load(tmp_path, score_position=position, token_types="zero").signals
    template = tmp_path / "own.jinja"
    template.write_text(
        "{{ messages[0].content }}{% if not add_generation_prompt %} {{ messages[-1].content }}{% endif %}"
    )
    with pytest.raises(
        StartError, match=rf"score_position: {position} reads .*must be the tokenizer's cls_token \('\[CLS"
    ):
        load(tmp_path, score_position=position, template=str(template), token_types="zero")
    assert load(tmp_path, score_position="mean", template=str(template), token_types="zero").signals
    retold(tmp_path, cls_token=None, bos_token="[MASK]")  # where there is no class token, the first one of any text
    with pytest.raises(StartError, match=r"'\[CLS\]'; it must be the tokenizer's bos_token \('\[MASK\]'\)"):
        load(tmp_path, score_position=position, token_types="zero")
    template.write_text("[MASK]" + checkpoints.ENCODER.replace("[CLS]", ""))
    assert load(tmp_path, score_position=position, template=str(template), token_types="zero").signals


def test_a_conversation_without_the_token_that_the_head_or_the_types_go_by_is_its_items_error(tmp_path: Path) -> None:
    """The template prints both tokens for a first message of the user, and neither after a system message."""
    fast = checkpoints.encoder_tokenizer()
    checkpoints.save(tmp_path, checkpoints.classifier("bert", fast), fast)
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{% if loop.first and m.role == 'user' %}[CLS]{{ m.content }}[SEP]"
        "{% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    user, reply = Message("user", "flat tyre"), Message("assistant", "take it off")
    plain, system = Item((user, reply)), Item((Message("system", "be kind"), user, reply))
    for position, types, missing in (
        ("pooler", "zero", r"score_position pooler reads the first token, .* with '\[CLS\]'"),
        ("first_token", "zero", r"score_position first_token reads"),
        ("mean", "second_after_sep", "token_types is second_after_sep, .* no separator before this completion"),
    ):
        signals = load(tmp_path, score_position=position, template=str(template), token_types=types).signals
        renderer = signals["s"].renderer
        assert renderer.render(plain).sequence.ids
        with pytest.raises(ContentError, match=missing) as refused:
            renderer.render(system)
        assert refused.value.code == "template_error"
    assert (
        load(tmp_path, score_position="mean", template=str(template), token_types="zero")
        .signals["s"]
        .renderer.render(system)
    )


BOS_FIRST = processors.TemplateProcessing(single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)])
BOS_AND_EOS = processors.TemplateProcessing(
    single="<|bos|> $A <|pad|>", pair="<|bos|> $A $B <|pad|>", special_tokens=[("<|bos|>", 0), ("<|pad|>", 2)]
)


@pytest.mark.parametrize(
    ("template", "post_processor", "config", "missing"),
    [
        (checkpoints.CHATML, None, {}, []),
        (checkpoints.CHATML, BOS_FIRST, {}, ["<|bos|>"]),
        (checkpoints.LLAMA3, BOS_FIRST, {}, []),
        (checkpoints.CHATML, None, {"add_bos_token": True}, ["<|bos|>"]),
        (checkpoints.LLAMA3, None, {"add_bos_token": True, "add_eos_token": True}, []),
        (checkpoints.LLAMA3, BOS_AND_EOS, {}, ["<|pad|>"]),
        (checkpoints.CHATML, BOS_AND_EOS, {}, ["<|bos|>", "<|pad|>"]),
    ],
)
def test_tokens_that_a_tokenizer_adds_and_a_template_does_not_print_are_reported_at_start(
    template: str,
    post_processor: Any,
    config: dict[str, Any],
    missing: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether the model was trained with them is not known; where our own training wrote the template, it is."""
    fast = checkpoints.decoder_tokenizer(template)
    checkpoints.save(tmp_path, checkpoints.classifier("llama", fast), fast)
    retold(tmp_path, post_processor, **config)
    renderer = load(tmp_path).signals["s"].renderer
    logged = [text for record in caplog.records if "the tokenizer by itself adds" in (text := record.getMessage())]
    assert [message.split("'")[1] for message in logged] == missing
    assert all("signals.s: the tokenizer by itself adds" in message for message in logged)
    caplog.clear()
    (tmp_path / "assay.json").write_text(json.dumps({"template_sha256": renderer.template.sha256}))
    assert load(tmp_path).signals
    assert not any("the tokenizer by itself adds" in record.getMessage() for record in caplog.records)


def test_spaces_count_where_a_class_name_would_drop_them(tmp_path: Path) -> None:
    """DeepSeek's files: a byte-level tokenizer under the name of Llama's class. Served over HTTP."""
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path, checkpoints.classifier("llama", fast), fast)
    checkpoints.name_tokenizer(tmp_path, "LlamaTokenizerFast")
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(rebuilt, ["the rapist"]) == ids_of(rebuilt, ["therapist"])
    (tmp_path / "service.yaml").write_text(
        "signals: {s: {base: ., kind: preference, eos: template, unfinished: score, device: cpu}}\ndefault: s\n"
    )
    law = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    prompt = "<|im_start|>user\nWho\t did  it?\n<|im_end|>\n<|im_start|>assistant\n"
    with served(tmp_path / "service.yaml") as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        replies = ["the rapist", "therapist"]
        scores = client.score([("Who\t did  it?\n", reply) for reply in replies]).scores()
        items = [{"prompt": "Who\t did  it?\n", "completion": reply} for reply in replies]
        shown = httpx.post(f"{url}/v1/render", json={"items": items}, timeout=60).json()["data"]
    assert scores[0] != scores[1]
    for reply, row in zip(replies, shown, strict=True):
        expected = law.encode(f"{prompt}{reply}<|im_end|>\n", add_special_tokens=False).ids
        assert row["signals"]["s"]["ids"] == expected


# Of `tokenizers.Tokenizer.from_file` on the published files.
PUBLISHED = {
    "deepseek_v3": ("Hello world, it's me.\n\nI", [19923, 2058, 14, 436, 734, 678, 339, 43]),
    "llama2": ("q</s> two", [4256, 2, 28705, 989]),
    "llama3": ("2023 and 1234567", [2366, 18, 323, 220, 4513, 10961, 22]),
    "qwen2_5": ("2023 and 1234567", [17, 15, 17, 18, 323, 220, 16, 17, 18, 19, 20, 21, 22]),
    "gemma": ("<bos> two  spaces", [2, 1378, 139, 46633]),
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("deepseek_v3", "llama2") else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED],
)
def test_published_tokenizers_keep_their_ids(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Loaded, and written into a checkpoint that transformers reads."""
    source = real_tokenizer(name)
    text, expected = PUBLISHED[name]
    loaded = tokenizer.load(source)
    assert loaded.encode(text, add_special_tokens=False) == expected
    model_type = {"qwen2_5": "qwen2", "gemma": "gemma"}.get(name, "llama")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer.write(source, tmp_path, "{{ messages }}")
    # Qwen2's own tokenizer is read rightly under qwen2 as well. transformers may warn of Mistral's regular expression.
    assert not [record for record in caplog.records if record.name == "assay"]
    assert (tmp_path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto.encode(text, add_special_tokens=False) == expected
    config = json.loads((source / "tokenizer_config.json").read_text())
    named = {key: config[key] for key in ("bos_token", "eos_token", "pad_token") if config.get(key) is not None}
    contents = {key: token["content"] if isinstance(token, dict) else token for key, token in named.items()}
    for read in (loaded, auto):
        assert {key: getattr(read, key) for key in named} == contents
