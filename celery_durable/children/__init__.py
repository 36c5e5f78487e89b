"""Child tasks: what a call is, how it becomes messages, how its end is reported."""
