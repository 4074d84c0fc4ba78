"""Several endpoints: where a prompt is at home, what is remembered of failures, and servers that misbehave."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client import _answers as answers
from assay_client import _protocol as p
from assay_client._endpoints import Endpoints
from assay_client._raw_answer import RawAnswer
from assay_client._retry import Done, Event, Policy, Send, Sleep, exchange
from assay_client.affinity import affinity_key, rank_endpoints
from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import (
    AssayError,
    ConnectError,
    FingerprintChanged,
    InvalidAnswer,
    InvalidInput,
    InvalidRequest,
    Overloaded,
    ServerError,
    Timeout,
    Unauthorized,
)
from assay_client.messages import Message
from assay_client.types import Item

if TYPE_CHECKING:
    from tests.client.conftest import Either, FakeClock, Loopback, ReceivedRequest, Script, Wire
    from tests.client.conftest import Reply as Answer

    Start = Callable[[Script], Loopback]

URLS = ("http://a", "http://b", "http://c")
KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)


# --- Where a prompt is at home


def test_a_key_is_the_same_in_every_version() -> None:
    """Gateways and caches hold it, so that a change would move every prompt once."""
    assert affinity_key("How do I bake bread?") == "82faa805e2ddb2c17e8d6ad7fadc5b4c"
    assert (
        affinity_key([{"role": "system", "content": "é"}, {"role": "user", "content": "p"}])
        == "c8d50e1ac1e584fdec49402bf5c14b8e"
    )


def test_forms_of_one_prompt_have_one_key() -> None:
    as_message = [{"content": "p", "role": "user"}]
    assert affinity_key("p") == affinity_key(as_message) == affinity_key([Message("user", "p")])
    assert len({affinity_key(text) for text in ("p", "P", "p ", "", "\ud800")}) == 5
    # The output of: printf '[5,6]' | b2sum -l 128
    assert affinity_key([5, 6]) == affinity_key((5, 6)) == "6f1874663bfd122145045cfe9f82a519"


@pytest.mark.parametrize("prompt", [3, [{"role": "user"}], [{"role": "user", "content": {1}}]])
def test_what_is_not_a_prompt_has_no_key(prompt: Any) -> None:
    with pytest.raises(InvalidInput):
        affinity_key(prompt)


@given(KEYS, st.permutations([f"http://host-{n}" for n in range(6)]))
def test_removing_an_endpoint_moves_only_its_own_keys(key: str, urls: list[str]) -> None:
    whole = rank_endpoints(key, urls)
    assert whole == rank_endpoints(key, sorted(urls))  # the order of the list has no effect
    for gone in urls:
        assert rank_endpoints(key, [url for url in urls if url != gone]) == [url for url in whole if url != gone]


def test_keys_are_spread_evenly_before_and_after_a_removal() -> None:
    ranked = [rank_endpoints(affinity_key(f"prompt {n}"), URLS) for n in range(3000)]
    for counts in (Counter(order[0] for order in ranked), Counter(order[1] for order in ranked if order[0] == URLS[0])):
        share = sum(counts.values()) / len(counts)
        assert all(0.8 * share < count < 1.2 * share for count in counts.values())  # 5 standard deviations or more


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 9).map(repr)), max_size=40),
    st.integers(1, 6),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_items_that_are_split_over_endpoints_come_back_once_and_in_order(
    wire: "type[Wire]", pairs: list[tuple[int, str]], chunk_size: int, count: int, random: Any
) -> None:
    items = [Item(prompt=f"prompt {n}", completion=text) for n, text in pairs]
    endpoints = Endpoints(URLS[:count])
    calls = p.build_score_calls(items, {}, chunk_size, lambda key: endpoints.find(key, 0.0))
    parts = []
    for call in calls:
        asked = json.loads(call.encode_body() or b"")
        assert len(asked["items"]) <= chunk_size
        homes = {endpoints.find(affinity_key(item["prompt"]), 0.0) for item in asked["items"]}
        assert homes <= {endpoints.find(call.key or "", 0.0)}
        parts.append(answers.Answered(call.parse(json.dumps(wire.scored(asked)).encode()), "r", "http://a"))
    random.shuffle(parts)
    assert [repr(score) for score in answers.merge_scores(parts).scores()] == [text for _, text in pairs]


def test_chunks_of_endpoints_take_turns() -> None:
    items = [("p", str(n)) for n in range(8)] + [("q", str(n)) for n in range(8)]
    home = {affinity_key("p"): "http://a", affinity_key("q"): "http://b"}
    calls = p.build_score_calls(items, {}, 2, home.__getitem__)
    assert [home[call.key or ""] for call in calls] == ["http://a", "http://b"] * 4


# --- What is remembered of failures


def refused(status: int, after_s: float | None = None) -> ServerError:
    return ServerError("no", status=status, code="c", retry_after_s=after_s)


@pytest.mark.parametrize(
    ("failure", "rests"),
    [
        (ConnectError(""), True),
        (Timeout(""), True),
        (refused(429), True),
        (refused(503), True),
        (refused(502), True),
        (refused(500), False),  # about one request
        (refused(422), False),
        (refused(401), False),
        (None, False),
    ],
)
def test_what_makes_an_endpoint_rest(failure: AssayError | None, rests: bool) -> None:
    endpoints = Endpoints(URLS)
    home = endpoints.find("k", 0.0)
    endpoints.report(home, failure, 0.0)
    assert (endpoints.find("k", 0.5) != home) is rests
    assert endpoints.find("k", 1.5) == home


def test_rests_double_to_half_a_minute_and_end_with_a_success() -> None:
    endpoints = Endpoints(URLS)
    ends = []
    for _ in range(7):
        endpoints.report("http://a", Timeout(""), 0.0)
        ends.append(next(s for s in range(1, 100) if not endpoints.is_resting("http://a", s)))
    assert ends == [1, 2, 4, 8, 16, 30, 30]
    endpoints.report("http://a", None, 0.0)
    endpoints.report("http://a", Timeout(""), 0.0)
    assert not endpoints.is_resting("http://a", 1.0)


def test_an_endpoint_rests_as_long_as_it_asks() -> None:
    endpoints = Endpoints(URLS)
    endpoints.report("http://a", refused(429, 20.0), 100.0)
    assert endpoints.is_resting("http://a", 119.0)
    assert endpoints.compute_wait_s("http://a", 115.0) == 5.0
    assert endpoints.compute_wait_s("http://a", 120.0) is None
    endpoints.report("http://a", refused(503, 3600.0), 100.0)
    assert not endpoints.is_resting("http://a", 160.0)


def test_after_its_rest_an_endpoint_gets_one_request_until_it_succeeds() -> None:
    endpoints = Endpoints(URLS)
    home = endpoints.find("k", 0.0)
    endpoints.report(home, Timeout(""), 0.0)
    assert endpoints.take("k", 2.0) == home
    assert endpoints.take("k", 2.0) != home
    endpoints.report(home, None, 2.1)
    assert [endpoints.take("k", 2.2) for _ in range(3)] == [home] * 3


def test_if_all_rest_the_first_to_end_is_used() -> None:
    endpoints = Endpoints(URLS)
    for url, after_s in zip(URLS, (30.0, 10.0, 20.0), strict=True):
        endpoints.report(url, refused(429, after_s), 0.0)
    assert endpoints.find("k", 5.0) == "http://b"


OUTCOMES = st.one_of(
    st.sampled_from([429, 500, 503]).map(lambda status: RawAnswer(status, {"retry-after": "2"}, b"")),
    st.sampled_from([ConnectError("x"), Timeout("x")]),
    st.integers(0, 10**6).map(lambda number: RawAnswer(200, {}, str(number).encode())),
    st.just(RawAnswer(422, {}, b"")),
)
STEPS = st.tuples(OUTCOMES, st.floats(0, 40), st.floats(0, 1, exclude_max=True))


@given(st.lists(STEPS, min_size=12, max_size=12), st.floats(0.1, 300), KEYS, st.sets(st.sampled_from(URLS)))
def test_a_request_is_answered_once_wherever_it_goes(
    script: list[tuple[Any, float, float]], deadline_s: float, key: str, resting: set[str]
) -> None:
    endpoints, now_s, sends = Endpoints(URLS), 50.0, list[str]()
    for url in resting:
        endpoints.report(url, Timeout(""), now_s)
    policy = Policy(timeout_s=30.0, deadline_s=deadline_s, max_retries=5)
    ends_at_s = now_s + deadline_s
    steps = exchange(bytes.decode, policy, endpoints, key=key, request_id="r", deadline_at_s=ends_at_s, now_s=now_s)
    with suppress(AssayError):
        step = next(steps)
        while not isinstance(step, Done):
            outcome, took_s, draw = script[len(sends)]
            if isinstance(step, Sleep):
                now_s += step.delay_s
                assert now_s < ends_at_s
                step = steps.send(Event(now_s, draw))
                continue
            assert isinstance(step, Send)
            assert now_s + step.timeout_s <= ends_at_s + 1e-9
            sends.append(step.endpoint)
            now_s += min(took_s, step.timeout_s)
            step = steps.send(Event(now_s, draw, outcome))
        assert (step.value, step.endpoint) == (script[len(sends) - 1][0].body.decode(), sends[-1])
        assert all(
            not isinstance(earlier, RawAnswer) or earlier.status != 200 for earlier, _, _ in script[: len(sends) - 1]
        )
    assert len(sends) <= 6
    assert not sends or sends[0] == endpoints_first(key, resting)
    assert all(
        first != second for first, second in pairwise(sends[:3])
    )  # no endpoint twice while others were not tried


def endpoints_first(key: str, resting: set[str]) -> str:
    """The endpoint that a key prefers among those that do not rest, by another way than the code's."""
    ranked = rank_endpoints(key, URLS)
    return next((url for url in ranked if url not in resting), ranked[0])


