"What people meet while they train: a run that moves between devices, an interrupted loop, an episode without end, weights that are no numbers, shared generators."
import json, os, random, signal, time
from dataclasses import dataclass, make_dataclass
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch

from abs_lab.agents.btr import BTR, BTRConfig
from abs_lab.agents.networks import Pixels, feature_rank
from abs_lab.agents.ppo import PPO, PPOConfig
from abs_lab.agents.pqn import PQN, PQNConfig
from abs_lab.core.contract import Controller, Meter, Metric
from abs_lab.core.divergence import Divergence, GradientNoise
from abs_lab.core.envpool import envpool
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Progress
from abs_lab.core.machine import allowed_cores, cores
from abs_lab.core.simulators import EnvConfig
from abs_lab.core.train import evaluate
from abs_lab.runs import __main__ as program
from abs_lab.runs.checkpoints import load_tree, save_tree
from abs_lab.runs.config import configure
from abs_lab.runs.parties import weights_of
from abs_lab.runs.runner import Run, load_agent, run
from abs_lab.runs.registry import register
from abs_lab.runs.session import Session
from abs_lab.runs.storage import steps_of
from own_agents import Reinforce, ReinforceConfig
from support import ROOT, assert_same_run, events, settings  # noqa: F401 (settings is a fixture)

SMALL = dict(env_id="CartPole-v1", num_envs=16, total_steps=3_000, eval_envs=2, interval=1)
AGENTS = {"pqn": {}, "ppo": {}, "btr": dict(total_steps=1_440, learning_starts=960, replay_ratio=1 / 16, size_min=32, size_max=64, multiple=32, lag=1)}


# -- a run that was trained on another kind of device ------------------------------------------------------------------

def half(dir, agent="pqn", **params):
    "A run that stopped after a few updates; returns its parameters."
    config = configure(agent, **SMALL | AGENTS[agent] | params)
    r = Run(config, dir)
    steps = r.steps()
    for _ in range(3 if agent != "btr" else 70): next(steps)
    r.checkpoint(), r.close()
    return config


FOREIGN = torch.arange(16, dtype=torch.uint8)

def moved(dir, device="cuda", generator=FOREIGN):
    "Give its checkpoint what one of a GPU has: the device's name, and the state of a generator of another length."
    tree = load_tree(dir/"checkpoint.safetensors")
    tree["device"], tree["agent"]["generator"] = device, generator
    save_tree(dir/"checkpoint.safetensors", tree)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.filterwarnings("ignore:.*trained on")
def test_a_run_of_another_kind_of_device_is_loaded_and_goes_on_and_says_so(agent, tmp_path):
    config = half(tmp_path/"a", agent)
    weights = {k: v.clone() for k, v in load_agent(tmp_path/"a").net.state_dict().items()}
    moved(tmp_path/"a")
    agent = load_agent(tmp_path/"a")
    assert agent.reseeded and all(torch.equal(v, weights[k]) for k, v in agent.net.state_dict().items())
    assert run(config, tmp_path/"a")["steps"] >= config.total_steps
    said, = events(tmp_path/"a", "reseed")
    assert (said["before"], said["now"]) == ("cuda", "cpu") and said["step"] < config.total_steps and "begin anew" in said["message"]


@pytest.mark.filterwarnings("ignore:.*trained on")
def test_what_begins_anew_is_decided_by_the_checkpoint(tmp_path):
    for name in "ab": config = half(tmp_path/name); moved(tmp_path/name); run(config, tmp_path/name)
    assert_same_run(tmp_path/"a", tmp_path/"b")


@pytest.mark.filterwarnings("ignore:.*trained on")
@pytest.mark.parametrize("device, generator, kinds", [("cpu", FOREIGN, {"reseed"}), ("cuda", None, {"device"}), ("cpu", None, set())])
def test_only_what_differs_is_logged(device, generator, kinds, tmp_path):
    config = half(tmp_path/"a")
    moved(tmp_path/"a", device, torch.Generator().manual_seed(3).get_state() if generator is None else generator)
    run(config, tmp_path/"a")
    assert {e["event"] for e in events(tmp_path/"a")} - {"start", "resume", "finish"} == kinds


