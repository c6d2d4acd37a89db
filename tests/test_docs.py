"The documentation: every public name has an entry, no link is broken, and what a page says to type can be typed."
import doctest, json, os, re, shlex, shutil, sys
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import api, docs, facts

MODULES = api.modules(ROOT/"abs_lab")


def prose(file):
    "The Markdown of a page."
    if file.suffix != ".ipynb": return file.read_text()
    return "\n\n".join("".join(c["source"]) for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "markdown")


PAGES = {str(f.relative_to(ROOT)): prose(f) for f in [ROOT/"README.md", *docs.pages()]}


def blocks(text, language): return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


# -- the API -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_every_public_name_has_an_entry_and_a_docstring_and_its_parameters_comments(module):
    assert not api.undocumented(module)
    entries = re.findall(r"^:+\{py:(?:class|function|data)\} ([\w.]+)", api.page(module), re.M)
    assert entries == module.public


def test_an_entry_has_signature_parameters_errors_and_source(tmp_path):
    (tmp_path/"p").mkdir()
    (tmp_path/"p"/"m.py").write_text('__all__ = ["f", "C", "N"]\nN = 3  # how many\ndef f(\n    a: int,  # a first one\n    b="x",   # a second\n) -> str:    # both\n    "Join."\n'
                                     '    if not a: raise ValueError(f"a must not be {a}")\n    return b\nclass C:\n    "Holds."\n    x: int = 1  # its only field\n    def g(self, y): "Gives."\n    def h(self): pass\n')
    module, = api.modules(tmp_path/"p")
    page = api.page(module)
    for said in ("{py:function} f(a, b='x')", "| `a` | `int` |  | a first one |", "| `b` |  | `'x'` | a second |", "Returns `str`, both.", "`ValueError`: a must not be ⟨a⟩", "m.html#L3",
                 "{py:class} C(x=1)", "| `x` | `int` | `1` | its only field |", "{py:method} g(y)", "{py:data} N", "how many"): assert said in page, said
    assert api.undocumented(module) == ["C.h", "C.g(y)"]


def test_help_of_a_class_says_how_to_use_it(tmp_path):
    "Its example runs, or it names what has to be filled in."
    import abs_lab
    told = {name: getattr(abs_lab, name).__doc__ for name in abs_lab.__all__ if isinstance(getattr(abs_lab, name), type)}
    assert all(doc.count("\n") >= 3 for doc in told.values())
    for name, doc in told.items():
        space = {n: getattr(abs_lab, n) for n in abs_lab.__all__} | dict(folder=tmp_path/name)
        failed = doctest.DocTestRunner(verbose=False).run(doctest.DocTestParser().get_doctest(doc, space, name, None, 0)).failed
        assert not failed, name


# -- the site ----------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore")
def test_no_link_anchor_or_picture_is_missing(tmp_path):
    "Of every page, in a plain theme."
    wrong = docs.build(tmp_path/"site", tmp_path/"work", "basic")
    assert not wrong, "\n".join(wrong)
    assert len(list((tmp_path/"site").rglob("*.html"))) > 150


def test_a_broken_link_is_named(tmp_path):
    (tmp_path/"a.html").write_text('<p id="here"><a href="#here">x</a><a href="#there">x</a><a href="b.html">x</a><img src="c.png"><script src="https://elsewhere/x.js"></script><a href="https://elsewhere/">x</a><math><mo>max</mo><mi>\\arg</mi></math>')
    assert docs.broken(tmp_path) == ["a.html: a formula shows \\arg", "a.html: #there has no such anchor", "a.html: b.html is not there", "a.html: c.png is not there", "a.html loads https://elsewhere/x.js"]


@pytest.mark.long
def test_every_page_in_a_browser_asks_no_other_host_and_reports_no_error(tmp_path):
    chromium = shutil.which("chromium") or pytest.skip("needs Chromium")
    sync = pytest.importorskip("playwright.sync_api")
    folder = tmp_path/"site"
    assert not docs.build(folder, tmp_path/"work")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), dict(log_message=lambda *args: None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    here, wrong = f"http://127.0.0.1:{server.server_port}/", []
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in ((1200, "light"), (400, "dark")):
            tab = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme).new_page()
            tab.set_default_timeout(300_000)
            tab.on("request", lambda r: r.url.startswith((here, "data:", "blob:")) or wrong.append(f"asks for {r.url}"))
            tab.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status} {r.url}"))
            tab.on("console", lambda m: m.type == "error" and wrong.append(f"{m.location}: {m.text}"))
            tab.on("pageerror", lambda e: wrong.append(str(e)))
            for file in sorted(folder.rglob("*.html")):
                path = file.relative_to(folder).as_posix()
                tab.goto(here + path, wait_until="load")
                if tab.evaluate("[...document.images].some(i => i.complete && !i.naturalWidth)"): wrong.append(f"{path}: a picture is missing")
                if width == 400 and not path.startswith(("source/", "reports/")) and tab.evaluate("document.documentElement.scrollWidth") > 402: wrong.append(f"{path}: wider than a phone")
        browser.close()
    server.shutdown()
    assert not wrong, "\n".join(dict.fromkeys(wrong))


