"The preset `purejaxql_minatar`: what purejaxql's MinAtar script does, on literal values and beside a plain loop written from its definition."
import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from abs_lab.agents.networks import q_network
from abs_lab.agents.pqn import PQN, PRESETS, PQNConfig, plan_update
from abs_lab.core.envs import Rollout, VecEnvs
from abs_lab.core.interfaces import AbsLabError, BatchPlan, Progress
from abs_lab.core.simulators import EnvConfig
from abs_lab.runs.config import configure

pytest.importorskip("minatar")
T, N = 4, 8
THEIRS = dict(network="minatar", init="he_normal", layer_norm="channel", norm_eps=1e-6, plane_divisor=255.0, num_minibatches=4, epochs_rule="constant", epochs=2, lr=5e-4, anneal_lr=True,
              loss_scale=0.5, decay_rule="gradient", late_bootstrap=True)


def agent_of(total=3 * T * N, **changes):
    progress = Progress(total)
    return PQN(PQNConfig(**THEIRS | changes), gym.spaces.Box(0, 1, (10, 10, 4), bool), gym.spaces.Discrete(3), N, progress, seed=0), progress


def rollout_of(agent, seed):
    "A synthetic rollout whose values are the agent's own, with a termination in the row before the last and one in the last."
    rng = torch.Generator().manual_seed(seed)
    obs = torch.rand(T + 1, N, 10, 10, 4, generator=rng) < 0.1
    over = torch.rand(T, N, generator=rng) < 0.2
    over[-2:, 0] = True
    values = agent.policy(obs[:-1].flatten(0, 1)).amax(-1).view(T, N)
    return Rollout(obs[:-1], torch.randint(3, (T, N), generator=rng), torch.randint(2, (T, N), generator=rng).float(), over, torch.zeros_like(over), torch.ones_like(over), obs[-1], dict(value=values))


# -- the setting -------------------------------------------------------------------------------------------------------

def test_the_preset_is_purejaxqls_setting():
    config = configure(preset="purejaxql_minatar", controller="fixed")
    expected = dict(env_id="MinAtar/Breakout-v1", num_envs=128, size=32, num_minibatches=32, epochs_rule="constant", epochs=2, lr=5e-4, anneal_lr=True, gamma=0.99, lam=0.65, max_grad_norm=10.0,
                    epsilon_start=1.0, epsilon_end=0.05, epsilon_fraction=0.1, network="minatar", init="he_normal", layer_norm="channel", norm_eps=1e-6, plane_divisor=255.0, loss_scale=0.5,
                    decay_rule="gradient", late_bootstrap=True, minatar_sticky=0.0, max_episode_steps=1_000, same_step_reset=True, bootstrap_truncation=False, reward_clip=False, reward_scale=1.0,
                    total_steps=9_998_336, eval_envs=128)
    flat = config.flat()
    assert {k: flat[k] for k in expected} == expected
    assert plan_update(config.agent, 32, 128, Progress(1)) == BatchPlan(32, 128, 64)


def test_what_minatar_has_instead():
    differ = {k: (PRESETS["minatar"].get(k), v) for k, v in PRESETS["purejaxql_minatar"].items() if PRESETS["minatar"].get(k) != v}
    assert differ == dict(init=(None, "he_normal"), layer_norm=(None, "channel"), norm_eps=(None, 1e-6), plane_divisor=(None, 255.0), loss_scale=(None, 0.5), decay_rule=(None, "gradient"),
                          late_bootstrap=(None, True), minatar_sticky=(None, 0.0), max_episode_steps=(None, 1_000), same_step_reset=(None, True), bootstrap_truncation=(None, False),
                          total_steps=(10_000_000, 9_998_336), eval_envs=(None, 128))


# -- the network -------------------------------------------------------------------------------------------------------

