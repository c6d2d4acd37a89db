"""How closely the agents agree with the code of their authors, on the same weights and the same data.

    python benchmarks/faithfulness.py --abs DIR --cleanrl DIR --purejaxql DIR --btr DIR

Each DIR is a clone of a public repository: `daisophila/ABS`, `vwxyzjn/cleanrl`, `mttga/purejaxql`, `VIPTankz/BeyondTheRainbow`. What is not given, or
cannot be imported, is left out, and the reason is printed. Their code is executed as it is, with what is in its way replaced: the simulator (by
invented observations, rewards and ends, or by Gymnasium's Pendulum), BTR's replay (by invented batches), the command line, and what writes logs. An agent
of abs_lab gets the same first weights, batches and shuffles, and both are compared after every update. All but purejaxql run in double precision,
which separates another order of summation (1e-14) from another algorithm. purejaxql needs `pip install "jax[cpu]" flax optax chex`, in an environment
of its own that sees abs_lab's packages.

A number is the largest difference divided by the largest number of its kind; of weights, by how far they have moved. It is not asserted: it is what the table shows.
The results go to benchmarks/results/faithfulness.json and .md; a part that is left out keeps what an earlier run found, with that run's versions.
"""
import argparse, contextlib, importlib.machinery, json, os, subprocess, sys, tempfile, types
from dataclasses import replace
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # runs from a clone, installed or not

from abs_lab.agents.actor_critic import log_prob
from abs_lab.agents.btr import BTR
from abs_lab.agents.ppo import PPO
from abs_lab.agents.pqn import PQN
from abs_lab.core.controllers import ABS
from abs_lab.core.envs import Rollout
from abs_lab.core.interfaces import AbsLabError, Measurement, Progress
from abs_lab.core.returns import gae
from abs_lab.runs.config import configure

RESULTS = Path(__file__).resolve().parent/"results"


# ---- what is compared, and how ----

def apart(a, b, scale=None):
    "The largest difference of two arrays, as a share of the largest number of either, or of `scale`."
    a, b = (np.asarray(x.detach().numpy() if isinstance(x, torch.Tensor) else x, np.float64) for x in (a, b))
    scale = np.abs(np.concatenate([a.ravel(), b.ravel()])).max() if scale is None else scale
    return float(np.abs(a - b).max() / scale) if a.size else 0.0


def flat(parameters):
    "All parameters in one array, a copy."
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


@contextlib.contextmanager
def double():
    "Tensors of double precision."
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


class Silent:
    "Takes any call and any attribute: what writes logs."
    def __init__(self, *a, **k): pass
    def __getattr__(self, name): return Silent()
    def __call__(self, *a, **k): return Silent()


def module(name, **content):
    "A module in the place of one that is not needed."
    made = types.ModuleType(name)
    made.__dict__.update(content)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return made


@contextlib.contextmanager
def standing_in(modules):
    "Modules under names that others will import; what has been imported besides stays."
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try: yield
    finally:
        for name, was in before.items():
            if was is None: del sys.modules[name]
            else: sys.modules[name] = was


class Enough(Exception): "The script has trained and would evaluate now."


def executed(script, given, modules, on_shuffle):
    "The names of a training script after it has run with the settings `given`; `on_shuffle(names)` sees them before each of its shuffles."
    names, shuffle = {"__name__": "__main__", "__file__": str(script)}, np.random.shuffle
    def watched(x):
        on_shuffle(names)
        shuffle(x)
        names.setdefault("_orders", []).append(torch.from_numpy(x.copy()))
    logs = {"torch.utils.tensorboard": module("torch.utils.tensorboard", SummaryWriter=Silent), "tyro": module("tyro", cli=lambda cls: cls(**given)),
            "tensorboard": module("tensorboard"), "tensorboard.compat": module("c"), "tensorboard.compat.proto": module("p"), "tensorboard.compat.proto.types_pb2": module("t", DT_DOUBLE=0)}
    here, state = os.getcwd(), np.random.get_state()
    with standing_in(logs | modules), mock.patch("numpy.random.shuffle", watched), tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(open(os.devnull, "w", encoding="utf-8")):
        os.chdir(tmp)
        try: exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), names)
        except Enough: pass
        finally: os.chdir(here); np.random.set_state(state)
    return names


