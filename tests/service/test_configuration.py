"""A wrong configuration is reported as a whole, in plain words, before torch is imported."""

import contextlib
import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from assay_service import compat_settings, create_app, operation_settings, settings, signal_settings
from assay_service.declaration import build_declaration
from assay_service.errors import StartError
from assay_service.inspection import inspect
from assay_service.resolve import ResolvedSignal, read_resolved
from assay_service.scoring import manifest
from assay_service.yaml_file import read_yaml

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "service-configuration.md"
MADE = {"eos": "template", "unfinished": "error"}
WHOLE = {"base": "rm", "kind": "absolute"} | MADE


def model(directory: Path, **config: Any) -> Path:
    """The files of a reward model as far as they are read before torch: JSON, and the header of its weights."""
    directory.mkdir(parents=True)
    llama = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "pad_token_id": 2}
    (directory / "config.json").write_text(json.dumps(llama | {"max_position_embeddings": 256} | config))
    header = json.dumps({"score.weight": {"dtype": "F32", "shape": [1, 0], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def problems(raw: Any, directory: Path) -> tuple[str, ...]:
    with pytest.raises(StartError) as caught:
        read_resolved(raw, directory, "service.yaml")
    return caught.value.problems


def beginnings(raw: Any, directory: Path) -> list[str]:
    """The problems without their advice."""
    return [line.partition("; no file")[0].partition(": `")[0] for line in problems(raw, directory)]


def test_every_problem_of_every_signal_and_blend_is_in_one_report(tmp_path: Path) -> None:
    model(tmp_path / "rm")
    model(tmp_path / "opt", model_type="opt")
    raw = {
        "signals": {
            "a": {"base": "rm", "kind": "reward", "max_length": 999},
            "b": {"base": "../nowhere", "eos": "template"},
            "c": {"base": "opt", "kind": "absolute", "eos": "append", "unfinished": "error", "scoreposition": "eos"},
        },
        "blends": {"mix": {"weights": {"a": 1, "z": 1}}},
        "limits": {"max_items": 0},
    }
    assert beginnings(raw, tmp_path) == [
        "signals.a: kind: must be one of preference, absolute, not 'reward'",
        "signals.c: scoreposition: unknown key; did you mean `score_position`? Keys are "
        + ", ".join(signal_settings.SignalSettings.model_fields),
        "limits.max_items: must be more than 0, not 0",
        "blends.mix.weights: 'z' is not a signal; weigh one of a, b, c",
        "default: is required: the signal or blend that answers requests which name none; one of a, b, c, mix",
        "signals.a: max_length: 999 is more than the checkpoint's 256; declare at most that",
        "signals.a: eos: declare it, one of template, append",
        "signals.a: unfinished: declare it, one of score, error",
        f"signals.b: base: ../nowhere: no such directory; looked at {tmp_path.parent / 'nowhere'}; correct the path",
        f"signals.c: base: {tmp_path / 'opt'}: architecture 'opt' is not served; use a model of one of these: bert, "
        "deberta-v2, gemma, gemma2, gemma3_text, gpt_neox, llama, mistral, modernbert, olmo2, phi3, qwen2, qwen3, "
        "qwen3_5_text, qwen3_moe, roberta, xlm-roberta",
    ]


def test_each_key_that_must_be_declared_has_its_values_and_how_to_find_out(tmp_path: Path) -> None:
    model(tmp_path / "rm", architectures=["LlamaForCausalLM"])
    found = problems({"signals": {"rm": {"base": "rm"}}}, tmp_path)
    assert [line.split(": ")[1] for line in found] == ["kind", "score_position", "eos", "unfinished"]
    for line, clue in zip(found, ("Bradley-Terry", "/v1/render", "/v1/render", "finish_reason"), strict=True):
        assert "declare it, one of" in line
        assert clue in line


def serve_alone(config: Path) -> tuple[list[str], list[str]]:
    """The heavy packages that were imported and the lines of stderr of a service that must not start.

    In a process of its own, through the command as it is installed.
    """
    code = (
        "import sys, time; from assay_client.cli import main\n"
        f"sys.argv = ['assay', 'serve', '--config', {str(config)!r}, '--port', '1']\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'uvicorn'} & sys.modules.keys()\n"
        "print(code, time.process_time(), *sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    code_of_exit, seconds, *modules = done.stdout.split()
    assert code_of_exit == "2"
    assert float(seconds) < 2
    return modules, done.stderr.splitlines()


def test_a_wrong_configuration_ends_before_torch_is_imported(tmp_path: Path) -> None:
    model(tmp_path / "rm")
    (tmp_path / "service.yaml").write_text("signals: {rm: {base: rm, kind: reward}}\n")
    modules, lines = serve_alone(tmp_path / "service.yaml")
    assert modules == []
    assert lines[0] == f"assay serve: {tmp_path / 'service.yaml'}: 3 problems"
    assert lines[1].startswith(
        "  signals.rm: kind: must be one of preference, absolute, not 'reward': `preference` for"
    )


@pytest.mark.parametrize(
    ("wire", "wrong"),
    [
        ({"policy": "absent"}, "policy: absent: no such directory; looked at {}/absent; correct the path"),
        ({"policy": "~/absent"}, "policy: ~/absent: no such directory; looked at {}/home/absent; correct the path"),
        *(
            ({"on_item_error": fate}, "on_item_error: must be `fail`, or `{{floor: NUMBER}}` with a finite number")
            for fate in ({"flor": 1}, {"floor": "1"}, {"floor": math.inf}, {"floor": 1, "x": 1}, {}, [1], True, None)
        ),
    ],
)
def test_a_wrong_setting_of_a_wire_is_one_problem_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: dict[str, Any], wrong: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model(tmp_path / "rm")
    config = {"signals": {"rm": {**WHOLE, "score_position": "last_token"}}, "compat": {"wires": {"slime": wire}}}
    (line,) = problems(config, tmp_path)
    assert line.partition(", not ")[0] == f"compat.wires.slime.{wrong.format(tmp_path)}"


def test_the_parts_of_slime_need_another_name_than_that_of_a_signal(tmp_path: Path) -> None:
    model(tmp_path / "reward")
    signals = {"reward": {**WHOLE, "base": "reward", "score_position": "last_token"}}
    config = {"signals": signals, "compat": {"wires": {"slime": {"parts": True}}}}
    (line,) = problems(config, tmp_path)
    assert line == "compat.wires.slime.parts: names the score `reward`, as a signal is named; rename the signal"
    config = {"signals": signals, "compat": {"wires": {"slime": {"parts": False}}}}
    assert read_resolved(config, tmp_path, "service.yaml")[1].keys() == {"reward"}


@pytest.mark.parametrize(("wire", "known"), [("slime", True), ("tei", False)])
def test_only_the_wire_slime_has_parts(tmp_path: Path, wire: str, known: bool) -> None:
    model(tmp_path / "rm")
    config = {
        "signals": {"rm": {**WHOLE, "score_position": "last_token"}},
        "compat": {"wires": {wire: {"part": True}}},
    }
    (line,) = problems(config, tmp_path)
    assert line.startswith(f"compat.wires.{wire}.part: unknown key")
    assert ("`parts`" in line) == known


@pytest.mark.parametrize("wire", ["chat", "sglang", "vllm"])
def test_a_wire_with_assays_own_paths_at_the_root_is_refused_before_anything_is_loaded(
    tmp_path: Path, wire: str
) -> None:
    model(tmp_path / "rm")
    declared = {"compat": {"root": wire, "wires": {"slime": {"policy": "rm"}}}}
    config = {"signals": {"rm": {**WHOLE, "base": "rm", "score_position": "last_token"}}, **declared}
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(config))
    (line,) = problems(config, tmp_path)
    assert re.fullmatch(
        rf"compat\.root: {wire} cannot be served at the root, because Assay itself serves GET /v1/models.*; use the "
        rf"base URL http://HOST:PORT/compat/{wire}",
        line,
    )
    if wire == "vllm":
        assert serve_alone(path) == ([], [f"assay serve: {path}: {line}"])
    with pytest.raises(StartError) as caught:  # neither the model nor the policy could be loaded
        create_app(settings.read_settings(path))
    assert caught.value.problems == (line,)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ([1], "is not a mapping of keys to values; begin it with `signals:`"),
        ({}, "signals: is required"),
        ({"signals": {}}, "signals: must not be empty"),
        ({"signals": {"a": 3}}, "signals.a: must be a mapping of keys to values (a JSON object), not 3"),
        (
            {"signals": {"a": {"kind": "absolute"}}},
            "signals.a: base: declare the directory or hub id of the model, or an `adapter` that names its base",
        ),
        ({"signals": {"a": {"base": 3}}}, "signals.a: base: must be text, not 3"),
        ({"signals": {"a": {"base": "rm", "mean": "x"}}}, "signals.a: mean: must be a number, not 'x'"),
        ({"signals": {"a": {"base": "rm", "std": 0}}}, "signals.a: std: must be more than 0.0, not 0"),
        ({"signals": {"a": {"base": "rm", "mean": math.inf}}}, "signals.a: mean: must be a finite number, not inf"),
        (
            {"signals": {"a": {"base": "rm", "max_length": 0.5}}},
            "signals.a: max_length: must be a whole number, not 0.5",
        ),
        (
            {"signals": {"a": {"base": "rm", "device": "gpu"}}},
            "signals.a: device: must be cpu, cuda, cuda:0, cuda:1, …, mps or xpu, not 'gpu'",
        ),
        (
            {"signals": {"a b": {"base": "rm"}}},
            "signals: the name 'a b' must be 1 to 64 letters, digits, dots, underscores or hyphens, as text",
        ),
        ({"signals": {"3": {"base": "rm"}}, "default": 3}, "default: must be text, not 3"),
        (
            {"signals": {None: 3}},
            "signals: the name None must be 1 to 64 letters, digits, dots, underscores or hyphens, as text",
        ),
        (
            {"signals": {True: {"base": "rm"}}},
            "signals: the name True must be 1 to 64 letters, digits, dots, underscores or hyphens, as text",
        ),
        (
            {"signals": {"a": {"base": "rm"}}, "default": "b"},
            "default: 'b' is neither a signal nor a blend; declare one of a",
        ),
        (
            {"signals": {"a": {"base": "rm"}}, "blends": {"a": {"weights": {"a": 1}}}, "default": "a"},
            "blends.a: a signal has this name too; rename one",
        ),
        (
            {"signals": {"a": {"base": "rm"}}, "blends": {"b": {"weights": {"a": 0}}}, "default": "a"},
            "blends.b: at least one weight must not be zero",
        ),
        (
            {"signals": {"a": {"base": "rm"}}, "directory": "/"},
            "directory: cannot be set, because it is always the file's own folder; remove it",
        ),
        (
            {"signals": {"a": {"base": "rm"}}, "defaults": "a"},
            "defaults: unknown key; did you mean `default`? Keys are signals, blends, default, limits, lifecycle, "
            "compat, playground, keys, admin_root, insecure, tls, tracing, samples",
        ),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(raw: Any, line: str, tmp_path: Path) -> None:
    model(tmp_path / "rm")
    found = problems(raw, tmp_path)
    assert line in [one.partition(": `")[0] if "must be one of" in one else one for one in found]


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_signals = st.dictionaries(st.sampled_from(list(signal_settings.SignalSettings.model_fields)), _values, max_size=4)
_blends = st.dictionaries(st.sampled_from(["weights", "standardise"]), _values, max_size=2)
_files = st.fixed_dictionaries(
    {},
    optional={
        "signals": st.dictionaries(st.text(max_size=2), _signals | _values, max_size=2) | _values,
        "blends": st.dictionaries(st.text(max_size=2), _blends | _values, max_size=2) | _values,
        "limits": st.dictionaries(st.sampled_from(list(settings.Limits.model_fields)), _values, max_size=2) | _values,
        "default": _values,
    },
)


@given(_files)
def test_no_wrong_file_shows_pydantics_own_words_or_breaks_the_report(raw: dict[str, Any]) -> None:
    parsed = settings.parse(raw, Path("/"))
    assert (parsed.settings is None) == bool(parsed.problems)
    for line in parsed.problems:
        assert ": " in line
        assert not any(words in line for words in ("Input should", "Value error", "Extra inputs", "Field required"))
        assert "valid" not in line


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        ({"signal": {"a": {"base": "rm"}}}, "signals"),
        ({"signals": {"a": {"base": "rm", "kindd": "absolute"} | MADE}}, "kind"),
        ({"signals": {"a": WHOLE}, "blends": {"b": {"weight": {"a": 1}}}, "default": "a"}, "weights"),
        ({"signals": {"a": WHOLE, "b": WHOLE}, "defautl": "a"}, "default"),
        ({"signals": {"a": {**WHOLE, "head": {"token": ["a"]}}}}, "tokens"),
        ({"signals": {"a": {**WHOLE, "steps": {"delimeter": "a", "token": "b"}}}}, "delimiter"),
    ],
)  # fmt: skip
def test_a_misspelled_key_is_one_problem(raw: Any, meant: str, tmp_path: Path) -> None:
    """The key that was meant is not reported as missing as well."""
    model(tmp_path / "rm")
    (line,) = problems(raw, tmp_path)
    assert f"unknown key; did you mean `{meant}`? Keys are " in line


@pytest.mark.parametrize("adapter", [5, [], [1, "rm"], {"a": "b"}])
def test_an_adapter_of_the_wrong_type_is_one_problem(adapter: Any, tmp_path: Path) -> None:
    (line,) = problems({"signals": {"a": {"adapter": adapter}}}, tmp_path)
    assert line.startswith("signals.a: adapter: must be text, or a list of texts that is not empty")


def test_what_signals_share_may_be_merged_from_an_anchor(tmp_path: Path) -> None:
    """A key beside `<<` overrides what it brings, also where an anchor lies deeper than what takes it."""
    (tmp_path / "service.yaml").write_text(
        "signals:\n"
        "  a: &first {base: rm, kind: absolute, eos: template, unfinished: error}\n"
        "  b: {<<: *first, kind: preference}\n"
        "blends:\n"
        "  x: {weights: &w {a: 1, b: 2}}\n"
        "  y: {weights: {<<: *w, b: 3}}\n"
        "default: a\n"
    )
    read = settings.read_settings(tmp_path / "service.yaml")
    assert (read.signals["a"].kind, read.signals["b"].kind, read.signals["b"].base) == ("absolute", "preference", "rm")
    assert read.blends["y"].weights == {"a": 1, "b": 3}
    (tmp_path / "deep.yaml").write_text("a: {b: {c: &c {<<: &d {k: 1}, k: 2}}}\ne: {<<: *c}\n")
    assert read_yaml(tmp_path / "deep.yaml") == {"a": {"b": {"c": {"k": 2}}}, "e": {"k": 2}}
    (tmp_path / "twice.yaml").write_text("a: &a {k: 1}\nb: {<<: *a, k: 2, k: 3}\n")
    with pytest.raises(StartError, match="key 'k' occurs twice"):
        read_yaml(tmp_path / "twice.yaml")


def test_a_single_signal_is_the_default_and_a_blend_must_be_chosen(tmp_path: Path) -> None:
    model(tmp_path / "rm")
    signal = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "score"}
    assert read_resolved({"signals": {"rm": signal}}, tmp_path, "x")[0].default == "rm"
    raw = {"signals": {"rm": signal}, "blends": {"b": {"weights": {"rm": 1}}}}
    assert beginnings(raw, tmp_path) == [
        "default: is required: the signal or blend that answers requests which name none; one of rm, b"
    ]


