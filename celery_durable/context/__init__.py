"""What a body can ask for: ``self.durable``."""
