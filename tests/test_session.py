"Sessions: what is set on the way outlives a kill and can be made again, bit for bit; forks; what goes wrong reaches the caller."
import shutil, signal, threading, time, traceback
from concurrent.futures import Future

import pytest

from abs_lab.runs.config import configure
from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.forks import repeat
from abs_lab.runs.parties import Parties, memory_of
from abs_lab.runs.runner import Run, read_config, run, set_events
from abs_lab.runs.session import Session
from abs_lab.runs.storage import Busy, ask
from abs_lab.runs.checkpoints import load_tree
from support import assert_same_run, events, finish, result, rows, start, state, wait_for, write

SMALL = dict(preset="classic", env_id="CartPole-v1", num_envs=16, total_steps=12_000, interval=1, size_max=32, eval_envs=4, epsilon_fraction=0.5)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("ABS_LAB_THREADS", "1")
    monkeypatch.setenv("ABS_LAB_DEVICE", "cpu")


def stepped(dir, updates, **changes):
    "A session that stands still after so many updates."
    session = Session(configure(**SMALL | changes), dir)
    session.step(updates)
    assert session.wait(60) == "paused" and session.run.progress.update == updates
    return session


def finished(session):
    (session.resume if session.state == "paused" else session.start)()
    assert session.wait(120) == "finished"
    return session


# -- the same bits -----------------------------------------------------------------------------------------------------

def test_a_session_trains_the_run_that_run_trains(tmp_path):
    run(configure(**SMALL), tmp_path/"a")
    session = stepped(tmp_path/"b", 7)
    session.save()
    finished(session)
    assert_same_run(tmp_path/"a", tmp_path/"b")


@pytest.mark.parametrize("changes", [
    [(5, dict(low=0.2, high=0.6)), (12, dict(size_min=8, size_max=24)), (12, dict(interval=3)), (20, dict(lr=5e-4, epochs_rule="constant", epochs=3))],
    [(0, dict(map="linear", smoothing=0.5, window=5)), (15, dict(total_steps=8_000))],
    [(9, dict(states="heldout", n_states=256)), (18, dict(states="rollout", per_step=True))],
], ids=["rule, meter and schedule", "at once, and shorter", "which states are measured"])
def test_what_was_set_is_made_again_in_batch(tmp_path, changes):
    session = stepped(tmp_path/"a", 1) if changes[0][0] else Session(configure(**SMALL), tmp_path/"a")
    for update, these in changes:
        if update > (session.run.progress.update if session.run else 0):
            session.step(update - (session.run.progress.update if session.run else 0))
            session.wait(60)
        session.set(**these)
        if session.alive: session.save()  # requests are carried out in turn: the change above is in force
    finished(session)
    assert [[u, c] for u, c in changes] == set_events(tmp_path/"a")
    assert session.result["interventions"] == len(changes)
    run(repeat(tmp_path/"a", tmp_path/"b"), tmp_path/"b")
    assert_same_run(tmp_path/"a", tmp_path/"b")
    plain = run(configure(**SMALL), tmp_path/"c")
    assert rows(tmp_path/"c") != rows(tmp_path/"a") and "interventions" not in plain


def test_sliders_that_are_dragged_leave_one_change_an_update(tmp_path):
    session = stepped(tmp_path/"a", 3)
    for low in (0.1, 0.12, 0.15, 0.2): session._wanted |= dict(low=low)  # as between two updates
    session.set(high=0.9)
    session.save()
    assert set_events(tmp_path/"a") == [[3, {"low": 0.2, "high": 0.9}]]
    assert session.run.controller.low == 0.2 and session.present.controller.high == 0.9
    session.stop()


