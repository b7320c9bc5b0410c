"""The pattern of a sparse matrix in compressed sparse row form, as in Ertl, Section 1.1.1."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor, nn

from sparselib._types import StateDict
from sparselib.compilation import is_exported_to_onnx, untraced
from sparselib.guarded import (
    Fingerprint,
    ReadOnly,
    plain,
    refuse_assignment,
    view,
)

LARGEST_INDEX = 2**31 - 1
# positions whose fingerprint stays in the cache of a core
MIXED_AT_ONCE = 2**15
ARRAYS = ("crow_indices", "col_indices")


class Transposed(NamedTuple):
    """CSR of the transposed pattern; `permutation` takes values from row to column order."""

    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor


UNSEEN = -1  # no version of a tensor
# stands in a state dict for an array that the layer around a pattern has loaded already
LOADED = object()


def check(
    crow_indices: Tensor, col_indices: Tensor, shape: tuple[int, int]
) -> None:
    """Raise ValueError with a sentence that names the fault, unless the arrays are a valid CSR.

    Valid: one-dimensional integers, row pointers from 0 to nnz that never fall, column indices in
    range, strictly ascending within each row.
    """
    _check_shape(shape)
    rows, columns = shape
    _check_array("crow_indices", crow_indices)
    _check_array("col_indices", col_indices)
    nnz = col_indices.numel()
    if crow_indices.device != col_indices.device:
        raise ValueError(
            f"crow_indices is on {crow_indices.device} but col_indices is on {col_indices.device}"
        )
    if nnz > LARGEST_INDEX or max(shape) > LARGEST_INDEX:
        raise ValueError(
            f"int32 indices cannot hold a {rows} x {columns} matrix of {nnz} entries"
        )
    if crow_indices.numel() != rows + 1:
        raise ValueError(
            f"crow_indices has {crow_indices.numel()} entries; {rows} rows need {rows + 1}"
        )
    first = int(crow_indices[0])
    last = int(crow_indices[-1])
    if first != 0 or last != nnz:
        raise ValueError(
            f"crow_indices runs from {first} to {last}; it must run from 0 to {nnz}"
        )
    falls = (crow_indices.diff() < 0).nonzero()
    if falls.numel():
        row = int(falls[0])
        raise ValueError(
            f"crow_indices falls from {int(crow_indices[row])} to {int(crow_indices[row + 1])} "
            f"at row {row}"
        )
    outside = ((col_indices < 0) | (col_indices >= columns)).nonzero()
    if outside.numel():
        entry = int(outside[0])
        raise ValueError(
            f"col_indices[{entry}] is {int(col_indices[entry])}; columns run 0..{columns - 1}"
        )
    flat = _flat(crow_indices, col_indices, columns)
    unsorted = (flat.diff() <= 0).nonzero()
    if unsorted.numel():
        entry = int(unsorted[0]) + 1
        before = int(col_indices[entry - 1])
        here = int(col_indices[entry])
        fault = "repeats" if before == here else "is out of order after"
        raise ValueError(
            f"row {int(flat[entry]) // columns}: column {here} {fault} column {before}; columns "
            f"must ascend within a row"
        )


def _check_shape(shape: tuple[int, int]) -> None:
    if len(shape) != 2 or not all(
        isinstance(size, int) and size >= 0 for size in shape
    ):
        raise ValueError(
            f"the shape of a matrix is (rows, columns), whole numbers, not {shape}"
        )


def _check_array(name: str, array: object) -> None:
    if not isinstance(array, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(array).__name__}")
    if array.ndim != 1 or array.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} must be a 1-D int32 or int64 tensor, not {array.ndim}-D of {array.dtype}"
        )
    if array.layout != torch.strided or array.is_meta:
        raise ValueError(
            f"{name} must hold its numbers one after the other, in memory"
        )


def rows_of(crow_indices: Tensor, nnz: int) -> Tensor:
    """Return the row of each nonzero."""
    if is_exported_to_onnx():  # which does not know repeat_interleave
        begins = crow_indices.new_zeros(nnz + 1, dtype=torch.int64)
        ones = torch.ones_like(crow_indices[1:-1], dtype=torch.int64)
        places = (crow_indices[1:-1].to(torch.int64),)
        return begins.index_put(places, ones, accumulate=True).cumsum(0)[:-1]
    counts = crow_indices.diff().to(torch.int64)
    rows = torch.arange(counts.numel(), device=crow_indices.device)
    return torch.repeat_interleave(rows, counts, output_size=nnz)


def _flat(crow_indices: Tensor, col_indices: Tensor, columns: int) -> Tensor:
    return rows_of(crow_indices, col_indices.numel()) * columns + col_indices


def compress(
    positions: Int[Tensor, "nnz"], shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return int32 ``(crow_indices, col_indices)`` of sorted flat positions row * columns + col."""
    rows, columns = shape
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow_indices = torch.searchsorted(
        positions.contiguous(), starts, out_int32=True
    )
    return crow_indices, (positions % max(columns, 1)).to(torch.int32)


