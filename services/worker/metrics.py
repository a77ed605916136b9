"""Instruments of a worker.

| name                          | type    | labels  | meaning                                              |
|-------------------------------|---------|---------|------------------------------------------------------|
| arriero_worker_runs_total     | counter | outcome | runs ended: finish, giveback, drop                   |
| arriero_worker_running        | gauge   |         | runs that hold a slot                                |
| arriero_worker_slots          | gauge   |         | concurrent generations the node may have             |
| arriero_worker_node_reachable | gauge   |         | 1 when the node's Ollama answers                     |
"""

from prometheus_client import Counter, Gauge

runs = Counter("arriero_worker_runs", "Runs ended, by outcome", ["outcome"])
running = Gauge("arriero_worker_running", "Runs that hold a slot")
slots = Gauge("arriero_worker_slots", "Concurrent generations the node may have")
node_reachable = Gauge("arriero_worker_node_reachable", "1 when the node's Ollama answers")
