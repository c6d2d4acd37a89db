"The dashboard without a browser: what it shows and sets of every agent's session, and what it costs when a run is long."
import importlib.util, os, time

import psutil
import pytest

for package in ("ipywidgets", "anywidget"):
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed", allow_module_level=True)

from abs_lab.runs.config import configure
from abs_lab.live.page import Form
from abs_lab.live.board import Dashboard
from abs_lab.live.plots import LABELS
from abs_lab.runs.forks import repeat
from abs_lab.runs.runner import run, set_events
from abs_lab.runs.session import Session
from support import assert_same_run

TASKS = {
    "pqn": dict(env_id="CartPole-v1", total_steps=40_000, num_envs=16, interval=1, epsilon_fraction=0.5),
    "ppo": dict(env_id="LunarLander-v3", total_steps=100_000, interval=1),
    "btr": dict(env_id="CartPole-v1", total_steps=3_000, num_envs=16, learning_starts=640, replay_size=4_000, replay_ratio=1 / 16, taus=2, interval=10, record_every=5, diagnose_every=50),
    "gaussian": dict(env_id="Pendulum-v1", num_envs=16, size_min=32, size_max=128, multiple=32, interval=1, total_steps=60_000),
}
REPORTED = {"pqn": "loss, mean Q-value, gradient norm, dormant units (share), feature rank, weight norm, steps per second",
            "ppo": "policy loss, value loss, entropy (nats), KL per update (nats), clipped (share), explained variance, gradient norm, steps per second"}
REPORTED |= {"btr": REPORTED["pqn"], "gaussian": REPORTED["ppo"]}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    for key, value in dict(THREADS="1", DEVICE="cpu", RUNS_DIR=str(tmp_path/"runs")).items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)


def board_of(task, **changes):
    return Dashboard(Session(configure({"gaussian": "ppo"}.get(task, task), **dict(eval_envs=2) | TASKS[task] | changes)))


def rested(board):
    "What was asked for with the widgets reaches the session."
    time.sleep(0.25)
    board._commit()