def test_a_meter_of_ones_own_with_a_generator_of_a_gpu_is_loaded_too():
    meter = Meter()
    meter.load_state_dict(dict(generator=FOREIGN))
    assert meter.reseeded
    for meter in (Divergence(), GradientNoise()):
        meter.seed(0)
        meter.load_state_dict(meter.state_dict() | dict(generator=FOREIGN))
        assert meter.reseeded


# -- a loop that is interrupted ----------------------------------------------------------------------------------------

class Still:
    def __init__(self, interrupted_at=0, overlap=False): self.left, self.overlap = interrupted_at, overlap
    def act(self, obs):
        self.left -= 1
        if self.left == 0: raise KeyboardInterrupt
        return torch.zeros(len(obs), dtype=torch.long), {}
    def greedy(self, obs): return torch.zeros(len(obs), dtype=torch.long)


def interrupted(envs, where):
    "Have a step interrupted just before, or just after, the simulators take their actions or give their answer."
    part, when = where
    real = getattr(envs.env, part)
    def broken(*args):
        if when == "after": real(*args)
        setattr(envs.env, part, real)
        raise KeyboardInterrupt
    setattr(envs.env, part, broken)


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
@pytest.mark.parametrize("where", [("send", "before"), ("send", "after"), ("receive", "before"), ("receive", "after")], ids=" ".join)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_was_interrupted_is_not_gone_on_from(backend, where, overlap):
    envs, agent = VecEnvs(EnvConfig("CartPole-v1", num_envs=2, backend=backend)), Still(overlap=overlap)
    envs.collect(agent, 3, Progress(1000))
    interrupted(envs, where)
    with pytest.raises(KeyboardInterrupt): envs.collect(agent, 3, Progress(1000))
    for again in (lambda: envs.collect(agent, 3, Progress(1000)), lambda: envs.step(np.zeros(2, np.int64))):
        with pytest.raises(AbsLabError, match="CartPole-v1 (cannot go on|was sent no actions)"): again()
    envs.close()


def test_actions_are_not_sent_twice_and_answers_not_received_twice():
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=2))
    envs.send(np.zeros(2, np.int64))
    with pytest.raises(AbsLabError, match="outcome was not received"): envs.send(np.ones(2, np.int64))
    envs.receive()
    with pytest.raises(AbsLabError, match="nothing to receive"): envs.receive()
    envs.step(np.ones(2, np.int64))
    assert envs.drain_log().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_collection_that_was_interrupted_between_two_steps_goes_on_where_the_simulators_are(backend):
    envs, other = (VecEnvs(EnvConfig("CartPole-v1", num_envs=2, backend=backend)) for _ in range(2))
    with pytest.raises(KeyboardInterrupt): envs.collect(Still(interrupted_at=5), 8, Progress(1000))
    other.collect(Still(), 4, Progress(1000))
    state, log = envs.state_dict(), envs.drain_log()
    a, b = (e.collect(Still(), 3, Progress(1000)) for e in (envs, other))
    assert torch.equal(a.obs, b.obs) and torch.equal(a.rewards, b.rewards)
    other.load_state_dict(state, log)
    assert torch.equal(other.collect(Still(), 3, Progress(1000)).obs, a.obs)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_interrupts_at_any_moment_shift_nothing(backend):
    make = lambda: VecEnvs(EnvConfig("CartPole-v1", num_envs=8, backend=backend))
    def interrupt(_, frame):
        while frame and frame.f_code is not VecEnvs.collect.__code__: frame = frame.f_back
        if frame: raise KeyboardInterrupt  # elsewhere this test itself would be interrupted
    before, envs, checked = signal.signal(signal.SIGALRM, interrupt), make(), 0
    try:
        for delay in np.random.default_rng(0).uniform(0.0005, 0.01, 300):
            signal.setitimer(signal.ITIMER_REAL, delay, 0.01)
            try:
                while True: envs.collect(Still(), 8, Progress(1000))
            except (KeyboardInterrupt, AbsLabError): signal.setitimer(signal.ITIMER_REAL, 0)
            if envs.sent is None and not envs.receiving:
                other = make()
                for actions in envs.log: other.step(actions)
                assert torch.equal(other.obs, envs.obs) and other.rows == envs.rows
                other.close(); checked += 1
            if envs.sent is not None or envs.rows > 300: envs.close(); envs = make()
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, before)
    assert checked > 10


