"""Objectives: what is optimized, one file each. An objective owns one step; the loop owns the rest."""
