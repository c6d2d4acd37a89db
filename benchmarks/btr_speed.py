"""What BTR's replay, update and whole loop cost on this machine, beside a plain implementation of the same algorithm.

    python benchmarks/btr_speed.py                 all parts; ten minutes on two cores, and 8 GB of memory
    python benchmarks/btr_speed.py --device cuda   the same on a GPU (needs torch, numpy, gymnasium, envpool, safetensors)
    python benchmarks/btr_speed.py replay          one part: replay, update, loop, checkpoint
    python benchmarks/btr_speed.py --quick         a smoke run with tiny sizes, whose numbers mean nothing

Seconds are of the clock; beside them stand those of the processor, which other work on the machine changes less. Contenders of the
update and of the loop take turns, and ratios are taken within a round. The plain network is spelled as scripts spell it, with torch's
spectral norm, which turns its power iteration in every forward pass of either network (ours: once a gradient step). The plain loop is
written here in the manner of single-file scripts: the same EnvPool, replay that keeps whole stacks of frames, a sum tree with a Python loop
over samples (the authors' own code has one frame a row and a tree without such a loop), an n-step queue for each environment, the whole
network asked in acting, stepping and learning in turn. Nothing is asserted about speed.
"""
import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import median

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

from abs_lab.agents.btr import BTR, BTRConfig
from abs_lab.runs.config import configure
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import Progress
from abs_lab.agents.replay import Batch, Replay, bytes_of
from abs_lab.runs.runner import Run
from abs_lab.runs.provenance import provenance
from abs_lab.core.train import train

PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def timed(function, repeat, device="cpu"):
    "Median milliseconds of a call: of the clock, and of the processor."
    clock, processor = [], []
    for _ in range(repeat + 1):
        if device != "cpu": torch.cuda.synchronize()
        c, p = time.perf_counter(), time.process_time()
        function()
        if device != "cpu": torch.cuda.synchronize()
        clock.append(time.perf_counter() - c); processor.append(time.process_time() - p)
    return dict(ms=round(1e3 * median(clock[1:]), 3), cpu_ms=round(1e3 * median(processor[1:]), 3))


def resident(): return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


def full_replay(capacity, num_envs=64, device="cpu"):
    "A store filled with random frames and priorities, as it is after many rows."
    replay, rng = Replay(capacity, num_envs, PIXELS, device=device), np.random.default_rng(0)
    for frames in replay.columns["frames"]: frames.random_(0, 256)
    for name, value in dict(actions=1, rewards=0.5, terminated=False, truncated=False, real=True, age=3).items(): replay.columns[name].fill_(value)
    replay.columns["terminated"].bernoulli_(0.002)
    slots = np.arange(len(replay.flat["age"]))
    replay.rows = 3 * replay.length
    replay.tree.set(slots, rng.random(len(slots)) + 0.1)
    replay.stored = len(slots)
    return replay


def replay_part(args):
    "Memory of a full store, and the time of a draw: indices alone, and with the frames."
    capacity, batch = (2**12, 32) if args.quick else (2**20, 256)
    before = resident()
    replay = full_replay(capacity)
    taken, generator = resident() - before, torch.Generator().manual_seed(0)
    out = dict(capacity=capacity, batch=batch, memory_gb=round(taken / 1e9, 3), reckoned_gb=round(bytes_of(capacity, PIXELS) / 1e9, 3))
    repeat = 5 if args.quick else 200
    out["draw"] = timed(lambda: replay.sample(batch, generator), repeat)
    whole, replay.observations = replay.observations, lambda slots: slots
    out["indices, returns and weights"] = timed(lambda: replay.sample(batch, generator), repeat)
    replay.observations = whole
    slots = replay.sample(batch, generator).slots
    mass = torch.rand(batch, generator=generator, dtype=torch.float64).numpy() * replay.tree.total
    out["indices"] = timed(lambda: replay.tree.find(mass), repeat)
    out["new priorities"] = timed(lambda: replay.update_priorities(slots, torch.rand(batch)), repeat)
    return out


# ---- a plain implementation of the same algorithm ----

