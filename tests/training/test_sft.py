"""Supervised training of a policy: which tokens count, that the packed forward is transformers', and whole runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from assay_service.scoring import unpacked
from assay_service.scoring.item import Message
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.cli.main import app
from assay_training.config.base import ConfigError, read
from assay_training.config.model import Lora
from assay_training.config.sft import SftConfig
from assay_training.data.sft_examples import SftExample, SftRenderer
from assay_training.loop.next_token import NextToken
from assay_training.models.policy import Policy
from assay_training.records.record import Dialogue, Text
from assay_training.sft import SftRun, run
from tests import checkpoints, packages
from tests.training import tiny

FAST = checkpoints.decoder_tokenizer()
LORA = Lora(r=4, alpha=8, target_modules=["q_proj", "v_proj"])


def renderer(template: str = checkpoints.CHATML, max_length: int = 64) -> SftRenderer:
    fast = checkpoints.decoder_tokenizer(template)
    rules = RenderRules(template, 2**31, "last_token", "template", "score")
    return SftRenderer(Renderer(fast, rules, len(fast)), fast, max_length)


def dialogue(*turns: str) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue("x", turns[0], tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns)))


def talk(asked: str, reply: str) -> dict[str, Any]:
    """A row of the format `dialogues`."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]}


def said(example: SftExample) -> list[str]:
    """The runs of target tokens, as text."""
    runs: list[list[int]] = []
    for before, counts, token in zip((False, *example.target_mask), example.target_mask, example.ids, strict=False):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(token)
    return [str(FAST.decode(part)) for part in runs]


def save(directory: Path, architecture: str = "llama", **more: Any) -> Path:
    return checkpoints.save(directory, checkpoints.language_model(architecture, FAST, **more), FAST)


def test_the_loss_is_on_what_the_assistant_says_up_to_its_end_of_turn() -> None:
    (example,), report = renderer().examples([dialogue("How?", "Mix.", "Then?", "Bake, wait.")])
    assert said(example) == ["Mix.<|im_end|>", "Bake, wait.<|im_end|>"]
    whole = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in (("user", "How?"), ("assistant", "Mix."), ("user", "Then?"), ("assistant", "Bake, wait."))
    )
    assert FAST.decode(example.ids) == whole
    assert (report.cut, report.empty, report.refused) == (0, 0, {})


def test_a_dialogue_that_ends_with_the_user_is_learned_as_far_as_the_assistant_goes() -> None:
    (example,), _ = renderer().examples([dialogue("How?", "Mix.", "Thanks.")])
    assert said(example) == ["Mix.<|im_end|>"]


def test_a_text_is_learned_whole_with_its_end() -> None:
    (example,), _ = renderer().examples([Text("x", "g", "The quick fox")])
    assert said(example) == ["The quick fox<|im_end|>"]
    assert example.ids[0] == FAST.bos_token_id


def test_long_examples_are_cut_on_the_right_and_those_without_targets_dropped() -> None:
    long = dialogue("How?", "Mix. " * 40)
    asked = dialogue("How? " * 60, "Mix.")
    examples, report = renderer(max_length=32).examples([long, asked, dialogue("a", "b")])
    cut, short = examples
    assert (cut.tokens, cut.target_mask[-1]) == (32, True)
    assert said(short) == ["b<|im_end|>"]
    assert (report.cut, report.empty) == (2, 1)


def test_control_tokens_in_data_are_refused_and_counted() -> None:
    examples, report = renderer().examples([dialogue("How?", "<|im_end|> Mix."), Text("x", "g", "A <|im_start|>user")])
    assert (examples, report.refused) == ([], {"special_tokens": 2})


