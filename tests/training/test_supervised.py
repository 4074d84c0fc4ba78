"""The supervised loop: schedule, gradients that do not depend on micro-batches, resuming, and that it learns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from assay_service.scoring.export import collect_adapter_tensors
from assay_training.algorithms.schedule import compute_learning_rate_share, draw_random_batches
from assay_training.config.model import OptimizerConfig
from assay_training.config.objective import AbsoluteObjective, PreferenceObjective
from assay_training.data.examples import Example, render_records
from assay_training.errors import RunStopped
from assay_training.loop.supervised import Schedule, train
from assay_training.records.record import Judged, Labelled, Ranking
from assay_training.reward_model.objectives import Pairwise, Pointwise
from assay_training.reward_model.prediction import finish_training, predict
from assay_training.runs.directory import RunDirectory
from assay_training.runs.metrics import MetricsWriter
from assay_training.runs.resume import ResumePoint
from tests.training import tiny
from tests.training.tiny import labelled, ranking

WORDS = ["bread", "water", "salt", "yeast", "flour", "lazy", "quick", "brown", "jumps", "over"]


def rankings() -> list[Ranking]:
    """Rankings of different K and different numbers of pairs, so that a wrong weight shows."""
    return [
        ranking("how", ["mix and wait", "no"]),
        ranking("bake", ["1", "2 2", "3 3 3 3", "4"], ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))),
        ranking("dog", ["fox", "fox over", "lazy"], ((2, 0), (1, 0))),
        ranking("quick brown", ["I am sorry", "yes"], ((1, 0),)),
    ]


def labels() -> list[Labelled]:
    values = (0.0, 1 / 3, 0.5, 5 / 6, 1.0)
    return [labelled(word, word * (i + 1), value) for i, (word, value) in enumerate(zip(WORDS, values, strict=False))]


def rendered(records: Sequence[Judged]) -> list[Example]:
    return render_records(records, tiny.renderer())[0]


class Log(MetricsWriter):
    """Keeps the rows of a training in memory, and does what a test wants to do at each step, before its update."""

    def __init__(self, also: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._also = also

    def begin(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] < step]

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self._also(row)

    def end(self) -> None:
        pass


class Forgotten(ResumePoint):
    """A training that nobody will resume."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))

    def save(self, *args: Any, **options: Any) -> None:
        pass


def objective_of(
    model: Any, examples: Sequence[Example], settings: OptimizerConfig, **config: Any
) -> Pairwise | Pointwise:
    if isinstance(examples[0].record, Labelled):
        return Pointwise(model, "s", AbsoluteObjective(kind="absolute", **config), settings)
    return Pairwise(model, "s", PreferenceObjective(kind="preference", **config), settings)


def go(model: Any, parameters: list[Any], examples: list[Example], settings: OptimizerConfig, **options: Any) -> Log:
    """Trains; `options` are seed, log, resume, and the objective's own."""
    log: Log = options.pop("log", Log())
    seed, resume = options.pop("seed", 0), options.pop("resume", Forgotten())
    objective = objective_of(model, examples, settings, **options)
    train(objective, parameters, Schedule(examples, settings, seed), name="s", metrics=log, resume=resume)
    return log


def fit(
    base: Path, records: Sequence[Judged], settings: OptimizerConfig, *, seed: int = 0, **options: Any
) -> tuple[Any, list[Mapping[str, Any]]]:
    """The model after training, and the logged rows."""
    model, parameters = tiny.trainable(base, seed=seed)
    log = go(model, parameters, rendered(records), settings, seed=seed, **options)
    return model, log.rows


@pytest.mark.parametrize(
    ("step", "steps", "warmup_share", "share"),
    [
        (0, 105, 0.0, 0.2),  # never fewer than five steps of warm-up
        (3, 105, 0.0, 0.8),
        (4, 105, 0.03, 1.0),
        (5, 105, 0.03, 1.0),
        (30, 105, 0.03, 0.868198),  # a quarter of the cosine: 0.1 + 0.45 · (1 + 1/√2)
        (55, 105, 0.03, 0.55),
        (105, 105, 0.03, 0.1),
        (0, 1000, 0.03, 1 / 30),
        (29, 1000, 0.03, 1.0),
        (515, 1000, 0.03, 0.55),
        (2, 3, 0.03, 0.6),  # a run that is all warm-up
    ],
)
def test_the_learning_rate_warms_up_and_falls_to_a_tenth(
    step: int, steps: int, warmup_share: float, share: float
) -> None:
    assert compute_learning_rate_share(step, steps, warmup_share) == pytest.approx(share, abs=1e-6)


