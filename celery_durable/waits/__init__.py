"""The rules of waiting."""
