"""Run each notebook of the library once, and hold its stored outputs to what its code gives.

    python tools/outputs.py check [NOTEBOOK...]    name each cell that differs, change nothing; exit code 1 if any does
    python tools/outputs.py write [NOTEBOOK...]    store what differs, and write README.md

Texts are the same if their words and whole numbers are, and their other numbers to one in a thousand. Of a picture its presence and size count.
A cell whose text differs from run to run or from machine to machine (training rounds differently on another processor) begins with `#| varies`
and contains an assertion; its text is stored anew when more than its numbers differ. The clone and temporary folders are stored as `…`.
A Plotly figure, which code hosts do not show, is stored as a picture of it that a headless Chromium draws; without Chromium its size is compared, and a picture
that fits is kept. Widgets, scripts, and what another run would not print again (progress bars, warnings) are not stored.
A cell that begins with `#| PACKAGE`, one of `tst_flags` in pyproject.toml, runs only where that package can be imported; elsewhere what is stored of it is left alone.
"""
import base64, contextlib, importlib.util, io, math, multiprocessing, os, re, shutil, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sync
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb, write_nb
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells

WORKERS, SECONDS = 2, 600              # notebooks at once; the longest that a cell may take
PICTURE, NOTEBOOK = 80_000, 1_000_000  # the most bytes of each
TEXTS = {"text/plain", "text/html", "text/markdown", "text/latex"}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?(?!\w)")
PRELOADED = ["torch", "numpy", "gymnasium", "envpool", "pandas", "scipy.stats", "plotly.graph_objects", "matplotlib.pyplot", "ipywidgets", "execnb.shell", "nbdev.test"]
PLOTLY = "application/vnd.plotly.v1+json"
UNFIT = re.compile(r"site-packages|/home/\w|/root/|/tmp/\w| at 0x[0-9a-f]{6}")  # paths and addresses
PROCESSES = multiprocessing.get_context("forkserver")


# -- one notebook in a process of its own ------------------------------------------------------------------------------

def kept(output: dict, root: Path) -> dict | None:
    "What is stored of an output."
    folders = re.compile(f"{re.escape(str(root))}|{re.escape(tempfile.gettempdir())}/\\w+")
    here = lambda text: [folders.sub("…", line) for line in "".join(text).splitlines(True)]
    if output["output_type"] == "stream": return dict(output, text=here(output["text"])) if output["name"] == "stdout" else None
    data = output.get("data", {})
    if PLOTLY in data: return dict(output, data={PLOTLY: data[PLOTLY]})
    if picture := {k: v for k, v in data.items() if k in ("image/png", "image/svg+xml")}: return dict(output, data=picture)
    html = "".join(data.get("text/html", ""))
    if any(k.startswith("application/") for k in data) or re.search(r"<(script|iframe|video|img)\b", html): return None
    return dict(output, data={k: here(v) for k, v in data.items() if k in TEXTS})


def executed(notebook: Path, root: Path, answer):
    "Run the cells that `nbdev-test` would, and send their outputs by cell id, or the traceback."
    os.environ |= dict(IN_TEST="1", PLOTLY_RENDERER="plotly_mimetype")
    sys.path.insert(0, str(root))
    lacking = [flag for flag in get_config(root).tst_flags.split() if not importlib.util.find_spec(flag)]
    nb, due = read_nb(notebook), {c.id for c in nb_test_cells(notebook, skip_flags=lacking)}
    shell = CaptureShell(notebook, mpl_format="png")
    try:
        with contextlib.chdir(notebook.parent): shell.run_all(nb, exc_stop=True, preproc=lambda cell: cell.id not in due, cell_timeout=SECONDS)
    except Exception: answer.send(shell.prettytb(fname=notebook))
    else:
        clean_nb(nb)
        answer.send({c.id: [k for o in c.outputs if (k := kept(o, root))] for c in nb.cells if c.id in due})
    os._exit(0)  # whatever threads the notebook left behind


def outputs(notebook: Path, root: Path) -> dict | str:
    "The outputs that the code of `notebook` gives, by cell id, or why it failed."
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=executed, args=(notebook, root, there))
    process.start()
    there.close()
    try: return here.recv()
    except EOFError:
        process.join()
        return f"{notebook}: its process ended with code {process.exitcode}\n"


# -- Plotly's figures --------------------------------------------------------------------------------------------------

def measures(figure: dict) -> tuple[int, int]:
    "Width and height of a figure."
    return figure["layout"].get("width", 720), figure["layout"].get("height", 450)


def unpainted(figure: dict) -> str:
    "The head of a PNG of the figure's measures, in base 64: enough to compare sizes."
    width, height = measures(figure)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4) + height.to_bytes(4)).decode()


def painted(figures) -> list[str]:
    "PNGs of figures, in base 64."
    import plotly.offline
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.add_script_tag(content=plotly.offline.get_plotlyjs())
        drawn = [tab.evaluate("([f, width, height]) => Plotly.toImage(f, {format: 'png', width, height})", [f, *measures(f)]) for f in figures]
        browser.close()
    return [small(d.partition(",")[2]) for d in drawn]


def small(png: str) -> str:
    "A PNG on white, with a palette of 64 colours."
    from PIL import Image
    image, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"), io.BytesIO()
    Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def pictured(outputs: list, stored: list, write: bool) -> list:
    "Outputs with pictures in place of Plotly's figures: drawn, if they are to be stored and there is a Chromium; else the stored ones that have their measures."
    figures = {i: o["data"][PLOTLY] for i, o in enumerate(outputs) if PLOTLY in o.get("data", {})}
    def of_before(i, figure):
        png = stored[i].get("data", {}).get("image/png", "") if i < len(stored) else ""
        return png if png and dimensions(png) == measures(figure) else unpainted(figure)
    pngs = painted(figures.values()) if figures and write and shutil.which("chromium") else [of_before(i, f) for i, f in figures.items()]
    return [dict(o, data={"image/png": pngs.pop(0)}) if i in figures else o for i, o in enumerate(outputs)]


