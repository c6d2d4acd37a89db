"""Which code trains alike: golden runs of every built-in agent under the code of several commits, on this machine, in one go.

    python tools/fingerprints.py             the commits that trained the committed runs, and the working tree
    python tools/fingerprints.py COMMIT …    these as well

Each commit is checked out into a temporary git worktree, and its golden runs are trained there. Two fingerprints of an agent count as one
when its golden runs came out the same to the last bit: what was recorded of every update, the final weights, and the evaluation. Each preset has
a digest, and so have all of them together, which speak for the other presets.
A digest depends on the processor, so the whole list is written anew each time, into abs_lab/runs/fingerprints.json.
"""
import contextlib, hashlib, json, os, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from abs_lab.core.interfaces import AbsLabError
from abs_lab.runs.checkpoints import load_tree
from abs_lab.runs.config import configure
from abs_lab.runs.provenance import closure, code_of, provenance
from abs_lab.runs.storage import read_jsonl, write_json

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT/"abs_lab"/"runs"/"fingerprints.json"
MOVING = dict(controller="abs", interval=1, warmup=3, window=5, low=0.05, high=0.9, n_states=256)  # a size that moves, within a few updates
GOLDEN = {  # seconds each; parameters that every version of the agent has
    "pqn": [dict(env_id="LunarLander-v3", preset="classic", total_steps=6_144, eval_envs=1, **MOVING),
            dict(env_id="CartPole-v1", preset="classic", total_steps=4_096, eval_envs=1, n_states=256, controller="ramp"),
            dict(env_id="MinAtar/Breakout-v1", preset="minatar", num_envs=16, total_steps=1_024, eval_envs=1, n_states=256, controller="fixed"),
            dict(env_id="Pong-v5", preset="paper_masked", num_envs=4, total_steps=256, eval_envs=1, n_states=64, controller="fixed")],
    "ppo": [dict(env_id="Hopper-v4", preset="mujoco_64", total_steps=8_192, eval_envs=1, **MOVING),
            dict(env_id="HalfCheetah-v4", preset="mujoco", bootstrap_truncation=False, total_steps=2_048, eval_envs=1, n_states=256, controller="fixed"),
            dict(env_id="InvertedPendulum-v4", preset="mujoco_64", total_steps=4_096, eval_envs=1, n_states=256, controller="ramp")],
    "btr": [dict(env_id="LunarLander-v3", preset="classic", total_steps=2_048, learning_starts=640, replay_ratio=0.125, eval_envs=1, **MOVING | dict(interval=8)),
            dict(env_id="MinAtar/Breakout-v1", preset="minatar", total_steps=1_536, learning_starts=1_024, interval=8, lag=4, eval_envs=1, n_states=256, controller="fixed")],
}
NEWER = {"btr": [dict(env_id="LunarLander-v3", preset="general", total_steps=2_048, learning_starts=640, replay_ratio=0.125, eval_envs=1, controller="fixed")]}  # presets that some versions lack: they have a digest where they are, and no part in that of all
TRAINED = ("update", "step", "gradient_steps", "size", "rollout", "minibatch", "signal", "episodes")  # of a recorded update; the rest is shown and changes nothing, in its last digits a matter of how it is summed


def git(*args): return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()


@contextlib.contextmanager
def checked_out(commit: str):
    "A folder with the files of a commit; the working tree's own for an empty name."
    if not commit: yield ROOT; return
    with tempfile.TemporaryDirectory() as tmp:
        git("worktree", "add", "--detach", f"{tmp}/tree", commit)
        try: yield Path(tmp)/"tree"
        finally: git("worktree", "remove", "--force", f"{tmp}/tree")


def code_at(root: Path, agent: str) -> str | None:
    "The fingerprint of an agent's code in a folder, whatever floor its modules lie on; None where the agent does not exist."
    home = {p.stem: ".".join(p.relative_to(root).with_suffix("").parts) for p in (root/"abs_lab").rglob("*.py")}
    names = (home.get("runner") or home["runs"], home["controllers"], home["divergence"])
    return code_of(closure(root, *names, home[agent])) if agent in home else None


RUN = """import runpy, sys
for given, out in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.argv[1:] = given, out
    try: runpy.run_module("abs_lab.runs", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        if e.code: raise
"""  # python -m abs_lab.runs CONFIG DIR, several times in one process: importing takes longer than training


def train(root: Path, agent: str, runs: list[dict], dir: Path) -> list[Path]:
    "Train some runs of an agent with the code in a folder; returns their folders."
    env = {k: v for k, v in os.environ.items() if not k.startswith("ABS_LAB_")} | dict(PYTHONPATH=str(root), OMP_NUM_THREADS="1", ABS_LAB_DEVICE="cpu", ABS_LAB_THREADS="1")
    asked = []
    for i, params in enumerate(runs):
        (dir/f"{i}.json").write_text(json.dumps(dict(agent=agent) | params), encoding="utf-8")
        asked += [dir/f"{i}.json", dir/f"{i}"]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN, *asked], cwd=root, env=env, capture_output=True, text=True, encoding="utf-8")
    if done.returncode: raise AbsLabError((done.stderr.strip() or "no word").split("\n")[-1])
    return asked[1::2]