def test_a_kill_loses_no_change(tmp_path):
    "Killed after a change and before the next checkpoint, then resumed in batch: as if it had never been killed."
    script = f"""
from abs_lab.runs.config import configure
from abs_lab.runs.session import Session
session = Session(configure(**{SMALL!r}), {str(tmp_path/'a')!r})
session.step(6); session.wait(); session.save()
session.step(6); session.wait()
session.set(low=0.2, high=0.5)
session.step(4); session.wait()
print("there", flush=True)
session.thread.join()
"""
    process = start("-c", script, cwd=tmp_path, checkpoint_seconds=1000)
    assert process.stdout.readline() == "there\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set_events(tmp_path/"a") == [[12, {"low": 0.2, "high": 0.5}]]
    assert run(read_config(tmp_path/"a"), tmp_path/"a")["interventions"] == 1
    run(repeat(tmp_path/"a", tmp_path/"b"), tmp_path/"b")
    assert_same_run(tmp_path/"a", tmp_path/"b")
    session = stepped(tmp_path/"c", 12)
    session.set(low=0.2, high=0.5)
    finished(session)
    assert_same_run(tmp_path/"a", tmp_path/"c")


def test_an_interpreter_that_ends_saves_its_sessions(tmp_path):
    script = f"""
from abs_lab.runs.config import configure
from abs_lab.runs.session import Session
session = Session(configure(**{SMALL | dict(total_steps=10**8)!r}), {str(tmp_path/'a')!r})
session.step(5); session.wait()
session.resume()
"""
    code, _, err = finish(start("-c", script, cwd=tmp_path, checkpoint_seconds=1000))
    assert code == 0, err
    assert (tmp_path/"a"/"checkpoint.safetensors").exists()
    assert Session.open(tmp_path/"a").state == "stopped" and len(rows(tmp_path/"a")) >= 5


# -- forks -------------------------------------------------------------------------------------------------------------

def test_a_fork_is_exact_and_can_be_made_again_from_nothing(tmp_path):
    session = stepped(tmp_path/"a", 10)
    session.set(low=0.1)
    session.step(5); session.wait(60)
    same, other = session.fork(), session.fork(low=0.3, high=0.9)
    assert same.dir != other.dir and session.run.progress.update == 15
    for s in (session, same, other): finished(s)
    assert rows(same.dir) == rows(tmp_path/"a")                          # the same parameters: the same run
    leaves = lambda d: {k: v for k, v in state(d).items() if k[0] != "history"}
    assert leaves(same.dir) == leaves(tmp_path/"a") and result(same.dir)["eval"] == result(tmp_path/"a")["eval"]
    assert rows(other.dir)[:15] == rows(tmp_path/"a")[:15] and rows(other.dir)[16:] != rows(tmp_path/"a")[16:]
    other.dir.rename(tmp_path/"b")                                       # without its origin
    shutil.rmtree(tmp_path/"a")
    run(repeat(tmp_path/"b", tmp_path/"again"), tmp_path/"again")
    assert rows(tmp_path/"again") == rows(tmp_path/"b") and leaves(tmp_path/"again") == leaves(tmp_path/"b")


def test_a_fork_of_a_finished_run_goes_on(tmp_path):
    session = finished(stepped(tmp_path/"a", 2))
    longer = finished(session.fork(total_steps=16_000))
    assert longer.result["steps"] >= 16_000 and rows(longer.dir)[:len(rows(tmp_path/"a"))] == rows(tmp_path/"a")


def test_sessions_train_at_once_and_apart(tmp_path):
    together = [Session(configure(**SMALL, seed=seed), tmp_path/f"{seed}") for seed in range(3)]
    for s in together: s.start()
    for s in together: assert s.wait(120) == "finished"
    for seed in range(3):
        run(configure(**SMALL, seed=seed), tmp_path/f"alone {seed}")
        assert_same_run(tmp_path/f"{seed}", tmp_path/f"alone {seed}")


# -- requests ----------------------------------------------------------------------------------------------------------

def test_paused_is_still_and_resumed_goes_on(tmp_path):
    session = Session(configure(**SMALL | dict(total_steps=10**7)), tmp_path/"a")
    session.start()
    while not (session.run and session.run.progress.update > 3): time.sleep(0.01)
    session.pause()
    assert session.wait(60) == "paused"
    at = session.run.progress.update
    assert len(rows(tmp_path/"a")) == at  # what has been trained can be read
    time.sleep(0.3)
    assert session.run.progress.update == at
    session.resume()
    while session.run.progress.update == at: time.sleep(0.01)
    session.stop()
    assert session.wait(60) == "stopped" and not session.alive
    at = session.run.progress.update
    session.start()
    session.pause()
    session.wait(60)
    assert at <= session.run.progress.update <= at + 2
    session.stop(); session.wait(60)


