"""What is worked out of a block-sparse weight and kept with its values: a dense copy, whether it is 2:4 sparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autotune.kernels._bsr import BsrWeight
from autotune.kernels._kept import Kept

#: cuSPARSELt's, of those the kernel takes.
_HALF = (torch.float16, torch.bfloat16)


def kept(weight: BsrWeight, make: Callable[[BsrWeight], Any]) -> Any:
    """``make(weight)``, from where it was kept on the values while neither they nor the pattern have changed.

    Of values that require a gradient, or are an inference tensor, it is made on each call: fused optimizers and
    inference mode overwrite without a note. So does ``values.data.mul_(2)``, which nothing can see.
    """
    facts = _facts(weight)
    if make in facts:
        return facts[make]
    with torch.no_grad():
        # Apart from the values: what is kept on them must not keep them alive.
        made = make(weight._replace(values=weight.values.detach()))
    if not _recording(weight):
        facts[make] = made
    return made


def forget_if_trained(weight: BsrWeight) -> None:
    """Once trained, a weight that is frozen again is another one, whatever its version says."""
    if weight.values.requires_grad:
        weight.values.__dict__.pop("_autotune_kept", None)


def _facts(weight: BsrWeight) -> dict[Any, Any]:
    """What is kept of the weight as it is now, to be added to."""
    forget_if_trained(weight)
    values: Any = weight.values
    if values.requires_grad or values.is_inference():
        return {}
    pattern = weight.pattern
    # The address, because ``values.data = other`` changes no version.
    state = values._version, values.data_ptr(), values.dtype, values.shape, values.stride()
    found = getattr(values, "_autotune_kept", None)
    if not found or found.state != state or found.held[0] is not pattern:
        found = values._autotune_kept = Kept(state, {}, (pattern, values.detach()))
    facts: dict[Any, Any] = found.fact
    return facts


def _recording(weight: BsrWeight) -> bool:
    """Whether a CUDA graph is: what is made then has numbers only once it is replayed, and nothing may be read."""
    return weight.values.is_cuda and torch.cuda.is_current_stream_capturing()


def semi_structured(weight: BsrWeight) -> bool:
    """Whether cuSPARSELt may take it: of every 4 along K 2 at most are not zero.

    Looks, for which the host waits for the device, when it meets a weight for the second time: a gradient, say, is
    the weight of one product only.
    """
    values = weight.values
    if not values.is_cuda or values.dtype not in _HALF:
        return False
    facts = _facts(weight)
    if keeps_two_of_four in facts:
        return bool(facts[keeps_two_of_four])
    if _MET not in facts or _recording(weight):
        facts[_MET] = True
        return False
    return bool(kept(weight, keeps_two_of_four))


#: Among the facts: that the weight was met before.
_MET = "met"


def keeps_two_of_four(weight: BsrWeight) -> bool:
    if torch.version.hip is not None or not torch.backends.cusparselt.is_available():
        return False
    values = weight.values
    if values.shape[2] % 16 or values.shape[1] % 16 or torch.cuda.get_device_capability(values.device) < (8, 0):
        return False
    fours = values.reshape(-1, 4)
    return bool(fours.numel()) and bool((fours.count_nonzero(dim=1) <= 2).all())
