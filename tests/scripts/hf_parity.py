"""Makes tests/fixtures/hf: tiny models written by transformers, with what transformers computes from them.

    OMP_NUM_THREADS=1 python tests/scripts/hf_parity.py

Needs torch and transformers. Each folder holds the model as `save_pretrained` writes it, and `expected.json`:
`sequences` of token ids with the `logits` at every position (language models) or the `scores` at the last token
(sequence classification), and for language models the `greedy` continuation of each sequence, the `loss` (mean NLL of
every token but the first of each sequence) and `gradient_norms` (of the loss, by parameter).
tests/tests/parity.rs reads them.
"""

import json
import pathlib
import shutil

import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hf"
VOCAB, END = 24, 0
# Lengths 3, 7 and 12; the end token, which is also the padding token, stands inside one and ends another. With a
# window of 4 the longer two reach past it.
SEQUENCES = [[5, 11, 3], [2, END, 9, 9, 17, END, 23], [1, 4, 8, 15, 16, 23, 4, 2, 19, 7, 7, END]]
N_GREEDY = 12
WINDOW = 4

ENDS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=END)
GPT = dict(vocab_size=VOCAB, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=END, eos_token_id=END)
# Small bases, so that one that is not read shows within a few positions.
ROPE = {"rope_type": "default", "rope_theta": 300.0}
LLAMA = dict(
    ENDS, max_position_embeddings=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, intermediate_size=40, rms_norm_eps=1e-5, rope_parameters=ROPE,
)
QWEN2 = {key: value for key, value in LLAMA.items() if key != "head_dim"}
GPT_NEO = dict(
    ENDS, max_position_embeddings=32, hidden_size=24, num_layers=3, num_heads=3, intermediate_size=40,
    attention_types=[[["global", "local"], 1], [["local"], 1]], window_size=WINDOW,
)
GPT_NEOX = dict(
    ENDS, max_position_embeddings=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    rope_parameters=ROPE | {"partial_rotary_factor": 0.5},
)
LLAMA_3 = ROPE | {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# With a padding token PyTorch would leave its embedding, here the end token's, without a gradient.
GEMMA = LLAMA | dict(pad_token_id=None)
GEMMA_3 = GEMMA | dict(
    num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    sliding_window=WINDOW, query_pre_attn_scalar=12,
    rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 8.0}, "sliding_attention": ROPE,
    },
)


def language_models():
    """Name, model, and how it is saved."""
    t = transformers
    yield "gpt1", t.OpenAIGPTLMHeadModel(t.OpenAIGPTConfig(**GPT)), {}
    yield "gpt2", t.GPT2LMHeadModel(t.GPT2Config(**GPT)), {}
    yield "gpt_neo", t.GPTNeoForCausalLM(t.GPTNeoConfig(**GPT_NEO)), {}
    yield "gpt_neox", t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**GPT_NEOX)), {}
    serial = t.GPTNeoXConfig(**GPT_NEOX, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True)
    yield "gpt_neox_serial", t.GPTNeoXForCausalLM(serial), {}
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)), {}
    yield "llama_tied", t.LlamaForCausalLM(t.LlamaConfig(**LLAMA, tie_word_embeddings=True)), {}
    llama_3 = t.LlamaConfig(**LLAMA | dict(rope_parameters=LLAMA_3, attention_bias=True, mlp_bias=True))
    yield "llama_3", t.LlamaForCausalLM(llama_3), {}
    mistral = t.MistralConfig(**LLAMA, sliding_window=WINDOW)
    yield "mistral", t.MistralForCausalLM(mistral), dict(dtype=torch.float16, max_shard_size="8KB")
    qwen2 = t.Qwen2Config(
        **QWEN2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, tie_word_embeddings=True
    )
    yield "qwen2", t.Qwen2ForCausalLM(qwen2), dict(dtype=torch.bfloat16)
    yield "qwen3", t.Qwen3ForCausalLM(t.Qwen3Config(**LLAMA)), {}
    yield "gemma", t.GemmaForCausalLM(t.GemmaConfig(**GEMMA)), {}
    yield "gemma_3", t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GEMMA_3)), {}


