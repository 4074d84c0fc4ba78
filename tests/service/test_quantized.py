"""Quantized safetensors files: plain weights by declaration, and refused by name where anything does not fit."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, FineGrainedFP8Config

from assay_service import create_app, registry, settings
from assay_service.errors import StartError
from assay_service.inspection import inspect
from assay_service.scoring.base_files import load_base
from assay_service.scoring.dequantize import read_quantized_tensors
from assay_service.scoring.quantization import Quantization
from tests import checkpoints
from tests.service.rounded import check_rounding, score
from tests.service.test_start import RULES, edit_config, edit_tensors, load

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# [QLoRA] appendix E.
NF4_TABLE: tuple[float, ...] = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0)
NF4_TABLE += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
QUERY = "model.layers.0.self_attn.q_proj.weight"
SCALE = QUERY.replace("weight", "weight_scale_inv")
BNB_PACKED = (
    "49b26854b535ab8b26e68ab466161a33778eb5452cd366986676036bd751b66a"
    "885b21443da6353a09a963ec56bc38ad4bc2875a9e2ea6a225a845aa3d2a5a9d"
)
BNB_OFFSET, BNB_NESTED = 2.611976146697998, 0.35419392585754395
BNB_ABSMAX, BNB_MAP = [255, 0], [1.0, -0.992968738079071]
BNB_VALUES = [-0.8437015414237976, 0.47734636068344116, 1.0023140907287598, -1.5574560165405273]
BNB_VALUES += [0.17987318336963654, 0.17987318336963654, -0.41763836145401, 0.7637805938720703]
ONE = torch.ones(1, 1)
Tensors = dict[str, torch.Tensor]
Pack = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]


def compress(strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["score"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def round_fp8(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP8 weight and scales for blocks of this size, and their product, block by block."""
    height, width = weight.shape
    stored = torch.empty(height, width, dtype=torch.float8_e4m3fn)
    scales, product = torch.empty(math.ceil(height / rows), math.ceil(width / columns)), torch.empty(height, width)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scales[i, j] = weight[part].abs().max() / 448
            stored[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            product[part] = stored[part].float() * scales[i, j]
    return stored, scales, product


def publish(directory: Path, model: Any, fast: Any, pack: Pack, quantization: dict[str, Any]) -> tuple[Any, Any]:
    """Writes a model with its projections packed; returns the model before rounding and after it."""
    rounded = copy.deepcopy(model)
    checkpoints.save(directory, model, fast)
    state = rounded.state_dict()

    def change(tensors: Tensors) -> Tensors:
        new: Tensors = {}
        for key, weight in tensors.items():
            if "proj" not in key:
                new[key] = weight
                continue
            parts, values = pack(key, weight)
            new |= parts
            state[key].copy_(values)
        return new

    edit_tensors(directory / "model.safetensors", change)
    edit_config(directory, quantization_config=quantization)
    return model, rounded


def publish_fp8(
    directory: Path, hidden: int = 32, block: tuple[int, int] | None = (128, 128), name: str = "weight_scale_inv"
) -> tuple[Any, Any]:
    """Writes a Qwen3 reward model in FP8; returns the model before rounding and after it. No block: one per tensor."""
    fast = checkpoints.tokenizer_of("qwen3")
    model = checkpoints.classifier("qwen3", fast, hidden_size=hidden, intermediate_size=2 * hidden)

    def pack(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        size = block or (weight.shape[0], weight.shape[1])
        stored, scales, product = round_fp8(weight, *(min(n, m) for n, m in zip(size, weight.shape, strict=True)))
        return {key: stored, key.replace("weight", name): scales if block else scales.reshape(1)}, product

    return publish(directory, model, fast, pack, FP8)


def pack_nf4(weight: torch.Tensor, block: int = 64) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a 4-bit weight without double quantization, by suffix, and its values."""
    table = torch.tensor(NF4_TABLE)
    blocks = weight.reshape(-1, block)
    scales = blocks.abs().amax(1)
    indices = (blocks[..., None] / scales[:, None, None] - table).abs().argmin(-1)
    flat = indices.flatten().to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    parts = {
        "": ((flat[::2] << 4) | flat[1::2])[:, None],
        ".absmax": scales,
        ".quant_map": table,
        ".quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return parts, (table[indices] * scales[:, None]).reshape(weight.shape)


def publish_nf4(directory: Path) -> tuple[Any, Any]:
    """Writes a Llama reward model in 4 bits; returns the model before rounding and after it."""
    fast = checkpoints.tokenizer_of("llama")

    def pack(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        parts, values = pack_nf4(weight)
        return {f"{key}{part}": tensor for part, tensor in parts.items()}, values

    return publish(directory, checkpoints.classifier("llama", fast), fast, pack, NF4)


def check_rounded(directory: Path, model: Any, rounded: Any, **declared: Any) -> None:
    check_rounding(load(directory, **declared), model, rounded, 2e-5)


# 192 columns are one block and a half.
@pytest.mark.parametrize("hidden", [32, 128, 192])
def test_fp8_blocks_give_the_logit_of_the_rounded_model(hidden: int, tmp_path: Path) -> None:
    check_rounded(tmp_path, *publish_fp8(tmp_path, hidden), quantization="fp8", dtype="float32")


def test_fp8_blocks_are_those_that_transformers_dequantizes(tmp_path: Path) -> None:
    publish_fp8(tmp_path, 128)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.bfloat16
    ).model.state_dict()
    # Not of a served model, whose weights the kernels reorder.
    ours = load_base(tmp_path, torch.bfloat16, torch.device("cpu"), Quantization("fp8")).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("config", "block"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, None),
        (compress("tensor"), None),
        (compress("channel"), (1, 10**6)),
        (compress("block", block_structure=[16, 16]), (16, 16)),
    ],
)
def test_fp8_scales_of_tensors_rows_and_blocks(
    config: dict[str, Any], block: tuple[int, int] | None, tmp_path: Path
) -> None:
    model, rounded = publish_fp8(tmp_path, 32, block, "weight_scale")
    edit_config(tmp_path, quantization_config=config)
    # vLLM reads these scales to round activations; plain weights do not need them.
    edit_tensors(tmp_path / "model.safetensors", lambda t: {**t, QUERY.replace("weight", "input_scale"): torch.ones(1)})
    check_rounded(tmp_path, model, rounded, quantization=config["quant_method"], dtype="float32")


def test_4_bit_weights_give_the_logit_of_the_rounded_model(tmp_path: Path) -> None:
    check_rounded(tmp_path, *publish_nf4(tmp_path), quantization="bitsandbytes")


def test_4_bit_values_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    """bitsandbytes 0.50.2 wrote these bytes and gave these values, with double quantization."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 64], "nested_blocksize": 256}
    state |= {"nested_dtype": "float32", "nested_offset": BNB_OFFSET}
    tensors = {
        "w.weight": torch.tensor(list(bytes.fromhex(BNB_PACKED)), dtype=torch.uint8)[:, None],
        "w.weight.absmax": torch.tensor(BNB_ABSMAX, dtype=torch.uint8),
        "w.weight.nested_absmax": torch.tensor([BNB_NESTED]),
        "w.weight.nested_quant_map": torch.zeros(256).index_put_((torch.tensor(BNB_ABSMAX),), torch.tensor(BNB_MAP)),
        "w.weight.quant_map": torch.tensor(NF4_TABLE),
        "w.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (read,) = read_quantized_tensors([tmp_path / "model.safetensors"], "bitsandbytes", {}).values()
    assert read[...].shape == (2, 64)
    assert read[...][:, :4].flatten().tolist() == pytest.approx(BNB_VALUES, abs=1e-6)


def test_a_lora_adapter_on_a_4_bit_base_is_an_adapter_on_the_rounded_weights(tmp_path: Path) -> None:
    """As QLoRA trains it: the base is rounded first."""
    _, rounded = publish_nf4(tmp_path / "base")
    claims: dict[str, Any] = {
        "score_position": "last_token",
        "eos": "template",
        "unfinished": "score",
        "max_length": 128,
    }
    directory, oracle = checkpoints.save_adapter(tmp_path / "a", rounded, seed=1, kind="preference", **claims)
    logit, ids = score(load(tmp_path / "base", adapter=str(directory), quantization="bitsandbytes"))
    assert logit == pytest.approx(checkpoints.oracle(oracle, ids), abs=1e-5)


def test_provenance_and_fingerprint_name_the_format_and_the_weights(tmp_path: Path) -> None:
    publish_fp8(tmp_path / "fp8")
    publish_nf4(tmp_path / "nf4")
    fp8 = load(tmp_path / "fp8", quantization="fp8", dtype="float32")
    nf4 = load(tmp_path / "nf4", quantization="bitsandbytes")
    assert (fp8.signals["s"].provenance.quantization, nf4.signals["s"].provenance.quantization) == (
        "fp8",
        "bitsandbytes",
    )
    assert fp8.signals["s"].provenance.weights_sha256 == fp8.signals["s"].base_sha256
    assert fp8.fingerprint() != nf4.fingerprint()
    described = fp8.signals["s"].provenance.describe()
    assert described["quantization"] == "fp8"
    assert "quantization" not in checkpoints_plain(tmp_path).signals["s"].provenance.describe()


def checkpoints_plain(tmp_path: Path) -> registry.Registry:
    fast = checkpoints.tokenizer_of("llama")
    return load(checkpoints.save(tmp_path / "plain", checkpoints.classifier("llama", fast), fast))


@pytest.mark.parametrize(
    ("config", "declared", "message"),
    [
        (FP8, None, r"quantization: declare it; .*config\.json says that the weights are quantized by 'fp8'"),
        (None, "fp8", r"quantization: 'fp8' is declared, but .*config\.json has no `quantization_config`"),
        (FP8, "bitsandbytes", r"'bitsandbytes' is declared, but .*quantized by 'fp8'; declare 'fp8'"),
        ({"quant_method": "gptq", "bits": 4}, None, r"quantized by 'gptq', which Assay does not read; it reads GGUF"),
        ({"quant_method": "awq"}, "fp8", r"quantized by 'awq', which Assay does not read"),
        ({"bits": 4}, "fp8", "quantization_config has no quant_method"),
        ({**FP8, "fmt": "e5m2"}, "fp8", "fmt is 'e5m2', but Assay reads 'e4m3'; use the checkpoint that"),
        ({**FP8, "weight_block_size": [128]}, "fp8", r"weight_block_size is \[128\]; it must be two positive numbers"),
        ({**FP8, "weight_block_size": [16, 16]}, "fp8", r"weight_scale_inv has shape \[1, 1\].* which needs \[2, 4\]"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
            "bitsandbytes",
            r"Assay reads 4-bit weights \(nf4, fp4\)\. LLM\.int8 rounds the inputs",
        ),
        (
            {**compress("tensor"), "format": "pack-quantized"},
            "compressed-tensors",
            "format is 'pack-quantized', but of compressed-tensors Assay reads FP8 weights",
        ),
        (compress("group"), "compressed-tensors", "strategy is 'group', but Assay reads tensor, channel and block"),
        (compress("tensor", num_bits=4), "compressed-tensors", r"group_0\.weights\.num_bits is 4, but Assay reads 8"),
        ({**compress("tensor"), "config_groups": {}}, "compressed-tensors", "one rule for all weights, but has 0"),
    ],
)
def test_a_declaration_that_does_not_fit_the_files_is_refused(
    config: dict[str, Any] | None, declared: str | None, message: str, tmp_path: Path
) -> None:
    publish_fp8(tmp_path)
    edit_config(tmp_path, quantization_config=config)
    with pytest.raises(StartError, match=message):
        load(tmp_path, quantization=declared, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: drop(t, SCALE), r"q_proj\.weight is FP8, but has 0 scales.*without its scale it would be wrong"),
        (lambda t: drop(t, QUERY), r"q_proj\.weight_scale_inv is a scale, but there is no \S+q_proj\.weight"),
        (lambda t: {**t, SCALE: t[SCALE] * math.nan}, r"q_proj\.weight_scale_inv has a scale that is not a finite"),
        (lambda t: {**t, SCALE: t[SCALE] * math.inf}, r"q_proj\.weight_scale_inv has a scale that is not a finite"),
        (lambda t: {**t, SCALE: torch.ones(2, 1)}, r"weight_scale_inv has shape \[2, 1\].* which needs \[1, 1\]"),
        (lambda t: {**t, SCALE: t[SCALE].to(torch.uint8)}, r"weight_scale_inv is stored as torch\.uint8"),
        (lambda t: {**t, QUERY: t[QUERY].float()}, r"q_proj\.weight is stored as F32, but has a scale"),
        (lambda t: {**t, QUERY: t[QUERY].to(torch.float8_e5m2)}, r"q_proj\.weight is stored as F8_E5M2"),
        (
            lambda t: {**t, "score.weight": t["score.weight"].to(torch.float8_e4m3fn), "score.weight_scale_inv": ONE},
            r"score\.weight_scale_inv belongs to the head as well as score\.weight",
        ),
    ],
)
def test_fp8_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    publish_fp8(tmp_path)
    edit_tensors(tmp_path / "model.safetensors", change)
    with pytest.raises(StartError, match=message):
        load(tmp_path, quantization="fp8", dtype="float32")


def test_an_output_layer_in_fp8_is_not_read_as_it_is_stored(tmp_path: Path) -> None:
    publish_fp8(tmp_path)
    rows = torch.ones(90, 32).to(torch.float8_e4m3fn)
    edit_tensors(
        tmp_path / "model.safetensors", lambda t: {**t, "lm_head.weight": rows, "lm_head.weight_scale_inv": ONE}
    )
    with pytest.raises(StartError, match=r"lm_head\.weight: is stored as float8_e4m3fn, but a head is read only from"):
        load(tmp_path, quantization="fp8", dtype="float32", score_position="last_token", head={"tokens": [70]})


def drop(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: drop(t, f"{QUERY}.absmax"), r"q_proj\.weight is 4-bit, but \S+absmax is missing"),
        (lambda t: drop(t, f"{QUERY}.quant_map"), r"q_proj\.weight is 4-bit, but \S+quant_map is missing"),
        (lambda t: drop(t, f"{QUERY}.quant_state.bitsandbytes__nf4"), r"q_proj\.weight is stored as U8, but has no"),
        (
            lambda t: {**t, f"{QUERY}.absmax": t[f"{QUERY}.absmax"].to(torch.uint8)},
            r"q_proj\.weight is 4-bit, but \S+nested_quant_map is missing",
        ),
        (lambda t: {**t, f"{QUERY}.absmax": torch.ones(3)}, r"needs 16 scales and 16 values, but has 3 and 16"),
        (
            lambda t: {**t, f"{QUERY}.absmax": t[f"{QUERY}.absmax"] * math.nan},
            r"absmax has a scale that is not a finite",
        ),
        (
            lambda t: {**t, f"{QUERY}.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)},
            r"quant_state\.bitsandbytes__nf4 cannot be read",
        ),
        (lambda t: {**t, QUERY: t[QUERY][:7]}, r"q_proj\.weight has 14 values, but its shape \[32, 32\] needs 1024"),
    ],
)
def test_4_bit_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    publish_nf4(tmp_path)
    edit_tensors(tmp_path / "model.safetensors", change)
    with pytest.raises(StartError, match=message):
        load(tmp_path, quantization="bitsandbytes")


