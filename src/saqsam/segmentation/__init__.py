"""Segment many images from prompts of many kinds, whole or in tiles, and write the masks as other tools read them.

May import everything but `report`, `verification` and `cli`.
"""