# --- Real servers that misbehave


def prompt_at(url: str, urls: list[str]) -> str:
    """A prompt that is at home at `url`."""
    return next(f"p{n}" for n in range(1000) if rank_endpoints(affinity_key(f"p{n}"), urls)[0] == url)


@pytest.fixture
def honest_script(wire: "type[Wire]", reply: "type[Answer]") -> "Script":
    return lambda asked, number: reply(wire.honest(asked.path, asked.body))


def test_items_of_a_prompt_go_to_one_endpoint_and_come_back_in_order(
    either: "Either", loopback: "Start", honest_script: "Script"
) -> None:
    servers = [loopback(honest_script) for _ in range(3)]
    items = [(f"prompt {n % 30}", str(n)) for n in range(120)]
    urls = [f"{server.url}/" for server in servers]
    result = either.score(items, url=urls, chunk_size=4)
    assert result.scores() == [float(n) for n in range(120)]
    seen = [{item["prompt"] for asked in server.asked for item in asked.body["items"]} for server in servers]
    assert sorted(map(len, seen)) != [0, 0, 30]
    assert sum(map(len, seen)) == 30  # no prompt at two endpoints
    for asked in (asked for server in servers for asked in server.asked):
        assert asked.headers["x-assay-affinity"] == affinity_key(asked.body["items"][0]["prompt"])


