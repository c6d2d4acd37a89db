"A campaign trains in order what fits, loses nothing that it began, and leaves files that merge takes in or refuses with a reason."
import json, os, shutil, signal, time

import pytest

from abs_lab import cli
from abs_lab.studies import campaign
from abs_lab.studies.campaign import Campaign, needed, tasks_of
from abs_lab.runs.config import configure
from abs_lab.studies.costs import Cost
from abs_lab.studies.grids import configs_of
from abs_lab.studies.results import collect, compact, read_result, save_result
from abs_lab.runs.parties import memory_of
from abs_lab.runs.runner import run
from abs_lab.runs.checkpoints import load_tree
from abs_lab.runs.provenance import provenance
from abs_lab.runs.storage import Lease
from abs_lab.studies.catalogue import STUDIES
from abs_lab.studies.study import Study
from support import a_row, assert_same_run, environment, finish, rows, start, wait_for

TINY = dict(controller="fixed", preset="classic", num_envs=8, total_steps=6_000, eval_envs=4)
ENDLESS = 10**8  # steps: more than any budget here


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    "A folder without settings.ini, the CPU, one thread: children inherit it."
    for key, value in environment(checkpoint_seconds=1000).items(): monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study(monkeypatch):
    "Put a study of two tasks among the known ones; it wants one of them first."
    def put(arms=None, seeds=1, tasks=None, **common):
        if tasks is None: tasks = {"CartPole-v1": {}, "Acrobot-v1": {}}
        s = Study("tiny", "?", "", "", arms or {"a": {}}, tasks, dict(env_id="Acrobot-v1") | TINY | common, seeds=seeds, first=(dict(env_id=["Acrobot-v1"], seed=[0, 1]),))
        monkeypatch.setitem(STUDIES, "tiny", s)
    return put


@pytest.fixture
def started(monkeypatch):
    "Which runs were started, and with how many threads, in order."
    log, start = [], campaign.start_job
    monkeypatch.setattr(campaign, "start_job", lambda task, dir, threads: log.append((task.config.id, threads)) or start(task, dir, threads))
    return log


def call(capsys, *argv):
    "The campaign's exit code, stdout and stderr."
    capsys.readouterr()
    code = campaign.main(["tiny", "--out", "out", *map(str, argv)])
    return code, *capsys.readouterr()


def survey(*of): return tasks_of(*of)[0]

def ids(): return [t.config.id for t in survey("tiny", "cpu", campaign.Path("out"))]


def took(rate, hardware=None, besides=1.0, **params):
    "What a run of so many steps a second took, on this machine."
    return Cost(configure(**dict(env_id="Acrobot-v1") | TINY | params).flat(), 1 / rate, None, hardware or provenance()["hardware"], besides)


def earlier(rate, **more):
    "Pretend that an earlier call measured this."
    os.makedirs("out", exist_ok=True)
    with open("out/costs.jsonl", "a") as f: f.write(json.dumps(took(rate, **more)._asdict()) + "\n")


# -- order and budget --------------------------------------------------------------------------------------------------

def test_runs_are_trained_in_the_studys_order_and_finished_ones_are_skipped(study, started, capsys, tmp_path):
    study(arms={"a": dict(size=16), "b": dict(size=32)}, seeds=2)
    tasks = survey("tiny", "cpu", tmp_path/"out")
    assert [(t.config.env.env_id, t.arm, t.config.seed) for t in tasks][:5] == [
        ("Acrobot-v1", "a", 0), ("Acrobot-v1", "b", 0), ("Acrobot-v1", "a", 1), ("Acrobot-v1", "b", 1), ("CartPole-v1", "a", 0)]
    study()
    all_ids = ids()
    code, out, _ = call(capsys, "--budget", "10m", "--jobs", 2)
    assert code == 0 and "2 finished, 0 unfinished, 0 failed, 0 not started" in out
    assert [id for id, _ in started] == all_ids and {threads for _, threads in started} == {1}
    small = {id: read_result(tmp_path/"out"/f"{id}.json") for id in all_ids}
    for s in small.values():
        assert (s["study"], s["params"]["arm"], s["result"]["status"]) == ("tiny", "a", "finished") and 1 <= s["jobs"] <= 2
        assert {"commit", "versions", "hardware"} <= s["result"].keys() and len(s["curve"]["step"]) <= 200
    assert not list((tmp_path/"out"/"runs").iterdir())
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == sorted([*(f"{id}.json" for id in all_ids), "campaign", "runs", "costs.jsonl"])
    started.clear()
    (tmp_path/"reports"/"tiny"/"data").mkdir(parents=True)
    (tmp_path/"out"/f"{all_ids[0]}.json").rename(tmp_path/"reports"/"tiny"/"data"/f"{all_ids[0]}.json")  # in the report instead
    (tmp_path/"out"/f"{all_ids[1]}.json").write_text("{")                                                  # damaged: trained again
    code, out, _ = call(capsys, "--budget", "10m")
    assert code == 0 and [id for id, _ in started] == [all_ids[1]]
    assert read_result(tmp_path/"out"/f"{all_ids[1]}.json")["curve"]["return"] == small[all_ids[1]]["curve"]["return"]


