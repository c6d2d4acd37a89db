"A run that is killed and resumed is bit for bit the run that never was; and looking at a run changes nothing of it."
import shutil
from dataclasses import replace

import pytest
import torch

from abs_lab.runs.config import configure
from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.forks import fork
from abs_lab.runs.runner import Run, run
from abs_lab.runs.checkpoints import load_tree
from abs_lab.core.train import evaluate
from support import LANDER, MOVING, assert_same_run, events, finish, result, rows, settings, start, state, wait_for, write  # noqa: F401 (settings: a fixture that all tests here use)


# -- asked to stop -----------------------------------------------------------------------------------------------------

def test_sigterm_saves_the_update_in_hand_and_the_run_goes_on_from_it(tmp_path):
    config, dir = write(tmp_path/"config.json", LANDER), tmp_path/"stopped"
    process = start("-m", "abs_lab.runs", tmp_path/"config.json", dir, cwd=tmp_path, checkpoint_seconds=1000)
    assert wait_for(lambda: len(rows(dir)) >= 3, process)
    assert not (dir/"checkpoint.safetensors").exists()
    process.terminate()
    code, _, err = finish(process)
    assert code == 130 and "goes on from the last checkpoint" in err
    saved = load_tree(dir/"checkpoint.safetensors")["progress"]
    assert saved["update"] == len(rows(dir)) >= 3 and saved["step"] < config.total_steps
    run(config, dir)
    run(config, tmp_path/"whole")
    assert_same_run(dir, tmp_path/"whole")


def test_a_run_stops_with_the_campaign_that_started_it(tmp_path):
    write(tmp_path/"config.json", LANDER)
    process = start("-m", "abs_lab.runs", tmp_path/"config.json", tmp_path/"run", cwd=tmp_path, checkpoint_seconds=1000, campaign=1)
    assert finish(process)[0] == 130  # process 1 is not its parent: the one that started it is gone
    assert load_tree(tmp_path/"run"/"checkpoint.safetensors")["progress"]["update"] == 1


# -- the same without processes: a folder as it lies when its writer vanishes ------------------------------------------

SMALL = dict(env_id="CartPole-v1", num_envs=16, total_steps=8_000, eval_envs=5) | MOVING


def train_until(config, dir, update, checkpoint_at=None):
    "Train to an update and vanish while the next checkpoint is being written: rows and actions are there, the last row torn, the state is not."
    r = Run(config, dir)
    for s in r.steps():
        if s.update == checkpoint_at: r.checkpoint()
        if s.update == update: break
    r.actions.append()
    r.log.flush()
    (lost := dir.with_name(dir.name + "-lost")).mkdir()
    for file in dir.iterdir(): shutil.copy(file, lost/file.name)
    log = lost/"steps.jsonl"
    if update != checkpoint_at: log.write_bytes(log.read_bytes()[:-30])
    r.close()
    return lost


@pytest.mark.parametrize("params", [
    dict(segment_steps=2_000), dict(groups=4, explore_repeat=0.0, segment_steps=2_000, change_at=1_500), dict(states="heldout", interval=4, lag=4, n_states=100), dict(lag=3, interval=5), dict(rounding="exact"),
    dict(epochs_rule="equal"), dict(backprop="written"), dict(env_id="MinAtar/Breakout-v1", preset="minatar", backprop="written", total_steps=6_000, eval_envs=1, eval_max_steps=200, n_states=32), dict(anneal_lr=True), dict(change_at=1_500), dict(change_at=2_500), dict(change_every=900), dict(lr_starts=(0, 1_000), lr_factors=(1.0, 0.5)), dict(mask_resets=False, bootstrap_truncation=False), dict(diagnose_every=2),
    dict(env_id="LunarLander-v3", segment_steps=3_000), dict(backend="gymnasium", segment_steps=2_000),
    dict(env_id="SpaceInvaders-v5", preset="paper_masked", num_envs=4, total_steps=900, eval_envs=1, eval_max_steps=200, n_states=32)], ids=str)