def test_paths_are_relative_to_the_file_and_a_tilde_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(tmp_path / "home" / "rm")
    (tmp_path / "t.jinja").write_text("own")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir("/")
    signal = {"base": "~/rm", "template": "../t.jinja", "kind": "preference", "eos": "template", "unfinished": "score"}
    found = read_resolved({"signals": {"rm": signal}}, tmp_path / "home", "x")[1]["rm"]
    assert (found.base, found.rules.template) == (tmp_path / "home" / "rm", "own")


def test_a_blend_that_standardises_unknown_moments_is_named_with_the_rest(tmp_path: Path) -> None:
    model(tmp_path / "rm")
    signal = {"base": "rm", "kind": "preference", "eos": "template", "unfinished": "score"}
    raw = {
        "signals": {"rm": signal},
        "blends": {"b": {"weights": {"rm": 1}, "standardise": "manifest"}},
        "default": "b",
    }
    (line,) = problems(raw, tmp_path)
    assert line.startswith("blends.b: standardise needs mean and std of 'rm'")


def test_a_manifest_that_is_wrong_is_reported_by_key(tmp_path: Path) -> None:
    directory = model(tmp_path / "rm")
    (directory / "assay.json").write_text('{"kind": "reward", "max_length": 0, "base_sha256": "x"}')
    lines = problems({"signals": {"rm": {"base": "rm"}}}, tmp_path)
    assert [line.removeprefix(f"signals.rm: {directory / 'assay.json'}: ") for line in lines] == [
        "kind: must be one of preference, absolute",
        "base_sha256: must be 64 hexadecimal digits",
        "max_length: must be more than 0",
    ]


