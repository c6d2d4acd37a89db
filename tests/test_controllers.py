"""Properties of the controllers that no single example can show."""
import json
import math
from collections import deque
from dataclasses import asdict

import pytest
from hypothesis import given, settings, strategies as st

from abs_lab.runs.registry import find, names
from abs_lab.core.controllers import ABS, ABSRule, GNS, MAPS, Fixed, Ramp, RandomWalk, Replayed, unit_map
from abs_lab.core.interfaces import AbsLabError, Measurement

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

signals = st.lists(st.none() | st.floats(0, 2), max_size=80)
shares = st.lists(st.integers(0, 2048).map(lambda k: k / 2048), min_size=1, max_size=200)


@st.composite
def parameters(draw):
    "Valid parameters of ABS."
    multiple = draw(st.sampled_from([1, 2, 8, 32]))
    low, high = sorted(draw(st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).filter(lambda t: abs(t[0] - t[1]) > 1e-6)))
    first, last = sorted(draw(st.tuples(st.integers(1, 300), st.integers(1, 300))))
    return dict(size_min=first * multiple, size_max=last * multiple, low=low, high=high, multiple=multiple,
                window=draw(st.integers(1, 30)), warmup=draw(st.integers(0, 40)), smoothing=draw(st.floats(0, .999)),
                map=draw(st.sampled_from(list(MAPS))), rounding=draw(st.sampled_from(["author", "exact"])),
                start=draw(st.none() | st.integers(first, last).map(lambda k: k * multiple)))


def feed(controller, signals): return [controller(Measurement(s)) for s in signals]


@given(parameters(), signals)
def test_sizes_stay_within_limits_and_multiples(kw, signals):
    controller = ABS(**kw)
    for size in [controller.size, *feed(controller, signals)]:
        assert type(size) is int
        assert controller.smallest == kw["size_min"] <= size <= kw["size_max"] == controller.largest
        assert size % kw["multiple"] == 0


@given(parameters(), st.floats(0, 2), st.floats(0, 2))
def test_a_larger_divergence_never_asks_for_a_larger_size(kw, a, b):
    rule, (a, b) = ABSRule(**{k: v for k, v in kw.items() if k != "start"}), sorted((a, b))
    assert 0 <= unit_map(a, kw["low"], kw["high"], kw["map"]) <= unit_map(b, kw["low"], kw["high"], kw["map"]) <= 1
    assert rule.target(a) >= rule.target(b)
    for level in (kw["size_min"], kw["size_max"]): assert rule.step(level, a) >= rule.step(level, b)


@given(parameters(), st.lists(st.floats(0, 2), min_size=1, max_size=40))
def test_pointwise_larger_signals_give_pointwise_smaller_or_equal_sizes(kw, low):
    high = [s * 1.5 for s in low]
    assert all(a >= b for a, b in zip(ABS(**kw).schedule(low), ABS(**kw).schedule(high)))


@given(parameters())
def test_exact_rounding_reaches_both_ends(kw):
    kw |= dict(rounding="exact", smoothing=min(kw["smoothing"], .95), window=5)
    for signal, end in ((kw["low"], kw["size_max"]), (kw["high"], kw["size_min"])):
        assert ABS(**kw).schedule([signal] * 500)[-1] == end


def settled(controller, signal): return controller.schedule([signal] * 500)[-1]


@pytest.mark.parametrize("size_max, expected", [(64, [55, 43, 32, 25, 17]), (128, [119, 92, 66, 50, 31])])
def test_settled_sizes_of_the_published_rule(size_max, expected):
    assert [settled(ABS.paper(16, size_max), d) for d in (.05, .1, .2, .3, .5)] == expected


def test_settled_sizes_of_the_published_rule_from_above():
    assert [settled(ABS(start=64), d) for d in (.05, .1, .2, .3, .5)] == [64, 52, 41, 34, 26]


