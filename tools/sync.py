"""Keep what is generated in step with the notebooks: abs_lab/ with nbs/, README.md with nbs/index.ipynb.

    python tools/sync.py write    export, clean the notebooks, write README.md
    python tools/sync.py check    name what is out of step, change nothing; exit code 1 if anything is
"""
import contextlib, difflib, json, re, shutil, sys, tempfile
from pathlib import Path

from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export

NOTE = "<!-- Written by tools/sync.py from nbs/index.ipynb: edit the notebook, then `make prepare`. -->"
SCRATCH = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", ".last_checked")


def readme(notebook: Path) -> str:
    "The notebook as Markdown: prose, code, and the text that the code printed or returned (as stored: nothing is run)."
    parts = [NOTE]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if not source or re.search(r"^#\| *hide", source, re.M): continue
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r'(\]\(|src=")\.\./', r"\1", source))  # links are from nbs/ there, from the root here
        elif cell["cell_type"] == "code":
            source = re.sub(r"^#\|.*\n", "", source, flags=re.M)
            parts.append(f"```python\n{source}\n```")
            texts = [o.get("text") or o.get("data", {}).get("text/plain") or "" for o in cell["outputs"]
                     if o.get("name") != "stderr"]
            shown = "\n".join("".join(t).rstrip() for t in texts if t)
            if shown: parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


def write(root: Path):
    "Generate in `root`: abs_lab/ from the notebooks, clean notebooks, README.md."
    with contextlib.chdir(root):
        nbdev_export()
        nbdev_clean()
    (root/"README.md").write_text(readme(root/"nbs"/"index.ipynb"), encoding="utf-8")


def generated(root: Path) -> dict:
    "Each generated file of `root`, by its path, with its text."
    files = [root/"README.md", *root.glob("abs_lab/**/*.py"), *root.glob("nbs/**/*.ipynb")]
    return {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in files
            if f.exists() and ".ipynb_checkpoints" not in f.parts}


def check(root: Path) -> int:  # exit code
    "Generate everything anew in a copy, and compare."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/"copy"
        shutil.copytree(root/"nbs", copy/"nbs", ignore=SCRATCH)
        (copy/"abs_lab").mkdir()
        for f in ("pyproject.toml", "abs_lab/__init__.py"): shutil.copy(root/f, copy/f)
        write(copy)
        have, want = generated(root), generated(copy)
    wrong = sorted(f for f in have.keys() | want.keys() if have.get(f) != want.get(f))
    for f in wrong:
        if f not in want: print(f"{f}: no notebook exports it")
        elif f not in have: print(f"{f}: missing")
        else:
            print(f"{f}: not what {'cleaning' if f.startswith('nbs') else 'the notebooks'} would make of it")
            diff = list(difflib.unified_diff(have[f].splitlines(), want[f].splitlines(), "here", "generated", lineterm="", n=1))
            print(*(f"    {line[:150]}" for line in diff[:20]), *(["    …"] if len(diff) > 20 else []), sep="\n")
    if wrong: print(f"\n{len(wrong)} file(s) out of step with the notebooks. Run `make prepare`, look at `git diff`, and commit.")
    else: print(f"In step: abs_lab/, README.md and the notebooks ({len(want)} files).")
    return int(bool(wrong))


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    if sys.argv[1:] == ["write"]: write(root)
    elif sys.argv[1:] == ["check"]: sys.exit(check(root))
    else: sys.exit(__doc__)
