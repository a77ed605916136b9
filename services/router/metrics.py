"""Instruments of a router.

| name                          | type    | labels | meaning                                                   |
|-------------------------------|---------|--------|-----------------------------------------------------------|
| arriero_router_active         | gauge   |        | 1 while this process holds the lease                      |
| arriero_router_jobs           | gauge   | state  | unfinished jobs: queued, bound                            |
| arriero_router_nodes          | gauge   | state  | nodes: alive, suspect, dead                               |
| arriero_router_binds_total    | counter | cold   | bindings made; cold: the model had to be loaded           |
| arriero_router_requeues_total | counter | reason | jobs taken back: node_gone, given_back, refused, finished |
| arriero_router_ended_total    | counter | state  | jobs that the router itself ended                         |
| arriero_router_decide_seconds | histogram |      | time of one decision, or one step of a search for copies  |
| arriero_router_loads_total    | counter | result | models loaded ahead of need: done, failed                 |
| arriero_router_ttft_prediction_ratio | histogram | | time to first token after binding, real over predicted   |
"""

from prometheus_client import Counter, Gauge, Histogram

active = Gauge("arriero_router_active", "1 while this process holds the lease")
jobs = Gauge("arriero_router_jobs", "Unfinished jobs", ["state"])
nodes = Gauge("arriero_router_nodes", "Nodes by liveness", ["state"])
binds = Counter("arriero_router_binds", "Bindings made", ["cold"])
requeues = Counter("arriero_router_requeues", "Jobs taken back from a node", ["reason"])
ended = Counter("arriero_router_ended", "Jobs that the router itself ended", ["state"])
decide_seconds = Histogram(
    "arriero_router_decide_seconds", "Time of one decision", buckets=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3)
)
loads = Counter("arriero_router_loads", "Models loaded ahead of need", ["result"])
prediction_ratio = Histogram(
    "arriero_router_ttft_prediction_ratio",
    "Time to first token after binding, real over predicted",
    buckets=(0.1, 0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0, 10.0),
)
