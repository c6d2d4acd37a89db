"""How fast abs_lab trains beside the libraries that people use, on this machine.

    python benchmarks/peers.py                                half an hour on two idle cores; the first time more, to install the peers
    python benchmarks/peers.py --purejaxql DIR                with purejaxql, from a clone of `mttga/purejaxql`
    python benchmarks/peers.py --alone                        only what is timed alone, into the results that are there: eight minutes
    python benchmarks/peers.py --quick --only cartpole        a smoke run whose numbers mean nothing

Stable-Baselines3 and SBX come from the package index, each into an environment of its own below `--environments`; purejaxql is in no index,
and its own function `make_train` is called from a clone, whose commit is printed. Contenders take turns, in rounds, each in a process of its
own; a ratio is taken within each round. In the first table every contender does the same arithmetic: networks, sizes, epochs, float32 (PQN's
gradient is the one that is written down). In the second each trains as it does when it is told nothing but the task, and with the fastest of
the settings listed in `SETTINGS` that train the same task. The simulators are those that each library brings people to: EnvPool here,
Gymnasium in the two of PyTorch and JAX, jitted games in purejaxql. Nothing is asserted about speed.
"""
import argparse
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
NEEDS = dict(sb3=["stable-baselines3==2.9.2", "gymnasium[mujoco]"], sbx=["sbx-rl==0.28.0", "gymnasium[mujoco]"], purejaxql=["jax[cpu]", "flax", "optax", "chex", "gymnax<1", "safetensors", "six"])
NAMES = dict(abs_lab="abs_lab", sb3="Stable-Baselines3", sbx="SBX", purejaxql="purejaxql")
FOREVER = 10**9  # environment steps: no schedule moves while it is timed
WANTED = 3  # times a peer's speed
BOUNDS = ("products", "operations")  # what is timed alone

MINATAR = dict(agent="pqn", num_envs=128, size=32, num_minibatches=32, epochs=2)
ONE, MANY = dict(agent="ppo", num_envs=1, size=2048, num_minibatches=32, epochs=10), dict(agent="ppo", num_envs=64, size=32, num_minibatches=32, epochs=10)
PQNS, PPOS = ("abs_lab", "purejaxql"), ("abs_lab", "sb3", "sbx")
WORKS = {  # name -> (title, what is done, contenders); without sizes each contender has its own
    "breakout": ("PQN, MinAtar Breakout, 128 × 32, 32 minibatches, 2 epochs", dict(env_id="MinAtar/Breakout-v1", **MINATAR), PQNS),
    "space_invaders": ("PQN, MinAtar SpaceInvaders, 128 × 32, 32 minibatches, 2 epochs", dict(env_id="MinAtar/SpaceInvaders-v1", **MINATAR), PQNS),
    "cartpole": ("PQN, CartPole, 32 × 64, 16 minibatches, 4 epochs", dict(agent="pqn", env_id="CartPole-v1", num_envs=32, size=64, num_minibatches=16, epochs=4), PQNS),
    "ppo_cartpole": ("PPO, CartPole, 8 × 32, 1 minibatch of 256, 20 epochs", dict(agent="ppo", env_id="CartPole-v1", num_envs=8, size=32, num_minibatches=1, epochs=20), PPOS),
    "halfcheetah_1": ("PPO, HalfCheetah, 1 × 2048, 32 minibatches, 10 epochs", dict(env_id="HalfCheetah-v5", **ONE), PPOS),
    "halfcheetah_64": ("PPO, HalfCheetah, 64 × 32, 32 minibatches, 10 epochs", dict(env_id="HalfCheetah-v5", **MANY), PPOS),
    "hopper_1": ("PPO, Hopper, 1 × 2048, 32 minibatches, 10 epochs", dict(env_id="Hopper-v5", **ONE), PPOS),
    "hopper_64": ("PPO, Hopper, 64 × 32, 32 minibatches, 10 epochs", dict(env_id="Hopper-v5", **MANY), PPOS),
    **{f"{name}_own": (title, dict(agent=agent, env_id=env_id), PQNS if agent == "pqn" else PPOS) for name, title, agent, env_id in (
        ("breakout", "PQN, MinAtar Breakout", "pqn", "MinAtar/Breakout-v1"), ("space_invaders", "PQN, MinAtar SpaceInvaders", "pqn", "MinAtar/SpaceInvaders-v1"),
        ("cartpole", "PQN, CartPole", "pqn", "CartPole-v1"), ("ppo_cartpole", "PPO, CartPole", "ppo", "CartPole-v1"),
        ("halfcheetah", "PPO, HalfCheetah", "ppo", "HalfCheetah-v5"), ("hopper", "PPO, Hopper", "ppo", "Hopper-v5"))},
}
THREADS = [dict(threads=1), dict(threads=2)]
VECTORS = [dict(threads=1, envs=64, n_steps=32), dict(threads=1, envs=8, n_steps=256), dict(threads=1, envs=8, n_steps=256, processes=True)]  # as many rows an update as with one environment
SETTINGS = {  # of each contender; the first is what it does when nobody chooses
    "equal": dict(abs_lab=THREADS, sb3=THREADS, sbx=[dict(threads=2)], purejaxql=[dict(threads=2)]),
    "own": dict(abs_lab=[*THREADS, *(t | dict(preset="mujoco_64") for t in THREADS), *(t | dict(backprop="written") for t in THREADS)], sb3=[dict(threads=2), dict(threads=1), *VECTORS], sbx=[dict(threads=2), *VECTORS], purejaxql=[dict(threads=2)])}


