"""`assay convert`: files and formats of all kinds, and what it refuses.

`tests/coverage` converts a checkpoint of every published class, and compares its scores.
"""

import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from assay_service import create_app, loader, settings
from assay_service.cli import app
from assay_service.conversion import write
from assay_service.scoring.item import Item
from tests import checkpoints
from tests.coverage.pickled import PICKLED, Reward, ScoreModel, Trlx, config_of, publish

PROMPT, COMPLETION = "How do I bake bread?", "Mix flour, water, salt and yeast, and wait."
ITEM = Item.of(PROMPT, COMPLETION)
DECLARED = ("--kind", "preference", "--eos", "template", "--unfinished", "error")
Arguments = tuple[str, ...]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def converted(source: Path, out: Path, *more: str) -> dict[str, Any]:
    """Convert by the real command, and return the configuration that it prints."""
    done = run(source, out, *DECLARED, *more)
    assert done.exit_code == 0, done.output
    raw: dict[str, Any] = yaml.safe_load(done.stdout)
    return raw


def score(raw: dict[str, Any], item: Item = ITEM, **keys: Any) -> tuple[float, tuple[int, ...]]:
    """Return the logit of an item by the loaded service, and the ids that it read."""
    ((name, signal),) = raw["signals"].items()
    read = settings.Settings.model_validate({"signals": {name: signal | keys}, "default": name, "directory": Path()})
    served = loader.load(read).signals[name]
    sequence = served.renderer.render(item).sequence
    with torch.inference_mode():
        return served.model.logits([sequence], name).item(), sequence.ids


LAST = ("--score-position", "last_token")
ULTRARM: dict[str, Any] = {"architectures": ["LlamaRewardModel"]}


