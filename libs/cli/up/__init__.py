"""`arriero up`: the whole of Arriero on this machine.

| module         | holds                                                                 |
|----------------|-----------------------------------------------------------------------|
| `command`      | options and help                                                      |
| `stack`        | the order of things: start, streams, demo client, summary, drain      |
| `supervisor`   | processes that are started again when they die                        |
| `backoff`      | after how long                                                        |
| `processes`    | which processes, with which arguments and environment (pure)          |
| `ports`        | which port is whose (pure), and whether one is taken                  |
| `ollama`       | OLLAMA_HOST, names of nodes, which nodes there are                    |
| `nats_config`  | the embedded server's configuration (pure)                            |
| `streams`      | creates streams and buckets                                           |
| `leftovers`    | processes that an earlier run left behind                             |
| `log_files`    | one log per process                                                   |
| `probe`        | the cheapest possible GET                                             |
| `demo_client`  | the client that every fresh stack has                                 |
| `first_answer` | the first chat, streamed to the terminal                              |
| `narrator`     | what is said while all this happens: lines, or JSON                   |
"""
