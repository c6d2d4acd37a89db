"Small files that other people bring: what is taken can be drawn, and says of itself what follows from it; the rest is refused by name."
import copy, json, math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abs_lab.core import divergence
from abs_lab.core.interfaces import AbsLabError
from abs_lab.reports import figures, sentences
from abs_lab.runs.config import recorded
from abs_lab.studies import results
from abs_lab.studies.results import environments, load_small, merge, read_result
from strategies import HOSTILE, NUMBERS, plain
from support import ROOT

DATA = ROOT/"reports"/"quick"/"data"
WORD = {"a": None, "b": "x", "c": [], "d": [None], "e": {}, "f": True, "g": -1, "h": 0, "i": 1.5, "j": "\x1b[2J", "k": [["x"]], "l": 10**400, "m": 10**30}


@pytest.fixture(scope="module")
def small():
    "A run of ABS, as it is written today."
    run = next(s for s in map(load_small, sorted(DATA.glob("*.json"))) if s["params"]["controller"] == "abs")
    config = recorded(dict(config={k: v for k, v in run["params"].items() if k != "arm"}))
    return run | dict(identity=config.identity(), kinds=dict(meter=dict(signal=["divergence D", "share of states"])), study="quick")


def places(value, at=()):
    "Every place in a file, of long lists the first and the last."
    yield at
    if isinstance(value, dict): parts = value.items()
    elif isinstance(value, list): parts = [(i, value[i]) for i in sorted({0, len(value) - 1}) if value]
    else: return
    for key, part in parts: yield from places(part, (*at, key))


GONE = object()


def changed(small, at, value):
    "A copy with another value at a place, or without it."
    out = copy.deepcopy(small)
    if not at: return value
    part = out
    for key in at[:-1]: part = part[key]
    if value is GONE: del part[at[-1]]
    else: part[at[-1]] = value
    return out


def read(small, tmp_path, name):
    "The file as it is read; None: it is refused, by its name and briefly."
    path = tmp_path/f"{name}.json"
    path.write_text(json.dumps(small))
    try: return read_result(path)
    except AbsLabError as e: assert name in str(e) and len(str(e)) < 1_500 and "\x1b" not in str(e)


def draw(small, whole=False):
    "All that a report says of a run; with its figures if the whole is asked for."
    runs = [small]
    for table in (sentences.task_table, sentences.evaluation, sentences.cost, sentences.divergence_table, sentences.results): table(runs)
    sentences.parameters(runs), sentences.provenance(runs, True), sentences.cautions(runs, [])
    if whole:
        for figure in (figures.final, figures.learning_curves, figures.batch_size, figures.gradient_steps, figures.divergence, figures.wall_clock): figure(runs).to_json()


def test_the_distances_are_those_of_the_library():
    assert {*results.DISTANCES} == {"auto", "kl", *divergence.DISTANCES}


def written(small, folder):
    (folder/f"{small['id']}.json").write_text(json.dumps(small))
    return folder/f"{small['id']}.json"


def test_an_estimator_that_there_is_not(small, tmp_path):
    bare = {k: v for k, v in small.items() if k not in ("kinds", "identity")}
    for estimator in ("made up", None):
        with pytest.raises(AbsLabError, match="has no estimator"): load_small(written(bare | dict(params=small["params"] | dict(meter="gns", estimator=estimator)), tmp_path))


def test_every_committed_file_holds_what_it_has_to():
    for path in sorted((ROOT/"reports").glob("*/data/*.json")): assert load_small(path)["result"]["status"] == "finished"