def test_a_step_by_hand_is_seen_by_the_next_collection():
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=2))
    obs = envs.step(np.zeros(2, np.int64))[0]
    assert (envs.collect(Still(), 1, Progress(1000)).obs[0].numpy() == obs).all()


# -- environments of one's own -----------------------------------------------------------------------------------------

class Own(gym.Env):
    "Draws from the generators that the process shares, never ends, and tells what it likes in `info`."
    observation_space, action_space = gym.spaces.Box(0, 1, (3,), np.float32), gym.spaces.Discrete(2)
    def __init__(self, ends=0.0): self.ends = ends
    def draw(self): return np.array([random.random(), np.random.random(), torch.rand(1).item()], np.float32)
    def reset(self, seed=None, options=None): return self.draw(), dict(terminated=True, x=np.zeros(1))
    def step(self, action): return self.draw(), 1.0, bool(random.random() < self.ends), False, dict(terminated=True, lives=0, x=np.zeros(random.randint(1, 3)), **{f"y{random.randint(0, 1)}": "?"})

gym.register("OwnEndless-v0", entry_point=Own)
gym.register("OwnEnding-v0", entry_point=Own, kwargs=dict(ends=0.1))


def seeded(n=0): random.seed(n), np.random.seed(n), torch.manual_seed(n)


def test_no_key_of_an_environments_own_info_is_read():
    seeded()
    rollout = VecEnvs(EnvConfig("OwnEndless-v0", num_envs=3)).collect(Still(), 50, Progress(1000))
    assert not rollout.terminated.any() and rollout.mask.all() and not rollout.episodes
    assert VecEnvs(EnvConfig("OwnEnding-v0", num_envs=3)).collect(Still(), 50, Progress(1000)).episodes


@pytest.mark.parametrize("segment_steps", [0, 512])
def test_an_environment_that_draws_from_shared_generators_is_resumed_exactly(segment_steps, tmp_path):
    config = configure("pqn", **SMALL | dict(env_id="OwnEnding-v0", total_steps=2_000, size_max=32, segment_steps=segment_steps))
    seeded(); run(config, tmp_path/"whole")
    seeded()
    r = Run(config, tmp_path/"half")
    steps = r.steps()
    for _ in range(3): next(steps)
    r.checkpoint(), r.close()
    seeded(7)  # as a new process would have them
    run(config, tmp_path/"half")
    assert_same_run(tmp_path/"whole", tmp_path/"half")


def test_evaluating_leaves_shared_generators_to_training():
    drawn = []
    for evaluates in (True, False):
        seeded()
        envs = VecEnvs(EnvConfig("OwnEnding-v0", num_envs=2))
        if evaluates: evaluate(Still(), envs.config, num_envs=3)
        drawn.append(envs.collect(Still(), 5, Progress(1000)).obs)
    assert torch.equal(*drawn)


def test_a_checkpoint_without_them_says_what_may_have_happened_and_one_that_needs_none_has_none():
    envs = VecEnvs(EnvConfig("OwnEnding-v0", num_envs=2))
    envs.collect(Still(), 5, Progress(1000))
    state, log = envs.state_dict(), envs.drain_log()
    del state["generators"]
    with pytest.raises(AbsLabError, match=r"did not replay .* \(random, np.random, torch\)"): envs.load_state_dict(state, log)
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=2, backend="gymnasium"))
    torch.rand(1)
    assert {at: [*part] for at, part in envs.state_dict()["generators"].items()} == dict(began=["torch"], now=["torch"])
    for backend in ("envpool", "gymnasium"): assert "generators" not in VecEnvs(EnvConfig("CartPole-v1", num_envs=2, backend=backend)).state_dict()


