"A run's id is a hash of the parameters that differ from the dataclasses' defaults. So a changed default would rename what is recorded, or worse, find it under parameters that are others."
import json
from dataclasses import fields
from pathlib import Path

import pytest

from abs_lab.core.simulators import EnvConfig
from abs_lab.runs.config import RunConfig, recall
from abs_lab.runs.registry import BUILT_IN, find

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {  # of every parameter; a new parameter gets a line here, and no line ever changes
    "environments": dict(
        env_id="LunarLander-v3", num_envs=64, backend="auto", env_threads=0, episodic_life=False, sticky_actions=0.0, reward_clip=False, reward_scale=1.0,
        mask_resets=True, bootstrap_truncation=True, segment_steps=0, change_at=0, change_every=0, fire_reset=True,
        max_episode_steps=0, minatar_sticky=0.1, env_options=(), wrappers=(), action_bounds="clip", same_step_reset=False, groups=1),
    "run": dict(seed=0, total_steps=400_000, eval_envs=50, eval_episodes=1, eval_max_steps=108_000, record_every=1, origin=""),
    "agent pqn": dict(
        network="pqn", init="orthogonal", layer_norm="all", num_minibatches=4, epochs_rule="author", epochs=2, lr=2.5e-4, anneal_lr=False, lr_starts=(), lr_factors=(), gamma=0.99, lam=0.65,
        max_grad_norm=10.0, loss_scale=1.0, epsilon_start=1.0, epsilon_end=0.001, epsilon_fraction=0.1, diagnose_every=50,
        norm_eps=1e-5, plane_divisor=1.0, decay_rule="step", late_bootstrap=False, normalize_obs=False, reward_spread=0.0, explore_repeat=0.0, compiler="none", backprop="autograd"),
    "agent ppo": dict(
        width=64, num_minibatches=32, epochs_rule="author", epochs=10, base_batch=2048, lr=3e-4, anneal_lr=True, gamma=0.99, lam=0.95, clip=0.2, clip_value=True,
        value_coef=0.5, entropy_coef=0.0, max_grad_norm=0.5, normalize_obs=True, normalize_rewards=True, norm_clip=10.0,
        reward_reset="end", count_bootstrap=False),
    "agent btr": dict(
        network="impala", spectral=True, noisy=True, dueling=True, iqn=True, taus=8, munchausen=True, munchausen_alpha=0.9, temperature=0.03,
        munchausen_floor=-1.0, munchausen_policy="target", n_steps=3, gamma=0.997, replay_size=1_048_576, alpha=0.2, beta=0.45, learning_starts=200_000,
        rollout=1, overlap=True, replay_ratio=1 / 64, base_batch=256, coupling="steps", target_period=500, optimizer="adam", weight_decay=1e-4, lr=1e-4,
        adam_eps=1.953125e-05, max_grad_norm=10.0, epsilon_start=1.0, epsilon_end=0.01, epsilon_fraction=0.04, epsilon_off=0.5, diagnose_every=5_000,
        bias_sigma="inputs", epsilon_decay=0.0, backprop="autograd"),
    "meter divergence": dict(interval=50, n_states=2048, distance="auto", states="rollout", lag=1, per_step=False),
    "meter gns": dict(interval=50, micro_batches=8, estimator="author"),
    "controller fixed": dict(size=32),
    "controller ramp": dict(size_min=16, size_max=64, shape="linear", multiple=1),
    "controller replayed": dict(starts=(0,), sizes=(32,)),
    "controller walk": dict(size_min=16, size_max=64, move=0.05, multiple=1),
    "controller gns": dict(size_min=16, size_max=64, start=32, divisor=128),
    "controller abs": dict(size_min=16, size_max=64, low=0.05, high=0.95, window=20, warmup=10, smoothing=0.9, map="log", rounding="author", multiple=1, start=None),
}


def class_of(part):
    if part in ("environments", "run"): return EnvConfig if part == "environments" else RunConfig
    kind, name = part.split()
    return find(kind, name).Config if kind == "agent" else find(kind, name)


def test_every_built_in_kind_is_pinned():
    assert set(DEFAULTS) == {"environments", "run", *(f"{kind} {name}" for kind in ("agent", "meter", "controller") for name in BUILT_IN[kind])}


@pytest.mark.parametrize("part", DEFAULTS)
def test_no_default_ever_changes(part):
    own = {f.name: f.default for f in fields(class_of(part)) if f.init and (part != "run" or f.name in DEFAULTS["run"])}
    assert {k: repr(v) for k, v in own.items()} == {k: repr(v) for k, v in DEFAULTS[part].items()}  # repr: 1 is neither True nor 1.0 in an id


@pytest.mark.parametrize("folder", sorted(d.parent.name for d in (ROOT/"reports").glob("*/data")))
def test_every_committed_run_keeps_its_id(folder):
    files = sorted((ROOT/"reports"/folder/"data").glob("*.json"))
    assert files
    for path in files:
        small = json.loads(path.read_text())
        config = recall({k: v for k, v in small["params"].items() if k not in ("arm", "run_dir")})
        assert path.stem == small["id"] == small["result"]["id"] == config.id
