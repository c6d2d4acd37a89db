"""Properties of the distances and of the noise estimates; what the meters compare with what, and that they leave no trace."""
import copy
import io
import random
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from abs_lab.core.controllers import Fixed
from abs_lab.runs.registry import find, names
from abs_lab.core.divergence import (Divergence, GradientNoise, disagreement, gaussian_kl, gradient_noise, policy_distance,
                                softmax_kl)
from abs_lab.core.envs import Rollout, VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Progress
from abs_lab.agents.pqn import PQN, PQNConfig
from abs_lab.core.simulators import EnvConfig
from abs_lab.core.train import train

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

seeds, sizes = st.integers(0, 2**31), st.integers(1, 40)


def gaussians(seed, m, d, per_state, scale=1.0):
    gen = torch.Generator().manual_seed(seed)
    def draw(*shape): return scale * torch.randn(*shape, generator=gen, dtype=torch.float64)
    return [(draw(m, d), draw(*(m, d) if per_state else (d,))) for _ in range(2)]


@given(seeds, sizes, st.integers(1, 8), st.booleans())
def test_gaussian_kl_agrees_with_torch(seed, m, d, per_state):
    old, new = gaussians(seed, m, d, per_state)
    def policy(mean, log_std): return Independent(Normal(mean, log_std.exp().expand_as(mean)), 1)
    torch.testing.assert_close(gaussian_kl(old, new), kl_divergence(policy(*new), policy(*old)).mean())
    assert gaussian_kl(old, old).item() == 0


@given(seeds, st.floats(1e-6, 3))
def test_gaussian_kl_is_never_negative_in_single_precision(seed, scale):
    (mean, log_std), (_, delta) = gaussians(seed, 50, 6, True, scale)
    old = mean.float(), log_std.float()
    assert gaussian_kl(old, (old[0], old[1] + delta.float() * 1e-3)).item() >= 0


def test_gaussian_kl_of_a_tiny_change_is_accurate_in_single_precision():
    old, new = (torch.zeros(1, 1), torch.zeros(1)), (torch.zeros(1, 1), torch.full((1,), 1e-3))
    np.testing.assert_allclose(gaussian_kl(old, new).item(), 1.000667e-6, rtol=1e-3)   # ½(e^{2δ} − 1) − δ


@given(seeds, sizes, st.integers(2, 18), st.floats(.1, 10))
def test_softmax_kl_agrees_with_torch(seed, m, a, temperature):
    gen = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(m, a, generator=gen, dtype=torch.float64) for _ in range(2))
    expected = kl_divergence(Categorical(logits=new / temperature), Categorical(logits=old / temperature)).mean()
    torch.testing.assert_close(softmax_kl(old, new, temperature), expected)
    assert softmax_kl(old, new, temperature) >= 0 and softmax_kl(old, old, temperature) == 0


def test_disagreement_on_literal_arrays():
    old = torch.tensor([[0., 1], [1, 0], [2, 5], [7, 3]])
    new = torch.tensor([[1., 0], [1, 0], [9, 8], [7, 3]])
    assert disagreement(old, new).item() == .5
    assert disagreement(old, old).item() == 0 and disagreement(old, -old).item() == 1


@given(seeds, sizes, st.integers(2, 18), st.floats(.01, 100))
def test_disagreement_has_no_scale_and_is_symmetric(seed, m, a, scale):
    gen = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(m, a, generator=gen, dtype=torch.float64) for _ in range(2))
    d = disagreement(old, new)
    assert 0 <= d <= 1 and d == disagreement(new, old) == disagreement(old * scale, new * scale + 1)


def test_distances_refuse_what_they_cannot_compare():
    q, pair = torch.zeros(3, 2), (torch.zeros(3, 2), torch.zeros(2))
    for old, new, name in [(q, q, "gaussian_kl"), (pair, pair, "disagreement"), (q, q, "disagree"), (q, q[:1], "auto"),
                           (pair, (q, torch.zeros(3, 2)), "auto")]:
        with pytest.raises(AbsLabError): policy_distance(old, new, name)


