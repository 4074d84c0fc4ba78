"""Presets: their files, what they give to a signal, and a start of every kind of them on a tiny checkpoint."""

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from assay_service import create_app, loader, preset, preset_keys
from assay_service.cli import app
from assay_service.errors import StartError
from assay_service.preset import Golden, Preset, StepRow
from assay_service.settings import Settings, parse
from assay_service.signal_settings import SignalSettings
from tests import checkpoints, presets_page
from tests.real_tokenizers import real_tokenizer

NAMES = preset.list_names()
GATED = [name for name in NAMES if preset.read(name).shape == "gated"]  # test_presets_gated.py
PROMPT, COMPLETION = "What is 2 + 3?", "It is 5."
PAGE = Path(__file__).parents[2] / "docs/presets.md"
Read = Callable[[list[int], list[int]], list[float]]  # from ids and the positions that the service reads to logits

GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + "
    "'\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else "
    "m['content'] + eos_token }}{% endfor %}"
)
# What every template of a preset prints, written out by hand from its source.
TEXTS = {
    "beaver.jinja": "<s>BEGINNING OF CONVERSATION: USER: What is 2 + 3? ASSISTANT:It is 5.",
    "bge-reranker-v2-gemma.jinja": (
        "<bos>A: What is 2 + 3?\nB: It is 5.\nGiven a query A and a passage B, determine whether the passage contains "
        "an answer to the query by providing a prediction of either 'Yes' or 'No'."
    ),
    "dpa.jinja": (
        "<s>[INST] You must read the following conversation carefully and rate the assistant's response from score "
        "0-100 in these aspects: helpfulness, correctness, coherence, honesty, complexity, verbosity\n\n"
        "User: What is 2 + 3?\n\nAssistant: It is 5. [/INST]"
    ),
    "eurus.jinja": "<s>[INST] What is 2 + 3? [/INST] It is 5.</s>",
    "math-shepherd.jinja": "<s>What is 2 + 3? Add. ки\nIt is 5. ки",
    "mxbai-rerank-v2.jinja": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nquery: What is 2 + 3?\ndocument: It is 5.\nYou are a search relevance expert who evaluates "
        "how well documents match search queries. For each query-document pair, carefully analyze the semantic "
        "relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:<|im_end|>\n<|im_start|>assistant\n"
    ),
    "oasst-pythia.jinja": "<|prompter|>What is 2 + 3?<|endoftext|><|assistant|>It is 5.<|endoftext|>",
    "pair.jinja": "[CLS]What is 2 + 3?[SEP]It is 5.[SEP]",
    "qwen3-reranker.jinja": (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: What is 2 + 3?\n<Document>: It is 5.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "skywork-o1-prm.jinja": "<|endoftext|>What is 2 + 3?\nAdd.\nIt is 5.\n",
    "starling-7b.jinja": "<s><s>[INST] What is 2 + 3? </s> [/INST] It is 5.</s>",
    "ultrarm.jinja": "<s>Human: What is 2 + 3?\n\nAssistant: It is 5.",
    "xlm-roberta-pair.jinja": "<s>What is 2 + 3?</s></s>It is 5.</s>",
    "yi-chat.jinja": "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\nIt is 5.<|im_end|>",
}
# Classes of other trainers: the prefix of their base, their head, and whether it has a bias.
FOREIGN = {
    "GPTNeoXRewardModel": ("gpt_neox", "out_proj", True),
    "LlamaRewardModel": ("model", "regression_head", False),
    "EurusRewardModel": ("model", "regression_head", False),
    "LlamaForScore": ("model", "score_head", True),
    "GPTRewardModel": ("transformer", "v_head", False),
    "LlamaForSequenceClassification": ("transformer", "v_head", False),
    "AtheneForSequenceClassification": ("model", "v_head", False),
    "Qwen2ForPrmModel": ("pretrained_model.model", "v_head.summary", True),
}


