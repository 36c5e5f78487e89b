"""One run of a body: its position, its requests to the journal, and where the two disagree."""