class Counter(torch.nn.Module):
    "Its mean is the number of updates it has had, so a KL tells which two policies were compared."
    def __init__(self):
        super().__init__()
        self.updates = torch.nn.Parameter(torch.zeros(1))
        self.evaluated = []                                     # states of every call to policy

    def forward(self, obs): return self.updates.expand(len(obs), 1), torch.zeros(1)
    def policy(self, obs):
        self.evaluated.append(obs.flatten().tolist())
        return self(obs)

    def frozen(self): return copy.deepcopy(self)
    def update(self):
        with torch.no_grad(): self.updates += 1


def rollout(number, length=4, num_envs=3, mask=None):
    "Every state carries its rollout's number."
    mask = torch.ones(length, num_envs, dtype=torch.bool) if mask is None else mask
    return SimpleNamespace(obs=torch.full((*mask.shape, 1), float(number)), mask=mask)


def measure(meter, agent, updates, first=1):
    "The signal of each update, None where none was due."
    signals = []
    for u in range(first, first + updates):
        roll = rollout(u)
        meter.before(agent, roll)
        agent.update()
        signals.append(meter.after(agent, roll))
    return signals


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_lag_compares_the_right_policies(interval_and_lag):
    interval, lag = interval_and_lag
    signals = measure(Divergence(interval=interval, lag=lag), Counter(), 40)
    assert signals == [lag**2 / 2 if u % interval == 0 else None for u in range(1, 41)]


def test_the_current_rollout_is_what_is_measured_by_default():
    agent = Counter()
    measure(Divergence(interval=4), agent, 8)
    assert agent.evaluated == [[4.] * 12] * 2 + [[8.] * 12] * 2    # the same states before and after


@given(st.integers(1, 5), st.integers(1, 50), seeds)
def test_held_out_states_never_come_from_the_current_rollout(interval, n_states, seed):
    agent, meter = Counter(), Divergence(interval=interval, n_states=n_states, states="heldout")
    meter.seed(seed)
    for u in range(1, 31):
        agent.evaluated.clear()
        signal, = measure(meter, agent, 1, first=u)
        assert (signal is None) == (u % interval != 0 or u == 1)
        for states in agent.evaluated: assert max(states) < u and len(states) == min(n_states, 12 * (u - 1))
        if signal is not None: assert agent.evaluated[0] == agent.evaluated[1]


@given(seeds, st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
def test_states_are_distinct_and_real(seed, n_states, length, num_envs):
    mask = torch.rand(length, num_envs, generator=torch.Generator().manual_seed(seed)) < .6
    roll = SimpleNamespace(obs=torch.arange(float(mask.numel())).reshape(length, num_envs, 1), mask=mask)
    agent, meter = Counter(), Divergence(interval=1, n_states=n_states)
    meter.seed(seed)
    meter.before(agent, roll)
    agent.update()
    signal = meter.after(agent, roll)
    if not mask.any():
        assert signal is None
        return
    states, real = agent.evaluated[0], set(roll.obs[mask].flatten().tolist())
    assert len(set(states)) == len(states) == min(n_states, len(real)) and set(states) <= real


def test_the_sample_is_uniform():
    agent, meter, counts = Counter(), Divergence(interval=1, n_states=3), torch.zeros(12)
    roll = SimpleNamespace(obs=torch.arange(12.).reshape(4, 3, 1), mask=torch.ones(4, 3, dtype=torch.bool))
    for _ in range(2000):
        meter.before(agent, roll)
        meter.after(agent, roll)
        counts[torch.tensor(agent.evaluated[-1]).long()] += 1
    assert (counts - 500).abs().max() < 90      # 4.6 standard deviations of a binomial (2000, 1/4)


def test_reused_observation_buffers_and_parameters_do_not_fool_the_meter():
    class Narrowing(Counter):
        def policy(self, obs): return obs, self.updates         # the parameter itself, changed in place
        def update(self):
            with torch.no_grad(): self.updates -= np.log(2)

    agent, meter, roll = Narrowing(), Divergence(interval=1), rollout(0)
    meter.before(agent, roll)
    agent.update()
    roll.obs.fill_(99)
    np.testing.assert_allclose(meter.after(agent, roll), np.log(2) + 1 / 8 - 1 / 2, rtol=1e-5)


@given(st.sampled_from([dict(lag=1), dict(lag=3), dict(lag=7), dict(states="heldout", n_states=20),
                        dict(states="heldout", n_states=20, lag=4)]), st.integers(0, 20), seeds)
def test_saved_and_loaded_in_the_middle_it_continues_identically(kw, at, seed):
    one, two, agent = Divergence(interval=7, **kw), Divergence(interval=7, **kw), Counter()
    one.seed(seed)
    measure(one, agent, at)
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer, weights_only=True))
    other = copy.deepcopy(agent)
    for a in (agent, other): a.evaluated.clear()
    assert measure(one, agent, 22, at + 1) == measure(two, other, 22, at + 1)
    assert agent.evaluated == other.evaluated