def test_every_party_goes_on_from_its_checkpoint(params, tmp_path):
    config = configure(**SMALL | params)
    run(config, tmp_path/"whole")
    lost = train_until(config, tmp_path/"killed", 11, checkpoint_at=7)
    run(config, lost)
    assert events(lost, "resume")[0]["step"] > 0
    assert_same_run(tmp_path/"whole", lost)


def test_segments_are_cut_at_the_first_update_past_each_multiple(tmp_path):
    config = configure(env_id="CartPole-v1", num_envs=16, total_steps=8_000, eval_envs=2, controller="fixed", size=16, segment_steps=2_000)
    run(config, tmp_path/"cut")
    run(configure(**config.flat() | dict(segment_steps=0)), tmp_path/"uncut")
    cut, uncut = rows(tmp_path/"cut"), rows(tmp_path/"uncut")
    assert cut[:8] == uncut[:8] and cut[8] != uncut[8]  # 8 × 16 × 16 = 2,048 steps; a cut changes no target, since values go through it
    assert load_tree(tmp_path/"cut"/"checkpoint.safetensors")["envs"]["segment"] == 4


# -- replay ------------------------------------------------------------------------------------------------------------

REPLAY = dict(agent="btr", env_id="CartPole-v1", num_envs=16, total_steps=3_200, learning_starts=400, replay_size=800, replay_ratio=1 / 8, taus=2, eval_envs=3, record_every=7,
              controller="abs", size_min=32, size_max=96, warmup=2, window=3, low=0.01, high=0.9, interval=10, lag=3, n_states=100, diagnose_every=20)


def vanish(config, dir, update, checkpoint_at):
    "Train past a checkpoint, log rows of replay beyond it, and vanish in the middle of a record."
    r = Run(config, dir)
    for s in r.steps():
        if s.update == checkpoint_at: r.checkpoint()
        if s.update % 20 == 0: r.replay_log.take()
        if s.update == update: break
    r.replay_log.take(); r.actions.append(); r.log.flush()
    (lost := dir.with_name(dir.name + "-lost")).mkdir()
    for file in dir.iterdir(): shutil.copy(file, lost/file.name)
    r.close()
    return lost


def replay_of(config, dir):
    "The rows that the last checkpoint of a run has in use."
    r = Run(config, dir)
    try: return r.agent.replay.records(r.agent.replay.oldest, r.agent.replay.rows)
    finally: r.close()


@pytest.mark.parametrize("params", [
    {}, dict(segment_steps=900, coupling="samples"), dict(backprop="written"), dict(backprop="written", munchausen_policy="online", optimizer="adamw"), dict(munchausen_policy="online", optimizer="adamw", record_every=1), dict(preset="dqn", record_every=1000),
    dict(env_id="LunarLander-v3", replay_size=100_000, states="heldout", n_states=64), dict(overlap=True, segment_steps=900),
    pytest.param(dict(env_id="SpaceInvaders-v5", preset="paper", network="plain", num_envs=2, total_steps=300, learning_starts=100, replay_size=140, episodic_life=True, size_min=8, size_max=24,
         multiple=8, replay_ratio=1 / 16, n_states=16, eval_envs=1), marks=pytest.mark.long)], ids=str)
def test_a_replay_agent_goes_on_from_its_checkpoint(params, tmp_path):
    config = configure(**REPLAY | params)
    run(config, tmp_path/"whole")
    lost = vanish(config, tmp_path/"killed", update=131, checkpoint_at=97)
    run(config, lost)
    assert events(lost, "resume")[0]["step"] == 97 * config.env.num_envs
    assert_same_run(tmp_path/"whole", lost)
    used = replay_of(config, lost)
    assert (used == replay_of(config, tmp_path/"whole")).all()
    oldest = load_tree(lost/"checkpoint-before.safetensors")["agent"]["replay"]["rows"] - len(used)  # of the checkpoint before
    assert sum(p.stat().st_size for p in lost.glob("replay-*")) <= 1.3 * used.nbytes * (1 + (200 - oldest) / len(used))  # what is past is deleted


def test_a_missing_piece_of_replay_is_named(tmp_path):
    config = configure(**REPLAY)
    lost = vanish(config, tmp_path/"killed", update=131, checkpoint_at=97)
    sorted(lost.glob("replay-*"))[0].unlink()
    with pytest.raises(AbsLabError, match="replay-.* is missing or shorter than its checkpoint says"): Run(config, lost)


