"""A Jupyter-first workbench for Adaptive Batch Scaling in reinforcement learning."""
import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = dict(configure="runs.config", run="runs.runner", load_agent="runs.runner", Runs="runs.table", Session="runs.session", dashboard="live.page",
             ABS="core.controllers", Divergence="core.divergence", Measurement="core.interfaces", train="core.train",
             # for agents, controllers, meters and studies of one's own
             Agent="core.contract", AgentConfig="core.contract", Controller="core.contract", Meter="core.contract", Metric="core.contract",
             BatchPlan="core.interfaces", Study="studies.study", register="runs.registry")
__all__ = ["ABS", "Agent", "AgentConfig", "BatchPlan", "Controller", "Divergence", "Measurement", "Meter", "Metric", "Runs", "Session", "Study",
           "configure", "dashboard", "load_agent", "register", "run", "train"]

if TYPE_CHECKING:  # what an editor reads; at run time a name is imported when it is first asked for
    from .core.contract import Agent, AgentConfig, Controller, Meter, Metric
    from .core.controllers import ABS
    from .core.divergence import Divergence
    from .core.interfaces import BatchPlan, Measurement
    from .core.train import train
    from .live.page import dashboard
    from .runs.config import configure
    from .runs.registry import register
    from .runs.runner import load_agent, run
    from .runs.session import Session
    from .runs.table import Runs
    from .studies.study import Study


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__(): return sorted({*globals(), *__all__})
