"The table of how closely the agents agree with their authors' code: it is what the results say, and no part of it is silently missing."
import importlib.util, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def script():
    spec = importlib.util.spec_from_file_location("faithfulness", ROOT/"benchmarks/faithfulness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_results_say(tmp_path, monkeypatch, capsys):
    made = script()
    results = json.loads((ROOT/"benchmarks/results/faithfulness.json").read_text(encoding="utf-8"))
    assert (ROOT/"benchmarks/results/faithfulness.md").read_text(encoding="utf-8") == made.written(results)
    assert set(results) == set(made.COMPARISONS) == set(made.TITLES) == set(made.DEVIATIONS) == set(made.LEFT_OUT)
    double = [row["digits"] for key in ("abs", "abs_ppo", "cleanrl", "btr") for row in results[key]["rows"]]
    assert max(double) < 1e-11 and max(row["digits"] for row in results["purejaxql"]["rows"]) < 1e-3
    assert "nothing: it was not run" in made.written({})
    monkeypatch.setattr(made, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "--btr", str(tmp_path/"nowhere")])
    made.main()
    said = capsys.readouterr().out
    assert "abs: left out, no --abs" in said and "btr: left out, FileNotFoundError" in said and json.loads((tmp_path/"faithfulness.json").read_text(encoding="utf-8")) == {}
