"""A sequence in chunks is trained as its token mean says, with truncated gradients, in flat memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from penstock import ConfigError, chunked_segment_rollout, recommend_chunk_size, recommend_dataset_chunk_size
from penstock.train.carry import Held, map_tensors

ROOT = Path(__file__).resolve().parent.parent.parent
VOCAB = 11


def load_example():
    spec = importlib.util.spec_from_file_location("long_sequences", ROOT / "examples" / "long_sequences.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


EXAMPLE = load_example()


class Recurrent(nn.Module):
    """An embedding, a GRU and a head: the smallest model that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(VOCAB, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, VOCAB)

    def forward(self, x, carry):
        out, carry = self.rnn(self.embed(x), carry)
        return carry, self.head(out)


def make(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    if kind == "rnn":
        return Recurrent().to(dtype)
    layer = {"ssm": EXAMPLE.StateSpace, "transformer": lambda dim: EXAMPLE.WindowedAttention(dim, window=5)}[kind]
    return EXAMPLE.LongModel(VOCAB, 8, 2, layer).to(dtype)


def make_batch(batch: int = 2, length: int = 23, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (batch, length + 1), generator=torch.Generator().manual_seed(seed))
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:].clone()}


def detached(carry: Any) -> Any:
    if isinstance(carry, torch.Tensor):
        return carry.detach()
    return None if carry is None else type(carry)(detached(item) for item in carry)


def reference(model, batch, chunk_size: int, passes: int = 1) -> torch.Tensor:
    """Truncated back-propagation through time, written down as its definition says."""
    losses, carry = [], None
    for _ in range(passes):
        for start in range(0, batch["inputs"].shape[1], chunk_size):
            span = slice(start, start + chunk_size)
            carry, logits = model(batch["inputs"][:, span], carry)
            carry = detached(carry)
            losses.append(cross_entropy(logits.transpose(1, 2), batch["targets"][:, span], reduction="none"))
    kept = (batch["targets"] != -100).sum() * passes
    return torch.cat(losses, 1).sum() / kept


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def expect_gradients(model: nn.Module, loss: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
    if loss.requires_grad:
        loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["rnn", "ssm", "transformer"])
@pytest.mark.parametrize("chunk_size", [1, 4, 23, 100])
def test_the_loss_is_the_token_mean_of_one_call_with_everything(kind, dtype, chunk_size):
    model, batch = make(kind, dtype), make_batch()
    batch["targets"][0, 3:9] = -100
    batch["targets"][1, -2:] = -100
    whole = cross_entropy(model(batch["inputs"], None)[1].flatten(0, 1), batch["targets"].flatten())
    loss, metrics = chunked_segment_rollout(model, batch, 1, chunk_size)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert metrics == {
        "ce": loss.item(),
        "used_segments": 1,
        "num_chunks": -(-23 // chunk_size),
        "effective_seq_len": 23,
    }


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "ssm", "transformer"])
@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_are_those_of_truncated_back_propagation(kind, backward, passes):
    model, batch = make(kind), make_batch()
    batch["targets"][0, 3:9] = -100
    expected_loss = reference(model, batch, 5, passes)
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    loss, metrics = chunked_segment_rollout(model, batch, passes, 5, backward=backward)
    assert loss.requires_grad is not backward
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    assert metrics["used_segments"] == passes
    expect_gradients(model, loss, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 17), st.integers(1, 20), st.integers(1, 2), st.booleans(), st.integers(0, 1 << 20)
)
def test_any_cut_and_any_ignored_targets(size, length, chunk_size, passes, backward, seed):
    model, batch = make("rnn"), make_batch(size, length, seed)
    ignored = torch.rand(size, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    ignored[0, 0] = False
    batch["targets"][ignored] = -100
    expected_loss = reference(model, batch, chunk_size, passes)
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    loss, _ = chunked_segment_rollout(model, batch, passes, chunk_size, backward=backward)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    expect_gradients(model, loss, expected)


@pytest.mark.parametrize("where", [slice(0, 5), slice(5, 10), slice(20, 23)], ids=["first", "middle", "last, ragged"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_chunk_of_only_ignored_targets_still_carries_on(where, backward):
    model, batch = make("rnn"), make_batch()
    batch["targets"][:, where] = -100
    expected_loss = reference(model, batch, 5)
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    loss, _ = chunked_segment_rollout(model, batch, 1, 5, backward=backward)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    expect_gradients(model, loss, expected)


@pytest.mark.parametrize("backward", [False, True])
def test_nothing_but_ignored_targets_is_a_loss_of_zero_and_no_change(backward):
    model, batch = make("rnn"), make_batch()
    batch["targets"][:] = -100
    loss, metrics = chunked_segment_rollout(model, batch, 2, 5, backward=backward)
    assert loss.item() == metrics["ce"] == 0
    if not backward:
        loss.backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_logits_masked_with_infinity_stay_out_of_a_chunk_without_targets():
    """Vocabularies are padded so: what is never a target has a logit of -inf."""
    model, batch, never = make("rnn"), make_batch(), torch.zeros(VOCAB)
    never[-1] = float("-inf")
    batch["targets"] = batch["targets"] % (VOCAB - 1)
    batch["targets"][:, 15:] = -100

    def masked(x, carry):
        carry, logits = model(x, carry)
        return carry, logits + never

    loss, _ = chunked_segment_rollout(masked, batch, 1, 5, backward=True)
    logits = model(batch["inputs"], None)[1] + never
    assert torch.allclose(loss, cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()))
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_gradients_add_up_over_batches():
    """Gradient accumulation works as with any other loss."""
    model, batches = make("rnn"), [make_batch(seed=1), make_batch(length=9, seed=2)]
    sum(reference(model, batch, 5) for batch in batches).backward()
    expected = gradients(model)
    model.zero_grad()
    for batch in batches:
        chunked_segment_rollout(model, batch, 1, 5, backward=True)
    expect_gradients(model, torch.zeros(()), expected)


def test_a_loss_function_may_give_every_target_or_their_mean():
    model, batch = make("rnn"), make_batch()
    batch["targets"][0, 3:9] = 7
    batch["targets"][:, 15:] = 7

    def each(logits, targets):
        return cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=0.1)

    def mean(logits, targets):
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=7, label_smoothing=0.1)

    whole = mean(model(batch["inputs"], None)[1], batch["targets"]).item()
    for loss_fn in (each, mean):
        loss, _ = chunked_segment_rollout(model, batch, 1, 5, loss_fn=loss_fn, ignore_index=7)
        assert loss.item() == pytest.approx(whole, rel=1e-12)


