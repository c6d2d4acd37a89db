"The engine slurm: with commands of SLURM that are played, and, in the long test, on a real one of one node."
import json, os, re, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import pytest

from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.config import configure
from abs_lab.runs.runner import run
from abs_lab.runs.storage import Lease, result_of, write_sealed
from abs_lab.studies import clusters, engine, status
from abs_lab.studies.grids import configs_of
from support import PYTHON, ROOT, a_result, a_row, assert_same_run, environment, events, wait_for

submitit = pytest.importorskip("submitit")
TINY = dict(agent="pqn", env_id="CartPole-v1", num_envs=8, total_steps=2_000, eval_envs=2, interval=1)
NOTEBOOK = ROOT/"nbs"/"experiments"/"run.ipynb"


def points(seeds, **more): return [TINY | dict(arm="a", seed=s) | more for s in range(seeds)]

def folder(dir, point): return Path(dir)/configure(**{k: v for k, v in point.items() if k != "arm"}).id


# -- with SLURM's commands played --------------------------------------------------------------------------------------

class Cluster:
    "SLURM as its commands show it: a job is a script that `sbatch` was given, and its state is what the test says."
    def __init__(self, dir):
        self.dir, self.states, self.now = dir, {}, 0.0
        for name, does in dict(srun=":", scancel='echo "$@" >> cancelled', squeue="cat states", sbatch='[ ! -e refusal ] || { cat refusal >&2; exit 1; }; n=$(ls | grep -c script); cp "$1" script-$n; echo "Submitted batch job $n"').items():
            (dir/"bin").mkdir(exist_ok=True)
            (dir/"bin"/name).write_text(f"#!/bin/sh\ncd {shlex.quote(str(dir))}\n{does}\n")
            (dir/"bin"/name).chmod(0o755)
        self.say()

    def say(self, **states):
        self.states = {id: state for id, state in (self.states | {id.strip("_"): state for id, state in states.items()}).items() if state}
        (self.dir/"states").write_text("".join(f"{id:<60}{state:<30}\n" for id, state in self.states.items()))

    def ends(self, runs, job, state="COMPLETED", outcome=("success", 0)):
        "A job comes to its end, and, where its code is 0, with it the run."
        paths = submitit.SlurmJob(runs/"slurm", job).paths
        log = submitit.core.utils.DelayedSubmission.load(paths.submitted_pickle).args[1]
        if outcome == ("success", 0): write_sealed(Path(log).parent/"result.json", a_result())
        elif outcome: Path(log).write_text("the last words")
        if outcome: submitit.core.utils.cloudpickle_dump(outcome, paths.result_pickle)
        self.say(**{f"_{job}": state})

    def scripts(self): return [(self.dir/f"script-{i}").read_text() for i in range(len([*self.dir.glob("script-*")]))]

    # the queue's clock
    time = staticmethod(time.time)
    def monotonic(self): return self.now
    def sleep(self, seconds): self.now += seconds; self.each(self.now)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    (tmp_path/"cluster").mkdir()
    it = Cluster(tmp_path/"cluster")
    monkeypatch.setenv("PATH", f"{it.dir/'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    for key, value in dict(RUNS_DIR=tmp_path/"runs", REPORTS_DIR=tmp_path/"reports", SLURM_PARTITION="gpu", SLURM_TIME="1.5h", SLURM_OPTIONS="account=me --mem=8G exclusive", SLURM_PYTHON="apptainer exec a.sif python", CPUS_PER_RUN=3, GPUS_PER_RUN=1).items(): monkeypatch.setenv(f"ABS_LAB_{key}", str(value))
    for module in (engine, clusters, status): monkeypatch.setattr(module, "time", it)
    monkeypatch.setattr(engine, "check_grid", lambda notebook, grid: configs_of(grid))
    status._said.update(at=-float("inf"), jobs=None)
    return it


def test_runs_become_one_array_and_each_end_of_a_job_is_told_from_the_others(cluster, tmp_path):
    runs, grid = tmp_path/"runs", points(8)
    def lost_log(): return folder(runs, grid[7])/"worker.log"
    def each(now):
        if now == 1.0: cluster.say(**{f"_0_{i}": "PENDING" for i in range(8)})
        if now == 15.0:
            cluster.ends(runs, "0_0")
            cluster.ends(runs, "0_1", "FAILED", ("error", "RuntimeError: no"))
            cluster.ends(runs, "0_2", "CANCELLED", None)
            cluster.ends(runs, "0_3", "NODE_FAIL", None)
            cluster.ends(runs, "0_4", "OUT_OF_MEMORY", None)
            cluster.ends(runs, "0_5", outcome=("success", 75))          # it was asked to stop
            cluster.ends(runs, "0_6", None, None)                       # cancelled before it began
            lost_log().touch()                                          # its node went down, and SLURM has queued it again
            os.utime(lost_log(), (0, 0))
        if now == 40.0:
            assert not lost_log().exists()
            cluster.ends(runs, "0_7")
        for dir in (folder(runs, g) for g in grid):                     # what is submitted again
            id = (dir/"slurm.job").read_text() if (dir/"slurm.job").exists() else "0_"
            if not id.startswith("0_") and id not in cluster.states: cluster.ends(runs, id, *(("FAILED", ("success", 1)) if dir == folder(runs, grid[1]) else ()))
    cluster.each = each
    failures = engine.run_queue(NOTEBOOK, grid, runs, jobs=4, quiet=True, engine="slurm")
    assert {f.id: f.message.split(",")[0] for f in failures} == {folder(runs, grid[1]).name: "the last words", **{folder(runs, grid[i]).name: "somebody has stopped it" for i in (2, 6)}}
    assert [bool(result_of(folder(runs, g))) for g in grid] == [True, False, False, True, True, True, False, True]
    first, *more = cluster.scripts()
    for line in ("--partition=gpu", "--time=90", "--cpus-per-task=3", "--gpus-per-node=1", "--account=me", "--mem=8G", "--exclusive", "--array=0-7%4", "--requeue", "--signal=USR2@120"): assert f"#SBATCH {line}\n" in first
    assert all(said in first for said in ("apptainer exec a.sif python -u -m submitit", "|| scontrol requeue $SLURM_JOB_ID", f"export PYTHONPATH={ROOT}"))
    assert sum(int((re.search(r"--array=0-(\d)", s) or "00")[1]) + 1 for s in more) == 4   # a failure is tried once more, and what was given back goes on
    assert not [*runs.glob("*/slurm.job")] and not any(status.held(d) for d in runs.glob("*-*"))


def test_a_second_queue_takes_over_the_jobs_of_one_that_was_killed(cluster, tmp_path):
    runs, two = tmp_path/"runs", points(2)
    class Killed(BaseException): pass
    def killed(now):
        cluster.say(_0_0="PENDING", _0_1="RUNNING")
        if now == 2.0: raise Killed
    cluster.each = killed
    stop, engine._Queue.stop = engine._Queue.stop, lambda self: [job.claim.close() for job in self.running]  # a killed process cancels nothing
    try:
        with pytest.raises(Killed): engine.run_queue(NOTEBOOK, two, runs, quiet=True, engine="slurm")
    finally: engine._Queue.stop = stop
    assert [(folder(runs, p)/"slurm.job").read_text() for p in two] == ["0_0", "0_1"]
    def each(now):
        if now == 5.0: [cluster.ends(runs, f"0_{i}") for i in range(2)]
    cluster.each = each
    assert engine.run_queue(NOTEBOOK, two, runs, quiet=True, engine="slurm") == [] and len(cluster.scripts()) == 1


def test_a_queue_that_is_stopped_cancels_its_jobs(cluster, tmp_path):
    def each(now):
        cluster.say(_0_0="PENDING", _0_1="PENDING")
        if now == 3.0: raise KeyboardInterrupt
    cluster.each = each
    with pytest.raises(KeyboardInterrupt): engine.run_queue(NOTEBOOK, points(2), tmp_path/"runs", quiet=True, engine="slurm")
    assert (cluster.dir/"cancelled").read_text() == "0_0\n0_1\n" and not [*tmp_path.glob("runs/*/slurm.job")]


def test_what_slurm_refuses_is_said_in_a_sentence(cluster, monkeypatch, tmp_path):
    (cluster.dir/"refusal").write_text("sbatch: error: invalid partition specified: gpu\n")
    cluster.each = lambda now: None
    def reproduce(): return engine.run_queue(NOTEBOOK, points(2), tmp_path/"runs", quiet=True, engine="slurm")
    with pytest.raises(AbsLabError, match="SLURM refused the jobs: .*invalid partition specified: gpu"): reproduce()
    assert not any(status.held(d) for d in tmp_path.glob("runs/*-*"))
    for key, value, said in (("GPUS_PER_RUN", "0.5", "gpus_per_run=0.5"), ("CPUS_PER_RUN", "0", "cpus_per_run=0"), ("SLURM_TIME", "3", "'3'")):
        with monkeypatch.context() as m:
            m.setenv(f"ABS_LAB_{key}", value)
            with pytest.raises(AbsLabError, match=said): reproduce()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AbsLabError, match="no SLURM here: sbatch, srun"): reproduce()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(AbsLabError, match=r"abs_lab\[slurm\]"): reproduce()


