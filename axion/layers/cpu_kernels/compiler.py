"""The process that compiles kernels: `python -m axion.layers.cpu_kernels.compiler`.

A line of JSON for each comes in (`object_files.Wanted`), and one goes out: its object file, or
why there is none. It ends with its input.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types

from axion.layers.cpu_kernels.object_files import ENTRY, Wanted
from axion.layers.cpu_kernels.parallel import link

# numba's own function also returns a status. A kernel does not fail.
#
# Processors that do not round to bfloat16 call a function of compilers' own libraries for it, which
# are not there: to the nearest, ties to even.
_BESIDE = """
define void @{entry}(ptr %arguments) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @"{function}"(ptr %result, ptr %error, ptr %arguments)
  ret void
}}

define bfloat @__truncsfbf2(float %number) noinline {{
  %bits = bitcast float %number to i32
  %cut = lshr i32 %bits, 16
  %odd = and i32 %cut, 1
  %half = add i32 %odd, 32767
  %up = add i32 %bits, %half
  %rounded = lshr i32 %up, 16
  %nan = or i32 %cut, 64
  %is_nan = fcmp uno float %number, 0.0
  %kept = select i1 %is_nan, i32 %nan, i32 %rounded
  %short = trunc i32 %kept to i16
  %result = bitcast i16 %short to bfloat
  ret bfloat %result
}}
"""


def compile_kernel(wanted: Wanted) -> bytes:
    """Its object file, for this processor."""
    module, _, name = wanted.name.partition(":")
    make = getattr(import_module(module, __spec__.parent), name)
    return compile_function(make(*wanted.given), wanted.integers, wanted.floats)


def compile_function(function: Callable[[Any], None], integers: int, floats: int) -> bytes:
    """The object file of a function of the address of so many numbers."""
    llvm.add_symbol("__truncsfbf2", 1)  # numba links, too, what nobody calls there
    arguments = types.CPointer(types.Tuple([types.int64] * integers + [types.float64] * floats))
    # In numpy's model of errors a division by zero is none.
    compiled = numba.cfunc(types.void(arguments), error_model="numpy")(function)
    # What Python would call of it, which tells Python of exceptions, is left away.
    name = compiled.native_name.removeprefix("cfunc.")
    code = llvm.parse_assembly(compiled.inspect_llvm() + _BESIDE.format(entry=ENTRY, function=name))
    for found in code.functions:
        if not found.is_declaration and found.name not in (ENTRY, "__truncsfbf2"):
            found.linkage = "internal"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(code, passes)
    return machine.emit_object(code)


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            compiled = compile_kernel(Wanted(*json.loads(line)))
            link(compiled)  # ends the process if a function is not to be found
            answer = {"object": base64.b64encode(compiled).decode()}
        except Exception as error:  # whatever numba or LLVM raises
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