def test_two_sessions_of_one_config_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path))
    first = Session(configure(**SMALL))
    first.step(1); first.wait(60)
    second = Session(configure(**SMALL))
    assert first.dir.parent == tmp_path/"live" and second.dir != first.dir
    first.stop()


# -- a run that is trained elsewhere -----------------------------------------------------------------------------------

def test_opening_a_run_attaches_to_the_session_that_trains_it(tmp_path):
    session = stepped(tmp_path/"a", 2)
    assert Session.open(tmp_path/"a") is session
    session.stop(); session.wait(60)
    assert Session.open(tmp_path/"a") is not session


def test_another_process_is_followed_and_asked_to_pause_to_save_and_to_stop(tmp_path):
    "And the run comes out as if nobody had asked."
    config, dir = write(tmp_path/"config.json", SMALL | dict(total_steps=20_000)), tmp_path/"a"
    process = start("-m", "abs_lab.runs", tmp_path/"config.json", dir, cwd=tmp_path, checkpoint_seconds=1000)
    assert wait_for(lambda: len(rows(dir)) >= 3, process)
    session = Session.open(dir)
    session.pause()
    assert session.wait(10) == "paused" and session.elsewhere == f"process {process.pid}" and not session.alive
    session.save()
    at = len(rows(dir))
    assert load_tree(dir/"checkpoint.safetensors")["progress"]["update"] == at
    with pytest.raises(AbsLabError, match=f"trained by process {process.pid}, which can be asked"): session.set(low=0.1)
    fork = session.fork(low=0.1)
    assert len(rows(fork.dir)) == at == len(rows(dir)) and fork.present.controller.low == 0.1 and not fork.elsewhere
    session.resume()
    assert session.look() and session.state == "running" and wait_for(lambda: len(rows(dir)) > at, process)
    session.stop()
    assert finish(process)[0] == 130 and session.wait(10) == "stopped" and not session.elsewhere
    assert not [p.name for p in dir.iterdir() if p.name.startswith("asked")]
    finished(session)
    run(config, tmp_path/"whole")
    assert_same_run(dir, tmp_path/"whole")


def test_a_session_says_that_it_is_paused_and_heeds_who_resumes_it(tmp_path):
    session = stepped(tmp_path/"a", 2)
    other = Session(session.config, tmp_path/"a")
    assert other.state == "paused" and other.elsewhere
    with pytest.raises(AbsLabError, match="which can be asked"): other.step(1)
    other.resume()
    assert other.wait(60) == "finished" and session.wait(60) == "finished"
    assert other.result == session.result and not other.elsewhere


def test_a_pause_that_nobody_answered_is_forgotten(tmp_path):
    "A request that a killed process leaves behind does not hold the next one."
    (tmp_path/"a").mkdir()
    for wish in ("pause", "stop"): ask(tmp_path/"a", wish)
    assert run(configure(**SMALL), tmp_path/"a")["status"] == "finished"


def test_a_fork_is_there_at_once_and_takes_what_is_set(tmp_path):
    session = stepped(tmp_path/"a", 2)
    entered, free = threading.Event(), threading.Event()
    session._jobs.append((lambda run: (entered.set(), free.wait(60)), Future()))  # an update that takes long
    entered.wait(60)
    one, two = session.fork_soon(), session.fork_soon()
    assert one.state == two.state == "forking" and one.dir != two.dir and not one.dir.exists()
    one.set(low=0.2)
    free.set()
    assert one.wait(60) == two.wait(60) == "stopped" and len(rows(one.dir)) == 2
    one.step(1); one.wait(60)
    assert set_events(one.dir) == [[2, {"low": 0.2}]] and one.run.controller.low == 0.2
    for s in (one, session): s.stop(); s.wait(60)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

def test_two_sessions_on_one_folder(tmp_path):
    first, second = (Session(configure(**SMALL), tmp_path/"a") for _ in range(2))
    first.start()  # and has not yet made the folder its own
    with pytest.raises(Busy, match="another session or process"): second.start()
    assert first.wait(120) == "finished"


