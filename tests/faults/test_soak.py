"""Memory under a load of distinct texts; `SOAK_S` sets the length in seconds."""

import os
from pathlib import Path

import pytest

from tests.faults.memory import fit_growth
from tests.faults.service import make_config, serve
from tests.faults.soak import LIMITS, make_items, run_soak

SECONDS = float(os.environ.get("SOAK_S", "120"))
# In MiB per minute. A short run still sees the allocator's steps of some MiB, a long one does not.
MOST_GROWTH = 6.0 if SECONDS < 1000 else 0.5
MIB = 2**20


def test_growth_is_the_slope_after_the_warm_up() -> None:
    # 100 MiB within the first third are warm-up; then a MiB in 30 s are 2 MiB per minute.
    leak = [(0.0, 0), (30.0, 100 * MIB), (60.0, 100 * MIB), (90.0, 101 * MIB), (120.0, 102 * MIB)]
    assert fit_growth(leak[:1] + leak[2:]) == pytest.approx(2.0)
    flat = [(0.0, 0), (60.0, 100 * MIB), (90.0, 101 * MIB), (120.0, 100 * MIB), (150.0, 101 * MIB), (180.0, 100 * MIB)]
    assert fit_growth(flat) == pytest.approx(0.0)


def test_a_leak_of_each_call_as_users_reported_it_is_above_the_bound() -> None:
    """90 kB for each of 20 calls in a second, with steps of 4 MiB as allocators take memory."""
    samples = [(t / 2, 4 * MIB * (t * 10 * 90_000 // (4 * MIB))) for t in range(240)]
    assert fit_growth(samples) == pytest.approx(103, abs=3)
    assert fit_growth(samples) > MOST_GROWTH


def test_the_texts_are_distinct() -> None:
    requests = [items for seed in (0, 1) for items, _ in zip(make_items(seed), range(500), strict=False)]
    assert len({item for items in requests for item in items}) == 8000


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_memory_does_not_grow_and_no_score_is_lost_or_wrong(tmp_path: Path) -> None:
    with serve([make_config(tmp_path, LIMITS)]) as (service,):
        soak = run_soak(service, SECONDS)
        assert not service.find_crashes()
    assert soak.asked > 0
    assert (soak.lost, soak.wrong) == (0, 0)
    assert soak.refused > 0
    assert soak.describe()["mib_per_minute"] < MOST_GROWTH
