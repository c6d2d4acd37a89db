"A run that is killed, at any moment and before any write, is bit for bit the run that never was."
import json, random, signal, time, warnings

import pytest

from abs_lab.runs.table import Runs
from abs_lab.runs.checkpoints import load_tree
from support import LANDER, MOVING, assert_same_run, done, events, finish, rows, settings, start, wait_for, write  # noqa: F401 (settings: a fixture that all tests here use)

CONFIGS = {
    "LunarLander": LANDER,
    "Atari": dict(preset="paper_masked", env_id="SpaceInvaders-v5", num_envs=8, total_steps=1_500, eval_envs=1, n_states=64,
                  **MOVING | dict(warmup=2, rounding="exact")),
    "Gymnasium": dict(env_id="CartPole-v1", backend="gymnasium", num_envs=16, total_steps=20_000, eval_envs=20, segment_steps=7_000,
                      **MOVING | dict(states="heldout", n_states=128, interval=3, lag=3)),
    "MinAtar": dict(preset="minatar", num_envs=32, total_steps=16_000, eval_envs=8, **MOVING),
    "PPO": dict(agent="ppo", env_id="Hopper-v4", num_envs=4, num_minibatches=4, size_min=32, size_max=128, base_batch=512, total_steps=12_000, eval_envs=4,
                **MOVING | dict(low=0.002, high=0.05, lag=1, rounding="exact", multiple=1)),
    "PPO discrete": dict(agent="ppo", env_id="LunarLander-v3", num_envs=8, num_minibatches=4, size_min=16, size_max=64, base_batch=512, total_steps=12_000, eval_envs=8,
                         **MOVING | dict(low=0.002, high=0.05, states="heldout", n_states=128, interval=2, lag=2, rounding="exact")),
    "Replay": dict(agent="btr", env_id="CartPole-v1", total_steps=4_000, learning_starts=640, replay_size=2_000, replay_ratio=1 / 8, taus=2, eval_envs=20, record_every=30,
                   **MOVING | dict(low=0.01, interval=16, lag=3, n_states=128)),
}


# -- SIGKILL at random moments -----------------------------------------------------------------------------------------

def life(config, path, dir, checkpoint_seconds, moment):
    "One process; `moment(process)` returns when it is to be killed. Returns its exit code and whether it had trained to the end."
    process = start("-m", "abs_lab.runs", path, dir, cwd=path.parent, checkpoint_seconds=checkpoint_seconds)
    moment(process)
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code == -signal.SIGKILL, f"it ended by itself, with {code}: {err}"
    return done(dir, config)


def kill_again_and_again(config, path, dir, kills, reference, rng):
    "Kill a run `kills` times at random moments, then let it finish; returns how many kills fell into evaluation."
    training = result_seconds(reference)
    opened = dir/"config.json"
    changed = lambda: opened.stat().st_mtime_ns if opened.exists() else 0
    in_evaluation = 0
    for n in range(kills):
        before = changed()
        late = n == kills - 1 or n >= 10 and n % 10 == 9  # the last, and some on the way, only once training is over
        def moment(process, n=n, before=before, late=late):
            assert wait_for(lambda: changed() != before, process)  # the folder is its own now: building and replaying begin
            wait = time.monotonic() + rng.uniform(0, 1.5 * training / kills)
            if n == 1 or late: wait_for((dir/"checkpoint.safetensors").exists, process)  # at least one life reaches a checkpoint
            wait_for(lambda: done(dir, config) or not late and time.monotonic() > wait, process)
            if done(dir, config): time.sleep(rng.uniform(0, 0.05))  # evaluation has begun, and takes longer than that
        in_evaluation += life(config, path, dir, 1000 if n == 0 else rng.choice([0, 0.05, 0.3]), moment)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a torn last line is skipped with a warning
            if (dir/"config.json").exists(): assert len(Runs(dir.parent).table) == 2  # what was recorded can be read at any time
            Runs(dir.parent).steps()
    code, out, err = finish(start("-m", "abs_lab.runs", path, dir, cwd=path.parent, checkpoint_seconds=0.3))
    assert code == 0, err
    return in_evaluation


def result_seconds(dir): return json.loads((dir/"result.json").read_text())["seconds"]


