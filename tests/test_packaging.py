"The packaging: generated files are in step, notebook cleaning keeps papermill's tag, the walls between the rooms stand."
import ast, configparser, importlib.util, json, os, re, shutil, signal, subprocess, sys, textwrap, time, tomllib, urllib.request, zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from abs_lab.runs.settings import DEFAULTS
from abs_lab.studies.catalogue import STUDIES

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["core", "agents", "runs", "studies", "reports", "live", "integrations"]  # each imports from itself and from those before it
CORE = [*(f"{floor}.{f.stem}" for floor in ("core", "agents") for f in sorted((ROOT/"abs_lab"/floor).glob("[a-z]*.py"))),
        "runs.config", "runs.storage", "runs.runner", "runs.forks", "runs.__main__",
        "studies.study", "studies.catalogue", "studies.results", "studies.status", "studies.campaign"]  # what a bare machine trains with
BARE = {"torch", "numpy", "gymnasium", "envpool", "safetensors"}
OUTSIDE = ["IPython", "ipykernel", "ipywidgets", "jupyter_client", "jupyter_core", "nbformat", "papermill", "plotly", "pandas", "scipy",
           "tyro", "tqdm", "fastcore", "nbdev", "execnb", "pytest"]


def python(*args, cwd=ROOT):
    "Run this Python on `args` as a person would: not inside a notebook's test."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copy(tmp_path):
    "A copy of what is generated and of what it is generated from, in a path with a space."
    root = tmp_path/"a copy"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in ("abs_lab", "nbs", "tools"): shutil.copytree(ROOT/folder, root/folder, ignore=skip)
    for file in ("pyproject.toml", "README.md"): shutil.copy(ROOT/file, root/file)
    return root