def test_status_tells_what_is_queued_from_what_runs(cluster, tmp_path):
    "Also where the queue is no longer there, as SLURM has it then."
    dirs = [tmp_path/f"run-{i}" for i in range(6)]
    for dir in dirs: dir.mkdir()
    for job, dir in zip(("0_0", "0_1", "0_2"), dirs): (dir/"slurm.job").write_text(job)
    for dir in (dirs[1], dirs[3]): (dir/"steps.jsonl").write_text(json.dumps(a_row(step=500)) + "\n")
    (dirs[5]/"failure.json").write_text(json.dumps(dict(message="cancelled", notebook="")))
    cluster.say(_0_0="PENDING", _0_1="REQUEUED", _0_2="CANCELLED")
    leases = [Lease(dirs[3]/"queue"), Lease(dirs[4]/"lock")]
    found = status.survey(tmp_path, [(d.name, "a", 2_000) for d in dirs])
    assert [r["state"] for r in found["runs"]] == ["queued", "requeued", "waiting", "requeued", "running", "failed"]
    assert ", 1 running, 1 queued, 2 requeued, 1 waiting, 1 failed" in status.table(found)[0]
    for lease in leases: lease.close()


# -- on a node ---------------------------------------------------------------------------------------------------------

def test_a_job_whose_time_is_nearly_over_saves_its_run_and_asks_to_be_queued_again(monkeypatch, tmp_path):
    log, row = tmp_path/"worker.log", shlex.quote(json.dumps(a_row(step=500)))
    kernel = f"trap 'sleep 0.2; echo '{shlex.quote(row)}' > steps.jsonl; exit' TERM; touch ready; while :; do sleep 0.05; done"
    def on_node(args, log, *more):
        Path(log).touch()
        worker = subprocess.Popen(["sh", "-c", f"trap : TERM; sh -c {shlex.quote(kernel)} & wait; wait"], cwd=tmp_path)
        while not (tmp_path/"ready").exists(): time.sleep(0.01)
        return SimpleNamespace(pid=worker.pid, wait=lambda: os.kill(os.getpid(), signal.SIGUSR2) or time.sleep(1))
    monkeypatch.setattr(clusters, "_on_node", on_node)
    task, given = clusters._Task(patience=20), ([], str(log), 1, str(tmp_path), {})
    before = signal.signal(signal.SIGUSR2, lambda *_: task.checkpoint(*given))   # as submitit does
    try:
        with pytest.raises(SystemExit) as ended: task(*given)
        assert ended.value.code == 75 and (tmp_path/"steps.jsonl").exists() and not log.exists()
        (tmp_path/"ready").unlink()
        with pytest.raises(AbsLabError, match="no further"): task(*given)          # it wrote the same step again
        assert "slurm_time" in log.read_text()
    finally: signal.signal(signal.SIGUSR2, before)


