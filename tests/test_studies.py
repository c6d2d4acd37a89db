"The studies: every scale of each gives a grid that can be run, every figure notebook renders, and they run from end to end."
import json, re, shutil, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abs_lab import cli
from abs_lab.core.simulators import change_moments
from abs_lab.reports import figures, pages, sentences, stats
from abs_lab.studies import catalogue, grids, results
from abs_lab.runs.config import configure, earliest_change
from abs_lab.core.controllers import Replayed
from abs_lab.studies.engine import _notebook_parameters, check_grid, reproduce
from abs_lab.core.interfaces import AbsLabError
from abs_lab.studies.grids import configs_of, mean_schedule, scheduled, schedules
from abs_lab.studies.results import compact
from abs_lab.runs.runner import read_config, run
from abs_lab.runs.storage import config_json, read_jsonl, result_of, run_id, write_json, write_sealed
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.study import APART

ROOT = Path(__file__).resolve().parent.parent
SCALES = [(name, scale) for name, study in STUDIES.items() for scale in study.scales]


def whole(study, scale, **more):
    "The grid with the arms that follow others, at invented schedules."
    found = {(task, arm, *seed): dict(starts=[0, 5_000], sizes=[16, 32]) for task in study.tasks for arm in study.replayed for seed in ((), *((s,) for s in range(20)))}
    return study.grid(scale, schedules=found, **more)


SCALES_OF_SIGNALS = {"divergence D": 1, "softmax KL (nats)": 1e-3, "KL divergence (nats)": 1e-2, "tr(Σ)/|G|² (transitions)": 1e4, "|G|²/tr(Σ) (1 / transitions)": 1e-2}  # a signal in its meter's own unit


def invented(point, config, level):
    "The small file of a run that nobody trained."
    rng, n = np.random.default_rng([config.seed, level, *config.id.encode()]), 12
    share = np.linspace(1 / n, 1, n)
    size = [config.controller.smallest + int(s * (config.controller.largest - config.controller.smallest)) for s in share]
    steps = [int(s * config.total_steps) for s in share]
    gradient = [int(s * config.total_steps * 4 * 2 / (32 * config.env.num_envs)) + 1 for s in share]
    curve = dict(step=steps, gradient_steps=gradient, size=size, epochs=[2] * n, seconds=(7 * share).tolist(),
                 signal=(SCALES_OF_SIGNALS[figures.unit(dict(params=config.flat(), curve={}))] * np.clip(0.5 - 0.3 * share + rng.normal(0, 0.05, n), 0.01, 1)).tolist(), thresholds=None)
    curve["return"] = [None, *(level + 100 * share + rng.normal(0, 9, n))[1:].tolist()]
    for name in ("dormant", "rank", "weight_norm") if config.controller.smallest < 64 else ():  # too few updates to measure them
        curve[name] = [None, *rng.uniform(0, 1, n - 1).tolist()]
    if hasattr(config.controller, "low"): curve["thresholds"] = [config.controller.low, config.controller.high]
    atari = config.env.env_id in stats.ATARI_SCORES
    result = dict(status="finished", steps=config.total_steps, updates=n, gradient_steps=gradient[-1], measurements=n, seconds=7.0, train_return=1.0, episodes=3 * n,
                  mean_size=float(np.mean(size)), final_size=size[-1], frames=4 * config.total_steps if atari else None, eval=dict(mean=float(level + rng.normal(0, 30))),
                  commit="0" * 12, versions=dict(python="3", torch="2"), hardware=dict(cpu="an invented one", cores=2), device="cpu")
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
    assert {p["arm"] for p in grid} <= set(study.arms) and all(set(p) & set(APART) == set() for p in grid)
    if not scale.startswith("smoke"):
        late = {c.id: earliest_change(c) for c in configs if c.names[2] == "abs" and c.names[3] == "divergence" and earliest_change(c) > 0.15}
        assert not late, late
    _notebook_parameters(ROOT/study.figures)


