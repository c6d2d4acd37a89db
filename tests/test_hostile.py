"What other people have written is text on every page, tab and figure, and in every table: hostile strings in every field of a merged result and of a run's folder, in Chromium."
import ast, csv, importlib.util, json, re, shutil

import pytest

for package in ("ipywidgets", "anywidget"):
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed", allow_module_level=True)

import ipywidgets as W

from abs_lab.core.text import escaped, in_csv, in_markdown, printable
from abs_lab.live.board import Dashboard
from abs_lab.live.browser import RunBrowser
from abs_lab.live.page import Page
from abs_lab.live.what_if import WhatIf
from abs_lab.reports import pages
from abs_lab.runs.config import configure
from abs_lab.runs.runner import run
from abs_lab.runs.session import Session
from abs_lab.runs.storage import run_id, write_json
from abs_lab.studies.results import load_small, read_result, save_result
from strategies import HOSTILE
from support import CHROMIUM, ROOT

PRINTABLE = [s for s in HOSTILE if s and printable(s) == s and "\n" not in s and "\t" not in s and "\\" not in s and len(s) < 200]  # such as the name of a file may hold
needs_chromium = pytest.mark.skipif(not CHROMIUM or not importlib.util.find_spec("playwright"), reason="there is no Chromium, or no playwright")
WATCH = "window.hits = 0; window.hit = () => { window.hits++; }; window.alert = window.hit;"
SEEN = """() => ({hits: window.hits, links: [...document.querySelectorAll("a")].map(a => a.getAttribute("href") || a.getAttribute("xlink:href") || "").filter(h => /hit/.test(h)),
    large: [...document.querySelectorAll("[style], text, tspan")].filter(e => parseFloat(getComputedStyle(e).fontSize) > 100).length, frames: document.querySelectorAll("iframe").length,
    images: [...document.querySelectorAll("img, image")].filter(i => !/^(data|blob):/.test(i.getAttribute("src") || i.getAttribute("href") || i.getAttribute("xlink:href") || "data:")).length})"""
QUIET = dict(hits=0, links=[], large=0, frames=0, images=0)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    for key, value in dict(THREADS="1", DEVICE="cpu", RUNS_DIR=str(tmp_path/"runs"), REPORTS_DIR=str(tmp_path/"reports")).items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)


def opened(browser, path=None, html=None):
    "A page, and the addresses outside this machine that it asked for."
    page, asked = browser.new_page(), []
    page.add_init_script(WATCH)
    page.on("request", lambda r: asked.append(r.url) if r.url.startswith("http") else None)
    page.goto(path.as_uri()) if path else page.set_content(f"<script>{WATCH}</script>{html}")
    page.wait_for_timeout(300)
    return page, asked


def hostile(small, word, seed):
    "A run in every field of which that takes text stands a word; under its own name, so that it can be merged."
    params = {k: v for k, v in small["params"].items() if k != "arm"} | dict(env_id=word, seed=seed)
    identity = dict(format=2, env_id=word, controller="abs", seed=seed)
    id = run_id(word, params["controller"], seed, identity)
    kinds = dict(meter=dict(signal=[word, word], name=word), agent=dict(size=[word, word], metrics={"loss": [word, word]}, name=word))
    result = small["result"] | dict(id=id, commit=word, device=word, backend=word, versions=small["result"]["versions"] | {"torch": word, word: word}, hardware=small["result"]["hardware"] | dict(cpu=word))
    return small | dict(id=id, identity=identity, study="quick", kinds=kinds, result=result, params=params | {"arm": word, "preset": word, word: word, "network": word}, curve=small["curve"] | {word: small["curve"]["loss"]})


