"""The passes of rewriter, one per file.  `rewriter.registry` scans this package; nothing lists them by hand."""

from __future__ import annotations

REWRITER_PASSES = "onnx-conv-rewriter"
"""The registry's sign that this is its package and not another one called `passes`."""
