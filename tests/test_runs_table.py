"The table of runs: what people note of them, the index of a large folder, groups of many, and the page that is sent to somebody."
import asyncio, multiprocessing, shutil, time

import pytest

from abs_lab.core.interfaces import AbsLabError
from abs_lab.live.browser import FEW, RunBrowser, keys_for, records
from abs_lab.live.widgets import discard
from abs_lab.reports import pages
from abs_lab.reports.pages import SCRIPT
from abs_lab.runs import index
from abs_lab.runs.config import configure, recall
from abs_lab.runs.index import INDEX, known
from abs_lab.runs.notes import NO_NOTES, annotate, notes_of
from abs_lab.runs.runner import run
from abs_lab.runs.storage import Lease, config_json, result_of, sealed_line, steps_of, write_sealed
from abs_lab.runs.table import Runs
from abs_lab.runs.verify import verify
from abs_lab.studies import results
from support import CHROMIUM

BASE = dict(env_id="CartPole-v1", preset="classic", num_envs=16, size_min=8, size_max=32, total_steps=4_000, eval_envs=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    dir = tmp_path_factory.mktemp("one")/"run"
    run(configure(**BASE), dir)
    return dir


@pytest.fixture
def study(trained, tmp_path, monkeypatch):
    "Runs below runs/study: of each point a copy of the trained one, under its parameters."
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    monkeypatch.setenv("ABS_LAB_REPORTS_DIR", str(tmp_path/"reports"))
    def make(*points):
        for point in points:
            config = configure(**BASE | point)
            dir = tmp_path/"runs"/"study"/config.id
            dir.mkdir(parents=True)
            for name in ("steps.jsonl", "events.jsonl"): shutil.copy(trained/name, dir/name)
            write_sealed(dir/"config.json", config_json(trained) | config.record())
            write_sealed(dir/"result.json", result_of(trained) | dict(id=config.id))
        return tmp_path/"runs"/"study"
    return make


def test_a_table_of_updates_has_numbers_whatever_a_part_of_them_measured(study):
    "Thousands of updates without a measurement, then one; and an agent that reports a metric of a column's name."
    config = configure(**BASE)
    row = steps_of(next(study({}).iterdir()))[0]
    dir, crc = study(dict(seed=1)).parent/"long"/config.id, 0
    shutil.copytree(study(dict(seed=2))/configure(**BASE, seed=2).id, dir)
    with open(dir/"steps.jsonl", "wb") as file:
        for i in range(1, 5_003):
            line, crc = sealed_line(row | dict(update=i, step=i * 128, signal=0.5 if i > 5_000 else None, mean=None, seconds_learn=7.0), crc)
            file.write(line)
    table = Runs(dir.parent).steps()
    assert len(table) == 5_002 and table["signal"].dtype == float and table["signal"].dropna().tolist() == [0.5, 0.5]
    assert table["seconds_total"].tolist() == [row["seconds"]["total"]] * 5_002 and {*table["seconds_learn"]} == {7.0} and {*table["seconds_learn_"]} == {row["seconds"]["learn"]}


def test_notes_are_no_part_of_a_run_and_are_written_while_it_trains(study):
    dir = next(study({}).iterdir())
    config, lease = (dir/"config.json").read_bytes(), Lease(dir/"lock")
    annotate(dir, note="odd\ndip", tags=["a", "b"])
    assert annotate(dir, pinned=True) == notes_of(dir) == dict(note="odd\ndip", tags=["a", "b"], pinned=True)
    lease.check()
    lease.close()
    assert (dir/"config.json").read_bytes() == config and recall(config_json(dir)["config"]).id == dir.name and not any(verify(dir)["notes.json"])


@pytest.mark.parametrize("wrong, named", [(dict(note=3), "3"), (dict(tags="odd"), "odd"), (dict(tags=["two\nlines"]), "two"), (dict(tags=["", "x"]), "tags"), (dict(tags=["x" * 101]), "xxx"), (dict(note="\x1b[2J"), "note"),
                                          (dict(pinned="yes"), "yes"), (dict(note="x" * 10_001), "10,000"), (dict(pined=True), "pinned")])
def test_what_is_no_note_is_refused(tmp_path, wrong, named):
    with pytest.raises(AbsLabError, match=named): annotate(tmp_path, **wrong)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ['{"note": "half', "[]", '"x"', "", '{"tags": "odd"}', '{"tags": [1]}', '{"note": "\\ud800"}', '{"pinned": 1}', "\udcff", "[" * 10_000])
