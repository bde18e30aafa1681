"""Workloads and measurements: prompts, the timed comparison of methods, its tables."""
