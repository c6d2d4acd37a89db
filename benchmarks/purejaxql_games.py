"""What purejaxql's own MinAtar script reaches on the games that the study `tasks` plays, as the values that its page expects.

    python benchmarks/purejaxql_games.py DIR [GAME …]       five to sixteen minutes a run on one core; five runs a game

DIR is a clone of `mttga/purejaxql`. Its `make_train` is executed as it is, with the settings of its config/alg/pqn_minatar.yaml, for a million
steps; only its environment is replaced, by the games of the package `minatar` without repeated actions, which the study plays as well (gymnax
has no Seaquest). Each run then plays one greedy episode in each of 50 games. It needs `pip install "jax[cpu]" flax optax chex "gymnax<1" minatar six`,
in an environment of its own; abs_lab is not imported.
"""
import argparse, importlib.metadata, json, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from minatar import Environment

sys.path.insert(0, str(Path(__file__).resolve().parent))
from purejaxql_curves import SETTINGS, theirs

OUT = Path(__file__).resolve().parent.parent/"nbs"/"figures"/"tasks-reference.json"
GAMES = dict(Asterix="asterix", Breakout="breakout", Freeway="freeway", Seaquest="seaquest", SpaceInvaders="space_invaders")
STEPS, EPISODES, LONGEST = 1_000_000, 50, 108_000
if not hasattr(jax, "tree_map"): jax.tree_map = jax.tree_util.tree_map  # gymnax calls it by its old name


class Params(NamedTuple):
    "What their script reads of an environment's parameters; it is for their tests, which are left out."
    max_steps_in_episode: int


class Game:
    "A game of MinAtar as gymnax has environments. What plays lives outside of JAX; its state holds the number of a game and of its steps."
    def __init__(self, name):
        self.name, self.games, self.steps = name, [], []
        first = self.make(0)
        self.actions = first.minimal_action_set()
        self.shape = first.state_shape()

    def make(self, seed):
        made = Environment(self.name, sticky_action_prob=0.0)
        made.seed(seed)
        made.reset()
        return made

    def action_space(self, params=None): return SimpleNamespace(n=len(self.actions))

    def observation_space(self, params=None): return SimpleNamespace(shape=tuple(self.shape))

    def _begin(self, keys):
        keys = np.asarray(keys)  # [n, 2]: their script maps over the games
        at = len(self.games) + np.arange(len(keys))
        for key in keys:
            self.games.append(self.make(int(key[0]) ^ int(key[1])))
            self.steps.append(0)
        return np.stack([self.games[i].state() for i in at]).astype(np.float32), at.astype(np.int32)

    def _step(self, at, steps, actions):
        seen, rewards, ends = [], [], []
        for i, step, action in zip(*(np.asarray(x).tolist() for x in (at, steps, actions))):
            game = self.games[i]
            assert self.steps[i] == step, "a step was left out, or made twice"
            self.steps[i] += 1
            reward, end = game.act(self.actions[action])
            if end: game.reset()
            seen.append(game.state())
            rewards.append(reward)
            ends.append(end)
        return np.stack(seen).astype(np.float32), np.array(rewards, np.float32), np.array(ends, bool)

    def reset(self, key, params=None):
        seen, at = jax.pure_callback(self._begin, (jax.ShapeDtypeStruct(self.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)), key, vmap_method="broadcast_all")
        return seen, dict(game=at, steps=jnp.int32(0))

    def step(self, key, state, action, params=None):
        shapes = jax.ShapeDtypeStruct(self.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), bool)
        seen, reward, end = jax.pure_callback(self._step, shapes, state["game"], state["steps"], action, vmap_method="broadcast_all")
        return seen, dict(game=state["game"], steps=state["steps"] + 1), reward, end, {}


def greedy(names, game, trained):
    "Returns of the first episode of so many games, played by the best action, and how many were cut off; what those returned until then counts, as in abs_lab's evaluation."
    network = names["QNetwork"](action_dim=len(game.actions), norm_type=SETTINGS["NORM_TYPE"], norm_input=False)
    best = jax.jit(lambda seen: jnp.argmax(network.apply(dict(params=trained.params, batch_stats=trained.batch_stats), seen, train=False), -1))
    games, returns, going = [game.make(10_000 + i) for i in range(EPISODES)], np.zeros(EPISODES), np.ones(EPISODES, bool)
    for _ in range(LONGEST):
        for i, action in enumerate(np.asarray(best(np.stack([one.state() for one in games]).astype(np.float32)))):
            if not going[i]: continue
            reward, end = games[i].act(game.actions[action])
            returns[i] += reward
            going[i] = not end
        if not going.any(): break
    return returns, int(going.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", type=Path, help="a clone of mttga/purejaxql")
    parser.add_argument("games", nargs="*", metavar="GAME", help=", ".join(GAMES) + "; all of them when none is named")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    for name in args.games:
        if name not in GAMES: parser.error(f"no game {name!r}: {', '.join(GAMES)}")
    commit = subprocess.run(["git", "-C", args.dir, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")), "unknown")
    names = theirs(args.dir)
    for name in args.games or GAMES:
        game = Game(GAMES[name])
        names["gymnax"] = SimpleNamespace(make=lambda _, game=game: (game, Params(1)))
        train = jax.jit(names["make_train"](SETTINGS | dict(TOTAL_TIMESTEPS=args.steps, TOTAL_TIMESTEPS_DECAY=args.steps)))
        returns, unfinished = [], []
        for seed in range(args.seeds):
            began = time.perf_counter()
            out = jax.block_until_ready(train(jax.random.PRNGKey(seed)))
            score, cut = greedy(names, game, out["runner_state"][0])
            returns.append(round(float(score.mean()), 3)); unfinished.append(cut)
            print(f"{name}, seed {seed}: {returns[-1]}, {cut} of {EPISODES} episodes cut off, in {time.perf_counter() - began:.0f} s; training return at the end {float(out['metrics']['returned_episode_returns'][-1]):.2f}", flush=True)
            game.games.clear(), game.steps.clear()
        found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        found[f"MinAtar/{name}-v1"] = dict(code=f"purejaxql {commit}", returns=returns, unfinished=unfinished, steps=args.steps // (32 * 128) * 32 * 128, seeds=[*range(args.seeds)], episodes=EPISODES, cpu=cpu,
                                          versions={p: importlib.metadata.version(p) for p in ("jax", "flax", "optax", "minatar")})
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