def test_damaged_notes_are_named_and_kept(study, text):
    dir = next(study({}).iterdir())
    (dir/"notes.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AbsLabError, match="notes.json"): notes_of(dir)
    browser = RunBrowser()
    assert "notes.json" in str(browser.table.rows) and browser.table.columns[-1] == "note"
    with pytest.warns(UserWarning, match="notes.json"): assert len(Runs(dir.parent).table) == 1
    with pytest.warns(UserWarning, match="notes.json"): assert "notes" not in results.compact(dir, "ABS")
    assert "notes.json" in verify(dir)["notes.json"]
    with pytest.warns(UserWarning, match="notes.json"): browser.table.selected = [0]
    assert "notes.json" in browser.message.value
    browser.tags.value = ["mended"]
    assert notes_of(dir) == NO_NOTES | dict(tags=["mended"]) and "damaged" not in browser.message.value
    aside, = dir.glob("notes-*.damaged")
    assert aside.read_bytes() == text.encode(errors="surrogateescape")


def test_a_link_in_the_place_of_notes_is_not_followed(study, tmp_path):
    dir = next(study({}).iterdir())
    (tmp_path/"elsewhere").write_text('{"note": "secret"}')
    (dir/"notes.json").symlink_to(tmp_path/"elsewhere")
    with pytest.raises(AbsLabError, match="notes.json"): notes_of(dir)
    annotate(dir, note="mine")
    assert (tmp_path/"elsewhere").read_text() == '{"note": "secret"}' and notes_of(dir)["note"] == "mine"


def _tag(dir, word):
    for i in range(20): annotate(dir, **{word: f"{i}"} if word == "note" else {word: [f"{word}{i}"]})


def test_two_processes_that_note_at_once(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=_tag, args=(tmp_path, word)) for word in ("note", "tags")]
    for p in both: p.start()
    for p in both: p.join(60)
    assert notes_of(tmp_path) == dict(note="19", tags=["tags19"], pinned=False) and [p.name for p in tmp_path.iterdir()] == ["notes.json"]


def test_a_report_carries_what_was_noted(study, tmp_path):
    folder, data = study(dict(seed=1), dict(seed=2)), tmp_path/"reports"/"study"/"data"
    dirs = sorted(folder.iterdir())
    configs = [recall(config_json(dir)["config"]) for dir in dirs]
    collect = lambda: results.collect([dict(arm="ABS", **c.flat()) for c in configs], configs, folder, data)
    collect()
    plain = (data/f"{dirs[0].name}.json").read_bytes()
    assert b"notes" not in plain
    annotate(dirs[1], note="<i>dip</i>", tags=["odd"], pinned=True)
    collect()
    small = results.read_result(data/f"{dirs[1].name}.json")
    assert small["notes"] == dict(note="<i>dip</i>", tags=["odd"], pinned=True) and (data/f"{dirs[0].name}.json").read_bytes() == plain
    runs = pages.finished("study", data, arms=["ABS"])
    text = pages.study("study", runs, str(tmp_path/"reports"/"study"), [], question="?").read_text()
    assert "&lt;i&gt;dip" in text and "<i>dip" not in text and "What was noted" in text and "odd" in (tmp_path/"reports"/"study"/"results.csv").read_text()
    # the same run without its notes is the same result: others' notes are taken, one's own are not written over
    other = tmp_path/"other"
    results.save_result({k: v for k, v in small.items() if k != "notes"}, other/"study"/"data")
    assert results.merge(data, other, "study", known={"study": {"CartPole-v1"}})[0] == [d.name for d in dirs]
    results.save_result(small | dict(notes=dict(note="mine")), other/"study"/"data")
    assert "--replace" in str(results.merge(data, other, "study", known={"study": {"CartPole-v1"}})[2])
    shutil.rmtree(folder)
    assert [r.notes["note"] for r in records()] == ["<i>dip</i>", ""]     # pinned first, from the report alone
    browser = RunBrowser()
    browser.table.selected = [0]
    browser.pin.value = False
    assert "report alone" in browser.message.value and browser.pin.value


def test_tags_and_pins_of_several_runs(study):
    study(*(dict(seed=i) for i in range(4)))
    browser = RunBrowser()
    browser.table.selected = [0]
    browser.tags.value = ["own"]
    browser.table.selected = [0, 3]
    assert browser.tags.value == [] and browser.note.disabled
    browser.tags.value = ["both"]
    assert [r.notes["tags"] for r in browser.shown] == [["own", "both"], [], [], ["both"]]
    browser.tags.value = []
    assert [r.notes["tags"] for r in browser.shown] == [["own"], [], [], []]
    browser.table.selected = [3]
    last = browser.chosen[0].id
    browser.pin.value = True
    assert browser.chosen == [browser.shown[0]] and browser.shown[0].id == last and browser.table.first == [0]
    browser.where.value = 'pinned or "own" in tags'
    browser.table.selected = []
    assert len(browser.shown) == 2 and [r.id for r in browser.baseline.options.values() if r] == [last]    # a pinned run is offered as baseline


