"""How fast abs_lab trains beside the libraries that people use, on this machine.

    python benchmarks/peers.py                                half an hour on two idle cores; the first time more, to install the peers
    python benchmarks/peers.py --purejaxql DIR                with purejaxql, from a clone of `mttga/purejaxql`
    python benchmarks/peers.py --quick --only cartpole        a smoke run whose numbers mean nothing

Stable-Baselines3 and SBX come from the package index, each into an environment of its own below `--environments`; purejaxql is in no index,
and its own function `make_train` is called from a clone, whose commit is printed. Contenders take turns, in rounds, each in a process of its
own; a ratio is taken within each round. In the first table every contender does the same arithmetic: networks, sizes, epochs, float32. In the
second each has its own defaults and the best of its settings. The simulators are those that each library brings people to: EnvPool here,
Gymnasium in the two of PyTorch and JAX, jitted games in purejaxql. Nothing is asserted about speed.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
NEEDS = dict(sb3=["stable-baselines3==2.9.2", "gymnasium[mujoco]"], sbx=["sbx-rl==0.28.0", "gymnasium[mujoco]"], purejaxql=["jax[cpu]", "flax", "optax", "chex", "gymnax<1"])
NAMES = dict(abs_lab="abs_lab", sb3="Stable-Baselines3", sbx="SBX", purejaxql="purejaxql")
FOREVER = 10**9  # environment steps: no schedule moves while it is timed

MINATAR = dict(num_envs=128, size=32, num_minibatches=32, epochs=2)
WORKS = {  # name -> (title, contenders; in what each of them works)
    "breakout": ("PQN, MinAtar Breakout, 128 × 32, 32 minibatches, 2 epochs", dict(agent="pqn", game="Breakout", **MINATAR), ("abs_lab", "purejaxql")),
    "space_invaders": ("PQN, MinAtar SpaceInvaders, 128 × 32, 32 minibatches, 2 epochs", dict(agent="pqn", game="SpaceInvaders", **MINATAR), ("abs_lab", "purejaxql")),
    "cartpole": ("PPO, CartPole, 8 × 32, 1 minibatch of 256, 20 epochs", dict(agent="ppo", env_id="CartPole-v1", num_envs=8, size=32, num_minibatches=1, epochs=20), ("abs_lab", "sb3", "sbx")),
    "halfcheetah_1": ("PPO, HalfCheetah, 1 × 2048, 32 minibatches, 10 epochs", dict(agent="ppo", env_id="HalfCheetah-v5", num_envs=1, size=2048, num_minibatches=32, epochs=10), ("abs_lab", "sb3", "sbx")),
    "halfcheetah_64": ("PPO, HalfCheetah, 64 × 32, 32 minibatches, 10 epochs", dict(agent="ppo", env_id="HalfCheetah-v5", num_envs=64, size=32, num_minibatches=32, epochs=10), ("abs_lab", "sb3", "sbx")),
    "hopper_1": ("PPO, Hopper, 1 × 2048, 32 minibatches, 10 epochs", dict(agent="ppo", env_id="Hopper-v5", num_envs=1, size=2048, num_minibatches=32, epochs=10), ("abs_lab", "sb3", "sbx")),
    "hopper_64": ("PPO, Hopper, 64 × 32, 32 minibatches, 10 epochs", dict(agent="ppo", env_id="Hopper-v5", num_envs=64, size=32, num_minibatches=32, epochs=10), ("abs_lab", "sb3", "sbx")),
}
SETTINGS = dict(abs_lab=[dict(threads=1), dict(threads=2)], sb3=[dict(threads=1), dict(threads=2)], sbx=[dict(threads=2)], purejaxql=[dict(threads=2)])  # the first of each is its own default here


# ---- the contenders, each in its own environment: yields environment steps once per call ----

def abs_lab(work, folder):
    "This library's loop, measuring divergence as its preset says, at a fixed size."
    sys.path.insert(0, str(HERE.parent))
    from dataclasses import replace
    import torch
    from abs_lab.core.train import train
    from abs_lab.runs.config import configure
    from abs_lab.runs.parties import Parties
    shared = dict(controller="fixed", num_envs=work["num_envs"], size=work["size"], num_minibatches=work["num_minibatches"], epochs=work["epochs"])
    if work["agent"] == "pqn": config = configure("pqn", preset="minatar", env_id=f"MinAtar/{work['game']}-v1", epochs_rule="constant", **shared)
    else: config = configure("ppo", preset="classic" if work["env_id"].startswith("CartPole") else "mujoco", env_id=work["env_id"], epochs_rule="constant", **shared)
    p = Parties(replace(config, total_steps=FOREVER), "cpu", torch.get_num_threads())
    for s in train(p.agent, p.envs, p.meter, p.controller, p.progress):
        p.envs.drain_log()  # a recorded run writes the actions out
        yield s.plan.rollout * work["num_envs"]


def _stable(work, PPO):
    "A PPO of Stable-Baselines3's kind, in its DummyVecEnv and, on MuJoCo, its VecNormalize."
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    rollout = work["num_envs"] * work["size"]
    env = DummyVecEnv([lambda: gymnasium.make(work["env_id"])] * work["num_envs"])
    if not work["env_id"].startswith("CartPole"): env = VecNormalize(env)
    model = PPO("MlpPolicy", env, n_steps=work["size"], batch_size=rollout // work["num_minibatches"], n_epochs=work["epochs"], verbose=0, device="cpu", policy_kwargs=dict(net_arch=[64, 64]))
    while True:
        model.learn(rollout, reset_num_timesteps=False)
        yield rollout


def sb3(work, folder):
    "Stable-Baselines3's PPO."
    from stable_baselines3 import PPO
    yield from _stable(work, PPO)


def sbx(work, folder):
    "SBX's PPO, which is Stable-Baselines3 on JAX."
    from sbx import PPO
    yield from _stable(work, PPO)


def purejaxql(work, folder):
    "purejaxql's own training function for MinAtar, compiled beforehand; some updates from the beginning each time."
    sys.path.insert(0, str(HERE))
    import jax
    from purejaxql_curves import SETTINGS as THEIRS, theirs
    if not hasattr(jax, "tree_map"): jax.tree_map = jax.tree_util.tree_map  # the games call it by its old name
    steps = 12 * work["num_envs"] * work["size"]
    settings = THEIRS | dict(NUM_ENVS=work["num_envs"], NUM_STEPS=work["size"], NUM_MINIBATCHES=work["num_minibatches"], NUM_EPOCHS=work["epochs"], ENV_NAME=f"{work['game']}-MinAtar", TOTAL_TIMESTEPS=steps, TOTAL_TIMESTEPS_DECAY=steps)
    train = jax.jit(theirs(Path(folder))["make_train"](settings)).lower(jax.random.PRNGKey(0)).compile()
    while True:
        jax.block_until_ready(train(jax.random.PRNGKey(0)))
        yield steps


CONTENDERS = dict(abs_lab=abs_lab, sb3=sb3, sbx=sbx, purejaxql=purejaxql)


def serve(name, work, folder):
    "A contender's process: for each line, train for so many seconds and answer with steps and seconds."
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    if name in ("abs_lab", "sb3"):
        import torch
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    loop = CONTENDERS[name](work, folder)
    for line in sys.stdin:
        began, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - began < float(line): steps += next(loop)
        print(json.dumps([steps, time.perf_counter() - began]), file=replies, flush=True)


# ---- environments, turns ----

def python_of(name, root):
    "The interpreter of a peer's environment, which is made if need be."
    if name == "abs_lab": return sys.executable
    python = root / name / "bin" / "python"
    stamp = root / name / "installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(NEEDS[name]):
        print(f"… installing {NAMES[name]}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root / name)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS[name]], check=True)
        stamp.write_text("\n".join(NEEDS[name]), encoding="utf-8")
    return str(python)


def versions(python, name):
    "What a contender is, as its environment says."
    packages = dict(abs_lab=["torch", "envpool", "gymnasium"], sb3=["stable_baselines3", "torch", "gymnasium", "mujoco"], sbx=["sbx-rl", "jax", "gymnasium", "mujoco"], purejaxql=["jax", "flax", "gymnax"])[name]
    code = f"import importlib.metadata as m; print(', '.join(f'{{p}} {{m.version(p)}}' for p in {packages!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, encoding="utf-8").stdout.strip()


class Contender:
    "A loop in a process of its own, idle until it is its turn."
    def __init__(self, name, work, setting, python, folder):
        self.name, self.setting, self.speeds = name, setting, []
        env = os.environ | dict(OMP_NUM_THREADS=str(setting["threads"]), JAX_PLATFORMS="cpu")
        self.process = subprocess.Popen([python, __file__, "--serve", name, json.dumps(work), str(folder or "")], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

    def run(self, seconds):
        "Environment steps a second."
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()): raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["it ended without an answer"])[-1])
        steps, spent = json.loads(line)
        return steps / spent

    def close(self):
        self.process.kill()
        self.process.wait()


def spread(values): return dict(median=median(values), min=min(values), max=max(values), rounds=len(values))


def race(work, names, pythons, folder, rounds, seconds):
    "Contenders in turn: steps a second, and the ratio of abs_lab to each other, in the first setting of both and in the best of each."
    all_, failed = [], {}
    for name in names:
        for setting in SETTINGS[name]:
            c = Contender(name, work, setting, pythons[name], folder)
            try: c.run(0.1); c.run(0.1); all_.append(c)
            except (RuntimeError, BrokenPipeError) as e: failed[name] = str(e); c.close()
    for r in range(rounds):
        k = r % len(all_)
        for c in all_[k:] + all_[:k]: c.speeds.append(c.run(seconds))
    for c in all_: c.close()
    ratios = {}
    for which, pick in (("default", lambda cs: cs[0]), ("best", lambda cs: max(cs, key=lambda one: median(one.speeds)))):
        mine = {name: pick(cs) for name in names if (cs := [c for c in all_ if c.name == name])}
        for name, other in mine.items():
            if name != "abs_lab" and "abs_lab" in mine: ratios.setdefault(name, {})[which] = spread([a / b for a, b in zip(mine["abs_lab"].speeds, other.speeds)])
    return dict(speeds=[dict(name=c.name, **c.setting) | spread(c.speeds) for c in all_], ratios=ratios, failed=failed)


def markdown(r):
    "The report."
    out = ["# Beside the libraries that people use" + " (smoke run: the numbers mean nothing)" * r["quick"], "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in r["machine"].items()), "",
           "Every contender does the same arithmetic: networks, sizes, epochs, float32; abs_lab measures divergence beside it. Contenders take turns in rounds, each in a process of its own; a ratio is taken within each round: its median, and its range.", ""]
    for which, title in (("default", "One thread for abs_lab and Stable-Baselines3, what XLA takes for JAX"), ("best", "The best number of threads of each")):
        out += [f"## {title}", "", "| work | peer | abs_lab / peer | range |", "|---|---|---|---|"]
        for name, found in r["works"].items():
            out += [f"| {WORKS[name][0]} | {NAMES[peer]} | {ratio[which]['median']:.2f} | {ratio[which]['min']:.2f} – {ratio[which]['max']:.2f} |" for peer, ratio in found["ratios"].items()]
            out += [f"| {WORKS[name][0]} | {NAMES[peer]} | not measured: {why[:200]} | |" for peer, why in found["failed"].items() if which == "default"]
        out.append("")
    out += ["## Environment steps a second", "", "| work | contender | threads | median | range |", "|---|---|---|---|---|"]
    out += [f"| {WORKS[name][0]} | {NAMES[s['name']]} | {s['threads']} | {s['median']:,.0f} | {s['min']:,.0f} – {s['max']:,.0f} |" for name, found in r["works"].items() for s in found["speeds"]]
    return "\n".join([*out, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    parser.add_argument("--only", nargs="*", choices=WORKS, default=[*WORKS], metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--purejaxql", type=Path, help="a clone of mttga/purejaxql; left out where none is given")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "abs_lab" / "peers", help="folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the contenders take turns")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON and the Markdown file")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve: return serve(args.serve[0], json.loads(args.serve[1]), args.serve[2])
    sys.path.insert(0, str(HERE.parent))
    from abs_lab.runs.provenance import provenance
    names = {name for work in args.only for name in WORKS[work][2] if name != "purejaxql" or args.purejaxql}
    pythons = {name: python_of(name, args.environments) for name in sorted(names)}
    origin = provenance()
    machine = {"CPU": origin["hardware"]["cpu"], "cores": origin["hardware"]["cores"], "python": origin["versions"]["python"], "commit": origin["commit"], "load average before (a quiet machine: near 0)": f"{os.getloadavg()[0]:.1f}",
               **{NAMES[name]: versions(pythons[name], name) for name in sorted(names)}}
    if args.purejaxql: machine["purejaxql's commit"] = subprocess.run(["git", "-C", str(args.purejaxql), "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, encoding="utf-8").stdout.strip()
    else: machine["purejaxql"] = "left out: no clone was given (--purejaxql)"
    found = dict(quick=args.quick, machine=machine, works={})
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"peers{'-quick' * args.quick}"
    for work in args.only:
        print(f"… {WORKS[work][0]}", file=sys.stderr, flush=True)
        _, what, contenders = WORKS[work]
        found["works"][work] = race(what, [c for c in contenders if c in names], pythons, args.purejaxql, 1 if args.quick else args.rounds, 0.5 if args.quick else 5)
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.out / f"{name}.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__": main()
