"The queue: runs that raise, hang, write NaN or are damaged; kills of queue, worker and node; two queues; leases; what is asked for and what is reported."
import json, multiprocessing, os, resource, signal, sys, threading, time
from pathlib import Path

import pytest

from abs_lab import cli
from abs_lab.runs import storage
from abs_lab.studies import costs, engine, status, workers
from abs_lab.runs.config import configure
from abs_lab.core.interfaces import AbsLabError
from abs_lab.studies.results import collect, save_result, steps_done
from abs_lab.runs.parties import memory_of
from abs_lab.runs.checkpoints import load_tree
from abs_lab.runs.runner import Run, run
from abs_lab.runs.storage import Busy, Lease, result_of, write_sealed
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.clusters import ENGINES
from abs_lab.studies.study import Study
from support import ROOT, a_result, a_row, assert_same_run, events, finish, processes_of, start, wait_for

TINY = dict(env_id="CartPole-v1", num_envs=8, total_steps=2_000, eval_envs=2, interval=1)
NOTEBOOK = ROOT/"nbs"/"experiments"/"pqn.ipynb"


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="0.2", RUNS_DIR=tmp_path/"runs", REPORTS_DIR=tmp_path/"reports").items():
        monkeypatch.setenv(f"ABS_LAB_{key}", str(value))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def command(capsys):
    "Run abs-lab in this process; returns exit code, stdout and stderr."
    def call(*argv):
        try: code = cli.main([*map(str, argv)])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return call


def study(monkeypatch, arms, **more):
    s = Study(**dict(name="tiny", question="?", notebook="nbs/experiments/pqn.ipynb", figures="nbs/figures/quick.ipynb", arms=arms, common=TINY, seeds=1) | more)
    monkeypatch.setitem(STUDIES, "tiny", s)
    return s


def points(seeds, **more): return [TINY | dict(arm="a", seed=s) | more for s in range(seeds)]

def config_of(point): return configure(**{k: v for k, v in point.items() if k not in ("arm", "run_dir")})

def folder(dir, point): return Path(dir)/config_of(point).id


# -- a study with faults -----------------------------------------------------------------------------------------------

FAULTY = """
import ctypes, time
import gymnasium as gym, numpy as np

class Faulty(gym.Env):
    observation_space, action_space, steps = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), 0
    def __init__(self, fault): self.fault = fault
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action):
        Faulty.steps += 1
        if Faulty.steps == 600: time.sleep(1.5)  # so that updates are on disk by then
        if Faulty.steps == 1200 and self.fault == "raises": raise RuntimeError("the simulator broke")
        if Faulty.steps == 1200 and self.fault == "hangs": ctypes.PyDLL(None).sleep(3600)  # in C, and no other thread of the process gets a turn
        return np.zeros(2, np.float32), 1.0, Faulty.steps % 160 < 8, False, {}

for fault in ("raises", "hangs"): gym.register(f"{fault}-v0", entry_point=Faulty, kwargs=dict(fault=fault))
"""

FAULTS = {  # arm -> its parameters, and what is said of it
    "raises": (dict(env_id="faulty_module:raises-v0"), "RuntimeError: the simulator broke"),
    "hangs": (dict(env_id="faulty_module:hangs-v0"), "no new update for"),
    "writes NaN": (dict(reward_scale=1e25), "became"),
    "corrupt folder": (dict(lr=3e-4), "is damaged"),
    "a folder in the way": (dict(lr=4e-4), "Is a directory"),
}