def test_athene_reads_its_token_which_the_written_template_appends(tmp_path: Path) -> None:
    """Its pipeline scores `apply_chat_template(messages) + cls_token`, at that token."""
    model = Reward("llama", "model", "v_head")
    source = publish(tmp_path / "source", model, architectures=["AtheneForSequenceClassification"])
    fast = checkpoints.decoder_tokenizer(cls_token="<|cls|>")
    fast.save_pretrained(source)
    edit_json(source / "config.json", vocab_size=len(fast))
    model.get_submodule("model").resize_token_embeddings(len(fast))  # type: ignore[operator]
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    done = run(source, tmp_path / "out", "--kind", "preference", "--unfinished", "error")
    logit, ids = score(yaml.safe_load(done.stdout))
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": COMPLETION}]
    text = fast.apply_chat_template(messages, tokenize=False) + fast.cls_token
    assert list(ids) == fast(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        assert logit == pytest.approx(model(ids), abs=1e-5)


def test_a_pickled_process_reward_model_is_read_at_its_steps(tmp_path: Path) -> None:
    """Skywork-o1-Open-PRM: TRL's value head under remote code, in a pickle; every step is encoded by itself."""
    model = Reward("qwen2", "pretrained_model", "v_head.summary", bias=True)
    remote: dict[str, Any] = {
        "architectures": ["Qwen2ForPrmModel"],
        "auto_map": {"AutoModel": "modeling_qwen2_prm.Qwen2ForPrmModel"},
    }
    source = publish(tmp_path / "rm", model, **remote)
    tensors = {n.replace("pretrained_model.", "pretrained_model.model."): t for n, t in model.state_dict().items()}
    torch.save(tensors | {"pretrained_model.lm_head.weight": torch.ones(400, 32)}, source / "pytorch_model.bin")
    refused(source, tmp_path / "out", "a process reward model is read at its steps: steps", *DECLARED)
    (tmp_path / "prm.jinja").write_text(
        "{{ messages[0].content + '\n' }}{% if not add_generation_prompt %}{{ messages[1].content }}{% endif %}"
    )
    template = ("--template", str(tmp_path / "prm.jinja"))
    run(source, tmp_path / "out", *DECLARED, "--score-position", "steps", *template)
    keys = {"base": "out", "steps": {"delimiter": "\n", "token": "\n", "tokenize": "apart"}, "aggregate": "min"}
    parsed = settings.parse({"signals": {"prm": keys}}, tmp_path)
    assert parsed.settings is not None, parsed.problems
    with TestClient(create_app(parsed.settings)) as client:
        body = {"items": [{"prompt": "1 + 2?", "completion": "1 + 2 is 3.\nSo 3."}]}
        steps = client.post("/v1/score", json=body).json()["data"][0]["signals"]["prm"]["steps"]
    fast = checkpoints.decoder_tokenizer()
    pieces = [fast.encode(text) for text in ("1 + 2?\n", "1 + 2 is 3.", "\n", "So 3.", "\n")]
    ids = torch.tensor([[id_ for piece in pieces for id_ in piece]])
    ends = [sum(map(len, pieces[:n])) - 1 for n in (3, 5)]
    with torch.inference_mode():
        values = model.get_submodule("v_head.summary")(model.hidden(tuple(ids[0].tolist())))[:, 0]
    assert [step["token"] for step in steps] == ends
    assert [step["logit"] for step in steps] == pytest.approx(values[ends].tolist(), abs=1e-5)


def test_shards_their_dtypes_and_shared_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pickled shards with an index become several safetensors files, and every value stays as it was."""
    model = Reward("llama", "model", "regression_head")
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    source = publish(tmp_path / "source", model, architectures=["LlamaRewardModel"], dtype="bfloat16")
    (source / "pytorch_model.bin").unlink()
    shards = {f"pytorch_model-0000{n}-of-00002.bin": sorted(tensors)[n - 1 :: 2] for n in (1, 2)}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, source / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(write, "LARGEST_SHARD_BYTES", 20_000)
    raw = converted(source, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    written["regression_head.weight"] = written.pop("score.weight")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    logit, ids = score(raw, dtype="float32")
    model.load_state_dict(tensors)
    with torch.inference_mode():
        assert logit == pytest.approx(model(ids), abs=1e-5)


@pytest.mark.parametrize("how", ["zip", "legacy", "in a record", "of a trainer's own name"])
def test_pickles_of_all_ages_are_read(how: str, tmp_path: Path) -> None:
    model = Reward("llama", "model", "regression_head")
    source = publish(tmp_path / "source", model, architectures=["LlamaRewardModel"])
    path = source / "pytorch_model.bin"
    if how == "in a record":
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    elif how == "legacy":
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    elif how != "zip":
        path.rename(source / "reward.pt")
    logit, ids = score(converted(source, tmp_path / "out"))
    with torch.inference_mode():
        assert logit == pytest.approx(model(ids), abs=1e-5)


def test_transformers_loads_a_converted_checkpoint_as_its_own_classifier(tmp_path: Path) -> None:
    source = publish(tmp_path / "source", ScoreModel("scale", bias=False), **PICKLED["beaver-cost"].config)
    logit, ids = score(converted(source, tmp_path / "out"))
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert checkpoints.oracle(model.eval(), ids) == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "deberta-v2", "bert"])
def test_a_pickled_classifier_of_transformers_reads_where_it_did(architecture: str, tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    model = checkpoints.classifier(architecture, fast)
    source = checkpoints.save(tmp_path / "source", model, fast)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    if architecture == "bert":
        refused(source, tmp_path / "out", r"token_types: give --token-types \(zero or second_after_sep\)", *DECLARED)
    more = ("--token-types", "zero") if architecture == "bert" else ()
    logit, ids = score(converted(source, tmp_path / "out", *more))
    assert logit == pytest.approx(checkpoints.oracle(model, ids), abs=1e-5)


def test_the_value_head_of_llama_factory_in_its_own_file(tmp_path: Path) -> None:
    model = Reward("llama", "model", "v_head.summary", bias=True)
    source = publish(tmp_path / "source", model)
    tensors = model.state_dict()
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("v_head.")}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "pytorch_model.bin").unlink()
    torch.save(head, source / "value_head.bin")
    logit, ids = score(converted(source, tmp_path / "out", *LAST))
    with torch.inference_mode():
        assert logit == pytest.approx(model(ids), abs=1e-5)


def test_a_pickled_adapter_keeps_its_base(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    base = checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast), fast)
    source, reference = checkpoints.save_adapter(tmp_path / "source", checkpoints.classifier("llama", fast))
    torch.save(load_file(source / "adapter_model.safetensors"), source / "adapter_model.bin")
    (source / "adapter_model.safetensors").unlink()
    edit_json(source / "adapter_config.json", base_model_name_or_path="../base")
    refused(source, tmp_path / "out", "is a LoRA adapter; declare its keys to `assay serve`", *DECLARED)
    done = run(source, tmp_path / "elsewhere" / "out")
    assert done.exit_code == 0, done.output
    raw = yaml.safe_load(done.stdout)
    assert raw["signals"]["out"]["base"] == str(base)
    logit, ids = score(raw, kind="preference", eos="template", unfinished="error")
    assert logit == pytest.approx(checkpoints.oracle(reference, ids), abs=1e-5)


def test_config_and_tokenizer_may_come_from_the_base_model(tmp_path: Path) -> None:
    """Starling-RM-7B-alpha publishes its pickle alone."""
    model = Trlx()
    base = publish(tmp_path / "base", model)
    source = tmp_path / "source"
    source.mkdir()
    (base / "pytorch_model.bin").rename(source / "pytorch_model.bin")
    refused(source, tmp_path / "out", "has no config.json; name the directory of the base model with --base")
    logit, ids = score(converted(source, tmp_path / "out", *LAST, "--base", str(base)))
    with torch.inference_mode():
        assert logit == pytest.approx(model(ids), abs=1e-5)


def test_a_template_is_written_or_asked_for(tmp_path: Path) -> None:
    source = publish(tmp_path / "source", Reward("llama", "model", "regression_head"), **ULTRARM)
    (source / "chat_template.jinja").unlink()
    done = run(source, tmp_path / "open", *DECLARED)
    assert done.exit_code == 0, done.output
    assert re.search(r"# a file: the path of a Jinja file: .*\n    template:\n", done.stdout)
    (tmp_path / "own.jinja").write_text(checkpoints.LLAMA3)
    raw = converted(source, tmp_path / "out", "--template", str(tmp_path / "own.jinja"))
    assert "template" not in raw["signals"]["out"]
    assert score(raw)[1][0] == checkpoints.decoder_tokenizer().bos_token_id


class Harmless:
    """An object whose unpickling would create a file."""

    trace = Path()

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.trace,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    model = Reward("llama", "model", "regression_head")
    source, payload = publish(tmp_path / "source", model, **ULTRARM), Harmless()
    payload.trace = tmp_path / "trace"
    torch.save({**model.state_dict(), "extra": payload}, source / "pytorch_model.bin")
    refused(
        source, tmp_path / "out", r"pytorch_model\.bin: needs .*not a tensor; loading it could run code.*state_dict"
    )
    torch.load(source / "pytorch_model.bin", weights_only=False)  # the payload works where it is trusted
    assert payload.trace.exists()


def refused(source: Path, out: Path, message: str, *arguments: str) -> None:
    """The command fails with `message`, and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    done = run(source, out, *arguments)
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert sorted(out.parent.iterdir()) == before


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "step": 3}, r"pytorch_model\.bin: 'step' is int, not a tensor"),
        (lambda t: [*t.values()], r"pytorch_model\.bin: holds list, not a state dict"),
        (lambda t: {**t, "x.weight": torch.ones(1).expand(10**9)}, r"x\.weight repeats its values"),
        (lambda t: {n: v for n, v in t.items() if n != "v_head.weight"}, r"no head was found.*with --head"),
        (lambda t: {**t, "score.weight": torch.ones(1, 32)}, r"several heads: score\.weight, v_head\.weight.*--head"),
        (
            lambda t: {**t, "v_head.weight": torch.ones(3, 32)},
            r"v_head\.weight has shape \[3, 32\], but only a head with",
        ),
        (lambda t: {**t, "v_head.0.weight": torch.ones(1, 32)}, r"v_head\.0\.weight belongs to the head as well"),
        (lambda t: {**t, "gate.weight": torch.ones(4, 32)}, r"gate\.weight has no place .* so it is not dropped"),
        (
            lambda t: {n: v for n, v in t.items() if "layers.1.mlp.up" not in n},
            r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing, so it would be random",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "embed" not in n},
            r"no tensor is called embed_tokens\.weight",
        ),
        (
            lambda t: {**t, "ref.model.norm.weight": torch.zeros(32), "ref.model.embed_tokens.weight": 2 * t[EMBED]},
            r"tensors model\.norm\.weight and ref\.model\.norm\.weight have one place .* but differ",
        ),
        (lambda t: {**t, EMBED: torch.ones(7, 32)}, r"embed_tokens\.weight has shape \[7, 32\], but config\.json"),
    ],
)
def test_weights_that_cannot_be_converted_are_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    model = Reward("llama", "model", "v_head")
    source = publish(tmp_path / "source", model)
    torch.save(change(dict(model.state_dict())), source / "pytorch_model.bin")
    refused(source, tmp_path / "out", message, *DECLARED, *LAST)


EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, (), r"score_position: give --score-position; config\.json names LlamaForCausalLM.*last_token"),
        ({}, ("--score-position", "last_non_pad_id"), r"pad_token_id: give --pad-token-id"),
        ({"model_type": "internlm2"}, LAST, "architecture 'internlm2' is not served"),
        ({"quantization_config": {"quant_method": "gptq"}}, LAST, "quantized by 'gptq', which Assay does not read"),
        ({"architectures": ["LlamaForScore"]}, ("--score-position", "mean"), "LlamaForScore reads last_token; remove"),
        ({"architectures": ["LlamaRewardModel"]}, (), r"whose head is regression_head, but the head is v_head\.weight"),
        ({"architectures": ["AtheneForSequenceClassification"]}, (), "no token with id 128003, at which the class"),
        ({"model_type": "gpt_neox_reward_model", "pooling": "max"}, (), "pooling 'max' is not known"),
        ({"architectures": ["LlamaForScore"], "score_type": "risk"}, (), "score_type 'risk' is not known"),
        (
            {"architectures": ["LlamaForScore"], "score_dim": 2},
            (),
            "score_dim is 2, but a signal has one output; save the score_head",
        ),
        (
            {"architectures": ["LlamaForScore"], "do_normalize": True},
            (),
            r"neither a tensor normalizer\.mean nor `mean`",
        ),
        (
            {"architectures": ["LlamaForScore"], "do_normalize": True, "mean": [1.0], "var": [0.0]},
            (),
            r"normalizer\.var is \[0\.0\], but must be one finite number above 0; download",
        ),
        ({"hidden_act": "no such"}, LAST, r"config\.json: transformers cannot build the model"),
    ],
)
def test_configurations_that_cannot_be_converted_are_refused_by_key(
    config: dict[str, Any], arguments: Arguments, message: str, tmp_path: Path
) -> None:
    model = Reward("llama", "model", "score_head" if config.get("architectures") == ["LlamaForScore"] else "v_head")
    source = publish(tmp_path / "source", model, architectures=["LlamaForCausalLM"], pad_token_id=None)
    edit_json(source / "config.json", **config)
    refused(source, tmp_path / "out", message, *DECLARED, *arguments)


