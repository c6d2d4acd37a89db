"Networks and torsos that are named module:Name: trained, resumed, loaded, shown without being imported; and what is refused."
import sys
from dataclasses import replace

import pytest
import torch

import own_networks
from abs_lab.agents.btr import BTR, BTRConfig
from abs_lab.agents.pqn import PQN, PQNConfig
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Progress
from abs_lab.core.simulators import EnvConfig
from abs_lab.runs.config import configure
from abs_lab.runs.runner import Run, load_agent, look_at, read_config, run
from abs_lab.runs.storage import read_jsonl
from support import assert_same_run, settings  # noqa: F401 (a fixture that every test here uses)

SHORT = dict(pqn=dict(agent="pqn", env_id="CartPole-v1", num_envs=8, total_steps=4_096, eval_envs=2, interval=1, warmup=2, diagnose_every=2),
             btr=dict(agent="btr", env_id="CartPole-v1", total_steps=1_200, learning_starts=600, replay_size=4_000, size_max=128, eval_envs=2, interval=8, diagnose_every=20, record_every=1))


@pytest.mark.parametrize("network, written", [("own_networks:torso", False), ("own_networks:plain", False), ("impala", True), ("plain", True)])
def test_only_torsos_of_the_library_have_a_gradient_that_is_written_down(network, written):
    envs, c = VecEnvs(EnvConfig("CartPole-v1", num_envs=4)), BTRConfig(network=network, backprop="written", replay_size=400, learning_starts=100)
    agent = BTR(c, envs.obs_space, envs.action_space, 4, Progress(1_000))
    assert bool(agent.chains) == written
    obs, taus = torch.randn(6, 4), torch.rand(6, c.taus)
    agent.net.draw(agent.generator)
    torch.testing.assert_close(agent._quantiles(agent.net, obs, taus), agent.net.quantiles(obs, taus, noise=True))
    envs.close()


@pytest.mark.parametrize("agent, network, kind, plastic", [("pqn", "own_networks:small", torch.nn.Sequential, False), ("pqn", "own_networks:Seen", own_networks.Seen, True), ("btr", "own_networks:torso", None, True)])
def test_a_network_of_ones_own_is_trained_killed_resumed_and_loaded(agent, network, kind, plastic, tmp_path):
    config = configure(**SHORT[agent], network=network)
    whole = run(config, tmp_path/"whole")
    r = Run(config, tmp_path/"killed")
    for _ in zip(r.steps(), range(4 if agent == "pqn" else 50)): pass
    r.checkpoint(); r.close()
    run(config, tmp_path/"killed")
    assert_same_run(tmp_path/"whole", tmp_path/"killed")
    assert whole["gradient_steps"] > 0 and plastic == any("dormant" in row for row in read_jsonl(tmp_path/"whole"/"steps.jsonl"))
    net = load_agent(tmp_path/"whole").net
    assert isinstance(net, kind) if kind else len(net.spectral_layers) == 1


def test_a_torso_of_ones_own_can_do_without_spectral_norm():
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=4))
    made = [BTR(BTRConfig(network="own_networks:torso", spectral=s, replay_size=400), envs.obs_space, envs.action_space, 4, Progress(1)).net for s in (True, False)]
    assert [len(net.spectral_layers) for net in made] == [1, 0] and made[0].value.hidden.out_features == 128


def test_a_torso_of_ones_own_may_keep_what_it_made_while_it_acted():
    envs = VecEnvs(EnvConfig("CartPole-v1", num_envs=16))
    agent = BTR(BTRConfig(network="own_networks:keeps", replay_size=400, learning_starts=32), envs.obs_space, envs.action_space, 16, progress := Progress(1_000))
    for size in (0, 16): agent.update(envs.collect(agent, 20, progress), BatchPlan(20, 16, size))
    assert progress.gradient_steps == 16 and agent.weights.grad.norm() > 0
    envs.close()


def test_a_folder_is_shown_without_its_network(tmp_path, monkeypatch):
    config = configure(**SHORT["pqn"], network="own_networks:small")
    run(config, tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("tests")])
    shown = look_at(tmp_path)
    assert shown.agent.network == "own_networks:small" and shown.id == config.id
    assert "own_networks" not in sys.modules
    with pytest.raises(AbsLabError, match="network own_networks:small: module 'own_networks' cannot be imported"): read_config(tmp_path)


@pytest.mark.parametrize("agent, network, said", [
    ("pqn", "mlpp", "unknown network 'mlpp'; did you mean mlp"), ("btr", "impalla", "unknown network 'impalla'; did you mean impala"),
    *((agent, *rest) for agent in ("pqn", "btr") for rest in (
        ("no_such_module:small", "network no_such_module:small: module 'no_such_module' cannot be imported"),
        ("own_networks:smal", "unknown network in module own_networks 'smal'; did you mean small"), ("own_networks:WIDTH", "network own_networks:WIDTH is 32; it must be a function")))])
def test_a_network_that_is_not_there_is_refused_when_a_run_is_configured(agent, network, said):
    with pytest.raises(AbsLabError, match=said): configure(**SHORT[agent], network=network)


@pytest.mark.parametrize("agent, network, said", [
    ("pqn", "own_networks:one_too_many", r"maps one observation to \[1, 3\]; \[1, 2\] is needed"), ("pqn", "own_networks:nothing", "makes None; a torch module is needed"),
    ("btr", "own_networks:nothing", "makes None; a torch module and the number of its features are needed"), ("btr", "own_networks:mistaken", r"maps one observation to \[1, 32\]; \[1, 33\] is needed")])
def test_a_network_that_does_not_fit_is_refused_before_training(agent, network, said):
    config, envs = configure(**SHORT[agent], network=network), VecEnvs(EnvConfig("CartPole-v1", num_envs=4))
    kind, settings_ = (PQN, config.agent) if agent == "pqn" else (BTR, replace(config.agent, replay_size=400))
    with pytest.raises(AbsLabError, match=said): kind(settings_, envs.obs_space, envs.action_space, 4, Progress(1))


def test_the_configuration_alone_imports_nothing():
    assert PQNConfig(network="no_such_module:net").network == BTRConfig(network="no_such_module:net").network == "no_such_module:net"
