"""Write the table of presets in docs/presets.md: `python -m tests.presets_page`."""

import re
from pathlib import Path

from assay_service import preset
from assay_service.preset import UNVERIFIED, Preset

PAGE = Path(__file__).parents[1] / "docs/presets.md"
TABLE = re.compile(r"(?<=<!-- presets -->\n).*(?=<!-- end of presets -->)", flags=re.S)
HEAD = "| preset | checkpoint | shape | golden row | not verified | sources |\n|---|---|---|---|---|---|\n"


def list_sources(known: Preset) -> str:
    links = [source for source in known.sources if source not in UNVERIFIED]
    return " ".join(f"[{number}]({link})" for number, link in enumerate(links, start=1))


def describe_golden(known: Preset) -> str:
    """Return the state of the preset's scores, and whether there is a rendering beside them."""
    return known.golden_state + (", rendering" if known.rows and known.renderings else "")


def describe(name: str) -> str:
    known = preset.read(name)
    shape = f"{known.shape}, {known.model_type}" + ("" if known.convert is None else "; convert first")
    revision = (
        ""
        if known.revision is None
        else f" at `{known.revision[:7]}`"
        if len(known.revision) == 40
        else f" at `{known.revision}`"
    )
    unverified = ", ".join(f"`{fact}`" for fact in known.unverified) or "none"
    cells = [f"`{name}`", f"{known.model}{revision}", shape, describe_golden(known), unverified, list_sources(known)]
    return f"| {' | '.join(cells)} |\n"


def count(presets: list[Preset]) -> str:
    facts = sum(len(known.facts) for known in presets)
    unverified = sum(len(known.unverified) for known in presets)
    some = sum(bool(known.unverified) for known in presets)
    published = sum(known.golden_state == "published" for known in presets)
    rendered = [known for known in presets if known.renderings]
    guessed = sum("rendered" in known.unverified for known in rendered)
    none = sum(known.golden_state == "not run" for known in presets)
    pinned = sum(known.revision is not None for known in presets)
    lengths = sum("max_length" in known.signal for known in presets)
    return (
        f"\nOf {len(presets)} presets, {published} have published scores, {pinned} a revision and {lengths} a "
        f"`max_length`.\n{len(rendered)} have a rendering, {guessed} of them an unverified one; {none} have neither "
        f"scores nor a rendering.\nOf {facts} facts, {unverified} in {some} presets are not verified.\n"
    )


def fill(page: str) -> str:
    """Return the page with the table of the present files, and its counts."""
    names = preset.list_names()
    return TABLE.sub(
        lambda _: HEAD + "".join(map(describe, names)) + count([preset.read(name) for name in names]), page
    )


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