# -- on a real one -----------------------------------------------------------------------------------------------------

SLOW = """
import os, time
import gymnasium as gym, numpy as np

class Slow(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(2, np.float32), {}
    def step(self, action):
        if os.path.exists(os.environ.get("ABS_LAB_SLOW", "")): time.sleep(0.02)
        return self.np_random.random(2, np.float32), float(action), bool(self.np_random.random() < 0.02), False, {}

gym.register("Slow-v0", entry_point=Slow)
"""

SLURM = [*filter(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))]

STUDY = """
from abs_lab.studies.study import Study
tiny = Study(name="tiny", question="?", common=dict(agent="pqn", num_envs=8, eval_envs=2, eval_episodes=1, interval=1),
             arms={"slow": dict(env_id="slow_module:Slow-v0", total_steps=6_000, seeds=1), "quick": dict(env_id="CartPole-v1", total_steps=2_000, seeds=19)})
"""


@pytest.mark.long
@pytest.mark.skipif(len(SLURM) < 4 or os.geteuid() != 0, reason="needs root and SLURM: apt-get install --no-install-recommends slurm-wlm munge")
def test_twenty_runs_on_a_real_slurm(monkeypatch, tmp_path):
    "One is cancelled, and one needs longer than its job has; then all are cancelled, and another call, which loses its node, finds what there is."
    for name, text in (("slow_module", SLOW), ("tiny_study", STUDY)): (tmp_path/f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import tiny_study
    dir, grid = tmp_path/"runs"/"tiny", tiny_study.tiny.grid()
    slow, *quick = sorted((folder(dir, p) for p in grid), key=lambda d: "Slow" not in d.name)
    (tmp_path/"slow").touch()
    subprocess.run([ROOT/"tests"/"slurm_node", "start", tmp_path/"slurm"], check=True)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path/"slurm"/"slurm.conf"))
    env = environment(runs_dir=tmp_path/"runs", reports_dir=tmp_path/"reports", checkpoint_seconds=1000, slurm_time="2m", slurm_partition="short", slow=tmp_path/"slow")
    env |= dict(PYTHONPATH=os.pathsep.join([str(tmp_path), env["PYTHONPATH"]]))
    def reproduce(): return subprocess.Popen([PYTHON, "-m", "abs_lab", "reproduce", "tiny_study:tiny", "--engine", "slurm", "--jobs", "2"], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    def states(): return {Path(r["id"]).name: r["state"] for r in status.survey(dir, [(d.name, "", 2_000) for d in (slow, *quick)])["runs"]}
    try:
        seen, first, victim = set(), reproduce(), quick[-1]
        assert wait_for(lambda: len([*dir.glob("*/slurm.job")]) == 20, first, every=0.5)
        subprocess.run(["scancel", (victim/"slurm.job").read_text()], check=True)
        def both():
            seen.update((now := states()).values())
            return now[slow.name] == "requeued" and now[victim.name] == "failed"
        assert wait_for(both, first, 400, every=2) and {"queued", "running"} < seen
        (tmp_path/"slow").unlink()                                                 # from here on it is quick, also where it replays its actions
        subprocess.run(["scancel", "--user", "root"], check=True)                  # the whole of what is left
        out, err = first.communicate(timeout=200)
        assert first.returncode == 1 and err.count("cancelled its job") > 2, (out, err)
        ended = [d for d in quick if result_of(d)]
        second = reproduce()
        assert wait_for(lambda: "running" in states().values(), second, every=1)
        for state in ("DOWN", "RESUME"): subprocess.run(["scontrol", "update", f"NodeName={os.uname().nodename}", f"State={state}", "Reason=test"], check=True)  # a node is lost, and comes back
        out, err = second.communicate(timeout=900)
        assert second.returncode == 0 and {*states().values()} == {"done"} and not [*dir.glob("*/slurm.job")], (out, err)
    finally:
        subprocess.run([ROOT/"tests"/"slurm_node", "stop", tmp_path/"slurm"])
    assert len(ended) > 1 and all([e["event"] for e in events(d)] == ["start", "finish"] for d in ended)
    assert all(len(events(d, "start")) == len(events(d, "finish")) == 1 for d in (slow, *quick)) and events(slow, "resume")[0]["step"] > 0
    run(configure(**{k: v for k, v in next(p for p in grid if p["arm"] == "slow").items() if k != "arm"}), tmp_path/"whole")
    assert_same_run(tmp_path/"whole", slow)
