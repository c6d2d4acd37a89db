"""How fast PPO trains on this machine: against a plain script of the same settings, and against the environments alone.

    python benchmarks/ppo_speed.py            about ten minutes on two idle cores
    python benchmarks/ppo_speed.py --quick    a smoke run whose numbers mean nothing

The plain script is written here in the manner of CleanRL: Gymnasium's environment (`pip install 'gymnasium[mujoco]'`) in CleanRL's wrappers, tensors for the
rollout, `torch.distributions`, a Python loop for the advantages, Adam as it comes. Where Gymnasium cannot make it, it steps one environment of
EnvPool instead, in wrappers of its own, and the report says so. It trains on rollouts of 2,048 steps in 32 minibatches and 10 epochs; abs_lab
does the same with 1 environment, and with 64 it has the same batch from rollouts of 32 steps. Contenders take turns, in rounds, each in a process
of its own; a ratio is taken within each round. Seconds are counted twice: by the clock, and of the processor (all threads of the process), which
says more on a machine that has other work to do. Nothing is asserted about speed.
"""
import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]  # runs from a clone, installed or not

from pqn_speed import FOREVER, Clock, cells, number, spread, table
from abs_lab.runs.config import configure
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import Progress
from abs_lab.agents.ppo import PPO
from abs_lab.runs.provenance import provenance
from abs_lab.core.train import train

BATCH, MINIBATCHES, EPOCHS = 2048, 32, 10


# ---- the contenders: each yields environment steps once per update ----

