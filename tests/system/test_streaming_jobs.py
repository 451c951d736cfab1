"""Ranks, jobs and restarts that stream a table of files: real processes, one cache, the log of their server."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter

import psutil
import pytest

import streaming_subjects as subjects

TRAINER = """
import json, os, sys, time
import streaming_subjects as subjects
from penstock import StreamingDataLoader, StreamingDataset, World

if __name__ == "__main__":
    told = json.loads(os.environ["TOLD"])
    dataset = StreamingDataset(
        told["table"], told["dst"], columns_to_download=["image"], shuffle_seed=7, transforms=subjects.decode,
    )
    world = World(dp_rank=told.get("rank", 0), dp_size=told.get("ranks", 1))
    loader = StreamingDataLoader(dataset, told["batch"], world=world, **told.get("options", {}))
    if "state" in told:
        loader.load_state_dict(told["state"])
    print("ready", flush=True)
    for step, batch in enumerate(loader):
        said = {"numbers": batch["number"].tolist(), "repeats": loader.batch_info.repeats}
        print(json.dumps({**said, "state": loader.state_dict()}), flush=True)
        time.sleep(told.get("pause_s", 0))
        if step + 1 == told.get("steps"):
            break
    loader.close()
    dataset.close()
    print("done", flush=True)
"""
FILES = r"/images/"
PROCESSES = {"num_workers": 3, "worker_type": "process"}


@pytest.fixture
def job(run, web, tmp_path):
    """Start a trainer on the table of `web`; the place of its cache is shared unless another is given."""
    web.add_files(subjects.served())

    def start(**told):
        told = {"table": f"{web.url}/samples.csv", "dst": str(tmp_path / "dst"), "batch": 4, **told}
        script = run(TRAINER, TOLD=json.dumps(told))
        assert script.line() == "ready"
        return script

    return start


def batches(script):
    """All that a trainer says until it has ended well."""
    assert script.end(timeout=120) == 0, script.stderr
    *said, done = script.rest.splitlines()
    assert done == "done"
    return [json.loads(line) for line in said]


def trained(said):
    """The samples of batches, without those that are there only to keep ranks in step."""
    return [number for one in said for number in one["numbers"][: len(one["numbers"]) - one["repeats"]]]


def downloads(web):
    return Counter(line["path"] for line in web.requests(FILES) if line["status"] in (200, 206))


@pytest.mark.slow
def test_two_ranks_of_three_workers_share_an_epoch_and_one_cache(job, web):
    web.latency(0.01, 0.02)
    ranks = [job(rank=rank, ranks=2, options=PROCESSES) for rank in range(2)]
    said = [batches(script) for script in ranks]
    assert len(said[0]) == len(said[1]) == 13
    assert sorted(trained(said[0]) + trained(said[1])) == list(range(subjects.COUNT))
    assert downloads(web) == {f"/{name}": 1 for name in subjects.images()}
    assert all(script.leaves_nobody() for script in ranks)


@pytest.mark.slow
def test_stopped_at_40_of_103_three_ranks_read_the_rest_in_new_processes(job, web):
    first = [job(rank=rank, ranks=2, steps=5) for rank in range(2)]
    said = [batches(script) for script in first]
    states = [one[-1]["state"] for one in said]
    assert states[0] == states[1]
    assert states[0]["samples"] == 40
    rest = [batches(job(rank=rank, ranks=3, state=states[0], options=PROCESSES)) for rank in range(3)]
    before, after = trained(said[0]) + trained(said[1]), [number for one in rest for number in trained(one)]
    assert sorted(before + after) == list(range(subjects.COUNT))
    assert len({len(one) for one in rest}) == 1


@pytest.mark.slow
def test_two_jobs_on_one_cache_download_each_object_once(job, web):
    web.latency(0.01, 0.02)
    jobs = [job(batch=8), job(batch=5)]
    orders = [trained(batches(script)) for script in jobs]
    assert orders[0] == orders[1]
    assert downloads(web) == {f"/{name}": 1 for name in subjects.images()}
    web.forget()
    assert trained(batches(job())) == orders[0]
    assert not web.requests(FILES)


@pytest.mark.slow
def test_a_killed_job_goes_on_from_its_last_state_with_the_right_bytes(job, web):
    web.latency(0.01, 0.02)
    script = job(pause_s=0.02, options=PROCESSES)
    said = [json.loads(script.line()) for _ in range(9)]
    script.signal(signal.SIGKILL)
    script.end()
    # What it had prepared and never handed out is in nobody's way.
    assert script.leaves_nobody()
    rest = batches(job(state=said[-1]["state"]))
    assert trained(said) + trained(rest) == trained(batches(job()))
    # Only what was on its way when the job was killed may come a second time.
    assert max(downloads(web).values()) <= 2


CLOSER = """
import json, os, threading, time
import streaming_subjects as subjects
from penstock import PenstockError, StreamingDataLoader, StreamingDataset

def read_on(loader):
    try:
        for batch in loader:
            print("a batch", flush=True)
    except PenstockError as error:
        ended.append(type(error).__name__)

if __name__ == "__main__":
    told, ended = json.loads(os.environ["TOLD"]), []
    dataset = StreamingDataset(told["table"], told["dst"], columns_to_download=["image"], shuffle_seed=7)
    loader = StreamingDataLoader(dataset, 4, **told["options"])
    reader = threading.Thread(target=read_on, args=[loader])
    reader.start()
    print("ready", flush=True)
    while not os.path.exists(told["flag"]):
        time.sleep(0.05)
    began = time.monotonic()
    loader.close()
    dataset.close()
    took = time.monotonic() - began
    reader.join()
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print(json.dumps([took, ended, left]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [PROCESSES, {"num_workers": 3, "worker_type": "thread"}, {"num_workers": 0}], ids=["p", "t", "inline"]
)
def test_a_job_that_is_closed_while_its_server_hangs_ends_and_leaves_nobody(run, web, tmp_path, options):
    web.add_files(subjects.served())
    web.fault(path="/images/", stall=10, times=1000)
    told = {"table": f"{web.url}/samples.csv", "dst": str(tmp_path / "dst"), "options": options}
    script = run(CLOSER, TOLD=json.dumps({**told, "flag": str(tmp_path / "flag")}))
    assert script.line() == "ready"
    time.sleep(3)  # long enough for all lanes to be waiting for the server
    children = psutil.Process(script.process.pid).children(recursive=True)
    (tmp_path / "flag").touch()
    took_s, ended, left = json.loads(script.line())
    # A tenth of this is promised; a busy machine is given ten times a deadline.
    assert took_s < 10
    assert ended in (["LoaderClosed"], ["SampleError"])
    assert set(left) <= {"penstock-requests"}
    assert script.end() == 0, script.stderr
    assert not psutil.wait_procs(children, timeout=10)[1]
