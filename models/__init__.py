"""Reference architectures, built in code or refilled from stripped exports: inputs for tests, demos and benchmarks.

Nothing here imports the rewriter, so that a model cannot share a mistake with what it is used to test.
`python -m models --list` shows the names; `models.catalogue.build` gives a ModelProto.
"""