def kind_of(work):
    "Which of the two tables a work is in."
    return "equal" if "size" in WORKS[work][1] else "own"


# ---- the contenders, each in its own environment: yields environment steps once per call ----

def abs_lab(work, folder):
    "This library's loop, measuring divergence as its preset says: at a fixed size, or as it trains when nothing but the task is given."
    from abs_lab.core.train import train
    p = _parties(work)
    for s in train(p.agent, p.envs, p.meter, p.controller, p.progress):
        p.envs.drain_log()  # a recorded run writes the actions out
        yield s.plan.rollout * p.envs.num_envs


def _parties(work):
    "What trains in abs_lab."
    from dataclasses import replace
    import torch
    from abs_lab.runs.config import configure
    from abs_lab.runs.parties import Parties
    changes = dict(env_id=work["env_id"], preset=work.get("preset", "auto")) | {k: work[k] for k in ("backprop",) if k in work}
    if "size" in work:
        preset = "minatar" if "MinAtar" in work["env_id"] else "classic" if "CartPole" in work["env_id"] else "mujoco"
        changes |= dict(preset=preset, controller="fixed", epochs_rule="constant", **{k: work[k] for k in ("num_envs", "size", "num_minibatches", "epochs")})
        if work["agent"] == "pqn": changes |= dict(backprop="written")
        if preset == "minatar": changes |= dict(layer_norm="channel", norm_eps=1e-6, plane_divisor=255.0)  # purejaxql's network
    return Parties(replace(configure(work["agent"], **changes), total_steps=FOREVER), "cpu", torch.get_num_threads())


def alone(work, rounds=3, seconds=2.0):
    "What share of abs_lab's time its simulator takes by itself, together with the products of matrices and the convolutions of acting and learning, or with all of their operations on arrays, each by itself; measured in turn with the whole."
    from abs_lab.core.train import train
    from operations import record, simulator_alone
    p, shares = _parties(work), []
    trains = train(p.agent, p.envs, p.meter, p.controller, p.progress)
    next(trains)
    first = p.progress.step
    recorded, steps = record(p.agent, lambda: next(trains)), p.progress.step - first
    for _ in range(rounds):
        first, began = p.progress.step, time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(trains)
            p.envs.drain_log()
        ours = 1e6 * (time.perf_counter() - began) / (p.progress.step - first)
        shares.append((sum(one.microseconds() for one in recorded) / steps + simulator_alone(p.present, seconds / 2)) / ours)
    return dict(zip(BOUNDS, map(spread, zip(*shares))))