def test_a_name_that_papermill_would_inject_for_nothing_is_refused():
    good = "# Parameters\nenv_id = 'CartPole-v1'\nsize_min = 3\narm = 'a'\nrun_dir = 'x'\n"
    grids.check_injected(["", "controler = 3", good], "btr")                # what a person wrote is not papermill's
    with pytest.raises(AbsLabError, match="unknown parameter of btr 'controler'; did you mean controller"): grids.check_injected([good, "# Parameters\ncontroler = 'fixed'\n"], "btr")
    for agent in ("pqn", "ppo", "btr"): assert f'check_injected(In, \\"{agent}\\")' in (ROOT/"nbs"/"experiments"/f"{agent}.ipynb").read_text()


@pytest.mark.parametrize("name", [n for n in STUDIES if n not in ("quick", "sanity", "tasks")])
def test_no_preset_decides_unseen_about_rate_and_epochs(name):
    for scale in STUDIES[name].scales:
        for p in whole(STUDIES[name], scale):
            if p.get("agent") == "btr":                                        # its rate never falls, and epochs are gradient steps
                assert p["coupling"] == "steps"
                continue
            assert "anneal_lr" in p and "epochs_rule" in p
            falls = "constant rate" not in p["arm"] if p.get("agent") == "ppo" else "decayed rate" in p["arm"]   # PPO's is published as falling
            assert p["anneal_lr"] == falls, p["arm"]


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
@pytest.mark.parametrize("name", ["btr-batch", "btr-ladder"])
def test_exploration_at_random_outlasts_the_start_of_learning_and_ends(name, scale):
    for p in whole(STUDIES[name], scale):
        c = configure(**{k: v for k, v in p.items() if k != "arm"})
        assert c.agent.learning_starts < c.agent.epsilon_fraction * c.total_steps <= c.agent.epsilon_off * c.total_steps
        if scale != "cpu": assert c.agent.epsilon_fraction * c.total_steps == 2_000_000   # as published


def test_all_that_is_asked_for_is_there():
    assert set(STUDIES) == {"quick", "sanity", "atari-pqn", "scaling", "output-norm", "adaptive", "late", "controllers", "thresholds", "why", "divergence", "plasticity",
                            "tasks", "pqn-parity", "ppo-parity", "ppo-mujoco", "btr-batch", "btr-ladder"}
    for name in set(STUDIES) - {"quick", "sanity", "tasks", "output-norm", "adaptive", "late", "pqn-parity", "ppo-parity", "ppo-mujoco"}: assert {"smoke", "cpu", "gpu", "paper"} <= set(STUDIES[name].scales), name
    assert {"smoke", "cpu", "paper"} <= set(STUDIES["ppo-mujoco"].scales)


def test_games_are_those_of_the_scores():
    assert set(catalogue.ATARI57) == set(stats.ATARI_SCORES) and len(catalogue.ATARI57) == 57
    assert set(catalogue.ATARI5) == {"BattleZone-v5", "DoubleDunk-v5", "NameThisGame-v5", "Phoenix-v5", "Qbert-v5"}
    assert set(catalogue.ATARI10) - set(catalogue.ATARI5) == {"Amidar-v5", "Bowling-v5", "Frostbite-v5", "KungFuMaster-v5", "Riverraid-v5"}


def test_whole_comparisons_come_first():
    for name in ("why", "controllers", "thresholds", "divergence", "plasticity"):
        grid = whole(STUDIES[name], "cpu")
        lander = [p["env_id"] == "LunarLander-v3" for p in grid]
        assert lander == sorted(lander, reverse=True)                      # all of LunarLander first …
        for task in ("LunarLander-v3", "MinAtar/Breakout-v1"):
            seeds = [p["seed"] for p in grid if p["env_id"] == task]
            arms = [arm for arm, params in STUDIES[name].arms.items() if task in params.get("tasks", [task])]
            assert seeds == sorted(seeds) and seeds.count(0) == len(arms) > 5                  # … then seed by seed, every arm of the task


# -- replayed schedules --------------------------------------------------------------------------------------------------

