"BTR, a piece at a time, against literal or independently derived values; and the whole: what it plans, draws, learns and leaves alone."
import copy, importlib.util, itertools, math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from abs_lab.agents.btr import BTR, PRESETS, BTRConfig, epsilon_at, greedy_target, munchausen_target, plan_update, quantile_huber
from abs_lab.core.simulators import EnvConfig
from abs_lab.runs.config import configure
from abs_lab.core.controllers import ABS, Fixed
from abs_lab.core.divergence import Divergence
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Progress
from abs_lab.agents.btr_networks import NoisyLinear, QuantileNetwork, SpectralConv2d, SpectralLinear, Stream, draw_noise, midpoints, quantile_network
from abs_lab.agents.replay import Batch, Replay
from abs_lab.runs.runner import load_agent, run
from abs_lab.core.train import train

VECTOR, TWO = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)
SMALL = dict(learning_starts=400, replay_size=4_000, replay_ratio=1 / 8, base_batch=64, target_period=50, lr=1e-3, epsilon_fraction=0.2)
OFF = dict(network="plain", spectral=False, noisy=False, dueling=False, iqn=False, munchausen=False, n_steps=1, alpha=0.0, beta=0.0)


def trained(total=1_200, controller=None, meter=None, seed=0, env=None, **changes):
    env = env or EnvConfig("CartPole-v1", num_envs=16)
    progress, envs = Progress(total), VecEnvs(env, seed)
    agent = BTR(BTRConfig(**SMALL | changes), envs.obs_space, envs.action_space, env.num_envs, progress, seed)
    steps = list(train(agent, envs, meter or Divergence(interval=10**9), controller or Fixed(64), progress))
    envs.close()
    return agent, steps


# -- loss and targets --------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_the_quantile_huber_loss_is_its_formula(K, L, seed):
    g = torch.Generator().manual_seed(seed)
    errors, taus = 3 * torch.randn(2, K, L, generator=g), torch.rand(2, K, generator=g)
    for b in range(2):
        expected = 0.0
        for i, j in itertools.product(range(K), range(L)):
            d = errors[b, i, j].item()
            expected += abs(taus[b, i].item() - (d < 0)) * (d * d / 2 if abs(d) <= 1 else abs(d) - 0.5) / L
        assert quantile_huber(errors, taus)[b].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    plain = torch.nn.functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none").mean(2).sum(1)
    torch.testing.assert_close(quantile_huber(errors, None), plain)


def test_its_minimum_is_the_quantile():
    targets = torch.linspace(0, 1, 1001)
    for tau in (0.1, 0.5, 0.8):
        candidates = torch.linspace(0, 1, 201)
        scaled = torch.stack([quantile_huber((100 * (targets - c))[None, None], torch.tensor([[tau]]))[0] for c in candidates])  # κ is small beside 100
        assert candidates[scaled.argmin()] == pytest.approx(tau, abs=0.01)


def test_munchausen_at_a_literal():
    # Q(s) = (1, 2), Q(s') = (0, 1) with quantiles ∓½ around it, τ = ½: π(1|s) = e⁴/(e² + e⁴) = 0.880797, π(1|s') = 0.880797
    z = torch.tensor([[[-0.5, 0.5], [0.5, 1.5]]])
    y = munchausen_target(torch.tensor([1.0]), torch.tensor([0.9]), z, torch.tensor([[1.0, 2.0]]), torch.tensor([0]), 0.5, 0.5, -1.0)
    log0, log1 = math.log(0.119203), math.log(0.880797)
    bonus = 0.5 * max(0.5 * log0, -1.0)                                       # −1.0635 is cut off at −1
    soft = [0.119203 * (a - 0.5 * log0) + 0.880797 * (b - 0.5 * log1) for a, b in ((-0.5, 0.5), (0.5, 1.5))]
    torch.testing.assert_close(y, torch.tensor([[1 + bonus + 0.9 * s for s in soft]]), atol=1e-5, rtol=0)
    assert bonus == -0.5


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 2), st.floats(0, 1))
def test_munchausen_is_its_formula_and_never_overflows(seed, temperature, alpha):
    g = torch.Generator().manual_seed(seed)
    z, q = 50 * torch.randn(3, 4, 5, generator=g), 50 * torch.randn(3, 5, generator=g)
    r, d, a = torch.randn(3, generator=g), torch.rand(3, generator=g), torch.randint(5, (3,), generator=g)
    y = munchausen_target(r, d, z, q, a, alpha, temperature, -1.0).double()
    assert torch.isfinite(y).all()
    zz, qq = z.double(), q.double()
    for i in range(3):
        mean = zz[i].mean(0)
        log_next = mean / temperature - torch.logsumexp(mean / temperature, 0)
        log_now = qq[i] / temperature - torch.logsumexp(qq[i] / temperature, 0)
        bonus = min(max(temperature * log_now[a[i]].item(), -1.0), 0.0)
        for k in range(4):
            soft = (log_next.exp() * (zz[i, k] - temperature * log_next)).sum().item()
            assert y[i, k].item() == pytest.approx(r[i].item() + alpha * bonus + d[i].item() * soft, abs=2e-2 if temperature < 0.1 else 1e-3)


def test_a_cold_soft_value_is_the_hard_one_and_a_termination_has_none():
    g = torch.Generator().manual_seed(0)
    z, r, d = torch.randn(50, 8, 4, generator=g), torch.randn(50, generator=g), torch.rand(50, generator=g)
    q, a = torch.randn(50, 4, generator=g), torch.zeros(50, dtype=torch.int64)
    torch.testing.assert_close(munchausen_target(r, d, z, q, a, 0.0, 1e-4, -1.0), greedy_target(r, d, z), atol=2e-3, rtol=0)
    assert (munchausen_target(r, 0 * d, z, q, a, 0.0, 0.03, -1.0) == r[:, None]).all() and (greedy_target(r, 0 * d, z) == r[:, None]).all()


