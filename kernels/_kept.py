"""Facts that are worked out of a tensor once and kept on it, as an attribute."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """A fact, and what the tensors it was worked out of were then."""

    #: By which a change is seen: versions and addresses.
    state: tuple[Any, ...]
    fact: Any
    #: Tensors that lie at those addresses, so that no others come to lie there.
    held: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Stays behind where the tensor is copied or saved: the copy counts its versions anew.

        What arrives is empty, and of a type that ``torch.load`` trusts.
        """
        return OrderedDict, ()