def transpose(
    crow_indices: Tensor, col_indices: Tensor, columns: int
) -> Transposed:
    """Build the transposed pattern: rows ascend within each column.

    On the processor SciPy counts the entries of each column and distributes them; elsewhere one
    stable sort does it.
    """
    if type(col_indices) is Tensor and col_indices.device.type == "cpu":
        return _distributed(crow_indices, col_indices, columns)
    ascending, permutation = torch.sort(col_indices, stable=True)
    rows = rows_of(crow_indices, col_indices.numel())
    starts = torch.arange(
        columns + 1, dtype=ascending.dtype, device=ascending.device
    )
    pointers = torch.searchsorted(ascending, starts, out_int32=True)
    return Transposed(
        pointers, rows[permutation].to(torch.int32), permutation.to(torch.int32)
    )


def _distributed(
    crow_indices: Tensor, col_indices: Tensor, columns: int
) -> Transposed:
    entries = np.arange(col_indices.numel(), dtype=np.int32)
    arrays = (entries, col_indices.numpy(), crow_indices.numpy())
    shape = (crow_indices.numel() - 1, columns)
    try:
        turned = csr_array(arrays, shape=shape).tocsc()
    except MemoryError as error:
        raise RuntimeError(
            f"a pattern of {shape[0]} x {shape[1]} cannot be transposed: {error}"
        ) from error
    pointers, rows, permutation = (
        torch.from_numpy(array).to(torch.int32)
        for array in (turned.indptr, turned.indices, turned.data)
    )
    return Transposed(pointers, rows, permutation)


