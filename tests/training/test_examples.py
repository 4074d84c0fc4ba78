"""Records as ids: what is trained on is id for id what is served (scoring-traps 6), and no cut goes uncounted."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_service import loader, registry, settings
from assay_service.scoring.item import Item, Message
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.config.base import ConfigError, read
from assay_training.config.reward import RewardConfig
from assay_training.data.examples import Example, render_records
from assay_training.models.batches import cut_token_batches
from assay_training.records.record import Judged, Pair, Ranking
from assay_training.reward_model.command import run
from assay_training.reward_model.run import RewardRun
from tests import checkpoints
from tests.training import tiny
from tests.training.tiny import labelled, ranking

LONG = "bread flour water salt yeast " * 20


def texts(example: Example) -> list[str]:
    """What the sequences of an example say, special tokens included."""
    fast = checkpoints.encoder_tokenizer()
    return [
        str(fast.decode(list(s.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for s in example.sequences
    ]


def serve(root: Path, architecture: str, template: str, position: str, eos: str) -> registry.Signal:
    """An adapter with a manifest, loaded the way the service does."""
    claims: dict[str, Any] = {
        "score_position": position,
        "eos": eos,
        "unfinished": "score",
        "max_length": 48,
        "kind": "preference",
    }
    fast = checkpoints.encoder_tokenizer() if architecture == "bert" else checkpoints.decoder_tokenizer(template)
    model = checkpoints.classifier(architecture, fast)
    checkpoints.save(root / "base", model.base_model, fast)
    checkpoints.save_adapter(root / "adapter", model, **claims)
    (root / "service.yaml").write_text("signals: {s: {base: base, adapter: adapter}}\ndefault: s\n")
    return loader.load(settings.read_settings(root / "service.yaml")).signals["s"]


@pytest.mark.parametrize(
    ("architecture", "template", "position", "eos"),
    [
        ("bert", checkpoints.ENCODER, "first_token", "template"),
        ("bert", checkpoints.ENCODER, "mean", "template"),
        ("llama", checkpoints.CHATML, "last_token", "template"),
        ("llama", checkpoints.CHATML, "eos", "append"),
        ("llama", checkpoints.LLAMA3, "eos", "append"),
        ("llama", checkpoints.CHATML, "last_non_pad_id", "template"),
    ],
)
def test_the_trainer_renders_what_the_service_renders(
    architecture: str, template: str, position: str, eos: str, tmp_path: Path
) -> None:
    signal = serve(tmp_path, architecture, template, position, eos)
    rows = [
        *(tiny.hh_row(f"water {i}", "dog", "fox") for i in range(20)),  # so that every part has some
        tiny.hh_row("How do I bake bread?", "Mix flour and water.", " I cannot. "),
        {
            "chosen": tiny.dialogue("hi", "yes?", "é☃ bread?\n\nor not", "Yes."),
            "rejected": tiny.dialogue("hi", "yes?", "é☃ bread?\n\nor not", "☃"),
        },
        tiny.hh_row(LONG, "dog", "fox"),
        tiny.hh_row("fox", LONG, "no"),
    ]
    tiny.write_rows(tmp_path / "data" / "hh_rlhf" / "x.jsonl.gz", rows)
    changes: dict[str, Any] = {"score_position": position, "eos": eos, "template_text": template}
    if architecture != "bert":
        changes["lora"] = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    config = read(tiny.write_config(tmp_path / "run.yaml", tmp_path / "base", **changes), RewardConfig)
    reward = RewardRun(config, tmp_path / "data", tmp_path / "run")
    assert len(reward.examples) == len(rows)
    for example in reward.examples[:-1]:
        served = tuple(signal.renderer.render(item, "prompt_left").sequence for item in example.record.items)
        assert example.sequences == served
    assert any(len(s.ids) == 48 for example in reward.examples[:-1] for s in example.sequences)  # one was cut
    item, cut = reward.examples[-1].record.items[0], reward.examples[-1].sequences[0]
    starts = (Item.of("fox", item.completion[:end], "length") for end in range(1, len(item.completion)))
    assert any(cut == signal.renderer.render(start, "prompt_left").sequence for start in starts)
    report = reward.run.read_json("render.json")
    assert (report["truncated_prompts"] >= 2, report["cut_completions"], report["refused"]) == (True, 1, {})


def test_a_long_prompt_is_cut_from_the_left_and_counted() -> None:
    record = ranking("1 2 3 " * 30 + "the end", ["yes", "no"])
    (example,), report = render_records([record], tiny.renderer(max_length=32))
    assert [len(s.ids) for s in example.sequences] == [32, 32]
    assert texts(example)[0].startswith("[CLS]")
    assert texts(example)[0].endswith("1 2 3 the end[SEP]assistant: yes[SEP]")
    assert (report.truncated_prompts, report.cut_completions, report.refused) == (2, 0, {})


def test_only_what_is_too_long_is_counted() -> None:
    examples, report = render_records([ranking("hi", ["yes", "no"]), labelled("hi", "yes", 1.0)], tiny.renderer())
    assert texts(examples[0]) == ["[CLS]user: hi[SEP]assistant: yes[SEP]", "[CLS]user: hi[SEP]assistant: no[SEP]"]
    assert texts(examples[1]) == texts(examples[0])[:1]
    assert (report.truncated_prompts, report.cut_completions, report.refused) == (0, 0, {})


def test_a_completion_that_does_not_fit_alone_is_cut_on_the_right_and_counted_once() -> None:
    record = ranking("hi", ["bread " * 100 + "end", "no"])
    (example,), report = render_records([record], tiny.renderer(max_length=32))
    cut, whole = texts(example)
    assert len(example.sequences[0].ids) <= 32
    assert "bread bread bread" in cut
    assert not cut.endswith("[SEP]")  # nobody said that it was finished
    assert "end" not in cut
    assert whole == "[CLS]user: hi[SEP]assistant: no[SEP]"
    assert (report.cut_completions, report.refused) == (1, {})


@pytest.mark.parametrize("text", ["[SEP]", "yes [CLS] no", "[MASK]"])
def test_special_tokens_in_data_are_refused_and_counted(text: str) -> None:
    records: list[Judged] = [ranking("hi", ["yes", text]), ranking(text, ["yes", "no"]), labelled("hi", "yes", 1.0)]
    examples, report = render_records(records, tiny.renderer())
    assert [example.record for example in examples] == records[2:]
    assert report.refused == {"special_tokens": 2}


def test_every_reason_to_refuse_is_counted_by_its_code() -> None:
    system = ranking("hi", ["yes", "no"])
    odd = type(system)("x", "hi", (Message("tool", "hi"),), ("yes", "no"), (Pair(0, 1),))
    long = ranking("hi", [LONG * 2, "no"])
    records: list[Judged] = [odd, long, system, ranking("hi", ["[SEP]", "a"])]
    examples, report = render_records(records, tiny.renderer(unfinished="error"))
    assert [example.record for example in examples] == [system]
    assert report.refused == {"template_error": 1, "unfinished": 1, "special_tokens": 1}


def test_a_pair_whose_completions_are_equal_after_the_cut_is_dropped_and_counted() -> None:
    """Both completions are cut at 32 tokens, before they differ."""
    equal = ranking("hi", ["bread " * 60 + "fox", "bread " * 60 + "dog"], source="a/x")
    apart = ranking("hi", ["yes", "no"], source="a/x")
    examples, report = render_records([equal, apart, equal], tiny.renderer(max_length=32))
    assert [example.record for example in examples] == [apart]
    assert report.equal_ids == {"a": 2}


def test_only_the_equal_pairs_of_a_ranking_are_dropped() -> None:
    """Of four completions the first two are equal after the cut; the tie of the last two stays."""
    texts_ = ["bread " * 60 + "fox", "bread " * 60 + "dog", "yes", "no"]
    record = Ranking(
        "b", "hi", (Message("user", "hi"),), tuple(texts_), (Pair(0, 1), Pair(0, 2), Pair(1, 3, 0.5)), ((2, 3), (0, 1))
    )
    (example,), report = render_records([record], tiny.renderer(max_length=32))
    assert isinstance(example.record, Ranking)
    assert (example.record.pairs, example.record.ties) == ((Pair(0, 2), Pair(1, 3, 0.5)), ((2, 3),))
    assert (len(example.sequences), report.equal_ids) == (4, {"b": 2})


def trimming() -> Renderer:
    """A renderer whose template trims what a message says, as many published templates do."""
    fast = checkpoints.encoder_tokenizer()
    template = checkpoints.ENCODER.replace("m['content']", "m['content'] | trim")
    return Renderer(fast, RenderRules(template, 48, "mean", "template", "score", fast.pad_token_id), len(fast))


def test_a_pair_that_the_template_makes_equal_is_dropped() -> None:
    examples, report = render_records([ranking("hi", ["yes", "yes\n"])], trimming())
    assert (examples, report.equal_ids) == ([], {"hh_rlhf": 1})


def test_labelled_items_with_equal_ids_stay() -> None:
    """Two labels of one text are learned as their mean, as the opinions of two raters are."""
    items: list[Judged] = [labelled("hi", "yes", 1.0), labelled("hi", "yes\n", 0.0)]
    examples, report = render_records(items, trimming())
    assert ([example.record for example in examples], report.equal_ids) == (items, {})


def test_a_run_whose_pairs_are_all_equal_after_the_cut_is_refused(tmp_path: Path) -> None:
    start = "bread " * 60
    rows = [tiny.hh_row(f"q {i}", f"{start} fox", f"{start} dog") for i in range(30)]
    tiny.write_rows(tmp_path / "data" / "hh_rlhf" / "x.jsonl.gz", rows)
    config = read(tiny.write_config(tmp_path / "run.yaml", tiny.save_base(tmp_path / "base")), RewardConfig)
    with pytest.raises(
        ConfigError, match=r"equal token ids \(hh_rlhf: 30\): both are truncated at max_length 48.*raise max_le"
    ):
        RewardRun(config, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_pairs_are_counted_by_source_and_do_not_move_the_batch_mean_margin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses with such pairs among the rows are those without them, number for number."""
    start = "bread " * 60
    good = [tiny.hh_row(f"q {i}", "a fox jumps", "a lazy dog") for i in range(40)]
    equal = [tiny.hh_row(f"q {i}", f"{start} fox", f"{start} dog") for i in range(0, 40, 2)]
    losses = []
    for name, rows in (("with", [*good, *equal]), ("without", good)):
        tiny.write_rows(tmp_path / name / "hh_rlhf" / "x.jsonl.gz", rows)
        changes: dict[str, Any] = {
            "objective": {"kind": "preference", "margin": {"kind": "batch_mean"}},
            "split": {"held_out": 0.2},
        }
        path = tiny.write_config(tmp_path / f"{name}.yaml", tiny.save_base(tmp_path / "base"), **changes)
        run(path, tmp_path / name, tmp_path / f"{name}.run")
        rendered = json.loads((tmp_path / f"{name}.run" / "render.json").read_text())
        assert rendered["equal_ids"] == ({"hh_rlhf": 20} if name == "with" else {})
        lines = (tmp_path / f"{name}.run" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        results = json.loads((tmp_path / f"{name}.run" / "results.json").read_text())
        losses.append([results["all"]["accuracy"]["model"]])
    assert losses[:2] == losses[2:]
    assert (
        "hh_rlhf: 20 pairs or ties dropped, because their completions have equal token ids: "
        "both are truncated at max_length 48" in capsys.readouterr().err
    )


@given(
    sizes=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), max_size=30),
    limit=st.integers(1, 80),
)
def test_token_batches_lose_nothing_split_nothing_and_keep_the_limit(sizes: list[list[int]], limit: int) -> None:
    record = labelled("hi", "yes", 1.0)
    examples = [tiny.fake_ids(record, *lengths) for lengths in sizes]
    indices = list(range(len(examples)))[::-1]
    parts = list(cut_token_batches(indices, examples, limit))
    assert [i for part in parts for i in part] == indices
    assert all(parts)
    for part in parts:
        assert len(part) == 1 or sum(sum(sizes[i]) for i in part) <= limit
    for part, after in pairwise(parts):  # no more parts than the limit asks for
        assert sum(sum(sizes[i]) for i in [*part, after[0]]) > limit
