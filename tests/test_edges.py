"Edges that were wrong once: each of these failed before it was mended."
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from abs_lab.core.simulators import EnvConfig, check_actions
from abs_lab.studies import engine
from abs_lab.cli import train_config
from abs_lab.runs.config import configure, recorded
from abs_lab.core.controllers import Fixed
from abs_lab.core.divergence import Divergence
from abs_lab.core.envs import VecEnvs
from abs_lab.agents.normalizers import ObsNormalizer
from abs_lab.core.interfaces import AbsLabError, Progress
from abs_lab.agents.pqn import PQN, PQNConfig
from abs_lab.studies.results import collect
from abs_lab.studies.status import survey
from abs_lab.agents.replay import Replay, bytes_of
from abs_lab.runs.forks import fork
from abs_lab.runs.parties import with_changes
from abs_lab.runs.runner import Run, run
from abs_lab.studies.catalogue import STUDIES
from abs_lab.core.train import evaluate, train

from support import finish, start

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
import gymnasium as gym, numpy as np
class Endless(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, False, False, {}
gym.register("Endless-v0", entry_point="endless_module:Endless")
"""


@pytest.fixture
def endless(tmp_path, monkeypatch):
    (tmp_path / "endless_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return EnvConfig("endless_module:Endless-v0", num_envs=2)


class Still:
    def act(self, obs): return torch.zeros(len(obs), dtype=torch.long), {"value": torch.zeros(len(obs))}
    def greedy(self, obs): return torch.zeros(len(obs), dtype=torch.long)


def test_an_environment_of_ones_own_is_imported_from_its_module(endless):
    assert VecEnvs(endless).collect(Still(), 3, Progress(100)).rewards.sum() == 6
    with pytest.raises(AbsLabError, match="module 'no_such_module' cannot be imported"): VecEnvs(EnvConfig("no_such_module:X-v0"))


def test_an_environment_is_found_beside_the_person_who_trains_on_it(tmp_path):
    "The program does not lie in the working directory, as abs-lab does not."
    (tmp_path/"my_env.py").write_text(MODULE.replace("Endless-v0", "Walk-v0").replace("endless_module", "my_env").replace("1.0, False", "1.0, True"))
    (tmp_path/"elsewhere").mkdir()
    (tmp_path/"elsewhere/program.py").write_text("""if True:
        import sys
        from abs_lab.core.envs import VecEnvs
        from abs_lab.core.simulators import EnvConfig
        VecEnvs(EnvConfig("my_env:Walk-v0", num_envs=2)).close()  # before anything else was looked for by its name
        from abs_lab.cli import main
        sys.exit(main())
    """)
    code, out, err = finish(start("elsewhere/program.py", "train", "pqn", "--env-id", "my_env:Walk-v0", "--total-steps", 4096, "--eval-envs", 2, cwd=tmp_path))
    assert code == 0, err


def test_an_episode_that_never_ends_is_counted(endless):
    assert evaluate(Still(), endless, num_envs=2, max_steps=50)["unfinished"] == 2


def test_an_update_without_a_gradient_step_is_not_measured():
    progress, settings = Progress(32 * 16 * 8), PQNConfig(network="mlp", epochs_rule="equal", epochs=1)
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=32))
    agent = PQN(settings, envs.obs_space, envs.action_space, 32, progress)
    steps = list(train(agent, envs, Divergence(interval=1), Fixed(16), progress))
    idle = [s.plan.gradient_steps == 0 for s in steps]
    assert any(idle) and not all(idle) and [s.signal is None for s in steps] == idle


def test_a_rebuild_truncates_even_where_time_limits_terminate():
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=4, segment_steps=16, bootstrap_truncation=False))
    rollout = envs.collect(Still(), 4, Progress(100))
    assert rollout.truncated[-1].all() and not rollout.terminated[-1].any()


def test_segments_count_from_the_start_of_the_run():
    envs, progress, ends = VecEnvs(EnvConfig("CartPole-v1", num_envs=16, segment_steps=1_900)), Progress(8_000), []
    while progress.step < 8_000:
        before = envs.segment
        envs.collect(Still(), 16, progress)
        if envs.segment > before: ends.append(progress.step)
    assert ends == [2_048, 3_840, 5_888, 7_680]  # the first updates that end at or after 1,900, 3,800, 5,700, 7,600


def test_doubles_become_singles():
    assert VecEnvs(EnvConfig("HalfCheetah-v4", num_envs=1)).obs.dtype == torch.float32
    assert VecEnvs(EnvConfig("Pong-v5", num_envs=1)).obs.dtype == torch.uint8


def test_a_flag_that_was_given_counts_even_at_its_default():
    assert train_config("pqn --total-steps 4000000 --interval 4".split()).meter.interval == 4
    assert train_config("pqn --total-steps 4000000".split()).meter.interval == 40
    assert train_config("pqn --env_id CartPole-v1".split()).env.env_id == "CartPole-v1"
    assert train_config("pqn --preset minatar".split()).env.env_id == "MinAtar/Breakout-v1"      # not the environment that stands for none
    assert train_config("btr --preset paper --env-id Pong-v5".split()).env.env_id == "Pong-v5"


def test_a_run_is_named_by_what_differs_from_the_defaults():
    base = configure(controller="abs")
    assert base.id == configure(preset="general", controller="abs", env_threads=2).id
    assert "window" not in base.identity() and configure(controller="abs", window=19).id != base.id
    with pytest.raises(AbsLabError, match="shape must be of type str"): configure(controller="ramp", shape=lambda p: 16)
    assert configure(controller="replayed").controller.sizes == [32]
    configure(preset="classic", controller="abs", num_envs=10, size_min=16, size_max=32, multiple=2)  # 17 cannot be asked for


@pytest.mark.parametrize("name", ["size max", "2nd_size", "class"])
def test_a_foreign_parameter_that_no_class_can_have_is_named(name):
    found = configure(controller="ramp").record()
    found["config"]["controller"] = found["kinds"]["controller"]["name"] = "elsewhere:Ramp"
    found["config"][name], found["kinds"]["controller"]["parameters"] = 1, found["kinds"]["controller"]["parameters"] | {name: ""}
    with pytest.raises(AbsLabError, match=f"{name!r} .*elsewhere:Ramp"): recorded(found)


def test_a_fork_is_another_run_than_one_from_the_start(tmp_path):
    config = configure(env_id="CartPole-v1", num_envs=8, total_steps=1000, eval_envs=2)
    run(config, tmp_path / "a")
    forked = fork(tmp_path / "a", tmp_path / "b", total_steps=2000)
    assert forked.id != configure(env_id="CartPole-v1", num_envs=8, total_steps=2000, eval_envs=2, interval=config.meter.interval).id
    assert run(forked, tmp_path / "b")["steps"] >= 2000


def test_collecting_a_study_leaves_other_runs_data_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/other.json").write_text("{}")
    study = STUDIES["quick"]
    grid = study.grid("smoke")
    ids, missing = collect(grid, engine.check_grid(ROOT / study.notebook, grid), tmp_path / "none", tmp_path / "data")
    assert ids == [] and len(missing) == 5 and (tmp_path / "data/other.json").exists()
    with pytest.raises(AbsLabError, match="seeds must be at least 1"): study.grid(seeds=0)
    with pytest.raises(AbsLabError, match="jobs must be a whole number of at least 0, not -1"): engine.run_queue(ROOT / study.notebook, study.grid("smoke"), tmp_path, -1)


def test_a_huge_range_of_sizes_is_checked_without_going_through_all_of_it():
    assert configure(env_id="CartPole-v1", size_max=10**9).controller.largest == 10**9
    assert configure(env_id="CartPole-v1", num_envs=6, size_max=10**9).controller.multiple == 4
    with pytest.raises(AbsLabError, match="do not divide into num_minibatches"): configure(env_id="CartPole-v1", num_envs=6, size_max=10**9 + 1)


def test_infinite_actions_are_refused_where_there_are_no_bounds():
    box = gym.spaces.Box(-np.inf, np.inf, (1,))
    assert check_actions(np.array([[1e30]], np.float32), box, 1) == np.float32(1e30)
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(AbsLabError, match="NaN or infinity at step 0, first in environment 0"): check_actions(np.array([[bad]], np.float32), box, 1)


@pytest.mark.parametrize("params, changes, said", [
    (dict(epochs_rule="equal"), dict(epochs=4), "counts gradient steps from the run's beginning"),       # 404 epochs in one update, after 200,000 steps
    (dict(epochs_rule="equal"), dict(epochs_rule="constant"), "counts gradient steps"), (dict(epochs_rule="constant"), dict(epochs_rule="equal"), "counts gradient steps"),
    (dict(epochs_rule="author"), dict(epochs=9), "does not read epochs=9: set epochs_rule='constant'")], ids=str)
def test_epochs_that_would_do_nothing_or_too_much_cannot_be_set(params, changes, said):
    with pytest.raises(AbsLabError, match=said): with_changes(configure(**params), **changes)


def test_epochs_can_be_set_where_they_count():
    assert with_changes(configure(epochs_rule="constant"), epochs=9).agent.epochs == 9
    assert with_changes(configure(epochs_rule="author"), epochs_rule="constant", epochs=9).agent.epochs == 9
    assert with_changes(configure(epochs_rule="equal"), lr=1e-3).agent.lr == 1e-3


def test_observations_counted_in_an_older_checkpoint_still_count():
    normalizer, old = ObsNormalizer(2), dict(mean=torch.ones(2), var=torch.ones(2), _extra_state=torch.tensor(7.0, dtype=torch.float64))
    normalizer.load_state_dict(old)
    assert normalizer.count == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets threads be given a core")
@pytest.mark.parametrize("overlap, envs_at_once, threads, torch_threads, shares", [(False, 1, 0, 1, True), (False, 8, 1, 1, True), (True, 1, 0, 1, False), (False, 8, 2, 1, False), (False, 1, 0, 2, False)])
def test_one_thread_of_simulators_shares_the_agents_core_while_steps_are_collected(overlap, envs_at_once, threads, torch_threads, shares):
    seen = []
    class Watches:
        def __init__(self): self.overlap, self.left = overlap, 5
        def act(self, obs):
            seen.append([os.sched_getaffinity(thread) for thread in (0, *envs.threads)])
            if not (left := self.left): raise RuntimeError("enough")
            self.left = left - 1
            return torch.zeros(len(obs), dtype=torch.int64), {}
    before, had = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(torch_threads)
    try:
        envs, agent = VecEnvs(EnvConfig("CartPole-v1", num_envs=envs_at_once, env_threads=threads)), Watches()
        assert bool(envs.threads) == (threads != 2)
        envs.collect(agent, 3, Progress(100))
        assert os.sched_getaffinity(0) == before
        with pytest.raises(RuntimeError, match="enough"): envs.collect(agent, 9, Progress(100))
        assert os.sched_getaffinity(0) == before
    finally: torch.set_num_threads(had)
    if shares: assert all(len(set(map(frozenset, now))) == len(now[0]) == 1 for now in seen)     # all on the same one
    elif len(before) > 1: assert all(now[0] == before for now in seen)
    envs.close()


@pytest.mark.parametrize("agent, params, said", [
    ("ppo", dict(env_id="InvertedPendulum-v4", distance="disagreement"), "does not fit this agent"), ("ppo", dict(env_id="InvertedPendulum-v4", states="replay"), "needs an agent with a replay"),
    ("btr", dict(meter="gns", controller="fixed"), "gradient noise needs an agent with"), ("ppo", dict(env_id="Hopper-v4", sticky_actions=0.5), "sticky_actions=0.5 is for Atari"),
    ("pqn", dict(env_id="CartPole-v1", episodic_life=True), "episodic_life=True is for Atari")])
def test_what_the_environment_or_the_agent_cannot_do_is_said_before_a_folder_is_made(agent, params, said, tmp_path):
    with pytest.raises(AbsLabError, match=said): run(configure(agent, **params), tmp_path/"run")
    assert not (tmp_path/"run").exists()


def test_what_cannot_take_effect_cannot_be_set(tmp_path):
    config = configure("ppo", env_id="InvertedPendulum-v4", total_steps=4_096, eval_envs=1)
    with pytest.raises(AbsLabError, match="unknown parameter that a run can change 'start'"): with_changes(config, start=2048)
    r = Run(config, tmp_path/"run")
    with pytest.raises(AbsLabError, match="does not fit this agent"): r.set(distance="disagreement")
    assert r.present == config and r.meter.distance == "auto"
    r.close()


@pytest.mark.parametrize("params, passes", [(dict(env_id="HalfCheetah-v4", num_envs=64), "2,560"), (dict(env_id="HalfCheetah-v4", num_envs=256, preset="mujoco_64", size_max=512), "640")])
def test_an_epoch_rule_made_for_one_environment_is_not_carried_to_many(params, passes):
    with pytest.raises(AbsLabError, match=f"would pass {passes} times"): configure("ppo", **params)
    assert configure("ppo", epochs_rule="constant", **params).agent.epochs == 10


def test_a_replay_that_is_said_to_fit_fits(monkeypatch):
    monkeypatch.setattr("abs_lab.agents.replay.free_memory", lambda: 1_000_000)
    box = gym.spaces.Box(-1, 1, (8,), np.float32)
    with pytest.raises(AbsLabError, match="would fit") as e: Replay(10**7, 16, box)
    fits = int(str(e.value).split("; ")[1].split()[0])
    assert fits > 10_000 and Replay(fits, 16, box).rows == 0 and bytes_of(fits // 16 * 16, box) <= 1_000_000


class Short(gym.Env):
    "Episodes of one step, so that every second row is a reset."
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, True, False, {}


gym.register("Short-v0", entry_point=Short, disable_env_checker=True)


@pytest.mark.parametrize("rollout", [1, 7])
def test_the_smallest_replay_that_is_accepted_suffices_where_every_second_row_is_a_reset(rollout, tmp_path):
    params = dict(env_id="Short-v0", num_envs=4, controller="fixed", size=10, rollout=rollout, total_steps=400, eval_envs=1, interval=50, lag=1)
    for _ in range(3):  # what is asked for, one after the other
        try: configure("btr", **dict(learning_starts=1, replay_size=1) | params)
        except AbsLabError as e:
            name, least = str(e).split("=")[0], int(str(e).split(": ")[-1].split()[0])
            params[name] = least
    assert run(configure("btr", **params), tmp_path/"run")["gradient_steps"] > 50


def test_a_run_that_ended_in_an_error_is_not_said_to_wait(tmp_path):
    config = configure("pqn", env_id="CartPole-v1", num_envs=8, total_steps=2_000, eval_envs=2)
    def watch(steps, config):
        yield next(steps)
        raise AbsLabError("on the way")
    with pytest.raises(AbsLabError, match="on the way"): run(config, tmp_path/config.id, watch)
    row = survey(tmp_path, [(config.id, "PQN", config.total_steps)])["runs"][0]
    assert (row["state"], row["message"]) == ("failed", "on the way")
