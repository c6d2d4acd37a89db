"""What training takes at least: the simulator by itself, and of acting and learning the operations on arrays, each by itself.

What an agent's `act` and `update` compute with torch, with NumPy's ufuncs and by selecting rows is recorded with a copy of what goes in, and
called alone until its least time is known. Nothing of what lies between the operations is counted. Left out are views, which compute nothing.
"""
import operator
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
    "What decides how long an operation takes: sizes and layouts of tensors and arrays, of other numbers than whole ones the kind, and the rest as it is."
    if isinstance(x, torch.Tensor): return x.shape, x.stride(), x.dtype
    if isinstance(x, np.ndarray): return x.shape, x.strides, x.dtype
    return type(x) if isinstance(x, (float, np.generic)) else x


def copied(copies, x):
    "A copy of a tensor, an array or a generator, the same one wherever it occurs; all else, and what has several places in one, as it is."
    if isinstance(x, torch.Tensor): key, copy = (x.data_ptr(), sizes_of(x)), x.detach().clone if torch._debug_has_internal_overlap(x) != 1 else None
    elif isinstance(x, np.ndarray): key, copy = (x.ctypes.data, sizes_of(x)), partial(x.copy, "K")
    else: key, copy = id(x), x.clone_state if isinstance(x, torch.Generator) else None
    if copy and key not in copies: copies[key] = copy()
    return copies.get(key, x)


class Operations(TorchDispatchMode):
    "Records what torch and NumPy compute within it."
    now: "Operations | None" = None  # the one that records

    def __init__(self):
        super().__init__()
        self.found = {}  # what goes in -> [how often, a call of it, whether it is a product]

    def enter(self, kind, function, *args, **kwargs):
        "Count an operation that is about to be computed; the first of its kind and sizes is kept, with copies of what it is given."
        key = f"{kind} {tree_map(sizes_of, (args, kwargs))}"
        if key not in self.found:
            copies: dict = {}
            args, kwargs = tree_map(partial(copied, copies), (args, kwargs))
            self.found[key] = [0, partial(function, *args, **kwargs), kind in PRODUCTS]
        self.found[key][0] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_view(func): self.enter(func.overloadpacket, func, *args, **kwargs)
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
        inputs, call = [plain(x) for x in inputs], getattr(ufunc, method)
        if "out" in how: how["out"] = tuple(map(plain, how["out"]))
        if Operations.now: Operations.now.enter(ufunc if method == "__call__" else (ufunc, method), call, *inputs, **how)
        return watched(call(*inputs, **how))

    def __getitem__(self, place):
        if Operations.now and isinstance(place, np.ndarray): Operations.now.enter("selection", operator.getitem, self.view(np.ndarray), place)
        return super().__getitem__(place)


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