def came_to(dir: Path, params: dict) -> list:
    "What a golden run came to, fit for a hash; raises `AbsLabError` where its parameters mean others than here."
    now, there = configure(**params), json.loads((dir/"config.json").read_text(encoding="utf-8"))["config"]
    wrong = [k for k, v in json.loads(json.dumps(now.flat())).items() if there.get(k, v) != v or k in now.identity() and k not in there]
    if wrong: raise AbsLabError(f"its parameters are others there: {', '.join(wrong)}")
    rows = [[row.get(k) for k in TRAINED] for row in read_jsonl(dir/"steps.jsonl")]
    score = json.loads((dir/"result.json").read_text(encoding="utf-8"))["eval"]
    return [rows, weights(load_tree(dir/"checkpoint.safetensors")["agent"]), [score["returns"], score["lengths"]]]


def weights(agent: dict) -> str:
    "A hash over the numbers of an agent's networks and normalisers, whatever tensors they are kept in."
    def numbers(node):
        if isinstance(node, dict): return [x for name, part in node.items() if name not in ("optimizer", "replay") for x in numbers(part)]
        return [torch.as_tensor(node).flatten()] if hasattr(node, "dtype") and torch.as_tensor(node).is_floating_point() else []
    kinds = {}
    for t in numbers(agent): kinds.setdefault(str(t.dtype), []).append(t)
    return hashlib.sha256(b"".join(torch.cat(kinds[k]).sort().values.numpy().tobytes() for k in sorted(kinds))).hexdigest()


def golden(root: Path, agent: str) -> dict:
    "The digests of an agent's golden runs under the code in a folder: of each preset's, and of all under the empty name."
    module, = (root/"abs_lab").rglob(f"{agent}.py")
    runs = GOLDEN[agent] + [params for params in NEWER.get(agent, []) if f'"{params["preset"]}"' in module.read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as tmp:
        dirs = train(root, agent, runs, Path(tmp))
        came = [came_to(dir, dict(agent=agent) | params) for dir, params in zip(dirs, runs)]
    parts = {"": came[:len(GOLDEN[agent])]}
    for params, one in zip(runs, came): parts.setdefault(params["preset"], []).append(one)
    return {preset: digest(part) for preset, part in parts.items()}


def digest(value) -> str: return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def trainings(commits: list[str]) -> dict:
    "For each commit the agents whose runs are to be compared: those of the last list, those of the committed runs (one commit for each fingerprint), and all of the commits that were asked for; empty: the working tree."
    wanted, known = {git("rev-parse", "--short=12", commit): set(GOLDEN) for commit in commits} | {"": set(GOLDEN)}, {}
    for e in json.loads(LIST.read_text(encoding="utf-8"))["golden"]: wanted.setdefault(e["commit"], set()).add(e["agent"])
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("reports/*/data/*.json"))]
    for run in sorted(runs, key=lambda run: run["result"]["commit"].endswith("-dirty")):  # a commit that can be had comes first
        agent, commit = run["params"].get("agent", "pqn"), run["result"]["commit"]
        commit = known.setdefault((agent, run["result"].get("fingerprint", {}).get("abs_lab", commit)), commit)
        wanted.setdefault(commit, set()).add(agent)
    return wanted


def compare(wanted: dict) -> tuple[list, dict]:
    "The hash of the code and the digests of the golden runs of each commit and agent; and why there is none."
    found, cannot, digests = [], {}, {}
    for commit, agents in wanted.items():
        try:
            with checked_out(commit) as root:
                for agent in sorted(agents):
                    code, since = code_at(root, agent), time.monotonic()
                    try:
                        if code is None: raise AbsLabError(f"there is no {agent} yet")
                        if (agent, code) not in digests: digests[agent, code] = golden(root, agent)
                    except AbsLabError as e: cannot[f"{agent} at {commit or 'the working tree'}"] = str(e)
                    else: found.append(dict(agent=agent, commit=commit, code=code, digests=digests[agent, code]))
                    print(f"{commit or 'working tree':12}  {agent}  {code}  {digests.get((agent, code), 'cannot be trained')}  {time.monotonic() - since:.0f} s", flush=True)
        except subprocess.CalledProcessError as e: cannot[commit] = e.stderr.strip().split("\n")[-1]
    return found, cannot


if __name__ == "__main__":
    found, cannot = compare(trainings(sys.argv[1:]))
    here = provenance()
    write_json(LIST, dict(machine=here["hardware"]["cpu"], versions=here["versions"], cannot=cannot, golden=sorted(found, key=lambda e: (e["agent"], str(e["digests"]), e["commit"]))))
    for agent, preset in sorted({(e["agent"], preset) for e in found for preset in e["digests"]}):
        classes = {}
        for e in found:
            if e["agent"] == agent and preset in e["digests"]: classes.setdefault(e["digests"][preset], []).append(e["commit"] or "the working tree")
        print(f"{agent} {preset or '(all)'}: {'; '.join(' = '.join(c) for c in classes.values())}")