def test_what_does_not_fit_is_not_started_but_what_fits_behind_it_is(study, started, capsys):
    study(arms={"long": dict(total_steps=ENDLESS), "short": {}})
    earlier(1000.0)
    code, out, _ = call(capsys, "--budget", "10m", "--jobs", 2)
    short = [t.config.id for t in survey("tiny", "cpu", campaign.Path("out")) if t.arm == "short"]
    assert code == 0 and [id for id, _ in started] == short
    assert "2 finished, 0 unfinished, 0 failed, 2 not started" in out and "next: " in out


def test_speeds_of_another_machine_say_nothing(study, tmp_path):
    study()
    earlier(0.001, hardware=dict(cpu="another", cores=64, gpu=None))
    earlier(7.0)
    c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=1000)
    assert [k.seconds for k in c.costs()] == [1 / 7]


def test_nothing_is_added_that_would_make_a_running_job_too_late(study, tmp_path):
    study(total_steps=10_000)
    c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=1000, jobs=1)
    job = campaign.Training(c.waiting.pop(0), tmp_path, None, 0.0, rate=10_000/500)  # 500 s of 980 to go
    c.running, c.jobs = [job], 2
    known = [took(1e6)]
    assert c._fits(c.waiting[0], known) is False  # at half the speed it would take 1,000
    job.rate = 10_000/400
    assert c._fits(c.waiting[0], known) is True
    job.rate = 10_000/5000                        # it is too late in any case
    assert c._fits(c.waiting[0], known) is True


def test_no_more_at_once_than_their_replays_have_memory_for(study, tmp_path, monkeypatch):
    study(agent="btr", total_steps=5_000, replay_size=20_000, size=32)
    one = memory_of(survey("tiny", "cpu", tmp_path/"out")[0].config)
    for stores, fits in ((0.5, False), (1.9, False), (2.1, True)):
        monkeypatch.setattr(campaign, "free_memory", lambda stores=stores: stores * one)
        c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=1000)
        assert c._has_memory(c.waiting[0])  # the first is tried in any case
        c.running = [campaign.Training(c.waiting.pop(0), tmp_path, None, 0.0)]
        assert c._has_memory(c.waiting[0]) is fits


def test_one_more_at_once_only_while_the_total_speed_rises(study, tmp_path, monkeypatch, capsys):
    study(seeds=2)
    monkeypatch.setattr(campaign, "first_guess", lambda: 2)
    monkeypatch.setattr(campaign, "room", lambda jobs: jobs < 4)
    c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=1000)
    def measured(*rates):
        c.running = [campaign.Training(t, tmp_path, None, 0.0, rate=r, fresh=r is not None) for t, r in zip(c.waiting, rates)]
        c._adapt()
        return c.jobs, c.settled
    assert measured(100, None) == (2, False)      # not all are measured
    assert measured(100, 100) == (3, False)       # try a third
    assert measured(70, 70, 68) == (2, True)      # 208 is no 5 % more than 200
    c.jobs, c.settled, c.total = 2, False, 0.0
    assert measured(100, 100) == (3, False) and measured(90, 90, 90) == (4, False)
    assert measured(80, 80, 80, 80) == (4, True)  # faster, but no room for a fifth
    fixed = Campaign([], tmp_path/"out", "tiny", budget=1000, jobs=2)
    assert fixed.settled and fixed.jobs == 2