def test_an_index_follows_its_folder(study, monkeypatch):
    folder, read = study(*(dict(seed=i) for i in range(6))), []
    monkeypatch.setattr(index, "MANY", 3)
    monkeypatch.setattr(index, "config_json", lambda dir: (read.append(dir.name), config_json(dir))[1])
    def look():
        read.clear()
        return known(folder)
    time.sleep(2.1)                                          # what was written just now is not kept yet
    first, names = look(), sorted(d.name for d in folder.iterdir() if d.is_dir())
    assert sorted(read) == names and look() == first and read == []
    annotate(folder/names[0], note="x")                      # changed
    shutil.rmtree(folder/names[1])                           # deleted
    (folder/names[2]).rename(folder/"zz")                    # moved: another name, which its config does not have
    shutil.copytree(folder/names[3], folder/"zzz", copy_function=shutil.copy2)  # copied with its times
    (folder/names[4]/"result.json").write_text("{")          # damaged, and named each time
    for _ in range(2):
        with pytest.warns(UserWarning, match="result.json"): now = look()
        assert {names[0], names[4]} <= {*read} and names[5] not in read and now[names[5]] == first[names[5]]
    assert sorted(now) == sorted({*names, "zz", "zzz"} - {*names[1:3]}) and now[names[0]]["notes"]["note"] == "x" and now[names[4]]["result"] is None
    for wrong in (b"", b"x", (folder/INDEX).read_bytes()[:-9], index.gzip.compress(b"[1"), index.gzip.compress(b"7"), index.gzip.compress(b'[1, {"' + names[5].encode() + b'": 3}]'), index.gzip.compress(b"[0, {}]")):
        (folder/INDEX).write_bytes(wrong)
        with pytest.warns(UserWarning): assert look() == now
    (folder/INDEX).unlink()
    (folder/INDEX).mkdir()                                   # it cannot be written
    with pytest.warns(UserWarning): assert look() == now


def test_the_index_of_a_part_forgets_nothing(study, monkeypatch):
    folder = study(*(dict(seed=i) for i in range(4)))
    monkeypatch.setattr(index, "MANY", 1)
    time.sleep(2.1)
    known(folder)
    a, b, c, d = sorted(p.name for p in folder.iterdir() if p.is_dir())
    shutil.rmtree(folder/d)
    annotate(folder/a, note="x")
    time.sleep(2.1)
    assert list(known(folder, [a, b])) == [a, b] and sorted(index._kept(folder/INDEX)) == [a, b, c]


def _look(folder): index.MANY = 1; [known(folder) for _ in range(5)]


def test_two_processes_that_write_the_index(study):
    folder = study(*(dict(seed=i) for i in range(5)))
    expected = known(folder)
    both = [multiprocessing.get_context("fork").Process(target=_look, args=(folder,)) for _ in range(3)]
    for p in both: p.start()
    for p in both: p.join(60)
    assert known(folder) == expected and {p.name for p in folder.iterdir() if not p.is_dir()} <= {INDEX}


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(index, "MANY", 2)
    monkeypatch.setattr("abs_lab.live.browser.FIRST", 3)
    monkeypatch.setattr("abs_lab.live.browser.MORE", 2)


async def whole(browser):
    while browser.later: await asyncio.sleep(0.01)
    return browser


def by_seed(folder): return sorted((d for d in folder.iterdir() if d.is_dir()), key=lambda d: recall(config_json(d)["config"]).seed)


