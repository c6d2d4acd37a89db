"Replay against a slow and obvious one; episode ends as real simulators have them; what a full store costs."
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from abs_lab.agents import replay as module
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, Progress
from abs_lab.agents.replay import Replay, SumTree, stack_of
from abs_lab.core.machine import free_memory
from abs_lab.core.simulators import EnvConfig

IMAGES = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)   # stacks of three frames
NUMBERS = gym.spaces.Box(-np.inf, np.inf, (1,))


# -- the tree ----------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_tree_finds_what_a_running_sum_finds(size, data):
    tree, slow = SumTree(size), np.zeros(size)
    for _ in range(3):
        index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
        value = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.5]), min_size=len(index), max_size=len(index))))
        tree.set(index, value)
        for i, v in zip(index, value): slow[i] = v
        assert tree.total == slow.sum() and (tree[np.arange(size)] == slow).all()  # quarters are exact in floating point
        if slow.sum():
            mass = np.array(data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=10))) * slow.sum()
            mass = mass[mass < slow.sum()]
            expected = [next(i for i, s in enumerate(np.cumsum(slow)) if s > m) for m in mass]
            if len(mass): assert tree.find(mass).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-300, 0.1, 1 / 3, 1e6]), min_size=1, max_size=70), st.integers(0, 2**31))
def test_an_empty_leaf_is_never_found_however_sums_are_rounded(priorities, seed):
    tree = SumTree(len(priorities))
    tree.set(np.arange(len(priorities)), priorities)
    if not tree.total: return
    mass = np.append(np.random.default_rng(seed).random(200) * tree.total, [0.0, np.nextafter(tree.total, 0), tree.total])
    assert (tree[tree.find(mass)] > 0).all()


def test_sums_do_not_drift():
    tree, rng = SumTree(1000), np.random.default_rng(0)
    for _ in range(3000): tree.set(rng.integers(0, 1000, 64), rng.random(64) * 10.0 ** rng.integers(-3, 4, 64))
    fresh = SumTree(1000)
    fresh.set(np.arange(1000), tree[np.arange(1000)])
    assert (tree.nodes == fresh.nodes).all()


# -- a slow and obvious replay -----------------------------------------------------------------------------------------

class World:
    "Environments with random ends: what each row showed, kept whole. Kinds of end: terminated, truncated, a lost life, a rebuild."
    def __init__(self, num_envs, stack, seed, images):
        self.rng, self.N, self.S, self.images, self.count = np.random.default_rng(seed), num_envs, stack, images, 0
        self.obs = [self._first() for _ in range(num_envs)]
        self.resetting, self.continues = [False] * num_envs, [False] * num_envs
        self.history = []  # rows that the store should hold: per environment (obs, action, reward, terminated, truncated, real)

    def _frame(self):
        self.count += 1
        if not self.images: return np.array([float(self.count)], np.float32)
        return np.full((36, 36), self.count % 251, np.uint8)

    def _first(self):
        f = self._frame()
        return np.stack([f] * self.S) if self.images else f

    def _next(self, obs): return np.concatenate([obs[1:], self._frame()[None]]) if self.images else self._frame()

    def rollout(self, T, p_end, rebuild):
        rows, shown = [], []
        for t in range(T):
            shown.append(np.stack(self.obs)); row = []
            for n in range(self.N):
                obs, reward, action = self.obs[n], float(self.rng.integers(-3, 4)), int(self.rng.integers(0, 5))
                kind = None if self.resetting[n] or self.rng.random() > p_end else self.rng.choice(["terminated", "truncated", "life"])
                last = rebuild and t == T - 1 and not self.resetting[n] and kind is None
                real = not self.resetting[n]
                row.append((obs, action, reward if real else 0.0, kind in ("terminated", "life"), kind == "truncated" or last, real))
                if self.resetting[n]: self.obs[n] = self._next(obs) if self.continues[n] else self._first()
                else: self.obs[n] = self._next(obs)
                self.resetting[n], self.continues[n] = kind is not None, kind == "life"
            rows.append(row); self.history.append(row)
        after = np.stack(self.obs)
        if rebuild:
            self.history.append([(o, 0, 0.0, False, False, False) for o in self.obs])
            self.obs, self.resetting = [self._first() for _ in range(self.N)], [False] * self.N
        column = lambda i, dtype: torch.tensor([[x[i] for x in row] for row in rows], dtype=dtype)
        return SimpleNamespace(obs=torch.from_numpy(np.stack(shown)), actions=column(1, torch.int64), rewards=column(2, torch.float32),
                               terminated=column(3, torch.bool), truncated=column(4, torch.bool), mask=column(5, torch.bool), next_obs=torch.from_numpy(after))

    def transitions(self, rows, length, n, gamma):
        "What can be drawn when `rows` rows were stored in a ring of `length`: (row, env) -> (obs, action, return, discount, next_obs)."
        out = {}
        for t in range(max(rows - length + self.S - 1, 0), rows - n):  # as long as the oldest frame of a stack is safe
            for e in range(self.N):
                obs, action, *_, real = self.history[t][e]
                if not real: continue
                ret, k = 0.0, 0
                while True:
                    _, _, reward, terminated, truncated, _ = self.history[t + k][e]
                    ret += gamma ** k * reward
                    k += 1
                    if terminated or truncated or k == n: break
                out[t, e] = (obs, action, ret, 0.0 if terminated else gamma ** k, self.history[t + k][e][0])
        return out


