"""What an update costs in seconds, by its size: the reports' time for runs whose own clock stood under another load.

    python benchmarks/update_seconds.py            every task below, six minutes on a quiet machine; writes abs_lab/reports/seconds.json
    python benchmarks/update_seconds.py --quick    a smoke run whose numbers mean nothing, printed and not written

One thread trains each task with a few fixed sizes and numbers of epochs, nothing beside it. Every update after the first quarter of a run
gives an equation: its seconds are so many an environment step, so many a gradient step, and so many a row of its minibatches. The three
numbers are found by least absolute relative errors over all sizes, which a pause of the machine does not move; beside them stands the
median error of an update's seconds as they tell them. Nothing is asserted about speed.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", ABS_LAB_THREADS="1", ABS_LAB_DEVICE="cpu", ABS_LAB_CHECKPOINT_SECONDS="1000")
ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT/"abs_lab"/"reports"/"seconds.json"
sys.path.insert(0, str(ROOT))  # runs from a clone, installed or not

import numpy as np
from scipy.optimize import nnls

from abs_lab.runs.config import configure
from abs_lab.runs.provenance import provenance
from abs_lab.runs.runner import run
from abs_lab.runs.storage import read_jsonl

TASKS = {  # (agent, task) -> parameters of all its runs, and the sizes and epochs that are tried
    ("pqn", "LunarLander-v3"): (dict(preset="classic", total_steps=60_000), [dict(size=16, epochs=2), dict(size=32, epochs=2), dict(size=64, epochs=2), dict(size=64, epochs=8)]),
    ("pqn", "MinAtar/Breakout-v1"): (dict(preset="minatar", total_steps=80_000), [dict(size=16, epochs=2), dict(size=32, epochs=2), dict(size=64, epochs=2), dict(size=64, epochs=8)]),
    ("ppo", "HalfCheetah-v4"): (dict(preset="mujoco_64", epochs_rule="constant", total_steps=100_000), [dict(size=16, epochs=10), dict(size=32, epochs=10), dict(size=128, epochs=10), dict(size=128, epochs=38)]),
    ("ppo", "Hopper-v4"): (dict(preset="mujoco_64", epochs_rule="constant", total_steps=100_000), [dict(size=16, epochs=10), dict(size=32, epochs=10), dict(size=128, epochs=10), dict(size=128, epochs=38)]),
    ("btr", "LunarLander-v3"): (dict(preset="classic", total_steps=16_000, learning_starts=2_000), [dict(size=32), dict(size=64), dict(size=128), dict(size=256)]),
    ("btr", "MinAtar/Breakout-v1"): (dict(preset="minatar", total_steps=12_000, learning_starts=2_000), [dict(size=32), dict(size=64), dict(size=128), dict(size=256)]),
}


def equations(params, dir):
    "Environment steps, gradient steps, rows of minibatches, and seconds of every update after a run's first quarter."
    config = configure(controller="fixed", eval_envs=1, record_every=1, **params)
    run(config, dir)
    rows = [[row["step"], row["gradient_steps"], row["gradient_steps"] and row["minibatch"], row["seconds"]["total"]] for row in read_jsonl(dir/"steps.jsonl")]
    taken = [[b[0] - a[0], b[1] - a[1], (b[1] - a[1]) * b[2], b[3] - a[3]] for a, b in zip(rows, rows[1:]) if b[0] > config.total_steps / 4]
    return [row for row in taken if row[1]]


def fit(table):
    "Seconds an environment step, a gradient step and a row, and the median error as a share."
    *x, y = np.array(table, float).T
    x, weights = np.stack(x, 1) / y[:, None], np.ones(len(y))  # relative errors: a long update counts no more than a short one
    for _ in range(50):
        found, _ = nnls(x * weights[:, None], weights)
        weights = 1 / np.sqrt(np.abs(x @ found - 1) + 1e-4)
    return found.tolist(), float(np.median(np.abs(x @ found - 1)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick, results = parser.parse_args().quick, []
    for (agent, task), (params, tries) in TASKS.items():
        table = []
        with tempfile.TemporaryDirectory() as root:
            for i, tried in enumerate(tries[:2] if quick else tries):
                table += equations(dict(agent=agent, env_id=task) | params | tried | (dict(total_steps=6_000) if quick else {}), Path(root)/str(i))
        (step, gradient_step, row), error = fit(table)
        results.append(dict(agent=agent, env_id=task, preset=params["preset"], seconds=dict(step=step, gradient_step=gradient_step, row=row), error=error, updates=len(table)))
        print(f"{agent} {task}: {1e6 * step:.1f} µs a step, {1e3 * gradient_step:.3f} ms a gradient step, {1e6 * row:.3f} µs a row; median error {100 * error:.0f} % of {len(table)} updates", flush=True)
        if not quick: FILE.write_text(json.dumps(dict(tasks=results, **provenance()), indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
