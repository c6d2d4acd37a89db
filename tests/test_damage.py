"A run's folder: what is damaged is not used in silence, nothing hangs, no link is followed, and a name that a file holds leads nowhere else."
import json, os, re, shutil, signal, socket, time, warnings
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings as hypothesis, strategies as st

from abs_lab import cli
from abs_lab.core.interfaces import AbsLabError
from abs_lab.live.browser import records, small_of, table_row
from abs_lab.runs import __main__ as program
from abs_lab.runs.checkpoints import load_tree, save_tree
from abs_lab.runs.config import configure
from abs_lab.runs.forks import fork, lineage
from abs_lab.runs.runner import Run, about_of, load_agent, look_at, read_config, run, set_events
from abs_lab.runs.session import Session
from abs_lab.runs import index, storage
from abs_lab.runs.storage import SEALED, Lease, config_json, measured_steps, result_of, steps_of, write_json, write_sealed
from abs_lab.runs.table import Runs
from abs_lab.runs.traces import Trace
from abs_lab.runs.verify import BARE, verify
from abs_lab.studies.campaign import Campaign, Training
from abs_lab.studies.costs import costs
from abs_lab.studies.results import collect, compact, last_words, load_small, merge, save_result, steps_done
from abs_lab.studies.status import survey, table
from abs_lab.studies import workers
from abs_lab.studies.engine import Job, _Queue
from abs_lab.studies.workers import _Worker, execute
from support import MOVING, assert_same_run, events, rows, settings, start  # noqa: F401 (settings: a fixture that all tests here use)

SMALL = dict(env_id="CartPole-v1", num_envs=16, total_steps=4_000, eval_envs=2) | MOVING
REPLAY = SMALL | dict(agent="btr", total_steps=1_600, learning_starts=400, replay_size=800, replay_ratio=1 / 8, taus=2, size_min=32, size_max=96, n_states=64, interval=10)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    for key in ("runs", "reports"): monkeypatch.setenv(f"ABS_LAB_{key.upper()}_DIR", str(tmp_path/key))


@pytest.fixture(autouse=True)
def nothing_waits(request):
    "A reader that waits for a pipe ends the test, and not the whole suite."
    def late(*_): raise TimeoutError("it hangs")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(600 if request.node.get_closest_marker("long") else 120)
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

def cases(): return [pytest.param(*case, id=f"{case[0]} {case[1]} {i}", marks=[pytest.mark.long] if case[3] == SAME and i % 2 or i % 3 == 2 else []) for i, case in enumerate(DAMAGE)]  # two thirds in CI

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


@pytest.mark.parametrize("name", ["steps.jsonl", "events.jsonl", "actions-0", "checkpoint.safetensors"])
def test_what_cannot_be_read_just_now_is_not_called_damaged(name, made, tmp_path, monkeypatch):
    shutil.copytree(made/"killed", tmp_path/"x")
    real, before = os.open, {p.name: p.read_bytes() for p in (tmp_path/"x").iterdir()}
    def refuse(path, *args): return real(path, *args) if not str(path).endswith(name) else (_ for _ in ()).throw(OSError(5, "Input/output error", str(path)))
    with monkeypatch.context() as m:
        m.setattr("abs_lab.runs.storage.os.open", refuse)
        for use in (lambda: run(configure(**SMALL), tmp_path/"x"), lambda: fork(tmp_path/"x", tmp_path/"fork")):
            with pytest.raises(AbsLabError, match=f"{name} cannot be read: Input/output error") as e: use()
            assert "delete" not in str(e.value) and "damaged" not in str(e.value)
    assert {p.name: p.read_bytes() for p in (tmp_path/"x").iterdir() if p.name in before and p.name not in ("config.json", "lock")} == {n: t for n, t in before.items() if n not in ("config.json", "lock")}


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


