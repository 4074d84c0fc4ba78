"""Define a compatible wire: another server's HTTP interface, translated to the one path that scores items.

A wire's module has request bodies (`WireBody`), handlers that turn them into items, and its answers. Everything else is
here: settings, refused items, overload, and errors in the wire's own form.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from assay_service.api.body import StrictJsonRoute
from assay_service.api.compat.error_forms import OVERLOAD, ErrorBuilder, describe_errors
from assay_service.api.refusals import Refusal, refuse
from assay_service.api.scorer import ItemScore, Scorer
from assay_service.api.scoring import ScoredItem, check_count, score_items
from assay_service.api.sources import ItemSource
from assay_service.compat_settings import Floor, WireName, WireSettings
from assay_service.errors import AssayError, ContentError
from assay_service.registry import Registry
from assay_service.scoring.blend import Blend
from assay_service.scoring.item import Truncation
from assay_service.scoring.transcript import Transcript
from assay_service.validation import NAME_PATTERN

# Names the items of a request that got the floor in place of a score, by their indices.
FLOORED_HEADER = "X-Assay-Floored-Items"


@dataclass(frozen=True, slots=True)
class Wire:
    """Another server's interface.

    Attributes:
        name: name in the configuration and in the path `/compat/NAME`.
        title: name of the server or client that speaks this wire, for the documentation.
        activation: change of a score before it is sent, in one phrase for the documentation.
        overload_status: HTTP status for a full queue, unless the configuration sets another one.
        build_error: function from a refusal and a request id to the HTTP status and the JSON body of an error.
        path_errors: functions that build the errors of single paths, by path, if the server has another form there.
        messages: messages that have another status than others of their code.
    """

    name: WireName
    title: str
    activation: str
    overload_status: Literal[429, 503]
    build_error: ErrorBuilder
    path_errors: Mapping[str, ErrorBuilder] = field(default_factory=dict, hash=False)
    messages: tuple[str, ...] = ()

    def find_errors(self, path: str) -> ErrorBuilder:
        """Return the function that builds the errors of a path, which may begin with the wire's prefix."""
        return self.path_errors.get(path.removeprefix(f"/compat/{self.name}"), self.build_error)


# The value of `WireBody.ignored` for a field that has no influence on a score, whatever its value.
ANY = object()


