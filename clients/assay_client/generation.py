"""Generate several completions of a prompt at a server with OpenAI's interface, such as vLLM, SGLang or Ollama.

Requests carry `n`. Where a server refuses it or gives fewer completions, the rest is asked for one by one.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import httpx

from assay_client._base_client import convert_error
from assay_client._redaction import Redaction
from assay_client.errors import AssayError, GenerationFailed, InvalidInput
from assay_client.messages import Prompt, encode_prompt
from assay_client.types import FinishReason

# `stream` gives an answer of another form. The others are fields of the endpoint, or an argument of each call.
RESERVED = frozenset({"model", "messages", "n", "stream", "temperature", "seed", "max_tokens"})
REFUSES_N = frozenset({400, 422})  # statuses of servers that know only n = 1
AT_ONCE = 8  # the most requests in flight where each brings one completion
EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated completion; `text` is None if there is nothing to score, and `reason` says why.

    `finish_reason` is "stop", "length", or None where the generator gives none. `error` is the error of the request for
    this completion alone, if that failed.
    """

    text: str | None
    finish_reason: FinishReason | None = None
    reason: str | None = None
    error: AssayError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server with OpenAI's `/chat/completions`, and how to sample from it.

    Attributes:
        base_url: the address, up to and with `/v1`.
        model: the name of the model at that server.
        temperature: the sampling temperature; at 0 all completions are equal.
        seed: the seed of the first completion; completions asked for one by one have the seeds that follow. Servers
            that ignore seeds give other completions each time.
        max_tokens: the most tokens of a completion; the server's default if None.
        api_key: the key that is sent as a bearer token.
        timeout_s: the seconds that one request may take.
        options: further fields of the request, such as `top_p` or `stop`.

    Raises:
        InvalidInput: `options` has a field of `RESERVED`.
    """

    base_url: str
    model: str
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(RESERVED & self.options.keys()):
            raise InvalidInput(f"`options` must not have `{taken[0]}`, which the endpoint or the call decides")

    def generate(self, prompt: Prompt, n: int) -> list[Generation]:
        """Return `n` completions of a prompt, text or messages.

        Where completions are asked for one by one, a request that fails costs its own completion only: that has no text
        and an `error`. The error is raised if no other completion came.

        Raises:
            TransportError: the server did not answer.
            GenerationFailed: the server refused a request, or its answer has another form.
        """
        redaction = Redaction.of(self.api_key)
        with httpx.Client(**self._build_settings()) as http, ThreadPoolExecutor(AT_ONCE) as pool:

            def ask(first: int, count: int) -> httpx.Response:
                request = self._build_request(http, prompt, first, count)
                try:
                    return http.send(request)
                except httpx.RequestError as error:
                    failure = convert_error(error, request, redaction)
                    raise failure from failure.__cause__

            def ask_one(k: int) -> Generation:
                try:
                    return read_one(ask(k, 1), redaction)
                except AssayError as error:
                    return Generation(None, None, str(error), error)

            done = read_several(ask(0, n), n, redaction) if n > 1 else []
            rest = [pool.submit(ask_one, k) for k in range(len(done), n)]
            try:
                return check_any(done + [answer.result() for answer in rest])
            except BaseException:  # leaving the block waits for the pool, so nothing more may be sent
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    async def generate_async(self, prompt: Prompt, n: int) -> list[Generation]:
        """Return `n` completions of a prompt; see `generate`.

        Raises:
            TransportError: the server did not answer.
            GenerationFailed: the server refused a request, or its answer has another form.
        """
        gate, redaction = asyncio.Semaphore(AT_ONCE), Redaction.of(self.api_key)
        async with httpx.AsyncClient(**self._build_settings()) as http:

            async def ask(first: int, count: int) -> httpx.Response:
                request = self._build_request(http, prompt, first, count)
                try:
                    async with gate:
                        return await http.send(request)
                except httpx.RequestError as error:
                    failure = convert_error(error, request, redaction)
                    raise failure from failure.__cause__

            async def ask_one(k: int) -> Generation:
                try:
                    return read_one(await ask(k, 1), redaction)
                except AssayError as error:
                    return Generation(None, None, str(error), error)

            done = read_several(await ask(0, n), n, redaction) if n > 1 else []
            return check_any(done + await asyncio.gather(*(ask_one(k) for k in range(len(done), n))))

    def _build_settings(self) -> dict[str, Any]:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {"base_url": self.base_url, "timeout": self.timeout_s, "headers": headers}

    def _build_request(
        self, http: httpx.Client | httpx.AsyncClient, prompt: Prompt, first: int, n: int
    ) -> httpx.Request:
        """Return the request for completions `first` … `first + n - 1`."""
        wire = encode_prompt(prompt)
        messages = [{"role": "user", "content": wire}] if isinstance(wire, str) else wire
        # Another seed for each request, because one seed would give the same completion again.
        seed = None if self.seed is None else self.seed + first
        given = {"n": n if n > 1 else None, "max_tokens": self.max_tokens, "seed": seed}
        body = {"model": self.model, "messages": messages, "temperature": self.temperature}
        body |= {name: value for name, value in given.items() if value is not None}
        return http.build_request("POST", "chat/completions", json={**body, **self.options})


def check_any(completions: list[Generation]) -> list[Generation]:
    """Return completions as they are, if one of them has no error.

    Raises:
        AssayError: all of them have an error; the first one is raised.
    """
    errors = [one.error for one in completions if one.error is not None]
    if errors and len(errors) == len(completions):
        raise errors[0]
    return completions


def read_several(response: httpx.Response, n: int, redaction: Redaction) -> list[Generation]:
    """Return the completions of an answer to a request for `n`; none if the server refuses to give several.

    Raises:
        GenerationFailed: the server refused the request for another reason, or the answer has another form.
    """
    return [] if response.status_code in REFUSES_N else _read_choices(response, n, redaction)


def read_one(response: httpx.Response, redaction: Redaction) -> Generation:
    """Return the completion of an answer to a request for one.

    Raises:
        GenerationFailed: the server refused the request, or the answer has no choice or another form.
    """
    choices = _read_choices(response, 1, redaction)
    if not choices:
        raise _build_error(response, "the answer has no choice", redaction)
    return choices[0]


def _read_choices(response: httpx.Response, n: int, redaction: Redaction) -> list[Generation]:
    """Return the completions of an answer in the order of their indexes, at most `n`."""
    if not response.is_success:
        raise _build_error(response, redaction.redact(response.text)[:EXCERPT_CHARS].strip() or "no body", redaction)
    try:
        choices = [(choice.get("index"), choice) for choice in response.json()["choices"]]
        made = {k: read_choice(one["message"].get("content"), one.get("finish_reason")) for k, one in choices}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"the answer has not the form of OpenAI's chat completions: {error!r}"
        raise _build_error(response, why, redaction) from error
    indexes = [index for index, _ in choices]
    expected = list(range(len(choices)))
    # A server may give its choices in any order. True and 1.0 equal 1, so that the type is compared, too.
    if len(choices) > n or any(type(index) is not int for index in indexes) or sorted(indexes) != expected:
        shown = f"{indexes}"[:EXCERPT_CHARS]
        raise _build_error(response, f"the indexes of at most {n} choices must count from 0, not be {shown}", redaction)
    read = [made[index] for index in expected]
    return [one if one.reason is None else replace(one, reason=redaction.redact(one.reason)) for one in read]


def _build_error(response: httpx.Response, why: str, redaction: Redaction) -> GenerationFailed:
    """Return an error with the address, the status and the id of the request, if the server sent one."""
    text = redaction.redact(why)
    error = GenerationFailed(f"{response.request.url}: {text}", status=response.status_code)
    request_id = response.headers.get("x-request-id")
    error.request_id = None if request_id is None else redaction.redact(request_id)
    return error


def read_choice(text: object, finish_reason: object) -> Generation:
    """Return a completion from the fields of a choice; one that was filtered or has no text cannot be scored."""
    if not isinstance(text, str) or not text:
        return Generation(None, None, f"the completion has no text; its finish reason is {finish_reason!r}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: a completion that was cut within a character
        return Generation(None, None, "the completion is not valid Unicode")
    if finish_reason not in (None, *get_args(FinishReason)):
        return Generation(None, None, f"the finish reason is {finish_reason!r}, so the text is not the completion")
    return Generation(text, cast("FinishReason | None", finish_reason))