def test_what_belongs_to_another_run_is_not_taken(made, tmp_path):
    other = configure(**SMALL | dict(seed=1))
    for name in ("result", "checkpoint"): shutil.copytree(made/"killed", tmp_path/name)
    run(other, tmp_path/"other")
    shutil.copy(tmp_path/"other"/"result.json", tmp_path/"result"/"result.json")
    with pytest.warns(UserWarning, match="result of another run"): assert run(configure(**SMALL), tmp_path/"result")["id"] == configure(**SMALL).id
    shutil.copy(tmp_path/"other"/"checkpoint.safetensors", tmp_path/"checkpoint"/"checkpoint.safetensors")
    step = load_tree(tmp_path/"checkpoint"/"checkpoint-before.safetensors")["progress"]["step"]
    with pytest.warns(UserWarning, match="checkpoint of another run"): assert load_agent(tmp_path/"checkpoint").progress.step == step
    found = config_json(tmp_path/"checkpoint")
    write_sealed(tmp_path/"checkpoint"/"config.json", found | dict(id="other"))
    assert "is called 'other', and its parameters are those of" in verify(tmp_path/"checkpoint")["config.json"]
    with pytest.raises(AbsLabError, match="is called 'other'"): run(configure(**SMALL), tmp_path/"checkpoint")


def test_what_was_set_and_set_back_is_set_back_after_a_kill(tmp_path):
    r = Run(configure(**SMALL), tmp_path)
    next(iter(r.steps()))
    r.set(high=0.8); r.checkpoint(); r.set(high=0.7); r.set(high=0.8)
    r.close()
    again = Run(configure(**SMALL), tmp_path)
    assert again.present.controller.high == again.controller.high == 0.8 and [c["high"] for _, c in again.history] == [0.8, 0.7, 0.8]
    again.close()