def killed_is_identical(name, kills, tmp_path, seed):
    if name == "MinAtar": pytest.importorskip("minatar")
    path = tmp_path/"config.json"
    config = write(path, CONFIGS[name])
    whole, killed = tmp_path/"runs"/"whole", tmp_path/"runs"/"killed"
    code, out, err = finish(start("-m", "abs_lab.runs", path, whole, cwd=tmp_path, checkpoint_seconds=1000))
    assert code == 0, err
    assert json.loads(out)["id"] == config.id
    assert len({row["size"] for row in rows(whole)}) > 1, "the controller should have something to forget"
    in_evaluation = kill_again_and_again(config, path, killed, kills, whole, random.Random(seed))
    resumed = [e["step"] for e in events(killed, "resume")]
    assert in_evaluation >= 1 and config.total_steps <= max(resumed)
    assert any(0 < step < config.total_steps for step in resumed), "no life went on from the middle of the run"
    assert len(events(killed, "start")) >= 1 and len(events(killed, "finish")) == 1 and len(events(whole)) == 2
    assert_same_run(whole, killed)


@pytest.mark.long
@pytest.mark.parametrize("name, kills", [("Gymnasium", 3), ("PPO", 3), ("Replay", 3)])
def test_killed_on_the_way_is_identical(name, kills, tmp_path): killed_is_identical(name, kills, tmp_path, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_fifty_times_is_identical(name, tmp_path): killed_is_identical(name, 50, tmp_path, seed=2)


# -- SIGKILL before every single write ---------------------------------------------------------------------------------

KILLER = """
import json, os, signal, sys
import envpool, torch, torch._dynamo, pandas  # the optimisers import _dynamo, at the first use of one
from abs_lab.runs.config import configure
from abs_lab.runs.runner import run
from abs_lab.runs.provenance import provenance
config, folder, every = configure(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
provenance()  # asks git, once for all lives

def life(name, kill_at):
    "A forked run in folder/name, killed just before its write number `kill_at`; returns (exit code, writes)."
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        count, inside = 0, os.path.join(folder, name)
        def hook(event, args):
            nonlocal count
            write = event in ("os.rename", "os.remove", "os.truncate") or event == "open" and args[2] and args[2] & (os.O_WRONLY | os.O_RDWR)
            if not write or not str(args[0]).startswith(inside): return
            count += 1
            if count == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        run(config, inside)
        os.write(tell, str(count).encode())
        os._exit(0)
    os.close(tell)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, os.fdopen(told).read()

code, writes = life("whole", 0)
for n in range(1, int(writes) + 1, every): print(n, life(f"killed-{n}", n)[0], life(f"killed-{n}", 0)[0])
"""

AT_EVERY_WRITE = {
    "plain": dict(total_steps=1_600),
    "segments": dict(total_steps=1_600, segment_steps=700),
    "held-out states, old policy": dict(total_steps=1_600, states="heldout", n_states=64, interval=2, lag=2),
    "replay": dict(total_steps=640, agent="btr", learning_starts=224, replay_size=224, size_min=16, size_max=48, multiple=16, interval=4, lag=2, record_every=5),
}

@pytest.mark.parametrize("name,every", [("segments", 7), ("replay", 97), *(pytest.param(n, 1, marks=pytest.mark.long) for n in AT_EVERY_WRITE)])
def test_killed_before_any_write_is_identical(name, every, tmp_path):
    params = dict(env_id="CartPole-v1", num_envs=16, eval_envs=2) | MOVING | dict(size_max=32) | AT_EVERY_WRITE[name]
    code, out, err = finish(start("-c", KILLER, json.dumps(params), tmp_path, every, cwd=tmp_path, checkpoint_seconds=0), seconds=300 if every > 1 else 3600)
    assert code == 0, err
    lines = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(lines) > 25 / every
    for n, killed, resumed in lines:
        assert (killed, resumed) == (-signal.SIGKILL, 0), f"write {n}: {err}"
        assert_same_run(tmp_path/"whole", tmp_path/f"killed-{n}")
    assert any(events(tmp_path/f"killed-{n}", "resume") for n, *_ in lines)
    if name == "segments": assert load_tree(tmp_path/"whole"/"checkpoint.safetensors")["envs"]["segment"] >= 2
