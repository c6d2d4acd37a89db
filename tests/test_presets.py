"The presets: `paper` on the published numbers, literally; the others able to act; ids, seeds and the experiment's parameters cell."
import ast, itertools, json, math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abs_lab.core.simulators import role_seeds
from abs_lab.runs.config import configure, earliest_change
from abs_lab.core.controllers import ABS
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Measurement, Progress
from abs_lab.agents import ppo
from abs_lab.agents.pqn import PRESETS, linear_epsilon, plan_update
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.grids import parameters_cell

ROOT = Path(__file__).resolve().parent.parent
ABS_RULE = dict(size_min=16, size_max=64, low=0.05, high=0.95, window=20, warmup=10, smoothing=0.9, map="log", rounding="author",
                multiple=1, start=None)
ATARI = dict(env_id="Breakout-v5", num_envs=128, episodic_life=True, reward_clip=True, reward_scale=1.0, segment_steps=0,
             network="pqn", init="orthogonal", layer_norm="all", num_minibatches=4, epochs_rule="author", lr=2.5e-4, anneal_lr=False,
             gamma=0.99, lam=0.65, max_grad_norm=10.0, loss_scale=1.0, epsilon_start=1.0, epsilon_end=0.001, epsilon_fraction=0.1,
             n_states=2048, distance="auto", states="rollout", lag=1, total_steps=20_000_000, eval_envs=100, eval_episodes=1)


def has(config, **expected):
    flat = config.flat()
    assert {k: flat[k] for k in expected} == expected


# -- paper -------------------------------------------------------------------------------------------------------------

def test_paper_is_the_published_setting():
    has(configure(preset="paper"), controller="abs", mask_resets=False, bootstrap_truncation=False, interval=50, **ATARI, **ABS_RULE)
    assert configure(preset="paper", controller="fixed").controller.size == 32


def test_paper_masked_differs_in_what_is_wrong_there_alone():
    paper, masked = configure(preset="paper").flat(), configure(preset="paper_masked").flat()
    differ = {k: (paper[k], masked[k]) for k in paper if paper[k] != masked[k]}
    assert differ == dict(preset=("paper", "paper_masked"), mask_resets=(False, True), bootstrap_truncation=(False, True))


def test_paper_gns_is_the_published_baseline():
    paper, config = configure(preset="paper", controller="fixed").flat(), configure(preset="paper_gns", controller="gns", meter="gns")
    assert {k: (paper[k], v) for k, v in config.flat().items() if k in paper and paper[k] != v and k != "size"} == dict(
        preset=("paper", "paper_gns"), controller=("fixed", "gns"), meter=("divergence", "gns"), anneal_lr=(False, True), epochs_rule=("author", "constant"))
    has(config, interval=50, epochs=2, anneal_lr=True, divisor=128, size_min=16, size_max=64, estimator="author", micro_batches=8)
    controller = replace(config.controller)
    assert [controller.size] + [controller(Measurement(signal)) for signal in (0.0, 128 * 20 + 127.0, 1e9, None)] == [32, 16, 20, 64, 64]


def test_paper_takes_about_195_measurements():
    config = configure(preset="paper")
    assert round(config.total_steps / (config.env.num_envs * 16) / config.meter.interval) == 195
    assert configure(preset="paper", total_steps=100_000).meter.interval == 50  # `paper` keeps its interval at any length


@pytest.mark.parametrize("size,minibatch,epochs", [
    (16, 512, 2), (17, 544, 2), (31, 992, 2), (32, 1024, 2), (47, 1504, 2), (48, 1536, 3), (55, 1760, 3), (63, 2016, 3), (64, 2048, 4),
    (119, 3808, 7), (128, 4096, 8)])
def test_paper_plans(size, minibatch, epochs):
    config = configure(preset="paper", size_max=128)
    assert plan_update(config.agent, size, 128, Progress(1)) == BatchPlan(size, minibatch, 4 * epochs)


