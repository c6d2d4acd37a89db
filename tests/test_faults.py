"Bad input and faults: one clear message, exit code 2 (or 130), and everything already computed stays readable."
import errno, json, os, resource, signal, time, warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from abs_lab import cli
from abs_lab.runs import __main__ as program
from abs_lab.runs.config import configure
from abs_lab.core.interfaces import AbsLabError
from abs_lab.reports import others
from abs_lab.runs.forks import fork
from abs_lab.runs.runner import Run, run
from abs_lab.runs import storage
from abs_lab.runs.storage import Busy, Lease
from abs_lab.runs.table import Runs
from abs_lab.runs.checkpoints import load_tree, save_tree
from abs_lab.studies import campaign
from abs_lab.studies.results import steps_done
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.status import survey
from abs_lab.studies.study import Study
from support import ROOT, assert_same_run, events, finish, processes_of, rows, start, wait_for

SMALL = dict(env_id="CartPole-v1", num_envs=16, total_steps=6_000, eval_envs=4, interval=1, warmup=3)
ABS_LAB = ("-c", "import sys; from abs_lab.cli import main; sys.exit(main())")


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="0", RUNS_DIR=tmp_path/"runs", REPORTS_DIR=tmp_path/"reports").items():
        monkeypatch.setenv(f"ABS_LAB_{key}", str(value))


@pytest.fixture
def command(capsys):
    "Run abs-lab (or, given a first argument of 'runs', python -m abs_lab.runs) in this process; returns exit code, stdout and stderr."
    def call(*argv):
        main = program.main if argv[0] == "runs" else cli.main
        try: code = main([*map(str, argv[main is program.main:])])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return call


def message(err):
    "The one message on stderr, progress bars apart."
    assert "Traceback" not in err, err
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip() and "step/s" not in line and "%|" not in line and " runs finished" not in line]
    if "For full helptext" in err:  # tyro frames its messages and breaks their lines
        assert err.count("For full helptext") == 1
        return " ".join(" ".join(line.strip("│╭╰╮╯─+|- ") for line in lines).split())
    assert len(lines) == 1, err
    return lines[0]


def refused(outcome, *words, code=2):
    got, _, err = outcome
    assert got == code, err
    for word in words: assert word in message(err), err


def config_file(tmp_path, **params):
    (tmp_path/"config.json").write_text(json.dumps(params))
    return tmp_path/"config.json"


def recorded(dir, at_least=1):
    "What was recorded can be read, by the table and by the log."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a torn last line is skipped with a warning
        assert len(Runs(dir.parent).where(run=dir.name).table) == 1
        assert len(Runs(dir.parent).steps(dir.name)) >= at_least


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD = [
    (["--env-id", "LunarLandr-v3"], ["LunarLandr-v3", "LunarLander-v3"]),
    (["--env-id", "NoSuchPackage/Game-v0"], ["NoSuchPackage/Game-v0"]),
    (["--env-id", "no_such_module:Game-v0"], ["no_such_module"]),
    (["--env-id", "Pendulum-v1"], ["discrete", "Box"]),
    (["--size-min", "64", "--size-max", "16"], ["size_min must be at most size_max=16, not 64"]),
    (["--low", "0.9", "--high", "0.1"], ["did you mean low=0.1, high=0.9?"]),
    (["--low", "0"], ["0 < low < high"]),
    (["--low", "-0.1"], ["0 < low < high"]),
    (["--smoothing", "1.0"], ["smoothing"]),
    (["--num-envs", "3", "--num-minibatches", "32"], ["48", "num_minibatches=32", "multiple of 32"]),
    (["--num-envs", "32", "--groups", "5"], ["num_envs=32 does not divide into groups=5"]),
    (["--num-envs", "32", "--groups", "2", "--explore-repeat", "2"], ["groups=2", "explore_repeat=2.0"]),
    (["--lr", "fast"], ["--lr", "fast"]),
    (["--lr", "-1"], ["lr must be positive and finite, not -1"]),
    (["--lrr", "1e-3"], ["--lrr", "--lr"]),
    (["--learning-rate", "1e-3"], ["--learning-rate", "mean lr"]),
    (["--controler", "abs"], ["--controler", "--controller"]),
    (["--total-steps", "0"], ["total_steps", "0"]),
    (["--seed", "-1"], ["seed", "-1"]),
    (["--preset", "papr"], ["papr", "paper"]),
    (["--controller", "apbs"], ["apbs", "abs"]),
    (["--lag", "9", "--interval", "3"], ["lag must be at most interval=3, not 9"]),
    (["--network", "pqn-xxl", "--env-id", "CartPole-v1"], ["pqn-xxl"]),
    (["--network", "pqn", "--env-id", "CartPole-v1"], ["pqn"]),
    (["--init", "orthogonl"], ["orthogonl", "orthogonal"]),
    (["--layer-norm", "chanel"], ["chanel", "channel"]),
    (["--controller", "replayed", "--starts", "5", "--sizes", "16"], ["starts must rise from 0"]),
    (["--controller", "replayed", "--starts", "0", "10", "--sizes", "16"], ["one length", "2 and 1"]),
]