def test_whose_log_policy_is_added():
    agent, _ = trained()
    b = agent.replay.sample(64, agent.sampler)
    agent.target.draw(agent.generator)
    drawn, out, moved, each = agent.generator.get_state(), {}, [], []
    for bias in (30.0, -30.0):                                       # the online policy takes the one action, or the other
        with torch.no_grad(): agent.net.advantage.out.bias.copy_(torch.tensor([bias, -bias]))
        for policy in ("target", "online"):
            agent.generator.set_state(drawn)
            agent.config = replace(agent.config, munchausen_policy=policy)
            out[policy] = agent._targets(b)
        difference = out["target"] - out["online"]
        moved.append(difference.abs().max()); each.append(dict(out))
        assert (difference.abs() <= 0.9 + 1e-4).all() and torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-4)  # the bonus alone
    assert max(moved) > 0.1
    assert torch.equal(each[0]["target"], each[1]["target"]) and not torch.equal(each[0]["online"], each[1]["online"])  # only the second follows the online network
    assert not out["online"].requires_grad                           # and no gradient goes there


def test_without_munchausen_the_target_network_alone_makes_the_targets():
    agent, _ = trained(munchausen=False)
    b, drawn, out = agent.replay.sample(64, agent.sampler), agent.generator.get_state(), []
    for net in (agent.net, agent.target):
        for bias in (30.0, -30.0):
            with torch.no_grad(): net.advantage.out.bias.copy_(torch.tensor([bias, -bias]))
            agent.generator.set_state(drawn)
            out.append(agent._targets(b))
    assert torch.equal(out[0], out[1]) and not torch.equal(out[2], out[3])


# -- network -----------------------------------------------------------------------------------------------------------

def test_parameters_at_18_actions():
    counts = [sum(p.numel() for p in quantile_network("impala", (4, 84, 84), 18, noisy=noisy).parameters()) for noisy in (False, True)]
    assert counts == [2_908_851, 5_278_918]


def test_the_published_network_is_what_its_layers_make_when_written_out():
    torch.manual_seed(0)
    net, g = quantile_network("impala", (4, 84, 84), 5), torch.Generator().manual_seed(0)
    for layer in net.spectral_layers: layer.iterate(1_000)
    for bias in (p for name, p in net.named_parameters() if name.endswith("bias")): torch.nn.init.uniform_(bias, -0.2, 0.2)
    net.draw(g)
    w, f = net.state_dict(), torch.nn.functional
    obs, taus = torch.randint(256, (3, 4, 84, 84), generator=g, dtype=torch.uint8), torch.rand(3, 8, generator=g)
    x = obs.float() / 255
    for block in ("features.1", "features.2", "features.3"):
        x = f.max_pool2d(f.conv2d(x, w[f"{block}.0.weight"], w[f"{block}.0.bias"], padding=1), 3, stride=2, padding=1)
        for unit in (f"{block}.2", f"{block}.3"):
            h = x
            for part in (f"{unit}.first", f"{unit}.second"):
                weight = w[f"{part}.weight"]
                h = f.conv2d(h.relu(), weight / torch.linalg.matrix_norm(weight.flatten(1), 2), w[f"{part}.bias"], padding=1)
            x = x + h
    x = f.adaptive_max_pool2d(x.relu(), (6, 6)).reshape(3, 2304)
    cosines = torch.stack([torch.cos(math.pi * i * taus) for i in range(64)], -1)
    x = x[:, None] * (cosines @ w["embedding.linear.weight"].T + w["embedding.linear.bias"]).relu()
    for noise in (False, True):
        def stream(name, noise=noise):
            h = x
            for part, act in (("hidden", torch.relu), ("out", lambda y: y)):
                layer = getattr(getattr(net, name), part)
                eps_out, eps_in = (v * noise for v in (layer.noise_out, layer.noise_in))
                weight = w[f"{name}.{part}.weight"] + w[f"{name}.{part}.weight_sigma"] * eps_out[:, None] * eps_in[None]
                h = act(h @ weight.T + w[f"{name}.{part}.bias"] + w[f"{name}.{part}.bias_sigma"] * eps_out)
            return h
        V, A = stream("value"), stream("advantage")
        with torch.no_grad():
            torch.testing.assert_close(net.quantiles(obs, taus, noise), V + A - A.mean(-1, keepdim=True), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(net.quantiles(obs, taus, noise, advantages=True), A, atol=1e-4, rtol=1e-4)
            if noise: assert (net.quantiles(obs, taus) - net.quantiles(obs, taus, noise)).abs().max() > 1e-2


def test_noise_is_factorised_and_has_the_variance_that_it_should():
    torch.manual_seed(0)
    layer, g = NoisyLinear(6, 4), torch.Generator().manual_seed(0)
    torch.nn.init.uniform_(layer.weight_sigma, 0.1, 0.9); torch.nn.init.uniform_(layer.bias_sigma, 0.1, 0.9)
    x, outs = torch.randn(1, 6, generator=g), []
    with torch.no_grad():
        for _ in range(30_000): draw_noise([layer], g); outs.append(layer(x, noise=True))
        outs = torch.cat(outs)
        expected = (layer.weight_sigma.square() * x.square()).sum(1) * 2 / math.pi + layer.bias_sigma.square() * math.sqrt(2 / math.pi)
        # E[f(ε)²] = E|ε| = √(2/π); the weights' noise is a product of two, and that of weights and bias is uncorrelated: E f(ε_j) = 0
        torch.testing.assert_close(outs.var(0), expected, rtol=0.06, atol=0)
        assert ((outs.mean(0) - layer(x)[0]).abs() < 4 * expected.sqrt() / 30_000 ** 0.5).all()
        eps = (layer.noise_out[:, None] * layer.noise_in)
    assert torch.linalg.matrix_rank(eps) == 1 and layer.weight_sigma.numel() == 24


def test_noisy_layers_begin_as_published():
    layer = NoisyLinear(400, 50)
    assert (layer.weight_sigma == 0.5 / 20).all() and (layer.bias_sigma == 0.5 / 20).all()
    assert layer.weight.abs().max() <= 1 / 20 and layer.bias.abs().max() <= 1 / 20 and layer.weight.std().item() == pytest.approx(1 / 20 / 3 ** 0.5, rel=0.02)


def test_spectral_norm_holds_while_training():
    agent, _ = trained(total=3_000, lr=3e-3)
    layers = [m for m in agent.net.modules() if isinstance(m, (SpectralConv2d, SpectralLinear))]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.normed().detach().flatten(1), 2) < 1.05     # power iteration keeps up with Adam
        layer.iterate(1000)
        assert torch.linalg.matrix_norm(layer.normed().detach().flatten(1), 2) < 1 + 1e-3


