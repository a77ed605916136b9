"""What has happened on the node since it started; shown by the control route."""


class Counters:
    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.in_flight = 0  # on the inference routes
        self.served = 0  # answers that reached their end
        self.cancelled = 0  # requests whose client went away
        self.failed = 0  # answered with an error, or cut by a fault
        self.tokens = 0
        self.prompt_tokens_read = 0
        self.prompt_tokens_reused = 0  # a slot had them already
        self.loads = 0
        self.failed_loads = 0
        self.aborted_loads = 0
        self.evictions = 0
        self.expirations = 0

    def count_request(self, path: str) -> None:
        self.requests[path] = self.requests.get(path, 0) + 1
