"""What must not be served refuses to start, naming the key, file or tensor (scoring-traps 1, 5, 17, 24, 25)."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay_service import loader, registry, settings
from assay_service.errors import StartError
from assay_service.resolve import read_resolved
from assay_service.scoring.item import PROBE, Item
from tests import checkpoints

RULES = {"eos": "template", "unfinished": "score", "kind": "preference"}


def plain(directory: Path, architecture: str = "llama", **manifest: Any) -> tuple[Path, Any]:
    fast = checkpoints.tokenizer_of(architecture)
    model = checkpoints.classifier(architecture, fast)
    return checkpoints.save(directory, model, fast, **manifest), model


def load(directory: Path, **signal: Any) -> registry.Registry:
    declared = {k: v for k, v in {"base": str(directory), **RULES, **signal}.items() if v is not None}
    raw = {"signals": {"s": declared}, "default": "s", "directory": directory}
    return loader.load(settings.Settings.model_validate(raw))


def edit_tensors(path: Path, change: Any) -> None:
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}))


@pytest.mark.parametrize("architecture", checkpoints.CONFIGS)
def test_a_plain_reward_model_needs_no_manifest(architecture: str, tmp_path: Path) -> None:
    """Position and length are inferred from the architecture; trap 1: as transformers itself would read."""
    directory, reference = plain(tmp_path, architecture)
    served = load(directory, token_types="zero" if architecture == "bert" else None)
    signal = served.signals["s"]
    rules = signal.renderer.rules
    assert rules.score_position == ("pooler" if architecture in checkpoints.ENCODERS else "last_non_pad_id")
    after_pad = architecture in ("roberta", "xlm-roberta")
    assert rules.max_length == (256 - rules.pad_token_id - 1 if after_pad else 256)  # type: ignore[operator]
    assert served.invariant == {"s": True}
    sequence = signal.renderer.render(PROBE).sequence
    with torch.inference_mode():
        logit = signal.model.logits([sequence], "s").item()
    assert logit == pytest.approx(checkpoints.oracle(reference, sequence.ids), abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("llama", {"is_causal": False}),
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_a_decoder_that_looks_ahead_refuses_to_start(
    architecture: str, change: dict[str, bool], tmp_path: Path
) -> None:
    directory, _ = plain(tmp_path, architecture)
    edit_config(directory, **change)
    with pytest.raises(StartError, match="attends in both directions"):
        load(directory)


def test_a_head_behind_a_dense_layer_is_not_read_without_it(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path, "roberta")
    with pytest.raises(StartError, match="has a dense layer before it"):
        load(directory, score_position="first_token")


def test_a_base_that_hides_an_adapter_refuses_to_start(tmp_path: Path) -> None:
    """transformers would load it too, unasked."""
    directory, _ = plain(tmp_path)
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(StartError, match="declare the adapter as `adapter`"):
        load(directory)


def test_an_encoder_whose_layer_before_the_head_is_missing_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path, "roberta")
    edit_tensors(
        directory / "model.safetensors", lambda t: {n: v for n, v in t.items() if not n.startswith("classifier.dense")}
    )
    with pytest.raises(StartError, match=r"has no tensor classifier\.dense\.weight, which score_position pooler reads"):
        load(directory)


@pytest.mark.parametrize("key", ["kind", "eos", "unfinished"])
def test_what_nobody_declares_refuses_to_start(key: str, tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    with pytest.raises(StartError, match=rf"signals\.s: {key}: declare it"):
        load(directory, **{key: None})


def test_a_checkpoint_without_template_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(StartError, match="has no chat template; declare the path of a Jinja file"):
        load(directory)


def test_what_is_declared_must_not_contradict_the_manifest(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path, score_position="last_token")
    assert load(directory).signals["s"].renderer.rules.score_position == "last_token"
    with pytest.raises(
        StartError, match="score_position: declared 'first_token', but the checkpoint's manifest says 'last_token'"
    ):
        load(directory, score_position="first_token")
    with pytest.raises(StartError, match="max_length: 512 is more than the checkpoint's 256"):
        load(directory, max_length=512)


def test_another_template_than_that_of_training_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path, template_sha256="0" * 64)
    with pytest.raises(StartError, match="template_sha256"):
        load(directory)


def test_another_base_than_that_of_training_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path, base_sha256="0" * 64)
    with pytest.raises(StartError, match="base_sha256"):
        load(directory)


def test_golden_rows_are_recomputed(tmp_path: Path) -> None:
    row = {"messages": [["user", "hi"], ["assistant", "yes"]], "logit": 123.0}
    directory, _ = plain(tmp_path, golden=[row])
    with pytest.raises(StartError, match=r"golden row 0: the manifest says 123\.0"):
        load(directory)


@pytest.mark.parametrize(
    ("name", "bias"), [("v_head.summary", True), ("v_head", False), ("value_head", False), ("score", False)]
)
def test_heads_are_found_under_the_names_that_trainers_use(name: str, bias: bool, tmp_path: Path) -> None:
    directory, model = plain(tmp_path)

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[f"{name}.weight"] = tensors.pop("score.weight")
        return tensors | ({f"{name}.bias": torch.tensor([0.5])} if bias else {})

    edit_tensors(directory / "model.safetensors", rename)
    signal = load(directory).signals["s"]
    sequence = signal.renderer.render(Item.of("hi", "yes")).sequence
    with torch.inference_mode():
        logit = signal.model.logits([sequence], "s").item()
    assert logit == pytest.approx(checkpoints.oracle(model, sequence.ids) + 0.5 * bias, abs=1e-5)


def test_sharded_checkpoints_load(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.classifier("llama", fast).save_pretrained(tmp_path, max_shard_size="20KB")
    fast.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert load(tmp_path).signals["s"].provenance.head_sha256


def test_a_missing_head_refuses_to_start(tmp_path: Path) -> None:
    """Trap 17."""
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: {k: v for k, v in t.items() if k != "score.weight"})
    with pytest.raises(StartError, match=r"no head was found; looked for score\.weight"):
        load(directory)


def test_an_all_zero_head_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: t | {"score.weight": torch.zeros_like(t["score.weight"])})
    with pytest.raises(StartError, match=r"score\.weight: is all zero"):
        load(directory)


def test_a_head_with_several_labels_refuses_to_start(tmp_path: Path) -> None:
    """Trap 11."""
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: t | {"score.weight": torch.ones(2, 32)})
    with pytest.raises(StartError, match=r"score\.weight: has 2 outputs; declare the one to read"):
        load(directory)


def test_a_head_that_is_not_finite_refuses_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: t | {"score.weight": torch.full((1, 32), float("nan"))})
    with pytest.raises(StartError, match="not finite"):
        load(directory)


def test_two_heads_refuse_to_start(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: t | {"v_head.weight": torch.ones(1, 32)})
    with pytest.raises(StartError, match=r"several heads: score\.weight, v_head\.weight"):
        load(directory)


def test_a_missing_layer_refuses_to_start_and_names_the_tensor(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    lost = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(directory / "model.safetensors", lambda t: {k: v for k, v in t.items() if k != lost})
    with pytest.raises(StartError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        load(directory)


def test_keys_under_an_unknown_prefix_refuse_to_start_and_the_prefix_is_named(tmp_path: Path) -> None:
    """Trap 17: a checkpoint saved from a wrapper would leave every weight random."""
    directory, _ = plain(tmp_path)
    edit_tensors(directory / "model.safetensors", lambda t: {f"agent.{k}": v for k, v in t.items()})
    with pytest.raises(StartError, match=r"embed_tokens\.weight is missing.*prefix 'agent\.model\.' is not known"):
        load(directory)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(StartError, match=r"pytorch_model\.bin is a pickle and is not read"):
        load(directory)


@pytest.mark.parametrize("key", ["transformers_weights", "configuration_files"])
def test_a_key_that_names_files_which_are_not_hashed_is_refused(key: str, tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    assert load(directory)
    edit_config(directory, **{key: "other"})
    with pytest.raises(StartError, match=f"{key} names files that Assay neither checks nor hashes"):
        load(directory)


def write_code(directory: Path, **auto_map: str) -> None:
    """Name code in config.json that would leave a trace if it were imported."""
    (directory / "evil.py").write_text(f"open({str(directory / 'trace')!r}, 'w')\n")
    edit_config(directory, auto_map=auto_map)


def test_remote_code_is_refused_and_the_error_names_the_key_that_ignores_it(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    write_code(directory, AutoModel="evil.Model")
    with pytest.raises(
        StartError, match=r"`auto_map` asks for remote code \(evil\.Model\), .* never runs; declare `code: ignore`"
    ):
        load(directory)


def test_ignored_code_is_not_run_and_every_start_warns_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, reference = plain(tmp_path)
    write_code(directory, AutoModel="evil.Model", AutoConfig="evil.Config")
    signal = load(directory, code="ignore").signals["s"]
    sequence = signal.renderer.render(PROBE).sequence
    with torch.inference_mode():
        logit = signal.model.logits([sequence], "s").item()
    assert logit == pytest.approx(checkpoints.oracle(reference, sequence.ids), abs=1e-5)
    (warning,) = [record.getMessage() for record in caplog.records if "code: ignore" in record.getMessage()]
    assert "evil.Model, evil.Config" in warning
    assert not (directory / "trace").exists()


def test_a_classifier_of_the_checkpoints_own_does_not_say_where_its_head_reads(tmp_path: Path) -> None:
    """The code that is ignored may read another token, although its class is called like that of transformers."""
    directory, _ = plain(tmp_path)
    write_code(directory, AutoModelForSequenceClassification="evil.LlamaForSequenceClassification")
    with pytest.raises(StartError, match="score_position: declare it"):
        load(directory, code="ignore")
    assert load(directory, code="ignore", score_position="last_token").signals["s"]


def test_code_of_an_architecture_that_is_not_served_cannot_be_ignored(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    write_code(directory, AutoModel="evil.Model")
    edit_config(directory, model_type="internlm2")
    with pytest.raises(StartError, match=r"`auto_map` asks for remote code.*'internlm2', is not served without that"):
        load(directory, code="ignore")


def test_the_code_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    with pytest.raises(StartError, match=r"tokenizer_config\.json: `auto_map` asks for remote code"):
        load(directory, code="ignore")


def test_moments_of_config_json_are_used_only_where_they_are_declared(tmp_path: Path) -> None:
    """OpenRLHF writes mean and std of its rewards into config.json; its forward is (reward - mean) / std."""
    directory, _ = plain(tmp_path)
    edit_config(directory, mean=1.5, std=4.0)
    assert load(directory).signals["s"].moments is None
    moments = load(directory, moments="config").signals["s"].moments
    assert moments is not None
    assert (moments.mean, moments.std) == (1.5, 4.0)


@pytest.mark.parametrize(
    ("config", "keys", "message"),
    [
        ({}, {}, "mean None and std None"),
        ({"mean": 1.5, "std": 0.0}, {}, r"mean 1\.5 and std 0\.0, but needs a finite number and a positive one"),
        ({"mean": [1.5], "std": 2.0}, {}, r"mean \[1\.5\]"),
        ({"mean": 1.5, "std": 2.0}, {"std": 2.0}, "contradict each other"),
    ],
)
def test_moments_of_config_json_that_cannot_be_used_are_refused(
    config: dict[str, Any], keys: dict[str, float], message: str, tmp_path: Path
) -> None:
    directory, _ = plain(tmp_path)
    edit_config(directory, **config)
    with pytest.raises(StartError, match=f"moments: .*{message}"):
        load(directory, moments="config", **keys)


def test_an_architecture_without_parity_test_is_refused(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    edit_config(directory, model_type="opt")
    with pytest.raises(StartError, match="architecture 'opt' is not served"):
        load(directory)


def adapter(tmp_path: Path) -> tuple[Path, Path]:
    base, model = plain(tmp_path / "base")
    directory, _ = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(model))
    return base, directory


def test_an_adapter_without_head_refuses_to_start(tmp_path: Path) -> None:
    """Trap 17: LoRA without modules_to_save; the base's head was not trained with it."""
    base, directory = adapter(tmp_path)
    edit_tensors(directory / "adapter_model.safetensors", lambda t: {k: v for k, v in t.items() if "score" not in k})
    with pytest.raises(StartError, match="the adapter has no head"):
        load(base, adapter=str(directory), score_position="last_token")