@pytest.mark.parametrize("at, value", [
    ("curve.thresholds", None), ("curve.thresholds", [0.05]), ("curve.thresholds", ["low", "high"]), ("curve.thresholds", [0.1, 0.95]), ("curve.signal", None), ("curve.signal", "x"), ("curve.loss", [["x"]]),
    ("curve.return.0", "x"), ("curve.return.0", math.nan), ("curve.size.0", 0), ("curve.step.0", 10**9), ("curve.step.0", GONE), ("curve.size", GONE), ("curve.seconds.0", 1e9), ("curve.epochs", GONE), ("curve.epochs.0", None), ("curve.epochs.0", -1),
    ("curve.seconds", 0.0), ("curve.epochs", 0), ("curve.return", None), ("result.episodes", 0), ("result.train_return", None),
    ("result.seconds", 0), ("result.seconds", "1"), ("result.seconds", math.inf), ("result.steps", 1), ("result.gradient_steps", 1), ("result.updates", 0), ("result.measurements", 10**9), ("result.measurements", True),
    ("result.mean_size", 1e6), ("result.frames", 7), ("result.final_size", None), ("result.hardware", "a machine"), ("result.hardware", None), ("result.hardware", GONE), ("result.hardware", {}), ("result.hardware.cpu", ["x"]), ("result.commit", 12), ("result.commit", "a\nb"),
    ("result.versions", ["x"]), ("result.versions", GONE), ("result.versions.torch", 2.1), ("result.fingerprint", "x"), ("result.earlier", [None]), ("result.status", "running"), ("result.id", "another"), ("result", None), ("result.eval", GONE),
    ("result.eval.mean", 1e6), ("result.eval.mean", None), ("result.eval.returns", []), ("result.eval.returns", None), ("result.eval.returns.0", 1e6), ("result.eval.returns.0", math.nan),
    ("params.arm", 3), ("params.arm", ""), ("params.arm", GONE), ("params.arm", "\x1b[2J"), ("params.arm", "x" * 10_000), ("params.seed", "0"), ("params.seed", GONE), ("params.env_id", None), ("params.controller", ["abs"]),
    ("params.epochs", "2"), ("params.low", "0.05"), ("params.total_steps", 10**12), ("params.lr", math.nan), ("params", []), ("schedule.ends", []), ("schedule.sizes.0", 0), ("schedule.ends.0", 10**9), ("schedule", "x"), ("schedule", GONE), ("params.agent", GONE), ("params.agent", ""),
    ("result.eval.num_envs", "x"), ("result.eval.episodes_per_env", 0), ("result.eval.epsilon", 2), ("result.eval.unfinished", math.nan), ("result.eval.unfinished", 10**6), ("result.eval.lengths", [5]), ("result.eval.lengths.0", "x"),
    ("result.eval.mine", math.nan), ("result.episodes", "many"), ("result.backend", 5), ("result.device", {}), ("params.distance", "made up"), ("params.distance", {}), ("params.per_step", math.nan), ("jobs", "x"), ("jobs", math.nan), ("jobs", 0),
    ("kinds.meter.quantity", math.nan), ("kinds.agent", dict(size=["L"], metrics={}, settable=[math.inf])), ("mine", math.nan), ("identity.format", 10**400), ("identity", [1]), ("kinds.meter", "x"), ("kinds.meter.signal", []), ("kinds.agent", {}), ("study", "../elsewhere"), ("id", "../../evil"), ("id", 7),
    ("params.arm", "   "), ("params.", 1), ("params.a\nb", 1), ("curve.a\x1b", 1.0), ("result.measurements", 0), ("curve.size", 1), ("result.updates", 10**15), ("result.eval.lengths", [0]),
], ids=lambda v: v if isinstance(v, str) and "." in v else ascii(v)[:24] if v is not GONE else "gone")
def test_what_cannot_be_drawn_or_does_not_follow_is_refused(small, tmp_path, at, value):
    if at == "params.distance": small = {k: v for k, v in small.items() if k != "kinds"}  # nothing but the distance names the signal
    if at in ("curve.seconds", "curve.epochs", "curve.return", "curve.a\x1b", "curve.size") and value is not GONE or at == "curve.signal" and value is None: value = [value] * len(small["curve"]["step"])
    if at == "result.eval.lengths" and value == [0]: value = value * len(small["result"]["eval"]["returns"])
    bad = changed(small, [int(part) if part.isdigit() else part for part in at.split(".")], value)
    if "study" not in at: assert read(bad, tmp_path, small["id"]) is None
    (tmp_path/"in").mkdir()
    (tmp_path/"in"/f"{small['id']}.json").write_text(json.dumps(bad))
    taken, same, refused = merge(tmp_path/"in", tmp_path/"reports")
    assert (taken, same, len(refused)) == ([], [], 1) and not (tmp_path/"reports").exists()


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.long)])
def test_whatever_is_changed_a_file_is_refused_or_drawn(small, tmp_path, every):
    "Any value in any place."
    tried = [(at, value) for at in places(small) for value in (GONE, *WORD.values(), math.nan, math.inf, "<b>x</b>", "=1+1") if at or value is not GONE]
    taken = 0
    for at, value in tried[::every]:
        found = read(changed(small, at, value), tmp_path, small["id"])
        if found: draw(found, every == 1 and taken % 5 == 0); taken += 1
    assert 0 < taken < len(tried) / every


