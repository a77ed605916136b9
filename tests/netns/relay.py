"""`relay.py PORT DELAY_MS HOST PORT`: passes TCP connections on, every byte later by so much, in both directions.

For kernels without netem. Unlike a long cable it does not delay the connecting itself.
"""

import asyncio
import sys
from contextlib import suppress

Stamped = tuple[float, bytes]


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[Stamped] = asyncio.Queue()

    async def read() -> None:
        while data := await reader.read(65536):
            waiting.put_nowait((loop.time() + delay_s, data))
        waiting.put_nowait((loop.time() + delay_s, b""))

    async def write() -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                return
            writer.write(data)
            await writer.drain()

    with suppress(OSError):
        await asyncio.gather(read(), write())
    writer.close()


async def main(port: int, delay_ms: int, host: str, target: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection(host, target)
        await asyncio.gather(pass_on(reader, back, delay_ms / 1000), pass_on(onward, writer, delay_ms / 1000))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
