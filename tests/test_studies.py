"The studies: every scale of each gives a grid that can be run, every figure notebook renders, and they run from end to end."
import json, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abs_lab import stats, studies
from abs_lab.config import configure, earliest_change
from abs_lab.controllers import Replayed
from abs_lab.engine import _notebook_parameters, check_grid, reproduce
from abs_lab.plan import AbsLabError
from abs_lab.results import compact, mean_schedule, schedules
from abs_lab.runs import run
from abs_lab.storage import read_jsonl
from abs_lab.studies import STUDIES
from abs_lab.workers import execute

ROOT = Path(__file__).resolve().parent.parent
SCALES = [(name, scale) for name, study in STUDIES.items() for scale in study.scales]


def whole(study, scale, **more):
    "The grid with the arms that replay others, at invented schedules."
    found = {(task, arm): dict(starts=[0, 5_000], sizes=[16, 32]) for task in study.tasks for arm in study.replayed}
    return study.grid(scale, schedules=found, **more)


def invented(point, config, level):
    "The small file of a run that nobody trained."
    rng, n = np.random.default_rng([config.seed, level, *config.id.encode()]), 12
    share = np.linspace(1 / n, 1, n)
    size = [config.controller.smallest + int(s * (config.controller.largest - config.controller.smallest)) for s in share]
    steps = [int(s * config.total_steps) for s in share]
    gradient = [int(s * config.total_steps * 4 * 2 / (32 * config.env.num_envs)) + 1 for s in share]
    curve = dict(step=steps, gradient_steps=gradient, size=size, epochs=[2] * n, episodes=[3] * n, seconds=[s / 1e4 for s in steps],
                 signal=np.clip(0.5 - 0.3 * share + rng.normal(0, 0.05, n), 0.01, 1).tolist(), thresholds=None)
    curve["return"] = [None, *(level + 100 * share + rng.normal(0, 9, n))[1:].tolist()]
    for name in ("dormant", "rank", "weight_norm") if config.controller.smallest < 64 else ():  # too few updates to measure them
        curve[name] = [None, *rng.uniform(0, 1, n - 1).tolist()]
    if hasattr(config.controller, "low"): curve["thresholds"] = [config.controller.low, config.controller.high]
    atari = config.env.env_id in stats.ATARI_SCORES
    result = dict(status="finished", steps=config.total_steps, updates=n, gradient_steps=gradient[-1], measurements=n, seconds=7.0, train_return=1.0, episodes=3 * n,
                  mean_size=float(np.mean(size)), final_size=size[-1], frames=4 * config.total_steps if atari else None, eval=dict(mean=float(level + rng.normal(0, 30))),
                  commit="0" * 12, versions=dict(python="3"), hardware=dict(cpu="an invented one"), device="cpu")
    return dict(id=config.id, params=config.flat() | dict(arm=point["arm"]), result=result, curve=curve, schedule=dict(ends=steps, sizes=size))


def fabricate(study, scale, folder, **more):
    "Small files of a whole grid; returns the grid."
    folder.mkdir(parents=True, exist_ok=True)
    grid = whole(study, scale, **more)
    for i, point in enumerate(grid):
        config = configure(**{k: v for k, v in point.items() if k != "arm"})
        (folder/f"{config.id}.json").write_text(json.dumps(invented(point, config, 10 + i % 7)))
    return grid


# -- grids ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, scale", SCALES)
def test_every_scale_gives_a_grid_that_can_be_run(name, scale):
    study = STUDIES[name]
    grid = whole(study, scale)
    configs = check_grid(ROOT/study.notebook, grid)                        # unknown names, bad values, duplicates
    assert len({c.id for c in configs}) == len(configs) > 0
    assert {p["arm"] for p in grid} <= set(study.arms) and all(set(p) & set(studies.APART) == set() for p in grid)
    if not scale.startswith("smoke"):
        late = {c.id: earliest_change(c) for c in configs if c.names[2] == "abs" and c.names[3] == "divergence" and earliest_change(c) > 0.15}
        assert not late, late
    _notebook_parameters(ROOT/study.figures)


@pytest.mark.parametrize("name", [n for n in STUDIES if n not in ("quick", "sanity")])
def test_no_preset_decides_unseen_about_rate_and_epochs(name):
    for scale in STUDIES[name].scales:
        for p in whole(STUDIES[name], scale):
            assert "anneal_lr" in p and "epochs_rule" in p
            falls = "constant rate" not in p["arm"] if p.get("agent") == "ppo" else "decayed rate" in p["arm"]   # PPO's is published as falling
            assert p["anneal_lr"] == falls, p["arm"]


