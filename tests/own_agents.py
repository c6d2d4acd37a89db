"An agent that the library does not have: REINFORCE, a policy gradient with returns to go."
import copy
from dataclasses import dataclass

import torch
from torch import nn

from abs_lab.core.contract import Agent, AgentConfig, Metric, resume_generator
from abs_lab.core.interfaces import BatchPlan, positive, shares, whole
from abs_lab.core.simulators import role_seeds


@dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    "The settings of a REINFORCE agent."
    width: int = 64      # units in the hidden layer
    lr: float = 3e-3     # Adam's learning rate
    gamma: float = 0.99  # discount per step, 0 to 1

    def __post_init__(self):
        whole("width", self.width)
        positive(self, "lr")
        shares(self, "gamma")


class Reinforce(Agent):
    "REINFORCE on discrete actions, with the batch's mean return as its baseline."
    Config, settable = ReinforceConfig, ("lr", "gamma")
    presets = {"cartpole": dict(env_id="CartPole-v1", num_envs=16, total_steps=40_000, size=64, size_min=32, size_max=128, distance="softmax_kl", low=0.001, high=0.05, eval_envs=10)}
    metrics = {"loss": Metric("policy loss"), "entropy": Metric("entropy", "nats")}

    def __init__(self, config, obs_space, action_space, num_envs, progress, seed=0, device="cpu"):
        super().__init__(config, obs_space, action_space, num_envs, progress, seed, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(role_seeds(seed, 1, "weights")[0])
            self.net = nn.Sequential(nn.Linear(obs_space.shape[0], config.width), nn.Tanh(), nn.Linear(config.width, int(action_space.n))).to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.generator = torch.Generator(device).manual_seed(role_seeds(seed, 1, "agent")[0])

    @classmethod
    def plan_update(cls, config, size, num_envs, progress): return BatchPlan(size, num_envs * size, 1)

    @torch.no_grad()
    def policy(self, obs): return self.net(obs.float())

    def greedy(self, obs): return self.policy(obs).argmax(-1)

    def frozen(self): return copy.deepcopy(self.net).requires_grad_(False)

    def act(self, obs): return torch.multinomial(self.policy(obs).softmax(-1), 1, generator=self.generator)[:, 0], {}

    def update(self, rollout, plan):
        self.optimizer.param_groups[0]["lr"] = self.config.lr
        ahead, returns = torch.zeros(self.num_envs), torch.zeros(rollout.rewards.shape)
        for t in reversed(range(len(returns))):
            ahead = rollout.rewards[t] + self.config.gamma * ahead * ~(rollout.terminated[t] | rollout.truncated[t])
            returns[t] = ahead
        real = rollout.mask.flatten()
        logs = self.net(rollout.obs.flatten(0, 1).float()[real]).log_softmax(-1)
        taken, earned = logs.gather(1, rollout.actions.flatten()[real].long()[:, None])[:, 0], returns.flatten()[real]
        loss = -(taken * (earned - earned.mean()) / (earned.std() + 1e-6)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.progress.gradient_steps += 1
        return dict(loss=loss.detach(), entropy=-(logs.exp() * logs).sum(-1).mean().detach())

    def state_dict(self): return dict(net=self.net.state_dict(), optimizer=self.optimizer.state_dict(), generator=self.generator.get_state())

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reseeded = not resume_generator(self.generator, state["generator"])