# -- an agent, a network and a controller of one's own that draw from shared generators ---------------------------------

class Drawing(Reinforce):
    "Draws from the generators that the process shares, when it is made, when it acts and when it learns."
    def __init__(self, *how):
        super().__init__(*how)
        torch.nn.init.normal_(self.net[0].weight)
    def act(self, obs): return torch.from_numpy(np.random.randint(0, 2, len(obs))) if torch.rand(1) < 0.5 else super().act(obs)[0], {}
    def update(self, rollout, plan): return super().update(rollout, plan) | dict(drawn=random.random())

@dataclass
class Dice(Controller):
    "A size by chance."
    size_min: int = 8  # steps
    size_max: int = 32  # steps
    def __post_init__(self): self.size = self.size_min
    def __call__(self, m): self.size = random.choice([8, 16, 32]); return self.size

@pytest.mark.parametrize("params", [dict(agent="drawing", controller="fixed", size=16), dict(agent="pqn", controller="dice")], ids=["agent", "controller"])
@pytest.mark.parametrize("segment_steps, cut", [pytest.param(0, 3, marks=pytest.mark.long), (256, 1)])  # a checkpoint just after the environments were rebuilt, too
def test_who_draws_from_shared_generators_is_resumed_exactly_on_envpool(params, segment_steps, cut, tmp_path):
    register(Drawing), register(Dice)
    config = configure(**params, env_id="CartPole-v1", num_envs=16, total_steps=1_500, eval_envs=2, segment_steps=segment_steps)
    seeded(); run(config, tmp_path/"whole")
    seeded()
    r = Run(config, tmp_path/"half")
    steps = r.steps()
    for _ in range(cut): next(steps)
    r.checkpoint(), r.close()
    seeded(7)
    run(config, tmp_path/"half")
    assert_same_run(tmp_path/"whole", tmp_path/"half")


def test_a_built_in_agent_needs_none_of_them_and_a_gpus_go_with_the_others(tmp_path, monkeypatch):
    run(configure("pqn", **SMALL | dict(total_steps=1_000)), tmp_path)
    assert "generators" not in load_tree(tmp_path/"checkpoint.safetensors")["envs"]
    gpu = [torch.tensor([1, 2], dtype=torch.uint8)]  # a stand-in
    for name, of in dict(is_initialized=lambda: bool(gpu), device_count=lambda: len(gpu), get_rng_state=lambda i: gpu[i].clone(), set_rng_state=lambda state, i: gpu.__setitem__(i, state)).items(): monkeypatch.setattr(torch.cuda, name, of)
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=2))
    gpu[0] += 1
    state, log = envs.state_dict(), envs.drain_log()
    assert [*state["generators"]["now"]] == ["cuda"]
    gpu[0] += 5
    envs.load_state_dict(state, log)
    assert gpu[0].tolist() == [2, 3] and [*envs.state_dict()["generators"]["began"]] == ["cuda"]
    gpu.clear()  # it goes on where there is none
    envs.load_state_dict(state, log)
    assert "generators" not in envs.state_dict()


# -- an episode without end --------------------------------------------------------------------------------------------

ENDLESS = SMALL | dict(env_id="OwnEndless-v0", num_envs=8, total_steps=1_000, size_max=16)


def test_an_evaluation_is_cut_off_at_a_limit_and_says_how_often(tmp_path, capsys):
    score = evaluate(Still(), EnvConfig("OwnEndless-v0"), num_envs=3, episodes_per_env=2, max_steps=20)
    assert score["returns"] == [20.0] * 3 and score["lengths"] == [20] * 3 and score["unfinished"] == 3
    params = ENDLESS | dict(eval_max_steps=30)
    (tmp_path/"config.json").write_text(json.dumps(params))
    assert program.main([str(tmp_path/"config.json"), str(tmp_path/"run")]) == 0
    assert json.loads(capsys.readouterr().out)["unfinished"] == 2
    result = json.loads((tmp_path/"run"/"result.json").read_text())
    assert result["status"] == "finished" and result["eval"]["unfinished"] == 2 and result["eval"]["returns"] == [30.0] * 2


