"""SAM families: loading of float models, and everything that is specific to a family.

May import `quant` and `utils`.
"""

from saqsam.models.loading import load

__all__ = ["load"]
