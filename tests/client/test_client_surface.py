"""What `assay_client` exports: names that users write, kept by this list, and nothing heavy behind them."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import assay_client

NAMES = [
    "AppTransport",
    "AssayError",
    "AsyncRewardClient",
    "BestOfN",
    "Blend",
    "BodyTooLarge",
    "ClientGone",
    "Comparison",
    "ConnectError",
    "DeadlineExceeded",
    "Endpoint",
    "Expired",
    "FingerprintChanged",
    "ForwardFailed",
    "Generation",
    "GenerationFailed",
    "Internal",
    "InvalidAnswer",
    "InvalidInput",
    "InvalidRequest",
    "Item",
    "ItemError",
    "ItemFailed",
    "ItemsFailed",
    "LengthPenalty",
    "Message",
    "ModelCard",
    "ModelNotFound",
    "NotFinite",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "Preset",
    "Provenance",
    "RankResult",
    "RankedCompletion",
    "RenderResult",
    "RenderedItem",
    "RenderedSignal",
    "RenderedStep",
    "RewardClient",
    "Score",
    "ScoreFailure",
    "ScoreResult",
    "ServerError",
    "SignalComparison",
    "SignalProvenance",
    "SignalValue",
    "StepValue",
    "Timeout",
    "TooManyItems",
    "TooManyTokens",
    "TransportError",
    "Unauthorized",
    "__version__",
    "affinity_key",
    "best_of_n",
    "best_of_n_async",
]


def test_the_public_names_are_these() -> None:
    assert assay_client.__all__ == NAMES
    assert set(NAMES) <= set(dir(assay_client))
    exported: dict[str, object] = {}
    exec("from assay_client import *", exported)
    assert set(NAMES) <= set(exported)


@pytest.mark.parametrize("name", [name for name in NAMES if name[0].isupper()])
def test_a_public_name_is_the_class_of_that_name(name: str) -> None:
    one = getattr(assay_client, name)
    assert isinstance(one, type)
    assert one.__name__ == name
    assert one.__module__.startswith("assay_client.")


def test_every_error_is_public() -> None:
    from assay_client import errors  # noqa: PLC0415

    own = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.AssayError)}
    assert own <= set(NAMES)


def test_version_is_the_distributions() -> None:
    assert assay_client.__version__ == version("assay-rewards")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'assay_client' has no attribute 'Nope'"):
        assay_client.Nope  # noqa: B018


def test_importing_the_client_is_light() -> None:
    """The command line needs no HTTP library for its help, and a trainer no torch for the client."""
    code = """
import json, sys
import assay_client
first = sorted({"httpx", "torch", "assay_service"} & sys.modules.keys())
from assay_client import *
print(json.dumps([first, sorted({"httpx", "torch", "assay_service", "numpy"} & sys.modules.keys())]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], ["httpx"]]
