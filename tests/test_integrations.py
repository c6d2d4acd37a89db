"Others' frameworks: what is said without them, and their notebooks where they are installed."
import importlib, importlib.util, os, subprocess, sys, venv
from pathlib import Path
from unittest.mock import patch

import pytest

from abs_lab.core.interfaces import AbsLabError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {"stable_baselines3": "nbs/integrations/02_sb3.ipynb", "torchrl": "nbs/integrations/03_torchrl.ipynb"}
EXTRAS = {"stable_baselines3": "sb3", "torchrl": "torchrl", "onnxruntime": "onnx"}
EXPORT = """
import sys, torch
from pathlib import Path
from abs_lab import configure, run
from abs_lab.runs.policies import export
for agent, more in (("pqn", dict(num_envs=8, env_id="CartPole-v1")), ("ppo", dict(num_envs=8, env_id="Pendulum-v1", size_min=32, size_max=64)), ("btr", dict(env_id="CartPole-v1"))):
    dir = Path(sys.argv[1], agent)
    run(configure(agent, total_steps=2_100, eval_envs=2, **more), dir)
    path, same, error = export(dir, "onnx", dir / "policy.onnx")
    assert same >= 0.999 and error < 1e-4 and path.stat().st_size > 1_000, (agent, same, error)
"""


def here(package): return importlib.util.find_spec(package) is not None


def process(python, *args, **more): return subprocess.run([python, *map(str, args)], cwd=ROOT, capture_output=True, text=True, env={**{k: v for k, v in os.environ.items() if k != "IN_TEST"}, **more})


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_without_stable_baselines3_its_adapter_says_how_to_get_it(name):
    from abs_lab.integrations import sb3
    with patch.dict(sys.modules, stable_baselines3=None), pytest.raises(AbsLabError, match=r"pip install 'abs_lab\[sb3\]'"): getattr(sb3, name)
    assert not hasattr(sb3, "A2C")


def test_a_collector_in_other_processes_is_refused():
    from abs_lab.core.controllers import Fixed
    from abs_lab.core.divergence import Divergence
    from abs_lab.integrations.torchrl import follow
    with pytest.raises(AbsLabError, match="in other processes"): follow(object(), None, Fixed(8), Divergence())


@pytest.mark.parametrize("package", NOTEBOOKS)
def test_the_notebook_of_an_adapter_gives_what_is_stored(package):
    if not here(package): pytest.skip(f"{package} is not installed here (pip install 'abs_lab[{EXTRAS[package]}]'): the cells of {NOTEBOOKS[package]} that need it are not run")
    done = process(sys.executable, "tools/outputs.py", "check", NOTEBOOKS[package])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_policy_as_onnx_acts_as_its_agent(tmp_path):
    if not (here("onnxruntime") and here("onnxscript")): pytest.skip("onnx is not installed here (pip install 'abs_lab[onnx]'): nothing is exported to it")
    done = process(sys.executable, "-c", EXPORT, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("package", EXTRAS)
def test_an_extra_in_an_environment_of_its_own(package, tmp_path):
    "Installs the extra beside what the notebooks need, and runs the test that is left out without it."
    venv.create(tmp_path/"env", with_pip=True)
    python = tmp_path/"env"/("Scripts" if os.name == "nt" else "bin")/"python"
    done = process(python, "-m", "pip", "install", "-q", f"{ROOT}[{EXTRAS[package]},lab,dev]", *["gymnasium[mujoco]"] * (package != "onnxruntime"))
    assert done.returncode == 0, done.stderr
    name = "onnx_acts" if package == "onnxruntime" else f"gives_what_is_stored and {package}"
    done = process(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", __file__, "-k", name, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
