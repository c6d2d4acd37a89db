"A run's folder: what is damaged is not used in silence, nothing hangs, no link is followed, and a name that a file holds leads nowhere else."
import json, os, re, shutil, signal, warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st

from abs_lab import cli
from abs_lab.core.interfaces import AbsLabError
from abs_lab.live.browser import records, small_of, table_row
from abs_lab.runs.checkpoints import load_tree, save_tree
from abs_lab.runs.config import configure
from abs_lab.runs.forks import fork, lineage
from abs_lab.runs.logs import append_event
from abs_lab.runs.runner import Run, about_of, load_agent, look_at, read_config, run, set_events
from abs_lab.runs.session import Session
from abs_lab.runs.storage import Lease, config_json, events_of, result_of, steps_of, write_json, write_sealed
from abs_lab.runs.table import Runs
from abs_lab.runs.traces import Trace
from abs_lab.runs.verify import BARE, verify
from abs_lab.studies.campaign import Campaign, Training
from abs_lab.studies.costs import costs
from abs_lab.studies.results import collect, compact, last_words, load_small, merge, save_result, steps_done
from abs_lab.studies.status import survey, table
from support import MOVING, assert_same_run, events, rows, settings  # noqa: F401 (settings: a fixture that all tests here use)

SMALL = dict(env_id="CartPole-v1", num_envs=16, total_steps=4_000, eval_envs=2) | MOVING
REPLAY = SMALL | dict(agent="btr", total_steps=1_600, learning_starts=400, replay_size=800, replay_ratio=1 / 8, taus=2, size_min=32, size_max=96, n_states=64, interval=10)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    for key in ("runs", "reports"): monkeypatch.setenv(f"ABS_LAB_{key.upper()}_DIR", str(tmp_path/key))


@pytest.fixture(autouse=True)
def nothing_waits():
    "A reader that waits for a pipe ends the test, and not the whole suite."
    def late(*_): raise TimeoutError("it hangs")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def interrupted(params, dir, at, end, moved=None):
    "A run that has two checkpoints, was set once before and once after them, and was killed between two updates."
    r = Run(configure(**params), dir)
    for s in r.steps():
        if s.update == 2 and moved: r.set(**moved)
        if s.update in at: r.checkpoint()
        if s.update == end:
            if moved: r.set(**{k: v * 0.9 for k, v in moved.items()})
            break
    r.log.flush()
    if r.replay_log: r.replay_log.take()
    r.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Folders that are copied for each case: killed runs of two agents, and what they come to; and a finished run of an older version."
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as m:
        for key, value in dict(DEVICE="cpu", THREADS="1", CHECKPOINT_SECONDS="1000").items(): m.setenv(f"ABS_LAB_{key}", value)
        interrupted(SMALL, root/"killed", (5, 8), 10, dict(high=0.8))
        interrupted(REPLAY, root/"replay", (50, 70), 80)
        for name, params in (("killed", SMALL), ("replay", REPLAY)):
            shutil.copytree(root/name, root/f"{name} whole")
            run(configure(**params), root/f"{name} whole")
    return root


# -- damage of each file, and what becomes of it -----------------------------------------------------------------------

def digit(path, after=b'"size": '):
    "Change one digit, with as many bytes as before."
    text = bytearray(path.read_bytes())
    at = text.index(after) + len(after)
    text[at] = ord("7") if text[at] != ord("7") else ord("8")
    path.write_bytes(text)

def bit(path, at=100):
    text = bytearray(path.read_bytes())
    text[at] ^= 1
    path.write_bytes(text)

def last_digit(path):
    lines = path.read_bytes().split(b"\n")
    lines[-2] = lines[-2].replace(b'"size": ', b'"size": 9', 1)
    path.write_bytes(b"\n".join(lines))

def cut_to(share): return lambda path: path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
def rows_left(n): return lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:n]))
def line_out(path): path.write_bytes(b"".join(line for i, line in enumerate(path.read_bytes().splitlines(keepends=True)) if i != 1))
def delete(path): path.unlink()
def append(text): return lambda path: path.write_bytes(path.read_bytes() + text)
def loop(path): path.unlink(); path.symlink_to(path.name)
def pipe(path): path.unlink(); os.mkfifo(path)
def elsewhere(path): shutil.copy(path, path.with_name("moved")); path.unlink(); path.symlink_to("moved")
def parameter(name): return lambda path: digit(path, f'"{name}": '.encode())