def test_a_fork_of_a_replay_agent_is_the_same_run(tmp_path):
    config = configure(**REPLAY)
    run(config, tmp_path/"whole")
    source = vanish(config, tmp_path/"source", update=131, checkpoint_at=97)
    run(fork(source, tmp_path/"fork"), tmp_path/"fork")
    assert_same_run(tmp_path/"whole", tmp_path/"fork")
    other = fork(source, tmp_path/"other", low=0.3, lr=1e-3)
    run(other, tmp_path/"other")
    assert rows(tmp_path/"other")[:13] == rows(tmp_path/"whole")[:13] and rows(tmp_path/"other") != rows(tmp_path/"whole")
    run(config, source)
    assert_same_run(tmp_path/"whole", source)


def test_records_of_many_updates_are_the_means_of_records_of_one(tmp_path):
    base = {k: v for k, v in REPLAY.items() if k not in ("size_min", "size_max", "warmup", "window", "low", "high")}
    base |= dict(controller="fixed", size=64, interval=10**9)
    run(configure(**base | dict(record_every=1)), tmp_path/"one")
    run(configure(**base | dict(record_every=8)), tmp_path/"eight")
    one, eight = rows(tmp_path/"one"), rows(tmp_path/"eight")
    assert len(one) == 200 and [row["update"] for row in eight] == [*range(8, 201, 8)]
    for i, row in enumerate(eight):
        of = one[8 * i:8 * i + 8]
        assert row["episodes"] == [e for r in of for e in r["episodes"]] and row["gradient_steps"] == of[-1]["gradient_steps"]
        assert row["epsilon"] == pytest.approx(sum(r["epsilon"] for r in of) / 8)
        if losses := [r["loss"] for r in of if "loss" in r]: assert row["loss"] == pytest.approx(sum(losses) / len(losses))
    assert result(tmp_path/"one") == result(tmp_path/"eight") and learner(tmp_path/"one") == learner(tmp_path/"eight")


def test_measurements_and_changes_of_size_are_recorded_at_their_update(tmp_path):
    run(configure(**REPLAY | dict(record_every=10**6)), tmp_path/"seldom")
    run(configure(**REPLAY | dict(record_every=1)), tmp_path/"always")
    seldom, always = rows(tmp_path/"seldom"), {row["update"]: row for row in rows(tmp_path/"always")}
    assert {row["update"] for row in seldom if row["signal"] is not None} == {u for u, row in always.items() if row["signal"] is not None}
    assert len({row["size"] for row in seldom}) > 1 and seldom[-1]["update"] == 200 and len(seldom) < 40
    at = lambda update: next(row["size"] for row in seldom if row["update"] >= update)
    assert all(at(u) == row["size"] for u, row in always.items())


# -- forks -------------------------------------------------------------------------------------------------------------

def test_a_fork_without_changes_is_the_same_run(tmp_path):
    config = configure(**SMALL)
    source = train_until(config, tmp_path/"source", 12, checkpoint_at=9)
    forked = fork(source, tmp_path/"fork")
    assert forked.id != config.id and config.id in forked.origin and replace(forked, origin="") == config
    run(forked, tmp_path/"fork")
    run(config, tmp_path/"whole")
    assert_same_run(tmp_path/"whole", tmp_path/"fork")
    assert [e["event"] for e in events(tmp_path/"fork")] == ["fork", "resume", "finish"]
    run(config, source)  # the source is as it was, and goes on too
    assert_same_run(tmp_path/"whole", source)


def test_a_fork_with_changes_is_the_run_whose_parameters_were_set_at_that_moment(tmp_path):
    config, changes = configure(**SMALL), dict(low=0.1, high=0.9, size_max=48)
    source = train_until(config, tmp_path/"source", 9, checkpoint_at=9)
    forked = fork(source, tmp_path/"fork", **changes)
    assert forked.controller.high == 0.9 and forked.id != config.id
    run(forked, tmp_path/"fork")
    r = Run(config, tmp_path/"set")
    for s in r.steps():
        if s.update == 9: r.controller.set(**changes)
    score = r.finish()["eval"]
    r.close()
    run(config, tmp_path/"whole")
    assert rows(tmp_path/"fork") == rows(tmp_path/"set") and state(tmp_path/"fork") == state(tmp_path/"set")
    assert result(tmp_path/"fork")["eval"] == score
    whole = rows(tmp_path/"whole")
    assert rows(tmp_path/"fork")[:9] == whole[:9] and rows(tmp_path/"fork") != whole


