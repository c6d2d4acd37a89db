"Every kind of space that an environment may show and take, on real environments: trained, killed, resumed; and what cannot be done, with the wrapper that helps."
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings as examples
from hypothesis import strategies as st

from abs_lab.cli import train_config
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, Progress
from abs_lab.core.simulators import EnvConfig
from abs_lab.core.spaces import choices, encoding
from abs_lab.runs.config import configure, recorded
from abs_lab.runs.forks import fork
from abs_lab.runs.provenance import fingerprint
from abs_lab.runs.runner import Run, load_agent, run
from abs_lab.runs.session import Session
from abs_lab.studies.grids import configs_of
from support import MOVING, ROOT, assert_same_run, settings  # noqa: F401 (settings: a fixture that all tests here use)

for package in ("ipywidgets", "anywidget"): pytest.importorskip(package)
from abs_lab.live.film import film
from abs_lab.live.page import Form

S = gym.spaces
SHORT = dict(num_envs=4, eval_envs=2, n_states=16)
PQN = dict(agent="pqn", preset="classic", size_min=8, size_max=16, total_steps=256) | SHORT
PPO = dict(agent="ppo", preset="classic", num_minibatches=2, epochs_rule="constant", epochs=2, size_min=8, size_max=16, total_steps=256) | SHORT
IMAGES = PPO | dict(normalize_obs=False)
KINDS = {  # what is trained, and the shape of what agents see
    "Discrete, EnvPool": (PQN | dict(env_id="FrozenLake-v1", env_options=dict(size=4)), (16,)),
    "Discrete, Gymnasium, option, wrappers": (PQN | dict(env_id="FrozenLake-v1", env_options=dict(is_slippery=False), wrappers=["TimeAwareObservation", "own_spaces:Shaped(bonus=0.5)"]), (17,)),
    "Discrete, Taxi, PPO": (PPO | dict(env_id="Taxi-v3"), (500,)),
    "Discrete, CliffWalking, BTR": (dict(agent="btr", preset="classic", env_id="CliffWalking-v1", total_steps=400, multiple=8, size_min=8, size_max=16, learning_starts=160, replay_size=1_000, replay_ratio=0.125, interval=8, max_episode_steps=50, eval_max_steps=50) | SHORT, (48,)),
    "Tuple": (PQN | dict(env_id="Blackjack-v1", backend="gymnasium"), (45,)),
    "Dict, EnvPool": (PPO | dict(env_id="CartpoleBalance-v1", max_episode_steps=100), (5,)),
    "MultiDiscrete with starts": (PPO | dict(env_id="own_spaces:Levers-v0"), (5,)),
    "MultiBinary": (PPO | dict(env_id="own_spaces:Switches-v0"), (4,)),
    "Discrete with a start": (PQN | dict(env_id="own_spaces:Shifted-v0"), (5,)),
    "Box mapped, nested Dict": (PPO | dict(env_id="own_spaces:Valve-v0", action_bounds="map"), (4,)),
    "Dict, normalised, actions repeated": (PQN | dict(preset="general", env_id="MiniGrid-Empty-5x5-v0", num_envs=16, total_steps=1_024), (247,)),
    "planes": (IMAGES | dict(env_id="MinAtar/Breakout-v1", eval_max_steps=20), (10, 10, 4)),
    "images": (IMAGES | dict(env_id="Breakout-v5", env_options=dict(img_height=36, img_width=36), num_envs=2, total_steps=96, eval_envs=1, eval_max_steps=20), (4, 36, 36)),
    "images of ale-py": (IMAGES | dict(env_id="ALE/Breakout-v5", env_options=dict(img_height=36, img_width=36), episodic_life=True, num_envs=2, total_steps=96, eval_envs=1, eval_max_steps=20), (4, 36, 36)),
}


@pytest.fixture(autouse=True)
def own(monkeypatch): monkeypatch.syspath_prepend(str(ROOT/"tests"))