def test_an_arm_that_replays_another_enters_once_all_runs_of_that_are_finished(study, tmp_path):
    study(arms={"a": dict(size=24), "again": dict(controller="replayed", replays="a")}, tasks={}, seeds=2, total_steps=2_000)
    arms = []
    for task in survey("tiny", "cpu", tmp_path/"out"):
        arms.append([t.arm for t in survey("tiny", "cpu", tmp_path/"out")])
        run(task.config, tmp_path/"runs"/task.config.id)
        save_result(compact(tmp_path/"runs"/task.config.id, "a"), tmp_path/"out")
    last = survey("tiny", "cpu", tmp_path/"out")
    assert arms == [["a", "a"]] * 2 and [(t.arm, t.finished) for t in last] == [("a", True), ("again", False)] * 2
    assert set(last[1].config.controller.sizes) == {24}


def test_a_source_may_lie_half_in_the_report_and_half_in_the_campaigns_folder(study, capsys, tmp_path):
    study(arms={"a": dict(size=24), "again": dict(controller="replayed", replays="a")}, tasks={}, seeds=2, total_steps=2_000)
    for task, folder in zip(survey("tiny", "cpu", tmp_path/"out"), (tmp_path/"out", tmp_path/"reports"/"tiny"/"data")):
        assert "2 runs, " in (said := call(capsys, "--dry-run")[1]) and "and 2 more that wait until those that they replay are finished" in said
        run(task.config, tmp_path/"runs"/task.config.id)
        save_result(compact(tmp_path/"runs"/task.config.id, "a"), folder)
    assert [(t.arm, t.finished) for t in survey("tiny", "cpu", tmp_path/"out")] == [("a", True), ("again", False)] * 2
    assert call(capsys, "--dry-run")[1].startswith("tiny: 4 runs, 2 finished; ")
    whole = tmp_path/"out"/f"{survey('tiny', 'cpu', tmp_path/'out')[0].config.id}.json"
    whole.write_text(whole.read_text()[:-9])                                # damaged: trained again, and waited for
    assert [(t.arm, t.finished) for t in survey("tiny", "cpu", tmp_path/"out")] == [("a", False), ("a", True)]


def test_a_gpu_begins_with_a_job_for_four_cores_and_takes_one_more_while_an_average_one_fits(monkeypatch):
    monkeypatch.setattr(campaign, "cores", lambda: 16)
    assert campaign.first_guess() == 16 and campaign.room(15) and not campaign.room(16)  # the CPU: a job a core
    monkeypatch.setattr(campaign.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ABS_LAB_DEVICE", "auto")
    assert campaign.first_guess() == 4
    free = {}
    monkeypatch.setattr(campaign.torch.cuda, "mem_get_info", lambda: (free["GB"], 80))
    for free["GB"], more in ((60, True), (17, True), (15, False)): assert campaign.room(4) is more
    assert not campaign.room(16)


def test_the_slowest_of_the_most_alike_is_the_estimate(study, tmp_path):
    study()
    task = survey("tiny", "cpu", tmp_path)[0]
    other, both, slower = took(10.0, env_id="CartPole-v1", size=32), took(600.0, besides=2.0), took(300.0, seed=1)
    assert needed(task, [other]) == 600 + 1                                   # of another task
    assert needed(task, [other, both]) == 10 + 2
    assert needed(task._replace(steps=3_000), [other, both, slower]) == 10 + 2
    assert needed(task, [took(600.0, preset="paper_masked", env_id="Pong-v5")]) is None


# -- stopping and going on ---------------------------------------------------------------------------------------------

def test_at_the_end_of_the_budget_runs_are_saved_and_the_next_call_goes_on_exactly(study, started, capsys, tmp_path):
    study(total_steps=80_000)  # long enough to be under way at the next look, on any machine
    first, _ = ids()
    c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=10_000, jobs=1)
    real, seen = campaign.Training.look, []
    def look(job, now):  # the budget ends once the run is well under way
        real(job, now)
        if len(rows(job.dir)) >= 3: seen.append(job); c.end = now
    try:
        campaign.Training.look = look
        assert c.run() == 0
    finally: campaign.Training.look = real
    assert seen and [id for id, _ in started] == [first] and [j.task.config.id for j in c.stopped] == [first]
    saved = load_tree(tmp_path/"out"/"runs"/first/"checkpoint.safetensors")["progress"]
    assert saved["update"] == len(rows(tmp_path/"out"/"runs"/first)) and 0 < saved["step"] < 80_000
    assert "1 unfinished" in capsys.readouterr().out and not list((tmp_path/"out").glob("*.json"))
    moved = shutil.copytree(tmp_path/"out", tmp_path/"another machine")
    code, out, _ = call(capsys, "--dry-run")
    assert code == 0 and f"{saved['step']:,} of 80,000 steps" in out
    kept = []
    keep = campaign.Campaign._keep
    def keeping(self, job):  # the folder of the finished run, to compare
        kept.append(shutil.copytree(job.dir, tmp_path/"kept"/job.task.config.id))
        keep(self, job)
    try:
        campaign.Campaign._keep = keeping
        tasks = survey("tiny", "cpu", moved)[:1]
        assert tasks[0].steps == saved["step"] and Campaign(tasks, moved, "tiny", budget=1000, jobs=1).run() == 0
    finally: campaign.Campaign._keep = keep
    run(tasks[0].config, tmp_path/"whole")
    assert_same_run(kept[0], tmp_path/"whole")


