"""What may be passed on to an `Evolution` by whoever builds one, by name."""

from typing import TypedDict

from sparselib._types import Hook
from sparselib.evolution._ranks import Group


class EvolutionOptions(TypedDict, total=False):
    """What every evolution takes, whoever lays out its topologies."""

    regrow: bool
    repair: bool
    process_group: Group
    after: Hook | None


class SeededOptions(EvolutionOptions, total=False):
    """The same, and the seed."""

    seed: int


class RuleOptions(EvolutionOptions, total=False):
    """The same, for rules that can stay on the device."""

    seed: int
    device_resident: bool


class SETOptions(EvolutionOptions, total=False):
    """The same, and which SET it is."""

    seed: int
    definition: str
