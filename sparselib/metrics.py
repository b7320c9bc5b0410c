"""How good: measures of outputs against labels."""

from jaxtyping import Float, Int
from torch import Tensor


def accuracy(outputs: Float[Tensor, "samples classes"], labels: Int[Tensor, "samples"]) -> float:
    """Share of samples whose largest output is that of their class, in [0, 1]."""
    if len(labels) == 0:
        raise ValueError("accuracy of no samples is undefined")
    return float((outputs.argmax(1) == labels).double().mean())
