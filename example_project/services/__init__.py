"""The outside world of the shop: three small HTTP services, each a process with a ledger of its own."""
