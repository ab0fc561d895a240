"""Web exports: a static folder with a page on which the model answers clicks, computed in the browser.

`shared/` is shared with `saqsam serve`; `local/` computes in the browser what that server answers.
"""