def test_what_was_begun_goes_on_first_even_when_it_cannot_end_in_time(study, capsys, tmp_path):
    study(total_steps=ENDLESS)
    last = survey("tiny", "cpu", tmp_path/"out")[-1]
    folder = tmp_path/"out"/"runs"/last.config.id
    folder.mkdir(parents=True)
    (folder/"steps.jsonl").write_text(json.dumps(a_row(step=512)) + "\n")
    earlier(100.0)
    c = Campaign(survey("tiny", "cpu", tmp_path/"out"), tmp_path/"out", "tiny", budget=100, jobs=1)
    assert c.waiting[0].config.id == last.config.id and c._fits(c.waiting[0], c.costs()) and not c._fits(c.waiting[1], c.costs())


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_campaign_that_is_ended_leaves_runs_that_are_saved(end, tmp_path):
    process = start("-m", "abs_lab.studies.campaign", "quick", "--budget", "1h", "--jobs", 2, "--out", "out", cwd=tmp_path, checkpoint_seconds=1000)
    assert wait_for(lambda: sum(len(rows(d)) > 2 for d in (tmp_path/"out"/"runs").glob("*")) == 2, process)
    getattr(process, end)()
    code, out, err = finish(process)
    if end == "terminate": assert code == 130 and "goes on from here" in err and f"2 unfinished, 0 failed, {len(STUDIES['quick'].grid()) - 2} not started" in out
    else: assert code == -signal.SIGKILL
    saved = list((tmp_path/"out"/"runs").glob("*/checkpoint.safetensors"))
    until = time.monotonic() + 60
    while len(saved) < 2 and time.monotonic() < until:  # killed: its runs notice at the end of an update
        time.sleep(0.2)
        saved = list((tmp_path/"out"/"runs").glob("*/checkpoint.safetensors"))
    assert len(saved) == 2 and all(0 < load_tree(f)["progress"]["step"] < 400_000 for f in saved)


def test_a_failed_run_is_named_with_its_last_words_and_the_others_go_on(study, capsys, tmp_path):
    study(arms={"a": {}, "bad": dict(lr=1e30)}, tasks={})
    code, out, err = call(capsys, "--budget", "10m", "--jobs", 2)
    assert code == 1 and "1 finished, 0 unfinished, 1 failed" in out
    failed = next(line for line in out.splitlines() if "FAILED" in line)
    assert "(bad)" in failed and "exit code 2" in failed and "became nan" in out
    assert len(list((tmp_path/"out").glob("*.json"))) == 1


def test_a_killed_run_is_named_and_goes_on_the_next_time(study, capsys, tmp_path, monkeypatch):
    study(total_steps=150_000)
    tasks, real = survey("tiny", "cpu", tmp_path/"out")[:1], campaign.Training.look
    def look(job, now):
        real(job, now)
        if len(rows(job.dir)) >= 2: job.process.kill()
    monkeypatch.setattr(campaign.Training, "look", look)
    assert Campaign(tasks, tmp_path/"out", "tiny", budget=1000, jobs=1).run() == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and f"exit code -{signal.SIGKILL:d}" in out and "killed?" in out
    monkeypatch.setattr(campaign.Training, "look", real)
    assert Campaign(tasks, tmp_path/"out", "tiny", budget=1000, jobs=1).run() == 0
    assert read_result(tmp_path/"out"/f"{tasks[0].config.id}.json")["result"]["status"] == "finished"