def check(replay, world, generator):
    "Everything that can be drawn, drawn once."
    expected = world.transitions(replay.rows, replay.length, replay.n, replay.gamma)
    leaves = np.flatnonzero(replay.tree.nodes[replay.tree.width:] > 0)
    oldest = (replay.rows - 1) % replay.length
    row_of = lambda slot: replay.rows - 1 - (oldest - slot // replay.num_envs) % replay.length
    found = {(int(row_of(s)), int(s % replay.num_envs)): int(s) for s in leaves}
    assert set(found) == set(expected) and replay.stored == len(found)
    if not found: return
    batch = replay.sample(replay.stored, generator, beta=0.0)
    assert sorted(batch.slots) == sorted(found.values())   # equal priorities and one stratum each: every transition once
    place = {slot: key for key, slot in found.items()}
    for i, slot in enumerate(batch.slots):
        obs, action, ret, discount, after = expected[place[int(slot)]]
        assert np.array_equal(batch.obs[i], obs) and batch.actions[i] == action
        assert batch.rewards[i] == pytest.approx(ret) and batch.discounts[i] == pytest.approx(discount)
        if discount: assert np.array_equal(batch.next_obs[i], after)
    assert (batch.weights == 1).all()


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**31), num_envs=st.integers(1, 3), n=st.integers(1, 4), images=st.booleans(), length=st.integers(12, 30),
       blocks=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=14), p_end=st.sampled_from([0.0, 0.1, 0.4]))
def test_replay_holds_what_a_slow_one_holds(seed, num_envs, n, images, length, blocks, p_end):
    world = World(num_envs, 3 if images else 1, seed, images)
    replay = Replay(length * num_envs, num_envs, IMAGES if images else NUMBERS, n=n, gamma=0.5, alpha=0.0)
    generator = torch.Generator().manual_seed(seed)
    for T, rebuild in blocks:
        replay.add(world.rollout(T, p_end, rebuild and p_end > 0))
        rows, missing = replay.rows, len(world.history) - replay.rows
        assert missing in (0, 1)  # the row after a rebuild comes with the next rollout
        history, world.history = world.history, world.history[:rows]
        check(replay, world, generator)
        world.history = history


def test_an_episode_may_have_more_rows_than_a_byte_counts():
    world, replay = World(1, 3, 0, True), Replay(600, 1, IMAGES, n=1, alpha=0.0)
    for _ in range(6): replay.add(world.rollout(100, 0.0, False))
    check(replay, world, torch.Generator())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), images=st.booleans(), cut=st.integers(1, 11), more=st.integers(0, 6))
def test_a_replay_restored_from_its_log_goes_on_as_if_nothing_had_happened(seed, images, cut, more):
    world = World(2, 3 if images else 1, seed, images)
    rollouts = [world.rollout(3, 0.2, i % 4 == 3) for i in range(12)]
    make = lambda: Replay(2 * 16, 2, IMAGES if images else NUMBERS, n=2, alpha=0.5)
    def train(replay, which, generator, log=None):
        for r in which:
            first = replay.rows
            replay.add(r)
            if log is not None: log[first:] = list(replay.records(first, replay.rows))
            if replay.stored >= 4: replay.update_priorities((b := replay.sample(4, generator)).slots, b.rewards + 1)
    whole, killed, log, (g, h) = make(), make(), [], (torch.Generator().manual_seed(1) for _ in range(2))
    train(whole, rollouts, g)
    train(killed, rollouts[:cut], h, log)
    state, drawn = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in killed.state_dict().items()}, h.get_state()
    train(killed, rollouts[cut:cut + more], h)        # work that is lost
    resumed = make()
    resumed.load_state_dict(state)
    half = (resumed.oldest + resumed.rows) // 2
    for first, last in ((resumed.oldest, half), (half, resumed.rows)): resumed.restore(first, np.array(log[first:last], resumed.row_dtype))
    h.set_state(drawn)
    train(resumed, rollouts[cut:], h)
    assert (whole.tree.nodes == resumed.tree.nodes).all() and torch.equal(g.get_state(), h.get_state())
    assert (whole.rows, whole.stored, whole.highest) == (resumed.rows, resumed.stored, resumed.highest)
    for a, b in zip(whole.sample(whole.stored, g), resumed.sample(resumed.stored, h)): assert np.array_equal(a, b)


