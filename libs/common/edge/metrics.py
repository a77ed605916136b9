"""What ports turned away."""

from prometheus_client import Counter, Gauge

refused = Counter("arriero_http_refused_total", "Requests and connections that a port ended by itself.", ["reason"])
connections = Gauge("arriero_http_connections", "Open HTTP connections.", ["port"])
