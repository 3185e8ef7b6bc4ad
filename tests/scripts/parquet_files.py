"""Makes tests/fixtures/parquet: the same three demonstrations under each compression, dialogues, and a wrong column.

    python tests/scripts/parquet_files.py

Needs pyarrow. tests/tests/data_files.rs reads them.
"""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "parquet"


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": ["a", "é 你好", "c"], "response": ["One.", "Two\nlines.", "Three."], "n": [1, 2, None]})
    for name, compression in [("plain", "none"), ("snappy", "snappy"), ("gzip", "gzip"), ("zstd", "zstd"), ("lz4", "lz4")]:
        pq.write_table(table, FOLDER / f"{name}.parquet", compression=compression)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    pq.write_table(pa.table({"messages": [turns]}), FOLDER / "messages.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "response": [1]}), FOLDER / "wrong_column.parquet")


if __name__ == "__main__":
    main()