def _stable(work, PPO):
    "A PPO of Stable-Baselines3's kind; for equal arithmetic on MuJoCo in its VecNormalize."
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
    num_envs = work.get("num_envs") or work.get("envs", 1)
    env = make_vec_env(work["env_id"], num_envs, vec_env_cls=SubprocVecEnv if work.get("processes") else None)
    settings = dict(n_steps=work["n_steps"]) if "n_steps" in work else {}
    if "size" in work:
        if not work["env_id"].startswith("CartPole"): env = VecNormalize(env)
        settings = dict(n_steps=work["size"], batch_size=num_envs * work["size"] // work["num_minibatches"], n_epochs=work["epochs"], policy_kwargs=dict(net_arch=[64, 64]))
    model = PPO("MlpPolicy", env, verbose=0, device="cpu", **settings)
    while True:
        model.learn(num_envs * model.n_steps, reset_num_timesteps=False)
        yield num_envs * model.n_steps


def sb3(work, folder):
    "Stable-Baselines3's PPO."
    from stable_baselines3 import PPO
    yield from _stable(work, PPO)


def sbx(work, folder):
    "SBX's PPO, which is Stable-Baselines3 on JAX."
    from sbx import PPO
    yield from _stable(work, PPO)


def purejaxql(work, folder):
    "purejaxql's own training function, compiled beforehand, with the settings of its file for the task; some updates from the beginning each time."
    sys.path.insert(0, str(HERE))
    import jax
    from purejaxql_curves import SETTINGS as THEIRS, theirs
    if not hasattr(jax, "tree_map"): jax.tree_map = jax.tree_util.tree_map  # the games call it by its old name
    settings, script = THEIRS | dict(ENV_NAME=work["env_id"].split("/")[-1].replace("-v1", "-MinAtar")), "pqn_minatar"
    if work["env_id"] == "CartPole-v1":  # config/alg/pqn_cartpole.yaml
        settings, script = settings | dict(ENV_NAME="CartPole-v1", ENV_KWARGS={}, NUM_ENVS=32, NUM_STEPS=64, NUM_MINIBATCHES=16, NUM_EPOCHS=4, HIDDEN_SIZE=256, NUM_LAYERS=2, NORM_INPUT=False, LR=1e-4, REW_SCALE=0.1, LAMBDA=0.95, EPS_FINISH=0.2, EPS_DECAY=0.2), "pqn_gymnax"
    if "size" in work: settings |= dict(NUM_ENVS=work["num_envs"], NUM_STEPS=work["size"], NUM_MINIBATCHES=work["num_minibatches"], NUM_EPOCHS=work["epochs"], HIDDEN_SIZE=128)
    steps = 12 * settings["NUM_ENVS"] * settings["NUM_STEPS"]
    make = theirs(Path(folder), script)["make_train"]
    train = jax.jit(make(settings | dict(TOTAL_TIMESTEPS=steps, TOTAL_TIMESTEPS_DECAY=steps))).lower(jax.random.PRNGKey(0)).compile()
    while True:
        jax.block_until_ready(train(jax.random.PRNGKey(0)))
        yield steps


CONTENDERS = dict(abs_lab=abs_lab, sb3=sb3, sbx=sbx, purejaxql=purejaxql)


def serve(name, work, folder):
    "A contender's process: for each line, train for so many seconds and answer with steps and seconds."
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    if name in ("abs_lab", "alone", "sb3"):
        import torch
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if name == "alone": return print(json.dumps(alone(work)), file=replies, flush=True)
    loop = CONTENDERS[name](work, folder)
    for line in sys.stdin:
        began, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - began < float(line): steps += next(loop)
        print(json.dumps([steps, time.perf_counter() - began]), file=replies, flush=True)


# ---- environments, turns ----

def python_of(name, root):
    "The interpreter of a peer's environment, which is made if need be."
    if name == "abs_lab": return sys.executable
    needs = [*NEEDS[name], *[f"torch=={importlib.metadata.version('torch').split('+')[0]}"] * (name != "purejaxql")]  # the torch that abs_lab computes with
    python = root / name / "bin" / "python"
    stamp = root / name / "installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(needs):
        print(f"… installing {NAMES[name]}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root / name)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *needs], check=True)
        stamp.write_text("\n".join(needs), encoding="utf-8")
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
        self.process = subprocess.Popen([python, __file__, "--serve", name, json.dumps(work | setting), str(folder or "")], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")

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


def race(work, kind, names, pythons, folder, rounds, seconds):
    "Contenders in turn: steps a second, and the ratio of abs_lab to each other, in the first setting of both and in the best of each."
    all_, failed = [], {}
    for name in names:
        for setting in SETTINGS[kind][name]:
            if "preset" in setting and work["env_id"].split("-")[0] not in ("HalfCheetah", "Hopper"): continue  # a preset for MuJoCo
            if "backprop" in setting and work["agent"] != "pqn": continue  # PPO's is written as it is
            c = Contender(name, work, setting, pythons[name], folder)
            try: c.run(0.1); c.run(0.1); all_.append(c)
            except (RuntimeError, BrokenPipeError) as e: failed[name] = str(e); c.close()
    for r in range(rounds):
        k = r % len(all_)
        for c in all_[k:] + all_[:k]: c.speeds.append(c.run(seconds))
    for c in all_: c.close()
    ratios: dict = {}
    for which, pick in (("default", lambda cs: cs[0]), ("best", lambda cs: max(cs, key=lambda one: median(one.speeds)))):
        mine = {name: pick(cs) for name in names if (cs := [c for c in all_ if c.name == name])}
        for name, other in mine.items():
            if name != "abs_lab" and "abs_lab" in mine: ratios.setdefault(name, {})[which] = spread([a / b for a, b in zip(mine["abs_lab"].speeds, other.speeds)])
    out = dict(speeds=[dict(name=c.name, **c.setting) | spread(c.speeds) for c in all_], ratios=ratios, failed=failed)
    if kind == "equal" and (found := measured_alone(work)): out["alone"] = found  # without it the columns stay empty
    return out


def measured_alone(work):
    "`alone`, in a process of its own, and on which machine with which code; none where it failed."
    from abs_lab.runs.provenance import provenance
    origin = provenance()
    asked = subprocess.run([sys.executable, __file__, "--serve", "alone", json.dumps(work), ""], env=os.environ | dict(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, encoding="utf-8")
    return json.loads(asked.stdout) | dict(where=f"{origin['hardware']['cpu']}, {origin['commit']}") if asked.returncode == 0 else None


def rows_of(r, kind, which):
    "Of each work and peer of a table: work, peer, and the ratio's spread or why there is none; in the first table with the ratios that abs_lab would have if parts of its time were all of it."
    works = {name: found for name, found in r["works"].items() if kind_of(name) == kind}
    out: list = []
    for name, found in works.items():
        peers = {peer: ratios[which] for peer, ratios in found["ratios"].items()}
        if (kind, which) == ("equal", "default") and "alone" in found:
            peers = {peer: ratio | {bound: [ratio[a] / found["alone"][bound][b] for a, b in (("min", "max"), ("max", "min"))] for bound in BOUNDS} for peer, ratio in peers.items()}
        out += [(WORKS[name][0], NAMES[peer], ratio) for peer, ratio in (peers | found["failed"]).items()]
    return out


def told(setting):
    "A setting in words."
    return f"{setting['threads']} thread{'s' * (setting['threads'] > 1)}" + (f", {setting['envs']} environments{' in processes' if setting.get('processes') else ''}" if "envs" in setting else "") + "".join(f", {k} {setting[k]}" for k in ("preset", "backprop") if k in setting)


def markdown(r):
    "The report."
    out = ["# Beside the libraries that people use" + " (smoke run: the numbers mean nothing)" * r["quick"], "", *["![How many times as fast as each peer abs_lab trains, one bar per line of the first table, on a logarithmic axis.](peers.svg)", ""] * (not r["quick"]),
           "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in r["machine"].items()), "",
           f"abs_lab measures divergence throughout, and with equal arithmetic finds PQN's gradient {r.get('pqn_gradient', 'by autograd')}. Contenders take turns in {max(s['rounds'] for found in r['works'].values() for s in found['speeds'])} rounds, each in a process of its own. A ratio is taken within each round: above 1, abs_lab takes more environment steps in a second. The table shows the median and the range.", ""]
    for kind, which, title in (("equal", "default", "Equal arithmetic: the same networks, sizes and epochs in float32; abs_lab and Stable-Baselines3 with one thread"), ("equal", "best", "Equal arithmetic, each with its best number of threads"),
                               ("own", "default", "Each as it is when nothing but the task is given"), ("own", "best", "Each with the fastest of its settings below")):
        if not (rows := rows_of(r, kind, which)): continue
        measured = [q for *_, q in rows if BOUNDS[0] in q]
        bound = bool(measured)
        out += [f"## {title}", "", "| work | peer | abs_lab / peer | range |" + " its products alone | its operations alone |" * bound, "|---|---|---|---|" + "---|---|" * bound]
        out += [(f"| {work} | {peer} | not measured: {q[:200]} | |" if isinstance(q, str) else f"| {work} | {peer} | {q['median']:.2f} | {q['min']:.2f} – {q['max']:.2f} |")
                + ("".join(f" {q[name][0]:.1f} – {q[name][1]:.1f} |" for name in BOUNDS) if BOUNDS[0] in q else " | |" * bound) for work, peer, q in rows]
        if bound: out += ["", "The last two columns say what the ratio would be, from the ranges of both measurements, if abs_lab with one thread did nothing but step its simulator and, one after the other, the products of matrices and the convolutions of acting and learning, or all of their operations on arrays that were recorded (torch's, NumPy's ufuncs and selections), each called by itself at its fastest. "
                           f"Collecting, measuring and what lies between the operations are left out; that abs_lab is as fast as it was in the race is taken for granted ({'; '.join(sorted({found['alone']['where'] for found in r['works'].values() if 'alone' in found}))}). "
                           f"Three times a peer's speed is reached on {sum(q['median'] >= WANTED for q in measured)} of {len(measured)} lines. It would not be reached even so on {len([q for q in measured if q['products'][1] < WANTED])} with the products and on {len([q for q in measured if q['operations'][1] < WANTED])} with the operations."]
        lost = [f"{work} against {peer} ({q['median']:.2f})" for work, peer, q in rows if not isinstance(q, str) and q["median"] < 1]
        out += ["", f"abs_lab is slower on: {'; '.join(lost)}." if lost else "abs_lab is slower on none of these lines.", ""]
    out += ["## Environment steps a second", "", "| work | contender | setting | median | range |", "|---|---|---|---|---|"]
    out += [f"| {WORKS[name][0]} | {NAMES[s['name']]} | {told(s)} | {s['median']:,.0f} | {s['min']:,.0f} – {s['max']:,.0f} |" for name, found in r["works"].items() for s in found["speeds"]]
    return "\n".join([*out, ""])


def bars(r):
    "The first table as bars on a logarithmic axis, with ranges."
    import plotly.graph_objects as go
    rows = [row for row in rows_of(r, "equal", "default") if not isinstance(row[2], str)][::-1]
    fig = go.Figure(layout=dict(template="plotly_white", width=860, height=120 + 30 * len(rows), margin=dict(l=10, r=20, t=50, b=50), font=dict(size=13), showlegend=True, bargap=0.3, legend=dict(orientation="h", y=1.08, traceorder="reversed"),
                                xaxis=dict(type="log", title="times as many environment steps a second as the peer", tickvals=[0.2, 0.5, 1, 2, 3, 5, 10], range=[math.log10(0.8 * min([1, *(q["min"] for *_, q in rows)])), math.log10(1.3 * max([1, *(q["max"] for *_, q in rows)]))], automargin=True), yaxis=dict(automargin=True)))
    for colour, peer in zip(("#0072b2", "#d55e00", "#009e73"), dict.fromkeys(row[1] for row in rows)):
        own = [(f"{work.split(', ')[0]}, {', '.join(work.split(', ')[1:3])}", q) for work, name, q in rows if name == peer]
        at = [[label for label, _ in own], [peer] * len(own)]
        fig.add_scatter(y=at, x=[max(q["max"], 1) for _, q in own], mode="text", text=[f" {q['median']:.2f}" for _, q in own], textposition="middle right", showlegend=False)
        fig.add_bar(y=at, base=1, x=[q["median"] - 1 for _, q in own], orientation="h", name=peer, marker_color=colour,
                    error_x=dict(type="data", symmetric=False, array=[q["max"] - q["median"] for _, q in own], arrayminus=[q["median"] - q["min"] for _, q in own]))
    fig.add_vline(x=1, line_width=1)
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    parser.add_argument("--only", nargs="*", choices=WORKS, default=[*WORKS], metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--purejaxql", type=Path, help="a clone of mttga/purejaxql; left out where none is given")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "abs_lab" / "peers", help="folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the contenders take turns")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON and the Markdown file")
    parser.add_argument("--alone", action="store_true", help="measure only the last two columns of the first table, into the results that are there")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    if args.serve: return serve(args.serve[0], json.loads(args.serve[1]), args.serve[2])
    from abs_lab.runs.provenance import provenance
    args.out.mkdir(parents=True, exist_ok=True)
    name, origin = f"peers{'-quick' * args.quick}", provenance()
    def keep(found):
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.out / f"{name}.md").write_text(markdown(found), encoding="utf-8")
    if args.alone:
        if not (args.out / f"{name}.json").exists(): parser.error(f"--alone adds to results, and {args.out} holds no {name}.json: run without it first")
        found = json.loads((args.out / f"{name}.json").read_text(encoding="utf-8"))
        for work in filter(found["works"].__contains__, args.only):
            if kind_of(work) == "equal" and (measured := measured_alone(WORKS[work][1])): found["works"][work]["alone"] = measured
        return keep(found)
    names = {name for work in args.only for name in WORKS[work][2] if name != "purejaxql" or args.purejaxql}
    pythons = {name: python_of(name, args.environments) for name in sorted(names)}
    machine = {"CPU": origin["hardware"]["cpu"], "cores": origin["hardware"]["cores"], "python": origin["versions"]["python"], "commit": origin["commit"], "load average before (a quiet machine: near 0)": f"{os.getloadavg()[0]:.1f}",
               **{NAMES[name]: versions(pythons[name], name) for name in sorted(names)}}
    if args.purejaxql: machine["purejaxql's commit"] = subprocess.run(["git", "-C", str(args.purejaxql), "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, encoding="utf-8").stdout.strip()
    else: machine["purejaxql"] = "left out: no clone was given (--purejaxql)"
    found = dict(quick=args.quick, pqn_gradient="by hand", machine=machine, works={})
    for work in args.only:
        print(f"… {WORKS[work][0]}", file=sys.stderr, flush=True)
        _, what, contenders = WORKS[work]
        found["works"][work] = race(what, kind_of(work), [c for c in contenders if c in names], pythons, args.purejaxql, 1 if args.quick else args.rounds, 0.5 if args.quick else 4)
        keep(found)
    if not args.quick: bars(found).write_image(args.out / "peers.svg")  # needs Kaleido and Chrome or Chromium: pip install "abs_lab[svg]"
    print(markdown(found))


if __name__ == "__main__": main()
