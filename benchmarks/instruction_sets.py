"""Run a benchmark as on a CPU with fewer instructions: which kernels, libraries and sets it has.

oneDNN, MKL and PyTorch's own loops are limited by variables that they read when they are loaded;
FBGEMM by a function of the library. What is left is the CPU's own memory, caches and clock. ONNX
Runtime is not limited; OpenVINO is in what it computes by oneDNN, and then some of its precisions
do not run.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path

import torch

from lightning_compress.models import modeling_kernels

# By name: oneDNN's, MKL's and PyTorch's names, FBGEMM's number, and the kernel for int8 products.
SETS = {
    "avx2": ("AVX2", "AVX2", "avx2", 1, "fbgemm"),
    "avx512": ("AVX512_CORE", "AVX512", "avx512", 2, "fbgemm"),
    "vnni": ("AVX512_CORE_VNNI", "AVX512", "avx512", 4, "int_mm"),
}
_LIMITED = "LIGHTNING_COMPRESS_INSTRUCTIONS"  # set in the process that is limited
_FORCE = "_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE"  # fbgemm::fbgemmForceIsa


def parse(parser):
    """Parse a benchmark's options and these, and limit this process."""
    parser.add_argument(
        "--instructions", choices=SETS, help="as on a CPU with this set; default: all it has"
    )
    parser.add_argument(
        "--kernel",
        choices=("int_mm", "fbgemm", "float32"),
        help="for int8 products; default: the one that the instructions are used by",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    _limit(arguments)
    return arguments


def _limit(arguments):
    """Limit this process, which starts anew for it, and say what it computes with."""
    if arguments.instructions is not None:
        onednn, mkl, loops, fbgemm, kernel = SETS[arguments.instructions]
        variables = {
            _LIMITED: arguments.instructions,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
            "ATEN_CPU_CAPABILITY": loops,
            "TORCHINDUCTOR_CACHE_DIR": f".cache/inductor-{arguments.instructions}",
        }
        if os.environ.get(_LIMITED) != arguments.instructions:
            os.environ.update(variables)
            os.execv(sys.executable, [sys.executable, *sys.argv])
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        getattr(library, _FORCE)(fbgemm)
        modeling_kernels.CPU_KERNEL = kernel
    if arguments.kernel is not None:
        modeling_kernels.CPU_KERNEL = arguments.kernel
    present = [n for n, has in torch.cpu.get_capabilities().items() if has is True]
    found = [n for n in ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "amx_int8") if n in present]
    print(
        f"CPU: {torch.cpu.get_capabilities().get('cpu_name')}, {', '.join(found)}; instructions: "
        f"{arguments.instructions or 'all'}; int8 products: {modeling_kernels.CPU_KERNEL}"
    )
