"""Measuring: metrics, the test, its report, and the ablation."""
