"""Makes tests/fixtures/peft: adapters that PEFT wrote on models of tests/fixtures/hf, with what PEFT computes with them.

    OMP_NUM_THREADS=1 python tests/scripts/peft_adapters.py

Needs torch, transformers, peft, and the models that hf_parity.py wrote. Each folder holds an adapter and
`expected.json`: the `base`, `sequences` with the `logits` at their last tokens or the `scores`, and of language models the
mean `loss` of all tokens but the first and the norm of its gradient by each matrix of the adapter.
tests/tests/adapters.rs reads them.
"""

import json
import pathlib
import shutil

import peft
import torch
import transformers

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
FOLDER = FIXTURES / "peft"
SEQUENCES = [[5, 11, 3], [1, 4, 8, 15, 16, 23, 4, 2, 19, 7, 7, 0]]
# Name, base, and the adapter's settings.
ADAPTERS = [
    ("llama", "llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])),
    ("llama_embedding", "llama", dict(r=2, lora_alpha=8, target_modules=["embed_tokens", "lm_head"])),
    ("gpt2", "gpt2", dict(r=3, lora_alpha=6, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    ("gpt_neox", "gpt_neox", dict(r=2, lora_alpha=5, target_modules="all-linear", use_rslora=True)),
    ("qwen3", "qwen3", dict(
        r=2, lora_alpha=5, target_modules="all-linear", rank_pattern={"q_proj": 3}, alpha_pattern={"mlp.up_proj": 20},
    )),
    ("llama_score", "llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"], task_type="SEQ_CLS")),
]


def main():
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    for name, base, settings in ADAPTERS:
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        is_score = settings.get("task_type") == "SEQ_CLS"
        if is_score:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                FIXTURES / "hf" / base, num_labels=1, pad_token_id=None
            )
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "hf" / base)
        model = peft.get_peft_model(model, peft.LoraConfig(**{"task_type": "CAUSAL_LM"} | settings)).eval()
        with torch.no_grad():
            for parameter_name, parameter in sorted(model.named_parameters()):
                if "lora_" in parameter_name or "modules_to_save" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.3)
            outputs = [model(torch.tensor([sequence])).logits[0] for sequence in SEQUENCES]
        gradients = {}
        if not is_score:
            n_targets = sum(len(sequence) - 1 for sequence in SEQUENCES)
            losses = [
                torch.nn.functional.cross_entropy(
                    model(torch.tensor([sequence])).logits[0, :-1], torch.tensor(sequence[1:]), reduction="sum"
                )
                for sequence in SEQUENCES
            ]
            loss = sum(losses) / n_targets
            loss.backward()
            gradients["loss"] = loss.item()
            gradients["gradients"] = {
                parameter_name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad.norm().item()
                for parameter_name, parameter in sorted(model.named_parameters())
                if parameter.grad is not None
            }
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        if isinstance(config["target_modules"], list):  # a set, in any order
            config["target_modules"].sort()
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        key = "scores" if is_score else "logits"
        expected = [output.item() for output in outputs] if is_score else [output[-1].tolist() for output in outputs]
        everything = {"base": base, "sequences": SEQUENCES, key: expected} | gradients
        (folder / "expected.json").write_text(json.dumps(everything) + "\n")
        print(f"{name}: {sum(file.stat().st_size for file in folder.iterdir()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
