"""Sizes of what kernels give, in the C++ of a package: torch before 2.14 does not write them there.

What a call multiplies follows from them (wrapper_code.py). Newer ones write assertions of sizes after each call; here
the same lines are written for older ones, as a macro that does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._inductor import ir
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.virtualized import V

NOTHING = "#define assert_size_stride(...) ((void)0)"


@contextmanager
def sizes_written() -> Iterator[None]:
    """Let Inductor write them meanwhile, where it would not."""
    if hasattr(CppWrapperCpu, "write_assert_size_stride"):
        yield
        return
    owner: Any = ir.ExternKernel
    before = owner.codegen_size_asserts

    def write(self: Any, wrapper: Any) -> None:
        code = V.graph.wrapper_code
        if not V.graph.cpp_wrapper:
            before(self, wrapper)
            return
        if NOTHING not in code.header.getvalue():
            code.header.writeline(NOTHING)
        size, stride = (code.codegen_shape_tuple(each) for each in (self.get_size(), self.get_stride()))
        wrapper.writeline(f'assert_size_stride({self.get_name()}, {size}, {stride}, "{self.get_op_name()}");')

    owner.codegen_size_asserts = write
    try:
        yield
    finally:
        owner.codegen_size_asserts = before