def describe(name: str) -> str:
    """Everything about a preset that decides how it starts, without the length."""
    known = preset.read(name)
    signal = {key: value for key, value in known.signal.items() if key != "max_length"}
    needs = [known.model_type, known.architecture, known.shape, known.convert is None, find_family(known)]
    return json.dumps([needs, signal], sort_keys=True)


def find_family(known: Preset) -> str:
    """The published tokenizer that fits, or the kind of a made one."""
    if known.model_type == "llama":
        is_first = (known.shape == "foreign" and "Athene" not in known.architecture) or "tulu-v2.5" in known.model
        return ("yi" if "34B" in known.model else "llama2") if is_first else "llama3_1"
    families = {"qwen3": "qwen3", "qwen2": "qwen2_5", "mistral": "llama2", "gemma": "gemma", "gemma2": "gemma"}
    return families.get(known.model_type, known.model_type)


def make_tokenizer(known: Preset) -> PreTrainedTokenizerFast:
    family = find_family(known)
    if family in ("bert", "deberta-v2", "modernbert"):
        return checkpoints.encoder_tokenizer()
    if family == "xlm-roberta":
        return checkpoints.tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, "")
    if family in ("gpt_neox", "olmo2", "yi"):
        return checkpoints.decoder_tokenizer()
    fast = PreTrainedTokenizerFast.from_pretrained(real_tokenizer(family))
    if fast.pad_token is None:  # RM-Mistral-7B and Skywork-Reward-Llama-3.1-8B have it at the same id
        fast.add_special_tokens({"pad_token": "[PAD]"})
    if family == "gemma":  # those of the published reward models have them as one token each
        fast.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    if "<extra_0>" in str(known.signal.get("steps")):
        fast.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    if "Skywork-o1" in known.model:
        fast.bos_token = "<|endoftext|>"
    if not fast.chat_template:
        fast.chat_template = {"gemma": GEMMA, "llama2": MISTRAL}[family]
    return fast


