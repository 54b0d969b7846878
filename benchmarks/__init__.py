"""Measurements: ratios side by side in one run, by scripts that anyone can run. Output goes to `docs/`."""
