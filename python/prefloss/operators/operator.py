"""An operator of torch, registered once: schema, kernel, fake kernel, vmap rule, and derivative, under `torch.func` too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..torch_internals import Function, at_this_level, derivatives_recorded, in_forward_mode, in_functorch

_library = torch.library.Library("prefloss", "FRAGMENT")
# torch keeps compiled graphs on disk, by the names of their operators: those of another version must not be taken for ours.
OVERLOAD = _core.overload


class Options(tuple[Any, ...]):
    """An operator's arguments that are not tensors, and which tensors are given.

    A Function of few arguments is what counts under functorch, which looks into each of them again and again: so tensors that
    are not given are left out, and this is no plain tuple.
    """

    is_given: tuple[bool, ...]

    @classmethod
    def split(cls, arguments: Sequence[Any], tensors: int) -> tuple[list[Tensor], Options]:
        options = cls(arguments[tensors:])
        options.is_given = tuple(value is not None for value in arguments[:tensors])
        return [value for value in arguments[:tensors] if value is not None], options

    def all_tensors(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """With None, for those that are not given."""
        rest = iter(given)
        return tuple(next(rest) if is_given else None for is_given in self.is_given)


class Operator:
    """prefloss::`name`, and prefloss::plain_`name`, the same without a derivative.

    The derivative is a Function's, which calls the plain operator. So a compiled graph has the plain one, whose call never
    enters Python. Under functorch each level records a Function of its own.

    Args:
        schema: as torch.library takes it, tensors first. With a last argument ``int batch``, that is the number of leading
            dimensions which are reduced one by one; without, they are known from the shapes.
        fake: the outputs' shapes and dtypes, from the arguments.
        save: (tensors, options, outputs) to the tensors that `derivative` needs, `ctx.saved_tensors`. It also has `ctx.options`.
        derivative: (ctx, *gradients of the outputs, or None) to those of the first arguments; the others have none.
        kernel: for operators whose kernel is not a C function (csrc/bindings/): the Python function.
        constant: places of the outputs without a derivative.
        shared: names of the tensors that all rows of a vmap have in common.
    """

    def __init__(
        self,
        schema: str,
        *,
        fake: Callable[..., Any],
        save: Callable[[tuple[Any, ...], Options, Any], Sequence[Tensor | None]],
        derivative: Callable[..., Sequence[Tensor | None]],
        kernel: Callable[..., Any] | None = None,
        constant: Sequence[int] = (),
        shared: Sequence[str] = (),
    ) -> None:
        name, _, rest = schema.partition("(")
        for each in (f"{name}.{OVERLOAD}", f"plain_{name}.{OVERLOAD}"):
            _library.define(f"{each}({rest}")
            for device in ("CPU", "CUDA") if kernel is not None else ():
                _library.impl(each, kernel, device)
            torch.library.register_fake(f"prefloss::{each}", fake, lib=_library)
            torch.library.register_vmap(f"prefloss::{each}", self._vmap, lib=_library)
        _library.impl(f"{name}.{OVERLOAD}", self._autograd, "Autograd")
        _library.impl(f"plain_{name}.{OVERLOAD}", torch.library.fallthrough_kernel, "Autograd")
        self.operator = getattr(getattr(torch.ops.prefloss, name), OVERLOAD)
        self.plain = getattr(getattr(torch.ops.prefloss, f"plain_{name}"), OVERLOAD)
        self._names = [argument.name for argument in self.operator._schema.arguments]
        self._tensors = sum("Tensor" in str(argument.type) for argument in self.operator._schema.arguments)
        self._shared = set(shared)
        self._function = self._make_function(name, save, derivative, constant)

    def __call__(self, *arguments: Any) -> Any:
        return self.operator(*arguments)

    def _autograd(self, *arguments: Any) -> Any:
        differentiated = torch._C._any_requires_grad(*arguments) and torch.is_grad_enabled()
        if not differentiated and not in_forward_mode():  # a Function refuses tangents, instead of dropping them
            return self._without_derivative(*arguments)
        given, options = Options.split(arguments, self._tensors)
        with at_this_level():
            return self._function.apply(*given, options)

    def _without_derivative(self, *arguments: Any) -> Any:
        """At this level of functorch. The next level may record one: the plain operator would hide it."""
        if not in_functorch():
            return self.plain(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.operator(*arguments)

    def _make_function(self, name: str, save: Any, derivative: Any, constant: Sequence[int]) -> Any:
        def forward(*arguments: Any) -> Any:
            *given, options = arguments
            with derivatives_recorded():  # by the next levels of functorch; a Function's forward turns that off
                return self._without_derivative(*options.all_tensors(given), *options)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            *given, ctx.options = inputs
            ctx.save_for_backward(*save(ctx.options.all_tensors(given), ctx.options, output))
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.mark_non_differentiable(*(outputs[place] for place in constant))
            ctx.set_materialize_grads(False)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            found = (*derivative(ctx, *grads), *(None,) * self._tensors)
            kept = [value for value, is_given in zip(found, ctx.options.is_given, strict=False) if is_given]
            return *(value if needed else None for value, needed in zip(kept, ctx.needs_input_grad, strict=False)), None

        methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
        title = "".join(word.title() for word in name.split("_"))
        return type(title, (Function,), {key: staticmethod(method) for key, method in methods.items()})

    def _vmap(self, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        return self._batched(self.operator, info, in_dims, arguments)

    def _batched(self, call: Callable[..., Any], info: Any, in_dims: Any, arguments: Sequence[Any]) -> tuple[Any, Any]:
        """The same with one more leading dimension for every tensor but the shared ones."""
        batched = list(arguments)
        for place, (name, value, dim) in enumerate(zip(self._names, arguments, in_dims, strict=True)):
            if name == "batch":
                batched[place] = value + 1
            elif name in self._shared:
                if dim is not None:
                    raise ValueError(f"{name} cannot be batched: every row of a vmap has the same")
            elif isinstance(value, Tensor):
                batched[place] = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
        outputs = call(*batched)
        return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0