# ---- PQN of the authors of ABS ----

class Invented:
    "The calls of an old EnvPool: bytes, rewards and ends that do not depend on the actions. The second one made ends the script."
    made = 0
    observation_space, action_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(4)

    def __init__(self, num_envs):
        self.num_envs, self.rng = num_envs, np.random.default_rng(0)
    def _obs(self): return self.rng.integers(0, 256, (self.num_envs, 4, 84, 84), np.uint8)
    def reset(self, **how): return self._obs()
    def step(self, actions):
        done = self.rng.random(self.num_envs) < 0.1
        return self._obs(), self.rng.integers(-1, 2, self.num_envs).astype(np.float64), done, dict(reward=np.zeros(self.num_envs), terminated=done.astype(int), lives=np.ones(self.num_envs, int))
    def close(self): pass


def invented_envpool():
    "A module `envpool` whose second pool, for evaluation, is the end."
    made = []
    def make(env_id, num_envs, **how):
        if made: raise Enough
        made.append(1)
        return Invented(num_envs)
    return module("envpool", make=make)


class Wrapper:
    "The base of a wrapper of the old Gym."
    def __init__(self, env): self.env = env
    def __getattr__(self, name): return getattr(self.env, name)
    def reset(self, **how): return self.env.reset(**how)
    def step(self, action): return self.env.step(action)


def pqn_of_abs(folder, network, updates, envs=8):
    "The authors' PQN script beside the preset `paper`, with one of its two networks."
    script, seen = folder/"algos"/"pqn_atari_envpool_ours.py", []
    def snapshot(names):
        if len(names.get("_orders", [])) % names["args"].update_epochs == 0:
            kept = {k: names[k].clone() for k in ("obs", "actions", "rewards", "dones", "values", "next_obs", "next_done", "returns")}
            seen.append(kept | dict(weights=flat(names["q_network"].parameters())))
    given = dict(total_timesteps=updates * 32 * envs, num_envs=envs, num_steps=32, cuda=False, use_multiskip=network != "pqn")
    with double():
        names = executed(script, given, {"envpool": invented_envpool(), "gym": module("gym", Wrapper=Wrapper, spaces=gym.spaces)}, snapshot)
        config = configure(preset="paper", controller="fixed", network=network).agent
        agent = PQN(config, Invented.observation_space, Invented.action_space, envs, Progress(given["total_timesteps"]))
        agent.weights.data.copy_(seen[0]["weights"])
        orders, found = iter(names["_orders"]), dict(values=0.0, targets=0.0, weights=0.0)
        for s, after in zip(seen, [*(s["weights"] for s in seen[1:]), flat(names["q_network"].parameters())]):
            over = torch.cat([s["dones"][1:], s["next_done"][None]]).bool()
            obs = s["obs"].to(torch.uint8)
            values = torch.stack([agent.policy(row).amax(-1) for row in obs])
            rollout = Rollout(obs, s["actions"].long(), s["rewards"], over, torch.zeros_like(over), torch.ones_like(over), s["next_obs"].to(torch.uint8), dict(value=values))
            targets = agent._rows(rollout, None)[2]
            agent.progress.step += rollout.steps
            with mock.patch("torch.randperm", lambda *a, **k: next(orders)): agent.update(rollout, agent.plan(32))
            moved = (after - seen[0]["weights"]).abs().max()
            for name, now in dict(values=apart(values, s["values"]), targets=apart(targets, s["returns"].flatten()), weights=apart(agent.weights, after, moved)).items(): found[name] = max(found[name], now)
    count = updates * 2 * 4
    return [dict(what="Q-values of every state, before every update", digits=found["values"]), dict(what="λ-returns, with terminations", digits=found["targets"]),
            dict(what=f"weights after each of {updates} updates ({count} gradient steps: loss, gradient, clipping, RAdam)", digits=found["weights"])], names


