"""SAM families: loading them, and asking for their structure."""

from saqsam.models.loading import load

__all__ = ["load"]
