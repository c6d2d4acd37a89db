"""Properties of the distances, and what the meter compares with what."""
import copy
import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from abs_lab.divergence import Divergence, disagreement, gaussian_kl, policy_distance, softmax_kl
from abs_lab.plan import AbsLabError

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
                                dict(states="rolout"), dict(distance="kl"), dict(interval=True)])
def test_bad_settings_are_refused(kw):
    with pytest.raises(AbsLabError): Divergence(**kw)