def ours(env_id, num_envs, clock=None):
    "abs_lab's loop, through its public interface, measuring divergence as its preset says."
    config = configure("ppo", preset="mujoco" if num_envs == 1 else "mujoco_64", env_id=env_id, num_envs=num_envs, controller="fixed", size=BATCH // num_envs)
    envs, progress = VecEnvs(config.env, 0), Progress(FOREVER)
    agent = PPO(config.agent, envs.obs_space, envs.action_space, num_envs, progress)
    if clock:
        envs.send, envs.receive = clock.around(envs.send, "environment"), clock.around(envs.receive, "environment")
        agent.act, agent.update = clock.around(agent.act, "acting"), clock.around(agent.update, "learning")
    for s in train(agent, envs, replace(config.meter), replace(config.controller), progress):
        envs.drain_log()  # a recorded run writes the actions out
        yield s.plan.rollout * num_envs


class OneOfEnvPool(gym.Env):
    "One environment of EnvPool as a single Gymnasium environment, for machines without mujoco."
    def __init__(self, env_id):
        import envpool
        self.pool = envpool.make(env_id, env_type="gymnasium", num_envs=1, seed=[0], num_threads=1)
        self.observation_space, self.action_space, self.over = self.pool.observation_space, self.pool.action_space, False
    def reset(self, seed=None, options=None):
        return (self.pool.step(np.zeros((1, *self.action_space.shape)))[0] if self.over else self.pool.reset()[0])[0], {}
    def step(self, action):
        obs, reward, terminated, truncated, _ = self.pool.step(action[None].astype(np.float64))
        self.over = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def gymnasium_env(env_id):
    "The environment in CleanRL's wrappers; and where it comes from."
    try: env, source = gym.make(env_id), "Gymnasium"
    except (gym.error.Error, ImportError) as e: env, source = OneOfEnvPool(env_id), f"one environment of EnvPool, since Gymnasium cannot make it here ({e})"
    w = gym.wrappers
    env = w.ClipAction(w.RecordEpisodeStatistics(w.FlattenObservation(env)))
    env = w.TransformObservation(w.NormalizeObservation(env), lambda obs: np.clip(obs, -10, 10), env.observation_space)
    return w.TransformReward(w.NormalizeReward(env, gamma=0.99), lambda reward: np.clip(reward, -10, 10)), source


def initialised(layer, gain=2 ** 0.5):
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class PlainAgent(nn.Module):
    def __init__(self, inputs, actions):
        super().__init__()
        body = lambda: [initialised(nn.Linear(inputs, 64)), nn.Tanh(), initialised(nn.Linear(64, 64)), nn.Tanh()]
        self.critic = nn.Sequential(*body(), initialised(nn.Linear(64, 1), 1.0))
        self.mean = nn.Sequential(*body(), initialised(nn.Linear(64, actions), 0.01))
        self.log_std = nn.Parameter(torch.zeros(1, actions))

    def forward(self, x, action=None):
        mean = self.mean(x)
        policy = torch.distributions.Normal(mean, torch.exp(self.log_std.expand_as(mean)))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(1), policy.entropy().sum(1), self.critic(x)


def plain(env_id, clock=None):
    "A plain PPO script with one environment; it takes a truncation for a termination, as such scripts do, and measures nothing."
    envs, clock = gym.vector.SyncVectorEnv([lambda: gymnasium_env(env_id)[0]], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP), clock or Clock()
    shape, actions_shape = envs.single_observation_space.shape, envs.single_action_space.shape
    agent = PlainAgent(int(np.prod(shape)), int(np.prod(actions_shape)))
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    obs, actions = torch.zeros((BATCH, 1, *shape)), torch.zeros((BATCH, 1, *actions_shape))
    logs, rewards, dones, values = (torch.zeros((BATCH, 1)) for _ in range(4))
    next_obs, next_done, finished = torch.Tensor(envs.reset(seed=0)[0]), torch.zeros(1), []
    while True:
        clock.lap()
        for t in range(BATCH):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                action, log, _, value = agent(next_obs)
                values[t] = value.flatten()
            actions[t], logs[t] = action, log
            clock.lap("acting")
            following, reward, terminated, truncated, info = envs.step(action.cpu().numpy())
            clock.lap("environment")
            rewards[t] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(following), torch.Tensor(np.logical_or(terminated, truncated))
            if "final_info" in info: finished.append(info["final_info"]["episode"]["r"])
        with torch.no_grad():
            last, advantages, ahead = agent.critic(next_obs).reshape(1, -1), torch.zeros_like(rewards), 0
            for t in reversed(range(BATCH)):
                goes_on = 1.0 - (next_done if t == BATCH - 1 else dones[t + 1])
                following_value = last if t == BATCH - 1 else values[t + 1]
                delta = rewards[t] + 0.99 * following_value * goes_on - values[t]
                advantages[t] = ahead = delta + 0.99 * 0.95 * goes_on * ahead
            returns = advantages + values
        rows = obs.reshape(-1, *shape), logs.reshape(-1), actions.reshape(-1, *actions_shape), advantages.reshape(-1), returns.reshape(-1), values.reshape(-1)
        clock.lap("targets and bookkeeping")
        order = np.arange(BATCH)
        for _ in range(EPOCHS):
            np.random.shuffle(order)
            for start in range(0, BATCH, BATCH // MINIBATCHES):
                x, old, action, advantage, target, old_value = (r[order[start:start + BATCH // MINIBATCHES]] for r in rows)
                _, log, entropy, value = agent(x, action)
                ratio = (log - old).exp()
                with torch.no_grad(): ((ratio - 1) - (log - old)).mean(), ((ratio - 1).abs() > 0.2).float().mean().item()  # such scripts log both
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.8, 1.2)).mean()
                value = value.view(-1)
                limited = old_value + torch.clamp(value - old_value, -0.2, 0.2)
                value_loss = 0.5 * torch.max((value - target) ** 2, (limited - target) ** 2).mean()
                loss = policy_loss - 0.0 * entropy.mean() + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        clock.lap("learning")
        yield BATCH


def ceiling(env_id, num_envs):
    "EnvPool's environments alone, with random actions drawn beforehand."
    envs = VecEnvs(configure("ppo", env_id=env_id, num_envs=num_envs, controller="fixed", size=BATCH // num_envs).env)
    space, rng = envs.action_space, np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (64, num_envs, *space.shape))
    while True:
        for t in range(BATCH // num_envs):
            envs.env.send(actions[t % 64])
            envs.env.receive()
        yield BATCH


MAKE = {"plain, 1 environment": lambda e: plain(e), "abs_lab, 1 environment": lambda e: ours(e, 1), "abs_lab, 64 environments": lambda e: ours(e, 64),
        "environments alone, 1": lambda e: ceiling(e, 1), "environments alone, 64": lambda e: ceiling(e, 64)}


# ---- timing ----

def serve(pipe, name, env_id):
    "A contender's process: advance by as many updates as the pipe says; answer with environment steps, seconds, and seconds of the processor."
    torch.set_num_threads(1)
    loop = MAKE[name](env_id)
    for updates in iter(pipe.recv, None):
        began, cpu = time.perf_counter(), time.process_time()
        steps = sum(next(loop) for _ in range(updates))
        pipe.send((steps, time.perf_counter() - began, time.process_time() - cpu))


def race(env_id, rounds, seconds):
    "Steps per second of every contender, by both clocks, round by round."
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in MAKE:
        pipes[name], other = context.Pipe()
        context.Process(target=serve, args=(other, name, env_id), daemon=True).start()
    def turn(name, updates):
        pipes[name].send(updates)
        return pipes[name].recv()
    updates = {}
    for name in MAKE:
        turn(name, 1)
        updates[name] = max(round(seconds / turn(name, 1)[1]), 1)
    speeds = {name: ([], []) for name in MAKE}
    for r in range(rounds):
        names = list(MAKE)
        for name in names[r % len(names):] + names[:r % len(names)]:
            steps, wall, cpu = turn(name, updates[name])
            speeds[name][0].append(steps / wall); speeds[name][1].append(steps / cpu)
    for pipe in pipes.values(): pipe.send(None)
    return speeds


def breakdown(env_id, updates):
    "Microseconds per environment step, by part of the work."
    out = {}
    for name, make in (("plain, 1 environment", lambda clock: plain(env_id, clock)), ("abs_lab, 1 environment", lambda clock: ours(env_id, 1, clock)),
                       ("abs_lab, 64 environments", lambda clock: ours(env_id, 64, clock))):
        clock = Clock()
        loop = make(clock)
        next(loop)
        clock.spent.clear()
        began = time.perf_counter()
        steps, spent = sum(next(loop) for _ in range(updates)), clock.spent
        total = time.perf_counter() - began
        parts = {k: spent[k] for k in ("environment", "acting", "learning")}
        out[name] = {k: 1e6 * v / steps for k, v in (parts | {"the rest": total - sum(parts.values()), "all": total}).items()}
    return out


def report(found):
    "The findings as Markdown."
    lines = ["# Speed of PPO", "", *table(["", ""], [f"{k} | {v}" for k, v in found["about"].items()]), __doc__.split("\n\n")[2], ""]
    pairs = [("abs_lab, 1 environment", "plain, 1 environment"), ("abs_lab, 64 environments", "plain, 1 environment"),
             ("abs_lab, 1 environment", "environments alone, 1"), ("abs_lab, 64 environments", "environments alone, 64")]
    for which, what in enumerate(("the clock", "the processor")):
        speeds = {name: s[which] for name, s in found["speeds"].items()}
        lines += [f"## By seconds of {what}", "", *table(["steps per second", "median", "range"], [f"{n} | {cells(spread(v))}" for n, v in speeds.items()])]
        lines += table(["ratio, within a round", "median", "range"], [f"{a} / {b} | {cells(spread([x / y for x, y in zip(speeds[a], speeds[b])]))}" for a, b in pairs])
    parts = list(next(iter(found["breakdown"].values())))
    lines += ["## Where the time goes", "", "Microseconds of the clock per environment step.", ""]
    return "\n".join(lines + table(["", *parts], [f"{name} | " + " | ".join(number(row[p]) for p in parts) for name, row in found["breakdown"].items()]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each contender in each round")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick: args.rounds, args.seconds = 1, 0.1
    load, began = os.getloadavg()[0], time.time()
    found = dict(speeds=race(args.env_id, args.rounds, args.seconds), breakdown=breakdown(args.env_id, 1 if args.quick else 4))
    where = provenance()
    found["about"] = {"task": args.env_id, "the plain script's environment": gymnasium_env(args.env_id)[1], "CPU": where["hardware"]["cpu"], "cores": where["hardware"]["cores"],
                      **where["versions"], "commit": where["commit"], "load average before (a quiet machine: near 0)": round(load, 1),
                      "load average after": round(os.getloadavg()[0], 1), "minutes": round((time.time() - began) / 60, 1)}
    text = report(found)
    print(text)
    if args.quick: return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "ppo_speed-cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "ppo_speed-cpu.md").write_text(text, encoding="utf-8")


if __name__ == "__main__": main()