class PlainNoisy(nn.Linear):
    "A factorised noisy layer that keeps its noise as a matrix, as scripts do."
    def __init__(self, i, o):
        super().__init__(i, o)
        self.ws, self.bs = nn.Parameter(torch.full((o, i), 0.5 / i ** 0.5)), nn.Parameter(torch.full((o,), 0.5 / i ** 0.5))
        self.register_buffer("we", torch.zeros(o, i)); self.register_buffer("be", torch.zeros(o))

    def redraw(self):
        f = lambda n: (x := torch.randn(n, device=self.ws.device)).sign() * x.abs().sqrt()
        out, into = f(self.out_features), f(self.in_features)
        self.we.copy_(torch.outer(out, into)); self.be.copy_(out)

    def forward(self, x): return F.linear(x, self.weight + self.ws * self.we, self.bias + self.bs * self.be)


class PlainUnit(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.a, self.b = (nn.utils.parametrizations.spectral_norm(layer()) for _ in range(2))
    def forward(self, x): return x + self.b(F.relu(self.a(F.relu(x))))


class Plain(nn.Module):
    "The network of BTR as a script spells it: for Atari's images, or for a vector of so many numbers."
    def __init__(self, n_actions, vector=None):
        super().__init__()
        conv, linear = lambda c: PlainUnit(lambda: nn.Conv2d(c, c, 3, padding=1)), lambda: PlainUnit(lambda: nn.Linear(128, 128))
        block = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.MaxPool2d(3, 2, 1), conv(o), conv(o))
        width, hidden, self.scale = (128, 128, 1) if vector else (2304, 512, 255)
        self.torso = nn.Sequential(nn.Linear(vector, 128), linear(), linear(), nn.ReLU()) if vector else nn.Sequential(block(4, 32), block(32, 64), block(64, 64), nn.ReLU(), nn.AdaptiveMaxPool2d(6), nn.Flatten())
        self.embed, self.pis = nn.Linear(64, width), torch.arange(64) * torch.pi
        stream = lambda o: nn.Sequential(PlainNoisy(width, hidden), nn.ReLU(), PlainNoisy(hidden, o))
        self.value, self.advantage = stream(1), stream(n_actions)

    def redraw(self):
        for m in self.modules():
            if isinstance(m, PlainNoisy): m.redraw()

    def forward(self, obs, taus):
        x = self.torso(obs.float() / self.scale)
        x = (x[:, None] * F.relu(self.embed(torch.cos(taus[..., None] * self.pis.to(taus))))).flatten(0, 1)
        a = self.advantage(x)
        return (self.value(x) + a - a.mean(1, keepdim=True)).view(len(obs), taus.shape[1], -1)


def plain_step(net, target, optimizer, b, c):
    "One gradient step, without replay."
    net.redraw(); target.redraw()
    B, rand = len(b.obs), lambda: torch.rand(len(b.obs), c.taus, device=b.obs.device)
    with torch.no_grad():
        z_next, q = target(b.next_obs, rand()), target(b.obs, rand()).mean(1)
        q_next = z_next.mean(1)
        log_next = c.temperature * F.log_softmax(q_next / c.temperature, 1)
        pi = F.softmax(q_next / c.temperature, 1)
        soft = (pi[:, None] * (z_next - log_next[:, None])).sum(2)
        bonus = (c.temperature * F.log_softmax(q / c.temperature, 1)).gather(1, b.actions[:, None])
        y = b.rewards[:, None] + c.munchausen_alpha * bonus.clamp(c.munchausen_floor, 0) + b.discounts[:, None] * soft
    taus = rand()
    z = net(b.obs, taus)[torch.arange(B), :, b.actions]
    error = y[:, None] - z[:, :, None]
    huber = F.huber_loss(z[:, :, None].expand_as(error), y[:, None].expand_as(error), reduction="none")
    loss = (b.weights[:, None] * ((taus[:, :, None] - (error.detach() < 0).float()).abs() * huber).sum(1).mean(1, keepdim=True)).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), c.max_grad_norm)
    optimizer.step()
    return loss.item(), error.detach().abs().sum(1).mean(1)  # such scripts log the loss