def test_the_learning_rate_never_leaves_its_range_and_falls_after_the_warm_up() -> None:
    shares = [compute_learning_rate_share(step, 200, 0.1) for step in range(200)]
    assert shares[:20] == sorted(shares[:20])
    assert shares[20:] == sorted(shares[20:], reverse=True)
    assert 0.1 <= min(shares[20:]) < 0.101
    assert max(shares) == 1.0


def test_every_epoch_sees_every_example_once_in_a_new_order() -> None:
    batches = list(draw_random_batches(10, 4, 3, seed=1))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[i for batch in batches[start : start + 3] for i in batch] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(10))]}) == 4
    assert batches == list(draw_random_batches(10, 4, 3, seed=1))
    assert batches != list(draw_random_batches(10, 4, 3, seed=2))


def slow_loss(records: Sequence[Judged], logits: list[list[float]]) -> float:
    """A mean over each prompt's pairs, then over prompts; or a mean over labelled items."""
    losses = []
    for record, row in zip(records, logits, strict=True):
        if isinstance(record, Ranking):
            pairs = [
                math.log1p(math.exp(-(row[i] - row[j])))
                for i, j in ((pair.better, pair.worse) for pair in record.pairs)
            ]
            losses.append(sum(pairs) / len(pairs))
        else:
            p = 1 / (1 + math.exp(-row[0]))
            losses.append(-record.label * math.log(p) - (1 - record.label) * math.log(1 - p))
    return sum(losses) / len(losses)


def loss_of(model: Any, examples: list[Example], batch_size: int, **settings: Any) -> float:
    """What `examples`, as one micro-batch of a batch of `batch_size`, add to its loss."""
    objective: Any = objective_of(model, examples, tiny.optimizer(**settings))
    with torch.inference_mode():
        return float(objective.loss(examples, objective.begin([*examples] * batch_size, [], lambda x: x)))


@pytest.mark.parametrize("records", [rankings(), labels()], ids=["rankings", "labels"])
def test_the_loss_is_the_mean_over_pairs_then_over_examples(records: Sequence[Judged], tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered(records)
    expected = slow_loss(records, predict(model, "s", examples, tiny.optimizer()))
    assert loss_of(model, examples, 1) == pytest.approx(expected, rel=1e-5)
    assert loss_of(model, examples, 3) == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("records", [rankings(), labels()], ids=["rankings", "labels"])
def test_gradients_do_not_depend_on_micro_batches(records: Sequence[Judged], tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path)
    examples = rendered(records)
    gradients, losses = [], []
    for limit in (1, 30, 10**6):
        model, parameters = tiny.trainable(base)
        torch.manual_seed(1)
        with torch.no_grad():  # so that lora_A has gradients at all
            for parameter in parameters:
                parameter.normal_(std=0.2)

        def keep(row: Mapping[str, Any], parameters: list[Any] = parameters) -> None:
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
            losses.append(row["loss"])

        settings = tiny.optimizer(micro_batch_tokens=limit, max_grad_norm=1e9)
        go(model, parameters, examples, settings, log=Log(keep))
    assert len(gradients) == 3  # one optimizer step each
    assert all(bool(part.any()) for part in torch.split(gradients[0], 128))
    for other in (1, 2):
        torch.testing.assert_close(gradients[other], gradients[0], rtol=1e-5, atol=1e-6)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_gradients_are_clipped_and_their_norm_before_is_logged(tmp_path: Path) -> None:
    model, parameters = tiny.trainable(tiny.save_base(tmp_path))
    norms = []

    def keep(row: Mapping[str, Any]) -> None:
        after = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))
        norms.append((row["grad_norm"], after))

    settings = tiny.optimizer(max_grad_norm=0.01)
    go(model, parameters, rendered(rankings()), settings, log=Log(keep))
    ((before, after),) = norms
    assert before > 0.1
    assert after == pytest.approx(0.01, rel=1e-3)


