"""Helpers that know nothing of durable execution."""
