"""What stepping in groups gains while the agent acts: a stand-in for a GPU, on this machine's environments.

    python benchmarks/overlap.py            two minutes
    python benchmarks/overlap.py --quick    a smoke run with tiny sizes, whose numbers mean nothing

The stand-in agent's `act` takes a given time for each observation and holds no core meanwhile, as a call to a GPU does. With all
environments together a step takes the environments' time and the agent's. In groups each group steps while the agent acts for the others,
and a step should take the longer of two times: that of the environments, and that of the process that asks the agent and enters what it
receives. The environments' own time is measured with an agent that takes no time, and so is what entering takes.
Settings take turns, in rounds; medians over rounds, and the range. Nothing is asserted about speed.
"""
import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

from pqn_speed import FOREVER, machine, spread, write
from abs_lab.core.envs import VecEnvs
from abs_lab.core.interfaces import Progress
from abs_lab.core.simulators import EnvConfig


class StandIn:
    "Takes random actions, and a time for each observation in which it holds no core."
    def __init__(self, n, seconds=0.0):
        self.n, self.seconds, self.generator = n, seconds, torch.Generator().manual_seed(0)

    def act(self, obs):
        if self.seconds: time.sleep(self.seconds * len(obs))
        return torch.randint(self.n, (len(obs),), generator=self.generator), {}


def measure(config, length, shares, groups, rounds):
    "Microseconds of a step of one environment, for each time of the agent and number of groups."
    vectors = {g: VecEnvs(replace(config, groups=g)) for g in groups}
    agent, progress = StandIn(vectors[1].action_space.n), Progress(FOREVER)

    def timed(envs, seconds):
        agent.seconds = seconds
        began = time.perf_counter()
        steps = envs.collect(agent, length, progress).steps
        return (time.perf_counter() - began) / steps

    for envs in vectors.values(): timed(envs, 0.0)
    env, waited = vectors[1].env, []
    def waits(do):
        def wait(*args):
            began = time.perf_counter()
            try: return do(*args)
            finally: waited.append(time.perf_counter() - began)
        return wait
    env.send, env.receive = waits(env.send), waits(env.receive)
    alone = median(timed(vectors[1], 0.0) for _ in range(3))
    entering = alone - sum(waited) / 3 / length / config.num_envs
    found = {(share, g): [] for share in shares for g in groups}
    for r in range(rounds):
        order = [*found]
        for share, g in order[r % len(order):] + order[:r % len(order)]: found[share, g].append(timed(vectors[g], share * alone))
    for envs in vectors.values(): envs.close()
    rows = []
    for share in shares:
        for g in groups[1:]:
            gains = [a / b for a, b in zip(found[share, 1], found[share, g])]
            filled = (1 + share) / g / length  # the first group's act and the last one's step have nothing beside them
            rows.append(dict(act=share, groups=g, together=spread([1e6 * v for v in found[share, 1]]), in_turn=spread([1e6 * v for v in found[share, g]]),
                             gain=spread(gains), model=(1 + share) / (max(1, share + entering / alone) + filled)))
    return dict(alone=1e6 * alone, entering=1e6 * entering, rows=rows)


def markdown(r):
    "The report."
    out = ["# Stepping in groups while the agent acts" + " (smoke run: the numbers mean nothing)" * r["quick"], ""]
    out += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in r["machine"].items()), ""]
    out += [f"{r['what']}. A stand-in agent acts in a given share of the environments' own time ({r['found']['alone']:.1f} µs a step, of which {r['found']['entering']:.1f} µs go into entering what was received) and holds no core; medians over rounds, and the range. "
            "The model: a step takes the environments' time, or that of acting and entering where this is longer; the first act and the last step of a rollout have nothing beside them.", "",
            "| act, of the environments' time | groups | together, µs a step | in turn, µs a step | gain | range | model |", "|---|---|---|---|---|---|---|"]
    out += [f"| {row['act']:g} | {row['groups']} | {row['together']['median']:.1f} | {row['in_turn']['median']:.1f} | {row['gain']['median']:.2f} | {row['gain']['min']:.2f} – {row['gain']['max']:.2f} | {row['model']:.2f} |" for row in r["found"]["rows"]]
    return "\n".join([*out, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--env-id", default="Breakout-v5", help="EnvPool's id")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON and the Markdown file")
    args = parser.parse_args()
    config = EnvConfig(args.env_id, num_envs=16 if args.quick else 128)
    length, shares, groups, rounds = (8, (1.0,), (1, 2), 1) if args.quick else (32, (0.25, 0.5, 1.0, 2.0), (1, 2, 4), 5)
    results = dict(quick=args.quick, machine=machine(), what=f"{args.env_id}, {config.num_envs} environments, rollouts of {length}", found=measure(config, length, shares, groups, rounds))
    write(results, markdown, "overlap", args.out)


if __name__ == "__main__": main()
