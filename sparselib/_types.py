"""What PyTorch and Python leave open, named once.

`Any` is for what no type can say: entries of a state dict, arguments that are passed on unread.
What is read has its type, and what is looked at in order to refuse it is an ``object``.
"""

from collections.abc import Callable, Mapping
from typing import Any

# of whatever arguments and result, such as a rule whose arguments a partial may complete
Function = Callable[..., Any]
# called without arguments; what it returns is not looked at
Hook = Callable[[], object]
# what `state_dict` returns
StateDict = dict[str, Any]
# what `load_state_dict` takes
SavedState = Mapping[str, Any]
# one of an optimizer: its parameters, step, decay and what else it keeps there
ParameterGroup = dict[str, Any]
# what an autograd function keeps from its forward to its backward pass, by any name
AutogradContext = Any