def test_settled_sizes_of_the_published_ppo_rule():
    ppo = ABS(1024, 8192, low=.01, high=.1, multiple=32)
    assert [settled(ppo, d) for d in (.01, .02, .03, .05, .1)] == [7904, 5728, 4480, 2880, 1024]


def published(signals, low=.05, high=.95, smallest=16, largest=64, multiple=1):
    "The rule as the published source states it, independent of the library's arithmetic."
    size, recent, sizes = smallest, deque(maxlen=20), []
    for signal in signals:
        recent.append(signal)
        if len(recent) >= 10:
            mean = min(max(sum(recent) / len(recent), low), high)
            target = int(largest - math.log(mean / low) / math.log(high / low) * (largest - smallest))
            size = min(max(int(0.9 * size + 0.1 * target), smallest), largest) // multiple * multiple
        sizes.append(size)
    return sizes


@given(shares)
def test_the_paper_rule_traces_the_published_one(signals):
    assert ABS.paper().schedule(signals) == published(signals)
    assert ABS.paper(16, 128).schedule(signals) == published(signals, largest=128)
    ppo = ABS(1024, 8192, low=.01, high=.1, multiple=32)
    assert ppo.schedule(signals) == published(signals, .01, .1, 1024, 8192, 32)


def test_the_paper_rule_is_pinned():
    assert asdict(ABS.paper()) == dict(size_min=16, size_max=64, low=.05, high=.95, window=20, warmup=10, smoothing=.9,
                                       map="log", rounding="author", multiple=1, start=None)
    trace = ABS.paper().schedule([.5] * 12 + [.05] * 20 + [.95] * 12)
    assert trace == [16, 16, 16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 18, 19, 20, 21, 22, 23, 24, 24, 25, 26, 27, 28] + (
        [29, 30, 31, 32, 33, 35, 37, 39, 40, 40, 40, 39, 38, 37, 36, 35, 34, 33, 32, 31])


@given(parameters(), st.floats(0, 2))
def test_the_size_never_moves_during_warmup(kw, signal):
    sizes = ABS(**kw).schedule([None, signal] * 50)
    assert len(set(sizes[:max(2 * kw["warmup"] - 1, 0)])) <= 1


@given(parameters(), signals)
def test_schedule_equals_stepping_and_changes_nothing(kw, signals):
    controller = ABS(**kw)
    feed(controller, [.1, .2, .3])
    before = controller.state_dict()
    assert controller.schedule(signals) == feed(ABS(**kw), signals)
    assert controller.state_dict() == before


@given(parameters(), signals, signals)
def test_saved_and_loaded_in_the_middle_it_continues_identically(kw, first, second):
    one, two = ABS(**kw), ABS(**kw)
    feed(one, first)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.size == one.size and two.mean == one.mean
    assert feed(two, second) == feed(one, second)


def walk(seed=3, **kw):
    controller = RandomWalk(**kw)
    controller.seed(seed)
    return controller


@pytest.mark.parametrize("make", [lambda: Fixed(24), lambda: Ramp(16, 64, "exponential"), lambda: Replayed([0, 7], [16, 32]), lambda: GNS(),
                                  lambda: walk(move=.3)])
def test_the_other_controllers_save_and_load(make):
    one, two = make(), make()
    news = [Measurement(None if p == 9 else 700. * p, p / 10, p) for p in range(11)]
    for m in news[:8]: one(m)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.size == one.size
    assert [two(m) for m in news[8:]] == [one(m) for m in news[8:]]


invalid = st.sampled_from([dict(low=-1.), dict(low=2., high=1.), dict(high=math.nan), dict(size_min=0), dict(size_max=1.5),
                           dict(window=0), dict(warmup=-1), dict(smoothing=1.), dict(map="sqrt"), dict(rounding="down"),
                           dict(multiple=0), dict(size_min=True), dict(tresh=1), dict(start=10**9)])