def test_a_saved_state_is_not_changed_by_going_on():
    agent, meter = Counter(), Divergence(interval=6, lag=3, states="heldout", n_states=5)
    measure(meter, agent, 5)
    saved = meter.state_dict()
    kept = copy.deepcopy(saved)
    measure(meter, agent, 5, 6)
    assert saved["count"] == 5 and torch.equal(saved["kept"], kept["kept"]) and torch.equal(saved["generator"], kept["generator"])
    assert saved["copy"]["updates"].item() == 3


def test_loading_twice_before_the_next_update_keeps_the_copy():
    agent, meter = Counter(), Divergence(interval=6, lag=3)
    measure(meter, agent, 4)
    for _ in range(2):
        state, meter = meter.state_dict(), Divergence(interval=6, lag=3)
        meter.load_state_dict(state)
    assert measure(meter, agent, 2, 5) == [None, 4.5]


def globals_(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("kw", [dict(), dict(states="heldout"), dict(lag=2), dict(distance="gaussian_kl")])
def test_measuring_touches_neither_global_generators_nor_the_agent(kw):
    before, agent, meter = globals_(), Counter(), Divergence(interval=2, n_states=5, **kw)
    measure(meter, agent, 8)
    meter.load_state_dict(meter.state_dict())
    assert globals_() == before
    assert agent.updates.item() == 8 and agent.updates.grad is None and agent.training


@pytest.mark.parametrize("kw", [dict(interval=0), dict(lag=0), dict(lag=3, interval=2), dict(n_states=0), dict(n_states=2.),
                                dict(states="rolout"), dict(distance="wasserstein"), dict(interval=True)], ids=str)
def test_bad_settings_are_refused(kw):
    with pytest.raises(AbsLabError): Divergence(**kw)


# -- changed while running, and per gradient step -----------------------------------------------------------------------

changes = st.builds(dict, interval=st.integers(1, 9), lag=st.integers(1, 9))


@given(st.lists(st.tuples(st.integers(1, 8), changes), min_size=1, max_size=8))
def test_after_any_changes_what_is_compared_is_lag_updates_apart(plan):
    agent, meter, u = Counter(), Divergence(interval=5, lag=3), 0
    for updates, change in plan:
        signals = measure(meter, agent, updates, u + 1)
        for at, signal in enumerate(signals, u + 1):
            assert signal in (None, meter.lag**2 / 2) and (signal is None or at % meter.interval == 0)
        u += updates
        try: meter.set(**change)
        except AbsLabError: assert change["lag"] > change["interval"]
        else: assert (meter.interval, meter.lag) == (change["interval"], change["lag"])
    settled = measure(meter, agent, 2 * meter.interval, u + 1)
    assert settled[meter.interval:] == [meter.lag**2 / 2 if at % meter.interval == 0 else None
                                        for at in range(u + meter.interval + 1, u + 2 * meter.interval + 1)]


@given(st.integers(0, 20), st.sampled_from([dict(interval=0), dict(lag=9), dict(n_states=1.5), dict(distance="wasserstein"), dict(lagg=1)]))
def test_set_of_a_meter_is_atomic(at, wrong):
    agent, meter = Counter(), Divergence(interval=6, lag=2, states="heldout", n_states=5)
    measure(meter, agent, at)
    before, fields = meter.state_dict(), copy.copy(vars(meter))
    with pytest.raises(AbsLabError): meter.set(**{"n_states": 3, "interval": 5} | wrong)
    assert [meter.interval, meter.lag, meter.n_states] == [6, 2, 5]
    after = meter.state_dict()
    assert before["count"] == after["count"] and torch.equal(before["generator"], after["generator"])
    assert (before["kept"] is None) == (after["kept"] is None) and (before["kept"] is None or torch.equal(before["kept"], after["kept"]))
    assert vars(meter).keys() == fields.keys()


def test_fewer_held_out_states_are_drawn_from_those_kept():
    agent, meter = Counter(), Divergence(interval=1, states="heldout", n_states=40)
    measure(meter, agent, 8)
    kept = meter.state_dict()["kept"]
    meter.set(n_states=10)
    agent.evaluated.clear()
    measure(meter, agent, 1, 9)
    assert len(kept) == 40 and len(agent.evaluated[0]) == 10 and set(agent.evaluated[0]) <= set(kept.flatten().tolist())
    fewer = Divergence(interval=1, states="heldout", n_states=7)
    fewer.load_state_dict(meter.state_dict())
    assert len(fewer.state_dict()["kept"]) == 7
    meter.set(states="rollout")
    assert meter.state_dict()["kept"] is None
    assert measure(meter, agent, 2, 10) == [.5, .5]


class Steps(Counter):
    "Takes the given number of gradient steps in each update, and its mean counts them."
    def __init__(self, steps):
        super().__init__()
        self.steps, self.progress = iter(steps), Progress(10**6)

    def update(self):
        for _ in range(next(self.steps)):
            super().update()
            self.progress.gradient_steps += 1


@given(st.lists(st.integers(0, 5), min_size=12, max_size=12), st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
       st.integers(0, 12))
def test_per_step_divides_by_the_gradient_steps_between_the_two_policies(steps, interval_and_lag, at):
    interval, lag = interval_and_lag
    agent, meter = Steps(steps), Divergence(interval=interval, lag=lag, per_step=True)
    signals = measure(meter, agent, at)
    state, meter = meter.state_dict(), Divergence(interval=interval, lag=lag, per_step=True)  # stopped and resumed on the way
    meter.load_state_dict(state)
    signals += measure(meter, agent, 12 - at, at + 1)
    for u, signal in enumerate(signals, 1):
        taken = sum(steps[u - lag:u])
        assert signal == (taken / 2 if u % interval == 0 and taken else None)       # (taken² / 2) / taken


def test_per_step_needs_a_clock():
    with pytest.raises(AbsLabError, match="no `progress`"): measure(Divergence(per_step=True), Counter(), 1)


# -- gradient noise: the estimates --------------------------------------------------------------------------------------

def draws(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, st.integers(2, 12), st.integers(1, 100), st.integers(1, 30))
def test_the_estimates_equal_those_from_a_small_and_a_big_batch(seed, k, m, dims):
    g = draws(seed, k, dims) + .5
    small, big = g.square().sum(1).mean(), g.mean(0).square().sum()
    noise, square = gradient_noise(g, m)
    torch.testing.assert_close(noise, (small - big) / (1 / m - 1 / (k * m)))
    torch.testing.assert_close(square, (k * m * big - m * small) / (k * m - m))


@given(seeds, st.integers(2, 12), st.integers(1, 100), st.floats(.01, 100))
def test_the_noise_scale_has_no_unit_and_no_order(seed, k, m, factor):
    g = draws(seed, k, 7) + .5
    noise, square = gradient_noise(g, m)
    for other in (g * factor, g.flip(0) * factor, g.flip(1) * factor):
        torch.testing.assert_close(torch.stack(gradient_noise(other, m)), factor**2 * torch.stack([noise, square]))
    same = gradient_noise(g[:1].expand(k, 7), m)
    torch.testing.assert_close(same[1], g[0].square().sum())
    assert same[0] < 1e-12


@given(seeds, st.integers(2, 6), st.integers(1, 6))
def test_with_micro_batches_of_one_the_noise_is_the_sample_covariances_trace(seed, k, dims):
    g = draws(seed, k, dims)
    torch.testing.assert_close(gradient_noise(g, 1)[0], torch.cov(g.T).reshape(dims, dims).trace())


@pytest.mark.parametrize("k,m", [(2, 10), (8, 1), (8, 32)])
def test_the_estimates_are_unbiased(k, m):
    mean, std = torch.tensor([1., -2., 0., 2.]), torch.tensor([1., 2., 3., 6.])                 # |G|² = 9, tr Σ = 50
    g = mean + std * draws(k * m, 6000, k, m, 4)
    noise, square = torch.tensor([gradient_noise(x, m) for x in g.mean(2)]).T
    for estimates, truth in ((noise, 50), (square, 9)):
        assert abs(estimates.mean() - truth) < 4 * estimates.std() / 6000**.5


# -- gradient noise: the meter ------------------------------------------------------------------------------------------

class Known(Counter):
    "The gradient of a row is written in its observation, times the number of updates plus one; notes what it is asked."
    def __init__(self):
        super().__init__()
        self.asked, self.prepared = [], []

    def gradient(self, rollout):
        self.prepared.append(int(self.updates))
        def of(rows):
            self.asked.append((int(self.updates), rows.tolist()))
            return rollout.obs.flatten(0, 1)[rows].mean(0) * (self.updates.item() + 1)
        return of


def noisy(seed, mask):
    obs = torch.randn(*mask.shape, 5, generator=torch.Generator().manual_seed(seed)) + .4
    return SimpleNamespace(obs=obs, mask=mask)


def read(meter, roll):
    agent = Known()
    meter.before(agent, roll)
    return meter.after(agent, roll)


masks = st.tuples(st.integers(1, 9), st.integers(1, 9), seeds, st.floats(0, 1)).map(
    lambda t: torch.rand(t[0], t[1], generator=torch.Generator().manual_seed(t[2])) < t[3])


@given(masks, st.integers(2, 9), seeds, st.sampled_from(["author", "fair"]))
def test_micro_batches_are_disjoint_equal_and_real(mask, k, seed, estimator):
    agent, meter, roll = Known(), GradientNoise(interval=1, micro_batches=k, estimator=estimator), noisy(seed, mask)
    meter.seed(seed)
    meter.before(agent, roll)
    agent.update()
    signal = meter.after(agent, roll)
    real = mask.flatten().nonzero().squeeze(-1).tolist()
    size = len(real) // k
    if size == 0:
        assert signal is None and agent.asked == []
        return
    parts = [rows for _, rows in agent.asked]
    used = [row for rows in parts for row in rows]
    assert [len(rows) for rows in parts] == [size] * k
    assert len(set(used)) == len(used) and set(used) <= set(real)
    if estimator == "author": assert used == real[:size * k]               # in the order of time, the remainder left out


def test_the_fair_one_shuffles_evenly():
    roll, counts = noisy(0, torch.ones(4, 6, dtype=torch.bool)), torch.zeros(24, 3)
    meter = GradientNoise(interval=1, micro_batches=3, estimator="fair")
    for _ in range(1000):
        agent = Known()
        meter.before(agent, roll)
        meter.after(agent, roll)
        for part, (_, rows) in enumerate(agent.asked): counts[rows, part] += 1
    assert (counts - 1000 / 3).abs().max() < 70           # 4.7 standard deviations of a binomial (1000, 1/3)


@given(seeds, st.sampled_from([4, 5]))
def test_the_author_measures_after_the_update_with_the_targets_of_before(seed, interval):
    agent, meter = Known(), GradientNoise(interval=interval)
    roll = noisy(seed, torch.ones(8, 6, dtype=torch.bool))
    signals = []
    for _ in range(11):
        meter.before(agent, roll)
        agent.update()
        signals.append(meter.after(agent, roll))
    due = [u for u in range(1, 12) if u % interval == 0]
    assert [u for u, s in enumerate(signals, 1) if s is not None] == due
    assert agent.prepared == [u - 1 for u in due] and [at for at, _ in agent.asked] == [u for u in due for _ in range(8)]
    g = torch.stack([roll.obs.flatten(0, 1)[6 * i:6 * i + 6].mean(0) for i in range(8)])
    spread = ((g - g.mean(0)) ** 2).sum().item() / 7 * 6                    # the definition, once more by hand
    signal = (g.mean(0) ** 2).sum().item() - spread / 48
    np.testing.assert_allclose([s for s in signals if s is not None], spread / signal if signal > 0 else 0, rtol=1e-4)


@given(seeds)
def test_the_fair_one_measures_before_the_update_and_reports_the_reciprocal(seed):
    agent, meter = Known(), GradientNoise(interval=2, estimator="fair")
    roll = noisy(seed, torch.ones(8, 6, dtype=torch.bool))
    for _ in range(2):
        meter.before(agent, roll)
        agent.update()
        signal = meter.after(agent, roll)
    assert {at for at, _ in agent.asked} == {1} and agent.prepared == [1]
    g = torch.stack([roll.obs.flatten(0, 1)[rows].mean(0) for _, rows in agent.asked])
    noise, square = gradient_noise(g, 6)
    np.testing.assert_allclose(signal, (square / noise).item(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1., 1e-5, 0.])
def test_without_signal_the_author_reports_zero(scale):
    obs = scale * torch.tensor([1., -1.] * 8).repeat_interleave(4).reshape(16, 4, 1)
    assert read(GradientNoise(interval=1, micro_batches=16), SimpleNamespace(obs=obs, mask=torch.ones(16, 4, dtype=torch.bool))) == 0


def test_the_fair_one_reports_negative_estimates_and_nothing_without_noise():
    ones = torch.ones(16, 4, dtype=torch.bool)
    fair = GradientNoise(interval=1, estimator="fair")
    assert read(fair, SimpleNamespace(obs=torch.ones(16, 4, 1), mask=ones)) is None
    signals = [read(fair, SimpleNamespace(obs=draws(seed, 16, 4, 5).float(), mask=ones)) for seed in range(60)]
    assert min(signals) < 0 < max(signals) and abs(sum(signals) / 60) < 3 * torch.tensor(signals).std() / 60**.5


def test_the_authors_floor_is_absolute():
    "|G|² of 0.81e-8 counts as none, 4e-8 as some; the scale of the gradient decides, as in the published code."
    for mean, expected in ((.9e-4, 0), (2e-4, 1.)):
        wiggle = mean * torch.tensor([1., -1.]).repeat(32)
        roll = SimpleNamespace(obs=(mean + wiggle).reshape(64, 1, 1), mask=torch.ones(64, 1, dtype=torch.bool))
        got = read(GradientNoise(interval=1, micro_batches=64), roll)
        assert got == 0 if expected == 0 else .9 < got < 1.1


@given(seeds, st.integers(0, 9), st.sampled_from(["author", "fair"]))
def test_gradient_noise_saved_and_loaded_continues_identically(seed, at, estimator):
    def go(meter, agent, first, last):
        signals = []
        for u in range(first, last):
            roll = noisy(seed + u, torch.ones(6, 5, dtype=torch.bool))
            meter.before(agent, roll)
            agent.update()
            signals.append(meter.after(agent, roll))
        return signals

    one, two, agent = (*(GradientNoise(interval=3, estimator=estimator) for _ in range(2)), Known())
    one.seed(seed)
    go(one, agent, 0, at)
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer, weights_only=True))
    assert go(one, copy.deepcopy(agent), at, 14) == go(two, agent, at, 14)


