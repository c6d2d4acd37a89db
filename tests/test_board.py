"The dashboard without a browser: what it shows and sets of every agent's session, and what it costs when a run is long."
import importlib.util, json, shutil, threading, time
from dataclasses import dataclass

import numpy as np
import psutil
import pytest

for package in ("ipywidgets", "anywidget"):
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed", allow_module_level=True)

from abs_lab.core.interfaces import AbsLabError
from abs_lab.core.contract import Controller, Metric
from abs_lab.live.board import Dashboard
from abs_lab.live.browser import RunBrowser
from abs_lab.live.page import STARTS, Form, Page
from abs_lab.live.what_if import WhatIf
from abs_lab.runs import registry
from abs_lab.runs.config import configure
from abs_lab.runs.forks import repeat
from abs_lab.runs.runner import run, set_events
from abs_lab.runs.session import Session
from abs_lab.runs.traces import Trace, still
from abs_lab.runs.storage import config_json, write_sealed
from support import ROOT, assert_same_run

TASKS = {
    "pqn": dict(preset="classic", env_id="CartPole-v1", total_steps=40_000, num_envs=16, interval=1, epsilon_fraction=0.5),
    "ppo": dict(env_id="LunarLander-v3", total_steps=100_000, interval=1),
    "btr": dict(env_id="CartPole-v1", total_steps=3_000, num_envs=16, learning_starts=640, replay_size=4_000, replay_ratio=1 / 16, taus=2, interval=10, record_every=5, diagnose_every=50),
    "gaussian": dict(env_id="Pendulum-v1", num_envs=16, size_min=32, size_max=128, multiple=32, interval=1, total_steps=60_000),
}
REPORTED = {"pqn": "loss, mean Q-value, gradient norm, dormant units (share), feature rank, weight norm, steps per second",
            "ppo": "policy loss, value loss, entropy (nats), KL per update (nats), clipped (share), explained variance, gradient norm, steps per second"}
REPORTED |= {"btr": REPORTED["pqn"], "gaussian": REPORTED["ppo"]}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    for key, value in dict(THREADS="1", DEVICE="cpu", RUNS_DIR=str(tmp_path/"runs"), REPORTS_DIR=str(tmp_path/"reports")).items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)


def board_of(task, **changes):
    return Dashboard(Session(configure({"gaussian": "ppo"}.get(task, task), **dict(eval_envs=2) | TASKS[task] | changes)))


def rested(board):
    "What was asked for with the widgets reaches the session."
    time.sleep(0.25)
    board.commit()


