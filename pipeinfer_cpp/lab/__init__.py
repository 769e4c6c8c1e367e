"""Instruments: what a codec changes, emulated clusters, benchmarks, simulation."""
