"""What one kernel file supplies: plain functions and values, gathered in :class:`Kernel`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from autotune.data import FLOATS, Config, Device, Problem, UsageError, Value

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "tuple[torch.Tensor, ...]"


@dataclass(frozen=True)
class Field:
    """One field of a kernel's problems: its name, what it may be, and its default (None: required)."""

    name: str
    kind: Literal["size", "dtype", "flag", "choice"]
    default: Value | None = None
    minimum: int = 0
    #: Row numbers are 32-bit in the kernels, and the last tile reaches past the end.
    maximum: int = 2**31 - 512
    #: For a choice, a size in steps (a density), or a dtype that is not one of the usual floating-point ones.
    choices: tuple[Value, ...] = ()

    def check(self, value: Value) -> str | None:
        """None if ``value`` will do, else the rule."""
        if self.kind == "size" and not self.choices:
            inside = type(value) is int and self.minimum <= value <= self.maximum
            return None if inside else f"must be an integer from {self.minimum} to {self.maximum}"
        if self.kind == "flag":
            return None if isinstance(value, bool) else "must be true or false"
        allowed = self.choices or FLOATS
        if any(value == choice and type(value) is type(choice) for choice in allowed):
            return None
        return f"must be one of {', '.join(map(str, allowed))}"


@dataclass(frozen=True)
class Work:
    """The least a problem costs: floating-point operations, and bytes each read or written once."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Tolerance:
    """The two-reference rule: max|ours - exact| <= ratio * max|torch - exact| + ulps * eps * max|exact|.

    ``exact`` is the reference in float64, ``torch`` the same reference in the problem's dtype, and eps the
    dtype's machine epsilon. The root mean square of the error is held to the same ratio, with less slack.
    Results in integers have none: they must be equal.
    """

    ratio: float
    ulps: float


@dataclass(frozen=True)
class Signature:
    """What the compiler needs to build one specialisation without tensors."""

    function: Any
    #: Argument name to Triton type: ``*fp16``, ``i32``, ``fp32``, ``constexpr``.
    types: Mapping[str, str]
    constexprs: Mapping[str, Value]
    #: Arguments known to be multiples of 16.
    divisible: tuple[str, ...]
    options: Mapping[str, Value]
    #: Size of the launch grid, or for a persistent kernel the number of tiles, from which its grid follows. Equal
    #: code on unequal grids is not the same candidate.
    programs: int = 0


@dataclass(frozen=True)
class Operator:
    """A torch.library operator: ``torch.ops.autotune.NAME``, with the Python function users call."""

    #: The public function, ``autotune.ops.<front.__name__>``; calls ``torch.ops.autotune.NAME``.
    front: Callable[..., Any]
    #: ``(Tensor a, Tensor b) -> Tensor``, or ``-> (Tensor, Tensor)`` for a kernel of two results.
    schema: str
    #: Operator arguments -> empty tensors of the results' shapes, dtypes and device.
    fake: Callable[..., Any]
    #: (gradients, operator arguments, results) -> one gradient or None per operator argument. Gradients are one per
    #: result, None where nothing depends on it and there are several; the results are empty unless
    #: ``saves_results``. None: asking for one is an error.
    backward: Callable[[tuple[Any, ...], tuple[Any, ...], Tensors], tuple[Any, ...]] | None
    #: Operator arguments -> the kernel's arguments.
    kernel_args: Callable[..., tuple[Any, ...]] = lambda *args: args
    #: The kernel's arguments -> what a torch call that this kernel serves gets; the front, where it takes them.
    apply: Callable[..., Any] | None = None
    saves_results: bool = False
    #: Classes that its arguments are made with, to be had beside the function: ``autotune.ops.BlockMask``.
    types: tuple[type, ...] = ()
    #: Also define ``NAME_out``, whose keyword argument ``Tensor(a!) out`` goes to the kernel's ``run`` as ``out=``.
    out: bool = False

    def __call__(self, *args: Any) -> Any:
        """The operator on the kernel's arguments, differentiable."""
        return (self.apply or self.front)(*args)


@dataclass(frozen=True)
class Serves:
    """A torch call that a kernel can stand in for."""

    #: The call's arguments -> the kernel's arguments, or a sentence: why it can't serve them.
    args: Callable[..., tuple[Any, ...] | str]
    #: (result, *the call's arguments) -> the call's result: a bias, say.
    finish: Callable[..., Any] | None = None
    #: Whether torch casts the call's arguments where autocast is on, as those of matrix products.
    autocast: bool = True


