"""Checks that PEFT loads the adapters that Collimate writes, and computes the same with them.

    cargo run -p collimate-tests --example write_models -- FOLDER
    OMP_NUM_THREADS=1 python tests/scripts/check_peft_loads.py FOLDER

Needs torch, transformers and peft. For each folder of FOLDER/adapters: PEFT puts the adapter on the model that it names as
its base, every tensor of the file has its place, and logits or scores equal those in `expected.json`.
"""

import json
import pathlib
import sys
import warnings

import peft
import safetensors.torch
import torch
import transformers

TOLERANCE = 1e-4


def check(folder):
    expected = json.loads((folder / "expected.json").read_text())
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    is_score = "scores" in expected
    if is_score:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, pad_token_id=None, dtype=torch.float32
        )
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")  # what PEFT says of an adapter without all its keys
        model = peft.PeftModel.from_pretrained(model, folder).eval()
    stored = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model)
    assert stored.keys() == loaded.keys(), f"{folder}: {stored.keys() ^ loaded.keys()}"
    for name, tensor in stored.items():
        assert torch.equal(tensor, loaded[name]), f"{folder}: {name}"
    for idx, sequence in enumerate(expected["sequences"]):
        found = model(torch.tensor([sequence])).logits[0]
        if is_score:
            found = found + expected["score_bias"]
        difference = (found - torch.tensor(expected["scores" if is_score else "logits"][idx])).abs().max().item()
        assert difference < TOLERANCE, f"{folder}: sequence {idx} differs by {difference}"
    print(f"{folder.name}: agrees (last difference {difference:.1e})")


def main():
    transformers.utils.logging.set_verbosity_error()
    folders = sorted(path.parent for path in pathlib.Path(sys.argv[1], "adapters").glob("*/adapter_config.json"))
    assert folders, f"{sys.argv[1]} holds no adapters"
    with torch.no_grad():
        for folder in folders:
            check(folder)


if __name__ == "__main__":
    main()