@pytest.mark.parametrize("size_max,start,sizes", [(64, None, [55, 43, 32, 25, 17]), (128, None, [119, 92, 66, 50, 31]),
                                                  (64, 64, [64, 52, 41, 34, 26])])
def test_paper_settles_at_the_published_sizes(size_max, start, sizes):
    config = configure(preset="paper", size_max=size_max, start=start)
    for signal, size in zip([0.05, 0.10, 0.20, 0.30, 0.50], sizes):
        controller = replace(config.controller)
        for _ in range(400): controller(Measurement(signal))
        assert controller.size == size
    if start is None: assert config.controller == ABS.paper(16, size_max)


def test_paper_waits_for_ten_measurements_and_then_follows_this_trace():
    controller = replace(configure(preset="paper").controller)
    assert [controller(Measurement(0.05)) for _ in range(20)] == [16] * 9 + [20, 24, 28, 31, 34, 37, 39, 41, 43, 45, 46]


@pytest.mark.parametrize("step,epsilon", [(0, 1.0), (1_000_000, 0.5005), (2_000_000, 0.001), (20_000_000, 0.001)])
def test_paper_explores_over_the_first_tenth(step, epsilon):
    assert linear_epsilon(configure(preset="paper").agent, step, 20_000_000) == pytest.approx(epsilon)


# -- paper, PPO --------------------------------------------------------------------------------------------------------

MUJOCO = dict(env_id="HalfCheetah-v4", num_envs=1, mask_resets=True, reward_clip=False, reward_scale=1.0, width=64, num_minibatches=32, epochs_rule="author", epochs=10,
              base_batch=2048, lr=3e-4, anneal_lr=True, gamma=0.99, lam=0.95, clip=0.2, clip_value=True, value_coef=0.5, entropy_coef=0.0, max_grad_norm=0.5,
              normalize_obs=True, normalize_rewards=True, norm_clip=10.0, n_states=2048, distance="auto", states="rollout", lag=1)
KL_RULE = ABS_RULE | dict(size_min=1024, size_max=8192, low=0.01, high=0.1, multiple=32)


def test_paper_of_ppo_is_the_published_setting():
    has(configure("ppo", preset="paper"), controller="abs", bootstrap_truncation=False, reward_reset="termination", count_bootstrap=True, interval=10, total_steps=5_000_000, **MUJOCO | KL_RULE | dict(states="stored"))
    assert configure("ppo", preset="paper", controller="fixed").controller.size == 2048
    has(configure("ppo", preset="mujoco"), bootstrap_truncation=True, total_steps=1_000_000, **MUJOCO, **KL_RULE)
    assert configure("ppo", env_id="Hopper-v4").names[1] == "mujoco" and configure("ppo", env_id="LunarLander-v3").names[1] == "general"


def test_64_environments_have_the_same_batches():
    one, many = configure("ppo", preset="mujoco"), configure("ppo", preset="mujoco_64")
    batch = lambda c, size: c.env.num_envs * size
    assert [batch(c, s) for c in (one, many) for s in (c.controller.smallest, c.controller.largest)] == [1024, 8192] * 2
    fixed = [configure("ppo", preset=p, controller="fixed") for p in ("mujoco", "mujoco_64")]
    assert [ppo.plan_update(c.agent, c.controller.size, c.env.num_envs, Progress(1)).minibatch for c in fixed] == [64, 64]
    differ = {k for k, v in one.flat().items() if many.flat()[k] != v}
    assert differ == {"preset", "num_envs", "size_min", "size_max", "multiple"}


@pytest.mark.parametrize("preset", ["mujoco", "mujoco_64", "classic", "general"])
def test_abs_of_ppo_can_act_by_15_percent_of_a_run(preset):
    for total_steps in (300_000, 1_000_000, 5_000_000):
        config = configure("ppo", preset=preset, total_steps=total_steps)
        assert earliest_change(config) <= 0.15, total_steps


