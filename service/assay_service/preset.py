"""Read presets: files that say how a known checkpoint is served, with a source for every fact."""

import hashlib
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assay_service.errors import StartError
from assay_service.scoring.manifest import GoldenRow
from assay_service.validation import explain, format_key
from assay_service.yaml_file import read_yaml

DIRECTORY = Path(__file__).parent / "presets"
# Sources of facts that no public text states: remembered, or concluded from the model's name and loader.
UNVERIFIED = ("memory", "inferred")
COMMIT_PATTERN = r"[0-9a-f]{40}"
_REVISION_PATTERN = rf"^({COMMIT_PATTERN}|refs/pr/\d+)$"

# Where the head of the published files is, which decides what is declared for it.
Shape = Literal["classifier", "outputs", "two layers", "value head", "language model", "gated", "foreign"]

# What is known about the scores of a preset. "rendering" means the ids of a conversation without a score, "run" that
# Assay has recomputed published scores from the published weights.
GoldenState = Literal["not run", "rendering", "published", "run"]

# Choices of the operator, and how the files are read. They say nothing about the model, so that they have no source.
_CHOICES = frozenset(
    {"unfinished", "aggregate", "code", "control_tokens", "dropped_content", "reasoning"}
    | {"engine", "tensor_parallel_size"}
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StepRow(_Frozen):
    """A conversation and the published probabilities of the steps of its completion.

    Attributes:
        messages: pairs of role and content; the last one is the assistant's.
        probs: probability of each step, in 0..1.
    """

    messages: tuple[tuple[str, str], ...]
    probs: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]


class Rendering(_Frozen):
    """A conversation and what must be scored for it, from another source than Assay's own renderer.

    Attributes:
        messages: pairs of role and content; the last one is the assistant's.
        text: the conversation as the template prints it.
        ids: token ids of the text.
        read: positions of the tokens that the head reads, counted from 0.
        gate: position of the token that a gating network reads; None for heads without one.
    """

    messages: tuple[tuple[str, str], ...]
    text: str = Field(min_length=1)
    ids: Annotated[tuple[int, ...], Field(min_length=1)]
    read: Annotated[tuple[int, ...], Field(min_length=1)]
    gate: int | None = None


