"""Writes Jane Austen's six novels as plain text from the Debian package r-cran-janeaustenr.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb package
    python3 extract_austen.py package/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb ../data/austen

An .rdb file is a row of records: a big-endian length of the unpacked data, then zlib (or a letter for the method, then
bz2 or xz). A novel is a character vector, one string a line, serialised in R's XDR format: after each string's type word
0x00040009 (or another charset bit) stand its length and its bytes. Blank lines separate paragraphs. Title pages and
chapter headings are left out, and a paragraph's lines are joined.
"""

import bz2
import lzma
import re
import struct
import sys
import zlib
from pathlib import Path

NAMES = {
    "SENSE AND SENSIBILITY": "sense_and_sensibility",
    "PRIDE AND PREJUDICE": "pride_and_prejudice",
    "MANSFIELD PARK": "mansfield_park",
    "EMMA": "emma",
    "NORTHANGER ABBEY": "northanger_abbey",
    "PERSUASION": "persuasion",
}
HEADING = re.compile(r"^(CHAPTER|VOLUME|Chapter|Volume|FINIS|THE END|\(?\d{4}\)?|by Jane Austen|By Jane Austen)\b")


def records(data):
    """Every record of an .rdb file, unpacked."""
    start = 0
    while start < len(data):
        for offset, unpack in ((4, zlib.decompressobj), (5, bz2.BZ2Decompressor), (5, lzma.LZMADecompressor)):
            try:
                unpacker = unpack()
                body = unpacker.decompress(data[start + offset :])
                yield body
                start = len(data) - len(unpacker.unused_data)
                break
            except (zlib.error, OSError, lzma.LZMAError):
                continue
        else:
            raise SystemExit(f"no record at byte {start}")


def strings(body):
    """The character vector in a serialised R object; None for a missing string."""
    found = re.search(rb"\x00\x00\x00\x10(....)\x00[\x00-\xff]\x00\x09", body, re.DOTALL)
    if not found:
        return []
    n, at, lines = struct.unpack(">I", found.group(1))[0], found.end() - 4, []
    for _ in range(n):
        if body[at + 3] != 9:
            return []
        length = struct.unpack(">i", body[at + 4 : at + 8])[0]
        at += 8
        lines.append(body[at : at + max(length, 0)].decode("utf-8"))
        at += max(length, 0)
    return lines


def paragraphs(lines):
    """Lines to paragraphs; headings, the title page and R's underscores for italics are left out."""
    text = "\n".join(line.strip() for line in lines)
    for block in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s+", " ", block.replace("_", "")).strip()
        if paragraph and not HEADING.match(paragraph) and paragraph.upper() != paragraph:
            yield paragraph


def main(rdb, out):
    out.mkdir(parents=True, exist_ok=True)
    for body in records(rdb.read_bytes()):
        lines = strings(body)
        if len(lines) < 5000:
            continue
        title = next(line.strip().upper() for line in lines if line.strip())
        novel = list(paragraphs(lines))
        path = out / f"{NAMES[title]}.txt"
        path.write_text("\n\n".join(novel) + "\n", encoding="utf-8")
        print(f"{path}: {len(novel)} paragraphs, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
