"""Helpers of the benchmarks: targets that every library can run, one runner a library, measures, result files."""
