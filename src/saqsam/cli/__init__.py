"""The command line: `app` declares the commands, `commands` implements them.

Nothing may import this package. `app` and `options` import no torch, so that help and misspelt options answer at once.
"""
