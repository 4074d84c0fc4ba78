"""Find the scores of items that were all scored before, without a thread, a queue or a task."""

import time
from collections.abc import Sequence

from assay_service.api.rendering_cache import Renderings
from assay_service.api.scorer import ItemScore, Scorer
from assay_service.api.sources import ItemSource
from assay_service.engine.cache import compute_key
from assay_service.errors import AssayError
from assay_service.scoring.item import Item, Truncation
from assay_service.scoring.trunk import Trunk
from assay_service.telemetry.timings import Timings


def find_cached_scores(
    scorer: Scorer, items: Sequence[ItemSource], signals: Sequence[str], timings: Timings, truncation: Truncation
) -> list[ItemScore | AssayError] | None:
    """Return what `Scorer.score` would return, or None if anything of it has to be rendered or computed.

    Args:
        scorer: the scorer, whose caches are read.
        items: items to score.
        signals: names of the signals that score them.
        timings: times of the request, to which the lookup is added.
        truncation: policy for prompts that are too long.
    """
    timings.rendering_s = time.monotonic()
    trunks = _identify(scorer, signals)
    if trunks is None:
        return None
    key = scorer.build_render_key(signals, truncation)
    keys: list[tuple[bytes, int]] = []
    known: list[Renderings] = []
    for item in items:
        entry = scorer.rendering_cache.get(key, item) if isinstance(item, Item) else None
        if entry is None:
            return None
        known.append(entry.renderings)
        for identity, _, name in trunks:
            sequence = entry.renderings[name].sequence
            if identity not in entry.keys:
                entry.keys[identity] = compute_key(identity, sequence)
            keys.append((entry.keys[identity], len(sequence.ids)))
    if not scorer.allows(sum(tokens for _, tokens in keys)):
        return None
    found = scorer.engine.find_cached(keys)
    if found is None:
        return None
    timings.submitted_s = time.monotonic()
    timings.sequences = timings.cached = len(keys)
    waiting = iter(found)  # in the order of `keys`: by item, then by trunk
    results: list[ItemScore | AssayError] = []
    for renderings in known:
        outputs: dict[str, tuple[float, ...] | None] = {}
        for _, trunk, _ in trunks:
            outputs |= zip(trunk.signals, next(waiting), strict=True)
        results.append(scorer.read(outputs, renderings))
    scorer.count(results)
    return results


def _identify(scorer: Scorer, signals: Sequence[str]) -> list[tuple[str, Trunk, str]] | None:
    """Return the identity of each trunk, the trunk, and one of its signals; None if one is not cached at all."""
    readers = {scorer.registry.trunks[name]: name for name in signals}
    identities = scorer.registry.identities
    if not all(trunk.name in identities for trunk in readers):
        return None
    return [(identities[trunk.name], trunk, name) for trunk, name in readers.items()]