def test_a_large_folder_is_shown_before_all_of_it_is_read(study, in_parts):
    folder = study(*(dict(seed=i) for i in range(9)))
    for dir in by_seed(folder): time.sleep(0.02); (dir/"result.json").touch()     # the last seed was written last
    async def look():
        browser = RunBrowser()
        assert sorted(r.params["seed"] for r in browser.shown) == [5, 6, 7, 8] and "4 runs have been looked up" in browser.standing.value
        browser.table.selected = [1]
        browser.note.value = "while others are read"
        chosen = browser.chosen[0].id
        assert "others were still looked up" in browser.page()
        await whole(browser)
        assert len(browser.shown) == 9 and not browser.standing.value and "still looked up" not in browser.page()
        assert [(r.id, r.notes["note"]) for r in browser.chosen] == [(chosen, "while others are read")]
        browser.table.selected = [*range(9)]
        browser.refresh()                                                 # chosen runs stay so, also those that are looked up later
        assert len((await whole(browser)).chosen) == 9
        browser.refresh()
        browser.table.selected = [0]                                      # what a person chooses meanwhile counts
        only = browser.chosen[0].id
        assert [r.id for r in (await whole(browser)).chosen] == [only]
        browser.refresh(); browser.refresh()                              # the second begins anew
        assert len((await whole(browser)).shown) == 9
    asyncio.run(look())
    assert len(RunBrowser().shown) == 9                                   # where nothing runs later all is read at once


def test_what_happens_while_a_large_folder_is_read(study, in_parts, monkeypatch):
    folder = study(*(dict(seed=i) for i in range(9)))
    async def look():
        browser = RunBrowser()                                            # a run is deleted before its turn
        left = [d for d in folder.iterdir() if d.name not in {r.id for r in browser.shown}]
        shutil.rmtree(left[0])
        assert {r.id for r in (await whole(browser)).shown} == {d.name for d in by_seed(folder)}
        browser.refresh()                                                 # nobody looks any more
        seen = len(browser.found)
        discard(browser.widget)
        await asyncio.sleep(0.2)
        assert len(browser.found) == seen and not browser.later
        browser = RunBrowser()                                            # what cannot be read is said, and what was found is shown
        monkeypatch.setattr(index, "config_json", lambda dir: (_ for _ in ()).throw(PermissionError(13, "not allowed", str(dir))))
        await whole(browser)
        assert "not allowed" in browser.standing.value and len(browser.shown) >= 4
    asyncio.run(look())


def test_a_chosen_run_of_a_report_stays_chosen_when_its_folder_is_found(study, in_parts, tmp_path):
    folder = study(*(dict(seed=i) for i in range(6)))
    configs = [recall(config_json(d)["config"]) for d in by_seed(folder)]
    results.collect([dict(arm="ABS", **c.flat()) for c in configs], configs, folder, tmp_path/"reports"/"study"/"data")
    async def look():
        browser = RunBrowser()
        assert all(r.path.suffix == ".json" for r in browser.shown)
        browser.table.selected = [0]
        chosen = browser.chosen[0].id
        await whole(browser)
        assert [(r.id, r.path) for r in browser.chosen] == [(chosen, folder/chosen)] and len(browser.shown) == 6
    asyncio.run(look())


def test_what_was_read_is_kept_where_nobody_wants_the_rest(study, monkeypatch):
    folder = study(*(dict(seed=i) for i in range(6)))
    monkeypatch.setattr(index, "MANY", 2)
    time.sleep(2.1)
    parts = index.looked_through(folder)
    assert len(next(parts)) == 2
    parts.close()
    assert len(index._kept(folder/INDEX)) == 2 and len(known(folder)) == 6
    annotate(by_seed(folder)[3], note="x")                                # changed last: it comes with what is known
    assert [len(part) for part in index.looked_through(folder)] == [6]


def test_a_small_folder_gets_no_index(study):
    folder = study({})
    Runs(folder).table, records()
    assert [p.name for p in folder.parent.iterdir()] == ["study"] and all(p.is_dir() for p in folder.iterdir())


def test_many_runs_are_groups_whose_legend_is_bounded(study):
    study(*(dict(seed=i, low=low, lr=lr) for i in range(5) for low in (0.02, 0.05) for lr in (1e-4, 2e-4, 3e-4, 4e-4, 5e-4)))
    browser = RunBrowser()
    browser.table.selected = [*range(10)]
    assert browser.by.value == [] and sum(t.legend for t in browser.drawn) == 10
    browser.table.selected = [*range(50)]
    assert browser.by.value == keys_for(browser.chosen) and {*browser.by.value} == {"low", "lr"}
    named = [t for t in browser.drawn if t.legend]
    assert len(named) == 10 and len({(t.colour, t.dash) for t in named}) == 10 and "interquartile mean" in browser.message.value and "95 %" in browser.message.value
    assert "low" in browser.difference.value and browser.difference.value.count("<th>") == 3   # of many, each value and how many have it
    browser.by.value = []                                   # a person's choice stays
    thick = [t for t in browser.drawn if t.width > 2]
    assert len(thick) == 50 and len({(t.colour, t.dash) for t in thick[:24]}) == 24 and sum(t.legend for t in thick) == FEW and all(t.hover and t.name for t in thick)
    assert "50 lines, of which the legend names 10" in browser.message.value
    browser.table.selected = [*range(49)]
    assert browser.by.value == []
    browser.by.value = ["low", "lr", "seed"]                # more keys than two
    assert {t.name.count(" = ") for t in browser.drawn} == {3}


