"""How fast PQN trains on this machine: against a plain script, and against the environments alone.

    python benchmarks/pqn_speed.py                 the whole of it, under 15 minutes on two cores
    python benchmarks/pqn_speed.py --device cuda   the same on a GPU (needs torch, numpy, gymnasium, envpool, safetensors)
    python benchmarks/pqn_speed.py --quick         a smoke run with tiny sizes, whose numbers mean nothing

Contenders take turns, in rounds, each in a process of its own, and the order rotates. A ratio is taken within each round; its median
and its range over the rounds are given. The best setting of a contender is chosen after the fact, for all contenders alike.
Exploration stays at ε ≈ 1 throughout (the first minutes of a long run), so that all contenders, and the random actions of the
ceiling, play the same kind of game. Nothing is asserted about speed.
"""
import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import envpool
import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

from abs_lab.agents import pqn
from abs_lab.runs.config import configure
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import Progress
from abs_lab.core.returns import q_lambda
from abs_lab.runs.provenance import provenance
from abs_lab.core.train import train

FOREVER = 10**9  # environment steps: no schedule moves, and no loop ends, while it is timed


def synchronise(device):
    if device.startswith("cuda"): torch.cuda.synchronize()


class Clock:
    "Seconds by part of the work; with `sync`, the device finishes before each reading."
    def __init__(self, device="cpu", sync=False):
        self.device, self.sync, self.spent, self.last = device, sync, Counter(), time.perf_counter()

    def lap(self, part=None):
        "Book the time since the last reading under `part`."
        if self.sync: synchronise(self.device)
        now = time.perf_counter()
        if part: self.spent[part] += now - self.last
        self.last = now

    def around(self, function, part):
        "The function, with its time booked under `part`."
        def timed(*args, **kwargs):
            if self.sync: synchronise(self.device)
            began = time.perf_counter()
            out = function(*args, **kwargs)
            if self.sync: synchronise(self.device)
            self.spent[part] += time.perf_counter() - began
            return out
        return timed


# ---- the contenders: each yields (environment steps, rollout length, seconds by part) once per update ----

def ours(config, device, controller=None, clock=None):
    "abs_lab's loop, through its public interface."
    envs = VecEnvs(config.env, config.seed, "train", device)
    progress = Progress(FOREVER)
    agent = pqn.PQN(config.agent, envs.obs_space, envs.action_space, config.env.num_envs, progress, config.seed, device)
    if clock:
        envs.send, envs.receive = clock.around(envs.send, "environment"), clock.around(envs.receive, "environment")
        agent.act, agent.update = clock.around(agent.act, "acting"), clock.around(agent.update, "learning")
    for s in train(agent, envs, replace(config.meter), controller or replace(config.controller), progress):
        envs.drain_log()  # a recorded run writes the actions out
        yield s.plan.rollout * config.env.num_envs, s.plan.rollout, s.seconds


def plain_network(obs_shape, n_actions):
    "The networks of REFERENCE.md, as a script spells them: images (Nature CNN), vectors (128-128)."
    def layer(module):
        nn.init.orthogonal_(module.weight, 2 ** 0.5)
        nn.init.zeros_(module.bias)
        return module
    if len(obs_shape) == 1:
        return nn.Sequential(layer(nn.Linear(obs_shape[0], 128)), nn.LayerNorm(128), nn.ReLU(),
                             layer(nn.Linear(128, 128)), nn.LayerNorm(128), nn.ReLU(), layer(nn.Linear(128, n_actions)))
    return nn.Sequential(layer(nn.Conv2d(4, 32, 8, stride=4)), nn.LayerNorm([32, 20, 20]), nn.ReLU(),
                         layer(nn.Conv2d(32, 64, 4, stride=2)), nn.LayerNorm([64, 9, 9]), nn.ReLU(),
                         layer(nn.Conv2d(64, 64, 3, stride=1)), nn.LayerNorm([64, 7, 7]), nn.ReLU(), nn.Flatten(),
                         layer(nn.Linear(3136, 512)), nn.LayerNorm(512), nn.ReLU(), layer(nn.Linear(512, n_actions)))