@given(parameters(), signals, invalid)
def test_set_is_atomic(kw, signals, wrong):
    controller = ABS(**kw)
    feed(controller, signals)
    before = asdict(controller), controller.state_dict(), controller.size
    with pytest.raises(AbsLabError): controller.set(**({"window": 7, "smoothing": .5} | wrong))
    assert (asdict(controller), controller.state_dict(), controller.size) == before


@given(parameters(), parameters(), signals, signals)
def test_after_set_or_a_fork_the_new_limits_hold(kw, other, first, second):
    controller, fork = ABS(**kw), ABS(**other)
    feed(controller, first)
    fork.load_state_dict(controller.state_dict())
    controller.set(**other)
    assert asdict(controller) == asdict(fork)
    for c in (controller, fork):
        for size in [c.size, *feed(c, second)]:
            assert c.size_min <= size <= c.size_max and size % c.multiple == 0
    assert controller.state_dict() == fork.state_dict()


def test_errors_say_what_would_do():
    for make, words in [
        (lambda: ABS(low=.5, high=.1), "did you mean low=0.1, high=0.5?"),
        (lambda: ABS(size_min=100, size_max=50), "size_min must be at most size_max=50, not 100"),
        (lambda: ABS(1000, 8192, multiple=32), "nearest is 992"),
        (lambda: ABS(start=65), "nearest is 64"),
        (lambda: ABS(map="lin"), "did you mean linear"),
        (lambda: ABS().set(treshold=1), "unknown parameter of ABS"),
        (lambda: Fixed(0), "nearest is 1"),
        (lambda: Fixed(math.inf), "size must be a whole number"),
        (lambda: Replayed([5], [16]), "rise from 0"),
    ]:
        with pytest.raises(AbsLabError) as e: make()
        assert words in str(e.value)


@pytest.mark.parametrize("signal", [math.nan, math.inf, -math.inf])
def test_a_signal_that_is_no_number_is_refused_and_leaves_no_trace(signal):
    controller = ABS()
    before = controller.state_dict()
    with pytest.raises(AbsLabError): controller(Measurement(signal))
    assert controller.state_dict() == before


@given(st.integers(1, 50), st.integers(0, 50), st.sampled_from([1, 8, 32]), st.lists(st.floats(0, 1), max_size=20))
def test_ramps_rise_from_end_to_end(first, more, multiple, times):
    for shape in ("linear", "exponential"):
        ramp = Ramp(first * multiple, (first + more) * multiple, shape, multiple)
        sizes = [ramp.at(p) for p in [0., *sorted(times), 1.]]
        assert sizes == sorted(sizes) and sizes[0] == ramp.smallest and sizes[-1] == ramp.largest
        assert all(size % multiple == 0 for size in sizes)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1, max_size=40))
def test_a_recorded_schedule_is_replayed_update_for_update(runs):
    used, ends, step = [size for size, count in runs for _ in range(count)], [], 0
    for size in used: ends.append(step := step + 8 * size)
    replayed, asked = Replayed.from_record(ends, used), []
    for end in ends:
        asked.append(replayed.size)
        replayed(Measurement(None, step=end))
    assert asked == used
    assert (replayed.smallest, replayed.largest) == (min(used), max(used))


# -- gradient noise ----------------------------------------------------------------------------------------------------

