"Parameters of any type and size: a run that is taken can be written down, and what is refused is named in a message of bearable length."
import json, sys, warnings
from contextlib import suppress
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abs_lab import cli
from abs_lab.core.contract import AgentConfig
from abs_lab.core.interfaces import AbsLabError, quoted, whole
from abs_lab.core.machine import check_jobs
from abs_lab.core.simulators import EnvConfig, backend_for
from abs_lab.runs.config import OWN, _built, configure, recorded
from abs_lab.runs import runner
from abs_lab.runs.parties import device_of
from abs_lab.runs.registry import BUILT_IN, find
from abs_lab.runs.settings import DEFAULTS, FOLDERS, settings as settings_
from abs_lab.runs.storage import Lease, contents
from abs_lab.studies import campaign
from abs_lab.studies.engine import reproduce, run_queue
from strategies import HOSTILE, NUMBERS, UNWRITTEN, anything
from support import ROOT

KINDS = [(agent, controller, meter) for agent in BUILT_IN["agent"] for controller in BUILT_IN["controller"] for meter in BUILT_IN["meter"]
         if (meter == "gns") <= (controller in ("abs", "gns")) and (controller == "gns") <= (meter == "gns") and (agent != "btr" or meter != "gns")]


def parameters(agent, controller, meter):
    "The names of a run's parameters."
    parts = (EnvConfig, find("agent", agent).Config, find("meter", meter), find("controller", controller))
    return [*dict.fromkeys([f.name for part in parts for f in fields(part) if f.init]), *OWN, "origin"]


def tried(agent, controller, meter, **params):
    "Whether `configure` takes these; what it takes can be written down, and what it refuses it says briefly."
    try: config = configure(agent, controller=controller, meter=meter, **params)
    except AbsLabError as e:
        said = str(e)
        assert len(said) < 1_000 and "\x1b" not in said and "x" * 201 not in said and "0" * 201 not in said, said[:2_000]
        return False
    text = json.dumps(config.record(), allow_nan=False)
    again = configure(**json.loads(text)["config"])
    assert again.identity() == config.identity() and again.id == config.id
    return True


@pytest.mark.parametrize("kinds", [pytest.param(kinds, marks=() if kinds == KINDS[0] else pytest.mark.long) for kinds in KINDS], ids="-".join)
def test_every_parameter_takes_what_can_be_written_down_and_refuses_the_rest(kinds):
    values = [None, True, "x", [], [1.5], {}, "\ud800", *NUMBERS, *HOSTILE[:2], *UNWRITTEN] if kinds != KINDS[0] else [None, True, "x", [1.5], 2**63, 10**400, 10**5000, 1e308, float("inf"), float("nan"), *UNWRITTEN[3:6]]
    seen = {tried(*kinds, **{name: value}) for name in parameters(*kinds) for value in values}
    assert seen == {True, False}


@pytest.mark.parametrize("examples", [60, pytest.param(5_000, marks=pytest.mark.long)])
def test_parameters_together(examples):
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def take(data):
        kinds = data.draw(st.sampled_from(KINDS))
        tried(*kinds, **data.draw(st.dictionaries(st.sampled_from(parameters(*kinds)), anything, min_size=1, max_size=4)))
    take()