def plain_returns(rewards, dones, values, next_value, gamma, lam):
    "The λ-return, backwards, as a script spells it."
    returns = torch.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        ahead = next_value if t == len(rewards) - 1 else values[t + 1]
        trace = next_value if t == len(rewards) - 1 else returns[t + 1]
        returns[t] = rewards[t] + gamma * (1 - dones[t]) * (lam * trace + (1 - lam) * ahead)
    return returns


def plain(config, device, env_threads=None, clock=None):
    """A plain PQN script in the manner of CleanRL, with the arithmetic of the preset: float32 observations in storage, whole
    minibatches forward and backward, fresh tensors every step, a Python loop over the environments for finished episodes.
    It trains on autoreset rows and takes a truncation for a termination, as the published scripts do, and measures nothing."""
    a, N, T = config.agent, config.env.num_envs, config.controller.size
    env = make_env(config, env_threads)
    shape, A = env.single_observation_space.shape, int(env.single_action_space.n)
    scale, clock = 255.0 if len(shape) == 3 else 1.0, clock or Clock()
    net = plain_network(shape, A).to(device)
    optimizer = torch.optim.RAdam(net.parameters(), lr=a.lr)
    obs = torch.zeros((T, N, *shape), device=device)
    actions, rewards, dones, values = (torch.zeros((T, N), device=device) for _ in range(4))
    next_obs, step = torch.Tensor(env.reset()[0]).to(device), 0
    played, finished = np.zeros(N), []
    while True:
        clock.lap()
        for t in range(T):
            step += N
            epsilon = max(a.epsilon_start + (a.epsilon_end - a.epsilon_start) * step / (a.epsilon_fraction * FOREVER), a.epsilon_end)
            obs[t] = next_obs
            clock.lap("targets and bookkeeping")
            with torch.no_grad():
                q = net(next_obs / scale)
                best = torch.argmax(q, dim=1)
                values[t] = q[torch.arange(N), best]
            explore = torch.rand(N, device=device) < epsilon
            action = torch.where(explore, torch.randint(0, A, (N,), device=device), best)
            actions[t] = action
            chosen = action.cpu().numpy().astype(np.int32)
            clock.lap("acting")
            following, reward, terminated, truncated, info = env.step(chosen)
            clock.lap("environment")
            done = terminated | truncated
            rewards[t] = torch.tensor(reward * config.env.reward_scale, dtype=torch.float32).to(device).view(-1)
            dones[t] = torch.Tensor(done).to(device)
            next_obs = torch.Tensor(following).to(device)
            played += info["reward"] if "reward" in info else reward
            over = info["terminated"] if "terminated" in info else done
            for i, ended in enumerate(over):
                if ended: finished.append((step, played[i])); played[i] = 0
        with torch.no_grad():
            returns = plain_returns(rewards, dones, values, net(next_obs / scale).max(1).values, a.gamma, a.lam)
        rows = obs.reshape(-1, *shape), actions.reshape(-1).long(), returns.reshape(-1)
        clock.lap("targets and bookkeeping")
        for _ in range(max(2 * T // 32, 2)):
            order = torch.randperm(T * N, device=device)
            for chosen in order.split(T * N // a.num_minibatches):
                x, act, target = (r[chosen] for r in rows)
                taken = net(x / scale).gather(1, act.unsqueeze(-1)).squeeze(-1)
                loss = nn.functional.mse_loss(taken, target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), a.max_grad_norm)
                optimizer.step()
        loss.item()  # such scripts log it
        clock.lap("learning")
        yield T * N, T, None


SYNC = "SyncVectorEnv"  # in the place of EnvPool's threads: Gymnasium's own environments, in one Python loop


def make_env(config, env_threads):
    "EnvPool as a script makes it, with its own number of threads when none is given; or Gymnasium's environments, one after the other."
    if env_threads == SYNC: return gym.make_vec(config.env.env_id, config.env.num_envs, "sync")
    options = dict(num_threads=env_threads) if env_threads else {}
    if config.env.episodic_life: options |= dict(episodic_life=True, reward_clip=True)
    return envpool.make(config.env.env_id, env_type="gymnasium", num_envs=config.env.num_envs, seed=config.seed, **options)


def gymnasium_has(env_id):
    "Whether Gymnasium can make it here (LunarLander needs the package Box2D)."
    try: gym.make(env_id).close()
    except gym.error.Error: return False
    return True


def ceiling(config, env_threads):
    "The environments alone, with random actions drawn beforehand."
    env, N, T = make_env(config, env_threads), config.env.num_envs, config.controller.size
    actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (64, N), dtype=np.int32)
    env.reset()
    while True:
        for t in range(T): env.step(actions[t % 64])
        yield T * N, T, None


# ---- timing ----

@dataclass(frozen=True)
class Setting:
    "In what a contender is free to choose."
    env_threads: object     # EnvPool's; None: its own choice; SYNC: Gymnasium's environments instead
    torch_threads: int
    passive: bool = False   # OMP_WAIT_POLICY=PASSIVE: torch's threads sleep while they wait, and leave the cores to EnvPool's

    def __str__(self):
        parts = [] if self.env_threads == SYNC else [f"EnvPool threads {self.env_threads or 'its own choice'}"]
        return ", ".join(parts + [f"torch threads {self.torch_threads}"] * bool(self.torch_threads) + ["passive waiting"] * self.passive)


def serve(pipe, kind, parameters, setting, device):
    "A contender's process: advance by as many updates as the pipe says, answer with environment steps and seconds."
    config = configure(**parameters)
    if setting.torch_threads: torch.set_num_threads(setting.torch_threads)
    if kind == "abs_lab": loop = ours(replace(config, env=replace(config.env, env_threads=setting.env_threads)), device)
    else: loop = (ceiling(config, setting.env_threads) if kind == "ceiling" else plain(config, device, setting.env_threads))
    for updates in iter(pipe.recv, None):
        synchronise(device)
        began = time.perf_counter()
        steps = sum(next(loop)[0] for _ in range(updates))
        synchronise(device)
        pipe.send((steps, time.perf_counter() - began))


class Contender:
    "A loop in a process of its own, idle until it is its turn."
    def __init__(self, kind, config, setting, device, default):
        self.kind, self.setting, self.default, self.updates, self.speeds = kind, setting, default, 1, []
        self.name = f"{'environments alone' if kind == 'ceiling' else kind}, {setting}"
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        if setting.passive: os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when the new process loads torch
        self.process = context.Process(target=serve, args=(other, kind, config.flat(), setting, device), daemon=True)
        self.process.start()
        if setting.passive: del os.environ["OMP_WAIT_POLICY"]
        other.close()  # so that the end of the other process shows

    def run(self, updates):
        "Environment steps and seconds of some updates."
        try:
            self.pipe.send(updates)
            return self.pipe.recv()
        except (EOFError, OSError): raise RuntimeError(f"{self.name} ended without an answer: see its message above") from None

    def close(self):
        self.pipe.send(None)
        self.process.join()


def interleave(contenders, rounds, seconds):
    "Warm up, then time every contender once per round; the order rotates."
    for c in contenders:
        c.run(1)
        c.updates = max(round(seconds / c.run(1)[1]), 1)
    for r in range(rounds):
        k = r % len(contenders)
        for c in contenders[k:] + contenders[:k]:
            steps, spent = c.run(c.updates)
            c.speeds.append(steps / spent)


def spread(values):
    return dict(median=median(values), min=min(values), max=max(values), rounds=len(values))


def ratio(a, b):
    "Of two contenders' speeds, round by round."
    return spread([x / y for x, y in zip(a.speeds, b.speeds)])


def best(contenders, kind):
    return max((c for c in contenders if c.kind == kind), key=lambda c: median(c.speeds))


def default(contenders, kind):
    return next(c for c in contenders if c.kind == kind and c.default)


# ---- what is measured ----

def race(config, entries, rounds, seconds, device):
    "abs_lab against plain scripts and the ceiling; entries are (kind, setting), and the first of a kind is its default setting."
    kinds = list(dict.fromkeys(kind for kind, _ in entries))
    all_ = [Contender(kind, config, setting, device, (kind, setting) == next(e for e in entries if e[0] == kind))
            for kind, setting in dict.fromkeys(entries)]
    interleave(all_, rounds, seconds)
    for c in all_: c.close()
    top, pairs = best(all_, "ceiling"), {}
    for which, pick in (("default", default), ("best", best)):
        one, *scripts = (pick(all_, kind) for kind in kinds if kind != "ceiling")
        for other in scripts:
            pairs[f"abs_lab / {other.kind}, each in its {which} setting ({one.setting} / {other.setting})"] = ratio(one, other)
        for c in (one, *scripts):
            pairs[f"{c.kind} in its {which} setting / environments alone ({c.setting} / {top.setting})"] = ratio(c, top)
    speeds = {c.name + (" (default)" if c.default and c.kind != "ceiling" else ""): spread(c.speeds) for c in all_}
    return dict(steps_per_second=speeds, ratios=pairs)


def meter_share(config, threads, updates, device):
    "The meter's share of the training time: at every update it is timed beside the update that it measures."
    torch.set_num_threads(threads)
    loop = ours(replace(config, meter=replace(config.meter, interval=1)), device)
    next(loop)
    seconds = [next(loop)[2] for _ in range(updates)]
    shares = {n: [s["measure"] / (n * (s["collect"] + s["learn"]) + s["measure"]) for s in seconds] for n in (50, 1)}
    return dict(measurement_seconds=spread([s["measure"] for s in seconds]),
                update_seconds=spread([s["collect"] + s["learn"] for s in seconds]),
                share={f"every {n} updates" if n > 1 else "every update": spread(v) for n, v in shares.items()})


def breakdown(config, threads, env_threads, updates, device):
    "Where the time goes, as shares of it: abs_lab and the plain script, both with the device in step with the clock."
    torch.set_num_threads(threads)
    out = {}
    at = replace(config, env=replace(config.env, env_threads=env_threads))
    for name, make in (("abs_lab", lambda clock: ours(at, device, clock=clock)), ("plain", lambda clock: plain(at, device, env_threads, clock))):
        clock = Clock(device, sync=True)
        published, pqn.q_lambda = pqn.q_lambda, clock.around(q_lambda, "targets")
        try:
            loop = make(clock)
            next(loop)
            clock.spent.clear()
            began = time.perf_counter()
            steps = sum(next(loop)[0] for _ in range(updates))
            total = time.perf_counter() - began
        finally: pqn.q_lambda = published
        spent = Counter(clock.spent)
        spent["learning"] -= spent.pop("targets", 0.0)
        spent["targets and bookkeeping"] = total - sum(spent[k] for k in ("environment", "acting", "learning"))
        out[name] = dict(shares={k: spent[k] / total for k in ("environment", "acting", "learning", "targets and bookkeeping")},
                         microseconds_per_step={k: 1e6 * v / steps for k, v in spent.items()})
    return out


class Walk:
    "A controller whose size takes a step of 8, up or down, after every update: 16, 24, …, 64."
    smallest, largest = 16, 64
    def __init__(self, seed): self.size, self.rng = 40, np.random.default_rng(seed)

    def __call__(self, measurement):
        near = [s for s in (self.size - 8, self.size + 8) if self.smallest <= s <= self.largest]
        self.size = int(self.rng.choice(near))
        return self.size


def changes(config, threads, updates, per_size, rounds, device):
    "Time per step of a run whose size changes at every update, over that of fixed runs at the same sizes."
    torch.set_num_threads(threads)
    sizes = range(16, 65, 8)
    fixed = {s: ours(replace(config, controller=replace(config.controller, size=s)), device) for s in sizes}
    walking, ratios, rows = ours(config, device, Walk(0)), [], []

    def timed(loop):
        synchronise(device)
        began = time.perf_counter()
        steps, size, _ = next(loop)
        synchronise(device)
        return size, steps, time.perf_counter() - began

    for _ in range(2): next(walking)
    for _ in range(rounds):
        walked = [timed(walking) for _ in range(updates)]
        at = {}
        for s in sorted({size for size, *_ in walked}):
            next(fixed[s])  # another size ran just before
            at[s] = median(timed(fixed[s])[2] for _ in range(per_size))
        steps, spent, expected = sum(n for _, n, _ in walked), sum(t for *_, t in walked), sum(at[s] for s, *_ in walked)
        ratios.append(spent / expected)
        per_step = dict(walk=1e6 * spent / steps, fixed=1e6 * expected / steps)
        rows.append(dict(sizes=[s for s, *_ in walked], microseconds_per_step=per_step))
    return dict(time_ratio=spread(ratios), rounds=rows, num_envs=config.env.num_envs)


def same_work(config):
    "The plain script does the preset's work: parameters, gradient steps, rows per step, λ-returns. Raises when it does not."
    envs = VecEnvs(config.env, 0)
    agent = pqn.PQN(config.agent, envs.obs_space, envs.action_space, config.env.num_envs, Progress(FOREVER))
    envs.close()
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert count(plain_network(envs.obs_space.shape, agent.n_actions)) == count(agent.net), "another network"
    plan, rng = agent.plan(config.controller.size), torch.Generator().manual_seed(0)
    assert plan.gradient_steps == config.agent.num_minibatches * max(2 * plan.rollout // 32, 2) and config.agent.loss_scale == 1, "another number of passes"
    rewards, values = torch.randn(2, 9, 5, generator=rng)
    done, last = torch.rand(9, 5, generator=rng) < 0.2, torch.randn(5, generator=rng)
    torch.testing.assert_close(plain_returns(rewards, done.float(), values, last, 0.99, 0.65),
                               q_lambda(rewards, done, torch.zeros_like(done), values, last, 0.99, 0.65))


# ---- the report ----

def number(x): return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"

def cells(s, form=number): return f"{form(s['median'])} | {form(s['min'])} – {form(s['max'])}"

def percent(x): return f"{100 * x:.2g} %"

def machine():
    "What a report says of where it was measured."
    origin = provenance()
    return {"CPU": origin["hardware"]["cpu"], "cores": origin["hardware"]["cores"], **{k: v for k, v in origin["versions"].items() if v}, "commit": origin["commit"]}


def write(found, markdown, name, out):
    "Results and report as NAME.json and NAME.md, or NAME-quick; the report is printed, too."
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}{'-quick' * found['quick']}"
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))