@given(st.lists(st.none() | st.floats(0, 1e6) | st.integers(1, 70).map(lambda L: 128. * L), max_size=40))
def test_gns_is_the_published_rule(scales):
    size, sizes = 32, []
    for scale in scales:
        if scale is not None: size = max(16, min(int(scale) // 128, 64))
        sizes.append(size)
    assert feed(GNS(), scales) == sizes


def test_gns_is_pinned():
    assert asdict(GNS()) == dict(size_min=16, size_max=64, start=32, divisor=128)
    assert GNS().size == 32 and feed(GNS(), [None, 4095.9, 4096, 4223, 4224, 8191, 8192, 2048, 0, 1e30]) == [32, 31, 32, 32, 33, 63, 64, 16, 16, 64]


@given(st.integers(1, 90), st.integers(0, 90), st.integers(1, 99), st.integers(1, 400), st.lists(st.floats(0, 1e5), max_size=20))
def test_gns_stays_within_limits_that_may_change(first, more, start, divisor, scales):
    controller = GNS(first, first + more, start, divisor)
    for size in [controller.size, *feed(controller, scales)]: assert type(size) is int and first <= size <= first + more
    controller.set(size_min=first + more, size_max=first + 2 * more)
    assert first + more <= controller.size <= first + 2 * more


@pytest.mark.parametrize("signal", [math.nan, math.inf])
def test_gns_refuses_what_is_no_number(signal):
    controller = GNS()
    feed(controller, [5000])
    with pytest.raises(AbsLabError, match="diverged"): controller(Measurement(signal))
    assert controller.size == 39


def on_noise(rounding): return ABS(16, 64, low=1 / 8192, high=1 / 2048, rounding=rounding)


@pytest.mark.parametrize("rounding, expected", [("exact", [16, 16, 20, 29, 40, 53, 64, 64]), ("author", [16, 16, 16, 20, 31, 44, 55, 55])])
def test_settled_sizes_of_the_fair_rule_on_gradient_noise(rounding, expected):
    assert [settled(on_noise(rounding), 1 / b) for b in (500, 2048, 2300, 3000, 4096, 6000, 8192, 1e6)] == expected
    assert settled(on_noise(rounding), -1e-4) == expected[-1]               # noise without any signal: the largest


@given(st.floats(1, 1e6), st.floats(1, 1e6))
def test_more_gradient_noise_never_asks_for_a_smaller_size(a, b):
    (a, b), rule = sorted((a, b)), on_noise("exact")
    assert rule.target(1 / a) <= rule.target(1 / b)


@given(st.floats(2048, 8192))
def test_on_the_log_map_the_reciprocal_is_the_mirror_image(b):
    assert unit_map(1 / b, 1 / 8192, 1 / 2048) == pytest.approx(1 - unit_map(b, 2048, 8192), abs=1e-9)


# -- controls ----------------------------------------------------------------------------------------------------------

limits = st.tuples(st.integers(1, 60), st.integers(0, 60), st.sampled_from([1, 8, 32])).map(
    lambda t: dict(size_min=t[0] * t[2], size_max=(t[0] + t[1]) * t[2], multiple=t[2]))


@given(limits, limits, st.integers(0, 2**31), st.floats(1e-3, 5), signals)
def test_a_walk_stays_within_limits_that_may_change(kw, other, seed, move, signals):
    controller = walk(seed, move=move, **kw)
    assert controller.size == kw["size_min"]
    for now in (kw, other):
        controller.set(**now)
        for size in [controller.size, *feed(controller, signals)]:
            assert now["size_min"] <= size <= now["size_max"] and size % now["multiple"] == 0


@given(st.integers(0, 2**31), signals, st.lists(st.floats(0, 2), min_size=80, max_size=80))
def test_a_walk_moves_at_measurements_and_is_deaf_to_them(seed, signals, others):
    one, two = walk(seed), walk(seed)
    before = one.size
    for signal, other in zip(signals, others):
        size = one(Measurement(signal))
        assert size == two(Measurement(None if signal is None else other))
        assert signal is not None or size == before
        before = size


def test_a_walk_is_pinned_and_another_seed_walks_another_way():
    assert asdict(RandomWalk()) == dict(size_min=16, size_max=64, move=.05, multiple=1)
    assert feed(RandomWalk(), [.5] * 10) == [17, 18, 18, 17, 18, 17, 20, 22, 24, 27]
    walks = [tuple(feed(walk(seed), [.5] * 30)) for seed in range(50)]
    assert len(set(walks)) == 50 and walks[0] == tuple(feed(RandomWalk(), [.5] * 30))


def test_walks_are_uniform_in_the_long_run():
    places = []
    for controller in map(walk, range(20)):
        controller.set(move=.2)
        for _ in range(2000):
            controller(Measurement(.5))
            places.append(controller.place)
    for sixth in range(6): assert abs(sum(sixth <= 6 * place < sixth + 1 for place in places) / len(places) - 1 / 6) < .02


def test_a_walk_moves_as_much_as_abs_does():
    climb = ABS.paper().schedule([.05] * 29)[8:]
    by_abs = [abs(a - b) for a, b in zip(climb, climb[1:])]
    by_walk = [abs(a - b) for seed in range(20) for sizes in [feed(walk(seed), [.5] * 500)] for a, b in zip(sizes, sizes[1:])]
    assert sum(by_abs) / len(by_abs) == 1.95 and abs(sum(by_walk) / len(by_walk) - 1.9) < .1


@pytest.mark.parametrize("wrong", [dict(move=0), dict(move=-.1), dict(move=math.nan), dict(size_min=129), dict(multiple=5), dict(start=1)], ids=str)
def test_set_of_a_walk_is_atomic(wrong):
    controller = walk()
    feed(controller, [.5] * 9)
    before = asdict(controller), controller.state_dict()
    with pytest.raises(AbsLabError): controller.set(**{"size_max": 128} | wrong)
    assert (asdict(controller), controller.state_dict()) == before


records = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 5)), min_size=1, max_size=12).map(
    lambda runs: [size for size, count in runs for _ in range(count)])