@pytest.mark.parametrize("flags,words", BAD, ids=lambda x: " ".join(x) if x and x[0].startswith("--") else None)
def test_bad_flags(flags, words, command, tmp_path):
    refused(command("train", "pqn", *flags), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv,words", [
    (["nonsense"], ["nonsense", "train, dashboard, reproduce, status"]), (["train", "pp0"], ["'pp0'", "ppo"]), (["train"], ["agent"]),
    (["reproduce", "quik"], ["quik", "quick"]), (["reproduce", "quick", "--scale", "huge"], ["huge", "smoke"]), (["status", "quick"], ["quick"])],
    ids=" ".join)
def test_bad_commands(argv, words, command, tmp_path):
    refused(command(*argv), *words)
    assert not list(tmp_path.iterdir())


def test_no_command_prints_usage(command): assert command("--help")[0] == 0 and "usage" in command("--help")[1]


def test_the_real_command_line_says_the_same(tmp_path):
    code, out, err = finish(start(*ABS_LAB, "train", "pqn", "--env-id", "Brekout-v5", cwd=tmp_path))
    refused((code, out, err), "abs-lab: ", "Breakout-v5")
    path = config_file(tmp_path, env_id="CartPole-v1", hihg=0.5)
    refused(finish(start("-m", "abs_lab.runs", path, tmp_path/"x", cwd=tmp_path)), "abs_lab: ", "hihg", "high")
    assert not (tmp_path/"x").exists()


@pytest.mark.parametrize("text,words", [
    ('{"env_id": "CartPole-v1", "hihg": 0.5}', ["hihg", "high"]), ('{"lr": "1e-3"}', ["lr", "1e-3"]), ('{"num_envs": 3.5}', ["num_envs"]),
    ('{"seed": true}', ["seed"]), ('{"low": 0.5, "high": 0.2}', ["low=0.2, high=0.5"]), ('{"learning_rate": 0.1}', ["learning_rate", "mean lr"]), ('{"learnig_rate": 0.1}', ["mean lr"]), ("{torn", ["cannot be read"]),
    ("[1]", ["read"]),
    pytest.param('{"config": [1]}', ["read"]), ("[" * 100_000, ["read"])], ids=lambda x: str(x)[:40])
def test_bad_configurations(text, words, command, tmp_path):
    (tmp_path/"config.json").write_text(text)
    refused(command("runs", tmp_path/"config.json", tmp_path/"x"), *words)
    assert not (tmp_path/"x").exists()


def test_a_folder_in_ones_home_is_found_where_the_shell_leaves_its_sign(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path/"me"))
    for argv in (["merge", "~/results"], ["runs", "~/results", "~/x"]): refused(command(*argv), f"{tmp_path}/me/results")
    assert campaign.main(["quick", "--scale", "smoke", "--out=~/results", "--dry-run"]) == 0 and not Path("~").exists()


