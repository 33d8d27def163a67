"""The fast room alone: what it encodes, remembers and queues."""