@pytest.mark.parametrize("examples", [25, pytest.param(3_000, marks=pytest.mark.long)])
def test_whatever_others_write_is_refused_or_drawn(small, tmp_path_factory, examples):
    folder, every = tmp_path_factory.mktemp("files"), [*places(small)]
    written = st.recursive(plain.filter(lambda v: not isinstance(v, int) or abs(v) < 10**4000), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(HOSTILE[:-2]), inner, max_size=3), max_leaves=4)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, len(every) - 1), written), min_size=1, max_size=3))
    def take(changes):
        bad = small
        for i, value in changes:
            try: bad = changed(bad, every[i], value)
            except (KeyError, IndexError, TypeError): pass  # what held it is gone
        found = read(bad, folder, small["id"])
        if found: draw(found)
    take()


@pytest.mark.parametrize("text", ["", "[", "NaN", "[" * 100_000, '{"a":' * 100_000, "7", '"x"', "\ufeff{}", "{}"])
def test_files_that_hold_something_else(tmp_path, text):
    (tmp_path/"x.json").write_text(text, encoding="utf-8")
    for reader in (read_result, load_small, lambda path: figures.load(path.parent)):
        with pytest.raises(AbsLabError, match="x.json"): reader(tmp_path/"x.json")


def other(small, tmp_path, env_id):
    "The same run on another task, under its own name, in a folder to be merged."
    params = {k: v for k, v in small["params"].items() if k != "arm"} | dict(env_id=env_id)
    identity = small["identity"] | dict(env_id=env_id)
    from abs_lab.runs.storage import run_id
    id = run_id(env_id, params["controller"], params["seed"], identity)
    out = small | dict(id=id, identity=identity, params=params | dict(arm=small["params"]["arm"]), result=small["result"] | dict(id=id))
    (tmp_path/"in").mkdir(exist_ok=True)
    (tmp_path/"in"/f"{id}.json").write_text(json.dumps(out))
    return tmp_path/"in", tmp_path/"reports"


@pytest.mark.parametrize("env_id, tasks, fine", [("Pong-v5", (), True), ("CartPole-v1", (), True), ("MinAtar/Breakout-v1", (), True), ("ALE/Pong-v5", (), True), ("no_such_module:Walk-v0", (), True), ("Walk-v0", ["Walk-v0"], True),
                                                 ("Walk-v0", (), False), ("Pongg-v5", (), False), ("<b>", (), False), ("a b:c", (), False), ("", (), False)])
def test_an_environment_that_nobody_has_heard_of_is_refused_unless_told(small, tmp_path, env_id, tasks, fine):
    source, reports = other(small, tmp_path, env_id)
    taken, _, refused = merge(source, reports, known=dict(quick=tasks))
    assert bool(taken) == fine and ("--any-environment" in "".join(refused.values())) == (not fine)
    if not fine: assert len(merge(source, reports, known=dict(quick=tasks), any_environment=True)[0]) == 1


def test_the_list_of_environments_is_a_list():
    assert {"LunarLander-v3", "HalfCheetah-v4", "Pong-v5"} <= environments() and not any(":" in name for name in environments()) and len(NUMBERS) > 20