def sizes_of_abs(names, traces=400, length=200):
    "The authors' scheduler beside the preset's, on traces of invented measurements."
    rng, wrong = np.random.default_rng(0), 0
    for i in range(traces):
        top = (64, 128)[i % 2]
        args = types.SimpleNamespace(num_steps=16, num_steps_min=16, num_steps_max=top, policy_change_low=0.05, policy_change_high=0.95, adapt_rollout=True, rollout_adapt_freq=50)
        theirs, ours, level = names["AdaptiveRolloutScheduler"](args, None, "cpu"), ABS.paper(16, top), rng.random()
        for _ in range(length):
            signal = float(np.clip(level + rng.normal(0, 0.1), 0, 1))
            level = float(np.clip(level + rng.normal(0, 0.02), 0, 1))
            theirs.policy_changes.append(signal)
            wrong += theirs.adapt_num_steps(signal) != ours(Measurement(signal))
    return dict(what=f"{traces * length:,} sizes of {traces} traces", digits=0.0 if not wrong else wrong / (traces * length), exact=not wrong)


# ---- PPO ----

def ppo(script, updates, given):
    "A PPO script of CleanRL's kind beside the preset `paper`, on Pendulum as its wrappers show it."
    seen, plain = [], gym.wrappers.TransformObservation
    def snapshot(names):
        if len(names.get("_orders", [])) % 10 == 0:
            kept = {k: names[k].clone() for k in ("obs", "actions", "logprobs", "rewards", "dones", "values", "next_obs", "next_done", "advantages")}
            seen.append(kept | dict(weights={k: v.clone() for k, v in names["agent"].state_dict().items()}, lr=names["optimizer"].param_groups[0]["lr"]))
    given = dict(env_id="Pendulum-v1", num_steps=256, total_timesteps=256 * updates, cuda=False) | given
    renamed = lambda state: {k.replace("actor_mean", "actor").replace("actor_logstd", "log_std"): v.flatten() if "logstd" in k else v for k, v in state.items()}
    with double():
        with mock.patch("gymnasium.wrappers.TransformObservation", lambda env, f: plain(env, f, None)): names = executed(script, given, {}, snapshot)
        config = configure("ppo", preset="paper", controller="fixed").agent
        agent = PPO(config, gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(-2, 2, (1,)), 1, Progress(given["total_timesteps"]))
        agent.net.load_state_dict(renamed(seen[0]["weights"]))
        begin, orders, found = agent.weights.detach().clone(), iter(names["_orders"]), dict(values=0.0, log_prob=0.0, advantages=0.0, weights=0.0)
        for s, after in zip(seen, [*(s["weights"] for s in seen[1:]), names["agent"].state_dict()]):
            x, drawn = s["obs"].flatten(0, 1), s["actions"].flatten(0, 1)
            over = torch.cat([s["dones"][1:], s["next_done"][None]]).bool()
            with torch.no_grad(): values, ahead = agent.net.value(x), agent.net.value(s["next_obs"])
            advantages = gae(s["rewards"], over, torch.zeros_like(over), values[:, None], ahead, config.gamma, config.lam)[:, 0]
            with torch.no_grad(): old = log_prob(agent.net(x), drawn)
            agent.optimizer.param_groups[0]["lr"] = s["lr"]
            rows = [part.numpy() for part in (x, drawn, old, advantages, advantages + values, values)]
            for _ in range(10):
                for chosen in next(orders).split(256 // 32): agent._gradient_step(*(part[chosen.numpy()] for part in rows))
            theirs = PPO(config, gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(-2, 2, (1,)), 1, Progress(1))
            theirs.net.load_state_dict(renamed(after))
            now = dict(values=apart(values, s["values"][:, 0]), log_prob=apart(old, s["logprobs"][:, 0]), advantages=apart(advantages, s["advantages"][:, 0]),
                       weights=apart(agent.weights, theirs.weights, (theirs.weights.detach() - begin).abs().max()))
            for name, value in now.items(): found[name] = max(found[name], value)
    count = updates * 320
    return [dict(what="values and log-probabilities of every row", digits=max(found["values"], found["log_prob"])), dict(what="advantages, with ends", digits=found["advantages"]),
            dict(what=f"weights after each of {updates} updates ({count} gradient steps: loss, hand-written gradient, clipping, Adam)", digits=found["weights"])]


# ---- purejaxql ----

def purejaxql(folder, updates=10, envs=16, length=32):
    "purejaxql's MinAtar script beside the preset `purejaxql_minatar`, on an invented game in which every row is one minibatch and nothing is explored."
    import jax
    import jax.numpy as jnp
    rng = np.random.default_rng(0)
    obs, rewards, dones = rng.random((updates * length + 1, envs, 10, 10, 4)) < 0.1, rng.integers(0, 2, (updates * length, envs)).astype(np.float32), rng.random((updates * length, envs)) < 0.1
    tables = jnp.asarray(obs, jnp.float32), jnp.asarray(rewards), jnp.asarray(dones)

    class Game:
        "What the script asks of a game; `vmapped` answers for all environments at once, from the tables, by time."
        def reset(self, key, params): raise NotImplementedError
        def step(self, key, state, action, params): raise NotImplementedError
        def action_space(self, params): return types.SimpleNamespace(n=3)
        def observation_space(self, params): return types.SimpleNamespace(shape=(10, 10, 4))

    def vmapped(f, in_axes):
        "`jax.vmap`, but the game's two functions are answered from the tables."
        if getattr(f, "__self__", None).__class__ is not Game: return real_vmap(f, in_axes)
        if f.__name__ == "reset": return lambda keys, params: (tables[0][0], jnp.zeros((), jnp.int32))
        return lambda keys, state, action, params: (tables[0][state + 1], state + 1, tables[1][state], tables[2][state].astype(jnp.float32), dict(action=action))
    real_vmap = jax.vmap
    modules = {"gymnax": module("gymnax", make=lambda name: (Game(), types.SimpleNamespace(max_steps_in_episode=1))), "gymnax.wrappers": module("w"),
               "gymnax.wrappers.purerl": module("p", FlattenObservationWrapper=None, LogWrapper=lambda env: env), "hydra": module("hydra", main=lambda **k: lambda f: f),
               "omegaconf": module("omegaconf", OmegaConf=None), "wandb": module("wandb")}
    config = dict(TOTAL_TIMESTEPS=updates * length * envs, TOTAL_TIMESTEPS_DECAY=updates * length * envs, NUM_ENVS=envs, NUM_STEPS=length, EPS_START=0.0, EPS_FINISH=0.0, EPS_DECAY=0.1,
                  NUM_MINIBATCHES=1, NUM_EPOCHS=2, NORM_TYPE="layer_norm", LR=5e-4, MAX_GRAD_NORM=10, LR_LINEAR_DECAY=True, GAMMA=0.99, LAMBDA=0.65, ENV_NAME="invented", WANDB_MODE="disabled")
    names = {"__name__": "theirs", "__file__": str(folder/"purejaxql"/"pqn_minatar.py")}
    with standing_in(modules | {"theirs": module("theirs")}):
        exec(compile((folder/"purejaxql"/"pqn_minatar.py").read_text(encoding="utf-8"), "pqn_minatar.py", "exec"), names)
    key, found = jax.random.PRNGKey(0), {}
    first = names["QNetwork"](action_dim=3, norm_type="layer_norm").init(jax.random.split(key)[0], jnp.zeros((1, 10, 10, 4)), train=False)
    def trained(count):
        "What their training returns after so many of its updates."
        with mock.patch("jax.vmap", lambda f, in_axes=0: vmapped(f, in_axes)): return names["make_train"](dict(config) | dict(TOTAL_TIMESTEPS=count * length * envs))(key)

    settings = replace(configure(preset="purejaxql_minatar", controller="fixed").agent, num_minibatches=1, epsilon_start=0.0, epsilon_end=0.0)
    progress = Progress(updates * length * envs)
    agent = PQN(settings, gym.spaces.Box(0, 1, (10, 10, 4), bool), gym.spaces.Discrete(3), envs, progress)

    def laid(params):
        "Their parameters in the order and the layout of ours."
        cnn = params["CNN_0"]
        conv, fc, head = cnn["Conv_0"], cnn["Dense_0"], params["Dense_0"]
        parts = [np.transpose(conv["kernel"], (3, 2, 0, 1)), conv["bias"], cnn["LayerNorm_0"]["scale"], cnn["LayerNorm_0"]["bias"],
                 np.transpose(np.asarray(fc["kernel"]).reshape(8, 8, 16, 128), (3, 2, 0, 1)), fc["bias"], cnn["LayerNorm_1"]["scale"], cnn["LayerNorm_1"]["bias"], np.transpose(head["kernel"]), head["bias"]]
        return torch.from_numpy(np.concatenate([np.asarray(p).ravel() for p in parts]))
    start = laid(first["params"])
    agent.weights.data.copy_(start)
    some = obs[:8].reshape(-1, 10, 10, 4)
    theirs = names["QNetwork"](action_dim=3, norm_type="layer_norm").apply(first, jnp.asarray(some, jnp.float32), train=False)
    rows = [dict(what="Q-values of fresh weights", digits=apart(agent.policy(torch.from_numpy(some)), np.asarray(theirs)))]

    data, wanted = [torch.from_numpy(x) for x in (obs, rewards, dones)], {2: None, 3: None, updates: None}
    for update in range(1, updates + 1):
        at = slice((update - 1) * length, update * length)
        q = torch.stack([agent.policy(row) for row in data[0][at]])
        rollout = Rollout(data[0][at], q.argmax(-1), data[1][at], data[2][at], torch.zeros_like(data[2][at]), torch.ones_like(data[2][at]), data[0][at.stop], dict(value=q.amax(-1)))
        progress.step += rollout.steps
        agent.update(rollout, agent.plan(length))
        progress.update += 1
        if update in wanted:
            theirs = laid(trained(update)["runner_state"][0].params)
            found[update] = apart(agent.weights, theirs, (theirs - start).abs().max().item())
    rows += [dict(what=f"weights after {update} updates ({2 * update} gradient steps: acting, targets, loss, gradient, clipping, schedules, RAdam)", digits=value) for update, value in found.items()]
    return rows


# ---- BTR ----

def btr_pairs(theirs, ours):
    "Their parameters and ours, in pairs; what is no parameter (noise, directions of the spectral norm) is copied."
    blocks, pairs = [m for m in ours.features if isinstance(m, torch.nn.Sequential)], []
    for a, block in zip(list(theirs.conv)[:3], blocks):
        pairs += [(a.conv.weight, block[0].weight), (a.conv.bias, block[0].bias)]
        for unit, mine in zip((a.residual_0, a.residual_1), (block[2], block[3])):
            for conv, layer in zip((unit.conv_0, unit.conv_1), (mine.first, mine.second)):
                norm = conv.parametrizations.weight
                pairs += [(norm.original, layer.weight), (conv.bias, layer.bias)]
                layer.u.copy_(norm[0]._u)
                layer.v.copy_(norm[0]._v)
    pairs += [(theirs.cos_embedding.weight, ours.embedding.linear.weight), (theirs.cos_embedding.bias, ours.embedding.linear.bias)]
    ours.embedding.steps = theirs.pis.flatten()
    value, advantage = theirs.dueling.value_branch, theirs.dueling.advantage_branch
    for a, b in zip((value[0], value[2], advantage[0], advantage[2]), (ours.value.hidden, ours.value.out, ours.advantage.hidden, ours.advantage.out)):
        pairs += [(a.weight_mu, b.weight), (a.weight_sigma, b.weight_sigma), (a.bias_mu, b.bias), (a.bias_sigma, b.bias_sigma)]
        b.noise_out, most = a.bias_epsilon.clone(), a.bias_epsilon.abs().argmax()
        b.noise_in = a.weight_epsilon[most] / a.bias_epsilon[most]
    return pairs


class Memory:
    "In the place of their replay: keeps the priorities that it is told."
    priority_weight = 0.4
    def __init__(self, *a, **k): self.told = []
    def update_priorities(self, slots, priorities): self.told.append(priorities)


def btr(folder, steps=5, batch=16):
    "The gradient steps of BTR's authors beside ours, on the same batches, with the same levels and noise and no power iterations."
    given = {"torchvision": module("torchvision"), "torchvision.utils": module("u", save_image=None), "memory": module("memory", ReplayMemory=Memory),
             "ExperienceReplay": module("ExperienceReplay", RegularReplayMemory=Memory), "matplotlib": module("matplotlib"), "matplotlib.pyplot": module("pyplot")}
    with double(), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        networks, theirs = {"__name__": "networks"}, {"__name__": "Agent"}
        with standing_in(given):
            exec(compile((folder/"networks.py").read_text(encoding="utf-8"), "networks.py", "exec"), networks)
            with standing_in({"networks": module("networks", **{k: v for k, v in networks.items() if not k.startswith("__")})}):
                exec(compile((folder/"Agent.py").read_text(encoding="utf-8"), "Agent.py", "exec"), theirs)
        torch.manual_seed(0)
        author = theirs["Agent"](6, (4, 84, 84), "cpu", 2, "compared", 10**8, batch_size=batch)
        for net in (author.net, author.tgt_net):
            net.pis = net.pis.double()
            for m in net.modules():
                if isinstance(m, torch.nn.utils.parametrizations._SpectralNorm): m.eval()   # no power iteration
        author.env_steps = author.min_sampling_size
        config = replace(configure("btr", preset="paper", controller="fixed").agent, replay_size=64, optimizer="adamw", adam_eps=0.005 / batch, munchausen_policy="online")
        ours = BTR(config, gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6), 2, Progress(1))
        with torch.no_grad():
            pairs = btr_pairs(author.net, ours.net)
            rows = [dict(what="deviations that the noise begins with", digits=max(apart(a, b) for a, b in pairs[-16:][1::2]))]
            for a, b in pairs: b.copy_(a)
        start, draws, drawn, told = flat(a for a, _ in pairs), torch.Generator().manual_seed(1), [], []
        ours.net.draw = ours.target.draw = lambda generator: None
        ours.net.iterate = lambda: None
        ours._rand = lambda n, k: drawn.pop(0)
        ours.replay.update_priorities = lambda slots, priorities: told.append(priorities)
        found, real = dict(loss=0.0, weights=0.0), torch.rand
        for _ in range(steps):
            b = types.SimpleNamespace(obs=torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8, generator=draws), next_obs=torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8, generator=draws),
                                      actions=torch.randint(6, (batch,), generator=draws), rewards=torch.randn(batch, generator=draws), weights=real(batch, generator=draws), slots=None)
            over = real(batch, generator=draws) < 0.2
            b.discounts = 0.997**3 * (~over).double()
            def sample():
                with torch.no_grad():
                    for a, mine in ((author.net, ours.net), (author.tgt_net, ours.target)):
                        for x, y in btr_pairs(a, mine):
                            if mine is ours.target: y.copy_(x)
                return b.obs, b.rewards, b.actions, b.next_obs, over, b.weights, None, 0, 0  # noqa: B023 (called in this round)
            author.sample = sample
            def recorded(*size):
                drawn.append(real(*size, generator=draws))
                return drawn[-1]
            with mock.patch("torch.rand", recorded): author.learn_call()
            ours._gradient_step(b)
            found["loss"] = max(found["loss"], apart(told[-1], author.memories[0].told[-1]))
            after = flat(a for a, _ in pairs)
            found["weights"] = max(found["weights"], apart(flat(b for _, b in pairs), after, (after - start).abs().max()))
    return rows + [dict(what=f"priorities of {steps} batches (forward passes, Munchausen targets, with ends)", digits=found["loss"]),
                   dict(what=f"weights after each of {steps} gradient steps (loss, gradient of {len(start):,} parameters, clipping, AdamW), with the log-policy of the online network", digits=found["weights"])]