def test_spectral_norm_is_on_the_residual_convolutions_alone():
    net = quantile_network("impala", (4, 84, 84), 6)
    spectral = [m for m in net.modules() if isinstance(m, SpectralConv2d)]
    plain = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and not isinstance(m, SpectralConv2d)]
    assert len(spectral) == 12 and [(m.in_channels, m.out_channels) for m in plain] == [(4, 32), (32, 64), (64, 64)]


def test_the_gradient_flows_through_the_norm():
    layer = SpectralLinear(5, 4).begin().double()
    x, w = torch.randn(3, 5).double(), layer.weight.detach().clone()
    layer(x).square().sum().backward()
    def f(weight): return (torch.nn.functional.linear(x, weight / (layer.u @ (weight @ layer.v)), layer.bias.detach())).square().sum()
    for i, j in ((0, 0), (3, 4)):
        up, down = w.clone(), w.clone()
        up[i, j] += 1e-6; down[i, j] -= 1e-6
        assert layer.weight.grad[i, j].item() == pytest.approx(((f(up) - f(down)) / 2e-6).item(), rel=1e-4)


def test_iqn_learns_a_distribution_whose_expectation_is_known():
    torch.manual_seed(0)
    net, state, g = quantile_network("plain", (1,), 1, False, dueling=False, noisy=False), torch.ones(1, 1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(1500):   # returns: −1 with probability ¼, otherwise exponential of mean 1
        taus = torch.rand(1, 32, generator=g)
        coin, u = torch.rand(64, generator=g), torch.rand(64, generator=g)
        returns = torch.where(coin < 0.25, -torch.ones(64), -torch.log(1 - u))
        loss = quantile_huber(5 * (returns[None, None] - net.quantiles(state, taus)[..., 0][..., None]), taus).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    with torch.no_grad(): low, median = net.quantiles(state, torch.tensor([[0.1, 0.625]])).flatten().tolist()
    assert low == pytest.approx(-1, abs=0.15) and median == pytest.approx(math.log(2), abs=0.15)   # P(≤ x) = ¼ + ¾(1 − e^−x) = 0.625
    dense = torch.cat([net.quantiles(state, midpoints(500)).mean(1)]).item()
    assert dense == pytest.approx(0.25 * -1 + 0.75 * 1, abs=0.12)


# -- the whole, on a task whose answer is known ------------------------------------------------------------------------

CHAIN, GAMMA = 5, 0.9   # states in a row; left of the first lies a small prize, right of the last a large one

def move(s, a):
    to = s + 2 * a - 1
    return np.clip(to, 0, CHAIN - 1), np.where(to < 0, 0.3, np.where(to >= CHAIN, 1.0, 0.0)), (to < 0) | (to >= CHAIN)


def wandering(rows=300, envs=16):
    "A rollout of uniformly random actions, with autoreset rows."
    rng, eye, row = np.random.default_rng(0), np.eye(CHAIN, dtype=np.float32), []
    s, reset = rng.integers(CHAIN, size=envs), np.zeros(envs, bool)
    for _ in range(rows):
        a = rng.integers(2, size=envs)
        to, reward, over = move(s, a)
        row.append((eye[s], a, np.where(reset, 0, reward).astype(np.float32), over & ~reset, np.zeros(envs, bool), ~reset))
        s, reset = np.where(reset, rng.integers(CHAIN, size=envs), to), over & ~reset
    parts = [torch.from_numpy(np.stack(x)) for x in zip(*row)]
    return SimpleNamespace(**dict(zip(("obs", "actions", "rewards", "terminated", "truncated", "mask"), parts)), next_obs=torch.from_numpy(eye[s]))


def fixed_point(c):
    "What the action values [S, A] must become: the targets' equation, iterated on a table."
    Q, s = np.zeros((CHAIN, 2)), np.arange(CHAIN)
    for _ in range(2_000):
        log_pi = Q / c.temperature - np.logaddexp(*(Q / c.temperature).T)[:, None]
        V = (np.exp(log_pi) * (Q - c.temperature * log_pi)).sum(1) if c.munchausen else Q.max(1)
        for _ in range(c.n_steps):   # after the first action a random one follows, up to n steps
            U = np.stack([np.where(over, reward, reward + GAMMA * V[to]) for to, reward, over in (move(s, a) for a in (0, 1))], 1)
            V = U.mean(1)
        Q = U + (c.munchausen_alpha * np.clip(c.temperature * log_pi, c.munchausen_floor, 0) if c.munchausen else 0)
    return Q


@pytest.mark.parametrize("parts, within", [
    ({}, 0.01), (dict(munchausen=True), 0.02), (dict(munchausen=True, temperature=0.003, munchausen_floor=-0.1), 0.02), (dict(iqn=True, taus=4), 0.05), (dict(n_steps=3), 0.1),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        (dict(network="impala", spectral=True, dueling=True, alpha=0.2, beta=0.45), 0.02), (dict(noisy=True), 0.1),
        (dict(network="impala", spectral=True, dueling=True, alpha=0.2, beta=0.45, iqn=True, taus=4, noisy=True, munchausen=True), 0.15)))])
