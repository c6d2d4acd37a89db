"""How reading grows with what was recorded: many runs in a folder, and many updates in a run.

    python benchmarks/records.py            half an hour, 3 GB of a temporary folder
    python benchmarks/records.py --quick    a smoke run with small numbers

One real run is trained and copied under other seeds, its log lengthened by rows like its own. Each reader runs in a process of its own;
its seconds are without imports, its memory is the most that the process held. Nothing is asserted about speed.
"""
import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

from abs_lab import cli
from abs_lab.live.browser import RunBrowser
from abs_lab.live.what_if import WhatIf
from abs_lab.reports import pages
from abs_lab.runs.config import configure, recall
from abs_lab.runs.provenance import provenance
from abs_lab.runs.runner import run
from abs_lab.runs.storage import config_json, result_of, sealed_line, steps_of, write_sealed
from abs_lab.runs.table import Runs
from abs_lab.runs.traces import Trace
from abs_lab.studies import results

BASE = dict(env_id="CartPole-v1", preset="classic", num_envs=16, size_min=8, size_max=32, total_steps=4_000, eval_envs=2)


# ---- what is read ----

def copies(root, n):
    "A folder `runs/study` with n finished runs."
    study = root / "runs" / "study"
    first = configure(**BASE)
    run(first, study / first.id)
    config, result = config_json(study / first.id), result_of(study / first.id)
    for seed in range(1, n):
        mine = configure(**BASE, seed=seed)
        dir = study / mine.id
        dir.mkdir()
        for name in ("steps.jsonl", "events.jsonl"): os.link(study / first.id / name, dir / name)
        write_sealed(dir / "config.json", config | mine.record())
        write_sealed(dir / "result.json", result | dict(id=mine.id))


