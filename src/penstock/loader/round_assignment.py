"""Batches by plan, in rounds: where an iteration ends, and how many have been completed.

Below is the plan as ever, walked through cycles without end, so that what workers prepare does not stop at a
round's end or a cycle's. A round is a place to begin at, a length, and how much of it is done; all else follows from
the cursor, and nothing is counted per batch.

    ├── round k: begin … ■ ■ ■ done | left … ├── round k + 1 …
                 └─ state: epoch, samples, round, batch, round_batches
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from penstock.errors import ConfigError, StateMismatch
from penstock.loader.assignment import Planned
from penstock.loader.engine import Delivery, steps_at_once
from penstock.loader.hints import Walk
from penstock.loader.round_policy import History, RoundPolicy
from penstock.loader.state import read_counts, read_state, write_state
from penstock.loader.worker import ShareAt
from penstock.loader.world import WorldOnce
from penstock.plan.order import Order
from penstock.plan.plan import Cursor, Plan, Remainder
from penstock.plan.rounds import Rounds, WithinRounds
from penstock.types import check_int

REMAINDERS: dict[tuple[str, bool], Remainder] = {
    ("carry", False): "carry",
    ("carry", True): "carry",
    ("short", False): "short",
    ("short", True): "drop",
    ("pad", False): "pad",
    ("pad", True): "pad",
    ("drop", False): "drop",
    ("drop", True): "drop",
}
"""What becomes of a cycle's last, incomplete batch, by boundary and `drop_last`: some boundaries leave none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A place in a round. Replaced as a whole, so that who asks from another thread never sees half of a change."""

    number: int = 0
    done: int = 0
    """Batches of the round that come before."""
    cursor: Cursor = field(default_factory=Cursor)
    wanted: int | None = None
    """Batches that the round is to have; None: the policy has not been asked yet."""
    length: int | None = None
    """Batches that it has, where its cycle may end before; None: not worked out yet."""