def test_settings_that_are_a_pipe_and_folders_that_are_a_link_to_themselves(command, tmp_path, monkeypatch):
    os.mkfifo(tmp_path/"settings.ini")
    (tmp_path/"loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for key in ("RUNS", "REPORTS"): monkeypatch.setenv(f"ABS_LAB_{key}_DIR", "loop")
    signal.alarm(60)
    assert command("status")[0] == command("verify")[0] == 0
    with pytest.raises(AbsLabError, match="loop cannot be read"): others.lay(["loop"], tmp_path, ["CartPole-v1"])
    signal.alarm(0)


def test_missing_arguments_and_files(command, tmp_path):
    refused(command("runs"), "usage")
    refused(command("runs", tmp_path/"absent.json", tmp_path/"x"), "absent.json")
    (tmp_path/"file").write_text("")
    refused(command("runs", config_file(tmp_path, **SMALL), tmp_path/"file"), "cannot write")


def test_a_bad_setting(command, monkeypatch, tmp_path):
    monkeypatch.setenv("ABS_LAB_THREADS", "many")
    refused(command("train", "pqn", "--env-id", "CartPole-v1"), "threads", "many")


def study(monkeypatch, arms):
    s = Study("tiny", "?", "nbs/experiments/pqn.ipynb", "nbs/figures/quick.ipynb", arms, common={k: v for k, v in SMALL.items() if k != "warmup"}, seeds=1)
    monkeypatch.setitem(STUDIES, "tiny", s)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arms,words", [
    ({"a": {}, "b": dict(epoch_rule="constant")}, ["epoch_rule", "epochs_rule"]),
    ({"a": {}, "b": dict(low=0.9, high=0.1)}, ["low=0.1, high=0.9"]),
    ({"a": {}, "b": dict(lr="1e-3")}, ["lr", "'1e-3'"]),
    ({"a": {}, "b": dict(controller="ramp", warmup=2)}, ["warmup", "ramp"]),
    ({"a": {}, "b": dict(env_threads=2)}, ["same run twice"])], ids=str)
def test_a_grid_is_refused_before_anything_runs(arms, words, command, monkeypatch, tmp_path):
    study(monkeypatch, arms)
    refused(command("reproduce", "tiny"), *words)
    assert not list(tmp_path.iterdir())


# -- folders that cannot be used ---------------------------------------------------------------------------------------

@pytest.fixture
def unfinished(tmp_path):
    "A run with a checkpoint, and its configuration file."
    dir, path = tmp_path/"runs"/"x", config_file(tmp_path, **SMALL)
    r = Run(configure(**SMALL), dir)
    for s in r.steps():
        if s.update == 10: break
    r.close()
    assert steps_done(dir) < SMALL["total_steps"]
    return path, dir


def damage(how, file):
    data = bytearray(file.read_bytes())
    if how == "truncated": data = data[:len(data) // 2]
    if how == "empty": data = b""
    if how == "garbage": data = os.urandom(1000)
    if how == "a bit of a weight": data[-1000] ^= 1
    if how == "header": data[3] ^= 0xff
    if how == "a digit of the state": data = bytes(data).replace(b'\\"update\\", 10]', b'\\"update\\", 11]', 1)
    assert bytes(data) != file.read_bytes()
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "a bit of a weight", "header", pytest.param(
    "a digit of the state")])
def test_a_corrupt_checkpoint(how, unfinished, command, tmp_path):
    path, dir = unfinished
    (dir/"checkpoint-before.safetensors").unlink()
    before = rows(dir)
    damage(how, dir/"checkpoint.safetensors")
    refused(command("runs", path, dir), "checkpoint.safetensors", "delete the file")
    assert rows(dir) == before
    recorded(dir, 10)
    refused(command("runs", path, dir), "checkpoint.safetensors")  # and again: nothing is worn out by looking
    (dir/"checkpoint.safetensors").unlink()
    assert command("runs", path, dir)[0] == 0                      # what the message advises, works


def test_a_lost_action_log(unfinished, command):
    path, dir = unfinished
    (dir/"checkpoint-before.safetensors").unlink()
    (dir/"actions-0").write_bytes((dir/"actions-0").read_bytes()[:-1])
    refused(command("runs", path, dir), "actions-0", "shorter")
    (dir/"actions-0").unlink()
    refused(command("runs", path, dir), "actions-0")
    recorded(dir, 10)


