"""Compares what `collimate plan` says with what runs do, and prints a table for the README.

    cargo build --release
    cargo run --release -- run examples/instructgpt.toml
    python3 examples/scripts/plan.py [FOLDER] [--models runs/instructgpt] [--updates N] [--binary PATH]

Needs nothing but Python 3.9. All plans are made from one run alone, the first: synchronous, with one generator. FOLDER
(runs/plan) keeps the run directories; what is complete there is not done again.
"""

import argparse
import json
import pathlib
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


def run(args, settings):
    out = args.folder / "-".join(str(value) for value in settings.values())
    models = [f"ppo.sft={args.models / 'sft/model'}", f"ppo.reward_model={args.models / 'reward/model'}"]
    short = [f"ppo.n_updates={args.updates}", "ppo.evaluate.n_prompts=8", "ppo.evaluate.n_sequences=8"]
    wanted = [*models, *short, "ppo.checkpoints.every=0", *(f"ppo.{key}={value}" for key, value in settings.items())]
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
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/collimate")
    args = parser.parse_args()
    args.folder, args.models = args.folder.absolute(), args.models.absolute()
    print("| k | generators | batch | slots | updates an hour | planned | off | staleness | planned |")
    print("|---|---|---|---|---|---|---|---|---|")
    measured = None
    for settings in SETTINGS:
        out, rate, staleness = run(args, settings)
        measured = measured or out
        planned, planned_staleness = plan(args, measured, settings)
        cells = [*map(str, settings.values()), f"{rate:.0f}", f"{planned:.0f}", f"{100 * (planned / rate - 1):+.1f} %"]
        print("| " + " | ".join([*cells, f"{staleness:.2f}", f"{planned_staleness:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