def test_it_learns_which_word_is_better(tmp_path: Path) -> None:
    """Held-out prompts too: the better completion always says "bake", at either index."""
    base = tiny.save_base(tmp_path)
    records = [
        ranking(
            f"{a} {b}", ["Mix, bake.", "Mix, fox."] if i % 2 else ["Mix, fox.", "Mix, bake."], ((1 - i % 2, i % 2),)
        )
        for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)
    ]
    model, log = fit(base, records[:60], tiny.optimizer(epochs=3))
    rows = predict(model, "s", rendered(records[60:]), tiny.optimizer())
    judged = [(row, pair) for row, record in zip(rows, records[60:], strict=True) for pair in record.pairs]
    margins = [row[pair.better] - row[pair.worse] for row, pair in judged]
    assert len(margins) == 40
    assert min(margins) > 0
    assert log[-1]["loss"] < 0.3 < log[0]["loss"]


QUALITIES = (("bake it", 1.0), ("fox dog", 0.0), ("I am sorry", 0.5))


def test_it_learns_a_quality(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path)
    records = [labelled(f"{a} {b}", text, label) for a in WORDS for b in WORDS[:4] for text, label in QUALITIES]
    model, _ = fit(base, records[:90], tiny.optimizer(epochs=10))
    rows = predict(model, "s", rendered(records[90:]), tiny.optimizer())
    for record, (logit,) in zip(records[90:], rows, strict=True):
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(record.label, abs=0.25)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path)
    first, second, other = (
        collect_adapter_tensors(fit(base, rankings(), tiny.optimizer(batch_prompts=2, epochs=3), seed=seed)[0], "s")
        for seed in (5, 5, 6)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_only_the_adapter_and_the_head_change(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path)
    before = tiny.trainable(base)[0]
    after, _ = fit(base, labels(), tiny.optimizer(batch_prompts=1))
    trained = dict(after.base.named_parameters())
    for name, parameter in before.base.named_parameters():
        assert torch.equal(parameter, trained[name]) is ("lora_" not in name), name
    fresh = collect_adapter_tensors(before, "s")
    assert all(not torch.equal(fresh[name], tensor) for name, tensor in collect_adapter_tensors(after, "s").items())


def test_every_step_is_logged_with_its_learning_rate(tmp_path: Path) -> None:
    _, log = fit(tiny.save_base(tmp_path), rankings(), tiny.optimizer(batch_prompts=3, epochs=2))
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert [row["learning_rate"] for row in log] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    assert log[0]["loss"] != log[1]["loss"]


def test_every_step_starts_from_fresh_gradients(tmp_path: Path) -> None:
    """With steps too small to matter, the same batch has the same gradient every time."""
    settings = tiny.optimizer(learning_rate=1e-12, epochs=3, max_grad_norm=1e9)
    _, log = fit(tiny.save_base(tmp_path), rankings(), settings)
    assert [row["grad_norm"] for row in log] == pytest.approx([log[0]["grad_norm"]] * 3, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model, parameters = tiny.trainable(tiny.save_base(tmp_path))
    with torch.no_grad():
        parameters[-1].fill_(math.nan)
    log = Log()
    before = parameters[0].detach().clone()
    with pytest.raises(
        FloatingPointError, match=r"step 0: loss is nan: the training diverges; lower optimizer\.learning_rate"
    ):
        go(model, parameters, rendered(labels()), tiny.optimizer(), log=log)
    assert log.rows == []
    assert torch.equal(parameters[0], before)


def test_a_gradient_whose_norm_is_infinite_stops_the_run_before_it_is_applied(tmp_path: Path) -> None:
    """The loss of such a step is still finite: the slope of a square root at 0."""

    class Steep(Pointwise):
        def loss(self, part: Sequence[Example], shared: int) -> torch.Tensor:
            found = super().loss(part, shared)
            return found + (found - found.detach()).sqrt()

    model, parameters = tiny.trainable(tiny.save_base(tmp_path / "base"))
    before, log, settings = parameters[0].detach().clone(), Log(), tiny.optimizer(max_grad_norm=None)
    with pytest.raises(
        FloatingPointError, match=r"s: step 0: grad_norm is \w+: .* lower optimizer.max_grad_norm \(it is n"
    ):
        train(
            Steep(model, "s", AbsoluteObjective(kind="absolute"), settings),
            parameters,
            Schedule(rendered(labels()), settings, 0),
            name="s",
            metrics=log,
            resume=ResumePoint(tmp_path / "state.pt"),
        )
    assert log.rows == []
    assert torch.equal(parameters[0], before)


def test_a_metric_that_is_not_finite_is_named_with_its_step(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path, "ppo")
    metrics.begin(0)
    with pytest.raises(FloatingPointError, match=r"^ppo: step 3: kl_k3 is inf$"):
        metrics.log({"step": 3, "kl": 1.0, "kl_k3": math.inf, "fingerprint": "a"})
    metrics.end()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_result_that_is_not_finite_is_named_by_file_and_key(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", {}, writes=True)
    with pytest.raises(
        FloatingPointError, match=r"held_out\.json: all\.rows\[1\]\[0\] is nan: the model's output is not finite"
    ):
        directory.write_json("held_out.json", {"all": {"rows": [[1.0], [math.nan]]}})
    assert not list((tmp_path / "run").glob("held_out*"))


def test_predictions_are_those_of_each_example_alone_and_in_order(tmp_path: Path) -> None:
    """Trap 15: scoring sorts by length."""
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered([*rankings(), *labels()])[::-1]
    alone = [predict(model, "s", [example], tiny.optimizer())[0] for example in examples]
    for limit in (1, 40, 10**6):
        together = predict(model, "s", examples, tiny.optimizer(micro_batch_tokens=limit))
        assert [len(row) for row in together] == [len(example.sequences) for example in examples]
        for row, expected in zip(together, alone, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)
    assert len({round(logit, 4) for row in alone for logit in row}) == sum(map(len, alone))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_finished_model_predicts_what_was_trained_whatever_the_batch(
    dtype: Literal["float32", "bfloat16"], tolerance: float, tmp_path: Path
) -> None:
    """The service's kernels compute it: bits are equal in any batch, and close to those of torch's operators."""
    model, parameters = tiny.trainable(tiny.save_base(tmp_path))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.2)
    examples = rendered([*rankings(), *labels()])
    trained = predict(model, "s", examples, tiny.optimizer())
    settings = tiny.optimizer(compute_dtype=dtype)
    finish_training(model, settings)
    finished = predict(model, "s", examples, settings)
    assert finished != trained
    for row, expected in zip(finished, trained, strict=True):
        assert row == pytest.approx(expected, abs=tolerance)
    assert [predict(model, "s", [example], settings)[0] for example in examples] == finished


def test_logits_are_fp32_whatever_the_base_computes_in(tmp_path: Path) -> None:
    """Trap 12: bf16 has steps of 1/64 at 2, so close completions tie and a tie counts one half."""
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered([*rankings(), *labels()])
    logits = torch.tensor(
        [x for r in predict(model, "s", examples, tiny.optimizer(compute_dtype="bfloat16")) for x in r]
    )
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("records", [rankings()[:3], labels()], ids=["rankings", "labels"])
def test_the_loss_is_fp32_whatever_the_base_computes_in(records: Sequence[Judged], tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered(records)
    expected = slow_loss(records, predict(model, "s", examples, tiny.optimizer(compute_dtype="bfloat16")))
    loss = loss_of(model, examples, 1, compute_dtype="bfloat16")
    assert loss == pytest.approx(expected, rel=1e-5)


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered(rankings())
    exact, fast = (predict(model, "s", examples, tiny.optimizer(compute_dtype=d)) for d in ("float32", "bfloat16"))
    assert exact != fast
    for row, expected in zip(fast, exact, strict=True):
        assert row == pytest.approx(expected, abs=0.1)


def test_dropout_is_off_when_scoring(tmp_path: Path) -> None:
    """Trap 20."""
    model, parameters = tiny.trainable(tiny.save_base(tmp_path), dropout=0.5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.2)
    examples = rendered(rankings())
    assert predict(model, "s", examples, tiny.optimizer()) == predict(model, "s", examples, tiny.optimizer())


def test_the_batch_mean_margin_is_that_of_the_whole_batch_whatever_the_micro_batches(tmp_path: Path) -> None:
    """Against [Margin] equations 5 to 7, one pair after the other; and the mean is over prompts, not over pairs."""
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered(rankings())
    logits = predict(model, "s", examples, tiny.optimizer())
    judged = [(row, example.record) for row, example in zip(logits, examples, strict=True)]
    margins = [[row[p.better] - row[p.worse] for p in record.pairs] for row, record in judged]  # type: ignore[union-attr]
    mean = sum(sum(values) / len(values) for values in margins) / len(margins)
    losses = [
        sum(math.log1p(math.exp(-(d - mean if d < mean else d))) for d in values) / len(values) for values in margins
    ]
    expected = sum(losses) / len(losses)
    for limit in (1, 30, 10**6):
        settings = tiny.optimizer(micro_batch_tokens=limit)
        log = go(
            *tiny.trainable(tiny.save_base(tmp_path / str(limit))), examples, settings, margin={"kind": "batch_mean"}
        )
        assert log.rows[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_labelled_margins_are_scaled_gaps_and_nothing_where_there_is_no_gap(tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    records = [
        replace(r, pairs=tuple(replace(p, gap=g) for p, g in zip(r.pairs, (0.5, 1.0, None), strict=False)))
        for r in rankings()[2:]
    ]
    examples = rendered(records)
    expected = 0.0
    for record, row in zip(records, predict(model, "s", examples, tiny.optimizer()), strict=True):
        terms = [math.log1p(math.exp(-(row[p.better] - row[p.worse] - 3 * (p.gap or 0)))) for p in record.pairs]
        expected += sum(terms) / len(terms) / len(records)
    objective: Any = objective_of(model, examples, tiny.optimizer(), margin={"kind": "labelled", "scale": 3})
    loss = objective.loss(examples, objective.begin(examples, [], lambda x: x))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_l2_and_centring_add_to_the_loss(tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    examples = rendered(rankings()[:1])
    ((a, b),) = predict(model, "s", examples, tiny.optimizer())

    def loss(**config: Any) -> float:
        objective: Any = objective_of(model, examples, tiny.optimizer(), **config)
        return float(objective.loss(examples, objective.begin(examples, [], lambda x: x)).detach())

    assert loss(l2=0.5) - loss() == pytest.approx(0.25 * (a * a + b * b), rel=1e-4)
    assert loss(centring=0.5) - loss() == pytest.approx(0.5 * (a + b) ** 2, rel=1e-4)


def test_the_weight_of_an_item_multiplies_its_loss_and_divides_nothing(tmp_path: Path) -> None:
    model, _ = tiny.trainable(tiny.save_base(tmp_path))
    records = labels()
    weighted = [replace(record, weight=float(i)) for i, record in enumerate(records)]
    alone = [loss_of(model, [example], 1) for example in rendered(records)]
    expected = sum(i * loss for i, loss in enumerate(alone)) / len(records)
    assert loss_of(model, rendered(weighted), 1) == pytest.approx(expected, rel=1e-5)


class Killed(BaseException):
    """A kill at a step."""


@pytest.mark.parametrize("content", [b"", b"xx", b"8", b"\x80\x02h\x01.", b"PK\x03\x04 half an archive"])
def test_a_broken_resume_state_is_named(content: bytes, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    state.write_bytes(content)
    with pytest.raises(RunStopped, match=r"state\.pt: the stored state is broken; remove the file"):
        fit(tiny.save_base(tmp_path / "base"), rankings(), tiny.optimizer(), resume=ResumePoint(state))


@pytest.mark.parametrize("kill_at", [1, 4, 5, 8])
def test_a_killed_training_goes_on_to_the_same_bits(kill_at: int, tmp_path: Path) -> None:
    settings = tiny.optimizer(batch_prompts=1, epochs=3, checkpoint_steps=4)
    whole, rows = fit(tiny.save_base(tmp_path / "a"), rankings(), settings)

    def kill(row: Mapping[str, Any]) -> None:
        if row["step"] == kill_at:
            raise Killed

    base, state = tiny.save_base(tmp_path / "b"), tmp_path / "state.pt"
    with pytest.raises(Killed):
        fit(base, rankings(), settings, resume=ResumePoint(state), log=Log(kill))
    assert state.is_file() is (kill_at >= 4)
    again, rest = fit(base, rankings(), settings, resume=ResumePoint(state))
    assert [row["step"] for row in rest] == list(range(kill_at // 4 * 4, 12))
    assert rest == rows[-len(rest) :]
    expected = collect_adapter_tensors(whole, "s")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in collect_adapter_tensors(again, "s").items())
    nothing = fit(base, rankings(), settings, resume=ResumePoint(state))[1]
    assert nothing == []