def long(root, n):
    "A run with n updates, a hundredth of them measured."
    study = root / "runs" / "study"
    first = configure(**BASE)
    run(first, study / first.id)
    rows, result, config = steps_of(study / first.id), result_of(study / first.id), configure(**BASE | dict(total_steps=n * 16 * 16))
    dir = study / config.id
    shutil.copytree(study / first.id, dir)
    shutil.rmtree(study / first.id)
    crc = 0
    with open(dir / "steps.jsonl", "wb") as file:
        for i in range(n):
            row = {k: v for k, v in rows[i % len(rows)].items() if k != "checksum"}
            step = (i + 1) * 16 * 16
            line, crc = sealed_line(row | dict(update=i + 1, step=step, gradient_steps=8 * (i + 1), signal=0.5 if i % 100 == 0 else None, episodes=[[step, 0, 20.0, 20]], seconds=row["seconds"] | dict(total=i / 100)), crc)
            file.write(line)
    write_sealed(dir / "config.json", config.record())
    write_sealed(dir / "result.json", result | dict(id=config.id, steps=n * 16 * 16, updates=n, gradient_steps=8 * n, episodes=n, train_return=20.0, measurements=-(-n // 100), seconds=n / 100))


# ---- the readers, each called with the folder of the runs ----

def status(runs):
    "`abs-lab status`: the table of all studies."
    cli.main(["status"])

def verify(runs):
    "`abs-lab verify study`: every file against its checksum."
    cli.main(["verify", "study"])

def table(runs):
    "`Runs(…).table`, a row a run."
    return len(Runs(runs / "study").table)

def browser(runs):
    "The dashboard's table of runs: until it is shown, and until it holds all of them."
    began = time.perf_counter()
    async def look():
        view = RunBrowser()
        first, shown = time.perf_counter() - began, len(view.table.rows)
        while view.later: await asyncio.sleep(0.01)
        return f"{shown:,} runs after {first:.2f} s, {len(view.table.rows):,} in the end"
    return asyncio.run(look())

def again(runs):
    "The same once more: of a hundred runs and more there is an index."
    return browser(runs)

def collect(runs):
    "The small file of every run, as a report needs it."
    configs = [recall(config_json(dir)["config"]) for dir in sorted((runs / "study").glob("*/"))]
    return len(results.collect([dict(arm="ABS", **c.flat()) for c in configs], configs, runs / "study", runs.parent / "reports" / "study" / "data")[0])

def page(runs):
    "The page of a study, from the small files."
    found = pages.finished("study", runs.parent / "reports" / "study" / "data", arms=["ABS"])
    pages.study("study", found, str(runs.parent / "reports" / "study"), [], question="How does reading grow?")
    return len(found)

def merge(runs):
    "`merge` of the small files into another folder of reports."
    return len(results.merge(runs.parent / "reports" / "study" / "data", runs.parent / "elsewhere", "study", known={"study": {"CartPole-v1"}})[0])

def trace(runs):
    "The board's first view of one run."
    Trace(next((runs / "study").glob("*/"))).read()

def steps(runs):
    "`Runs(…).steps()`, a row an update."
    return len(Runs(runs / "study").steps())

def what_if(runs):
    "The what-if of one run: opened, and one move of a slider."
    view = WhatIf(next((runs / "study").glob("*/")))
    began = time.perf_counter()
    view.fields["low"].value *= 1.1
    return f"a move {time.perf_counter() - began:.2f} s"


FOLDER = (browser, again, status, verify, table, collect, page, merge)
ONE = (status, trace, steps, collect, page, what_if)
READERS = {f.__name__: f for f in (*FOLDER, *ONE)}


def timed(name, root, most):
    "A reader in a process of its own."
    env = os.environ | dict(ABS_LAB_RUNS_DIR=str(root / "runs"), ABS_LAB_REPORTS_DIR=str(root / "reports"))
    try: done = subprocess.run([sys.executable, __file__, "--reader", name, "--root", str(root)], env=env, cwd=root, timeout=most, capture_output=True, encoding="utf-8")
    except subprocess.TimeoutExpired: return dict(failed=f"more than {most:.0f} s")
    if done.returncode: return dict(failed=(done.stderr.strip().splitlines() or ["no message"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def measure(counts, updates, most):
    "Everything, as rows."
    rows = []
    for make, readers, what, sizes in ((copies, FOLDER, "runs", counts), (long, ONE, "updates", updates)):
        for n in sizes:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                make(root, n)
                for reader in readers:
                    rows.append({what: n, "reader": reader.__name__} | timed(reader.__name__, root, most))
                    print(rows[-1], file=sys.stderr, flush=True)
    return rows


def markdown(r):
    "The report."
    out = ["# The growth of records" + " (smoke run: the numbers mean nothing)" * r["quick"], "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in r["machine"].items()), "",
           f"A folder of so many finished runs, or one run of so many updates. Seconds without imports; MB: the most that the reading process held, about {min(row['mb'] for row in r['rows'] if 'mb' in row):,.0f} of which are imports.", ""]
    for what, readers in (("runs", FOLDER), ("updates", ONE)):
        mine = [row for row in r["rows"] if what in row]
        sizes = sorted({row[what] for row in mine})
        out += [f"| | {' | '.join(f'{n:,} {what}' for n in sizes)} |", "|---|" + "---|" * len(sizes)]
        for reader in readers:
            at = {row[what]: row for row in mine if row["reader"] == reader.__name__}
            out.append(f"| {reader.__doc__.rstrip('.')} | " + " | ".join(f"not measured: {at[n]['failed']}" if "failed" in at[n] else f"{at[n]['seconds']:.2f} s, {at[n]['mb']:,.0f} MB" + f" ({at[n]['said']})" * isinstance(at[n]["said"], str) for n in sizes) + " |")
        out.append("")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that everything runs")
    parser.add_argument("--runs", type=int, nargs="*", default=None, help="sizes of the folder (default: 100 1000 10000)")
    parser.add_argument("--updates", type=int, nargs="*", default=None, help="lengths of the run (default: 10000 100000 1000000)")
    parser.add_argument("--seconds", type=float, default=300, help="after which a reader is given up")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON and the Markdown file")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        began = time.perf_counter()
        said = READERS[args.reader](args.root / "runs")
        print(json.dumps(dict(seconds=time.perf_counter() - began, mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, said=said)))
        return
    origin = provenance()
    machine = {"CPU": origin["hardware"]["cpu"], "cores": origin["hardware"]["cores"], **{k: v for k, v in origin["versions"].items() if v}, "commit": origin["commit"]}
    counts, updates = args.runs if args.runs is not None else ([5, 10] if args.quick else [100, 1_000, 10_000]), args.updates if args.updates is not None else ([100, 200] if args.quick else [10_000, 100_000, 1_000_000])
    found = dict(quick=args.quick, machine=machine, rows=measure(counts, updates, args.seconds))
    name = f"records{'-quick' * args.quick}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / f"{name}.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__": main()
