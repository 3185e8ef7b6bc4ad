"""Collimate and PyTorch on the same shapes, in turn, with the least time that the machine would need.

    cargo build --release -p collimate-examples
    python3 examples/scripts/speed.py [--shapes tiny distil smollm2] [--of train generate ragged ppo] [--rounds 3]

Makes a virtual environment with pinned versions for the peers' side (in $XDG_CACHE_HOME/collimate/speed; some gigabytes)
unless --python names one that has them. Every row is measured `--rounds` times, Collimate's process and the peer's one after
the other, and shows medians; the ratio is the median of the rounds' ratios. Both sides take 2 threads, f32, and an allocator
that keeps freed memory. The peer trains with fused AdamW and sdpa attention, generates by `generate()`, with a mask over
left padding where lengths differ, and does PPO by TRL's PPOTrainer, whose iterations are measured from one to the next as
Collimate's updates are: 32 prompts x (32 + 32) tokens, one epoch, one optimiser step, microbatches of 8; policy, value,
reference and reward model of the same shape. Collimate's bound on staleness is 1, its default, and 0 for the row "synchronous".

The floor of a row is the larger of its FLOPs over the peak of a 2048 x 2048 x 2048 product, and the bytes of weights that
it must read over the bandwidth of reading, both measured by PyTorch beside every row, since a shared machine is not the
same from one minute to the next.

What it refuses: a machine that is busy with something else.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target" / "release" / "speed"
PINNED = ["torch==2.15.0", "transformers==5.24.0", "numpy==2.4.6", "trl==1.12.0"]
PINNED += ["datasets==5.2.0", "accelerate==1.15.0"]
THREADS = 2
TRAIN = (8, 128)
GENERATE = (64, 64)
PPO = dict(batch=32, prompt=32, response=32, microbatch=8, iterations=4)
KINDS = ["train", "generate", "ragged", "ppo"]
BATCHES = [1, 8, 32]
SHAPES = {
    "tiny": dict(family="gpt2", layers=4, heads=4, kv_heads=4, width=128, mlp=512, vocab=512),
    "distil": dict(family="gpt2", layers=6, heads=8, kv_heads=8, width=512, mlp=2048, vocab=50257),
    "smollm2": dict(family="llama", layers=30, heads=9, kv_heads=3, width=576, mlp=1536, vocab=49152),
}


def environment():
    environment = dict(os.environ, RAYON_NUM_THREADS=str(THREADS), OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1")
    environment |= dict(TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1", CUDA_VISIBLE_DEVICES="")
    # What `collimate` sets for itself: freed memory is kept.
    environment["GLIBC_TUNABLES"] = (
        "glibc.malloc.mmap_threshold=2147483647:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=268435456"
    )
    return environment


def python_of_peers():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "collimate" / "speed"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
    return python


def refuse_busy_machine():
    def busy():
        fields = [int(field) for field in open("/proc/stat").readline().split()[1:]]
        return sum(fields) - fields[3] - fields[4], sum(fields)

    (busy_before, all_before), _ = busy(), time.sleep(2)
    busy_after, all_after = busy()
    share = (busy_after - busy_before) / max(all_after - all_before, 1)
    if share > 0.1:
        raise SystemExit(f"{share:.0%} of the machine is busy with something else; measure alone")


def measure(command):
    output = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


# What the work takes, in FLOPs: two for a multiply-add, the backward pass twice the forward one.


def flops_of_a_token(shape, context, with_logits):
    c, head_dim = shape["width"], shape["width"] // shape["heads"]
    qkv = c * (c + 2 * shape["kv_heads"] * head_dim)
    mlp = (3 if shape["family"] == "llama" else 2) * c * shape["mlp"]
    block = qkv + c * c + mlp + 2 * c * context
    return 2 * (shape["layers"] * block + (c * shape["vocab"] if with_logits else 0))


def weight_bytes(shape):
    c, head_dim = shape["width"], shape["width"] // shape["heads"]
    mlp = (3 if shape["family"] == "llama" else 2) * c * shape["mlp"]
    block = c * (c + 2 * shape["kv_heads"] * head_dim) + c * c + mlp
    return 4 * (shape["layers"] * block + c * shape["vocab"])


def floor_of_training(shape, machine):
    n_sequences, length = TRAIN
    # Half of the attention's square is masked.
    return 3 * n_sequences * length * flops_of_a_token(shape, length / 2, True) / machine["flops"]


def floor_of_generation(shape, batch, machine):
    n_prompt, n_response = GENERATE
    prefill = batch * n_prompt * flops_of_a_token(shape, n_prompt / 2, False) / machine["flops"]
    step_flops = batch * flops_of_a_token(shape, n_prompt + n_response / 2, True) / machine["flops"]
    step_bytes = weight_bytes(shape) / machine["bytes"]
    return prefill + n_response * max(step_flops, step_bytes)


def ragged_lengths(sequence):
    return 16 + sequence * 37 % 49, 16 + sequence * 29 % 49


def floor_of_ragged(shape, batch, machine):
    lengths = [ragged_lengths(sequence) for sequence in range(batch)]
    prefill = sum(n * flops_of_a_token(shape, n / 2, False) for n, _ in lengths) / machine["flops"]
    steps = 0
    for step in range(max(n for _, n in lengths)):
        flops = sum(flops_of_a_token(shape, p + step, True) for p, n in lengths if n > step) / machine["flops"]
        steps += max(flops, weight_bytes(shape) / machine["bytes"])
    return prefill + steps


def floor_of_ppo(shape, machine):
    batch, prompt, response = PPO["batch"], PPO["prompt"], PPO["response"]
    length = prompt + response
    blocks = batch * length * flops_of_a_token(shape, length / 2, False)
    logits = batch * response * 2 * shape["width"] * shape["vocab"]
    generation = blocks + logits
    scoring = 3 * blocks + logits  # reference, reward and value model
    training = 2 * 3 * blocks + 3 * logits
    return (generation + scoring + training) / machine["flops"]


def row(name, n_tokens, ours, peer, floor, rounds, python):
    pairs, shares = [], []
    for _ in range(rounds):
        machine = measure([python, __file__, "--peer", "machine"])
        pairs.append((measure(ours), measure(peer)))
        shares.append(floor(machine) / statistics.median(pairs[-1][0]["seconds"]))
    seconds = [[statistics.median(side["seconds"]) for side in pair] for pair in pairs]
    own, other = (statistics.median(side) for side in zip(*seconds))
    ratios = sorted(theirs / ours for ours, theirs in seconds)
    memory = [max(pair[side]["peak_bytes"] for pair in pairs) / 2**20 for side in (0, 1)]
    print(
        f"| {name} | {n_tokens / own:,.0f} | {n_tokens / other:,.0f} | {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {statistics.median(shares):.0%} | {memory[0]:,.0f} | {memory[1]:,.0f} |",
        flush=True,
    )


def compare(arguments):
    if not OURS.exists():
        raise SystemExit(f"{OURS} is missing: cargo build --release -p collimate-examples")
    python = arguments.python or python_of_peers()
    refuse_busy_machine()
    peer = [python, __file__, "--peer"]
    machine = measure([*peer, "machine"])
    print(
        f"2048 x 2048 x 2048: {machine['flops'] / 1e9:.0f} GFLOP/s; reading {machine['bytes'] / 1e9:.1f} GB/s; "
        f"{THREADS} threads; {machine['versions']}\n"
    )
    print("| | Collimate, tokens/s | peer, tokens/s | ratio | of the floor | Collimate, MiB | peer, MiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.shapes:
        shape, (n_sequences, length), (_, n_response) = SHAPES[name], TRAIN, GENERATE

        def line(label, n_tokens, ours, peers, floor):
            row(f"{name}: {label}", n_tokens, [OURS, *ours], [*peer, *peers], floor, arguments.rounds, python)

        if "train" in arguments.of:
            work = ["train", name]
            line("train", n_sequences * length, work, work, lambda machine: floor_of_training(shape, machine))
        for batch in BATCHES if "generate" in arguments.of else []:
            work = ["generate", name, str(batch)]
            n_tokens = batch * n_response
            line(f"generate, batch {batch}", n_tokens, work, work, lambda m: floor_of_generation(shape, batch, m))
        for batch in BATCHES[1:] if "ragged" in arguments.of else []:
            work = ["ragged", name, str(batch)]
            n_tokens = sum(ragged_lengths(sequence)[1] for sequence in range(batch))
            line(f"generate, ragged, batch {batch}", n_tokens, work, work, lambda m: floor_of_ragged(shape, batch, m))
        if "ppo" in arguments.of and shape["family"] == "gpt2":
            n_tokens = PPO["batch"] * PPO["response"]
            for label, staleness in [("PPO, against TRL", "1"), ("PPO, synchronous, against TRL", "0")]:
                ours, theirs = ["ppo", name, staleness, "8"], ["ppo", name]
                line(label, n_tokens, ours, theirs, lambda machine: floor_of_ppo(shape, machine))


# The peers' side, which runs in the virtual environment.


def peer_model(name):
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    shape = SHAPES[name]
    if shape["family"] == "gpt2":
        config = transformers.GPT2Config(
            n_layer=shape["layers"], n_head=shape["heads"], n_embd=shape["width"], vocab_size=shape["vocab"],
            n_positions=256, bos_token_id=None, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"], hidden_size=shape["width"], intermediate_size=shape["mlp"],
            vocab_size=shape["vocab"], max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def timed(work):
    work()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def peer_train(name):
    import torch

    model = peer_model(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ids = torch.randint(0, SHAPES[name]["vocab"], TRAIN)

    def step():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step)


def peer_generate(name, batch):
    import torch

    model = peer_model(name).eval()
    n_prompt, n_response = GENERATE
    ids = torch.randint(0, SHAPES[name]["vocab"], (batch, n_prompt))
    settings = dict(
        attention_mask=torch.ones_like(ids), max_new_tokens=n_response, min_new_tokens=n_response, do_sample=True,
        top_k=0, pad_token_id=0,
    )
    with torch.no_grad():
        return timed(lambda: model.generate(ids, **settings))


def peer_ragged(name, batch):
    """A static batch: padded on the left, and decoded until the longest response is there."""
    import torch

    model = peer_model(name).eval()
    lengths = [ragged_lengths(sequence) for sequence in range(batch)]
    longest_prompt, longest = max(n for n, _ in lengths), max(n for _, n in lengths)
    ids = torch.randint(0, SHAPES[name]["vocab"], (batch, longest_prompt))
    mask = torch.ones_like(ids)
    for sequence, (n, _) in enumerate(lengths):
        mask[sequence, : longest_prompt - n] = 0
    settings = dict(
        attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0, pad_token_id=0
    )
    with torch.no_grad():
        return timed(lambda: model.generate(ids, **settings))


def peer_ppo(name):
    import tempfile

    import torch
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    vocab = SHAPES[name]["vocab"]
    words = {f"t{i}": i for i in range(vocab - 2)} | {"<eos>": vocab - 2, "<pad>": vocab - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    policy, reference = peer_model(name), peer_model(name)

    def scalar_model():
        config = policy.config.__class__.from_dict(policy.config.to_dict() | {"num_labels": 1})
        config.pad_token_id = vocab - 1
        config._attn_implementation = "sdpa"
        return transformers.GPT2ForSequenceClassification(config)

    policy.config.pad_token_id = reference.config.pad_token_id = vocab - 1
    ids = torch.randint(0, vocab - 2, (256, PPO["prompt"])).tolist()
    prompts = Dataset.from_dict({"input_ids": ids})
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PPO["microbatch"],
        gradient_accumulation_steps=PPO["batch"] // PPO["microbatch"], num_mini_batches=1, num_ppo_epochs=1,
        total_episodes=PPO["batch"] * PPO["iterations"], response_length=PPO["response"],
        local_rollout_forward_batch_size=PPO["batch"], learning_rate=3e-6, num_sample_generations=0,
        report_to="none", save_strategy="no", bf16=False, fp16=False, use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, gradient_checkpointing=False,
    )
    done = []

    class Trainer(PPOTrainer):
        # Called at the end of each iteration.
        def log(self, *arguments, **settings):
            done.append(time.perf_counter())

    Trainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=scalar_model(),
        value_model=scalar_model(), train_dataset=prompts, eval_dataset=prompts.select(range(8)),
    ).train()
    return [later - earlier for earlier, later in zip(done, done[1:])]


def peer_machine():
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = statistics.median(timed(lambda: torch.mm(a, b)))
    numbers = torch.randn(128 * 1024 * 1024)
    read = statistics.median(timed(lambda: numbers.sum()))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"flops": 2 * 2048**3 / product, "bytes": 4 * numbers.numel() / read, "versions": versions}


def run_peer(work):
    import resource

    if work[0] == "machine":
        return peer_machine()
    kind, name, *batch = work
    of_kind = {"train": peer_train, "generate": peer_generate, "ragged": peer_ragged, "ppo": peer_ppo}[kind]
    seconds = of_kind(name, *map(int, batch))
    return {"seconds": seconds, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--of", nargs="+", choices=KINDS, default=KINDS, help="which kinds of work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", help="an interpreter with " + ", ".join(PINNED))
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(run_peer(arguments.peer)))
    else:
        compare(arguments)


if __name__ == "__main__":
    sys.exit(main())