# --- a directory -----------------------------------------------------------------------------------------------------

DECLARED = {"kind": "preference", "eos": "template", "unfinished": "error"}


def adapter(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    return directory


def served(text: str, directory: Path) -> ResolvedSignal:
    """What the YAML of a report serves."""
    (signal,) = read_resolved(yaml.safe_load(text), directory, "x")[1].values()
    return signal


def test_what_inspect_proposes_for_a_model_is_served(tmp_path: Path) -> None:
    report = inspect(model(tmp_path / "My RM"), DECLARED)
    assert not report.problems
    assert "score.weight [1, 0]" in report.text
    assert "score_position  last_non_pad_id (certain: config.json)" in report.text
    assert "dropped_content" not in report.text  # no file says it, so it is not certain
    signal = served(report.text, tmp_path)
    assert (signal.base, signal.kind, signal.rules.eos, signal.rules.unfinished) == (
        tmp_path / "My RM", "preference", "template", "error",
    )  # fmt: skip
    assert list(yaml.safe_load(report.text)["signals"]) == ["My-RM"]


def test_inspect_leaves_empty_what_must_be_declared_and_the_yaml_is_refused_until_it_is(tmp_path: Path) -> None:
    report = inspect(model(tmp_path / "rm"), {})
    assert yaml.safe_load(report.text)["signals"]["rm"] == {
        "base": str(tmp_path / "rm"), "kind": None, "eos": None, "unfinished": None,
    }  # fmt: skip
    assert "# preference, absolute: `preference` for a head trained on pairs" in report.text
    keys = [line.split(": ")[1] for line in problems(yaml.safe_load(report.text), tmp_path)]
    assert keys == ["kind", "eos", "unfinished"]


@pytest.mark.parametrize(
    ("eos", "template", "said"),
    [
        ("<|im_end|>", "{{ m }}<|im_end|>", "eos             tokenizer '<|im_end|>', which the template names"),
        ({"content": "</s>"}, "{{ m + eos_token }}", "eos             tokenizer '</s>', which the template names"),
        ("</s>", "{{ m }}<|im_end|>", "eos             tokenizer '</s>', which the template does not name"),
    ],
)
def test_inspect_says_whether_the_template_names_the_tokenizers_eos(
    eos: Any, template: str, said: str, tmp_path: Path
) -> None:
    """The evidence for the key `eos`."""
    directory = model(tmp_path / "rm")
    (directory / "chat_template.jinja").write_text(template)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "pad_token": "<pad>"}))
    added = [{"id": 3, "content": "<pad>", "special": True}]
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    text = inspect(directory, {}).text
    assert said in text
    assert "pads            config.json 2, tokenizer 3 ('<pad>')" in text