SET = json.dumps(dict(time=0, event="set", step=9, update=9, changes=dict(high=0.5))).encode() + b"\n"
SAME, BEFORE, REFUSED = "the same run", "the same run, from the checkpoint before", "refused"
DAMAGE = [
    ("killed", "steps.jsonl", delete, REFUSED), ("killed", "steps.jsonl", cut_to(0.3), REFUSED), ("killed", "steps.jsonl", digit, REFUSED), ("killed", "steps.jsonl", line_out, REFUSED),
    ("killed", "steps.jsonl", rows_left(6), BEFORE), ("killed", "steps.jsonl", last_digit, SAME), ("killed", "steps.jsonl", append(b'{"torn": '), SAME),
    ("killed", "steps.jsonl", pipe, REFUSED), ("killed", "steps.jsonl", elsewhere, REFUSED),
    ("killed", "events.jsonl", append(SET), REFUSED), ("killed", "events.jsonl", parameter("update"), REFUSED), ("killed", "events.jsonl", delete, REFUSED), ("killed", "events.jsonl", rows_left(1), REFUSED),
    ("killed", "events.jsonl", append(b'{"torn": '), SAME), ("killed", "events.jsonl", pipe, REFUSED), ("killed", "events.jsonl", append(b"[5]\n"), REFUSED),
    ("killed", "config.json", parameter("lr"), REFUSED), ("killed", "config.json", parameter("seed"), REFUSED), ("killed", "config.json", lambda p: digit(p, b'-s'), REFUSED), ("killed", "config.json", loop, REFUSED),
    ("killed", "config.json", pipe, REFUSED),
    ("killed", "checkpoint.safetensors", lambda p: bit(p, -100), BEFORE), ("killed", "checkpoint.safetensors", cut_to(0.5), BEFORE), ("killed", "checkpoint.safetensors", cut_to(0), BEFORE),
    ("killed", "checkpoint.safetensors", delete, SAME), ("killed", "checkpoint.safetensors", loop, REFUSED), ("killed", "checkpoint.safetensors", pipe, REFUSED),
    ("killed", "checkpoint-before.safetensors", lambda p: bit(p, -100), SAME), ("killed", "checkpoint-before.safetensors", delete, SAME),
    ("killed", "actions-0", bit, REFUSED), ("killed", "actions-0", cut_to(0.9), BEFORE), ("killed", "actions-0", delete, REFUSED), ("killed", "actions-0", pipe, REFUSED),
    ("replay", "replay-000006", bit, REFUSED), ("replay", "replay-000006", delete, REFUSED), ("replay", "replay-000006", pipe, REFUSED), ("replay", "checkpoint.safetensors", lambda p: bit(p, -100), BEFORE),
]

def cases(): return [pytest.param(*case, id=f"{case[0]} {case[1]} {i}") for i, case in enumerate(DAMAGE)]

@pytest.mark.parametrize("which, file, damage, outcome", cases())
def test_a_damaged_file(which, file, damage, outcome, made, tmp_path):
    dir, config = tmp_path/"runs"/"s"/"x", configure(**(SMALL if which == "killed" else REPLAY))
    shutil.copytree(made/which, dir)
    damage(dir/file)
    before = {p.name: p.read_bytes() for p in dir.iterdir() if p.is_file()} if outcome == REFUSED else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if outcome == REFUSED:
            for _ in range(2):  # it is not used at a second try either
                with pytest.raises(AbsLabError, match=re.escape(file)): run(config, dir)
            after = {p.name: p.read_bytes() for p in dir.iterdir() if p.is_file()}
            assert {n: t for n, t in after.items() if n in before and n not in ("lock", "config.json", "checkpoint-before.safetensors")} == {n: t for n, t in before.items() if n not in ("lock", "config.json", "checkpoint-before.safetensors")}
            return
        run(config, dir)
    assert_same_run(made/f"{which} whole", dir)
    said = [str(w.message) for w in caught if "checkpoint before" in str(w.message)]
    assert bool(said) == (outcome == BEFORE) == bool(events(dir, "fallback")), said


def test_two_damaged_checkpoints_are_refused_and_an_unreadable_one_is_not_called_damaged(made, tmp_path, monkeypatch):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed", dir)
    with monkeypatch.context() as m:
        real = os.open
        def refuse(path, *args): return real(path, *args) if "checkpoint.safetensors" not in str(path) else (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(path)))
        m.setattr("abs_lab.runs.storage.os.open", refuse)
        with pytest.raises(AbsLabError, match="checkpoint.safetensors cannot be read: Permission denied") as e: run(configure(**SMALL), dir)
        assert "delete" not in str(e.value)
    for name in ("checkpoint.safetensors", "checkpoint-before.safetensors"): bit(dir/name, -100)
    for use in (lambda: run(configure(**SMALL), dir), lambda: load_agent(dir), lambda: fork(dir, tmp_path/"fork")):
        with pytest.raises(AbsLabError, match="delete the files checkpoint.safetensors and checkpoint-before.safetensors"): use()


