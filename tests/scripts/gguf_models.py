"""Makes tests/fixtures/gguf: tiny GGUF files, with what transformers and the tokenizers they were made from give.

    OMP_NUM_THREADS=1 python tests/scripts/gguf_models.py

Needs torch, transformers, gguf, sentencepiece. Each `NAME.gguf` has a `NAME.json` beside it: `sequences` with the
`logits` of a transformers model that has the file's weights, dequantised by the gguf package, and `texts` with their
`ids` by the tokenizer that the file's vocabulary was taken from. tests/tests/gguf.rs reads them.
"""

import io
import json
import pathlib

import gguf
import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "gguf"
SEQUENCES = [[5, 11, 3], [1, 4, 8, 15, 16, 23, 42, 2, 19, 7, 7, 30]]
TEXTS = [
    "The prompt is what is given, the response is what is sampled.",
    "  Spaces, tabs\tand\n\nlines; it's said that they'RE kept  ",
    "Grüße aus Zürich, 你好, e\u0301 🙂!",
    "12345 6.78e-9 1234567",
    "fn main() {\n        println!(\"{}\", x[3]);\n}",
    "unseen: 漢字 ñ 🚀", "",
]
CORPUS = TEXTS[:5] * 3 + ["one two three given response prompts 12 34 main print"] * 3
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Rows of every matrix are multiples of 32 long, those of ffn_down of 256, as the types ask for.
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
             max_position_embeddings=64, rms_norm_eps=1e-5)
# By part of a block; one block and the other.
TYPES = {
    "attn_q": [Kind.Q8_0, Kind.Q4_0], "attn_k": [Kind.Q4_1, Kind.F16], "attn_v": [Kind.BF16, Kind.Q8_0],
    "attn_output": [Kind.Q4_0, Kind.F32], "ffn_gate": [Kind.F16, Kind.Q4_1], "ffn_up": [Kind.Q8_0, Kind.BF16],
    "ffn_down": [Kind.Q4_K, Kind.Q6_K],
}


def byte_level_bpe(pre, specials):
    """A tokenizer as the models of this kind have it."""
    bytes_ = lambda use_regex: tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    split = lambda digits: tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(GPT_4.replace("DIGITS", digits)), "isolated"), bytes_(False)
    ])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = {
        "gpt-2": lambda: bytes_(True),
        "smollm": lambda: tokenizers.pre_tokenizers.Sequence(
            [tokenizers.pre_tokenizers.Digits(individual_digits=True), bytes_(True)]
        ),
        "qwen2": lambda: split(r"\p{N}"),
        "llama-bpe": lambda: split(r"\p{N}{1,3}"),
    }[pre]()
    if pre == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    ))
    return tokenizer


def add_bpe(writer, tokenizer, pre, specials):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in specials else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    return len(tokens)


def add_sentence_piece(writer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=340, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = processor.vocab_size()
    kind = lambda i: 2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(i) for i in range(n)])
    writer.add_token_scores([processor.get_score(i) for i in range(n)])
    writer.add_token_types([kind(i) for i in range(n)])
    writer.add_unk_token_id(0)
    return processor, n


def permuted(weight, n_heads):
    """As llama.cpp's conversion of Llama does: within each head (2, D/2) rows become (D/2, 2)."""
    return weight.reshape(n_heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def random_blocks(kind, shape, rng):
    """The gguf package reads these types and can't write them: any bytes are a tensor, but for their scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    scales = slice(0, 4) if kind == Kind.Q4_K else slice(size - 2, size)
    n = (scales.stop - scales.start) // 2
    blocks[:, scales] = rng.uniform(1e-4, 1e-3, (len(blocks), n)).astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def add_tensors(writer, model, rng, permute):
    """Writes the weights, and sets the model's to what they are once read."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    with torch.no_grad():
        for hf_name, parameter in model.named_parameters():
            base, suffix = hf_name.rsplit(".", 1)
            name = f"{names.get_name(base)}.{suffix}"
            part = name.split(".")[-2]
            n_heads = heads.get(part) if permute else None
            is_matrix = parameter.dim() == 2
            layer_idx = int(name.split(".")[1]) if name.startswith("blk.") else 0
            kind = TYPES[part][layer_idx] if part in TYPES and is_matrix else Kind.Q8_0 if is_matrix else Kind.F32
            weight = parameter.numpy()
            if kind in [Kind.Q4_K, Kind.Q6_K]:
                data = random_blocks(kind, weight.shape, rng)
            else:
                data = gguf.quants.quantize(permuted(weight, n_heads) if n_heads else weight, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            read = gguf.quants.dequantize(data, kind).reshape(weight.shape)
            if n_heads:
                read = read.reshape(n_heads, -1, 2, *read.shape[1:]).swapaxes(1, 2).reshape(read.shape)
            parameter.copy_(torch.from_numpy(read.copy()))


def write(name, architecture, config, make_model, add_vocabulary, encode, seed, rope_factors=None):
    FOLDER.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", architecture)
    writer.add_name(name)
    tokenizer, n_tokens = add_vocabulary(writer)
    torch.manual_seed(seed)
    model = make_model(config | dict(vocab_size=n_tokens)).eval()
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            is_gain = "norm" in parameter_name
            torch.nn.init.normal_(parameter, mean=1.0 if is_gain else 0.0, std=0.2)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    add_tensors(writer, model, np.random.default_rng(seed), permute=architecture == "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with torch.no_grad():
        logits = [model(torch.tensor([sequence])).logits[0, -1] for sequence in SEQUENCES]
    expected = {
        "sequences": SEQUENCES, "logits": [[round(x, 6) for x in row.tolist()] for row in logits],
        "texts": [{"text": text, "ids": encode(tokenizer, text)} for text in TEXTS],
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(expected) + "\n")
    print(f"{name}: {(FOLDER / f'{name}.gguf').stat().st_size / 1000:.0f} kB")


def main():
    specials = ["<unk>", "<s>", "</s>"]

    def bpe(pre):
        def add(writer):
            tokenizer = byte_level_bpe(pre, specials)
            writer.add_add_bos_token(pre == "llama-bpe")
            return tokenizer, add_bpe(writer, tokenizer, pre, specials)
        return add

    bpe_ids = lambda tokenizer, text: tokenizer.encode(text).ids
    rope = dict(rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    llama = lambda config: transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    tied = SIZES | rope | dict(tie_word_embeddings=True)
    write("llama_smollm", "llama", tied, llama, bpe("smollm"), bpe_ids, 1)
    write("llama_sentence_piece", "llama", SIZES | rope, llama, add_sentence_piece,
          lambda processor, text: processor.encode(text), 2)
    # head_dim 8 and these waves: the first is kept, the second lies between, the third and fourth are stretched.
    llama_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = llama(tied | dict(vocab_size=8, rope_parameters=llama_3, max_position_embeddings=131072))
    plain = 500000.0 ** (-torch.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq).tolist()
    print("factors", factors)
    write("llama_3", "llama", tied | dict(rope_parameters=llama_3, max_position_embeddings=131072), llama,
          bpe("llama-bpe"), bpe_ids, 3, rope_factors=factors)
    qwen2 = lambda config: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config))
    write("qwen2", "qwen2", tied, qwen2, bpe("qwen2"), bpe_ids, 4)
    write("gpt_2_vocabulary", "llama", tied, llama, bpe("gpt-2"), bpe_ids, 5)


if __name__ == "__main__":
    main()
