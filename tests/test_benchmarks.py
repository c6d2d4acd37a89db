"The benchmarks: their reports are what their results say, and every script still runs from end to end."
import json, subprocess, sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent/"benchmarks"
PAGES = dict(overlap="overlap", peers="peers", records="records", startup="startup", where_time_goes="where_time_goes", btr_speed="btr_speed-cpu")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if (FOLDER/"results"/f"{page}.json").exists()])
def test_a_report_is_what_the_results_say(name):
    page = FOLDER/"results"/f"{PAGES[name]}.json"
    made = subprocess.run([sys.executable, "-c", f"import json, sys, {name}; sys.stdout.reconfigure(encoding='utf-8'); print({name}.markdown(json.load(open(sys.argv[1]))), end='')", page],
                          cwd=FOLDER, capture_output=True, encoding="utf-8", check=True).stdout  # a process of its own: some set threads for theirs
    assert made == page.with_suffix(".md").read_text(encoding="utf-8") and not json.loads(page.read_text(encoding="utf-8"))["quick"]


@pytest.mark.long
@pytest.mark.parametrize("words", ["btr_speed.py update loop checkpoint --quick", "gpu.py --device cpu --small", "overlap.py --quick", "pqn_speed.py --quick", "ppo_speed.py --quick",
                                   "records.py --quick", "startup.py --quick", "update_seconds.py --quick", "where_time_goes.py --quick"])
def test_a_script_runs(words, tmp_path):
    name, *flags = words.split()
    if "--out" in (FOLDER/name).read_text(encoding="utf-8"): flags += ["--out", str(tmp_path/"results.json" if name == "btr_speed.py" else tmp_path)]
    done = subprocess.run([sys.executable, FOLDER/name, *flags], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.strip() and "not measured: exit status" not in done.stdout