def test_a_second_campaign_on_the_same_folder_is_refused(study, started, capsys, tmp_path):
    study()
    (tmp_path/"out").mkdir()
    first = Lease(tmp_path/"out"/"campaign")
    code, out, err = call(capsys)
    assert code == 2 and err.startswith("abs_lab: another campaign has --out out: ") and not started
    assert call(capsys, "--dry-run")[0] == 0                                # looking is allowed
    first.close()
    tasks = survey("tiny", "cpu", tmp_path/"out")
    assert Campaign(tasks, tmp_path/"out", "tiny", budget=1000, jobs=2).run() == 0 and len(started) == 2
    assert Campaign(tasks, tmp_path/"out", "tiny", budget=1000, jobs=2).run() == 0 and len(started) == 2  # finished since it was looked at
    assert not Lease.held(tmp_path/"out"/"campaign")


def test_a_folder_stays_until_its_small_file_can_be_read(study, capsys, tmp_path, monkeypatch):
    study(tasks={})
    task, real = survey("tiny", "cpu", tmp_path/"out")[0], campaign.save_result
    def torn(small, folder):
        real(small, folder)
        path = folder/f"{small['id']}.json"
        path.write_text(path.read_text()[:-9])
    monkeypatch.setattr(campaign, "save_result", torn)
    code, out, _ = call(capsys, "--budget", "10m")
    assert code == 1 and "no small file could be made of it" in out and (tmp_path/"out"/"runs"/task.config.id/"result.json").exists()
    monkeypatch.setattr(campaign, "save_result", real)
    assert call(capsys, "--budget", "10m")[0] == 0 and survey("tiny", "cpu", tmp_path/"out")[0].finished
    assert not list((tmp_path/"out"/"runs").iterdir())


# -- bad input ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, words", [
    (["--scale", "gpuu"], "scale of tiny"), (["--budget", "9"], "such as 90s, 9m"), (["--budget", "0m"], "above 0"), (["--jobs", "-1"], "at least 0")])
def test_bad_input_is_refused_before_any_work(study, capsys, tmp_path, argv, words):
    study()
    code, _, err = call(capsys, *argv)
    assert code == 2 and words in err and not (tmp_path/"out").exists()


def test_a_study_with_a_bad_run_is_refused_before_any_work(study, capsys, tmp_path):
    study(arms={"a": dict(sise=16)})
    code, _, err = call(capsys)
    assert code == 2 and "did you mean size" in err and not (tmp_path/"out").exists()


# -- merge -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The small files of two finished runs."
    root = tmp_path_factory.mktemp("finished")
    points = [dict(arm="a", seed=s, env_id="CartPole-v1") | TINY | dict(total_steps=2_000) for s in range(2)]
    configs = configs_of(points)
    for c in configs: run(c, root/"runs"/c.id)
    collect(points, configs, root/"runs", root/"data")
    return [read_result(root/"data"/f"{c.id}.json") for c in configs]


@pytest.fixture
def carried(study, finished, tmp_path):
    "These files, as a campaign leaves them."
    study()
    for small in finished: save_result(small | dict(study="tiny", jobs=2), tmp_path/"out")
    return [tmp_path/"out"/f"{small['id']}.json" for small in finished]


def merge(capsys, *argv):
    code = cli.main(["merge", "out", *argv])
    return code, *capsys.readouterr()


def test_merging_twice_changes_nothing(carried, capsys, tmp_path):
    assert merge(capsys)[:2] == (0, "".join(f"taken: {p.stem}\n" for p in sorted(carried)) + "2 taken, 0 there already, 0 refused\n")
    data = tmp_path/"reports"/"tiny"/"data"
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in data.iterdir()}
    assert set(before) == {p.name for p in carried}
    assert merge(capsys)[:2] == (0, "0 taken, 2 there already, 0 refused\n")
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in data.iterdir()} == before


def test_a_study_of_ones_own_is_merged_where_it_never_ran(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"our_studies.py").write_text("from abs_lab import Study\nours = Study('ours', 'Which is better?', arms={'a': {}})\n")
    for small in finished: save_result(small | dict(study="ours", jobs=2), tmp_path/"out")
    assert "2 refused" in merge(capsys)[1]
    assert merge(capsys, "our_studies:ours")[:2] == (0, "".join(f"taken: {s['id']}\n" for s in sorted(finished, key=lambda s: s["id"])) + "2 taken, 0 there already, 0 refused\n")
    assert len(list((tmp_path/"reports"/"ours"/"data").iterdir())) == 2