@pytest.mark.parametrize("agent", ["pqn", "ppo"])
@pytest.mark.parametrize("controller", ["abs", "ramp", "walk"])
def test_any_number_of_environments_will_do(agent, controller):
    for num_envs in (1, 2, 3, 4, 6, 12, 20):
        config = configure(agent, controller=controller, env_id="CartPole-v1", num_envs=num_envs)
        assert config.controller.multiple == 8 // math.gcd(8, num_envs) and configure(**config.flat()).id == config.id
        assert {num_envs * size % 8 for size in config.controller.sizes_asked()} == {0}
    assert configure(agent, controller=controller, env_id="CartPole-v1").controller.multiple == configure(agent, controller=controller, env_id="CartPole-v1", num_envs=8).controller.multiple == 1
    with pytest.raises(AbsLabError, match="do not divide"): configure(agent, controller=controller, env_id="CartPole-v1", num_envs=4, multiple=1)


@pytest.mark.parametrize("agent", ["ppo", "btr"])
def test_groups_are_for_agents_that_act_by_row(agent):
    with pytest.raises(AbsLabError, match="groups=2 needs an agent that can act for some of the environments"): configure(agent, env_id="CartPole-v1", groups=2)


def test_gradient_noise_brings_thresholds_of_its_own():
    config = configure("ppo", preset="mujoco", meter="gns")
    assert (config.controller.low, config.controller.high, config.meter.estimator) == (1 / 8192, 1 / 1024, "fair")
    assert configure("ppo", preset="mujoco", meter="gns", low=0.5, high=0.9).controller.low == 0.5


# -- the others --------------------------------------------------------------------------------------------------------

def test_purejaxql():
    config = configure(preset="purejaxql", controller="fixed")
    changed = dict(num_minibatches=32, epochs_rule="constant", init="he_normal", layer_norm="channel", loss_scale=0.5, total_steps=50_000_000)
    has(config, mask_resets=False, bootstrap_truncation=False, size=32, epochs=2, **ATARI | changed)
    assert plan_update(config.agent, 32, 128, Progress(1)) == BatchPlan(32, 128, 2 * 32)


def test_minatar():
    config = configure(preset="minatar", controller="fixed")
    has(config, env_id="MinAtar/Breakout-v1", num_envs=128, network="minatar", num_minibatches=32, epochs_rule="constant", epochs=2, lr=5e-4,
        anneal_lr=True, gamma=0.99, lam=0.65, max_grad_norm=10.0, epsilon_start=1.0, epsilon_end=0.05, epsilon_fraction=0.1, size=32,
        total_steps=10_000_000, episodic_life=False, reward_clip=False, mask_resets=True, bootstrap_truncation=True)
    assert plan_update(config.agent, 32, 128, Progress(1)) == BatchPlan(32, 128, 2 * 32)


BTR = dict(env_id="Breakout-v5", num_envs=64, sticky_actions=0.25, reward_clip=True, reward_scale=1.0, episodic_life=False, mask_resets=True,
           bootstrap_truncation=True, total_steps=50_000_000, network="impala", spectral=True, noisy=True, dueling=True, iqn=True, taus=8,
           munchausen=True, munchausen_alpha=0.9, temperature=0.03, munchausen_floor=-1.0, munchausen_policy="target", n_steps=3, gamma=0.997,
           replay_size=1_048_576, alpha=0.2, beta=0.45, learning_starts=200_000, rollout=1, replay_ratio=1 / 64, coupling="steps", target_period=500,
           optimizer="adam", lr=1e-4, adam_eps=0.005 / 256, max_grad_norm=10.0, epsilon_start=1.0, epsilon_end=0.01, epsilon_decay=125_000.0, epsilon_off=1.0, bias_sigma="outputs", fire_reset=False)

def test_btr_paper_is_the_published_setting():
    has(configure("btr", preset="paper", controller="fixed"), size=256, states="replay", **BTR)
    has(configure("btr", env_id="Pong-v5"), preset="paper", size_min=128, size_max=1024, multiple=128, rounding="exact", **BTR | dict(env_id="Pong-v5"))