def test_methods_send_the_key_of_their_prompt(either: "Either", loopback: "Start", honest_script: "Script") -> None:
    server = loopback(honest_script)
    either.call("rank", "p", ["1", "2"], options={"url": server.url})
    either.call("compare", "p", "1", "2", options={"url": server.url})
    either.call(
        "render",
        [{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "1"}]}],
        options={"url": server.url},
    )
    either.call("info", options={"url": server.url})
    assert [asked.headers.get("x-assay-affinity") for asked in server.asked] == [affinity_key("p")] * 3 + [None]


def misbehave(kind: str, wire: "type[Wire]", reply: "type[Answer]") -> "Script":
    def script(asked: "ReceivedRequest", number: int) -> "Answer":
        honest = wire.honest(asked.path, asked.body)
        if kind.isdecimal():
            location = {"Location": "https://login.test"} if kind.startswith("3") else {}
            return reply(b"<html>", int(kind), {"X-Request-ID": None, **location})
        return {
            "slow": reply(honest, delay_s=1.0),
            "cut": reply(honest, cut_at=40),
            "full": reply(wire.refusal("overloaded", retryable=True), 429, {"Retry-After": "30"}),
            "a page": reply(b"<html>", 200, {"X-Request-ID": None}),
            "a page that repeats the id": reply(b"<html>"),
            "another id": reply(honest, 200, {"X-Request-ID": "other"}),
        }[kind]

    return script


