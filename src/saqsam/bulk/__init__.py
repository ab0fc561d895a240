"""Batch segmentation of any number of images: in parts, each into one Parquet file that can be merged afterwards.

A part is a fixed slice of the images. Its file appears when it is complete, and equal runs write equal files, so that
any number of processes may share the parts and any of them may be repeated. May import everything but `cli`.
"""
