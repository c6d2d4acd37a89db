"The agent against tasks whose answer is known."
import gymnasium as gym
import numpy as np
import pytest
import torch

from abs_lab.reports import stats
from abs_lab.runs.config import configure
from abs_lab.runs.runner import Run, run
from abs_lab.studies.catalogue import STUDIES


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="1000").items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)


class Table(gym.Env):
    "A deterministic task on one-hot states: rewards [S, A], next states [S, A] (S: the episode ends), cut off after `limit` steps."
    def __init__(self, rewards, moves, limit=None, start=0):
        self.rewards, self.moves, self.limit, self.start = np.array(rewards, float), np.array(moves), limit, start
        S, A = self.rewards.shape
        self.observation_space, self.action_space = gym.spaces.Box(0, 1, (S + 1,), np.float32), gym.spaces.Discrete(A)
        self.eye = np.eye(S + 1, dtype=np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.t = self.start, 0
        return self.eye[self.state], {}

    def step(self, action):
        reward, self.state, self.t = self.rewards[self.state, action], int(self.moves[self.state, action]), self.t + 1
        over = self.state == len(self.rewards)
        return self.eye[self.state], reward, over, bool(self.limit and self.t >= self.limit and not over), {}


def optimal(rewards, moves, gamma):
    "The exact Q-values of such a task, by value iteration."
    q = np.zeros(np.shape(rewards))
    for _ in range(2_000): q = np.array(rewards) + gamma * np.append(q.max(1), 0.0)[np.array(moves)]
    return q


# A corridor of five cells: left (0) costs nothing and goes back, right (1) goes on; a crumb lies at the left end, the prize at the right one.
CORRIDOR = dict(rewards=[[0.2, 0], [0, 0], [0, 0], [0, 0], [0, 1.0]], moves=[[5, 1], [0, 2], [1, 3], [2, 4], [3, 5]], start=2)
FOREVER = dict(rewards=[[1.0, 1.0]], moves=[[0, 0]])                                    # reward 1 for ever
CYCLE = dict(rewards=[[1.0, 0.0], [0.0, 3.0]], moves=[[0, 1], [1, 0]])                  # stay for 1, or go round for 3 every second step

for name, task, limit in [("Corridor-v0", CORRIDOR, 50), ("Forever20-v0", FOREVER, 20), ("Forever4-v0", FOREVER, 4), ("Cycle-v0", CYCLE, 7)]:
    gym.register(f"Known/{name}", entry_point=Table, kwargs=task | dict(limit=limit), disable_env_checker=True)

BASE = dict(preset="classic", num_envs=16, controller="fixed", size=16, epochs_rule="constant", epochs=4, reward_scale=1.0, lr=2e-3, anneal_lr=True,
            gamma=0.9, lam=0.0, epsilon_start=1.0, epsilon_end=1.0, total_steps=24_000, eval_envs=1, interval=10**6, diagnose_every=10**6)


def q_values(dir, states, **params):
    "Train, and return the Q-values [S, A]; nothing is evaluated, since a task need not end."
    r = Run(configure(**BASE | params), dir)
    for _ in r.steps(): pass
    q = r.agent.policy(torch.eye(states + 1)[:states]).numpy()
    r.close()
    return q


def test_q_values_of_a_corridor_are_the_exact_ones(tmp_path):
    q = q_values(tmp_path, 5, env_id="Known/Corridor-v0", total_steps=32_000)
    exact = optimal(CORRIDOR["rewards"], CORRIDOR["moves"], 0.9)
    np.testing.assert_allclose(exact.max(1), [0.9**4, 0.9**3, 0.9**2, 0.9, 1.0])
    np.testing.assert_allclose(q, exact, atol=0.04)
    assert (q.argmax(1) == 1).all()


def test_q_values_through_cut_off_episodes_are_those_of_the_endless_task(tmp_path):
    q = q_values(tmp_path, 2, env_id="Known/Cycle-v0")
    exact = optimal(CYCLE["rewards"], CYCLE["moves"], 0.9)
    np.testing.assert_allclose(q, exact, rtol=0.03)
    assert (q.argmax(1) == 1).all()


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_a_truncation_is_not_an_end(lam, tmp_path):
    "Reward 1 for ever is worth 1/(1−γ) = 10, though every episode is cut off after 20 steps."
    q = q_values(tmp_path, 1, env_id="Known/Forever20-v0", lam=lam)
    np.testing.assert_allclose(q, 10.0, rtol=0.02)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_truncation_taken_for_an_end_costs_value(lam, tmp_path):
    """The state does not tell the time, so the value is between these: with λ = 0 one target in 20 is the reward alone, V = 1 + 0.95·γV = 6.9;
    with λ = 1 it is the mean over the steps that are left, 6.0, and more where the rollout ends first."""
    q = q_values(tmp_path, 1, env_id="Known/Forever20-v0", lam=lam, bootstrap_truncation=False)
    assert 5.5 < q.min() <= q.max() < 8.2


@pytest.mark.parametrize("masked", [True, False])
def test_reset_rows_bias_the_value_unless_masked(masked, tmp_path):
    "Cut off after 4 steps, one row in five is a reset row: its reward 0 makes V = 4/5 + γV, which is 8 and not 10."
    q = q_values(tmp_path, 1, env_id="Known/Forever4-v0", mask_resets=masked)
    np.testing.assert_allclose(q, 10.0 if masked else 8.0, rtol=0.03 if masked else 0.07)


def test_greedy_play_takes_the_shortest_way(tmp_path):
    score = run(configure(**BASE | dict(env_id="Known/Corridor-v0", lam=0.65, epsilon_end=0.3, eval_envs=3, total_steps=16_000)), tmp_path)["eval"]
    assert score["returns"] == [1.0] * 3 and score["lengths"] == [3] * 3


def test_abs_learns_too_and_ends_with_large_batches(tmp_path):
    "On a task that is soon solved the policy settles, and the batch grows."
    config = configure(**{k: v for k, v in BASE.items() if k != "size"} | dict(controller="abs", env_id="Known/Corridor-v0", lam=0.65, epsilon_end=0.3,
                                                                              interval=1, total_steps=32_000, rounding="exact"))
    result = run(config, tmp_path)
    assert result["eval"]["returns"] == [1.0]
    assert result["final_size"] >= 55 and result["mean_size"] < result["final_size"]


# -- real tasks, with the parameters of the study `sanity` -------------------------------------------------------------

def sanity(arm, root):
    "The returns [runs][episodes] of the five runs of an arm."
    grid = [{k: v for k, v in point.items() if k != "arm"} for point in STUDIES["sanity"].grid() if point["arm"] == arm]
    assert [point["seed"] for point in grid] == [0, 1, 2, 3, 4]
    return [run(configure(**point), root/str(point["seed"]))["eval"]["returns"] for point in grid]


@pytest.mark.long
def test_cartpole_is_solved_by_every_seed(tmp_path):
    for returns in sanity("CartPole-v1", tmp_path): assert returns == [500.0] * 50


@pytest.mark.long
def test_catch_is_solved_by_every_seed(tmp_path):
    for returns in sanity("Catch-v0", tmp_path): assert returns == [1.0] * 50


@pytest.mark.long
def test_lunar_lander_reaches_230(tmp_path):
    means = [float(np.mean(returns)) for returns in sanity("LunarLander-v3", tmp_path)]
    assert float(stats.iqm(np.array(means))) >= 230, means


class Falling(gym.Env):
    "A ball falls through twelve rows, drifting and bouncing off the walls; +1 for standing under it when it lands, −1 otherwise. Where it drifts, no single frame shows."
    observation_space, action_space = gym.spaces.Box(0, 255, (36, 36), np.uint8), gym.spaces.Discrete(3)

    def _frame(self):
        cells = np.zeros((12, 12), np.uint8)
        cells[self.t, self.ball] = cells[11, self.paddle] = 255
        return cells.repeat(3, 0).repeat(3, 1)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.paddle, self.ball, self.drift = 0, 6, int(self.np_random.integers(12)), int(self.np_random.choice([-1, 1]))
        return self._frame(), {}

    def step(self, action):
        if not 0 <= self.ball + self.drift < 12: self.drift = -self.drift
        self.t, self.ball, self.paddle = self.t + 1, self.ball + self.drift, min(max(self.paddle + int(action) - 1, 0), 11)
        over = self.t == 11
        return self._frame(), (1.0 if self.ball == self.paddle else -1.0) * over, over, False, {}


gym.register("Known/Falling-v0", entry_point=lambda: gym.wrappers.FrameStackObservation(Falling(), 4), disable_env_checker=True)


@pytest.mark.long
def test_btr_learns_from_stacks_of_frames(tmp_path):
    "The path of Atari, in minutes: frames stored once, stacks rebuilt, a convolutional torso, and all of the agent's other parts."
    config = configure("btr", preset="paper", env_id="Known/Falling-v0", controller="fixed", sticky_actions=0.0, num_envs=16, size=32, base_batch=32, replay_ratio=1 / 4,
                       network="plain", spectral=False, taus=4, total_steps=60_000, learning_starts=1_000, replay_size=20_000, gamma=0.99, lr=5e-4, adam_eps=1e-5, target_period=200,
                       epsilon_fraction=0.3, epsilon_off=1.0, eval_envs=50, eval_episodes=2, overlap=False)
    returns = run(config, tmp_path)["eval"]["returns"]
    assert len(returns) == 100 and np.mean(returns) >= 0.9


def by_btr(root, **params):
    "The mean returns of five runs of BTR with the preset for small tasks, evaluated without noise."
    return [float(np.mean(run(configure("btr", controller="fixed", seed=seed, **params), root/str(seed))["eval"]["returns"])) for seed in range(5)]


@pytest.mark.long
def test_btr_reaches_500_on_cartpole(tmp_path):
    "In the interquartile mean: one seed of five may fail."
    means = by_btr(tmp_path, env_id="CartPole-v1", total_steps=100_000)
    assert float(stats.iqm(np.array(means))) == 500, means


@pytest.mark.long
def test_btr_reaches_230_on_lunar_lander(tmp_path):
    means = by_btr(tmp_path, env_id="LunarLander-v3")
    assert float(stats.iqm(np.array(means))) >= 230, means