class CSR(nn.Module):
    """Where the nonzeros of a ``rows x columns`` matrix are; their values live elsewhere.

    A topology is a sorted vector of flat positions ``row * columns + column``. It is stored as
    int32 arrays under the names of ``torch.sparse``, part of ``state_dict``, so a saved model
    always reloads onto its own connections. The transposed pattern, which the input gradient
    needs, is a cache: derived, never saved, and rebuilt only when the topology changes.

    The arrays are no buffers: nothing that walks over the buffers of a model, such as the broadcast
    of ``DistributedDataParallel``, can change a pattern without its values. `crow_indices`,
    `col_indices` and `transposed` can be read and not be written; `rewire` and
    ``load_state_dict`` check the whole before they change anything. Products read the
    arrays by `indices` and `transposed_indices`, which guarantee a valid pattern, so that native
    code needs no check of its own. The only buffer is the fingerprint `topology_id`, which
    refuses to be averaged with that of another topology.

    Parameters
    ----------
    crow_indices : Tensor, int32 or int64, shape (rows + 1,)
        Row pointers.
    col_indices : Tensor, int32 or int64, shape (nnz,)
        Column indices, strictly ascending within a row.
    shape : (int, int)
        ``(rows, columns)``.
    cache_transpose : bool
        Keep the transposed pattern (8 bytes per nonzero). Without it each backward pass sorts
        again.

    Attributes
    ----------
    nnz : int
        Number of nonzeros.
    version : int
        Changes whenever the topology does.
    topology_id : Tensor, int64
        A number of 52 bits that depends on the positions alone.

    Raises
    ------
    ValueError
        If the arrays are not a valid CSR pattern; the sentence names the fault.
    """

    topology_id: Tensor
    _crow: Tensor
    _col: Tensor
    _turned: Transposed | None
    _own: Tensor  # the fingerprint of the pattern as it is
    _shared: Tensor  # the same memory as the buffer, which others write

    def __init__(
        self,
        crow_indices: Int[Tensor, "rows_plus_1"],
        col_indices: Int[Tensor, "nnz"],
        shape: tuple[int, int],
        cache_transpose: bool = True,
    ) -> None:
        super().__init__()
        check(crow_indices, col_indices, shape)
        self.shape = (shape[0], shape[1])
        self.cache_transpose = cache_transpose
        self.version = 0
        self.register_buffer("topology_id", None, persistent=False)
        self._place(crow_indices, col_indices)

    @classmethod
    def from_positions(
        cls,
        positions: Tensor,
        shape: tuple[int, int],
        cache_transpose: bool = True,
    ) -> "CSR":
        """Build from flat positions, integers that must ascend strictly."""
        _check_shape(shape)
        check_positions(positions, shape)
        arrays = compress(positions.to(torch.int64), shape)
        return cls(*arrays, shape, cache_transpose)

    @classmethod
    def from_dense(cls, matrix: Tensor, cache_transpose: bool = True) -> "CSR":
        """Build the pattern of the nonzero entries of a 2-D tensor."""
        positions = matrix.detach().flatten().nonzero().flatten()
        rows, columns = matrix.shape
        return cls.from_positions(positions, (rows, columns), cache_transpose)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Return ``(crow_indices, col_indices)`` for native code: valid, int32, contiguous.

        What is returned is the pattern itself and must not be written.

        Raises
        ------
        ValueError
            If something wrote to the arrays behind `rewire` and they are no pattern any more; if
            they were emptied (``to_empty``) and not loaded since; or if `topology_id` was
            overwritten by that of another topology, so that the values are not those of
            these connections.
        """
        if torch.compiler.is_compiling():
            if not self._is_sound:
                self._look_again()
        elif self._seen != (
            self._crow._version,
            self._col._version,
            self._shared._version,
        ):
            self._look_again()
        return self._crow, self._col

    def transposed_indices(self) -> Transposed:
        """Return the transposed pattern for native code: from the cache, or built now.

        Raises
        ------
        ValueError
            As `indices`.
        """
        crow_indices, col_indices = self.indices()
        if self._turned is not None:
            return self._turned
        return transpose(crow_indices, col_indices, self.shape[1])

    @property
    def crow_indices(self) -> Int[Tensor, "rows_plus_1"]:
        """Row pointers, int32, read-only."""
        return view(self._crow, ReadOnly)

    @crow_indices.setter
    def crow_indices(self, array: object) -> None:
        refuse_assignment("crow_indices", self._crow, array)

    @property
    def col_indices(self) -> Int[Tensor, "nnz"]:
        """Column of each nonzero, int32, read-only."""
        return view(self._col, ReadOnly)

    @col_indices.setter
    def col_indices(self, array: object) -> None:
        refuse_assignment("col_indices", self._col, array)

    @property
    def transposed(self) -> Transposed:
        """The transposed pattern, int32, read-only."""
        return Transposed(
            *(view(array, ReadOnly) for array in self.transposed_indices())
        )

    @property
    def cells(self) -> int:
        """Number of entries of the dense matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of the entries that are not stored, in [0, 1]."""
        return 1.0 - self.nnz / self.cells if self.cells else 0.0

    @property
    def device(self) -> torch.device:
        """Where the pattern is."""
        return self._col.device

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the pattern, and of the cached transposed pattern."""
        cache = (
            0
            if self._turned is None
            else sum(array.nbytes for array in self._turned)
        )
        return self._crow.nbytes + self._col.nbytes, cache

    @property
    def rows(self) -> Int[Tensor, "nnz"]:
        """Row of each nonzero."""
        return rows_of(self.indices()[0], self.nnz)

    @property
    def positions(self) -> Int[Tensor, "nnz"]:
        """Sorted int64 positions ``row * columns + column``."""
        return _flat(*self.indices(), self.shape[1])

    def fan_in(self) -> Int[Tensor, "rows"]:
        """Count the connections of each row (neuron)."""
        return self.indices()[0].diff().to(torch.int64)

    def fan_out(self) -> Int[Tensor, "columns"]:
        """Count the connections of each column (input)."""
        return torch.bincount(self.indices()[1], minlength=self.shape[1])

    def rewire(self, positions: Tensor) -> None:
        """Replace the topology in place, on its device, by as many other positions.

        Parameters
        ----------
        positions : Tensor of integers, shape (nnz,)
            Flat positions, ascending.

        Raises
        ------
        ValueError
            If the number differs, or positions are no integers on this device that ascend strictly
            within range. The topology is then unchanged.
        """
        check_positions(positions, self.shape, self.device)
        if positions.numel() != self.nnz:
            raise ValueError(
                f"rewire keeps the number of connections: {self.nnz} are here, "
                f"{positions.numel()} were given"
            )
        self._compare(again=True)
        self._rewire_trusted(positions)

    def _rewire_trusted(self, positions: Tensor) -> None:
        """As `rewire`, for positions that are known to be valid: the device is not waited for."""
        positions = positions.to(torch.int64)
        self._adopt(*compress(positions, self.shape), positions)

    def _replace(self, positions: Tensor) -> None:
        """Put as many connections as there are valid positions, in new memory."""
        self._place(*compress(positions.to(torch.int64), self.shape))

    def to_dense(
        self, values: Float[Tensor, "nnz"]
    ) -> Float[Tensor, "rows columns"]:
        """Scatter `values` into a dense matrix; differentiable in `values`."""
        dense = values.new_zeros(self.cells)
        return dense.index_put((self.positions,), values).view(self.shape)

    def mask(self) -> Bool[Tensor, "rows columns"]:
        """Return the dense picture of the topology."""
        dense = torch.zeros(self.cells, dtype=torch.bool, device=self.device)
        dense[self.positions] = True
        return dense.view(self.shape)

    def extra_repr(self) -> str:
        """Shape, count and sparsity."""
        return f"{self.shape[0]} x {self.shape[1]}, nnz={self.nnz}, sparsity={self.sparsity:.4f}"

    def __setstate__(self, state: StateDict) -> None:
        super().__setstate__(state)
        if not self._crow.is_meta:
            check(self._crow, self._col, self.shape)
        self._crow = _versioned(self._crow)
        self._col = _versioned(self._col)
        self._own = _versioned(self._own)
        self._shared = _versioned(self._shared)
        if self._turned is not None:
            self._turned = Transposed(*map(_versioned, self._turned))
        self._share()
        self._seen = (self._crow._version, self._col._version, UNSEEN)

    def _place(self, crow_indices: Tensor, col_indices: Tensor) -> None:
        """Take a valid pattern in new memory."""
        self._crow = _owned(crow_indices.to(torch.int32))
        self._col = _owned(col_indices.to(torch.int32))
        self._turned = None
        self._settle()

    def _adopt(
        self,
        crow_indices: Tensor,
        col_indices: Tensor,
        positions: Tensor | None = None,
    ) -> None:
        """Take a valid pattern of as many nonzeros, where the old one was."""
        self._crow.copy_(crow_indices)
        self._col.copy_(col_indices)
        self._settle(positions)

    def _settle(self, positions: Tensor | None = None) -> None:
        """Bring up to date what follows from the pattern, in place where there is a place."""
        self.nnz = self._col.numel()
        columns = self.shape[1]
        if self.cache_transpose:
            fresh = transpose(self._crow, self._col, columns)
            if self._turned is None:
                self._turned = Transposed(*map(_owned, fresh))
            else:
                for array, new in zip(self._turned, fresh):
                    array.copy_(new)
        if positions is None:
            positions = _flat(self._crow, self._col, columns)
        number = fingerprint(positions)
        if self.topology_id is None or self._own.device != number.device:
            self._own = _owned(number)
            self._shared = _owned(number)
            self._share()
        else:
            self._own.copy_(number)
            self._shared.copy_(number)
        self.version += 1
        self._is_sound = True
        self._is_compared = False
        self._note()

    def _share(self) -> None:
        """Show the fingerprint to whoever walks over buffers."""
        self.topology_id = view(self._shared, Fingerprint)

    def _note(self) -> None:
        self._seen = (
            self._crow._version,
            self._col._version,
            self._shared._version,
        )

    @untraced
    def _look_again(self) -> None:
        """See what has changed behind `rewire`, and refuse what is no pattern or another's."""
        pattern = (self._crow._version, self._col._version)
        if self._is_sound and self._seen[:2] in (pattern, (UNSEEN, UNSEEN)):
            self._compare()
        elif not self._crow.is_meta:
            try:
                check(self._crow, self._col, self.shape)
            except ValueError as error:
                raise ValueError(
                    f"this pattern was emptied or overwritten and is none any more: {error}; "
                    f"load_state_dict brings one"
                ) from error
            self._settle()
        self._note()

    def _compare(self, again: bool = False) -> None:
        """Refuse a fingerprint of another topology.

        A CUDA device would have to be waited for, so that there one look per topology has to do,
        unless it is waited for anyway.
        """
        is_recorded = (
            self._own.is_cuda and torch.cuda.is_current_stream_capturing()
        )
        if is_recorded or (
            self._own.is_cuda and self._is_compared and not again
        ):
            return
        if not self._own.is_meta and bool(self._shared != self._own):
            raise ValueError(
                f"the fingerprint of this {self.shape[0]} x {self.shape[1]} pattern was "
                f"overwritten by that of another topology: a broadcast (processes that built their "
                f"models from different seeds) or an average, tensor by tensor, has mixed weights "
                f"of different connections; build all from one seed or one state dict"
            )
        self._is_compared = True

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "CSR":
        """Move the pattern as a module moves its tensors; it stays int32."""
        before = (self._crow, self._col, *(self._turned or ()))
        after = [_moved(array, fn) for array in before]
        if all(new is old for new, old in zip(after, before)):
            return self
        is_kept = all(map(_is_same, before, after))
        self._crow, self._col = after[:2]
        is_cached = is_kept and self._turned is not None
        self._turned = Transposed(*after[2:]) if is_cached else None
        self._own = _owned(self._own.to(self.device)) if is_kept else self._own
        self._shared = _owned(self._own)
        self._share()
        self._is_sound = is_kept or self.device.type == "meta"
        self._is_compared = False
        self._seen = (UNSEEN, UNSEEN, UNSEEN)
        return self

    def _save_to_state_dict(
        self, destination: StateDict, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "crow_indices"] = self.crow_indices
        destination[prefix + "col_indices"] = self.col_indices

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
        names = [prefix + name for name in ARRAYS]
        others = {
            name: entry
            for name, entry in state_dict.items()
            if name not in names
        }
        super()._load_from_state_dict(
            others,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if any(state_dict.get(name) is LOADED for name in names):
            return
        missing_keys += [
            name for name in names if name not in state_dict and strict
        ]
        try:
            arrays = self._proposed(state_dict, prefix)
        except ValueError as error:
            error_msgs.append(f"{prefix[:-1] or 'the pattern'}: {error}")
            return
        if arrays is not None:
            assign = local_metadata.get("assign_to_params_buffers", False)
            self._load(*arrays, bool(assign))

    def _proposed(
        self, state_dict: StateDict, prefix: str
    ) -> tuple[Tensor, Tensor] | None:
        """Return the pattern in a state dict, checked, or None if there is none.

        Raises
        ------
        ValueError
            If it is no pattern of this shape and as many nonzeros.
        """
        crow_indices, col_indices = (
            state_dict.get(prefix + name) for name in ARRAYS
        )
        if crow_indices is None and col_indices is None:
            return None
        if crow_indices is None or col_indices is None:
            absent = ARRAYS[col_indices is None]
            raise ValueError(
                f"the state dict has no {absent}; a pattern is loaded as a whole"
            )
        _check_array("crow_indices", crow_indices)
        _check_array("col_indices", col_indices)
        if col_indices.numel() != self.nnz:
            raise ValueError(
                f"the state dict has {col_indices.numel():,} connections, this layer has "
                f"{self.nnz:,}; build the layer with the same sparsity"
            )
        check(crow_indices, col_indices, self.shape)
        return plain(crow_indices), plain(col_indices)

    def _load(
        self, crow_indices: Tensor, col_indices: Tensor, assign: bool
    ) -> None:
        """Take a pattern that `_proposed` returned; to `assign` is to change the device too."""
        if assign and crow_indices.device != self.device:
            self._place(crow_indices, col_indices)
        elif not self._crow.is_meta:
            self._adopt(crow_indices, col_indices)


def fingerprint(positions: Int[Tensor, "nnz"]) -> Int[Tensor, ""]:
    """Return a number of 52 bits that depends on which positions there are."""
    if positions.device.type != "cpu" or positions.numel() <= MIXED_AT_ONCE:
        return _mixed(positions) & (2**52 - 1)
    parts = [_mixed(part) for part in positions.split(MIXED_AT_ONCE)]
    return torch.stack(parts).sum() & (2**52 - 1)


def _mixed(positions: Int[Tensor, "some"]) -> Int[Tensor, ""]:
    """Return the sum, modulo 2^64, of what a mixing function makes of each position."""
    mixed = positions * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47
    return (mixed ^ (mixed >> 32)).sum()


def check_positions(
    positions: object,
    shape: tuple[int, int],
    device: torch.device | None = None,
) -> None:
    """Raise ValueError unless positions are integers that ascend strictly within a matrix."""
    if not isinstance(positions, Tensor):
        raise ValueError(
            f"positions must be a tensor, not {type(positions).__name__}"
        )
    if positions.ndim != 1 or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"positions must be a 1-D int32 or int64 tensor, not {positions.ndim}-D of "
            f"{positions.dtype}"
        )
    if device is not None and positions.device != device:
        raise ValueError(
            f"the positions are on {positions.device}, the pattern is on {device}"
        )
    cells = shape[0] * shape[1]
    if positions.numel() == 0:
        return
    if int(positions.min()) < 0 or int(positions.max()) >= cells:
        raise ValueError(
            f"positions run from {int(positions.min())} to {int(positions.max())}; a "
            f"{shape[0]} x {shape[1]} matrix has the cells 0..{cells - 1}"
        )
    unsorted = (positions.diff() <= 0).nonzero()
    if unsorted.numel():
        entry = int(unsorted[0])
        raise ValueError(
            f"positions must ascend strictly: {int(positions[entry + 1])} follows "
            f"{int(positions[entry])}"
        )


def _owned(array: Tensor) -> Tensor:
    """Copy, contiguous, and with a version, which tensors of inference mode lack."""
    with torch.inference_mode(False):
        return (
            plain(array).detach().clone(memory_format=torch.contiguous_format)
        )


def _versioned(array: Tensor) -> Tensor:
    """Return an array with a version, which one that inference mode made lacks."""
    return _owned(array) if array.is_inference() else array


def _moved(array: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply what moves tensors, and keep the type: indices are int32 in a layer of any type."""
    moved = fn(array)
    if moved is array:
        return array
    moved = moved.detach().to(torch.int32)
    return _versioned(moved).contiguous()


def _is_same(old: Tensor, new: Tensor) -> bool:
    if old.is_meta or new.is_meta or old.shape != new.shape:
        return False
    return torch.equal(old.to(new.device), new)
