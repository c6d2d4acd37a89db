"An agent, a controller and a meter that the library does not have pass the suite that its own pass, from modules beside a user's work."
import json, shutil, sys
from pathlib import Path

import pytest

from abs_lab.cli import main
from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.config import configure
from abs_lab.runs.registry import register
from abs_lab.studies.engine import reproduce
from abs_lab.studies.study import Study
from abs_lab.testing import PLACES, check
from support import ROOT

CART = dict(env_id="CartPole-v1", num_envs=16, total_steps=12_000, interval=2, eval_envs=2)
KINDS = {
    "reinforce": dict(agent="own_agents:Reinforce", total_steps=24_000, interval=2, warmup=2, eval_envs=2),
    "aimd": CART | dict(controller="own_rules:AIMD", limit=0.5),
    "weight move": CART | dict(meter="own_rules:WeightMove", low=0.001, high=0.1, warmup=2),
    "all three": CART | dict(agent="own_agents:Reinforce", controller="own_rules:AIMD", meter="own_rules:WeightMove"),
    "pqn": CART | dict(agent="pqn", warmup=2),
    "ppo": CART | dict(agent="ppo", warmup=2, total_steps=20_000),
    "btr": CART | dict(agent="btr", warmup=2, interval=16, total_steps=4_000, learning_starts=1_000, replay_size=20_000, record_every=10),
}
IN_CI = {("reinforce", place) for place in PLACES} | {("aimd", "killed"), ("weight move", "forked"), ("all three", "described"), ("pqn", "steered"), ("ppo", "unobserved"), ("btr", "trained")}
MATRIX = [pytest.param(kind, place, marks=[] if (kind, place) in IN_CI else pytest.mark.long) for kind in KINDS for place in PLACES]


@pytest.fixture
def desk(monkeypatch, tmp_path):
    "A folder as a user has it: modules of one's own, and a runs folder."
    folder = tmp_path/"a desk"
    folder.mkdir()
    for name in ("own_agents", "own_rules"):
        shutil.copy(ROOT/"tests"/f"{name}.py", folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != ROOT/"tests"])
    monkeypatch.chdir(folder)
    for key, value in dict(DEVICE="cpu", THREADS="1", RUNS_DIR=str(folder/"runs"), REPORTS_DIR=str(folder/"reports"), JOBS="2").items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)
    return folder


@pytest.mark.parametrize("kind, place", MATRIX)
def test_it_passes(kind, place, desk): check(place, desk/"here", **KINDS[kind])


@pytest.mark.long
def test_reinforce_learns_a_task_whose_answer_is_known(desk):
    from abs_lab.runs.runner import run
    result = run(configure("own_agents:Reinforce", total_steps=150_000, eval_envs=20), desk/"run")
    assert result["eval"]["mean"] > 150  # a random policy has 22


def test_the_command_line_shows_the_flags_of_an_agent_of_ones_own_and_trains_it(desk, capsys):
    with pytest.raises(SystemExit): main(["train", "own_agents:Reinforce", "--help"])
    said = capsys.readouterr().out
    assert "--gamma" in said and "discount per step, 0 to 1" in said and "--size-max" in said
    assert main(["train", "own_agents:Reinforce", "--controller", "own_rules:AIMD", "--total-steps", "4096", "--eval-envs", "2", "--limit", "0.3"]) == 0
    assert [d.name.rpartition("-")[0] for d in (desk/"runs"/"train").iterdir()] == ["CartPole-v1-own_rules-AIMD-s0"]
    assert main(["status", "train"]) == 0 and "1 of 1 runs finished" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, words", [
    (dict(agent="own_agents:Reinforced"), "did you mean Reinforce"), (dict(agent="own_agent:Reinforce"), "No module named 'own_agent'"), (dict(controller="own_rules:WeightMove"), "derived from abs_lab.Controller"),
    (dict(agent="reinforce"), "unknown agent 'reinforce'"), (dict(agent="own_agents:Reinforce", gama=0.9), "did you mean gamma"), (dict(agent="own_agents:Reinforce", gamma=1.5), "gamma must lie between 0 and 1"),
    (dict(agent="own_agents:Reinforce", preset="classic"), "unknown preset of own_agents:Reinforce 'classic'")])
def test_a_name_or_value_that_cannot_be_is_refused_before_anything_is_trained(wrong, words, desk):
    with pytest.raises(AbsLabError, match=words): configure(**wrong)


def test_two_owners_of_one_name_are_named(desk):
    (desk/"clash.py").write_text("from dataclasses import dataclass\nfrom abs_lab.core.contract import Controller\n\n@dataclass\nclass Clash(Controller):\n    lr: float = 1.0  # sizes per measurement\n    size: int = 16  # size\n")
    with pytest.raises(AbsLabError, match="parameter lr of PQNConfig belongs to PQNConfig and Clash"): configure(controller="clash:Clash")


