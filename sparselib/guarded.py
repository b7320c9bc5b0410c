"""Tensors that Python can read and not write, because native code trusts what stands in them."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import SupportsIndex, TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound="_Guarded")

IN_PLACE = {
    *(
        f"__i{name}__"
        for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod")
    ),
    *(
        f"__i{name}__"
        for name in ("pow", "and", "or", "xor", "lshift", "rshift", "matmul")
    ),
    *("__setitem__", "__set__", "__delete__"),
}
ALIASING = {"numpy", "__array__", "__dlpack__"}
# what keeps the kind of a fingerprint: it is passed on, not calculated with
PASSING = {"detach", "to", "clone", "cpu", "cuda", "view_as", "contiguous"}
# what asks for the memory, the kind or the number of this tensor: a copy has others
ASKING = {
    *(
        "data_ptr",
        "untyped_storage",
        "storage",
        "storage_type",
        "storage_offset",
    ),
    *(
        "element_size",
        "is_contiguous",
        "is_complex",
        "is_floating_point",
        "is_signed",
    ),
    *(
        "is_pinned",
        "is_set_to",
        "is_shared",
        "item",
        "stride",
        "tolist",
        "type",
    ),
}


class _Guarded(Tensor):
    """A tensor that is asked before a function of torch takes it.

    Copies and pickles are plain tensors. The class is abstract by declaration alone: tensors have a
    metaclass that cannot be joined with that of `abc.ABC`.
    """

    @classmethod
    @abstractmethod
    def _call(
        cls,
        name: str,
        func: Callable[..., object],
        args: Sequence[object],
        kwargs: dict[str, object],
    ) -> object:
        """Call a function of torch as far as the guarded tensors among its arguments allow.

        Within, guarded tensors are treated as plain ones.

        Parameters
        ----------
        name : str
            The name of the function, or ``__get__`` and ``__set__`` for an attribute.
        func : callable
            The function.
        args : sequence
            Its arguments by position; some are guarded, alone or in lists.
        kwargs : dict
            Its arguments by name.
        """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        with torch._C.DisableTorchFunctionSubclass():
            return cls._call(_name(func), func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        twin = plain(self).clone()
        memo[id(self)] = twin
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        parts: tuple[object, ...] = plain(self).__reduce_ex__(protocol)
        return parts

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return repr(plain(self))


class ReadOnly(_Guarded):
    """A view that refuses to be written.

    Every operation that reads works and returns a plain tensor; a view of this view is read-only
    again, and ``numpy`` returns a copy. ``copy_`` is accepted where it would change nothing. The
    raw address (`data_ptr`) is not guarded.

    Raises
    ------
    ValueError
        By every operation in place, and where this is its ``out=``.
    """

    @classmethod
    def _call(
        cls,
        name: str,
        func: Callable[..., object],
        args: Sequence[object],
        kwargs: dict[str, object],
    ) -> object:
        if written := list(_written(name, args, kwargs, cls)):
            if name == "copy_" and _is_equal(args[0], args[1]):
                return args[0]
            raise ValueError(
                f"{name} cannot write to these {written[0].numel()} numbers: a topology "
                f"changes as a whole, by rewire(positions, values) or load_state_dict; "
                f"clone() gives a copy that is yours"
            )
        if name in ALIASING:
            copies = [plain(own).clone() for own in _tensors(args[:1])]
            args = [*copies, *args[1:]]
        result = func(*args, **kwargs)
        owners = [
            tensor for tensor in _tensors(args) if isinstance(tensor, cls)
        ]
        return _guarded(result, owners, cls)


class Fingerprint(_Guarded):
    """The number of a topology, which no copy and no average can change.

    Whoever averages a model, tensor by tensor, or copies one into another, meets this number
    too, and is refused where it differs: weight i here and weight i there are then weights of
    different connections.

    Raises
    ------
    ValueError
        By every operation in place that would change it. The other number stays in it, so that
        the layer, whose weights may have been mixed already, is refused from then on.
    """

    @classmethod
    def _call(
        cls,
        name: str,
        func: Callable[..., object],
        args: Sequence[object],
        kwargs: dict[str, object],
    ) -> object:
        written = list(_written(name, args, kwargs, cls))
        if not written:
            result = func(*_calculable(name, args), **kwargs)
            return _passed(name, result, cls)
        scratch = {id(tensor): plain(tensor).double() for tensor in written}
        func(*_replaced(_calculable("", args, scratch), scratch), **kwargs)
        for tensor in written:
            _refuse_another(tensor, scratch[id(tensor)])
        return args[0]


def plain(tensor: Tensor) -> Tensor:
    """Return the same memory as an ordinary tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def view(tensor: Tensor, kind: type[Kind]) -> Kind:
    """Return the same memory as a guarded tensor."""
    return tensor.as_subclass(kind)


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same memory."""
    return bool(torch._C._is_alias_of(plain(one), plain(other)))  # type: ignore[attr-defined]


def refuse_assignment(name: str, own: Tensor, array: object) -> None:
    """Raise ValueError, unless the array is a view of what it would replace.

    Such a view is put in by ``functional_call`` with a state dict, and then what was there again.
    """
    if not (isinstance(array, ReadOnly) and shares_memory(array, own)):
        raise ValueError(
            f"{name} cannot be assigned: a topology changes as a whole, by "
            f"rewire(positions, values) or load_state_dict"
        )


def _name(func: Callable[..., object]) -> str:
    return str(getattr(func, "__name__", func)).split(".")[0]


def _tensors(arguments: Iterable[object]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _written(
    name: str,
    args: Sequence[object],
    kwargs: dict[str, object],
    kind: type[_Guarded],
) -> Iterator[Tensor]:
    """Yield the guarded tensors that a function would write."""
    is_in_place = name in IN_PLACE or (
        name.endswith("_") and not name.endswith("__")
    )
    targets: list[object] = [*args[:1]] if is_in_place else []
    targets.append(kwargs.get("out"))
    return (tensor for tensor in _tensors(targets) if isinstance(tensor, kind))


def _is_equal(target: object, source: object) -> bool:
    if (
        not isinstance(target, Tensor)
        or not isinstance(source, Tensor)
        or source.shape != target.shape
        or source.is_meta
    ):
        return False
    return bool((plain(source).to(target.device) == plain(target)).all())


def _guarded(
    result: object, owners: Sequence[Tensor], kind: type[Kind]
) -> object:
    """Guard what shares the memory of a guarded tensor; pass everything else on."""
    if isinstance(result, list | tuple) and any(
        isinstance(part, Tensor) for part in result
    ):
        parts = [_guarded(part, owners, kind) for part in result]
        return parts if isinstance(result, list) else tuple(parts)
    if not isinstance(result, Tensor) or isinstance(result, kind):
        return result
    return (
        view(result, kind)
        if any(shares_memory(result, o) for o in owners)
        else result
    )


def _calculable(
    name: str, args: Sequence[object], kept: dict[int, Tensor] | None = None
) -> list[object]:
    """Return the arguments with fingerprints as float64, in which averages keep all digits."""
    if name in PASSING | ASKING or name == "__get__":
        return list(args)
    found: list[object] = []
    for argument in args:
        if isinstance(argument, Fingerprint) and id(argument) not in (
            kept or {}
        ):
            found.append(plain(argument).double())
        elif isinstance(argument, list | tuple):
            found.append(_calculable(name, argument, kept))
        else:
            found.append(argument)
    return found


def _replaced(
    args: Sequence[object], scratch: dict[int, Tensor]
) -> list[object]:
    return [
        _replaced(argument, scratch)
        if isinstance(argument, list)
        else scratch.get(id(argument), argument)
        for argument in args
    ]


def _passed(name: str, result: object, kind: type[Kind]) -> object:
    if (
        name in PASSING
        and isinstance(result, Tensor)
        and not isinstance(result, kind)
    ):
        return view(result, kind)
    return result


def _refuse_another(fingerprint: Tensor, wanted: Tensor) -> None:
    own = plain(fingerprint)
    if own.is_meta:
        return
    # an average of equal numbers, by whatever formula and in float32, may miss them a little
    if bool((wanted - own).abs() > 1e-6 * own):
        own.copy_(wanted)
        raise ValueError(
            "these layers have different topologies, so that their weights cannot be averaged or "
            "copied tensor by tensor: weight i of one and weight i of the other are weights of "
            "different connections; use sparselib.average or sparselib.Averaged, which follow "
            "the connections, or load_state_dict, which brings the topology too"
        )
