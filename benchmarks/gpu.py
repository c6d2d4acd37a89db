"""What a GPU makes of the agents, in under nine minutes: for a machine that is lent for minutes.

    python benchmarks/gpu.py                             needs torch, numpy, gymnasium, envpool, safetensors
    python benchmarks/gpu.py --device cpu --small        end to end at tiny sizes, whose numbers mean nothing

Each part runs in a process of its own and is given up after its time, so that one that fails costs the others nothing, and what it
measured until then is kept; the results are written after each. The order is that of what one wants to know first. Steps are environment steps (Atari frames: × 4).
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # runs from a clone, installed or not

from pqn_speed import FOREVER, breakdown, changes, synchronise
from abs_lab.core.envs import VecEnvs
from abs_lab.core.machine import cores
from abs_lab.core.train import train
from abs_lab.runs.config import configure
from abs_lab.runs.parties import Parties
from abs_lab.runs.provenance import provenance


def updates(config, device):
    "A run's updates, nothing recorded: environment steps and seconds by part."
    p = Parties(config, device, cores())
    for s in train(p.agent, p.envs, p.meter, p.controller, p.progress):
        p.envs.drain_log()
        yield s.plan.rollout * config.env.num_envs, s.seconds


def speed(config, device, seconds):
    "Environment steps a second over some seconds, once warm; and the share of each part, as the host sees it."
    loop = updates(replace(config, total_steps=FOREVER), device)
    for _ in range(2 if seconds > 1 else 1): next(loop)
    synchronise(device)
    began, steps, spent = time.perf_counter(), 0, {}
    while time.perf_counter() - began < seconds or not steps:
        more, parts = next(loop)
        steps += more
        for k, v in parts.items(): spent[k] = spent.get(k, 0.0) + v
    synchronise(device)
    total = time.perf_counter() - began
    loop.close()
    return dict(steps_per_second=steps / total, shares={k: v / total for k, v in spent.items()})


def pqn(num_envs, small, **changes):
    "The published setting, at a fixed size."
    return configure("pqn", "paper", "fixed", env_id="Breakout-v5", num_envs=4 if small else num_envs, size=4 if small else 32, **changes)


# ---- the parts ----

def ceiling(device, small):
    "The environments alone, with random actions drawn beforehand."
    share = 0.2 if small else 3
    for num_envs in (128, 256, 512):
        for threads in (cores(), 2 * cores()) if not small else (cores(),):
            config = pqn(num_envs, small, env_threads=threads)
            envs = VecEnvs(config.env, 0)
            actions = np.random.default_rng(0).integers(0, envs.action_space.n, (64, config.env.num_envs))
            for a in actions[:8]: envs.step(a)
            began, steps = time.perf_counter(), 0
            while time.perf_counter() - began < share: envs.step(actions[steps % 64]); envs.log.clear(); steps += 1
            yield dict(num_envs=config.env.num_envs, env_threads=threads, steps_per_second=steps * config.env.num_envs / (time.perf_counter() - began))
            envs.close()


def settings(num_envs, device, small):
    "The three networks at a number of environments: as published, in groups, and in groups with the matrix units' shorter floats."
    for network in ("pqn", "pqn-l", "pqn-xl"):
        for groups, precision in ((1, "highest"), (2, "highest"), (4, "highest"), (2, "high")):
            torch.set_float32_matmul_precision(precision)
            config = pqn(num_envs, small, network=network, groups=groups, env_threads=cores())
            yield dict(num_envs=config.env.num_envs, network=network, groups=groups, matmul=precision) | speed(config, device, 0.1 if small else 4)


def pqn_128(device, small):
    "PQN, PQN-L and PQN-XL with 128 environments."
    return settings(128, device, small)

def pqn_256(device, small):
    "The same with 256 environments."
    return settings(256, device, small)

def pqn_512(device, small):
    "The same with 512 environments."
    return settings(512, device, small)


def equal(device, small):
    "Whether two runs of one seed come to the same weights, to the last bit."
    for groups in (1, 2):
        said = []
        for _ in range(2):
            config = pqn(128, small, groups=groups)
            p = Parties(config, device, cores())
            loop = train(p.agent, p.envs, p.meter, p.controller, p.progress)
            for _ in range(3 if small else 20): next(loop)
            said.append(hashlib.sha256(b"".join(w.detach().cpu().numpy().tobytes() for w in p.agent.net.parameters())).hexdigest()[:16])
            p.envs.close()
        yield dict(groups=groups, weights=said, equal=said[0] == said[1])


def shares(device, small):
    "Where the time goes, with the device in step with the clock."
    yield breakdown(pqn(128, small), cores(), cores(), 1 if small else 4, device)["abs_lab"]


def compilers(device, small):
    "What compiling the gradient passes gains, for a ladder of four batch sizes: at a fixed size, and with a size that changes at every update."
    for network, compiler in (("pqn", "none"), ("pqn", "cudagraph"), ("pqn-xl", "none"), ("pqn-xl", "cudagraph"), ("pqn", "inductor")):
        if compiler == "cudagraph" and not device.startswith("cuda"): continue
        how = dict(network=network, compiler=compiler, env_threads=cores())
        fixed, walk = pqn(128, small, **how), configure("pqn", "paper", "walk", env_id="Breakout-v5", num_envs=4 if small else 128, size_min=4 if small else 16, size_max=8 if small else 64, **how)
        yield dict(network=network, compiler=compiler, changing=speed(walk, device, 0.1 if small else 4)["steps_per_second"]) | speed(fixed, device, 0.1 if small else 4)


def others(device, small):
    "PPO on HalfCheetah and BTR on Breakout, with one and with 64 environments, on the device and on the processor."
    for num_envs in (1, 64):
        few = 2 if small and num_envs > 1 else num_envs
        cases = dict(PPO=configure("ppo", "paper" if num_envs == 1 else "mujoco_64", "fixed", env_id="HalfCheetah-v4", num_envs=num_envs, **dict(size=1024 if num_envs == 1 else 16) if small else {}),
                     BTR=configure("btr", "paper", "fixed", env_id="Breakout-v5", num_envs=few, learning_starts=64 if small else 2_000, replay_size=512 if small else 100_000, total_steps=10**6,
                                   **dict(network="plain", size=16) if small else {}))
        for where in dict.fromkeys((device, "cpu")):
            for name, config in cases.items():
                if name == "BTR" and where == "cpu" and not small: continue  # the published network would take the part's whole time there
                yield dict(agent=name, num_envs=config.env.num_envs, device=where) | speed(config, where, 0.1 if small else 5)


def sizes(device, small):
    "What it costs that the rollout length changes at every update."
    base = pqn(128, small)
    found = changes(replace(base, env=replace(base.env, num_envs=4 if small else 128, env_threads=cores())), cores(), 3 if small else 8, 1, 1 if small else 2, device)
    yield dict(num_envs=found["num_envs"], time_ratio=found["time_ratio"])


PARTS = {f.__name__: (f, seconds) for f, seconds in ((ceiling, 45), (pqn_128, 100), (equal, 60), (shares, 40), (compilers, 90), (pqn_256, 100), (others, 70), (sizes, 60), (pqn_512, 110))}  # the most that each may take
BUDGET = 530  # seconds for all


# ---- the report ----

def cell(value):
    if isinstance(value, float): return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, dict): return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    return ", ".join(map(cell, value)) if isinstance(value, list) else str(value)


def markdown(r):
    "The report of what is there so far."
    out = ["# The agents on a GPU" + " (smoke run: the numbers mean nothing)" * r["small"], "", "| | |", "|---|---|", *(f"| {k} | {cell(v)} |" for k, v in r["machine"].items()), ""]
    top = max((row["steps_per_second"] for row in r["parts"].get("ceiling", {}).get("rows", [])), default=None)
    for name, part in r["parts"].items():
        out += [f"## {PARTS[name][0].__doc__}", ""]
        if "failed" in part: out += [f"{'Not all of it' if part['rows'] else 'Not'} measured: {part['failed']}", ""]
        if not part["rows"]: continue
        rows = [row | ({"of the environments alone": f"{100 * row['steps_per_second'] / top:.0f} %"} if top and name.startswith("pqn") else {}) for row in part["rows"]]
        out += [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0]), *(f"| {' | '.join(map(cell, row.values()))} |" for row in rows), ""]
    return "\n".join(out)


def run_part(name, args, left):
    "A part in a process of its own: the rows that it came to, and why there are no more."
    path, most = args.out / f"{name}.part.jsonl", min(PARTS[name][1], left)
    if most < 15: return dict(rows=[], failed=f"{left:.0f} s were left")
    path.unlink(missing_ok=True)
    try:
        done = subprocess.run([sys.executable, __file__, "--part", name, "--device", args.device, "--out", str(path), *["--small"] * args.small], timeout=most, capture_output=True, encoding="utf-8")
        failed = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300] if done.returncode else ""
    except subprocess.TimeoutExpired: failed = f"it took more than {most:.0f} s"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return dict(rows=rows) | (dict(failed=failed) if failed else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0, …, or cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON and the Markdown file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for row in PARTS[args.part][0](args.device, args.small):
            with open(args.out, "a", encoding="utf-8") as file: file.write(json.dumps(row) + "\n")
        os._exit(0)  # EnvPool's threads need not be waited for
    if args.device.startswith("cuda") and not torch.cuda.is_available(): sys.exit("There is no GPU here: --device cpu --small tries every part on the processor")
    began, origin = time.perf_counter(), provenance()
    hardware = origin["hardware"]
    results = dict(small=args.small, machine={"device": hardware["gpu"] if args.device.startswith("cuda") else "CPU", "CPU": hardware["cpu"], "cores": cores(), **{k: v for k, v in origin["versions"].items() if v}, "commit": origin["commit"]}, parts={})
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"gpu{'-small' * args.small}"
    for part in args.only:
        print(f"… {part}", file=sys.stderr, flush=True)
        results["parts"][part] = run_part(part, args, BUDGET - (time.perf_counter() - began))
        results["machine"]["minutes"] = f"{(time.perf_counter() - began) / 60:.1f}"
        (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (args.out / f"{name}.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__": main()
