"""Statistics against values computed independently; figures and the report of `quick` on synthetic runs."""
import itertools
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from abs_lab.reports import figures, pages, sentences, stats
from abs_lab.core.interfaces import AbsLabError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/figures/quick.ipynb"
ARMS = ["fixed 16", "fixed 64 (author's epochs)", "fixed 64 (2 epochs)", "ABS 16–64", "ramp 16→64"]


# ---- statistics

values = st.floats(-1e3, 1e3)
scores = st.lists(values, min_size=1, max_size=40)
several = st.dictionaries(st.sampled_from("abcde"), st.lists(values, min_size=1, max_size=7), min_size=1)  # tasks of unequal size
AGGREGATES = [stats.iqm, stats.mean, stats.median, stats.optimality_gap]


def slow_iqm(tasks):
    "Every run written down so often that all tasks have the same number; then a quarter dropped at either end."
    most = math.lcm(*map(len, tasks.values()))
    rows = sorted(x for s in tasks.values() for x in s for _ in range(most // len(s)))
    return statistics.fmean(rows[len(rows) // 4:len(rows) - len(rows) // 4])


def slow_mean(tasks): return statistics.fmean(statistics.fmean(s) for s in tasks.values())
def slow_median(tasks): return statistics.median(map(statistics.fmean, tasks.values()) if len(tasks) > 1 else next(iter(tasks.values())))
def slow_gap(tasks, target=1.0): return slow_mean({task: [max(0.0, target - x) for x in s] for task, s in tasks.items()})


SLOW = dict(zip(AGGREGATES, [slow_iqm, slow_mean, slow_median, slow_gap]))


@given(scores)
def test_iqm_is_the_mean_of_the_middle_half(values):
    k = len(values) // 4
    np.testing.assert_allclose(stats.iqm(values), np.mean(sorted(values)[k:len(values) - k]), atol=1e-6)
    np.testing.assert_allclose(stats.iqm(values), scipy.stats.trim_mean(values, 0.25), atol=1e-6)


def test_iqm_by_hand():
    assert stats.iqm([0, 30, 60]) == 30
    assert stats.iqm([0, 1, 2, 6, 100]) == 3
    assert stats.iqm([-1000, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    assert stats.iqm([[1, 2], [3, 4], [5, 600]]) == 3.5  # all axes pooled: 2, 3, 4, 5
    np.testing.assert_array_equal(stats.iqm([[0, 0], [1, 10], [2, 20], [9, 90]], axis=0), [1.5, 15])
    np.testing.assert_array_equal(stats.iqm([[0, 1, 2, 9], [0, 10, 20, 90]], axis=1), [1.5, 15])


def test_tasks_of_unequal_size_by_hand():
    tasks = {"a": [0.0, 1.0], "b": [10.0, 20.0, 30.0, 40.0]}  # a counts twice: 0 0 | 1 1 10 20 | 30 40
    assert stats.iqm(tasks) == 8 and stats.mean(tasks) == 12.75 and stats.median(tasks) == 12.75
    assert stats.optimality_gap(tasks, target=20) == (19.5 + 2.5) / 2
    tasks = {"a": [0.0], "b": [1.0, 2.0], "c": [3.0, 4.0, 8.0]}  # of 18 places a run takes 6, 3 or 2; 4 places dropped at either end
    assert stats.iqm(tasks) == (2 * 0 + 3 * 1 + 3 * 2 + 2 * 3) / 10
    assert stats.median(tasks) == 1.5 and stats.mean(tasks) == (0 + 1.5 + 5) / 3


@pytest.mark.parametrize("statistic", AGGREGATES)
@given(several)
def test_aggregates_against_a_slow_implementation(statistic, tasks):
    np.testing.assert_allclose(statistic(tasks), SLOW[statistic](tasks), atol=1e-7)


@pytest.mark.parametrize("statistic", AGGREGATES)
@given(several, st.randoms(), st.floats(-50, 50), st.floats(0.1, 10))
def test_aggregates_keep_to_order_shift_scale_and_range(statistic, tasks, random, shift, scale):
    before = statistic(tasks)
    mixed = {task: random.sample(tasks[task], len(tasks[task])) for task in random.sample(sorted(tasks), len(tasks))}
    np.testing.assert_allclose(statistic(mixed), before, atol=1e-7)                                           # order
    if statistic is not stats.iqm:                                                                              # seeds that repeat
        np.testing.assert_allclose(statistic({t: s * (i + 1) for i, (t, s) in enumerate(tasks.items())}), before, atol=1e-7)
    better = {t: [x + abs(shift) for x in s] for t, s in tasks.items()}
    everything = np.concatenate([*tasks.values()])
    if statistic is stats.optimality_gap: assert 0 <= statistic(better) <= before + 1e-9                       # monotone, not negative
    else:
        moved = {t: [scale * x + shift for x in s] for t, s in tasks.items()}
        np.testing.assert_allclose(statistic(moved), scale * before + shift, atol=1e-6)
        assert everything.min() - 1e-9 <= before <= everything.max() + 1e-9
    best = max(tasks, key=lambda t: max(tasks[t]))
    raised = tasks | {best: [x + 100 for x in tasks[best]]}
    assert (statistic(raised) - before) * (-1 if statistic is stats.optimality_gap else 1) >= -1e-9           # one task better


@pytest.mark.parametrize("statistic", AGGREGATES)
def test_aggregates_along_an_axis(statistic):
    rng = np.random.default_rng(0)
    tasks = {"a": rng.normal(size=(3, 4, 5)), "b": rng.normal(size=(3, 7, 5))}
    found = statistic(tasks, axis=1)
    assert found.shape == (3, 5)
    for i, j in np.ndindex(3, 5): np.testing.assert_allclose(found[i, j], statistic({t: s[i, :, j] for t, s in tasks.items()}))


@pytest.mark.parametrize("bad, words", [([], "no scores were given"), ({}, "no scores were given"), ([1, float("nan")], "got nan"), ([1, float("inf")], "got inf"),
                                        ({"Pong-v5": [1.0], "Qbert-v5": [None]}, "got nan for Qbert-v5"), ({"Pong-v5": []}, "for Pong-v5")])
@pytest.mark.parametrize("statistic", [*AGGREGATES, stats.interval, stats.band, lambda s: stats.profile(s, [0]), lambda s: stats.improvement(s, s)])
def test_scores_that_are_not_numbers_are_refused(statistic, bad, words):
    with pytest.raises(AbsLabError, match=words): statistic(bad)


def test_a_matrix_of_scores_is_refused_where_it_could_be_seeds_or_points():
    square = np.zeros((6, 6))
    for call in (lambda: stats.interval(square), lambda: stats.improvement(square, square), lambda: stats.profile(square, [0])):
        with pytest.raises(AbsLabError, match=r"2 axes, expected \[seeds\]"): call()
    with pytest.raises(AbsLabError, match=r"1 axes, expected \[seeds, points\]"): stats.band(square[0])
    with pytest.raises(AbsLabError, match="curves of 6 and of 7 points"): stats.band({"a": square, "b": np.zeros((6, 7))})


# Scores of 6 and of 5 runs [runs, tasks], and what rliable 1.2.0 (arch 7.2.0, pandas 2.2.3, numpy 2.4.6) made of them with 50,000 draws
# (probability of improvement: 5,000): get_interval_estimates and create_performance_profile, method "percentile".
RUNS_X = np.array([[0.10, 1.20, 0.50], [0.30, 0.90, 0.70], [0.20, 1.50, 0.40], [0.60, 1.10, 0.90], [0.40, 2.50, 0.80], [0.00, 1.30, 0.65]])
RUNS_Y = np.array([[0.20, 1.00, 0.45], [0.35, 0.80, 0.75], [0.05, 1.40, 0.30], [0.50, 1.05, 0.95], [0.15, 1.90, 0.60]])
X, Y = ({task: runs[:, i] for i, task in enumerate("abc")} for runs in (RUNS_X, RUNS_Y))
RLIABLE = [(X, stats.iqm, 0.695, 0.595, 0.8), (X, stats.mean, 0.780555556, 0.64444444, 0.95), (X, stats.median, 0.658333333, 0.525, 0.79166667),
           (X, stats.optimality_gap, 0.363888889, 0.29444444, 0.43333333),
           (Y, stats.iqm, 0.633333333, 0.50555556, 0.76666667), (Y, stats.mean, 0.696666667, 0.56333333, 0.84333333), (Y, stats.median, 0.61, 0.42, 0.81),
           (Y, stats.optimality_gap, 0.393333333, 0.30666667, 0.47666667)]


@pytest.mark.parametrize("tasks, statistic, value, low, high", RLIABLE)
def test_aggregates_and_intervals_are_those_of_rliable(tasks, statistic, value, low, high):
    np.testing.assert_allclose(statistic(tasks), value, atol=1e-8)
    np.testing.assert_allclose(stats.interval(tasks, statistic, n=50_000), (low, high), atol=0.009)  # means of X move in steps of 1/120


def test_profiles_and_improvement_are_those_of_rliable():
    np.testing.assert_allclose(stats.improvement(X, Y), 0.5722222222)
    np.testing.assert_allclose(stats.improvement_interval(X, Y), (0.36666667, 0.77222222), atol=0.012)
    share, (low, high) = stats.profile(X, [0.0, 0.25, 0.5, 1.0, 1.3, 2.0], n=50_000)
    np.testing.assert_allclose(share, [0.94444444, 0.83333333, 0.61111111, 0.27777778, 0.11111111, 0.05555556], atol=1e-8)
    np.testing.assert_allclose(low, [0.83333333, 0.72222222, 0.44444444, 0.16666667, 0, 0], atol=1e-8)
    np.testing.assert_allclose(high, [1, 0.94444444, 0.77777778, 0.33333333, 0.22222222, 0.16666667], atol=1e-8)


def exact_interval(values, statistic):
    draws = [statistic(draw) for draw in itertools.product(values, repeat=len(values))]
    return np.quantile(draws, [0.025, 0.975], method="inverted_cdf")


@pytest.mark.parametrize("statistic, plain", [(np.mean, np.mean), (stats.mean, np.mean), (stats.median, np.median), (stats.iqm, lambda d: np.mean(sorted(d)[1:-1])),
                                              (lambda s, axis: stats.optimality_gap(s, axis, 40), lambda d: np.mean(np.maximum(0, 40 - np.array(d))))])
def test_interval_against_every_possible_draw(statistic, plain):
    values = [12.0, 30.0, 31.5, 47.0, 90.0]
    np.testing.assert_allclose(stats.interval(values, statistic), exact_interval(values, plain), atol=1e-9)  # 126 resamples, all of them


def multisets(values):
    "Every draw with replacement up to its order, and how many orders it has."
    for draw in itertools.combinations_with_replacement(range(len(values)), len(values)):
        yield [values[i] for i in draw], math.factorial(len(values)) // math.prod(math.factorial(draw.count(i)) for i in set(draw))


@pytest.mark.parametrize("statistic", [stats.iqm, stats.mean])
def test_interval_of_two_unequal_tasks_against_every_possible_draw(statistic):
    tasks = {"a": [12.0, 30.0, 31.5, 47.0, 90.0], "b": [1.0, 2.0, 5.0, 6.0, 7.0, 60.0]}
    draws = [(SLOW[statistic]({"a": a, "b": b}), times * more) for a, times in multisets(tasks["a"]) for b, more in multisets(tasks["b"])]
    assert sum(times for _, times in draws) == 5**5 * 6**6
    found, times = np.array(draws).T
    exact = np.quantile(found, [0.025, 0.975], weights=times, method="inverted_cdf")
    np.testing.assert_allclose(stats.interval(tasks, statistic), exact, atol=1e-9)


def test_strata_are_drawn_apart_and_weigh_the_same():
    rng = np.random.default_rng(0)
    tasks = {"a": rng.normal(0, 1, 9), "b": rng.normal(2, 3, 5), "c": rng.normal(1000, 1, 6)}
    for statistic in (stats.iqm, stats.median):
        draws = [SLOW[statistic]({t: rng.choice(s, len(s)) for t, s in tasks.items()}) for _ in range(4000)]
        low, high = stats.interval(tasks, statistic, n=20_000)
        assert high - low < 10  # a pooled bootstrap would give hundreds
        np.testing.assert_allclose((low, high), np.quantile(draws, [0.025, 0.975]), atol=0.2)


@pytest.mark.parametrize("statistic, name", [(np.mean, "stats.mean"), (np.median, "stats.median")])
def test_functions_that_know_no_tasks_are_refused(statistic, name):
    for call in (lambda: stats.interval(X, statistic), lambda: stats.band({t: s[:, None] for t, s in X.items()}, statistic)):
        with pytest.raises(AbsLabError, match=name): call()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_interval_lies_within_the_scores_or_is_not_given(values):
    limits = stats.interval(values, n=200)
    if len(values) < 5: assert limits is None
    else: assert min(values) - 1e-9 <= limits[0] <= limits[1] <= max(values) + 1e-9


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_in_per_cent_is_refused(level):
    for call in (lambda: stats.interval(X, level=level), lambda: stats.improvement_interval(X, Y, level), lambda: stats.profile(X, [0], level)):
        with pytest.raises(AbsLabError, match="not between 0 and 1"): call()


def test_intervals_shrink_with_the_level_and_repeat_with_the_seed():
    wide, narrow = stats.interval(X, n=20_000), stats.interval(X, level=0.5, n=20_000)
    assert wide[0] < narrow[0] < narrow[1] < wide[1] and stats.interval(X, n=20_000) == wide != stats.interval(X, n=20_000, seed=1)


def test_band_is_the_interval_at_each_point():
    curves = np.random.default_rng(1).normal(size=(7, 3))
    low, high = stats.band(curves, n=20_000)
    for i in range(3): np.testing.assert_allclose((low[i], high[i]), stats.interval(curves[:, i], n=20_000))
    assert stats.band(curves[:4]) is None
    tasks = {"a": curves, "b": 10 * curves[:5]}
    low, high = stats.band(tasks, n=2000)
    for i in range(3): np.testing.assert_allclose((low[i], high[i]), stats.interval({t: s[:, i] for t, s in tasks.items()}, n=2000))


@given(several, st.lists(values, min_size=1, max_size=9))
def test_profile_counts_runs_and_falls(tasks, thresholds):
    share, limits = stats.profile(tasks, sorted(thresholds), n=20)
    np.testing.assert_allclose(share, [slow_mean({t: [float(x > tau) for x in s] for t, s in tasks.items()}) for tau in sorted(thresholds)])
    assert (np.diff(share) <= 1e-12).all()
    assert (limits is None) == (min(map(len, tasks.values())) < stats.MIN_SEEDS)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 30), min_size=1, max_size=6), min_size=1))
@settings(deadline=None)
def test_area_above_a_profile_is_the_optimality_gap(tasks):
    share, _ = stats.profile(tasks, np.arange(20))  # constant between whole scores
    np.testing.assert_allclose(np.sum(1 - share), stats.optimality_gap(tasks, target=20), atol=1e-9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_improvement_counts_pairs(x, y):
    won = sum((a > b) + 0.5 * (a == b) for a in x for b in y) / (len(x) * len(y))
    np.testing.assert_allclose(stats.improvement(x, y), won)
    np.testing.assert_allclose(stats.improvement(x, y), scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    np.testing.assert_allclose(stats.improvement(x, y) + stats.improvement(y, x), 1)


def test_improvement_is_averaged_over_tasks_of_unequal_size():
    assert stats.improvement({"a": [1, 1, 1, 1], "b": [0]}, {"b": [1], "a": [0]}) == 0.5
    with pytest.raises(AbsLabError, match="same tasks: only the first has a, c; only the second has d"):
        stats.improvement({"a": [1], "b": [1], "c": [1]}, {"b": [1], "d": [1]})
    x, y = np.arange(6.0), np.arange(6.0) + 1.5
    rng = np.random.default_rng(5)
    draws = [np.mean(rng.choice(x, 6)[:, None] > rng.choice(y, 6)) for _ in range(20_000)]
    np.testing.assert_allclose(stats.improvement_interval(x, y), np.quantile(draws, [0.025, 0.975]), atol=0.03)
    assert stats.improvement_interval({"a": x, "b": x}, {"a": y, "b": y[:4]}) is None


def test_limits_of_many_seeds_are_those_of_all_resamples_where_both_can_be_had(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(0.3, size=18)
    exact = stats.improvement_interval(x, y)
    monkeypatch.setattr(stats, "MANY", 10)
    stats._improvement_limits.cache_clear()
    np.testing.assert_allclose(stats.improvement_interval(x, y), exact, atol=0.02)
    assert stats.improvement_interval([3.0] * 11, [1.0] * 11) == (1.0, 1.0)
    two = stats.improvement_interval({"a": x, "b": x}, {"a": y, "b": y})
    np.testing.assert_allclose(np.diff(two), np.diff(stats.improvement_interval(x, y)) / 2 ** 0.5)
    stats._improvement_limits.cache_clear()


def test_the_interval_of_many_seeds_takes_fewer_resamples_and_agrees():
    x = np.random.default_rng(1).normal(size=2_000)
    low, high = stats.interval(x, stats.mean)
    np.testing.assert_allclose([low, high], x.mean() + np.array([-1.96, 1.96]) * x.std() / 2_000 ** 0.5, atol=0.002)
    assert sum(len(share) for _, share in stats._draws([2_000], stats.DRAWS, 0)) == 10_000 and all(len(rows) <= 2_000 for (rows,), _ in stats._draws([2_000], stats.DRAWS, 0))


# ---- human-normalised scores

@pytest.mark.parametrize("env_id, random, human", [  # as published
    ("Breakout-v5", 1.7, 30.5), ("Pong-v5", -20.7, 14.6), ("Qbert-v5", 163.9, 13455), ("Phoenix-v5", 761.4, 7242.6), ("BattleZone-v5", 2360, 37187.5),
    ("DoubleDunk-v5", -18.6, -16.4), ("NameThisGame-v5", 2292.3, 8049), ("Alien-v5", 227.8, 7127.7), ("Skiing-v5", -17098.1, -4336.9),
    ("MontezumaRevenge-v5", 0, 4753.3), ("VideoPinball-v5", 16256.9, 17667.9), ("Zaxxon-v5", 32.5, 9173.3)])
def test_human_normalised_scores(env_id, random, human):
    np.testing.assert_allclose(stats.human_normalised([random, human, (random + human) / 2], env_id), [0, 1, 0.5], atol=1e-12)
    assert stats.ATARI_SCORES[env_id] == (random, human)


def test_the_table_of_games():
    assert len(stats.ATARI_SCORES) == 57 and all(human > random for random, human in stats.ATARI_SCORES.values())
    # Sums over dqn_zoo's table (dqn_zoo/atari_data.py), equal there to openrlbenchmark's (hns.py).
    np.testing.assert_allclose(np.sum([*stats.ATARI_SCORES.values()], axis=0), [50864.9, 606494.2])


def test_every_game_is_an_environment():
    assert set(stats.ATARI_SCORES) <= set(pytest.importorskip("envpool").list_all_envs())


def test_games_without_a_human_score_are_refused_with_the_nearest():
    with pytest.raises(AbsLabError, match="did you mean Breakout-v5"): stats.human_normalised(1.0, "Breakuot-v5")
    assert np.isnan(stats.human_normalised([None, 1.7], "Breakout-v5")).tolist() == [True, False]


def test_reports_use_the_same_scale(monkeypatch):
    runs = [r | dict(params=r["params"] | dict(env_id="Pong-v5")) for r in study(2)]
    monkeypatch.setattr(stats, "human_normalised", lambda score, env_id, real=stats.human_normalised: 10 * real(score, env_id))
    units, scale = sentences.normalised(runs)
    assert scale == "human-normalised score"
    for run, unit in zip(runs, units):
        np.testing.assert_allclose(figures.score(unit), 10 * (figures.score(run) + 20.7) / 35.3)
        assert unit["curve"]["return"][0] is None
        np.testing.assert_allclose(unit["curve"]["return"][1:], 10 * (np.array(run["curve"]["return"][1:]) + 20.7) / 35.3)


# ---- area under a curve

def test_auc_by_hand():
    assert stats.auc([0, 10, 100], [0, 10, 10]) == 9.5
    assert stats.auc([5, 10], [3, 3]) == 3
    assert stats.auc([0, 1, 2, 3, 4, 5], [None, 1.0, float("nan"), None, 7.0, None]) == 4


@given(st.lists(st.tuples(st.integers(1, 50), st.one_of(st.none(), values)), min_size=2, max_size=30), st.floats(-5, 5), st.floats(-50, 50), st.floats(0.1, 9))
def test_auc_is_the_mean_of_the_line(points, slope, start, stretch):
    steps, ys = np.cumsum([gap for gap, _ in points]), [y for _, y in points]
    there = [(x, y) for x, y in zip(steps.tolist(), ys) if y is not None]
    if len(there) < 2:
        with pytest.raises(AbsLabError, match="two points with a value"): stats.auc(steps, ys)
        return
    area = sum((c - a) * (b + d) / 2 for (a, b), (c, d) in zip(there, there[1:])) / (there[-1][0] - there[0][0])
    np.testing.assert_allclose(stats.auc(steps, ys), area, atol=1e-6)
    assert min(y for _, y in there) - 1e-9 <= stats.auc(steps, ys) <= max(y for _, y in there) + 1e-9
    np.testing.assert_allclose(stats.auc(steps * stretch + start, ys), area, atol=1e-5)  # the unit of the steps does not matter
    line = [None if y is None else start + slope * x for x, y in zip(steps, ys)]         # points left out of a straight line change nothing
    np.testing.assert_allclose(stats.auc(steps, line), start + slope * (there[0][0] + there[-1][0]) / 2, atol=1e-6)


@pytest.mark.parametrize("steps, ys, words", [([0, 1], [1], "a step for each value"), ([0, 2, 1], [1, 1, 1], "must rise"), ([0, 1, 1], [1, 1, 1], "must rise"),
                                              ([0, 1], [1, float("inf")], "finite"), ([0, 1], [None, None], "two points with a value, got 0"), ([0, 1], [None, 2], "got 1")])
def test_curves_without_an_area_are_refused(steps, ys, words):
    with pytest.raises(AbsLabError, match=words): stats.auc(steps, ys)


# ---- tables

def test_summary_shows_all_seeds_and_gives_no_interval_to_few():
    rows = [dict(arm="few", seed=s, score=v) for s, v in [(2, 30.0), (0, 10.0), (1, 20.0)]]
    rows += [dict(arm="many", seed=s, score=float(s)) for s in range(8)]
    table = stats.summarise(rows).set_index("arm")
    assert table.scores["few"] == [10, 20, 30] and table.note["few"] == "n=3: seeds shown, no interval" and np.isnan(table.low["few"])
    assert table.iqm["many"] == 3.5 and table.low["many"] < 3.5 < table.high["many"] and table.note["many"] == ""
    with pytest.raises(AbsLabError, match="appears twice"): stats.summarise(rows + rows[:1])


def test_summary_of_several_tasks_is_stratified_and_weighs_them_equally():
    rows = [dict(arm="a", env_id=e, seed=s, score=v) for e, v in [("x", 0.0), ("y", 1.0)] for s in range(6)]
    row = stats.summarise(rows).iloc[0]
    assert (row.n, row["mean"], row.low, row.high) == (6, 0.5, 0.5, 0.5)
    row = stats.summarise(rows[:-1]).iloc[0]
    assert (row.n, row["mean"], row["median"], row.iqm, row.low, row.high) == (5, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert row.scores == [0.0] * 6 + [1.0] * 5
    with pytest.raises(AbsLabError, match="arm=a, env_id=x, seed=2 appears twice"): stats.summarise([*rows, rows[2]])


def test_scores_by_task_keep_the_arms_in_order_and_do_not_touch_the_rows():
    rows = pd.DataFrame([dict(arm=a, env_id=e, seed=s, score=v) for a, e, s, v in
                         [("z", "q", 1, 4.0), ("z", "q", 0, 3.0), ("b", "p", 0, 2.0), ("z", "p", 0, 1.0)]])
    before = rows.copy()
    found = stats.by_task(rows)
    assert [*found] == ["z", "b"] and [*found["z"]] == ["p", "q"] and found["z"]["q"].tolist() == [3, 4] and found["b"]["p"].tolist() == [2]
    pd.testing.assert_frame_equal(rows, before)
    assert stats.by_task(rows.assign(env_id=None, seed=range(4)))["z"].popitem()[1].tolist() == [4, 3, 1]  # a task without a name is one task


def test_columns_that_are_not_there_are_named():
    rows = [dict(arm="a", seed=0, score=1.0)]
    for call in (lambda: stats.summarise(rows, score="scroe"), lambda: stats.missing(rows, ["a"], [0], score="scroe")):
        with pytest.raises(AbsLabError, match="unknown column of the runs 'scroe'; did you mean score"): call()
    with pytest.raises(AbsLabError, match="no runs"): stats.summarise([])


def test_aggregates_in_a_table():
    rows = [dict(arm=a, env_id=t, seed=i, auc=x) for a, tasks in (("x", X), ("y", Y)) for t, s in tasks.items() for i, x in enumerate(s)]
    table = stats.aggregate(rows, score="auc", target=0.5).set_index(["arm", "statistic"])
    assert [*table.index] == [(a, s) for a in "xy" for s in ("IQM", "median", "mean", "optimality gap")]
    np.testing.assert_allclose(table.value["x"], [0.695, 0.658333333, 0.780555556, 0.0888888889])  # rliable's, gamma=0.5
    np.testing.assert_allclose(table.value["y"], [0.633333333, 0.61, 0.696666667, 0.1])
    statistics = {"IQM": stats.iqm, "median": stats.median, "mean": stats.mean, "optimality gap": lambda s, axis: stats.optimality_gap(s, axis, 0.5)}
    for name, statistic in statistics.items(): assert (table.low["x", name], table.high["x", name]) == stats.interval(X, statistic)
    assert set(table.tasks) == {3} and set(table.n) == {6, 5}
    few = stats.aggregate([r for r in rows if r["seed"] < 4], score="auc")
    assert few.low.isna().all() and set(few.note) == {"n=4: seeds shown, no interval"}


def test_missing_runs_are_named():
    rows = [dict(arm=a, env_id=e, seed=s, score=1.0) for a in ("fixed 16", "ABS") for e in ("Pong-v5", "Qbert-v5") for s in range(3)]
    grid = dict(arms=["fixed 16", "ABS"], seeds=range(3), tasks=["Pong-v5", "Qbert-v5"])
    assert stats.missing(rows, **grid) == []
    rows[1]["score"], rows[6]["score"] = None, float("nan")
    assert stats.missing(rows[:-1], **grid) == ["fixed 16, Pong-v5, seed 1", "ABS, Pong-v5, seed 0", "ABS, Qbert-v5, seed 2"]
    assert len(stats.missing([], **grid)) == 12
    assert stats.missing([dict(arm="a", seed=0, score=None)], ["a"], [0, 1]) == ["a, seed 0", "a, seed 1"]


@given(st.sets(st.integers(0, 11)))
def test_missing_is_the_grid_less_the_runs(gone):
    runs = [*itertools.product("xy", ["p", "q"], range(3))]
    rows = [dict(arm=a, env_id=e, seed=s, score=0.0) for i, (a, e, s) in enumerate(runs) if i not in gone]
    assert stats.missing(rows, "xy", range(3), ["p", "q"]) == [f"{a}, {e}, seed {s}" for i, (a, e, s) in enumerate(runs) if i in gone]


@pytest.mark.parametrize("shift, words", [(1000, "a scores higher than b in this data"), (-1000, "b scores higher than a in this data"),
                                          (0, "found no difference"), (17, "leans towards a over b")])
def test_what_may_be_said(shift, words):
    x = np.array([3.0, 10.0, 11.0, 14.0, 30.0])
    assert words in stats.compare(x + shift, x, "a", "b")
    few = stats.compare(x[:3] + shift, x[:3], "a", "b")
    assert "too few seeds to conclude anything" in few and few.endswith("Scores of b: 3, 10, 11.")
    several = stats.compare({"p": x + shift, "q": x + shift}, {"p": x, "q": [*x, 12.0]}, "a", "b")
    assert "(n=5 on each of 2 tasks" in several and "(n=5 to 6 on each of 2 tasks" in several
    if abs(shift) == 1000: assert words in several  # for less, a second task may settle what one leaves open


# ---- figures, on invented runs

def invent(arm, seed, points=60, **result):
    rng, size = np.random.default_rng([seed, *arm.encode()]), 64 if "64 (" in arm else 16
    step = (np.arange(points) + 1) * 400_000 // points
    sizes = [16 + 32 * i // points for i in range(points)] if "16–64" in arm or "→" in arm else [size] * points
    gradient = (step * (0.008 if size == 16 else 0.004)).astype(int).tolist()
    curve = {"step": step.tolist(), "return": [None, *rng.normal(100, 30, points - 1).tolist()], "signal": rng.uniform(0.1, 0.4, points).tolist(),
             "size": sizes, "epochs": [2] * points, "gradient_steps": gradient, "seconds": (step / 10_000).tolist(), "thresholds": [0.05, 0.95] if "ABS" in arm else None}
    final = dict(status="finished", steps=400_000, updates=400, gradient_steps=gradient[-1], seconds=40.0, measurements=200, mean_size=float(np.mean(sizes)),
                 final_size=sizes[-1], train_return=90.0, episodes=900, eval=dict.fromkeys(("mean",), score := float(rng.normal(100, 30))) | {"returns": [score]}, commit="abc", frames=None,
                 versions={"python": "3.11", "torch": "2.13.0"}, hardware={"cpu": "invented", "cores": 2, "gpu": None})
    name, controller = re.sub(r"\W+", "-", arm), {"ABS": "abs", "ramp": "ramp"}.get(arm.split()[0], "fixed")
    return {"id": f"{name}-s{seed}", "params": dict(arm=arm, seed=seed, agent="pqn", env_id="LunarLander-v3", total_steps=400_000, num_envs=64, controller=controller, size=size) | (dict(low=0.05, high=0.95) if "ABS" in arm else {}), "result": final | result, "curve": curve,
            "schedule": dict(ends=step.tolist(), sizes=sizes)}


def study(seeds, **kw):
    return [invent(arm, seed, **kw) for arm in ARMS for seed in range(seeds)]


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    "Static images start a browser for every figure; nbs/reports/05_pages.ipynb tries one."
    monkeypatch.setattr(pages, "static", lambda *_, **__: None)


def render(runs, folder, **parameters):
    "The figure notebook's cells, executed here on these runs; the text of the page."
    (folder / "reports/quick/data").mkdir(parents=True)
    for run in runs: (folder / "reports/quick/data" / f"{run['id']}.json").write_text(json.dumps(run))
    space = dict(allow_mixed_commits=False, ids=[], missing=[], data_dir=folder / "reports/quick/data", report_dir=folder / "reports/quick") | parameters
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code" and not cell["metadata"].get("tags"): exec("".join(cell["source"]), space)
    return (folder / "reports/quick/index.html").read_text()


@given(st.lists(st.lists(st.integers(1, 50), min_size=2, max_size=8), min_size=1, max_size=4), st.floats(-5, 5), st.floats(-100, 100))
def test_common_grid_interpolates_lines_and_extrapolates_nothing(gaps, slope, start):
    runs = []
    for gap in gaps:
        x = np.cumsum(gap).astype(float)
        runs.append({"id": "x", "curve": {"step": x.tolist(), "return": (start + slope * x).tolist()}})
    found = figures.on_grid(runs, "return", points=17)
    first, last = max(r["curve"]["step"][0] for r in runs), min(r["curve"]["step"][-1] for r in runs)
    if first >= last: assert found is None
    else:
        grid, values = found
        assert grid[0] == first and grid[-1] == last and values.shape == (len(runs), 17)
        np.testing.assert_allclose(values, np.tile(start + slope * grid, (len(runs), 1)), atol=1e-6)


def test_windows_without_an_episode_are_bridged_not_zero():
    run = {"id": "x", "curve": {"step": [1, 2, 3, 4], "return": [None, 10.0, None, 30.0]}}
    grid, values = figures.on_grid([run], "return", points=3)
    assert grid.tolist() == [2, 3, 4] and values.tolist() == [[10, 20, 30]]
    with pytest.raises(AbsLabError, match="'retrun' is not in the curve"): figures.series(run, "retrun")


@pytest.mark.parametrize("make", [figures.learning_curves, figures.batch_size, figures.gradient_steps, figures.divergence, figures.final, figures.wall_clock])
def test_seeds_are_drawn_and_an_arm_keeps_its_colour(make):
    for seeds in (1, 3, 6):
        fig = make(study(seeds))
        colours = {c for t in fig.data if t.mode == "lines" and t.line.width > 2 for c in [t.line.color]} | {t.marker.color for t in fig.data if t.marker.symbol == "diamond"}
        assert len(colours) == 5 and colours > {"#0072B2", "#009E73", "#D55E00", "#CC79A7"}
        drawn = sum(len(t.x) for t in fig.data if t.text) if make in (figures.final, figures.wall_clock) else sum("seed" in (t.name or "") for t in fig.data)
        alike = seeds > 1 and make in (figures.batch_size, figures.gradient_steps)  # all seeds of an invented arm have one schedule: its line alone is drawn
        assert drawn == 5 * (0 if alike else min(seeds, 3) if make is figures.divergence else seeds)  # measurements are dense: three seeds of them are enough
        assert max(len(t.x if t.y is None else t.y) for t in fig.data) <= 200
        bands = [t for t in fig.data if t.fill == "tonexty"]
        assert len(bands) == (5 if seeds == 6 and not alike and make not in (figures.final, figures.wall_clock) else 0)


def test_single_seeds_are_drawn_against_steps_alone():
    drawn = lambda x: sum("seed" in (t.name or "") for t in figures.learning_curves(study(6), x).data)
    assert (drawn("step"), drawn("gradient_steps"), drawn("seconds")) == (30, 0, 0)


def test_of_more_than_forty_runs_no_single_seed_is_drawn():
    drawn = lambda seeds: sum("seed" in (t.name or "") for t in figures.learning_curves(study(seeds)).data)
    assert (drawn(8), drawn(9)) == (40, 0)


@pytest.mark.parametrize("value, text", [(13.94, "13.9"), (999.4, "999"), (999.7, "1,000"), (1000, "1,000"), (-1234.5, "-1,234"), (0.0712, "0.0712"), (0, "0")])
def test_numbers_for_people(value, text):
    assert stats.number(value) == text and stats.number_list([value, 1]) == f"{text.replace(',', '')}, 1"


def test_files_that_are_no_runs_are_refused_by_name(tmp_path):
    with pytest.raises(AbsLabError, match="no run files"): figures.load(tmp_path)
    (tmp_path / "torn.json").write_text('{"id": "x", "par')
    with pytest.raises(AbsLabError, match="torn.json"): figures.load(tmp_path)
    (tmp_path / "torn.json").write_text('{"id": "x", "params": {}, "result": {}, "curve": {}}')
    with pytest.raises(AbsLabError, match="torn.json"): figures.load(tmp_path)


def test_report_of_three_seeds_concludes_nothing(tmp_path):
    page = render(study(3), tmp_path)
    assert page.count("too few seeds to conclude anything") == 2 and "For 4 of 4 pairs" in page and "n=3: seeds shown, no interval" in page
    assert "This confounds the comparison" in page and "0.05, 0.95" in page
    table = pd.read_csv(tmp_path / "reports/quick/results.csv")
    assert len(table) == 15 and table.score.notna().all()


def test_report_of_ten_seeds_follows_the_numbers(tmp_path):
    runs = study(10)
    for run in runs:
        if run["params"]["arm"] == "ABS 16–64": run["result"]["eval"] = dict.fromkeys(("mean",), score := run["result"]["eval"]["mean"] - 1000) | dict(returns=[score])
    page = render(runs, tmp_path)
    assert page.count("scores higher than ABS 16–64 in this data") == 1 and "too few seeds" not in page


def test_report_names_what_is_missing(tmp_path):
    runs = [r for r in study(3) if not (r["params"]["arm"] == "ramp 16→64" and r["params"]["seed"] == 1)]
    runs[0]["result"]["status"] = "failed"
    page = render(runs, tmp_path, missing=["ramp 16→64, seed 1", "fixed 16, seed 0"])
    assert "2 runs are missing" in page and "ramp 16→64, seed 1" in page and "fixed 16, seed 0" in page


def test_report_without_the_arms_of_a_pair_says_so(tmp_path):
    page = render([r for r in study(2) if "ABS" not in r["params"]["arm"]], tmp_path)
    assert "No pair of arms has runs yet." in page


def test_report_of_a_few_updates(tmp_path):
    runs = study(1, points=2)
    for run in runs: run["curve"]["signal"], run["result"]["measurements"] = [None, None], 0
    page = render(runs, tmp_path)
    assert "No run measured its divergence" in page


def test_runs_of_different_code_are_not_mixed_unless_asked(tmp_path):
    runs = study(2)
    runs[0]["result"]["commit"] = "def"
    with pytest.raises(AbsLabError, match=r"the code that trains pqn: abc \(9 runs\), def \(1 run\)"): render(runs, tmp_path / "a")
    page = render(runs, tmp_path / "b", allow_mixed_commits=True)
    assert "Runs that were trained differently are mixed here" in page and "abc (9 runs), def (1 run)" in page


def test_runs_of_one_fingerprint_are_mixed_freely(tmp_path):
    runs = study(2, fingerprint=dict(abs_lab="0123456789ab"))
    runs[0]["result"]["commit"] = "def"
    page = render(runs, tmp_path / "a")
    assert "The runs come from 2 commits" in page and "are mixed here" not in page


def test_report_opens_without_a_network_and_is_reproducible(tmp_path):
    runs = study(5)
    page = render(runs, tmp_path / "a")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//[^"']*""", page) and "cdn." not in page and "mathjax" not in page.lower()
    assert page.count("<script src=") == 1 and '<script src="../plotly.min.js"' in page
    assert (tmp_path / "a/reports/plotly.min.js").stat().st_size > 1e6
    assert len(page) < 1.5e6 and page == render(runs, tmp_path / "b")


def test_a_basic_script_of_the_same_version_is_left_alone(tmp_path):
    basic = (ROOT/"reports"/"plotly.min.js").read_bytes()
    assert basic.startswith(b"/**\n* plotly.js (basic - minified) v") and len(basic) < 1.5e6
    for name, before, kept in (("a", basic, True), ("b", re.sub(rb" v\d+", b" v1", basic, count=1), False), ("c", b"", False)):
        shared = tmp_path/name/"reports"/"plotly.min.js"
        shared.parent.mkdir(parents=True)
        shared.write_bytes(before)
        render(study(1), tmp_path/name)
        assert (shared.read_bytes() == before) == kept and len(shared.read_bytes()) > 1e6


def test_names_are_data_not_html(tmp_path):
    runs = [invent("<script>alert(1)</script>", seed) for seed in range(2)]
    pages.report(tmp_path / "s/index.html", "a < b", [(sentences.evaluation(runs), "c"), figures.final(runs), figures.learning_curves(runs), "d < e"])
    page = (tmp_path / "s/index.html").read_text()
    assert "<script>alert" not in page and "<title>a &lt; b</title>" in page and "d &lt; e" in page


def test_figure_notebook_runs_under_papermill(tmp_path):
    papermill = pytest.importorskip("papermill")
    data = tmp_path / "a folder/quick/data"
    data.mkdir(parents=True)
    for run in study(2): (data / f"{run['id']}.json").write_text(json.dumps(run))
    out = data.parent / "quick.ipynb"
    papermill.execute_notebook(str(NOTEBOOK), str(out), dict(data_dir=str(data), report_dir=str(data.parent)), kernel_name="python3",
                               progress_bar=False, cwd=str(ROOT))
    assert {"data", "index.html", "quick.ipynb", "results.csv"} <= {p.name for p in data.parent.iterdir()}
    assert out.stat().st_size < 200_000
    shutil.rmtree(tmp_path / "a folder")


def test_returns_at_equal_time_stand_only_where_seconds_were_measured(tmp_path, monkeypatch):
    "Gradient steps cost time: an arm that takes four times as many is cut off early; without a measurement there is no column."
    from abs_lab.reports import sentences
    runs = [r for r in study(5) if r["params"]["arm"] in ARMS[:2]]
    for run in runs:
        run["params"] |= dict(agent="pqn", preset="classic", num_minibatches=4)
        if run["params"]["arm"] == ARMS[0]: run["curve"]["gradient_steps"] = [4 * n for n in run["curve"]["gradient_steps"]]
        run["curve"]["return"] = [s / 1_000 for s in run["curve"]["step"]]
    monkeypatch.setattr(sentences.resources, "files", lambda _: tmp_path)
    sentences._seconds.cache_clear()
    assert not [name for name in sentences.contrasts(runs, [("", *ARMS[:2])]) if "equal time" in name] and "On a quiet core (s)" not in sentences.cost(runs)
    (tmp_path/"seconds.json").write_text(json.dumps(dict(tasks=[dict(agent="pqn", env_id="LunarLander-v3", preset="classic", seconds=dict(step=0.0, gradient_step=1e-3, row=0.0))])))
    sentences._seconds.cache_clear()
    try: table, cost = sentences.contrasts(runs, [("", *ARMS[:2])]), sentences.cost(runs)
    finally: monkeypatch.undo(), sentences._seconds.cache_clear()
    assert table["training return at equal time: arm higher"][0].startswith("0 %") and table["training return, last fifth: arm higher"][0].startswith("50 %")
    assert list(cost["On a quiet core (s)"]) == [f"{1e-3 * 4 ** (i == 0) * runs[5 * i]['result']['gradient_steps']:,.0f}" for i in range(2)]
