"""Run exported folders in other runtimes, each a `Backend` as torch is, and checkpoints on torch's integer kernels.

May import `export` and everything below it. Public names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from saqsam.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from saqsam.runtimes.interface import Runtime
    from saqsam.runtimes.loading import load_runtime
    from saqsam.runtimes.registry import RUNTIMES, TORCH, TORCH_INTEGER, check_runtime, default_runtime
    from saqsam.runtimes.torch_integer import compare_with_float, find_integer_layers, use_integer_kernels

__all__ = [
    "RUNTIMES",
    "TORCH",
    "TORCH_INTEGER",
    "Runtime",
    "check_runtime",
    "compare_with_float",
    "default_runtime",
    "find_integer_layers",
    "load_runtime",
    "use_integer_kernels",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RUNTIMES": "registry",
        "TORCH": "registry",
        "TORCH_INTEGER": "registry",
        "Runtime": "interface",
        "check_runtime": "registry",
        "compare_with_float": "torch_integer",
        "default_runtime": "registry",
        "find_integer_layers": "torch_integer",
        "load_runtime": "loading",
        "use_integer_kernels": "torch_integer",
    },
)
