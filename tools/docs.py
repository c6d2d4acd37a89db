"""The documentation site: its sources are laid out in _docs/sources/, and Sphinx makes site/ of them. Nothing is executed: a page shows what its notebook holds.

    python tools/docs.py build     write site/; exit code 1 if a link, an anchor or a picture is missing
    python tools/docs.py serve     show it on this machine, port 8000

Pages are the notebooks, the Markdown of docs/, reports/ and the folders of nbs/, one API page a module (api.py) and the tables that the code knows
(`<!-- table: NAME -->` in a page; facts.py).
"""
import html, json, os, re, shutil, sys
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent))
import api, sync

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
PAGES = ["docs/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/*.md", "benchmarks/results/*.md",
         *(f"nbs/{folder}/{name}" for folder in api.FLOORS for name in ("README.md", "*.ipynb")), "nbs/cli.ipynb", "nbs/main.ipynb", "nbs/testing.ipynb", "nbs/tutorials/*.ipynb", "nbs/how_to/*.ipynb"]
EXTRA = ["reports/plotly.min.js", "reports/index.html", "reports/CLAIMS.md", "reports/*/*.html", "reports/*/*.svg", "reports/*/*.ipynb", "benchmarks/results/*.md"]  # what the committed reports link to


def pages() -> list[Path]:
    "The files of the repository that become pages, in order."
    return [f for pattern in PAGES for f in sorted(ROOT.glob(pattern)) if f.name not in ("toc.md",)]


# -- laying out --------------------------------------------------------------------------------------------------------

class Layout:
    "A folder that is filled anew: what has not changed is left alone, so that Sphinx reads it once, and what is no longer written goes."

    def __init__(self, folder): self.folder, self.written = folder, set()

    def write(self, path, content):
        to, content = self.folder/path, content if isinstance(content, bytes) else content.encode()
        self.written.add(to)
        if to.exists() and to.read_bytes() == content: return
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(content)

    def finish(self):
        for f in self.folder.rglob("*"):
            if f.is_file() and f not in self.written: f.unlink()


def rewrite(text: str, home: Path, out: Layout, known: set) -> str:
    "Links to files of the repository that are no pages lead to a copy of them (modules: to their page of source); fences are left alone."
    def one(m):
        target, _, anchor = m[2].partition("#")
        if not target or re.match(r"[a-z]+:", target): return m[0]
        file = (ROOT/home/target).resolve()
        if file in known or not file.is_file(): return m[0]  # a page; or a broken link, which Sphinx names
        path = file.relative_to(ROOT).as_posix()
        if path.startswith("abs_lab/") and path.endswith(".py"):
            return f"{m[1]}extra:{os.path.relpath(ROOT/'source'/Path(path).relative_to('abs_lab').with_suffix('.html'), ROOT/home)}{m[3]}"
        if file.suffix not in (".svg", ".webp", ".png"): out.write(f"_extra/{path}", file.read_bytes()); return f"{m[1]}extra:{m[2]}{m[3]}"
        out.write(path, file.read_bytes())
        return m[0]
    return "".join(part if i % 2 else LINK.sub(one, part) for i, part in enumerate(re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)))


def notebook(file: Path, out: Layout, known: set, lessons: dict) -> str:
    "A notebook as its page shows it: no directives, no hidden cells, links that lead somewhere, and where it comes from."
    book, home, cells = json.loads(file.read_text(encoding="utf-8")), file.parent.relative_to(ROOT), []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        told = set(re.findall(r"^#\| *(\w+)", source, re.M))
        if told & {"hide", "default_exp"} or not source.strip(): continue
        if cell["cell_type"] == "markdown": source = rewrite(re.sub(r"^#\|.*\n", "", source, flags=re.M), home, out, known)
        else:
            source = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
            if "export" in told: cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "export"]
            cell["outputs"] = [o for o in cell["outputs"] if not any("widget" in kind for kind in o.get("data", {}))]
        cells.append(cell | dict(source=source))
    links = [f"[Open the notebook](extra:{file.name})"]
    if module := lessons.get(file.relative_to(ROOT).as_posix()):
        up = os.path.relpath(ROOT, file.parent)
        links += [f"[Source](extra:{up}/source/{module.path.as_posix()}.html)", f"[API]({up}/api/{module.path.as_posix()}.md)"]
    cells.insert(1, dict(cell_type="markdown", id="links", metadata={}, source=" · ".join(links)))
    out.write(f"_extra/{file.relative_to(ROOT)}", file.read_bytes())
    return json.dumps(book | dict(cells=cells), indent=1, ensure_ascii=False)


def source_page(module) -> str:
    "A module's source, each line of which can be linked to: a page of its own, without the site's frame."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    light, dark = (HtmlFormatter(nowrap=True, style=style) for style in ("default", "github-dark"))
    path = module.path.as_posix()
    body = "\n".join(f'<span id="L{n}">{line}</span>' for n, line in enumerate(highlight(module.text, PythonLexer(), light).splitlines(), 1))
    style = (":root { color-scheme: light dark } body { margin: 1rem } pre { font-size: .8rem; overflow-x: auto } span:target { background: #fc86 }\n"
             f"{light.get_style_defs('pre')}\n@media (prefers-color-scheme: dark) {{\n{dark.get_style_defs('pre')}\n}}")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{path}.py</title><link rel="icon" href="data:,"><style>{style}</style>'
            f'<p><a href="{"../" * len(module.path.parts)}api/{path}.html">API of {module.name}</a></p><pre>{body}</pre></html>')


