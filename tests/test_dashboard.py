"""The dashboard as a person meets it: the real JupyterLab, and Voilà, in Chromium driven by playwright.

ABS_LAB_SHOTS=DIR keeps screenshots of the finished page (ABS_LAB_THEME=dark: in the dark theme)."""
import importlib.util, json, os, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from abs_lab.runs.runner import set_events
from abs_lab.runs.traces import HIGH, LOW
from support import CHROMIUM, ROOT, environment, rows

for package in ("playwright", "jupyterlab", "anywidget", "voila"):
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed", allow_module_level=True)
if not CHROMIUM: pytest.skip("there is no Chromium on the PATH", allow_module_level=True)

PATIENCE = 120  # seconds that a busy machine may take for what is at once elsewhere
CELLS = ["""from abs_lab.runs.config import configure
from abs_lab.live.board import Dashboard
from abs_lab.runs.session import Session
session = Session(configure(env_id="LunarLander-v3", total_steps=20_000_000, interval=1))
Dashboard(session)""", "Dashboard(session)", "Dashboard(Session.open(session.dir))", "from abs_lab.live.browser import RunBrowser\nfrom abs_lab.live.what_if import WhatIf\nWhatIf(session.dir)", "RunBrowser()"]


def notebook(path, cells):
    code = lambda i, source: dict(cell_type="code", id=f"cell{i}", execution_count=None, metadata={}, outputs=[], source=source)
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    path.write_text(json.dumps(dict(cells=[code(i, c) for i, c in enumerate(cells)], metadata=kernel, nbformat=4, nbformat_minor=5)))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def served(*command, cwd, **settings):
    "A server, once it answers. It is ended as a service is, and leaves no process behind."
    port = free_port()
    with open(Path(cwd)/"server.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", *command[:1], f"--port={port}", *command[1:]], cwd=cwd, env=environment(checkpoint_seconds=5) | settings, stdout=log, stderr=log)
        try:
            until = time.monotonic() + PATIENCE
            while True:
                with socket.socket() as s:
                    if not s.connect_ex(("127.0.0.1", port)): break
                assert process.poll() is None and time.monotonic() < until, (Path(cwd)/"server.log").read_text()[-2000:]
                time.sleep(0.1)
            while command[0] == "serve" and "?token=" not in (said := (Path(cwd)/"server.log").read_text()): time.sleep(0.1)
            yield said[said.index("http://"):].split()[0] if command[0] == "serve" else f"http://127.0.0.1:{port}"
        finally:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            process.terminate()
            left = psutil.wait_procs(family, PATIENCE / 2)[1]
            names = [p.name() for p in left if p.is_running()]
            for p in left: p.kill()
            process.wait()
    assert not names, f"left behind: {names}"


def serving(folder):
    "`abs-lab dashboard` with runs of its own."
    (folder/"serve.py").write_text("import sys; from abs_lab.cli import main; sys.exit(main(['dashboard', '--no-browser', *sys.argv[1:]]))")
    return served("serve", "--theme=" + os.environ.get("ABS_LAB_THEME", "light"), cwd=folder, ABS_LAB_RUNS_DIR=str(folder/"runs"))


