"""Helpers that several folders of tests share; on the path by pytest's `pythonpath`."""
