"""Claim: thousands of small objects behind latency arrive at the speed of a bare loop over the client beneath, or more.

4,000 objects of 20 KB, each asked for by its own request in shuffled order, from a web server (`tests/servers/http.py`,
own process) that answers 30 ms after it is asked. Every run is a fresh process with no open connection; the clock
starts after the imports. All have 256 requests in flight, so 256 / 0.03 = 8,533 a second is the most there could be.

- obstore, get: what its documentation shows, `get_async` and `bytes_async`, in 256 coroutines;
- obstore, ranges: `get_range_async` of a length that is known, in 256 coroutines: one hand-over less;
- fsspec: `HTTPFileSystem.cat` of all of them, `batch_size=256`;
- sockets: 256 connections of asyncio that count bytes and check nothing: what server and machine allow Python.

Run: python benchmarks/streaming_fetch.py [--rounds 5], with obstore; fsspec and aiohttp where that contender is wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import compare

OBJECTS = 4000
BYTES = 20_480
IN_FLIGHT = 256
LATENCY_S = 0.03
TESTS = Path(__file__).resolve().parents[1] / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, url = options.child
        load(name)
        before = cpu_s()
        found = CONTENDERS[name](url)
        print(json.dumps([found, (cpu_s() - before) / OBJECTS * 1e6]), flush=True)
        # A bare loop over obstore that ends at once is now and then aborted by obstore's own threads.
        os._exit(0)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        folder = Path(temporary)
        draw = random.Random(1)
        for number in range(OBJECTS):
            (folder / f"{number:05}.bin").write_bytes(draw.randbytes(BYTES))
        command = [sys.executable, "-m", "servers.http", str(folder), "--latency-s", str(LATENCY_S), "--child"]
        server = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            names = [name for name in CONTENDERS if name != "fsspec" or importlib.util.find_spec("aiohttp")]
            spent: dict[str, list[float]] = {name: [] for name in names}
            compare(
                f"{OBJECTS:,} objects of {BYTES:,} bytes behind {LATENCY_S * 1000:.0f} ms",
                {name: child(name, url, spent[name]) for name in names},
                reference="obstore, get",
                unit="objects/s",
                rounds=options.rounds,
            )
            print("  processor time per object (client only): what the machine is left with for anything else")
            for name, series in spent.items():
                print(f"  {name:<15}  {statistics.median(series):6.0f} µs   ({min(series):.0f} … {max(series):.0f})")
        finally:
            server.kill()
            server.wait()


def load(name: str) -> None:
    """Import what a contender needs."""
    for module in NEEDS[name]:
        importlib.import_module(module)


def cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def child(name: str, url: str, spent: list[float]) -> Callable[[], float]:
    """Give a function that runs a contender in a fresh process, and notes the processor time of each object."""

    def run() -> float:
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, url], capture_output=True, text=True, check=True
        )
        found, cpu_us = json.loads(done.stdout)
        spent.append(cpu_us)
        return float(found)

    return run


def names_shuffled() -> list[str]:
    names = [f"{number:05}.bin" for number in range(OBJECTS)]
    random.Random(2).shuffle(names)
    return names


def penstock(url: str) -> float:
    from penstock.store.many import Fetcher
    from penstock.store.wanted import Wanted

    started = time.perf_counter()
    wanted = [Wanted(f"{url}/{name}") for name in names_shuffled()]
    got = [len(piece.data) for piece in Fetcher().get_many(wanted)]
    return rate(got, started)


def obstore_loop(*, ranges: bool, folder: Path | None = None) -> Callable[[str], float]:
    """Make a loop that counts bytes; with a folder, of files that it writes there and reads again."""

    def run(url: str) -> float:
        import obstore
        from obstore.store import HTTPStore

        async def one(store: HTTPStore, name: str) -> int:
            if ranges:
                data = await obstore.get_range_async(store, name, start=0, end=BYTES)
            else:
                data = await (await obstore.get_async(store, name)).bytes_async()
            return len(data.to_bytes()) if folder is None else through_file(folder / name, data.to_bytes())

        async def all_of_them() -> list[int]:
            store = HTTPStore(url, client_options={"allow_http": True})
            names = iter(names_shuffled())
            got: list[int] = []

            async def worker() -> None:
                for name in names:
                    got.append(await one(store, name))

            await asyncio.gather(*[worker() for _ in range(IN_FLIGHT)])
            return got

        started = time.perf_counter()
        return rate(asyncio.run(all_of_them()), started)

    return run


def through_file(path: Path, data: bytes) -> int:
    with open(path, "xb", buffering=0) as file:
        file.write(data)
    with open(path, "rb", buffering=0) as file:
        return len(file.read())


def fsspec_cat(url: str) -> float:
    import fsspec

    started = time.perf_counter()
    files = fsspec.filesystem("http", skip_instance_cache=True)
    found = files.cat([f"{url}/{name}" for name in names_shuffled()], batch_size=IN_FLIGHT)
    return rate([len(data) for data in found.values()], started)


class Socket(asyncio.Protocol):
    """A connection that asks for the next name when it has counted the last one's bytes."""

    def __init__(self, names: list[str], got: list[int], finished: asyncio.Event) -> None:
        self.names, self.got, self.finished = names, got, finished
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if self.names:
            self.left = -1
            self.transport.write(f"GET /{self.names.pop()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            # The head comes in one piece from the server of this benchmark.
            self.left = BYTES + data.index(b"\r\n\r\n") + 4
        self.left -= len(data)
        if self.left == 0:
            self.got.append(BYTES)
            if len(self.got) == OBJECTS:
                self.finished.set()
            self.ask()


def sockets(url: str) -> float:
    async def all_of_them() -> list[int]:
        names, got, finished = names_shuffled(), [], asyncio.Event()
        host, port = url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *[loop.create_connection(lambda: Socket(names, got, finished), host, int(port)) for _ in range(IN_FLIGHT)]
        )
        await finished.wait()
        return got

    started = time.perf_counter()
    return rate(asyncio.run(all_of_them()), started)


def rate(got: list[int], started: float) -> float:
    """Give objects a second, after checking that all came whole."""
    elapsed = time.perf_counter() - started
    assert got == [BYTES] * OBJECTS, "not everything came"
    return OBJECTS / elapsed


CONTENDERS: dict[str, Callable[[str], float]] = {
    "obstore, get": obstore_loop(ranges=False),
    "obstore, ranges": obstore_loop(ranges=True),
    "penstock": penstock,
    "fsspec": fsspec_cat,
    "sockets": sockets,
}

NEEDS = {
    "obstore, get": ["obstore.store"],
    "obstore, ranges": ["obstore.store"],
    "penstock": ["penstock.store.many", "obstore.store", "obstore.exceptions"],
    "fsspec": ["fsspec.implementations.http"],
    "sockets": [],
}


if __name__ == "__main__":
    main()