def table(head, rows): return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in rows), ""]


def markdown(r):
    out = ["# Speed of PQN" + (" (smoke run: the numbers mean nothing)" if r["quick"] else ""), ""]
    out += table(["", ""], [f"{k} | {v}" for k, v in r["machine"].items()])
    out += [f"Contenders take turns in rounds, each in a process of its own; medians over rounds, and the range. Steps are environment steps (Atari frames: × 4). {r['note']}", ""]
    for letter, task in (("a, c", "atari"), ("d, c", "lunar")):
        race_ = r[task]["race"]
        out += [f"## ({letter}) {r[task]['what']}", ""]
        out += table(["steps/s", "median", "range"], [f"{k} | {cells(v)}" for k, v in race_["steps_per_second"].items()])
        out += table(["ratio", "median", "range"], [f"{k} | {cells(v)}" for k, v in race_["ratios"].items()])
    out += ["## (b) The meter", "", "Time of one measurement, before and after an update, in the time of as many updates as the interval has.", ""]
    out += table(["", "share, median", "range"], [f"{r[t]['title']}, measured {k} | {cells(v, percent)}"
                                                  for t in ("atari", "lunar") for k, v in r[t]["meter"]["share"].items()])
    out += ["## (e) A change of size", "", "Time per step of a run whose L changes at every update (16–64, steps of 8), over that of fixed runs at the same sizes.", ""]
    out += table(["", "time ratio, median", "range"], [f"{r[t]['title']}, {r[t]['changes']['num_envs']} environments | {cells(r[t]['changes']['time_ratio'])}"
                                                       for t in ("atari", "lunar")])
    parts = ("environment", "acting", "learning", "targets and bookkeeping")
    out += ["## Where the time goes", "", "Share of the time (microseconds per environment step), in one setting of threads for both.", ""]
    out += table(["", *parts], [f"{r[t]['title']}, {who} | " + " | ".join(f"{percent(b['shares'][p])} ({number(b['microseconds_per_step'][p])})" for p in parts)
                                for t in ("atari", "lunar") for who, b in r[t]["breakdown"].items()])
    return "\n".join(out)