# -- what a page says to type ------------------------------------------------------------------------------------------

def commands():
    "Each command of a shell block, with its page."
    for page, text in PAGES.items():
        for block in blocks(text, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True): yield page, words


@cache
def flags_of(command):
    "The flags that a command's help names."
    return set(re.findall(r"--[a-z][\w-]*", facts.help_of(command)))


def check_command(words):
    "Raise for a command that cannot be typed as it stands."
    from abs_lab.cli import COMMANDS, train_config
    from abs_lab.core.simulators import backend_for
    from abs_lab.studies.catalogue import find_study
    flags = [w.split("=")[0] for w in words if w.startswith("--")]
    named = lambda text: all(f'"{flag}"' in text for flag in flags)
    match [Path(words[0]).name, *words[1:]]:  # a program may be called by its path
        case ["abs-lab", "train", *rest]:
            if "--help" not in rest: backend_for(train_config(rest).env)
        case ["abs-lab", command, *rest]:
            assert command in COMMANDS and {*flags} <= flags_of(command)
            if command in ("reproduce", "figure", "table") and rest and ":" not in rest[0]: find_study(rest[0])
        case ["make", target]: assert target in re.findall(r"^([a-z-]+):", (ROOT/"Makefile").read_text(), re.M)
        case ["python", "-m", "abs_lab.studies.campaign", study, *_]: assert find_study(study) and named((ROOT/"abs_lab"/"studies"/"campaign.py").read_text())
        case ["python", "-m", "abs_lab.runs", *rest]: assert len(rest) == 2
        case ["python", "-m", "venv", _]: pass
        case ["python", script, *_]: assert named((ROOT/script).read_text())
        case ["papermill", *rest]:
            cells = json.loads((ROOT/next(w for w in rest if w.endswith(".ipynb"))).read_text())["cells"]
            known = re.findall(r"^(\w+) = ", next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])), re.M)
            assert {rest[i + 1] for i, w in enumerate(rest) if w == "-p"} <= {*known}
        case ["pip" | "git" | "source" | "export" | "ssh", *_]: pass
        case _: raise AssertionError("no test knows this command")


@pytest.fixture
def modules_of_ones_own(tmp_path, monkeypatch):
    "The modules that pages have a reader write, in the working directory."
    monkeypatch.chdir(tmp_path)
    for name in ("my_rules", "my_meters"): shutil.copy(ROOT/"tests"/"own_rules.py", f"{name}.py")
    Path("my_envs.py").write_text("import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\nif 'Corridor-v0' not in gym.registry: gym.register('Corridor-v0', CartPoleEnv, max_episode_steps=50)\n")


def test_every_command_and_flag_of_a_shell_block_exists(modules_of_ones_own):
    found = [*commands()]
    for page, words in found:
        try: check_command(words)
        except (Exception, SystemExit) as e: raise AssertionError(f"{page}: {shlex.join(words)}: {e}") from e
    assert len(found) > 40


@pytest.mark.parametrize("line", ["abs-lab train pqn --limt 0.1", "abs-lab train pqn --env-id CartPol-v1", "abs-lab reproduce quick --job 2", "abs-lab reproduce quik", "abs-lab trian", "make reprodce",
                                  "python -m abs_lab.studies.campaign scaling --budgt 9m", "python tools/doc.py build", "python benchmarks/faithfulness.py --wrong", "papermill nbs/figures/quick.ipynb x.ipynb -p report_dr x", "conda install torch"])
def test_a_command_that_cannot_be_typed_is_noticed(line):
    with pytest.raises((Exception, SystemExit)): check_command(shlex.split(line))


def test_flags_and_commands_in_running_text_exist():
    from abs_lab.cli import ASIDE, COMMANDS
    from abs_lab.core.simulators import EnvConfig
    from abs_lab.runs.config import OWN, describe
    from abs_lab.runs.registry import find, names
    parameters = {*OWN, *describe(EnvConfig), *(n for kind in ("agent", "controller", "meter") for name in names(kind) for n in describe(getattr(find(kind, name), "Config", find(kind, name))))}
    known = {f"--{n.replace('_', '-')}" for n in parameters} | {"--preset", "--controller", "--meter", "--help", "--version", *ASIDE}.union(*map(flags_of, COMMANDS)) | {*re.findall(r'"(--[\w-]+)"', (ROOT/"abs_lab"/"studies"/"campaign.py").read_text())}
    for page, text in PAGES.items():
        if not page.startswith(("README", "docs/", "CONTRIBUTING", "nbs/tutorials/", "nbs/how_to/")): continue
        text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        for code in re.findall(r"`([^`\n]+)`", text):
            if m := re.match(r"abs-lab ([a-z]+)", code): assert m[1] in COMMANDS, (page, code)
            if code.startswith(("--", "abs-lab")): assert {*re.findall(r"(?<!\S)--[a-z][\w-]*", code)} <= known, (page, code)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if page != "README.md" and blocks(text, "(?:python|py)")])
