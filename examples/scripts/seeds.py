"""Runs instructgpt.toml for several seeds, with and without pretraining gradients, and prints a table for the README.

    cargo build --release
    python3 examples/scripts/seeds.py [FOLDER] [SEED…]

Needs nothing but Python 3.9. FOLDER (runs/seeds) keeps the run directories; runs that are there are not done again.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A checkpoint lets the flow run dry: left out, so that max_staleness alone decides.
COMMON = ["--set", "ppo.checkpoints.every=0"]
VARIANTS = {"PPO-ptx": COMMON, "PPO": [*COMMON, "--set", "ppo.ptx_coef=0"]}


def summary_of(out, seed, settings):
    command = [ROOT / "target/release/collimate", "run", ROOT / "examples/instructgpt.toml", "--out", out]
    subprocess.run([*command, "--set", f"seed={seed}", *settings], check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "summary.json").read_text())


def cell(estimate, digits):
    mean = round(estimate["mean"], digits) + 0.0  # + 0.0 makes -0.0 a plain zero
    return f"{mean:.{digits}f} ± {estimate['stderr']:.{digits}f}"


def row(seed, policy, accuracy, judged):
    columns = [("gold", 2), ("score", 2), ("kl", 1), ("nll", 3), ("length", 1), ("empty_share", 3)]
    cells = [str(seed), policy, accuracy, *(cell(judged[name], digits) for name, digits in columns)]
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/seeds")
    seeds = sys.argv[2:] or ["1", "2", "3"]
    print("| seed | policy | RM accuracy | gold | score | KL | held-out NLL | length | empty |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        for idx, (name, settings) in enumerate(VARIANTS.items()):
            summary = summary_of(folder / f"{seed}-{name}", seed, settings)
            if idx == 0:
                row(seed, "SFT", f"{summary['reward']['heldout_accuracy']:.3f}", summary["ppo"]["before"])
            row(seed, name, "", summary["ppo"]["after"])


if __name__ == "__main__":
    main()
