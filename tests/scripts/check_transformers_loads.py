"""Checks that transformers loads what Collimate writes, and computes the same from it.

    cargo run -p collimate-tests --example write_models -- FOLDER
    OMP_NUM_THREADS=1 python tests/scripts/check_transformers_loads.py [FOLDER]

Needs torch and transformers. Without FOLDER it checks tests/fixtures/collimate, which is such a folder. For each
model: no tensor is missing, unexpected, or of another shape; logits or scores equal those in `expected.json`; and
where there is a tokenizer, `AutoTokenizer` gives the ids of `expected_tokens.json`. FOLDER/again holds the models of
tests/fixtures/hf as Collimate saves them; their configs, once they pass, belong into tests/fixtures/collimate/configs,
one file a model.
"""

import json
import pathlib
import sys

import torch
import transformers

TOLERANCE = 1e-4


def load(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    for problem in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        assert not info[problem], f"{folder}: {problem}: {info[problem]}"
    return model.eval()


def check_close(found, expected, what):
    difference = (found - torch.tensor(expected)).abs().max().item()
    assert difference < TOLERANCE, f"{what}: differs by {difference}"
    return difference


def check_language(folder, expected):
    model = load(transformers.AutoModelForCausalLM, folder)
    for sequence, logits in zip(expected["sequences"], expected["logits"]):
        difference = check_close(model(torch.tensor([sequence])).logits[0], logits, folder)
    ends = model.generation_config.eos_token_id
    assert ends == model.config.eos_token_id, f"{folder}: generation ends at {ends}"
    print(f"{folder.name}: logits agree (last difference {difference:.1e})")


def check_score(folder, expected):
    model = load(transformers.AutoModelForSequenceClassification, folder)
    for sequence, score in zip(expected["sequences"], expected["scores"]):
        # The head of transformers has no bias; ours stands in the config.
        found = model(torch.tensor([sequence])).logits[0, 0] + model.config.score_bias
        difference = check_close(found, score, folder)
    print(f"{folder.name}: scores agree (last difference {difference:.1e})")


def check_tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for case in json.loads((folder / "expected_tokens.json").read_text()):
        for specials in [False, True]:
            ids = tokenizer(case["text"], add_special_tokens=specials)["input_ids"]
            assert ids == case["ids"], f"{folder}: {case['text']!r} gives {ids}, expected {case['ids']}"
        assert tokenizer.decode(case["ids"]) == case["text"], f"{folder}: {case['text']!r} does not come back"
    assert tokenizer.eos_token == "<|endoftext|>", tokenizer.eos_token
    print(f"{folder.name}: token ids agree")


def main():
    fixtures = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "collimate"
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else fixtures
    folders = sorted(path.parent for path in root.glob("**/config.json"))
    assert folders, f"{root} holds no model"
    for folder in folders:
        expected = json.loads((folder / "expected.json").read_text())
        with torch.no_grad():
            (check_language if "logits" in expected else check_score)(folder, expected)
        if (folder / "tokenizer.json").exists():
            check_tokenizer(folder)


if __name__ == "__main__":
    main()
