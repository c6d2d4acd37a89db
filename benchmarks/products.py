"""What training takes at least: the simulator by itself, and of an agent's code its products of matrices and its convolutions.

Each product that the code computes is recorded with the sizes and layouts of what goes in, and timed by itself.
"""
import time

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from abs_lab.agents.gradients import Autograd
from abs_lab.core.envs import VecEnvs

aten = torch.ops.aten
KINDS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward)
LEAST_SECONDS = 0.02  # for which each is repeated


class Products(TorchDispatchMode):
    "Records every product and every convolution that torch computes within it."
    def __init__(self):
        super().__init__()
        self.found = {}  # what goes in -> [how often, a call of it]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in KINDS:
            sizes = tree_map(lambda x: (x.shape, x.stride()) if isinstance(x, torch.Tensor) else x, (args, kwargs))
            self.found.setdefault(f"{func}{sizes}", [0, lambda: func(*args, **kwargs)])[0] += 1
        return func(*args, **kwargs)

    def around(self, function):
        "The function, recorded."
        def call(*args, **kwargs):
            with self: return function(*args, **kwargs)
        return call

    def microseconds(self):
        "Of all that were recorded: each as often as it was computed, at its fastest."
        return 1e6 * sum(n * fastest(call) for n, call in self.found.values())


@torch.no_grad()
def fastest(call):
    "Seconds of a call, the least of many."
    seconds = []
    while len(seconds) < 5 or sum(seconds) < LEAST_SECONDS:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def record(agent):
    "From now on record what the agent computes: in acting, and in learning."
    if hasattr(agent, "backprop"): agent.backprop = Autograd(agent.net)  # PPO's products of NumPy, as torch's
    acting, learning = Products(), Products()
    agent.act, agent.update = acting.around(agent.act), learning.around(agent.update)
    return acting, learning


def simulator_alone(config, seconds):
    "Microseconds per environment step of the environments, with actions drawn beforehand."
    envs, n, rng = VecEnvs(config.env, 0), config.env.num_envs, np.random.default_rng(0)
    space = envs.action_space
    actions = rng.integers(0, space.n, (64, n)).astype(np.int32) if hasattr(space, "n") else rng.uniform(space.low, space.high, (64, n, *space.shape)).astype(np.float32)
    env, began, steps = envs.env, time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        env.send(actions[steps % 64])
        env.receive()
        steps += 1
    spent = time.perf_counter() - began
    envs.close()
    return 1e6 * spent / (steps * n)
