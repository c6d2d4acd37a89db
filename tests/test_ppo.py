"PPO: its pieces on literal values, its normalisers against plain computations, tasks whose answer is known, and what it refuses."
import copy, json, os, subprocess, sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from abs_lab.core.simulators import EnvConfig
from abs_lab.runs.config import configure
from abs_lab.core.controllers import ABS, Fixed
from abs_lab.core.divergence import Divergence, policy_distance
from abs_lab.core.envs import VecEnvs
from abs_lab.agents.normalizers import ObsNormalizer, RewardNormalizer
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Measurement, Progress
from abs_lab.agents.actor_critic import entropy, log_prob, ppo_loss
from abs_lab.agents.gradients import ppo_gradient
from abs_lab.agents.ppo import PPO, PPOConfig, plan_update
from abs_lab.agents.pqn import PQN, PQNConfig
from abs_lab.runs.runner import Run, run
from abs_lab.core.train import evaluate, train


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="1000").items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)


class Scripted(gym.Env):
    "Observations, rewards and ends from functions of the step; the action is remembered and changes nothing."
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    def __init__(self, obs=lambda t: [t, -t], reward=lambda t: 1.0, ends=None, limit=None, discrete=False):
        self.obs, self.reward, self.ends, self.limit = obs, reward, ends, limit
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        if discrete: self.action_space = gym.spaces.Discrete(3)
    def _see(self): return np.array(self.obs(self.t), np.float32)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}
    def step(self, action):
        self.t += 1
        return self._see(), float(self.reward(self.t)), self.t == self.ends, self.t == self.limit, {}


def register(name, **how):
    gym.register(f"Ppo/{name}", entry_point=Scripted, kwargs=how, disable_env_checker=True)
    return f"Ppo/{name}"


ENDLESS = register("Endless-v0", obs=lambda t: [1, 0], limit=20)
SHORT = register("Short-v0", ends=5, reward=lambda t: t)
NAN_REWARD = register("NanReward-v0", reward=lambda t: float("nan") if t == 50 else 1.0, limit=100)
NAN_OBS = register("NanObs-v0", obs=lambda t: [float("nan") if t == 50 else t, 0], limit=100)


def made(env_id, num_envs=2, total=10**6, seed=0, controller=None, env=None, **changes):
    "Environments, agent, and the stream of its updates."
    envs, progress = VecEnvs(EnvConfig(env_id, num_envs=num_envs, **env or {}), seed), Progress(total)
    config = replace(PPOConfig(num_minibatches=4, epochs_rule="constant"), **changes)
    agent = PPO(config, envs.obs_space, envs.action_space, num_envs, progress, seed)
    return envs, agent, train(agent, envs, Divergence(interval=1), controller or Fixed(32), progress)


# -- the author's rule -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kl, size", [(0.01, 7904), (0.02, 5728), (0.03, 4480), (0.05, 2880), (0.1, 1024), (5.0, 1024)])
def test_paper_settles_at_the_published_sizes(kl, size):
    config = configure("ppo", preset="paper")
    controller = replace(config.controller)
    assert isinstance(controller, ABS) and controller.size == 1024
    sizes = [controller(Measurement(kl)) for _ in range(500)]
    assert sizes[-1] == size and sizes[:9] == [1024] * 9 and all(s % 32 == 0 for s in sizes)


def test_paper_first_steps():
    controller = replace(configure("ppo", preset="paper").controller)
    sizes = [controller(Measurement(0.01)) for _ in range(14)]
    expected, L = [], 1024
    for n in range(1, 15):                            # the published arithmetic, D taken as D_high until the tenth measurement
        target = int(8192 - (1.0 if n < 10 else 0.0) * (8192 - 1024))
        L = min(max(int(0.9 * L + 0.1 * target), 1024), 8192) // 32 * 32
        expected.append(L)
    assert sizes == expected and expected[9:] == [1728, 2368, 2944, 3456, 3904]


