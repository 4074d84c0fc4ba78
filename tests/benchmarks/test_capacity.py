"""The simulation of replicas against queueing theory, the rules of Kubernetes, and what must never be lost."""

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import simpy
from benchmarks.capacity.clients import Clients, Outcome, Tally
from benchmarks.capacity.fleet import Fleet
from benchmarks.capacity.network import Direct, Gateway
from benchmarks.capacity.plan import Demand, count_replicas
from benchmarks.capacity.replica import Replica, ReplicaSettings, make_entry
from benchmarks.capacity.report import compute_cost, find_recovery_s, sum_paid_s
from benchmarks.capacity.routing import Router, Routing
from benchmarks.capacity.scaling import ScalingRule, compute_wanted, limit_change
from benchmarks.capacity.scenario import Scenario, compute_group_s, run
from benchmarks.capacity.speed import Speed, Work, fit_speed
from benchmarks.capacity.traffic import Ask, Part, Shape, draw_groups

from assay_client._endpoints import Endpoints
from assay_client._retry import Policy
from assay_service.engine.admission import QueueLimits
from assay_service.engine.cache import count_bytes

SPEED = Speed(pass_s=0.02, token_s=1 / 2500, request_s=0.001, item_s=0.0005)
PATIENT = Policy(timeout_s=1e6, deadline_s=1e6, max_retries=5)
URL = "http://one"


def serve_one_by_one(per_s: float, draw_tokens: Callable[[random.Random], int], requests: int) -> list[float]:
    """Seconds of each request at one replica that computes 1,000 tokens a second, one request after the other."""
    env, draw = simpy.Environment(), random.Random(1)
    settings = ReplicaSettings(Speed(0.0, 0.001), QueueLimits(), max_batch_tokens=1, cache_bytes=0)
    clients = Clients(env, Direct(env, {URL: Replica(env, URL, settings)}), draw, PATIENT)
    asks = (Ask("", 0, (Part(draw.randbytes(16), draw_tokens(draw), 1),)) for _ in itertools.count())
    gaps = (draw.expovariate(per_s) for _ in range(requests))
    env.run(env.process(clients.run_open(gaps, asks, Endpoints([URL]))))
    env.run(env.now + 10_000)
    assert clients.tally.count("done") == requests
    return [one.seconds for one in clients.tally.outcomes]


def test_waits_are_those_of_an_m_d_1_queue() -> None:
    """Pollaczek and Khinchine: the mean wait is load / (2 (1 - load)) service times."""
    seconds = serve_one_by_one(0.6, lambda draw: 1000, 5000)
    assert statistics.fmean(seconds) - 1.0 == pytest.approx(0.6 / (2 * 0.4), rel=0.05)
    assert min(seconds) == pytest.approx(1.0)


def test_waits_are_those_of_an_m_m_1_queue() -> None:
    """The time in the system is exponential with the mean 1 / (service rate - arrival rate)."""
    seconds = serve_one_by_one(0.5, lambda draw: max(1, round(draw.expovariate(1 / 1000))), 5000)
    assert statistics.fmean(seconds) == pytest.approx(2.0, rel=0.07)
    assert sum(one > 2 * math.log(10) for one in seconds) / len(seconds) == pytest.approx(0.1, abs=0.02)


def check_conservation(tally: Tally) -> None:
    assert tally.offered == len(tally.outcomes) == sum(tally.count(end) for end in ("done", "refused", "lost"))


def ask_a_fleet(
    replicas: int, burst: int, policy: Policy, lose_at_s: float | None = None, shape: Shape | None = None
) -> Tally:
    """Two zones, and one burst of clients that all begin at once."""
    env, draw = simpy.Environment(), random.Random(0)
    fleet = Fleet(env, ReplicaSettings(SPEED), Routing(), 2, draw)
    for _ in range(replicas):
        fleet.add()
    clients = Clients(env, Gateway(env, fleet.router), draw, policy)
    groups = draw_groups(draw, shape or Shape(completions=8))
    asks = [ask for group in itertools.islice(groups, burst) for ask in group]
    running = env.process(clients.ask_together(asks, lambda: Endpoints([URL]), len(asks)))
    if lose_at_s is not None:
        env.run(lose_at_s)
        env.process(fleet.lose_zone(0))
    env.run(running)
    return clients.tally


def test_every_request_ends_once_also_beyond_the_queue() -> None:
    tally = ask_a_fleet(2, 300, Policy(timeout_s=4.0, deadline_s=8.0, max_retries=5))
    check_conservation(tally)
    assert tally.offered == 300
    assert tally.count("done") > 30
    assert tally.count("refused") > 30


def test_retries_finish_what_a_full_queue_has_refused() -> None:
    tally = ask_a_fleet(2, 300, Policy(timeout_s=30.0, deadline_s=300.0, max_retries=5))
    check_conservation(tally)
    assert tally.count("done") == 300
    assert max(one.tries for one in tally.outcomes) > 1


