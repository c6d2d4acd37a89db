"""Statistics against values computed independently; figures and the report of `quick` on synthetic runs."""
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from abs_lab import figures, reports, stats
from abs_lab.plan import AbsLabError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/figures/quick.ipynb"
ARMS = ["fixed 16", "fixed 64 (author's epochs)", "fixed 64 (2 epochs)", "ABS 16–64", "ramp 16→64"]
scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


# ---- statistics

@given(scores)
def test_iqm_is_the_mean_of_the_middle_half(values):
    k = len(values) // 4
    np.testing.assert_allclose(stats.iqm(values), np.mean(sorted(values)[k:len(values) - k]), atol=1e-6)


def test_iqm_by_hand():
    assert stats.iqm([0, 30, 60]) == 30
    assert stats.iqm([0, 1, 2, 6, 100]) == 3
    assert stats.iqm([-1000, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    assert stats.iqm([[1, 2], [3, 4], [5, 600]]) == 3.5  # all axes pooled: 2, 3, 4, 5
    np.testing.assert_array_equal(stats.iqm([[0, 0], [1, 10], [2, 20], [9, 90]], axis=0), [1.5, 15])


@pytest.mark.parametrize("bad", [[], [1, float("nan")], [1, float("inf")]])
def test_scores_that_are_not_numbers_are_refused(bad):
    with pytest.raises(AbsLabError): stats.iqm(bad)
    with pytest.raises(AbsLabError): stats.interval(bad)


def exact_interval(values, statistic):
    draws = [statistic(draw) for draw in itertools.product(values, repeat=len(values))]
    return np.quantile(draws, [0.025, 0.975])


@pytest.mark.parametrize("statistic, plain", [(np.mean, np.mean), (np.median, np.median), (stats.iqm, lambda d: np.mean(sorted(d)[1:-1]))])
def test_interval_against_every_possible_draw(statistic, plain):
    values = [12.0, 30.0, 31.5, 47.0, 90.0]
    np.testing.assert_allclose(stats.interval(values, statistic, n=20_000), exact_interval(values, plain), atol=2)


def test_interval_against_scipy():
    values = np.random.default_rng(3).normal(200, 40, size=10)
    other = scipy.stats.bootstrap((values,), lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis), method="percentile",
                                  n_resamples=20_000, rng=np.random.default_rng(4)).confidence_interval
    np.testing.assert_allclose(stats.interval(values, n=20_000), other, atol=1.5)


def test_strata_are_drawn_apart():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 9), rng.normal(1000, 1, 6)
    low, high = stats.interval({"a": a, "b": b}, np.mean)
    assert high - low < 3  # a pooled bootstrap would give hundreds
    means = [np.concatenate([rng.choice(a, 9), rng.choice(b, 6)]).mean() for _ in range(20_000)]
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]), atol=0.1)
    square = np.stack([a[:6], b], axis=1)  # [seeds, tasks]
    assert stats.interval(square, np.mean) == stats.interval({"a": a[:6], "b": b}, np.mean)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_interval_lies_within_the_scores_or_is_not_given(values):
    limits = stats.interval(values, n=200)
    if len(values) < 5: assert limits is None
    else: assert min(values) - 1e-9 <= limits[0] <= limits[1] <= max(values) + 1e-9