def test_a_class_of_a_notebook_trains_here_and_a_batch_says_what_to_do(desk, monkeypatch):
    from abs_lab.core.contract import import_named
    from abs_lab.runs import registry
    monkeypatch.setitem(registry._registered, "controller", {})
    register(import_named("controller", "own_rules:AIMD"))
    check("trained", desk/"here", **CART | dict(controller="aimd"))
    with pytest.raises(AbsLabError, match="put the class into a module, say my_controller.py .* 'my_controller:AIMD'"):
        reproduce(Study("mine", "?", arms={"a": dict(controller="aimd")}, common=CART, seeds=1))


def test_an_entry_point_gives_an_installed_package_a_short_name(desk, monkeypatch):
    from abs_lab.runs import registry
    info = desk/"site"/"own_stuff-1.0.dist-info"
    info.mkdir(parents=True)
    (info/"METADATA").write_text("Metadata-Version: 2.1\nName: own-stuff\nVersion: 1.0\n")
    (info/"entry_points.txt").write_text("[abs_lab.controllers]\naimd = own_rules:AIMD\n")
    monkeypatch.syspath_prepend(str(desk/"site"))
    registry._installed.cache_clear()
    try:
        assert configure(controller="aimd").controller.limit == 0.2 and "aimd" in registry.names("controller")
    finally: registry._installed.cache_clear()


def test_the_dashboards_form_takes_a_class_of_ones_own(desk):
    from abs_lab.live.page import Form
    form = Form()
    form.name.value = "own_agents:Reinforce"
    form.name.value = "own_rules:AIMD"
    config = form.config()
    assert config.names[0] == "own_agents:Reinforce" and config.names[2] == "own_rules:AIMD" and "limit" in form.fields and "gamma" in form.fields
    for wrong, words in (("own_rules:AIMB", "did you mean AIMD"), ("collections:deque", "is no agent, controller or meter"), ("aimd", "must be written module:Name")):
        form.name.value = wrong
        assert words in form.message.value.replace("&#x27;", "'"), form.message.value
    assert form.config().names == config.names


def test_a_run_keeps_its_name_through_its_file_whatever_its_parameters_are(desk):
    (desk/"pair.py").write_text("from dataclasses import dataclass\nfrom abs_lab import Controller\n\n@dataclass\nclass Pair(Controller):\n"
                                "    pair: tuple = (16, 32)  # two sizes\n    share: float | None = None  # of something\n    size: int = 16  # the size\n")
    for given in ({}, dict(pair=(16, 48), share=0.5)):
        config = configure(controller="pair:Pair", **given)
        again = configure(**json.loads(json.dumps(config.record()))["config"])
        assert again == config and again.id == config.id
    assert configure(controller="pair:Pair", pair=[16, 32]).id == configure(controller="pair:Pair").id


OWN = "from dataclasses import dataclass\nfrom abs_lab import Agent, Controller, Meter\n\n"

@pytest.mark.parametrize("source, given, words", [
    ("class Bare(Meter):\n    pass\n", dict(meter="mine:Bare"), "must be a dataclass of its parameters"),
    ("class Half(Agent):\n    pass\n", dict(agent="mine:Half"), "lacks the methods act, update, policy, greedy, frozen, state_dict, load_state_dict, plan_update"),
    ("@dataclass\nclass NoSize(Controller):\n    pace: int = 1  # sizes\n", dict(controller="mine:NoSize"), "set self.size in its __post_init__"),
    ("@dataclass\nclass Taken(Controller):\n    format: str = 'a'  # a name\n    size: int = 16  # the size\n", dict(controller="mine:Taken"), "parameter format of Taken belongs to Taken and to the run itself"),
    ("", dict(controller="mine.Rule"), "One of your own is named module:Name"),
])
def test_an_unfinished_class_is_refused_with_what_it_lacks(source, given, words, desk, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (desk/"mine.py").write_text(OWN + source)
    with pytest.raises(AbsLabError, match=words): configure(**given)


def test_a_size_that_is_no_whole_number_is_refused_where_it_is_asked_for():
    from dataclasses import dataclass
    from abs_lab import Controller, Measurement
    @dataclass
    class Float(Controller):
        size: int = 16
        def observe(self, m): self.size = self.size * 1.1
    with pytest.raises(AbsLabError, match="the size that Float asks for must be a whole number of at least 1, not 17.6"): Float()(Measurement(0.1))


def test_a_run_of_an_environment_of_ones_own_says_what_trained_it(desk):
    (desk/"walks.py").write_text("import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\n\ngym.register('Walk-v0', entry_point=CartPoleEnv, max_episode_steps=100)\n")
    from abs_lab.runs.runner import run
    assert run(configure(env_id="walks:Walk-v0", num_envs=8, total_steps=1_024, eval_envs=1), desk/"run")["status"] == "finished"


def test_a_folder_that_does_not_describe_its_classes_imports_nothing(desk):
    from abs_lab.runs.config import recorded
    (desk/"evil.py").write_text("raise SystemExit('imported')\n")
    found = configure(controller="ramp").record()
    flat = found["config"] | dict(controller="evil:Rule")
    with pytest.raises(AbsLabError, match="evil:Rule, which is not built in"): recorded(dict(config=flat))