def test_a_damaged_checkpoint_is_not_forked_or_loaded_in_silence(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed", dir)
    bit(dir/"checkpoint.safetensors", -100)
    step = load_tree(dir/"checkpoint-before.safetensors")["progress"]["step"]
    with pytest.warns(UserWarning, match=f"checkpoint before, at step {step}"): assert load_agent(dir).progress.step == step
    with pytest.warns(UserWarning, match=f"checkpoint before, at step {step}"): assert fork(dir, tmp_path/"fork").origin.endswith(f"@{step}")
    digit(dir/"steps.jsonl")
    with pytest.raises(AbsLabError, match="steps.jsonl"): fork(dir, tmp_path/"other")


def test_a_checkpoint_of_another_run_is_refused(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed", dir)
    (dir/"config.json").unlink()
    with pytest.raises(AbsLabError, match="checkpoint of another run"): run(configure(**SMALL | dict(low=0.06)), dir)


def test_a_damaged_result_is_made_again(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    digit(dir/"result.json", b'"steps": ')
    with pytest.warns(UserWarning, match="result.json was changed since"): run(configure(**SMALL), dir)
    assert_same_run(made/"killed whole", dir)


@pytest.mark.parametrize("damage", [digit, line_out, lambda p: rows_left(3)(p), append(b'{"size": 1}\n'), cut_to(0.5)])
def test_a_damaged_log_of_a_finished_run_is_not_reported(damage, made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    damage(dir/"steps.jsonl")
    with pytest.raises(AbsLabError, match="steps.jsonl"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compact(dir, "a")


def older(dir):
    "Make a run's folder one of a version that wrote no checksums."
    for name in ("config.json", "result.json"):
        if (dir/name).exists(): write_json(dir/name, {k: v for k, v in json.loads((dir/name).read_text()).items() if k != "seal"})
    for name in ("steps.jsonl", "events.jsonl"): (dir/name).write_bytes(re.sub(rb', "checksum": "\w+"', b"", (dir/name).read_bytes()))
    for path in dir.glob("checkpoint*"):
        tree = {k: v for k, v in load_tree(path).items() if k not in ("covers", "id")} | dict(steps_bytes=0)
        done = tree["progress"]["update"]
        tree["steps_bytes"] = sum(len(line) for line in (dir/"steps.jsonl").read_bytes().splitlines(keepends=True) if json.loads(line)["update"] <= done)
        save_tree(path, tree)


@pytest.mark.parametrize("which", ["killed", "replay"])
def test_a_folder_of_an_older_version_is_read_and_resumed(which, made, tmp_path):
    dir, params = tmp_path/"x", SMALL if which == "killed" else REPLAY
    shutil.copytree(made/which, dir)
    older(dir)
    assert {name for name, said in verify(dir).items() if said.startswith(BARE)} >= {"config.json", "steps.jsonl", "events.jsonl", "actions-0"}
    assert not [said for said in verify(dir).values() if said and not said.startswith(BARE)]
    shutil.copytree(dir, tmp_path/"cut")
    rows_left(1)(tmp_path/"cut"/"steps.jsonl")
    with pytest.raises(AbsLabError, match="steps.jsonl is missing or shorter"): run(configure(**params), tmp_path/"cut")  # it is never lengthened with NULs
    run(configure(**params), dir)
    assert_same_run(made/f"{which} whole", dir)
    assert not [said for said in verify(dir).values() if said and not said.startswith(BARE)] and compact(dir, "a")
    (dir/"events.jsonl").write_bytes((dir/"events.jsonl").read_bytes() + SET)  # from here on every line has a checksum
    with pytest.raises(AbsLabError, match="has no checksum, as those before it have"): set_events(dir)


def test_verify_names_what_does_not_hold(made, tmp_path, capsys):
    good, bad, report = (tmp_path/"runs"/"s"/name for name in ("good", "bad", "report"))
    for dir in (good, bad): shutil.copytree(made/"killed whole", dir)
    assert not any(verify(good).values()) and not any(verify(made/"killed").values()) and not any(verify(made/"replay").values())
    assert cli.main(["verify", "s"]) == 0 and "2 runs and 0 result files: 2 hold, 0 are damaged" in capsys.readouterr().out
    for name in verify(bad):
        broken = tmp_path/"runs"/"t"/name
        shutil.copytree(good, broken)
        bit(broken/name, -60)
        assert any(said and not said.startswith(BARE) for said in verify(broken).values()), name
        assert cli.main(["verify", str(broken)]) == 1 and "damaged: " in capsys.readouterr().out
    (bad/"steps.jsonl").unlink()
    save_result(compact(good, "a", config_json(good)["id"]), report/"data")
    digit(next((report/"data").iterdir()), b'"seconds":[')
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "s/bad: " in out and "its checksum is not that of its content" in out and " 1 hold, " in out
    assert cli.main(["verify", "s/good"]) == 0 and cli.main(["verify", "sss"]) == 2