def test_all_that_is_asked_for_is_there():
    assert set(STUDIES) == {"quick", "sanity", "atari-pqn", "scaling", "controllers", "thresholds", "why", "divergence", "plasticity",
                            "ppo-parity", "ppo-mujoco"}
    for name in set(STUDIES) - {"quick", "sanity", "ppo-parity", "ppo-mujoco"}: assert {"smoke", "cpu", "gpu", "paper"} <= set(STUDIES[name].scales), name
    assert {"smoke", "cpu", "paper"} <= set(STUDIES["ppo-mujoco"].scales)


def test_games_are_those_of_the_scores():
    assert set(studies.ATARI5) == set(stats.ATARI5) and set(studies.ATARI10) == set(stats.ATARI10) and set(studies.ATARI57) == set(stats.ATARI57)


def test_whole_comparisons_come_first():
    for name in ("why", "controllers", "thresholds", "divergence", "plasticity"):
        grid = whole(STUDIES[name], "cpu")
        lander = [p["env_id"] == "LunarLander-v3" for p in grid]
        assert lander == sorted(lander, reverse=True)                      # all of LunarLander first …
        for task in ("LunarLander-v3", "MinAtar/Breakout-v1"):
            seeds = [p["seed"] for p in grid if p["env_id"] == task]
            assert seeds == sorted(seeds) and seeds.count(0) == len({p["arm"] for p in grid})   # … then seed by seed, every arm


# -- replayed schedules --------------------------------------------------------------------------------------------------

def test_a_schedule_waits_for_every_run_and_is_reproducible(tmp_path):
    study = STUDIES["why"]
    grid = fabricate(study, "cpu", tmp_path, seeds=3)
    configs = check_grid(ROOT/study.notebook, grid)
    found = schedules(study.replayed, grid, configs, tmp_path)
    assert set(found) == {(task, arm) for task in ("LunarLander-v3", "MinAtar/Breakout-v1") for arm in study.replayed}
    assert found == schedules(study.replayed, grid[::-1], configs[::-1], tmp_path)
    second = study.grid("cpu", 3, found)
    assert len(second) == len(study.grid("cpu", 3)) + 2 * 2 * 3
    assert [p["sizes"] for p in second if p["arm"] == "replayed ABS 16–64"][0] == found["LunarLander-v3", "ABS 16–64"]["sizes"]
    one = next(c for p, c in zip(grid, configs) if p["arm"] == "ABS 16–64" and p["env_id"] == "LunarLander-v3")
    (tmp_path/f"{one.id}.json").unlink()
    assert set(schedules(study.replayed, grid, configs, tmp_path)) == set(found) - {("LunarLander-v3", "ABS 16–64")}


def test_a_mean_schedule_is_a_size_that_was_possible(tmp_path):
    runs = [dict(params=dict(multiple=32), schedule=dict(ends=[100, 200], sizes=sizes)) for sizes in ([32, 64], [32, 96], [32, 96])]
    assert mean_schedule(runs) == dict(starts=[0, 100], sizes=[32, 96])


def test_a_schedule_is_as_fine_as_the_run_however_few_points_are_kept(tmp_path):
    config = configure(env_id="CartPole-v1", controller="ramp", size_min=4, size_max=24, num_envs=8, total_steps=16_000, eval_envs=2)
    run(config, tmp_path)
    rows = read_jsonl(tmp_path/"steps.jsonl")
    schedule = mean_schedule([compact(tmp_path, "ramp", points=5)])
    assert len(rows) > 100 and len(schedule["sizes"]) > 15 and mean_schedule([compact(tmp_path, "ramp")]) == schedule
    replayed = Replayed(**schedule)
    assert [replayed.at(row["step"] - row["size"] * 8) for row in rows] == [row["size"] for row in rows]


