"""The command line: `app` declares the commands, `commands` implements them.

May import the whole package; nothing may import it. `app` and `options` import no torch, so that help and misspelled
options answer at once.
"""