def test_an_agent_without_gradients_is_refused_at_the_first_update():
    with pytest.raises(AbsLabError, match="gradient"): GradientNoise().before(Counter(), rollout(0))


@pytest.mark.parametrize("kw", [dict(interval=0), dict(micro_batches=1), dict(micro_batches=8.), dict(estimator="autor")], ids=str)
def test_bad_settings_of_gradient_noise_are_refused(kw):
    with pytest.raises(AbsLabError): GradientNoise(**kw)
    meter = GradientNoise()
    with pytest.raises(AbsLabError): meter.set(**dict(interval=3) | kw)
    assert meter == GradientNoise()
    meter.set(interval=3, estimator="fair")
    assert (meter.interval, meter.estimator) == (3, "fair")


def test_every_meter_has_a_name(): assert {name: find("meter", name) for name in names("meter")} == {"divergence": Divergence, "gns": GradientNoise}


# -- gradient noise: a real agent ---------------------------------------------------------------------------------------

def cartpole(**changes):
    progress, envs = Progress(8_000), VecEnvs(EnvConfig("CartPole-v1", num_envs=16), 0)
    return PQN(PQNConfig(network="mlp", lr=1e-3, **changes), envs.obs_space, envs.action_space, 16, progress), envs, progress


def leaves(node):
    if isinstance(node, dict): return [x for v in node.values() for x in leaves(v)]
    return [x for v in node for x in leaves(v)] if isinstance(node, (list, tuple)) else [node]


