"""Executions from outside, in any process."""