FOREIGN = ("a page", "a page that repeats the id", "another id", "301", "302", "303", "307", "308")


@pytest.mark.parametrize("kind", ["slow", "cut", "full", "500", "502", "503", "504", *FOREIGN])
def test_a_failing_endpoint_is_replaced_at_once(
    either: "Either",
    loopback: "Start",
    wire: "type[Wire]",
    reply: "type[Answer]",
    honest_script: "Script",
    clock: "FakeClock",
    kind: str,
) -> None:
    bad, good = loopback(misbehave(kind, wire, reply)), loopback(honest_script)
    urls = [bad.url, good.url]
    items = [(prompt_at(url, urls), str(n)) for n, url in enumerate(urls * 5)]
    result = either.score(items, url=urls, clock=clock, timeout_s=0.3, chunk_size=2)
    assert result.scores() == [float(n) for n in range(10)]
    assert clock.slept == []
    assert bad.asked
    ids = {asked.request_id for asked in bad.asked}
    assert ids <= {asked.request_id for asked in good.asked}  # one id for all tries of a request


@pytest.mark.parametrize("kind", FOREIGN)
def test_where_no_endpoint_is_the_service_each_is_asked_once(
    either: "Either", loopback: "Start", wire: "type[Wire]", reply: "type[Answer]", clock: "FakeClock", kind: str
) -> None:
    servers = [loopback(misbehave(kind, wire, reply)) for _ in range(3)]
    with pytest.raises(ServerError if kind.startswith("3") else InvalidAnswer) as raised:
        either.score([("p", "1")], url=[server.url for server in servers], clock=clock)
    assert [len(server.asked) for server in servers] == [1, 1, 1]
    assert clock.slept == []
    assert raised.value.request_id == servers[0].asked[0].request_id
    assert raised.value.__notes__ == ["after 3 tries at 3 endpoints"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_page_at_one_endpoint_does_not_end_the_wait_for_another(
    either: "Either", loopback: "Start", wire: "type[Wire]", reply: "type[Answer]", clock: "FakeClock", kind: str
) -> None:
    def restarting(asked: "ReceivedRequest", number: int) -> "Answer":
        return reply(b"", 503) if number < 2 else reply(wire.honest(asked.path, asked.body))

    bad, restarts = loopback(misbehave(kind, wire, reply)), loopback(restarting)
    urls = [bad.url, restarts.url]
    items = [(prompt_at(url, urls), "1") for url in urls]
    assert either.score(items, url=urls, clock=clock, max_retries=6).scores() == [1.0, 1.0]


def test_an_endpoint_that_is_down_is_left_alone_and_then_gets_its_prompts_back(
    loopback: "Start", honest_script: "Script", wire: "type[Wire]", reply: "type[Answer]", clock: "FakeClock"
) -> None:
    down = True

    def script(asked: "ReceivedRequest", number: int) -> "Answer":
        return reply(b"", 503) if down else reply(wire.honest(asked.path, asked.body))

    bad, good = loopback(script), loopback(honest_script)
    prompt = prompt_at(bad.url, [bad.url, good.url])
    with RewardClient([bad.url, good.url], clock=clock) as client:
        for n in range(5):
            assert client.score([(prompt, str(n))]).scores() == [float(n)]
        assert (len(bad.asked), len(good.asked)) == (1, 5)
        clock.now += 1.5
        assert client.score([(prompt, "5")]).scores() == [5.0]
        assert (len(bad.asked), len(good.asked)) == (2, 6)
        down = False
        clock.now += 2.5
        for n in range(3):
            assert client.score([(prompt, str(n))]).scores() == [float(n)]
        assert (len(bad.asked), len(good.asked)) == (5, 6)


def test_a_port_where_nobody_listens_costs_no_wait(
    either: "Either", loopback: "Start", honest_script: "Script", clock: "FakeClock"
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    server = loopback(honest_script)
    items = [(f"prompt {n}", str(n)) for n in range(20)]
    assert either.score(items, url=[nobody, server.url], clock=clock).scores() == [float(n) for n in range(20)]
    assert either.call("ready", options={"url": [nobody, server.url]}) is True
    assert clock.slept == []


@pytest.mark.parametrize(
    ("code", "error"), [((422, "invalid_request"), InvalidRequest), ((401, "unauthorized"), Unauthorized)]
)
def test_a_refusal_is_not_asked_for_elsewhere(
    either: "Either",
    loopback: "Start",
    reply: "type[Answer]",
    honest_script: "Script",
    code: tuple[int, str],
    error: type[ServerError],
) -> None:
    body = {"error": {"code": code[1], "message": "no.", "param": None, "request_id": "x", "retryable": False}}
    refusing = loopback(lambda asked, number: reply(body, code[0]))
    other = loopback(honest_script)
    urls = [refusing.url, other.url]
    with pytest.raises(error):
        either.score([(prompt_at(refusing.url, urls), "1")], url=urls)
    assert (len(refusing.asked), len(other.asked)) == (1, 0)


def test_where_all_endpoints_fail_the_last_error_is_raised_after_the_schedule(
    either: "Either", loopback: "Start", wire: "type[Wire]", reply: "type[Answer]", clock: "FakeClock"
) -> None:
    servers = [loopback(misbehave("full", wire, reply)) for _ in range(2)]
    urls = [server.url for server in servers]
    with pytest.raises(Overloaded) as raised:
        # Until the deadline, because a full queue says when to come back.
        either.score([("p", "1")], url=urls, clock=clock, max_retries=1, deadline_s=60)
    assert raised.value.retry_after_s == 30.0
    assert raised.value.__notes__ == ["after 4 tries at 2 endpoints"]
    assert [len(server.asked) for server in servers] == [2, 2]
    assert len(clock.slept) == 2
    assert clock.slept[0] >= 30  # both asked for that time


def test_endpoints_with_different_models_are_an_error(
    either: "Either", loopback: "Start", wire: "type[Wire]", reply: "type[Answer]", honest_script: "Script"
) -> None:
    other = loopback(lambda asked, number: reply(wire.scored(asked.body, "f2")))
    urls = [loopback(honest_script).url, other.url]
    with pytest.raises(
        FingerprintChanged, match=r"two endpoints serve different models: .* \(request \w+\)$"
    ) as raised:
        either.score([(prompt_at(url, urls), "1") for url in urls], url=urls)
    assert set(raised.value.endpoints or ()) == set(urls)
    assert {raised.value.first, raised.value.second} == {"f1", "f2"}


def test_a_replacement_with_another_model_is_an_error(
    either: "Either", loopback: "Start", wire: "type[Wire]", reply: "type[Answer]"
) -> None:
    def dying(asked: "ReceivedRequest", number: int) -> "Answer":
        return reply(wire.scored(asked.body)) if number == 0 else reply(b"", 503)

    first, second = loopback(dying), loopback(lambda asked, number: reply(wire.scored(asked.body, "f2")))
    urls = [first.url, second.url]
    prompt = prompt_at(first.url, urls)
    with pytest.raises(FingerprintChanged):
        either.score([(prompt, "1"), (prompt, "2")], url=urls, chunk_size=1, max_concurrency=1)


def test_a_client_with_several_endpoints_is_copied_whole(loopback: "Start", honest_script: "Script") -> None:
    import pickle  # noqa: PLC0415

    urls = tuple(loopback(honest_script).url for _ in range(2))
    again = pickle.loads(pickle.dumps(AsyncRewardClient(urls)))
    assert (again.endpoints, again.base_url) == (urls, urls[0])

    async def ask() -> Any:
        async with again:
            return (await again.score([("p", "1")])).scores()

    assert asyncio.run(ask()) == [1.0]


@pytest.mark.parametrize("urls", [[], ["http://a", "http://a/"], ["http://a", "b"], ["http://a", None], None])
def test_addresses_are_checked(urls: Any) -> None:
    with pytest.raises(InvalidInput):
        RewardClient(urls)
