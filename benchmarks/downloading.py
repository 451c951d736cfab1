"""From the Hub to blocks: penstock beside `datasets`' own streaming, over the Hub for tests on this machine.

    python benchmarks/downloading.py

The server is this machine's too and takes a share of its cores, so this measures work per row, not a network.
Each contender ends with the same JSON lines on the disk; `datasets` in its quickest way, whole record batches.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from side_by_side import compare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from servers.hub_process import Hub, hub_environment

ROWS = 200_000
NAME = "bench/stories"


def stories() -> bytes:
    rng = random.Random(0)
    words = ["once", "upon", "a", "time", "there", "was", "Lily", '"Hi!"', "said", "the", "\n", "dog", "and", "ran"]
    rows = [" ".join(rng.choices(words, k=180)) for _ in range(ROWS)]
    out = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), out, row_group_size=10_000)
    return out.getvalue()


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    hub = Hub(home / "hub")
    try:
        # Read by the libraries of the Hub when they are imported, so not before this.
        os.environ.update(hub_environment(hub.url, home / "hf"))
        hub.add_dataset(NAME, {"data/train-00000-of-00001.parquet": stories()})
        from penstock import download_dataset

        def ours() -> float:
            shutil.rmtree(home / "ours", ignore_errors=True)
            started = time.perf_counter()
            info = download_dataset(f"hf://{NAME}", home / "ours", free_space_margin=0, show_progress=False)
            assert info.total_samples == ROWS
            return ROWS / (time.perf_counter() - started)

        def theirs(*, in_batches: bool) -> float:
            from datasets import load_dataset

            started = time.perf_counter()
            rows = load_dataset(NAME, split="train", streaming=True)
            with open(home / "theirs.jsonl", "wb") as out:
                if in_batches:
                    for table in rows.with_format("arrow").iter(batch_size=1000):
                        out.writelines(orjson.dumps(row) + b"\n" for row in table.to_pylist())
                else:
                    out.writelines(orjson.dumps(row) + b"\n" for row in rows)
            return ROWS / (time.perf_counter() - started)

        contenders = {
            "penstock download": ours,
            "datasets streaming, Arrow batches": lambda: theirs(in_batches=True),
            "datasets streaming, row by row": lambda: theirs(in_batches=False),
        }
        compare("From the Hub to JSON lines", contenders, reference="penstock download", unit="rows/s", rounds=3)
        written = b"".join(path.read_bytes() for path in sorted((home / "ours" / "blocks").glob("*.jsonl")))
        assert written == (home / "theirs.jsonl").read_bytes(), "both must have written the same"
    finally:
        hub.kill()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