def test_a_schedule_waits_for_every_run_and_is_reproducible(tmp_path):
    study = STUDIES["why"]
    grid = fabricate(study, "cpu", tmp_path, seeds=3)
    configs = check_grid(ROOT/study.notebook, grid)
    means = lambda found: {key: schedule for key, schedule in found.items() if len(key) == 2}
    found = means(schedules(study.replayed, grid, configs, [tmp_path]))
    assert set(found) == {(task, arm) for task in ("LunarLander-v3", "MinAtar/Breakout-v1") for arm in study.replayed}
    assert found == means(schedules(study.replayed, grid[::-1], configs[::-1], [tmp_path]))
    second = study.grid("cpu", 3, found)
    assert len(second) == len(study.grid("cpu", 3)) + 2 * 2 * 3
    assert [p["sizes"] for p in second if p["arm"] == "replayed ABS 16–64"][0] == found["LunarLander-v3", "ABS 16–64"]["sizes"]
    one = next(c for p, c in zip(grid, configs) if p["arm"] == "ABS 16–64" and p["env_id"] == "LunarLander-v3")
    (tmp_path/f"{one.id}.json").unlink()
    assert set(means(schedules(study.replayed, grid, configs, [tmp_path]))) == set(found) - {("LunarLander-v3", "ABS 16–64")}


def test_a_replayed_schedule_stays_when_seeds_are_added():
    why, data = STUDIES["why"], ROOT/"reports"/"why"/"data"
    committed = {small["id"] for path in data.glob("*.json") if (small := json.loads(path.read_text()))["params"]["arm"].startswith("replayed")}
    ids = lambda study: {c.id for c in configs_of(scheduled(study, "cpu", None, [data])[0])}
    assert len(committed) >= 20 and committed <= ids(why)                                                  # of seeds 0 to 9, whose means they play
    assert not {id for id in committed if id.startswith("LunarLander")} & ids(replace(why, replayed_seeds=9))  # others come of others
    assert not {id for id in committed if id.startswith("LunarLander")} & ids(replace(why, replayed_seeds=0))  # and of all twenty nobody knows yet
    with pytest.raises(AbsLabError, match="replayed_seeds .*not -1; the nearest is 0"): replace(why, replayed_seeds=-1)


def test_a_mean_schedule_is_a_size_that_was_possible(tmp_path):
    runs = [dict(params=dict(multiple=32), schedule=dict(ends=[100, 200], sizes=sizes)) for sizes in ([32, 64], [32, 96], [32, 96])]
    assert mean_schedule(runs) == dict(starts=[0, 100], sizes=[32, 96])


def test_a_schedule_is_as_fine_as_the_run_however_few_points_are_kept(tmp_path, monkeypatch):
    config = configure(env_id="CartPole-v1", controller="ramp", size_min=4, size_max=24, num_envs=8, total_steps=16_000, eval_envs=2)
    run(config, tmp_path)
    rows, schedule = read_jsonl(tmp_path/"steps.jsonl"), mean_schedule([compact(tmp_path, "ramp")])
    monkeypatch.setattr(results, "POINTS", 5)
    few = compact(tmp_path, "ramp")
    assert len(few["curve"]["step"]) == 5 and len(rows) > 100 and len(schedule["sizes"]) > 15 and mean_schedule([few]) == schedule
    replayed = Replayed(**schedule)
    assert [replayed.at(row["step"] - row["size"] * 8) for row in rows] == [row["size"] for row in rows]


# -- what is committed ---------------------------------------------------------------------------------------------------

def strays(study, scale, data):
    "Small files that are no run of a study at a scale, whatever the number of seeds, or bear another arm's label."
    files = {f.stem: results.read_result(f) for f in data.glob("*.json")}
    lists = [grids.scheduled(study, scale, seeds, [data])[0] for seeds in (None, 1 + max(f["params"]["seed"] for f in files.values()))]
    arms = {c.id: p["arm"] for grid in lists for p, c in zip(grid, grids.configs_of(grid))}
    return {id: f["params"]["arm"] for id, f in files.items() if arms.get(id) != f["params"]["arm"] or f.get("study") not in (None, data.parent.name)}