@pytest.mark.parametrize("value", [None, 3, 10**400, b"pqn", UNWRITTEN[3], "x" * 100_000, ["pqn"], "\x1b[2J"], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", ["agent", "preset", "controller", "meter", "env_id", "origin"])
def test_names_of_any_type(name, value):
    try: config = configure(**{name: value})
    except AbsLabError as e: assert len(str(e)) < 1_500 and "\x1b" not in str(e); return
    assert name in ("env_id", "origin") and isinstance(value, str)  # text, so far
    if name == "origin": return
    with warnings.catch_warnings(), pytest.raises(AbsLabError) as e:
        warnings.simplefilter("ignore")
        backend_for(config.env)
    assert len(str(e.value)) < 1_500 and "\x1b" not in str(e.value)


@pytest.mark.parametrize("env_id", HOSTILE + ["\ud800", "no_such_module_here:Env-v0", ":", "a:", ":b-v0", "a:b:c", "ALE/Pong", "x" * 300 + "-v0", "os:Pong-v5", "-v0"], ids=lambda v: ascii(v)[:20])
def test_an_environment_that_nobody_has(env_id):
    try: config = configure(env_id=env_id)
    except AbsLabError: return
    with pytest.raises(AbsLabError) as e: backend_for(config.env)
    assert len(str(e.value)) < 1_500 and "\x1b" not in str(e.value)


def test_what_is_quoted_is_short():
    assert {len(quoted(v)) <= 200 for v in (*NUMBERS, *HOSTILE, *UNWRITTEN, [*range(10**5)])} == {True}
    for bad in (10**400, -10**400, 1e308, float("inf"), float("nan"), 1.5, "3", True, None):
        with pytest.raises(AbsLabError) as e: whole("size", bad)
        assert len(str(e.value)) < 400 and "nearest is " in str(e.value)


LONG = "x" * 100_000

def said(act):
    "The message with which something is refused."
    with pytest.raises(AbsLabError) as e: act()
    return str(e.value)

@pytest.mark.parametrize("key", DEFAULTS)
def test_a_settings_value_is_not_repeated_at_length(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (f"${LONG}", LONG, f"~{LONG}/x", "x/" * 50_000):
        monkeypatch.setenv(f"ABS_LAB_{key.upper()}", value)
        if isinstance(DEFAULTS[key], str) and key not in FOLDERS and value[0] != "$": settings_()  # the part that uses it says what is wrong
        else: assert len(said(settings_)) < 700, key
    for text in (f"[abs_lab]\n{key} = ${LONG}", f"[abs_lab]\n{LONG}", f"[abs_lab]\n{LONG} = 1"):
        monkeypatch.delenv(f"ABS_LAB_{key.upper()}", raising=False)
        (tmp_path/"settings.ini").write_text(text)
        assert len(said(settings_)) < 900, text[:30]

@pytest.mark.parametrize("text, wanted", [("\ufeff[abs_lab]\nthreads = 2\n", 2), ("[abs_lab]\rthreads = 2\r", 2), ("[DEFAULT]\nx = 1\n[abs_lab]\nthreads = 2\n", 2), ("[abs_lab]\nthreads =\n", 0), ("# [abs_lab]\n[theirs]\nx = 1\n", 0), ("[abs_laboratory]\n[x", 0),
    ("[abs_lab]\nruns_dir = a\0b\n", "control"), ("[abs_lab]\nruns_dir = a\n  b\n", "control"), ("[abs_lab]\ndevice = \x1b[2J\n", "control"), ("[ABS_LAB]\nthreads = 2\n", "did you mean abs_lab"), ("[ abs-lab ]\n", "did you mean abs_lab"),
    ("[abs_lab\n", "cannot be read"), ("[abs_lab]\nthreads = 1\n[abs_lab]\nthreads = 2\n", "already exists"), ("[abs_lab]\nthreads\n", "cannot be read"), ("[abs_lab]\ncpus_per_run = inf\n", "at most"), ("[abs_lab]\nruns_dir = é\n".encode("latin-1"), "cannot be read"),
    ("[abs_lab]\nthreads = 2\n".encode("utf-16"), "cannot be read")], ids=lambda v: ascii(v)[:30])
def test_a_settings_file_is_read_or_refused_and_never_passed_over(text, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABS_LAB_THREADS", raising=False)
    (tmp_path/"settings.ini").write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(wanted, str): assert wanted in said(settings_)
    else: assert settings_()["threads"] == wanted


def test_a_users_own_settings_serve_where_the_folder_has_none(tmp_path, monkeypatch):
    for key in ("THREADS", "JOBS", "RUNS_DIR"): monkeypatch.delenv(f"ABS_LAB_{key}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path/"home"))
    for folder in ("home/abs_lab", "work/below"): (tmp_path/folder).mkdir(parents=True)
    (tmp_path/"home"/"abs_lab"/"settings.ini").write_text("[abs_lab]\nthreads = 3\nruns_dir = mine\n")
    monkeypatch.chdir(tmp_path/"work"/"below")
    assert settings_()["threads"] == 3 and settings_()["runs_dir"] == str((tmp_path/"work"/"below"/"mine").resolve())
    (tmp_path/"work"/"settings.ini").write_text("[abs_lab]\njobs = 2\n")
    assert (settings_()["threads"], settings_()["jobs"]) == (0, 2) and settings_()["runs_dir"] == str((tmp_path/"work"/"runs").resolve())


def test_a_working_directory_that_was_removed_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path/"gone").mkdir()
    monkeypatch.chdir(tmp_path/"gone")
    (tmp_path/"gone").rmdir()
    assert cli.main(["status"]) == 2 and "the working directory was removed" in capsys.readouterr().err


def test_nothing_that_somebody_gave_is_repeated_at_length(tmp_path, monkeypatch, capsys):
    (tmp_path/"lock").touch()
    (tmp_path/"lock.alive").write_text(f"another {LONG}")
    broken = type("Broken", (AgentConfig,), dict(__init__=lambda self, **_: (_ for _ in ()).throw(RuntimeError(LONG))))
    monkeypatch.setitem(sys.modules, "envpool", None)
    for act in (lambda: configure(**{LONG: b"x"}), lambda: configure(**{LONG: 1}), lambda: recorded(dict(config=dict(agent=LONG))), lambda: recorded(LONG), lambda: recorded(dict(config=dict(network=f"{LONG}:x"))), lambda: _built(broken, {}),
                lambda: backend_for(EnvConfig(f"MinAtar/{LONG}")), lambda: backend_for(EnvConfig(f"{LONG}:x-v0")), lambda: backend_for(EnvConfig(f"os:{LONG}")), lambda: find("agent", f"{LONG}:x"), lambda: find("agent", f"os:{LONG}"),
                lambda: device_of(LONG), lambda: contents(tmp_path/LONG), lambda: Lease(tmp_path/"lock")): assert len(said(act)) < 1_500
    for argv in (["merge", LONG], ["verify", LONG], ["status", LONG], ["train", LONG], ["reproduce", LONG], ["train", "pqn", f"--lr={LONG}"], ["train", "pqn", "--anneal-lr", LONG], [LONG]):
        assert cli.main(argv) == 2 and len(capsys.readouterr().err) < 1_500, argv[0]


@pytest.mark.parametrize("name", ["num_envs", "env_threads", "eval_envs", "threads", "jobs"])
def test_a_count_that_no_machine_holds_is_refused_before_any_work(name, monkeypatch):
    monkeypatch.setenv(f"ABS_LAB_{name.upper()}", str(10**13))
    assert f"{name} must be at most" in said(settings_ if name in DEFAULTS else lambda: configure(**{name: 10**13}))


def test_too_little_memory_is_a_sentence(tmp_path, monkeypatch):
    for error in (MemoryError("Unable to allocate 36.4 TiB"), RuntimeError("can't allocate memory: you tried to allocate 1 bytes")):
        def refuse(*_, error=error): raise error
        monkeypatch.setattr(runner, "Run", refuse)
        assert "this machine has not the memory" in said(lambda: runner.run(configure(), tmp_path/"x"))


@pytest.mark.parametrize("argv, said_", [
    (["reproduce", "quick", "--jobs", str(10**9)], "jobs must be at most"), (["reproduce", "quick", "--jobs", str(10**9), "--dry-run"], "jobs must be at most"),
    (["reproduce", "quick", "--seeds", str(10**9), "--dry-run"], "seeds must be at most 10,000"), (["dashboard", "--port", "70000"], "port must be from 1 to 65535"),
    (["train", "pqn", "--env-threads", "1025"], "env_threads must be at most 1,024")])
def test_a_count_of_the_command_line_that_makes_no_sense_starts_nothing(argv, said_, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path/"runs"))
    with suppress(SystemExit): assert cli.main(argv) == 2  # tyro's own box is an exit
    assert said_ in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_more_jobs_than_make_sense_are_refused_wherever_they_are_named(tmp_path, monkeypatch, capsys):
    assert campaign.main(["quick", "--out", str(tmp_path/"out"), "--jobs", str(10**9)]) == 2 and "jobs must be at most" in capsys.readouterr().err
    assert "jobs must be at most" in said(lambda: run_queue(ROOT/"nbs/experiments/run.ipynb", [], tmp_path, 10**9))
    monkeypatch.setenv("ABS_LAB_JOBS", "60000")
    assert "jobs must be at most" in said(lambda: reproduce("quick")) and "jobs must be at most 65,536" in said(lambda: check_jobs(10**9, here=False))
    assert not [*tmp_path.iterdir()]
