"""Make the pictures of the dashboard that the pages show, nbs/images/*.webp: a run on LunarLander, and a fork of it under other thresholds.

    python tools/pictures.py FOLDER     ten minutes; FOLDER keeps the runs, and a second call takes them from there; needs a Chromium
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]

from PIL import Image
from playwright.sync_api import sync_playwright

from abs_lab.runs.config import configure
from abs_lab.runs.session import Session
from test_dashboard import CHROMIUM, opened, run_cell

STEPS, WIDTH = 160_000, 1100  # environment steps of a run; pixels of a picture
CELLS = ["""import os
from pathlib import Path
from abs_lab.live.board import Dashboard
from abs_lab.live.browser import RunBrowser
from abs_lab.live.what_if import WhatIf
from abs_lab.runs.session import Session
os.environ["ABS_LAB_RUNS_DIR"] = str(Path(folder).parent)
first, fork = (Session.open(Path(f"{folder}") / name) for name in ("first", "first-fork"))
board = Dashboard(first)
board.add(fork)
board""", "fork.wait()\nRunBrowser()", "WhatIf(first.dir)"]


def train(folder: Path):
    "The run, and its fork, which has a fifth of its way before it."
    first = Session(configure(env_id="LunarLander-v3", total_steps=STEPS, interval=1), folder/"first")
    first.step(80)
    first.wait()
    fork = first.fork(low=0.15, high=0.6)
    first.resume()
    first.wait()
    fork.step(50)
    fork.wait()
    fork.stop()
    fork.wait()


def main(folder: Path):
    runs = folder/"runs"/"live"
    if not runs.exists(): train(runs)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        (place := folder/"page").mkdir(exist_ok=True)
        with opened(browser, place, [f"folder = {str(runs)!r}\n{CELLS[0]}", *CELLS[1:]]) as lab:
            lab.page.set_viewport_size(dict(width=WIDTH + 160, height=900))
            def picture(i, name):
                part = lab.page.locator(".abs-lab").nth(i)
                part.scroll_into_view_if_needed()
                lab.page.wait_for_timeout(1500)
                part.screenshot(path=folder/f"{name}.png")
                image = Image.open(folder/f"{name}.png").convert("RGB")
                image.resize((WIDTH, round(image.height * WIDTH / image.width))).save(ROOT/"nbs"/"images"/f"{name}.webp", quality=80)
            run_cell(lab, 0)
            lab.page.locator(".u-over").first.wait_for()
            if not (runs/"first-fork"/"result.json").exists():  # in a folder that was used before it is finished
                lab.press("Start")
                lab.state("running")
            picture(0, "dashboard")
            run_cell(lab, 1)
            table = lab.page.locator(".abs-lab-table").first
            for row in (0, 1):
                table.locator("tbody tr").nth(row).click()
                lab.until(lambda n=row + 1: table.locator("tbody tr.on").count() == n, "a chosen row")
            lab.page.get_by_text("differs").wait_for()
            picture(1, "runs")
            run_cell(lab, 2)
            low = lab.page.locator(".abs-lab").nth(2).locator(".low .noUi-handle")
            low.focus()
            for _ in range(25): low.press("ArrowRight")
            picture(2, "what-if")
        browser.close()


if __name__ == "__main__": main(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(__doc__)
