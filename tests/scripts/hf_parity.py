"""Makes tests/fixtures/hf: tiny models written by transformers, with what transformers computes from them.

    OMP_NUM_THREADS=1 python tests/scripts/hf_parity.py

Needs torch and transformers. Each folder holds the model as `save_pretrained` writes it, and `expected.json`:
`sequences` of token ids with the `logits` at every position (language models) or the `scores` at the last token
(sequence classification), and for language models the `greedy` continuation of each sequence.
tests/tests/parity.rs reads them.
"""

import json
import pathlib

import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hf"
VOCAB, END = 24, 0
# Lengths 3, 7 and 12; the end token, which is also the padding token, stands inside one and ends another.
SEQUENCES = [[5, 11, 3], [2, END, 9, 9, 17, END, 23], [1, 4, 8, 15, 16, 23, 4, 2, 19, 7, 7, END]]
N_GREEDY = 12

GPT2 = dict(vocab_size=VOCAB, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=END, eos_token_id=END)
LLAMA = dict(
    vocab_size=VOCAB, max_position_embeddings=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, intermediate_size=40, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=END,
    # Small, so that a base that is not read shows within a few positions.
    rope_parameters={"rope_type": "default", "rope_theta": 300.0},
)


def randomise(model):
    """Every parameter leaves its initial value, so that none can be left out unseen."""
    for name, parameter in sorted(model.named_parameters()):
        is_gain = "norm" in name or ".ln_" in name
        torch.nn.init.normal_(parameter, mean=1.0 if is_gain and name.endswith("weight") else 0.0, std=0.25)


def write(name, model):
    model = model.eval()
    with torch.no_grad():
        randomise(model)
    folder = FOLDER / name
    model.save_pretrained(folder)
    expected = {"sequences": SEQUENCES}
    with torch.no_grad():
        outputs = [model(torch.tensor([sequence])).logits[0] for sequence in SEQUENCES]
        if outputs[0].dim() == 2:
            expected["logits"] = [output.tolist() for output in outputs]
            expected["greedy"] = [greedy(model, sequence) for sequence in SEQUENCES]
        else:
            expected["scores"] = [output.item() for output in outputs]
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB")


def greedy(model, sequence):
    ids = torch.tensor([sequence])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N_GREEDY, pad_token_id=END
    )
    return output[0, len(sequence):].tolist()


def main():
    torch.manual_seed(0)
    # Without a padding token the score is read at the last token, whichever it is.
    one_label = dict(num_labels=1, pad_token_id=None)
    write("gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
    write("gpt2_score", transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT2, **one_label)))
    for name, tied in [("llama", False), ("llama_tied", True)]:
        config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
        write(name, transformers.LlamaForCausalLM(config))
    write("llama_score", transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA, **one_label)))


if __name__ == "__main__":
    main()