def test_an_adapter_that_was_never_trained_refuses_to_start(tmp_path: Path) -> None:
    base, directory = adapter(tmp_path)
    edit_tensors(
        directory / "adapter_model.safetensors",
        lambda t: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in t.items()},
    )
    with pytest.raises(StartError, match="every lora_B is zero"):
        load(base, adapter=str(directory))


@pytest.mark.parametrize("fault", ["lost", "foreign", "shape"])
def test_an_adapter_that_does_not_fit_its_base_refuses_to_start(fault: str, tmp_path: Path) -> None:
    base, directory = adapter(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first = next(name for name in sorted(tensors) if "lora_A" in name)
        match fault:
            case "lost":
                tensors.pop(first)
            case "foreign":
                tensors[first.replace("layers.0", "layers.9")] = tensors[first].clone()
            case "shape":
                tensors[first] = torch.ones(4, 8)
        return tensors

    edit_tensors(directory / "adapter_model.safetensors", change)
    with pytest.raises(StartError, match="the adapter does not fit its base"):
        load(base, adapter=str(directory))


def test_standardising_without_moments_refuses_to_start(tmp_path: Path) -> None:
    """Traps 24 and 25."""
    directory, _ = plain(tmp_path)
    signal: dict[str, Any] = {"base": str(directory), **RULES}
    blends = {"b": {"weights": {"s": 1.0}, "standardise": "manifest"}}
    raw = {"signals": {"s": signal}, "blends": blends, "default": "b", "directory": tmp_path}
    with pytest.raises(StartError, match=r"blends\.b: standardise needs mean and std of 's'"):
        loader.load(settings.Settings.model_validate(raw))
    signal |= {"mean": 1.0, "std": 2.0}
    assert loader.load(settings.Settings.model_validate(raw)).default == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("signals: {a: {base: x}, b: {base: x}}\n", "default: is required"),
        ("signals: {a: {base: x, acivation: none}}\n", "signals.a: acivation: unknown key"),
        ("signals: [", "not valid YAML"),
        ("- 1\n", "not a mapping"),
        ("signals: {a: {base: x}}\ndefault: a\ndefault: a\n", "'default' occurs twice"),
    ],
)
def test_configuration_errors_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(text)
    with pytest.raises(StartError, match=r"service\.yaml") as caught:
        settings.read_settings(path)
    assert message in caught.value.message