def test_the_report_names_the_key_to_declare(tmp_path: Path) -> None:
    publish_fp8(tmp_path)
    report = inspect(tmp_path, RULES)
    assert not report.problems
    assert "quantization    fp8, by config.json\n" in report.text
    assert "    # fp8: the format that `config.json` names" in report.text
    assert report.text.endswith("    quantization:\n")
    declared = inspect(tmp_path, {**RULES, "quantization": "fp8", "dtype": "float32"})
    assert not declared.problems
    assert "quantization: fp8" in declared.text


def test_answers_name_the_quantization(tmp_path: Path) -> None:
    publish_nf4(tmp_path / "nf4")
    plain = checkpoints.tokenizer_of("llama")
    checkpoints.save(tmp_path / "plain", checkpoints.classifier("llama", plain), plain)
    signals = {
        "plain": {"base": str(tmp_path / "plain"), **RULES},
        "nf4": {"base": str(tmp_path / "nf4"), "quantization": "bitsandbytes", **RULES},
    }
    raw = {"signals": signals, "blends": {"both": {"weights": {"plain": 1, "nf4": 1}}}, "default": "both"}
    application = create_app(settings.Settings.model_validate({**raw, "directory": tmp_path}))
    with TestClient(application) as http:
        answer = http.post("/v1/score", json={"items": [{"prompt": "a", "completion": "b"}]}).json()
        models = {row["id"]: row for row in http.get("/v1/models").json()["data"]}
        served = http.get("/info").json()["signals"]
    provenance = answer["provenance"]["signals"]
    assert provenance["nf4"]["quantization"] == "bitsandbytes"
    assert provenance["nf4"]["weights_sha256"] == provenance["nf4"]["revision"]
    assert not {"quantization", "weights_sha256"} & {*provenance["plain"], *models["plain"]}
    assert models["nf4"]["quantization"] == "bitsandbytes"
    assert (served["nf4"]["quantization"], served["plain"]["quantization"]) == ("bitsandbytes", None)


def test_vllm_is_not_given_weights_that_are_dequantized_here(tmp_path: Path) -> None:
    publish_fp8(tmp_path)
    with pytest.raises(ValueError, match="quantization: is not for `engine: vllm`"):
        load(tmp_path, quantization="fp8", engine="vllm")


def test_the_weights_of_a_whole_checkpoint_are_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Only small scales are in memory before a tensor is asked for."""
    publish_fp8(tmp_path, 128)
    path = tmp_path / "model.safetensors"
    tensors = read_quantized_tensors([path], "fp8", {"quantization_config": FP8})
    assert tensors.keys() == {name for name in load_file(path) if "scale" not in name}
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tensors[QUERY].read()