class Lab:
    "A page, with the words in which the tests speak of it."
    def __init__(self, browser):
        self.browser = browser
        self.new_page()

    def new_page(self, slow=False, context=None):
        self.page = (context or self.browser.new_context(viewport=dict(width=1280, height=800))).new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        if slow: self.page.add_init_script("const after = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = ms => after(ms === 2000 ? 1 : ms);")  # anywidget's patience

    def open_notebook(self, address):
        self.page.goto(address)
        self.page.locator(".jp-CodeCell").first.wait_for()
        self.page.locator(".jp-NotebookPanel .jp-Toolbar-kernelName", has_text="Python 3").wait_for()  # until then JupyterLab asks which kernel is meant when a cell is run

    def press(self, name, board=0): self.page.locator(".abs-lab").nth(board).get_by_role("button", name=name, exact=True).click()

    def state(self, state, board=0):
        self.until(lambda: self.page.locator(".abs-lab").nth(board).locator(f".chip.{state}").count(), f"a session that is {state}")

    def curve(self, i, board=0):
        "The i-th curve of a board's first figure."
        return self.page.evaluate("""([board, i]) => { const c = document.querySelectorAll(".abs-lab")[board]?.querySelector(".abs-lab-figure")?.curves[i];
            return c ? [Array.from(c.x), Array.from(c.y)] : [[], []]; }""", [board, i])

    def until(self, what, why):
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            if time.monotonic() > end:
                self.shot("failed")
                raise AssertionError(f"waited in vain for {why}; the page says: {self.page.locator('body').inner_text()[-1500:]}")
            time.sleep(0.1)
        return found

    def line(self, colour):
        "Where a threshold's line is on the screen: x and y of a place on it, and the height of the panel."
        return self.until(lambda: self.page.evaluate("""c => { const line = [...document.querySelectorAll(".abs-lab .abs-lab-line:not([hidden])")].find(l => l.dataset.colour === c);
            if (!line) return null; const r = line.getBoundingClientRect(), u = line.parentNode.getBoundingClientRect();
            return r.width ? [r.x + r.width * .4, r.y + r.height / 2, u.height, line.closest(".abs-lab-figure").ranges[0][1]] : null; }""", colour), "the line of a threshold")

    def drag(self, colour, to, now):
        "Drag a threshold's line from one value to another."
        x, y, height, top = self.line(colour)
        mouse = self.page.mouse
        mouse.move(x, y); mouse.down()
        mouse.move(x, y - (to - now) / 2 * height / top, steps=3); mouse.move(x, y - (to - now) * height / top, steps=3); mouse.up()

    def shot(self, name):
        folder = os.environ.get("ABS_LAB_SHOTS")
        if folder: self.page.screenshot(path=Path(folder)/f"{name}-{os.environ.get('ABS_LAB_THEME', 'light')}.png")


SIGNAL, MEAN, SIZE = 4, 5, 7  # places among the curves of the main figure


@contextmanager
def opened(browser, folder, cells):
    "A notebook of some cells in the real JupyterLab."
    settings = folder/"settings"/"@jupyterlab"/"apputils-extension"
    settings.mkdir(parents=True)
    (settings/"notification.jupyterlab-settings").write_text(json.dumps(dict(fetchNews="false", checkForUpdates=False)))
    (settings/"themes.jupyterlab-settings").write_text(json.dumps(dict(theme=f"JupyterLab {os.environ.get('ABS_LAB_THEME', 'light').title()}")))
    (folder/"runs").mkdir(); (folder/"nbs").mkdir()
    notebook(folder/"nbs"/"live.ipynb", cells)
    with served("jupyterlab", "--no-browser", "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.allow_root=True", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder/'nbs'}",
                cwd=folder, ABS_LAB_RUNS_DIR=str(folder/"runs"), ABS_LAB_REPORTS_DIR=str(folder/"reports"), JUPYTERLAB_SETTINGS_DIR=str(folder/"settings")) as url:
        lab = Lab(browser)
        lab.folder, lab.runs, lab.address = folder, folder/"runs"/"live", f"{url}/lab/tree/live.ipynb"
        lab.open_notebook(f"{lab.address}?reset")
        lab.page.keyboard.press("Control+B")
        yield lab


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    with opened(browser, tmp_path_factory.mktemp("lab"), CELLS) as lab: yield lab


def run_cell(lab, i):
    cell = lab.page.locator(".jp-CodeCell").nth(i)
    def begun():  # a cell that is run before its kernel is there is not run at all, or JupyterLab asks which kernel is meant
        if (asked := lab.page.locator(".jp-Dialog .jp-mod-accept")).count(): asked.click()
        cell.locator(".jp-InputArea-editor").click()
        lab.page.keyboard.press("Control+Enter")
        time.sleep(1)
        return cell.locator(".jp-InputPrompt").first.inner_text().strip("[]: ")
    lab.until(begun, "a cell to run")