def contents(root): return {f: f.read_bytes() for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


# -- generated files ---------------------------------------------------------------------------------------------------

def test_generated_files_are_in_step(copy):
    before = contents(copy)
    done = python("tools/sync.py", "check", cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(copy) == before


@pytest.mark.parametrize("file", ["abs_lab/core/interfaces.py", "README.md"])
def test_an_edit_by_hand_is_named_and_left_alone(copy, file):
    with open(copy/file, "a") as f: f.write("\n# edited by hand\n")
    before = contents(copy)
    done = python("tools/sync.py", "check", cwd=copy)
    assert done.returncode == 1
    assert file in done.stdout and "edited by hand" in done.stdout and "make prepare" in done.stdout
    assert contents(copy) == before


def test_a_module_without_its_notebook_is_named(copy):
    (copy/"abs_lab"/"orphan.py").write_text("x = 1\n")
    assert "abs_lab/orphan.py: no notebook exports it" in python("tools/sync.py", "check", cwd=copy).stdout


def test_writing_brings_everything_into_step_and_is_idempotent(copy):
    for file in ("abs_lab/core/interfaces.py", "README.md"): (copy/file).write_text("")
    assert python("tools/sync.py", "write", cwd=copy).returncode == 0
    once = contents(copy)
    assert python("tools/sync.py", "write", cwd=copy).returncode == 0
    assert contents(copy) == once
    for file in ("abs_lab/core/interfaces.py", "README.md"): assert once[copy/file] == (ROOT/file).read_bytes()


# -- notebooks ---------------------------------------------------------------------------------------------------------

def test_papermills_parameters_tag_survives_cleaning(tmp_path):
    cell = lambda **metadata: dict(cell_type="code", id="0a1b2c3d", metadata=metadata, source=["seed = 0"], outputs=[], execution_count=7)
    notebook = dict(cells=[cell(tags=["parameters"], collapsed=True)], metadata={}, nbformat=4, nbformat_minor=5)
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    (tmp_path/"nbs").mkdir()
    (tmp_path/"nbs"/"grid.ipynb").write_text(json.dumps(notebook))
    done = python("-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=tmp_path)
    cleaned, = json.loads((tmp_path/"nbs"/"grid.ipynb").read_text())["cells"]
    assert cleaned["execution_count"] is None, done.stderr      # it was cleaned …
    assert cleaned["metadata"] == {"tags": ["parameters"]}      # … and kept the tag alone


@pytest.mark.parametrize("folder", ["experiments", "figures"])
def test_papermills_notebooks_have_one_parameters_cell(folder):
    notebooks = sorted((ROOT/"nbs"/folder).glob("*.ipynb"))
    assert notebooks
    for f in notebooks:
        tagged = [c for c in json.loads(f.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1, f.name


def test_stored_outputs_name_no_path_of_a_machine():
    for f in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in f.parts: continue
        outputs = json.dumps([c.get("outputs", []) for c in json.loads(f.read_text())["cells"]])
        assert not re.search(r"site-packages|/home/\w|/root/|/tmp/\w", outputs), f.name


def test_links_between_notebooks_and_pages_lead_somewhere():
    texts = {f: f.read_text() for f in [ROOT/"README.md", *(ROOT/"reports").glob("*.md"), *(ROOT/"nbs").rglob("*.md")]}
    for f in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in f.parts: texts[f] = "\n".join("".join(c["source"]) for c in json.loads(f.read_text())["cells"] if c["cell_type"] == "markdown")
    found = [(f, target) for f, text in texts.items() for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text) for target in target if target]
    broken = [f"{f.relative_to(ROOT)} → {target}" for f, target in found if not re.match(r"[a-z]+:|#", target) and not (f.parent/target.split("#")[0]).exists()]
    assert len(found) > 30 and not broken, broken


# -- walls -------------------------------------------------------------------------------------------------------------

MODULES = {".".join(f.relative_to(ROOT/"abs_lab").with_suffix("").parts): f for f in sorted((ROOT/"abs_lab").rglob("*.py")) if f.name not in ("__init__.py", "_modidx.py")}


def imports(module, top_only=False):
    "Full names of the modules that a module imports, anywhere in it or at its top level alone."
    tree = ast.parse(MODULES[module].read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    home = ["abs_lab", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if top_only and id(node) in inside: continue
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join([*home[:len(home) + 1 - node.level], *filter(None, [node.module])]) if node.level else node.module
            whole = [f"{base}.{a.name}" for a in node.names]
            yield from (name if name.removeprefix("abs_lab.") in MODULES else base for name in whole)


def ours(module): return {name.removeprefix("abs_lab.") for name in imports(module) if name.startswith("abs_lab.")}


def floor(module): return FLOORS.index(module.split(".")[0]) if "." in module else len(FLOORS)


def notebooks():
    "Module → the notebook that exports it."
    found = {}
    for f in sorted((ROOT/"nbs").rglob("*.ipynb")):
        if name := re.search(r"#\| *default_exp:? +([\w.]+)", f.read_text()): found[name[1]] = f
    return found


def test_nbs_and_abs_lab_have_the_same_floors_and_rooms():
    assert notebooks().keys() == MODULES.keys()
    for module, f in notebooks().items():
        where, _, name = module.rpartition(".")
        assert f.parent == ROOT/"nbs"/where and (not where or re.fullmatch(rf"\d\d_{name.strip('_')}", f.stem)), f


@pytest.mark.parametrize("name", FLOORS)
def test_notebooks_are_numbered_within_their_floor_without_gaps_or_twins(name):
    numbers = [int(f.name[:2]) for f in sorted((ROOT/"nbs"/name).glob("*.ipynb"))]
    assert numbers == list(range(len(numbers)))


def test_a_floor_never_imports_from_a_higher_one():
    assert {module.split(".")[0] for module in MODULES if "." in module} == set(FLOORS)
    for module in MODULES:
        above = {m for m in ours(module) if floor(m) > floor(module)}
        assert not above, f"{module} imports {above}"


def test_modules_of_a_floor_import_one_another_in_the_order_of_their_notebooks():
    place = {module: f.name for module, f in notebooks().items()}
    for module in MODULES:
        later = {m for m in ours(module) if floor(m) == floor(module) and place[m] >= place[module]}
        assert not later, f"{module} imports {later}"


def test_agents_know_neither_controllers_nor_meters():
    for module in MODULES:
        if module.startswith("agents."): assert not ours(module) & {"core.controllers", "core.divergence"}, module


def test_only_agents_know_what_an_agent_is_called():
    "The registry, `configure`'s default and the built-in studies may name one; nobody else compares a name with an agent's."
    for module in MODULES:
        if module.startswith("agents.") or module in ("runs.registry", "studies.catalogue"): continue
        tree = ast.parse(MODULES[module].read_text())
        allowed = {id(d) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "configure" for d in f.args.defaults} if module == "runs.config" else set()
        told = [n for n in ast.walk(tree) if isinstance(n, (ast.Compare, ast.Match, ast.Dict, ast.Subscript)) for c in ast.walk(n) if id(c) not in allowed and isinstance(c, ast.Constant) and c.value in ("pqn", "ppo", "btr")]
        assert not told, f"{module}, line {told[0].lineno}: {ast.unparse(told[0])}"


def test_no_package_exports_a_function_named_like_one_of_its_modules():
    import abs_lab
    assert set(abs_lab.__all__) == set(abs_lab._HOME) and all(callable(getattr(abs_lab, name)) for name in abs_lab.__all__)
    for name in FLOORS: assert not re.search(r"^\s*(from|import|def|\w+ =)", (ROOT/"abs_lab"/name/"__init__.py").read_text(), re.M), name
    assert not {*abs_lab.__all__} & {*FLOORS, *MODULES}


@pytest.mark.parametrize("module", CORE)
def test_core_modules_import_little_at_the_top(module):
    tops = {name.split(".")[0] for name in imports(module, top_only=True)} - sys.stdlib_module_names
    assert tops <= BARE - {"envpool"} | {"abs_lab"}  # envpool: inside the functions that need it


def test_the_top_level_offers_what_a_user_needs_first_and_imports_it_when_asked():
    names = "configure, run, Runs, load_agent, Session, dashboard, ABS, Divergence, Measurement, train"
    code = f"import sys; import abs_lab; assert 'torch' not in sys.modules; from abs_lab import {names}; print(all(map(callable, ({names}))), abs_lab.train is train)"
    done = python("-c", code)
    assert done.stdout == "True True\n", done.stderr


BLOCK = """
    import importlib.metadata as md, re, sys
    from importlib.machinery import PathFinder
    norm = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    kept, queue = {"abs-lab"}, list(KEEP)
    while queue:                              # the kept packages and whatever they themselves require
        name = norm(queue.pop())
        if name in kept: continue
        kept.add(name)
        try: queue += [re.match(r"[\\w.-]+", r)[0] for r in md.requires(name) or [] if "extra ==" not in r]
        except md.PackageNotFoundError: pass
    blocked = {top for top, dists in md.packages_distributions().items() if not any(norm(d) in kept for d in dists)}
    class Filtered(PathFinder):               # to it the blocked packages are not installed
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.split(".")[0] in blocked else super().find_spec(name, path, target)
    sys.meta_path = [Filtered if finder is PathFinder else finder for finder in sys.meta_path]
    missing = set(OUTSIDE) - blocked
    assert not missing, missing
"""


def bare(code, keep=BARE, cwd=ROOT):
    "Run `code` where only the packages `keep`, and what they require, can be imported."
    setup = f"KEEP, OUTSIDE, CORE = {sorted(keep)!r}, {OUTSIDE!r}, {CORE!r}\n" + textwrap.dedent(BLOCK)
    done = python("-c", setup + textwrap.dedent(code), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("envpool", [True, False], ids=["envpool", "no envpool"])
def test_the_core_imports_with_only_the_bare_packages(envpool):
    out = bare("""
        import importlib
        for name in CORE: importlib.import_module(f"abs_lab.{name}")
        print("imported", "envpool" in sys.modules)
    """, keep=BARE if envpool else BARE - {"envpool"})
    assert out == "imported False\n"  # EnvPool waits until it is needed


def test_the_core_trains_with_only_the_bare_packages(tmp_path):
    out = bare(f"""
        from abs_lab.runs.config import configure
        from abs_lab.runs.runner import run
        config = configure("pqn", preset="classic", controller="abs", env_id="CartPole-v1", total_steps=8_192, eval_episodes=1)
        print(run(config, {str(tmp_path/"run")!r})["status"])
    """)
    assert out.splitlines()[-1] == "finished"


def test_an_agent_of_ones_own_trains_with_only_the_bare_packages(tmp_path):
    shutil.copy(ROOT/"tests"/"own_agents.py", tmp_path)
    out = bare(f"""
        sys.path.insert(0, {str(ROOT)!r})
        from abs_lab import configure, run
        print(run(configure("own_agents:Reinforce", total_steps=4_096, eval_envs=2), "run")["status"])
    """, cwd=tmp_path)
    assert out.splitlines()[-1] == "finished"


def test_without_envpool_gymnasium_serves_and_says_so(tmp_path):
    out = bare(f"""
        import warnings
        from abs_lab.runs.config import configure
        from abs_lab.core.envs import VecEnvs
        from abs_lab.core.simulators import EnvConfig
        from abs_lab.core.interfaces import AbsLabError
        from abs_lab.runs.runner import run
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = run(configure(env_id="CartPole-v1", num_envs=8, total_steps=2_048, eval_envs=2), {str(tmp_path/"run")!r})
        print(result["status"], result["backend"], any("EnvPool is not available here" in str(w.message) and "CartPole-v1" in str(w.message) for w in said))
        for wrong in (dict(env_id="Pong-v5"), dict(env_id="CartPole-v1", backend="envpool")):
            try: VecEnvs(EnvConfig(**wrong))
            except AbsLabError as e: print(e)
        from abs_lab.core.envpool import envpool_with, family_of
        print([family_of("Pong-v5")], isinstance(envpool_with("Pong-v5"), ImportError))
    """, keep=BARE - {"envpool"} | {"optree"})  # torch looks for optree by its metadata, which cannot be hidden
    first, auto, asked, lacking = out.splitlines()
    assert lacking == "[''] True"
    assert first == "finished gymnasium True"
    assert "Pong-v5" in auto and "EnvPool, which may, is not available here" in auto
    assert "backend 'envpool' is not available" in asked and "use backend 'gymnasium'" in asked


def test_a_commit_that_leaves_the_library_alone_leaves_its_name(copy):
    git = lambda *args: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *args], cwd=copy, check=True, capture_output=True, text=True).stdout
    name = lambda: python("-c", "from abs_lab.runs.provenance import commit; print(commit())", cwd=copy).stdout.strip()
    shutil.copy(ROOT/".gitignore", copy)
    git("init", "-q"); git("add", "-A"); git("commit", "-qm", "all")
    first = name()
    (copy/"prose.md").write_text("x"); git("add", "-A"); git("commit", "-qm", "prose")
    assert name() == first == git("rev-parse", "--short=12", "HEAD~1").strip()
    (copy/"abs_lab"/"core"/"interfaces.py").write_text((copy/"abs_lab"/"core"/"interfaces.py").read_text() + "\n")
    assert name() == f"{first}-dirty"
    git("commit", "-qam", "library")
    assert name() == git("rev-parse", "--short=12", "HEAD").strip() != first


@pytest.fixture
def wheel(copy):
    for file in ("LICENSE", "settings.ini", "setup.py", "MANIFEST.in"): shutil.copy(ROOT/file, copy)
    done = python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", copy/"wheels", copy, cwd=copy)
    assert done.returncode == 0, done.stderr
    return next((copy/"wheels").glob("abs_lab-*.whl"))


def test_a_wheel_holds_every_floor_the_notebooks_of_studies_and_what_lies_beside_the_code(copy, wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("abs_lab/")}
    there = {str(f.relative_to(copy)) for f in (copy/"abs_lab").rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    notebooks = {f"abs_lab/{path}" for study in STUDIES.values() for path in (study.notebook, study.figures)}
    assert held == there | {f"abs_lab/{f.relative_to(copy)}" for folder in ("experiments", "figures") for f in (copy/"nbs"/folder).iterdir() if f.suffix in (".ipynb", ".json")} and notebooks <= held and {f"abs_lab/{name}/__init__.py" for name in FLOORS} | {"abs_lab/nbs/figures/tasks-reference.json", "abs_lab/py.typed", "abs_lab/runs/__main__.py", "abs_lab/runs/fingerprints.json"} <= held


@pytest.mark.long
def test_a_wheel_in_an_empty_environment_works_in_an_empty_folder(wheel, tmp_path):
    (work := tmp_path/"work").mkdir()
    (own := tmp_path/"config"/"abs_lab").mkdir(parents=True)
    (own/"settings.ini").write_text("[abs_lab]\nruns_dir = mine\njobs = 2\n")
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH", "VIRTUAL_ENV") and not k.startswith("ABS_LAB_")} | dict(XDG_CONFIG_HOME=str(own.parent))
    def done(*command): return subprocess.run([*map(str, command)], cwd=work, env=env, check=True, capture_output=True, text=True).stdout
    done(sys.executable, "-m", "venv", tmp_path/"venv")
    bin = tmp_path/"venv"/"bin"
    done(bin/"pip", "install", "--quiet", f"{wheel}[dashboard]")
    assert "greedy evaluation" in done(bin/"abs-lab", "train", "pqn", "--env-id", "CartPole-v1", "--total-steps", 4_000, "--eval-envs", 2)
    assert "report: " in done(bin/"abs-lab", "reproduce", "quick", "--scale", "smoke")
    assert (work/"mine"/"quick-smoke"/"report"/"index.html").is_file() and {p.name for p in work.iterdir()} == {"mine"}
    assert "runs finished" in done(bin/"abs-lab", "status")
    page = subprocess.Popen([bin/"abs-lab", "dashboard", "--no-browser", "--port", "8893"], cwd=work, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        shown, until = b"", time.monotonic() + 180
        while b"abs_lab" not in shown and time.monotonic() < until:
            with suppress(OSError): shown = urllib.request.urlopen("http://127.0.0.1:8893", timeout=120).read()
            time.sleep(0.5)
        assert b"Training" in shown or b"jupyter-widgets" in shown
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(60)


# -- project files -----------------------------------------------------------------------------------------------------

def test_every_setting_is_documented_above_its_line():
    lines = (ROOT/"settings.ini").read_text().splitlines()
    parser = configparser.ConfigParser()
    parser.read(ROOT/"settings.ini")
    assert list(parser["abs_lab"]) == list(DEFAULTS)
    for key in parser["abs_lab"]:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        assert lines[at - 1].startswith("# "), key


def test_every_dependency_has_a_range():
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    extras = sum(project["optional-dependencies"].values(), [])
    for requirement in project["dependencies"] + extras:
        if requirement.startswith("abs_lab[") or requirement == "gymnasium[box2d]": continue  # ranges stand elsewhere
        assert re.match(r"[\w\[\]-]+>=[\d.]+,<[\d.]+(;|$)", requirement), requirement


needs_envpool = pytest.mark.skipif(not importlib.util.find_spec("envpool"), reason="needs EnvPool")

@needs_envpool
def test_a_simulator_is_loaded_when_one_of_its_environments_is_made():
    "EnvPool would load every family's, which takes longer than all that a small run computes."
    loaded = "sorted(name for name in sys.modules if name.endswith('_envpool') and not name.startswith('envpool.python') or name == 'matplotlib.pyplot')"
    first, made, ids = python("-c", f"""if True:
        import sys
        from abs_lab.core.envpool import envpool
        from abs_lab.core.envs import VecEnvs
        from abs_lab.core.simulators import EnvConfig
        pool = envpool()
        print({loaded})
        VecEnvs(EnvConfig(env_id="CartPole-v1", num_envs=2), 0).close()
        print({loaded})
        print(sorted(pool.list_all_envs()))""").stdout.splitlines()
    assert first == "[]" and made == "['envpool.classic_control.classic_control_envpool']"
    assert ids == python("-c", "import envpool; print(sorted(envpool.list_all_envs()))").stdout.strip()


@needs_envpool
def test_envpool_stays_what_it_is_for_other_code():
    out = python("-c", """if True:
        import importlib.util, threading
        from abs_lab.core import envpool as ours
        pools, start = [], threading.Barrier(4)
        def ask(): start.wait(); pools.append(len(ours.envpool().list_all_envs()))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(set(pools)), min(pools) > 1_000)
        import envpool
        print(envpool.atari.__name__, importlib.util.find_spec("envpool.entry").name, hasattr(envpool, "nothing"))
        import envpool.toy_text.registration as ids, envpool.mujoco.myosuite as own
        print(ids.__name__, own.__name__, len(own.__path__), envpool.make_gymnasium("Catch-v0", num_envs=1).reset()[0].shape[0])""")
    assert out.stdout.splitlines() == ["1 True", "envpool.atari envpool.entry False", "envpool.toy_text.registration envpool.mujoco.myosuite 1 1"], out.stderr


BLOCKED = """if True:
    import importlib.abc, sys, warnings
    class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, *_):
            if name == {name!r}: raise ImportError("libEGL.so.1: cannot open shared object file")
    sys.meta_path.insert(0, Block())
    from abs_lab.core.simulators import EnvConfig, backend_for
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        print([backend_for(EnvConfig(env_id=env_id)) for env_id in ("CartPole-v1", "Acrobot-v1", "Catch-v0")], *{{str(w.message) for w in said}})"""

@needs_envpool
@pytest.mark.parametrize("name, backends", [("envpool.toy_text.toy_text_envpool", None), ("envpool.classic_control.classic_control_envpool", ["gymnasium", "gymnasium", "envpool"]),
                                            ("envpool.atari.registration", ["envpool"] * 3), ("envpool.jumanji.jumanji_envpool", ["envpool"] * 3)])
def test_gymnasium_serves_where_a_family_of_envpool_cannot_be_loaded(name, backends):
    "A library that one family needs and the system lacks hurts that family alone."
    done = python("-c", BLOCKED.format(name=name))
    if backends is None: assert "Gymnasium does not know 'Catch-v0', and EnvPool, which may, is not available here (libEGL" in done.stderr
    else: assert done.stdout.startswith(str(backends)) and ("EnvPool is not available here (libEGL" in done.stdout) == ("gymnasium" in backends), done.stderr


@pytest.mark.skipif(not shutil.which("ldd") or not importlib.util.find_spec("envpool"), reason="needs Linux and EnvPool")
def test_envpool_brings_its_own_graphics_libraries():
    "A bare machine has none: a family of EnvPool's that asks the system for libEGL does not import there, and trainings of it fall back to Gymnasium."
    package = Path(importlib.util.find_spec("envpool").origin).parent
    found = [line.split(" => ") for f in package.rglob("*_envpool.so")
             for line in subprocess.run(["ldd", f], capture_output=True, text=True, check=True).stdout.splitlines() if " => " in line]
    graphics = [(name.strip(), path) for name, path in found if re.match(r"\s*lib(EGL|OpenGL)", name)]
    assert graphics and all(path.startswith(str(package.parent)) for name, path in graphics), graphics
