"A network that is compiled for a few batch sizes gives what the network itself gives."
import pytest
import torch

from abs_lab.agents.networks import q_network
from abs_lab.core.envs import VecEnvs
from abs_lab.core.controllers import Replayed
from abs_lab.core.divergence import Divergence
from abs_lab.core.interfaces import AbsLabError, Progress
from abs_lab.core.rungs import RUNGS, Rungs
from abs_lab.core.simulators import EnvConfig
from abs_lab.core.train import train
from abs_lab.agents.pqn import PQN, PQNConfig


def gradient(net, call, x, y):
    return torch.cat([g.flatten() for g in torch.autograd.grad(((call(x) - y) ** 2).mean(), list(net.parameters()))])


def apart(a, b):
    "The norm of a difference, as a share."
    return float((a - b).norm() / b.norm())


@pytest.fixture
def eager(monkeypatch):
    "torch.compile with everything but the compiler: traced for a size, then executed as traced."
    whole, shapes = torch.compile, []
    def seen(graph, inputs): shapes.append(len(inputs[0])); return graph.forward
    monkeypatch.setattr(torch, "compile", lambda net, **how: whole(net, backend=seen, **how))
    return shapes


def test_batches_of_many_sizes_are_those_of_four(eager):
    torch.manual_seed(0)
    net = q_network("minatar", (10, 10, 4), 3, "orthogonal", "all", 1e-5, 1.0)
    with torch.no_grad(): net.head.weight.mul_(0.1)  # values below 1, so that 1e-6 is several times what they are rounded by
    rungs = Rungs(net, "inductor")
    for rows in (1, 7, 127, 128, 129, 500, 513, 1000, 1024):
        x, y = torch.randint(0, 2, (rows, 10, 10, 4), dtype=torch.uint8), torch.randn(rows, 3)
        torch.testing.assert_close(rungs(x), net(x), atol=1e-6, rtol=0)
        assert apart(gradient(net, rungs, x, y), gradient(net, net, x, y)) < 1e-6
    assert eager == [*RUNGS]


def weights(**settings):
    "What a PQN agent has learnt after updates with minibatches of 60, 192, 1,080 and 12 rows."
    p = Progress(total=4_000)
    envs = VecEnvs(EnvConfig(env_id="CartPole-v1", num_envs=24), 0)
    agent = PQN(PQNConfig(network="mlp", num_minibatches=2, epochs_rule="constant", lr=1e-4, **settings), envs.obs_space, envs.action_space, 24, p)
    sizes = Replayed(starts=(0, 120, 504, 2_664), sizes=(5, 16, 90, 1))
    loop = train(agent, envs, Divergence(interval=10), sizes, p)
    seen = [next(loop).plan.minibatch for _ in range(4)]
    envs.close()
    return seen, agent.weights.detach().clone()


def test_an_agent_learns_the_same(eager):
    sizes, compiled = weights(compiler="inductor")
    plain = weights()[1]
    assert sizes == [60, 192, 1_080, 12]
    torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=0)


def test_what_cannot_be_compiled_is_refused():
    net = torch.nn.Linear(3, 2)
    with pytest.raises(AbsLabError, match="cudagraph.*'cpu'"): Rungs(net, "cudagraph")
    with pytest.raises(AbsLabError, match="inductor"): PQNConfig(compiler="inducter")


def test_a_compiler_that_fails_is_named(monkeypatch):
    whole = torch.compile
    def fails(graph, inputs): raise RuntimeError("no C++ compiler")
    monkeypatch.setattr(torch, "compile", lambda net, **how: whole(net, backend=fails, **how))
    with pytest.raises(AbsLabError, match="no C\\+\\+ compiler.*compiler='none'"): Rungs(torch.nn.Linear(3, 2), "inductor")(torch.zeros(5, 3))


@pytest.mark.long
def test_inductor_itself():
    sizes, compiled = weights(compiler="inductor")
    torch.testing.assert_close(compiled, weights()[1], atol=1e-6, rtol=0)


@pytest.mark.long
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiler", ["inductor", "cudagraph"])
def test_on_a_gpu(compiler):
    net = q_network("minatar", (10, 10, 4), 3, "orthogonal", "all", 1e-5, 1.0).cuda()
    rungs = Rungs(net, compiler)
    for rows in (7, 128, 513, 1024):
        x, y = torch.randint(0, 2, (rows, 10, 10, 4), dtype=torch.uint8, device="cuda"), torch.randn(rows, 3, device="cuda")
        assert apart(gradient(net, rungs, x, y), gradient(net, net, x, y)) < 1e-5  # a GPU chooses other sums for other shapes