def test_every_python_block_of_a_page_runs(page, tmp_path, monkeypatch):
    "Those of README.md are the cells of nbs/index.ipynb, which is executed; an outline, which leaves things out or needs another framework, is marked as python3."
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for block in blocks(PAGES[page], "(?:python|py)"): exec(compile(block, page, "exec"), space)


def test_readme_shows_code_that_is_executed():
    cells = ["".join(c["source"]) for c in json.loads((ROOT/"nbs"/"index.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert all(any(block.strip() in cell for cell in cells) for block in blocks(PAGES["README.md"], "(?:python|py)"))
    assert len(PAGES["README.md"]) < 9_000


@pytest.mark.parametrize("agent", ["pqn", "ppo", "btr"])
def test_an_agents_table_of_spaces_holds(agent):
    import gymnasium as gym, numpy as np
    from abs_lab.core.interfaces import AbsLabError, Progress
    from abs_lab.core.spaces import choices, encoding
    from abs_lab.runs.registry import find
    S = gym.spaces
    box, pixels = lambda *shape: S.Box(-1, 1, shape, np.float32), lambda *shape: S.Box(0, 255, shape, np.uint8)
    samples = {"`[D]`": box(4), "`[H, W]`": box(5, 5), "`[10, 10, C]`": box(10, 10, 4), "`[C, H, W]`": pixels(4, 36, 36), "`[H, W, 3]`": pixels(84, 84, 3), "another shape": box(2, 3, 4, 5),
               "Dict": S.Dict(a=box(4)), "Tuple": S.Tuple([box(4), S.Discrete(2)]), "MultiDiscrete": S.MultiDiscrete([2, 3]), "MultiBinary": S.MultiBinary(2), "Discrete": S.Discrete(3, start=1),
               "Text": S.Text(3), "Sequence": S.Sequence(S.Discrete(2)), "Graph": S.Graph(S.Discrete(2), None)}
    kind, said = find("agent", agent), PAGES[f"docs/{agent}.md"].partition("## Can I use it?")[2].partition("## ")[0]

    def taken(obs, action, **given):
        config = kind.for_acting(kind.Config(**given), 4)
        try:
            coded = encoding(obs)
            kind(config, coded.space if coded else obs, choices(action).space, 4, Progress(1000))
        except AbsLabError: return False
        return True

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 7
    for what, obs, actions in rows:
        given = dict(network=m[1] if (m := re.search(r'network="(\w+)"', obs)) else "mlp") if agent == "pqn" else dict(normalize_obs="preset" not in obs) if agent == "ppo" else {}
        for space in [space for name, space in samples.items() if re.search(rf"(?<!\w){re.escape(name)}", what)] or pytest.fail(what):
            assert taken(space, samples["Discrete"], **given) == obs.startswith("yes"), (what, obs)
            assert taken(samples["`[D]`"], space, **given | (dict(network="mlp") if agent == "pqn" else {})) == actions.startswith("yes"), (what, actions)


def test_messages_that_the_faq_quotes_are_the_codes_own():
    code = "".join(m.text for m in MODULES)
    quoted = re.findall(r"“([^”]+)”", PAGES["docs/faq.md"])
    assert len(quoted) > 5
    for message in quoted:
        for part in message.split("…"): assert part.strip(" ,") in code, message


def test_the_citation_names_this_version():
    import abs_lab
    assert f"version: {abs_lab.__version__}\n" in (ROOT/"CITATION.cff").read_text()


def test_workflows_and_templates_are_what_a_code_host_reads():
    yaml = pytest.importorskip("yaml")
    for file in (ROOT/".github").rglob("*.yml"):
        told = yaml.safe_load(file.read_text())
        for job in told.get("jobs", {}).values():
            for step in job["steps"]:
                if command := step.get("run"): assert command == ".ci/run" and os.access(ROOT/command, os.X_OK) or command.split()[0] == "make", command
    matrix = yaml.safe_load((ROOT/".github"/"workflows"/"test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {v}" in (ROOT/"pyproject.toml").read_text() for v in matrix] == [True] * 3
