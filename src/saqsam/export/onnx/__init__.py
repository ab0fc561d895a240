"""ONNX graphs of a quantized model: a graph builder, and one folder of writers per SAM family.

May import `checkpoint` and everything below it, and from `export` its modules that every format shares.
"""
