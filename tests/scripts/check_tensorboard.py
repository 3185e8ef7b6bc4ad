"""Reads a folder of event files with TensorBoard's own reader and compares them with metrics.jsonl.

    python tests/scripts/check_tensorboard.py RUN_DIR/ppo

Fails if TensorBoard finds no events, if a number in the one is not in the other, or if they differ.
Needs: pip install tensorboard
"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KEEP_ALL = {"scalars": 0, "tensors": 0}


def numbers(record, prefix=""):
    """The finite numbers of a record, by slash-separated names."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def main(stage_dir):
    lines = [json.loads(line) for line in (stage_dir / "metrics.jsonl").read_text().splitlines()]
    expected = {}
    for line in lines:
        step = line.get("version", line.get("step"))
        prefix = f"{line['phase']}/" if "phase" in line else ""
        for name, value in numbers(line):
            if name not in ("version", "step"):
                expected[prefix + name, step] = value
    assert expected, f"{stage_dir}: metrics.jsonl holds no numbers"

    events = EventAccumulator(str(stage_dir / "tb"), size_guidance=KEEP_ALL)
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            if not math.isnan(event.value):
                found[tag, event.step] = event.value

    missing = expected.keys() - found.keys()
    extra = found.keys() - expected.keys()
    assert not missing, f"not in TensorBoard's files: {sorted(missing)[:5]}"
    assert not extra, f"not in metrics.jsonl: {sorted(extra)[:5]}"
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=1e-6, abs_tol=1e-30), (key, found[key], value)
    print(f"{stage_dir}: {len(found)} numbers under {len(events.Tags()['scalars'])} tags, all as in metrics.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