def plain(net, obs):
    "The action values of a `minatar` network, computed from its parameters as the definition says."
    conv_w, conv_b, gain_1, shift_1, fc_w, fc_b, gain_2, shift_2, head_w, head_b = net.parameters()
    normal = lambda x, gain, shift: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * gain + shift
    x = F.conv2d(obs.movedim(-1, 1).float() / 255, conv_w, conv_b).movedim(1, -1)
    x = normal(x, gain_1, shift_1).relu().movedim(-1, 1).flatten(1)
    return normal(F.linear(x, fc_w, fc_b), gain_2, shift_2).relu() @ head_w.T + head_b


def test_the_first_weights_have_flaxs_variances():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv_w, conv_b, gain, shift, fc_w, fc_b, *_, head_w, head_b = q_network("minatar", (10, 10, 4), 3, "he_normal", "channel", 1e-6, 255).parameters()
        heads = torch.stack([q_network("minatar", (10, 10, 4), 3, "he_normal", "channel").head.weight.detach() for _ in range(8)])
    assert conv_w.shape == (16, 4, 3, 3) and fc_w.shape == (128, 1024) and head_w.shape == (3, 128) and gain.shape == shift.shape == (16,)
    for w, variance in ((conv_w, 2 / 36), (fc_w, 2 / 1024), (heads, 1 / 128)):      # he_normal twice, and lecun_normal
        assert w.var().item() == pytest.approx(variance, rel=6 / len(w.flatten()) ** 0.5)
        assert w.abs().max() <= 2 * variance**0.5 / 0.8796256  # cut off at two standard deviations of the normal that is drawn
    assert all((b == 0).all() for b in (conv_b, shift, fc_b, head_b)) and (gain == 1).all()


def test_the_network_is_the_one_of_the_definition():
    agent, _ = agent_of()
    obs = torch.rand(64, 10, 10, 4, generator=torch.Generator().manual_seed(1)) < 0.1
    torch.testing.assert_close(agent.policy(obs), plain(agent.net, obs).detach(), atol=2e-5, rtol=2e-5)
    assert [m.eps for m in agent.net.modules() if isinstance(m, torch.nn.LayerNorm)] == [1e-6] * 2
    assert (agent.policy(obs) - agent_of(norm_eps=1e-5)[0].policy(obs)).abs().max() > 0.01      # after the division by 255 the ε is not small


def test_the_norm_is_over_channels_at_each_position():
    norm = agent_of()[0].net.body[2]
    x = torch.stack([torch.tensor([3.0, -1.0] * 8), torch.tensor([0.003, -0.001] * 8)], 1)[None, :, :, None]
    torch.testing.assert_close(norm(x)[0, :2, :, 0], torch.tensor([[1.0, 0.8944272], [-1.0, -0.8944272]]))  # 0.002 / √(0.002² + 10⁻⁶)


# -- targets -----------------------------------------------------------------------------------------------------------

def test_targets_of_a_rollout_with_a_termination_and_a_time_limit():
    agent, _ = agent_of(gamma=0.5, lam=0.5)
    column = lambda *envs, dtype=torch.float32: torch.tensor(envs, dtype=dtype).T
    rewards, values = column(*[[1, 2, 0, 4]] * 4), column(*[[10, 20, 30, 40]] * 4)
    over = column([0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], dtype=torch.bool)   # a time limit is one of these
    agent.policy = lambda obs: torch.full((4, 1), 50.0)
    rollout = Rollout(torch.zeros(4, 4, 1), torch.zeros(4, 4, dtype=torch.int64), rewards, over, torch.zeros_like(over), torch.ones_like(over), torch.zeros(4, 1), dict(value=values))
    targets = agent._rows(rollout, None)[2].view(4, 4)
    # the last row: 4 + ½ · 50; the one before: 0 + ½ · (½ · 29 + ½ · 50), not ½ · (½ · 29 + ½ · 40); and 50 is 0 where the last row ended an episode
    assert targets.T.tolist() == [[6.5, 2, 19.75, 29], [8.375, 9.5, 0, 29], [8.4375, 9.75, 1, 4], [9.609375, 14.4375, 19.75, 29]]
    agent.config = PQNConfig(**THEIRS | dict(gamma=0.5, lam=0.5, late_bootstrap=False))
    assert agent._rows(rollout, None)[2].view(4, 4)[2].tolist() == [17.25, 0, 11, 17.25]