# -- real simulators ---------------------------------------------------------------------------------------------------

class Random:
    def __init__(self, n_actions): self.rng, self.n = np.random.default_rng(0), n_actions
    def act(self, obs): return torch.from_numpy(self.rng.integers(0, self.n, len(obs))), {}


@pytest.mark.parametrize("config", [
    EnvConfig("Breakout-v5", num_envs=4), EnvConfig("Breakout-v5", num_envs=4, episodic_life=True),
    EnvConfig("Breakout-v5", num_envs=4, episodic_life=True, segment_steps=900), EnvConfig("LunarLander-v3", num_envs=4, segment_steps=900),
    EnvConfig("CartPole-v1", num_envs=4), EnvConfig("CartPole-v1", num_envs=4, backend="gymnasium")], ids=lambda c: f"{c.env_id}{c.episodic_life}{c.segment_steps}{c.backend}")
def test_what_is_drawn_is_what_the_simulator_showed(config):
    envs, clock = VecEnvs(config, 0), Progress(10**9)
    replay, agent, rollouts = Replay(4 * 1000, 4, envs.obs_space, gamma=0.9, alpha=0.0), Random(envs.action_space.n), []
    for _ in range(60):
        rollouts.append(envs.collect(agent, 7, clock))
        replay.add(rollouts[-1])
    envs.close()
    rows = []  # of the rollouts, with the missing row after each rebuild
    for r, following in zip(rollouts, [*rollouts[1:], None]):
        rows += [(r.obs[t], r.actions[t], r.rewards[t], r.terminated[t], r.truncated[t], r.mask[t]) for t in range(7)]
        if following is not None and not torch.equal(following.obs[0], r.next_obs): rows.append((r.next_obs, *[torch.zeros(4)] * 2, *[torch.zeros(4, dtype=torch.bool)] * 3))
    assert len(rows) == replay.rows and (len(rows) > 420) == bool(config.segment_steps)
    batch = replay.sample(replay.stored, torch.Generator())
    assert replay.stored == sum(int(row[5].sum()) for row in rows[:-3])
    ends = 0
    for i, slot in enumerate(batch.slots):
        t, e = divmod(int(slot), 4)
        ret, k, going = 0.0, 0, True
        while going and k < 3:
            ret += 0.9 ** k * float(rows[t + k][2][e])
            going = not (rows[t + k][3][e] or rows[t + k][4][e])
            assert rows[t + k][5][e]
            k += 1
        terminated = bool(rows[t + k - 1][3][e])
        ends += not going
        assert torch.equal(batch.obs[i], rows[t][0][e]) and batch.rewards[i] == pytest.approx(ret, abs=1e-4)
        assert batch.discounts[i] == pytest.approx(0.0 if terminated else 0.9 ** k)
        if not terminated: assert torch.equal(batch.next_obs[i], rows[t + k][0][e])
    assert ends >= 3


def test_a_lost_life_ends_the_return_and_a_life_unseen_does_not():
    shares = []
    for lives in (True, False):
        envs, clock = VecEnvs(EnvConfig("Breakout-v5", num_envs=8, episodic_life=lives), 0), Progress(10**9)
        replay = Replay(8 * 400, 8, envs.obs_space, alpha=0.0)
        replay.add(envs.collect(Random(4), 300, clock))
        shares.append(float((replay.sample(replay.stored, torch.Generator()).discounts == 0).float().mean()))
        envs.close()
    assert shares[0] > 3 * shares[1] > 0


# -- drawing -----------------------------------------------------------------------------------------------------------

def filled(alpha, rows=200):
    world, replay = World(2, 1, 0, False), Replay(2 * 300, 2, NUMBERS, n=1, alpha=alpha)
    replay.add(world.rollout(rows, 0.0, False))
    return replay


def test_priorities_weights_and_frequencies():
    replay, generator = filled(alpha=0.5), torch.Generator().manual_seed(0)
    slots = np.flatnonzero(replay.tree.nodes[replay.tree.width:])
    errors = torch.linspace(0.0, 3.0, len(slots))
    replay.update_priorities(slots, errors)
    p = (errors.double().numpy() + 1e-6) ** 0.5
    assert np.allclose(replay.tree[slots], p) and replay.highest == max(1.0, p.max())
    counts = np.zeros(replay.tree.width)
    for _ in range(400):
        b = replay.sample(64, generator, beta=0.7)
        np.add.at(counts, b.slots, 1)
        own = replay.tree[b.slots] / replay.tree.total
        expected = (1 / (replay.stored * own)) ** 0.7
        assert np.allclose(b.weights, expected / expected.max(), rtol=1e-5) and b.weights.max() == 1
    assert np.abs(counts[slots] / (400 * 64) - p / p.sum()).max() < 0.0015


