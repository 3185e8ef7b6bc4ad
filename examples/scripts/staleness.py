"""Runs PPO of instructgpt.toml over staleness bounds, off-policy objectives and seeds, and prints a table for the README.

    cargo build --release
    python3 examples/scripts/staleness.py [FOLDER] [--updates N] [--seeds 1 2 3] [--binary PATH]

Needs nothing but Python 3.9. FOLDER (runs/staleness) keeps the run directories; what is complete there is not done
again. SFT and reward model are trained once a seed. The gold score is the mean over the seeds, ± the standard error of
that mean; the other columns are means over the seeds, and over the updates where they are of the training.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples/instructgpt.toml"
BOUNDS = [0, 1, 2, 4, 8]
OBJECTIVES = ["plain", "decoupled", "truncated"]


def collimate(binary, stage, out, settings):
    command = [binary, stage, RECIPE, "--out", out]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(args, seed, bound, objective):
    models = args.folder / f"models-{seed}"
    for stage in ["sft", "reward"]:
        collimate(args.binary, stage, models, [f"seed={seed}"])
    out = args.folder / f"{seed}-k{bound}-{objective}"
    inputs = [f"ppo.sft={models / 'sft/model'}", f"ppo.reward_model={models / 'reward/model'}"]
    # A checkpoint lets the flow run dry: without them the bound alone decides.
    wanted = ["ppo.checkpoints.every=0", f"ppo.max_staleness={bound}", f"ppo.off_policy={objective}", f"ppo.n_updates={args.updates}"]
    collimate(args.binary, "ppo", out, [f"seed={seed}", *inputs, *wanted])
    ppo = json.loads((out / "summary.json").read_text())["ppo"]
    updates = [json.loads(line) for line in (out / "ppo/metrics.jsonl").read_text().splitlines()]
    mean = lambda of: statistics.fmean(of(update) for update in updates)
    return dict(
        gold=ppo["after"]["gold"]["mean"], score=ppo["after"]["score"]["mean"], kl=ppo["after"]["kl"]["mean"],
        nll=ppo["after"]["nll"]["mean"], dropped=ppo["tickets"]["dropped"] / ppo["tickets"]["issued"],
        staleness=mean(lambda update: update["batch"]["staleness"]["mean"]),
        stalest=max(update["batch"]["staleness"]["max"] for update in updates),
        weight=mean(lambda update: update["train"]["off_policy_weight"]["mean"]),
        clipped=mean(lambda update: update["train"]["clip_fraction"]),
    )


def row(bound, objective, runs):
    mean = lambda key: statistics.fmean(run[key] for run in runs)
    error = statistics.stdev(run["gold"] for run in runs) / math.sqrt(len(runs)) if len(runs) > 1 else 0.0
    cells = [
        str(bound), objective, f"{mean('gold'):.2f} ± {error:.2f}", f"{mean('score'):.2f}", f"{mean('kl'):.1f}",
        f"{mean('nll'):.3f}", f"{100 * mean('dropped'):.1f} %", f"{mean('staleness'):.2f}",
        f"{max(run['stalest'] for run in runs):.0f}", f"{mean('weight'):.3f}", f"{mean('clipped'):.3f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "runs/staleness")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/collimate")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    # At bound 0 every weight is 1: the objectives that clip are one and the same.
    variants = [(bound, objective) for bound in BOUNDS for objective in OBJECTIVES]
    variants = [(bound, objective) for bound, objective in variants if (bound, objective) != (0, "decoupled")]
    # Seed after seed, so that an unfinished folder holds whole seeds.
    for seed in args.seeds:
        for bound, objective in variants:
            run(args, seed, bound, objective)
    print("| k | objective | gold | score | KL | held-out NLL | dropped | staleness | at most | weight | clipped |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for bound, objective in variants:
        name = "plain, decoupled" if bound == 0 and objective == "plain" else objective
        row(bound, name, [run(args, seed, bound, objective) for seed in args.seeds])


if __name__ == "__main__":
    main()
