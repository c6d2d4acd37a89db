"The stored outputs of notebooks: what the code no longer gives is named, and stored anew on request."
import base64, json, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
FITTING = ["1 / 3", "print('all', 7)", "#| varies\nx = 0.5\nassert x < 1\nx",
           "import matplotlib.pyplot as plt\n_, ax = plt.subplots(figsize=(2, 1))\nax.plot([1, 2]);",
           "import pandas as pd\npd.DataFrame(dict(a=[0.25]))", "#| eval: false\n1 / 0", "'quiet';", "#| torchrl\n1 / 0"]  # the last: of a package that need not be here


def notebook(path, sources):
    cells = [dict(cell_type="code", id=f"cell{i}", metadata={}, source=s, outputs=[], execution_count=None) for i, s in enumerate(sources)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def stored(path): return json.loads(path.read_text())["cells"]


def as_text(new):
    def change(outputs): outputs[0]["data"]["text/plain"] = [new]
    return change


def edited(path, to, changes):
    "A copy of a notebook in which the outputs of some cells were changed."
    nb = json.loads(path.read_text())
    for i, change in changes.items(): change(nb["cells"][i]["outputs"])
    to.write_text(json.dumps(nb))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project of one notebook, whose outputs were stored."
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT/"tools", root/"tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", root)
    (root/"nbs").mkdir()
    notebook(root/"nbs"/"index.ipynb", FITTING)
    done = run(root, "write", "nbs/index.ipynb")
    assert done.returncode == 0 and "5 cells stored" in done.stdout, done.stdout + done.stderr
    return root


def run(root, mode, *names): return subprocess.run([sys.executable, "tools/outputs.py", mode, *names], cwd=root, capture_output=True, text=True, timeout=300)


def test_texts_and_pictures_are_stored_clean(project):
    number, printed, varies, picture, table, *none = [c["outputs"] for c in stored(project/"nbs"/"index.ipynb")]
    assert number == [dict(output_type="execute_result", execution_count=None, metadata={}, data={"text/plain": ["0.3333333333333333"]})]
    assert printed[0]["text"] == ["all 7\n"] and varies[0]["data"] == {"text/plain": ["0.5"]}
    assert list(picture[0]["data"]) == ["image/png"] and base64.b64decode(picture[0]["data"]["image/png"]).startswith(b"\x89PNG")
    assert sorted(table[0]["data"]) == ["text/html", "text/plain"] and none == [[], [], []]  # nothing of a cell that is not run
    assert "```python\nx = 0.5" in (project/"README.md").read_text()  # without the mark


def test_each_difference_is_named_by_notebook_and_cell(project):
    index, nbs = project/"nbs"/"index.ipynb", project/"nbs"
    edited(index, nbs/"agrees.ipynb", {0: as_text("0.33333340"), 2: as_text("0.7"), 7: lambda outputs: outputs.append(dict(output_type="stream", name="stdout", text=["stored where it is"]))})  # a last digit, another processor, and a package that is not here
    edited(index, nbs/"differs.ipynb", {0: as_text("0.3343"), 1: list.clear, 3: list.clear, 6: lambda outputs: outputs.append(dict(output_type="stream", name="stdout", text=["quiet"]))})
    notebook(nbs/"unfit.ipynb", ["#| varies\nNone", "print('/root/x.txt')", "'" + "x" * 1_000_000 + "';"])
    notebook(nbs/"raises.ipynb", ["1 / 0"])
    before = {f: f.read_bytes() for f in nbs.glob("*.ipynb")}
    done = run(project, "check", *sorted(f"nbs/{f.name}" for f in before if f != index))
    assert done.returncode == 1 and {f: f.read_bytes() for f in nbs.glob("*.ipynb")} == before
    assert "agrees" not in done.stdout
    lines = done.stdout.splitlines()
    for start in ("nbs/differs.ipynb, cell 0 (cell0): stored is      0.3343", "    the code gives 0.3333333333333333",
                  "nbs/differs.ipynb, cell 1 (cell1): stored is nothing; the code gives stdout",
                  "nbs/differs.ipynb, cell 3 (cell3): stored is nothing; the code gives image/png",
                  "nbs/differs.ipynb, cell 6 (cell6): stored is stdout; the code gives nothing",
                  "nbs/unfit.ipynb, cell 0 (cell0): it is marked `#| varies` and asserts nothing",
                  "nbs/unfit.ipynb, cell 1 (cell1): its output names a path", "nbs/unfit.ipynb: 1000", "ZeroDivisionError"):
        assert any(line.startswith(start) for line in lines), (start, done.stdout)


def test_numbers_agree_to_one_in_a_thousand_and_words_and_counts_exactly():
    sys.path.insert(0, str(ROOT/"tools"))
    from outputs import same
    assert same("[0.1234, 16]  1e-05", "[0.12341, 16] 1.0004e-05") and same("D = -0.5.", "D =  -0.5.")
    for a, b in (("0.123", "0.124"), ("16", "17"), ("30000", "30001"), ("0.5 low", "0.5 high"), ("0.5", "-0.5"), ("CartPole-v1", "CartPole-v0"), ("1.0 2.0", "1.0"), ("nan", "0.5")):
        assert not same(a, b), (a, b)


def test_every_notebook_is_small():
    for f in (ROOT/"nbs").rglob("*.ipynb"): assert f.stat().st_size <= 1_000_000 or ".ipynb_checkpoints" in f.parts, f.name


def test_a_plotly_figure_is_stored_as_a_picture(monkeypatch):
    import outputs
    figure = dict(data=[dict(x=[0, 1], y=[0, 1])], layout=dict(width=300, height=200))
    gives, text = [dict(output_type="display_data", metadata={}, data={outputs.PLOTLY: figure})], dict(output_type="stream", name="stdout", text=["7"])
    cell = SimpleNamespace(outputs=[], directives={}, source="")
    new = outputs.pictured([text, *gives], cell.outputs, False)
    assert new[0] is text and outputs.dimensions(new[1]["data"]["image/png"]) == (300, 200)
    assert outputs.difference(cell, new).startswith("stored is nothing") and "Chromium" in outputs.undrawn(new)
    if not shutil.which("chromium"): pytest.skip("needs Chromium")
    cell.outputs = outputs.pictured(gives, [], True)
    png = cell.outputs[0]["data"]["image/png"]
    assert outputs.dimensions(png) == (300, 200) and 1000 < len(png) < 80_000
    assert outputs.pictured(gives, cell.outputs, True) == cell.outputs  # the same figure is the same picture
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert outputs.pictured(gives, cell.outputs, True) == cell.outputs  # without Chromium a picture that fits is kept
    wider = [dict(gives[0], data={outputs.PLOTLY: dict(figure, layout=dict(width=400, height=200))})]
    assert "(400, 200)" in outputs.difference(cell, outputs.pictured(wider, cell.outputs, False))