def test_another_simulator(unfinished, command):
    path, dir = unfinished
    tree = load_tree(dir/"checkpoint.safetensors")
    tree["envs"]["obs"] += 1                   # what is replayed does not lead to where the run was
    save_tree(dir/"checkpoint.safetensors", tree)
    refused(command("runs", path, dir), "did not replay")
    recorded(dir, 10)


@pytest.mark.parametrize("text,words", [
    ('{"format": 0, "config": {}}', ["format 0", "format 2"]), ('{"format": 3, "config": {}}', ["format 3"]), ("{}", ["format None"]),
    ("{torn", ["config.json", "cannot be read"]),
    ("[]", ["format None", "format 2"])])
def test_a_folder_of_another_version(text, words, unfinished, command):
    path, dir = unfinished
    (dir/"config.json").write_text(text)
    before = {f.name: f.read_bytes() for f in dir.iterdir()}
    refused(command("runs", path, dir), *words)
    assert {f.name: f.read_bytes() for f in dir.iterdir()} == before
    assert len(rows(dir)) >= 10


def test_a_folder_of_another_run(unfinished, command, tmp_path):
    path, dir = unfinished
    refused(command("runs", config_file(tmp_path, **SMALL, lr=0.5), dir), "another run", "lr")
    recorded(dir, 10)


def test_a_folder_that_is_being_written(tmp_path, command):
    config, dir = configure(**SMALL), tmp_path/"runs"/"x"
    r = Run(config, dir)
    steps = r.steps()
    next(steps)
    refused(command("runs", config_file(tmp_path, **SMALL), dir), "another process")
    with pytest.raises(AbsLabError, match="exists already"): fork(dir, dir)
    for _ in steps: pass
    r.finish(), r.close()
    run(config, tmp_path/"runs"/"undisturbed")
    assert_same_run(tmp_path/"runs"/"undisturbed", dir)


def test_a_folder_is_released_when_a_run_could_not_begin(unfinished):
    "Else a notebook, which holds the traceback, could not try again."
    path, dir = unfinished
    (dir/"checkpoint-before.safetensors").unlink()
    damage("truncated", dir/"checkpoint.safetensors")
    with pytest.raises(AbsLabError, match="damaged") as held: run(configure(**SMALL), dir)
    (dir/"checkpoint.safetensors").unlink()
    assert run(configure(**SMALL), dir)["status"] == "finished" and held


# -- a full disk -------------------------------------------------------------------------------------------------------

def limit(size): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

@pytest.mark.parametrize("full,size,seconds", [("checkpoint", 60_000, 0.1), ("log", 9_000, 1_000)])
def test_no_room_for(full, size, seconds, tmp_path):
    "No file can grow past `size`, as the system itself refuses it."
    params = SMALL | dict(total_steps=12_000)
    path, dir = config_file(tmp_path, **params), tmp_path/"runs"/"x"
    outcome = finish(start("-m", "abs_lab.runs", path, dir, cwd=tmp_path, checkpoint_seconds=seconds, preexec_fn=limit(size)))
    refused(outcome, str(dir), "too large")
    recorded(dir, 1)
    run(configure(**params), dir)  # there is room again
    run(configure(**params), tmp_path/"runs"/"whole")
    assert_same_run(tmp_path/"runs"/"whole", dir)


def test_no_room_for_a_log_at_all(tmp_path, command):
    dir = tmp_path/"runs"/"x"
    dir.mkdir(parents=True)
    (dir/"steps.jsonl").symlink_to("/dev/full")
    refused(command("runs", config_file(tmp_path, **SMALL), dir), str(dir))


