"""Compiles every variant of the Triton kernels for sm_80 and sm_90, in a process of its own: kernels that were imported
for the interpreter cannot be compiled. Prints one JSON line a kernel and architecture.

    python tests/triton/compile_variants.py [module ...]      modules of octavo.ops.triton; default: all
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import octavo.ops.triton
import triton
from octavo.ops.triton.variants import Variant

CAPABILITIES = (80, 90)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_STEPS = re.compile(r"griddepcontrol\.\w+|(?:ld|st)\.global|cp\.async|atom|red\.|mbarrier")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def compile_variant(variant: Variant, capability: int) -> dict[str, object]:
    names = variant.kernel.arg_names
    defaults = {parameter.name: parameter.default for parameter in variant.kernel.params if parameter.has_default}
    constexprs = {name: value for name, value in defaults.items() if name not in variant.signature} | variant.constexprs
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    missing = [name for name in names if signature[name] == "constexpr" and name not in constexprs]
    assert not missing, f"{variant.name}: no type and no value for {missing}"
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, constexprs, attributes)
    options = {name: getattr(variant, name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    registers, stack, _, local = map(int, _USAGE.search(text).groups())
    return {
        "variant": variant.name,
        "capability": capability,
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": max(stack, local),
        "max_spill_bytes": variant.max_spill_bytes,
        "is_chained": constexprs.get("CHAINED", False),
        "dependent_launch": _dependent_launch(compiled.asm["ptx"]),
        "tensor_cores": any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma")),
    }


def _dependent_launch(ptx: str) -> str:
    """ "early": the next kernel may be launched, and then what the one before wrote is waited for, before any access to
    memory; "": neither; else what is wrong."""
    found = _STEPS.findall(ptx)
    if not any(step.startswith("griddepcontrol") for step in found):
        return ""
    return "early" if found[:2] == ["griddepcontrol.launch_dependents", "griddepcontrol.wait"] else str(found[:4])


@cache
def variants_of(module: str) -> Sequence[Variant]:
    found = importlib.import_module(f"octavo.ops.triton.{module}")
    return found.variants() if hasattr(found, "variants") else ()


def compile_nth(task: tuple[str, int, int]) -> dict[str, object]:
    """In a process of the pool, which kernels cannot be sent to: (module, index of the variant, capability)."""
    module, index, capability = task
    return compile_variant(variants_of(module)[index], capability)


def main(modules: list[str]) -> None:
    names = modules or sorted(module.name for module in pkgutil.iter_modules(octavo.ops.triton.__path__))
    tasks = [
        (name, index, capability)
        for name in names
        for index, variant in enumerate(variants_of(name))
        for capability in CAPABILITIES
        if capability >= variant.min_capability
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(compile_nth, tasks):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