# ---- the table ----

LEFT_OUT = {
    "abs": "not compared here: acting (its generator is the process's own), evaluation, the PQN that reads gradient noise, a whole run with a size that changes (as released that raises a TypeError at its first measurement)",
    "abs_ppo": "not compared here: the wrappers (their pinned Gymnasium is another version), the sizes of ABS(KL), the divergence",
    "cleanrl": "not compared here: the wrappers (its pinned Gymnasium is another version), acting, first weights",
    "purejaxql": "not compared here: exploration, shuffled minibatches, its games in JAX, its Atari script, returns of a whole run",
    "btr": "not compared here: acting, replay and what is drawn from it, n-step returns, the noise's and the levels' own draws, power iterations, a whole run",
}
DEVIATIONS = {
    "abs": "none in `paper` in what was compared; `paper_masked`, which studies use, leaves autoreset rows out and bootstraps where a time limit cut an episode off",
    "abs_ppo": "none in `paper` in what was compared; EnvPool's reset takes a step of its own, whose row is masked",
    "cleanrl": "none in `paper` in what was compared; EnvPool's reset takes a step of its own, whose row is masked",
    "purejaxql": "RAdam, from the sixth gradient step on: optax computes the rectification in single precision, where it cancels; torch in double precision, as the formula means it. Games: MinAtar's own, from which those in JAX were rewritten. Evaluation: whole episodes, where purejaxql counts those that end within 1,000 steps",
    "btr": "`paper` takes Adam and the log-policy of the target network, as the paper has it, where the code has AdamW and the online network; both were set as in the code for this comparison. The other choices in which it differs, each with its reason, are listed in the notebook `agents/11_btr`",
}
TITLES = {
    "abs": ("PQN, PQN-L and ABS, preset `paper`", "daisophila/ABS, `algos/pqn_atari_envpool_ours.py`"), "abs_ppo": ("PPO, preset `paper`", "daisophila/ABS, `algos/ppo_continuous_action_ours.py`"),
    "cleanrl": ("PPO, preset `paper`", "vwxyzjn/cleanrl, `cleanrl/ppo_continuous_action.py`"), "purejaxql": ("PQN, preset `purejaxql_minatar`", "mttga/purejaxql, `purejaxql/pqn_minatar.py`"),
    "btr": ("BTR, preset `paper`", "VIPTankz/BeyondTheRainbow, `Agent.py` and `networks.py`"),
}


