"""Training on sequences too long for memory: chunk after chunk, with a carry between them.

    inputs [B, S]   ├── chunk 0 ──┼── chunk 1 ──┼─ 2 ─┤
                        model  ──carry──▶ model ──carry──▶ model      no gradient crosses an arrow
    loss             Σ over non-ignored targets of all chunks / how many there are

Law: the loss is the token mean of the whole sequence, however it is cut. So it equals that of one call
with the whole sequence if the model's forward does not depend on where the cuts are, and its gradient is
that of truncated back-propagation through time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from penstock.errors import ConfigError
from penstock.train.carry import Held
from penstock.types import check_int, check_number

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def chunked_segment_rollout(
    model: Callable[[torch.Tensor, Any], tuple[Any, torch.Tensor]],
    batch: Mapping[str, torch.Tensor],
    max_segments: int,
    chunk_size: int = 2048,
    *,
    loss_fn: LossFn | None = None,
    ignore_index: int = -100,
    backward: bool = False,
    gradient_checkpointing: bool = False,
    cpu_offload: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Run a model over long sequences in chunks, and give the mean loss of all their targets.

    Memory is flat in S with `backward=True` and a carry of fixed size, such as a recurrent state or the last keys
    and values of a window. Without it the graphs of all chunks stay until you call `loss.backward()`.

    Args:
        model: called as `model(inputs_chunk, carry)`, returns `(carry, logits)`. carry is None at first, then what
            the model gave, detached: tensors, numbers, tuples, lists, dicts and dataclasses of them.
            logits are [B, C, V] for a chunk of C tokens.
        batch: `inputs` [B, S] and `targets` [B, S], already shifted. Inputs may have more axes, [B, S, …]. The
            batch may lie on the CPU: chunks are moved to the model's device one at a time.
        max_segments: passes over the sequence. Each starts with the carry that the one before ended with, and
            the loss is the mean over all of them.
        chunk_size: tokens per chunk; the last one may be shorter. See `recommend_chunk_size`.
        loss_fn: called with logits [B, C, …] and targets [B, C]; returns the loss of every target, [B, C], or the mean
            over those that are not ignored. None: cross-entropy.
        ignore_index: targets of this value count neither in the loss nor in its mean.
        backward: back-propagate each chunk at once, and free it. The gradients that add up in `.grad` are those
            of the loss returned. Under DistributedDataParallel they are exchanged once, after the last chunk.
        gradient_checkpointing: keep of each layer (the entries of the model's ModuleLists and Sequentials) only what
            goes in, and compute it again in the backward pass; a model without such lists is one layer.
        cpu_offload: keep the carry on the CPU while a chunk is back-propagated, until the next one needs it.

    Returns:
        loss: a scalar; detached with `backward=True`. 0 if all targets are ignored.
        metrics: `ce`, the loss as a float; `used_segments`, the passes; `num_chunks` and `effective_seq_len`, the
            chunks and tokens of a pass.

    Raises:
        ConfigError: an argument, the batch or what the model returns cannot be used; says what was found.

    >>> embed = nn.Embedding(5, 5)
    >>> batch = {"inputs": torch.arange(5)[None], "targets": torch.arange(5)[None]}
    >>> loss, metrics = chunked_segment_rollout(lambda x, carry: (None, embed(x)), batch, 1, chunk_size=2)
    >>> torch.allclose(loss, cross_entropy(embed(torch.arange(5)), torch.arange(5))), metrics["num_chunks"]
    (True, 3)
    """
    check_int("max_segments", max_segments, minimum=1)
    check_int("chunk_size", chunk_size, minimum=1)
    if backward and not torch.is_grad_enabled():
        raise ConfigError("backward=True, but gradients are switched off here (no_grad or inference_mode)")
    inputs, targets = _checked_batch(batch)
    cut = partial(torch.split, split_size_or_sections=chunk_size, dim=1)
    counts = torch.stack([(y != ignore_index).sum() for y in cut(targets)]).tolist()
    scale = 1 / (max(1, sum(counts)) * max_segments)
    loss_of = partial(_summed_loss, loss_fn=loss_fn, ignore_index=ignore_index)
    chunks = list(zip(cut(inputs), cut(targets), counts, strict=True)) * max_segments
    device, held, losses = _device_of(model), Held(None, on_cpu=False), _Losses(len(chunks), keep_graphs=not backward)
    with _checkpointed_layers(model) if gradient_checkpointing else nullcontext(model) as forward:
        for number, (x, y, count) in enumerate(chunks, 1):
            is_last = number == len(chunks)
            # The last chunk takes part in the graph even without targets: there is always something to go back
            # through, and distributed ranks, which exchange gradients then, all do.
            with _quiet(model, backward and not is_last), nullcontext() if count or is_last else torch.no_grad():
                carry, logits = _checked_output(forward(x if device is None else x.to(device), held.taken()), x)
                held = Held(carry, on_cpu=cpu_offload)
                del carry
                part = loss_of(logits, y.to(logits.device), count=count) * scale
                del logits
                if backward and (count or is_last):
                    _back_propagate(part)
            losses.add(part)
    loss = losses.sum()
    num_chunks = len(chunks) // max_segments
    sizes = {"used_segments": max_segments, "num_chunks": num_chunks, "effective_seq_len": inputs.shape[1]}
    return loss, {"ce": loss.item(), **sizes}


