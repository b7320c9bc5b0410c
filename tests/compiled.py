"""Compile every kernel, without a GPU, and print what the machine code is made of.

Run in a process of its own by `test_ops_gpu_compile`, with Triton's interpreter off and the compute
capabilities as arguments, such as 90 for Hopper. One line of JSON per kernel and capability:
registers, and how often each kind of instruction occurs.
"""

import json
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparselib.ops.backends import gpu, gpu_conv

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = {
    "spills": r"\b(?:LDL|STL)\b",
    "loads": r"\bLDG\b",
    "wide_loads": r"\bLDG\.E\.(?:\w+\.)*128",
    "loads_beside": r"\bLDG\b.*\+0x",
    "fma": r"\bFFMA\b",
    "fma_pairs": r"\bFFMA2\b",  # of Blackwell, which takes two numbers at a time
    "multiplications": r"\bFMUL2?\b",
    "atomics": r"\b(?:ATOM[GS]?|RED)\.",
    "barriers": r"\bBAR\.SYNC",
    "cached_for_good": r"\bLDG\S*\.CONSTANT",
}
# each lane of a warp reads the number beside its neighbor's, and the warp has a row of its own
A_ROW_EACH = "sizePerThread = [1, 1, 1], threadsPerWarp = [1, 1, 32], warpsPerCTA = [1, {}, 1]"
BINARIES = {80: "SM80", 90: "SM90a", 100: "SM100a"}  # as the disassembler names them
INTS, FLOATS = "*i32", "*fp32"


def aligned(signature):
    """Paths of the pointers in a signature, all of which start at multiples of 16 bytes."""
    paths = []
    for place, kind in enumerate(signature):
        if isinstance(kind, tuple):
            paths += [(place, *path) for path in aligned(kind)]
        elif kind.startswith("*"):
            paths.append((place,))
    return paths


def compile_for(capability, kernel, kinds, constants, warps):
    signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
    # what is not excluded is specialized where it happens to be divisible by 16
    special = [
        (place,)
        for place, parameter in enumerate(kernel.params)
        if kinds.get(parameter.name) == "i32" and not parameter.do_not_specialize
    ]
    paths = [*aligned(signature.values()), *special]
    attributes = {path: [["tt.divisibility", 16]] for path in paths}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=gpu.options(warps))


