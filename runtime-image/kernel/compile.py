"""Compiles every printed kernel for accelerators that are not here.

`make kernels` runs it. CUDA through NVRTC to CUBIN and through `ptxas -v` for each NVIDIA
`isa` of gpus.csv: no spill, no stack frame, registers under the ceiling of the kernel's
archetype. HIP through Debian's clang to code objects for three AMD targets, which shows that
the text compiles and nothing more: nothing of it ran.
"""

import argparse
import csv
import ctypes
import pathlib
import re
import subprocess
import sys

# Registers a thread may take of a multiprocessor's 65,536: with 64, 1,024 threads stay on it; with
# 96, two groups of 256, which is as few as hide a barrier. Gemm holds 16 sums, a pair 32.
CEILINGS = [("linear", 96), ("attention", 96), ("", 64)]
AMD = ["gfx90a", "gfx942", "gfx1100"]


def ceiling(kernel):
    return next(most for prefix, most in CEILINGS if kernel.startswith(prefix))


class Nvrtc:
    """NVIDIA's run-time compiler, which needs no device."""

    def __init__(self, library):
        folder = pathlib.Path(library).parent
        # It looks for its second library by name: load that first.
        for other in sorted(folder.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
        self.dll = ctypes.CDLL(str(library))

    def _text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.dll, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.dll, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw[: size.value]

    def compile(self, source, arch, form):
        """PTX for compute_NN, CUBIN for sm_NN. Raises with the compiler's log."""
        program = ctypes.c_void_p()
        self.dll.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
        options = [f"--gpu-architecture={arch}", "--fmad=false", "--std=c++17", "-default-device"]
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.dll.nvrtcCompileProgram(program, len(options), array)
        if code != 0:
            log = self._text(program, "ProgramLog").decode(errors="replace")
            raise SystemExit(f"NVRTC refuses the kernels for {arch}:\n{log}")
        result = self._text(program, form)
        self.dll.nvrtcDestroyProgram(ctypes.byref(program))
        return result


def source_of(folder, ending):
    """All kernels in one file: the prelude once."""
    texts = [p.read_text() for p in sorted(folder.glob(f"*.{ending}"))]
    if not texts:
        raise SystemExit(f"no printed kernels in {folder}")
    head = texts[0][: texts[0].index("_parameters {")].rsplit("\nstruct ", 1)[0]
    assert all(t.startswith(head) for t in texts), "one prelude for all"
    return head + "".join(t[len(head):] for t in texts), len(texts)


def only(folder, name):
    found = sorted(folder.rglob(name))
    if not found:
        raise SystemExit(f"no {name} under {folder}")
    return found[0]


def nvidia(args):
    source, count = source_of(args.folder, "cu")
    with open(args.gpus, newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["vendor"] == "nvidia"]
    nvrtc, problems = Nvrtc(only(args.cuda, "libnvrtc.so.12")), []
    ptxas = only(args.cuda, "ptxas")
    ptxas.chmod(0o755)
    print("| isa | kernels | CUBIN bytes | most registers | spills |\n|---|---|---|---|---|")
    for isa in sorted({r["isa"] for r in rows}, key=lambda isa: int(isa[3:])):
        cubin = nvrtc.compile(source, isa, "CUBIN")
        ptx = args.folder / f"{isa}.ptx"
        ptx.write_bytes(nvrtc.compile(source, isa.replace("sm", "compute"), "PTX").rstrip(b"\0"))
        told = subprocess.run(
            [ptxas, "-v", f"-arch={isa}", str(ptx), "-o", "/dev/null"],
            capture_output=True, text=True,
        )
        if told.returncode != 0:
            raise SystemExit(f"ptxas refuses the kernels for {isa}:\n{told.stderr}")
        found = re.findall(
            r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores,"
            r" (\d+) bytes spill loads.*?Used (\d+) registers",
            told.stderr, re.S,
        )
        if len(found) != count:
            raise SystemExit(f"ptxas tells of {len(found)} kernels, not {count}:\n{told.stderr}")
        most, spills = max((int(f[4]), f[0]) for f in found), 0
        for kernel, stack, stores, loads, registers in found:
            spills += int(stores) + int(loads)
            if int(stack) or int(stores) or int(loads):
                problems.append(f"{isa}: {kernel}: {stack} bytes of stack, {stores} + {loads} spilled")
            if int(registers) > ceiling(kernel):
                problems.append(f"{isa}: {kernel}: {registers} registers, over {ceiling(kernel)}")
        print(f"| {isa} | {count} | {len(cubin)} | {most[0]} ({most[1]}) | {spills} |")
    return problems


def amd(args):
    source, count = source_of(args.folder, "hip")
    file = args.folder / "all.hip.cpp"
    file.write_text(source)
    print("\n| target | kernels | code object bytes | most VGPRs | spills |\n|---|---|---|---|---|")
    problems = []
    for target in AMD:
        base = [
            args.clang, "-x", "hip", "--offload-device-only", f"--offload-arch={target}", "-O3",
            "-std=c++17", "-nogpulib", "-nogpuinc", str(file),
        ]
        for more in (["-S", "-o", str(args.folder / f"{target}.s")],
                     ["--no-gpu-bundle-output", "-o", str(args.folder / f"{target}.hsaco")]):
            told = subprocess.run(base + more, capture_output=True, text=True)
            if told.returncode != 0:
                raise SystemExit(f"clang refuses the kernels for {target}:\n{told.stderr}")
        text = (args.folder / f"{target}.s").read_text()
        vgprs = [int(n) for n in re.findall(r"\.vgpr_count:\s+(\d+)", text)]
        spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text))
        if len(vgprs) != count:
            problems.append(f"{target}: {len(vgprs)} kernels, not {count}")
        if spills:
            problems.append(f"{target}: {spills} registers spilled")
        size = (args.folder / f"{target}.hsaco").stat().st_size
        print(f"| {target} | {len(vgprs)} | {size} | {max(vgprs, default=0)} | {spills} |")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="what print_kernels wrote")
    parser.add_argument("--gpus", required=True, help="the accelerators' table")
    parser.add_argument("--cuda", type=pathlib.Path, help="folder with NVIDIA's wheels; else left out")
    parser.add_argument("--clang", help="clang 19; else AMD is left out")
    args = parser.parse_args()
    problems = []
    if args.cuda:
        problems += nvidia(args)
    if args.clang:
        problems += amd(args)
    for problem in problems:
        print(problem, file=sys.stderr)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