def test_a_directory_that_is_not_there_and_a_hub_id_without_revision(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(StartError, match="declare its `revision`"):
        load(Path("somebody/some-model"))
    with pytest.raises(StartError, match="not installed"):
        load(Path("package:no_such_package_here"))


def test_a_leftover_file_beside_the_model_is_not_read(tmp_path: Path) -> None:
    """The base and its head come from the files that transformers reads."""
    directory, model = plain(tmp_path)
    stale = {"score.weight": torch.ones(1, 32)}
    save_file(stale, directory / "model_old.safetensors", metadata={"format": "pt"})
    assert logit_of(load(directory)) == pytest.approx(oracle_of(load(directory), model), abs=1e-5)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.classifier("llama", fast).save_pretrained(tmp_path, max_shard_size="20KB")
    fast.save_pretrained(tmp_path)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(StartError, match=rf"{lost.name} is missing"):
        load(tmp_path)


def test_a_value_head_in_a_file_of_its_own_is_found(tmp_path: Path) -> None:
    directory, model = plain(tmp_path)
    head = load_file(directory / "model.safetensors")["score.weight"]
    edit_tensors(directory / "model.safetensors", lambda t: {k: v for k, v in t.items() if k != "score.weight"})
    save_file(
        {"v_head.summary.weight": head, "v_head.summary.bias": torch.zeros(1)}, directory / "value_head.safetensors"
    )
    assert logit_of(load(directory)) == pytest.approx(oracle_of(load(directory), model), abs=1e-5)


def test_broken_files_and_devices_are_one_line(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    with pytest.raises(
        StartError, match=r"signals\.s: device: cuda:9: torch .* sees \d+ CUDA devices; .*`device: cpu`"
    ):
        load(directory, device="cuda:9")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StartError, match=r"signals\.s: "):
        load(directory)


def test_a_model_that_cannot_score_does_not_start(tmp_path: Path) -> None:
    """Trap 13: a base of NaN, and a position that the architecture does not have."""
    directory, _ = plain(tmp_path)
    with pytest.raises(StartError, match="pooler is only for encoders"):
        load(directory, score_position="pooler")
    edit_tensors(directory / "model.safetensors", lambda t: t | {"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(StartError, match="scores a plain item with nan"):
        load(directory)


def test_a_revision_is_only_for_the_hub(tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    with pytest.raises(StartError, match="only a hub id has a `revision`"):
        load(directory, revision="main")


def test_the_fingerprint_covers_what_changes_a_score(tmp_path: Path) -> None:
    """Same weights, another number: each must show."""
    directory, _ = plain(tmp_path)
    prints = [load(directory).fingerprint()]
    prints.append(load(directory, max_length=100).fingerprint())
    prints.append(load(directory, unfinished="error").fingerprint())
    prints.append(load(directory, kind="absolute").fingerprint())
    prints.append(load(directory, mean=0.0, std=1.0).fingerprint())
    prints.append(load(directory, dtype="bfloat16").fingerprint())
    edit_config(directory, rms_norm_eps=0.1)
    prints.append(load(directory).fingerprint())
    tokens = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens | {"eos_token": "<|bos|>"}))
    prints.append(load(directory).fingerprint())
    assert len(set(prints)) == len(prints)
    assert load(directory).fingerprint() == prints[-1]


@pytest.mark.parametrize("name", ["sep_token", "mask_token", "image_token"])
def test_the_fingerprint_covers_every_special_token_that_a_template_may_print(name: str, tmp_path: Path) -> None:
    directory, _ = plain(tmp_path)
    (tmp_path / "t.jinja").write_text(checkpoints.CHATML + "{{ " + name + " }}")
    path, ids, prints = directory / "tokenizer_config.json", set(), set()
    for token in ("<|bos|>", "<|im_end|>"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: token}))
        loaded = load(directory, template=str(tmp_path / "t.jinja"))
        ids.add(loaded.signals["s"].renderer.render(PROBE).sequence.ids)
        prints.add(loaded.fingerprint())
    assert (len(ids), len(prints)) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"alora_invocation_tokens": [5]}, "'alora_invocation_tokens'"),
        ({"bias": "all"}, "'bias'"),
        ({"modules_to_save": ["embed_tokens"]}, "'embed_tokens'"),
        ({"trainable_token_indices": [3]}, "'trainable_token_indices'"),
        ({"some_future_key": 3}, "'some_future_key'"),
        ({"peft_type": "IA3"}, "'IA3'"),
    ],
)
def test_adapter_settings_that_are_not_understood_refuse_to_start(
    changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """PiSSA and OLoRA change the base's weights; to ignore a setting would be another score."""
    base, directory = adapter(tmp_path)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StartError, match=key):
        load(base, adapter=str(directory))