class Source:
    """A tiny random checkpoint with the class, tensor names and files of the published one, and its own forward."""

    def __init__(self, known: Preset, directory: Path) -> None:
        self.known, self.fast = known, make_tokenizer(known)
        self.rows = 2 if "output" in known.signal else 1
        self.directory = directory
        more: dict[str, Any] = {"max_position_embeddings": known.signal.get("max_length", 512) + 8}
        more |= {"num_labels": 10} if known.shape == "outputs" else {}
        build = checkpoints.language_model if known.shape == "language model" else checkpoints.classifier
        self.model = build(known.model_type, self.fast, **more)
        checkpoints.save(directory, self.model, self.fast)
        self.model.set_attn_implementation("eager")  # the only one that bounds the scores of Gemma 2
        self.head: nn.Module | None = None
        self.config: dict[str, Any] = {"architectures": [known.architecture]}
        if known.signal.get("code") == "ignore":
            self.config["auto_map"] = {"AutoModel": f"modeling_custom.{known.architecture}"}
        if known.shape == "two layers":
            layers = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, self.rows))
            self._put_head("v_head.summary" if "CausalLM" in known.architecture else "score", layers)
        if known.shape == "value head" and known.convert is None:
            self._put_head("v_head.summary" if "CausalRM" in known.architecture else "value_head", nn.Linear(32, 1))
        if known.convert is not None and known.shape == "classifier":
            torch.save(self.model.state_dict(), directory / "pytorch_model.bin")
            (directory / "model.safetensors").unlink()
        elif known.convert is not None:
            self._make_foreign()
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | self.config))

    def _base(self) -> nn.Module:
        base: nn.Module = getattr(self.model, self.model.base_model_prefix)
        return base

    def _put_head(self, module: str, head: nn.Module) -> None:
        torch.manual_seed(1)
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.head = head
        path = self.directory / "model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("score.")}
        save_file(tensors | {f"{module}.{n}": p.detach() for n, p in head.named_parameters()}, path)

    def _make_foreign(self) -> None:
        """Save the base and the head under the names of another trainer's class, as a pickle."""
        prefix, module, bias = FOREIGN[self.known.architecture]
        torch.manual_seed(1)
        self.head = nn.Linear(32, 1, bias=bias)
        tensors = {f"{prefix}.{name}": tensor for name, tensor in self._base().state_dict().items()}
        tensors |= {f"{module}.{n}": p.detach() for n, p in self.head.named_parameters()}
        if self.known.architecture == "GPTNeoXRewardModel":
            self.config |= {"model_type": "gpt_neox_reward_model", "pooling": "last"}
        if self.known.architecture == "LlamaForScore":
            self.config |= {"score_type": "reward", "do_normalize": False, "bias": True}
        torch.save(tensors, self.directory / "pytorch_model.bin")
        (self.directory / "model.safetensors").unlink()

    def read(self, ids: list[int], positions: list[int]) -> list[float]:
        """What transformers' own forward of the published class gives for the ids."""
        row = torch.tensor([ids])
        types: dict[str, torch.Tensor] = {}
        if self.known.signal.get("token_types") == "second_after_sep":
            after = ids.index(self.fast.sep_token_id) + 1
            types["token_type_ids"] = torch.tensor([[0] * after + [1] * (len(ids) - after)])
        with torch.inference_mode():
            if self.head is not None:
                values = self.head(self._base()(input_ids=row).last_hidden_state[0])
                return [float(v[1] - v[0] if self.rows == 2 else v[0]) for v in values[positions]]
            logits = self.model(input_ids=row, **types).logits[0]
        if self.known.shape != "language model":
            return [float(logits[self.known.signal.get("output", 0)])]
        tokens = [self.fast.get_vocab()[t] if isinstance(t, str) else t for t in self.known.signal["head"]["tokens"]]
        return [float(row[tokens[0]] - (row[tokens[1]] if len(tokens) == 2 else 0)) for row in logits[positions]]