def test_a_person_tunes_a_run(lab):
    run_cell(lab, 0)
    lab.state("ready")
    lab.press("Start")
    lab.state("running")
    lab.until(lambda: len(lab.curve(MEAN)[0]) > 25, "curves that grow")
    lab.page.evaluate("() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0; }")

    # both thresholds are moved, and the batch size answers
    run, = lab.runs.iterdir()
    lab.drag(LOW, 0.6, 0.05)
    lab.until(lambda: any(c.get("low", 0) > 0.4 for _, c in set_events(run)), "the move of the low threshold in the log")
    lab.until(lambda: lab.curve(SIZE)[1][-1] >= 44, "the size to grow: the policy counts as settled now")
    high = 0.95
    lab.drag(HIGH, 0.1, high)
    lab.until(lambda: any(c.get("high", 1) < 0.3 for _, c in set_events(run)), "the move of the high threshold in the log")
    last = {k: v for _, c in set_events(run) for k, v in c.items()}
    assert last["low"] < last["high"] < 0.3                           # the high one pushed the low one
    lab.until(lambda: lab.curve(SIZE)[1][-1] <= 24, "the size to fall: the policy counts as moving now")
    lab.shot("live")

    # a slider moves its line at once, while training goes on
    before = lab.line(HIGH)[1]
    handle = lab.page.locator(".abs-lab .high .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    lab.until(lambda: lab.line(HIGH)[1] != before, "the line to follow its slider")

    # pause, and go on
    lab.press("Pause")
    lab.state("paused")
    updates = len(rows(run))
    time.sleep(1)
    assert len(rows(run)) == updates and lab.curve(SIZE)[0][-1] == rows(run)[-1]["step"]
    lab.press("Resume")
    lab.state("running")
    lab.until(lambda: len(rows(run)) > updates + 3, "training to go on")

    forked(lab, run)


def forked(lab, run):
    "A fork of the run that trains, beside it; both stand still in the end."
    lab.press("Fork")
    lab.until(lambda: len([d for d in lab.runs.iterdir() if d.name.endswith("-fork")]) == 1, "the fork's folder")
    lab.state("stopped")
    lab.press("Start")
    fork, = [d for d in lab.runs.iterdir() if d.name.endswith("-fork")]
    at = len(rows(fork))
    lab.until(lambda: len(rows(fork)) > at + 3 and len(lab.curve(7 + SIZE)[0]) > 10, "the fork's curve")
    lab.shot("fork")
    lab.press("Stop")
    lab.state("stopped")
    lab.press(run.name.removeprefix("LunarLander-v3-"))
    lab.state("running")
    lab.press("Stop")
    lab.state("stopped")


@pytest.fixture(scope="module")
def tuned(lab):
    "A page with a run and its fork, also where the test that tunes them was not chosen."
    if not [*lab.runs.glob("*-fork")]:
        assert not [*lab.runs.glob("*")], "the test that makes the fork has failed"
        run_cell(lab, 0)
        lab.state("ready")
        lab.press("Start")
        lab.state("running")
        lab.until(lambda: len(lab.curve(MEAN)[0]) > 25, "curves that grow")
        forked(lab, next(lab.runs.iterdir()))
    return lab


@pytest.mark.long
def test_the_other_views(tuned):
    lab = tuned
    lab.press("Start")
    lab.state("running")
    lab.press("Diagnostics")
    lab.until(lambda: len(lab.curve(0)[0]) > 20, "diagnostics")
    lab.shot("diagnostics")
    lab.press("Watch")
    lab.page.get_by_text("greedy policy at step").first.wait_for()
    assert lab.page.locator(".abs-lab-clip canvas").first.evaluate("c => c.width") == 300
    lab.shot("watch")
    lab.press("Live")
    seen = lab.until(lambda: lab.curve(SIZE)[0], "the curves")
    lab.until(lambda: lab.curve(SIZE)[0][-1] > seen[-1], "curves that go on growing where other views have been")
    lab.press("Diagnostics")
    seen = lab.until(lambda: lab.curve(0)[0], "diagnostics")
    lab.until(lambda: lab.curve(0)[0][-1] > seen[-1], "diagnostics that go on growing")
    lab.press("Live")


@pytest.mark.long
def test_a_tab_that_is_closed_and_opened_again(tuned):
    "The kernel goes on, and so does training. The page that is opened anew shows it, and its widgets live."
    lab = tuned
    lab.page.keyboard.press("Control+S")
    saved = lab.folder/"nbs"/"live.ipynb"
    lab.until(lambda: "abs-lab-still" in saved.read_text() and "data:image/svg+xml" in saved.read_text(), "the still picture in the saved notebook")
    run = next(d for d in lab.runs.iterdir() if not d.name.endswith("-fork"))
    before, sets = len(rows(run)), len(set_events(run))
    lab.page.close()
    lab.until(lambda: len(rows(run)) > before, "training to go on without a page")
    lab.new_page(slow=True)  # its scripts are there too late, as on a busy machine
    lab.open_notebook(lab.address)

    # the board in the saved notebook: its curves go on, its buttons and its sliders work
    lab.page.locator(".abs-lab .u-over").first.wait_for()  # drawn, as for a person who then clicks
    lab.press(run.name.removeprefix("LunarLander-v3-"))  # of the two runs, the one that trains
    lab.state("running")
    lab.until(lambda: len((curve := lab.curve(SIZE))[0]) > 20 and len(curve[0]) == len(curve[1]), "the curves")
    end = lab.curve(SIZE)[0][-1]
    lab.until(lambda: lab.curve(SIZE)[0][-1] > end, "a curve that grows")
    assert len(lab.curve(7 + SIZE)[0]) > 10  # the fork's, too
    lab.press("Pause")
    lab.state("paused")
    lab.page.locator(".abs-lab .high .noUi-handle").first.press("ArrowRight")
    lab.press("Resume")
    lab.until(lambda: len(set_events(run)) == sets + 1, "a slider's move in the log")
    lab.shot("reopened")

    # and the same line shows it again
    run_cell(lab, 1)
    lab.state("running", 1)
    lab.until(lambda: len(lab.curve(SIZE, 1)[0]) > 20, "the curves")
    lab.press("Stop", 1)
    lab.state("stopped", 1)
    lab.state("stopped")


def test_reopened_from_disk_what_if_and_the_browser(tuned):
    lab = tuned
    run = next(d for d in lab.runs.iterdir() if not d.name.endswith("-fork"))
    board = lab.page.locator(".abs-lab").count()  # of the next cell
    what, table = board + 1, board + 2
    for i in (2, 3, 4): run_cell(lab, i)
    lab.until(lambda: lab.curve(SIZE, board)[0] and lab.curve(SIZE, board)[0][-1] == rows(run)[-1]["step"], "the recorded curves")
    lab.until(lambda: lab.curve(3, what)[0], "the what-if schedule")
    before = lab.curve(3, what)[1]
    handle = lab.page.locator(".abs-lab").nth(what).locator(".low .noUi-handle")
    handle.focus()
    handle.press("End")
    lab.until(lambda: lab.curve(3, what)[1] != before, "another schedule")
    assert lab.page.get_by_text("Open loop").count() and lab.curve(2, what)[1] != lab.curve(3, what)[1]
    lab.page.locator(".abs-lab").nth(what).scroll_into_view_if_needed()
    lab.shot("what-if")
    lab.press("Suggest thresholds", what)
    seen = lab.curve(3, what)[1]
    lab.page.locator(".abs-lab").nth(what).get_by_role("button", name="Use").last.click()
    lab.until(lambda: lab.curve(3, what)[1] != seen, "the schedule of the suggested thresholds")
    lab.shot("suggested")
    rows_of = lab.page.locator(".abs-lab-table").first
    for i in (0, 1):
        rows_of.locator("tbody tr").nth(i).click()
        lab.until(lambda n=i + 1: rows_of.locator("tbody tr.on").count() == n, "a chosen row")
    lab.until(lambda: len(lab.curve(0, table)[0]) > 5 and len(lab.curve(1, table)[0]) > 5, "two runs overlaid")
    lab.page.get_by_text("differs").wait_for()
    with lab.page.expect_download() as given: lab.press("CSV", table)
    with lab.page.expect_download() as picture: lab.press("PNG", table)
    assert Path(picture.value.path()).read_bytes()[:4] == b"\x89PNG"
    assert Path(given.value.path()).read_text().startswith("curve,step,return\n")
    lab.page.locator(".abs-lab").nth(table).scroll_into_view_if_needed()
    lab.shot("browser")


def test_rows_are_chosen_one_by_one_in_a_range_all_and_none(browser):
    "The table's script, with a model that answers as a kernel does."
    from abs_lab.live.widgets import Table
    page = browser.new_page()
    page.set_content("<div id='table'></div>")
    page.evaluate("""async script => {
        const state = {columns: ["n", "name"], rows: [3, 1, 2, 5, 4].map(n => [n, "run " + n]), selected: []}, heard = {};
        const model = {get: n => state[n], set: (n, v) => { state[n] = v; (heard["change:" + n] ?? []).forEach(f => f()); }, save_changes: () => {}, on: (n, f) => (heard[n] ??= []).push(f)};
        window.state = state;
        (await import(URL.createObjectURL(new Blob([script], {type: "text/javascript"})))).default.render({model, el: document.getElementById("table")}); }""", Table._esm if isinstance(Table._esm, str) else str(Table._esm))
    chosen = lambda: page.evaluate("state.selected.map(i => state.rows[i][0]).sort()")
    row = lambda n: page.locator("tbody tr", has_text=f"run {n}")
    page.locator("th").first.click()                                # sorted: 1 to 5
    row(2).click(); row(4).click(modifiers=["Shift"])
    assert chosen() == [2, 3, 4] and page.get_by_text("5 of 5 shown, 3 chosen").count()
    row(3).click()
    assert chosen() == [2, 4]
    page.get_by_role("button", name="clear").click()
    page.locator("input").fill("run 5")
    page.get_by_role("button", name="select all shown").click()
    assert chosen() == [5]
    page.locator("input").fill("")
    row(1).click(modifiers=["Shift"])                               # the last click was on 3
    assert chosen() == [1, 2, 3, 5]

    # by the keyboard alone
    head = page.locator("th").nth(1)
    head.focus(); head.press("Enter"); page.keyboard.press("Enter")  # the head keeps the focus
    assert head.get_attribute("aria-sort") == "descending" and page.locator("tbody tr").first.inner_text().startswith("5")
    page.keyboard.press("Tab"); page.keyboard.press("Space")
    assert chosen() == [1, 2, 3] and page.locator("tbody tr").first.get_attribute("aria-selected") == "false"
    page.close()


OF_ONES_OWN = """from dataclasses import dataclass
from abs_lab import Controller, dashboard, register

@register
@dataclass
class Halving(Controller):
    "Add while the policy is settled, halve when it has moved."
    size_min: int = 32  # smallest size, and the first
    size_max: int = 64  # largest size
    limit: float = 0.2  # signal above which the policy counts as moved

    def __post_init__(self): self.size = self.size_min

    def observe(self, m):
        if m.signal is not None: self.size = self.size + 4 if m.signal <= self.limit else self.size // 2
        self.fit()

dashboard()"""


@pytest.mark.long
def test_an_agent_and_a_meter_of_modules_and_a_controller_of_a_cell(browser, tmp_path):
    "Each has its fields in the form, sliders while it trains, and its metrics as panels, from its dataclass alone."
    with opened(browser, tmp_path, [OF_ONES_OWN]) as lab:
        for name in ("own_agents", "own_rules"): (tmp_path/"nbs"/f"{name}.py").write_text((ROOT/"tests"/f"{name}.py").read_text())
        run_cell(lab, 0)
        field = lambda name: lab.page.locator(".abs-lab").get_by_label(name, exact=True)
        field("add").wait_for()
        for name, party in (("own_agents:Reinforce", "agent"), ("own_rules:WeightMove", "meter")):
            field("add").fill(name)
            field("add").press("Enter")
            lab.until(lambda n=name, p=party: field(p).evaluate("s => s.selectedOptions[0].textContent") == n, f"{name} to be chosen")
        field("controller").select_option("halving")
        field("total_steps").fill("2000000")
        field("total_steps").press("Enter")
        field("limit").first.wait_for(state="attached")  # the form is made anew after each choice
        for section, name in (("controller", "limit"), ("agent", "width"), ("meter", "interval")):
            lab.page.locator(".abs-lab .jupyter-widget-Collapse-header", has_text=section).click()
            field(name).first.wait_for()
        lab.shot("own-form")
        lab.press("Create")
        lab.state("ready")
        lab.press("Start")
        lab.state("running")
        lab.until(lambda: len(lab.curve(SIGNAL)[0]) > 3, "measurements of a meter of one's own")
        panel = lambda title: lab.page.locator(f".abs-lab [role=img][aria-label*='{title}']").first
        panel("weight movement").wait_for()
        handle = lab.page.locator(".abs-lab .widget-hslider", has_text="limit").locator(".noUi-handle").last
        handle.focus()
        handle.press("ArrowRight")
        run, = lab.runs.iterdir()
        lab.until(lambda: any("limit" in changes for _, changes in set_events(run)), "a slider's move in the log")
        lab.press("Diagnostics")
        for label in ("policy loss", "entropy (nats)"): panel(label).wait_for()
        lab.shot("own-diagnostics")
        lab.press("Stop")
        lab.state("stopped")


def test_without_a_notebook(browser, tmp_path):
    "`abs-lab dashboard`: runs to begin with, a form, a run, its curves; the run goes on when the page is closed, and the next page finds it, follows it and stops it."
    with serving(tmp_path) as link:
        page, asked = Lab(browser), []
        page.page.on("request", lambda request: asked.append(request.url))
        page.page.goto(link, wait_until="commit")
        page.page.get_by_role("button", name="Create", exact=True).wait_for()
        assert "token" not in page.page.url
        page.shot("form")
        page.press("Create")
        page.page.get_by_text("creating").wait_for()
        page.state("ready")
        page.press("‹ another run")
        page.page.get_by_role("button", name="Train", exact=True).nth(1).click()  # the first of those to begin with; before it the tab
        page.state("running")
        page.until(lambda: len(page.curve(MEAN)[0]) > 3, "curves that grow")
        page.shot("voila")
        assert not [url for url in asked if not url.startswith((link.split("?")[0], "data:", "blob:"))]
        context = page.page.context
        page.page.close(run_before_unload=True)

        run, = (tmp_path/"runs"/"live").iterdir()
        page.new_page(context=context)
        page.page.goto(link, wait_until="commit")
        page.page.locator("option", has_text="running in process").first.wait_for(state="attached")
        before = len(rows(run))
        page.press("Open")
        page.state("running")
        page.page.get_by_text("in process").first.wait_for()
        page.until(lambda: len(rows(run)) > before + 3 and len(page.curve(MEAN)[0]) > 3, "training to go on in the kernel of the page that was closed")
        page.shot("followed")
        page.press("Pause")
        page.state("paused")
        page.press("Stop")
        page.state("stopped")
        page.page.close()


READ = """() => {
    const numbers = c => { const ink = document.createElement("canvas").getContext("2d", {willReadFrequently: true}); ink.fillStyle = c; ink.fillRect(0, 0, 1, 1); const d = ink.getImageData(0, 0, 1, 1).data; return [...d].map(v => v / 255); };
    const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
    const bright = c => c.slice(0, 3).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const contrast = (a, b) => { const [x, y] = [bright(a), bright(b)].sort((x, y) => y - x); return (x + 0.05) / (y + 0.05); };
    const behind = e => { const layers = []; for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); layers.push(c); if (c[3] === 1) break; } return layers.reverse().reduce((below, c) => over(c, below), [1, 1, 1]); };
    const seen = e => e.offsetParent !== null && e.getBoundingClientRect().width > 0;
    const root = document.querySelector(".abs-lab"), faint = [], nameless = [];
    for (const e of root.querySelectorAll("*")) {
        if (!seen(e) || e.disabled || e.closest("[disabled], option, .jupyter-widgets-disconnected")) continue;
        const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (text) { const paper = behind(e), found = contrast(over(numbers(getComputedStyle(e).color), paper), paper); if (found < 4.5) faint.push(`${found.toFixed(2)} ${e.className} ${e.textContent.trim().slice(0, 30)}`); }
        if (e.matches("button, input, select, [role=slider], [role=button], [role=textbox], [role=img], th")) {
            const label = e.id && document.querySelector(`label[for="${e.id}"]`), name = e.getAttribute("aria-label") || label?.textContent || e.closest("label")?.textContent || (e.matches("select, input") ? "" : e.textContent) || e.title || e.placeholder || "";
            if (!name.trim()) nameless.push(e.outerHTML.slice(0, 160));
        }
    }
    const paper = behind(root), drawn = [...document.querySelectorAll(".abs-lab-figure")].flatMap(f => f.curves).filter(c => c.legend).map(c => [c.name, c.kind, contrast(over(numbers(c.colour), paper), paper)]);
    return {faint, nameless, drawn}; }"""

FITS = """() => {
        const box = s => document.querySelector(s).getBoundingClientRect(), [figure, legend] = [box(".abs-lab-figure"), box(".abs-lab-legend")], canvas = box(".abs-lab-panel canvas");
        const cut = [...document.querySelectorAll(".widget-readout, .abs-lab-legend .name")].filter(e => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > innerWidth).map(e => e.textContent);
        const bars = [...document.querySelectorAll(".toolbar")].map(e => e.getBoundingClientRect()), apart = bars.every(b => b.bottom <= legend.top + 1 || b.top >= legend.bottom - 1 || b.right <= legend.left || b.left >= legend.right);
        return {cut, apart, wide: figure.right / innerWidth, high: figure.bottom / innerHeight, drawn: Math.abs(canvas.width - figure.width) < 2, inside: document.documentElement.scrollWidth <= innerWidth}; }"""


def ppo_run(folder):
    "A short run of PPO whose limits have four digits."
    from abs_lab.runs.config import configure
    from abs_lab.runs.runner import run
    config = configure("ppo", env_id="CartPole-v1", num_envs=16, total_steps=40_000, size_min=512, size_max=2048, interval=1, eval_envs=2)
    run(config, folder/"runs"/"live"/config.id)
    return config


@pytest.mark.long
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_for_every_window_eye_ear_and_hand(browser, tmp_path, monkeypatch, theme):
    "From a telephone's width to a large screen nothing is cut or lies on another thing; text has the contrast of WCAG AA; all that is used has a name; the keyboard pauses, steps and forks."
    monkeypatch.setenv("ABS_LAB_THEME", theme)
    config = ppo_run(tmp_path)
    with serving(tmp_path) as link:
        lab = Lab(browser)
        page = lab.page
        page.goto(link, wait_until="commit")
        page.get_by_role("button", name="Open", exact=True).wait_for()
        found = page.evaluate(READ)
        assert not found["faint"] and not found["nameless"]
        lab.press("Open")
        lab.state("finished")
        page.locator(".u-over").first.wait_for()
        lab.until(lambda: page.get_by_role("slider", name="limits, largest").count(), "names of the sliders")
        assert page.get_by_role("slider", name="D low").get_attribute("aria-valuetext") == page.locator(".low .widget-readout").inner_text()
        found = page.evaluate(READ)
        assert not found["faint"] and not found["nameless"]
        assert all(contrast >= 3 if kind in ("line", "steps") else contrast >= 2.2 for _, kind, contrast in found["drawn"] if _ != "limits"), found["drawn"]

        for width, height in ((400, 800), (900, 800), (1200, 800), (1920, 1080)):
            page.set_viewport_size(dict(width=width, height=height))
            lab.until(lambda: (now := page.evaluate(FITS))["drawn"] and now["wide"] > 0.93, "figures as wide as their place")  # the window is wider before the page is
            now = page.evaluate(FITS)
            assert now["cut"] == [] and now["apart"] and now["inside"] and now["wide"] > 0.93 and (width < 1200 or 0.75 < now["high"] < 1), (width, now)
            lab.shot(f"board-{width}")
        assert page.get_by_role("textbox", name="limits, as a number").inner_text() == "512 – 2048"
        lab.press("Diagnostics")
        page.get_by_role("img", name="entropy (nats)").wait_for()
        lab.shot("diagnostics-1920")

        # what is typed into a field is text; elsewhere it is a key
        lab.press("Live")
        page.get_by_label("lr", exact=True).press("f")
        assert len([*(tmp_path/"runs"/"live").iterdir()]) == 1
        page.locator(".abs-lab .title").first.click()
        page.keyboard.press("f")                        # of a finished run: how much longer?
        page.get_by_text("This run is finished").wait_for()
        longer = page.get_by_label("environment steps more")
        longer.fill("2000000")                          # so many that it can be paused
        longer.press("Tab")
        page.get_by_role("button", name="Fork and train").click()
        lab.state("running")
        page.locator(".abs-lab .title").first.click()
        page.keyboard.press("Space")
        lab.state("paused")
        fork, = [d for d in (tmp_path/"runs"/"live").iterdir() if d.name != config.id]
        before = len(rows(fork))
        page.keyboard.press("s")
        lab.until(lambda: len(rows(fork)) == before + 1, "one more update")
        lab.state("paused")
        head = page.locator("[class*='Collapse-header']").first
        head.focus()
        head.press("Enter")
        lab.until(lambda: head.get_attribute("aria-expanded") == "true", "a list that unfolds")

        # a film to a file
        lab.press("Watch")
        page.get_by_text("greedy policy at step").first.wait_for()
        lab.press("Save as GIF")
        page.get_by_text("saved:").wait_for()
        film, = fork.glob("film-*.gif")
        assert film.read_bytes()[:4] == b"GIF8"
        lab.press("Stop")
        lab.state("stopped")

        for tab in ("Runs", "What if"):
            lab.press(tab)
            page.locator(".u-over").first.wait_for()
            found = page.evaluate(READ)
            assert not found["faint"] and not found["nameless"], tab
            lab.shot(tab)
        page.close()
