"""The only door to NATS: nats-py with its known pitfalls handled once (ADR 0003 lists them and where each is met)."""