def test_band_is_the_interval_at_each_point():
    curves = np.random.default_rng(1).normal(size=(7, 3))
    low, high = stats.band(curves, n=20_000)
    for i in range(3): np.testing.assert_allclose((low[i], high[i]), stats.interval(curves[:, i], n=20_000), atol=0.08)
    assert stats.band(curves[:4]) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_improvement_counts_pairs(x, y):
    won = sum((a > b) + 0.5 * (a == b) for a in x for b in y) / (len(x) * len(y))
    np.testing.assert_allclose(stats.improvement(x, y), won)
    np.testing.assert_allclose(stats.improvement(x, y), scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    np.testing.assert_allclose(stats.improvement(x, y) + stats.improvement(y, x), 1)


def test_improvement_is_averaged_over_tasks_of_unequal_size():
    assert stats.improvement({"a": [1, 1, 1, 1], "b": [0]}, {"b": [1], "a": [0]}) == 0.5
    with pytest.raises(AbsLabError, match="same tasks"): stats.improvement({"a": [1]}, {"b": [1]})
    x, y = np.arange(6.0), np.arange(6.0) + 1.5
    rng = np.random.default_rng(5)
    draws = [np.mean(rng.choice(x, 6)[:, None] > rng.choice(y, 6)) for _ in range(20_000)]
    np.testing.assert_allclose(stats.improvement_interval(x, y, n=20_000), np.quantile(draws, [0.025, 0.975]), atol=0.03)


def test_summary_shows_all_seeds_and_gives_no_interval_to_few():
    rows = [dict(arm="few", seed=s, score=v) for s, v in [(2, 30.0), (0, 10.0), (1, 20.0)]]
    rows += [dict(arm="many", seed=s, score=float(s)) for s in range(8)]
    table = stats.summarise(rows).set_index("arm")
    assert table.scores["few"] == [10, 20, 30] and table.note["few"] == "n=3: seeds shown, no interval" and np.isnan(table.low["few"])
    assert table.iqm["many"] == 3.5 and table.low["many"] < 3.5 < table.high["many"] and table.note["many"] == ""
    with pytest.raises(AbsLabError, match="appears twice"): stats.summarise(rows + rows[:1])


def test_summary_of_several_tasks_is_stratified():
    rows = [dict(arm="a", env_id=e, seed=s, score=v) for e, v in [("x", 0.0), ("y", 1.0)] for s in range(6)]
    row = stats.summarise(rows).iloc[0]
    assert (row.n, row["mean"], row.low, row.high) == (6, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("shift, words", [(1000, "a scores higher than b in this data"), (-1000, "b scores higher than a in this data"),
                                          (0, "does not show a difference"), (17, "leans towards a over b")])
def test_what_may_be_said(shift, words):
    x = np.array([3.0, 10.0, 11.0, 14.0, 30.0])
    assert words in stats.compare(x + shift, x, "a", "b")
    assert "too few seeds to conclude anything" in stats.compare(x[:3] + shift, x[:3], "a", "b")


# ---- figures, on invented runs

def invent(arm, seed, points=60, **result):
    rng, size = np.random.default_rng([seed, *arm.encode()]), 64 if "64 (" in arm else 16
    step = (np.arange(points) + 1) * 400_000 // points
    sizes = [16 + 32 * i // points for i in range(points)] if "16–64" in arm or "→" in arm else [size] * points
    gradient = (step * (0.008 if size == 16 else 0.004)).astype(int).tolist()
    curve = {"step": step.tolist(), "return": [None, *rng.normal(100, 30, points - 1).tolist()], "signal": rng.uniform(0.1, 0.4, points).tolist(),
             "size": sizes, "gradient_steps": gradient, "seconds": (step / 10_000).tolist(), "thresholds": [0.05, 0.95] if "ABS" in arm else None}
    final = dict(status="finished", steps=400_000, updates=400, gradient_steps=gradient[-1], seconds=40.0, measurements=200, mean_size=float(np.mean(sizes)),
                 final_size=sizes[-1], train_return=90.0, eval={"mean": float(rng.normal(100, 30)), "returns": [1.0]}, commit="abc", frames=None,
                 versions={"torch": "2.13.0"}, hardware={"cpu": "invented", "cores": 2, "gpu": None})
    name = re.sub(r"\W+", "-", arm)
    return {"id": f"{name}-s{seed}", "params": dict(arm=arm, seed=seed, env_id="LunarLander-v3", num_envs=64), "result": final | result, "curve": curve}


def study(seeds, **kw):
    return [invent(arm, seed, **kw) for arm in ARMS for seed in range(seeds)]


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    "Static images start a browser for every figure; nbs/15_figures.ipynb tries one."
    monkeypatch.setattr(figures, "static", lambda *_, **__: None)


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
def test_every_seed_is_drawn_and_an_arm_keeps_its_colour(make):
    for seeds in (1, 3, 6):
        fig = make(study(seeds))
        colours = {c for t in fig.data if t.mode == "lines" and t.line.width > 2 for c in [t.line.color]} | {t.marker.color for t in fig.data if t.marker.symbol == "diamond"}
        assert colours == {figures.STYLES[arm][0] for arm in ARMS}
        drawn = sum(len(t.x) for t in fig.data if t.text) if make in (figures.final, figures.wall_clock) else sum("seed" in (t.name or "") for t in fig.data)
        assert drawn == 5 * seeds
        assert max(len(t.x) for t in fig.data) <= 400  # a band goes there and back
        bands = [t for t in fig.data if t.fill == "toself"]
        assert len(bands) == (5 if seeds == 6 and make not in (figures.final, figures.wall_clock) else 0)


def test_files_that_are_no_runs_are_refused_by_name(tmp_path):
    with pytest.raises(AbsLabError, match="no run files"): figures.load(tmp_path)
    (tmp_path / "torn.json").write_text('{"id": "x", "par')
    with pytest.raises(AbsLabError, match="torn.json"): figures.load(tmp_path)
    (tmp_path / "torn.json").write_text('{"id": "x", "params": {}, "result": {}, "curve": {}}')
    with pytest.raises(AbsLabError, match="torn.json"): figures.load(tmp_path)


def test_report_of_three_seeds_concludes_nothing(tmp_path):
    page = render(study(3), tmp_path)
    assert page.count("too few seeds to conclude anything") == 4 and "n=3: seeds shown, no interval" in page
    assert "This confounds the comparison" in page and "0.05, 0.95" in page and "missing" not in page.split("<h2>Final")[0]
    table = pd.read_csv(tmp_path / "reports/quick/results.csv")
    assert len(table) == 15 and table.score.notna().all()


def test_report_of_ten_seeds_follows_the_numbers(tmp_path):
    runs = study(10)
    for run in runs:
        if run["params"]["arm"] == "ABS 16–64": run["result"]["eval"]["mean"] -= 1000
    page = render(runs, tmp_path)
    assert page.count("scores higher than ABS 16–64 in this data") == 4 and "too few seeds" not in page


def test_report_names_what_is_missing(tmp_path):
    runs = [r for r in study(3) if not (r["params"]["arm"] == "ramp 16→64" and r["params"]["seed"] == 1)]
    runs[0]["result"]["status"] = "failed"
    page = render(runs, tmp_path, missing=["ramp 16→64, seed 1", "fixed 16, seed 0"])
    assert "2 runs are missing" in page and "ramp 16→64, seed 1" in page and "fixed 16, seed 0" in page


def test_report_without_the_arm_of_interest_says_so(tmp_path):
    page = render([r for r in study(2) if "ABS" not in r["params"]["arm"]], tmp_path)
    assert "There is no finished run of ABS 16–64" in page


def test_report_of_a_few_updates(tmp_path):
    runs = study(1, points=2)
    for run in runs: run["curve"]["signal"] = [None, None]
    page = render(runs, tmp_path)
    assert "No run measured its divergence" in page


def test_commits_are_not_mixed_unless_asked(tmp_path):
    runs = study(2)
    runs[0]["result"]["commit"] = "def"
    with pytest.raises(AbsLabError, match=r"different commits: abc \(9 runs\), def \(1 runs\)"): render(runs, tmp_path / "a")
    assert "Runs of different commits are mixed here" in render(runs, tmp_path / "b", allow_mixed_commits=True)


def test_report_opens_without_a_network_and_is_reproducible(tmp_path):
    runs = study(5)
    page = render(runs, tmp_path / "a")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//[^"']*""", page) and "cdn." not in page and "mathjax" not in page.lower()
    assert page.count("<script src=") == 1 and '<script src="../plotly.min.js"' in page
    assert (tmp_path / "a/reports/plotly.min.js").stat().st_size > 1e6
    assert len(page) < 1.5e6 and page == render(runs, tmp_path / "b")


def test_names_are_data_not_html(tmp_path):
    runs = [invent("<script>alert(1)</script>", seed) for seed in range(2)]
    reports.report(tmp_path / "s/index.html", "a < b", [(reports.evaluation(runs), "c"), figures.final(runs), figures.learning_curves(runs), "d < e"])
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