def toctree(entries, caption="", hidden=True):
    return "\n".join(["```{toctree}", *([f":caption: {caption}"] if caption else []), *([":hidden:"] if hidden else []), "", *entries, "```", ""])


def lay_out(folder: Path):
    "Write the sources of the site."
    import facts
    out, found = Layout(folder), api.modules(ROOT/"abs_lab")
    known, lessons = set(pages()), {m.notebook: m for m in found}
    for name in ("conf.py", "favicon.ico"): out.write(name, (ROOT/"docs"/name).read_bytes())
    out.write("_static/site.css", (ROOT/"docs"/"site.css").read_bytes())
    from abs_lab import __all__ as first
    out.write("_names.json", json.dumps(api.full_names(found, first), indent=1))
    for file in known:
        path, home = file.relative_to(ROOT), file.parent.relative_to(ROOT)
        if file.suffix == ".ipynb": text = notebook(file, out, known, lessons)
        else:
            text = rewrite(facts.filled(file.read_text(encoding="utf-8")), home, out, known)
            if home.parent.name == "nbs": text += "\n" + toctree([f.stem for f in sorted(file.parent.glob("*.ipynb"))])
        out.write(path, text)
    front = rewrite(sync.readme(ROOT/"nbs"/"index.ipynb").partition("\n\n")[2], Path("."), out, known)
    out.write("index.md", front + "\n" + (ROOT/"docs"/"toc.md").read_text(encoding="utf-8"))
    for m in found:
        out.write(f"api/{m.path.as_posix()}.md", api.page(m))
        out.write(f"_extra/source/{m.path.as_posix()}.html", source_page(m))
    out.write("api/index.md", "# API\n\nEvery public name, module by module, floor by floor: signature, parameters, errors, source.\n\n"
              + "".join(f"- [`{m.name}`]({m.path.as_posix()}.md): {api.prose(m.doc)}\n" for m in found) + "\n" + toctree([m.path.as_posix() for m in found]))
    for pattern in EXTRA:
        for file in ROOT.glob(pattern): out.write(f"_extra/{file.relative_to(ROOT)}", file.read_bytes())
    out.finish()


# -- building and checking ---------------------------------------------------------------------------------------------

def build(site: Path, work: Path, theme: str = "furo") -> list[str]:
    "Lay out in `work`, build, check; what is wrong, in sentences. The theme `basic` takes half the time."
    from io import StringIO
    from sphinx.application import Sphinx
    sources, told = work/"sources", StringIO()
    lay_out(sources)
    Sphinx(sources, sources, work/"html", work/"doctrees", "html", dict(html_theme=theme) | (dict(html_theme_options={}) if theme == "basic" else {}), status=None, warning=told).build()
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(work/"html", site, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv"))
    said = re.sub(r"\x1b\[[\d;]*m", "", told.getvalue()).replace(f"{sources}/", "").splitlines()
    return [*filter(None, said), *broken(site)]


class _Links:
    "What a page can be asked for (`ids`), what it asks for (`targets`: tag, address), and what its formulas say in TeX still (`undrawn`)."

    def __init__(self, text):
        text = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", text, flags=re.S)
        self.ids = {html.unescape(found) for found in re.findall(r'\s(?:id|name)="([^"]*)"', text)}
        self.undrawn = sorted({command for formula in re.findall(r"<math.*?</math>", text, re.S) for command in re.findall(r"\\\S*?(?=<)", formula)})
        self.targets = {(tag, html.unescape(to)) for tag, to in re.findall(r'<(a|link|img|script|source|iframe)\b[^>]*?\s(?:href|src)="([^"]+)"', text)}


def broken(site: Path) -> list[str]:
    "Links, anchors and files that the pages of a built site ask for in vain, what they would load from another host, and commands of TeX that were not understood."
    read = {f.resolve(): _Links(f.read_text(encoding="utf-8")) for f in site.rglob("*.html")}
    wrong = []
    for page, links in read.items():
        wrong += [f"{page.relative_to(site.resolve())}: a formula shows {command}" for command in links.undrawn]
        for tag, to in sorted(links.targets):
            if re.match(r"(https?:)?//", to):
                if tag != "a": wrong.append(f"{page.relative_to(site.resolve())} loads {to}")
                continue
            if re.match(r"[a-z]+:", to): continue
            path, _, anchor = to.partition("#")
            file = (page.parent/unquote(path.partition("?")[0])).resolve() if path else page
            if file.is_dir(): file = file/"index.html"
            if not file.exists(): wrong.append(f"{page.relative_to(site.resolve())}: {to} is not there")
            elif anchor and file in read and unquote(anchor) not in read[file].ids: wrong.append(f"{page.relative_to(site.resolve())}: {to} has no such anchor")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:] == ["build"]:
        wrong = build(ROOT/"site", ROOT/"_docs")
        print(*wrong, sep="\n") if wrong else print(f"site/index.html: {sum(1 for _ in (ROOT/'site').rglob('*.html'))} pages")
        sys.exit(bool(wrong))
    elif sys.argv[1:] == ["serve"]:
        from functools import partial
        from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
        print("http://127.0.0.1:8000")
        ThreadingHTTPServer(("127.0.0.1", 8000), partial(SimpleHTTPRequestHandler, directory=ROOT/"site")).serve_forever()
    else: sys.exit(__doc__)