@pytest.mark.parametrize("damage, words", [
    (lambda s: json.dumps(s)[:-9], "is damaged"),
    (lambda s: json.dumps([s]), "does not hold what it has to"),
    (lambda s: json.dumps({k: v for k, v in s.items() if k != "curve"}), "does not hold what it has to: see 'curve'"),
    (lambda s: json.dumps(s | dict(params=s["params"] | dict(lr=0.5))), "changed since it was written"),
    (lambda s: json.dumps(s | dict(params=s["params"] | dict(lrr=0.5))), "changed since it was written"),
    (lambda s: json.dumps(s | dict(result=s["result"] | dict(steps=1_000))), "its result says 1000"),
    (lambda s: json.dumps(s | dict(result=s["result"] | dict(status="running"))), "no finished run"),
    (lambda s: json.dumps(s | dict(result=s["result"] | dict(id="x"))), "the result of 'x'"),
    (lambda s: json.dumps(s | dict(curve=s["curve"] | dict(size=[16]))), "the same number in every column"),
    (lambda s: json.dumps(s | dict(curve={k: v and v * 100 for k, v in s["curve"].items()})), "1 to 200 points"),
    (lambda s: json.dumps(s | dict(study="../elsewhere")), "unknown study"),
], ids=["cut", "list", "no curve", "edited", "unknown parameter", "another end", "unfinished", "another's result", "ragged", "too long", "another folder"])
def test_a_file_that_is_not_what_it_claims_is_named_and_the_rest_is_taken(carried, capsys, tmp_path, damage, words):
    bad, good = carried
    small = json.loads(bad.read_text())
    if "changed" not in words: del small["seal"]  # older files have none
    bad.write_text(damage(small))
    code, out, err = merge(capsys)
    assert code == 1 and words in err and err.startswith("refused: ") and out == f"taken: {good.stem}\n1 taken, 0 there already, 1 refused\n"
    assert [p.name for p in (tmp_path/"reports").rglob("*.json")] == [good.name] and not (tmp_path/"elsewhere").exists()


def test_another_result_of_a_run_is_taken_only_when_asked(carried, capsys, tmp_path):
    merge(capsys)
    other = json.loads(carried[0].read_text())
    other["result"]["final_size"] += 1
    save_result(other, carried[0].parent)
    other = read_result(carried[0])  # with its checksum
    target = tmp_path/"reports"/"tiny"/"data"/carried[0].name
    before = target.read_bytes()
    code, out, err = merge(capsys)
    assert code == 1 and "--replace" in err and carried[0].name in err and target.read_bytes() == before
    code, out, err = merge(capsys, "--replace")
    assert code == 0 and out.startswith(f"taken: {carried[0].stem}\n1 taken, 1 there already") and read_result(target) == other
    target.write_text("{")  # what is damaged is no result
    assert merge(capsys)[0] == 0 and read_result(target) == other


def test_the_study_can_be_named_and_an_empty_folder_is_refused(carried, capsys, tmp_path):
    small = json.loads(carried[0].read_text())
    del small["study"], small["seal"]
    carried[0].write_text(json.dumps(small))
    assert merge(capsys)[0] == 1 and merge(capsys, "quick")[0] == 0
    assert len(list((tmp_path/"reports"/"quick"/"data").iterdir())) == 2
    code, _, err = merge(capsys, "quik")
    assert code == 1 and "did you mean quick" in err
    assert cli.main(["merge", "nowhere"]) == 2 and "holds no result files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out/campaign", "out/costs.jsonl"])
def test_what_is_no_file_or_no_folder_is_one_sentence(name, study, capsys):
    study()
    campaign.Path(name).parent.mkdir(exist_ok=True)
    for put in (os.mkfifo, lambda p: os.symlink(p, p), lambda p: os.symlink("nowhere", p)):
        put(name)
        code, _, said = call(capsys)
        assert code == 2 and said.startswith(f"abs_lab: {name}") and "Errno" not in said and call(capsys, "--dry-run")[0] == 0
        os.unlink(name)