class PlainReplay:
    "A ring of whole transitions with a sum tree in Python."
    def __init__(self, capacity, alpha, space):
        self.capacity, self.alpha, self.at, self.highest, self.tree = capacity, alpha, 0, 1.0, [0.0] * (2 * capacity)
        self.obs, self.next_obs = (np.zeros((capacity, *space.shape), space.dtype) for _ in range(2))
        self.actions, self.rewards, self.discounts = np.zeros(capacity, np.int64), np.zeros(capacity, np.float32), np.zeros(capacity, np.float32)

    def add(self, obs, action, reward, discount, next_obs):
        i = self.at
        self.obs[i], self.actions[i], self.rewards[i], self.discounts[i], self.next_obs[i] = obs, action, reward, discount, next_obs
        self.set(i, self.highest)
        self.at = (i + 1) % self.capacity

    def set(self, i, priority):
        node = i + self.capacity
        self.tree[node] = priority
        while node > 1:
            node //= 2
            self.tree[node] = self.tree[2 * node] + self.tree[2 * node + 1]

    def sample(self, size, beta, device):
        found = []
        for part in range(size):
            mass, node = (part + np.random.rand()) / size * self.tree[1], 1
            while node < self.capacity:
                node *= 2
                if mass >= self.tree[node] and self.tree[node + 1] > 0: mass, node = mass - self.tree[node], node + 1
            found.append(node - self.capacity)
        slots, priority = np.array(found), np.array([self.tree[i + self.capacity] for i in found])
        weights = (priority / priority.min()) ** -beta
        there = [torch.from_numpy(np.asarray(x)).to(device) for x in (self.obs[slots], self.actions[slots], self.rewards[slots], self.discounts[slots],
                                                                      self.next_obs[slots], weights.astype(np.float32))]
        return Batch(slots, *there)

    def update(self, slots, errors):
        for i, error in zip(slots, errors.tolist()):
            priority = (error + 1e-6) ** self.alpha
            self.set(int(i), priority)
            self.highest = max(self.highest, priority)


def plain_loop(config, start, steps, batch, device):
    "A script's training loop on images or vectors: seconds of the clock and of the processor after `start`, and gradient steps."
    c, num_envs, made = config.agent, config.env.num_envs, VecEnvs(config.env)
    envs, obs, over, space = made.env, made.obs.numpy(), np.zeros(num_envs, bool), made.obs_space
    images = len(space.shape) > 1
    net, target = (Plain(envs.action_space.n, None if images else space.shape[0]).to(device) for _ in range(2))
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, eps=c.adam_eps)
    replay, queues, learnt, began = PlainReplay(16_384, c.alpha, space), [deque() for _ in range(num_envs)], 0, None
    for step in range(num_envs, steps + 1, num_envs):
        if step > start and began is None: began = time.perf_counter(), time.process_time()
        net.redraw()
        with torch.no_grad(): actions = net(torch.from_numpy(obs).to(device), torch.rand(num_envs, c.taus, device=device)).mean(1).argmax(1).cpu().numpy()
        actions = np.where(np.random.rand(num_envs) < 0.5, np.random.randint(0, envs.action_space.n, num_envs), actions)
        envs.send(actions)
        after, reward, terminated, truncated, _ = envs.receive()
        for i, queue in enumerate(queues):
            if over[i]: queue.clear(); continue                # the row in which EnvPool resets
            queue.append((obs[i], actions[i], np.sign(reward[i]) if images else reward[i]))
            if len(queue) == c.n_steps or terminated[i] or truncated[i]:
                while queue:
                    total = sum(c.gamma ** k * r for k, (_, _, r) in enumerate(queue))
                    replay.add(*queue[0][:2], total, 0.0 if terminated[i] else c.gamma ** len(queue), after[i])
                    queue.popleft()
                    if not (terminated[i] or truncated[i]): break
        obs, over = after, terminated | truncated
        if step <= start: continue
        for _ in range(max(round(num_envs * c.replay_ratio), 1)):
            if learnt % c.target_period == 0: target.load_state_dict(net.state_dict())
            b = replay.sample(batch, c.beta, device)
            replay.update(b.slots, plain_step(net, target, optimizer, b, c)[1])
            learnt += 1
    taken = time.perf_counter() - began[0], time.process_time() - began[1]
    made.close()
    return *taken, learnt


