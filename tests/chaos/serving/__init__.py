"""Serving under faults: real gateways and inference workers, callers who check every row they get."""
