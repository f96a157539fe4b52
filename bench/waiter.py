"""Run a command and write what it cost to a descriptor: waiter.py DESCRIPTOR COMMAND...

A process begins with the peak memory of the one that it was forked from; so what is measured is forked from this small one. It imports
nothing that it can do without.
"""

import os
import sys
import time

start = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
figures = (time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss)
os.write(int(sys.argv[1]), " ".join(map(str, figures)).encode())
sys.exit(os.waitstatus_to_exitcode(status) and 1)