def recommend_chunk_size(vram_gb: float) -> int:
    """Recommend tokens per chunk for a GPU's memory: 1,024 from 10 GB on, 2,048 from 20, 4,096 from 24.

    Args:
        vram_gb: in 10⁹ bytes: `torch.cuda.mem_get_info()[1] / 1e9`. Below 10, each halving halves the chunk.

    >>> [recommend_chunk_size(gb) for gb in (5, 10, 16, 20, 24, 80)]
    [512, 1024, 1024, 2048, 4096, 4096]
    """
    size = check_number("vram_gb", vram_gb, above=0, unit="gigabytes")
    if size >= 24:
        return 4096
    if size >= 20:
        return 2048
    return max(1, 1024 >> max(0, math.ceil(math.log2(10 / size))))


def recommend_dataset_chunk_size(ram_gb: float) -> int:
    """Recommend samples to read at a time for a machine's memory: 2,500 from 16 GB on, 4,000 from 32, 8,000 from 64.

    Args:
        ram_gb: in 10⁹ bytes. Below 16 the chunk shrinks in proportion.

    >>> [recommend_dataset_chunk_size(gb) for gb in (8, 16, 32, 48, 64)]
    [1250, 2500, 4000, 4000, 8000]
    """
    size = check_number("ram_gb", ram_gb, above=0, unit="gigabytes")
    if size >= 64:
        return 8000
    return 4000 if size >= 32 else max(1, int(2500 * min(1, size / 16)))


class _Losses:
    """The losses of chunks, each a scalar; those without graphs in one tensor, made at the first.

    Small tensors that stay, one after each chunk's large ones, would cut the C library's heap into pieces, which it
    then cannot use again in full.
    """

    def __init__(self, count: int, *, keep_graphs: bool) -> None:
        self._count, self._keep_graphs = count, keep_graphs
        self._parts: list[torch.Tensor] = []
        self._values: torch.Tensor | None = None
        self._filled = 0

    def add(self, part: torch.Tensor) -> None:
        if self._keep_graphs:
            self._parts.append(part)
            return
        if self._values is None:
            self._values = part.new_zeros(self._count)
        self._values[self._filled] = part.detach()
        self._filled += 1

    def sum(self) -> torch.Tensor:
        values = torch.stack(self._parts) if self._keep_graphs else self._values
        assert values is not None
        return values.sum()