@pytest.mark.parametrize(("retries", "lost"), [(5, False), (0, True)])
def test_a_lost_zone_loses_no_work_where_clients_try_again(retries: int, lost: bool) -> None:
    """Without retries a request that meets two lost replicas is lost, so the first case could fail."""
    tally = ask_a_fleet(8, 100, Policy(timeout_s=30.0, deadline_s=300.0, max_retries=retries), lose_at_s=0.2)
    check_conservation(tally)
    assert (tally.count("lost") > 0) is lost
    if not lost:
        assert tally.count("done") == tally.offered == 100


def test_the_same_seed_gives_the_same_outcomes() -> None:
    scenario = Scenario(SPEED, replicas=4, load=0.8, seconds=20.0, seed=7, trainers=1, every_s=10.0)
    first, second = run(scenario), run(scenario)
    assert first.tally.outcomes == second.tally.outcomes
    check_conservation(first.tally)
    assert first.tally.count("done") > 50
    assert run(Scenario(SPEED, replicas=4, load=0.8, seconds=20.0, seed=8)).tally.outcomes != first.tally.outcomes


def test_load_is_the_share_of_time_in_which_replicas_work() -> None:
    """Bursts fill passes; what is not full and not shared costs more, so the share is at least the load."""
    shape = Shape(completions=16)
    scenario = Scenario(SPEED, 8, 0.6, 60.0, ppo_share=0.0, best_of_n=shape, routing=Routing("random"))
    result = run(scenario)
    busy = sum(one.busy_s for one in result.counters) / (8 * 60.0)
    assert 0.57 < busy < 0.75
    assert compute_group_s(SPEED, shape, 4096) == pytest.approx(0.6 * 8 * 60 / result.tally.offered, rel=0.1)


def test_affinity_finds_what_is_cached_and_shares_prompts() -> None:
    """Of 4 replicas, a random one has what was asked before in a quarter of the cases."""
    results = {
        policy: run(
            Scenario(
                SPEED, 4, 0.5, 120.0, ppo_share=0.5, every_s=10.0, trainers=1, routing=Routing(policy),
                best_of_n=Shape(completions=16, repeated=0.4), ppo=Shape(completions=16, requests=4),
            )
        )
        for policy in ("affinity", "random")
    }  # fmt: skip
    hits = {name: sum(one.hits for one in found.counters) for name, found in results.items()}
    saved = {
        name: 1
        - sum(one.computed_tokens for one in found.counters) / sum(one.unshared_tokens for one in found.counters)
        for name, found in results.items()
    }
    assert 2.5 < hits["affinity"] / hits["random"] < 4.5
    assert saved["affinity"] > saved["random"] + 0.03


def build_router(routing: Routing, replicas: int) -> tuple[Router, list[Replica]]:
    env = simpy.Environment()
    known = [Replica(env, f"replica-{number}", ReplicaSettings(SPEED)) for number in range(replicas)]
    router = Router(routing, random.Random(0))
    for replica in known:
        router.add(replica)
    return router, known


def test_a_removed_replica_moves_only_its_own_prompts() -> None:
    router, known = build_router(Routing(), 10)
    keys = [f"prompt {number}" for number in range(2000)]
    before = {key: router.choose(key) for key in keys}
    shares = Counter(replica.name for replica in before.values() if replica)
    assert min(shares.values()) > 120
    assert max(shares.values()) < 320
    router.remove(known[3])
    moved = [key for key in keys if router.choose(key) is not before[key]]
    assert moved == [key for key in keys if before[key] is known[3]]
    assert known[3] not in {router.choose(key) for key in moved}


def test_a_bound_sends_a_popular_prompt_to_other_replicas() -> None:
    router, known = build_router(Routing(bound=1.25), 10)
    counts: Counter[str] = Counter()
    for _ in range(100):
        replica = router.choose("popular")
        assert replica
        router.count(replica, 1)
        counts[replica.name] += 1
    assert max(counts.values()) == 13  # 1.25 times the mean of 10, rounded up
    assert router.choose("popular", known) is None


def test_bounds_that_no_router_can_keep_are_refused() -> None:
    with pytest.raises(ValueError, match="above 1, not 1"):
        Routing(bound=1.0)


RULE = ScalingRule(least=2, most=100, queue_tokens=5000, queue_seconds=0.5)


@pytest.mark.parametrize(
    ("replicas", "waiting", "wait_s", "wanted"),
    [
        (10, 100_000, 0.1, 20),  # ceil(10 x 10,000 / 5,000)
        (10, 0, 1.5, 30),
        (10, 52_000, 0.5, 10),  # 4 % above the target is within the tolerance
        (10, 5_000, 0.05, 2),
        (80, 1_000_000, 3.0, 100),
    ],
)
def test_the_wanted_replicas_are_those_of_kubernetes(replicas: int, waiting: float, wait_s: float, wanted: int) -> None:
    assert compute_wanted(RULE, replicas, waiting, wait_s) == wanted