@pytest.mark.parametrize("estimator", ["author", "fair"])
def test_measuring_gradient_noise_changes_no_bit_of_training(estimator):
    def run(meter):
        agent, envs, progress = cartpole()
        steps = list(train(agent, envs, meter, Fixed(20), progress))
        return agent, steps

    before = globals_()
    (one, never), (other, always) = run(GradientNoise(interval=10**9)), run(GradientNoise(interval=1, estimator=estimator))
    assert globals_() == before
    assert all(s.signal is None for s in never) and all(np.isfinite(s.signal) for s in always) and len(always) == 25
    assert len({s.signal for s in always}) > 10
    assert [s.episodes for s in never] == [s.episodes for s in always]
    for a, b in zip(never, always): assert all(torch.equal(torch.as_tensor(a.metrics[k]), torch.as_tensor(b.metrics[k])) for k in a.metrics)
    a, b = leaves(one.state_dict()), leaves(other.state_dict())
    assert len(a) == len(b) and all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(a, b))


def pixels(seed, length=6, num_envs=32):
    "A rollout of images, some of its rows masked, and a fresh agent that could have collected it."
    gen = torch.Generator().manual_seed(seed)
    space, shape = gym.spaces.Box(0, 1, (10, 10, 4), np.float32), (length, num_envs)
    agent = PQN(PQNConfig(network="minatar", num_minibatches=1, max_grad_norm=1e9, loss_scale=.5), space, gym.spaces.Discrete(3), num_envs, Progress(10**6))
    def draw(*tail): return torch.rand(*shape, *tail, generator=gen)
    roll = Rollout(draw(*space.shape), (draw() * 3).long(), draw(), draw() < .1, draw() < .1, draw() < .8, torch.rand(num_envs, *space.shape, generator=gen),
                   dict(value=draw()))
    return agent, roll