def measured(config): return f"measured every {config.meter.interval} updates" if config.meter.interval > 1 else "measured at every update"


def measure(device, quick, cores, rounds):
    "Everything, as one dict."
    few = lambda small, full: small if quick else full
    spare = min(2, cores)
    base = configure("pqn", "paper", "fixed", env_id="Breakout-v5", num_envs=few(8, 128), size=few(16, 32))
    lunar = configure("pqn", "classic", "fixed", env_id="LunarLander-v3", num_envs=few(8, 64), size=few(16, 32))
    for config in (base, lunar): same_work(config)
    rounds = few(1, rounds)
    small = replace(base, env=replace(base.env, num_envs=few(4, 128 if device.startswith("cuda") else 32), env_threads=cores))

    def say(what): print(f"… {what}", file=sys.stderr, flush=True)

    say("Atari: abs_lab, the plain script and the environments alone")
    entries = [("abs_lab", Setting(cores, cores)), ("abs_lab", Setting(cores, cores, True)), ("abs_lab", Setting(1, cores)),
               ("plain", Setting(None, cores)), ("plain", Setting(None, cores, True)), ("ceiling", Setting(1, 0)), ("ceiling", Setting(cores, 0))]
    atari = dict(title="Breakout-v5", what=f"Breakout-v5, preset paper, {base.env.num_envs} × {base.controller.size}, {measured(base)}",
                 race=race(base, few(entries[::3], entries), rounds, few(0, 4), device))
    say("Atari: the meter, the parts, changes of size")
    wide = replace(base, env=replace(base.env, env_threads=cores))
    atari |= dict(meter=meter_share(wide, cores, few(1, 4), device), breakdown=breakdown(base, cores, cores, few(1, 2), device),
                  changes=changes(small, cores, few(3, 12), 1, few(1, 3), device))
    say("LunarLander: abs_lab, the plain script and the environments alone")
    grid = [Setting(e, t) for t in (1, spare) for e in (spare, 1)]
    entries = [("abs_lab", setting) for setting in (*grid, Setting(spare, spare, True))]
    entries += [("plain", setting) for setting in (Setting(None, cores), Setting(None, cores, True), *grid)]
    if gymnasium_has(lunar.env.env_id): entries += [(f"plain on {SYNC}", Setting(SYNC, t)) for t in (cores, 1)]
    entries += [("ceiling", Setting(1, 0)), ("ceiling", Setting(spare, 0))]
    flat = dict(title="LunarLander-v3", what=f"LunarLander-v3, preset classic, {lunar.env.num_envs} × {lunar.controller.size}, {measured(lunar)}",
                race=race(lunar, few([e for e in entries if e[1] in (Setting(1, 1), Setting(1, 0))], entries), rounds, few(0, 1.5), device))
    say("LunarLander: the meter, the parts, changes of size")
    flat |= dict(meter=meter_share(lunar, 1, few(2, 30), device), breakdown=breakdown(lunar, 1, 1, few(1, 20), device),
                 changes=changes(lunar, 1, few(3, 20), few(1, 5), few(1, 5), device))
    return dict(atari=atari, lunar=flat)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, default=None, help="cores to use (default: all; one with --quick)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the contenders take turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON and the Markdown file")
    args = parser.parse_args()
    args.threads = args.threads or (1 if args.quick else os.cpu_count())
    origin, began, load = provenance(), time.perf_counter(), os.getloadavg()[0]
    results = measure(args.device, args.quick, args.threads, args.rounds)
    machine = {"device": origin["hardware"]["gpu"] if args.device.startswith("cuda") else "CPU", "CPU": origin["hardware"]["cpu"],
               "cores": origin["hardware"]["cores"], "cores used": args.threads, "system": platform.platform(),
               **{k: v for k, v in origin["versions"].items() if v}, "commit": origin["commit"],
               "load average before (a quiet machine: near 0)": f"{load:.1f}", "minutes": f"{(time.perf_counter() - began) / 60:.1f}"}
    note = (f"Passive waiting: started with OMP_WAIT_POLICY=PASSIVE. abs_lab measures divergence as its preset says; the plain script measures nothing. 'Its own choice' is what EnvPool takes when "
            f"no number is given. {SYNC}: the same script on Gymnasium's own environments, one after the other in Python, as CleanRL's script for "
            f"classic control has them" + ("." if gymnasium_has("LunarLander-v3") else " (left out here: Gymnasium's Box2D is not installed)."))
    results = dict(quick=args.quick, machine=machine, note=note) | results
    name = f"pqn_speed-{'gpu' if args.device.startswith('cuda') else 'cpu'}{'-quick' if args.quick else ''}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = markdown(results)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {args.out / name}.json, .md", file=sys.stderr)


if __name__ == "__main__": main()