@pytest.mark.parametrize(
    ("replicas", "wanted", "size"),
    [(10, [20], 15), (2, [20], 4), (10, [12], 12), (10, [9, 2], 9), (10, [2, 2], 8), (10, [30, 10], 10)],
)
def test_changes_have_the_limits_of_the_chart(replicas: int, wanted: list[int], size: int) -> None:
    assert limit_change(RULE, replicas, wanted) == size


def test_replicas_that_start_late_are_paid_and_help_later() -> None:
    def serve(start_s: float) -> tuple[float, list[tuple[float, int]]]:
        rule = ScalingRule(least=4, most=40, queue_tokens=5000, start_s=start_s)
        scenario = Scenario(SPEED, 4, 0.6, 90.0, ppo_share=0.0, step_at_s=20.0, step=2.5, scaling=rule)
        result = run(scenario)
        check_conservation(result.tally)
        return statistics.fmean(one.seconds for one in result.tally.select_done(20.0)), result.sizes

    (fast_s, fast), (slow_s, slow) = serve(5.0), serve(40.0)
    assert fast_s < slow_s
    assert max(size for _, size in fast) >= 7
    assert max(size for at_s, size in slow if at_s < 60.0) > 4  # paid from the decision on


def test_a_speed_is_found_from_what_it_gives() -> None:
    speed = Speed(0.01, 0.0004, 0.002, 0.001)
    periods = [(100.0, 3000.0, 90.0, 100.0), (20.0, 50_000.0, 50.0, 800.0), (40.0, 40_000.0, 640.0, 640.0)]
    measured = [
        Work(
            passes * 0.01 + tokens * 0.0004 + requests * 0.002 + items * 0.001, passes * 0.01 + tokens * 0.0004, *period
        )
        for period in periods
        for passes, tokens, requests, items in [period]
    ]
    found = fit_speed(measured)
    for name in ("pass_s", "token_s", "request_s", "item_s"):
        assert getattr(found, name) == pytest.approx(getattr(speed, name), rel=1e-6)
    with pytest.raises(ValueError, match="at least two periods"):
        fit_speed(measured[:1])


@pytest.mark.parametrize("items", [1, 4, 16])
def test_a_part_takes_as_much_cache_as_its_items(items: int) -> None:
    assert count_bytes((make_entry(items),)) == pytest.approx(items * count_bytes(((0.0,),)), abs=18)


def test_groups_have_the_shape_that_is_asked_for() -> None:
    groups: Iterator[list[Ask]] = draw_groups(random.Random(0), Shape(completions=8, requests=2, repeated=0.3, hot=0.2))
    drawn = list(itertools.islice(groups, 4000))
    assert {(len(group), group[0].items, len({ask.key for ask in group})) for group in drawn} == {(2, 4, 1)}
    hot = [group for group in drawn if group[0].key == "hot"]
    assert len(hot) / 4000 == pytest.approx(0.2, abs=0.03)
    assert len({group[0].parts for group in drawn}) / 4000 == pytest.approx(0.7, abs=0.03)
    with pytest.raises(ValueError, match="7 completions cannot be divided into 2"):
        next(draw_groups(random.Random(0), Shape(completions=7, requests=2)))


def test_the_plan_is_that_of_a_hand_calculation() -> None:
    """2,000 items a second of 60 tokens, and 160 prompt tokens for 16: 70 tokens each, half of them cached."""
    demand = Demand(items_per_s=2000, item_tokens=60, prompt_tokens=160, completions=16, hits=0.5)
    assert demand.tokens_per_s == 70_000
    assert count_replicas(demand, 2500, 0.7) == 40
    assert count_replicas(demand, 2500, 0.7, zones=3) == 60  # two zones of 20 are left
    with pytest.raises(ValueError, match="at most 1"):
        count_replicas(demand, 2500, 1.1)


def test_a_million_scores_cost_what_their_time_costs() -> None:
    """100 replicas for 36 s are one hour of one replica."""
    assert compute_cost(0.8, 3600, 20_000) == pytest.approx(40.0)
    assert math.isnan(compute_cost(0.8, 3600, 0))
    assert sum_paid_s([(0.0, 10), (20.0, 5), (60.0, 8)], 10.0, 40.0) == 10 * 10 + 20 * 5


def test_recovery_is_the_end_of_the_last_slow_step() -> None:
    def make(begun_s: float, seconds: float) -> Outcome:
        return Outcome(begun_s, begun_s + seconds, 1, 1, "done")

    outcomes = [make(float(at_s), 5.0 if 12 <= at_s < 20 else 0.5) for at_s in range(40)]
    assert find_recovery_s(outcomes, 10.0, 1.0, 5.0, 40.0) == 10.0
    assert find_recovery_s(outcomes, 10.0, 6.0, 5.0, 40.0) == 0.0
    assert find_recovery_s([*outcomes, make(39.0, 9.0)], 10.0, 1.0, 5.0, 40.0) == math.inf