@pytest.mark.parametrize("steps", [None, pytest.param(4_096, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_goes_on_after_a_kill(kind, steps, tmp_path):
    params, shape = KINDS[kind]
    if steps: params = params | dict(total_steps=steps)
    if params["env_id"].startswith("ALE/"): pytest.importorskip("ale_py")
    config = configure(**MOVING | params)
    run(config, tmp_path/"whole")
    r = Run(config, tmp_path/"killed")
    assert r.envs.obs_space.shape == shape == r.envs.obs.shape[1:] and r.envs.obs_space.dtype == r.envs.newest.dtype
    for s in r.steps():
        if s.update == 3: r.checkpoint()
        if s.update == 4: break
    r.close()
    run(config, tmp_path/"killed")
    assert_same_run(tmp_path/"whole", tmp_path/"killed")
    assert load_agent(tmp_path/"whole").greedy(r.envs.on_device(r.envs.newest)).shape == (config.env.num_envs, *r.envs.action_space.shape)


@pytest.mark.parametrize("name, most", [("Levers", 9.5), ("Valve", 8.5)])
def test_the_best_action_is_found_whatever_its_space(name, most, tmp_path):
    "From several choices, from numbers that begin below 0, and within bounds far from ±1, which `clip` never leaves."
    params = {k: v for k, v in PPO.items() if not k.startswith("size_")} | dict(env_id=f"own_spaces:{name}-v0", num_envs=16, total_steps=4_096, size=16, controller="fixed", lr=1e-2, entropy_coef=0.0, action_bounds="map")
    assert run(configure(**params), tmp_path/"run")["eval"]["mean"] > most
    if name == "Valve": assert run(configure(**params | dict(action_bounds="clip", total_steps=512)), tmp_path/"clip")["eval"]["mean"] == pytest.approx(10 * (1 - 0.5 * 2.5))


# -- encodings and choices ---------------------------------------------------------------------------------------------

numbers = st.integers(1, 3)
shapes = st.lists(numbers, min_size=1, max_size=2).map(tuple)
leaves = st.one_of(
    st.builds(lambda n, start: S.Discrete(n, start=start), numbers, st.integers(-2, 2)), shapes.map(S.MultiBinary),
    st.builds(lambda shape, n, start: S.MultiDiscrete(np.full(shape, n), start=np.full(shape, start)), shapes, numbers, st.integers(-2, 2)),
    st.builds(lambda shape, dtype: S.Box(0, 9, shape, dtype), shapes, st.sampled_from([np.float32, np.float64, np.uint8, np.int64])))
spaces = st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=3).map(S.Tuple) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(S.Dict), max_leaves=5)


@examples(max_examples=60, deadline=None, database=None)
@given(spaces, st.integers(0, 2**31))
def test_an_encoding_is_what_gymnasium_flattens_to(space, seed):
    if isinstance(space, S.Box): assert encoding(space) is None; return
    space.seed(seed)
    batch = [space.sample() for _ in range(3)]
    found, whole = encoding(space), gym.vector.utils.concatenate(space, batch, gym.vector.utils.create_empty_array(space, 3))
    seen = found.encode(whole)
    assert seen.dtype == found.space.dtype and np.array_equal(seen, np.array([S.flatten(space, x) for x in batch]).astype(seen.dtype)) and all(map(found.space.contains, seen))


@examples(max_examples=60, deadline=None, database=None)
@given(leaves, st.integers(0, 2**31), st.sampled_from(["clip", "map"]))
def test_every_action_that_is_offered_is_one_of_the_environments(space, seed, bounds):
    offered, decode = choices(space, bounds)
    offered.seed(seed)
    batch = [offered.sample() for _ in range(3)]
    taken = decode(np.stack(batch).astype(np.int32 if not isinstance(offered, S.Box) else offered.dtype))
    assert len(taken) == 3 and all(space.contains(a if a.shape else space.dtype.type(a)) for a in taken)
    if isinstance(space, S.Box) and bounds == "map":
        ends = decode(np.stack([np.full(offered.shape, x, np.float32) for x in (-1, 1)]))
        assert np.array_equal(ends, np.stack([space.low, space.high]))


@pytest.mark.parametrize("task, bound", [("InvertedPendulum-v4", 3), ("Humanoid-v4", 0.4), ("Pusher-v4", 2)])
def test_clipped_actions_reach_the_simulator_as_they_are(task, bound):
    envs = VecEnvs(EnvConfig(task, num_envs=2))
    assert envs.action_space is envs.env.env.action_space and np.allclose(envs.action_space.high, bound)
    agent = configure("ppo", env_id=task).kind(configure("ppo", env_id=task).agent, envs.obs_space, envs.action_space, 2, Progress(100))
    agent.net.log_std.data.fill_(2.0)  # most actions end at a bound
    given, send = [], envs.env.env.send
    envs.env.env.send = lambda actions: (given.append(actions), send(actions))
    rollout = envs.collect(agent, 8, Progress(100))
    drawn = rollout.extras["drawn"].numpy()
    wanted = np.minimum(np.maximum(drawn, agent.low), agent.high).astype(envs.action_space.dtype)
    assert np.array_equal(np.stack(given), wanted) and np.array_equal(envs.drain_log(), wanted) and (np.abs(drawn) > bound).any()


# -- refused, with the wrapper that helps ------------------------------------------------------------------------------

@pytest.mark.parametrize("name, agent, said, wrappers", [
    ("Room", "pqn", "observation['mission'] is Text", ["FilterObservation(filter_keys=['image'])"]), ("Sequence", "pqn", "Sequence", ["my_module:MyWrapper"]), ("Words", "ppo", "actions are Text", ["my_module:MyWrapper"]),
    ("Both", "ppo", "actions are Dict", ["my_module:MyWrapper"]), ("Endless", "ppo", "bounds -inf to inf", ["my_module:MyWrapper"]), ("Photo", "ppo", "(40, 40, 3)", ["GrayscaleObservation", "FrameStackObservation(stack_size=4)"]),
    ("Photo", "btr", "(40, 40, 3)", ["GrayscaleObservation", "FrameStackObservation(stack_size=4)"]), ("Photo", "pqn", "(40, 40, 3)", ["GrayscaleObservation", "FrameStackObservation(stack_size=4)"]),
    ("Cube", "ppo", "(2, 3, 4, 5)", ["FlattenObservation"]), ("Levers", "pqn", "the agent ppo takes several choices", None), ("Levers", "btr", "the agent ppo takes several choices", None)])
def test_what_cannot_be_done_names_the_wrapper_that_helps(name, agent, said, wrappers):
    def make(**params):
        config = configure(agent, preset="classic", controller="fixed", env_id=f"own_spaces:{name}-v0", num_envs=4, **params)
        envs = VecEnvs(config.env)
        return config.kind(config.kind.for_acting(config.agent, 4), envs.obs_space, envs.action_space, 4, Progress(100)), envs
    with pytest.raises(AbsLabError) as e: make()
    assert said in str(e.value) and (not wrappers or f"wrappers={wrappers}" in str(e.value)), e.value
    if wrappers and "my_module:MyWrapper" not in wrappers:
        images = name == "Photo"
        agent, envs = make(wrappers=wrappers, **dict(normalize_obs=False) if agent == "ppo" and images else dict(network="pqn") if agent == "pqn" and images else dict(network="plain") if images else {})
        assert agent.greedy(envs.obs).shape == (4,)


@pytest.mark.parametrize("params, said", [
    (dict(env_options="x"), "name=value"), (dict(env_options=["a=1", "a=2"]), "given twice"), (dict(env_options=dict(num_envs=3)), "the parameter num_envs does"), (dict(env_options=dict(is_slipery=True)), "is_slipery"),
    (dict(wrappers="TimeAware"), "did you mean TimeAwareObservation"), (dict(wrappers="own_spaces:Shapd"), "did you mean Shaped"), (dict(wrappers="TimeLimit(open('x'))"), "literals"), (dict(wrappers="own_spaces:Shaped(2, 3)"), "TypeError"),
    (dict(backend="envpool", wrappers="TimeAwareObservation"), "take no wrappers"), (dict(env_id="Pong-v5", env_options=dict(img_hight=3)), "did you mean img_height"), (dict(action_bounds="mapp"), "did you mean map"),
    (dict(env_id="own_spaces:Endless-v0", action_bounds="map"), "finite bounds")])
def test_options_and_wrappers_that_cannot_be_are_refused(params, said):
    with pytest.raises(AbsLabError) as e: VecEnvs(configure(**dict(env_id="FrozenLake-v1") | params).env)
    assert said in str(e.value), e.value


# -- written down ------------------------------------------------------------------------------------------------------

WRITTEN = dict(env_id="FrozenLake-v1", env_options=dict(map_name="8x8", is_slippery=False), wrappers=["TimeLimit(max_episode_steps=9)", "own_spaces:Shaped(bonus=1)"])


def test_a_run_has_one_name_however_its_options_were_asked_for():
    config = configure("pqn", **WRITTEN)
    ways = [configure("pqn", **WRITTEN | dict(env_options=["is_slippery=False", "map_name=8x8"])), configure(**json.loads(json.dumps(config.record()))["config"]), recorded(json.loads(json.dumps(config.record()))),
            train_config(["pqn", "--env-id", "FrozenLake-v1", "--env-options", "map_name=8x8", "is_slippery=False", "--wrappers", *WRITTEN["wrappers"]]),
            *configs_of([dict(agent="pqn", arm="a", **WRITTEN)])]
    assert {c.id for c in ways} == {config.id} and config.id != configure("pqn", env_id="FrozenLake-v1").id
    form = Form()
    form.top["env_id"].value = "FrozenLake-v1"
    form.top["controller"].value = config.names[2]
    for name in ("env_options", "wrappers"): form.fields[name].value = json.dumps(getattr(config.env, name))
    assert form.config().id == config.id
    form.fields["wrappers"].value = ""
    assert form.config().env.wrappers == ()


def test_reading_a_record_imports_no_wrapper(tmp_path):
    (tmp_path/"hit.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try: assert recorded(json.loads(json.dumps(configure("pqn", env_id="CartPole-v1", wrappers="hit:Me(1)").record()))).env.wrappers == ("hit:Me(1)",)
    finally: sys.path.remove(str(tmp_path))


def test_a_wrapper_of_ones_own_is_part_of_what_a_training_depends_on():
    with_it, without = (fingerprint(configure("pqn", **WRITTEN | dict(wrappers=w))) for w in (WRITTEN["wrappers"], []))
    assert with_it.keys() - without.keys() == {"own_spaces"}
    with pytest.raises(AbsLabError, match="my_wrapper:Mine"): configs_of([dict(agent="pqn", arm="a", env_id="CartPole-v1", wrappers=["__main__:Mine(1)"])])


def test_evaluation_film_and_forks_see_the_same_environment(tmp_path):
    config = configure(**PQN | dict(env_id="own_spaces:Shifted-v0", env_options=dict(length=5), wrappers="own_spaces:Shaped(bonus=100)", states="heldout", interval=2) | MOVING)
    r = Run(config, tmp_path/"run")
    for s in r.steps():
        if s.update == 2: r.checkpoint()
        if s.update == 3: break
    r.close()
    forked = fork(tmp_path/"run", tmp_path/"fork", high=0.8)
    for c, dir in ((config, "run"), (forked, "fork")):
        score = run(c, tmp_path/dir)["eval"]
        assert {*score["lengths"]} == {5} and min(score["returns"]) >= 500 and c.env == config.env
    shots, ret, _ = film(Session.open(tmp_path/"run"))
    assert len(shots) == 6 and ret >= 500