def test_a_turn_that_the_template_does_not_end_is_refused() -> None:
    """The template ends the first reply, as the check at start sees, and not the second."""
    template = (
        "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{%- if loop.index0 == 1 -%}<|im_end|>{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    )
    examples, report = renderer(template).examples([dialogue("a", "b"), dialogue("a", "b", "c", "d")])
    assert ([said(one) for one in examples], report.refused) == ([["b<|im_end|>"]], {"no_end_of_turn": 1})


@pytest.mark.parametrize(
    ("earlier", "code"),
    [("", "template_error"), ("{{ m['content'] }} (earlier)", "template_not_stable")],
    ids=["dropped", "changed"],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(earlier: str, code: str) -> None:
    """Some drop the reasoning of all turns but the last; the loss would be on what nobody sees."""
    template = (
        "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' or loop.last %}"
        "{{ m['content'] }}{% else %}" + earlier + "{% endif %}<|im_end|>\n{% endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    )
    examples, report = renderer(template).examples([dialogue("a", "b", "c", "d")])
    assert (examples, report.refused) == ([], {code: 1})


@pytest.mark.parametrize("mask", [(True, False), (False, False), (False,)])
def test_a_target_mask_marks_something_and_never_the_first_token(mask: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match="target mask"):
        SftExample((1, 2), mask)


@pytest.mark.parametrize("architecture", checkpoints.LANGUAGE_MODELS)
@pytest.mark.parametrize("tied", [False, True])
def test_log_probabilities_are_transformers_own(architecture: str, tied: bool, tmp_path: Path) -> None:
    """Packed without padding against one text at a time through the whole causal model."""
    base = save(tmp_path, architecture, tie_word_embeddings=tied)
    examples, _ = renderer().examples(
        [dialogue("How?", "Mix."), Text("x", "g", "The fox"), dialogue("a", "b", "c", "d")]
    )
    packed = Policy(base, None, torch.device("cpu")).logprobs(examples)
    oracle = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    expected = []
    for example in examples:
        with torch.inference_mode():
            logprobs = oracle(torch.tensor([example.ids])).logits[0].log_softmax(dim=-1)
        expected += [float(logprobs[i - 1, example.ids[i]]) for i, counts in enumerate(example.target_mask) if counts]
    assert packed.dtype == torch.float32
    assert packed.tolist() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("architecture", ["bert", "qwen3_5_text"])
def test_a_base_that_cannot_be_packed_is_refused_as_a_policy(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a causal language model that Assay can pack"):
        Policy(tiny.save_base(tmp_path, architecture), None, torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_of_the_output_layer_is_refused(architecture: str, tied: bool, tmp_path: Path) -> None:
    """Logits are computed without it, so that it would be saved as it began."""
    base = save(tmp_path, architecture, tie_word_embeddings=tied)
    lora = LORA.model_copy(update={"target_modules": ["lm_head"]})
    with pytest.raises(ConfigError, match=r"lora\.target_modules: 'lm_head' is the output layer"):
        Policy(base, lora, torch.device("cpu"))


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1."])
def test_a_base_with_weights_missing_is_refused_by_their_names(lost: str, tmp_path: Path) -> None:
    """Trap 17: transformers would fill them up with random numbers."""
    base = save(tmp_path / "base")
    kept = {name: tensor for name, tensor in tensors(base).items() if not name.startswith(lost)}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"missing keys: .*{re.escape(lost)}"):
        Policy(base, LORA, torch.device("cpu"))


def test_the_loss_is_the_mean_over_target_tokens_whatever_the_micro_batches(tmp_path: Path) -> None:
    """Not a mean of means: a long answer's tokens weigh as much as a short one's (trl#2596)."""
    policy = Policy(save(tmp_path), LORA, torch.device("cpu"))
    examples, _ = renderer().examples([dialogue("How?", "Mix, and wait for it."), dialogue("a", "b")])
    expected = -float(policy.logprobs(examples).mean().detach())
    objective = NextToken(policy, tiny.optimizer())
    shared = objective.begin(examples, [], lambda x: x)
    for parts in ([examples], [[example] for example in examples]):
        assert sum(float(objective.loss(part, shared).detach()) for part in parts) == pytest.approx(expected, rel=1e-5)


def prepare(root: Path, **changes: Any) -> tuple[Path, Path, Path]:
    """Configuration, data and run directory of two stages."""
    base = save(root / "base", tie_word_embeddings=True)
    facts = [{"prompt": f"say {word}", "completion": word} for word in ("bread", "fox", "dog", "water", "salt")] * 4
    rows = [
        {"messages": [{"role": "user", "content": f["prompt"]}, {"role": "assistant", "content": f["completion"]}]}
        for f in facts
    ]
    (root / "data" / "talk").mkdir(parents=True)
    lines = "\n".join(json.dumps(row | {"group": str(i)}) for i, row in enumerate(rows))
    (root / "data" / "talk" / "x.jsonl").write_text(lines + "\n")
    (root / "data" / "books").mkdir()
    lines = "\n".join(json.dumps({"text": f"The lazy dog jumps over {i}."}) for i in range(20))
    (root / "data" / "books" / "x.jsonl").write_text(lines + "\n")
    (root / "template.jinja").write_text(checkpoints.CHATML)
    optimizer = {
        "learning_rate": 0.01,
        "batch_prompts": 4,
        "compute_dtype": "float32",
        "epochs": 4,
        "checkpoint_steps": 3,
    }
    config = {
        "name": "tiny",
        "base": str(base),
        "template": "template.jinja",
        "max_length": 64,
        "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]},
        "stages": [
            {"name": "pre", "sources": [{"name": "books", "format": "text"}], "optimizer": optimizer},
            {"name": "sft", "sources": [{"name": "talk", "format": "dialogues"}], "optimizer": optimizer},
        ],
        "held_out": 0.2,
        "seed": 3,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config | changes))
    return root / "run.yaml", root / "data", root / "out"


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(directory).state_dict())


@pytest.mark.parametrize("lora", [True, False])
def test_two_stages_learn_and_leave_a_model_that_transformers_loads(lora: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {} if lora else {"lora": None}
    inputs = prepare(tmp_path, **changes)
    checkpoints.name_tokenizer(tmp_path / "base", "LlamaTokenizerFast")
    directory = run(*inputs)
    assert not (inputs[2] / "state").exists()
    results = json.loads((inputs[2] / "results.json").read_text())
    assert list(results) == ["pre", "sft"]
    for stage in results.values():
        assert stage["after"]["loss"] < stage["before"]["loss"] - 0.2
        assert stage["after"]["targets"] == stage["before"]["targets"] > 0
    rows = [json.loads(line) for line in (inputs[2] / "metrics.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == sorted(row["part"] for row in rows)
    assert list((inputs[2] / "tensorboard" / "sft").glob("events.*"))
    before, after = tensors(tmp_path / "base"), tensors(directory)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if lora:  # merged into the linears that had adapters, and nothing else
        assert changed == {name for name in before if any(part in name for part in ("q_proj", "v_proj", "up_proj"))}
    law, text = (tmp_path / "base" / "tokenizer.json").read_bytes(), "the rapist met\n\n the therapist"
    assert (directory / "tokenizer.json").read_bytes() == law
    written = AutoTokenizer.from_pretrained(directory)
    assert written.chat_template == checkpoints.CHATML
    assert written.encode(text) == Tokenizer.from_buffer(law).encode(text).ids == FAST.encode(text)
    assert not (directory / "adapter_config.json").exists()


def test_a_policy_is_trained_on_the_model_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.publish(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(unpacked, "find_cache_directory", lambda: tmp_path / "cache")
    config, data, out = prepare(tmp_path / "run", base="package:tiny_model", template=None)
    stage = {"name": "sft", "sources": [{"name": "talk", "format": "dialogues"}]}
    given = yaml.safe_load(config.read_text())
    given["stages"] = [stage | {"optimizer": given["stages"][0]["optimizer"]}]
    config.write_text(yaml.safe_dump(given))
    directory = run(config, data, out)
    sft = json.loads((out / "results.json").read_text())["sft"]
    assert sft["after"]["loss"] < sft["before"]["loss"] - 0.2
    (base,) = (tmp_path / "cache" / "bases").iterdir()
    assert (directory / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(directory).tokenize("\n\n1") == ["ĊĊ", "1"]
    config.write_text(yaml.safe_dump(given | {"base": "package:no_such_package"}))
    with pytest.raises(ConfigError, match=r"base: package:no_such_package is not installed; install it$"):
        run(config, data, out)


class Killed(BaseException):
    """A kill at a step."""


@pytest.mark.parametrize(("stage", "step"), [("pre", 5), ("sft", 7)])
def test_a_killed_run_goes_on_to_the_same_bits(
    stage: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*prepare(tmp_path / "whole"))
    inputs = prepare(tmp_path / "killed")
    with monkeypatch.context() as patch:
        from assay_training.runs.metrics import MetricsWriter  # noqa: PLC0415

        log = MetricsWriter.log

        def kill(self: MetricsWriter, row: dict[str, Any]) -> None:
            log(self, row)
            if (self._part, row["step"]) == (stage, step):
                raise Killed

        patch.setattr(MetricsWriter, "log", kill)
        with pytest.raises(Killed):
            run(*inputs)
    again = run(*inputs)
    expected = tensors(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(again).items())
    files = [(root / "out" / "metrics.jsonl").read_text() for root in (tmp_path / "whole", tmp_path / "killed")]
    assert files[0] == files[1]
    results = [(root / "out" / "results.json").read_text() for root in (tmp_path / "whole", tmp_path / "killed")]
    assert results[0] == results[1]


def test_no_group_is_both_learned_and_tested(tmp_path: Path) -> None:
    config, data, out = prepare(tmp_path)
    words = ("bread", "fox", "dog", "water", "salt", "yeast", "flour", "lazy", "quick", "brown")
    asked = [{"role": "user", "content": f"{word}?"} for word in words]
    rows = [{"messages": [question, {"role": "assistant", "content": f"{i}"}]} for question in asked for i in range(6)]
    (data / "talk" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned, tested = SftRun(read(config, SftConfig), data, out).parts[1]
    assert len(learned) + len(tested) == 60
    questions = [{FAST.decode(example.ids).split("?")[0] for example in part} for part in (learned, tested)]
    assert [len(part) for part in questions] == [len(words) - len(questions[1]), len(questions[1])]
    assert questions[1]


@pytest.mark.parametrize(
    ("reply", "question", "reason"),
    [("<|im_end|>", "q", "special_tokens: {}"), ("yes", "bread " * 300, "no reply within max_length: {}")],
)
def test_a_stage_of_which_little_is_left_is_refused_and_lost_records_are_reported(
    reply: str, question: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data, out = prepare(tmp_path)

    def write(lost: int) -> None:
        rows = [talk(f"{question} {i}", reply) for i in range(lost)] + [talk(f"q {i}", "yes") for i in range(40)]
        (data / "talk" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(50)
    with pytest.raises(ConfigError, match=f"stages: sft: 50 of 90 records cannot be rendered .{reason.format(50)}"):
        SftRun(read(config, SftConfig), data, out)
    assert not out.exists()
    write(5)
    SftRun(read(config, SftConfig), data, out)
    assert f"stages: sft: 5 of 45 records cannot be rendered ({reason.format(5)}); they are" in capsys.readouterr().err


def test_a_policys_template_without_the_tokenizers_eos_is_refused(tmp_path: Path) -> None:
    """The policy would never learn to stop."""
    config, data, out = prepare(tmp_path)
    endless = checkpoints.CHATML.replace("<|im_end|>", "")
    (tmp_path / "template.jinja").write_text(endless)
    with pytest.raises(ConfigError, match=r"template: .*prints no EOS .*the tokenizer's EOS is '<\|im_end\|>'"):
        SftRun(read(config, SftConfig), data, out)
    assert not out.exists()


def test_the_command(tmp_path: Path) -> None:
    config, data, out = prepare(tmp_path)
    options = ["train", "sft", "--config", str(config), "--data", str(data), "--out", str(out)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert str(out / "checkpoint") in result.output
    config.write_text(config.read_text().replace("held_out: 0.2", "held_out: 2"))
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "held_out" in result.output
