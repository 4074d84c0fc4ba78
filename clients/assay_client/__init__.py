"""Export Assay's clients, `RewardClient` and `AsyncRewardClient`, with their arguments, results and errors.

Names are imported when they are first used, so that `assay --help` need not wait for an HTTP library.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

# For checkers of types only; at run time `__getattr__` imports each name.
if TYPE_CHECKING:
    from assay_client.affinity import affinity_key
    from assay_client.async_client import AsyncRewardClient
    from assay_client.best_of import BestOfN, best_of_n, best_of_n_async
    from assay_client.client import RewardClient
    from assay_client.errors import (
        AssayError,
        BodyTooLarge,
        ClientGone,
        ConnectError,
        DeadlineExceeded,
        Expired,
        FingerprintChanged,
        ForwardFailed,
        GenerationFailed,
        Internal,
        InvalidAnswer,
        InvalidInput,
        InvalidRequest,
        ItemFailed,
        ItemsFailed,
        ModelNotFound,
        NotFinite,
        NotReady,
        Overloaded,
        PermissionDenied,
        ServerError,
        Timeout,
        TooManyItems,
        TooManyTokens,
        TransportError,
        Unauthorized,
    )
    from assay_client.generation import Endpoint, Generation
    from assay_client.in_process import AppTransport
    from assay_client.messages import Message
    from assay_client.provenance import Blend, LengthPenalty, Preset, Provenance, SignalProvenance
    from assay_client.results import (
        Comparison,
        ModelCard,
        RankedCompletion,
        RankResult,
        RenderedItem,
        RenderedSignal,
        RenderedStep,
        RenderResult,
        SignalComparison,
    )
    from assay_client.types import (
        Item,
        ItemError,
        Score,
        ScoreFailure,
        ScoreResult,
        SignalValue,
        StepValue,
    )

    __version__: str

__all__ = [
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

# Those that import an HTTP library come last.
_MODULES = (
    "affinity",
    "errors",
    "messages",
    "types",
    "provenance",
    "results",
    "client",
    "async_client",
    "in_process",
    "generation",
    "best_of",
)


def __getattr__(name: str) -> object:
    """Return a public name, imported when it is first asked for."""
    if name == "__version__":
        return version("assay-rewards")
    if name in __all__:
        for module in _MODULES:
            value = vars(import_module(f"assay_client.{module}")).get(name)
            # Modules import from each other; only the one that defines a name exports it.
            if value is not None and value.__module__ == f"assay_client.{module}":
                globals()[name] = value  # so that this function is not called for it again
                return value
    raise AttributeError(f"module 'assay_client' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # with names that are not imported yet, so that shells complete them