@pytest.mark.parametrize("file", ["result.json", "checkpoint.safetensors"])
def test_no_room_when_renaming(file, tmp_path, command, monkeypatch):
    real, dir, path = os.replace, tmp_path/"runs"/"x", config_file(tmp_path, **SMALL)
    def full(source, target):
        if Path(target).name == file and len(rows(dir)) >= 10: raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)
    monkeypatch.setattr(os, "replace", full)
    refused(command("runs", path, dir), "No space left", "goes on from there")
    recorded(dir, 10)
    monkeypatch.setattr(os, "replace", real)
    assert command("runs", path, dir)[0] == 0
    run(configure(**SMALL), tmp_path/"runs"/"whole")
    assert_same_run(tmp_path/"runs"/"whole", dir)


# -- learning that fails -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("params", [dict(reward_scale=1e25), dict(lr=1e38)], ids=str)
def test_a_loss_that_is_not_finite(params, tmp_path, command):
    dir = tmp_path/"runs"/"x"
    refused(command("runs", config_file(tmp_path, **SMALL | dict(preset="classic") | params), dir), "became", "no checkpoint yet")
    assert all(np.isfinite(row["loss"]) for row in rows(dir))
    assert [e["event"] for e in events(dir)] == ["start", "error"] and "became" in events(dir)[-1]["message"]
    assert len(Runs(dir.parent).table) == 1


class Broken(gym.Env):
    "An environment whose reward is NaN at the 50th step, or which raises there."
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def __init__(self, raises=False): self.raises, self.n = raises, 0
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action):
        self.n += 1
        if self.n == 50 and self.raises: raise RuntimeError("the simulator broke")
        return np.zeros(2, np.float32), np.nan if self.n == 50 else 0.0, False, False, {}

gym.register("BrokenReward-v0", entry_point=Broken)
gym.register("BrokenStep-v0", entry_point=Broken, kwargs=dict(raises=True))


def test_an_environment_whose_reward_is_not_finite(tmp_path, command):
    dir = tmp_path/"runs"/"x"
    refused(command("runs", config_file(tmp_path, **SMALL | dict(env_id="BrokenReward-v0")), dir), "BrokenReward-v0", "reward nan")
    recorded(dir, 3)
    assert events(dir)[-1]["event"] == "error"


def test_an_environment_that_raises(tmp_path):
    "Its own error, with its traceback, is what its author needs; the run is as readable as ever and its folder is released."
    config, dir = configure(**SMALL | dict(env_id="BrokenStep-v0")), tmp_path/"runs"/"x"
    with pytest.raises(RuntimeError, match="the simulator broke") as first: run(config, dir)
    recorded(dir, 3)
    assert events(dir)[-1]["event"] == "error" and events(dir)[-1]["message"] == "RuntimeError: the simulator broke"
    row, = survey(dir.parent, [("x", "", config.total_steps)])["runs"]
    assert row["state"] == "failed" and "the simulator broke" in row["message"]
    with pytest.raises(RuntimeError, match="the simulator broke"): run(config, dir)
    assert first and events(dir, "resume")


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

