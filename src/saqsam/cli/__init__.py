"""The command line of saqsam.

It lies outside the package `saqsam`, whose import takes seconds: that brings torch and transformers, to which it
makes checkpoints known. `app` declares the commands and imports nothing of it, so that help and a misspelt option
answer at once; what the commands do is in `commands`, imported when one runs.
"""