def test_values_that_are_no_tokens():
    """Inputs with more axes and targets that are no integers, with a loss of one's own."""
    torch.manual_seed(0)
    rnn = nn.GRU(3, 1, batch_first=True)
    batch = {"inputs": torch.randn(2, 12, 3), "targets": torch.randn(2, 12)}

    def model(x, carry):
        out, carry = rnn(x, carry)
        return carry, out[..., 0]

    loss, _ = chunked_segment_rollout(model, batch, 1, 5, loss_fn=lambda out, y: (out - y) ** 2)
    whole = ((model(batch["inputs"], None)[1] - batch["targets"]) ** 2).mean()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)


def test_half_precision_is_summed_in_full():
    model, batch = make("ssm", torch.float32), make_batch(length=600)
    expected = chunked_segment_rollout(model, batch, 1, 100)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = chunked_segment_rollout(model, batch, 1, 100)

    def half(x, carry):
        carry, logits = model(x, carry)
        return carry, logits.bfloat16()

    for loss in (under_autocast, chunked_segment_rollout(half, batch, 1, 100)[0]):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=2e-3)


def test_evaluation_needs_no_gradients():
    model, batch = make("transformer"), make_batch()
    expected = chunked_segment_rollout(model, batch, 1, 5)[0].item()
    with torch.no_grad():
        assert chunked_segment_rollout(model, batch, 1, 5)[0].item() == expected
        with pytest.raises(ConfigError, match="backward=True, but gradients are switched off"):
            chunked_segment_rollout(model, batch, 1, 5, backward=True)


