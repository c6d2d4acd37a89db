"What the tests of resuming and of faults share: processes to start and kill, and runs to compare."
import json, os, shutil, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from abs_lab.runs.config import configure
from abs_lab.testing import assert_same_run  # noqa: F401 (the tests of runs import these from here)
from abs_lab.testing import outcome_of as result
from abs_lab.testing import recorded_rows as rows
from abs_lab.testing import state_of as state
from abs_lab.runs.checkpoints import load_tree
from abs_lab.runs.storage import events_of
from abs_lab.studies.results import steps_done

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.executable)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOVING = dict(controller="abs", interval=1, warmup=3, window=5, low=0.05, high=0.9)  # a size that moves, within a few updates
LANDER = dict(preset="classic", env_id="LunarLander-v3", total_steps=30_000, eval_envs=30, **MOVING)


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


def events(dir, kind=None): return [e for e in events_of(dir) if kind in (None, e["event"])]


def a_row(step=0): return dict(update=1, step=step, gradient_steps=1, size=16, rollout=16, minibatch=64, epochs=1, signal=None, mean=None, episodes=[], seconds=dict(total=1.0))


def a_result(id="x", steps=1):
    "The least that a result holds."
    return dict(id=id, status="finished", steps=steps, updates=1, gradient_steps=1, seconds=1.0, mean_size=16.0, episodes=0, hardware={}, eval=dict(mean=1.0, returns=[1.0]))


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
