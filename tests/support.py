"What the tests of resuming and of faults share: processes to start and kill, and runs to compare."
import json, os, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from abs_lab.runs.config import configure
from abs_lab.testing import assert_same_run  # noqa: F401 (the tests of runs import these from here)
from abs_lab.testing import outcome_of as result
from abs_lab.testing import recorded_rows as rows
from abs_lab.testing import state_of as state
from abs_lab.runs.checkpoints import load_tree
from abs_lab.runs.storage import read_jsonl
from abs_lab.studies.results import steps_done

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.executable)
MOVING = dict(controller="abs", interval=1, warmup=3, window=5, low=0.05, high=0.9)  # a size that moves, within a few updates
LANDER = dict(env_id="LunarLander-v3", total_steps=30_000, eval_envs=30, **MOVING)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    "For the modules that import it: one thread, no checkpoint that was not asked for, and a folder of its own."
    for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="1000").items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)
    monkeypatch.chdir(tmp_path)


def write(path, params):
    "Leave the parameters of a run for a process; returns its config."
    path.write_text(json.dumps(params))
    return configure(**params)


def environment(**settings):
    "The environment of a child: this library, one thread, the CPU, and settings by their name in settings.ini."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST" and not k.startswith("ABS_LAB_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env | dict(PYTHONPATH=path, OMP_NUM_THREADS="1", ABS_LAB_DEVICE="cpu", ABS_LAB_THREADS="1") | {
        f"ABS_LAB_{k.upper()}": str(v) for k, v in settings.items()}


def start(*args, cwd, preexec_fn=None, **settings):
    "Start this Python on `args`, as a person would."
    return subprocess.Popen([PYTHON, *map(str, args)], cwd=cwd, env=environment(**settings), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=preexec_fn)


def finish(process, seconds=300):
    "Wait for the end; returns the exit code, stdout and stderr."
    try: out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for(what, process, seconds=120, every=0.005):
    "Poll until `what()` is true; returns whether the process was still there."
    until = time.monotonic() + seconds
    while not what():
        if process.poll() is not None: return False
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)
    return process.poll() is None


def events(dir, kind=None): return [e for e in read_jsonl(Path(dir)/"events.jsonl") if kind in (None, e["event"])]


<<<<<<< HEAD
=======
def rows(dir):
    "The recorded updates without their timings."
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(Path(dir)/"steps.jsonl")]


def leaves(tree, path=()):
    "Every leaf of a tree of state, by its path."
    if isinstance(tree, dict): return {k: v for key, node in tree.items() for k, v in leaves(node, (*path, key)).items()}
    if isinstance(tree, (list, tuple)): return {k: v for i, node in enumerate(tree) for k, v in leaves(node, (*path, i)).items()}
    return {path: tree}


def state(dir):
    "Every leaf of the checkpoint, as comparable values; timings apart."
    tree = load_tree(Path(dir)/"checkpoint.safetensors")
    del tree["seconds"], tree["steps_bytes"]  # the log's length depends on the digits of its timings
    as_bytes = lambda t: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {k: as_bytes(torch.as_tensor(v)) if hasattr(v, "dtype") else v for k, v in leaves(tree).items()}


def result(dir):
    "What a finished run reports, apart from its name, its time and what it ran on."
    apart = ("id", "seconds", "commit", "fingerprint", "versions", "hardware")
    return {k: v for k, v in json.loads((Path(dir)/"result.json").read_text()).items() if k not in apart}


def assert_same_run(one, other):
    "Bit for bit the same run: every recorded update, every leaf of the final checkpoint, every action, the evaluation."
    a, b = rows(one), rows(other)
    assert len(a) == len(b)
    for x, y in zip(a, b): assert x == y, f"update {x['update']} differs in {[k for k in x if x[k] != y.get(k)]}"
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert not (differ := [k for k in a if a[k] != b[k]]), f"the checkpoints differ in {differ}"
    actions = [{f.name: f.read_bytes() for f in Path(d).glob("actions-*")} for d in (one, other)]
    assert actions[0] == actions[1] and actions[0]
    assert result(one) == result(other)


>>>>>>> fingerprint
def done(dir, config):
    "Whether the run has trained to its end and saved that."
    log, checkpoint = Path(dir)/"steps.jsonl", Path(dir)/"checkpoint.safetensors"
    return steps_done(Path(dir)) >= config.total_steps and checkpoint.exists() and checkpoint.stat().st_mtime_ns >= log.stat().st_mtime_ns


def processes_of(mark):
    "Processes whose environment holds `mark`, by their command lines."
    found = {}
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (p/"environ").read_bytes() and p.name != str(os.getpid()): found[p.name] = (p/"cmdline").read_bytes().replace(b"\0", b" ")
        except OSError: pass
    return found
