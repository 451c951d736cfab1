"""Processes that fork while their threads use caches: whoever comes of it finds databases it can open."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORKING = """
import faulthandler, os, sys, threading, time
from penstock.store.cache import open_cache

folder, end = sys.argv[1], time.monotonic() + 3
kept = open_cache(f"{folder}/0", None)

def open_and_close(number):
    while time.monotonic() < end:
        with open_cache(f"{folder}/{number}", None) as cache:
            cache.stats()

def fork():
    while time.monotonic() < end:
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(60, exit=True)
            kept.stats()
            with open_cache(f"{folder}/1", None) as cache:
                cache.stats()
            os._exit(0)
        ended.append(os.waitpid(child, 0)[1])

ended = []
threads = [threading.Thread(target=open_and_close, args=[number % 2]) for number in range(2)]
threads += [threading.Thread(target=fork) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert ended and not any(ended)
print("done")
"""
INTERRUPTED = """
import os, signal, sys, threading, time
from contextlib import suppress
from penstock.store import cache_rows
from penstock.store.cache import open_cache
from penstock.node.database import Database
from pathlib import Path

caches = [open_cache(f"{sys.argv[1]}/{number}", None) for number in range(2)]
last = Database(Path(sys.argv[1], "last.db"), cache_rows.KIND, timeout_s=30)
held = threading.Event()

def hold():
    with last.writing():
        held.set()
        time.sleep(1)

holder = threading.Thread(target=hold)
holder.start()
held.wait()
threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
with suppress(KeyboardInterrupt):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
holder.join()
user = threading.Thread(target=lambda: [cache.stats() for cache in caches], daemon=True)
user.start()
user.join(20)
print("stuck" if user.is_alive() else "done", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [FORKING, INTERRUPTED], ids=["amid openings", "amid Ctrl-C"])
def test_a_fork_leaves_no_lock_behind_that_nobody_releases(tmp_path, program):
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