def test_started_twice(tmp_path):
    session = stepped(tmp_path/"a", 2)
    with pytest.raises(AbsLabError, match="started before and is paused"): session.start()
    with pytest.raises(Busy, match="another session or process"): Session(session.config, tmp_path/"a").start()
    finished(session)
    with pytest.raises(AbsLabError, match="finished; fork it"): session.start()
    with pytest.raises(AbsLabError, match="is finished and does not train"): session.resume()
    with pytest.raises(AbsLabError, match="nothing can be set any more"): session.set(low=0.1)


@pytest.mark.parametrize("wrong, said", [
    (dict(low=0.9, high=0.1), "did you mean low=0.1, high=0.9"), (dict(low=0.99), "0 < low < high"), (dict(high=0.01), "0 < low < high"),
    (dict(size_min=40), "size_min must be at most size_max=32"), (dict(lw=0.1), "did you mean low"), (dict(network="pqn"), "a run can change 'network'"),
    (dict(size_max=10**10), "GB are free"), (dict(n_states=10**11, states="heldout"), "^n_states=1"), (dict(eval_envs=10**7), "^eval_envs=10000000 would need"), (dict(lr=-1.0), "lr must be positive"), (dict(low="a"), "must be of type float")])
def test_a_change_that_is_refused_changes_nothing(tmp_path, wrong, said):
    session = stepped(tmp_path/"a", 2)
    with pytest.raises(AbsLabError, match=said): session.set(**wrong)
    assert session.present == session.config and session.state == "paused"
    session.step(1); session.wait(60)
    assert set_events(tmp_path/"a") == []
    session.stop()


@pytest.mark.parametrize("agent, wrong, said", [
    ("pqn", dict(size_max=2**40), "size_max"), ("pqn", dict(controller="fixed", size=2**30), "size"), ("pqn", dict(controller="replayed", starts=(0, 99), sizes=(8, 2**30)), "sizes"),
    ("pqn", dict(controller="walk", size_max=10**9), "size_max"), ("pqn", dict(states="heldout", n_states=10**10), "n_states"), ("pqn", dict(eval_envs=10**7), "eval_envs"),
    ("pqn", dict(num_envs=2**24, size_min=4, size_max=4), "num_envs"), ("pqn", dict(meter="gns", micro_batches=2**19, size_max=2**17, low=0.1, high=0.2), "micro_batches"),
    ("ppo", dict(preset="classic", size_min=64, size_max=2**32, multiple=64, epochs_rule="constant"), "size_max"),
    ("btr", dict(preset="classic", lag=1, controller="fixed", size=2**22, learning_starts=2**24, replay_size=2**24, total_steps=2**25), "size")])
def test_what_a_run_may_need_later_is_refused_before_any_work(agent, wrong, said, tmp_path):
    config = configure(agent, **dict(env_id="CartPole-v1", num_envs=8, total_steps=4_000, interval=5) | wrong)
    with pytest.raises(AbsLabError, match=f"^{said}=.* would need about .* GB of memory, and .* GB are free for it: (about .* would fit|fewer environments)"): run(config, tmp_path/"a")
    assert not (tmp_path/"a").exists()


def test_the_published_btr_finds_its_memory_on_16_gb(monkeypatch):
    "Measured, of 14.5 GB that such a machine has to give: the process 0.7 GB, the full replay 7.4, a gradient step on 1024 transitions 4.8."
    whole, config = (configure("btr", preset="paper", **small) for small in ({}, dict(num_envs=8, replay_size=2**14)))
    assert 7.4e9 < whole.kind.memory(whole) < 7.5e9 and 12.9e9 < memory_of(whole) < 14.4e9  # for a queue, which has no more room for two of them on 24 GB
    monkeypatch.setattr("abs_lab.runs.parties.free_bytes", lambda device: 14.5e9 - 0.7e9 - whole.kind.memory(whole) + config.kind.memory(config))
    parties = Parties(config, "cpu")
    assert 1 < parties.needs(config)[0]["size_max"].all / 4.8e9 < 1.33
    parties.envs.close()


def test_a_value_that_is_said_to_fit_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("abs_lab.runs.parties.free_bytes", lambda device: 10**7)
    with pytest.raises(AbsLabError, match="size_max") as e: Run(configure(**SMALL | dict(size_max=60_000)), tmp_path/"a")
    fits = int(str(e.value).split("about ")[-1].split()[0].replace(",", ""))
    assert fits > 100
    Run(configure(**SMALL | dict(size_max=fits)), tmp_path/"a").close()