@pytest.mark.parametrize("reference", ["../../base", "{absolute}"])
def test_a_training_run_is_served_by_its_checkpoint_on_the_base_that_it_names(reference: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    named = reference.format(absolute=base)
    checkpoint = adapter(tmp_path / "mine" / "checkpoint", base_model_name_or_path=named)
    (checkpoint / "assay.json").write_text(json.dumps(DECLARED | {"score_position": "last_token", "max_length": 99}))
    report = inspect(tmp_path / "mine", {})
    signal = served(report.text, Path("/"))
    assert (signal.base, signal.adapter, signal.rules.max_length) == (base, checkpoint, 99)
    assert "kind            preference (certain: assay.json)" in report.text
    assert list(yaml.safe_load(report.text)["signals"]) == ["mine"]


def test_an_adapter_of_a_hub_base_asks_for_its_revision(tmp_path: Path) -> None:
    directory = adapter(tmp_path / "a", base_model_name_or_path="somebody/some-model")
    with pytest.raises(StartError, match="declare its `revision`"):
        inspect(directory, DECLARED)
    assert build_declaration(directory, {"base": "elsewhere"})["signals"]["a"]["base"] == "elsewhere"


def test_what_cannot_be_served_whatever_is_declared_is_a_problem_of_the_report(tmp_path: Path) -> None:
    report = inspect(model(tmp_path / "rm", model_type="opt"), {})
    assert len(report.problems) == 1
    assert "architecture 'opt' is not served" in report.problems[0]
    assert f"# {'  problem':<18}{report.problems[0]}" in report.text


def _cut_off(directory: Path) -> None:
    header = json.dumps({"score.weight": {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, 32]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(20))


def _without_head(directory: Path) -> None:
    header = json.dumps({"norm.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut_off, "the last 12 bytes are missing; download or save it again"),
        (_without_head, "no head was found; looked for score.weight"),
        (
            lambda directory: (directory / "tokenizer.json").write_text('{"model": '),
            "tokenizer.json: cannot be read as JSON: Expecting value",
        ),
    ],
)
def test_inspect_proposes_nothing_as_served_that_loading_refuses(
    spoil: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    spoil(model(tmp_path / "rm"))
    (problem,) = inspect(tmp_path / "rm", DECLARED).problems
    assert said in problem


def test_inspect_names_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(StartError, match=r"put config\.json, tokenizer\.json and tokenizer_config\.json of the model"):
        inspect(tmp_path, {})


_odd = st.sampled_from([None, True, -1, 3.5, "x", "", "a\0b", "~no-such-user/x", "x/" * 3000, [], [None], {}, {"a": 1}])


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", ["model_type", "architectures", "pad_token_id", "value_head_prefix", "type_vocab_size"]),
        ("config.json", ["rope_scaling", "rope_parameters", "max_position_embeddings", "dtype", "torch_dtype"]),
        ("config.json", ["quantization_config"]),
        ("tokenizer_config.json", ["chat_template", "pad_token", "eos_token"]),
        ("tokenizer.json", ["added_tokens", "model"]),
        ("assay.json", ["kind", "golden"]),
        ("adapter_config.json", ["base_model_name_or_path", "revision", "task_type", "peft_type"]),
    ],
)
@given(data=st.data())
def test_no_value_in_a_checkpoints_json_ends_in_a_stack_trace(
    file: str, keys: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("odd")
    kind = data.draw(st.sampled_from(["llama", "bert", "roberta"]))
    directory = model(root / "rm", model_type=kind)
    (directory / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    if file == "adapter_config.json":
        directory = adapter(root / "adapter", base_model_name_or_path=str(directory))
    path = directory / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | {data.draw(st.sampled_from(keys)): data.draw(_odd)}))
    for declared in (DECLARED, {}):
        with contextlib.suppress(StartError):
            inspect(directory, declared)
        with contextlib.suppress(StartError):
            read_resolved(build_declaration(directory, declared), root, "x")


@pytest.mark.parametrize("key", ["base", "adapter", "template"])
@pytest.mark.parametrize("path", ["a\0b", "~no-such-user/x", "x" * 300 + "/y"])
def test_a_path_that_no_file_can_have_is_named(key: str, path: str, tmp_path: Path) -> None:
    model(tmp_path / "rm")
    (line,) = problems({"signals": {"a": WHOLE | {key: path}}}, tmp_path)
    assert line.startswith(f"signals.a: {key}: ")
    assert "not a path that can be read: " in line


def test_a_directory_without_checkpoint_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"neither a model \(config\.json\) nor a LoRA adapter"):
        inspect(tmp_path, {})
    with pytest.raises(StartError, match="no such directory; looked at"):
        inspect(tmp_path / "nowhere", {})


