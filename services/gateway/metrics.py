"""Instruments of a gateway. `route` is the route's pattern, never a path.

| name                                     | type      | labels       | meaning                                  |
|------------------------------------------|-----------|--------------|------------------------------------------|
| arriero_gateway_requests_total           | counter   | route, code  | requests answered, by HTTP status        |
| arriero_gateway_jobs_submitted_total     | counter   | route, kind  | jobs stored                              |
| arriero_gateway_streams_open             | gauge     |              | open event streams                       |
| arriero_gateway_first_token_seconds      | histogram |              | from request to the first token shown    |
| arriero_gateway_client_disconnects_total | counter   |              | chat clients that left before the end    |
| arriero_gateway_requests_revoked_total   | counter   |              | requests ended because their credential was revoked |
| arriero_gateway_jobs_store_ratio         | gauge     |              | how full the stream JOBS is, 0 to 1      |
| arriero_gateway_webhook_attempts_total   | counter   | result       | tried: delivered, refused, unreachable   |
| arriero_gateway_webhook_seconds          | histogram |              | what an attempt took                     |
| arriero_gateway_webhooks_given_up_total  | counter   |              | events not delivered within a day        |
"""

from prometheus_client import Counter, Gauge, Histogram

requests = Counter("arriero_gateway_requests", "Requests answered", ["route", "code"])
submitted = Counter("arriero_gateway_jobs_submitted", "Jobs stored", ["route", "kind"])
streams_open = Gauge("arriero_gateway_streams_open", "Open event streams")
first_token = Histogram(
    "arriero_gateway_first_token_seconds",
    "From request to the first token shown",
    # up to minutes: a cold model has to be loaded first
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 300),
)
disconnects = Counter("arriero_gateway_client_disconnects", "Chat clients that left before the end")
revoked = Counter("arriero_gateway_requests_revoked", "Requests ended because their credential was revoked")
webhook_attempts = Counter("arriero_gateway_webhook_attempts", "Deliveries of webhooks tried", ["result"])
webhook_seconds = Histogram(
    "arriero_gateway_webhook_seconds",
    "What an attempt to deliver took",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
webhooks_given_up = Counter("arriero_gateway_webhooks_given_up", "Events that were not delivered within a day")
jobs_full = Gauge("arriero_gateway_jobs_store_ratio", "How full the stream JOBS is")
