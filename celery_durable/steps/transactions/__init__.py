"""Steps whose entry commits in one transaction with what they write."""
