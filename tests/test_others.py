"Curves of others, from whatever file they come in, beside ours and apart from our verdicts."
import re, sys
from types import ModuleType, SimpleNamespace

import pytest

from abs_lab import cli
from abs_lab.core.interfaces import AbsLabError
from abs_lab.reports import others, pages
from abs_lab.studies import engine
from support import ROOT

QUICK = ROOT/"reports"/"quick"/"data"


@pytest.fixture
def theirs(tmp_path):
    "A CSV of five seeds of one arm, and of two of another whose name is hostile."
    rows = [f"{step},{step / 2000 + seed},{seed},dqn" for seed in range(5) for step in (0, 100_000, 200_000, 400_384, 500_000)]
    rows += [f"{step},{seed},{seed},<b onclick=hit()>x" for seed in range(2) for step in (0, 100_000)]
    path = tmp_path/"theirs.csv"
    path.write_text("step,return,seed,arm\n" + "\n".join(rows) + "\n")
    return path


def test_curves_stand_beside_ours_and_in_no_number_of_ours(tmp_path, theirs):
    runs = pages.finished("quick", QUICK)
    others.lay([theirs], tmp_path, ["LunarLander-v3"])
    kept = others.laid(tmp_path)
    alone, beside = ([block for block in pages._task("LunarLander-v3", runs, None, None, pages.CAPTIONS, None, curves)] for curves in ([], kept))
    assert len(beside) == len(alone) + 1 and all(repr(a) == repr(b) for a, b in zip(alone[3:], beside[4:]))          # one more block; those behind it as before
    (drawn, caption), said = beside[2], beside[3]
    names = [t.name for t in drawn.data if t.showlegend is not False and t.line.width > 2]
    assert names[-2:] == ["dqn (not ours)", "&lt;b onclick=hit()&gt;x (not ours)"] and "they are in no verdict" in caption
    assert all(max(t.x) <= 400_896 for t in drawn.data if t.x is not None and "dqn" in (t.name or ""))               # cut where ours end
    assert "dqn (not ours)</td>" in said and "<b onclick" not in said and "they end before ours" in said
    assert len(re.findall("share of the pairs of seeds in which dqn", said)) == 5 and "in which &lt;b" not in said  # five arms of ours; two seeds say nothing
    assert drawn.data[0].name == alone[2][0].data[0].name


@pytest.mark.parametrize("flags, words", [(["--beside", "nowhere.csv"], "nowhere.csv is not there"), (["--beside-task", "LunarLandr-v3"], "did you mean LunarLander-v3"),
                                          (["--beside-metric", "retrun"], "did you mean return")])
def test_bad_input_is_named_before_anything_is_trained(flags, words, tmp_path, theirs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for key in ("RUNS", "REPORTS"): monkeypatch.setenv(f"ABS_LAB_{key}_DIR", str(tmp_path/key.lower()))
    monkeypatch.setattr(engine, "reproduce", lambda *_: pytest.fail("it trains"))
    assert cli.main(["reproduce", "quick", *(flags if "--beside" in flags else ["--beside", str(theirs), *flags])]) == 2
    assert words in capsys.readouterr().err and not (tmp_path/"runs").exists()


def test_a_command_keeps_them_beside_the_page_that_it_writes(tmp_path, theirs, monkeypatch, capsys):
    for key in ("RUNS", "REPORTS"): monkeypatch.setenv(f"ABS_LAB_{key}_DIR", str(tmp_path/key.lower()))
    monkeypatch.setattr(engine, "reproduce", lambda *_: engine.Outcome(None, [], []))
    assert cli.main(["reproduce", "quick", "--beside", str(theirs)]) == 0 and len(others.laid(tmp_path/"runs"/"quick"/"report")) == 7
    assert cli.main(["reproduce", "pqn-parity", "--publish", "--beside", str(theirs)]) == 0 and "kept: " in capsys.readouterr().out
    assert {c["params"]["env_id"] for c in others.laid(tmp_path/"reports"/"pqn-parity")} == {"MinAtar/Breakout-v1"}


def test_logs_of_tensorboard(tmp_path, monkeypatch):
    "Each folder with an event file is a run; where the reader is missing, the message says what to install."
    for seed in (1, 2): (tmp_path/f"Hopper-v4__sac__{seed}__17").mkdir(); (tmp_path/f"Hopper-v4__sac__{seed}__17"/"events.out.tfevents.1").touch()
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(AbsLabError, match="pip install"): others.read(tmp_path)
    class Stand:
        def __init__(self, folder, size_guidance): assert size_guidance == dict(scalars=0)
        def Reload(self): return self
        def Tags(self): return dict(scalars=["losses/q", "charts/episodic_return"])
        def Scalars(self, tag): assert tag == "charts/episodic_return"; return [SimpleNamespace(step=s, value=float(s)) for s in (10, 10, 20)]
    module = ModuleType("event_accumulator")
    module.EventAccumulator = Stand
    for name in ("tensorboard", "tensorboard.backend", "tensorboard.backend.event_processing"): monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", module)
    found = others.read(tmp_path)
    assert [c["params"]["seed"] for c in found] == [1, 2] and found[0]["params"]["env_id"] == "Hopper-v4" and found[0]["curve"] == {"step": [10, 20], "return": [10, 20]}
    with pytest.raises(AbsLabError, match="no event file"): others.read(QUICK)


@pytest.mark.parametrize("names, arms", [(["PPO_1", "PPO_2", "PPO_3"], {"PPO": [1, 2, 3]}), (["theirs__0", "theirs__1"], {"theirs": [0, 1]}), (["dqn_16", "dqn_64"], {"dqn_16": [0], "dqn_64": [0]}),
                                          (["a/dqn 1", "a/dqn 2", "sac"], {"a/dqn": [1, 2], "sac": [0]}), (["dqn_7"], {"dqn_7": [0]})])
def test_runs_that_differ_in_a_last_number_are_seeds_of_one_arm(names, arms, tmp_path, monkeypatch):
    monkeypatch.setattr(others, "_tensorboard", lambda folder, metric: others.pd.DataFrame([dict(step=step, value=1.0, run=name) for name in names for step in (0, 10)]))
    found = {}
    for curve in others.read(tmp_path): found.setdefault(curve["params"]["arm"], []).append(curve["params"]["seed"])
    assert found == arms


def test_logs_that_tensorboard_itself_wrote(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(tmp_path/"dqn-seed4")) as log:
        for step in range(1_000): log.add_scalar("rollout/ep_rew_mean", step / 2, step)
    curve, = others.read(tmp_path)
    assert curve["params"] == dict(arm="dqn", env_id="", seed=4, total_steps=999) and len(curve["curve"]["step"]) == others.POINTS
