"""Returns against double loops written from the definitions (forward sums, no recursion), and against cases worked by hand."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from abs_lab.core.interfaces import AbsLabError
from abs_lab.core.returns import gae, n_step, q_lambda

GOES_ON, TERMINATED, TRUNCATED, BOTH = range(4)
numbers = st.floats(-100, 100, width=32)


# --- the definitions -------------------------------------------------------------------------------------------------------

def steps_left(t, end):
    "How many rewards a return from row t may sum: up to the row that ends its episode, or to the rollout's end."
    k = 1
    while end[t + k - 1] == GOES_ON and t + k < len(end): k += 1
    return k


def k_step_return(t, k, r, end, v, gamma):
    "k discounted rewards from row t, plus the bootstrap from s_{t+k} unless the last of those rows terminated."
    total = sum(gamma ** i * r[t + i] for i in range(k))
    return total if end[t + k - 1] in (TERMINATED, BOTH) else total + gamma ** k * v[t + k]


def lambda_return(t, r, end, v, gamma, lam):
    "The λ-weighted mean of all k-step returns; the longest takes the weight that is left."
    K = steps_left(t, end)
    shorter = sum((1 - lam) * lam ** (k - 1) * k_step_return(t, k, r, end, v, gamma) for k in range(1, K))
    return shorter + lam ** (K - 1) * k_step_return(t, K, r, end, v, gamma)


def advantage(t, r, end, v, gamma, lam):
    "The discounted sum of TD errors until the episode's or the rollout's end."
    total = 0.0
    for i in range(steps_left(t, end)):
        ahead = 0.0 if end[t + i] in (TERMINATED, BOTH) else v[t + i + 1]
        total += (gamma * lam) ** i * (r[t + i] + gamma * ahead - v[t + i])
    return total


def each(f, case):
    "f(t, rewards, ends, values with the next value appended) for every row of every environment."
    T, N = case["r"].shape
    v = np.concatenate([case["v"], case["next"][None]])
    return np.array([[f(t, case["r"][:, n], case["end"][:, n], v[:, n]) for n in range(N)] for t in range(T)])


# --- rollouts --------------------------------------------------------------------------------------------------------------

@st.composite
def rollouts(draw):
    "Rollouts of 1–12 rows and 1–3 environments; the row after an ending is masked, and so may be the first row."
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 3)))
    end = draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([GOES_ON] * 4 + [TERMINATED, TRUNCATED, BOTH])))
    mask = np.ones(shape, bool)
    mask[0] = draw(hnp.arrays(bool, shape[1:]))
    for t in range(shape[0]):
        if t: mask[t] = end[t - 1] == GOES_ON
        end[t] = np.where(mask[t], end[t], GOES_ON)
    r = np.where(mask, draw(hnp.arrays(np.float64, shape, elements=numbers)), 0.0)
    v = draw(hnp.arrays(np.float64, shape, elements=numbers))
    return dict(r=r, end=end, mask=mask, v=v, next=draw(hnp.arrays(np.float64, shape[1:], elements=numbers)))


def flags(case):
    return torch.as_tensor(np.isin(case["end"], [TERMINATED, BOTH])), torch.as_tensor(np.isin(case["end"], [TRUNCATED, BOTH]))


def tensors(case): return torch.as_tensor(case["r"]), *flags(case), torch.as_tensor(case["v"]), torch.as_tensor(case["next"])


unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
close = dict(rtol=1e-9, atol=1e-8)


@settings(max_examples=200, deadline=None)
@given(rollouts(), unit, unit)
def test_q_lambda_is_the_weighted_mean_of_k_step_returns(case, gamma, lam):
    expected = each(lambda t, r, end, v: lambda_return(t, r, end, v, gamma, lam), case)
    np.testing.assert_allclose(q_lambda(*tensors(case), gamma, lam)[case["mask"]], expected[case["mask"]], **close)


@settings(max_examples=200, deadline=None)
@given(rollouts(), unit, unit)
def test_gae_is_the_sum_of_td_errors(case, gamma, lam):
    expected = each(lambda t, r, end, v: advantage(t, r, end, v, gamma, lam), case)
    np.testing.assert_allclose(gae(*tensors(case), gamma, lam)[case["mask"]], expected[case["mask"]], **close)


@settings(max_examples=200, deadline=None)
@given(rollouts(), st.integers(1, 15), unit)
def test_n_step(case, n, gamma):
    returns, discount, offset = n_step(torch.as_tensor(case["r"]), *flags(case), n, gamma)
    k = each(lambda t, r, end, v: min(n, steps_left(t, end)), case)
    np.testing.assert_array_equal(offset, k)
    v = torch.as_tensor(np.concatenate([case["v"], case["next"][None]]))
    target = returns + discount * v.gather(0, torch.arange(len(k))[:, None] + offset)
    expected = each(lambda t, r, end, v: k_step_return(t, min(n, steps_left(t, end)), r, end, v, gamma), case)
    np.testing.assert_allclose(target, expected, **close)


@settings(max_examples=200, deadline=None)
@given(rollouts(), st.data())
def test_nothing_of_a_masked_row_reaches_a_real_one(case, data):
    "Rewards, flags and values of masked rows are scrambled, but for the value that a truncation bootstraps from."
    masked, shape = ~case["mask"], case["r"].shape
    noise = lambda: data.draw(hnp.arrays(np.float64, shape, elements=numbers))
    bootstrap = np.zeros(shape, bool)
    bootstrap[1:] = case["end"][:-1] == TRUNCATED
    scrambled = dict(case, r=np.where(masked, noise(), case["r"]), v=np.where(masked & ~bootstrap, noise(), case["v"]),
                     end=np.where(masked, data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3))), case["end"]))
    real = torch.as_tensor(case["mask"])
    for f in (q_lambda, gae):
        assert torch.equal(f(*tensors(case), 0.9, 0.7)[real], f(*tensors(scrambled), 0.9, 0.7)[real])
    for a, b in zip(n_step(torch.as_tensor(case["r"]), *flags(case), 3, 0.9),
                    n_step(torch.as_tensor(scrambled["r"]), *flags(scrambled), 3, 0.9)):
        assert torch.equal(a[real], b[real])


@settings(max_examples=100, deadline=None)
@given(rollouts(), unit, unit)
def test_lambda_return_is_value_plus_advantage(case, gamma, lam):
    np.testing.assert_allclose(q_lambda(*tensors(case), gamma, lam), case["v"] + gae(*tensors(case), gamma, lam).numpy(), **close)


# --- cases worked by hand --------------------------------------------------------------------------------------------------

def one_env(*rows, next_value):
    "Tensors [T, 1] from rows of (reward, ending, value)."
    r, end, v = (np.array(x)[:, None] for x in zip(*rows))
    return dict(r=r.astype(float), end=end, v=v.astype(float), next=np.array([float(next_value)]))


# Rewards 1 2 0 3, values 2 4 6 8, then 8; γ = λ = ½. Row 1 ends as named, so row 2 is real only where it goes on.
# Row 3 meets the rollout's end: 3 + ½·8 = 7.
BY_HAND = {
    GOES_ON: [3.109375, 4.4375, 3.75, 7],  # ½(½·7 + ½·8) = 3.75; 2 + ½(½·3.75 + ½·6) = 4.4375; 1 + ½(½·4.4375 + ½·4)
    TERMINATED: [2.5, 2, None, 7],         # 2 stands alone; 1 + ½(½·2 + ½·4) = 2.5
    TRUNCATED: [3.25, 5, None, 7],         # the final state is worth 6: 2 + ½·6 = 5; 1 + ½(½·5 + ½·4) = 3.25
    BOTH: [2.5, 2, None, 7],               # as terminated
}


def by_hand(end): return one_env((1, GOES_ON, 2), (2, end, 4), (0, GOES_ON, 6), (3, GOES_ON, 8), next_value=8)


@pytest.mark.parametrize("end", BY_HAND)
def test_targets_and_advantages_by_hand(end):
    case, rows = by_hand(end), [t for t, x in enumerate(BY_HAND[end]) if x is not None]
    targets, advantages = q_lambda(*tensors(case), 0.5, 0.5).flatten(), gae(*tensors(case), 0.5, 0.5).flatten()
    assert [targets[t].item() for t in rows] == [BY_HAND[end][t] for t in rows]
    assert [advantages[t].item() for t in rows] == [BY_HAND[end][t] - case["v"][t, 0] for t in rows]


@pytest.mark.parametrize("end, target, returns, discount, offset", [
    (GOES_ON, 1 + 1 + 0 + 8 / 8, 2, 1 / 8, 3),  # three rewards, then the value of row 3
    (TERMINATED, 1 + 1, 2, 0, 2),               # two rewards, no bootstrap
    (TRUNCATED, 1 + 1 + 6 / 4, 2, 1 / 4, 2),    # two rewards, then the final state in row 2
    (BOTH, 1 + 1, 2, 0, 2),
])
def test_n_step_by_hand(end, target, returns, discount, offset):
    case = by_hand(end)
    G, D, k = (x[0, 0].item() for x in n_step(torch.as_tensor(case["r"]), *flags(case), 3, 0.5))
    assert (G, D, k) == (returns, discount, offset) and G + D * case["v"][k, 0] == target


@pytest.mark.parametrize("end, target", [(GOES_ON, 6), (TERMINATED, 1), (TRUNCATED, 6), (BOTH, 1)])
def test_an_ending_on_the_last_row(end, target):
    "The only row of a rollout: a truncation bootstraps from the observation after the rollout, as a row that goes on does."
    case = one_env((1, end, 7), next_value=10)
    assert q_lambda(*tensors(case), 0.5, 0.9).item() == target
    assert gae(*tensors(case), 0.5, 0.9).item() == target - 7
    G, D, k = n_step(torch.as_tensor(case["r"]), *flags(case), 3, 0.5)
    assert (G + D * 10).item() == target and k.item() == 1


def test_the_published_recursion_when_nothing_is_masked():
    "Truncation reported as termination and every row trained on, as in the paper's scripts: R_t = r + γ(1-d)(λR' + (1-λ)V')."
    rng = np.random.default_rng(0)
    r, v, d, last = rng.normal(size=(128, 8)), rng.normal(size=(128, 8)), rng.random((128, 8)) < 0.1, rng.normal(size=8)
    expected = np.zeros_like(r)
    expected[-1] = r[-1] + 0.99 * (1 - d[-1]) * last
    for t in reversed(range(127)): expected[t] = r[t] + 0.99 * (1 - d[t]) * (0.65 * expected[t + 1] + 0.35 * v[t + 1])
    got = q_lambda(*map(torch.as_tensor, (r, d, np.zeros_like(d), v, last)), 0.99, 0.65)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_long_rollouts_stay_accurate_in_single_precision():
    "8192 rows of one environment at γλ near 1, against the same in double precision."
    rng = np.random.default_rng(0)
    r, v, d = rng.normal(size=(8192, 1)), 50 * rng.normal(size=(8192, 1)), rng.random((8192, 1)) < 1e-3
    args = [torch.as_tensor(x) for x in (r, d, np.zeros_like(d), v, np.ones(1))]
    single = [x.float() if x.is_floating_point() else x for x in args]
    for f in (q_lambda, gae):
        assert f(*single, 0.999, 0.999).dtype == torch.float32
        torch.testing.assert_close(f(*single, 0.999, 0.999).double(), f(*args, 0.999, 0.999), rtol=1e-5, atol=2e-3)


def test_inputs_are_left_as_they_were():
    case = by_hand(TRUNCATED)
    args = tensors(case)
    copies = [x.clone() for x in args]
    q_lambda(*args, 0.5, 0.5), gae(*args, 0.5, 0.5), n_step(*args[:3], 3, 0.5)
    assert all(torch.equal(x, y) for x, y in zip(args, copies))


@pytest.mark.parametrize("change, message", [
    (dict(r=np.zeros(4)), r"rewards must be \[T, N\]"),
    (dict(r=np.zeros((0, 1))), "T at least 1"),
    (dict(v=np.zeros((3, 1))), r"values must have shape \[4, 1\]"),
    (dict(next=np.zeros((1, 1))), r"next_value must have shape \[1\]"),
])
def test_wrong_shapes_are_refused(change, message):
    case = by_hand(GOES_ON)
    r, terminated, truncated, v, last = tensors(case)
    new = {k: torch.as_tensor(x) for k, x in change.items()}
    with pytest.raises(AbsLabError, match=message):
        q_lambda(new.get("r", r), terminated, truncated, new.get("v", v), new.get("next", last), 0.5, 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu():
    args = [x.cuda() for x in tensors(by_hand(TRUNCATED))]
    torch.cuda.set_sync_debug_mode("error")
    try: q_lambda(*args, 0.5, 0.5), gae(*args, 0.5, 0.5), n_step(*args[:3], 3, 0.5)
    finally: torch.cuda.set_sync_debug_mode("default")