def ends(sizes): return [8 * sum(sizes[:i + 1]) for i in range(len(sizes))]


@given(st.lists(records, min_size=1, max_size=6), st.lists(st.integers(0, 30_000), max_size=30))
def test_the_mean_schedule_is_the_mean_at_every_step(records, steps):
    runs = [Replayed.from_record(ends(sizes), sizes) for sizes in records]
    mean = Replayed.mean_of([(ends(sizes), sizes) for sizes in records])
    for step in [*steps, *mean.starts]:
        exact = sum(run.at(step) for run in runs) / len(runs)
        assert abs(mean.at(step) - exact) <= .5
    assert all(a != b for a, b in zip(mean.sizes, mean.sizes[1:]))
    assert min(run.smallest for run in runs) <= mean.smallest <= mean.largest <= max(run.largest for run in runs)


@given(records, st.integers(1, 5))
def test_the_mean_of_a_run_with_itself_is_that_run(sizes, times):
    assert Replayed.mean_of([(ends(sizes), sizes)] * times) == Replayed.from_record(ends(sizes), sizes)


def test_a_mean_schedule_on_literal_records():
    one, two, three = ([160, 320, 640], [16, 16, 32]), ([160, 480], [16, 32]), ([640], [64])
    mean = Replayed.mean_of([one, two, three])
    assert (mean.starts, mean.sizes) == ([0, 160, 320], [32, 37, 43])          # 96/3, 112/3, 128/3
    assert Replayed.mean_of([one, two, three], multiple=16).sizes == [32, 48]  # 37.3 is nearer to 32, 42.7 to 48
    with pytest.raises(AbsLabError, match="at least one"): Replayed.mean_of([])


@pytest.mark.parametrize("name", names("controller"))
def test_every_controller_is_made_by_name_and_knows_its_limits(name):
    controller = find("controller", name)()
    assert type(controller.size) is int and controller.smallest <= controller.size <= controller.largest
    assert json.loads(json.dumps(controller.state_dict())) == controller.state_dict()


def test_every_controller_has_a_name():
    assert {name: find("controller", name) for name in names("controller")} == {"fixed": Fixed, "ramp": Ramp, "replayed": Replayed, "walk": RandomWalk, "gns": GNS, "abs": ABS}