FOLDERS = {results.folder_of(name, scale): (name, scale) for name, scale in SCALES}

@pytest.mark.parametrize("folder", sorted(d.parent.name for d in (ROOT/"reports").glob("*/data")))
def test_every_committed_run_belongs_to_its_study(folder):
    name, scale = FOLDERS[folder]
    assert strays(STUDIES[name], scale, ROOT/"reports"/folder/"data") == {}


def test_a_run_of_another_study_or_arm_is_found(tmp_path):
    for f in sorted((ROOT/"reports"/"quick"/"data").glob("*-s0-*.json")): shutil.copy(f, tmp_path)
    own, other = sorted(tmp_path.iterdir())[0], sorted((ROOT/"reports"/"why"/"data").glob("*.json"))[0]
    small = json.loads(own.read_text())
    assert strays(STUDIES["quick"], "cpu", tmp_path) == {}
    shutil.copy(other, tmp_path)
    own.write_text(json.dumps(small | dict(params=small["params"] | dict(arm="another"))))
    assert set(strays(STUDIES["quick"], "cpu", tmp_path)) == {own.stem, other.stem}


# -- figures -------------------------------------------------------------------------------------------------------------

def render(study, **params):
    "Run the code of a figure notebook here, with these parameters: a kernel for each would take longer than the figures."
    names = {}
    for cell in json.loads((ROOT/study.figures).read_text())["cells"]:
        if cell["cell_type"] == "code": exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []): names |= params


def test_the_page_of_tasks_counts_what_every_seed_reached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    for point in (grid := fabricate(STUDIES["tasks"], "cpu", tmp_path/"data")):
        path = tmp_path/"data"/f"{configure(**{k: v for k, v in point.items() if k != 'arm'}).id}.json"
        run = json.loads(path.read_text())
        run["result"]["eval"]["mean"] = 480.0 if point["seed"] or point["env_id"] != "CartPole-v1" else 474.0   # one seed of one task just fails
        if point["env_id"] == "MinAtar/Freeway-v1" and point["arm"] == "PPO": run["result"]["eval"] |= dict(returns=[480.0] * 3, lengths=[9] * 3, unfinished=2)
        path.write_text(json.dumps(run))
    render(STUDIES["tasks"], data_dir=[str(tmp_path/"data")], report_dir=str(tmp_path/"report"), missing=["a run"])  # folders, as where a study is not published
    said = capsys.readouterr().out
    assert "PQN: 16 of 16 tasks are tested with every seed, and 14 of these are met. Not met: CartPole-v1, MinAtar/SpaceInvaders-v1." in said
    assert "PPO: 20 of 20 tasks are tested with every seed, and 17 of these are met. Not met: CartPole-v1, InvertedDoublePendulum-v4, MinAtar/SpaceInvaders-v1." in said
    assert "BTR: 5 of 5 tasks are tested with every seed, and 4 of these are met. Not met: CartPole-v1." in said
    page = (tmp_path/"report"/"index.html").read_text()
    assert page.count("mean 480, 10 of 15 episodes cut off") == 1
    assert "a run" in page and "lowest 474" in page and not re.search(r'(src|href)="(https?:)?//', page) and page.count('class="plot"') == 2
    assert len((tmp_path/"report"/"results.csv").read_text().splitlines()) == len(grid) + 1