def make_settings(root: Path, **signals: dict[str, Any]) -> Settings:
    parsed = parse({"signals": signals, "default": next(iter(signals))}, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


def convert(name: str, root: Path) -> None:
    """Run the command that the preset tells to run."""
    arguments = ["convert", str(root / "source"), str(root / "rm"), "--preset", name]
    base = preset.read(name).convert
    if base is not None and base.base is not None:
        (root / "base").mkdir()
        for file in [path for path in (root / "source").iterdir() if path.suffix != ".bin"]:
            file.rename(root / "base" / file.name)
        arguments += ["--base", str(root / "base")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.stdout)["signals"][name]["preset"] == name


KINDS = list({describe(name): name for name in NAMES if name not in GATED}.values())
FIRST = {find_family(preset.read(name)): name for name in reversed(KINDS)}  # one of each tokenizer; the others are slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST.values() else pytest.mark.slow) for name in KINDS]
)
def test_a_preset_starts_and_scores_as_the_published_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One preset of every kind: a kind is all that it declares besides the length, and the class and tokenizer."""
    known = preset.read(name)
    source = Source(known, tmp_path / ("rm" if known.convert is None else "source"))
    if known.convert is not None:
        convert(name, tmp_path)
    monkeypatch.setattr(loader, "find_golden", lambda use: None)  # random weights do not give published logits
    steps = known.signal.get("steps")
    completion = f"Add.{steps['delimiter']}{COMPLETION}" if steps else COMPLETION
    # vLLM is not installed here, and its logits are compared in test_engine_vllm.py.
    own = {"engine": "assay", "tensor_parallel_size": 1} if known.signal.get("engine") == "vllm" else {}
    settings = make_settings(tmp_path, rm={"preset": name, "base": "rm", **own})
    with TestClient(create_app(settings)) as client:
        items = [{"prompt": PROMPT, "completion": completion}]
        rendered = client.post("/v1/render", json={"items": items}).json()["data"][0]["signals"]["rm"]
        value = client.post("/v1/score", json={"items": items}).json()["data"][0]["signals"]["rm"]
        (card,) = client.get("/v1/models").json()["data"]
    assert card["preset"] == {
        "name": name,
        "sha256": card["preset"]["sha256"],
        "golden": known.golden_state,
        "changed": sorted(own),
    }
    assert rendered["text"] == find_text(source, completion)
    if known.signal["eos"] == "append":
        assert rendered["ids"][-1] == source.fast.eos_token_id
    positions = [step["token"] for step in value["steps"]] if steps else [len(rendered["ids"]) - 1]
    logits = [step["logit"] for step in value["steps"]] if steps else [value["logit"]]
    assert logits == pytest.approx(source.read(rendered["ids"], positions), abs=2e-5)


def find_text(source: Source, completion: str) -> str:
    """The text that the preset must print: of its own template as written out above, else as transformers prints it."""
    signal = source.known.signal
    if "template" in signal:
        return TEXTS[signal["template"]]
    steps = signal.get("steps", {})
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": completion}]
    if steps.get("layout") == "turns":
        first, second = completion.split(steps["delimiter"])
        contents = [f"{PROMPT} {first}", "+", second, "+"]
        chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    elif steps:
        chat[1]["content"] = completion.replace(steps["delimiter"], steps["token"]) + steps["token"]
    text = str(source.fast.apply_chat_template(chat, tokenize=False))
    if "Athene" in source.known.architecture:
        text += source.fast.convert_ids_to_tokens(128003)
    return (source.fast.bos_token if signal.get("bos") == "add" else "") + text


def test_every_template_of_a_preset_is_used_and_written_out() -> None:
    files = {path.name for path in (preset.DIRECTORY / "templates").iterdir()}
    assert files == {t for name in NAMES if (t := preset.read(name).signal.get("template"))} == set(TEXTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_declares_real_keys_and_a_source_of_every_fact(name: str) -> None:
    known = preset.read(name)
    assert known.signal.keys() <= SignalSettings.model_fields.keys() - {"preset", "base", "revision", "adapter"}
    SignalSettings(preset=name, base="DIR")
    facts = [fact for facts in known.sources.values() for fact in facts]
    assert set(facts) == known.facts
    assert all(source.startswith("https://") for source in known.sources.keys() - {*preset.UNVERIFIED})
    assert known.signal["unfinished"] == "error"


def test_the_page_lists_the_files() -> None:
    """`python -m tests.presets_page` writes the table."""
    assert presets_page.TABLE.search(PAGE.read_text()) is not None
    assert presets_page.fill(PAGE.read_text()) == PAGE.read_text()
    assert len(NAMES) >= 40


FACTS = ["model_type", "architecture", "shape", "template", "kind", "eos", "max_length"]
PRESET: dict[str, Any] = {
    "model": "Org/Model-1B",
    "model_type": "llama",
    "architecture": "LlamaForSequenceClassification",
    "shape": "classifier",
    "signal": {"kind": "preference", "eos": "template", "unfinished": "error", "max_length": 200},
    "sources": {"https://example.org": FACTS},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Presets of the test's own, and a tiny model that they fit, in `rm`."""
    folder = tmp_path / "presets"
    (folder / "templates").mkdir(parents=True)
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "rm", checkpoints.classifier("llama", fast), fast)
    monkeypatch.setattr(preset, "DIRECTORY", folder)

    def write(name: str, **keys: Any) -> None:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(PRESET | keys))
        clear()

    def clear() -> None:
        preset.list_names.cache_clear()
        preset.read.cache_clear()

    yield write
    clear()


def problems(root: Path, **keys: Any) -> str:
    parsed = parse({"signals": {"rm": keys}}, root)
    assert parsed.settings is None
    return "\n".join(parsed.problems)