def tensors_in(carry: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(carry, lambda tensor: found.append(tensor) or tensor)
    return found


class Pair(NamedTuple):
    a: torch.Tensor
    b: list


@dataclass(frozen=True, slots=True)
class State:
    h: torch.Tensor
    rest: dict
    count: int


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_a_carry_may_be_nested_in_any_way(cpu_offload):
    model, batch, seen = make("rnn"), make_batch(length=12), []

    def nesting(x, carry):
        seen.append(carry)
        h = None if carry is None else carry.h
        h, logits = model(x, h)
        rest = {"pair": Pair(h * 2, [h.sum(), None]), "ordered": OrderedDict(name=(h, "text"))}
        return State(h, rest, 1 + (0 if carry is None else carry.count)), logits

    expected = chunked_segment_rollout(model, batch, 1, 5)[0].item()
    loss, _ = chunked_segment_rollout(nesting, batch, 1, 5, backward=True, cpu_offload=cpu_offload)
    assert loss.item() == expected
    assert seen[0] is None
    for number, carry in enumerate(seen[1:], 1):
        assert isinstance(carry, State)
        assert isinstance(carry.rest["pair"], Pair)
        assert isinstance(carry.rest["ordered"], OrderedDict)
        assert (carry.count, carry.rest["ordered"]["name"][1], carry.rest["pair"].b[1]) == (number, "text", None)
        tensors = tensors_in(carry)
        assert len(tensors) == 4
        assert not any(tensor.requires_grad for tensor in tensors)
        assert torch.equal(carry.rest["pair"].a, carry.h * 2)


def test_a_carry_that_hides_tensors_is_refused():
    class Cache:
        pass

    model, batch = make("rnn"), make_batch()
    with pytest.raises(ConfigError, match="the carry holds a Cache: it must be made of tensors"):
        chunked_segment_rollout(lambda x, carry: ({"past": Cache()}, model(x, None)[1]), batch, 1, 5)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_carry_that_is_a_part_of_a_chunks_tensor_does_not_keep_all_of_it(on_cpu):
    chunk, whole = torch.arange(6000.0, requires_grad=True) * 1, torch.arange(10.0)
    taken = Held({"window": chunk[-10:], "whole": whole, "spread": whole[:1].expand(10)}, on_cpu=on_cpu).taken()
    assert taken["window"].untyped_storage().nbytes() == 40
    assert torch.equal(taken["window"], chunk[-10:])
    assert not taken["window"].requires_grad
    assert taken["whole"].data_ptr() == whole.data_ptr()
    assert torch.equal(taken["spread"], torch.zeros(10))


@pytest.mark.gpu
def test_an_offloaded_carry_waits_on_the_cpu_and_comes_back():
    carry = {"h": torch.ones(1 << 20, device="cuda", requires_grad=True), "at": torch.ones(3)}
    before = torch.cuda.memory_allocated()
    held = Held(carry, on_cpu=True)
    del carry
    assert torch.cuda.memory_allocated() < before
    taken = held.taken()
    assert [taken["h"].device.type, taken["at"].device.type] == ["cuda", "cpu"]
    model, batch = make("ssm").cuda(), make_batch()
    losses = [chunked_segment_rollout(model, batch, 1, 5, cpu_offload=offload)[0].item() for offload in (False, True)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "ssm", "transformer"])
def test_checkpointing_changes_no_gradient(kind, backward):
    model, batch = make(kind), make_batch()
    reference(model, batch, 5).backward()
    expected = gradients(model)
    model.zero_grad()
    loss, _ = chunked_segment_rollout(model, batch, 1, 5, backward=backward, gradient_checkpointing=True)
    expect_gradients(model, loss, expected)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", ["rnn", "ssm", "transformer"])
def test_checkpointing_keeps_less_for_the_backward_pass(kind):
    model, batch = make(kind), make_batch(length=400)

    def kept(**options) -> int:
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = chunked_segment_rollout(model, batch, 1, 100, **options)
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(gradient_checkpointing=True) < 0.6 * kept()


def test_layers_are_themselves_again_after_an_error():
    model, batch = make("transformer"), make_batch()
    own = model.layers[0].forward
    model.layers[0].forward = mine = lambda x, past: own(x, past)
    with pytest.raises(ConfigError, match="loss_fn must return"):
        chunked_segment_rollout(model, batch, 1, 5, gradient_checkpointing=True, loss_fn=lambda logits, y: logits)
    assert model.layers[0].forward is mine
    assert "forward" not in vars(model.layers[1])


IDS = torch.zeros(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": IDS, "labels": IDS}, r"got \['input_ids', 'labels'\]; for a loader of tokens"),
        ((IDS, IDS), "batch must hold 'inputs' and 'targets', got tuple"),
        ({"inputs": IDS.tolist(), "targets": IDS}, r"inputs must be a tensor \[B, S\], got a list"),
        ({"inputs": IDS, "targets": IDS[:, 1:]}, r"got inputs \[2, 6\] and targets \[2, 5\]"),
        ({"inputs": IDS[0], "targets": IDS[0]}, r"got inputs \[6\] and targets \[6\]"),
        ({"inputs": IDS[:, :0], "targets": IDS[:, :0]}, r"both above 0; got inputs \[2, 0\]"),
        (
            {"inputs": IDS, "targets": IDS.double()},
            r"integer targets, got \[2, 5, 11\] and torch.float64; give a loss_fn",
        ),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batch, message):
    with pytest.raises(ConfigError, match=message):
        chunked_segment_rollout(make("rnn"), batch, 1, 5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x, carry: torch.zeros(2, 5, 3), r"must return \(carry, logits\), it returned a Tensor"),
        (lambda x, carry: (1, 2, 3), "it returned a tuple of 3"),
        (lambda x, carry: (torch.zeros(2, 5, 3), None), "in this order, .* its second value is a NoneType"),
        (lambda x, carry: (None, torch.zeros(2, 3, 5)), r"logits \[2, 5, …\] for inputs \[2, 5\]; .* is \[2, 3, 5\]"),
        (lambda x, carry: (None, torch.zeros(2, 5)), r"cross-entropy needs logits \[B, C, V\]"),
    ],
)
def test_models_that_return_something_else_are_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        chunked_segment_rollout(model, {"inputs": IDS, "targets": IDS}, 1, 5)


