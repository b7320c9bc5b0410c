"""Stands in where jaxtyping is not installed: ``Float[Tensor, "rows columns"]`` is ``Tensor``."""


class Annotation:
    """An array of numbers of some kind; the shape is not checked."""

    def __class_getitem__(cls, item: tuple[object, str]) -> object:
        """Return the array's own type."""
        return item[0]


class Bool(Annotation): ...  # noqa: D101


class Float(Annotation): ...  # noqa: D101


class Float32(Annotation): ...  # noqa: D101


class Float64(Annotation): ...  # noqa: D101


class Int(Annotation): ...  # noqa: D101


class Int16(Annotation): ...  # noqa: D101


class Int64(Annotation): ...  # noqa: D101


class UInt8(Annotation): ...  # noqa: D101