# -- updates -----------------------------------------------------------------------------------------------------------

def test_three_updates_are_those_of_a_plain_loop():
    agent, progress = agent_of(max_grad_norm=0.5)
    other = agent_of()[0]
    optimizer, counted, rates = torch.optim.RAdam(other.net.parameters(), lr=1.0), 0, []
    for update in range(3):
        rollout = rollout_of(agent, update)
        before = agent.generator.get_state()
        progress.step += T * N
        out = agent.update(rollout, agent.plan(T))
        progress.update += 1
        ahead = plain(other.net, rollout.next_obs).amax(-1).detach() * (1 - rollout.terminated[-1].float())
        target = rollout.rewards[-1] + 0.99 * ahead
        targets = [target]
        for t in reversed(range(T - 1)):
            going = 1 - rollout.terminated[t].float()
            target = rollout.rewards[t] + 0.99 * going * (ahead + 0.65 * (target - ahead))
            targets, ahead = [target, *targets], rollout.extras["value"][t]
        obs, actions, targets = rollout.obs.flatten(0, 1), rollout.actions.flatten(), torch.cat(targets)
        rng, losses = torch.Generator(), []
        rng.set_state(before)
        for _ in range(2):
            for chosen in torch.randperm(T * N, generator=rng).split(T * N // 4):
                loss = 0.5 * (plain(other.net, obs[chosen])[torch.arange(len(chosen)), actions[chosen]] - targets[chosen]).square().mean()
                optimizer.param_groups[0]["lr"] = 5e-4 * (1 - counted / 24)
                optimizer.zero_grad(); loss.backward()
                torch.nn.utils.clip_grad_norm_(other.net.parameters(), 0.5)
                optimizer.step()
                losses.append(loss.item()); rates.append(optimizer.param_groups[0]["lr"]); counted += 1
        assert out["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4) and agent.optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1])
    moved = agent.weights - torch.cat([p.flatten() for p in agent_of()[0].net.parameters()])
    apart = agent.weights - torch.cat([p.flatten() for p in other.net.parameters()])
    assert moved.norm() > 1e-3 and apart.norm() < 1e-3 * moved.norm()


def test_half_the_loss_has_half_the_gradient():
    agent, progress = agent_of()
    rollout = rollout_of(agent, 0)
    half = agent.gradient(rollout)(torch.arange(T * N))
    agent.config = PQNConfig(**THEIRS | dict(loss_scale=1.0))
    torch.testing.assert_close(agent.gradient(rollout)(torch.arange(T * N)), 2 * half)


# -- schedules ---------------------------------------------------------------------------------------------------------

def test_exploration_falls_once_an_update_and_the_rate_with_every_gradient_step():
    agent, progress = agent_of(total=20 * T * N, epsilon_fraction=0.5, epsilon_end=0.0)
    envs = VecEnvs(EnvConfig("MinAtar/Breakout-v1", num_envs=N, minatar_sticky=0.0, max_episode_steps=1_000, same_step_reset=True, bootstrap_truncation=False))
    act, seen = agent.act, []
    def watched(obs):
        out = act(obs)
        seen.append(round(agent.epsilon, 9))
        return out
    agent.act = watched
    for _ in range(3):
        rollout = envs.collect(agent, T, progress)
        agent.update(rollout, agent.plan(T))
        progress.update += 1
    envs.close()
    assert seen == [1.0] * T + [0.9] * T + [0.8] * T
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4 * (1 - 23 / 160))  # 24 of 160 gradient steps are done
    again, clock = agent_of(total=20 * T * N, epsilon_fraction=0.5, epsilon_end=0.0)   # a resumed agent goes on at the same rate
    again.load_state_dict(agent.state_dict())
    clock.load_state_dict(progress.state_dict() | dict(step=progress.step + N))
    again.act(rollout.obs[0])
    assert again.epsilon == pytest.approx(0.7)


# -- environments ------------------------------------------------------------------------------------------------------

def played(steps=1_200, **settings):
    "What an agent that never moves sees of four games."
    class Still:
        def act(self, obs): return torch.zeros(len(obs), dtype=torch.int64), {}
    envs = VecEnvs(EnvConfig("MinAtar/Breakout-v1", num_envs=4, **settings))
    rollout = envs.collect(Still(), steps, Progress(10**6))
    envs.close()
    return rollout


def test_no_row_is_lost_to_a_reset_and_every_end_is_a_termination():
    theirs, ours = played(60, minatar_sticky=0.0, max_episode_steps=7, same_step_reset=True, bootstrap_truncation=False), played(60, minatar_sticky=0.0, max_episode_steps=7)
    assert theirs.mask.all() and not theirs.truncated.any() and not ours.mask.all() and ours.truncated.any()
    lengths = [[e.length for e in r.episodes if e.env == 0] for r in (theirs, ours)]
    assert max(lengths[0]) == max(lengths[1]) == 7
    ends = theirs.terminated[:, 0].nonzero().flatten()
    assert sum(lengths[0]) == ends[-1] + 1                                       # one game follows upon another at once
    first = theirs.obs[ends[0] + 1, 0]
    assert first[3, [0, 9], 1].any() and first[9, 4, 0] and first[1:4, :, 3].all()    # ball, paddle and bricks as a game begins


def test_stickiness_is_minatars():
    from minatar import Environment
    def chance(**settings):
        envs = VecEnvs(EnvConfig("MinAtar/Breakout-v1", num_envs=1, **settings))
        found = envs.env.env.envs[0].unwrapped.game.sticky_action_prob
        envs.close()
        return found
    assert (chance(), chance(minatar_sticky=0.0), Environment("breakout").sticky_action_prob) == (0.1, 0.0, 0.1)
    for wrong, said in ((dict(env_id="CartPole-v1", minatar_sticky=0.0), "MinAtar"), (dict(env_id="MinAtar/Breakout-v1", same_step_reset=True), "bootstrap_truncation"),
                        (dict(env_id="CartPole-v1", same_step_reset=True, bootstrap_truncation=False), "Gymnasium")):
        with pytest.raises(AbsLabError, match=said): VecEnvs(EnvConfig(num_envs=1, **wrong))
    with pytest.raises(AbsLabError, match="plane_divisor=255.0 is for the networks of MinAtar"): PQNConfig(network="mlp", plane_divisor=255.0)


def test_a_run_of_it_is_resumed_exactly():
    config = configure(preset="purejaxql_minatar", controller="fixed", num_envs=8, num_minibatches=4, size=8, total_steps=1_024, max_episode_steps=9)
    def parts():
        progress, envs = Progress(config.total_steps), VecEnvs(config.env, 0)
        return PQN(config.agent, envs.obs_space, envs.action_space, 8, progress, 0), envs, progress
    def advance(agent, envs, progress, updates):
        for _ in range(updates):
            agent.update(envs.collect(agent, 8, progress), agent.plan(8))
            progress.update += 1
    agent, envs, progress = parts()
    advance(agent, envs, progress, 6)
    saved, actions, clock = copy.deepcopy((agent.state_dict(), envs.state_dict())), envs.drain_log(), progress.state_dict()
    again, world, time = parts()
    again.load_state_dict(saved[0]); world.load_state_dict(saved[1], actions); time.load_state_dict(clock)
    for each in ((agent, envs, progress), (again, world, time)): advance(*each, 6)
    assert torch.equal(agent.weights, again.weights) and torch.equal(envs.obs, world.obs)