@pytest.mark.parametrize("name", [n for n in STUDIES if n not in ("sanity", "ppo-parity", "tasks")])
def test_every_figure_notebook_renders(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")                     # no static images: a browser for each is slow
    study = STUDIES[name]
    grid = fabricate(study, "smoke", tmp_path/"data", seeds=2)
    report = tmp_path/"reports"/name
    render(study, data_dir=[str(tmp_path/"data")], report_dir=str(report), missing=["an arm, seed 9"])
    page = (report/"index.html").read_text()
    assert "an arm, seed 9" in page and "too few seeds" in page and page.count('class="plot"') >= 4
    assert not re.search(r'(src|href)="(https?:)?//', page)                # opens without a network
    assert len((report/"results.csv").read_text().splitlines()) == len(grid) + 1
    arms = {p["arm"] for p in grid}
    assert all(arm in page for arm in arms)
    if name != "quick": assert (report/"compare.md").read_text().count("\n| ") >= len(arms)


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.primary])
def test_a_page_answers_what_was_written_down(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    fabricate(STUDIES[name], "cpu", tmp_path/"data", seeds=5)
    render(STUDIES[name], data_dir=str(tmp_path/"data"), report_dir=str(tmp_path/"report"))
    page = (tmp_path/"report"/"index.html").read_text()
    assert "Written down before the first run." in page and "over 5 seeds" in re.search("The contrast written down beforehand, [^<]*", page)[0]


def panels(fig):
    "Title of each panel over one another -> its y axis and the heights of its lines."
    titles = [note.text for note in fig.layout.annotations]
    axes = [fig.layout["yaxis" + (str(i) if i > 1 else "")] for i in range(1, len(titles) + 1)]
    return {title: (axis, [s.y0 for s in fig.layout.shapes if s.yref.split()[0] == "y" + (str(i) if i > 1 else "")]) for i, (title, axis) in enumerate(zip(titles, axes), 1)}


def test_signals_of_different_units_share_neither_axis_nor_thresholds(tmp_path):
    fabricate(STUDIES["controllers"], "smoke", tmp_path, seeds=2)
    runs = figures.by_task(figures.load(tmp_path, STUDIES["controllers"].arms))["LunarLander-v3"]
    found, table = panels(figures.divergence(runs)), sentences.divergence_table(runs).set_index("Arm")
    assert set(found) == set(STUDIES["controllers"].arms)
    (share, lines), (noise, none), (reciprocal, own) = (found[arm] for arm in ("ABS 16–64", "GNS 16–64", "ABS 16–64 on gradient noise"))
    assert (share.title.text, noise.title.text, reciprocal.title.text) == ("divergence D", "tr(Σ)/|G|²<br>(transitions)", "|G|²/tr(Σ)<br>(1 / transitions)")
    assert (lines, none, own) == ([0.05, 0.95], [], [1 / (64 * 32), 1 / (16 * 32)])        # 32 environments
    assert found["fixed 16"][0].range == share.range and share.range[1] < 1.2 and found["fixed 16"][1] == []
    assert noise.type == reciprocal.type == "log" and noise.range[0] > 1 > reciprocal.range[1] and noise.range == found["GNS 16–64, decayed rate"][0].range
    assert reciprocal.range[0] < np.log10(1 / (64 * 32))                                      # its thresholds are seen
    assert table.loc["GNS 16–64", ["Signal", "Points above high", "Acts on"]].tolist() == ["tr(Σ)/|G|² (transitions)", "–", "nothing"]
    assert table.loc["ABS 16–64 on gradient noise", "Acts on"] == "0.000488, 0.00195" and table.loc["fixed 16", "Points below low"] == "0 %"
    assert float(table.loc["ABS 16–64 on gradient noise", "Mean, last tenth"]) > 0


def test_softmax_kl_has_a_panel_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    fabricate(STUDIES["divergence"], "smoke", tmp_path/"data", seeds=2)
    space, made = dict(data_dir=str(tmp_path/"data"), report_dir=str(tmp_path/"reports"/"divergence"), allow_mixed_commits=False, ids=[], missing=[]), []
    monkeypatch.setattr(figures, "curves", lambda *args, real=figures.curves, **more: made.append(real(*args, **more)) or made[-1])
    for cell in json.loads((ROOT/STUDIES["divergence"].figures).read_text())["cells"]:
        if cell["cell_type"] == "code" and not cell["metadata"].get("tags"): exec("".join(cell["source"]), space)
    fig = next(fig for fig in made if any("softmax" in (note.text or "") for note in fig.layout.annotations))
    of = {title: axis for title, (axis, _) in panels(fig).items()}
    assert of["Which distance: divergence D"].title.text == "divergence D" and of["Which distance: softmax KL (nats)"].title.text == "softmax KL (nats)"
    assert all(axis.matches is None for axis in of.values())
    kl, d = ([t for t in fig.data if t.name == arm and t.showlegend] for arm in ("fixed 32, softmax KL", "fixed 32"))
    assert kl[0].yaxis != d[0].yaxis and max(kl[0].y) < 0.01 < max(d[0].y)


def test_a_page_of_many_tasks_begins_with_what_they_say_together(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    fabricate(STUDIES["atari-pqn"], "gpu-10", tmp_path/"data", seeds=2)
    runs = pages.finished("atari-pqn", tmp_path/"data")
    page = pages.study("atari-pqn", runs, tmp_path/"reports"/"atari-pqn", [("Size", "ABS 16–64", "fixed 32")]).read_text()
    together, every = page.split("<h2>Every task</h2>")
    assert "10 tasks" in together
    assert "Amidar-v5" in every and "human-normalised score" in together and every.count('class="plot"') == 1
    table = (tmp_path/"reports"/"atari-pqn"/"compare.md").read_text().split("\n\n")[2].split("\n")
    assert table[0] == "| Task | " + " | ".join(STUDIES["atari-pqn"].arms) + " |" and len(table) == 2 + 10 + 1
    assert len(pages.what_was_run(runs)) == 1


def test_parity_says_which_intervals_touch_and_which_lie_apart(tmp_path):
    "Three invented seeds near CleanRL's Hopper, three far from its HalfCheetah, and one run that decides nothing."
    grid = [p for p in fabricate(STUDIES["ppo-parity"], "cpu", tmp_path/"data")]
    for point in grid:
        path = tmp_path/"data"/f"{configure(**{k: v for k, v in point.items() if k != 'arm'}).id}.json"
        small, one = json.loads(path.read_text()), point["arm"] == "CleanRL's settings"
        small["result"]["train_return"] = {"Hopper-v4": 2400.0, "HalfCheetah-v4": 3000.0}.get(point["env_id"], 1.0) + point["seed"]
        if point["env_id"] in ("Hopper-v4", "HalfCheetah-v4") and one or point["seed"] == 0: path.write_text(json.dumps(small))
        else: path.unlink()
    report = tmp_path/"reports"/"ppo-parity"
    render(STUDIES["ppo-parity"], data_dir=str(tmp_path/"data"), report_dir=str(report), missing=["an arm, seed 9"])
    page = (report/"index.html").read_text()
    assert "an arm, seed 9" in page and "64 environments, with bootstrapping, made" in page
    table = (report/"compare.md").read_text()
    assert re.search(r"Hopper-v4 \| CleanRL's settings \| 3 .*\| touch \|", table) and re.search(r"HalfCheetah-v4 \| CleanRL's settings \| 3 .*\| apart \|", table)
    assert table.count("too few seeds") == 14 and "touch on 1 of 2 tasks (apart on HalfCheetah-v4" in page and "our mean itself lies in the published interval on 1." in page


# -- kinds that this library does not have -------------------------------------------------------------------------------

@pytest.mark.parametrize("agent, env_id, more", [("pqn", "CartPole-v1", dict(num_envs=8, total_steps=2_000)), ("ppo", "Pendulum-v1", dict(preset="mujoco_64", num_envs=8, size_min=32, size_max=64, multiple=4, total_steps=2_048))])
def test_a_small_file_keeps_every_number_that_was_logged(tmp_path, agent, env_id, more):
    run(configure(agent, env_id=env_id, eval_envs=2, **more), tmp_path)
    rows, curve = read_jsonl(tmp_path/"steps.jsonl"), compact(tmp_path, "a")["curve"]
    numbers = {k for row in rows for k, v in row.items() if isinstance(v, (int, float))} - {"update", "rollout", "minibatch"}
    assert numbers | {"return", "seconds", "thresholds"} == set(curve) and all(len(v) == len(curve["step"]) <= 50 for k, v in curve.items() if k != "thresholds")
    if agent == "ppo": assert {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance"} < set(curve)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    "Small files of runs whose agent, controller and meter are of a package that is not here: real ones under other names."
    root, files = tmp_path_factory.mktemp("foreign"), []
    for arm, seed in (("theirs", 0), ("theirs", 1), ("ours", 0), ("ours", 1)):
        names = dict(agent="gone_pkg.sac:SAC", controller="gone_pkg.aimd:AIMD", meter="gone_pkg.fisher:Fisher") if arm == "theirs" else {}
        config = configure(env_id="CartPole-v1", num_envs=8, total_steps=2_000, eval_envs=2, controller="abs", seed=seed)
        dir = root/f"{arm}{seed}"
        run(config, dir)
        found = config_json(dir)
        found["config"] |= names
        found["identity"] |= names
        for kind, name in names.items(): found["kinds"][kind]["name"] = name
        if names:
            found["kinds"]["meter"]["signal"] = ["Fisher norm", "1 / step"]
            found["kinds"]["agent"] |= dict(size=["horizon", "steps"])
        found["id"] = run_id(config.env.env_id, found["config"]["controller"], seed, found["identity"])
        write_sealed(dir/"result.json", result_of(dir) | dict(id=found["id"]))
        write_sealed(dir/"config.json", found)
        files.append(compact(dir, arm) | dict(study="theirs"))
    return files


def test_runs_of_kinds_that_cannot_be_imported_are_merged_looked_at_and_drawn(foreign, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    monkeypatch.setenv("ABS_LAB_REPORTS_DIR", str(tmp_path/"reports"))
    for small in foreign: results.save_result(small, tmp_path/"carried")
    (tmp_path/"runs"/"theirs").mkdir(parents=True)
    write_json(tmp_path/"runs"/"theirs"/"study.json", dict(study="theirs", trains_here=False, runs=[[f["id"], f["params"]["arm"], 2_000] for f in foreign]))
    assert cli.main(["merge", str(tmp_path/"carried")]) == 0 and "4 taken" in capsys.readouterr().out
    assert cli.main(["status"]) == 0 and capsys.readouterr().out == "theirs: 4 of 4 runs finished\n"
    runs = pages.finished("theirs", tmp_path/"reports"/"theirs"/"data", arms=["theirs", "ours"])
    page = pages.study("theirs", runs, tmp_path/"page"/"theirs", [("Theirs or ours", "theirs", "ours")], question="Is theirs better?").read_text()
    assert "Fisher norm (1 / step)" in page and r"horizon\u003cbr\u003e(steps)" in page and "The Fisher norm of theirs was" in page and "gone_pkg.aimd:AIMD" in page
    assert set(panels(figures.divergence(runs))) == {"theirs", "ours"} and [axis.title.text for axis, _ in panels(figures.divergence(runs)).values()] == ["Fisher norm<br>(1 / step)", "divergence D<br>(share of states)"]
    assert not [m for m in sys.modules if m.startswith("gone_pkg")]


def test_a_controller_of_somebody_elses_has_one_colour_on_every_page(foreign):
    theirs = [run for run in foreign if run["params"]["arm"] == "theirs"]
    colour = figures.styles({"theirs": theirs})["theirs"][0]
    assert colour == figures.styles({"other": [r for r in foreign if r not in theirs], "theirs": theirs})["theirs"][0]
    assert colour not in {*figures.CONTROLLER_COLOURS.values(), *figures.FIXED.values(), "#009E73"}
    several = {name: figures._colour(dict(controller=name)) for name in ("a:A", "b:B", "c:C", "d:D")}
    assert len(set(several.values())) > 1 and several == {name: figures._colour(dict(controller=name)) for name in several}


@pytest.mark.parametrize("distance, said", [("kl", "KL divergence (nats)"), ("symmetric_kl", "symmetric KL (nats)"), ("mean_shift", "shift of the mean (standard deviations)"), ("total_variation", "total variation")])
def test_every_distance_has_its_name_on_the_axis(distance, said):
    assert figures.unit(dict(params=dict(distance=distance), curve={})) == said


# -- from end to end -----------------------------------------------------------------------------------------------------

def smoke(name, tmp_path, monkeypatch, **more):
    "Reproduce a study at its smallest scale."
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    monkeypatch.setenv("ABS_LAB_REPORTS_DIR", str(tmp_path/"reports"))
    monkeypatch.setenv("ABS_LAB_DEVICE", "cpu")
    page, failures, _ = reproduce(name, "smoke", jobs=2, **more)
    assert not failures and page.exists(), failures
    return page, [json.loads(f.read_text()) for f in (page.parent/"data").glob("*.json")]


@pytest.mark.long
def test_a_study_of_two_tasks_and_two_stages_runs_from_end_to_end(tmp_path, monkeypatch):
    few = {arm: STUDIES["why"].arms[arm] for arm in ("ABS 16–64", "replayed ABS 16–64")}
    monkeypatch.setitem(STUDIES, "why", replace(STUDIES["why"], arms=few, scales=dict(smoke=STUDIES["why"].scales["smoke"] | dict(total_steps=8_000))))
    page, runs = smoke("why", tmp_path, monkeypatch)
    by = {(r["params"]["env_id"], r["params"]["arm"]): r for r in runs}
    assert len(by) == len(runs) == 2 * 2
    for task in ("LunarLander-v3", "MinAtar/Breakout-v1"):
        again, source = by[task, "replayed ABS 16–64"], by[task, "ABS 16–64"]
        assert dict(starts=again["params"]["starts"], sizes=again["params"]["sizes"]) == mean_schedule([source])
        assert max(source["curve"]["size"]) > 16 and again["curve"]["size"] == source["curve"]["size"]     # of one seed the mean is the run itself
    assert "How to read this page" in page.read_text() and (page.parent/"why.ipynb").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_runs_at_smoke_scale(name, tmp_path, monkeypatch):
    page, runs = smoke(name, tmp_path, monkeypatch)
    assert {r["params"]["arm"] for r in runs} == {p["arm"] for p in whole(STUDIES[name], "smoke")}  # `divergence` has the larger networks on Atari alone
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


def test_a_task_changes_again_and_again_at_moments_of_its_seed(tmp_path):
    small = dict(env_id="CartPole-v1", controller="fixed", size=16, num_envs=16, total_steps=4_096, eval_envs=4)
    assert change_moments(0, 1_500, 4_096) == [1409, 3240, 4064, 5827]
    rows = {}
    for every in (0, 1_500):
        run(configure(**small, change_every=every), tmp_path/str(every))
        rows[every] = [{k: v for k, v in r.items() if k != "seconds"} for r in read_jsonl(tmp_path/str(every)/"steps.jsonl")]
    assert rows[0][:5] == rows[1_500][:5] and rows[0][5] != rows[1_500][5]    # the sixth update ends at 1,536
    assert configure(**small, change_every=1_500).id != configure(**small).id == configure(**small, change_every=0).id


def test_a_rate_takes_its_factors_where_a_rollout_begins(tmp_path):
    small = dict(preset="classic", env_id="CartPole-v1", controller="fixed", size=16, num_envs=16, total_steps=1_024, eval_envs=2, lr=1e-3)
    run(configure(**small, lr_starts=[0, 300], lr_factors=[1, 0.25]), tmp_path)
    assert [row["lr"] for row in read_jsonl(tmp_path/"steps.jsonl")] == [1e-3, 1e-3, 2.5e-4, 2.5e-4]   # rollouts begin at 0, 256, 512 and 768
    assert read_config(tmp_path).agent.lr_factors == (1, 0.25) and read_config(tmp_path).id == configure(**small, lr_starts=[0, 300], lr_factors=[1, 0.25]).id


@pytest.mark.parametrize("wrong, said", [(dict(change_every=4_096), "change_every must be below total_steps"), (dict(change_at=4_096), "change_at must come before total_steps"), (dict(change_at=-1), "change_at")])
def test_a_change_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(AbsLabError, match=said): configure(env_id="CartPole-v1", total_steps=4_096, **wrong)
