"""What BTR's replay and update cost on this machine.

    python benchmarks/btr_speed.py                 all parts; a few minutes on two cores, and 8 GB of memory
    python benchmarks/btr_speed.py --device cuda   the same on a GPU (needs torch, numpy, gymnasium, envpool, safetensors)
    python benchmarks/btr_speed.py replay          one part: replay, update, loop, checkpoint
    python benchmarks/btr_speed.py --quick         a smoke run with tiny sizes, whose numbers mean nothing

Seconds are of the clock; beside them stand those of the processor, which other work on the machine changes less. Contenders of the
update take turns, and ratios are taken within a round. Nothing is asserted about speed.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

from abs_lab.btr import BTR, BTRConfig
from abs_lab.config import configure
from abs_lab.envs import VecEnvs
from abs_lab.plan import Progress
from abs_lab.replay import Replay
from abs_lab.runs import Run
from abs_lab.storage import provenance
from abs_lab.train import train

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


def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


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
    out = dict(capacity=capacity, batch=batch, memory_gb=round(taken / 1e9, 3), reckoned_gb=round(replay.bytes / 1e9, 3))
    repeat = 5 if args.quick else 200
    out["draw"] = timed(lambda: replay.sample(batch, generator), repeat)
    whole, replay._observations = replay._observations, lambda slots: slots
    out["indices, returns and weights"] = timed(lambda: replay.sample(batch, generator), repeat)
    replay._observations = whole
    slots = replay.sample(batch, generator).slots
    mass = torch.rand(batch, generator=generator, dtype=torch.float64).numpy() * replay.tree.total
    out["indices"] = timed(lambda: replay.tree.find(mass), repeat)
    out["new priorities"] = timed(lambda: replay.update_priorities(slots, torch.rand(batch)), repeat)
    return out


# ---- a plain implementation of the same arithmetic ----

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
    def __init__(self, c):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.a, self.b = norm(nn.Conv2d(c, c, 3, padding=1)), norm(nn.Conv2d(c, c, 3, padding=1))
    def forward(self, x): return x + self.b(F.relu(self.a(F.relu(x))))


class Plain(nn.Module):
    "The network of BTR as a script spells it."
    def __init__(self, n_actions):
        super().__init__()
        block = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.MaxPool2d(3, 2, 1), PlainUnit(o), PlainUnit(o))
        self.torso = nn.Sequential(block(4, 32), block(32, 64), block(64, 64), nn.ReLU(), nn.AdaptiveMaxPool2d(6), nn.Flatten())
        self.embed, self.pis = nn.Linear(64, 2304), torch.arange(64) * torch.pi
        stream = lambda o: nn.Sequential(PlainNoisy(2304, 512), nn.ReLU(), PlainNoisy(512, o))
        self.value, self.advantage = stream(1), stream(n_actions)

    def redraw(self):
        for m in self.modules():
            if isinstance(m, PlainNoisy): m.redraw()

    def forward(self, obs, taus):
        x = self.torso(obs.float() / 255)
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
    return loss.item()  # such scripts log it


def update_part(args):
    "A gradient step at the published batch: ours against the plain one, on the same batch, in turns."
    batch, rounds = (4, 2) if args.quick else (256, args.rounds)
    c = BTRConfig(replay_size=4096)
    agent = BTR(c, PIXELS, gym.spaces.Discrete(6), 64, Progress(10**9), device=args.device)
    agent.replay = full_replay(4096, device=args.device)
    net, target = Plain(6).to(args.device), Plain(6).to(args.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, eps=c.adam_eps)
    b = agent.replay.sample(batch, agent.sampler)
    ratios, ours, plain = [], [], []
    for n in range(rounds):
        both = [("ours", lambda: agent._gradient_step(b)), ("plain", lambda: plain_step(net, target, optimizer, b, c))]
        t = {name: timed(step, 1 if args.device == "cpu" else 20, args.device) for name, step in (both if n % 2 == 0 else both[::-1])}
        ours.append(t["ours"]); plain.append(t["plain"]); ratios.append(t["plain"]["cpu_ms" if args.device == "cpu" else "ms"] / t["ours"]["cpu_ms" if args.device == "cpu" else "ms"])
    return dict(batch=batch, rounds=rounds, ours=ours, plain=plain, plain_over_ours=round(median(ratios), 2), range=[round(min(ratios), 2), round(max(ratios), 2)])


def loop_part(args):
    "Environment steps a second of the whole loop, learning included."
    out = {}
    tasks = {"LunarLander-v3": 6_000, "CartPole-v1": 6_000} | ({} if args.device == "cpu" else {"Pong-v5": 40_000})
    for env_id, steps in tasks.items():
        steps = 1_000 if args.quick else steps
        start = min(2_000, steps // 2) if env_id != "Pong-v5" else 10_000
        config = configure("btr", env_id=env_id, controller="fixed", total_steps=steps, learning_starts=start, replay_size=50_000)
        envs, progress = VecEnvs(config.env, 0, "train", args.device), Progress(steps)
        agent = BTR(config.agent, envs.obs_space, envs.action_space, config.env.num_envs, progress, device=args.device)
        parts, c, p = {}, None, None
        for s in train(agent, envs, config.meter, config.controller, progress):
            if s.step >= start and c is None: c, p, first = time.perf_counter(), time.process_time(), s.step
            if c: parts = {k: parts.get(k, 0) + v for k, v in s.seconds.items()}
        envs.close()
        out[env_id] = dict(steps_per_second=round((s.step - first) / (time.perf_counter() - c), 1), steps_per_cpu_second=round((s.step - first) / (time.process_time() - p), 1),
                           gradient_steps=s.gradient_steps, seconds={k: round(v, 2) for k, v in parts.items()})
    return out


def checkpoint_part(args):
    "How long training stands still for a checkpoint, with a full store: of the first one, and of one that has little to add."
    capacity = 2**12 if args.quick else 2**18
    with tempfile.TemporaryDirectory() as folder:
        config = configure("btr", env_id="Pong-v5", controller="fixed", size=32, total_steps=10**6, learning_starts=10**5, replay_size=capacity)
        r = Run(config, Path(folder) / "run")
        full = full_replay(capacity)
        for name in ("columns", "flat", "tree", "rows", "stored"): setattr(r.replay, name, getattr(full, name))
        out = dict(capacity=capacity, log_gb=round(capacity * 7068 / 1e9, 2))
        def book(name, what):
            began = time.perf_counter()
            what()
            out[name] = round(1e3 * (time.perf_counter() - began), 1)
        book("the first, which writes the whole store, ms", r.checkpoint)
        book("a second, ms", r.checkpoint)
        r.replay.rows += 64
        book("64 rows logged while training, ms", r._append_rows)
        book("a checkpoint after them, ms", r.checkpoint)
        r.close()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = dict(replay=replay_part, update=update_part, loop=loop_part, checkpoint=checkpoint_part)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="parts to run (all when left out)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="a JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = dict(device=args.device, threads=args.threads, quick=args.quick, **provenance())
    for name in args.parts or parts:
        results[name] = parts[name](args)
        print(name, json.dumps(results[name], indent=1), flush=True)
    if args.out: Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__": main()
