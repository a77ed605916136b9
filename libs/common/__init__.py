"""What all services must agree on (contracts, states, error codes) or do alike (bus, runtime, settings, logs).

Nothing else belongs here: no decision of one service, no shape of Ollama's or OpenAI's API. Nothing is re-exported, so that
importing a pure module never drags in the network.
"""