def test_a_policy_and_its_reference_in_one_pickle_are_refused(tmp_path: Path) -> None:
    """Language models without a head; nothing says which of the two the reward is read from."""
    model = AutoModelForCausalLM.from_config(config_of("llama"))
    source = publish(tmp_path / "source", model, architectures=["LlamaForCausalLM"])
    tensors = model.state_dict()
    torch.save(tensors | {f"ref.{name}": 2 * t for name, t in tensors.items()}, source / "pytorch_model.bin")
    message = r"tensors model\.\S+ and ref\.model\.\S+ have one place in the model; save only one model"
    refused(source, tmp_path / "out", message, *DECLARED)


def test_files_that_cannot_be_converted_are_refused_by_name(tmp_path: Path) -> None:
    model = Reward("llama", "model", "regression_head")
    source, out = publish(tmp_path / "source", model, **ULTRARM), tmp_path / "out"
    path = source / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(source, out, r"pytorch_model\.bin: (cannot be read as a pickle|holds more than tensors)")
    path.write_bytes(whole)
    (source / "pytorch_model-00002-of-00003.bin").write_bytes(whole)
    path.rename(source / "pytorch_model-00001-of-00003.bin")
    refused(source, out, r"shard 3 of 3 is missing")
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../source/a.bin"}}))
    refused(source, out, r"shard '\.\./source/a\.bin' is not a file of this directory")
    index.unlink()
    for shard in source.glob("*.bin"):
        shard.unlink()
    refused(source, out, "has no weights")
    (source / "assay.json").write_text("{}")
    refused(source, out, r"has an assay\.json already")
    refused(tmp_path / "nowhere", out, "no such directory")


def test_no_output_is_written_over_or_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish(tmp_path / "source", Reward("llama", "model", "regression_head"), **ULTRARM)
    refused(source, source, "exists already; name a directory that does not exist")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # the disk is full after the weights are written
        patch.setattr(write, "write_json", full)
        refused(source, tmp_path / "out", "cannot be written: .*No space left on device; nothing was kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the weights themselves do not fit
    try:
        refused(source, tmp_path / "out", r"cannot be written: part-0\.safetensors: .*too large.*; nothing was kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # What a killed run leaves, in a container where every run has the same process id.
    killed = tmp_path / f".out.{os.getpid()}.part"
    killed.mkdir()
    (tmp_path / "out").mkdir()
    converted(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [killed.name, "out", "source"]