# --- the reference page ----------------------------------------------------------------------------------------------

SECTIONS: dict[str, type[BaseModel]] = {
    "The file": settings.Settings,
    "A signal": signal_settings.SignalSettings,
    "Steps": manifest.StepRules,
    "A blend": signal_settings.BlendSettings,
    "A length penalty": signal_settings.LengthPenaltySettings,
    "Limits": settings.Limits,
    "Lifecycle": operation_settings.LifecycleSettings,
    "TLS": settings.TlsSettings,
    "Traces": operation_settings.TracingSettings,
    "The sample log": operation_settings.SamplesSettings,
    "Compatible wires": compat_settings.CompatSettings,
    "A wire": compat_settings.WireSettings,
    "The wire chat": compat_settings.ChatSettings,
    "The wire slime": compat_settings.SlimeSettings,
}


def rows_of(section: str) -> dict[str, list[str]]:
    """The rows of a section's table, by key."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_page_has_every_key_with_its_values_and_default(section: str) -> None:
    inherited = compat_settings.WireSettings.model_fields if section.startswith("The wire ") else {}
    fields = {
        name: field
        for name, field in SECTIONS[section].model_fields.items()
        if name != "directory" and name not in inherited
    }
    rows = rows_of(section)
    assert list(rows) == list(fields)
    for name, field in fields.items():
        kind, default, sentence = rows[name]
        assert sentence.endswith(".")
        if field.is_required():
            assert default == "required"
        elif isinstance(field.default, (int, str)):
            # YAML writes `false`, and an empty text is none.
            shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
            assert default == ("none" if shown == "" else f"`{shown}`")
        if section == "A signal" and (values := settings.list_allowed_values(name)):
            assert kind == ", ".join(f"`{value}`" for value in values)


def test_the_annotated_example_of_the_reference_page_is_a_configuration(tmp_path: Path) -> None:
    text = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    parsed = settings.parse(yaml.safe_load(text), tmp_path)
    assert parsed.problems == ()
    assert parsed.settings is not None
    assert parsed.settings.default == "crs"
    assert set(parsed.settings.limits.model_fields_set) <= set(settings.Limits.model_fields)
