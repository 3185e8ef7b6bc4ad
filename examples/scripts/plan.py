"""Compares what `collimate plan` says with what runs do, and prints a table for the README.

    cargo build --release
    cargo run --release -- run examples/instructgpt.toml
    python3 examples/scripts/plan.py [FOLDER] [--models runs/instructgpt] [--updates N] [--rounds N] [--binary PATH]

Needs nothing but Python 3.9. All plans of a round are made from one run alone, the round's first: synchronous, with one
generator. So a machine that is faster in one minute than in another spoils less; what is shown are medians over the
rounds. Each role has as many threads of its own as there are cores. FOLDER (runs/plan) keeps the run directories; what is
complete there is not done again.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples/instructgpt.toml"
# The first is what the plans are made from.
SETTINGS = [
    dict(max_staleness=0, n_generators=1, batch_size=64, n_slots=32),
    dict(max_staleness=1, n_generators=1, batch_size=64, n_slots=32),
    dict(max_staleness=2, n_generators=1, batch_size=64, n_slots=32),
    dict(max_staleness=1, n_generators=2, batch_size=64, n_slots=32),
    dict(max_staleness=1, n_generators=1, batch_size=64, n_slots=8),
    dict(max_staleness=0, n_generators=2, batch_size=32, n_slots=32),
]


COMPUTING = ["generator", "reference_scorer", "reward_scorer", "experience_buffer", "learner"]
THREADS = [f"ppo.threads.{role}={os.cpu_count()}" for role in COMPUTING]


def run(args, settings, round_idx):
    out = args.folder / "-".join(str(value) for value in [round_idx, *settings.values()])
    models = [f"ppo.sft={args.models / 'sft/model'}", f"ppo.reward_model={args.models / 'reward/model'}"]
    short = [f"ppo.n_updates={args.updates}", "ppo.evaluate.n_prompts=8", "ppo.evaluate.n_sequences=8"]
    wanted = [*models, *short, *THREADS, "ppo.checkpoints.every=0", *(f"ppo.{key}={value}" for key, value in settings.items())]
    command = [args.binary, "ppo", RECIPE, "--out", out]
    for setting in wanted:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    status = json.loads((out / "ppo/status.json").read_text())
    updates = [json.loads(line) for line in (out / "ppo/metrics.jsonl").read_text().splitlines()]
    staleness = sum(update["batch"]["staleness"]["mean"] for update in updates) / len(updates)
    return out, 3600 * args.updates / status["elapsed_s"], staleness


def plan(args, measured, settings):
    command = [args.binary, "plan", "--from", measured, "--json"]
    for key, value in settings.items():
        tried = [value] if key in ("max_staleness", "n_generators") else value
        command += ["--set", f"{key}={tried}"]
    forecast = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["forecasts"][0]
    return forecast["updates_per_h"], forecast["mean_staleness"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "runs/plan")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "runs/instructgpt")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/collimate")
    args = parser.parse_args()
    args.folder, args.models = args.folder.absolute(), args.models.absolute()
    rows = [[] for _ in SETTINGS]
    for round_idx in range(args.rounds):
        measured = None
        for settings, row in zip(SETTINGS, rows):
            out, rate, staleness = run(args, settings, round_idx)
            measured = measured or out
            planned, planned_staleness = plan(args, measured, settings)
            row.append((rate, planned, 100 * (planned / rate - 1), staleness, planned_staleness))
    print("| k | generators | batch | slots | updates an hour | planned | off | staleness | planned |")
    print("|---|---|---|---|---|---|---|---|---|")
    for settings, row in zip(SETTINGS, rows):
        rate, planned, off, staleness, planned_staleness = map(statistics.median, zip(*row))
        cells = [*map(str, settings.values()), f"{rate:.0f}", f"{planned:.0f}", f"{off:+.1f} %"]
        print("| " + " | ".join([*cells, f"{staleness:.2f}", f"{planned_staleness:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