def planted(folder, words):
    "Files of runs that hold these words, as `merge` would take them."
    base = next(s for s in map(load_small, sorted((ROOT/"reports"/"quick"/"data").glob("*.json"))) if s["params"]["controller"] == "abs")
    for i, word in enumerate(words): save_result(hostile(base, word, i), folder)
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def test_no_html_is_made_by_hand():
    "Only `core.text` puts an element together: elsewhere no text with a tag in it is filled in or added to."
    for path in sorted((ROOT/"abs_lab").rglob("*.py")):
        if path.name in ("text.py", "traces.py"): continue  # a still picture is an image, in which nothing is executed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)) else []
            made = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str) and re.search(r"</?[a-z][a-z0-9]*[\s>/]", p.value)]
            if isinstance(node, ast.JoinedStr) and not any(isinstance(p, ast.FormattedValue) for p in parts): made = []
            assert not made, f"{path}, line {node.lineno}: {made}"


def test_no_page_writes_its_tables_by_hand():
    "Only `pages.tables`, which escapes, leaves numbers beside a page."
    for path in sorted((ROOT/"nbs"/"figures").glob("*.ipynb")): assert not re.search(r"to_csv|to_markdown|write_text|write_bytes|open\(", "".join(s for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code" for s in c["source"])), path


@pytest.mark.parametrize("word", HOSTILE, ids=lambda w: ascii(w)[:24])
def test_a_word_is_text_everywhere(word):
    said = escaped(word)
    assert not re.search(r"<|\$|%\{|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said) and escaped(said) == said
    assert not re.search(r"<|\n|(?<!\\)\||(?<!\\)`|\]\(|\w://|\$", in_markdown(word)) and not re.match(r"[=+\-@\t\r]", in_csv(word))


@pytest.mark.parametrize("words", [[*PRINTABLE[:9:2], "=1+1"], pytest.param(PRINTABLE, marks=pytest.mark.long)], ids=["some", "all"])
@needs_chromium
def test_reports_show_words_as_words(browser, tmp_path, monkeypatch, words):
    monkeypatch.setattr(pages, "static", lambda *_, **__: None)
    runs = planted(tmp_path/"reports"/"quick"/"data", words)
    arms = [run["params"]["arm"] for run in runs]
    for run_ in runs: run_["params"]["env_id"] = runs[0]["params"]["env_id"]  # of one task
    path = pages.study("quick", runs, str(tmp_path/"reports"/"quick"), [(word, arms[0], other) for word, other in zip(arms, arms[1:])], {arms[0]: arms[:2]}, notes=words[0], missing=arms, allow_mixed_commits=True)
    page, asked = opened(browser, path)
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length > 3")
    for plot in page.locator(".js-plotly-plot").all()[:3]:
        plot.scroll_into_view_if_needed()
        plot.hover()
    assert page.evaluate(SEEN) == QUIET and asked == []
    text, legends = page.locator("body").inner_text(), page.locator(".legendtext").all_text_contents()
    assert all(arm in text for arm in arms if "  " not in arm) and any(arm in legends for arm in arms if "<" in arm), legends
    table = list(csv.reader((path.parent/"results.csv").open(encoding="utf-8", newline="")))
    assert not [cell for row in table for cell in row if re.match(r"[=+@]", cell) or re.match(r"-\D", cell)]
    assert not re.search(r"<[a-z/]|\]\(", (path.parent/"compare.md").read_text(encoding="utf-8"))
    page.close()


def widgets(root):
    "Every widget below one."
    yield root
    for child in getattr(root, "children", ()): yield from widgets(child)


def shown(widget):
    "What a widget shows as HTML, and the labels of its figures as Plotly would read them."
    for w in widgets(widget):
        if isinstance(w, (W.HTML, W.HTMLMath)): yield w.value
        elif hasattr(w, "layout") and hasattr(w, "data") and hasattr(w, "to_dict"): yield from (s for s in re.findall(r'"(?:[^"\\]|\\.)*"', json.dumps(w.to_dict(), default=str)) if "<" in s)


@pytest.fixture
def folders(tmp_path):
    "A runs folder and a report that are hostile."
    words = ["<img src=x onerror=hit()>", "<a href='javascript:hit()'>here<br>"]
    planted(tmp_path/"reports"/"quick"/"data", words)
    config = configure(env_id="CartPole-v1", total_steps=1_000, num_envs=16, interval=1, eval_envs=1)
    run(config, tmp_path/"run")
    for word in words:
        dir = tmp_path/"runs"/"live"/f"{config.id} {word.replace('/', ' ')}"
        shutil.copytree(tmp_path/"run", dir)
        found = json.loads((dir/"config.json").read_text())
        found.pop("seal", None)
        found["config"] |= {word: word, "preset": word}
        found["config"]["controller"] = found["kinds"]["controller"]["name"] = f"elsewhere:{word}"
        found["kinds"]["meter"]["signal"], found["kinds"]["agent"]["metrics"]["loss"], found["kinds"]["agent"]["size"] = [word, word], [word, word], [word, word]
        for kind in found["kinds"].values(): kind["parameters"] = dict.fromkeys(kind["parameters"], word)
        write_json(dir/"config.json", found)
    return sorted((tmp_path/"runs"/"live").iterdir())


@needs_chromium
def test_the_dashboard_shows_words_as_words(browser, folders):
    "Every tab, without a server: all HTML of its widgets on one page."
    board, choice, what, page = Dashboard(Session.open(folders[0])), RunBrowser(), WhatIf(folders[0]), Page()
    board.add(Session.open(folders[1]))
    board.tick()
    board.say("<img src=x onerror=hit()>", True, "<script>hit()</script>")
    parts = []
    for view in ("Live", "Diagnostics"):
        board.view.value = view
        parts += shown(board.widget)
    for pair in ([0, 1], [2, 3], [0, 3]):
        choice.table.selected = pair
        assert "<table>" in choice.difference.value and "&lt;" in choice.difference.value
        parts += shown(choice.widget)
    choice.baseline.value = choice.records[0]
    assert not re.search(r'(^|,)"?[=+@]', choice.csv(), re.M)
    parts += [*shown(choice.widget), *shown(what.widget), *shown(page.widget)]
    assert parts and any("&lt;img" in part for part in parts)
    seen, asked = opened(browser, html="\n".join(part for part in parts if "onerror" in part or "href" in part or "hit" in part))
    assert seen.evaluate(SEEN) == QUIET and asked == []
    seen.close()


@needs_chromium
@pytest.mark.long
def test_every_tab_in_the_real_page(browser, folders, tmp_path):
    "Voilà: the form, the runs, what if, and a run that is opened."
    from test_dashboard import Lab, served
    (tmp_path/"serve.py").write_text("import sys; from abs_lab.cli import main; sys.exit(main(['dashboard', '--no-browser', *sys.argv[1:]]))")
    with served("serve", cwd=tmp_path, ABS_LAB_RUNS_DIR=str(tmp_path/"runs"), ABS_LAB_REPORTS_DIR=str(tmp_path/"reports")) as url:
        lab = Lab(browser)
        lab.page.add_init_script(WATCH)
        lab.page.goto(url)
        lab.page.get_by_role("button", name="Open", exact=True).wait_for()
        lab.press("Runs")
        table = lab.page.locator(".abs-lab-table").first
        table.locator("tbody tr").nth(3).wait_for()
        for i in range(4):
            table.locator("tbody tr").nth(i).click()
            if i: lab.page.get_by_text("differs" if i == 1 else "onerror").first.wait_for()
        lab.until(lambda: lab.curve(0)[0], "curves")
        assert lab.page.evaluate(SEEN) == QUIET
        lab.press("What if")
        lab.until(lambda: lab.page.get_by_text("Open loop").count(), "the what-if view")
        assert lab.page.evaluate(SEEN) == QUIET
        lab.press("Train")
        lab.page.locator("select").filter(has_text="finished").first.select_option(index=1)
        lab.press("Open")
        lab.page.locator(".chip").first.wait_for()
        for view in ("Diagnostics", "Live"): lab.press(view); lab.page.wait_for_timeout(2_000)
        assert lab.page.evaluate(SEEN) == QUIET
        lab.page.close()