def test_a_folder_without_runs_says_so(study, tmp_path):
    assert "No run was recorded in" in (said := RunBrowser().message.value) and "runs" in said and "train one" in said
    study(dict(seed=1))
    assert "Choose runs in the table." in RunBrowser().message.value


def test_only_seeds_differ(study):
    study(*(dict(seed=i) for i in range(12)))
    browser = RunBrowser()
    browser.table.selected = [*range(12)]
    assert browser.by.value == ["env_id"] and [t.name for t in browser.drawn if t.legend] == ["env_id = CartPole-v1"]


def test_more_than_can_be_drawn_is_said(study, monkeypatch):
    from abs_lab.live import browser as module
    monkeypatch.setattr(module, "EACH", 5)
    monkeypatch.setattr(module, "READ", 15)
    study(*(dict(seed=i) for i in range(20)))
    browser = RunBrowser()
    browser.table.selected = [*range(20)]
    assert "first 15 of 20" in browser.message.value and len(browser.drawn) == 2    # a band and a line
    browser.by.value = []
    assert "first 5 of 20 chosen runs are drawn: group them" in browser.message.value and len(browser.drawn) == 5


HOSTILE = '</script><img src=x onerror="document.title=1">%{x}$x$'


def test_a_snapshot_says_what_it_shows(study):
    study(*(dict(seed=i) for i in range(3)))
    browser = RunBrowser()
    browser.where.value = "seed < 2"
    browser.table.selected = [0, 1]
    browser.tags.value = ["odd"]
    browser.table.selected = [0]
    browser.note.value = HOSTILE
    browser.table.selected = [0, 1]
    page = browser.page()
    own = page.replace(SCRIPT.read_text(encoding="utf-8"), "")
    assert len(own) < len(page) / 2 and "<img" not in own and "&lt;img" in own and "odd" in own
    assert "2 of 3 recorded runs, of those for which seed &lt; 2 is true, training return against environment steps." in own and "at commit" in own and "were trained by commit" in own and time.strftime("%B %Y") in own
    assert all(r.id in own for r in browser.chosen) and browser.shown[1].id in own and browser.records[-1].id not in own and "Parameters in which the runs differ" in own
    browser.table.selected = []
    assert "draw(\"figure" not in browser.page() and "2 of 3" in browser.page()


@pytest.mark.long  # a browser
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on the PATH")
def test_a_snapshot_opens_without_a_network(study, tmp_path, browser):
    study(*(dict(seed=i) for i in range(3)))
    table = RunBrowser()
    table.table.selected = [0]
    table.note.value = HOSTILE
    table.table.selected = [0, 1, 2]
    (tmp_path/"page.html").write_text(table.page(), encoding="utf-8")
    context = browser.new_context(offline=True, viewport=dict(width=400, height=800))
    page, asked, wrong = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path/"page.html").as_uri())
    page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for()
    assert page.locator(".js-plotly-plot .scatterlayer path.js-line").count() == 3 and page.title() == "Runs" and HOSTILE in page.locator("table").first.inner_text()
    assert not wrong and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


def test_a_long_log_is_read_once(trained, tmp_path, monkeypatch):
    "More than one block of it, none of which falls back to reading every row."
    from abs_lab.runs import storage
    rows, crc = storage.steps_of(trained), 0
    monkeypatch.setattr(storage, "contents", lambda path, first=0, most=None, read=storage.contents: read(path, first, most and min(most, 1 << 20)))
    with open(tmp_path/"steps.jsonl", "wb") as file:
        for i in range(4_000):
            line, crc = storage.sealed_line({**rows[i % len(rows)], "update": i + 1, "size": 8 + i % 3, "signal": 0.5 + i if i % 100 == 7 else None}, crc)
            file.write(line)
    assert (tmp_path/"steps.jsonl").stat().st_size > 2 << 20
    expected = [(row["update"], 8 + (row["update"]) % 3) for row in storage.steps_of(tmp_path) if row["signal"] is not None]
    monkeypatch.setattr(storage, "steps_of", lambda dir: pytest.fail("every row was read"))
    assert [(row["update"], size) for row, size in storage.measured_steps(tmp_path)] == expected and len(expected) == 40