def test_btr_classic_is_the_paper_made_small():
    has(configure("btr", preset="classic", controller="fixed"), preset="classic", env_id="LunarLander-v3", num_envs=16, reward_scale=0.1, total_steps=200_000, size=64, network="impala",
        spectral=True, noisy=True, dueling=True, iqn=True, taus=8, munchausen=True, munchausen_alpha=0.9, temperature=0.003, munchausen_floor=-0.1, n_steps=3,
        gamma=0.99, replay_size=100_000, alpha=0.2, beta=0.45, learning_starts=2_000, rollout=1, replay_ratio=0.25, base_batch=64, target_period=50, lr=2e-3)
    has(configure("btr", preset="classic"), low=0.08, high=0.2, size_min=32, size_max=256, multiple=32, lag=8)
    classic, dqn = (configure("btr", preset=p, controller="fixed").flat() for p in ("classic", "dqn"))
    assert {k: dqn[k] for k in dqn if dqn[k] != classic[k]} == dict(preset="dqn", network="plain", spectral=False, noisy=False, dueling=False, iqn=False,
                                                                     munchausen=False, n_steps=1, alpha=0.0, beta=0.0)


def test_what_btr_takes_where_nobody_says():
    for env_id, name, base, more in (("Acrobot-v1", "general", "classic", dict(backprop="written")), ("MinAtar/Seaquest-v1", "minatar_256", "minatar", {})):
        found, known = configure("btr", env_id=env_id).flat(), configure("btr", env_id=env_id, preset=base).flat()
        assert {k: found[k] for k in found if found[k] != known[k]} == dict(preset=name, n_states=256) | more
    assert configure("btr", env_id="Pong-v5").flat()["preset"] == "paper"


def test_what_ppo_takes_on_minatar_where_nobody_says():
    found, known = configure("ppo", env_id="MinAtar/Seaquest-v1").flat(), configure("ppo", env_id="MinAtar/Seaquest-v1", preset="minatar").flat()
    assert {k: found[k] for k in found if found[k] != known[k]} == dict(preset="minatar_16", lr=5e-3, size_min=16, size_max=64, interval=5)


def test_a_run_of_pqn_is_called_what_it_was_called():
    assert configure(preset="classic").id == "LunarLander-v3-abs-s0-1ce3d21f" and configure(preset="paper").id == "Breakout-v5-abs-s0-68d191c4"


OTHERS = [p for p in PRESETS if p not in ("paper", "paper_gns")]

@pytest.mark.parametrize("preset", OTHERS)
def test_abs_can_act_by_15_percent_of_a_run(preset):
    base = configure(preset=preset)
    update = base.env.num_envs * base.controller.smallest
    lengths = {base.total_steps, *(update * n for n in (70, 99, 137, 195, 292, 293, 300, 487, 1_000, 5_003, 50_000))}
    for total_steps in sorted(lengths):
        assert earliest_change(configure(preset=preset, total_steps=total_steps)) <= 0.15, total_steps
        assert earliest_change(configure(preset=preset, total_steps=total_steps, size_max=128)) <= 0.15, total_steps


@pytest.mark.parametrize("preset", OTHERS)
def test_earliest_change_is_what_happens(preset):
    config = configure(preset=preset)
    controller, steps, update = replace(config.controller), 0, 0
    while controller.size == 16 and steps < config.total_steps:
        steps, update = steps + 16 * config.env.num_envs, update + 1
        controller(Measurement(0.01 if update % config.meter.interval == 0 else None))
    assert controller.size > 16 and earliest_change(config) == steps / config.total_steps


def test_the_arms_of_quick_can_act():
    for point in STUDIES["quick"].grid():
        config = configure(**{k: v for k, v in point.items() if k != "arm"})
        if point["controller"] == "abs": assert earliest_change(config) <= 0.15
    assert earliest_change(configure(preset="paper", total_steps=1_000_000)) > 1  # and why `paper` cannot, on a short run


# -- ids ---------------------------------------------------------------------------------------------------------------

