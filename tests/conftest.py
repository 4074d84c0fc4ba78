"""`pytest --data=DIR`: the folder that holds the published data sets, for tests that compare with published tables."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before any of these modules is imported: every call checks the shapes, dtypes and types that its signature declares.
install_import_hook(
    [
        "assay_training.algorithms",
        "assay_training.models.actor",
        "assay_training.reward_model.objectives",
        "assay_training.rl.experience",
    ],
    # An int is accepted for a float, as type checkers do (PEP 484).
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# A deadline per example measures how busy the machine is; pytest-timeout ends a test that hangs.
settings.register_profile("assay", deadline=None)
settings.load_profile("assay")


# Files of slow tests that take a minute and more, the longest first. They start first, so that all processes end at
# about the same time; pytest-xdist would run files with few tests last.
LONGEST = [
    Path(__file__).parent / name
    for name in (
        "compat/test_frameworks.py",
        "faults/test_soak.py",
        "faults/test_openapi.py",
        "training/test_ppo_gold.py",
        "training/test_together.py",
        "client/test_client_memory.py",
        "compat/test_trl.py",
        "faults/test_replicas.py",
    )
]
assert all(path.is_file() for path in LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, help="folder of the published data sets")


@pytest.fixture(scope="session")
def published(request: pytest.FixtureRequest) -> Path:
    """The published judgments and ballots of [CRS]."""
    data = request.config.getoption("--data")
    if data is None or not (data / "crs_thesis").is_dir():
        pytest.skip("the published data of [CRS] are not there (--data=DIR with crs_thesis in it)")
    return Path(data / "crs_thesis")
