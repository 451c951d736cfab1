"""Claim: JSON lines become token bins at over half of the tokenizer's own speed, eight times a tiktoken pipeline's.

200 MB of JSON lines, documents of 900 bytes on average cut from the source code of Python's library and of the
installed packages, become a GPT-2 token file on the disk. In turns: gigatoken alone, on text that is parsed already
and in memory, keeping nothing (the ceiling: no pipeline around it can be faster); `penstock.tokenize`, which reads,
parses, checks, encodes, hashes, writes and syncs; and what a user writes with tiktoken: parse with orjson, encode
batches of 1,000 documents on all cores, write uint16. Figures count the text, not the JSON. Each turn has a tokenizer
of its own, opened before the clock starts: gigatoken remembers words, and a corpus is tokenized once.

Run: python benchmarks/tokenizing.py [--ranks gpt2.tiktoken] [--megabytes 200] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import awkward
import gigatoken
import numpy as np
import orjson
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from penstock import Tokenizer, tokenize
from side_by_side import compare

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
BLOCK_BYTES = 16 << 20
RANKS = Path(__file__).parents[2] / "shared" / "data" / "gpt2.tiktoken"


def write_corpus(path: Path, num_bytes: int) -> list[bytes]:
    """Write JSON lines of texts that do not repeat, as far as the installed packages go; give the texts.

    A tokenizer that remembers words is faster on a text drawn again and again than on any real corpus.
    """
    rng, texts, written = random.Random(0), [], 0
    with open(path, "wb") as file:
        for source in chain.from_iterable(iter(library_texts, None)):
            start = 0
            while start < len(source):
                piece = source[start : start + rng.randrange(300, 1500)]
                start += len(piece)
                texts.append(piece.encode())
                written += file.write(json.dumps({"id": len(texts), "text": piece}).encode() + b"\n")
                if written >= num_bytes:
                    return texts
    raise AssertionError


def library_texts() -> Iterator[str]:
    """Read the sources of Python's library and of the installed packages, in a fixed order."""
    paths = sysconfig.get_paths()
    for folder in dict.fromkeys((paths["stdlib"], paths["purelib"])):
        for place in sorted(Path(folder).rglob("*")):
            if place.suffix in {".py", ".pyi", ".h", ".md", ".rst"} and place.is_file():
                yield place.read_text(errors="ignore")


def load_tiktoken(ranks: Path) -> tiktoken.Encoding:
    mergeable = load_tiktoken_bpe(str(ranks))
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=mergeable, special_tokens={})


def gigatoken_alone(data: np.ndarray, offsets: np.ndarray, tokenizer: gigatoken.Tokenizer) -> Callable[[], None]:
    def job() -> None:
        start = 0
        while start < len(offsets) - 1:
            stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES)) - 1)
            block, rows = data[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start]
            characters = awkward.contents.NumpyArray(block, parameters={"__array__": "byte"})
            layout = awkward.contents.ListOffsetArray(
                awkward.index.Index64(rows), characters, parameters={"__array__": "bytestring"}
            )
            tokenizer.encode_batch(awkward.Array(layout))
            start = stop

    return job


def penstock(source: Path, out: Path, tokenizer: Tokenizer) -> Callable[[], None]:
    shutil.rmtree(out, ignore_errors=True)
    return lambda: tokenize(source, out, tokenizer=tokenizer, show_progress=False)


def tiktoken_pipeline(source: Path, path: Path, encoding: tiktoken.Encoding) -> Callable[[], None]:
    def job() -> None:
        with open(source, "rb") as lines, open(path, "wb") as out:
            while batch := [orjson.loads(line)["text"] for line in islice(lines, 1000)]:
                ids = encoding.encode_ordinary_batch(batch, num_threads=os.cpu_count() or 1)
                np.fromiter(chain.from_iterable(ids), np.uint16).tofile(out)

    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, default=RANKS, help="GPT-2's ranks, a .tiktoken file")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's temporary folder")
    options = parser.parse_args()
    if not options.ranks.exists():
        print(f"{options.ranks} does not exist: give GPT-2's ranks with --ranks; left out")
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="penstock-bench-") as name:
        run(Path(name), options.ranks, options.megabytes * 1_000_000, options.rounds)


def run(folder: Path, ranks: Path, num_bytes: int, rounds: int) -> None:
    source = folder / "corpus.jsonl"
    texts = write_corpus(source, num_bytes)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8)
    del texts
    jobs = {
        "gigatoken alone": lambda: gigatoken_alone(data, offsets, gigatoken.Tokenizer.from_tiktoken(ranks, "gpt2")),
        "penstock": lambda: penstock(source, folder / "ours", Tokenizer.from_pretrained(ranks)),
        "tiktoken pipeline": lambda: tiktoken_pipeline(source, folder / "theirs.bin", load_tiktoken(ranks)),
    }

    def rate(prepare: Callable[[], Callable[[], None]]) -> float:
        job = prepare()
        started = time.perf_counter()
        job()
        return len(data) / (time.perf_counter() - started) / 1e6

    contenders = {name: partial(rate, prepare) for name, prepare in jobs.items()}
    ratios = compare("tokenize JSON lines", contenders, reference="gigatoken alone", unit="MB/s", rounds=rounds)
    times = ratios["penstock"] / ratios["tiktoken pipeline"]
    if (folder / "theirs.bin").read_bytes() != (folder / "ours" / "train.bin").read_bytes():
        raise SystemExit("the two pipelines wrote different tokens")
    print(f"penstock is {times:.1f} × the tiktoken pipeline; the files are equal")


if __name__ == "__main__":
    main()