def test_an_id_depends_on_the_parameters_and_on_nothing_else():
    config = configure(env_id="Pong-v5", preset="paper_masked", seed=3, lr=1e-3)
    assert config.id.startswith("Pong-v5-abs-s3-") and len(config.id.rsplit("-", 1)[1]) == 8
    assert configure(lr=1e-3, seed=3, preset="paper_masked", env_id="Pong-v5").id == config.id
    flat = config.flat()
    assert configure(**flat) == config and configure(**dict(reversed(flat.items()))).id == config.id
    assert configure(**json.loads(json.dumps(flat))).id == config.id
    assert configure(**flat | dict(env_threads=7)).id == config.id
    assert configure(**flat | dict(lr=0.001, gamma=0.99)).id == config.id  # defaults spelled out
    for change in (dict(lr=2e-3), dict(seed=4), dict(total_steps=1_000_000), dict(high=0.5), dict(interval=7), dict(env_id="Breakout-v5"),
                   dict(mask_resets=False), dict(eval_envs=99), dict(start=32)):
        assert configure(**flat | change).id != config.id, change


def test_ids_are_readable():
    assert configure(preset="paper").id.rsplit("-", 1)[0] == "Breakout-v5-abs-s0"
    assert configure(preset="minatar", controller="ramp", seed=2).id.rsplit("-", 1)[0] == "MinAtar-Breakout-v1-ramp-s2"


# -- seeds -------------------------------------------------------------------------------------------------------------

def test_no_two_runs_roles_or_segments_share_a_seed():
    drawn = {key: role_seeds(key[0], 128, *key[1:]) for key in itertools.product(range(10), ("train", "eval", "heldout"), range(3))}
    everything = [s for seeds in drawn.values() for s in seeds]
    assert len(everything) == len(set(everything)) == 10 * 3 * 3 * 128
    assert all(0 <= s < 2**31 for s in everything)
    assert role_seeds(3, 64, "eval") == drawn[3, "eval", 0][:64]  # an environment keeps its seed when others join
    shifted = sum(b - a == 1 for a, b in zip(everything, everything[1:]))
    assert shifted == 0


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "CartPole-v1"])
@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_no_two_environments_begin_alike(env_id, backend):
    if env_id == "LunarLander-v3" and backend == "gymnasium": pytest.importorskip("Box2D")
    config = configure(env_id=env_id, backend=backend, num_envs=16).env
    first = []
    for seed, role in itertools.product(range(4), ("train", "eval")):
        envs = VecEnvs(config, seed, role)
        first += list(envs.obs.numpy())
        envs.close()
    assert len(np.unique(np.stack(first), axis=0)) == 4 * 2 * 16


def test_segments_begin_apart():
    config = configure(env_id="CartPole-v1", num_envs=16, segment_steps=64).env
    envs = VecEnvs(config, 0)
    before = envs.obs.clone()
    envs._rebuild(1, np.zeros((3, 1, 16), bool))
    assert envs.segment == 1 and not (before == envs.obs).all(1).any()


def test_a_seed_is_a_whole_number():
    for seed in (-1, 1.5, "0"):
        with pytest.raises(AbsLabError, match="seed"): configure(seed=seed)


# -- the experiment's parameters cell ----------------------------------------------------------------------------------

@pytest.mark.parametrize("agent", ["pqn", "ppo", "btr"])
def test_the_parameters_cell_is_generated_from_the_dataclasses(agent):
    notebook = json.loads((ROOT/"nbs"/"experiments"/f"{agent}.ipynb").read_text())
    cell, = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    assert "".join(cell["source"]).strip() == parameters_cell(agent).strip()
    assert all(line.count("=") < 2 for line in parameters_cell(agent).splitlines())  # papermill prints a warning of every other line
    names = {node.targets[0].id for node in ast.parse(parameters_cell(agent)).body}
    assert names == set(configure(agent).flat()) | {"size", "shape", "starts", "sizes", "move", "divisor", "micro_batches", "estimator", "arm", "run_dir"}
