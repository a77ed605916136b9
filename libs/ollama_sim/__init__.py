"""A simulated Ollama node: the wire format, scheduler and failures of the real one, without a GPU or weights."""
