"Text and arguments on their way out: to files and terminals of any locale, to processes, to pages that are open for long."
import ast, json, subprocess, sys, time
from types import SimpleNamespace

import pytest

from abs_lab.core.interfaces import warn
from abs_lab.runs.storage import Busy
from abs_lab.studies import engine, workers
from support import ROOT, environment

LATIN = dict(LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def opened(source):
    "The lines of some code that open a file as text, or read a process's output, in whatever encoding the machine has."
    for n in ast.walk(ast.parse(source)):
        if not isinstance(n, ast.Call): continue
        name, named = n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", ""), {k.arg for k in n.keywords}
        of = n.func.value.id if isinstance(n.func, ast.Attribute) and isinstance(n.func.value, ast.Name) else ""
        binary = name in ("open", "NamedTemporaryFile", "TemporaryFile", "fdopen") and any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in n.args[1:2] + [k.value for k in n.keywords if k.arg == "mode"])
        text = name in ("read_text", "write_text") or name == "open" and isinstance(n.func, ast.Name) or name == "fdopen" or (name == "read" and of == "parser") or "text" in named and name in ("run", "Popen", "check_output")
        if text and not binary and "encoding" not in named: yield n.lineno


@pytest.mark.parametrize("folder", ["abs_lab", "tools", "benchmarks"])
def test_every_file_is_opened_with_its_encoding_named(folder):
    found = [f"{path}:{line}" for path in sorted((ROOT/folder).rglob("*.py")) for line in opened(path.read_text(encoding="utf-8"))]
    assert not found, found


def test_a_warning_commands_no_terminal_and_every_warning_is_given_so():
    with pytest.warns(UserWarning) as caught: warn("passed over: \x1b]0;gone\x07\u202e", 1)
    assert str(caught[0].message) == r"passed over: \x1b]0;gone\x07\u202e" and caught[0].filename == __file__
    assert str(Busy("\x1b[2J")) == r"\x1b[2J"
    given = [str(path) for path in sorted((ROOT/"abs_lab").rglob("*.py")) if path.name != "interfaces.py" and "warnings.warn(" in path.read_text(encoding="utf-8")]
    assert not given


def test_a_locale_without_unicode(tmp_path):
    "Reports and small files are the same everywhere; a terminal gets what it can show, and an escape sequence reaches none."
    code = """import sys
from pathlib import Path
from abs_lab import cli
from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.storage import write_json
write_json(Path("a.json"), dict(arm="ABS 16–64"), ensure_ascii=False)
def refuse(argv):
    cli.say("arm ABS 16–64\\x1b]0;gone\\x07")
    raise AbsLabError("no such arm: ABS 16–64\\x1b[2J")
cli.COMMANDS["refuse"] = refuse
sys.exit(cli.main(["refuse"]) - 2 or cli.main(["reproduce", "--help"]))"""
    (tmp_path/"code.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "code.py"], cwd=tmp_path, env=environment() | LATIN, capture_output=True)
    assert not done.returncode, done.stderr.decode(errors="replace")
    assert json.loads((tmp_path/"a.json").read_text(encoding="utf-8"))["arm"] == "ABS 16–64"
    assert b"\x1b" not in done.stdout + done.stderr and b"\\x1b[2J" in done.stderr and b"\\x1b]0;gone\\x07" in done.stdout and b"usage: abs-lab reproduce" in done.stdout


def test_more_arguments_than_a_command_line_holds(tmp_path, monkeypatch):
    "A page of 4,500 runs, and a run that replays a long schedule."
    repeat = [sys.executable, "-c", "import sys; print(len(sys.stdin.readline()), flush=True); sys.exit(3)"]
    monkeypatch.setattr(workers, "WORKER", repeat)
    monkeypatch.setattr(engine, "WORKER", repeat)
    point = dict(starts=[*range(100_000)], sizes=[16] * 100_000)
    assert workers._Nursery(1, tmp_path).ask([["in.ipynb", "out.ipynb", point], "worker.log", ""]) > 1_000_000
    study = SimpleNamespace(name="many", figures=str(ROOT/"nbs"/"figures"/"study.ipynb"), question="?", arms={})
    with pytest.raises(engine.AbsLabError, match="failed, see"):
        engine._draw(SimpleNamespace(study=study, report_dir=tmp_path, folders=[tmp_path]), "many", [f"LunarLander-v3-fixed-s{i}-{i:08x}" for i in range(45_000)], [], False, False)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_page_that_is_open_for_long_closes_its_widgets(tmp_path, monkeypatch, rounds):
    "Choices of an agent, of a tab, of a run, again and again."
    widget = pytest.importorskip("ipywidgets").widgets.widget
    from abs_lab.live.page import Page
    from abs_lab.runs.session import Session
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path))
    page = Page()
    after = [len(widget._instances)]
    for _ in range(rounds):
        for agent in ("ppo", "btr", "pqn"): page.form.top["agent"].value = agent
        for tab in ("Runs", "What if", "Train"): page.tabs.value = tab
        page.open_board(lambda: Session(page.form.config()))
        page.boards[0].choose()
        page.leave(page.boards[0])
        after.append(len(widget._instances))
    assert len({*after}) == 1 and not page.boards, after


def test_a_board_that_is_left_while_it_trains_closes_its_widgets_and_the_run_goes_on(tmp_path, monkeypatch):
    widget = pytest.importorskip("ipywidgets").widgets.widget
    from abs_lab.live.page import Page
    from abs_lab.runs.config import configure
    from abs_lab.runs.session import Session
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path))
    session = Session(configure(env_id="CartPole-v1", num_envs=8, total_steps=10**9))
    page = Page()
    before = len(widget._instances)
    for _ in range(2):
        page.open_board(lambda: Session.open(session.dir) if session.alive else session)
        board = page.boards[0]
        assert board.session is session
        if session.alive: board.controls.fields["low"].value = 0.01  # and at once away
        else: session.start()
        page.leave(board)
        assert len(widget._instances) == before and not page.boards
    board.thread.join(5)
    assert not board.thread.is_alive() and len(widget._instances) == before
    until = time.monotonic() + 20
    while not (session.run and session.run.progress.update > 3) and time.monotonic() < until: time.sleep(0.02)
    assert session.alive and session.run.progress.update > 3 and session.present.controller.low == 0.01
    session.stop()
    assert session.wait(20) == "stopped" and Session.open(session.dir) is not session
