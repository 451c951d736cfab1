"""Goes on from saved states in a process of its own: reads jobs as JSON from stdin, writes what was read to stdout."""

import json
import sys

import subjects
from penstock import StreamingDataLoader, World


def stream(job):
    """Read batches on all ranks in step; give ids in the order of the plan, flagged repeats apart."""
    ranks = job["ranks"]
    loaders = [
        StreamingDataLoader(
            subjects.Fetching(job["size"]), world=World(dp_rank=rank, dp_size=ranks), num_workers=0, **job["options"]
        )
        for rank in range(ranks)
    ]
    for loader in loaders:
        loader.load_state_dict(job["state"])
    found = [(loaders[0].round, loaders[0].batch_in_round, len(loaders[0]))]
    for _ in range(job["rounds"]):
        read = []
        for batches in zip(*loaders, strict=True):
            rows = [
                batch["id"].tolist()[: len(batch["id"]) - loader.batch_info.repeats]
                for loader, batch in zip(loaders, batches, strict=True)
            ]
            longest = max(len(row) for row in rows)
            read += [row[place] for place in range(longest) for row in rows if place < len(row)]
        found.append(read)
    return found


if __name__ == "__main__":
    print(json.dumps([stream(job) for job in json.load(sys.stdin)]))