def of_abs(folder):
    rows, names = pqn_of_abs(folder, "pqn", 4)
    large, _ = pqn_of_abs(folder, "pqn-l", 2, envs=4)
    return [*rows, *(row | dict(what=f"PQN-L: {row['what']}") for row in large), sizes_of_abs(names)]


COMPARISONS = {
    "abs": ("abs", of_abs), "abs_ppo": ("abs", lambda folder: ppo(folder/"algos"/"ppo_continuous_action_ours.py", 3, dict(adapt_rollout=False))),
    "cleanrl": ("cleanrl", lambda folder: ppo(folder/"cleanrl"/"ppo_continuous_action.py", 3, {})), "purejaxql": ("purejaxql", purejaxql), "btr": ("btr", btr),
}


def commit(folder):
    "The commit of a checkout, in short."
    found = subprocess.run(["git", "-C", folder, "log", "-1", "--format=%h, %cs"], capture_output=True, text=True, encoding="utf-8")
    return found.stdout.strip() or "unknown"


def digits(row): return "exact" if row.get("exact") or row["digits"] == 0 else f"{row['digits']:.0e}".replace("e-0", "e-")


def written(results):
    "The table, as Markdown."
    lines = ["# How closely the agents agree with their authors' code", "",
             "Same first weights, same rollouts, same shuffles; a number is the largest difference as a share of the largest number of its kind (of weights: of how far they have moved). "
             "All in double precision but purejaxql, which is in single precision. Made by `benchmarks/faithfulness.py`, which imports their code and holds none of it.", "",
             "| agent | published code | compared | largest difference |", "|---|---|---|---|"]
    for key, (agent, code) in TITLES.items():
        found = results.get(key)
        if not found: lines.append(f"| {agent} | {code} | nothing: it was not run | – |")
        for row in (found or {}).get("rows", ()): lines.append(f"| {agent} | {code} ({found['commit']}) | {row['what']} | {digits(row)} |")
    lines += ["", "## Deviations, and what was not compared", ""]
    lines += [f"- **{agent}**, {code}. Deviations: {DEVIATIONS[key]}. {LEFT_OUT[key][0].upper()}{LEFT_OUT[key][1:]}." for key, (agent, code) in TITLES.items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("abs", "cleanrl", "purejaxql", "btr"): parser.add_argument(f"--{name}", type=Path, help="a clone of the repository")
    given = vars(parser.parse_args())
    path = RESULTS/"faithfulness.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    torch.set_num_threads(1)
    for key, (source, compare) in COMPARISONS.items():
        if given[source] is None: print(f"{key}: left out, no --{source}"); continue
        try: rows = compare(given[source].resolve())
        except (ImportError, OSError, AbsLabError) as e: print(f"{key}: left out, {type(e).__name__}: {e}"); continue
        results[key] = dict(commit=commit(given[source]), torch=torch.__version__, gymnasium=gym.__version__, **(dict(jax=sys.modules["jax"].__version__) if key == "purejaxql" else {}), rows=rows)
        for row in rows: print(f"{key}: {row['what']}: {digits(row)}")
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(written(results), encoding="utf-8")


if __name__ == "__main__": main()
