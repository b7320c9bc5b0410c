"""The pattern of a sparse matrix in compressed sparse row form, as in Ertl, Section 1.1.1."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

LARGEST_INDEX = 2**31 - 1


class Transposed(NamedTuple):
    """CSR of the transposed pattern; `permutation` takes values from row to column order."""

    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor


_CACHE = tuple(f"transposed_{name}" for name in Transposed._fields)


def check(crow_indices: Tensor, col_indices: Tensor, shape: tuple[int, int]) -> None:
    """Raise ValueError with a sentence that names the fault, unless the arrays are a valid CSR.

    Valid: one-dimensional integers, row pointers from 0 to nnz that never fall, column indices in
    range, strictly ascending within each row.
    """
    rows, columns = shape
    nnz = col_indices.numel()
    for name, array in (("crow_indices", crow_indices), ("col_indices", col_indices)):
        if array.ndim != 1 or array.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name} must be a 1-D int32 or int64 tensor, not {array.ndim}-D of {array.dtype}"
            )
    if crow_indices.device != col_indices.device:
        raise ValueError(
            f"crow_indices is on {crow_indices.device} but col_indices is on {col_indices.device}"
        )
    if nnz > LARGEST_INDEX or max(shape) > LARGEST_INDEX:
        raise ValueError(f"int32 indices cannot hold a {rows} x {columns} matrix of {nnz} entries")
    if crow_indices.numel() != rows + 1:
        raise ValueError(
            f"crow_indices has {crow_indices.numel()} entries; {rows} rows need {rows + 1}"
        )
    first, last = int(crow_indices[0]), int(crow_indices[-1])
    if first != 0 or last != nnz:
        raise ValueError(f"crow_indices runs from {first} to {last}; it must run from 0 to {nnz}")
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
        before, here = int(col_indices[entry - 1]), int(col_indices[entry])
        fault = "repeats" if before == here else "is out of order after"
        raise ValueError(
            f"row {int(flat[entry]) // columns}: column {here} {fault} column {before}; columns "
            f"must ascend within a row"
        )


def rows_of(crow_indices: Tensor, nnz: int) -> Tensor:
    """Return the row of each nonzero."""
    counts = crow_indices.diff().to(torch.int64)
    rows = torch.arange(counts.numel(), device=crow_indices.device)
    return torch.repeat_interleave(rows, counts, output_size=nnz)


def _flat(crow_indices: Tensor, col_indices: Tensor, columns: int) -> Tensor:
    return rows_of(crow_indices, col_indices.numel()) * columns + col_indices


def compress(positions: Int[Tensor, "nnz"], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return int32 ``(crow_indices, col_indices)`` of sorted flat positions row * columns + col."""
    rows, columns = shape
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow_indices = torch.searchsorted(positions, starts, out_int32=True)
    return crow_indices, (positions % max(columns, 1)).to(torch.int32)


def transpose(crow_indices: Tensor, col_indices: Tensor, columns: int) -> Transposed:
    """Build the transposed pattern by one stable sort: rows ascend within each column."""
    ascending, permutation = torch.sort(col_indices, stable=True)
    rows = rows_of(crow_indices, col_indices.numel())
    starts = torch.arange(columns + 1, dtype=ascending.dtype, device=ascending.device)
    pointers = torch.searchsorted(ascending, starts, out_int32=True)
    return Transposed(pointers, rows[permutation].to(torch.int32), permutation.to(torch.int32))


