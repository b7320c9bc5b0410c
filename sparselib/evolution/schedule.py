"""When an evolution happens, and how large its share is then."""

import math
from typing import final

from sparselib._types import SavedState, StateDict
from sparselib.evolution.engine import Evolution, Replaced


@final
class CosineSchedule:
    r"""Evolves every so many training steps, by a share that falls to nothing (Evci, 2020).

    At training step t, a multiple of `every` below `stop`, the evolution replaces the share

    .. math:: f(t) = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_{end}}\right)

    of the connections, where :math:`\alpha` is the share that the evolution has when the schedule
    is built and :math:`T_{end}` is `stop`. RigL's authors replace .3 every 100 steps and stop at
    three quarters of the training.

    Parameters
    ----------
    evolution : Evolution
        Any pair of rules.
    stop : int
        Training step from which on the topology stays as it is.
    every : int
        Training steps from one evolution to the next.

    Attributes
    ----------
    steps : int
        Training steps so far.

    Raises
    ------
    ValueError
        If a number is not positive.

    Examples
    --------
    >>> evolution = sl.RigL(model, optimizer, 0.3)
    >>> schedule = sl.evolution.CosineSchedule(evolution, stop=750)
    >>> sl.fit(model, data, optimizer, epochs, after_step=schedule.step)
    """

    def __init__(
        self, evolution: Evolution, stop: int, every: int = 100
    ) -> None:
        if stop < 1 or every < 1:
            raise ValueError(
                f"a schedule has positive numbers of steps, not stop={stop} and every={every}"
            )
        self.evolution = evolution
        self.stop = stop
        self.every = every
        self.first = evolution.fraction
        self.steps = 0

    def fraction(self, step: int) -> float:
        """Share of the connections that are replaced after so many training steps."""
        turn = math.cos(math.pi * min(step / self.stop, 1.0))
        return self.first / 2 * (1 + turn)

    def step(self) -> Replaced:
        """Count a training step; return how many connections each layer replaced, if it was due."""
        self.steps += 1
        if self.steps % self.every or self.steps >= self.stop:
            return Replaced({})
        self.evolution.fraction = self.fraction(self.steps)
        return self.evolution.step()

    def state_dict(self) -> StateDict:
        """Return what the next step depends on besides model and optimizer."""
        return {
            "steps": self.steps,
            "schedule": self._schedule(),
            "evolution": self.evolution.state_dict(),
        }

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            If it belongs to another schedule, and as `Evolution`; nothing is changed then.
        """
        schedule = state_dict.get("schedule")
        if schedule != self._schedule():
            raise ValueError(
                f"the state belongs to a schedule of {schedule}, this one has {self._schedule()}"
            )
        steps = state_dict.get("steps")
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(
                f"the state of a schedule has a number of steps, not {steps!r}"
            )
        self.evolution.load_state_dict(state_dict["evolution"])
        self.steps = steps

    def _schedule(self) -> dict[str, int | float]:
        return {"stop": self.stop, "every": self.every, "first": self.first}