def test_a_last_line_with_an_end_is_whole_or_damaged(made, tmp_path):
    shutil.copytree(made/"killed", tmp_path/"x")
    for name in ("events.jsonl", "steps.jsonl"):
        text = (tmp_path/"x"/name).read_bytes()
        (tmp_path/"x"/name).write_bytes(text[:-2] + b"]\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "has an end and is no JSON" in verify(tmp_path/"x")[name]
    with pytest.raises(AbsLabError, match="events.jsonl has an end and is no JSON"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(configure(**SMALL), tmp_path/"x")


def test_a_parameters_file_is_compared_with_its_checksum(made, tmp_path, capsys):
    shutil.copy(made/"killed"/"config.json", tmp_path/"c.json")
    digit(tmp_path/"c.json", b'"lr": ')
    assert program.main([str(tmp_path/"c.json"), str(tmp_path/"x")]) == 2 and "checksum is not that of its content" in capsys.readouterr().err and not (tmp_path/"x").exists()
    (tmp_path/"c.json").write_text("[[1, 2]]")
    assert program.main([str(tmp_path/"c.json"), str(tmp_path/"x")]) == 2 and "cannot be read as parameters" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["tensor", "array", "buffer", "held", "list", "scalar"])
def test_a_checkpoint_never_holds_what_is_no_number(where, tmp_path):
    r = Run(configure(**SMALL), tmp_path)
    next(iter(r.steps()))
    r.checkpoint()
    state = r.agent.state_dict
    nan = {"tensor": torch.tensor([float("nan")]), "array": np.array([np.nan]), "buffer": {"running_mean": torch.full((3,), float("nan"))}, "held": [{"weight": torch.full((2, 2), float("nan"))}], "list": [[0.0, float("nan")]], "scalar": np.float32("nan")}[where]
    r.agent.state_dict = lambda: state() | dict(mine=nan)
    before = (tmp_path/"checkpoint.safetensors").read_bytes()
    with pytest.raises(AbsLabError, match="NaN"): r.checkpoint()
    assert (tmp_path/"checkpoint.safetensors").read_bytes() == before
    r.close()


def odd_states(tree):
    "States that a class of today cannot take: of another kind, without a part, with weights of another network."
    agent = tree["agent"]
    yield dict(agent=agent | dict(generator=[1, 2, 3]))
    yield dict(agent={k: v for k, v in agent.items() if k != "generator"})
    yield dict(agent=agent | dict(net={k: w[:1] for k, w in agent["net"].items()}))
    for part in ("meter", "controller", "progress"): yield {part: dict(unknown=1)}

def test_a_state_that_the_code_cannot_take_is_named_and_nothing_is_written(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed", dir)
    path = dir/"checkpoint.safetensors"
    tree, events = load_tree(path), (dir/"events.jsonl").read_bytes()
    for i, odd in enumerate(odd_states(tree)):
        save_tree(path, tree | odd)
        with pytest.raises(AbsLabError, match="the checkpoint of .* holds a state that"): run(configure(**SMALL), dir)
        if i < 3 or "progress" in odd:
            with pytest.raises(AbsLabError, match="the checkpoint of .* holds a state that"): load_agent(dir)
        assert (dir/"events.jsonl").read_bytes() == events


def expected_measurements(dir):
    rows = steps_of(dir)
    return [(row, rows[min(i + 1, len(rows) - 1)]["size"]) for i, row in enumerate(rows) if row["signal"] is not None]

def test_measurements_are_what_all_updates_say(made, tmp_path, monkeypatch):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    log, text = dir/"steps.jsonl", (dir/"steps.jsonl").read_bytes()
    whole, lines = expected_measurements(dir), text.splitlines(keepends=True)
    assert len(whole) > 5
    read = storage.contents
    for piece in (2_000, 5_000, 1 << 24):  # bytes read at once
        monkeypatch.setattr(storage, "contents", lambda path, first=0, most=None, piece=piece: read(path, first, min(piece, most or piece)))
        assert [*measured_steps(dir)] == whole
        log.write_bytes(text[:-30])        # cut off within the last line
        with pytest.warns(UserWarning, match="torn line"): expected = expected_measurements(dir)
        assert [*measured_steps(dir)] == expected
        log.write_bytes(text)
    monkeypatch.undo()
    log.write_bytes(b"".join(SEALED.sub(b"}\n", line) for line in lines))  # of an older version
    assert [(r["step"], r["signal"], size) for r, size in measured_steps(dir)] == [(r["step"], r["signal"], size) for r, size in whole]
    for line in (0, len(lines)//2, len(lines) - 1):
        log.write_bytes(b"".join(l.replace(b'"size": ', b'"size": 1') if i == line else l for i, l in enumerate(lines)))
        with pytest.raises(AbsLabError, match=f"line {line + 1} of .* does not match its checksum"): [*measured_steps(dir)]


def test_a_damaged_result_is_made_again(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    digit(dir/"result.json", b'"steps": ')
    with pytest.warns(UserWarning, match="result.json was changed since"): run(configure(**SMALL), dir)
    assert_same_run(made/"killed whole", dir)


@pytest.mark.parametrize("damage", [digit, line_out, lambda p: rows_left(3)(p), append(b'{"size": 1}\n'), cut_to(0.5), lambda p: p.write_bytes(p.read_bytes().replace(b"\n", b"\r\n"))])
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


# -- what is no file, and what is not the run's ------------------------------------------------------------------------

NAMES = ("config.json", "steps.jsonl", "events.jsonl", "result.json", "failure.json", "worker.log", "checkpoint.safetensors", "checkpoint-before.safetensors", "actions-0", "lock", "lock.alive", "queue", "queue.alive")

def readers(dir):
    "Everything that lists runs, or looks at one; each by its name."
    runs = dir.parent
    return dict(
        status=lambda: table(survey(runs, [(dir.name, "a", 4_000)]), ("done", "running", "waiting", "stopped", "failed")), command=lambda: cli.main(["status"]), verify=lambda: verify(dir),
        steps_done=lambda: steps_done(dir), last_words=lambda: last_words(dir), table=lambda: Runs(runs).table, steps=lambda: Runs(runs).steps(), browser=lambda: [table_row(r) for r in records()],
        chosen=lambda: [small_of(r) for r in records()], costs=lambda: costs(), compact=lambda: compact(dir, "a"), set_events=lambda: set_events(dir), lineage=lambda: lineage(dir), look=lambda: look_at(dir),
        read=lambda: read_config(dir), about=lambda: about_of(dir), trace=lambda: Trace(dir).read(), session=lambda: Session.open(dir).present, result=lambda: result_of(dir), held=lambda: Lease.held(dir/"lock"))

def views(dir):
    "What the dashboard opens a run with."
    from abs_lab.live.board import Dashboard
    from abs_lab.live.what_if import WhatIf
    from abs_lab.live.widgets import discard
    def opened():
        board = Dashboard(Session.open(dir))
        board.tick()
        board.close(), discard(board.widget)
    return dict(what_if=lambda: discard(WhatIf(dir).widget), open=opened)

LISTS = ("status", "command", "verify", "steps_done", "last_words", "browser", "costs", "table")  # one folder never ends these

def look(dir, only=None, of=readers):
    "Ask every reader; only `AbsLabError` may come of it, and nothing at all from what lists many folders."
    signal.alarm(600)  # anew for each look: a test may take thousands
    for name, read in of(dir).items():
        if only and name not in only: continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except AbsLabError as e:
            assert name not in LISTS, (name, e)
            assert len(str(e)) < 1_500 + 3 * len(str(dir)), name
        except Exception as e: raise AssertionError(f"{name}: {type(e).__name__}: {e}") from e


@pytest.fixture
def folder(made, tmp_path):
    dir = tmp_path/"runs"/"s"/"x"
    shutil.copytree(made/"killed whole", dir)
    write_json(dir/"failure.json", dict(arm="a", id="x", message="m", notebook="n"))
    return dir


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_hangs_and_misleads_nothing(name, folder, tmp_path, capsys):
    for what in (os.mkfifo, lambda p: p.symlink_to(p.name)) if NAMES.index(name) % 2 else (lambda p: p.symlink_to("nowhere"), Path.mkdir, os.mkfifo):
        (folder/name).unlink(missing_ok=True)
        what(folder/name)
        look(folder)
        (folder/name).rmdir() if (folder/name).is_dir() else (folder/name).unlink()


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as s: s.bind(os.path.relpath(path))  # the system allows 108 bytes

@pytest.mark.parametrize("name, what, said", [("lock", os.mkfifo, "lock.*: it is not a regular file"), ("lock", socket_at, "lock.*: it is not a regular file"), ("lock", Path.mkdir, "lock.*: (Is a directory|it is not a regular file)"),
    ("steps.jsonl", socket_at, "steps.jsonl cannot be read: it is not a regular file"), ("result.json", Path.mkdir, "result.json: Is a directory"), ("checkpoint-before.safetensors", Path.mkdir, "before.safetensors: Is a directory")])
def test_what_cannot_be_written_is_one_sentence(name, what, said, made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    for old in (name, "result.json"): (dir/old).unlink(missing_ok=True)
    what(dir/name)
    (dir/name/"full").touch() if what is Path.mkdir else None
    session = Session.open(dir)
    for train in (lambda: run(configure(**SMALL), dir), lambda: (session.start(), session.wait(60))):
        with pytest.raises(AbsLabError, match=said) as e, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train()
        assert "Errno" not in str(e.value)


def test_an_error_in_somebodys_words_can_be_read_back(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed", dir)
    def fails(steps, config):
        next(steps)
        raise ValueError("half \ud800, \x1b[2J and a\nline")
        yield
    for _ in range(2):
        with pytest.raises(ValueError, match="half"): run(configure(**SMALL), dir, fails)
    assert [e["message"] for e in events(dir, "error")] == ["ValueError: half \\ud800, \\x1b[2J and a\nline"] * 2


def test_no_link_is_followed_by_what_writes(made, tmp_path):
    dir, outside = tmp_path/"runs"/"x", tmp_path/"outside"
    for name in NAMES:
        if name in ("failure.json", "worker.log", "queue", "queue.alive", "lock.alive"): continue
        shutil.rmtree(dir, ignore_errors=True)
        shutil.copytree(made/"killed", dir)
        outside.write_text("mine")
        (dir/name).unlink(missing_ok=True)
        (dir/name).symlink_to(outside)
        (dir/f"{name}.tmp").symlink_to(outside)
        if name not in ("result.json", "checkpoint-before.safetensors"):
            with pytest.raises(AbsLabError, match=name): run(configure(**SMALL), dir)
        else: run(configure(**SMALL), dir)
        assert outside.read_text() == "mine" and (dir/f"{name}.tmp").is_symlink(), name


def test_a_link_in_place_of_a_worker_log_or_a_notebook_is_not_followed(tmp_path):
    outside, dir = tmp_path/"outside", tmp_path/"x"
    dir.mkdir(), outside.write_text("mine")
    (dir/"worker.log").symlink_to(outside)
    with pytest.raises(OSError, match="it is a link"): _Worker(None, [], dir/"worker.log")
    (dir/"executed.ipynb").symlink_to(outside)
    with pytest.raises(FileNotFoundError): execute(tmp_path/"nothing.ipynb", dir/"executed.ipynb", {})
    assert outside.read_text() == "mine"


def test_files_of_a_person_stay_and_those_of_a_kill_go(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"replay", dir)
    mine = ("actions-of-mine.txt", "replay-000000.bak", "replay-notes", "config.json.tmp", "checkpoint.safetensors.mine.tmp", "actions-1.txt", "actions-٣")
    for name in mine: (dir/name).write_text("mine")
    for name in ("config.json.0123abcd.tmp", "checkpoint.safetensors.0123abcd.tmp"): (dir/name).write_text("half")
    (dir/"actions-77").mkdir()
    run(configure(**REPLAY), dir)
    assert all((dir/name).read_text() == "mine" for name in mine) and not list(dir.glob("*.0123abcd.tmp"))
    assert_same_run(made/"replay whole", dir)


def test_tensors_without_elements_are_kept(tmp_path):
    save_tree(tmp_path/"a", dict(empty=torch.zeros(4, 0, dtype=torch.float64), none=torch.zeros(0, 3)))
    assert {k: v.shape for k, v in load_tree(tmp_path/"a").items()} == dict(empty=(4, 0), none=(0, 3))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError): write_json(tmp_path/"a.json", object())

    assert not list(tmp_path.iterdir())




# -- contents that are no run's ----------------------------------------------------------------------------------------

TEXTS = [b"", b"{", b"null", b"[]", b"{}", b"[5]", b"[1]", b'"x"', b"1e999", b"NaN", b'{"format": 2}', b'{"format": 2, "config": null}', b'{"format": 2, "id": "x", "config": []}', b"[" * 100_000 + b"]" * 100_000,
         b'{"a":' * 500 + b"1" + b"}" * 500, b"\xff\xfe\x00", b"\x00" * 1000, "é".encode("latin-1") * 9, b'{"id": "\\ud800", "format": 2}', b'{"step": "x"}\n', b"[5]\n[6]\n", b'{"step": 1}\n{"step": "x"}\n',
         b'{"event": 5}\n', b'{"event": "set", "update": "x"}\n', b'{"event": "fork"}\n', b'{"event": "start"}\n', b'{"event": "error"}\n', b'{"message": 5}', b"9" * 5000, b'{"step": ' + b"9" * 400 + b"}\n"]
KINDS = ("config.json", "steps.jsonl", "events.jsonl", "result.json", "failure.json", "worker.log", "study.json")

def put(folder, kind, text): (folder.parent if kind == "study.json" else folder).joinpath(kind).write_bytes(text)

@pytest.mark.parametrize("part", [pytest.param(None, id="all", marks=pytest.mark.long), *range(len(KINDS))])
def test_malformed_contents(part, folder, capsys):
    "In CI a seventh of the contents for each kind of file, so that all occur."
    for i, kind in enumerate(KINDS):
        path = (folder.parent if kind == "study.json" else folder)/kind
        before = path.read_bytes() if path.exists() else None
        for text in TEXTS if part is None else TEXTS[i::len(KINDS)] if part == i else ():
            put(folder, kind, text)
            look(folder)
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)


def leaves(value, at=()):
    "The places of a value, from the outside to the inside."
    yield at
    for k, v in value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else (): yield from leaves(v, (*at, k))

def planted(value, at, new):
    "The value with another one at a place."
    if not at: return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = planted(value[at[0]], at[1:], new)
    return copy

JSON = st.recursive(st.none() | st.booleans() | st.integers(-10**30, 10**30) | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4)

def fuzz(data, folder, of):
    "One value of one file of a run is another one; it has the checksum of its content, as a stranger's file may."
    kind = data.draw(st.sampled_from(("config.json", "result.json", "steps.jsonl", "events.jsonl")))
    whole = of[kind]
    if kind.endswith(".json"):
        value = json.loads(whole)
        write_sealed(folder/kind, data.draw(st.sampled_from([*leaves(value)][1:]).map(lambda at: at).flatmap(lambda at: JSON.map(lambda new: planted(value, at, new)))))
    else:
        lines = [{k: v for k, v in json.loads(line).items() if k != "checksum"} for line in whole.splitlines()]
        i = data.draw(st.sampled_from((0, len(lines) - 1)))
        lines[i] = planted(lines[i], data.draw(st.sampled_from([*leaves(lines[i])])), data.draw(JSON))
        (folder/kind).write_text("".join(json.dumps(line) + "\n" for line in lines))
    look(folder)
    (folder/kind).write_bytes(whole)

def fuzzed(examples, made, tmp_path):
    dir = tmp_path/"runs"/"s"/"x"
    shutil.copytree(made/"killed whole", dir)
    of = {p.name: p.read_bytes() for p in dir.glob("*.json*")}
    hypothesis(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])(given(st.data())(lambda data: fuzz(data, dir, of)))()

def test_one_value_of_a_file_is_another(made, tmp_path, capsys): fuzzed(12, made, tmp_path)

def test_null_and_absent_are_one(folder):
    found = config_json(folder)
    for part in ("kinds", "identity"):
        write_sealed(folder/"config.json", found | {part: None})
        compact(folder, "a"), look(folder)

@pytest.mark.long
def test_many_values_of_files_are_others(made, tmp_path, capsys): fuzzed(4_000, made, tmp_path)


def elsewhere_made(folder):
    "The parameters of a run whose classes are somebody's own."
    found = config_json(folder)
    for kind in found["kinds"]: found["config"][kind] = found["kinds"][kind]["name"] = f"elsewhere:{kind}"
    return found

def test_the_dashboard_opens_a_run_whose_kinds_are_odd_or_says_why_not(folder):
    pytest.importorskip("ipywidgets")
    good = elsewhere_made(folder)
    odd = [("agent", "parameters", {name: "a comment"}) for name in ("_described", "__class__")] + [("agent", "parameters", dict(lam=0)), ("controller", "parameters", dict(low="", high=[["x"]])), ("meter", "parameters", dict(interval={})),
           ("agent", "settable", ["low"]), ("agent", "settable", ["smallest"]), ("controller", "settable", ["low"]), ("controller", "name", {}), ("agent", "size", [1, 2]), ("meter", "signal", {}), ("agent", "metrics", dict(loss=[5]))]
    for kind, part, value in odd:
        kinds = good["kinds"] | {kind: good["kinds"][kind] | {part: value}}
        write_sealed(folder/"config.json", good | dict(kinds=kinds, config=good["config"] | {name: 3 for name in value if part == "parameters" and name[0] == "_"}))
        look(folder, of=views), look(folder, ("about", "look", "session"))
    for odd in (dict(size_max="x", multiple=None, low=None), dict(size_max=1), dict(low=5.0), dict(high=-1.0), dict(multiple=10**9), dict(env_options=None), dict(multiple=None), dict(multiple=0), dict(wrappers=[[5]]), dict(agent=None), dict(controller=None), dict(preset=None)):
        write_sealed(folder/"config.json", good | dict(config=good["config"] | odd))
        look(folder, of=views)

@pytest.mark.long
def test_the_dashboard_opens_whatever_is_there(made, tmp_path):
    pytest.importorskip("ipywidgets")
    dir = tmp_path/"runs"/"s"/"x"
    shutil.copytree(made/"killed whole", dir)
    good = elsewhere_made(dir)
    for at in [*leaves(good)][1:]:
        for new in (None, "x", 5, [], [["x"]], {}, True, 10**30):
            write_sealed(dir/"config.json", planted(good, at, new))
            look(dir, of=views)


# -- names that a file holds -------------------------------------------------------------------------------------------

HOSTILE = ("../../../../evil", "/tmp/evil", "..", "a/b", "x" * 300, "", "nul\0", 5, None)

@pytest.mark.parametrize("id", HOSTILE, ids=lambda x: repr(x)[:20])
def test_an_id_leads_nowhere_else(id, made, tmp_path):
    config, there = configure(**SMALL), {p for p in tmp_path.parent.glob("*")}
    dir = tmp_path/"a"/"b"/"c"/"runs"/config.id
    shutil.copytree(made/"killed whole", dir)
    write_sealed(dir/"result.json", result_of(dir) | (dict(id=id) if isinstance(id, str) else {}))
    write_sealed(dir/"config.json", config_json(dir) | dict(id=id))
    with pytest.raises(AbsLabError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect([dict(arm="a")], [config], dir.parent, tmp_path/"a"/"b"/"c"/"data")
        assert found == ([], ["a, seed 0"])  # a result that cannot be one is none
        raise AbsLabError("nothing was written")
    campaign, job = object.__new__(Campaign), Training(type("Task", (), dict(config=config, arm="a"))(), dir, None, 0.0)
    campaign.out, campaign.folder = tmp_path/"a"/"b"/"c", "s"
    with pytest.raises(AbsLabError): campaign._keep(job)
    assert not list(tmp_path.rglob("*evil*")) and {p for p in tmp_path.parent.glob("*")} == there and not list((tmp_path/"a"/"b"/"c").glob("*.json")) and dir.exists()


def test_a_small_file_has_the_name_of_its_parameters(made, tmp_path):
    good = compact(made/"killed whole", "a")
    for small in (good | dict(id="../evil"), good | dict(id="other"), good | dict(params=good["params"] | dict(lr=0.5))):
        with pytest.raises(AbsLabError): save_result(small, tmp_path/"data")
    save_result(good, tmp_path/"data")
    path = tmp_path/"data"/f"{good['id']}.json"
    path.rename(tmp_path/"data"/"other.json")
    with pytest.raises(AbsLabError, match="not that of its name"): load_small(tmp_path/"data"/"other.json")
    assert merge(tmp_path/"data", tmp_path/"reports", "quick")[0] == []


def test_another_runs_folder_is_not_reported_under_a_name(made, tmp_path):
    config = configure(**SMALL | dict(low=0.06))
    shutil.copytree(made/"killed whole", tmp_path/config.id)
    with pytest.raises(AbsLabError, match="holds the run"): collect([dict(arm="a")], [config], tmp_path, tmp_path/"data")


def test_a_study_names_no_folder_elsewhere(tmp_path, capsys):
    (tmp_path/"runs"/"s").mkdir(parents=True)
    write_json(tmp_path/"runs"/"s"/"study.json", dict(study="s", trains_here=True, runs=[["../../x", "a", 100]]))
    assert cli.main(["status"]) == 0 and "study.json" in capsys.readouterr().err


# -- the rest ----------------------------------------------------------------------------------------------------------

def test_a_row_of_a_megabyte_is_read(made, tmp_path):
    dir = tmp_path/"x"
    shutil.copytree(made/"killed whole", dir)
    last = rows(dir)[-1]["step"]
    lines = [json.loads(line) for line in (dir/"steps.jsonl").read_text().splitlines()]
    lines[-1]["episodes"] = [[i, 0, 1.0, 9] for i in range(60_000)]
    (dir/"steps.jsonl").write_text("".join(json.dumps({k: v for k, v in line.items() if k != "checksum"}) + "\n" for line in lines))
    assert (dir/"steps.jsonl").stat().st_size > 1_000_000 and steps_done(dir) == last


def test_a_full_disk_and_a_folder_that_may_not_be_read_are_one_sentence(made, tmp_path, monkeypatch, capsys):
    save_result(compact(made/"killed whole", "a"), tmp_path/"data")
    def full(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr("abs_lab.runs.storage.os.fsync", full)
        assert cli.main(["merge", str(tmp_path/"data"), "quick"]) == 1
    err = capsys.readouterr().err
    assert "could not be taken: No space left on device" in err and "Traceback" not in err and not list((tmp_path/"reports"/"quick"/"data").iterdir())
    (tmp_path/"runs"/"s").mkdir(parents=True)
    def refuse(path): raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(index, "run_dirs", refuse)
    assert cli.main(["status"]) == 0 and "s cannot be read: Permission denied" in capsys.readouterr().err


# -- processes ---------------------------------------------------------------------------------------------------------

LEASE = "import subprocess, sys, time; from abs_lab.runs.storage import Lease; lease = Lease('lock'); print(1, flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LEASE!r}])"

@pytest.mark.parametrize("code", [LEASE, PARENT], ids=["itself", "its parent"])
def test_a_process_that_stands_still_is_named(code, tmp_path, capsys):
    config = configure(**SMALL)
    dir = tmp_path/"runs"/"s"/config.id
    dir.mkdir(parents=True)
    process = start("-c", code, cwd=dir)
    try:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 10
        while "stands still" not in (said := table(survey(dir.parent, [(dir.name, "a", 4_000)]))[1]) and time.monotonic() < until: time.sleep(0.05)
        assert f"`kill -CONT {process.pid}` lets it go on" in said
        queue = _Queue([Job(dict(arm="a"), config, dir)], type("Engine", (), dict(slots=1, here=True))(), None, 1.0, float("inf"))
        with pytest.warns(UserWarning, match=f"{config.id} is not started: .*stands still"): queue.start()
    finally:
        for pid in re.findall(r" process (\d+) ", (dir/"lock.alive").read_text()): os.kill(int(pid), signal.SIGKILL)
        process.kill(), process.communicate()
    (dir/"lock.alive.0123abcd").write_text((dir/"lock.alive").read_text())  # as a kill leaves it in the middle of signing
    Lease(dir/"lock").close()
    assert {p.name for p in dir.iterdir()} == {"lock"}


def test_a_workers_temporary_files_go_with_it(tmp_path, monkeypatch):
    "One that ends, one that is stopped, and one whose nursery is killed."
    (temporary := tmp_path/"temporary").mkdir()
    monkeypatch.setattr(workers.tempfile, "tempdir", str(temporary))
    cells = [nbformat.v4.new_code_cell("seconds = 0", metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell("import time; time.sleep(seconds)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), tmp_path/"a.ipynb")
    here = workers.Local(dict(jobs=3), tmp_path)
    ends, stopped, loses = (here.start([str(tmp_path/"a.ipynb"), str(tmp_path/f"{i}.ipynb"), dict(seconds=s)], tmp_path/f"{i}.log") for i, s in enumerate((0, 600, 600)))
    assert ends.wait() == 0, (tmp_path/"0.log").read_text()
    until = time.monotonic() + 60
    while not all([*Path(w.scratch).iterdir()] for w in (stopped, loses)): assert time.monotonic() < until; time.sleep(0.02)
    here.stop(stopped)
    assert {p.name for p in temporary.iterdir()} == {Path(loses.scratch).name}
    family = [psutil.Process(loses.pid), *psutil.Process(loses.pid).children()]
    here.nursery.process.kill()
    assert not psutil.wait_procs(family, 60)[1] and not [*temporary.iterdir()]
    with pytest.raises(OSError, match="ended with exit code -9"): here.poll(loses)
