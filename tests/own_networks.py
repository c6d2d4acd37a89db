"Networks of one's own, as a person would keep them in a module beside a notebook."
import torch
from torch import nn

from abs_lab.agents.btr_networks import SpectralLinear
from abs_lab.agents.networks import Vector


def small(obs_shape, n_actions): return nn.Sequential(nn.Linear(obs_shape[0], 32), nn.ReLU(), nn.Linear(32, n_actions))


class Seen(nn.Module):
    "A class will do as well; with `features`, plasticity is measured."
    def __init__(self, obs_shape, n_actions):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(obs_shape[0], 24), nn.LayerNorm(24), nn.ReLU()), nn.Linear(24, n_actions)
    def features(self, obs): return self.body(obs)
    def forward(self, obs): return self.head(self.features(obs))


def one_too_many(obs_shape, n_actions): return nn.Linear(obs_shape[0], n_actions + 1)


def nothing(*_): return None


def torso(obs_shape, spectral):
    second = SpectralLinear(32, 32).begin() if spectral else nn.Linear(32, 32)
    return nn.Sequential(nn.Linear(obs_shape[0], 32), nn.ReLU(), second, nn.ReLU()), 32


def plain(obs_shape, spectral): return nn.Sequential(Vector(), nn.Linear(obs_shape[0], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()), 32  # of the library's parts, and no torso of the library's


class Keeps(nn.Module):
    "Keeps a tensor for each number of rows that it has seen, as a module with masks or positions does."
    def __init__(self, obs_shape, spectral):
        super().__init__()
        self.layer, self.kept = nn.Linear(obs_shape[0], 32), {}
    def forward(self, obs):
        scale = self.kept.setdefault(len(obs), torch.ones(len(obs), 1))
        return self.layer(obs * scale).relu() * scale


def keeps(obs_shape, spectral): return Keeps(obs_shape, spectral), 32


def mistaken(obs_shape, spectral): return nn.Linear(obs_shape[0], 32), 33


WIDTH = 32