class CSR(nn.Module):
    """Where the nonzeros of a ``rows x columns`` matrix are; their values live elsewhere.

    A topology is a sorted vector of flat positions ``row * columns + column``. It is stored as
    int32 buffers under the names of ``torch.sparse``, part of ``state_dict``, so a saved model
    always reloads onto its own connections. The transposed pattern, which the input gradient
    needs, is a cache: derived, never saved, and rebuilt only when the topology changes.

    Parameters
    ----------
    crow_indices : Tensor, int32 or int64, shape (rows + 1,)
        Row pointers.
    col_indices : Tensor, int32 or int64, shape (nnz,)
        Column indices, strictly ascending within a row.
    shape : (int, int)
        ``(rows, columns)``.
    cache_transpose : bool
        Keep the transposed pattern (8 bytes a nonzero). Without it each backward pass sorts anew.

    Attributes
    ----------
    nnz : int
        Number of nonzeros; it never changes.

    Raises
    ------
    ValueError
        If the arrays are not a valid CSR pattern; the sentence names the fault.
    """

    crow_indices: Tensor
    col_indices: Tensor

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
        self.nnz = col_indices.numel()
        self.cache_transpose = cache_transpose
        self.register_buffer("crow_indices", crow_indices.to(torch.int32).clone())
        self.register_buffer("col_indices", col_indices.to(torch.int32).clone())
        for name in _CACHE:
            self.register_buffer(name, None, persistent=False)
        self._refresh()
        self.register_load_state_dict_pre_hook(_refuse_invalid)
        self.register_load_state_dict_post_hook(_refresh_loaded)

    @classmethod
    def from_positions(
        cls, positions: Int[Tensor, "nnz"], shape: tuple[int, int], **options: Any
    ) -> "CSR":
        """Build from flat positions, which must ascend strictly."""
        _check_positions(positions, shape)
        return cls(*compress(positions.to(torch.int64), shape), shape, **options)

    @classmethod
    def from_dense(cls, matrix: Tensor, **options: Any) -> "CSR":
        """Build the pattern of the nonzero entries of a 2-D tensor."""
        positions = matrix.detach().flatten().nonzero().flatten()
        rows, columns = matrix.shape
        return cls.from_positions(positions, (rows, columns), **options)

    @property
    def cells(self) -> int:
        """Number of entries of the dense matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of the entries that are not stored, in [0, 1]."""
        return 1.0 - self.nnz / self.cells if self.cells else 0.0

    @property
    def rows(self) -> Int[Tensor, "nnz"]:
        """Row of each nonzero."""
        return rows_of(self.crow_indices, self.nnz)

    @property
    def positions(self) -> Int[Tensor, "nnz"]:
        """Sorted int64 positions ``row * columns + column``."""
        return _flat(self.crow_indices, self.col_indices, self.shape[1])

    @property
    def transposed(self) -> Transposed:
        """The transposed pattern: from the cache, or built now if the cache is off."""
        if self.cache_transpose:
            return Transposed(*(self.__dict__["_buffers"][name] for name in _CACHE))
        return transpose(self.crow_indices, self.col_indices, self.shape[1])

    @property
    def version(self) -> int:
        """A number that changes whenever the topology does."""
        return 0 if self.col_indices.is_inference() else self.col_indices._version

    def fan_in(self) -> Int[Tensor, "rows"]:
        """Count the connections of each row (neuron)."""
        return self.crow_indices.diff().to(torch.int64)

    def fan_out(self) -> Int[Tensor, "columns"]:
        """Count the connections of each column (input)."""
        return torch.bincount(self.col_indices, minlength=self.shape[1])

    def rewire(self, positions: Int[Tensor, "nnz"], check: bool = True) -> None:
        """Replace the topology in place, on its device, by as many other positions.

        Parameters
        ----------
        positions : Tensor, int64, shape (nnz,)
            Flat positions, ascending.
        check : bool
            See that they are valid, for which the processor has to wait for the device.

        Raises
        ------
        ValueError
            If the number differs, or positions do not ascend strictly within range. The topology
            is then unchanged.
        """
        if positions.numel() != self.nnz:
            raise ValueError(
                f"rewire keeps the number of connections: {self.nnz} are here, "
                f"{positions.numel()} were given"
            )
        if check:
            _check_positions(positions, self.shape)
        crow_indices, col_indices = compress(positions, self.shape)
        self.crow_indices.copy_(crow_indices)
        self.col_indices.copy_(col_indices)
        self._refresh()

    def to_dense(self, values: Float[Tensor, "nnz"]) -> Float[Tensor, "rows columns"]:
        """Scatter `values` into a dense matrix; differentiable in `values`."""
        dense = values.new_zeros(self.cells)
        return dense.index_put((self.positions,), values).view(self.shape)

    def mask(self) -> Bool[Tensor, "rows columns"]:
        """Return the dense picture of the topology."""
        dense = torch.zeros(self.cells, dtype=torch.bool, device=self.col_indices.device)
        dense[self.positions] = True
        return dense.view(self.shape)

    def extra_repr(self) -> str:
        """Shape, count and sparsity."""
        return f"{self.shape[0]} x {self.shape[1]}, nnz={self.nnz}, sparsity={self.sparsity:.4f}"

    def _refresh(self) -> None:
        if self.cache_transpose:
            fresh = transpose(self.crow_indices, self.col_indices, self.shape[1])
            for name, array in zip(_CACHE, fresh):
                cache = getattr(self, name)
                if cache is None or cache.device != array.device:
                    setattr(self, name, array)
                else:
                    cache.copy_(array)


def _check_positions(positions: Tensor, shape: tuple[int, int]) -> None:
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


def _refuse_invalid(module: CSR, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    arrays = [state_dict.get(prefix + name) for name in ("crow_indices", "col_indices")]
    if arrays[0] is not None and arrays[1] is not None and arrays[1].numel() == module.nnz:
        check(arrays[0], arrays[1], module.shape)


def _refresh_loaded(module: CSR, _: object) -> None:
    module._refresh()
