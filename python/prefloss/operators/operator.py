"""An operator of torch, registered once: schema, kernel, fake kernel, vmap rule, derivative, and its form under `torch.func`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from ..torch_internals import in_transform

_library = torch.library.Library("prefloss", "FRAGMENT")

# (ctx, *gradients of the outputs) to the gradients of the first arguments; those after them have none.
Backward = Callable[..., Sequence["Tensor | None"]]


class Operator:
    """prefloss::`name`. Calling it is the operator's call, or, where functorch must see the derivative, its Function's.

    Args:
        schema: as torch.library takes it. With a last argument ``int batch``, that is the number of leading dimensions which are
            reduced one by one; without, they are known from the shapes.
        fake: the outputs' shapes and dtypes, from the arguments.
        save: (arguments, outputs) to the tensors that `backward` needs, `ctx.saved_tensors`. It also has `ctx.options`, the
            arguments that are not tensors.
        backward: the derivative.
        kernel: for operators whose kernel is not a C function (csrc/bindings/): the Python function.
        constant: places of the outputs without a derivative.
        shared: names of the tensors that all rows of a vmap have in common.
    """

    def __init__(
        self,
        schema: str,
        *,
        fake: Callable[..., Any],
        save: Callable[[tuple[Any, ...], Any], Sequence[Tensor | None]],
        backward: Backward,
        kernel: Callable[..., Any] | None = None,
        constant: Sequence[int] = (),
        shared: Sequence[str] = (),
    ) -> None:
        _library.define(schema)
        self.name = "prefloss::" + schema.partition("(")[0]
        self.operator = getattr(torch.ops.prefloss, schema.partition("(")[0]).default
        arguments = self.operator._schema.arguments
        self._shared = set(shared)
        self._names = [argument.name for argument in arguments]
        self._is_tensor = [isinstance(argument.type, torch.TensorType) or "Tensor" in str(argument.type) for argument in arguments]
        if kernel is not None:
            for device in ("CPU", "CUDA"):
                _library.impl(self.name, kernel, device)
        torch.library.register_fake(self.name, fake, lib=_library)
        torch.library.register_vmap(self.name, self._vmap, lib=_library)

        def set_up(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.save_for_backward(*save(inputs, output))
            ctx.options = tuple(value for value, is_tensor in zip(inputs, self._is_tensor, strict=True) if not is_tensor)
            ctx.tensor_places = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]
            ctx.mark_non_differentiable(*(outputs[place] for place in constant))
            ctx.set_materialize_grads(False)

        def gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            wanted = backward(ctx, *grads)
            kept = (value if needed else None for value, needed in zip(wanted, ctx.needs_input_grad, strict=False))
            return *kept, *(None,) * (len(arguments) - len(wanted))

        self._function = type(
            "".join(word.title() for word in schema.partition("(")[0].split("_")),
            (Function,),
            {
                "forward": staticmethod(self._below_autograd),
                "setup_context": staticmethod(set_up),
                "backward": staticmethod(gradients),
                "vmap": staticmethod(self._function_vmap),
            },
        )

        _library.impl(self.name, self._autograd, "Autograd")

    def __call__(self, *arguments: Any) -> Any:
        transformed = in_transform() and not is_compiling()
        return self._function.apply(*arguments) if transformed else self.operator(*arguments)

    def _below_autograd(self, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.operator(*arguments)

    def _autograd(self, *arguments: Any) -> Any:
        """Outside of functorch, which takes the Function at once, but for a compiler, which cannot follow it there."""
        if not any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
            return self._below_autograd(*arguments)
        if in_transform():
            raise NotImplementedError(
                "torch.compile cannot take derivatives by torch.func of prefloss's operators into a graph: let it break the "
                "graph there (fullgraph=False), or compile what is around"
            )
        return self._function.apply(*arguments)

    def _function_vmap(self, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        return self._batched(self, info, in_dims, arguments)

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

