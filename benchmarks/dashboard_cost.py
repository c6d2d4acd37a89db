"""What the dashboard costs: until its first form is there, and while an agent trains.

    python benchmarks/dashboard_cost.py     three minutes; needs the extra `dev`, and a Chromium

`abs-lab dashboard` is opened in Chromium, a run is created, and seconds are taken and bytes counted until the form is there, and from the click to a drawn board.
In the real JupyterLab a session then trains PQN on LunarLander and its dashboard is looked at. In each round the processor's seconds of all threads of the kernel but those that
train (and EnvPool's, which are not Python's) are set against those of the whole process; then a slider is moved with the keyboard, and the time is taken until
its line has moved on the page, the driver's own way there and back included. Nothing is asserted about speed.
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests"), str(ROOT/"benchmarks")]

from playwright.sync_api import sync_playwright

from abs_lab.runs.provenance import provenance
from pqn_speed import spread
from test_dashboard import CELLS, CHROMIUM, HIGH, MEAN, opened, run_cell, serving

ROUNDS, SECONDS = 5, 10
COST = f"""import json, threading, time
def clock(): return {{t: time.clock_gettime(time.pthread_getcpuclockid(t.ident)) for t in threading.enumerate()}}
def cost():
    for i in range({ROUNDS}):
        before, whole = clock(), time.process_time()
        time.sleep({SECONDS})
        ours = sum(seconds - before.get(t, 0) for t, seconds in clock().items() if not t.name.startswith("session"))
        with open("cost.jsonl", "a") as f: f.write(json.dumps([ours, time.process_time() - whole]) + "\\n")
threading.Thread(target=cost).start()"""


def slider(lab):
    "Seconds from a key on the slider to its line on the page."
    before, handle = lab.line(HIGH)[1], lab.page.locator(".abs-lab .high .noUi-handle").first
    handle.focus()
    began = time.perf_counter()
    handle.press("ArrowLeft")
    lab.until(lambda: lab.line(HIGH)[1] != before, "the line to follow its slider")
    return time.perf_counter() - began


def first_form(browser, folder):
    "Seconds and megabytes until the form is there, and from a click on Create to a board that is drawn."
    with serving(folder) as link:
        page, carried = browser.new_context().new_page(), {"files": 0, "messages": 0, "largest message": 0}
        page.set_default_timeout(120_000)
        wire = page.context.new_cdp_session(page)
        def file(e): carried["files"] += e["encodedDataLength"]
        def message(e):
            size = len(e["response"]["payloadData"]) * (3 / 4 if e["response"]["opcode"] == 2 else 1)
            carried["messages"], carried["largest message"] = carried["messages"] + size, max(carried["largest message"], size)
        wire.on("Network.loadingFinished", file)
        wire.on("Network.webSocketFrameReceived", message)
        wire.send("Network.enable")
        began = time.perf_counter()
        page.goto(link, wait_until="commit")
        page.get_by_role("button", name="Create", exact=True).wait_for()
        form = time.perf_counter()
        page.get_by_role("button", name="Create", exact=True).click()
        page.locator(".chip.ready").wait_for()
        page.locator(".abs-lab canvas").first.wait_for()
        return dict(seconds_to_form=form - began, seconds_from_create_to_board=time.perf_counter() - form, megabytes={kind: size / 1e6 for kind, size in carried.items()})


def main():
    load = os.getloadavg()[0]
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        (page := Path(folder)/"page").mkdir()
        first = first_form(browser, page)
        with opened(browser, Path(folder), [CELLS[0], COST]) as lab:
            run_cell(lab, 0)
            lab.press("Start")
            lab.until(lambda: len(lab.curve(MEAN)[0]) > 25, "curves that grow")
            run_cell(lab, 1)
            lab.page.evaluate("() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0; }")
            file = lab.folder/"nbs"/"cost.jsonl"
            read = lambda: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
            while len(rounds := read()) < ROUNDS: time.sleep(1)
            moves = [slider(lab) for _ in range(ROUNDS)]
            lab.press("Stop")
            lab.state("stopped")
        browser.close()
    origin = provenance()
    out = dict(hardware=origin["hardware"], versions=origin["versions"], commit=origin["commit"], load_average_before=load, seconds_per_round=SECONDS, first=first,
               dashboard_share_of_process=spread([ours / whole for ours, whole in rounds]), slider_to_plot_seconds=spread(moves))
    text = json.dumps(out, indent=1) + "\n"
    (ROOT/"benchmarks"/"results"/"dashboard_cost.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__": main()
