"""How long a run takes that is not training: until the first update of `abs-lab train`, and per run of a study.

    python benchmarks/startup.py            two minutes on an idle machine
    python benchmarks/startup.py --quick    one round, whose numbers mean nothing

Of `abs-lab train`, the seconds from the command to the end of the first update, as the run's folder records it; beside it, what a process takes
that imports torch and ends. Of a study that trains one run at a time, each in a process of its own through papermill: from the end of one run to
the end of the next, less the seconds of training that its last row of steps.jsonl states. Its final evaluation is cut to one step. Nothing is
asserted about speed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", ABS_LAB_THREADS="1", ABS_LAB_DEVICE="cpu")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # runs from a clone, installed or not

from pqn_speed import machine, spread, table, write

TASKS = {"PQN, CartPole": ["pqn", "--env-id", "CartPole-v1"], "PPO, HalfCheetah": ["ppo", "--env-id", "HalfCheetah-v4"], "BTR, CartPole": ["btr", "--env-id", "CartPole-v1", "--learning-starts", "2000"]}
STUDY = """
from abs_lab import Study
study = Study("startup", "How long does a run take that is not training?", arms={{"fixed 32": dict(controller="fixed", size=32)}},
              common=dict(env_id="CartPole-v1", preset="classic", total_steps=4_096, eval_envs=1, eval_max_steps=1), seeds={seeds}, scales={{"cpu": {{}}}})
"""


def command(*words, folder):
    "Start the command of this project with its runs in a folder."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(ABS_LAB_RUNS_DIR=str(folder), PYTHONPATH=os.pathsep.join([str(HERE.parent), str(folder), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen([sys.executable, "-m", "abs_lab", *words], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def first_update(words):
    "Seconds until a run has made its first update: until training began, as events.jsonl says, and the first row's own."
    with tempfile.TemporaryDirectory() as tmp:
        began = time.time()
        process = command("train", *words, folder=tmp)
        while not (found := [path for path in Path(tmp).rglob("steps.jsonl") if path.stat().st_size]):
            if process.poll() is not None: sys.exit(f"abs-lab train {' '.join(words)} ended with status {process.returncode} and recorded nothing")
            time.sleep(0.1)
        start, row = (json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for path in (found[0].with_name("events.jsonl"), found[0]))
        process.kill()
        process.wait()
    return start["time"] - began + row["seconds"]["total"]


def import_torch():
    "Seconds of a process that imports torch and ends."
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def overheads(runs):
    "Seconds of each run of a study but the first that it did not train; and of the whole command, per run."
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/"startup_study.py").write_text(STUDY.format(seeds=runs), encoding="utf-8")
        began = time.perf_counter()
        process = command("reproduce", "startup_study:study", "--scale", "cpu", "--jobs", "1", folder=tmp)
        if process.wait(): sys.exit(f"the study ended with status {process.returncode}")
        whole = time.perf_counter() - began
        results = sorted(Path(tmp).rglob("result.json"), key=lambda path: path.stat().st_mtime)
        if len(results) != runs: sys.exit(f"{len(results)} of {runs} runs finished")
        trained = [json.loads((path.parent/"steps.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]["total"] for path in results]
        ends = [path.stat().st_mtime for path in results]
    return [b - a - seconds for a, b, seconds in zip(ends, ends[1:], trained[1:])], (whole - sum(trained)) / runs


def markdown(r):
    "The report."
    out = ["# What a run takes beside its training" + " (smoke run: the numbers mean nothing)" * r["quick"], ""] + table(["", ""], [f"{k} | {v}" for k, v in r["machine"].items()])
    out += ["Seconds from the command `abs-lab train` to the first update in the run's folder, and seconds of a study's run, in a process of its own through papermill, in which it does not train. Medians, and the range.", ""]
    rows = [f"{name} | {s['median']:.2f} | {s['min']:.2f} – {s['max']:.2f}" for name, s in r["first"].items()]
    s = r["run"]
    rows += [f"a study's run: PQN, CartPole | {s['median']:.2f} | {s['min']:.2f} – {s['max']:.2f}", f"the same, with the start of the command and the report | {r['command']:.2f} | {s['rounds'] + 1} runs"]
    return "\n".join(out + table(["what", "seconds", "range"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round and three runs, to see that everything runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON and the Markdown file")
    args = parser.parse_args()
    where = machine() | {"load average before (a quiet machine: near 0)": f"{os.getloadavg()[0]:.1f}"}
    first_update(TASKS["PQN, CartPole"])  # Python compiles what was never imported
    measures = {"a process that imports torch and ends": import_torch} | {f"first update: {name}": partial(first_update, words) for name, words in TASKS.items()}
    seconds = {what: [] for what in measures}
    for _ in range(1 if args.quick else 5):
        for what, measure in measures.items(): seconds[what].append(measure())
    first = {what: spread(found) for what, found in seconds.items()}
    runs, command_seconds = overheads(3 if args.quick else 9)
    found = dict(quick=args.quick, machine=where, first=first, run=spread(runs), command=command_seconds)
    write(found, markdown, "startup", args.out)


if __name__ == "__main__": main()
