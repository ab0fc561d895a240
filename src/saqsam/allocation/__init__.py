"""Bit allocation: choose the bits of every part under a budget, from measured errors of the masks."""

from __future__ import annotations
