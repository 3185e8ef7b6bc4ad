"""Runs PPO of instructgpt.toml over staleness bounds, off-policy objectives and seeds, and prints a table for the README.

    cargo build --release
    python3 examples/scripts/staleness.py [FOLDER] [--of bounds|cache] [--updates N] [--seeds 1 2 3] [--binary PATH]

`--of cache` compares what becomes of the keys and values of responses in progress when new weights come, at a bound of 1.

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


def run(args, seed, name, settings):
    models = args.folder / f"models-{seed}"
    for stage in ["sft", "reward"]:
        collimate(args.binary, stage, models, [f"seed={seed}"])
    out = args.folder / f"{seed}-{name}"
    inputs = [f"ppo.sft={models / 'sft/model'}", f"ppo.reward_model={models / 'reward/model'}"]
    # A checkpoint lets the flow run dry: without them the bound alone decides.
    wanted = ["ppo.checkpoints.every=0", f"ppo.n_updates={args.updates}"]
    collimate(args.binary, "ppo", out, [f"seed={seed}", *inputs, *wanted, *settings])
    ppo = json.loads((out / "summary.json").read_text())["ppo"]
    elapsed_s = json.loads((out / "ppo/status.json").read_text())["elapsed_s"]
    updates = [json.loads(line) for line in (out / "ppo/metrics.jsonl").read_text().splitlines()]
    mean = lambda of: statistics.fmean(of(update) for update in updates)
    return dict(
        gold=ppo["after"]["gold"]["mean"], score=ppo["after"]["score"]["mean"], kl=ppo["after"]["kl"]["mean"],
        nll=ppo["after"]["nll"]["mean"], dropped=ppo["tickets"]["dropped"] / ppo["tickets"]["issued"],
        staleness=mean(lambda update: update["batch"]["staleness"]["mean"]),
        stalest=max(update["batch"]["staleness"]["max"] for update in updates),
        weight=mean(lambda update: update["train"]["off_policy_weight"]["mean"]),
        lightest=min(update["train"]["off_policy_weight"]["min"] for update in updates),
        heaviest=max(update["train"]["off_policy_weight"]["max"] for update in updates),
        clipped=mean(lambda update: update["train"]["clip_fraction"]), rate=3600 * len(updates) / elapsed_s,
    )


def row(labels, runs, columns):
    mean = lambda key: statistics.fmean(run[key] for run in runs)
    error = statistics.stdev(run["gold"] for run in runs) / math.sqrt(len(runs)) if len(runs) > 1 else 0.0
    shown = {
        "gold": f"{mean('gold'):.2f} ± {error:.2f}", "score": f"{mean('score'):.2f}", "KL": f"{mean('kl'):.1f}",
        "held-out NLL": f"{mean('nll'):.3f}", "dropped": f"{100 * mean('dropped'):.1f} %",
        "staleness": f"{mean('staleness'):.2f}", "at most": f"{max(run['stalest'] for run in runs):.0f}",
        "weight": f"{mean('weight'):.3f}", "clipped": f"{mean('clipped'):.3f}",
        "weights from": f"{min(run['lightest'] for run in runs):.3f}",
        "to": f"{max(run['heaviest'] for run in runs):.3f}", "updates an hour": f"{mean('rate'):.0f}",
    }
    print("| " + " | ".join([*labels, *(shown[column] for column in columns)]) + " |", flush=True)


def bounds():
    """At bound 0 every weight is 1: the objectives that clip are one and the same."""
    for bound in BOUNDS:
        for objective in OBJECTIVES:
            if (bound, objective) != (0, "decoupled"):
                label = "plain, decoupled" if (bound, objective) == (0, "plain") else objective
                settings = [f"ppo.max_staleness={bound}", f"ppo.off_policy={objective}"]
                yield (str(bound), label), f"k{bound}-{objective}", settings


def caches():
    """Weights that come while responses are in progress, and weights that wait for their end."""
    yield ("in_flight", "keep"), "keep", ["ppo.in_flight_cache=keep"]
    yield ("in_flight", "recompute"), "recompute", ["ppo.in_flight_cache=recompute"]
    yield ("between_rollouts", ""), "between", ["ppo.weight_updates=between_rollouts"]


TABLES = {
    "bounds": (
        ["k", "objective"],
        ["gold", "score", "KL", "held-out NLL", "dropped", "staleness", "at most", "weight", "clipped"],
        bounds,
    ),
    "cache": (
        ["weight_updates", "in_flight_cache"],
        ["gold", "KL", "dropped", "staleness", "weights from", "to", "updates an hour"],
        caches,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "runs/staleness")
    parser.add_argument("--of", choices=TABLES, default="bounds")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/collimate")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    labels, columns, variants = TABLES[args.of]
    # Seed after seed, so that an unfinished folder holds whole seeds.
    for seed in args.seeds:
        for _, name, settings in variants():
            run(args, seed, name, settings)
    print("| " + " | ".join([*labels, *columns]) + " |")
    print("|" + "---|" * len([*labels, *columns]))
    for label, name, settings in variants():
        row(label, [run(args, seed, name, settings) for seed in args.seeds], columns)


if __name__ == "__main__":
    main()