def test_a_declared_key_takes_the_place_of_the_presets_and_is_named(own: Any, tmp_path: Path, caplog: Any) -> None:
    own("known")
    keys = {"preset": "known", "base": "rm", "unfinished": "score", "max_length": None}
    with caplog.at_level(logging.INFO), TestClient(create_app(make_settings(tmp_path, rm=keys))) as client:
        answer = client.post("/v1/score", json={"items": [{"prompt": "a", "completion": "b"}]}).json()
        info = client.get("/info").json()["signals"]["rm"]
        cards = client.get("/v1/models").json()["data"]
    used = {"name": "known", "golden": "not run", "changed": ["unfinished"]}
    found = answer["provenance"]["signals"]["rm"]["preset"]
    assert found == used | {"sha256": found["sha256"]}
    assert cards[0]["preset"] == found
    assert (info["unfinished"], info["max_length"]) == ("score", 200)
    assert "preset known: no golden row of it was ever run" in caplog.text
    assert f"signal rm: preset known ({found['sha256'][:16]}), with unfinished changed" in caplog.text


def test_the_fingerprint_is_that_of_the_same_keys_without_a_preset(own: Any, tmp_path: Path) -> None:
    own("known")
    plain = {"base": "rm", **PRESET["signal"]}
    found = loader.load(make_settings(tmp_path, a={"preset": "known", "base": "rm"}))
    alone = loader.load(make_settings(tmp_path, a=plain))
    assert found.fingerprint() == alone.fingerprint()


def test_an_unknown_preset_names_the_closest_ones_and_no_other_key(own: Any, tmp_path: Path) -> None:
    own("skywork-reward-v2-qwen3-0.6b")
    own("skywork-reward-v2-qwen3-4b")
    text = problems(tmp_path, preset="Skywork-Reward-V2-Qwen3-0.6", base="rm")
    assert text == (
        "signals.rm: preset: 'Skywork-Reward-V2-Qwen3-0.6' is not a preset (did you mean skywork-reward-v2-qwen3-0.6b "
        "or skywork-reward-v2-qwen3-4b?); declare one that `assay presets` prints"
    )
    for wrong in ("../secret", "", "templates/x"):
        assert "is not a preset" in problems(tmp_path, preset=wrong, base="rm")
    assert "preset: must be text" in problems(tmp_path, preset=["known"], base="rm")


def test_a_hub_id_has_the_declared_revision_else_the_presets_else_main(own: Any, tmp_path: Path) -> None:
    own("known")
    unpinned = make_settings(tmp_path, rm={"preset": "known"}).signals["rm"]
    assert (unpinned.base, unpinned.revision) == ("Org/Model-1B", "main")
    declared = make_settings(tmp_path, rm={"preset": "known", "revision": "abc"}).signals["rm"]
    assert (declared.base, declared.revision) == ("Org/Model-1B", "abc")
    own(
        "pinned",
        revision="ab" * 20,
        sources={"https://example.org": [*FACTS, "revision"]},
    )
    pinned = make_settings(tmp_path, rm={"preset": "pinned"}).signals["rm"]
    assert (pinned.base, pinned.revision) == ("Org/Model-1B", "ab" * 20)
    here = make_settings(tmp_path, rm={"preset": "pinned", "base": "rm"}).signals["rm"]
    assert (here.base, here.revision) == ("rm", None)