@dataclass(frozen=True)
class Provider:
    """Another road to a kernel's result, in torch: a dense product, say. Timed as configs are, served if faster.

    It is what the config ``provider=NAME`` stands for.
    """

    #: args -> result, with the shape, dtype and strides that the kernel's ``run`` gives it. Verified like a config.
    #: A CUDA graph may hold it, so it reads no device; what it makes of a tensor that does not change (a weight's
    #: dense copy) it keeps with that tensor from its first call on.
    run: Callable[..., Any]
    #: None, or why it can't serve the problem on the device.
    unavailable: Callable[[Problem, Device], str | None] = lambda problem, device: None


@dataclass(frozen=True)
class Kernel:
    """Everything the tuner, the dispatcher and the tests need to know of one kernel.

    "args" below are what ``autotune.run(name, *args)`` takes: tensors and plain values.
    """

    fields: tuple[Field, ...]
    #: args -> Problem. Raises ValueError naming argument, value and rule.
    problem: Callable[..., Problem]
    #: args -> the problem's memo key: cheap, hashable, host-static (no device read), finer than the problem.
    key: Callable[..., Hashable]
    #: (problem, seed, torch device) -> args with random data.
    inputs: Callable[[Problem, int, str], tuple[Any, ...]]
    #: (config, *args) -> result, a tensor or a tuple of them. Allocates its output, leaves its inputs untouched.
    run: Callable[..., Any]
    #: args -> result, in plain torch, in the arguments' own dtype: in float64 if their floating tensors are.
    reference: Callable[..., Any]
    work: Callable[[Problem], Work]
    #: Problems worth testing and measuring, as text.
    problems: tuple[str, ...]
    tolerances: Mapping[str, Tolerance]
    #: One per launch, in order.
    signature: Callable[[Problem, Config], Signature | tuple[Signature, ...]]
    #: args -> result that is off by as much as hardware may be; candidates are held to it. None: the reference.
    peer: Callable[..., Any] | None = None
    #: args -> result, what torch users run today; timed beside the kernel. None: the reference.
    baseline: Callable[..., Any] | None = None
    #: Other roads to the result, by name.
    providers: Mapping[str, Provider] = field(default_factory=dict)
    #: The size with which the kernel's time grows and its providers' does not, so that the choice flips along it.
    flips: str | None = None
    #: A rule over several fields: None, or what a problem breaks ("HKV=3 must divide H=8").
    rule: Callable[[Problem], str | None] = lambda problem: None
    operator: Operator | None = None
    #: torch callables (functions, or ``torch.ops.aten`` packets) -> how this kernel serves them.
    serves: Mapping[Any, Serves] = field(default_factory=dict)

    def compute(self, config: Config, *args: Any) -> Any:
        """The result on ``args`` by ``config``, be it the kernel's own or a provider's name."""
        name = config.provider
        return self.run(config, *args) if name is None else self.providers[name].run(*args)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields by which two problems may differ and still be neighbours."""
        return tuple(field.name for field in self.fields if field.kind == "size")

    def make(self, **values: Value) -> Problem:
        """A checked problem, its fields in order, those at their default left out.

        :raises UsageError: if a field is unknown, missing or against its rule.
        """
        text = str(Problem(values))[:200]
        names = [field.name for field in self.fields]
        for name in values:
            if name not in names:
                raise UsageError(f"problem {text!r} has no field {name!r}; the fields are {', '.join(names)}")
        kept = {}
        for known in self.fields:
            value = values.get(known.name, known.default)
            if value is None:
                raise UsageError(f"problem {text!r} lacks {known.name}; it needs {', '.join(self._required())}")
            rule = known.check(value)
            if rule is not None:
                raise UsageError(f"problem {text!r}: {known.name}={value} {rule}")
            if value != known.default:
                kept[known.name] = value
        problem = Problem(kept)
        broken = self.rule(problem)
        if broken is not None:
            raise UsageError(f"problem {text!r}: {broken}")
        return problem

    def parse(self, text: str) -> Problem:
        """:raises UsageError: as :meth:`make`, and on malformed text."""
        return self.make(**Problem.parse(text))

    def _required(self) -> list[str]:
        return [field.name for field in self.fields if field.default is None]