def test_an_episode_that_ends_at_the_limit_has_ended():
    balanced = evaluate(Still(), EnvConfig("CartPole-v1"), num_envs=4)
    assert evaluate(Still(), EnvConfig("CartPole-v1"), num_envs=4, max_steps=max(balanced["lengths"])) == balanced and balanced["unfinished"] == 0


def test_the_limit_is_a_parameter_that_renames_no_run_which_does_not_set_it():
    assert configure(**ENDLESS, eval_max_steps=108_000).id == configure(**ENDLESS).id != configure(**ENDLESS, eval_max_steps=30).id
    with pytest.raises(AbsLabError, match="eval_max_steps must be at least 1"): configure(eval_max_steps=0)


def test_a_session_answers_and_stops_while_it_evaluates(tmp_path):
    session = Session(configure(**ENDLESS), tmp_path/"run")
    session.start()
    until = time.monotonic() + 30
    while session.state != "evaluating": assert time.monotonic() < until; time.sleep(0.01)
    began = time.monotonic()
    assert session.ask(lambda r: r.progress.step) >= 1_000
    session.stop()
    assert session.wait(2) == "stopped" and time.monotonic() - began < 1
    session.set(eval_max_steps=5)
    session.start()
    assert session.wait(30) == "finished" and session.result["eval"]["unfinished"] == 2


