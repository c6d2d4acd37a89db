"""What training takes at least: the simulator by itself, and an agent's operations on arrays, each by itself.

Each operation that torch or NumPy computes for the agent is recorded with what goes in, and called alone until its least time is known. Nothing
of what lies between the operations is counted. Left out are views, which compute nothing, and the few of NumPy's functions that are no ufuncs.
"""
import time
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from abs_lab.agents import gradients, ppo
from abs_lab.agents.arrays import as_array, matmul
from abs_lab.core.envs import VecEnvs

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward, np.matmul)
LEAST_SECONDS = 0.02  # for which each is repeated


def is_view(func):
    "Whether one of torch's operations returns what it was given, seen otherwise."
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return alias is not None and not alias.is_write


def sizes_of(x):
    "What decides how long an operation takes: sizes and layouts of tensors and arrays, whole numbers as they are, of others the kind."
    if isinstance(x, torch.Tensor): return x.shape, x.stride(), x.dtype
    if isinstance(x, np.ndarray): return x.shape, x.strides, x.dtype
    return type(x) if isinstance(x, (float, np.generic)) else x


class Operations(TorchDispatchMode):
    "Records what torch and NumPy compute within it."
    now: "Operations | None" = None  # the one that records

    def __init__(self):
        super().__init__()
        self.found = {}  # what goes in -> [how often, a call of it, whether it is a product]

    def enter(self, kind, call, *given):
        self.found.setdefault(f"{kind} {tree_map(sizes_of, given)}", [0, call, kind in PRODUCTS])[0] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_view(func): self.enter(func.overloadpacket, lambda: func(*args, **kwargs), args, kwargs)
        return func(*args, **kwargs)

    def around(self, function):
        "The function, recorded."
        def call(*args, **kwargs):
            with self:
                Operations.now = self
                try: return function(*args, **kwargs)
                finally: Operations.now = None
        return call

    def microseconds(self):
        "Of the products, and of all that was recorded: each as often as it was computed, at its fastest."
        spent = [(n * fastest(call), product) for n, call, product in self.found.values()]
        return np.array([1e6 * sum(seconds for seconds, product in spent if product or every) for every in (False, True)])


class Watched(np.ndarray):
    "An array whose operations are recorded, as are those of what is computed from it."
    def __array_ufunc__(self, ufunc, method, *inputs, **how):
        plain = lambda x: x.view(np.ndarray) if isinstance(x, Watched) else x
        inputs = [plain(x) for x in inputs]
        if "out" in how: how["out"] = tuple(map(plain, how["out"]))
        call = partial(getattr(ufunc, method), *inputs, **how)
        if Operations.now: Operations.now.enter(ufunc, call, method, inputs, how)
        return watched(call())

    def __getitem__(self, place):
        taken = super().__getitem__(place)
        if Operations.now and isinstance(place, np.ndarray): Operations.now.enter("selection", partial(self.view(np.ndarray).__getitem__, place), self, place)
        return taken


def watched(x): return x.view(Watched) if isinstance(x, np.ndarray) else x


@torch.no_grad()
def fastest(call):
    "Seconds of a call, the least of many."
    seconds = []
    while len(seconds) < 5 or sum(seconds) < LEAST_SECONDS:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def record(agent, advance):
    "What the agent computes while something goes on: in acting, and in learning."
    acting, learning = Operations(), Operations()
    changes = dict(act=acting.around(agent.act), update=learning.around(agent.update))
    if isinstance(getattr(agent, "grad", None), np.ndarray): changes |= dict(grad=watched(agent.grad))  # PPO's sums on a CPU are NumPy's
    with patch.multiple(agent, **changes), patch.object(ppo, "as_array", lambda x: watched(as_array(x))), patch.object(gradients, "matmul", lambda *args, **kwargs: watched(matmul(*args, **kwargs))): advance()
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