@pytest.mark.parametrize("size, before, after", [(1024, 10, 5), (2048, 10, 10), (2880, 10, 14), (4480, 10, 21), (7904, 10, 38), (8192, 10, 40)])
def test_paper_epochs(size, before, after):
    config = configure("ppo", preset="paper").agent
    assert plan_update(config, size, 1, Progress(1)) == BatchPlan(size, size // 32, 32 * before)
    assert plan_update(config, size, 1, Progress(1), changed=True) == BatchPlan(size, size // 32, 32 * after)


def test_epochs_change_with_the_first_change_of_size_and_not_before():
    ramp = configure("ppo", preset="paper", controller="ramp", total_steps=6 * 1024).controller
    envs, agent, stream = made("Pendulum-v1", 1, 6 * 1024, controller=replace(ramp, size_min=1024, size_max=2048), epochs_rule="author", num_minibatches=32)
    assert [(s.plan.rollout, s.plan.gradient_steps // 32) for s in stream] == [(1024, 10), (1184, 5), (1408, 6), (1632, 7), (1888, 9)]


# -- the loss ----------------------------------------------------------------------------------------------------------

def test_loss_pieces_are_the_literal_ones():
    "Standardised advantages ±1/√2; ratios 2 and 1/2 count as 1.2 and (for the worse action) 0.8; values limited to ±0.2 of the old ones."
    new, old = torch.log(torch.tensor([2.0, 0.5])), torch.zeros(2)
    advantage, returns, value, old_value = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.9, -0.1]), torch.tensor([0.0, 0.0])
    loss, policy, fit = ppo_loss(PPOConfig(entropy_coef=0.01), new, torch.tensor(3.0), value, old, advantage, returns, old_value)
    a = 1 / 2**0.5
    np.testing.assert_allclose(float(policy), -(1.2 * a - 0.8 * a) / 2, rtol=1e-5)
    np.testing.assert_allclose(float(fit), 0.5 * (0.8**2 + 0.1**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(float(loss), float(policy) + 0.5 * float(fit) - 0.03, rtol=1e-5)


@pytest.mark.parametrize("clip_value", [True, False])
def test_derivatives_are_those_of_the_loss(clip_value):
    torch.manual_seed(0)
    config, B = PPOConfig(clip_value=clip_value, value_coef=0.7), 4096
    new, value = torch.randn(B, requires_grad=True), torch.randn(B, requires_grad=True)
    old = new.detach() + 0.3 * torch.randn(B), torch.randn(B), torch.randn(B), value.detach() + 0.3 * torch.randn(B)
    ppo_loss(config, new, torch.tensor(0.0), value, *old)[0].backward()
    mine = ppo_gradient(config, new.detach(), value.detach(), *old)
    for a, b in zip(mine, (new.grad, value.grad)): torch.testing.assert_close(a, b.detach())


def test_an_update_is_plain_ppo():
    "One epoch in minibatches against the same written with autograd, clip_grad_norm_ and an ordinary Adam."
    envs, agent, _ = made("Pendulum-v1", 4, num_minibatches=4, anneal_lr=False)
    rollout = envs.collect(agent, 32, agent.progress)
    net = copy.deepcopy(agent.net)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4, eps=1e-5)
    rows, generator = agent._rows(rollout, copy.deepcopy(agent.earned)), torch.Generator()
    generator.set_state(agent.generator.get_state())
    order = torch.randperm(len(rows[0]), generator=generator)
    for batch in zip(*(x[order].tensor_split(4) for x in rows)):
        x, drawn, *old = batch
        optimizer.zero_grad()
        ppo_loss(agent.config, log_prob(net(x), drawn), entropy(net(x)), net.value(x), *old)[0].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    agent.update(rollout, BatchPlan(32, 32, 4))
    for mine, plain in zip(agent.net.parameters(), net.parameters()): torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


# -- normalisers -------------------------------------------------------------------------------------------------------

def test_observations_are_normalised_as_a_plain_running_computation_does():
    rng, normalizer = np.random.default_rng(1), ObsNormalizer(3)
    mean, var, count = np.zeros(3), np.ones(3), 1e-4
    for _ in range(200):
        rows = rng.normal([5, -100, 0], [3, 0.1, 50], (4, 3))
        batch_mean, batch_var, n = rows.mean(0), rows.var(0), len(rows)
        delta, total = batch_mean - mean, count + len(rows)
        var = (var * count + batch_var * n + delta**2 * count * n / total) / total
        mean, count = mean + delta * n / total, total
        expected = np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10)
        np.testing.assert_allclose(normalizer.see(torch.from_numpy(rows)).numpy(), expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(normalizer.var, var, rtol=1e-6)


@pytest.mark.parametrize("reset", ["end", "termination"])
def test_rewards_are_normalised_as_a_plain_running_computation_does(reset):
    rng, scaler, T, N = np.random.default_rng(2), RewardNormalizer(3, 0.9, reset=reset), 40, 3
    ret, mean, var, count = np.zeros(N), 0.0, 1.0, 1e-4
    pending = np.zeros(N, bool)                        # the next row is an autoreset row
    for _ in range(6):
        rewards, dead, cut, real = rng.normal(1, 5, (T, N)), np.zeros((T, N), bool), np.zeros((T, N), bool), np.ones((T, N), bool)
        expected = np.empty((T, N))
        for t in range(T):
            real[t] = ~pending
            dead[t], cut[t] = (rng.random(N) < 0.1) & real[t], (rng.random(N) < 0.1) & real[t]
            rewards[t, ~real[t]] = 1e6                 # whatever stands there, it never counts
            old = ret * 0.9 * ~dead[t] if reset == "termination" else ret * 0.9
            ret = np.where(real[t], old + np.where(real[t], rewards[t], 0), ret)
            counted = ret[real[t]]
            if n := len(counted):
                delta, total = counted.mean() - mean, count + n
                var = (var * count + counted.var() * n + delta**2 * count * n / total) / total
                mean, count = mean + delta * n / total, total
            expected[t] = np.clip(np.where(real[t], rewards[t], 0) / np.sqrt(var + 1e-8), -10, 10)
            if reset == "end": ret[dead[t] | cut[t]] = 0
            pending = dead[t] | cut[t]
        np.testing.assert_allclose(scaler(rewards.astype(np.float32), dead, cut, real), expected, rtol=1e-4)
    np.testing.assert_allclose((scaler.mean, scaler.var, scaler.count), (mean, var, count), rtol=1e-6)


def test_the_papers_reward_scale_on_literal_values():
    "γ = ½; rewards 4, 2 (time limit), a reset row, 6, 1 (terminal), a reset row, 3. Gymnasium 0.29's returns are 4, 4, 8, 1, 3.5."
    column = lambda *values: np.array(values)[:, None]
    scaler = RewardNormalizer(1, 0.5, reset="termination")
    scaled = scaler(column(4.0, 2.0, 9.0, 6.0, 1.0, 9.0, 3.0), column(0, 0, 0, 0, 1, 0, 0) == 1, column(0, 1, 0, 0, 0, 0, 0) == 1, column(1, 1, 0, 1, 1, 0, 1) == 1)
    assert scaler.mean == pytest.approx(np.mean([4, 4, 8, 1, 3.5]), rel=1e-3) and scaler.var == pytest.approx(np.var([4, 4, 8, 1, 3.5]), rel=1e-3)
    assert scaled[6, 0] == pytest.approx(3 / np.std([4, 4, 8, 1, 3.5]), rel=1e-3) and scaled[2, 0] == scaled[5, 0] == 0


def test_the_paper_counts_the_observation_it_bootstraps_from_once_and_first():
    "Observations 0, 1, 2, … without an end: after a rollout of 8 rows, 9 are counted, and the ninth is not counted again."
    envs, agent, _ = made(register("Counting-v0", limit=10**6), count_bootstrap=True)
    ahead = None
    for n in (1, 2, 3):
        rollout, before = envs.collect(agent, 8, agent.progress), copy.deepcopy(agent.seen)
        expected = before.see(rollout.next_obs)
        if n > 1: assert torch.equal(rollout.extras["x"][0], ahead)         # as it was standardised when it was counted
        agent.update(rollout, BatchPlan(8, 4, 4))
        ahead = agent.ahead
        assert torch.equal(ahead, expected) and float(agent.seen.count) == pytest.approx(2 * (8 * n + 1) + 1e-4)
        np.testing.assert_allclose(agent.seen.mean, [np.mean(range(8 * n + 1)), -np.mean(range(8 * n + 1))], rtol=1e-4)


def test_what_is_counted_ahead_is_saved():
    config = dict(count_bootstrap=True, reward_reset="termination")
    envs, agent, stream = made("Pendulum-v1", 4, **config)
    for _ in range(2): next(stream)
    other = made("Pendulum-v1", 4, seed=1, **config)[1]
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert torch.equal(agent.act(envs.obs)[0], other.act(envs.obs)[0]) and torch.equal(agent.seen.mean, other.seen.mean)


def test_the_paper_measures_on_what_the_networks_saw():
    envs, agent, _ = made("Pendulum-v1", 4)
    meter, rollout = Divergence(interval=1, states="stored", n_states=10**6), envs.collect(agent, 32, agent.progress)
    meter.check(agent, envs.obs[:1])
    x = rollout.extras["x"].flatten(0, 1)[rollout.mask.flatten()]
    with torch.no_grad(): old = [t.clone() for t in agent.net(x)]
    meter.before(agent, rollout)
    agent.update(rollout, agent.plan(32))
    with torch.no_grad(): mean, log_std = (t.clone() for t in agent.net(x))
    by_hand = (old[1] - log_std + ((2 * log_std).exp() + (mean - old[0]) ** 2) / (2 * (2 * old[1]).exp()) - 0.5).sum(-1).mean()
    assert meter.after(agent, rollout) == pytest.approx(float(by_hand), rel=1e-4) and by_hand > 0


def test_stored_states_need_an_agent_that_stores_them():
    for params, words in ((dict(states="stored", lag=2, interval=4), "lag must be 1, not 2"), (dict(agent="pqn", env_id="CartPole-v1", states="stored"), "policy_of_stored")):
        with pytest.raises(AbsLabError, match=words): Run(configure(**dict(agent="ppo", env_id="Pendulum-v1") | params), "nowhere")


def test_a_discount_that_is_set_reaches_the_rewards_normaliser():
    envs, agent, stream = made(ENDLESS)
    next(stream)
    agent.config = replace(agent.config, gamma=0.0)
    next(stream)
    assert (agent.earned.ret == 0).all()               # nothing of what was earned before is carried on


def test_every_observation_counts_once():
    "First ones, final ones and those between, over several rollouts of changing length: 0 … 5, 0 … 5, …"
    envs, agent, _ = made(SHORT)
    for length in (16, 32, 7 * 4): agent.update(envs.collect(agent, length, agent.progress), BatchPlan(length, 8, 4))
    seen = [t % 6 for t in range(16 + 32 + 28)]        # the observation of step 5 is final, and its row is the autoreset row
    assert float(agent.seen.count) == pytest.approx(2 * len(seen) + 1e-4)
    np.testing.assert_allclose(agent.seen.mean, [np.mean(seen), -np.mean(seen)], rtol=1e-4)
    np.testing.assert_allclose(agent.seen.var, np.var(seen), rtol=1e-3)
    np.testing.assert_allclose(agent.earned.count, 2 * sum(t % 6 != 5 for t in range(len(seen))), rtol=1e-4)   # but a reset row has no reward


def test_evaluating_and_measuring_count_nothing():
    def trained(look):
        envs, agent, stream = made("Pendulum-v1", 4, 1024)
        for _ in stream:
            if look:
                before = copy.deepcopy(agent.state_dict())
                evaluate(agent, EnvConfig("Pendulum-v1"), num_envs=2)
                agent.policy(envs.obs), agent.greedy(envs.obs), agent.frozen()(envs.obs)
                after = agent.state_dict()
                assert str(before["seen"]) == str(after["seen"]) and str(before["earned"]) == str(after["earned"])
        return agent.weights
    assert torch.equal(trained(False), trained(True))


def test_without_normalisers_the_networks_see_what_the_environment_gives():
    envs, agent, _ = made(SHORT, normalize_obs=False, normalize_rewards=False)
    rollout = envs.collect(agent, 16, agent.progress)
    assert torch.equal(rollout.extras["x"], rollout.obs) and agent.earned is None
    assert set(agent.state_dict()) == {"net", "optimizer", "seen", "generator", "first", "changed"}


@pytest.mark.parametrize("what", ["x", "drawn"])
def test_masked_rows_have_no_part_in_an_update(what):
    def updated(spoil):
        envs, agent, _ = made(SHORT)
        rollout = envs.collect(agent, 32, agent.progress)
        assert 0 < (~rollout.mask).sum() < 20
        if spoil and what == "drawn": rollout.extras["drawn"][~rollout.mask] = 7.0
        if spoil and what == "x": rollout.rewards[~rollout.mask] = 1e6
        agent.update(rollout, BatchPlan(32, 16, 2 * 4))
        return agent.weights.detach()
    assert torch.equal(updated(False), updated(True))


# -- acting ------------------------------------------------------------------------------------------------------------

def test_actions_are_drawn_from_the_policy_and_brought_within_the_bounds():
    envs, agent, _ = made("Pendulum-v1", 8)
    agent.net.log_std.data.fill_(1.0)
    rollout = envs.collect(agent, 400, agent.progress)
    mean, log_std = agent.net(rollout.extras["x"])
    z = ((rollout.extras["drawn"] - mean) / log_std.exp()).detach().flatten()
    assert abs(float(z.mean())) < 0.06 and abs(float(z.std()) - 1) < 0.05
    assert torch.equal(rollout.actions, rollout.extras["drawn"].clamp(-2, 2)) and float(rollout.actions.abs().max()) == 2.0
    assert float(rollout.extras["drawn"].abs().max()) > 2


def test_discrete_actions_have_the_frequencies_of_the_policy():
    _, agent, _ = made("CartPole-v1", 1000)
    agent.net.actor[-1].bias.data.copy_(torch.tensor([0.0, np.log(3.0)]))
    obs = torch.zeros(1000, 4)
    taken = torch.cat([agent.act(obs)[0] for _ in range(20)]).float().mean()
    assert abs(float(taken) - 0.75) < 0.015


# -- tasks with known answers ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_truncation_is_not_an_end_unless_it_is_asked_for(bootstrap):
    """Reward 1 for ever is worth 1/(1−γ) = 10, though every episode is cut off after 20 steps. Taken for an end, the value of a state that does not
    tell the time lies near the mean over the steps that are left, which is about 6."""
    envs, agent, stream = made(ENDLESS, 8, 40_000, env=dict(bootstrap_truncation=bootstrap), gamma=0.9, normalize_rewards=False, clip_value=False,
                               lr=2e-3, value_coef=1.0)
    for _ in stream: pass
    value = float(agent.net.value(agent.seen(torch.tensor([[1.0, 0.0]]))).detach())
    assert abs(value - 10) < 0.3 if bootstrap else 5.0 < value < 8.2


class Sum(gym.Env):
    "Ten steps; the state moves by the action, and the cost is its square and a little of the action's: a linear-quadratic regulator."
    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32), gym.spaces.Box(-2, 2, (1,), np.float32)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.s, self.t = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.s, {}
    def step(self, action):
        reward = -float(self.s[0] ** 2 + 0.1 * action[0] ** 2)
        self.s, self.t = (self.s + action).astype(np.float32), self.t + 1
        return self.s, reward, False, self.t == 10, {}

gym.register("Ppo/Regulator-v0", entry_point=Sum, disable_env_checker=True)


def test_the_gain_of_a_regulator_is_the_exact_one():
    "The optimal action is −k·s, with k from the Riccati equation at the discount of the agent. (Observations as they are: states shrink as it learns, and a normaliser would move with them.)"
    gamma, p = 0.9, 1.0
    for _ in range(1000): p = 1 + gamma * p - (gamma * p) ** 2 / (0.1 + gamma * p)
    k = gamma * p / (0.1 + gamma * p)
    envs, agent, stream = made("Ppo/Regulator-v0", 16, 70_000, gamma=gamma, num_minibatches=8, lr=2e-3, controller=Fixed(64), normalize_obs=False)
    for _ in stream: pass
    states = torch.tensor([[-0.8], [0.0], [0.8]])
    assert 0.9 < k < 0.92
    np.testing.assert_allclose(agent.greedy(states).flatten().numpy(), -k * states.flatten().numpy(), atol=0.16)


def test_cartpole_with_discrete_actions(tmp_path):
    score = run(configure("ppo", env_id="CartPole-v1", total_steps=60_000, size_min=16, size_max=64, eval_envs=10), tmp_path)["eval"]
    assert score["mean"] > 300


@pytest.mark.long
@pytest.mark.parametrize("params, least", [(dict(env_id="LunarLander-v3", total_steps=400_000), 150), (dict(env_id="InvertedPendulum-v4", preset="mujoco_64", total_steps=200_000), 900),
                                           (dict(env_id="Pendulum-v1", total_steps=300_000, gamma=0.9, entropy_coef=0.0), -300)])
def test_tasks_are_learned_by_three_seeds(params, least, tmp_path):
    means = [run(configure("ppo", controller="fixed", seed=seed, **params), tmp_path/str(seed))["eval"]["mean"] for seed in range(3)]
    assert float(np.median(means)) > least, means


# -- one ABS for both agents -------------------------------------------------------------------------------------------

def test_one_abs_serves_pqn_and_ppo(tmp_path):
    sizes = {}
    for agent, signal in (("pqn", {}), ("ppo", dict(low=1e-4, high=0.05))):
        config = configure(agent, env_id="CartPole-v1", preset="classic", num_envs=32, total_steps=20_000, interval=1, warmup=2, size_min=16, size_max=64, eval_envs=2,
                           num_minibatches=4, rounding="exact", smoothing=0.0, **signal)
        run(config, tmp_path/agent)
        sizes[agent] = {row["size"] for row in map(json.loads, (tmp_path/agent/"steps.jsonl").read_text().splitlines())}
        assert type(config.controller) is ABS
    assert all(len(s) > 2 for s in sizes.values()), sizes


@pytest.mark.parametrize("distance", ["gaussian_kl", "symmetric_kl", "mean_shift", "total_variation", "auto", "kl"])
def test_every_distance_of_gaussians_can_be_measured(distance):
    envs, agent, stream = made("Pendulum-v1", 4, 512)
    stream = train(agent, envs, Divergence(interval=1, distance=distance), Fixed(32), agent.progress)
    assert all(0 < s.signal < 5 for s in stream)


def test_distances_agree_on_a_small_shift():
    "KL = δ²/2 both ways, the shift is δ, and total variation is δ/√(2π), for a small shift δ of one mean."
    zero, d = torch.zeros(1, 1), 0.02
    got = {name: float(policy_distance((zero, zero), (zero + d, zero), name)) for name in ("gaussian_kl", "symmetric_kl", "mean_shift", "total_variation")}
    for name, value in dict(gaussian_kl=d**2 / 2, symmetric_kl=d**2 / 2, mean_shift=d, total_variation=d / (2 * np.pi) ** 0.5).items():
        assert got[name] == pytest.approx(value, rel=1e-3), name


def test_a_copy_of_an_earlier_policy_is_measured_with_its_own_normaliser():
    envs, agent, _ = made("Pendulum-v1", 4, 4096)
    meter, signals = Divergence(interval=4, lag=4), []
    for s in train(agent, envs, meter, Fixed(32), agent.progress):
        signals.append(s.signal)
        if s.update == 6:                              # saved while a copy is held, and restored
            saved, meter_again = meter.state_dict(), Divergence(interval=4, lag=4)
            meter_again.load_state_dict(saved)
            assert float(saved["copy"]["0.count"]) == pytest.approx(4 * 32 * 5 + 1e-4) and float(agent.seen.count) == pytest.approx(4 * 32 * 6 + 1e-4)
    assert sum(x is not None and x > 0 for x in signals) == len(signals) // 4


# -- what goes wrong, and what is said ---------------------------------------------------------------------------------

def test_a_reward_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    config = configure("ppo", preset="classic", env_id=NAN_REWARD, controller="fixed", num_envs=2, size=64, num_minibatches=4, total_steps=10_000)
    with pytest.raises(AbsLabError, match=r"gave reward nan at step 100, in environment 0"): run(config, tmp_path)
    assert "reward nan" in [json.loads(x) for x in (tmp_path/"events.jsonl").read_text().splitlines()][-1]["message"]


def test_an_action_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    config = configure("ppo", preset="classic", distance="kl", env_id=NAN_OBS, controller="fixed", num_envs=2, size=64, num_minibatches=4, total_steps=10_000)
    with pytest.raises(AbsLabError, match=r"actions contain NaN or infinity at step 102, first in environment 0"): run(config, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    r = Run(configure("ppo", env_id="CartPole-v1", controller="fixed", size=16, total_steps=10_000), tmp_path)
    steps = r.steps()
    next(steps)
    r.agent.weights.data[0] = float("nan")
    with pytest.raises(AbsLabError, match=r"became nan at step 1024, update 2; .* has no checkpoint yet"): next(steps)
    r.close()


def box(low, high, shape=None): return gym.spaces.Box(np.float32(low), np.float32(high), shape, np.float32)

VECTOR = box(-1, 1, (3,))

@pytest.mark.parametrize("obs_space, action_space, words", [
    (VECTOR, box([-1, -np.inf], [1, np.inf]), "action 1 has bounds -inf to inf"), (VECTOR, box([-1, 2], [1, 2]), "action 1 has bounds 2.0 to 2.0"),
    (gym.spaces.Dict(a=VECTOR), VECTOR, "vectors"), (VECTOR, gym.spaces.MultiBinary(2), "MultiDiscrete or a Box"), (VECTOR, box(-1, 1, (2, 2)), "shape"),
    (box(0, 1, (4, 30, 30)), VECTOR, "FlattenObservation"), (box(0, 1, (4, 84, 84)), VECTOR, "normalize_obs=False")])
def test_spaces_that_do_not_fit_are_refused(obs_space, action_space, words):
    with pytest.raises(AbsLabError, match=words): PPO(PPOConfig(), obs_space, action_space, 1, Progress(1))


def test_mismatches_are_refused_by_the_run(tmp_path):
    with pytest.raises(AbsLabError, match="discrete actions"): PQN(PQNConfig(network="mlp"), VECTOR, VECTOR, 1, Progress(1))
    with pytest.raises(AbsLabError, match="discrete actions"): run(configure("pqn", preset="classic", env_id="Pendulum-v1"), tmp_path/"a")
    with pytest.raises(AbsLabError, match="does not fit this agent"):
        run(configure("ppo", env_id="Pendulum-v1", distance="disagreement", num_envs=4, size_min=32, num_minibatches=4, interval=1, total_steps=500), tmp_path/"b")
    with pytest.raises(AbsLabError, match="steps of 32"): configure("ppo", preset="mujoco", controller="fixed", size=1000)
    with pytest.raises(AbsLabError, match="steps of 1 do"): configure("ppo", preset="mujoco_64", controller="fixed", size=1)


def test_bounds_in_double_precision_are_kept():
    envs, agent, stream = made("Humanoid-v4", 2, 256)
    agent.net.log_std.data.fill_(2.0)                      # most actions end at a bound
    for _ in stream: pass
    assert envs.rows == 128


# -- arithmetic --------------------------------------------------------------------------------------------------------

PRODUCTS = """
import hashlib, numpy as np
from abs_lab.agents.arrays import matmul
rng, bits = np.random.default_rng(0), hashlib.sha256()
for rows in (1, 32, 64, 128, 144, 150, 256, 1024):
    for inputs, outputs in ((17, 64), (64, 64), (64, 6), (64, 1), (376, 64), (256, 256)):
        x, weight, by = (rng.normal(size=s).astype(np.float32) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        for product in (matmul(x, weight.T), matmul(by.T, x, out=np.empty_like(weight)), matmul(by, weight)): bits.update(np.ascontiguousarray(product).tobytes())
print(bits.hexdigest())
"""

def test_products_do_not_depend_on_numpys_threads():
    bits = {subprocess.run([sys.executable, "-c", "import torch; torch.set_num_threads(1)\n" + PRODUCTS], env=os.environ | dict(OPENBLAS_NUM_THREADS=str(n), OMP_NUM_THREADS=str(n)),
                           capture_output=True, text=True, check=True).stdout for n in (1, 2, 4)}
    assert len(bits) == 1