def test_a_size_beyond_memory_that_is_set_before_the_start_ends_before_training(tmp_path, monkeypatch):
    session = Session(configure(**SMALL), tmp_path/"a")
    monkeypatch.setattr("abs_lab.runs.parties.free_bytes", lambda device: 10**7)
    session.set(size_max=60_000)
    session.step(1)
    with pytest.raises(AbsLabError, match="size_max=60000 would need about"): session.wait(60)
    assert not rows(tmp_path/"a") and not set_events(tmp_path/"a")


def test_a_change_that_needs_no_more_memory_is_let_through_where_there_is_none(tmp_path, monkeypatch):
    r = Run(configure(**SMALL), tmp_path/"a")
    monkeypatch.setattr("abs_lab.runs.parties.free_bytes", lambda device: 0)
    r.set(low=0.2)
    with pytest.raises(AbsLabError, match="0.0 GB are free for it"): r.set(size_max=64)
    assert r.controller.low == 0.2 and len(r.history) == 1
    r.close()


def test_what_was_set_while_stopped_holds_in_a_fork(tmp_path):
    session = stepped(tmp_path/"a", 4)
    session.stop(); session.wait(60)
    session.set(low=0.3)
    forked = session.fork(high=0.8)
    assert (forked.present.controller.low, forked.present.controller.high) == (0.3, 0.8)


def test_nothing_trained_is_nothing_to_fork(tmp_path):
    with pytest.raises(AbsLabError, match="nothing has been trained yet"): Session(configure(**SMALL), tmp_path/"a").fork()


def test_an_error_in_training_reaches_the_caller_and_leaves_the_checkpoint(tmp_path):
    session = stepped(tmp_path/"a", 4)
    session.save()
    before = (tmp_path/"a"/"checkpoint.safetensors").read_bytes()
    def broken(*_): raise RuntimeError("the simulator is gone")
    session.run.envs.receive = broken
    session.resume()
    with pytest.raises(RuntimeError, match="the simulator is gone") as caught: session.wait(60)
    assert {"broken", "collect", "train"} <= {f.name for f in traceback.extract_tb(caught.value.__traceback__)}
    assert session.state == "failed" and (tmp_path/"a"/"checkpoint.safetensors").read_bytes() == before
    assert "broken" in events(tmp_path/"a", "error")[0]["traceback"]
    with pytest.raises(AbsLabError, match="failed and does not train: the simulator is gone"): session.pause()
    session.start()
    assert session.wait(120) == "finished"
    run(configure(**SMALL), tmp_path/"b")
    assert rows(tmp_path/"a") == rows(tmp_path/"b")


def test_a_folder_that_is_deleted_ends_the_session_with_a_clear_word(tmp_path):
    session = Session(configure(**SMALL | dict(total_steps=10**7)), tmp_path/"a")
    session.start()
    while not (session.run and session.run.progress.update > 3): time.sleep(0.01)
    shutil.rmtree(tmp_path/"a")
    with pytest.raises(Busy, match="was removed or taken over"): session.wait(60)
    with pytest.raises(AbsLabError, match="cannot be read as a run's parameters"): Session.open(tmp_path/"a")


def test_who_waits_for_an_answer_gets_one_when_training_ends_first(tmp_path):
    session = stepped(tmp_path/"a", 2)
    answers = []
    with session._gap:
        asker = threading.Thread(target=lambda: answers.append(session.fork(low=0.1)))
        asker.start()
        session._stopping = True
        session._gap.notify_all()
    asker.join(60)
    session.thread.join(60)
    assert len(answers) == 1 and answers[0].config.controller.low == 0.1 and session.state == "stopped"


def test_what_was_set_is_present_at_every_moment(tmp_path):
    "The thread that trains takes a change over while another asks for the parameters in force."
    session = Session(configure(**SMALL), tmp_path/"a")
    class Taking:  # a run that takes the change over just then
        @property
        def present(self):
            session._wanted = {}
            return session.config
    session.set(low=0.3)
    session.run = Taking()
    assert session.present.controller.low == 0.3