def with_faults(monkeypatch, tmp_path, faults, each, healthy):
    "A study of healthy and faulty runs; returns their folders, healthy ones first."
    (tmp_path/"faulty_module.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("ABS_LAB_CHECKPOINT_SECONDS", "1000")  # a second try begins at the beginning
    arms = {"ABS": dict(seeds=healthy // 2), "fixed": dict(controller="fixed", seeds=healthy - healthy // 2)}
    arms |= {fault: FAULTS[fault][0] | dict(seeds=each) for fault in faults}
    s = study(monkeypatch, arms)
    dirs = {arm: [folder(tmp_path/"runs"/"tiny", p) for p in s.grid() if p["arm"] == arm] for arm in arms}
    for dir in dirs.get("corrupt folder", []) + dirs.get("a folder in the way", []): dir.mkdir(parents=True)
    for dir in dirs.get("corrupt folder", []): (dir/"checkpoint.safetensors").write_bytes(os.urandom(1000))
    for dir in dirs.get("a folder in the way", []): (dir/"steps.jsonl").mkdir()
    return dirs


@pytest.mark.parametrize("faults,each,healthy", [
    (["raises", "hangs"], 1, 2),
    pytest.param([*FAULTS], 4, 80, marks=pytest.mark.long)], ids=["4 runs", "100 runs"])
def test_a_study_with_faults_ends_with_every_healthy_run_done_and_every_fault_named(faults, each, healthy, command, monkeypatch, tmp_path):
    dirs = with_faults(monkeypatch, tmp_path, faults, each, healthy)
    code, out, err = command("reproduce", "tiny", "--jobs", "2", "--timeout", "8s")
    assert code == 1, err
    assert err.count("FAILED") == each * len(faults)
    for fault in faults:
        for dir in dirs[fault]:
            said = err.split(f"FAILED {fault} ({dir.name}), see {dir/'executed.ipynb'}\n")[1].split("\nFAILED")[0]
            assert FAULTS[fault][1] in said and not (dir/"result.json").exists() and (dir/"executed.ipynb").exists()
    for arm in ("ABS", "fixed"):
        for dir in dirs[arm]:
            assert result_of(dir)["status"] == "finished"
            assert [e["event"] for e in events(dir)] == ["start", "finish"]  # once, from beginning to end
    page = (tmp_path/"runs"/"tiny"/"report"/"index.html").read_text()
    assert all(fault in page for fault in faults)  # the report says what is missing
    assert len(list((tmp_path/"runs"/"tiny"/"report"/"data").glob("*.json"))) == healthy and not (tmp_path/"reports").exists()
    found = json.loads(command("status", "tiny", "--json")[1])
    assert (found["done"], found["failed"], found["running"]) == (healthy, each * len(faults), 0)
    assert not processes_of(f"ABS_LAB_RUNS_DIR={tmp_path/'runs'}")  # not even what hung


# -- refused before the first run --------------------------------------------------------------------------------------

def refused(outcome, *words):
    assert outcome[0] == 2 and all(word in outcome[2] for word in words), outcome


def test_a_notebook_without_its_tag(command, monkeypatch, tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]: cell["metadata"] = {}
    (tmp_path/"stripped.ipynb").write_text(json.dumps(notebook))
    for which in ("notebook", "figures"):
        study(monkeypatch, {"a": {}}, **{which: str(tmp_path/"stripped.ipynb")})
        refused(command("reproduce", "tiny"), "stripped.ipynb", "tagged 'parameters'")
    assert not (tmp_path/"runs").exists()


def test_a_missing_kernel(command, monkeypatch, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {})
    study(monkeypatch, {"a": {}})
    refused(command("reproduce", "tiny"), "kernel python3", "ipykernel")
    assert not (tmp_path/"runs").exists()


@pytest.mark.parametrize("flags,words", [
    (["--only", "sede=1"], ["sede", "seed"]), (["--only", "seed=7"], ["seed in the grid '7'", "Valid: 0"]), (["--only", "seed"], ["seed=0,env_id=Pong-v5"]),
    (["--engine", "rai"], ["rai", "ray"]), (["--budget", "9 minutes"], ["9m", "'9 minutes'"]), (["--timeout", "0s"], ["0s"]), (["--jobs", "-1"], ["jobs", "-1"])], ids=str)
def test_flags_of_reproduce(flags, words, command, monkeypatch, tmp_path):
    study(monkeypatch, {"a": {}})
    refused(command("reproduce", "tiny", *flags), *words)
    assert not (tmp_path/"runs").exists()


def test_ray_that_is_not_installed(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    study(monkeypatch, {"a": {}})
    refused(command("reproduce", "tiny", "--engine", "ray"), "abs_lab[ray]")
    assert not list((tmp_path/"runs").glob("*/*/*"))


# -- the loop, with workers that are played ----------------------------------------------------------------------------

class Played:
    "An engine whose workers do what the test says: by a run's seed, a list of what its polls return; 'done' finishes it."
    here, slots, script, started, stopped = False, 2, {}, [], []
    def __init__(self, settings, root, jobs=0): Played.started, Played.stopped = [], []
    def start(self, args, log):
        dir = Path(args[2]["run_dir"])
        seed = args[2]["seed"]
        self.started.append(seed)
        if self.script[seed][:1] == ["no room"]: self.script[seed].pop(0); raise OSError(28, "No space left on device")
        log.write_text("the last words")
        return dir, seed
    def poll(self, worker):
        dir, seed = worker
        step = self.script[seed].pop(0) if self.script[seed] else None
        if step == "done": write_sealed(dir/"result.json", a_result()); return 0
        return step
    def stop(self, worker): self.stopped.append(worker[1])


class Clock:
    "The queue's time, which passes only while it sleeps."
    now, each = 0.0, staticmethod(lambda: None)
    monotonic = classmethod(lambda cls: cls.now)
    @classmethod
    def sleep(cls, seconds): cls.now += seconds; cls.each()


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setitem(ENGINES, "played", Played)
    monkeypatch.setattr(engine, "time", Clock)
    monkeypatch.setattr(Clock, "each", staticmethod(lambda: None))
    def queue(script, dir, **more):
        Clock.now = 0.0
        Played.script = {seed: list(steps) for seed, steps in script.items()}
        return engine.run_queue(NOTEBOOK, points(len(script)), dir, engine="played", quiet=True, **more)
    return queue


def test_a_failure_is_tried_once_more_and_a_lost_machine_is_no_failure(played, tmp_path):
    failures = played({0: [1, "done"], 1: [75, 75, None, 75, "done"], 2: [-9, 3], 3: ["no room", "no room"], 4: [75, 1, 75, 1], 5: [75, 130]}, tmp_path)
    assert [Played.started.count(s) for s in range(6)] == [2, 4, 2, 2, 4, 2]
    stopped = "somebody has stopped it, or cancelled its job; the same command goes on with it"
    assert {f.id: f.message for f in failures} == {folder(tmp_path, p).name: said for p, said in zip(points(6), (
        None, None, "the last words", "No space left on device", "the last words", stopped)) if said}
    for f in failures: assert json.loads((tmp_path/f.id/"failure.json").read_text()) == vars(f)
    assert not any(status.held(dir) for dir in tmp_path.iterdir())


@pytest.mark.parametrize("stores, at_once", [(0.5, 1), (2.1, 2), (9, 4)])
def test_no_more_runs_at_once_than_their_replays_have_memory_for(stores, at_once, monkeypatch, played, tmp_path):
    monkeypatch.setitem(ENGINES, "played", type("Here", (Played,), dict(here=True, slots=4)))
    grid = [dict(agent="btr", env_id="CartPole-v1", total_steps=5_000, replay_size=20_000, arm="a", seed=s) for s in range(4)]
    monkeypatch.setattr(engine, "free_memory", lambda: stores * memory_of(config_of(grid[0])))
    begun = []
    monkeypatch.setattr(Clock, "each", staticmethod(lambda: begun.append(len(Played.started))))
    Played.script = {s: [None, "done"] for s in range(4)}
    assert engine.run_queue(ROOT/"nbs"/"experiments"/"btr.ipynb", grid, tmp_path, engine="played", quiet=True) == []
    assert begun[0] == at_once and sorted(Played.started) == [0, 1, 2, 3]


def test_a_run_folder_that_is_a_file(played, tmp_path):
    folder(tmp_path, points(1)[0]).write_text("")
    failure, = played({0: [], 1: ["done"]}, tmp_path)
    assert "File exists" in failure.message and result_of(folder(tmp_path, points(2)[1]))


def test_a_run_of_another_process_is_neither_failed_nor_started(played, tmp_path, monkeypatch):
    mine, theirs = (folder(tmp_path, p) for p in points(2))
    theirs.mkdir()
    lease = Lease(theirs/"lock")
    def each():
        if Clock.now == 5: write_sealed(theirs/"result.json", a_result()); lease.close()
        assert Clock.now < 10
    monkeypatch.setattr(Clock, "each", staticmethod(each))
    assert played({0: [None, "done"], 1: []}, tmp_path) == [] and Played.started == [0] and Clock.now >= 5


def test_a_run_that_another_process_gave_up_is_taken(played, tmp_path, monkeypatch):
    theirs = folder(tmp_path, points(1)[0])
    theirs.mkdir()
    lease = Lease(theirs/"queue")
    monkeypatch.setattr(Clock, "each", staticmethod(lease.close))
    assert played({0: ["done"]}, tmp_path) == [] and Played.started == [0]


def test_patience(played, tmp_path, monkeypatch):
    "Between updates the timeout; before the first one and after the last ten times that."
    dir = folder(tmp_path, points(1)[0])
    log, ended = dir/"steps.jsonl", []
    monkeypatch.setattr(Played, "stop", lambda self, worker: ended.append(Clock.now))
    for step, seconds in ((None, 300), (100, 50 + 30), (5_000, 50 + 300)):   # no update; one of the middle at 50 s; the last at 50 s
        for old in (log, dir/"events.jsonl"): old.unlink(missing_ok=True)
        def each(step=step):
            if Clock.now == 50 and step: log.write_text(json.dumps(a_row(step=step)) + "\n")
            if Clock.now == 40 and step: (dir/"events.jsonl").write_text(json.dumps(dict(event="start", step=0, time=0)) + "\n")
        monkeypatch.setattr(Clock, "each", staticmethod(each))
        ended.clear()
        failure, = played({0: []}, tmp_path, timeout=30)
        assert failure.message.startswith("no new update for") and seconds < ended[0] <= seconds + 2 and len(ended) == 2


def test_a_budget_starts_only_what_will_finish_and_stops_the_rest(played, tmp_path, monkeypatch):
    cost = costs.Cost(config_of(points(1)[0]).flat(), 80 / 2_000, None, {})   # 80 s, and 10 to start
    monkeypatch.setattr(engine, "costs", lambda here: [cost])
    assert played({0: [], 1: [], 2: []}, tmp_path/"short", until=60) == [] and Played.started == []
    busy = [None] * 170 + ["done"]                                               # 85 s
    assert played({0: busy, 1: busy, 2: []}, tmp_path/"one", until=160) == []
    assert Played.started == [0, 1] and not Played.stopped and 85 <= Clock.now < 90  # 70 s are left, too few for the third: the queue ends at once
    monkeypatch.setattr(engine, "costs", lambda here: [])                             # nothing is known: tried, and stopped at the deadline
    assert played({0: [], 1: [], 2: []}, tmp_path/"unknown", until=60) == []
    assert sorted(Played.started) == sorted(Played.stopped) == [0, 1] and Clock.now == 60
    assert not list((tmp_path/"unknown").glob("*/failure.json"))


def test_the_pace_of_running_runs_counts_where_none_is_finished(tmp_path, monkeypatch):
    job, ours = (engine.Job(p, config_of(p), folder(tmp_path, p)) for p in points(2))
    monkeypatch.setattr(engine, "rate", lambda dir: 20.0)                    # 2,000 steps: 100 s, and 10 to start
    now = time.monotonic()
    assert engine._in_time(job, now + 115, [], [ours]) and not engine._in_time(job, now + 105, [], [ours]) and engine._in_time(job, now + 1, [], [])


# -- what is done, and what a report has -------------------------------------------------------------------------------

@pytest.fixture
def small_file(monkeypatch, tmp_path):
    "A study of two runs, of which one is in its report's data and has no folder."
    s = study(monkeypatch, {"a": dict(seeds=2)})
    point = s.grid()[0]
    run(config_of(point), tmp_path/"elsewhere"/config_of(point).id)
    collect([point], [config_of(point)], tmp_path/"elsewhere", tmp_path/"reports"/"tiny"/"data")
    return s, config_of(point).id


def test_a_run_whose_small_file_is_there_counts_as_done(small_file, command, monkeypatch):
    s, id = small_file
    lines = command("reproduce", "tiny", "--dry-run")[1].split("\n")
    assert [line.split()[0] for line in lines[:2]] == ["done", "to"] and id in lines[0] and "1 of 2 runs to train" in lines[2]
    work = engine.prepare("tiny")
    assert engine._gather(work, []) == ([id], ["a, CartPole-v1, seed 1"])
    started = []
    monkeypatch.setattr(engine, "run_queue", lambda *args, recorded, **more: started.append(set(recorded)) or [])
    monkeypatch.setattr(engine.subprocess, "run", lambda *args, **more: type("Done", (), dict(returncode=0)))
    assert engine.reproduce("tiny").missing == ["a, CartPole-v1, seed 1"] and started == [{id}]
    study(monkeypatch, {"a": dict(seeds=2)}, trains_here=True)
    assert engine.prepare("tiny").recorded() == {} and engine._gather(engine.prepare("tiny"), []) == ([], ["a, CartPole-v1, seed 0", "a, CartPole-v1, seed 1"])


def test_recorded_runs_of_other_code_are_not_mixed_in(small_file, command, monkeypatch, tmp_path):
    data = tmp_path/"reports"/"tiny"/"data"
    small = json.loads((data/f"{small_file[1]}.json").read_text())
    result = small["result"] | dict(commit="0123456789ab")
    save_result(small | dict(result=result | dict(fingerprint=dict(abs_lab="0" * 12))), data)
    refused(command("reproduce", "tiny"), "trained differently", "the code that trains pqn, general", "0123456789ab (1 run)", "tools/fingerprints.py", "--allow-mixed-commits")
    save_result(small | dict(result=result | dict(versions=result["versions"] | dict(numpy="1.0.0"))), data)
    refused(command("reproduce", "tiny", "--dry-run"), "trained differently", "numpy: 1.0.0 (1 run)")
    save_result(small | dict(result=result), data)  # another commit, and the same code
    assert command("reproduce", "tiny", "--dry-run")[0] == 0


def test_runs_that_replay_others_are_named_until_those_are_finished(command, monkeypatch, tmp_path):
    s = study(monkeypatch, {"a": dict(seeds=2, total_steps=2_000), "b": dict(controller="replayed", replays="a", seeds=2)})
    work = engine.prepare("tiny")
    assert work.later == ["b, CartPole-v1, seed 0", "b, CartPole-v1, seed 1"] and engine._gather(work, [])[1] == ["a, CartPole-v1, seed 0", "a, CartPole-v1, seed 1", "b, CartPole-v1, seed 0", "b, CartPole-v1, seed 1"]
    assert "and 2 more that replay others" in command("reproduce", "tiny", "--dry-run")[1]
    for point in s.grid(): run(config_of(point), folder(tmp_path/"runs"/"tiny", point))
    engine._gather(work, [])
    assert engine.prepare("tiny").later == [] and [p["arm"] for p in engine.prepare("tiny").grid] == ["a", "b", "a", "b"]


def test_a_finished_run_whose_log_is_lost_is_named_and_the_rest_is_reported(monkeypatch, tmp_path):
    s = study(monkeypatch, {"a": dict(seeds=2)})
    for point in s.grid(): run(config_of(point), folder(tmp_path/"runs"/"tiny", point))
    work, failures = engine.prepare("tiny"), []
    (tmp_path/"runs"/"tiny"/work.configs[0].id/"steps.jsonl").unlink()
    ids, missing = engine._gather(work, failures)
    assert ids == [work.configs[1].id] and missing == ["a, CartPole-v1, seed 0 (its folder cannot be read)"] and [f.id for f in failures] == [work.configs[0].id]


def test_a_small_file_is_written_once_however_large_the_grid_becomes(monkeypatch, tmp_path):
    s = study(monkeypatch, {"a": dict(seeds=1, total_steps=16_000, controller="fixed")})
    point, data = s.grid()[0], tmp_path/"runs"/"tiny"/"report"/"data"
    dir = folder(tmp_path/"runs"/"tiny", point)
    run(config_of(point), dir)
    assert engine._gather(engine.prepare("tiny"), [])[0] == [dir.name]
    before = (data/f"{dir.name}.json").read_bytes(), (data/f"{dir.name}.json").stat().st_mtime_ns
    study(monkeypatch, {"a": dict(seeds=101, total_steps=16_000, controller="fixed")})
    assert engine._gather(engine.prepare("tiny"), [])[0] == [dir.name]
    assert before == ((data/f"{dir.name}.json").read_bytes(), (data/f"{dir.name}.json").stat().st_mtime_ns) and len(json.loads(before[0])["curve"]["step"]) == 50
    study(monkeypatch, {"b": dict(seeds=1, total_steps=16_000, controller="fixed")})              # another label: written anew
    engine._gather(engine.prepare("tiny"), [])
    assert json.loads((data/f"{dir.name}.json").read_text())["params"]["arm"] == "b"
    result = result_of(dir) | dict(seconds=1.0)  # another result, too
    write_sealed(dir/"result.json", result)
    engine._gather(engine.prepare("tiny"), [])
    assert json.loads((data/f"{dir.name}.json").read_text())["result"] == result


def test_a_torn_result_is_written_again(tmp_path):
    config = config_of(points(1)[0])
    before = run(config, tmp_path/"x")
    (tmp_path/"x"/"result.json").write_text('{"id": "Cart')
    assert run(config, tmp_path/"x")["eval"] == before["eval"] == result_of(tmp_path/"x")["eval"]


def test_a_dry_run_estimates_time_and_disk_or_says_that_it_cannot(command, monkeypatch, tmp_path):
    s = study(monkeypatch, {"a": dict(seeds=3)})
    out = command("reproduce", "tiny", "--dry-run", "--only", "seed=1,seed=2")[1]
    assert out.count("(time unknown, disk unknown)") == 2 and "expected: time unknown, disk unknown" in out
    assert not (tmp_path/"runs").exists()
    run(config_of(s.grid()[0]), folder(tmp_path/"runs"/"tiny", s.grid()[0]))
    out = command("reproduce", "tiny", "--dry-run", "--jobs", "1")[1]
    assert out.count("unknown") == 0 and out.count(" MB)") == 2 and "2 of 3 runs to train" in out and out.count("  done ") == 1
    bytes = sum(f.stat().st_size for f in folder(tmp_path/"runs"/"tiny", s.grid()[0]).iterdir())
    steps = result_of(folder(tmp_path/"runs"/"tiny", s.grid()[0]))["steps"]
    assert len(costs.costs(here=True)) == 1
    result = folder(tmp_path/"runs"/"tiny", s.grid()[0])/"result.json"
    found = json.loads(result.read_text())
    write_sealed(result, found | dict(hardware=found["hardware"] | dict(cpu="another")))
    assert costs.costs(here=True) == [] and "as recorded on other hardware" in command("reproduce", "tiny", "--dry-run")[1]
    assert "hardware" not in out and f"{2 * bytes / steps * 2_000 / 1e6:.1f} MB" in out.split("\n")[-2]


# -- a report of one's own ---------------------------------------------------------------------------------------------

def drawn(monkeypatch):
    "Draw the figure notebook here, in this process: a kernel for it would take longer than the page."
    def execute(argv, cwd, input, **more):
        notebook, page, params = json.loads(input)
        space = {}
        with monkeypatch.context() as m:
            m.chdir(cwd)
            m.setenv("BROWSER_PATH", "/nonexistent")
            for cell in json.loads(Path(notebook).read_text())["cells"]:
                if cell["cell_type"] == "code": exec("".join(cell["source"]), space)
                if "parameters" in cell["metadata"].get("tags", []): space |= params
        return type("Done", (), dict(returncode=0))
    monkeypatch.setattr(engine.subprocess, "run", execute)


def committed(tmp_path): return {f.relative_to(tmp_path/"reports"): (f.read_bytes(), f.stat().st_mtime_ns) for f in (tmp_path/"reports").rglob("*") if f.is_file()}


@pytest.fixture
def rerun(monkeypatch, tmp_path):
    "A study that trains here, of two arms whose three runs each are committed and were trained again; of two of them the committed report says something else."
    s = study(monkeypatch, {"fixed 16": dict(controller="fixed", size=16), "ABS 16–64": dict(controller="abs")}, seeds=3, trains_here=True)
    for point in s.grid(): run(config_of(point), folder(tmp_path/"runs"/"tiny", point))
    collect(s.grid(), [config_of(p) for p in s.grid()], tmp_path/"runs"/"tiny", tmp_path/"reports"/"tiny"/"data")
    for point in s.grid()[:1]:
        data = tmp_path/"reports"/"tiny"/"data"
        small = json.loads((data/f"{config_of(point).id}.json").read_text())
        small["result"]["eval"] |= dict(mean=12.25, returns=[12.25] * len(small["result"]["eval"]["returns"]))
        save_result(small, data)
    drawn(monkeypatch)
    return s


def test_a_report_of_ones_own_leaves_the_committed_one_alone_and_is_held_against_it(rerun, tmp_path):
    before = committed(tmp_path)
    outcome = engine.reproduce("tiny", jobs=1)
    assert outcome.report == tmp_path/"runs"/"tiny"/"report"/"index.html" and not outcome.failures and committed(tmp_path) == before
    page = outcome.report.read_text()
    assert (tmp_path/"runs"/"tiny"/"plotly.min.js").stat().st_size > 1e6 and 'src="../plotly.min.js"' in page
    assert "Of the runs of the committed report 6 were trained again here: 5 of 6 returns the same to the last digit. Others are: fixed 16, CartPole-v1, seed 0:" in page and "instead of 12.2" in page
    assert "As the committed runs" in page and "2 of 3 the same to the last digit; seed 0:" in page and "<td>3 of 3 the same to the last digit</td>" in page
    assert {f.name for f in outcome.report.parent.iterdir() if f.suffix != ".svg"} >= {"data", "index.html", "summary.json", "results.csv"}


def test_publish_writes_the_committed_report(rerun, tmp_path):
    outcome = engine.reproduce("tiny", jobs=1, publish=True)
    assert outcome.report == tmp_path/"reports"/"tiny"/"index.html" and not (tmp_path/"runs"/"tiny"/"report").exists()
    assert "were trained again" not in outcome.report.read_text()
    means = {json.loads(f.read_text())["result"]["eval"]["mean"] for f in (tmp_path/"reports"/"tiny"/"data").glob("*.json")}
    assert 12.25 not in means and len(list((tmp_path/"reports"/"tiny"/"data").glob("*.json"))) == 6


def test_committed_runs_that_need_no_training_are_drawn_with_those_that_were_trained_here(small_file, monkeypatch, tmp_path):
    s, id = small_file
    other = s.grid()[1]
    run(config_of(other), folder(tmp_path/"runs"/"tiny", other))
    drawn(monkeypatch)
    before = committed(tmp_path)
    monkeypatch.setitem(STUDIES, "tiny", Study(**vars(s) | dict(figures="nbs/figures/study.ipynb")))
    outcome = engine.reproduce("tiny")
    assert outcome.missing == [] and committed(tmp_path) == before
    assert [f.stem for f in (tmp_path/"runs"/"tiny"/"report"/"data").iterdir()] == [config_of(other).id]
    assert (outcome.report.parent/"results.csv").read_text().count("\n") == 3
    published = engine.reproduce("tiny", publish=True)              # the committed one is made of its own data alone
    assert published.missing == [] and {f.stem for f in (tmp_path/"reports"/"tiny"/"data").iterdir()} == {id, config_of(other).id}


def test_a_small_file_that_was_merged_into_ones_own_report_is_published_with_it(small_file, monkeypatch, tmp_path):
    s, id = small_file
    (tmp_path/"runs"/"tiny"/"report").mkdir(parents=True)
    (tmp_path/"reports"/"tiny"/"data").rename(tmp_path/"runs"/"tiny"/"report"/"data")
    work = engine.prepare("tiny", publish=True)
    assert engine._gather(work, [], publish=True)[0] == [id] and (tmp_path/"reports"/"tiny"/"data"/f"{id}.json").exists()


MINE = """
from dataclasses import dataclass
from abs_lab.core.controllers import Fixed
from abs_lab.studies.study import Study

@dataclass
class Mine(Fixed):
    "A controller of one's own."

def mine():
    return Study("mine", "Is b better than a?", arms={"a": dict(controller="fixed"), "b": dict(controller="my_studies:Mine")},
                 common=dict(env_id="CartPole-v1", num_envs=8, total_steps=2_000, eval_envs=2, interval=1, size=16), seeds=1)
"""

def test_a_study_of_ones_own_is_reproduced_merged_and_looked_at_in_a_folder_of_its_own(tmp_path):
    (tmp_path/"my_studies.py").write_text(MINE)
    def call(*argv): return finish(start("-c", "import sys; from abs_lab.cli import main; sys.exit(main())", *argv, cwd=tmp_path))
    code, out, err = call("reproduce", "my_studies:mine", "--jobs", "2")
    report = tmp_path/"runs"/"mine"/"report"
    assert (code, out) == (0, f"report: {report/'index.html'}\n"), err
    page = (report/"index.html").read_text()
    assert "<title>Is b better than a?</title>" in page and "b over a" in page and "2L // 32" not in page and "abs-lab reproduce my_studies:mine" in page and not (tmp_path/"reports").exists()
    assert {f.name for f in report.iterdir() if f.suffix != ".svg"} == {"data", "index.html", "summary.json", "results.csv", "compare.md", "mine.ipynb"}
    (tmp_path/"my_studies.py").unlink()                  # from here on nothing needs it
    assert call("status")[1] == "mine: 2 of 2 runs finished\n"
    assert call("merge", "runs/mine/report/data", "mine")[1].endswith("2 taken, 0 there already, 0 refused\n")
    assert len(list((tmp_path/"reports"/"mine"/"data").iterdir())) == 2
    assert "did you mean quick" in call("reproduce", "quik")[2] and "my_studies" in call("reproduce", "my_studies:mine")[2]


def test_a_studys_name_elsewhere_means_its_folder(monkeypatch, tmp_path, capsys):
    (tmp_path/"studies_elsewhere.py").write_text("from abs_lab import Study\nmine = Study('elsewhere', '?', arms={'a': {}}, seeds=1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    for asked in (["status"], ["verify"], ["figure"]): assert cli.main([*asked, "studies_elsewhere:mine"]) == 2 and "'elsewhere'" in capsys.readouterr().err  # nothing there yet
    (tmp_path/"runs"/"elsewhere").mkdir(parents=True)
    assert cli.main(["status", "studies_elsewhere:mine"]) == 0 and capsys.readouterr().out.startswith("elsewhere: ")
    assert cli.main(["verify", "studies_elsewhere:mine"]) == 0 and cli.main(["status", "studies_elsewhere:other"]) == 2


def test_a_study_itself_can_be_reproduced(monkeypatch, tmp_path):
    s = Study("mine", "?", arms={"a": {}}, common=TINY | dict(total_steps=500), seeds=1)
    run(config_of(s.grid()[0]), folder(tmp_path/"runs"/"mine", s.grid()[0]))
    drawn(monkeypatch)
    assert engine.reproduce(s).report.read_text().count("<h1>?</h1>") == 1
    with pytest.raises(AbsLabError, match="letters, digits"): Study("my/mine", "?", arms={"a": {}})


# -- the table ---------------------------------------------------------------------------------------------------------

def test_the_table_redraws_itself_in_a_terminal_and_prints_lines_elsewhere(tmp_path, capsys, monkeypatch):
    p = points(2)
    held = folder(tmp_path, p[0])
    held.mkdir()
    (held/"worker.log").touch()
    lease = Lease(held/"queue")
    live = status.Live(lambda: status.survey(tmp_path, [(config_of(x).id, "a" * 300, 2_000) for x in p]), False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    live.show()
    live.show()                # a second has not passed
    live.show(last=True)
    first, second = capsys.readouterr().err.split("\x1b[2F\x1b[J")
    assert first.split("\n")[0].endswith("0 of 2 runs finished, 1 running, 1 waiting") and "running" in first.split("\n")[1]
    assert max(map(len, first.split("\n"))) < 80 and first == second
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    live.show(last=True)
    assert capsys.readouterr().err.count("\n") == 1
    lease.close()


def test_status_shows_the_pace_of_what_runs(command, monkeypatch, tmp_path):
    s = study(monkeypatch, {"a": dict(seeds=2, total_steps=100_000)})
    engine.prepare("tiny").announce()                    # as the queue does when it begins
    r = Run(config_of(s.grid()[0]), folder(tmp_path/"runs"/"tiny", s.grid()[0]))
    for step in r.steps():
        if step.step > 5_000: break
    r.log.flush()
    found = json.loads(command("status", "tiny", "--json")[1])
    assert (found["total"], found["running"], found["waiting"]) == (2, 1, 1) and found["runs"][0]["step"] == step.step
    assert found["steps_per_second"] > 0 and found["eta_seconds"] >= found["runs"][0]["eta_seconds"] > 0
    assert "steps/s" in command("status", "tiny")[1]
    r.close()
    assert json.loads(command("status", "tiny", "--json")[1])["running"] == 0


def test_status_counts_what_the_report_records(small_file, command, monkeypatch, tmp_path):
    "Also where no runs folder is, as in a fresh clone."
    assert command("status") == (0, "tiny: 1 of 1 runs finished\n", "") and not (tmp_path/"runs").exists()
    engine.prepare("tiny").announce()                    # as the queue does when it begins
    assert command("status") == (0, "tiny: 1 of 2 runs finished, 1 waiting\n", "")
    found = json.loads(command("status", "tiny", "--json")[1])
    assert [(r["id"] == small_file[1], r["state"]) for r in found["runs"]] == [(True, "done"), (False, "waiting")]
    study(monkeypatch, {"a": dict(seeds=2)}, trains_here=True)             # what is recorded is trained again there
    engine.prepare("tiny").announce()
    assert json.loads(command("status", "tiny", "--json")[1])["done"] == 0


def test_status_shows_what_the_folder_of_an_unknown_study_holds(small_file, command, tmp_path):
    (tmp_path/"runs"/"broken"/"x").mkdir(parents=True)
    write_sealed(tmp_path/"runs"/"broken"/"x"/"config.json", config_of(points(1)[0]).record())
    (tmp_path/"runs"/"broken"/"torn").mkdir()
    (tmp_path/"runs"/"broken"/"torn"/"config.json").write_text("{")
    assert command("status") == (0, "broken: 0 of 2 runs finished, 2 waiting\ntiny: 1 of 1 runs finished\n", "")
    assert "its config.json cannot be read" in command("status", "broken")[1]


# -- leases ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def machines(monkeypatch):
    "Two machines that share a folder on a file system whose locks hold on each of them alone."
    monkeypatch.setattr(storage.fcntl, "flock", lambda *args: None)
    def on(name): monkeypatch.setattr(storage, "MACHINE", f"{name}/boot")
    return on


def age(path, seconds): os.utime(path, (time.time() - seconds,) * 2)


def test_another_machine_waits_until_a_sign_of_life_is_a_minute_old(machines, tmp_path):
    machines("one")
    lease = Lease(tmp_path/"lock")
    machines("two")
    with pytest.raises(Busy, match="another machine: one/boot"): Lease(tmp_path/"lock")
    assert Lease.held(tmp_path/"lock")
    age(tmp_path/"lock.alive", 59)
    with pytest.raises(Busy): Lease(tmp_path/"lock")
    age(tmp_path/"lock.alive", 61)
    assert not Lease.held(tmp_path/"lock")
    taken = Lease(tmp_path/"lock")
    with pytest.raises(Busy, match="taken over"): lease.check()
    lease.close()
    taken.check()                                      # closing a lost lease takes nothing away
    taken.close()
    assert not (tmp_path/"lock.alive").exists()


def test_a_sign_of_life_is_renewed(machines, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BEAT", 0.05)
    lease = Lease(tmp_path/"lock")
    age(tmp_path/"lock.alive", 1000)
    until = time.monotonic() + 10
    while time.time() - (tmp_path/"lock.alive").stat().st_mtime > 900 and time.monotonic() < until: time.sleep(0.05)
    assert time.time() - (tmp_path/"lock.alive").stat().st_mtime < 60
    lease.close()


def test_a_reader_without_write_rights_sees_the_lease(machines, tmp_path, monkeypatch):
    machines("one")
    lease = Lease(tmp_path/"lock")
    machines("two")
    def refuse(*args): raise PermissionError("not the owner")
    with monkeypatch.context() as m:
        m.setattr(storage.os, "utime", refuse)
        assert Lease.held(tmp_path/"lock")
    age(tmp_path/"lock.alive", 61)
    with monkeypatch.context() as m:
        m.setattr(storage.os, "utime", refuse)
        assert not Lease.held(tmp_path/"lock")
    lease.close()


def test_signing_leaves_nothing_behind(machines, tmp_path, monkeypatch):
    old, fresh = tmp_path/"lock.alive.0123abcd", tmp_path/"lock.alive.4567abcd"    # of a process that was killed, and of one that is signing
    for f in (old, fresh): f.write_text("")
    age(old, 100)
    Lease(tmp_path/"lock").close()
    assert {f.name for f in tmp_path.iterdir()} == {"lock", fresh.name}
    fresh.unlink()
    with monkeypatch.context() as m:                                               # another machine signs between the look and the signature
        m.setattr(storage, "_signature", lambda path: (path.with_name("lock.alive").write_text("two/boot"), (None, 0.0))[1])
        with pytest.raises(Busy): Lease(tmp_path/"lock")
    assert {f.name for f in tmp_path.iterdir()} == {"lock", "lock.alive"}


def contend(name, path, barrier, got):
    storage.MACHINE = f"machine-{name}/boot"
    barrier.wait()
    try: lease = Lease(path)
    except Busy: lease = None
    got.put(lease is not None)
    barrier.wait()


@pytest.mark.parametrize("expired", [True, False])
def test_of_many_machines_that_find_an_expired_sign_or_none_one_takes_over(expired, machines, tmp_path):
    (tmp_path/"lock").touch()
    if expired: (tmp_path/"lock.alive").write_text("gone/boot process 1"); age(tmp_path/"lock.alive", 100)
    fork = multiprocessing.get_context("fork")
    barrier, got = fork.Barrier(6), fork.Queue()
    processes = [fork.Process(target=contend, args=(i, tmp_path/"lock", barrier, got)) for i in range(6)]
    for p in processes: p.start()
    assert sorted(got.get(timeout=60) for _ in processes) == [False] * 5 + [True]
    for p in processes: p.join()


def test_a_process_that_lost_its_run_writes_no_more(machines, tmp_path):
    machines("one")
    config, dir = config_of(points(1, total_steps=6_000)[0]), tmp_path/"x"
    one = Run(config, dir)
    steps = one.steps()
    for _ in range(10): next(steps)
    one.checkpoint()
    for _ in range(5): next(steps)                     # in its buffer
    age(dir/"lock.alive", 100)                         # it was stopped for long
    machines("two")
    two = Run(config, dir)
    for _ in two.steps(): pass
    two.finish()
    before = {f.name: f.read_bytes() for f in dir.iterdir() if not f.name.startswith("lock")}
    machines("one")
    with pytest.raises(Busy): one.checkpoint()
    one.close()
    assert {f.name: f.read_bytes() for f in dir.iterdir() if not f.name.startswith("lock")} == before
    two.close()
    run(config, tmp_path/"whole")
    assert_same_run(tmp_path/"whole", dir)


def test_a_kill_frees_the_folder_on_its_own_machine_at_once(tmp_path):
    process = start("-c", "import sys, time; from abs_lab.runs.storage import Lease; lease = Lease('lock'); print(1, flush=True); time.sleep(600)", cwd=tmp_path)
    assert process.stdout.readline() == "1\n" and Lease.held(tmp_path/"lock")
    process.kill()
    process.communicate()
    assert (tmp_path/"lock.alive").exists() and not Lease.held(tmp_path/"lock")
    Lease(tmp_path/"lock").close()


# -- kills, and two queues ---------------------------------------------------------------------------------------------

QUEUE = """
import json, sys
from abs_lab.studies.engine import run_queue
notebook, points, dir, jobs = json.loads(sys.argv[1])
print([f.message for f in run_queue(notebook, points, dir, jobs)])
"""

def queue(points, dir, jobs=1, preexec_fn=None, **settings):
    settings = dict(runs_dir=dir, checkpoint_seconds=0.2) | settings
    return start("-c", QUEUE, json.dumps([str(NOTEBOOK), points, str(dir), jobs]), cwd=ROOT, preexec_fn=preexec_fn, **settings)


def gone(mark, seconds=20):
    "Wait until no process of a queue is left."
    until = time.monotonic() + seconds
    while (left := processes_of(mark)) and time.monotonic() < until: time.sleep(0.2)
    return not left


def test_a_queue_that_is_killed_leaves_nothing_behind_and_another_goes_on(tmp_path):
    dir, two = tmp_path/"runs", points(2, total_steps=40_000)
    first = queue(two, dir)
    assert wait_for((folder(dir, two[0])/"checkpoint.safetensors").exists, first, every=0.05)
    first.kill()
    first.communicate()
    assert gone(f"ABS_LAB_RUNS_DIR={dir}")
    assert not result_of(folder(dir, two[0])) and steps_done(folder(dir, two[0])) > 0
    code, out, err = finish(queue(two, dir))
    assert (code, out) == (0, "[]\n"), err
    assert [e["event"] for e in events(folder(dir, two[0]))] == ["start", "resume", "finish"] and events(folder(dir, two[0]), "resume")[0]["step"] > 0
    assert [e["event"] for e in events(folder(dir, two[1]))] == ["start", "finish"]
    run(config_of(two[0]), tmp_path/"whole")
    assert_same_run(tmp_path/"whole", folder(dir, two[0]))


def test_a_worker_says_that_its_run_is_not_finished_and_has_not_failed(tmp_path):
    "Another process has it; its machine is taken away; somebody stops it. It is saved."
    point = points(1, total_steps=200_000)[0]
    dir, here = folder(tmp_path, point), workers.Local(dict(jobs=1), ROOT)
    dir.mkdir()
    def begin(): return here.start([str(NOTEBOOK), str(dir/"executed.ipynb"), point | dict(run_dir=str(dir))], dir/"worker.log")
    lease = Lease(dir/"lock")
    assert begin().wait() == workers.RETRY and "is being written by another process" in (dir/"executed.ipynb").read_text()
    lease.close()
    worker = begin()
    assert wait_for((dir/"checkpoint.safetensors").exists, here.nursery.process, every=0.05)
    kernel, = workers.psutil.Process(worker.pid).children()
    for process in (here.nursery.process.pid, worker.pid, kernel.pid): os.kill(process, signal.SIGTERM)   # as a cluster does
    assert worker.wait() == workers.RETRY and not result_of(dir)
    worker = begin()
    assert wait_for(lambda: events(dir, "resume"), here.nursery.process, every=0.05)
    storage.ask(dir, "stop")                                             # as the dashboard does
    assert worker.wait() == workers.STOPPED
    assert [e["event"] for e in events(dir)] == ["start", "resume"] and storage.last_row(dir)["step"] == load_tree(dir/"checkpoint.safetensors")["progress"]["step"]  # nothing after it


def test_a_worker_loads_nothing_that_trains():
    code = "import sys, abs_lab.studies.workers; print([m for m in ('torch', 'numpy', 'envpool', 'ray', 'papermill') if m in sys.modules])"
    assert finish(start("-c", code, cwd=ROOT))[1] == "[]\n"


def test_two_queues_on_one_folder_run_nothing_twice(tmp_path):
    dir, two = tmp_path/"runs", points(2)
    for process in [queue(two, dir), queue(two, dir)]:
        code, out, err = finish(process)
        assert (code, out) == (0, "[]\n"), err
    for point in two: assert [e["event"] for e in events(folder(dir, point))] == ["start", "finish"]
    assert not list(dir.glob("*/failure.json")) and not any(status.held(d) for d in dir.iterdir())


@pytest.mark.long
def test_a_worker_that_is_killed_is_started_again_and_goes_on(tmp_path):
    dir, point, killed = tmp_path/"runs", points(1, total_steps=300_000)[0], []
    process = queue([point], dir)
    assert wait_for((folder(dir, point)/"checkpoint.safetensors").exists, process, every=0.05)
    for pid, line in processes_of(f"ABS_LAB_RUNS_DIR={dir}").items():
        if b"abs_lab.studies.workers" in line: os.kill(int(pid), signal.SIGKILL); killed.append(pid)
    assert finish(process)[:2] == (0, "[]\n") and len(killed) == 3  # the nursery, the worker and its kernel
    assert [e["event"] for e in events(folder(dir, point))] == ["start", "resume", "finish"] and events(folder(dir, point), "resume")[0]["step"] > 0


@pytest.mark.long
def test_a_disk_that_is_full_for_everyone(tmp_path):
    "No file can grow past 9 kB, neither a run's nor the queue's."
    dir, point = tmp_path/"runs", points(1, total_steps=12_000)[0]
    code, out, err = finish(queue([point], dir, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))))
    assert code == 0 and "too large" in out, (out, err)
    assert finish(queue([point], dir))[:2] == (0, "[]\n") and result_of(folder(dir, point))


# -- Ray ---------------------------------------------------------------------------------------------------------------

@pytest.mark.long
def test_a_ray_cluster_that_loses_a_node(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    dir, five = tmp_path/"runs", points(5, total_steps=150_000)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, num_gpus=1))
    try:
        node = cluster.add_node(num_cpus=1, num_gpus=1)
        monkeypatch.setenv("ABS_LAB_CLUSTER", cluster.address)
        monkeypatch.setenv("ABS_LAB_CPUS_PER_RUN", "1")
        monkeypatch.setenv("ABS_LAB_GPUS_PER_RUN", "0.5")
        failures = []
        thread = threading.Thread(target=lambda: failures.extend(engine.run_queue(NOTEBOOK, five, dir, quiet=True, engine="ray")))
        thread.start()
        def there(pid): return node.node_id in {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        until = time.monotonic() + 240
        while sum((folder(dir, p)/"checkpoint.safetensors").exists() and not result_of(folder(dir, p)) for p in five) < 2:
            assert time.monotonic() < until and thread.is_alive()
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        thread.join(400)
        assert not thread.is_alive() and failures == []
    finally:
        ray.shutdown()
        cluster.shutdown()
    kinds = [[e["event"] for e in events(folder(dir, p))] for p in five]
    assert all(k in (["start", "finish"], ["start", "resume", "finish"]) for k in kinds) and kinds.count(["start", "resume", "finish"]) == 1
    again = five[kinds.index(["start", "resume", "finish"])]
    assert events(folder(dir, again), "resume")[0]["step"] > 0        # nothing was lost
    run(config_of(again), tmp_path/"whole")
    assert_same_run(tmp_path/"whole", folder(dir, again))