def products(batch, config, vector, actions, device):
    "A gradient step's products of matrices on vectors, and nothing else: the target network's for twice the batch, the online one's there and back."
    k = config.taus
    layers = [(1, vector, 128, False), *[(1, 128, 128, True)] * 4, (k, 64, 128, False), (k, 128, 256, True), (k, 256, actions, True)]  # rows of a transition, inputs, outputs, whether something that learns lies before
    made = [[torch.randn(*shape, device=device) for shape in ((2 * k * batch, i), (o, i), (2 * k * batch, o))] for k, i, o, _ in layers]
    def step():
        for (x, w, out), (k, *_, before) in zip(made, layers):
            half, by_w = k * batch, torch.empty_like(w)
            for rows in (2 * half, half): torch.mm(x[:rows], w.T, out=out[:rows])
            torch.mm(out[:half].T, x[:half], out=by_w)
            if before: torch.mm(out[:half], w, out=x[half:])
    return step


def in_turns(args, agents, b, plain, repeat, **others):
    "A gradient step of some agents and of the plain networks on one batch, and other steps, in turns: milliseconds, and plain over each."
    net, target = (module.to(args.device) for module in plain)
    optimizer, key, any_agent = torch.optim.Adam(net.parameters(), lr=1e-4, eps=1e-5), "cpu_ms" if args.device == "cpu" else "ms", next(iter(agents.values()))
    ours = {name: torch.inference_mode(bool(agent.chains))(agent._gradient_step) for name, agent in agents.items()}  # as `update` takes it
    steps = {name: lambda step=step: step(b) for name, step in ours.items()} | {"plain": lambda: plain_step(net, target, optimizer, b, any_agent.config)} | others
    rows, rounds = {name: [] for name in steps}, 2 if args.quick else args.rounds
    for n in range(rounds):
        for name in (steps if n % 2 == 0 else reversed(steps)): rows[name].append(timed(steps[name], repeat, args.device))
    ratios = {name: [p[key] / o[key] for p, o in zip(rows["plain"], rows[name])] for name in [*agents, *others]}
    return dict(batch=len(b.actions), rounds=rounds, **rows, **{f"plain_over_{name}": dict(median=round(median(r), 2), range=[round(min(r), 2), round(max(r), 2)]) for name, r in ratios.items()})


def update_part(args):
    "A gradient step at the published batch, and on a vector with the gradient by autograd and written down: ours against the plain one, on the same batch."
    agent = BTR(BTRConfig(replay_size=4096), PIXELS, gym.spaces.Discrete(6), 64, Progress(10**9), device=args.device)
    agent.replay = full_replay(4096, device=args.device)
    out = dict(images=in_turns(args, dict(ours=agent), agent.replay.sample(4 if args.quick else 256, agent.sampler), (Plain(6), Plain(6)), 1 if args.device == "cpu" else 20))
    config, space = configure("btr", env_id="LunarLander-v3", preset="general").agent, gym.spaces.Box(-1, 1, (8,))
    agents = {name: BTR(replace(config, backprop=name), space, gym.spaces.Discrete(4), 16, Progress(10**9), device=args.device) for name in ("autograd", "written")}
    for size in (64, 256):
        rand = lambda *shape: torch.randn(shape, device=args.device)
        b = Batch(np.arange(size), rand(size, 8), torch.randint(4, (size,), device=args.device), rand(size), torch.full((size,), 0.97, device=args.device), rand(size, 8), torch.ones(size, device=args.device))
        out[f"vectors, {size}"] = in_turns(args, agents, b, (Plain(4, 8), Plain(4, 8)), 5 if args.quick else 100, products=products(size, config, 8, 4, args.device))
    return out


def our_loop(env_id, start, steps, device, **params):
    "Seconds of the clock and of the processor after `start`, gradient steps, and where the seconds went."
    config = configure("btr", env_id=env_id, controller="fixed", learning_starts=start, replay_size=50_000, **params)  # measured as often as in a run of the preset's length
    envs, progress = VecEnvs(config.env, 0, "train", device), Progress(config.total_steps)
    agent = BTR(config.agent, envs.obs_space, envs.action_space, config.env.num_envs, progress, device=device)
    parts, began = {}, None
    for s in train(agent, envs, config.meter, config.controller, progress):
        if s.step >= start and began is None: began = time.perf_counter(), time.process_time()
        elif began: parts = {k: parts.get(k, 0) + v for k, v in s.seconds.items()}
        if s.step >= steps: break
    taken = time.perf_counter() - began[0], time.process_time() - began[1]
    envs.close()
    return *taken, s.gradient_steps, {k: round(v, 2) for k, v in parts.items()}