@given(st.integers(0, 20))
@settings(max_examples=5)
def test_pqn_tells_the_gradient_that_its_update_follows(seed):
    agent, roll = pixels(seed)
    assert agent.piece == 128 and roll.steps == 192                              # in two pieces
    gradient, before, kept = agent.gradient(roll), copy.deepcopy(agent.state_dict()), globals_()
    told = gradient(torch.arange(192))
    assert not agent.weights.grad.any() and globals_() == kept
    assert all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(leaves(before), leaves(agent.state_dict())))
    agent.update(roll, BatchPlan(6, 192, 1))
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in agent.net.parameters()]), told)
    left = [p.grad.clone() for p in agent.net.parameters()]
    moved = gradient(torch.arange(192))                                          # the same targets, the weights of now
    assert not torch.equal(moved, told) and all(torch.equal(p.grad, g) for p, g in zip(agent.net.parameters(), left))
    assert not torch.equal(moved, agent.gradient(roll)(torch.arange(192)))       # new targets


@given(st.integers(0, 20))
@settings(max_examples=5)
def test_masked_rows_have_no_part_in_pqns_gradient(seed):
    agent, roll = pixels(seed)
    real = roll.mask.flatten().nonzero().squeeze(-1)
    torch.testing.assert_close(agent.gradient(roll)(torch.arange(192)), agent.gradient(roll)(real))