# -- weights that are no numbers ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("agent", AGENTS)
def test_weights_that_are_no_numbers_are_never_written_over_a_good_checkpoint(agent, tmp_path):
    half(tmp_path/"a", agent, record_every=1_000)
    before = (tmp_path/"a"/"checkpoint.safetensors").read_bytes()
    r = Run(configure(agent, **SMALL | AGENTS[agent] | dict(record_every=1_000)), tmp_path/"a")
    with torch.no_grad(): next(r.agent.net.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(AbsLabError, match="weights became NaN .*; the last checkpoint in .* is intact"): r.checkpoint()
    r.close()
    assert (tmp_path/"a"/"checkpoint.safetensors").read_bytes() == before


def test_a_loss_whose_row_is_not_due_ends_the_run_before_it_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("ABS_LAB_CHECKPOINT_SECONDS", "0")
    config = configure("pqn", **SMALL | dict(record_every=1_000, interval=10**6, lr=1e38, diagnose_every=1))
    with pytest.raises(AbsLabError, match="became nan at step .* has no checkpoint yet"): run(config, tmp_path/"a")
    assert not (tmp_path/"a"/"checkpoint.safetensors").exists()


def test_weights_are_found_wherever_an_agent_keeps_them():
    lone, deep, learnt = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    held = dict(a=lone, b=[torch.nn.Linear(1, 1), (dict(c=deep),)], c=torch.optim.SGD([learnt], 0.1), d=3, e=torch.full((2,), -float("inf")), f="text")
    assert len(weights_of(held)) == 5 and {id(p) for p in (lone, deep, learnt)} <= {id(w) for w in weights_of(held)}


def test_the_rank_of_features_that_are_no_numbers_is_none():
    for bad in (float("nan"), float("inf")): assert torch.isnan(feature_rank(torch.full((8, 4), bad)))


# -- cores, observations and pictures ----------------------------------------------------------------------------------

@pytest.mark.parametrize("given, wanted", [("2,1", 2), ("0", None), ("", None), ("x", None), (" 3 ", 3), ("-1", None), ("9" * 5_000, None)])
def test_a_number_of_threads_that_is_none_is_passed_over(given, wanted, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert cores() == (wanted or allowed_cores())
    VecEnvs(EnvConfig("CartPole-v1", num_envs=2)).close()


@pytest.mark.parametrize("said, limit", [("garbage\n", ""), ("0::/a\n", "100000 0"), ("0::/a\n", "\0"), ("0::/a\n", "max 100000")])
def test_a_control_group_that_says_nothing_sensible_is_no_limit(said, limit, tmp_path):
    for path, text in {tmp_path/"proc"/"self"/"cgroup": said, tmp_path/"groups"/"a"/"cpu.max": limit}.items(): path.parent.mkdir(parents=True), path.write_text(text)
    assert allowed_cores(tmp_path/"proc", tmp_path/"groups") == allowed_cores(tmp_path, tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux confines a process to cores")
def test_a_process_that_is_confined_to_one_core_uses_one(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally: os.sched_setaffinity(0, before)


class Flags(gym.Env):
    "Boolean observations, and episodes of one step that all end at once."
    observation_space, action_space = gym.spaces.Box(0, 1, (3,), bool), gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None): return np.ones(3, bool), {}
    def step(self, action): return np.zeros(3, bool), 1.0, True, False, {}

gym.register("Flags-v0", entry_point=Flags, disable_env_checker=True)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("real", [None, 1, 3])
def test_ppo_learns_from_booleans_and_from_an_update_with_few_real_rows_or_none(normalize, real):
    envs, progress = VecEnvs(EnvConfig("Flags-v0", num_envs=16)), Progress(1000)
    agent, taken = PPO(PPOConfig(num_minibatches=4, epochs=2, normalize_obs=normalize), envs.obs_space, envs.action_space, 16, progress), []
    for _ in range(4):
        rollout, before = envs.collect(agent, 1, progress), progress.gradient_steps
        if real and rollout.mask.all(): rollout.mask[0, real:] = False
        metrics = agent.update(rollout, BatchPlan(1, 4, 8))
        taken.append(progress.gradient_steps - before)
        assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
    few = 2 * min(real or 4, 4)
    assert taken == [few, 0, few, 0] and all(p.isfinite().all() for p in agent.net.parameters())  # every second row is a reset
    agent.policy(envs.obs), agent.frozen()(envs.obs)


class Whole(gym.Env):
    "Acts in whole numbers, and remembers them."
    observation_space, action_space, seen = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Box(0, 4, (1,), np.int64), []
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): self.seen.append(action); return action.astype(np.float32).repeat(2) / 4, 0.0, False, False, {}

gym.register("Whole-v0", entry_point=Whole, disable_env_checker=True)


def test_a_box_of_whole_numbers_gets_the_nearest_ones_and_is_resumed():
    envs = VecEnvs(EnvConfig("Whole-v0", num_envs=3))
    obs = envs.step(torch.tensor([[0.6], [3.7], [3.2]]))[0]
    assert (obs[:, 0] * 4).tolist() == [1, 4, 3] and Whole.seen[0].dtype == np.int64
    state, log = envs.state_dict(), envs.drain_log()
    envs.load_state_dict(state, log)
    with pytest.raises(AbsLabError, match="outside the bounds"): envs.step(np.array([[5], [0], [0]]))


@pytest.mark.parametrize("made", [lambda space: PQN(PQNConfig(network="pqn"), space, gym.spaces.Discrete(2), 2, Progress(100)),
                                  lambda space: BTR(BTRConfig(network="plain", replay_size=400), space, gym.spaces.Discrete(2), 2, Progress(100))], ids=["pqn", "btr"])
def test_images_that_are_shares_already_are_not_divided_again(made):
    most = lambda high, dtype: next(m.most for m in made(gym.spaces.Box(0, high, (1, 40, 40), dtype)).net.modules() if isinstance(m, Pixels))
    assert [most(1, np.float32), most(1, bool), most(255, np.float32), most(255, np.uint8), most(1, np.uint8)] == [1, 1, 255, 255, 255]


class Drawn(gym.Env):
    "Draws whatever it is told to."
    metadata, picture = dict(render_modes=["rgb_array"], render_fps=1), None
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def __init__(self, render_mode=None): self.render_mode = render_mode
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, True, False, {}
    def render(self): return Drawn.picture() if callable(Drawn.picture) else Drawn.picture

gym.register("Drawn-v0", entry_point=Drawn, disable_env_checker=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    pytest.importorskip("anywidget")
    run(configure(**SMALL | dict(env_id="Drawn-v0", total_steps=300, size_max=16)), tmp_path_factory.mktemp("drawn")/"run")
    return tmp_path_factory.getbasetemp()/"drawn0"/"run"


def image(value, dtype): return np.full((8, 8, 3), value, dtype)

@pytest.mark.parametrize("picture, shown", [(image(0.5, np.float32), 127), (image(128, np.float64), 128), (image(128, np.int64), 128), (image(1, bool), 255), (image(300, np.int64), 255), (image(1, np.uint8), 1), (image(np.nan, np.float32), 0)],
                         ids=lambda v: f"{v.dtype} {v.flat[0]}" if hasattr(v, "dtype") else "")
def test_a_picture_is_shown_as_what_it_means(picture, shown, drawn):
    from abs_lab.live.film import film
    Drawn.picture = picture
    assert (film(Session.open(drawn))[0] == shown).all()


@pytest.mark.parametrize("shape", [(20_000, 2), (2, 20_000), (1, 1), (5, 1)], ids=str)
def test_a_picture_of_any_form_is_shown_small(shape, drawn):
    from abs_lab.live.film import film
    Drawn.picture = np.zeros((*shape, 3), np.uint8)
    _, height, width, _ = film(Session.open(drawn))[0].shape
    assert height <= 1_280 and width <= 320


def fails(): raise KeyError("no camera")

@pytest.mark.parametrize("picture, said", [(None, "does not render: render() gave None"), (np.zeros((8, 8)), "(8, 8)"), ("text", "needed"), (fails, "no camera")], ids=["none", "grey", "text", "raises"])
def test_what_cannot_be_filmed_says_so_and_no_page_says_playing_for_ever(picture, said, drawn):
    from abs_lab.live.film import FilmPlayer
    Drawn.picture = picture
    player = FilmPlayer(lambda: Session.open(drawn))
    player.play().join(30)
    assert said in player.status.value and "playing" not in player.status.value


def test_whatever_goes_wrong_with_a_film_is_said():
    pytest.importorskip("anywidget")
    from abs_lab.live.film import FilmPlayer
    player = FilmPlayer(lambda: 1 / 0)
    player.play().join(30)
    assert "division by zero" in player.status.value and "ZeroDivisionError" in player.status.value


def test_an_environment_that_lacks_a_library_is_named(monkeypatch):
    def make(*args, **options): raise ImportError("Procgen requires the system Qt 5 runtime")
    monkeypatch.setattr(envpool(), "make", make)
    with pytest.raises(AbsLabError, match="EnvPool cannot make CartPole-v1 .*Qt 5"): VecEnvs(EnvConfig("CartPole-v1"))


@pytest.mark.parametrize("agent", AGENTS)
def test_an_experiments_parameters_hide_no_function_of_pythons(agent):
    source = "\n".join("".join(c["source"]) for c in json.loads((ROOT/f"nbs/experiments/{agent}.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code")
    space = dict(In=[])
    exec(source[:source.index("result = run(")].replace("map = None", "map = 'linear'"), space)
    assert space["config"].controller.map == "linear" and eval("list(map(abs, [-1]))", space) == [1]


def test_a_button_whose_work_fails_says_so(tmp_path):
    pytest.importorskip("anywidget")
    from abs_lab.live.board import Dashboard
    board = Dashboard(Session(configure(**SMALL), tmp_path/"run"))
    def full(): raise OSError("No space left on device")
    board._attempt(full)
    assert "No space left" in board.header.message.value
    board.close()


# -- a notebook that papermill executes ---------------------------------------------------------------------------------

NAMES = ("json", "Path", "score_line", "configure", "progress_bar", "run", "settings", "given", "config", "directory", "result", "print", "globals", "In", "Out", "get_ipython", "dict", "k")

def test_a_parameter_of_ones_own_may_be_called_like_anything_in_the_notebook(tmp_path):
    shells = pytest.importorskip("IPython.core.interactiveshell")
    own = make_dataclass("Named", [(name, int, 1) for name in NAMES], bases=(ReinforceConfig,), frozen=True)
    register(type("Shadows", (Reinforce,), dict(Config=own)))
    given = dict(agent="shadows", arm="a", run_dir=str(tmp_path/"x"), controller="fixed", size=16, env_id="CartPole-v1", num_envs=4, total_steps=200, eval_envs=1) | {name: i + 2 for i, name in enumerate(NAMES)}
    shell = shells.InteractiveShell.instance()
    try:
        for cell in json.loads((ROOT/"nbs"/"experiments"/"run.ipynb").read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code": shell.run_cell("".join(cell["source"]), store_history=True).raise_error()
            if "parameters" in cell["metadata"].get("tags", []): shell.run_cell("# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items()), store_history=True).raise_error()
    finally: shells.InteractiveShell.clear_instance()
    params = json.loads((tmp_path/"x"/"config.json").read_text())["config"]
    assert {name: params[name] for name in NAMES} == {name: given[name] for name in NAMES} and (tmp_path/"x"/"result.json").exists()


# -- numbers that are none ----------------------------------------------------------------------------------------------

ODD = {"a list": [1.0], "two": torch.ones(2), "none of them": np.zeros(0), "text": "x" * 100_000, "nothing": None, "complex": 1j, "a complex tensor": torch.ones(1, dtype=torch.complex64), "an array": np.zeros((2, 2)),
       "too large": 10**400, "a float too large": 1e305, "an infinite one": np.float64("inf"), "an object": object(), "a dict": {}, "a time": np.datetime64("2026-01-01")}
PLAIN = {"a": np.float32(0.5), "b": np.array(2), "c": np.ones((1, 1)), "d": torch.ones(1, 1), "e": torch.tensor(3, dtype=torch.int16), "f": True, "g": Fraction(1, 4), "h": np.int64(7), "i": torch.tensor(1.0, requires_grad=True), 5: 1, ("a", 1): 2.0}

class Logging(Reinforce):
    reported = {}
    def update(self, rollout, plan): super().update(rollout, plan); return self.reported

@dataclass
class Sizing(Controller):
    "Answers in numbers of NumPy, and calls something else its mean."
    size: int = 16  # steps
    def __call__(self, m): self.size = np.int64(16); return self.size
    def mean(self): return self

@dataclass
class Signalling(Meter):
    "Reports what it likes."
    quantity, signal, answers = "divergence", Metric("a thing"), None
    def after(self, agent, rollout): return self.answers

def logged(dir, reported=PLAIN, signal=None, controller="sizing", **params):
    "Train a little with an agent and a meter that report these."
    for cls in (Logging, Sizing, Signalling): register(cls)
    Logging.reported, Signalling.answers = reported, signal
    return run(configure("logging", env_id="CartPole-v1", num_envs=4, total_steps=200, eval_envs=1, **(dict(size=16) if controller != "abs" else {}), controller=controller, meter="signalling", **params), dir)

@pytest.mark.parametrize("name", ODD)
def test_a_metric_or_a_signal_that_is_no_number_is_named(name, tmp_path):
    with pytest.raises(AbsLabError, match="(?s)odd.*(a number is needed|became)") as e: logged(tmp_path/"metric", dict(loss=1.0, odd=ODD[name]), record_every=2)
    assert len(str(e.value)) < 700
    if ODD[name] is None: return  # nothing was measured
    for controller in ("fixed",) if name != "two" else ("fixed", "abs"):
        with pytest.raises(AbsLabError, match="signal"): logged(tmp_path/controller, signal=ODD[name], controller=controller)

def test_what_is_a_number_is_logged_and_what_is_no_metrics_is_refused(tmp_path):
    result = logged(tmp_path/"x", signal=torch.ones(1, 1))
    row = steps_of(tmp_path/"x")[-1]
    assert [row[str(k)] for k in PLAIN] == [0.5, 2, 1.0, 1.0, 3.0, True, 0.25, 7, 1.0, 1, 2.0] and row["signal"] == 1.0 and row["mean"] is None and result["final_size"] == row["size"] == 16
    for reported in (None, [1.0], 3):
        with pytest.raises(AbsLabError, match="the agent's update returned"): logged(tmp_path/repr(reported), reported)