class Golden(_Frozen):
    """Conversations whose scores are published, and conversations of which it is known what must be scored.

    Attributes:
        rows: conversations with published scores, each with its logit or the probabilities of its steps.
        dtype: dtype in which the base computed these scores; None without rows.
        tolerance: largest difference of the probability of a step. Logits have the tolerance of the dtype.
        run: day on which Assay recomputed the rows from the published weights; None if it never has.
        rendered: conversations with their text and token ids. They say nothing about scores.
    """

    rows: tuple[GoldenRow | StepRow, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tolerance: float = Field(0.05, gt=0, lt=0.5)
    run: date | None = None
    rendered: tuple[Rendering, ...] = ()

    @model_validator(mode="after")
    def _check_parts(self) -> "Golden":
        if not self.rows and not self.rendered:
            raise ValueError("has neither rows nor rendered conversations; give one of them, or write `not run`")
        if bool(self.rows) != (self.dtype is not None):
            raise ValueError("dtype belongs to rows; give both, or remove it")
        if self.run is not None and not self.rows:
            raise ValueError("run says that scores were recomputed; give the rows, or remove it")
        return self


class Conversion(_Frozen):
    """What `assay convert` needs for published files that are not served as they are.

    Attributes:
        reason: why they are not, as the end of the sentence "its files must be converted: ...".
        head: module of the head; None for a name that is known.
        base: hub id of the model with the `config.json` and tokenizer that the files lack; None if they have both.
    """

    reason: str = Field(min_length=1)
    head: str | None = None
    base: str | None = None


class Preset(_Frozen):
    """What is known about a published checkpoint.

    Attributes:
        model: hub id.
        revision: commit that the facts are about, or a pull request, which can move; None where no public text names
            one. The hub's `main` is served then.
        model_type: architecture, as `config.json` names it after any conversion.
        architecture: class that the published `config.json` names.
        shape: kind of the published head.
        signal: keys of a signal. `template` is a file in `presets/templates`; without it the checkpoint's own is used.
        convert: options of `assay convert`; None for files that are served as they are.
        golden: published scores and renderings; "not run" where there are none.
        sources: facts by their source: an address, "memory" or "inferred".
        note: a sentence for users; None for no note.
    """

    model: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, pattern=_REVISION_PATTERN)
    model_type: str
    architecture: str
    shape: Shape
    signal: dict[str, Any]
    convert: Conversion | None = None
    golden: Golden | Literal["not run"] = "not run"
    sources: dict[str, tuple[str, ...]]
    note: str | None = None

    @property
    def facts(self) -> set[str]:
        """Return the names of the facts that need a source."""
        named = {"model_type", "architecture", "shape"} | ({"template"} if "eos" in self.signal else set())
        named |= {"revision"} if self.revision else set()
        named |= {"golden"} if self.rows else set()
        named |= {"rendered"} if self.renderings else set()
        return named | (self.signal.keys() - _CHOICES)

    @property
    def rows(self) -> tuple[GoldenRow | StepRow, ...]:
        """Return the conversations whose scores are published."""
        return self.golden.rows if isinstance(self.golden, Golden) else ()

    @property
    def renderings(self) -> tuple[Rendering, ...]:
        """Return the conversations of which it is known what must be scored."""
        return self.golden.rendered if isinstance(self.golden, Golden) else ()

    @property
    def golden_state(self) -> GoldenState:
        """Return what is known about the preset's scores."""
        if not isinstance(self.golden, Golden):
            return "not run"
        if not self.golden.rows:
            return "rendering"
        return "published" if self.golden.run is None else "run"

    @property
    def unverified(self) -> tuple[str, ...]:
        """Return the facts that no public text states."""
        return tuple(fact for source in UNVERIFIED for fact in self.sources.get(source, ()))

    @model_validator(mode="after")
    def _check_sources(self) -> "Preset":
        if lost := sorted(self.facts - {fact for facts in self.sources.values() for fact in facts}):
            raise ValueError(
                f"sources: no source for {', '.join(lost)}; name an address, or one of {', '.join(UNVERIFIED)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class PresetUse:
    """The preset behind a signal.

    Attributes:
        name: name of the preset.
        sha256: SHA-256 of its file and template.
        golden: state of its scores.
        changed: keys to which the configuration gives another value than the preset.
    """

    name: str
    sha256: str
    golden: GoldenState
    changed: tuple[str, ...]


@cache
def list_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))


@cache
def read(name: str) -> Preset:
    """Return a preset.

    Raises:
        StartError: there is no preset of this name; the error names the closest ones.
    """
    if name not in list_names():
        close = get_close_matches(name.lower(), list_names(), n=3, cutoff=0.5)
        meant = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise StartError(f"preset: {name!r} is not a preset{meant}; declare one that `assay presets` prints")
    path = DIRECTORY / f"{name}.yaml"
    try:
        return Preset.model_validate(read_yaml(path))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise StartError(*(f"{path}: {format_key(e['loc'])}: {explain(e)}" for e in errors)) from error


def describe(name: str, changed: tuple[str, ...]) -> PresetUse:
    """Return what answers say about the preset behind a signal.

    Args:
        name: name of the preset.
        changed: keys to which the configuration gives another value than the preset.
    """
    preset = read(name)
    template = preset.signal.get("template")
    paths = [DIRECTORY / f"{name}.yaml", *([] if template is None else [place_template(template)])]
    sha256 = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return PresetUse(name, sha256, preset.golden_state, changed)


def place_template(template: str) -> Path:
    """Return the path of a preset's template."""
    return DIRECTORY / "templates" / template