class RoundPlanned(Planned):
    """Batches by plan, round by round.

    Args:
        dataset: for its name and fingerprint.
        order: which sample stands where.
        is_within: the order is as stored, to be shuffled inside each round.
        round_batches: global batches in a round, or a policy that says so before each.
        boundary: what happens where a cycle ends within a round: "carry", "short", "pad" or "drop".
        drop_last: leave out a cycle's incomplete batch, where the boundary leaves one.
        seed: key of the order, for the state.
        batch_size: samples per step of this rank, or None with
        global_batch_size: samples per step of all ranks.
        world: this process's place.
    """

    def __init__(
        self,
        dataset: Any,
        order: Order,
        *,
        is_within: bool,
        round_batches: int | RoundPolicy,
        boundary: Any,
        drop_last: bool,
        seed: int,
        batch_size: int | None,
        global_batch_size: int | None,
        world: WorldOnce,
    ) -> None:
        super().__init__(
            dataset,
            order,
            seed=seed,
            remainder=REMAINDERS[boundary, drop_last],
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            world=world,
        )
        self._boundary = boundary
        self._fixed = None if callable(round_batches) else round_batches
        self._history = History(round_batches if callable(round_batches) else None)
        self._is_within = is_within
        self._mark = Mark(wanted=self._fixed)
        """Where batches are counted from: the round's start, or where its state was loaded."""
        self._known_rounds: Rounds | None = None
        self._going: Iterator[Delivery] | None = None
        """Makes what comes after the cursor: kept from one round to the next, so that nothing begins anew."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy has an engine of its own.
        return {**self.__dict__, "_going": None}

    @property
    def description(self) -> str:
        """Say what is read in which order, and where in which round it stands."""
        mark, shuffled = self._stands(), ", shuffled within rounds" if self._is_within else ""
        return f"{super().description}{shuffled}; batch {mark.done:,} of round {mark.number:,}"

    @property
    def number(self) -> int:
        """The round that the next batch belongs to: as many are complete."""
        return self._stands().number

    @property
    def batch(self) -> int:
        """Batches of that round that have been handed out."""
        return self._stands().done

    @property
    def total(self) -> int:
        """Rounds in a cycle."""
        return replace(self._rounds, num_batches=self._fixed or self.num_batches()).total

    def num_batches(self) -> int:
        """Count the batches of the round that the next batch belongs to; asks the policy if it has not been asked."""
        mark = self._stands()
        if self._boundary == "carry" and mark.wanted is not None:
            # Nothing cuts it short, so it may be asked before the process group is there.
            return mark.wanted
        return mark.length or self._begun()[1]

    def walk(self) -> Walk:
        """Walk the plan as this rank, through rounds and cycles without end."""
        # An engine is being opened: what another one made is of no use.
        self._going = None
        rounds, world = self._rounds, self._world.get()
        steps = steps_at_once(rounds.plan, world)
        return lambda cursor: rounds.walk(cursor, world, steps)

    def share_at(self) -> ShareAt:
        """Tell a worker process this rank's ids."""
        return partial(self._rounds.share, world=self._world.get())

    def run(self, make: Callable[[Cursor], Iterator[Delivery]]) -> Iterator[Delivery]:
        """Yield the rest of the round."""
        mark, length = self._begun()
        if self._going is None:
            self._going = make(mark.cursor)
        yield from islice(self._going, length - mark.done)

    def let_go(self) -> None:
        """Let go of what was to come."""
        self._going = None

    @property
    def awaits_report(self) -> bool:
        """Tell whether a round is complete, the next one has not begun, and the policy has heard nothing of it."""
        mark = self._stands()
        return mark.done == 0 and self._history_at(mark).awaits_report

    def report(self, metrics: dict[str, Any]) -> None:
        """Tell the policy what became of the last completed round."""
        self._catch_up()
        self._history = self._history.reported(metrics)

    def set_round(self, number: int) -> bool:
        """Go to the start of a round; tells whether that was a move.

        Raises:
            ConfigError: a policy decides the lengths, so nobody knows where it begins.
        """
        check_int("round", number, minimum=0)
        if self._fixed is None:
            raise ConfigError(
                "set_round() needs rounds of one length: where round_batches= is a policy, no round's place is known "
                "before its turn. Resume with load_state_dict(), or give round_batches= a number"
            )
        now = self._stands()
        mark = Mark(number=number, cursor=self._rounds.begin(number), wanted=self._fixed)
        is_move = now.done > 0 or now.cursor != mark.cursor
        self._stand(mark)
        if is_move:
            self._going = None
        return is_move

    def set_epoch(self, epoch: int) -> bool:
        """Accept the cycle that the cursor is in.

        Raises:
            ConfigError: it is another one.
        """
        if epoch == self._cursor.epoch:
            return False
        raise ConfigError(
            f"set_epoch({epoch}): with rounds, cycles follow each other by themselves, and this is cycle "
            f"{self._cursor.epoch}. Leave it out; set_round() goes to a round"
        )

    def state_dict(self) -> dict[str, Any]:
        """Write the cursor, and where in which round it stands: after the last batch handed out."""
        mark = self._stands()
        if self._is_within:
            self._rounds  # noqa: B018 - names the order
        repeats = max(0, mark.cursor.samples - self._order.num_samples)
        place = Cursor(epoch=mark.cursor.epoch, samples=mark.cursor.samples - repeats)
        state = write_state(place, self._order, self._seed, getattr(self._dataset, "fingerprint", None))
        state |= {"round": mark.number, "batch": mark.done, "round_batches": mark.wanted}
        if repeats:
            state["repeats"] = repeats
        if self._fixed is None:
            state["history"] = self._history_at(mark).state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where a state was saved, with rounds or without.

        Without, a round begins there. A round under way keeps its number, its length and its batches left.

        Raises:
            StateMismatch: it belongs to another stream, or samples are shuffled inside rounds of another size.
        """
        if self._is_within:
            self._check_within(state)
        cursor = read_state(state, self._order, self._seed, getattr(self._dataset, "fingerprint", None))
        number, done, length, repeats = read_counts(state)
        if self._boundary == "pad" and "round" in state:
            # Of states with rounds only those of padded ones stand at their dataset's end or beyond, amid a cycle.
            cursor = Cursor(epoch=cursor.epoch, samples=cursor.samples + repeats)
        else:
            epochs, samples = divmod(cursor.samples, self._order.num_samples)
            cursor = Cursor(epoch=cursor.epoch + epochs, samples=samples)
        if self._fixed is None:
            self._history = self._history.loaded(state.get("history"))
        elif not done:
            length = self._fixed
        self._stand(Mark(number=number, done=done, cursor=cursor, wanted=length))
        self._going = None

    def explain(self) -> list[str]:
        """Describe the plan, this rank's part of it, and its rounds."""
        mark = self._stands()
        size = "as the policy says" if self._fixed is None else f"{self._fixed:,} batches"
        where = f"next: batch {mark.done:,} of round {mark.number:,}, cycle {mark.cursor.epoch:,}"
        return [*super().explain(), f"rounds of {size}, boundary {self._boundary}; {where}"]

    @property
    def _cursor(self) -> Cursor:
        """Where the stream stands: after the last batch handed out, in the cycle that the next one belongs to."""
        return self._stands().cursor

    @property
    def _plan(self) -> Plan:
        if self._known_plan is None and self._is_within:
            assert self._fixed is not None
            self._order = WithinRounds(
                self._order.num_samples,
                self._fixed * self._global_batch(),
                seed=self._seed,
                across=self._boundary == "carry",
            )
        return super()._plan

    @property
    def _rounds(self) -> Rounds:
        if self._known_rounds is None:
            # A policy's rounds are cut where it says; the stream is the same.
            self._known_rounds = Rounds(plan=self._plan, num_batches=self._fixed or 1, boundary=self._boundary)
        return self._known_rounds

    def _stands(self) -> Mark:
        """Give the place after the last batch handed out: in the next round, if that batch completed one."""
        # First the batch, then the mark: when the mark moves, it is set before the batch is cleared.
        at, mark = self.at, self._mark
        if at is None:
            return mark
        cursor = at[0].after(at[1])
        done = mark.done + self._rounds.batches_between(mark.cursor, cursor)
        cursor = self._rounds.settle(cursor)
        if done == mark.length:
            return Mark(number=mark.number + 1, cursor=cursor, wanted=self._fixed)
        return replace(mark, done=done, cursor=cursor)

    def _catch_up(self) -> None:
        """Count from the last batch handed out on."""
        mark = self._stands()
        self._history = self._history_at(mark)
        self._stand(mark)

    def _begun(self) -> tuple[Mark, int]:
        """Count from the last batch handed out on, and give the place and the length of its round."""
        self._catch_up()
        if self._mark.length is None:
            self._mark = self._worked_out(self._mark)
        mark = self._mark
        assert mark.length is not None
        return mark, mark.length

    def _stand(self, mark: Mark) -> None:
        """Count from a mark on."""
        self.last = self.at or self.last
        self._mark = mark
        self.at = None

    def _history_at(self, mark: Mark) -> History:
        """Give the history with the round that is complete by then."""
        if mark.number == self._mark.number or self._mark.length is None:
            return self._history
        return self._history.completed(self._mark.number, self._mark.length)

    def _worked_out(self, mark: Mark) -> Mark:
        """Give the mark with the length of its round."""
        start = self._rounds.settle(mark.cursor)
        if mark.done and start != mark.cursor and self._boundary != "carry":
            # Cut anew to larger batches, a round under way may find its cycle over before its own end.
            mark = Mark(number=mark.number + 1, wanted=self._fixed)
        wanted = mark.wanted or self._history.ask()
        length = mark.done + self._rounds.length(start, wanted - mark.done)
        return replace(mark, cursor=start, wanted=wanted, length=length)

    def _check_within(self, state: Any) -> None:
        """Refuse a state of other rounds than those that samples are shuffled in."""
        here, size = self._rounds, {"order", "round_batches"}
        if not isinstance(state, dict) or not size <= state.keys() or not str(state["order"]).startswith("within"):
            return
        if state["order"] != self._order.name or state["round_batches"] != self._fixed:
            raise StateMismatch(
                f"the state has rounds of {state['round_batches']} batches and order {state['order']!r}, here they are "
                f"of {self._fixed} batches, {here.num_samples:,} samples over all ranks, and the order is "
                f"{self._order.name!r}: with shuffle='within' samples are shuffled inside rounds, so rounds stay what "
                "they were. Give the same round_batches, and on another number of ranks the same global_batch_size"
            )