def test_learnt_values_are_the_fixed_point_of_their_targets(parts, within):
    "Off-policy: the data is that of random actions, in which autoreset rows would teach rewards that nobody gave."
    c = BTRConfig(**OFF | dict(gamma=GAMMA, learning_starts=0, replay_size=6_000, target_period=40, lr=1e-3, epsilon_start=0.0, epsilon_end=0.0, diagnose_every=10**6) | parts)
    agent = BTR(c, gym.spaces.Box(0, 1, (CHAIN,)), TWO, 16, Progress(10**6))
    agent.update(wandering(), BatchPlan(1, 64, 1_600))
    expected = fixed_point(c)
    assert np.abs(agent.policy(torch.eye(CHAIN)).numpy() - expected).max() < within
    assert [agent.act(torch.eye(CHAIN))[0].tolist() for _ in range(20)].count(expected.argmax(1).tolist()) >= 18   # by advantages and with noise, too


# -- plans and schedules -----------------------------------------------------------------------------------------------

@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([128, 256, 384, 640, 1024]), min_size=1, max_size=60), st.sampled_from(["steps", "samples"]), st.sampled_from([1 / 64, 1 / 16, 1 / 100]))
def test_couplings_hold_what_they_promise_while_the_size_moves(sizes, coupling, ratio):
    config, clock, paid, samples, gradient_steps = BTRConfig(coupling=coupling, replay_ratio=ratio), Progress(10**8, step=200_000), 0.0, 0, 0
    for size in sizes:
        plan = plan_update(config, size, 64, clock, paid)
        clock.step += 64
        paid += plan.gradient_steps * (1.0 if coupling == "steps" else size / 256)
        gradient_steps += plan.gradient_steps; samples += plan.gradient_steps * size
        learning = clock.step - 200_000
        if coupling == "steps": assert learning * ratio - 1 < gradient_steps <= learning * ratio + 1e-3
        else: assert learning * ratio * 256 - size < samples <= learning * ratio * 256 + 1e-3


def test_nothing_is_learnt_before_learning_starts():
    agent, steps = trained(total=1_200)
    before = [s for s in steps if s.step <= 400]
    assert len(before) == 25 and all(s.gradient_steps == 0 and set(s.metrics) == {"epsilon"} and s.signal is None for s in before)
    assert steps[-1].gradient_steps == (1_200 - 400) // 8 == agent.progress.gradient_steps


def test_exploration_ends():
    config = BTRConfig(epsilon_fraction=0.1, epsilon_off=0.5)
    assert [epsilon_at(config, s, 100) for s in (0, 10, 49, 50, 100)] == pytest.approx([1, 0.01, 0.01, 0, 0])
    assert epsilon_at(replace(config, epsilon_off=1.0), 100, 100) == pytest.approx(0.01)


# -- the agent ---------------------------------------------------------------------------------------------------------

def next_row(agent):
    "A rollout of one more step, in which nothing happens and random observations come."
    no = torch.zeros(1, 16, dtype=torch.bool)
    return SimpleNamespace(obs=agent.replay.next[None], actions=no.long(), rewards=no.float(), terminated=no, truncated=no, mask=~no, next_obs=torch.randn(16, 4))


def test_the_target_network_is_copied_when_it_is_time():
    agent, _ = trained(total=408, target_period=3)   # its first gradient step copies
    flat = lambda net: torch.cat([p.detach().flatten() for p in net.parameters()])
    copied = []
    for _ in range(7):
        before = flat(agent.net)
        agent.progress.step += 16
        at = agent.progress.gradient_steps
        agent.update(next_row(agent), BatchPlan(1, 32, 1))
        copied.append((at, torch.equal(flat(agent.target), before)))
    assert all(same == (at % 3 == 0) for at, same in copied)


def test_a_rate_and_a_discount_that_are_set_take_effect():
    agent, _ = trained(n_steps=1)
    agent.config = replace(agent.config, lr=1e-30, gamma=0.5)
    before = agent.weights.clone()
    agent.update(next_row(agent), BatchPlan(1, 32, 2))
    assert torch.equal(agent.weights, before)
    assert set(agent.replay.sample(64, agent.sampler).discounts.tolist()) == {0.0, 0.5}
    forked, _ = trained(n_steps=1, lr=1e-30)
    forked.load_state_dict(trained(n_steps=1)[0].state_dict())       # its optimiser comes with another rate
    before = forked.weights.clone()
    forked.update(next_row(forked), BatchPlan(1, 32, 2))
    assert torch.equal(forked.weights, before)


def test_priorities_are_absolute_errors_summed_over_predictions():
    agent, _ = trained(alpha=1.0)
    b = agent.replay.sample(16, agent.sampler)
    drawn = agent.generator.get_state()
    net, target = copy.deepcopy(agent.net), agent.target
    agent._gradient_step(b)
    agent.generator.set_state(drawn)
    net.draw(agent.generator); target.draw(agent.generator); net.iterate()
    targets = agent._targets(b)
    taus = torch.rand(16, 8, generator=agent.generator)
    with torch.no_grad(): z = net.quantiles(b.obs, taus, noise=True)
    for i, slot in enumerate(b.slots):
        if (b.slots == slot).sum() > 1: continue
        predicted = z[i, :, b.actions[i]]
        assert agent.replay.tree[slot] == pytest.approx(float((targets[i][None] - predicted[:, None]).abs().mean(1).sum()) + 1e-6, rel=1e-3)