def _checked_batch(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Give inputs [B, S, …] and targets [B, S]."""
    if not isinstance(batch, Mapping) or not {"inputs", "targets"} <= batch.keys():
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ConfigError(
            f"batch must hold 'inputs' and 'targets', got {found}; for a loader of tokens: "
            "{'inputs': batch['input_ids'], 'targets': batch['labels']}"
        )
    inputs, targets = batch["inputs"], batch["targets"]
    for name, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, torch.Tensor):
            raise ConfigError(f"{name} must be a tensor [B, S], got a {type(value).__name__}")
    if targets.dim() != 2 or inputs.shape[:2] != targets.shape or not targets.numel():
        raise ConfigError(
            f"inputs must be [B, S] and targets of the same B and S, both above 0; got inputs {list(inputs.shape)} and "
            f"targets {list(targets.shape)}"
        )
    return inputs, targets


def _checked_output(output: Any, inputs: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Give the carry and the logits of a chunk that a model returned."""
    batch, size = inputs.shape[:2]
    if not isinstance(output, tuple) or len(output) != 2:
        found = f"a tuple of {len(output)}" if isinstance(output, tuple) else f"a {type(output).__name__}"
        raise ConfigError(f"model(inputs, carry) must return (carry, logits), it returned {found}")
    carry, logits = output
    if not isinstance(logits, torch.Tensor) or logits.dim() < 2 or logits.shape[:2] != inputs.shape[:2]:
        second = list(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(
            f"model(inputs, carry) must return (carry, logits) in this order, logits [{batch}, {size}, …] for inputs "
            f"{list(inputs.shape)}; its second value is {second}"
        )
    return carry, logits


def _summed_loss(
    logits: torch.Tensor, targets: torch.Tensor, *, count: int, loss_fn: LossFn | None, ignore_index: int
) -> torch.Tensor:
    """Add up the losses of a chunk's `count` targets that are not ignored."""
    if not count:
        # Zero, whatever the logits: a mean over no target would be NaN, and so would zero times a masked logit, -inf.
        return logits.masked_fill(torch.tensor(True, device=logits.device), 0).sum()
    if loss_fn is None:
        return _cross_entropy(logits, targets, ignore_index)
    loss = loss_fn(logits, targets)
    if isinstance(loss, torch.Tensor) and loss.shape == targets.shape:
        return loss.masked_fill(targets == ignore_index, 0).sum()
    if isinstance(loss, torch.Tensor) and loss.dim() == 0:
        return loss * count
    found = list(loss.shape) if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
    raise ConfigError(
        f"loss_fn must return one loss per target, {list(targets.shape)}, or their mean, a scalar; it returned {found}"
    )


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    if logits.dim() != 3 or targets.is_floating_point():
        raise ConfigError(
            f"cross-entropy needs logits [B, C, V] and integer targets, got {list(logits.shape)} and {targets.dtype}; "
            "give a loss_fn for others"
        )
    # A sum over thousands of tokens has too many digits for 16 bits.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=ignore_index, reduction="sum")


def _back_propagate(part: torch.Tensor) -> None:
    if not part.requires_grad:
        raise ConfigError(
            "backward=True, but the loss depends on nothing that requires gradients: are all weights frozen?"
        )
    torch.autograd.backward(part)


def _device_of(model: Any) -> torch.device | None:
    """Give the device that all of a model's weights are on; None if there is no such one."""
    devices = {weight.device for weight in model.parameters()} if isinstance(model, nn.Module) else set()
    return devices.pop() if len(devices) == 1 else None


def _quiet(model: Any, is_on: bool) -> AbstractContextManager[None]:
    """Keep a distributed model from exchanging gradients: between chunks they only add up."""
    return model.no_sync() if is_on and isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def _checkpointed_layers(model: Any) -> Iterator[Callable[..., Any]]:
    """Have the layers of a model checkpoint themselves; gives what to call in place of the model."""
    layers = list(_layers_of(model)) if isinstance(model, nn.Module) else []
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield model if layers else partial(checkpoint, model, use_reentrant=False)
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Find the outermost modules that stand in a list of modules."""
    for child in module.children():
        if isinstance(module, _CONTAINERS) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _layers_of(child)