def interruptible(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # a parent in the background may have it ignored

LONG = SMALL | dict(total_steps=40_000)

@pytest.mark.parametrize("program", ["abs-lab", pytest.param("runs")])
def test_ctrl_c_in_training(program, tmp_path):
    config = configure(**LONG)
    dir = tmp_path/"runs"/"train"/config.id
    flags = [x for k, v in LONG.items() for x in (f"--{k.replace('_', '-')}", v)]
    args = (*ABS_LAB, "train", "pqn", *flags) if program == "abs-lab" else ("-m", "abs_lab.runs", config_file(tmp_path, **LONG), dir)
    process = start(*args, cwd=tmp_path, runs_dir=tmp_path/"runs", checkpoint_seconds=0.2, preexec_fn=interruptible)
    assert wait_for((dir/"checkpoint.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    refused(finish(process), "interrupted", code=130)
    assert 0 < steps_done(dir) < config.total_steps
    recorded(dir)
    run(config, dir)
    assert events(dir, "resume")
    run(config, tmp_path/"runs"/"train"/"whole")
    assert_same_run(tmp_path/"runs"/"train"/"whole", dir)


def test_ctrl_c_saves_what_no_checkpoint_holds_yet(tmp_path):
    config = configure(**SMALL | dict(total_steps=4_000_000))
    dir = tmp_path/"run"
    process = start("-m", "abs_lab.runs", config_file(tmp_path, **config.flat()), dir, cwd=tmp_path, checkpoint_seconds=1000, preexec_fn=interruptible)
    assert wait_for(lambda: steps_done(dir) > 0, process)
    process.send_signal(signal.SIGINT)
    refused(finish(process), "interrupted", code=130)
    assert load_tree(dir/"checkpoint.safetensors")["progress"]["step"] == steps_done(dir) > 0


REPRODUCE = """
import sys
from abs_lab import cli
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.status import survey
from abs_lab.studies.study import Study
STUDIES["tiny"] = Study("tiny", "?", "nbs/experiments/pqn.ipynb", "nbs/figures/quick.ipynb", {"a": {}, "b": dict(controller="fixed", size=16)},
                        common=dict(env_id="CartPole-v1", total_steps=10_000_000), seeds=1)
sys.exit(cli.main(["reproduce", "tiny", "--jobs", "2"]))
"""

def test_ctrl_c_in_a_study_leaves_no_process_behind(tmp_path, monkeypatch):
    (tmp_path/"temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path/"temporary"))
    folder = tmp_path/"runs"/"tiny"
    mark = f"ABS_LAB_RUNS_DIR={tmp_path/'runs'}"
    process = start("-c", REPRODUCE, cwd=ROOT, runs_dir=tmp_path/"runs", reports_dir=tmp_path/"reports", checkpoint_seconds=0.2,
                    preexec_fn=interruptible)
    try:
        assert wait_for(lambda: len(list(folder.glob("*/checkpoint.safetensors"))) == 2, process, every=0.1)
        assert len(processes_of(mark)) == 6  # the queue, its nursery, two workers, two kernels
        process.send_signal(signal.SIGINT)
        refused(finish(process, 60), "interrupted", "goes on", code=130)
        until = time.monotonic() + 10        # a kernel looks once a second for its parent
        while (left := processes_of(mark)) and time.monotonic() < until: time.sleep(0.1)
        assert not left and not list((tmp_path/"temporary").rglob("tmp*.json"))
    finally:
        for pid in processes_of(mark): os.kill(int(pid), signal.SIGKILL)
    for dir in folder.glob("*/"):
        recorded(dir)
        assert load_tree(dir/"checkpoint.safetensors")["progress"]["step"] > 0


# -- file systems that lack something --------------------------------------------------------------------------------------

def lacking(monkeypatch, *what):
    "Let hard links or locks be unknown, as on exFAT and on some network mounts."
    def refuse(*args): raise OSError(errno.ENOTSUP, "Operation not supported")
    if "links" in what: monkeypatch.setattr(os, "link", refuse)
    if "locks" in what: monkeypatch.setattr(storage.fcntl, "flock", refuse)


@pytest.mark.parametrize("what", [("links",), ("locks",), ("links", "locks")], ids="+".join)
@pytest.mark.filterwarnings("ignore:.*cannot lock files")
def test_a_folder_without_links_or_locks_is_trained_and_leased(what, monkeypatch, tmp_path):
    lacking(monkeypatch, *what)
    assert run(configure(**SMALL), tmp_path/"a")["status"] == "finished" and not Lease.held(tmp_path/"a"/"lock")
    lease = Lease(tmp_path/"lock")
    assert Lease.held(tmp_path/"lock")
    with pytest.raises(Busy, match="is being written by another process"): Lease(tmp_path/"lock")
    lease.close()
    assert not Lease.held(tmp_path/"lock")
    (tmp_path/"lock.alive").write_text(f"{storage.MACHINE} process {2**22 + 1} 00000000")  # of a process that is gone
    assert not Lease.held(tmp_path/"lock")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    Lease(tmp_path/"lock").close()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("lock.alive.")]


def test_a_folder_that_cannot_be_locked_says_so(monkeypatch, tmp_path):
    lacking(monkeypatch, "locks")
    with pytest.warns(UserWarning, match="cannot lock files: only a sign of life"): Lease(tmp_path/"lock").close()
