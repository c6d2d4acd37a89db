"""Where the time of a recorded run goes, part by part and size by size, beside what each part takes at least.

    python benchmarks/where_time_goes.py            every agent, sizes 16 to 256; ten minutes on a quiet machine
    python benchmarks/where_time_goes.py --quick    a smoke run whose numbers mean nothing

A run is trained in a folder as any other, with one thread, its size fixed and its divergence measured as the preset says. The clock is read
around simulator, acting, learning, measuring and recording; what is left of a step hands data from one to the other. What a part takes at
least: of the simulator, its own time with actions drawn beforehand; of acting and of learning, their products of matrices and their
convolutions, each timed by itself. Sizes take turns, in rounds. Nothing is asserted about speed.
"""
import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", ABS_LAB_THREADS="1", ABS_LAB_DEVICE="cpu", ABS_LAB_CHECKPOINT_SECONDS="60")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # runs from a clone, installed or not

import torch

from abs_lab.runs.config import configure
from abs_lab.runs.runner import Run
from pqn_speed import Clock, machine, spread, table, write
from operations import record, simulator_alone

FOREVER = 10**9  # environment steps: no schedule moves while it is timed
PARTS = ("simulator", "acting", "learning", "measuring", "recording", "the rest")
SIZES = (16, 32, 64, 128, 256)
WORKS = {  # title -> parameters; of BTR the size is the replay batch
    "PQN, LunarLander": dict(agent="pqn", env_id="LunarLander-v3", preset="classic"),
    "PQN, MinAtar Breakout": dict(agent="pqn", env_id="MinAtar/Breakout-v1", preset="minatar"),
    "PQN, LunarLander, gradient by hand": dict(agent="pqn", env_id="LunarLander-v3", preset="classic", backprop="written"),
    "PQN, MinAtar Breakout, gradient by hand": dict(agent="pqn", env_id="MinAtar/Breakout-v1", preset="minatar", backprop="written"),
    "PPO, HalfCheetah, 64 environments": dict(agent="ppo", env_id="HalfCheetah-v4", preset="mujoco_64"),
    "BTR, LunarLander": dict(agent="btr", env_id="LunarLander-v3", preset="general", learning_starts=2_000),
    "BTR, MinAtar Breakout": dict(agent="btr", env_id="MinAtar/Breakout-v1", preset="minatar_256", learning_starts=2_000),
}


class Timed:
    "A run in training, whose parts are timed."
    def __init__(self, params, size, dir):
        config = replace(configure(controller="fixed", size=size, **params), total_steps=FOREVER)  # what the preset derives from the run's length stays
        self.run, self.clock = Run(config, dir), Clock()
        run, around = self.run, self.clock.around
        run.envs.send, run.envs.receive = around(run.envs.send, "simulator"), around(run.envs.receive, "simulator")
        run.agent.act, run.agent.update = around(run.agent.act, "acting"), around(run.agent.update, "learning")
        run.meter.before, run.meter.after = around(run.meter.before, "measuring"), around(run.meter.after, "measuring")
        run.log.enter, run.log.flush = around(run.log.enter, "recording"), around(run.log.flush, "recording")
        run.checkpoint = around(run.checkpoint, "recording")
        self.steps, self.found = run.steps(), []
        while not run.progress.gradient_steps: next(self.steps)

    def turn(self, seconds):
        "Train for a while: microseconds per environment step, part by part."
        self.clock.spent.clear()
        began, first = time.perf_counter(), self.run.progress.step
        while time.perf_counter() - began < seconds: next(self.steps)
        total, steps = time.perf_counter() - began, self.run.progress.step - first
        spent = Counter(self.clock.spent)
        spent["the rest"] = total - sum(spent.values())
        self.found.append({part: 1e6 * spent[part] / steps for part in PARTS} | dict(all=1e6 * total / steps))

    def least(self):
        "Microseconds per environment step that acting and learning take at least, from the products of a few updates."
        first = self.run.progress.step
        acting, learning = record(self.run.agent, lambda: [next(self.steps) for _ in range(3)])
        steps = self.run.progress.step - first
        return dict(acting=acting.microseconds()[0] / steps, learning=learning.microseconds()[0] / steps)


def profile(params, sizes, rounds, seconds):
    "Of each size: spreads of the parts, what they take at least, and what is left to gain."
    with tempfile.TemporaryDirectory() as tmp:
        timed = {size: Timed(params, size, Path(tmp) / str(size)) for size in sizes}
        for r in range(rounds):
            for size in sizes[r % len(sizes):] + sizes[:r % len(sizes)]: timed[size].turn(seconds)
        alone, out = simulator_alone(configure(**params), seconds), {}
        for size, one in timed.items():
            out[size] = dict(parts={part: spread([found[part] for found in one.found]) for part in (*PARTS, "all")}, least=one.least() | dict(simulator=alone))
            one.steps.close()
            one.run.close()
        return dict(sizes=out)


def left(found):
    "What is left to gain at one size: the parts by how much they lie above what they take at least."
    above = {part: found["parts"][part]["median"] - found["least"].get(part, 0) for part in PARTS}
    return ", ".join(f"{part} {gain:.1f} µs ({100 * gain / found['parts']['all']['median']:.0f} %)" for part, gain in sorted(above.items(), key=lambda pair: -pair[1])[:3] if gain > 0)


def markdown(r):
    "The report."
    out = ["# Where the time goes" + " (smoke run: the numbers mean nothing)" * r["quick"], ""] + table(["", ""], [f"{k} | {v}" for k, v in r["machine"].items()])
    out += ["Microseconds per environment step of a recorded run with one thread: the median over the rounds; after the slash what the part takes at least (the simulator by itself; of acting and learning the products of matrices and the convolutions, each by itself). Sizes are rollout lengths, of BTR replay batches.", ""]
    for title, found in r["works"].items():
        out += [f"## {title}", ""]
        rows = [f"{size} | {at['parts']['all']['median']:.1f} ({at['parts']['all']['min']:.1f} – {at['parts']['all']['max']:.1f}) | "
                + " | ".join(f"{at['parts'][part]['median']:.2f}" + (f" / {at['least'][part]:.2f}" if part in at["least"] else "") for part in PARTS) for size, at in found["sizes"].items()]
        out += table(["size", "all (range)", *PARTS], rows)
        out += [f"Above what it takes at least, at size {size}: {left(at)}." for size, at in ([*found["sizes"].items()][0], [*found["sizes"].items()][-1])] + [""]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes and one short round, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the sizes take turns")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON and the Markdown file")
    args = parser.parse_args()
    sizes, rounds, seconds = (list(SIZES[:2]), 1, 0.3) if args.quick else (list(SIZES), args.rounds, args.seconds)
    torch.set_num_threads(1)
    where, began = machine() | {"load average before (a quiet machine: near 0)": f"{os.getloadavg()[0]:.1f}"}, time.perf_counter()
    found: dict = dict(quick=args.quick, machine=where, works={})
    for title, params in WORKS.items():
        print(f"… {title}", file=sys.stderr, flush=True)
        found["works"][title] = profile(params, sizes, rounds, seconds)
    where["minutes"] = f"{(time.perf_counter() - began) / 60:.1f}"
    write(found, markdown, "where_time_goes", args.out)


if __name__ == "__main__": main()