# -- figures -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [n for n in STUDIES if n not in ("sanity", "ppo-parity")])
def test_every_figure_notebook_renders(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")                     # no static images: a browser for each is slow
    study = STUDIES[name]
    grid = fabricate(study, "smoke", tmp_path/"data", seeds=2)
    report = tmp_path/"reports"/name
    execute(ROOT/study.figures, report/f"{name}.ipynb", dict(data_dir=str(tmp_path/"data"), report_dir=str(report), missing=["an arm, seed 9"]))
    page = (report/"index.html").read_text()
    assert "an arm, seed 9" in page and "too few seeds" in page and page.count('class="plot"') >= 8
    assert not re.search(r'(src|href)="(https?:)?//', page)                # opens without a network
    assert len((report/"results.csv").read_text().splitlines()) == len(grid) + 1
    arms = {p["arm"] for p in grid}
    assert all(arm in page for arm in arms)
    if name != "quick": assert (report/"compare.md").read_text().count("\n| ") >= len(arms)


def test_parity_says_what_is_within_and_what_is_outside(tmp_path):
    "Three invented seeds near CleanRL's Hopper, three far from its HalfCheetah, and one run that decides nothing."
    grid = [p for p in fabricate(STUDIES["ppo-parity"], "cpu", tmp_path/"data")]
    for point in grid:
        path = tmp_path/"data"/f"{configure(**{k: v for k, v in point.items() if k != 'arm'}).id}.json"
        small, one = json.loads(path.read_text()), point["arm"] == "CleanRL's settings"
        small["result"]["train_return"] = {"Hopper-v4": 2400.0, "HalfCheetah-v4": 3000.0}.get(point["env_id"], 1.0) + point["seed"]
        if point["env_id"] in ("Hopper-v4", "HalfCheetah-v4") and one or point["seed"] == 0: path.write_text(json.dumps(small))
        else: path.unlink()
    report = tmp_path/"reports"/"ppo-parity"
    execute(ROOT/STUDIES["ppo-parity"].figures, report/"ppo-parity.ipynb", dict(data_dir=str(tmp_path/"data"), report_dir=str(report), missing=["an arm, seed 9"]))
    page = (report/"index.html").read_text()
    assert "an arm, seed 9" in page and "64 environments made" in page
    table = (report/"compare.md").read_text()
    assert re.search(r"Hopper-v4 \| CleanRL's settings \| 3 .*\| within \|", table) and re.search(r"HalfCheetah-v4 \| CleanRL's settings \| 3 .*\| outside \|", table)
    assert table.count("too few seeds") == 10


# -- from end to end -----------------------------------------------------------------------------------------------------

def smoke(name, tmp_path, monkeypatch, **more):
    "Reproduce a study at its smallest scale."
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    monkeypatch.setenv("ABS_LAB_REPORTS_DIR", str(tmp_path/"reports"))
    monkeypatch.setenv("ABS_LAB_DEVICE", "cpu")
    page, failures, _ = reproduce(name, "smoke", jobs=2, **more)
    assert not failures and page.exists(), failures
    return page, [json.loads(f.read_text()) for f in (page.parent/"data").glob("*.json")]


def test_a_study_of_two_tasks_and_two_stages_runs_from_end_to_end(tmp_path, monkeypatch):
    few = {arm: STUDIES["why"].arms[arm] for arm in ("ABS 16–64", "replayed ABS 16–64", "fixed 64 (2 epochs, twice the minibatches)")}
    monkeypatch.setitem(STUDIES, "why", replace(STUDIES["why"], arms=few, scales=dict(smoke=STUDIES["why"].scales["smoke"] | dict(total_steps=8_000))))
    page, runs = smoke("why", tmp_path, monkeypatch)
    by = {(r["params"]["env_id"], r["params"]["arm"]): r for r in runs}
    assert len(by) == len(runs) == 2 * 3
    for task in ("LunarLander-v3", "MinAtar/Breakout-v1"):
        again, source = by[task, "replayed ABS 16–64"], by[task, "ABS 16–64"]
        assert dict(starts=again["params"]["starts"], sizes=again["params"]["sizes"]) == mean_schedule([source])
        assert max(source["curve"]["size"]) > 16 and again["curve"]["size"] == source["curve"]["size"]     # of one seed the mean is the run itself
    assert "What this data shows" in page.read_text() and (page.parent/"why.ipynb").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_runs_at_smoke_scale(name, tmp_path, monkeypatch):
    page, runs = smoke(name, tmp_path, monkeypatch)
    assert {r["params"]["arm"] for r in runs} == set(STUDIES[name].arms)
    for arm in STUDIES[name].replayed:
        for r in [r for r in runs if r["params"]["arm"] == f"replayed {arm}"]:
            source = [s for s in runs if s["params"]["arm"] == arm and s["params"]["env_id"] == r["params"]["env_id"]]
            assert dict(starts=r["params"]["starts"], sizes=r["params"]["sizes"]) == mean_schedule(source)


# -- a task that changes on the way --------------------------------------------------------------------------------------

def test_a_change_leaves_what_came_before_it_alone(tmp_path):
    small = dict(env_id="CartPole-v1", controller="fixed", size=16, num_envs=16, total_steps=4_096, eval_envs=4)
    rows = {}
    for at in (0, 2_048):
        run(configure(**small, change_at=at), tmp_path/str(at))
        rows[at] = [{k: v for k, v in r.items() if k != "seconds"} for r in read_jsonl(tmp_path/str(at)/"steps.jsonl")]
    assert rows[0][:8] == rows[2_048][:8] and rows[0][8] != rows[2_048][8]    # 8 updates of 16 × 16 steps end at 2,048
    assert configure(**small, change_at=2_048).id != configure(**small).id == configure(**small, change_at=0).id


@pytest.mark.parametrize("wrong, said", [(dict(change_at=4_096), "change_at must come before total_steps"), (dict(change_at=-1), "change_at")])
def test_a_change_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(AbsLabError, match=said): configure(env_id="CartPole-v1", total_steps=4_096, **wrong)