def undrawn(gives: list) -> str | None:
    "What is lacking to store a figure."
    return "Chromium draws its figure, and is not here" if any(kind == "image/png" and len(value) < 50 for kind, value in parts(gives)) else None


# -- the comparison ----------------------------------------------------------------------------------------------------

def same(a: str, b: str) -> bool:
    "Whether two texts agree: numbers with a point or an exponent to one in a thousand, all else but spacing exactly."
    if NUMBER.sub("0", a).split() != NUMBER.sub("0", b).split(): return False
    return all(x == y or not (x + y).lstrip("+-").isdigit() and math.isclose(float(x), float(y), rel_tol=1e-3, abs_tol=1e-7)
               for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)))


def dimensions(png: str) -> tuple[int, int]:
    "Width and height of a PNG in base 64."
    head = base64.b64decode(png[:32])
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def parts(outputs: list) -> list:
    "Kind and content of everything in `outputs`."
    return [(kind, "".join(value)) for o in outputs for kind, value in sorted(o.get("data", {o.get("name"): o.get("text")}).items())]


def difference(cell: dict, gives: list) -> str | None:
    "How the stored outputs of `cell` differ from those that its code gives."
    stored, given = parts(cell.outputs), parts(gives)
    if [k for k, _ in stored] != [k for k, _ in given]:
        names = lambda found: ", ".join(k for k, _ in found) or "nothing"
        return f"stored is {names(stored)}; the code gives {names(given)}"
    for (kind, a), (_, b) in zip(stored, given):
        if kind == "image/png":
            if any(abs(x - y) > 0.1 * max(x, y) for x, y in zip(dimensions(a), dimensions(b))): return f"the stored picture measures {dimensions(a)}; the code gives {dimensions(b)}"
        elif kind != "image/svg+xml" and "varies" not in cell.directives and not same(a, b):
            x, y = next(((x, y) for x, y in zip(a.splitlines(), b.splitlines()) if not same(x, y)), (a, b))
            return f"stored is      {x.strip()[:150]}\n    the code gives {y.strip()[:150]}"


def changed(cell: dict, gives: list) -> bool:
    "Whether outputs that do not count as different are stored anew: another picture, or other words of a text that varies."
    return any(a != b if kind == "image/png" else "varies" in cell.directives and NUMBER.sub("0", a).split() != NUMBER.sub("0", b).split()
               for (kind, a), (_, b) in zip(parts(cell.outputs), parts(gives)))


def fault(cell: dict, gives: list) -> str | None:
    "Why the outputs that a cell's code gives cannot be stored."
    if "varies" in cell.directives and not re.search(r"[Aa]ssert|test_\w+\(", cell.source): return "it is marked `#| varies` and asserts nothing"
    for kind, value in parts(gives):
        size = len(value) * 3 // 4 if kind == "image/png" else len(value)
        if kind.startswith("image") and size > PICTURE: return f"its picture has {size} bytes, of at most {PICTURE}"
        if found := UNFIT.search(value): return f"its output names a path or an address: {value[max(0, found.start() - 40):found.end() + 20]!r}"


def main(root: Path, write: bool, names: list) -> int:  # exit code
    "Run the notebooks, two at once."
    began = time.time()
    notebooks = [Path(n).resolve() for n in names] or sorted(f.resolve() for f in nbglob(root/"nbs", as_path=True) if not (f.parent/".notest").exists())
    if not names: PROCESSES.set_forkserver_preload(PRELOADED)  # imported once: each notebook's process is a copy
    wrong = stored = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for notebook, gives in zip(notebooks, pool.map(lambda f: outputs(f, root), notebooks)):
            name, nb, found = notebook.relative_to(root), read_nb(notebook), []
            if isinstance(gives, str): found.append(gives)
            else:
                for i, cell in enumerate(nb.cells):
                    if cell.cell_type != "code" or cell.id not in gives and any(flag in cell.directives for flag in get_config(root).tst_flags.split()): continue
                    new = pictured(gives.get(cell.id, []), cell.outputs, write)
                    if problem := fault(cell, new) or (undrawn(new) if write else difference(cell, new)): found.append(f"{name}, cell {i} ({cell.id}): {problem}")
                    if write and (difference(cell, new) or changed(cell, new)):
                        cell.outputs, stored = new, stored + 1
                if write: write_nb(nb, notebook)
                if notebook.stat().st_size > NOTEBOOK: found.append(f"{name}: {notebook.stat().st_size} bytes, of at most {NOTEBOOK}")
            if found: print(*found, sep="\n", flush=True)
            wrong += len(found)
    if write: (root/"README.md").write_text(sync.readme(root/"nbs"/"index.ipynb"), encoding="utf-8")
    print(f"{len(notebooks)} notebooks in {time.time() - began:.0f} s: " + (f"{stored} cells stored" if write else "their outputs are what the code gives" if not wrong else
          f"{wrong} faults. If the code is right, `python tools/outputs.py write NOTEBOOK` stores what it gives"))
    return int(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:2] not in (["check"], ["write"]): sys.exit(__doc__)
    sys.exit(main(Path(__file__).resolve().parent.parent, sys.argv[1] == "write", sys.argv[2:]))