def stepped(board, updates):
    board.session.step(updates)
    assert board.session.wait(120) == "paused"
    board.tick()


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.long) if task == "ppo" else task for task in TASKS])  # PPO is there with Gaussian actions
def test_every_agent_is_watched_steered_forked_and_filmed(task):
    updates = dict(btr=120, pqn=40).get(task, 8)
    board = board_of(task)
    stepped(board, updates)
    curves = board.plots.front.main_curves
    assert len(curves["size"].x) and len(curves["signal"].x) == len(curves["mean"].x) > 3 and len(curves["target"].x) == len(curves["mean"].x)
    assert "paused" in board.header.title.value and "aims at" in board.controls.target.value

    board.view.value = "Diagnostics"
    assert ", ".join(board.plots.diagnostics.names[name] for name in board.plots.front.diagnostic_curves) == REPORTED[task]
    assert all(len(curve.x) for curve in board.plots.front.diagnostic_curves.values())
    titles = [panel["title"] for panel in board.plots.diagnostics.figure.panels]
    assert ", ".join(titles) == REPORTED[task]

    # every control is obeyed, and the run made again from its log is the same
    board.view.value = "Live"
    fields, rule = board.controls.fields, board.session.present.controller
    fields["low"].value, fields["high"].value = fields["low"].value * 1.5, fields["high"].value * 0.8
    fields["limits"].value = (rule.size_min, rule.size_max - rule.multiple * (task != "pqn") - (task == "pqn"))
    fields["smoothing"].value, fields["map"].value, fields["window"].value, fields["interval"].value, fields["lr"].value = 0.5, "linear", 5, 2 * fields["interval"].value, fields["lr"].value / 2
    rested(board)
    assert "error" not in board.header.message.value, board.header.message.value
    stepped(board, updates // 2)
    (at, changes), = set_events(board.session.dir)
    assert at == updates and set(changes) == {"low", "high", "size_max", "smoothing", "map", "window", "interval", "lr"}
    assert board.session.run.controller.low == changes["low"] and board.session.run.agent.config.lr == changes["lr"]
    assert [line["y"] for line in board.plots.main.figure.lines] == [fields["low"].value, fields["high"].value]

    # a fork goes on beside it
    board.add(board.session.fork(total_steps=2 * board.session.config.total_steps))
    fork = board.session
    fork.step(updates // 2)
    assert fork.wait(120) == "paused"
    board.tick()
    ends = [r.main_curves["size"].x[-1] for r in board.plots.runs]
    assert len(ends) == 2 and ends[1] > ends[0] and fork.present.controller.low == changes["low"]

    # the film
    board.film.play().join()
    assert board.film.clip.shape[0] > 5 and "greedy policy at step" in board.film.status.value, board.film.status.value

    fork.stop(); fork.wait(60)
    session = board.sessions[0]
    session.resume()
    assert session.wait(240) == "finished"
    board.run_choice.index = 0
    board.tick()
    assert "finished" in board.header.title.value and session.result["interventions"] == 1


def test_a_finished_run_fills_its_axis():
    "Its last update passes the total by some steps; a fork with a larger total has the axis that it needs."
    board = board_of("pqn", total_steps=3_000)
    board.session.start()
    assert board.session.wait(120) == "finished"
    board.tick()
    assert board.plots.main.figure.x_range == [0, board.session.result["steps"]] and board.session.result["steps"] > 3_000


def test_what_was_set_of_ppo_and_btr_is_made_again_in_batch(tmp_path):
    for task in ("ppo", "btr"):
        board = board_of(task, total_steps=30_000 if task == "ppo" else 1_500)
        stepped(board, 2 if task == "ppo" else 50)
        board.controls.fields["low"].value, board.controls.fields["lr"].value = board.controls.fields["low"].value * 1.5, board.controls.fields["lr"].value / 2
        rested(board)
        board.session.resume()
        assert board.session.wait(240) == "finished"
        run(repeat(board.session.dir, tmp_path/task), tmp_path/task)
        assert_same_run(board.session.dir, tmp_path/task)


@pytest.mark.parametrize("task", TASKS)
def test_the_form_makes_every_agents_config(task):
    form, agent = Form(), {"gaussian": "ppo"}.get(task, task)
    form.top["agent"].value = agent
    form.top["env_id"].value = TASKS[task]["env_id"]
    for name, value in sorted(TASKS[task].items(), key=lambda pair: pair[0] != "preset"):  # a preset fills in the others
        if name != "env_id": (form.top if name in form.top else form.fields)[name].value = value
    assert "message quiet" in form.message.value and dict(btr="exploration at random has fallen", gaussian="limits leave no room").get(task, 'quiet"></div>') in form.message.value, form.message.value
    assert form.config() == configure(agent, **TASKS[task])
    assert form.fields["lr"].tooltip and form.top["preset"].options[0] == "auto" and len(form.top["preset"].options) > 2


def test_the_form_keeps_what_was_typed_as_far_as_it_applies():
    "Another preset, controller or agent: what it lacks waits for the next that has it; sizes and thresholds belong to an agent and a meter."
    form = Form()
    for name, value in dict(total_steps=50_000, seed=7, lr=2e-3, gamma=0.9, size_max=96, low=0.1, backend="envpool").items(): form.fields[name].value = value
    common = dict(env_id="LunarLander-v3", total_steps=50_000, seed=7, lr=2e-3, gamma=0.9, backend="envpool")
    form.top["preset"].value = "classic"
    assert form.config() == configure(preset="classic", **common, size_max=96, low=0.1) and "typed" in form.fields["low"]._dom_classes and "typed" not in form.fields["high"]._dom_classes
    form.top["controller"].value = "ramp"
    assert form.config() == configure(preset="classic", controller="ramp", **common, size_max=96) and "left out here: low" in form.message.value
    form.top["agent"].value = "ppo"                       # which has a preset of that name, too, or begins with what fits
    preset = form.top["preset"].value
    assert form.config() == configure("ppo", preset=preset, controller="ramp", **common) and form.fields["total_steps"].value == 50_000
    form.top["agent"].value, form.top["controller"].value = "pqn", "abs"
    assert form.fields["size_max"].value == 96 and form.fields["low"].value == 0.1
    form.fields["size_min"].value = 96
    form.fields["size_max"].value = 96
    form.fields["lr"].value = -1.0
    assert "lr must be" in form.message.value
    form.top["controller"].value = "fixed"                # what is refused is not kept; the rest is
    assert form.config() == configure(preset=form.top["preset"].value, controller="fixed", **{n: v for n, v in common.items() if n != "lr"})
    form.forget.click()
    assert form.config() == configure(preset=form.top["preset"].value, controller="fixed", env_id="LunarLander-v3") and not form.typed


def test_the_form_says_when_limits_leave_no_room():
    form = Form()
    form.fields["size_min"].value, form.fields["size_max"].value = 8, 16
    assert "limits leave no room: the rule truncates, and the size stays 8" in form.message.value
    form.fields["rounding"].value = "exact"
    assert "limits" not in form.message.value


def test_the_page_opens_with_runs_to_begin_with_and_the_last_live_runs(monkeypatch):
    page = Page()
    assert len(STARTS) == len(page.starts.children) == 3 and page.past.layout.display == "none"
    assert [configure(**start.params).names[::2] for start in STARTS] == [("pqn", "abs"), ("pqn", "fixed"), ("ppo", "abs")]
    for start, card in zip(STARTS, page.starts.children): assert start.shows in card.children[0].value
    page.form.fields["seed"].value = 5
    page.starts.children[1].children[1].click()           # trains
    session, = [board.session for board in page.boards]
    assert session.alive and session.config == page.form.config() == configure(**STARTS[1].params)
    until = time.monotonic() + 60
    while session.state != "running": assert time.monotonic() < until; time.sleep(0.05)
    page.leave(page.boards[0])
    assert session.alive and page.past.layout.display is None and list(page.existing.options)[0].startswith(session.dir.name)
    page.reopen.click()
    assert page.boards[0].session is session
    page.show(Session(configure(env_id="CartPole-v1")))   # as the what-if view has it
    assert len(page.boards) == 1 and page.boards[0].session.config.env.env_id == "CartPole-v1"
    session.stop(); session.wait(60)


def test_the_form_refuses_an_environment_that_is_not_there():
    form = Form()
    form.top["env_id"].value = "NoSuchEnv-v9"
    assert "NoSuchEnv-v9" in form.message.value and "did you mean" in form.message.value


@pytest.mark.parametrize("task, changes, why", [("pqn", dict(env_id="Catch-v0", num_envs=4), "render not implemented"),
                                                pytest.param("gaussian", dict(env_id="HalfCheetah-v5", num_envs=8), "MuJoCo found no OpenGL", marks=pytest.mark.long)])
def test_what_cannot_be_filmed_says_so_and_training_goes_on(task, changes, why):
    "MuJoCo ends a process in which it looks for OpenGL in vain: not this one."
    board = board_of(task, **changes)
    board.film.play().join()
    assert "nothing was trained yet" in board.film.status.value
    stepped(board, 2)
    board.film.play().join()
    said = board.film.status.value
    assert "greedy policy at step" in said or f"{changes['env_id']} does not render: {why}" in said
    stepped(board, 2)
    assert board.session.run.progress.update == 4
    board.session.stop(); board.session.wait(60)


def test_a_run_that_is_trained_elsewhere_is_followed_and_leads_the_lists(tmp_path):
    "Here another session of this process trains it, which is told from another process by nothing but its number."
    session = Session(configure("pqn", **TASKS["pqn"] | dict(total_steps=6_000, eval_envs=2)))
    for seed in (1, 2): run(configure(env_id="CartPole-v1", num_envs=16, total_steps=600, eval_envs=2, seed=seed), session.dir.with_name(f"{seed}"))
    session.step(5); session.wait(60)
    session.save()
    board, page, browser = Dashboard(Session(session.config, session.dir)), Page(), RunBrowser()
    assert list(page.existing.options)[0].startswith(f"{session.dir.name} (paused in process ") and browser.table.rows[0][5] == "paused" and WhatIf().folders[0] == session.dir
    board.tick()
    buttons = board.header.buttons
    assert "in process" in board.header.title.value and all(w.disabled for w in board.controls.fields.values())
    assert {name for name, button in buttons.items() if not button.disabled} == {"Start", "Stop", "Save", "Fork"} and buttons["Start"].description == "Resume"
    session.set(low=0.123)          # where it is trained; the board's sliders follow
    session.step(2); session.wait(60)
    board.tick()
    assert board.controls.fields["low"].value == pytest.approx(0.123)
    buttons["Start"].click()
    assert board.session.wait(120) == session.wait(10) == "finished"
    board.tick()
    assert "finished" in board.header.title.value and "in process" not in board.header.title.value and not any(w.disabled for w in board.controls.fields.values())

    # forking a finished run asks how much longer to train, and goes on
    buttons["Fork"].click()
    assert board.more.layout.display is None and len(board.sessions) == 1
    board.longer.value = 2_000
    board.more.children[2].click()
    assert len(board.sessions) == 2 and board.more.layout.display == "none"
    until = time.monotonic() + 120
    while board.session.state != "finished" and time.monotonic() < until: time.sleep(0.1)  # it stands still for a moment between the copy and its start
    assert 8_000 <= board.session.result["steps"] < 9_000


def test_a_board_says_what_the_rule_does():
    board = board_of("pqn", warmup=10, low=0.001, high=0.002)
    said = lambda: board.controls.target.value
    board.tick()
    assert "warming up, 0 of 10 measurements" in said()
    stepped(board, 3)
    assert "warming up, 3 of 10 measurements" in said() and "the rule truncates: it climbs to" in said()
    stepped(board, 17)
    assert "averaged D lies above high, where the rule asks for 16, in 100% of the run" in said()
    board.controls.fields["limits"].value = (16, 20)      # at once, before it is set
    assert "limits leave no room: the rule truncates, and the size stays 16" in said()
    board.controls.fields["limits"].value = (16, 16)
    assert "both limits are 16" in said()
    board.session.stop(); board.session.wait(60)


def test_a_look_at_a_run_sets_nothing():
    "A page rounds the value of a slider to its steps, and sends it back as if a hand had moved it."
    board = board_of("pqn", low=0.0484213, high=0.4987, gamma=0.98765, smoothing=0.8888)
    for name, rounded in dict(low=0.0485, high=0.4985, gamma=0.9875, smoothing=0.89).items(): board.controls.fields[name].value = rounded
    rested(board)
    stepped(board, 3)
    assert set_events(board.session.dir) == [] and board.session.run.present == board.session.config
    board.controls.fields["low"].value = 0.06
    rested(board)
    assert board.session.present.controller.low == 0.06
    board.controls.fields["low"].value = 0.0485           # and back
    rested(board)
    assert board.session.present.controller.low == 0.0484213
    board.session.stop(); board.session.wait(60)


def test_what_if_begins_with_room_and_lays_runs_over_one_another(tmp_path):
    small = dict(env_id="CartPole-v1", num_envs=16, total_steps=16_000, interval=1, eval_envs=2)
    dirs = {name: tmp_path/"runs"/"what"/name for name in ("fixed", "abs", "noise")}
    for name, more in dict(fixed=dict(controller="fixed", size=16), abs={}, noise=dict(controller="fixed", size=16, meter="gns", interval=4)).items(): run(configure(**small | more), dirs[name])
    what = WhatIf(dirs["fixed"])
    assert what.fields["limits"].value == (8, 32) and "the rule truncates" in what.text.value
    what.use(*np.quantile(what.runs[0].measured.signals, [0.5, 0.9]).tolist())
    assert max(what.figure.curves[3].y) >= 16 > min(what.figure.curves[3].y)    # with room to move, it moves
    what.over.value = dirs["abs"]
    assert [r.name for r in what.runs] == ["fixed", "abs"] and len(what.figure.curves) == 7 and not what.over.value
    what.over.value = dirs["noise"]
    assert "mean nothing for the other" in what.said.value and "transitions" in what.said.value and len(what.runs) == 2
    what.over.value = dirs["abs"]                         # once is enough
    what.run_choice.value = dirs["noise"]
    assert len(what.runs) == 1 and len(what.figure.curves) == 4 and not what.chips.children
    what.fields["limits"].value = (16, 16)
    assert "both limits are 16: the size cannot change" in what.text.value


def test_sliders_belong_to_the_run_that_is_in_front():
    board = board_of("pqn")
    stepped(board, 5)
    board.controls.fields["low"].value = 0.07   # and at once
    board.header.buttons["Fork"].click()
    assert board.session is board.sessions[1]  # without waiting for the update, and for the copy
    board.controls.fields["low"].value = 0.2
    assert board.session.wait(60) == "stopped"
    rested(board)
    board.tick()
    until = time.monotonic() + 20
    while "forked at step" not in board.header.message.value: assert time.monotonic() < until; time.sleep(0.05)
    assert [s.present.controller.low for s in board.sessions] == pytest.approx([0.07, 0.2])
    board.sessions[0].stop(); board.sessions[0].wait(60)


def test_create_says_so_at_once(monkeypatch):
    page, said = Page(), []
    page.form.top["env_id"].value = "CartPole-v1"
    page.open_board(lambda: (said.append((page.form.message.value, page.create.disabled)), Session(page.form.config()))[1])
    assert "creating" in said[0][0] and said[0][1] and not page.create.disabled and "creating" not in page.form.message.value
    page.leave(page.boards[0])


def test_doubts_are_looked_for_beside_the_page(monkeypatch):
    "They read a run's files: a look at the page does not wait for them."
    free, board = threading.Event(), board_of("pqn", total_steps=1_000)
    monkeypatch.setattr("abs_lab.live.board.doubts", lambda dir: free.wait(60) and ["a doubt"])
    board.tick()
    board.session.start(); board.session.wait(60)
    board.tick()
    assert "finished" in board.header.message.value and "doubt" not in board.header.message.value
    free.set()
    until = time.monotonic() + 20
    while "It may not have learnt: a doubt" not in board.header.message.value: assert time.monotonic() < until; time.sleep(0.05)


@dataclass
class Halving(Controller):
    "Adds while the policy is settled, halves when it moves."
    size_min: int = 16         # smallest size
    size_max: int = 64         # largest size
    target: float = 0.3        # signal that is aimed at
    halve: bool = True         # whether it halves
    says: str = "so"           # a word
    steps: list = (1, 2)       # no widget can hold it
    not_settable = ("steps",)

    def __post_init__(self): self.size = self.size_min
    def observe(self, m):
        if m.signal is not None: self.size = min(max(self.size // 2 if m.signal > self.target else self.size + 8, self.size_min), self.size_max)


def test_a_controller_of_a_cell_is_steered_and_shown(monkeypatch):
    "Its dataclass says what can be set. One of its parameters has the name of a method that ABS has."
    form = Form()
    monkeypatch.setitem(registry._registered["controller"], "halving", Halving)
    form.add("halving")                                    # the cell was executed after the page was shown
    assert form.config() == configure(controller="halving", env_id="LunarLander-v3") and form.fields["target"].tooltip == "signal that is aimed at"
    board = board_of("pqn", controller="halving")
    fields = board.controls.fields
    assert list(fields)[:3] == ["limits", "interval", "lr"] and {"target", "halve", "says"} <= fields.keys() and not {"steps", "size_min"} & fields.keys()
    assert [type(fields[n]).__name__ for n in ("target", "halve", "says", "anneal_lr", "epochs_rule")] == ["FloatSlider", "Checkbox", "Text", "Checkbox", "Dropdown"]
    assert fields["target"].tooltip == "signal that is aimed at" and board.controls.thresholds == {}
    stepped(board, 10)
    fields["target"].value, fields["halve"].value, fields["gamma"].value = 0.7, False, 0.9
    rested(board)
    assert "error" not in board.header.message.value, board.header.message.value
    stepped(board, 5)
    assert set_events(board.session.dir) == [[10, {"target": 0.7, "halve": False, "gamma": 0.9}]] and len(board.plots.front.main_curves["marks"].x) == 1
    assert board.session.run.controller.target == 0.7 and "in force" in board.controls.target.value
    board.session.stop(); board.session.wait(60)


def elsewhere(dir, **kinds):
    "Rewrite a run's folder as if its controller, meter or agent came from a package that is not here."
    found = config_json(dir)
    for kind, name in kinds.items(): found["config"][kind] = found["kinds"][kind]["name"] = name
    write_sealed(dir/"config.json", found)


@pytest.mark.parametrize("kind, name", dict(controller="elsewhere:Rule", meter="elsewhere:Meter", agent="elsewhere:Agent").items())
def test_a_run_from_elsewhere_is_looked_at_and_cannot_be_started(tmp_path, kind, name):
    "Nothing that its folder names is imported; only Start needs it, and says so."
    config = configure(env_id="CartPole-v1", total_steps=12_000, num_envs=16, interval=1, eval_envs=2, low=0.1)
    dir = tmp_path/"runs"/"try"/config.id
    run(config, dir)
    elsewhere(dir, **{kind: name})

    browser = RunBrowser()
    browser.table.selected = [0]
    assert (kind == "meter" or name in browser.table.rows[0]) and len(browser.figure.curves) == 1  # the table has no column of meters
    browser.y.value = "grad_norm"
    assert browser.y.label == "gradient norm" and len(browser.figure.curves[0].x) and "error" not in browser.message.value
    what = WhatIf()
    assert "Open loop" in what.text.value and what.figure.panels[0]["title"] == "divergence D (share of states)"
    if kind != "controller": assert what.fields["low"].value == pytest.approx(0.1)

    board = Dashboard(Session.open(dir))
    board.tick()
    assert "finished" in board.header.title.value and (kind == "meter" or name.split(":")[1] in board.header.title.value) and "error" not in board.header.message.value
    assert len(board.plots.front.main_curves["size"].x) > 5 and board.plots.main.titles[0] == "divergence D (share of states)"
    assert board.controls.thresholds == {"low": 0.1, "high": 0.95} and board.controls.fields["lr"].tooltip
    board.view.value = "Diagnostics"
    assert list(board.plots.diagnostics.names.values()) == REPORTED["pqn"].split(", ")
    assert "<svg" in still([board.plots.front.trace])

    (dir/"result.json").unlink()    # it could go on
    board = Dashboard(Session.open(dir))
    for press in (board.header.buttons["Start"].click,) * 2:
        press()
        until = time.monotonic() + 60
        while board.session.state != "failed" or board.session.alive: assert time.monotonic() < until; time.sleep(0.05)
        board.tick()
        said = board.header.message.value
        assert "message error" in said and f"{kind} {name}" in said and "cannot be imported" in said and "traceback" not in said.lower()
        assert "failed" in board.header.title.value and not board.header.buttons["Start"].disabled


def test_a_film_and_a_fork_of_a_run_from_elsewhere_are_refused(tmp_path):
    config = configure(env_id="CartPole-v1", total_steps=4_000, num_envs=16, interval=1, eval_envs=2)
    run(config, tmp_path/"a")
    elsewhere(tmp_path/"a", agent="elsewhere:Agent")
    board = Dashboard(Session.open(tmp_path/"a"))
    board.film.play().join()
    assert "cannot be imported" in board.film.status.value
    board._attempt(board._fork_longer)
    assert "cannot be imported" in board.header.message.value and len(board.sessions) == 1


def test_what_a_folder_says_is_text(tmp_path):
    "Names, labels and comments that come from a file are never read as HTML."
    bad = "<img src=x onerror=alert(1)>"
    config = configure(env_id="CartPole-v1", total_steps=4_000, num_envs=16, interval=1, eval_envs=2)
    dir = tmp_path/"runs"/bad/bad
    run(config, dir)
    found = config_json(dir)
    found["config"]["controller"] = found["kinds"]["controller"]["name"] = f"elsewhere:{bad}"
    found["config"][bad] = bad
    found["kinds"]["controller"]["parameters"]["low"] = bad
    found["kinds"]["meter"]["signal"], found["kinds"]["agent"]["metrics"]["loss"] = [bad, bad], [bad, bad]
    write_sealed(dir/"config.json", found)
    run(configure(env_id="CartPole-v1", total_steps=4_000, num_envs=16, interval=1, eval_envs=2, seed=1), tmp_path/"runs"/"try"/"b")
    board, browser, what = Dashboard(Session.open(dir)), RunBrowser(), WhatIf(dir)
    board.add(Session.open(dir))
    board.tick()
    board.view.value = "Diagnostics"
    browser.table.selected = [0, 1]
    html = [board.header.title.value, board.header.progress.value, board.header.message.value, board.controls.target.value, browser.difference.value, browser.message.value, what.text.value]
    assert not [h for h in [*html, still([board.plots.front.trace])] if "<img src=x" in (h or "")]
    assert bad in board.plots.main.titles[0] and bad in browser.figure.curves[0].name   # a figure's script draws names as text: "bad" is clicked and pointed at in the browser's test
    assert "&lt;img" in board.header.title.value and "&lt;img" in browser.difference.value


def test_a_metric_that_has_the_name_of_a_curve_is_a_curve_of_its_own(tmp_path):
    config = configure(env_id="CartPole-v1", total_steps=4_000)
    trace = Trace(tmp_path/"a", config)
    trace.about["agent"]["metrics"] |= {"td": [*Metric("TD error", "reward")]}
    for update in range(1, 4): trace._take(synthetic(update) | dict(target=-1.0, speed=-2.0, td=0.5))
    assert trace.read_series("target (agent)")[1].tolist() == [-1.0] * 3 and min(trace.read_series("target")[1]) > 0 and min(trace.read_series("speed")[1]) > 0
    assert trace.label("td") == "TD error (reward)"


def test_comments_are_read_once(monkeypatch):
    "A dashboard and the sessions that it steers ask for them all the time, and Python 3.11's parser fails now and then when two threads parse at once."
    config = configure(env_id="CartPole-v1")
    about = config.about()
    monkeypatch.setitem(configure.__globals__, "_source", lambda cls: pytest.fail(f"{cls} was parsed again"))
    assert config.about() == about


def synthetic(update):
    "A recorded update, as a replay agent writes a million of them."
    noise = (update * 7919 % 1000) / 1000
    return dict(update=update, step=64 * update, gradient_steps=update, size=16 + update // 20_000, rollout=1, minibatch=256, epochs=1, signal=noise, mean=0.5 + 0.1 * noise,
                loss=1 / (1 + update / 1e5) + noise, q_value=noise, grad_norm=2 + noise, dormant=0.1, rank=30.0, weight_norm=10.0 + noise, epsilon=0.01, lr=1e-3,
                episodes=[[64 * update, 0, 100 * noise, 200]] if update % 5 == 0 else [], seconds=dict(total=update / 500))


@pytest.mark.long  # half a minute
def test_a_million_updates_take_no_more_memory_than_a_few():
    "Rows as they come from the log, through the traces and into both figures. The full data stay on disk."
    board = board_of("pqn", total_steps=64_000_000)
    stepped(board, 2)
    trace, process, used = board.plots.front.trace, psutil.Process(), {}
    began, batch = time.monotonic(), 20_000
    for first in range(2, 1_000_002, batch):
        trace.rows.read = lambda first=first: [synthetic(u) for u in range(first + 1, first + batch + 1)]
        board.view.value = ("Live", "Diagnostics")[first // batch % 2]
        board.tick()
        used[first + batch - 2] = process.memory_info().rss
    trace.rows.read = lambda: []
    board.view.value = "Live"
    print(f"1,000,000 updates in {time.monotonic() - began:.0f} s; after 100,000 {used[100_000] / 2**20:.0f} MB, at the end {used[1_000_000] / 2**20:.0f} MB")
    assert trace.row["update"] == 1_000_002
    assert all(len(s.kept) <= s.points and len(s.bucket) <= 2 for s in trace.series.values())
    assert all(len(trace.series[name].kept) >= 200 for name in ("signal", "mean", "size", "ret", "smooth", "speed", "loss", "weight_norm"))
    assert all(len(curve.x) <= 404 for r in board.plots.runs for curve in (r.main_curves | r.diagnostic_curves).values())
    assert board.plots.front.main_curves["size"].x[-1] > 0.99 * 64_000_000
    assert max(used[u] for u in used if u >= 100_000) - used[100_000] < 30 * 2**20
    board.session.stop(); board.session.wait(60)


def test_more_environments_than_memory_holds_are_refused_in_words_before_one_is_made(monkeypatch):
    board = board_of("pqn", num_envs=100_000)
    monkeypatch.setattr("abs_lab.core.envs.free_memory", lambda: 50_000_000)
    board.header.buttons["Start"].click()
    with pytest.raises(AbsLabError, match="num_envs=100000 would need about"): board.session.wait(60)
    board.tick()
    assert "failed" in board.header.title.value and "num_envs=100000" in board.header.message.value and "message error" in board.header.message.value and "traceback" not in board.header.message.value.lower()


def cells_of_the_tutorial():
    "The code cells of its part on closing the loop, of a small task."
    cells = ["".join(cell["source"]) for cell in json.loads((ROOT/"nbs"/"tutorials"/"tune_thresholds.ipynb").read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    first = next(i for i, cell in enumerate(cells) if "board = Dashboard(session)" in cell)
    opens, *others = [cell.replace("total_steps=2_000_000", "total_steps=40_000") for cell in cells[first:]]
    return cells[0], opens, others


@pytest.mark.parametrize("before", [pytest.param("nothing", marks=pytest.mark.long), pytest.param("left running", marks=pytest.mark.long), "stopped", "finished"])
def test_the_tutorial_goes_on_from_whatever_a_person_did(before, monkeypatch):
    "Its last part is executed after a person has pressed the board's buttons, and its folder stays."
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    imports, opens, others = cells_of_the_tutorial()
    page = dict(task=dict(env_id="CartPole-v1", preset="classic", num_envs=16, interval=1, eval_envs=2, epsilon_fraction=0.5), low=0.1, high=0.4)
    exec(f"{imports}\nimport matplotlib.pyplot as plt\n{opens}", page)
    board, session = page["board"], page["session"]
    press = lambda name: board.header.buttons[name].click()
    if before != "nothing":
        press("Start")
        until = time.monotonic() + 60
        while session.state != "running" or session.run.progress.update < 3: assert time.monotonic() < until; time.sleep(0.02)
        board.controls.fields["low"].value = 0.3
        rested(board)
    if before == "stopped": press("Fork"); board.sessions[1].copying.result(60); board.run_choice.index = 0; press("Stop"); session.wait(60)
    if before == "finished": assert session.wait(120) == "finished"
    for cell in others: exec(cell, page)
    assert page["folder"].is_dir() and [changes["low"] for _, changes in set_events(session.dir)] == [0.3]
    for s in {*board.sessions, page["repetition"]}: s.stop(); s.wait(60)
    shutil.rmtree(page["folder"])