def loop_part(args):
    "The whole loop on Atari at the published batch, ours with and without overlap and the plain one, in turns; the same on a vector task; and ours on small tasks."
    num_envs, start, updates, batch, rounds = (4, 400, 2, 8, 2) if args.quick else (64, 2_048, 400 if args.device != "cpu" else 4, 256, min(args.rounds, 3))
    steps = start + num_envs * updates
    ours = dict(size=batch, num_envs=num_envs, replay_ratio=1 / num_envs, interval=10**9)
    how = {"ours": lambda: our_loop("Pong-v5", start, steps, args.device, **ours), "ours, no overlap": lambda: our_loop("Pong-v5", start, steps, args.device, overlap=False, **ours),
           "plain": lambda: plain_loop(configure("btr", env_id="Pong-v5", controller="fixed", num_envs=num_envs, replay_ratio=1 / num_envs), start, steps, batch, args.device)}
    task, first, last = "LunarLander-v3", 500 if args.quick else 2_000, 600 if args.quick else 5_000
    how |= {"ours, LunarLander": lambda: our_loop(task, first, last, args.device, preset="general", size=64),
            "plain, LunarLander": lambda: plain_loop(configure("btr", env_id=task, controller="fixed", preset="general"), first, last, 64, args.device)}
    rows = {name: [] for name in how}
    for n in range(rounds):
        for name in (how if n % 2 == 0 else reversed(how)): rows[name].append(how[name]())
    out = {name: dict(ms_per_gradient_step=[round(1e3 * clock / learnt, 1) for clock, _, learnt, *_ in found], cpu_ms=[round(1e3 * cpu / learnt, 1) for _, cpu, learnt, *_ in found],
                      seconds=[parts for *_, parts in found if isinstance(parts, dict)]) for name, found in rows.items()}
    speed = lambda name, n: rows[name][n][2] / rows[name][n][0]
    for name, mine in {"ours, no overlap": "ours", "plain": "ours", "plain, LunarLander": "ours, LunarLander"}.items():
        ratios = [speed(mine, n) / speed(name, n) for n in range(rounds)]
        out[f"ours / {name}, by the clock"] = dict(median=round(median(ratios), 2), range=[round(min(ratios), 2), round(max(ratios), 2)])
    for env_id, preset in itertools.product(("LunarLander-v3", "CartPole-v1"), ("classic", "general")):
        steps = 1_000 if args.quick else 6_000
        start = min(2_000, steps // 2)
        clock, cpu, learnt, parts = our_loop(env_id, start, steps, args.device, preset=preset)
        out[f"{env_id}, {preset}"] = dict(steps_per_second=round((steps - start) / clock, 1), steps_per_cpu_second=round((steps - start) / cpu, 1), gradient_steps=learnt, seconds=parts)
    return dict(num_envs=num_envs, batch=batch, updates=updates, rounds=rounds, **out)


def checkpoint_part(args):
    "How long training stands still for a checkpoint, with a full store: of the first one, and of one that has little to add."
    capacity = 2**12 if args.quick else 2**18
    with tempfile.TemporaryDirectory() as folder:
        config = configure("btr", env_id="Pong-v5", controller="fixed", size=32, total_steps=10**6, learning_starts=10**5, replay_size=capacity)
        r = Run(config, Path(folder) / "run")
        full = full_replay(capacity)
        for name in ("columns", "flat", "tree", "rows", "stored"): setattr(r.agent.replay, name, getattr(full, name))
        out = dict(capacity=capacity, log_gb=round(capacity * 7068 / 1e9, 2))
        def book(name, what):
            began = time.perf_counter()
            what()
            out[name] = round(1e3 * (time.perf_counter() - began), 1)
        book("the first, which writes the whole store, ms", r.checkpoint)
        book("a second, ms", r.checkpoint)
        r.agent.replay.rows += 64
        book("64 rows logged while training, ms", r.replay_log.take)
        book("a checkpoint after them, ms", r.checkpoint)
        r.close()
    return out


def markdown(r):
    "The report of what was measured."
    out = ["# Speed of BTR" + " (smoke run: the numbers mean nothing)" * r["quick"], "", "| | |", "|---|---|", f"| device | {r['device']} |", f"| CPU | {r['hardware']['cpu']} |", f"| cores | {r['hardware']['cores']} |", f"| threads | {r['threads']} |",
           *(f"| {k} | {v} |" for k, v in r["versions"].items() if v), f"| commit | {r['commit']} |", ""]
    if found := r.get("update"):
        out += ["## A gradient step beside a plain one, on the same batch", "", "Milliseconds, the median over the rounds in which they take turns; how many times as long the plain step takes, within a round, and the range. Images: the published network and batch. Vectors: the preset `general` on LunarLander's observations. *Products* are the products of matrices of the written step and nothing else: what would be left if all other operations took no time.", "",
                "| batch | gradient | ms | plain, ms | plain / this | range |", "|---|---|---|---|---|---|"]
        middle = lambda rows: median(row["cpu_ms" if r["device"] == "cpu" else "ms"] for row in rows)
        for what, at in found.items():
            out += [f"| {what.split(',')[0]}, {at['batch']} | {name} | {middle(at[name]):,.1f} | {middle(at['plain']):,.1f} | {at[f'plain_over_{name}']['median']:.2f} | {at[f'plain_over_{name}']['range'][0]:.2f} – {at[f'plain_over_{name}']['range'][1]:.2f} |" for name in ("ours", "autograd", "written", "products") if name in at]
        out.append("")
    if found := r.get("loop"):
        out += ["## The whole loop", "", f"Pong with {found['num_envs']} environments and the published network, replay batch {found['batch']}, {found['rounds']} rounds of {found['updates']} gradient steps"
                + "; LunarLander with the preset `general`, which measures divergence, replay batch 64, as many rounds of 3,000 environment steps" * ("plain, LunarLander" in found) + ":", ""]
        out += [f"- {name}: {at['median']:.2f} ({at['range'][0]:.2f} – {at['range'][1]:.2f})" for name, at in found.items() if isinstance(at, dict) and "median" in at]
        out += ["", "| task, preset | environment steps / s | gradient steps | collecting, s | learning, s | measuring, s | measuring |", "|---|---|---|---|---|---|---|"]
        for name, at in found.items():
            if not isinstance(at, dict) or "steps_per_second" not in at: continue
            spent = at["seconds"]
            out.append(f"| {name} | {at['steps_per_second']:,.0f} | {at['gradient_steps']:,} | {spent['collect']:.2f} | {spent['learn']:.2f} | {spent['measure']:.2f} | {100 * spent['measure'] / sum(spent.values()):.1f} % |")
        out.append("")
    if found := r.get("replay"):
        out += ["## The replay store", "", f"{found['capacity']:,} Atari transitions, {found['memory_gb']:.2f} GB; batches of {found['batch']}:", "", *(f"- {name}: {at['ms']:.2f} ms" for name, at in found.items() if isinstance(at, dict)), ""]
    if found := r.get("checkpoint"):
        out += ["## A checkpoint", "", f"{found['capacity']:,} Atari transitions, {found['log_gb']:.2f} GB:", "", *(f"- {name.removesuffix(', ms')}: {at:,.0f} ms" for name, at in found.items() if name.endswith(", ms")), ""]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = dict(replay=replay_part, update=update_part, loop=loop_part, checkpoint=checkpoint_part)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts) + "; all of them when none is named")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="a JSON file for the results; the report is written beside it")
    args = parser.parse_args()
    for name in args.parts:
        if name not in parts: parser.error(f"no part {name!r}: {', '.join(parts)}")
    torch.set_num_threads(args.threads)
    results = dict(device=args.device, threads=args.threads, quick=args.quick, **provenance())
    for name in args.parts or parts:
        results[name] = parts[name](args)
        print(name, json.dumps(results[name], indent=1), flush=True)
        if args.out:  # after each part, since one may fail
            Path(args.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            Path(args.out).with_suffix(".md").write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__": main()
