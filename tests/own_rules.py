"A controller and a meter that the library does not have."
from dataclasses import dataclass

import torch

from abs_lab.core.contract import Controller, Meter, Metric
from abs_lab.core.interfaces import AbsLabError, whole


@dataclass
class AIMD(Controller):
    "Add while the policy is settled, halve when it has moved."
    size_min: int = 16     # smallest size, and the first
    size_max: int = 64     # largest size
    add: int = 4           # added at each measurement of a settled policy, 1 or more
    limit: float = 0.2     # signal above which the policy counts as moved, above 0

    def __post_init__(self):
        for name in ("size_min", "size_max", "add"): setattr(self, name, whole(name, getattr(self, name)))
        if self.size_min > self.size_max: raise AbsLabError(f"size_min must be at most size_max={self.size_max}, not {self.size_min}")
        if not self.limit > 0: raise AbsLabError(f"limit must be above 0, not {self.limit!r}")
        self.size = self.size_min

    def observe(self, m):
        if m.signal is None: return
        self.size = self.size + self.add if m.signal <= self.limit else self.size // 2
        self.fit()


@dataclass
class WeightMove(Meter):
    "How far an update moved a thousand weights, drawn anew each time, as a share of their length."
    quantity, memory = "weight movement", ("count",)
    interval: int = 10     # updates between measurements, 1 or more

    def __post_init__(self): self.interval, self.count, self.old = whole("interval", self.interval), 0, None

    @property
    def signal(self): return Metric("weight movement", "share of the weights' length")

    def _weights(self, agent): return torch.cat([p.detach().flatten() for p in agent.net.parameters()])

    def before(self, agent, rollout):
        self.old = None
        if (self.count + 1) % self.interval: return
        self.drawn = torch.randint(len(self._weights(agent)), (1000,), generator=self._generator)
        self.old = self._weights(agent)[self.drawn]

    def after(self, agent, rollout):
        self.count += 1
        return None if self.old is None else float((self._weights(agent)[self.drawn] - self.old).norm() / self.old.norm())
