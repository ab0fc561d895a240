"""The tasks that a model is judged on, one file each."""
