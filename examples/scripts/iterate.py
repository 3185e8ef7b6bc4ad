"""Runs iterate.toml for several seeds, does the last round's PPO again from its journal, and prints a table for the README:
each policy's numbers over the seeds, mean ± standard error.

    cargo build --release
    python3 examples/scripts/iterate.py [FOLDER] [SEED…]

Needs nothing but Python 3.9. FOLDER (runs/iterate-seeds) keeps the run directories; runs that are there are not done again.
"""

import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLLIMATE = ROOT / "target/release/collimate"


def rounds_of(out, seed):
    command = [COLLIMATE, "iterate", ROOT / "examples/iterate.toml", "--out", out, "--set", f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rounds = json.loads((out / "summary.json").read_text())["rounds"]
    # Fails where anything comes out otherwise.
    subprocess.run([COLLIMATE, "replay", out / f"round-{len(rounds)}"], check=True, stdout=subprocess.DEVNULL)
    return rounds


def over_seeds(numbers, digits):
    mean = round(statistics.fmean(numbers), digits) + 0.0  # + 0.0 makes -0.0 a plain zero
    if len(numbers) < 2:
        return f"{mean:.{digits}f}"
    error = statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def row(name, comparisons, accuracies, policies):
    columns = [("gold", 2), ("kl", 1), ("nll", 3), ("length", 1)]
    cells = [over_seeds([policy[name]["mean"] for policy in policies], digits) for name, digits in columns]
    accuracy = over_seeds(accuracies, 3) if accuracies else ""
    print("| " + " | ".join([name, comparisons, accuracy, *cells]) + " |")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/iterate-seeds")
    seeds = sys.argv[2:] or ["1", "2", "3"]
    runs = [rounds_of(folder / seed, seed) for seed in seeds]
    print("| round | comparisons | RM accuracy | gold | KL | held-out NLL | length |")
    print("|---|---|---|---|---|---|---|")
    row("SFT", "", [], [run[0]["ppo"]["before"] for run in runs])
    for idx, rounds in enumerate(zip(*runs)):
        comparisons = str(rounds[0]["collect"]["n_comparisons"])
        accuracies = [one["reward"]["heldout_accuracy"] for one in rounds]
        row(str(idx + 1), comparisons, accuracies, [one["ppo"]["after"] for one in rounds])
    gold = [[one["ppo"]["after"]["gold"]["mean"] for one in run] for run in runs]
    for idx in range(1, len(gold[0])):
        gains = [run[idx] - run[idx - 1] for run in gold]
        print(f"\nround {idx} to {idx + 1}: gold rises by {over_seeds(gains, 2)}", end="")
    print()


if __name__ == "__main__":
    main()
