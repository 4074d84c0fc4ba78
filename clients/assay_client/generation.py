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
from assay_client.errors import GenerationFailed
from assay_client.messages import Prompt, encode_prompt
from assay_client.types import FinishReason

REFUSES_N = frozenset({400, 422})  # statuses of servers that know only n = 1
AT_ONCE = 8  # the most requests in flight where each brings one completion
EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated completion; `text` is None if there is nothing to score, and `reason` says why.

    `finish_reason` is "stop", "length", or None where the generator gives none.
    """

    text: str | None
    finish_reason: FinishReason | None = None
    reason: str | None = None


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
    """

    base_url: str
    model: str
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    options: Mapping[str, object] = field(default_factory=dict)

    def generate(self, prompt: Prompt, n: int) -> list[Generation]:
        """Return `n` completions of a prompt, text or messages.

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

            done = read_several(ask(0, n), redaction)[:n] if n > 1 else []
            rest = [pool.submit(ask, k, 1) for k in range(len(done), n)]
            try:
                return done + [read_one(answer.result(), redaction) for answer in rest]
            except BaseException:  # leaving the block waits for the pool, so nothing more may be sent
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    async def generate_async(self, prompt: Prompt, n: int) -> list[Generation]:
        """Return `n` completions of a prompt; see `generate`."""
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

            done = read_several(await ask(0, n), redaction)[:n] if n > 1 else []
            try:
                async with asyncio.TaskGroup() as group:
                    rest = [group.create_task(ask(k, 1)) for k in range(len(done), n)]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # callers catch errors of the client, not groups of them
            return done + [read_one(answer.result(), redaction) for answer in rest]

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


def read_several(response: httpx.Response, redaction: Redaction) -> list[Generation]:
    """Return the completions of an answer; none if the server refuses to give several.

    Raises:
        GenerationFailed: the server refused the request for another reason, or the answer has another form.
    """
    return [] if response.status_code in REFUSES_N else _read_choices(response, redaction)


def read_one(response: httpx.Response, redaction: Redaction) -> Generation:
    """Return the first completion of an answer; the errors are those of `read_several`."""
    choices = _read_choices(response, redaction)
    if not choices:
        raise GenerationFailed("the answer has no choice", status=response.status_code)
    return choices[0]


def _read_choices(response: httpx.Response, redaction: Redaction) -> list[Generation]:
    if not response.is_success:
        text = redaction.redact(response.text)[:EXCERPT_CHARS].strip()
        raise GenerationFailed(f"{response.request.url}: {text or 'no body'}", status=response.status_code)
    try:
        choices = response.json()["choices"]
        read = [read_choice(choice["message"].get("content"), choice.get("finish_reason")) for choice in choices]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{response.request.url}: the answer has not the form of OpenAI's chat completions: {error!r}"
        raise GenerationFailed(redaction.redact(why), status=response.status_code) from error
    return [one if one.reason is None else replace(one, reason=redaction.redact(one.reason)) for one in read]


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