def logit_of(served: registry.Registry) -> float:
    signal = served.signals["s"]
    with torch.inference_mode():
        return signal.model.logits([signal.renderer.render(PROBE).sequence], "s").item()


def oracle_of(served: registry.Registry, model: Any) -> float:
    return checkpoints.oracle(model, served.signals["s"].renderer.render(PROBE).sequence.ids)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor_parallel_size": 2}, r"tensor_parallel_size: is only for `engine: vllm`"),
        ({"engine": "vllm", "device": "cpu"}, r"device: is not for `engine: vllm`"),
        ({"engine": "vllm", "adapter": "pref"}, r"adapter: is not for `engine: vllm`"),
        ({"engine": "vllm", "score_position": "mean"}, r"score_position: mean is not read by `engine: vllm`"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_before_it_is_loaded(
    tiny: dict[str, Any], keys: dict[str, object], message: str
) -> None:
    signal = {"base": "base", "kind": "preference", "eos": "template", "unfinished": "error", "max_length": 64}
    raw = {"signals": {"s": {"score_position": "last_token", **signal, **keys}}}
    with pytest.raises(StartError, match=message):
        read_resolved(raw, tiny["root"], "test")


def test_longrope_ends_at_its_original_length(tmp_path: Path) -> None:
    """Beyond it, one long text would change the positions of all texts beside it."""
    directory, _ = plain(tmp_path, "phi3")
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    edit_config(directory, rope_parameters=None, rope_scaling=scaling, original_max_position_embeddings=128)
    assert load(directory).signals["s"].renderer.rules.max_length == 128
    with pytest.raises(StartError, match="max_length: 200 is more than the checkpoint's 128"):
        load(directory, max_length=200)