class WireBody(BaseModel):
    """Base of a wire's request bodies.

    Attributes:
        ignored: fields of the other server that Assay accepts without reading them. The value is `ANY`, or a tuple of
            the only values that change no score; another value is refused. Null is always accepted.
        ignores_unknown: True if clients of the wire send fields of their own, such as columns of a data set. Every
            further field is then ignored. False refuses a field that is neither read nor in `ignored`.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    ignored: ClassVar[Mapping[str, object]] = {}
    ignores_unknown: ClassVar[bool] = False

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the fields that are read, those in `ignored`, and no others unless they are ignored."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, values in cls.ignored.items():
            form = {"enum": [*values, None]} if isinstance(values, tuple) else {}
            schema.setdefault("properties", {}).setdefault(name, form)
        return {**schema, "additionalProperties": cls.ignores_unknown}

    @model_validator(mode="after")
    def _check_extra(self) -> "WireBody":
        for name, value in (self.model_extra or {}).items():
            if name not in self.ignored:
                if not self.ignores_unknown:  # a name with other characters may be a text of the user
                    shown = f"the field `{name}`" if re.fullmatch(NAME_PATTERN, name) else "a field"
                    raise ValueError(f"has {shown}, which this wire does not read; remove it: it could change scores")
                continue
            harmless = self.ignored[name]
            if isinstance(harmless, tuple) and value is not None and (type(value), value) not in map(_type, harmless):
                raise ValueError(f"`{name}` would change the score in a way that Assay does not support; remove it")
        return self


def _type(value: object) -> tuple[type, object]:
    return type(value), value  # 0 equals False in Python, but not in JSON


@dataclass(frozen=True, slots=True)
class WireScore:
    """The score of one item of a wire's request.

    Attributes:
        score: the blend's score, or the floor.
        result: logits and rendered texts; None for a refused item that got the floor.
        error: the reason why a refused item got the floor; None for the others.
    """

    score: float
    result: ItemScore | None
    error: ContentError | None = None

    @property
    def tokens(self) -> int:
        """Return the number of tokens that the first signal read; 0 for a refused item."""
        if self.result is None:
            return 0
        # Signals may have different tokenizers, and a wire has one field for the count.
        return len(next(iter(self.result.rendered.values())).sequence.ids)


class WireContext:
    """The parts of the service that a wire's handler uses.

    Args:
        request: the request.
        wire: the wire that it came by.

    A handler that builds an item for each entry calls `check_count` first: a million items take seconds to build.
    """

    def __init__(self, request: Request, wire: Wire) -> None:
        self.request = request
        self._wire = wire
        self.settings: WireSettings = request.app.state.settings.compat.get_wire(wire.name)
        # Taken once: the signals of the service may change while the request is answered.
        self._scorer: Scorer = request.app.state.scorer
        self.registry: Registry = self._scorer.registry
        # The reader of the policy's text, if one is declared.
        self.policy: Transcript | None = request.app.state.policies.get(wire.name)

    @property
    def name(self) -> WireName:
        """Return the name of the wire."""
        return self._wire.name

    @property
    def request_id(self) -> str:
        """Return the id of the request."""
        return str(self.request.state.request_id)

    def find_blend(self, model: str | None = None) -> Blend:
        """Return the blend that scores: of the model that a request names, of the wire's settings, or the default.

        Other servers call a model by its path or hub id, which cannot be a served name. So a request may also name the
        base of a signal as the configuration writes it. One signal alone must be that base without an adapter.

        Raises:
            UnknownModel: no signal or blend of that name is served.
        """
        based = [
            name
            for name, signal in self.registry.signals.items()
            if signal.provenance.model == model and signal.provenance.adapter_sha256 is None
        ]
        # A served name always wins, so that adding a signal cannot change what a request means.
        is_name = model in self.registry.signals or model in self.registry.blends
        if not is_name and len(based) == 1:
            return self.registry.blend(based[0], None)
        return self.registry.blend(model or self.settings.model, None)

    def is_absolute(self, blend: Blend) -> bool:
        """Return True if the sigmoid of the blend's score is a quality in 0..1: it is one absolute signal as it is."""
        (name, weight), *others = blend.weights.items()
        plain = weight == 1.0 and blend.standardise == "none" and blend.length_penalty is None and not others
        return plain and self.registry.signals[name].kind == "absolute"

    async def score(
        self,
        items: Sequence[ItemSource],
        blend: Blend,
        params: Sequence[str],
        truncation: Truncation = "error",
    ) -> list[WireScore]:
        """Return a score for every item; a refused item gets the floor, or refuses the whole request.

        Args:
            items: items to score; an error in place of an item counts as refused.
            blend: rule that makes one score from the logits.
            params: names of the fields that hold the items, for errors, such as "query[3]".
            truncation: policy for prompts that are too long.

        Raises:
            AssayError: an item has no score, and `on_item_error` is "fail", or the error is a failure of the service.
        """
        check_count(self.request, len(items), params[0].partition("[")[0] if params else "items")
        scored = await score_items(self.request, self._scorer, items, blend, truncation)
        scores = [self._settle(one, param) for one, param in zip(scored, params, strict=True)]
        if floored := [index for index, one in enumerate(scores) if one.result is None]:
            self.request.state.floored = floored
            self.request.app.state.metrics.floored.labels(self._wire.name).inc(len(floored))
        return scores

    def _settle(self, scored: ScoredItem | AssayError, param: str) -> WireScore:
        if isinstance(scored, ScoredItem):
            return WireScore(scored.score, scored.result)
        # Only the item's own fault may become the declared floor. A failure of the service never becomes a number.
        if isinstance(scored, ContentError) and isinstance(self.settings.on_item_error, Floor):
            return WireScore(self.settings.on_item_error.floor, None, scored)
        raise _name_item(scored, param)


def _name_item(error: AssayError, param: str) -> AssayError:
    """Return a copy of an item's error that names the field of the item; other requests may hold the same error."""
    named = copy.copy(error)
    if error.param is None:
        named.param = param
    elif not error.param.startswith(param):  # a request of one item has the fields of the item itself
        named.param = f"{param}.{error.param}"
    return named


def make_router(wire: Wire) -> APIRouter:
    """Return the router of a wire, whose routes answer every error in the wire's own form."""

    class Route(WireRoute):
        spoken = wire

    errors = describe_errors((wire.build_error, *wire.path_errors.values()), wire.messages)
    return APIRouter(route_class=Route, tags=[f"compat: {wire.title}"], responses=errors)


class WireRoute(StrictJsonRoute):
    """A route that answers every error in the form of its wire, and names floored items in a header."""

    spoken: ClassVar[Wire]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the base class, within the error handling of the wire."""
        handle = super().get_route_handler()

        async def handle_wire(request: Request) -> Response:
            request.state.wire = self.spoken
            try:
                response = await handle(request)
            except Exception as error:  # every error of a wire has the wire's own form, also one that nobody expected
                return build_error_response(request, self.spoken, refuse(request, error))
            if hasattr(request.state, "floored"):
                response.headers[FLOORED_HEADER] = ",".join(map(str, request.state.floored))
            return response

        return handle_wire


def build_error_response(request: Request, wire: Wire, refusal: Refusal) -> JSONResponse:
    """Return the answer to a refused request in the form of its wire."""
    settings: WireSettings = request.app.state.settings.compat.get_wire(wire.name)
    if refusal.code in OVERLOAD:  # before the body is built, because some wires write the status into it as well
        refusal = dataclasses.replace(refusal, status=settings.overload_status or wire.overload_status)
    status, body = wire.find_errors(request.url.path)(refusal, request.state.request_id)
    return JSONResponse(body, status_code=status, headers=refusal.headers)


async def _get_context(request: Request) -> WireContext:
    return WireContext(request, request.state.wire)


Context = Annotated[WireContext, Depends(_get_context)]
