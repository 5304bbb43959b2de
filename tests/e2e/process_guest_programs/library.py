import asyncio, concurrent.futures, json, mmap, multiprocessing, os, socket, sqlite3, subprocess, threading, time, zlib

server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()


def serve():
    connection, _ = server.accept()
    connection.sendall(connection.recv(10).upper())
    connection.close()


thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection(server.getsockname())
client.sendall(b"hello")
print(client.recv(10))
thread.join()

print(subprocess.run(["sh", "-c", "echo sub; exit 3"], capture_output=True))
print(sqlite3.connect(":memory:").execute("select 1 + 1").fetchall())
print(zlib.crc32(zlib.compress(b"x" * 100000)), json.loads(json.dumps({"a": [1, None]})))


async def child():
    process = await asyncio.create_subprocess_exec("echo", "async", stdout=subprocess.PIPE)
    print(await process.communicate())


asyncio.run(child())
with multiprocessing.Pool(4) as pool:
    print(pool.map(abs, range(-5, 5)))
with concurrent.futures.ThreadPoolExecutor(20) as pool:
    print(sum(pool.map(lambda x: x * x, range(1000))))

shared = mmap.mmap(-1, 8192)
shared[:3] = b"abc"
if os.fork() == 0:
    shared[:3] = b"xyz"
    os._exit(0)
os.wait()
print(shared[:3])

before = time.monotonic()
times = [time.monotonic() for _ in range(100000)]
print(times == sorted(times), 0 <= time.monotonic() - before < 60)
