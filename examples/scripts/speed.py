"""Collimate and PyTorch on the same shapes, in turn, with the least time that the machine would need.

    cargo build --release -p collimate-examples
    python3 examples/scripts/speed.py [--shapes tiny distil smollm2] [--rounds 3]

Makes a virtual environment with pinned versions for the peers' side (in $XDG_CACHE_HOME/collimate/speed; some gigabytes)
unless --python names one that has them. Every row is measured `--rounds` times, Collimate's process and the peer's one after
the other, and shows medians; the ratio is the median of the rounds' ratios. Both sides take 2 threads, f32, and an allocator
that keeps freed memory. The peer trains with fused AdamW and sdpa attention, and generates by `generate()`.

The floor of a row is the larger of its FLOPs over the peak of a 2048 x 2048 x 2048 product, and the bytes of weights that
it must read over the bandwidth of reading, both measured here by PyTorch at the start.

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
PINNED = ["torch==2.15.0", "transformers==5.24.0", "numpy==2.4.6"]
THREADS = 2
TRAIN = (8, 128)
GENERATE = (64, 64)
BATCHES = [1, 8, 32]
SHAPES = {
    "tiny": dict(family="gpt2", layers=4, heads=4, kv_heads=4, width=128, mlp=512, vocab=512),
    "distil": dict(family="gpt2", layers=6, heads=8, kv_heads=8, width=512, mlp=2048, vocab=50257),
    "smollm2": dict(family="llama", layers=30, heads=9, kv_heads=3, width=576, mlp=1536, vocab=49152),
}


def environment():
    environment = dict(os.environ, RAYON_NUM_THREADS=str(THREADS), OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1")
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


def row(name, n_tokens, ours, peer, floor, rounds):
    pairs = []
    for _ in range(rounds):
        pairs.append((measure(ours), measure(peer)))
    seconds = [[statistics.median(side["seconds"]) for side in pair] for pair in pairs]
    own, other = (statistics.median(side) for side in zip(*seconds))
    ratio = statistics.median(theirs / ours for ours, theirs in seconds)
    memory = [max(pair[side]["peak_bytes"] for pair in pairs) / 2**20 for side in (0, 1)]
    print(
        f"| {name} | {n_tokens / own:,.0f} | {n_tokens / other:,.0f} | {ratio:.2f} | {floor / own:.0%} "
        f"| {memory[0]:,.0f} | {memory[1]:,.0f} |",
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
    print("| | Collimate, tokens/s | PyTorch, tokens/s | ratio | of the floor | Collimate, MiB | PyTorch, MiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.shapes:
        shape, (n_sequences, length), (_, n_response) = SHAPES[name], TRAIN, GENERATE
        floor = floor_of_training(shape, machine)
        work = ["train", name]
        row(f"{name}: train", n_sequences * length, [OURS, *work], [*peer, *work], floor, arguments.rounds)
        for batch in BATCHES:
            floor = floor_of_generation(shape, batch, machine)
            work = ["generate", name, str(batch)]
            label = f"{name}: generate, batch {batch}"
            row(label, batch * n_response, [OURS, *work], [*peer, *work], floor, arguments.rounds)


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
    seconds = peer_train(work[1]) if work[0] == "train" else peer_generate(work[1], int(work[2]))
    return {"seconds": seconds, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
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
