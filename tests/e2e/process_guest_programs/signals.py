import ctypes, os, resource, select, signal, struct, time

libc = ctypes.CDLL(None, use_errno=True)
SIGNALFD4, TIMER_CREATE, TIMER_SETTIME, TIMER_GETOVERRUN, TIMER_DELETE = 289, 222, 223, 225, 226

# Signals from a descriptor.
read = [signal.SIGUSR1, signal.SIGCHLD]
mask = struct.pack("Q", sum(1 << (number - 1) for number in read))
signal.pthread_sigmask(signal.SIG_BLOCK, read)
fd = libc.syscall(SIGNALFD4, -1, mask, 8, os.O_NONBLOCK | os.O_CLOEXEC)
print(select.select([fd], [], [], 0)[0])
os.kill(os.getpid(), signal.SIGUSR1)
print(select.select([fd], [], [], 9)[0] == [fd], os.read(fd, 1000)[:4])
try:
    os.read(fd, 1000)
except BlockingIOError as error:
    print(error)
if os.fork() == 0:
    os._exit(3)
select.select([fd], [], [], 9)
record = os.read(fd, 128)
print(record[0], struct.unpack_from("i", record, 40)[0], os.wait()[1])

# Timers of processor time, and of the calendar.
hits = []
signal.signal(signal.SIGVTALRM, lambda *_: hits.append(1))
signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.02)
while len(hits) < 3:
    pass
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
print(time.process_time() > 0.05, resource.getrusage(resource.RUSAGE_SELF).ru_utime > 0.05)
event = struct.pack("qii48x", 77, signal.SIGUSR2, 0)
timer = ctypes.c_int()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
print(libc.syscall(TIMER_CREATE, 1, event, ctypes.byref(timer)))
period = struct.pack("qqqq", 0, 10_000_000, 0, 10_000_000)
print(libc.syscall(TIMER_SETTIME, timer, 0, period, 0))
time.sleep(0.1)
info = signal.sigwaitinfo([signal.SIGUSR2])
print(info.si_code, info.si_signo)
print(libc.syscall(TIMER_GETOVERRUN, timer) > 0, libc.syscall(TIMER_DELETE, timer), libc.syscall(TIMER_DELETE, timer))

# Limits.
print(resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)), resource.getrlimit(resource.RLIMIT_NOFILE))
try:
    [os.dup(0) for _ in range(200)]
except OSError as error:
    print(error)