def test_a_fork_that_is_killed_is_identical_too(tmp_path):
    source = train_until(configure(**SMALL), tmp_path/"source", 9, checkpoint_at=9)
    config = fork(source, tmp_path/"fork", lr=3e-3)
    shutil.copytree(tmp_path/"fork", tmp_path/"again")
    run(config, tmp_path/"fork")
    lost = train_until(config, tmp_path/"again", 16, checkpoint_at=14)
    run(config, lost)
    assert_same_run(tmp_path/"fork", lost)


# -- looking on changes nothing ----------------------------------------------------------------------------------------

def learner(dir): return {k: v for k, v in state(dir).items() if k[0] in ("agent", "progress", "envs")}
def training(dir): return [{k: v for k, v in row.items() if k not in ("signal", "mean", "dormant", "rank", "weight_norm")} for row in rows(dir)]


@pytest.mark.parametrize("meter", [dict(interval=1), dict(interval=1, states="heldout", n_states=64), dict(interval=4, lag=4),
                                   dict(interval=1, distance="softmax_kl", diagnose_every=1)], ids=str)
@pytest.mark.parametrize("env", [dict(env_id="LunarLander-v3"), dict(env_id="CartPole-v1", backend="gymnasium")], ids=["EnvPool", "Gymnasium"])
def test_measuring_changes_no_bit_of_training(meter, env, tmp_path):
    base = dict(num_envs=16, total_steps=8_000, eval_envs=3, controller="fixed", size=20, diagnose_every=10**9) | env
    run(configure(**base | dict(interval=10**9)), tmp_path/"never")
    everyones = torch.get_rng_state()
    run(configure(**base | meter), tmp_path/"often")
    assert torch.equal(everyones, torch.get_rng_state())
    assert sum(row["signal"] is not None for row in rows(tmp_path/"often")) >= 24 // meter["interval"]
    assert not any(row["signal"] is not None for row in rows(tmp_path/"never"))
    assert learner(tmp_path/"often") == learner(tmp_path/"never")
    assert training(tmp_path/"often") == training(tmp_path/"never")
    assert result(tmp_path/"often")["eval"] == result(tmp_path/"never")["eval"]


def test_evaluating_recording_and_checkpointing_change_no_bit_of_training(tmp_path, monkeypatch):
    config = configure(**SMALL)
    run(config, tmp_path/"quiet")
    monkeypatch.setenv("ABS_LAB_CHECKPOINT_SECONDS", "0")
    r = Run(config, tmp_path/"looked at")
    for s in r.steps():
        if s.update % 5 == 0: evaluate(r.agent, config.env, config.seed, 4, epsilon=0.1)
    r.finish()
    r.close()
    assert_same_run(tmp_path/"quiet", tmp_path/"looked at")


def test_a_finished_run_is_returned_at_once(tmp_path):
    config = configure(**SMALL)
    first = run(config, tmp_path/"run")
    assert run(config, tmp_path/"run") == first and [e["event"] for e in events(tmp_path/"run")] == ["start", "finish"]


def test_threads_of_the_simulator_change_nothing(tmp_path):
    config = configure(**SMALL)
    more = replace(config, env=replace(config.env, env_threads=2))
    assert more.id == config.id
    run(config, tmp_path/"one")
    run(more, tmp_path/"two")
    assert_same_run(tmp_path/"one", tmp_path/"two")


def test_a_run_goes_on_with_another_number_of_simulator_threads(tmp_path):
    config = configure(**SMALL)
    lost = train_until(config, tmp_path/"killed", 11, checkpoint_at=7)
    run(config, tmp_path/"whole")
    run(replace(config, env=replace(config.env, env_threads=2)), lost)
    assert_same_run(tmp_path/"whole", lost)