def score_models():
    """Name and model."""
    t = transformers
    # Without a padding token the score is read at the last token, whichever it is.
    one = dict(num_labels=1, pad_token_id=None)
    yield "gpt1_score", t.OpenAIGPTForSequenceClassification(t.OpenAIGPTConfig(**GPT, **one))
    yield "gpt2_score", t.GPT2ForSequenceClassification(t.GPT2Config(**GPT, **one))
    yield "gpt_neo_score", t.GPTNeoForSequenceClassification(t.GPTNeoConfig(**GPT_NEO, **one))
    yield "gpt_neox_score", t.GPTNeoXForSequenceClassification(t.GPTNeoXConfig(**GPT_NEOX, **one))
    yield "llama_score", t.LlamaForSequenceClassification(t.LlamaConfig(**LLAMA, **one))
    yield "mistral_score", t.MistralForSequenceClassification(t.MistralConfig(**LLAMA, **one, sliding_window=WINDOW))
    yield "qwen2_score", t.Qwen2ForSequenceClassification(t.Qwen2Config(**QWEN2, **one))
    yield "qwen3_score", t.Qwen3ForSequenceClassification(t.Qwen3Config(**LLAMA, **one))
    yield "gemma_score", t.GemmaForSequenceClassification(t.GemmaConfig(**LLAMA | one))
    yield "gemma_3_score", t.Gemma3TextForSequenceClassification(t.Gemma3TextConfig(**GEMMA_3 | one))


def randomise(model):
    """Every parameter leaves its initial value, so that none can be left out unseen."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            is_gain = "norm" in name or ".ln_" in name
            torch.nn.init.normal_(parameter, mean=1.0 if is_gain and name.endswith("weight") else 0.0, std=0.25)


def save(name, model, dtype=torch.float32, **how):
    """Saves the model. Returns the folder, and the model as it is loaded from there in f32."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model)
    model.eval().to(dtype).save_pretrained(folder, **how)
    return folder, type(model).from_pretrained(folder, dtype=torch.float32).eval()


def finish(folder, expected):
    (folder / "expected.json").write_text(json.dumps({"sequences": SEQUENCES} | expected) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.name}: {size / 1000:.0f} kB")


def rounded(values, digits=7):
    return [rounded(value, digits) if isinstance(value, list) else round(value, digits) for value in values]


def greedy(model, sequence):
    ids = torch.tensor([sequence])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N_GREEDY, pad_token_id=END
    )
    return output[0, len(sequence):].tolist()


def check_padding(model, logits, side):
    """transformers itself gives the same in a padded batch as for each sequence alone."""
    length = max(map(len, SEQUENCES))
    ids, mask, positions = [], [], []
    for sequence in SEQUENCES:
        n_pad = length - len(sequence)
        pad, real = [0] * n_pad, list(range(len(sequence)))
        left = side == "left"
        ids.append([END] * n_pad + sequence if left else sequence + [END] * n_pad)
        mask.append(pad + [1] * len(sequence) if left else [1] * len(sequence) + pad)
        positions.append(pad + real if left else real + pad)
    output = model(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)).logits
    for row, alone in zip(output, logits):
        found = row[length - len(alone):] if side == "left" else row[:len(alone)]
        assert (found - alone).abs().max() < 2e-5, f"{side}-padded logits differ by {(found - alone).abs().max()}"


def main():
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    for name, model, how in language_models():
        folder, model = save(name, model, **how)
        with torch.no_grad():
            logits = [model(torch.tensor([sequence])).logits[0] for sequence in SEQUENCES]
            for side in ["left", "right"]:
                check_padding(model, logits, side)
            continuations = [greedy(model, sequence) for sequence in SEQUENCES]
        losses = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([sequence])).logits[0, :-1], torch.tensor(sequence[1:]), reduction="sum"
            )
            for sequence in SEQUENCES
        ]
        loss = sum(losses) / sum(len(sequence) - 1 for sequence in SEQUENCES)
        loss.backward()
        norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
        finish(folder, {
            "logits": rounded([output.tolist() for output in logits]), "greedy": continuations, "loss": loss.item(),
            "gradient_norms": norms,
        })
    for name, model in score_models():
        folder, model = save(name, model)
        with torch.no_grad():
            scores = [model(torch.tensor([sequence])).logits[0].item() for sequence in SEQUENCES]
        finish(folder, {"scores": scores})


if __name__ == "__main__":
    main()
