"""What a sparse layer is: a pattern, its values, and one way to change both together."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from sparselib import topology
from sparselib._types import SavedState, StateDict
from sparselib.csr import ARRAYS, CSR, LOADED, check_positions, rows_of
from sparselib.nn._options import KeptOptions
from sparselib.nn._watch import Watches, observe
from sparselib.ranking import largest
from sparselib.topology import Region

Layer = TypeVar("Layer", bound="SparseLayer")
# layers that have a sparse twin
Dense = nn.Linear | nn.Conv1d | nn.Conv2d


class SparseLayer(nn.Module, ABC):
    """A layer whose weight tensor exists only at its connections.

    A topology is a sorted vector of flat positions, ``row * columns + column`` of the matrix
    (outputs, everything that one output reads); a kernel tensor is flattened for it. Drop rules,
    grow rules and evolutions know layers by what stands here, and by nothing else. A class that
    derives from this one is final.

    Attributes
    ----------
    csr : CSR
        Where the connections are.
    values : nn.Parameter, shape (nnz,)
        The weights at these positions, in their order.
    bias : nn.Parameter or None
        One number per row.
    extras : tuple of str
        What a state dict holds besides pattern, values and bias.
    watches : Watches or None
        Who gathers what the layer reads and the gradients of what it writes.
    sample_dimensions : int
        Number of dimensions of one sample; those before it are batches.
    """

    extras: tuple[str, ...] = ()
    csr: CSR
    values: nn.Parameter
    bias: nn.Parameter | None
    watches: Watches | None = None
    sample_dimensions: ClassVar[int] = 1
    _is_strict: bool = (
        False  # whether this layer is loaded by itself, and strictly
    )

    def __getattr__(self, name: str) -> Any:
        """Say what a sparse layer has instead of a weight; else as ``nn.Module``."""
        if name == "weight":
            raise AttributeError(
                f"a {type(self).__name__} has no dense `weight`, but `values` at the connections "
                f"of `csr`; where a model reads weights itself, leave that layer dense: "
                f"sl.sparsify(model, ..., skip=[its name])"
            )
        return super().__getattr__(name)

    @property
    @abstractmethod
    def region(self) -> Region:
        """The cells that may hold a connection."""

    @property
    @abstractmethod
    def cells(self) -> int:
        """Number of cells that may hold a connection."""

    @classmethod
    @abstractmethod
    def arguments_of(cls, dense: Dense) -> Mapping[str, object]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If no layer of this class computes what the dense one does.
        """

    @abstractmethod
    def to_dense(self) -> Dense:
        """Return the dense layer with the same outputs."""

    @abstractmethod
    def gradient(
        self,
        inputs: Float[Tensor, "batch ..."],
        costs: Float[Tensor, "batch some ..."],
        rows: Int[Tensor, "some"] | None = None,
    ) -> Float[Tensor, "some columns"]:
        """Dense gradient of some rows, which growth by gradient reads.

        Parameters
        ----------
        inputs : Tensor
            What the layer read; the first dimension is the batch.
        costs : Tensor
            Gradient of the loss with respect to these rows of the output.
        rows : Tensor of integers, shape (some,), optional
            Which rows these are, for layers whose rows read different inputs.
        """

    @classmethod
    def from_dense(
        cls: type[Layer],
        dense: Dense,
        sparsity: float | None = None,
        **options: Unpack[KeptOptions],
    ) -> Layer:
        """Build from a dense layer, keeping its largest weights by magnitude, and its bias.

        Without `sparsity`, exactly the nonzero weights are kept.

        Raises
        ------
        ValueError
            As `arguments_of`, or if the sparsity is outside [0, 1).
        """
        weight = dense.weight.detach()
        flat = weight.flatten()
        columns = weight[0].numel()
        if sparsity is None:
            positions = flat.nonzero().flatten()
        else:
            positions = largest(
                flat.abs(), topology.connections(len(weight), columns, sparsity)
            )
        layer = cls(
            **cls.arguments_of(dense),
            topology=lambda *_: positions,
            init=lambda values, *_: values.copy_(flat[positions]),
            **options,
        )
        if layer.bias is not None and dense.bias is not None:
            layer.bias.data.copy_(dense.bias.detach())
        return layer.train(dense.training)

    def batched(self, tensor: Tensor) -> Tensor:
        """Return inputs or outputs with one dimension for the batch, whatever they came with."""
        return tensor.reshape(-1, *tensor.shape[-self.sample_dimensions :])

    def observed(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the outputs of a pass, seen by the watches; every forward method ends in it."""
        if self.watches is not None and self.watches.references:
            observe(self, inputs, outputs)
        return outputs

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)`` of the matrix."""
        return self.csr.shape

    @property
    def positions(self) -> Int[Tensor, "nnz"]:
        """Sorted flat positions ``row * columns + column`` of the connections."""
        return self.csr.positions

    @property
    def sparsity(self) -> float:
        """Share of absent weights."""
        return self.csr.sparsity

    @torch.no_grad()
    def rewire(self, positions: Tensor, values: Tensor) -> None:
        """Replace connections and values together.

        As many connections as before are replaced in place, so that optimizers, graphs and
        views stay valid. Another number is put in new memory: `values` remains the same
        ``nn.Parameter``, with other data and without a gradient. What else has one number
        per connection, such as an optimizer's state, is then the caller's to bring along.

        Parameters
        ----------
        positions : Tensor of integers, shape (count,)
            Flat positions, ascending.
        values : Tensor, shape (count,)
            The weights at these positions, of the layer's dtype and on its device.

        Raises
        ------
        ValueError
            If values are not one per position, of this dtype and device; positions do not
            ascend strictly within the region; or another number is asked for while a CUDA graph
            is recorded. The layer is then unchanged.
        """
        check_positions(positions, self.shape, self.csr.device)
        self._check_values(positions, values)
        self.region.check(positions)
        self.csr._compare(again=True)
        if positions.numel() == self.csr.nnz:
            self._rewire_trusted(positions, values)
        else:
            self._recount(positions, values)

    def _rewire_trusted(self, positions: Tensor, values: Tensor) -> None:
        """As `rewire`, for as many valid positions as there are: the device is not waited for."""
        with torch.no_grad():
            self.csr._rewire_trusted(positions)
            self.values.copy_(values)
            self._follow()

    def _recount(self, positions: Tensor, values: Tensor) -> None:
        if values.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                f"a CUDA graph is being recorded, in which a layer of {self.csr.nnz} connections "
                f"cannot get {positions.numel()}; rewire before it"
            )
        fresh = values.detach().clone(memory_format=torch.contiguous_format)
        self.csr._replace(positions)
        self.values.grad = None
        self.values.data = fresh
        self._follow()

    def _check_values(self, positions: Tensor, values: object) -> None:
        if not isinstance(values, Tensor) or values.shape != positions.shape:
            found = (
                tuple(values.shape)
                if isinstance(values, Tensor)
                else type(values).__name__
            )
            raise ValueError(
                f"{positions.numel()} connections need as many values, not {found}"
            )
        if (
            values.dtype != self.values.dtype
            or values.device != self.values.device
        ):
            raise ValueError(
                f"the values are {values.dtype} on {values.device}, those of the layer "
                f"{self.values.dtype} on {self.values.device}; convert them"
            )

    def load_state_dict(
        self,
        state_dict: SavedState,
        strict: bool = True,
        assign: bool = False,
    ) -> _IncompatibleKeys:
        """Load as ``nn.Module`` does, and change nothing if anything is refused.

        A layer within a model is not told whether loading is strict. There a key that is missing
        is reported, and the rest of the layer loaded if it fits together, as of a dense layer.
        """
        self._is_strict = strict
        try:
            keys: _IncompatibleKeys = super().load_state_dict(
                state_dict, strict, assign
            )
            return keys
        finally:
            self._is_strict = False

    def _load_from_state_dict(
        self,
        state_dict: StateDict,
        prefix: str,
        local_metadata: dict[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load pattern, values and bias, or nothing of this layer if they do not fit together."""
        rest = (
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, *rest)
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        arrays = {prefix + f"csr.{name}": name for name in ARRAYS}
        extras = {prefix + name: name for name in self.extras}
        missing, unexpected = (
            _unlike(self, state_dict, prefix) if strict else ([], [])
        )
        is_refused = self._is_strict and bool(missing or unexpected)
        try:
            pattern = self.csr._proposed(state_dict, prefix + "csr.")
            entries = {
                name: state_dict[key]
                for key, name in extras.items()
                if key in state_dict
            }
            region = self._proposed_region(entries)
            _check_fit(self, pattern, region)
            numbers = _proposed_numbers(
                self, state_dict, prefix, pattern, assign
            )
        except ValueError as error:
            error_msgs.append(f"{_named(self, prefix)}: {error}")
            is_refused = True
        state_dict.update(dict.fromkeys(arrays, LOADED))
        if is_refused:
            missing_keys += missing
            unexpected_keys += unexpected
            for key in unexpected:  # the pattern would report its own again
                del state_dict[key]
            return
        missing_keys += [
            key for key in missing if key in arrays or key in extras
        ]
        if pattern is not None:
            self.csr._load(*pattern, assign)
        if region is not None:
            self._adopt_region(region)
        if pattern is not None:
            self._follow()
        others = {
            key: entry for key, entry in state_dict.items() if key not in extras
        } | numbers
        hooks = self._load_state_dict_pre_hooks
        self._load_state_dict_pre_hooks = OrderedDict()  # they have run
        try:
            super()._load_from_state_dict(others, prefix, *rest)
        finally:
            self._load_state_dict_pre_hooks = hooks

    def _follow(self) -> None:
        """Bring up to date what a class derives from the pattern, after every change of it."""

    def _proposed_region(self, entries: Mapping[str, object]) -> Region | None:
        """Return the region that a state dict's entries named in `extras` define, checked."""
        return None

    def _adopt_region(self, region: Region) -> None:
        """Take what `_proposed_region` returned, on the device of the pattern."""


def _named(layer: nn.Module, prefix: str) -> str:
    return (
        f"layer {prefix[:-1]!r}" if prefix else f"this {type(layer).__name__}"
    )


def _unlike(
    layer: SparseLayer, state_dict: StateDict, prefix: str
) -> tuple[list[str], list[str]]:
    """Return the keys of this layer that a state dict lacks, and those that the layer lacks."""
    arrays = [f"csr.{name}" for name in ARRAYS]
    passing = layer._non_persistent_buffers_set
    tensors = {**layer._parameters, **layer._buffers}
    own = [
        name
        for name, tensor in tensors.items()
        if tensor is not None and name not in passing
    ]
    own += [*arrays, *layer.extras]
    missing = [prefix + name for name in own if prefix + name not in state_dict]
    unexpected = []
    for key in state_dict:
        name = key[len(prefix) :]
        child, dot, _ = name.partition(".")
        is_others = dot and child != "csr" and child in layer._modules
        if key.startswith(prefix) and name not in own and not is_others:
            unexpected.append(key)
    return missing, unexpected


def _check_fit(
    layer: SparseLayer,
    pattern: tuple[Tensor, Tensor] | None,
    region: Region | None,
) -> None:
    """See that the connections to be lie in the region to be, where one of both is loaded."""
    if not layer.extras or (
        pattern is None and (region is None or layer.values.is_meta)
    ):
        return
    crow_indices, col_indices = pattern or layer.csr.indices()
    region = region or layer.region
    if region.reach.is_meta:
        raise ValueError(
            f"the state dict has no {layer.extras[0]}, and this layer is on meta"
        )
    rows = rows_of(crow_indices, col_indices.numel())
    reach = region.reach.to(col_indices.device)
    region._replace(reach=reach).check(rows * layer.shape[1] + col_indices)


def _proposed_numbers(
    layer: SparseLayer,
    state_dict: StateDict,
    prefix: str,
    pattern: tuple[Tensor, Tensor] | None,
    assign: bool,
) -> dict[str, Tensor]:
    """Return values and bias of a state dict, checked, by their keys."""
    found = {
        name: state_dict[prefix + name]
        for name in ("values", "bias")
        if layer._parameters.get(name) is not None
        and prefix + name in state_dict
    }
    if (
        pattern is not None
        and "values" in layer._parameters
        and "values" not in found
    ):
        raise ValueError("the state dict has a pattern and no values for it")
    for name, entry in found.items():
        _check_numbers(
            name, entry, layer.csr.nnz if name == "values" else layer.shape[0]
        )
        if entry.is_meta and not (assign or layer.values.is_meta):
            raise ValueError(
                f"the {name} of the state dict are on meta, where tensors hold no numbers"
            )
    if assign:
        _check_alike(layer, found, pattern)
    return {
        prefix + name: entry if entry.is_contiguous() else entry.contiguous()
        for name, entry in found.items()
    }


def _check_numbers(name: str, entry: object, count: int) -> None:
    if not isinstance(entry, Tensor):
        raise ValueError(
            f"the {name} must be a tensor, not {type(entry).__name__}"
        )
    if entry.shape != (count,):
        raise ValueError(
            f"the state dict has {entry.numel():,} numbers of shape {tuple(entry.shape)} as "
            f"{name}, this layer has {count:,}; a layer is loaded with as many connections"
        )
    if not entry.is_floating_point() or entry.layout != torch.strided:
        raise ValueError(
            f"the {name} must be real numbers in memory, not {entry.dtype}"
        )


def _check_alike(
    layer: SparseLayer,
    found: dict[str, Tensor],
    pattern: tuple[Tensor, Tensor] | None,
) -> None:
    """See that a layer, some of whose tensors are replaced by others, is of one kind."""
    tensors = {
        name: p for name, p in layer._parameters.items() if p is not None
    } | found
    kinds = {
        name: f"{entry.dtype} on {entry.device}"
        for name, entry in tensors.items()
    }
    devices = {entry.device for entry in tensors.values()}
    device = layer.csr.device if pattern is None else pattern[0].device
    if len(set(kinds.values())) > 1 or devices != {device}:
        raise ValueError(
            f"assign=True would leave the layer with tensors of unlike types or devices: {kinds}, "
            f"and the pattern on {device}; load without assign, or convert the state dict"
        )


def check_spelling(
    layer: type, sizes: tuple[object, ...], sparsity: object, bias: object
) -> None:
    """Refuse a sparsity that is a bool and a bias that is none: each in the other's place."""
    spelled = f"{layer.__name__}({', '.join(map(str, sizes))}"
    if not isinstance(bias, bool):
        raise ValueError(
            f"bias is True or False, not {bias!r}; a sparsity goes by its name, as in "
            f"{spelled}, sparsity=0.9)"
        )
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
        raise ValueError(
            f"sparsity is a number in [0, 1), not {sparsity!r}; a layer without a bias is "
            f"{spelled}, bias=False, sparsity=0.9)"
        )


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the sparse layers of a model by name, in order."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, SparseLayer)
    }