def machine_code(image):
    """Return the instructions in an ELF file of one kernel, 16 bytes each."""
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count, of_names = struct.unpack_from("<HHH", image, 0x3A)
    # name, type, flags, address, offset, size, ...
    sections = [
        struct.unpack_from("<IIQQQQ", image, table + place * size) for place in range(count)
    ]
    names = image[sections[of_names][4] :]
    (text,) = (
        image[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if names[name:].startswith(b".text.")
    )
    return text


def disassembled(capability, images):
    """Return the lines of assembly of each kernel; the disassembler takes long to start."""
    codes = [machine_code(image) for image in images]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        assembly = run("nvdisasm", "-b", BINARIES[capability], file.name)
    lines = iter(re.findall(r"/\*[0-9a-f]{4,}\*/.*", assembly))
    listings = [[next(lines) for _ in range(len(code) // 16)] for code in codes]
    assert next(lines, None) is None
    return ["\n".join(listing) for listing in listings]


def resources(image):
    """Registers, and bytes of stack, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        usage = run("cuobjdump", "-res-usage", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return {"registers": registers, "stack": stack}


def run(tool, *arguments):
    answer = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return answer.stdout


def facts(compiled, listing):
    counts = {name: len(re.findall(form, listing)) for name, form in INSTRUCTIONS.items()}
    counts["fma"] += 2 * counts.pop("fma_pairs")
    counts["a_row_each"] = A_ROW_EACH.format(compiled.metadata.num_warps) in compiled.asm["ttgir"]
    return resources(compiled.asm["cubin"]) | counts


def spmm(x, shape, permutation=None, bias=FLOATS, unit=8):
    rows, block, warps = shape
    kinds = {"crow": INTS, "col": INTS, "values": FLOATS, "order": INTS, "x": x, "y": x, "M": "i32"}
    kinds |= {"groups": "i32"} | {
        name: kind for name, kind in (("permutation", permutation), ("bias", bias)) if kind
    }
    constants = {"UNIT": unit, "ROWS": rows, "BLOCK": block, "RELU": True}
    constants["UNROLL"] = gpu.unroll(warps)
    absent = {name: None for name in ("permutation", "bias") if name not in kinds}
    return gpu.spmm_kernel, kinds, constants | absent, warps


def sddmm(x, block, unit=8):
    kinds = {"crow": INTS, "col": INTS, "dy": x, "x": x, "dvalues": FLOATS, "dbias": FLOATS}
    constants = {"UNIT": unit, "BLOCK": block, "GRADIENTS": gpu.GRADIENTS}
    return gpu.sddmm_kernel, kinds | {"groups": "i32"}, constants, 1


def network(x, layers=4, unit=8):
    rows, block, warps = gpu.NETWORK_TILE
    one = (INTS, INTS, FLOATS, FLOATS, INTS, "i32")
    kinds = {"layers": (one,) * layers, "x": x, "y": x, "scratch": x}
    constants = {"UNIT": unit, "RELUS": (True,) * (layers - 1) + (False,)}
    constants |= {"ROWS": rows, "BLOCK": block, "UNROLL": gpu.unroll_network(unit)}
    return gpu.network_kernel, kinds | {"groups": "i32", "widest": "i32"}, constants, warps


def convolve(x, shape, back=False, short=False):
    rows, stretches, warps = shape
    kinds = {"crow": INTS, "places": INTS, "values": FLOATS, "x": x, "y": x}
    kinds |= {"permutation": INTS} if back else {"bias": FLOATS, "order": INTS}
    kinds |= dict.fromkeys(("M", "stride", "length"), "i32")
    constants = {"ROWS": rows, "STRETCHES": stretches, "SHORT": short}
    absent = {name: None for name in ("permutation", "bias", "order") if name not in kinds}
    return gpu_conv.convolve_kernel, kinds, constants | absent, warps


def correlate(x):
    kinds = dict.fromkeys(("crow", "places", "order"), INTS) | {"dy": x, "x": x}
    kinds |= {"dvalues": FLOATS, "dbias": FLOATS}
    kinds |= dict.fromkeys(("M", "nnz", "samples", "stride", "length"), "i32")
    constants = {name: getattr(gpu_conv, name) for name in ("ROWS", "STRETCHES", "GRADIENTS")}
    return gpu_conv.correlate_kernel, kinds, constants, gpu_conv.ROWS


def convolutions():
    """Those of the convolution, likewise."""
    for shape in gpu_conv.TILES:
        yield f"convolve fp32 {shape[0]}x{shape[1]}", convolve("*fp32", shape)
        yield f"convolve_t fp32 {shape[0]}x{shape[1]}", convolve("*fp32", shape, back=True)
        if shape[2] == 16:
            yield f"convolve bf16 {shape[0]}x{shape[1]}", convolve("*bf16", shape)
    yield "convolve_short fp32", convolve("*fp32", shape, short=True)
    yield "convolve_short bf16", convolve("*bf16", shape, back=True, short=True)
    for x in ("*fp32", "*bf16"):
        yield f"correlate {x[1:]}", correlate(x)


def shipped():
    """Every kernel that the library can start, by name, type of the activations and tile."""
    for x in ("*fp32", "*bf16"):
        for shape in gpu.TILES:
            yield f"spmm {x[1:]} {shape[0]}x{shape[1]}", spmm(x, shape)
            if x == "*fp32" or shape[2] == 16:
                yield f"spmm_t {x[1:]} {shape[0]}x{shape[1]}", spmm(x, shape, INTS, None)
        for block in (32, 64):
            yield f"sddmm {x[1:]} {block}", sddmm(x, block)
        yield f"network {x[1:]}", network(x)
        for shape in gpu.ODD_TILES:
            yield f"spmm_odd {x[1:]} {shape[0]}x{shape[1]}", spmm(x, shape, INTS, unit=1)
        yield f"sddmm_odd {x[1:]} 64", sddmm(x, 64, unit=1)
        yield f"network_odd {x[1:]}", network(x, unit=1)
    yield "spmm fp16 64x64", spmm("*fp16", (64, 64, 8))


if __name__ == "__main__":
    plans = *shipped(), *convolutions()
    for capability in map(int, sys.argv[1:]):
        kernels = {name: compile_for(capability, *plan) for name, plan in plans}
        listings = disassembled(capability, [made.asm["cubin"] for made in kernels.values()])
        for (name, made), listing in zip(kernels.items(), listings):
            found = {"capability": capability, "kernel": name}
            print(json.dumps(found | facts(made, listing)), flush=True)
