"""What the tests stand on: databases, brokers, real workers, and an outside witness of effects."""