def test_weights_scale_each_transitions_loss():
    agent, _ = trained()
    b = agent.replay.sample(8, agent.sampler)
    drawn, net = agent.generator.get_state(), {k: v.clone() for k, v in agent.net.state_dict().items()}
    def loss(weights):
        agent.generator.set_state(drawn); agent.net.load_state_dict(net)
        return agent._gradient_step(b._replace(weights=weights))[0].item()
    one_by_one = [loss(torch.eye(8)[i]) for i in range(8)]
    assert sum(one_by_one) == pytest.approx(loss(torch.ones(8)), rel=1e-4)


def test_the_plain_step_of_the_benchmark_does_the_same_arithmetic(monkeypatch):
    spec = importlib.util.spec_from_file_location("btr_speed", Path(__file__).resolve().parents[1] / "benchmarks/btr_speed.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    c, given = BTRConfig(replay_size=256, munchausen_floor=-0.05), []  # a floor that an untrained network reaches
    agent = BTR(c, bench.PIXELS, gym.spaces.Discrete(6), 4, Progress(10**9))
    agent.replay = bench.full_replay(256, 4)
    agent.target.load_state_dict(quantile_network("impala", bench.PIXELS.shape, 6).state_dict())  # other weights than the online network's
    b = agent.replay.sample(4, agent.sampler)._replace(weights=torch.tensor([0.2, 0.4, 0.6, 1.0]), rewards=torch.tensor([1.0, -1.0, 0.0, 2.5]))
    layers = lambda net: [m for m in net.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    def copied(net):
        "The plain network with a network's weights, noise, and singular vectors, which then stay as they are."
        net.draw(agent.generator)
        net.draw, net.iterate, plain = lambda generator: None, lambda: None, bench.Plain(6).eval()
        plain.redraw = lambda: None
        for ours, theirs in zip(layers(net), layers(plain), strict=True):
            normed = isinstance(ours, SpectralConv2d)
            pairs = [(theirs.bias, ours.bias), (theirs.parametrizations.weight.original if normed else theirs.weight, ours.weight)]
            if normed: pairs += [(theirs.parametrizations.weight[0]._u, ours.u), (theirs.parametrizations.weight[0]._v, ours.v)]
            if isinstance(ours, NoisyLinear): pairs += [(theirs.ws, ours.weight_sigma), (theirs.bs, ours.bias_sigma), (theirs.we, torch.outer(ours.noise_out, ours.noise_in)), (theirs.be, ours.noise_out)]
            for to, value in pairs: to.data.copy_(value)
        return plain
    net, target = copied(agent.net), copied(agent.target)
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, eps=c.adam_eps)
    after, now, taken = torch.rand(3, 4, c.taus)
    ours, theirs = iter([torch.cat([after, now]), taken]), iter([after, now, taken])
    agent._rand = lambda *shape: next(ours)
    monkeypatch.setattr(agent.replay, "update_priorities", lambda slots, errors: given.append(errors))
    loss = agent._gradient_step(b)[0]
    monkeypatch.setattr(bench.torch, "rand", lambda *shape, device=None: next(theirs))
    plain_loss, errors = bench.plain_step(net, target, optimizer, b, c)
    assert plain_loss == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(errors, given[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(layers(agent.net), layers(net)): torch.testing.assert_close(b.bias, a.bias, rtol=0, atol=2e-5)  # a step moves them by up to 1e-4


@pytest.mark.parametrize("parts", [{}, dict(iqn=False, dueling=False), dict(noisy=False, spectral=False, munchausen_policy="online")])
def test_a_written_gradient_step_has_the_same_bits_in_inference_mode_and_outside(parts):
    "An update takes its steps in torch's inference mode; what they leave can be used, copied and saved outside of it."
    rand = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=rand)
    batches = [Batch(np.arange(n), draw(n, 4), torch.arange(n) % 2, draw(n), torch.full((n,), 0.9), draw(n, 4), torch.ones(n)) for n in (16, 16, 24, 24)]
    def after(modes):
        agent, other = (BTR(BTRConfig(**SMALL | dict(backprop="written"), **parts), VECTOR, TWO, 16, Progress(1_000), seed) for seed in (0, 1))
        for mode, b in zip(modes, batches):
            with torch.inference_mode(mode): agent._gradient_step(b)
            assert not any(t.is_inference() for t in [agent.weights, agent.weights.grad, *agent.optimizer.state.values(), *agent.net.buffers()])  # before the copy, whose tensors are never
            other.load_state_dict(copy.deepcopy(agent.state_dict()))
            agent, other = other, agent
        return agent.weights.detach(), agent.optimizer.state["exp_avg_sq"]
    for modes in ((True,) * 4, (True, False, False, True), (False, True, True, False)):
        assert all(map(torch.equal, after(modes), after((False,) * 4)))


def test_what_the_optimiser_does_without_a_gradient():
    for optimizer, kept in (("adam", 1.0), ("adamw", 1 - 1e-2 * 1e-3)):
        agent = BTR(BTRConfig(**SMALL | dict(optimizer=optimizer, weight_decay=1e-2)), VECTOR, TWO, 16, Progress(1_000))
        before = agent.weights.detach().clone()
        agent.weights.grad.zero_()
        agent.optimizer.step()
        torch.testing.assert_close(agent.weights.detach(), kept * before, rtol=1e-6, atol=0)


def test_each_gradient_step_draws_with_the_settings_in_force(monkeypatch):
    drawn, sample = [], Replay.sample
    monkeypatch.setattr(Replay, "sample", lambda self, batch, generator, beta: drawn.append((batch, beta)) or sample(self, batch, generator, beta))
    trained(total=480, beta=0.7)
    assert set(drawn) == {(64, 0.7)} and len(drawn) == 10


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("rollout", [1, 4])
def test_what_is_stored_is_what_the_policy_chose_before_it_learnt_on(overlap, rollout, monkeypatch):
    "With overlap the first actions of a rollout are chosen before the update that precedes it; actions are stored in the row of the state that they were chosen in."
    chosen, act = [], BTR.act
    monkeypatch.setattr(BTR, "act", lambda self, obs: chosen.append((obs.clone(), *(out := act(self, obs)), self.progress.gradient_steps)) or out)
    agent, _ = trained(total=768, overlap=overlap, rollout=rollout)
    columns = agent.replay.columns
    assert agent.replay.rows == 48 <= len(chosen)
    for t, (obs, actions, _, learnt) in enumerate(chosen[:48]):
        assert torch.equal(columns["frames"][t], obs) and torch.equal(columns["actions"][t].long(), actions)
        updates = max(t // rollout - (overlap and t % rollout == 0), 0)
        assert learnt == max(updates * rollout * 16 - 400, 0) // 8


def test_the_settings_reach_targets_and_levels(monkeypatch):
    levels, given, quantiles, target = set(), set(), QuantileNetwork.quantiles, munchausen_target
    monkeypatch.setattr(QuantileNetwork, "quantiles", lambda self, obs, taus, **how: levels.add(taus.shape[1]) or quantiles(self, obs, taus, **how))
    monkeypatch.setattr("abs_lab.agents.btr.munchausen_target", lambda *args: given.add(args[5:]) or target(*args))
    trained(total=480, taus=5, munchausen_alpha=0.5, temperature=0.02, munchausen_floor=-0.3)
    assert levels == {5} and given == {(0.5, 0.02, -0.3)}


def test_gradients_are_scaled_down_to_the_norm():
    agent, _ = trained()
    for most in (1e-3, 1e3):
        agent.config = replace(agent.config, max_grad_norm=most)
        norm = agent._gradient_step(agent.replay.sample(32, agent.sampler))[2].item()
        assert 1e-3 < norm < 1e3 and agent.weights.grad.norm().item() == pytest.approx(min(norm, most), rel=1e-3)


def test_acting_draws_new_noise_and_explores_at_random():
    agent, _ = trained()
    with torch.no_grad(): agent.net.advantage.out.bias.copy_(torch.tensor([50.0, -50.0]))
    obs, layer = torch.randn(4_000, 4), agent.net.noisy_layers[0]
    for epsilon, other in ((0.0, 0.0), (0.4, 0.2), (1.0, 0.5)):       # a random action is the other one every second time
        agent.config, before = replace(agent.config, epsilon_start=epsilon, epsilon_end=epsilon, epsilon_off=1.0), layer.noise_in.clone()
        assert agent.act(obs)[0].float().mean() == pytest.approx(other, abs=0.03 * (epsilon > 0)) and not torch.equal(layer.noise_in, before)


def test_noise_alone_explores_and_every_state_gets_its_own_levels(monkeypatch):
    agent, _ = trained()
    agent.config = replace(agent.config, epsilon_start=0.0, epsilon_end=0.0)
    with torch.no_grad():
        for part in (agent.net.advantage.out.weight, agent.net.advantage.out.bias): part.zero_()   # both actions are equal but for the noise
    levels, quantiles = [], QuantileNetwork.quantiles
    monkeypatch.setattr(QuantileNetwork, "quantiles", lambda self, obs, taus, **how: levels.append(taus) or quantiles(self, obs, taus, **how))
    state = torch.randn(1, 4)
    assert {int(agent.act(state)[0]) for _ in range(30)} == {0, 1} and {int(agent.greedy(state)) for _ in range(30)} == {0}
    agent.act(torch.randn(5, 4))
    assert levels[-1].shape == (5, 8) and len(levels[-1].unique()) == 40 and not torch.equal(levels[0], levels[1])


@pytest.mark.parametrize("coupling, size", [("steps", 64), ("samples", 64), ("samples", 128)])
def test_plasticity_is_measured_however_rare_gradient_steps_are(coupling, size):
    _, steps = trained(total=2_400, controller=Fixed(size), coupling=coupling, replay_ratio=1 / 64, diagnose_every=20)   # one in four updates learns, or one in eight
    at = [i + 1 for i, s in enumerate(steps) if "rank" in s.metrics]
    assert len(at) >= 4 and all(20 <= b - a < 20 + size / 16 for a, b in zip(at, at[1:]))


def test_plasticity_does_not_depend_on_the_batch(monkeypatch):
    seen = []
    monkeypatch.setattr("abs_lab.agents.btr.feature_rank", lambda features: seen.append(len(features)) or torch.tensor(0.0))
    for size in (16, 128): trained(total=2_400, controller=Fixed(size), diagnose_every=140)
    assert len(seen) == 2 and seen[0] == seen[1] > 2_000


def test_the_agent_of_a_run_can_be_had_without_room_for_its_replay(tmp_path, monkeypatch):
    run(configure("btr", env_id="CartPole-v1", controller="fixed", total_steps=1_200, learning_starts=800, eval_envs=1), tmp_path)
    monkeypatch.setattr("abs_lab.agents.replay.free_memory", lambda: 100_000)
    agent = load_agent(tmp_path)
    assert agent.progress.step == 1_200 and agent.greedy(torch.zeros(3, 4)).shape == (3,)
    with pytest.raises(AbsLabError, match="replay holds 0 complete transitions"): agent.replay.sample(1, agent.sampler)  # and not what its memory held before


def test_a_checkpoint_from_before_plasticity_was_counted_can_be_read():
    agent, _ = trained(total=800)
    older = {k: v for k, v in agent.state_dict().items() if k != "diagnosed"}
    other, _ = trained(total=800, seed=1)
    other.load_state_dict(older)
    assert torch.equal(other.weights, agent.weights) and other.diagnosed == 0


def test_measuring_evaluating_and_copying_change_no_bit():
    quiet, _ = trained(meter=Divergence(interval=10**9))
    looked, steps = trained(meter=Divergence(interval=5, states="replay", lag=3, n_states=200))
    assert sum(s.signal is not None for s in steps) >= 8
    for a, b in zip(quiet.net.state_dict().values(), looked.net.state_dict().values()): assert torch.equal(a, b)
    assert torch.equal(quiet.generator.get_state(), looked.generator.get_state()) and torch.equal(quiet.sampler.get_state(), looked.sampler.get_state())
    state, obs = copy.deepcopy(looked.state_dict()), torch.randn(50, 4)
    q = looked.policy(obs)
    assert torch.equal(q, looked.policy(obs)) and torch.equal(looked.greedy(obs), q.argmax(1)) and torch.equal(looked.frozen()(obs), q)
    same = lambda x, y: all(same(x[k], y[k]) for k in x) if isinstance(x, dict) else np.array_equal(x, y) if hasattr(x, "shape") else x == y
    assert same({k: v for k, v in state.items() if k != "optimizer"}, {k: v for k, v in looked.state_dict().items() if k != "optimizer"})


def test_divergence_compares_on_states_from_replay_with_noise_off():
    agent, _ = trained()
    meter = Divergence(interval=1, states="replay", n_states=100)
    rollout = SimpleNamespace(obs=torch.zeros(1, 16, 4), mask=torch.ones(1, 16, dtype=torch.bool))
    meter.seed(5)
    meter.before(agent, rollout)
    expected = agent.states(100, torch.Generator().manual_seed(5))
    assert torch.equal(meter._states, expected) and len(torch.unique(expected, dim=0)) > 90
    old = agent.net(expected)
    for _ in range(3): agent.net.draw(agent.generator)
    b = agent.replay.sample(64, agent.sampler)
    for _ in range(20): agent._gradient_step(b)
    agent.progress.gradient_steps += 20
    new = agent.net(expected)
    assert meter.after(agent, rollout) == (old.argmax(1) != new.argmax(1)).float().mean()


def test_divergence_over_a_window_is_from_a_copy_made_before_it():
    progress, envs = Progress(1_600), VecEnvs(EnvConfig("CartPole-v1", num_envs=16), 0)
    agent = BTR(BTRConfig(**SMALL | dict(lr=5e-3)), envs.obs_space, envs.action_space, 16, progress, 0)
    nets, seen, states, signals, expected = [copy.deepcopy(agent.net)], [], agent.states, [], []
    agent.states = lambda count, generator: seen.append(states(count, generator)) or seen[-1]
    for s in train(agent, envs, Divergence(interval=5, states="replay", lag=3, n_states=300), Fixed(64), progress):
        nets.append(copy.deepcopy(agent.net))
        if s.signal is None: continue
        signals.append(s.signal)
        before, after = (net(seen[-1]).argmax(1) for net in (nets[-4], nets[-1]))
        expected.append((before != after).float().mean().item())
    envs.close()
    assert signals == pytest.approx(expected) and len(set(signals)) > 5


@pytest.mark.parametrize("shape, kind", [((4,), "vector"), ((4, 84, 84), "image")])
def test_many_observations_in_pieces_have_the_values_that_they_have_alone(shape, kind):
    net = quantile_network("impala", shape, 3)
    obs = torch.randn(600, *shape) if kind == "vector" else torch.randint(0, 256, (260, *shape), dtype=torch.uint8)
    with torch.no_grad(): torch.testing.assert_close(net(obs), torch.cat([net(part) for part in obs.split(50)]), rtol=1e-4, atol=1e-5)


def test_divergence_over_a_window_without_learning_is_no_measurement():
    agent, _ = trained(total=300, learning_starts=299 - 16)
    meter, rollout = Divergence(interval=2, lag=2, states="replay"), SimpleNamespace(obs=torch.zeros(1, 16, 4), mask=torch.ones(1, 16, dtype=torch.bool))
    signals = []
    for learns in (False, False, True, False):
        meter.before(agent, rollout)
        if learns: agent.progress.gradient_steps += 1
        signals.append(meter.after(agent, rollout))
    assert signals == [None, None, None, 0.0]   # the window of the second two updates held a gradient step


def test_nothing_is_evaluated_before_something_is_learned(monkeypatch):
    asked, forward = [], QuantileNetwork.forward
    monkeypatch.setattr(QuantileNetwork, "forward", lambda self, obs: asked.append(len(obs)) or forward(self, obs))
    _, steps = trained(total=800, learning_starts=600, meter=Divergence(interval=4, lag=2, states="replay", n_states=50))
    measured = sum(s.signal is not None for s in steps)
    assert 0 < measured < 5 and len(asked) == 2 * measured


def test_states_from_replay_need_a_replay():
    meter, rollout = Divergence(interval=1, states="replay"), SimpleNamespace(obs=torch.zeros(1, 2, 4), mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(AbsLabError, match="needs an agent with a replay"): meter.before(SimpleNamespace(policy=lambda obs: obs), rollout)


@pytest.mark.parametrize("coupling", ["steps", "samples"])
def test_abs_controls_the_replay_batch(coupling):
    controller = ABS(32, 256, low=0.01, high=0.6, warmup=2, window=3, multiple=32, rounding="exact")
    agent, steps = trained(total=2_400, controller=controller, coupling=coupling, meter=Divergence(interval=8, states="replay", lag=4, n_states=256))
    sizes = {s.size for s in steps}
    assert len(sizes) > 2 and sizes <= set(range(32, 257, 32)) and all(s.plan.minibatch == s.size for s in steps)
    if coupling == "steps": assert steps[-1].gradient_steps == (steps[-1].step - 400) // 8
    else:
        samples = sum(s.size * (s.gradient_steps - before) for before, s in zip([0] + [s.gradient_steps for s in steps], steps))
        assert 0 <= (steps[-1].step - 400) / 8 * 64 - samples < 256


@pytest.mark.parametrize("part", [*OFF, "all"])
def test_every_part_can_be_switched_off(part):
    agent, steps = trained(total=600, **(OFF if part == "all" else {part: OFF[part]}))
    assert math.isfinite(steps[-1].metrics["loss"]) and steps[-1].gradient_steps == 26
    names = " ".join(type(m).__name__ for m in agent.net.modules())
    if part in ("noisy", "all"): assert "Noisy" not in names
    if part in ("spectral", "network", "all"): assert "Spectral" not in names
    if part in ("iqn", "all"): assert agent.net.embedding is None
    if part in ("dueling", "all"): assert agent.net.value is None


def test_images_planes_and_vectors():
    image = EnvConfig("Pong-v5", num_envs=4, reward_clip=True, sticky_actions=0.25)
    _, steps = trained(total=128, env=image, controller=Fixed(8), learning_starts=100, replay_size=400)
    assert steps[-1].gradient_steps == 3 and all(math.isfinite(s.metrics["loss"]) for s in steps if "loss" in s.metrics)
    pytest.importorskip("minatar")
    _, steps = trained(total=600, env=EnvConfig("MinAtar/Breakout-v1", num_envs=16))
    assert math.isfinite(steps[-1].metrics["loss"])


def test_sticky_actions_repeat():
    def frames(sticky):
        envs, rng, seen = VecEnvs(EnvConfig("Breakout-v5", num_envs=2, sticky_actions=sticky), 0), np.random.default_rng(0), []
        for _ in range(60): seen.append(envs.step(rng.integers(0, 4, 2))[0])
        envs.close()
        return np.stack(seen)
    assert (frames(0.0) == frames(0.0)).all() and not (frames(0.0) == frames(0.25)).all()


# -- bad input ---------------------------------------------------------------------------------------------------------

def test_continuous_actions_are_refused():
    with pytest.raises(AbsLabError, match="BTR needs discrete actions"): BTR(BTRConfig(), VECTOR, gym.spaces.Box(-1, 1, (1,)), 4, Progress(1))


@pytest.mark.parametrize("params,message", [
    (dict(total_steps=100_000, preset="paper"), "learning_starts must come before the run's end at 100000 steps, not at 200000"),
    (dict(learning_starts=100), "learning_starts=100 is too small for a batch of 256 from 16 environments: 640 or more would do"),
    (dict(replay_size=200), "replay_size=200 is too small for a batch of 256 from 16 environments: 640 or more would do"),
    (dict(rollout=10_000), "replay_size=100000 is too small for a rollout of 10000 steps from 16 environments: 160128 or more would do"),
    (dict(lr=float("inf")), "parameter lr cannot be inf"), (dict(lr=0.0), "lr must be positive and finite"),
    (dict(coupling="sample"), "did you mean samples"), (dict(network="impalla"), "did you mean impala"), (dict(optimizer="sgd"), "unknown optimizer"),
    (dict(n_steps=0), "n_steps must be at least 1"), (dict(temperature=0.0), "temperature must be positive"), (dict(alpha=1.5), "alpha must lie between 0 and 1"),
    (dict(record_every=0), "record_every must be at least 1"), (dict(sticky_actions=2.0), "sticky_actions must lie"),
    (dict(mask_resets=False), "agent btr keeps reset rows out of its replay")])
def test_bad_parameters_are_refused_before_any_work(params, message):
    with pytest.raises(AbsLabError) as e: configure("btr", **params)
    assert message in str(e.value)


@pytest.mark.parametrize("controller", ["abs", "ramp", "fixed"])
@pytest.mark.parametrize("name", ["learning_starts", "replay_size"])
def test_what_a_refusal_asks_for_is_enough(name, controller):
    with pytest.raises(AbsLabError, match="would do") as e: configure("btr", controller=controller, **{name: 10})
    least = int(str(e.value).split(": ")[-1].split()[0])
    assert configure("btr", controller=controller, **{name: least})
    with pytest.raises(AbsLabError): configure("btr", controller=controller, **{name: least - 1})


def test_a_replay_larger_than_memory_is_refused():
    with pytest.raises(AbsLabError, match=r"needs \d+\.\d GB, and"): BTR(BTRConfig(replay_size=10**12), VECTOR, TWO, 16, Progress(10**7))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("controller", ["fixed", "abs", "ramp"])
def test_presets_configure(preset, controller):
    config = configure("btr", preset=preset, controller=controller)
    assert configure(**config.flat()) == config and config.meter.states == "replay" and config.meter.interval >= config.meter.lag
    assert BTR.plan_update(config.agent, config.controller.size, config.env.num_envs, Progress(config.total_steps)).gradient_steps == 0


@pytest.mark.parametrize("where,starts", [("inputs", (0.5 / 2048 ** 0.5, 0.5 / 512 ** 0.5)), ("outputs", (0.5 / 512 ** 0.5, 0.5 / 4 ** 0.5))])
def test_the_noise_of_the_biases_starts_where_it_is_told_to(where, starts):
    "A stream of 2048 → 512 → 4: over the root of a layer's inputs, or of its outputs as the authors' code has it; the weights' noise is the same."
    stream = Stream(2048, 512, 4, True, where)
    assert [layer.bias_sigma.unique().item() for layer in (stream.hidden, stream.out)] == [pytest.approx(x) for x in starts]
    assert [layer.weight_sigma.unique().item() for layer in (stream.hidden, stream.out)] == [pytest.approx(0.5 / 2048 ** 0.5), pytest.approx(0.5 / 512 ** 0.5)]
    agent, _ = trained(bias_sigma=where)
    first = BTR(agent.config, VECTOR, TWO, 16, Progress(1_200)).net.advantage.out
    assert first.bias_sigma[0].item() == pytest.approx(0.5 / (first.in_features if where == "inputs" else first.out_features) ** 0.5)
