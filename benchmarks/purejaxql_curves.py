"""Training curves of purejaxql's own MinAtar script, as a CSV that a page of ours can show beside its own.

    python benchmarks/purejaxql_curves.py DIR --seeds 5 --out theirs.csv
    abs-lab reproduce pqn-parity --beside theirs.csv

DIR is a clone of `mttga/purejaxql`. Its script is executed as it is, with the settings of its config/alg/pqn_minatar.yaml, on Breakout and for the
length of the study `pqn-parity`; hydra, omegaconf and wandb, which read its command line and write its logs, are left out. It needs
`pip install "jax[cpu]" flax optax chex "gymnax<1"`, in an environment of its own; abs_lab is not imported. The return is the one that it logs:
the mean, over the steps and environments of an update, of the return of the episode that ended last in that environment.
"""
import argparse, csv, sys, types
from pathlib import Path

SETTINGS = dict(NUM_ENVS=128, NUM_STEPS=32, EPS_START=1.0, EPS_FINISH=0.05, EPS_DECAY=0.1, NUM_MINIBATCHES=32, NUM_EPOCHS=2, NORM_TYPE="layer_norm", LR=0.0005, MAX_GRAD_NORM=10,
                LR_LINEAR_DECAY=True, GAMMA=0.99, LAMBDA=0.65, ENV_NAME="Breakout-MinAtar", TEST_DURING_TRAINING=False, WANDB_MODE="disabled")


def theirs(folder, script="pqn_minatar"):
    "The names of their script."
    for name, content in dict(hydra=dict(main=lambda **_: lambda f: f), omegaconf=dict(OmegaConf=None), wandb={}).items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)
    path = folder/"purejaxql"/f"{script}.py"
    names = {"__name__": "theirs", "__file__": str(path)}
    sys.modules["theirs"] = types.ModuleType("theirs")  # flax looks the module of a class up
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", type=Path, help="a clone of mttga/purejaxql")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=73 * 32 * 128, help="environment steps of a run (default: as in the study pqn-parity)")
    parser.add_argument("--out", type=Path, default=Path("theirs.csv"))
    args = parser.parse_args()
    import jax
    if not hasattr(jax, "tree_map"): jax.tree_map = jax.tree_util.tree_map  # the games call it by its old name
    train = jax.jit(theirs(args.dir)["make_train"](SETTINGS | dict(TOTAL_TIMESTEPS=args.steps, TOTAL_TIMESTEPS_DECAY=args.steps)))
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "return", "seed", "arm", "env_id"])
        for seed in range(args.seeds):
            metrics = jax.block_until_ready(train(jax.random.PRNGKey(seed)))["metrics"]
            rows.writerows([int(step), f"{float(value):.6g}", seed, "purejaxql", "MinAtar/Breakout-v1"] for step, value in zip(metrics["env_step"], metrics["returned_episode_returns"]))
            print(f"seed {seed}: {float(metrics['returned_episode_returns'][-1]):.2f}", flush=True)


if __name__ == "__main__": main()