def test_the_authors_estimate_on_pqn_is_the_published_one():
    "Written out anew: 8 slices of the flat rollout, squared error to the update's targets, weights after the update."
    agent, envs, progress = cartpole(num_minibatches=4)
    envs.config = EnvConfig("CartPole-v1", num_envs=16, mask_resets=False, bootstrap_truncation=False)
    roll = envs.collect(agent, 32, progress)
    returns, ahead = torch.zeros(32, 16), agent.policy(roll.next_obs).amax(-1)
    for t in reversed(range(32)):
        bootstrap = ahead if t == 31 else .65 * returns[t + 1] + .35 * roll.extras["value"][t + 1]
        returns[t] = roll.rewards[t] + .99 * bootstrap * ~roll.terminated[t]
    meter = GradientNoise(interval=1)
    meter.before(agent, roll)
    agent.update(roll, agent.plan(32))
    got = meter.after(agent, roll)

    grads = []
    for i in range(8):
        rows = slice(64 * i, 64 * i + 64)
        q = agent.net(roll.obs.flatten(0, 1)[rows])[torch.arange(64), roll.actions.flatten()[rows]]
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(((q - returns.flatten()[rows]) ** 2).mean(), list(agent.net.parameters()))]))
    mean = sum(grads) / 8
    trace = 64 * sum(float(((g - mean) ** 2).sum()) for g in grads) / 7
    square = float((mean ** 2).sum()) - trace / 512
    assert square > 1e-8
    np.testing.assert_allclose(got, trace / square, rtol=1e-3)
