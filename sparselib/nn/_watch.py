"""What growth by gradient needs to know of the passes through a layer, gathered while they run.

The dense gradient of a sparse layer is a sum over samples of what the layer read times the
gradient of what it wrote. A `Watch` keeps both, by reference, for exactly the backward passes whose
gradients `values.grad` holds.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparselib._types import SavedState, StateDict
from sparselib.compilation import untraced

if TYPE_CHECKING:
    from sparselib.nn.sparse_layer import SparseLayer

Batch = tuple[Tensor, Tensor]
Keeper = Callable[[Tensor, Tensor], None]

# backward passes that may be under way at once: one inside another, as checkpointing does
UNDER_WAY = 2


class Watch:
    """Gathers the inputs and the output gradients of a layer as `values.grad` gathers gradients.

    All uses of the layer in a forward pass and all backward passes since the last `zero_grad`
    count. A backward pass that does not reach `values.grad`, such as one of
    ``torch.autograd.grad``, does not. The layer holds its watches weakly: a watch ends with whoever
    built it, and a copy of the layer alone has none.

    Parameters
    ----------
    layer : SparseLayer, optional
        The layer to watch; a copy of a watch has none of its own.

    Attributes
    ----------
    is_open : bool
        Whether batches are gathered. Closed in steps that no evolution follows, a watch holds no
        memory.
    batches : list of (Tensor, Tensor)
        What was read, and the gradient of what was written, once per use and backward pass.
    gradient : Tensor or None
        The tensor that was `values.grad` after the last backward pass. What clips or unscales in
        place changes it too.
    """

    def __init__(self, layer: "SparseLayer | None" = None) -> None:
        self.is_open = True
        self.batches: list[Batch] = []
        self.gradient: Tensor | None = None
        self._values: Tensor | None = None
        self._version = -1
        self._is_in_graph = False
        self._was_cleared = False
        self._arriving: dict[int, list[Batch]] = {}
        if layer is not None:
            if layer.watches is None:
                layer.watches = Watches()
            layer.watches.add(self)

    def keeper(self, values: Tensor) -> Keeper | None:
        """Return what is to be called in the backward pass, or None if nothing has to be kept."""
        if not (self.is_open and values.is_leaf and values.requires_grad):
            return None
        if values is not self._values:
            self._follow(values)
        return self._keep

    def batches_of(self, values: Tensor) -> list[Batch]:
        """Return what was gathered for these values; nothing if others have taken their place."""
        return (
            self.batches
            if self._values is None or values is self._values
            else []
        )

    def forget(self) -> None:
        """Let go of what was gathered, unless a CUDA graph will write it anew."""
        if not self._is_in_graph:
            self.batches = []
            self.gradient = None

    def state(self) -> StateDict:
        """Return what was gathered and not forgotten; a step that is due needs it later."""
        return {"batches": list(self.batches), "gradient": self.gradient}

    def restore(self, state: SavedState, values: Tensor) -> None:
        """Take over what `state` returned, to where the values are."""
        gradient = state.get("gradient")
        self.gradient = None if gradient is None else gradient.to(values.device)
        self.batches = [
            (inputs.to(values.device), costs.to(values.device))
            for inputs, costs in state.get("batches", [])
        ]

    def __deepcopy__(self, memo: dict[int, object]) -> "Watch":
        twin = Watch()
        memo[id(self)] = twin
        twin.is_open = self.is_open
        twin.batches = [
            (inputs.clone(), costs.clone()) for inputs, costs in self.batches
        ]
        twin.gradient = (
            None if self.gradient is None else self.gradient.detach().clone()
        )
        return twin

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Watch, ()

    def _follow(self, values: Tensor) -> None:
        own = weakref.ref(self)

        def reached(parameter: Tensor) -> None:
            watch = own()
            if watch is not None and watch._values is parameter:
                watch._commit(parameter)

        handle = values.register_post_accumulate_grad_hook(reached)
        weakref.finalize(self, handle.remove)
        self._values = values

    def _keep(self, inputs: Tensor, costs: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task not in self._arriving:
            self._arriving[task] = []
            self._was_cleared = self._is_cleared_in_place()
            for old in list(self._arriving)[:-UNDER_WAY]:
                del self._arriving[old]
        self._arriving[task].append((inputs.detach(), costs.detach()))

    def _commit(self, values: Tensor) -> None:
        arrived = self._arriving.pop(torch._C._current_graph_task_id(), [])
        if values.grad is not self.gradient or self._was_cleared:
            self.batches = []
        self.batches.extend(arrived)
        self._was_cleared = False
        self.gradient = values.grad
        self._version = -1 if values.grad is None else values.grad._version
        self._is_in_graph = (
            values.is_cuda and torch.cuda.is_current_stream_capturing()
        )

    def _is_cleared_in_place(self) -> bool:
        """Whether the gradient was set to zero since the last backward pass, and not to None."""
        gradient = None if self._values is None else self._values.grad
        if (
            gradient is None
            or gradient is not self.gradient
            or gradient._version == self._version
        ):
            return False
        if gradient.is_cuda and torch.cuda.is_current_stream_capturing():
            return True
        return not bool(gradient.any())


class Watches:
    """The watches of a layer, held weakly; a copy holds the copies of those that are copied too.

    Attributes
    ----------
    references : list
        One for each watch that has not ended. Compiled code traces anew when their number changes.
    """

    def __init__(self, watches: Iterable[Watch] = ()) -> None:
        self.references: list[weakref.ref[Watch]] = []
        for watch in watches:
            self.add(watch)

    def add(self, watch: Watch) -> None:
        """Take in one more."""
        self.references.append(weakref.ref(watch, self.references.remove))

    def __iter__(self) -> Iterator[Watch]:
        found = [reference() for reference in self.references]
        return iter([watch for watch in found if watch is not None])

    def __reduce__(self) -> tuple[type, tuple[list[Watch]]]:
        return Watches, (list(self),)


def open_watches(model: nn.Module) -> list[Watch]:
    """Return the watches of a model's layers that gather at present."""
    found = (getattr(module, "watches", None) for module in model.modules())
    return [
        watch
        for watches in found
        if isinstance(watches, Watches)
        for watch in watches
        if watch.is_open
    ]


@contextmanager
def unwatched(watches: Iterable[Watch]) -> Iterator[None]:
    """Close watches for the time of a ``with`` block, in which no evolution looks at them."""
    closed = list(watches)
    for watch in closed:
        watch.is_open = False
    try:
        yield
    finally:
        for watch in closed:
            watch.is_open = True


def keepers(layer: "SparseLayer") -> list[Keeper]:
    """Return what is to be called with input and output gradient, once for each open watch."""
    found = [watch.keeper(layer.values) for watch in layer.watches or ()]
    return [keeper for keeper in found if keeper is not None]


@untraced
def observe(layer: "SparseLayer", inputs: Tensor, outputs: Tensor) -> None:
    """Let the watches of a layer see a pass through it; compiled code calls this as it is."""
    if outputs.requires_grad:
        for keeper in keepers(layer):
            outputs.register_hook(partial(keeper, inputs.detach()))