class Hub(BaseHTTPRequestHandler):
    """The endpoints of a hub with one repository, whose branch `main` is at one commit."""

    directory: Path
    commit: str

    def do_GET(self) -> None:
        """Answer what the hub's client asks: the commit and files of a revision, and a file at a commit."""
        path = self.path.partition("?")[0]
        file = self.directory / path.rpartition("/")[2]
        files = sorted(self.directory.iterdir())
        if path.startswith("/api/models/Org/Model-1B/tree/"):
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "34" * 20} for f in files]
            self._answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/Org/Model-1B"):
            names = [file.name for file in files]
            info = {"id": "Org/Model-1B", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
            self._answer(json.dumps(info).encode())
        elif path.startswith(f"/Org/Model-1B/resolve/{self.commit}/") and file.is_file():
            self._answer(file.read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        etag = hashlib.sha256(body).hexdigest()
        for name, value in {"Content-Length": len(body), "ETag": f'"{etag}"', "X-Repo-Commit": self.commit}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that serves `rm`, and an empty cache."""
    handler = type("OwnHub", (Hub,), {"directory": tmp_path / "rm", "commit": "12" * 20})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_main_becomes_a_commit_at_the_start(own: Any, hub: type[Hub], tmp_path: Path, caplog: Any) -> None:
    own("known")
    with TestClient(create_app(make_settings(tmp_path, rm={"preset": "known"}))) as client:
        found = client.get("/v1/models").json()["data"][0]
        item = {"prompt": "a", "completion": "b"}
        answer = client.post("/v1/score", json={"items": [item]}).json()["provenance"]["signals"]["rm"]
    assert found["preset"]["changed"] == []
    assert (answer["model"], answer["revision"]) == ("Org/Model-1B", "12" * 20)
    warning = f"main of Org/Model-1B is the commit {'12' * 20} at this start"
    assert warning in caplog.text
    assert f"declare `revision: {'12' * 20}`" in caplog.text
    caplog.clear()
    loader.load(make_settings(tmp_path, rm={"preset": "known", "revision": "12" * 20}))
    assert "at this start" not in caplog.text


def test_a_pickle_of_a_preset_whose_files_are_usually_served_is_converted_by_it(own: Any, tmp_path: Path) -> None:
    own("known")
    weights = tmp_path / "rm/model.safetensors"
    torch.save(load_file(weights), tmp_path / "rm/pytorch_model.bin")
    weights.unlink()
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "rm"), str(tmp_path / "out"), "--preset", "known"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.stdout)["signals"]["known"]["preset"] == "known"
    loader.load(make_settings(tmp_path, rm={"preset": "known", "base": "out"}))


def test_files_that_must_be_converted_say_the_command(own: Any, tmp_path: Path) -> None:
    own("old", convert={"reason": "the weights are a pickle", "base": "Org/Base"})
    text = problems(tmp_path, preset="old")
    assert "`assay convert SOURCE OUT --preset old --base DIRECTORY_OF_Base`" in text
    assert "hf download Org/Model-1B --local-dir SOURCE" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_refused_on_every_other_architecture(name: str, tmp_path: Path) -> None:
    known = preset.read(name)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StartError, match=rf"model_type 'other', but the preset {name!r} is for {known.model}"):
        preset_keys.check_fits(name, tmp_path, {"model_type": "other", "architectures": ["OtherModel"]})
    fitting = {"model_type": known.model_type, "architectures": ["OtherModel"]}
    preset_keys.check_fits(name, tmp_path, fitting)


@pytest.mark.parametrize("name", [name for name in NAMES if preset.read(name).convert is not None])
def test_published_files_that_must_be_converted_are_refused_with_the_command(name: str, tmp_path: Path) -> None:
    """Also where they would start: a foreign class in safetensors lacks what the conversion adds."""
    known = preset.read(name)
    config = {"model_type": known.model_type, "architectures": [known.architecture]}
    (tmp_path / "pytorch_model.bin").touch()
    command = f"`assay convert SOURCE OUT --preset {name}"
    with pytest.raises(StartError, match=command):
        preset_keys.check_fits(name, tmp_path, config)
    (tmp_path / "model.safetensors").touch()
    if known.shape != "classifier":
        with pytest.raises(StartError, match=command):
            preset_keys.check_fits(name, tmp_path, config)
        (tmp_path / "assay.json").touch()
    preset_keys.check_fits(name, tmp_path, config)


def test_a_preset_of_another_checkpoint_is_named_in_the_error(own: Any, tmp_path: Path, caplog: Any) -> None:
    own("known", model_type="qwen3")
    with pytest.raises(StartError) as wrong:
        loader.load(make_settings(tmp_path, rm={"preset": "known", "base": "rm"}))
    (line,) = wrong.value.problems
    assert "signals.rm: base: " in line
    assert "config.json has model_type 'llama', but the preset 'known' is for Org/Model-1B, which has 'qwen3'" in line
    own("known", architecture="LlamaForCausalLM")
    other = "config.json names the class LlamaForSequenceClassification, but Org/Model-1B"
    loader.load(make_settings(tmp_path, rm={"preset": "known", "base": "rm"}))
    assert other in caplog.text
    with pytest.raises(StartError, match=rf"(?s)head.gate: the checkpoint has no gate.*{other}"):
        loader.load(make_settings(tmp_path, rm={"preset": "known", "base": "rm", "head": {"gate": "x"}}))


def test_published_logits_are_recomputed_at_every_start(own: Any, tmp_path: Path, caplog: Any) -> None:
    own("known")
    keys = {"preset": "known", "base": "rm"}
    with TestClient(create_app(make_settings(tmp_path, rm=keys))) as client:
        item = {"prompt": PROMPT, "completion": COMPLETION}
        logit = client.post("/v1/score", json={"items": [item]}).json()["data"][0]["score"]

    def publish(value: float) -> None:
        rows = [{"messages": [["user", PROMPT], ["assistant", COMPLETION]], "logit": value}]
        facts = [*FACTS, "golden"]
        own("known", golden={"rows": rows, "dtype": "bfloat16"}, sources={"https://example.org": facts})

    publish(logit * 1.05)  # within the tolerance of the dtype in which it was published
    with caplog.at_level(logging.INFO):
        loader.load(make_settings(tmp_path, rm=keys))
    assert "gives the 1 golden rows of preset known" in caplog.text
    assert "Assay never ran them before this start" in caplog.text
    publish(logit + 2)
    with pytest.raises(
        StartError, match=rf"golden row 0: preset known says {logit + 2:.6f}, but the loaded model gives"
    ):
        loader.load(make_settings(tmp_path, rm=keys))
    loader.load(make_settings(tmp_path, rm=keys | {"score_position": "mean"}))
    assert "its golden rows are not checked, because score_position is changed" in caplog.text


def test_real_published_logits_refuse_other_weights(tmp_path: Path) -> None:
    name = "skywork-reward-v2-llama-3.1-8b"
    assert isinstance(preset.read(name).golden, Golden)
    Source(preset.read(name), tmp_path / "rm")
    with pytest.raises(StartError, match=rf"golden row 0: preset {name} says 23.000000, but the loaded model gives"):
        loader.load(make_settings(tmp_path, rm={"preset": name, "base": "rm"}))


def test_published_probabilities_of_steps_are_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "math-shepherd-mistral-7b-prm"
    published = preset.read(name).golden
    assert isinstance(published, Golden)
    Source(preset.read(name), tmp_path / "rm")
    settings = make_settings(tmp_path, rm={"preset": name, "base": "rm"})
    message = rf"golden row 0: preset {name} says 0.9955, 0.9958, 0.9983, 0.9957 for the steps, but the loaded model"
    with pytest.raises(StartError, match=message) as refused:
        loader.load(settings)
    given = [float(prob) for prob in refused.value.message.rpartition("gives ")[2].partition(";")[0].split(", ")]
    assert len(given) == 4
    (row, _) = published.rows
    own = published.model_copy(update={"rows": (StepRow(messages=row.messages, probs=tuple(given)),)})
    monkeypatch.setattr(loader, "find_golden", lambda use: own)
    loader.load(settings)
    short = published.model_copy(update={"rows": (StepRow(messages=row.messages, probs=tuple(given[:3])),)})
    monkeypatch.setattr(loader, "find_golden", lambda use: short)
    with pytest.raises(StartError, match="for the steps, but the loaded model"):
        loader.load(settings)


def test_at_least_twelve_presets_have_published_scores() -> None:
    assert sum(preset.read(name).golden_state == "published" for name in NAMES) >= 12


def test_keys_that_contradict_a_presets_key_replace_it(own: Any, tmp_path: Path) -> None:
    facts = [*FACTS, "score_position", "pad_token_id", "output", "mean", "std"]
    signal = PRESET["signal"] | {
        "score_position": "last_non_pad_id",
        "pad_token_id": 2,
        "output": 1,
        "mean": 1,
        "std": 2,
    }
    own("known", signal=signal | {"template": "x.jinja"}, sources={"https://example.org": facts})
    keys = {"template_name": "tool", "head": {"tokens": [5]}, "score_position": "last_token", "moments": "config"}
    found = make_settings(tmp_path, rm={"preset": "known", "base": "rm", **keys}).signals["rm"]
    assert (found.template, found.output, found.pad_token_id, found.mean, found.std) == (None,) * 5
    same = make_settings(tmp_path, rm={"preset": "known", "base": "rm", "score_position": "last_non_pad_id"})
    assert same.signals["rm"].pad_token_id == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": {}}, "sources: no source for architecture, eos, kind, max_length, model_type, shape, template"),
        ({"revision": "main"}, "revision: must match"),
        ({"shape": "square"}, "shape: must be one of"),
        ({"temperature": 1}, "temperature: unknown key"),
        ({"golden": "run"}, "golden"),
    ],
)
def test_a_wrong_file_names_its_key(keys: dict[str, Any], message: str, own: Any, tmp_path: Path) -> None:
    own("wrong", **keys)
    with pytest.raises(StartError, match=message):
        preset.read("wrong")


def test_the_commands_take_a_preset(own: Any, tmp_path: Path) -> None:
    own("known")
    run = CliRunner().invoke
    assert run(app, ["presets"]).stdout.split() == ["known", "Org/Model-1B", "(golden", "row:", "not", "run)"]
    report = run(app, ["inspect", str(tmp_path / "rm"), "--preset", "known"]).stdout
    assert yaml.safe_load(report) == {"signals": {"known": {"base": str(tmp_path / "rm"), "preset": "known"}}}
    (tmp_path / "rm").rename(tmp_path / "model-1b")
    assert (
        "known may be for it, by the directory's name: --preset known"
        in run(app, ["inspect", str(tmp_path / "model-1b")]).stdout
    )


def test_serve_takes_a_preset_and_says_what_is_missing() -> None:
    """In a process of its own, because the command sets up the logs."""

    def serve(*options: str) -> str:
        command = [str(Path(sys.executable).with_name("assay")), "serve", *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        return done.stderr

    name = "skywork-reward-v2-qwen3-4b"
    assert "not two of them" in serve("--preset", name, "--config", str(PAGE))
    assert "`assay convert SOURCE OUT --preset ultrarm-13b`" in serve("--preset", "ultrarm-13b")


def test_bos_stands_in_front_of_a_template_that_prints_none(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "rm", checkpoints.classifier("llama", fast), fast)
    keys = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "error"}
    with TestClient(create_app(make_settings(tmp_path, plain=keys, bos=keys | {"bos": "add"}))) as client:
        body = {"items": [{"prompt": "a", "completion": "b"}]}
        answers = {name: client.post("/v1/render", json={**body, "model": name}).json() for name in ("plain", "bos")}
    signals = {name: answer["data"][0]["signals"][name] for name, answer in answers.items()}
    assert signals["bos"]["text"] == "<|bos|>" + signals["plain"]["text"]
    assert signals["bos"]["ids"] == [fast.bos_token_id, *signals["plain"]["ids"]]
