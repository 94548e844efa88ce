"""Reports: attempts, audits and timings as records, JSON and text."""