def test_new_transitions_come_at_the_highest_priority():
    replay, world = filled(alpha=1.0), World(2, 1, 1, False)
    replay.update_priorities(np.array([4]), torch.tensor([7.0]))
    replay.update_priorities(np.array([6]), torch.tensor([0.5]))   # the highest so far, and not of the last batch
    world.obs = [replay.next[i].numpy() for i in range(2)]
    before = replay.rows
    replay.add(world.rollout(3, 0.0, False))
    slots = np.arange((before - 1) * 2, (before + 2) * 2)   # the row that waited, and two of the new ones
    assert (replay.tree[slots] == pytest.approx(7.0 + 1e-6)) and replay.tree[np.array([(before + 2) * 2])] == 0


def test_a_batch_is_stratified():
    replay = filled(alpha=0.0)
    drawn = replay.sample(replay.stored, torch.Generator()).slots
    assert len(set(drawn)) == replay.stored


def test_states_are_drawn_uniformly_and_leave_priorities_alone():
    replay, generator = filled(alpha=1.0), torch.Generator().manual_seed(0)
    replay.update_priorities(np.arange(10), torch.full((10,), 1e6))
    before = replay.tree.nodes.copy()
    counts = np.zeros(1000)
    for _ in range(300): np.add.at(counts, replay.states(50, generator).flatten().long().numpy(), 1)
    drawn = counts[counts > 0] / 300
    assert len(drawn) == replay.stored and abs(drawn.mean() - 50 / replay.stored) < 1e-9 and drawn.max() < 0.25
    assert (replay.tree.nodes == before).all() and len(replay.states(10**6, generator)) == replay.stored


# -- refusals ----------------------------------------------------------------------------------------------------------

def test_more_than_memory_is_refused_before_allocation(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 2_000_000_000)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("allocated") if math.prod(a[0]) > 10**6 else torch.zeros(*a, **k))
    with pytest.raises(AbsLabError, match=r"replay of 1048576 transitions with observations of \(4, 84, 84\) needs 7.4 GB, and 2.0 GB are free; 28\d{4} transitions would fit"):
        Replay(2**20, 64, gym.spaces.Box(0, 255, (4, 84, 84), np.uint8))


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_machine_and_every_control_group_leave(tmp_path, version):
    proc, kinds, names = tmp_path/"proc", "memory" if version == 1 else "", ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    (proc/"self").mkdir(parents=True)
    (proc/"meminfo").write_text("MemTotal:  900 kB\nMemAvailable:  600 kB\n")
    (proc/"self/cgroup").write_text(f"7:cpu:/elsewhere\n4:{kinds}:/slice/job\n")
    free = lambda: free_memory(proc, tmp_path/"groups")
    assert free() == 600 << 10                                                   # a group that cannot be seen
    def group(path, limit, used, active=0, inactive=0):
        folder, total = tmp_path/"groups"/kinds/path, "total_" if version == 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used)): (folder/f"memory.{name}").write_text(f"{value}\n")
        (folder/"memory.stat").write_text(f"anon 1\n{total}inactive_file {inactive}\n{total}active_file {active}\n")
    group("slice/job", "9223372036854771712" if version == 1 else "max", 70_000)
    assert free() == 600 << 10                                                   # without a limit
    group("slice/job", 100_000, 90_000, active=5_000, inactive=20_000)
    assert free() == 35_000                                                      # files in memory are given up
    group("slice", 50_000, 45_000)
    assert free() == 5_000                                                       # a group around it
    group(".", 10**9, 0)
    assert free() == 5_000


def test_frames_that_are_no_stacks_are_refused():
    replay = Replay(2 * 50, 2, IMAGES)
    r = World(2, 3, 0, True).rollout(3, 0.0, False)
    r.obs = torch.randint(0, 255, r.obs.shape, dtype=torch.uint8)
    with pytest.raises(AbsLabError, match="stacks of frames"): replay.add(r)
    assert stack_of(gym.spaces.Box(0, 255, (3, 20, 20), np.uint8)) == 1


def test_too_small_and_too_much():
    with pytest.raises(AbsLabError, match="at least"): Replay(2 * 4, 2, NUMBERS, n=3)
    replay = Replay(2 * 10, 2, NUMBERS, n=3)
    with pytest.raises(AbsLabError, match="does not fit"): replay.add(World(2, 1, 0, False).rollout(8, 0.0, False))
    with pytest.raises(AbsLabError, match="holds 0 complete"): replay.sample(1, torch.Generator())