def test_other_values_that_cannot_work_are_refused():
    model, batch = make("rnn"), make_batch()
    for options in ({"max_segments": 0}, {"max_segments": 1, "chunk_size": 0}):
        with pytest.raises(ConfigError, match="must be an integer >= 1, got 0"):
            chunked_segment_rollout(model, batch, **options)
    for loss_fn in (lambda logits, y: 1.0, lambda logits, y: logits.sum(1)):
        with pytest.raises(ConfigError, match="loss_fn must return one loss per target"):
            chunked_segment_rollout(model, batch, 1, 5, loss_fn=loss_fn)
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing that requires gradients: are all weights frozen"):
        chunked_segment_rollout(model, batch, 1, 5, backward=True)


def test_sizes_that_are_recommended():
    assert [recommend_chunk_size(gb) for gb in (10, 20, 24, 141)] == [1024, 2048, 4096, 4096]
    assert [recommend_dataset_chunk_size(gb) for gb in (16, 32, 64)] == [2500, 4000, 8000]
    for recommend in (recommend_chunk_size, recommend_dataset_chunk_size):
        sizes = [recommend(gb / 4) for gb in range(1, 400)]
        assert sizes == sorted(sizes)
        assert sizes[0] >= 1
        assert recommend(1e-9) == 1
        for wrong in (0, -1, float("nan"), float("inf"), "24", True):
            with pytest.raises(ConfigError, match="must be a number of gigabytes above 0"):
                recommend(wrong)


RANK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from test_rollout import Recurrent, make_batch
from penstock import chunked_segment_rollout

dist.init_process_group("gloo")
torch.manual_seed(3)
model = torch.nn.parallel.DistributedDataParallel(Recurrent().double())
exchanges = []

def count(state, bucket):
    exchanges.append(1)
    future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])

model.register_comm_hook(None, count)
rank = dist.get_rank()
# Ranks of different lengths, and so numbers of chunks; the second ends with a chunk of nothing to predict.
batch = make_batch(length=(23, 12)[rank], seed=rank)
if rank:
    batch["targets"][:, -2:] = -100
chunked_segment_rollout(model, batch, 1, 5, backward=True)
if rank == 0:
    gradients = {name: weight.grad.tolist() for name, weight in model.module.named_parameters()}
    print(json.dumps({"gradients": gradients, "exchanges": len(exchanges)}), flush=True)
dist.barrier()
dist.destroy_process_group()
# Threads of torch's own, which still run now and then, abort an interpreter that ends by itself.
os._exit(0)
"""


@pytest.mark.slow
def test_distributed_ranks_exchange_gradients_once_whatever_their_lengths(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exchanges"] == 1

    model, batches = make("rnn"), [make_batch(length=23, seed=0), make_batch(length=12, seed=1)]
    batches[1]["targets"][:, -2:] = -100
    (sum(reference(model, batch, 5) for batch in batches) / 2).backward()
    for name, weight in model.named_parameters():
        found_gradient = torch.tensor(found["gradients"][name], dtype=torch.float64)
        torch.testing.assert_close(found_gradient, weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ssm", "transformer"])
def test_memory_is_flat_from_8192_to_131072_tokens(kind):
    """Highest resident memory of fresh processes that train a model of the example on one sequence."""
    benchmark = [sys.executable, str(ROOT / "benchmarks" / "rollout_memory.py"), "--models", kind, "--json"]
    sizes = ["--lengths", "8192", "131072", "--chunk-size", "1024", "--dim", "64"]
    done = subprocess.run([*benchmark, *sizes], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert (short["seq_len"], long["seq_len"], long["num_chunks"]) == (8192, 131072, 128)
    assert long["peak_mb"] <= 1.1 * short["peak_mb"], (short, long)
    assert long["grown_mb"] <= 1.1 * short["grown_mb"] + 10, (short, long)