def stepped(board, updates):
    board.session.step(updates)
    assert board.session.wait(120) == "paused"
    board.tick()


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.long) if task == "ppo" else task for task in TASKS])  # PPO is there with Gaussian actions
def test_every_agent_is_watched_steered_forked_and_filmed(task):
    updates = dict(btr=120, pqn=40).get(task, 8)
    board = board_of(task)
    stepped(board, updates)
    curves = dict(board.plots.front.curves)
    assert len(curves["size"].x) and len(curves["signal"].x) == len(curves["mean"].x) > 3 and len(curves["target"].x) == len(curves["mean"].x)
    assert "paused" in board.head.value and "aims at" in board.aim.value

    board.tab.value = "Diagnostics"
    assert ", ".join(LABELS[name] for name, _ in board.plots.front.lines) == REPORTED[task]
    assert all(len(curve.x) for _, curve in board.plots.front.lines)
    titles = [board.plots.diagnostics.layout["yaxis" + str(i + 1) * (i > 0)].title.text for i in range(len(board.plots.names))]
    assert ", ".join(titles) == REPORTED[task]

    # every control is heard, and the run made again from its log is the same
    board.tab.value = "Live"
    fields, rule = board.fields, board.session.present.controller
    fields["low"].value, fields["high"].value = fields["low"].value * 1.5, fields["high"].value * 0.8
    fields["limits"].value = (rule.size_min, rule.size_max - rule.multiple * (task != "pqn") - (task == "pqn"))
    fields["smoothing"].value, fields["map"].value, fields["window"].value, fields["interval"].value, fields["lr"].value = 0.5, "linear", 5, 2 * fields["interval"].value, fields["lr"].value / 2
    rested(board)
    assert "error" not in board.say.value, board.say.value
    stepped(board, updates // 2)
    (at, changes), = set_events(board.session.dir)
    assert at == updates and set(changes) == {"low", "high", "size_max", "smoothing", "map", "window", "interval", "lr"}
    assert board.session.run.controller.low == changes["low"] and board.session.run.agent.config.lr == changes["lr"]
    assert (board.plots.figure.layout.shapes[0].y0, board.plots.figure.layout.shapes[1].y0) == (fields["low"].value, fields["high"].value)

    # a fork goes on beside it
    board.add(board.session.fork(total_steps=2 * board.session.config.total_steps))
    fork = board.session
    fork.step(updates // 2)
    assert fork.wait(120) == "paused"
    board.tick()
    ends = [dict(r.curves)["size"].x[-1] for r in board.plots.runs]
    assert len(ends) == 2 and ends[1] > ends[0] and fork.present.controller.low == changes["low"]

    # the film
    board.watch.play().join()
    assert board.watch.clip.shape[0] > 5 and "greedy policy at step" in board.watch.said.value, board.watch.said.value

    fork.stop(); fork.wait(60)
    session = board.sessions[0]
    session.resume()
    assert session.wait(240) == "finished"
    board.which.index = 0
    board.tick()
    assert "finished" in board.head.value and session.result["interventions"] == 1


def test_a_finished_run_fills_its_axis():
    "Its last update passes the total by some steps; a fork with a larger total has the axis that it needs."
    board = board_of("pqn", total_steps=3_000)
    board.session.start()
    assert board.session.wait(120) == "finished"
    board.tick()
    assert board.plots.ranges[True, "xaxis"] == [0, board.session.result["steps"]] and board.session.result["steps"] > 3_000


def test_what_was_set_of_ppo_and_btr_is_made_again_in_batch(tmp_path):
    for task in ("ppo", "btr"):
        board = board_of(task, total_steps=30_000 if task == "ppo" else 1_500)
        stepped(board, 2 if task == "ppo" else 50)
        board.fields["low"].value, board.fields["lr"].value = board.fields["low"].value * 1.5, board.fields["lr"].value / 2
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
    for name, value in TASKS[task].items():
        if name != "env_id": form.fields[name].value = value
    assert "<div class='say error'></div>" == form.say.value, form.say.value
    assert form.config() == configure(agent, **TASKS[task])
    assert form.fields["lr"].tooltip and form.top["preset"].options[0] == "auto" and len(form.top["preset"].options) > 2


def test_the_form_refuses_an_environment_that_is_not_there():
    form = Form()
    form.top["env_id"].value = "NoSuchEnv-v9"
    assert "NoSuchEnv-v9" in form.say.value and "did you mean" in form.say.value


@pytest.mark.parametrize("task, changes, why", [("pqn", dict(env_id="Catch-v0", num_envs=4), "render not implemented"),
                                                pytest.param("gaussian", dict(env_id="HalfCheetah-v5", num_envs=8), "MuJoCo found no OpenGL", marks=pytest.mark.long)])
def test_what_cannot_be_filmed_says_so_and_training_goes_on(task, changes, why):
    "MuJoCo ends a process in which it looks for OpenGL in vain: not this one."
    board = board_of(task, **changes)
    board.watch.play().join()
    assert "nothing was trained yet" in board.watch.said.value
    stepped(board, 2)
    board.watch.play().join()
    said = board.watch.said.value
    assert "greedy policy at step" in said or f"{changes['env_id']} does not render: {why}" in said
    stepped(board, 2)
    assert board.session.run.progress.update == 4
    board.session.stop(); board.session.wait(60)


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
        trace.rows.read = lambda: [synthetic(u) for u in range(first + 1, first + batch + 1)]
        board.tab.value = ("Live", "Diagnostics")[first // batch % 2]
        board.tick()
        used[first + batch - 2] = process.memory_info().rss
    trace.rows.read = lambda: []
    board.tab.value = "Live"
    print(f"1,000,000 updates in {time.monotonic() - began:.0f} s; after 100,000 {used[100_000] / 2**20:.0f} MB, at the end {used[1_000_000] / 2**20:.0f} MB")
    assert trace.row["update"] == 1_000_002
    assert all(len(s.kept) <= s.points and len(s.bucket) <= 2 for s in trace.series.values())
    assert all(len(trace.series[name].kept) >= 200 for name in ("signal", "mean", "size", "ret", "smooth", "speed", "loss", "weight_norm"))
    assert all(len(curve.x) <= 404 for r in board.plots.runs for _, curve in r.curves + r.lines if curve.x is not None)
    assert dict(board.plots.front.curves)["size"].x[-1] > 0.99 * 64_000_000
    assert max(used[u] for u in used if u >= 100_000) - used[100_000] < 30 * 2**20
    board.session.stop(); board.session.wait(60)
