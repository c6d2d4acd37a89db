"Trackers: the curves of a run elsewhere, each point once, and no bit of the run changed."
import json, struct, sys
from contextlib import suppress
from pathlib import Path

import pytest

from abs_lab import cli
from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs import trackers
from abs_lab.runs.config import configure
from abs_lab.runs.runner import Stopped, run
from abs_lab.runs.session import Session
from abs_lab.runs.storage import steps_of

GIVEN = dict(env_id="CartPole-v1", num_envs=8, size_min=16, size_max=32, total_steps=3_000, eval_envs=2)
CONFIG = configure(**GIVEN)


def until(step):
    "A watch that stops a run."
    def watch(steps, config):
        for s in steps:
            yield s
            if s.step >= step: raise Stopped
    return watch


def in_two_lives(folder):
    "Train, stop in the middle, go on."
    with suppress(Stopped): run(CONFIG, folder, trackers.tracking(folder, until(1_500)))
    return run(CONFIG, folder, trackers.tracking(folder))


def plain(rows): return [{k: v for k, v in row.items() if k not in ("seconds", "checksum")} for row in rows]


@pytest.fixture
def listed(monkeypatch):
    "A tracker that keeps what it is given."
    kept = []
    class Listed:
        def __init__(self, dir, config): self.found = []; kept.append((config.id, self.found))
        def take(self, step, numbers): self.found.append((step, numbers))
        def flush(self): pass
        def close(self): self.found.append(("closed", {}))
    monkeypatch.setitem(trackers.TRACKERS, "listed", Listed)
    monkeypatch.setenv("ABS_LAB_TRACKER", "listed")
    return kept


@pytest.mark.parametrize("door", ["session", "command line", "a file of parameters"])
def test_every_door_to_training_tracks(door, tmp_path, listed, monkeypatch):
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path))
    if door == "session":
        session = Session(CONFIG, tmp_path/"run")
        session.start(); assert session.wait() == "finished"
    elif door == "command line": assert cli.main(["train", "pqn", *(f"--{k.replace('_', '-')}={v}" for k, v in GIVEN.items())]) == 0
    else:
        from abs_lab.runs import __main__ as program
        (tmp_path/"c.json").write_text(json.dumps(GIVEN))
        assert program.main([str(tmp_path/"c.json"), str(tmp_path/"run")]) == 0
    (id, found), folder = listed[0], next(f.parent for f in tmp_path.rglob("steps.jsonl"))
    assert len(listed) == 1 and found[-1][0] == "closed" and id == CONFIG.id
    assert [(step, said["abs/size"]) for step, said in found if "abs/size" in said] == [(row["step"], row["size"]) for row in steps_of(folder)]


def test_a_tracker_is_no_part_of_a_run_and_its_name_is_checked(tmp_path, monkeypatch):
    for word, said in (("tensorbord", "did you mean tensorboard"), ("wandb", r"pip install 'abs_lab\[wandb\]'"), ("tensorboard", r"pip install 'abs_lab\[tensorboard\]'")):
        monkeypatch.setenv("ABS_LAB_TRACKER", word)
        for name in ("wandb", "torch.utils.tensorboard"): monkeypatch.setitem(sys.modules, name, None)
        assert configure(**GIVEN).id == CONFIG.id
        with pytest.raises(AbsLabError, match=said): run(CONFIG, tmp_path/word, trackers.tracking(tmp_path/word))


def test_tensorboard_has_each_point_once_after_a_resume(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("ABS_LAB_TRACKER", "tensorboard")
    in_two_lives(tmp_path/"a")
    monkeypatch.setenv("ABS_LAB_TRACKER", "none")
    in_two_lives(tmp_path/"b")
    assert plain(steps_of(tmp_path/"a")) == plain(steps_of(tmp_path/"b"))
    events, rows = reader.EventAccumulator(str(tmp_path/"a"/"tensorboard"), size_guidance=dict(scalars=0)).Reload(), steps_of(tmp_path/"a")
    points = lambda tag: [(e.step, round(e.value, 3)) for e in events.Scalars(tag)]
    assert points("abs/size") == [(row["step"], row["size"]) for row in rows]
    assert points("charts/episodic_return") == [(e[0], e[2]) for row in rows for e in row["episodes"]]
    assert points("abs/divergence") == [(row["step"], round(row["signal"], 3)) for row in rows if row["signal"] is not None]
    assert {"charts/learning_rate", "losses/q_values", "losses/loss", "charts/SPS"} <= {*events.Tags()["scalars"]}


def test_weights_and_biases_offline_has_each_point_once_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    for key, value in dict(ABS_LAB_TRACKER="wandb", WANDB_MODE="offline", WANDB_SILENT="true").items(): monkeypatch.setenv(key, value)
    in_two_lives(tmp_path)
    file, = Path(tmp_path).glob("wandb/offline-run-*/*.wandb")
    text, at, part, sizes = file.read_bytes(), 7, b"", []
    while at + 7 <= len(text):  # LevelDB's log: blocks of 32 kB, parts with a head of checksum, length and kind
        if 2**15 - at % 2**15 < 7: at += 2**15 - at % 2**15; continue
        length, kind = struct.unpack_from("<HB", text, at + 4)
        part, at = (b"" if kind in (1, 2) else part) + text[at + 7:at + 7 + length], at + 7 + length
        if kind not in (1, 4): continue
        (record := wandb_internal_pb2.Record()).ParseFromString(part)
        found = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        if "abs/size" in found: sizes.append((found["_step"], found["abs/size"]))
    assert sizes == [(row["step"], row["size"]) for row in steps_of(tmp_path)]
